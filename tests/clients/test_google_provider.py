"""Requests and answers that `GoogleLLM` translates."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from clients.loopback import Answer, serve
from llm_servers.google_server import serve_google
from llm_servers.kits import (
    ABILITIES,
    LOOP,
    PICTURE,
    REQUEST,
    WEATHER,
    answer,
    ask,
    both_ways,
    converse,
    failure_of,
    make_google,
    whole,
)
from llm_servers.server import Fault, Json, Server, events
from resilience import UnsupportedRequestError, http, llm
from resilience.providers.google import GoogleLLM

genai = pytest.importorskip("google.genai")


@pytest.fixture
def server() -> Iterator[Server]:
    """Run a test server of Google."""
    with serve_google() as server:
        yield server


@pytest.fixture
def provider(server: Server) -> Iterator[llm.Provider]:
    """Make a provider for the server."""
    with make_google(server.url) as provider:
        yield provider


@contextmanager
def provider_of(kind: str, body: bytes) -> Iterator[llm.Provider]:
    """Yield a provider whose server gives the same answer to every request."""
    with (
        serve(Answer(headers={"Content-Type": kind}, body=body)) as url,
        make_google(url) as provider,
    ):
        yield provider


def respond(*answers: Json) -> tuple[llm.CompletionResponse, ...]:
    """Request a whole answer, which is the first of these, and a stream of all of them."""
    with provider_of("application/json", json.dumps(answers[0]).encode()) as provider:
        first = provider.complete(REQUEST) if len(answers) == 1 else llm.CompletionResponse()
    with provider_of("text/event-stream", b"".join(events(answers))) as provider:
        streamed = whole(list(provider.stream_completion(REQUEST)))
    return (first, streamed) if len(answers) == 1 else (streamed,)


def candidate(*parts: Json, reason: str | None = "STOP") -> Json:
    """Return an answer with some parts."""
    content = {"role": "model", "parts": list(parts)}
    return {"candidates": [{"content": content, "finishReason": reason, "index": 0}]}


@both_ways
def test_a_reasoning_tool_loop(provider: llm.Provider, server: Server, *, streams: bool) -> None:
    """Signatures are sent back with their tool calls, in each turn."""
    answers = converse(provider, LOOP, ["rain", "sun"], streams=streams)

    assert answers[-1].content == "gemini says rain and sun."
    assert [each.reasoning for each in answers] == [
        f"gemini thinks about step {step}." for step in range(3)
    ]
    assert server.errors == []
    signatures = [
        part["thoughtSignature"]
        for content in server.bodies[-1]["contents"]
        for part in content["parts"]
        if "thoughtSignature" in part
    ]
    assert len(set(signatures)) == 2


@both_ways
def test_a_signature_that_was_changed(provider: llm.Provider, *, streams: bool) -> None:
    """The server rejects a signature that it has not made, so the test above detects a change."""
    begun = answer(provider, LOOP, streams=streams)
    result = llm.Message(role="tool", tool_call_id=begun.tool_calls[0].id, content="rain")
    changed = json.loads(json.dumps(begun.extra))
    changed["google"]["parts"][-1]["thought_signature"] = "YWJj"
    messages = (*LOOP.messages, replace(begun.message, extra=changed), result)

    error = failure_of(provider, replace(LOOP, messages=messages), streams=streams)

    assert "corrupted signature" in str(error)


@both_ways
def test_the_signature_of_a_text(provider: llm.Provider, server: Server, *, streams: bool) -> None:
    """A text with a signature is sent back with it."""
    request = replace(REQUEST, reasoning_effort="low")
    begun = answer(provider, request, streams=streams)
    stored = json.loads(json.dumps(begun.extra))

    messages = (*REQUEST.messages, replace(begun.message, extra=stored), *ask("And now?"))
    answer(provider, replace(request, messages=messages), streams=streams)

    assert server.bodies[-1]["contents"][1]["parts"][-1]["thoughtSignature"]


@both_ways
def test_calls_without_numbers(*, streams: bool) -> None:
    """Tool calls without an id get ids of their own."""
    with serve_google(numbers_calls=False) as server, make_google(server.url) as provider:
        answers = converse(provider, LOOP, ["rain", "sun"], streams=streams)

    assert answers[-1].content == "gemini says rain and sun."
    assert answers[0].tool_calls[0].id != answers[1].tool_calls[0].id


def test_calls_of_another_model(provider: llm.Provider, server: Server) -> None:
    """The first of several tool calls of another model gets the placeholder for a signature."""
    calls = tuple(llm.ToolCall(id=each, name="weather", arguments="") for each in "ab")
    results = tuple(llm.Message(role="tool", tool_call_id=each, content=each) for each in "ab")
    called = llm.Message(role="assistant", content="Wait.", tool_calls=calls, reasoning="Hm.")

    provider.complete(replace(LOOP, messages=(*LOOP.messages, called, *results)))

    text, first, second = server.bodies[0]["contents"][1]["parts"]
    assert text == {"text": "Wait."}
    assert "thoughtSignature" in first
    assert "thoughtSignature" not in second


def test_a_call_with_options(provider: llm.Provider, server: Server) -> None:
    """The `extra` of a tool call is sent with it, and a result may contain files."""
    signature = {"google": {"thought_signature": b"skip_thought_signature_validator"}}
    call = llm.ToolCall(id="a", name="weather", arguments='{"city": "Oslo"}', extra=signature)
    messages = (
        *ask("Hi"),
        llm.Message(role="assistant", tool_calls=(call,)),
        llm.Message(role="tool", name="weather", tool_call_id="a", attachments=(PICTURE,)),
    )
    tool = replace(WEATHER, extra={"google": {"description": "Another one."}})

    response = provider.complete(llm.CompletionRequest(messages=messages, tools=(tool,)))

    assert response.content == "gemini says  and a picture."
    assert "Another one." in str(server.bodies[0]["tools"])


def test_an_effort_that_the_vendor_does_not_have(provider: llm.Provider, server: Server) -> None:
    """An effort of another vendor raises, since this vendor would reject the request."""
    with pytest.raises(UnsupportedRequestError, match="reasoning_effort='xhigh'"):
        provider.complete(replace(REQUEST, reasoning_effort="xhigh"))

    assert server.bodies == []


def test_a_short_timeout(provider: llm.Provider, server: Server) -> None:
    """A timeout is never rounded down to 0, which the client treats as no limit."""
    server.fault = Fault.SILENT

    error = failure_of(provider, replace(REQUEST, timeout=0.0005), streams=False)

    assert "time" in f"{type(error).__name__} {error}".lower()


def test_turns(provider: llm.Provider, server: Server) -> None:
    """Instructions are joined, empty messages left out, and messages of one role are one turn."""
    messages = (
        llm.Message(role="system", content="Be brief."),
        *ask("Hi"),
        llm.Message(role="assistant"),
        llm.Message(role="developer", content="In Norwegian."),
        *ask("there"),
    )

    provider.complete(llm.CompletionRequest(messages=messages))

    parts = [{"text": "Be brief."}, {"text": "In Norwegian."}]
    assert server.bodies[0]["systemInstruction"]["parts"] == parts
    assert server.bodies[0]["contents"] == [
        {"role": "user", "parts": [{"text": "Hi"}, {"text": "there"}]}
    ]


@pytest.mark.parametrize("media_type", ["audio/wav", "video/mp4", "text/plain"])
def test_files(provider: llm.Provider, media_type: str) -> None:
    """Files of all kinds are sent to the vendor, as bytes or with the vendor's name for them."""
    files = (
        llm.Media(media_type=media_type, data=b"a file"),
        llm.Media(media_type=media_type, uri="https://example.com/files/1"),
    )
    message = llm.Message(role="user", attachments=files)

    response = provider.complete(llm.CompletionRequest(messages=(message,)))

    assert response.content == "gemini says a file and https://example.com/files/1."


