"""Requests and answers that `AnthropicLLM` translates."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from clients.loopback import Answer, serve
from llm_servers.anthropic_server import serve_anthropic
from llm_servers.kits import (
    ABILITIES,
    KITS,
    LOOP,
    PICTURE,
    REQUEST,
    STRICT,
    WEATHER,
    answer,
    ask,
    both_ways,
    converse,
    failure_of,
    make_anthropic,
    whole,
)
from llm_servers.server import Json, Server, events
from resilience import UnsupportedRequestError, http, llm
from resilience.providers.anthropic import AnthropicLLM

anthropic = pytest.importorskip("anthropic")


@pytest.fixture
def server() -> Iterator[Server]:
    """Run a test server of Anthropic."""
    with serve_anthropic() as server:
        yield server


@pytest.fixture
def provider(server: Server) -> Iterator[llm.Provider]:
    """Make a provider for the server."""
    with make_anthropic(server.url) as provider:
        yield provider


@contextmanager
def provider_of(kind: str, body: bytes, status: int = 200) -> Iterator[llm.Provider]:
    """Yield a provider whose server gives the same answer to every request."""
    with (
        serve(Answer(status=status, headers={"Content-Type": kind}, body=body)) as url,
        make_anthropic(url) as provider,
    ):
        yield provider


def complete(content: Sequence[Json], reason: str | None, **more: object) -> llm.CompletionResponse:
    """Request a whole answer from a server."""
    usage = {"input_tokens": 3, "output_tokens": 2}
    body = {"id": "msg-1", "type": "message", "role": "assistant", "model": "m", "usage": usage}
    text = json.dumps({**body, "content": content, "stop_reason": reason, **more}).encode()
    with provider_of("application/json", text) as provider:
        return provider.complete(REQUEST)


def stream(*pieces: Json, reason: str | None = "end_turn") -> list[llm.Chunk]:
    """Request a stream of these pieces, without the events of its beginning, from a server."""
    delta = {"stop_reason": reason, "stop_sequence": None}
    end = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2}}
    body = b"".join(events([*pieces, end, {"type": "message_stop"}], named=True))
    with provider_of("text/event-stream", body) as provider:
        return list(provider.stream_completion(REQUEST))


def start(block: Json) -> Json:
    """Return the event with which a block starts."""
    return {"type": "content_block_start", "index": 0, "content_block": block}


def delta(**fields: object) -> Json:
    """Return the event of a delta."""
    return {"type": "content_block_delta", "index": 0, "delta": fields}


@both_ways
def test_a_reasoning_tool_loop(provider: llm.Provider, server: Server, *, streams: bool) -> None:
    """Signed and encrypted reasoning is sent back unchanged, in each turn."""
    answers = converse(provider, LOOP, ["rain", "sun"], streams=streams)

    assert answers[-1].content == "claude says rain and sun."
    assert [each.reasoning for each in answers] == [
        f"claude thinks about step {step}." for step in range(3)
    ]
    assert server.errors == []
    kinds = [block["type"] for block in server.bodies[-1]["messages"][1]["content"]]
    assert kinds == ["thinking", "redacted_thinking", "tool_use"]


@both_ways
def test_a_signature_that_is_missing(provider: llm.Provider, *, streams: bool) -> None:
    """The server rejects a call without its reasoning, so the test above detects a loss of it."""
    begun = provider.complete(LOOP)
    result = llm.Message(role="tool", tool_call_id=begun.tool_calls[0].id, content="rain")
    changed = json.loads(json.dumps(begun.extra))
    changed["anthropic"]["content"][0]["thinking"] = "Something else."

    for extra, text in ((None, "thinking before a call"), (changed, "invalid signature")):
        messages = (*LOOP.messages, replace(begun.message, extra=extra), result)
        error = failure_of(provider, replace(LOOP, messages=messages), streams=streams)
        assert text in str(error)


def test_blanks_before_a_call(provider: llm.Provider, server: Server) -> None:
    """Blanks that the model writes between reasoning and call are not sent back with them."""
    begun = provider.complete(LOOP)
    changed = json.loads(json.dumps(begun.extra))
    changed["anthropic"]["content"].insert(2, {"type": "text", "text": "\n\n"})
    result = llm.Message(role="tool", tool_call_id=begun.tool_calls[0].id, content="rain")
    messages = (*LOOP.messages, replace(begun.message, extra=changed), result)

    assert provider.complete(replace(LOOP, messages=messages)).tool_calls
    kinds = [block["type"] for block in server.bodies[-1]["messages"][1]["content"]]
    assert kinds == ["thinking", "redacted_thinking", "tool_use"]


def test_extra_survives_json(provider: llm.Provider) -> None:
    """The data that must be sent back can be stored as JSON."""
    begun = provider.complete(LOOP)
    stored = json.loads(json.dumps(begun.extra))
    result = llm.Message(role="tool", tool_call_id=begun.tool_calls[0].id, content="rain")
    messages = (*LOOP.messages, replace(begun.message, extra=stored), result)

    assert provider.complete(replace(LOOP, messages=messages)).tool_calls


def test_conversations_are_not_changed(provider: llm.Provider) -> None:
    """Sending changes neither a message nor its `extra`."""
    begun = provider.complete(LOOP)
    before = json.dumps(begun.extra)
    result = llm.Message(role="tool", tool_call_id=begun.tool_calls[0].id, content="rain")

    provider.complete(replace(LOOP, messages=(*LOOP.messages, begun.message, result)))

    assert json.dumps(begun.extra) == before


@pytest.mark.parametrize(
    ("reason", "translated"),
    [
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "pause_turn"),
    ],
)
def test_finish_reasons(reason: str, translated: str) -> None:
    """Known finish reasons are translated, and others are passed on."""
    text = {"type": "text", "text": "Hi."}

    assert complete([text], reason).finish_reason == translated
    assert stream(start(text), reason=reason)[-1].finish_reason == translated


def test_a_refusal() -> None:
    """A refusal is an answer, with the vendor's explanation if there is one."""
    details = {"type": "refusal", "category": "cyber", "explanation": "I will not."}

    response = complete([], "refusal", stop_details=details)

    assert (response.refusal, response.finish_reason) == ("I will not.", "content_filter")
    assert complete([], "refusal").refusal == ""
    assert stream(reason="refusal")[-1] == llm.Chunk(
        finish_reason="content_filter", usage=llm.Usage(completion_tokens=2)
    )


