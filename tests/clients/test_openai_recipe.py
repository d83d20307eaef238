"""The provider class for openai in the recipes translates what a server can answer."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from clients.loopback import Answer, serve
from resilience import llm

openai = pytest.importorskip("openai")

RECIPES = Path(__file__).parent.parent.parent / "docs" / "recipes.md"
NAME = "OpenAIModel"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content="Hello?"),))
REFUSAL = "I cannot help with that."


def load_class() -> Callable[..., llm.Provider]:
    """Return the class from the page."""
    (code,) = [
        block for block in BLOCK.findall(RECIPES.read_text("utf-8")) if f"class {NAME}" in block
    ]
    namespace: dict[str, object] = {}
    exec(compile(code, str(RECIPES), "exec"), namespace)  # noqa: S102
    return cast("Callable[..., llm.Provider]", namespace[NAME])


@contextmanager
def provider_of(content_type: str, body: str) -> Iterator[llm.Provider]:
    """Yield a provider whose server gives the same answer to every request."""
    answer = Answer(headers={"Content-Type": content_type}, body=body.encode())
    with (
        serve(answer) as url,
        openai.OpenAI(
            base_url=url,
            api_key="-",
            timeout=60.0,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        ) as client,
    ):
        yield load_class()(client, "-", llm.ModelCapabilities(context_window=8192))


def complete(message: Mapping[str, object]) -> llm.CompletionResponse:
    """Ask a server for a whole answer, which is a message."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    with provider_of("application/json", json.dumps({"choices": [choice]})) as provider:
        return provider.complete(REQUEST)


def stream(deltas: Sequence[Mapping[str, object]], finish_reason: str) -> list[llm.Chunk]:
    """Ask a server for a stream, which consists of some deltas and the end."""
    parts = [*((delta, None) for delta in deltas), ({}, finish_reason)]
    choices = [{"index": 0, "delta": delta, "finish_reason": reason} for delta, reason in parts]
    events = [*(json.dumps({"choices": [choice]}) for choice in choices), "[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events)
    with provider_of("text/event-stream", body) as provider:
        return list(provider.stream_completion(REQUEST))


def test_a_refusal_is_an_answer() -> None:
    """A refusal becomes the content, with the finish reason "content_filter"."""
    response = complete({"content": None, "refusal": REFUSAL})

    assert response == llm.CompletionResponse(content=REFUSAL, finish_reason="content_filter")


def test_nothing_is_not_an_answer() -> None:
    """An answer without content, refusal and calls raises."""
    with pytest.raises(ConnectionError, match="no content"):
        complete({"content": None})


def test_a_streamed_refusal_is_an_answer() -> None:
    """The parts of a refusal are passed on as content, and the last chunk says that it is one."""
    chunks = stream([{"refusal": "I cannot "}, {"refusal": "help."}], "stop")

    assert [chunk.content for chunk in chunks if chunk.content] == ["I cannot ", "help."]
    assert chunks[-1] == llm.Chunk(finish_reason="content_filter")


def test_parts_of_tool_calls_are_empty_chunks() -> None:
    """Each part of a tool call is an empty chunk, and the calls are whole in the last one."""
    first = {"index": 0, "id": "1", "function": {"name": "rain", "arguments": '{"in":'}}
    rest = {"index": 0, "function": {"arguments": ' "Oslo"}'}}

    chunks = stream([{"tool_calls": [first]}, {"tool_calls": [rest]}], "tool_calls")

    call = llm.ToolCall(id="1", name="rain", arguments='{"in": "Oslo"}')
    assert chunks[:2] == [llm.Chunk(), llm.Chunk()]
    assert chunks[-1] == llm.Chunk(tool_calls=(call,), finish_reason="tool_calls")


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_empty_chunks(field: str) -> None:
    """Each part of the reasoning, whatever its field is called, is an empty chunk."""
    chunks = stream([{field: "It"}, {field: " rains."}, {"content": "Rain."}], "stop")

    assert chunks[:3] == [llm.Chunk(), llm.Chunk(), llm.Chunk(content="Rain.")]
    assert chunks[-1] == llm.Chunk(finish_reason="stop")