def test_a_file_in_its_url(provider: llm.Provider, server: Server) -> None:
    """The vendor loads no file whose bytes are in the URL, so it raises."""
    picture = llm.Media(media_type="image/png", uri="data:image/png;base64,YQ==")
    message = llm.Message(role="user", attachments=(picture,))

    with pytest.raises(UnsupportedRequestError, match="image/png"):
        provider.complete(llm.CompletionRequest(messages=(message,)))

    assert server.bodies == []


def test_pictures_of_the_model() -> None:
    """A file in an answer is kept in `extra`, to be sent back."""
    data = {"inlineData": {"mimeType": "image/png", "data": "YSBwaWN0dXJl"}}

    for response in respond(candidate({"text": "Look:"}, data)):
        assert response.content == "Look:"
        message = response.message
        with serve_google() as server, make_google(server.url) as provider:
            request = llm.CompletionRequest(messages=(*ask("Hi"), message, *ask("And now?")))
            failure_of(provider, request, streams=False)  # this model does not make any
        assert "YSBwaWN0dXJl" in str(server.bodies[0]["contents"][1]["parts"][1])


@pytest.mark.parametrize(
    ("reason", "translated"),
    [
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("LANGUAGE", "LANGUAGE"),
    ],
)
def test_finish_reasons(reason: str, translated: str) -> None:
    """Known finish reasons are translated, and others are passed on."""
    for response in respond(candidate({"text": "Hi."}, reason=reason)):
        assert response.finish_reason == translated