def test_nothing_is_not_an_answer() -> None:
    """An answer that ends regularly without text or calls raises."""
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}
    for reason in ("end_turn", "tool_use"):
        for text in ("", "\n\n"):
            with pytest.raises(ConnectionError, match="empty"):
                complete([thinking, {"type": "text", "text": text}], reason)
    with pytest.raises(ConnectionError, match="empty"):
        stream()
    with pytest.raises(ConnectionError, match="cut off"):
        stream(reason=None)


@pytest.mark.parametrize("is_ended", [False, True])
def test_no_end(*, is_ended: bool) -> None:
    """A stream without a finish reason, or without the event that ends it, was cut off."""
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    end = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2}}
    piece = {"type": "message_stop"} if is_ended else end
    text = start({"type": "text", "text": "Hi."})
    body = b"".join(events([text, piece], named=True))
    with (
        provider_of("text/event-stream", body) as provider,
        pytest.raises(ConnectionError, match="cut off"),
    ):
        list(provider.stream_completion(REQUEST))


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"content": []}'])
def test_a_body_that_is_no_message(body: bytes) -> None:
    """Other JSON is not an answer."""
    with (
        provider_of("application/json", body) as provider,
        pytest.raises(ConnectionError, match="not a message"),
    ):
        provider.complete(REQUEST)


def test_a_call_that_was_cut_off() -> None:
    """If a tool call is cut off at `max_tokens`, its arguments are passed on unchanged."""
    use = {"type": "tool_use", "id": "1", "name": "weather", "input": {}}

    chunks = stream(
        start(use),
        delta(type="input_json_delta", partial_json='{"ci'),
        reason="max_tokens",
    )

    assert chunks[-1].tool_calls == (llm.ToolCall(id="1", name="weather", arguments='{"ci'),)


def test_a_call_without_arguments() -> None:
    """A tool call whose arguments the vendor omits has an empty object."""
    use = {"type": "tool_use", "id": "1", "name": "now", "input": {}}

    assert stream(start(use), reason="tool_use")[-1].tool_calls[0].arguments == "{}"


def test_citations() -> None:
    """Citations are kept if an answer has to be sent back unchanged."""
    cited = {"type": "char_location", "cited_text": "rain", "document_index": 0}
    text = {"type": "text", "text": "", "citations": None}
    server_tool = {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}}

    plain = stream(
        start(text),
        delta(type="text_delta", text="A"),
        delta(type="citations_delta", citation=cited),
    )
    kept = stream(
        {**start(server_tool), "index": 1},
        start(text),
        delta(type="text_delta", text="A"),
        delta(type="citations_delta", citation=cited),
        delta(type="citations_delta", citation=cited),
        delta(type="something_new"),
    )

    assert plain[-1].extra is None
    assert kept[-1].extra == {
        "anthropic": {"content": [server_tool, {**text, "text": "A", "citations": [cited, cited]}]}
    }


