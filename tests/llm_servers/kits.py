"""Server, client and provider of each vendor, for the tests of all vendors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, final

import pytest

from llm_servers.anthropic_server import serve_anthropic
from llm_servers.google_server import serve_google
from llm_servers.openai_server import serve_openai
from llm_servers.server import Server
from resilience import llm
from resilience.providers.anthropic import AnthropicLLM
from resilience.providers.google import GoogleLLM
from resilience.providers.openai import OpenAILLM

PATIENCE = 30.0  # seconds, long enough never to be needed
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
STRICT = {**CITY, "additionalProperties": False}
WEATHER = llm.ToolDefinition(name="weather", description="Tells it.", parameters=CITY)
PICTURE = llm.Media(media_type="image/png", data=b"a picture")
ABILITIES = llm.ModelCapabilities(
    context_window=1000,
    supports_tools=True,
    supports_vision=True,
    supports_structured_output=True,
    supports_reasoning=True,
    supports_audio=True,
)
BLIND = llm.ModelCapabilities(context_window=1000)


def ask(*texts: str) -> tuple[llm.Message, ...]:
    """Return what a user says."""
    return tuple(llm.Message(role="user", content=text) for text in texts)


REQUEST = llm.CompletionRequest(messages=ask("Hello?"))
LOOP = llm.CompletionRequest(
    messages=ask("Is it raining in Oslo or Bergen?"), tools=(WEATHER,), reasoning_effort="low"
)
both_ways = pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])


class Make(Protocol):
    """Makes a provider for a server."""

    def __call__(
        self, url: str, capabilities: llm.ModelCapabilities = ..., /
    ) -> AbstractContextManager[llm.Provider]:
        """Make a client for the URL, and a provider that uses it."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """The parts of one vendor.

    Attributes:
        name: Key of `extra`.
        package: Its client.
        serve: Runs its server.
        make: Makes its client and provider.
        options: Options of its own.
        limits: Fields of a request that it does not support.
    """

    name: str
    package: str
    serve: Callable[..., AbstractContextManager[Server]]
    make: Make
    options: Mapping[str, object]
    limits: tuple[str, ...] = ()


@contextmanager
def make_openai(
    url: str, capabilities: llm.ModelCapabilities = ABILITIES, /
) -> Iterator[llm.Provider]:
    """Make a provider for OpenAI."""
    import openai  # noqa: PLC0415 - it may not be installed

    transport = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="-",
        timeout=PATIENCE,
        max_retries=0,
        http_client=transport,
    ) as client:
        yield OpenAILLM(client, "gpt", capabilities=capabilities)


@contextmanager
def make_anthropic(
    url: str, capabilities: llm.ModelCapabilities = ABILITIES, /
) -> Iterator[llm.Provider]:
    """Make a provider for Anthropic."""
    import anthropic  # noqa: PLC0415 - it may not be installed

    transport = anthropic.DefaultHttpxClient(trust_env=False)
    with anthropic.Anthropic(
        base_url=url, api_key="-", timeout=PATIENCE, max_retries=0, http_client=transport
    ) as client:
        yield AnthropicLLM(client, "claude", capabilities=capabilities)


@contextmanager
def make_google(
    url: str, capabilities: llm.ModelCapabilities = ABILITIES, /
) -> Iterator[llm.Provider]:
    """Make a provider for Google."""
    from google import genai  # noqa: PLC0415 - it may not be installed

    options = genai.types.HttpOptions(
        base_url=url, timeout=int(PATIENCE * 1000), client_args={"trust_env": False}
    )
    with genai.Client(api_key="-", http_options=options) as client:
        yield GoogleLLM(client, "gemini", capabilities=capabilities)


KITS = {
    kit.name: kit
    for kit in (
        Kit(
            name="openai",
            package="openai",
            serve=serve_openai,
            make=make_openai,
            options={"service_tier": "default"},
        ),
        Kit(
            name="anthropic",
            package="anthropic",
            serve=serve_anthropic,
            make=make_anthropic,
            options={"service_tier": "standard_only"},
            limits=("temperature", "top_p", "seed"),
        ),
        Kit(
            name="google",
            package="google.genai",
            serve=serve_google,
            make=make_google,
            options={"service_tier": "standard"},
        ),
    )
}


def whole(chunks: Sequence[llm.Chunk]) -> llm.CompletionResponse:
    """Return the answer that a stream contains."""
    last = chunks[-1]
    return llm.CompletionResponse(
        content="".join(chunk.content for chunk in chunks),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        reasoning="".join(chunk.reasoning for chunk in chunks),
        refusal="".join(chunk.refusal for chunk in chunks),
        finish_reason=last.finish_reason,
        usage=last.usage,
        model=last.model,
        id=last.id,
        extra=last.extra,
    )


def answer(
    provider: llm.Provider, request: llm.CompletionRequest, *, streams: bool
) -> llm.CompletionResponse:
    """Return the answer to a request, in one of the two ways."""
    if streams:
        return whole(list(provider.stream_completion(request)))
    return provider.complete(request)


def failure_of(
    provider: llm.Provider, request: llm.CompletionRequest, *, streams: bool
) -> Exception:
    """Return the exception that a request raises."""
    try:
        found = answer(provider, request, streams=streams)
    except Exception as error:  # noqa: BLE001 - clients raise exceptions of any type
        return error
    msg = f"there was an answer: {found}"
    raise AssertionError(msg)


def converse(
    provider: llm.Provider, request: llm.CompletionRequest, results: list[str], *, streams: bool
) -> list[llm.CompletionResponse]:
    """Answer the tool calls of a model with results, until it requests none."""
    answers = [answer(provider, request, streams=streams)]
    messages = list(request.messages)
    while answers[-1].tool_calls:
        messages.append(answers[-1].message)
        for call in answers[-1].tool_calls:
            result = llm.Message(role="tool", tool_call_id=call.id, content=results.pop(0))
            messages.append(result)
        answers.append(
            answer(provider, replace(request, messages=tuple(messages)), streams=streams)
        )
    return answers