def test_answers_that_end_early() -> None:
    """An answer may be empty if its finish reason explains it."""
    for response in respond(candidate(reason="MAX_TOKENS")):
        assert response == llm.CompletionResponse(finish_reason="length")


def test_a_blocked_prompt() -> None:
    """A blocked prompt has an answer, with the vendor's explanation if there is one."""
    feedback = {"blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": "I will not."}

    for response in respond({"promptFeedback": feedback}):
        assert response == llm.CompletionResponse(
            refusal="I will not.", finish_reason="content_filter"
        )
    for response in respond({"promptFeedback": {"blockReason": "SAFETY"}}):
        assert response == llm.CompletionResponse(finish_reason="content_filter")


@pytest.mark.parametrize("reason", ["STOP", "MALFORMED_FUNCTION_CALL"])
def test_nothing_is_not_an_answer(reason: str) -> None:
    """An answer without text and calls raises, and says why it has ended."""
    for parts in ((), ({"text": "Hm.", "thought": True},), ({"text": "\n\n"},)):
        with pytest.raises(ConnectionError, match=f"empty: {reason}"):
            respond(candidate(*parts, reason=reason))


@pytest.mark.parametrize("body", ["{}", '{"candidates": []}'])
def test_no_finish_reason(body: str) -> None:
    """An answer without a finish reason was cut off."""
    with (
        provider_of("application/json", body.encode()) as provider,
        pytest.raises(ConnectionError, match="cut off"),
    ):
        provider.complete(REQUEST)


def test_pieces_of_a_text() -> None:
    """Pieces are joined before they are sent back, but not across a signature or a thought."""
    pieces: list[Json] = [
        {"text": "It ", "thought": True},
        {"text": "rains", "thought": True},
        {"text": "Ra"},
        {"text": "in"},
        {"text": "", "thoughtSignature": "YWJj"},
        {"text": "."},
        {},
    ]

    (response,) = respond(*(candidate(each, reason=None) for each in pieces), candidate())

    assert (response.content, response.reasoning) == ("Rain.", "It rains")
    assert response.extra == {
        "google": {
            "parts": [
                {"text": "It rains", "thought": True},
                {"text": "Rain"},
                {"text": "", "thought_signature": "YWJj"},
                {"text": "."},
            ]
        }
    }


def test_a_call_without_arguments() -> None:
    """A tool call whose arguments the vendor omits has an empty object."""
    for response in respond(candidate({"functionCall": {"name": "now"}})):
        assert response.tool_calls[0].arguments == "{}"
        assert response.finish_reason == "tool_calls"


@pytest.mark.parametrize("body", [b"{}", b"[]"])
def test_a_body_that_is_no_count(body: bytes) -> None:
    """Other JSON is not a number of tokens."""
    with (
        provider_of("application/json", body) as provider,
        pytest.raises(ConnectionError, match="not a number of tokens"),
    ):
        provider.count_tokens(REQUEST.messages)


def test_counting(provider: llm.Provider, server: Server) -> None:
    """Tokens are counted by the vendor, including those of instructions."""
    messages = (llm.Message(role="system", content="Be brief."), *ask("Hi"))

    assert provider.count_tokens(messages) == 23
    assert "Be brief." in str(server.bodies[-1])


def test_an_error_event() -> None:
    """An error event in the middle of a stream counts as a failure of the provider."""
    error = {"error": {"code": 503, "message": "Overloaded.", "status": "UNAVAILABLE"}}
    body = b"".join(events([candidate({"text": "It "}, reason=None), error]))

    with provider_of("text/event-stream", body) as provider:
        read = iter(provider.stream_completion(REQUEST))
        first = next(read)
        with pytest.raises(genai.errors.APIError, match="Overloaded") as caught:
            next(read)

    assert first == llm.Chunk(content="It ")
    assert http.is_provider_fault(caught.value)


def test_default_capabilities() -> None:
    """The default is a current model."""
    with genai.Client(api_key="-") as client:
        capabilities = GoogleLLM(client, "gemini").capabilities()

    assert capabilities == replace(ABILITIES, context_window=1_048_576)