def test_files(provider: llm.Provider, server: Server) -> None:
    """Links, uploaded files and texts reach the vendor, with their names."""
    files = (
        llm.Media(media_type="image/jpeg", uri="file-1"),
        llm.Media(media_type="application/pdf", uri="https://example.com/a.pdf"),
        llm.Media(media_type="application/pdf", uri="file-2"),
        llm.Media(media_type="text/plain", data=b"a text", name="a.txt"),
    )
    message = llm.Message(role="user", content="Look:", attachments=files)

    response = provider.complete(llm.CompletionRequest(messages=(message,)))

    told = "file-1 and https://example.com/a.pdf and file-2 and a text"
    assert response.content == f"claude says {told}."
    assert server.bodies[0]["messages"][0]["content"][-1]["title"] == "a.txt"


@pytest.mark.parametrize(
    "media",
    [
        llm.Media(media_type="audio/wav", data=b"-"),
        llm.Media(media_type="image/bmp", data=b"-"),
        llm.Media(media_type="text/plain", uri="https://example.com/a.txt"),
        llm.Media(media_type="image/png", uri="data:image/png;base64,YQ=="),
        llm.Media(media_type="image/png", uri="gs://files/a.png"),
    ],
    ids=lambda media: f"{media.media_type} {media.uri}",
)
def test_files_that_cannot_be_sent(
    provider: llm.Provider, server: Server, media: llm.Media
) -> None:
    """A file of a type, or at a place, that the vendor does not know raises."""
    message = llm.Message(role="user", attachments=(media,))

    with pytest.raises(UnsupportedRequestError, match=media.media_type):
        provider.complete(llm.CompletionRequest(messages=(message,)))

    assert server.bodies == []


def test_a_text_in_another_encoding(provider: llm.Provider, server: Server) -> None:
    """A text that the vendor would not get as it is raises."""
    text = llm.Media(media_type="text/plain", data="blåbær".encode("latin-1"))
    message = llm.Message(role="user", attachments=(text,))

    with pytest.raises(UnsupportedRequestError, match="not UTF-8"):
        provider.complete(llm.CompletionRequest(messages=(message,)))

    assert server.bodies == []


def test_results_of_several_calls(provider: llm.Provider, server: Server) -> None:
    """Results are in one message, with their pictures; the user's text follows them."""
    calls = tuple(llm.ToolCall(id=each, name="weather", arguments="") for each in "ab")
    messages = (
        *ask("Hi"),
        llm.Message(role="assistant", content="Wait.", tool_calls=calls),
        llm.Message(role="tool", name="weather", tool_call_id="a", attachments=(PICTURE,)),
        llm.Message(
            role="tool", tool_call_id="b", content="no", extra={"anthropic": {"is_error": True}}
        ),
        *ask("And", "now?"),
    )

    provider.complete(llm.CompletionRequest(messages=messages))

    *_, turn = server.bodies[0]["messages"]
    results = [block for block in turn["content"] if block["type"] == "tool_result"]
    assert [each["content"][0]["type"] for each in results] == ["image", "text"]
    assert [each.get("is_error") for each in results] == [None, True]
    assert [block["text"] for block in turn["content"][2:]] == ["And", "now?"]


def test_instructions(provider: llm.Provider, server: Server) -> None:
    """All instructions are the system prompt, in their order, with their cache breakpoints."""
    mark = {"cache_control": {"type": "ephemeral"}}
    messages = (
        llm.Message(role="system", content="Be brief."),
        *ask("Hi"),
        llm.Message(role="assistant"),
        llm.Message(role="developer", content="In Norwegian.", extra={"anthropic": mark}),
    )
    tool = replace(WEATHER, extra={"anthropic": mark})

    provider.complete(llm.CompletionRequest(messages=messages, tools=(tool,)))

    body = server.bodies[0]
    texts = ("Be brief.", "In Norwegian.")
    first, last = ({"type": "text", "text": text} for text in texts)
    assert body["system"] == [first, {**last, **mark}]
    assert len(body["messages"]) == 1
    assert body["tools"][0]["cache_control"] == mark["cache_control"]


def test_ids_of_another_vendor(provider: llm.Provider, server: Server) -> None:
    """Characters of an id that the vendor rejects are replaced, in the call and in the result."""
    call = llm.ToolCall(id="functions.weather:0", name="weather", arguments="{}")
    messages = (
        *ask("Hi"),
        llm.Message(role="assistant", tool_calls=(call,)),
        llm.Message(role="tool", tool_call_id=call.id, content="rain"),
    )

    provider.complete(llm.CompletionRequest(messages=messages))

    assert server.bodies[0]["messages"][1]["content"][0]["id"] == "functions_weather_0"


@pytest.mark.parametrize(
    ("effort", "sent"), [("minimal", "low"), ("high", "high"), ("xhigh", "xhigh")]
)
def test_efforts(provider: llm.Provider, server: Server, effort: str, sent: str) -> None:
    """The efforts of the contract are translated into those of the vendor."""
    provider.complete(replace(REQUEST, reasoning_effort=effort, response_format=STRICT))

    assert server.bodies[0]["output_config"]["effort"] == sent
    assert server.bodies[0]["thinking"] == {"type": "adaptive", "display": "summarized"}


def test_an_effort_that_the_vendor_does_not_have(provider: llm.Provider, server: Server) -> None:
    """An effort of another vendor raises, since this vendor would reject the request."""
    with pytest.raises(UnsupportedRequestError, match="reasoning_effort"):
        provider.complete(replace(REQUEST, reasoning_effort="ultra"))

    assert server.bodies == []


def test_blanks(provider: llm.Provider) -> None:
    """A text of blanks only, which other models write before a tool call, is left out."""
    call = llm.ToolCall(id="c-1", name="weather", arguments="{}")
    messages = (
        *ask("Hi"),
        llm.Message(role="assistant", content="\n\n", tool_calls=(call,)),
        llm.Message(role="tool", tool_call_id="c-1", content=" "),
        llm.Message(role="user", content=" "),
    )

    assert provider.complete(llm.CompletionRequest(messages=messages)).content


def test_a_block_that_starts_with_text() -> None:
    """A text at the start of a block is a part of the answer."""
    begin = start({"type": "text", "text": "Ra"})

    chunks = stream(begin, delta(type="text_delta", text="in."))

    assert whole(chunks).content == "Rain."


def test_a_forced_tool_while_reasoning(provider: llm.Provider, server: Server) -> None:
    """A forced tool together with reasoning raises, since the vendor rejects both together."""
    with pytest.raises(UnsupportedRequestError, match="forced"):
        provider.complete(replace(LOOP, tool_choice="required"))

    assert server.bodies == []


def test_the_longest_answer(server: Server) -> None:
    """The vendor requires a maximum length; it is the provider's unless the request has one."""
    with make_anthropic(server.url) as provider:
        provider.complete(REQUEST)
        provider.complete(replace(REQUEST, max_tokens=0))

    assert [body["max_tokens"] for body in server.bodies] == [16_384, 0]


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"input_tokens": null}'])
def test_a_body_that_is_no_count(body: bytes) -> None:
    """Other JSON is not a number of tokens."""
    with (
        provider_of("application/json", body) as provider,
        pytest.raises(ConnectionError, match="not a number of tokens"),
    ):
        provider.count_tokens(REQUEST.messages)


def test_counting(provider: llm.Provider) -> None:
    """Tokens are counted by the vendor."""
    assert provider.count_tokens((llm.Message(role="system", content="Hi"), *ask("Hi"))) == 23


@both_ways
@pytest.mark.parametrize(
    ("status", "text"),
    [(400, "input length and `max_tokens` exceed context limit: 9"), (413, "prompt is too long")],
)
def test_a_request_that_is_too_long(status: int, text: str, *, streams: bool) -> None:
    """A request that is too long is recognised by the message, since there is no error code."""
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": text}}
    with (
        provider_of("application/json", json.dumps(error).encode(), status) as provider,
        pytest.raises(llm.ContextWindowExceededError),
    ):
        answer(provider, REQUEST, streams=streams)


def test_an_error_event() -> None:
    """An error event in the middle of a stream counts as a failure of the provider."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    text = start({"type": "text", "text": ""})
    body = b"".join(events([text, delta(type="text_delta", text="It "), error], named=True))

    with provider_of("text/event-stream", body) as provider:
        read = iter(provider.stream_completion(REQUEST))
        chunks = [next(read), next(read)]
        with pytest.raises(anthropic.APIStatusError, match="Overloaded") as caught:
            next(read)

    assert chunks == [llm.Chunk(), llm.Chunk(content="It ")]
    assert http.is_provider_fault(caught.value)


def test_default_capabilities() -> None:
    """The default is a current model with all capabilities except for recordings."""
    with anthropic.Anthropic(base_url="http://127.0.0.1:9", api_key="-") as client:
        capabilities = AnthropicLLM(client, "claude").capabilities()

    assert capabilities == replace(ABILITIES, context_window=200_000, supports_audio=False)


def test_limits() -> None:
    """These settings raise, since the vendor does not support them."""
    assert KITS["anthropic"].limits == ("temperature", "top_p", "seed")


def test_a_setting_of_an_older_version(provider: llm.Provider, server: Server) -> None:
    """A setting that only older versions of the API support can be sent as an option."""
    options: dict[str, Any] = {"anthropic": {"extra_body": {"temperature": 0.5}}}

    failure_of(provider, replace(REQUEST, extra=options), streams=False)

    assert server.bodies[0]["temperature"] == 0.5
