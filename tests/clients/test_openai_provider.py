"""Requests and answers that `OpenAILLM` translates, for OpenAI and compatible servers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from clients.loopback import Answer, serve
from llm_servers.kits import (
    ABILITIES,
    LOOP,
    PATIENCE,
    REQUEST,
    STRICT,
    WEATHER,
    answer,
    ask,
    both_ways,
    converse,
    failure_of,
    whole,
)
from llm_servers.openai_server import serve_openai
from resilience import UnsupportedRequestError, http, llm
from resilience.providers.openai import OpenAILLM

openai = pytest.importorskip("openai")


@contextmanager
def connect(url: str, **settings: Any) -> Iterator[OpenAILLM]:
    """Make a provider."""
    transport = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=url, api_key="-", timeout=PATIENCE, max_retries=0, http_client=transport
    ) as client:
        yield OpenAILLM(client, "gpt", **{"capabilities": ABILITIES, **settings})


@contextmanager
def provider_of(content_type: str, body: str, status: int = 200) -> Iterator[OpenAILLM]:
    """Yield a provider whose server gives the same answer to every request."""
    headers = {"Content-Type": content_type}
    with (
        serve(Answer(status=status, headers=headers, body=body.encode())) as url,
        connect(url) as provider,
    ):
        yield provider


def complete(message: Mapping[str, object], reason: str = "stop") -> llm.CompletionResponse:
    """Request a whole answer, which is a message, from a server."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    with provider_of("application/json", json.dumps({"choices": [choice]})) as provider:
        return provider.complete(REQUEST)


def stream(deltas: Sequence[Mapping[str, object]], finish_reason: str) -> list[llm.Chunk]:
    """Request a stream of some deltas and the end from a server."""
    parts = [*((delta, None) for delta in deltas), ({}, finish_reason)]
    choices = [[{"index": 0, "delta": delta, "finish_reason": reason}] for delta, reason in parts]
    # Azure begins with an event without choices.
    values = [json.dumps({"choices": each}) for each in [[], *choices]]
    body = "".join(f"data: {event}\n\n" for event in [*values, "[DONE]"])
    with provider_of("text/event-stream", body) as provider:
        return list(provider.stream_completion(REQUEST))


def test_a_refusal() -> None:
    """A refusal is an answer, and is not part of the content."""
    refusal = "I cannot help with that."

    response = complete({"content": None, "refusal": refusal})

    assert response == llm.CompletionResponse(refusal=refusal, finish_reason="stop")
    assert whole(stream([{"refusal": "I cannot "}, {"refusal": "help."}], "stop")) == (
        llm.CompletionResponse(refusal="I cannot help.", finish_reason="stop")
    )


def test_nothing_is_not_an_answer() -> None:
    """An answer that ends regularly without content, refusal or calls raises."""
    for reason in ("stop", "tool_calls"):
        with pytest.raises(ConnectionError, match="empty"):
            complete({"content": None, "reasoning": "Hm."}, reason)
        for text in ("", "\n\n"):
            with pytest.raises(ConnectionError, match="empty"):
                stream([{"content": text}], reason)


@pytest.mark.parametrize("reason", ["length", "content_filter", "something_new"])
def test_an_answer_that_ends_early(reason: str) -> None:
    """An answer may be empty if its finish reason explains it; unknown ones are passed on."""
    assert complete({"content": None}, reason).finish_reason == reason
    assert stream([], reason)[-1].finish_reason == reason


@pytest.mark.parametrize(
    ("reason", "translated"),
    [("eos", "stop"), ("model_length", "length"), ("function_call", "tool_calls")],
)
def test_words_of_compatible_servers(reason: str, translated: str) -> None:
    """Finish reasons that only compatible servers have are translated too."""
    assert complete({"content": "Rain."}, reason).finish_reason == translated
    assert stream([{"content": "Rain."}], reason)[-1].finish_reason == translated


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource"])
def test_answers_that_a_server_gives_up(reason: str) -> None:
    """An answer that ends because the server has failed raises."""
    with pytest.raises(ConnectionError, match=reason):
        complete({"content": "It "}, reason)
    with pytest.raises(ConnectionError, match=reason):
        stream([{"content": "It "}], reason)


def loop_of(*calls: llm.ToolCall) -> llm.CompletionRequest:
    """Return a request with calls and their results."""
    results = (llm.Message(role="tool", tool_call_id=call.id, content="rain") for call in calls)
    messages = (*ask("Hi"), llm.Message(role="assistant", tool_calls=calls), *results)
    return llm.CompletionRequest(messages=messages, tools=(WEATHER,))


def test_long_ids_of_other_servers() -> None:
    """An id that is longer than OpenAI accepts is shortened, in call and result, and is unique."""
    identity = "chatcmpl-tool-0123456789abcdef0123456789abcdef"
    calls = [llm.ToolCall(id=f"{identity}{n}", name="weather", arguments="{}") for n in "ab"]
    with serve_openai() as server, connect(f"{server.url}/v1") as provider:
        assert provider.complete(loop_of(*calls)).content == "gpt says rain and rain."

        _, called, *results = server.bodies[0]["messages"]
    ids = [call["id"] for call in called["tool_calls"]]
    assert ids == [result["tool_call_id"] for result in results]
    assert len(set(ids)) == 2


def test_long_ids_of_this_server() -> None:
    """An id that a server itself has made is sent back unchanged, however long it is."""
    identity = "chatcmpl-tool-0123456789abcdef0123456789abcdef"
    function = {"name": "weather", "arguments": "{}"}
    call = {"index": 0, "id": identity, "function": function}

    for found in (
        complete({"tool_calls": [call]}, "tool_calls").tool_calls,
        stream([{"tool_calls": [call]}], "tool_calls")[-1].tool_calls,
    ):
        with serve_openai() as server, connect(f"{server.url}/v1") as provider:
            failure_of(provider, loop_of(*found), streams=False)  # OpenAI has not made it

            _, called, result = server.bodies[0]["messages"]
        assert (called["tool_calls"][0]["id"], result["tool_call_id"]) == (identity, identity)


def test_calls_that_end_with_stop() -> None:
    """The finish reason of a call of a forced function is "stop"; it becomes "tool_calls"."""
    call = {"index": 0, "id": "a", "function": {"name": "now", "arguments": "{}"}}

    assert complete({"tool_calls": [call]}).finish_reason == "tool_calls"
    assert stream([{"tool_calls": [call]}], "stop")[-1].finish_reason == "tool_calls"


def test_calls_without_ids_and_arguments() -> None:
    """Tool calls without an id get one, and those without arguments get an empty object."""
    calls = [{"index": index, "function": {"name": "now"}} for index in range(2)]

    for found in (
        complete({"tool_calls": calls}, "tool_calls").tool_calls,
        stream([{"tool_calls": [call]} for call in calls], "tool_calls")[-1].tool_calls,
    ):
        assert [(call.name, call.arguments) for call in found] == [("now", "{}")] * 2
        assert len({call.id for call in found} - {""}) == 2
        assert all(len(call.id) <= 40 for call in found)


def test_a_call_that_was_cut_off() -> None:
    """If a tool call is cut off at `max_tokens`, its arguments are passed on unchanged."""
    call = {"index": 0, "id": "a", "function": {"name": "now", "arguments": ""}}

    assert complete({"tool_calls": [call]}, "length").tool_calls[0].arguments == ""


def test_events_without_a_delta() -> None:
    """Events of Azure's content filter, with a choice without a delta, are accepted."""
    choice = {"index": 0, "finish_reason": None}
    values = [
        {"choices": [{**choice, "delta": {"content": "Rain."}}]},
        {"choices": [{**choice, "content_filter_offsets": {"check_offset": 5}}]},
        {"choices": [{**choice, "delta": {}, "finish_reason": "stop"}]},
    ]
    body = "".join(f"data: {json.dumps(value)}\n\n" for value in values)

    with provider_of("text/event-stream", body) as provider:
        response = whole(list(provider.stream_completion(REQUEST)))

    assert response == llm.CompletionResponse(content="Rain.", finish_reason="stop")


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8 tokens. However, you requested 9 tokens.",
        "the request exceeds the available context size",
    ],
)
@both_ways
def test_too_long_for_compatible_servers(message: str, *, streams: bool) -> None:
    """A request that is too long is recognised by the messages of servers without the code."""
    body = json.dumps({"error": {"message": message, "code": 400}})
    with (
        provider_of("application/json", body, status=400) as provider,
        pytest.raises(llm.ContextWindowExceededError, match="context"),
    ):
        answer(provider, REQUEST, streams=streams)


def test_no_finish_reason() -> None:
    """An answer without a finish reason was cut off."""
    with pytest.raises(ConnectionError, match="cut off"):
        complete({"content": "It "}, "")


@pytest.mark.parametrize("body", ["[]", "{}", '{"choices": []}', '{"error": {"code": 429}}'])
def test_a_body_that_is_no_completion(body: str) -> None:
    """Other JSON is not an answer."""
    with (
        provider_of("application/json", body) as provider,
        pytest.raises(ConnectionError, match="not a completion"),
    ):
        provider.complete(REQUEST)


def test_usage_without_details() -> None:
    """A usage without details is accepted."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "message": {"content": "Hi."}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "usage": usage})

    with provider_of("application/json", body) as provider:
        response = provider.complete(REQUEST)

    assert response.usage == llm.Usage(prompt_tokens=3, completion_tokens=2)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning(field: str) -> None:
    """Reasoning is yielded at once, and is complete in `extra`, whichever field it is in."""
    chunks = stream([{field: "It"}, {field: " rains."}, {"content": "Rain."}], "stop")

    assert [chunk.reasoning for chunk in chunks] == ["It", " rains.", "", "", ""]
    assert chunks[-1].extra == {"openai": {field: "It rains."}}
    assert complete({field: "It rains.", "content": "Rain."}).reasoning == "It rains."


def test_details_of_reasoning() -> None:
    """Lists that arrive in pieces are joined; of other fields the last value is kept."""
    deltas = [
        {"reasoning_details": [{"text": "It"}], "rank": 1, "nothing": None},
        {"reasoning_details": [{"signature": "c2ln"}], "rank": 2},
    ]

    extra = stream([*deltas, {"content": "Rain."}], "stop")[-1].extra

    assert extra == {
        "openai": {"reasoning_details": [{"text": "It"}, {"signature": "c2ln"}], "rank": 2}
    }


def test_content_in_parts() -> None:
    """Mistral's list of parts is split into text and reasoning."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    text = {"type": "text", "text": "Rain."}

    response = complete({"content": [thinking, text]})

    assert (response.content, response.reasoning) == ("Rain.", "Hm.")


@pytest.mark.parametrize("index", [0, None])
def test_calls_with_the_same_index(index: int | None) -> None:
    """Tool calls with the same index are distinguished by their ids."""
    function = {"name": "weather", "arguments": "{}"}
    calls = [{"index": index, "id": name, "function": function} for name in "ab"]

    chunks = stream([{"tool_calls": [call]} for call in calls], "tool_calls")

    assert [call.id for call in chunks[-1].tool_calls] == ["a", "b"]


def test_calls_in_turns() -> None:
    """Pieces of several tool calls may alternate, and may have no function."""
    pieces = [
        {"index": 0, "id": "a", "function": {"name": "rain", "arguments": '{"in":'}},
        {"index": 1, "id": "b", "function": {"name": "sun", "arguments": "{"}},
        {"index": 0, "function": {"arguments": ' "Oslo"}'}},
        {"index": 1, "function": {"arguments": "}"}},
        {"index": 1},
    ]

    chunks = stream([{"tool_calls": [piece]} for piece in pieces], "tool_calls")

    assert chunks[:-1] == [llm.Chunk()] * 6
    assert chunks[-1] == llm.Chunk(
        tool_calls=(
            llm.ToolCall(id="a", name="rain", arguments='{"in": "Oslo"}'),
            llm.ToolCall(id="b", name="sun", arguments="{}"),
        ),
        finish_reason="tool_calls",
    )


@both_ways
def test_a_reasoning_tool_loop(*, streams: bool) -> None:
    """The reasoning of a compatible server is sent back to it with the tool calls."""
    with (
        serve_openai(reasons_aloud=True) as server,
        connect(f"{server.url}/v1", vendor="north") as provider,
    ):
        answers = converse(provider, LOOP, ["rain", "sun"], streams=streams)

        assert answers[-1].content == "gpt says rain and sun."
        assert answers[-1].reasoning == "gpt thinks about step 2."
        assert set(answers[0].extra or {}) == {"north"}

        forgotten = replace(answers[0].message, extra=None)
        call = answers[0].tool_calls[0]
        messages = (*LOOP.messages, forgotten, llm.Message(role="tool", tool_call_id=call.id))
        error = failure_of(provider, replace(LOOP, messages=messages), streams=streams)
        assert "the reasoning before a call is missing" in str(error)


def test_content_of_another_server() -> None:
    """Fields that one server has added are not sent to a server with another key."""
    with (
        serve_openai(reasons_aloud=True) as north,
        serve_openai() as south,
        connect(f"{north.url}/v1", vendor="north") as first,
        connect(f"{south.url}/v1") as second,
    ):
        begun = first.complete(LOOP)
        result = llm.Message(role="tool", tool_call_id=begun.tool_calls[0].id, content="rain")
        request = replace(LOOP, messages=(*LOOP.messages, begun.message, result))

        assert second.complete(request).tool_calls[0].arguments == '{"city": "Bergen"}'


def test_an_empty_answer_is_not_sent() -> None:
    """An answer without content, as of a model that has only reasoned, is left out."""
    empty = llm.CompletionResponse(finish_reason="length").message
    request = llm.CompletionRequest(messages=(*ask("Hi"), empty, *ask("And now?")))
    with serve_openai() as server, connect(f"{server.url}/v1") as provider:
        provider.complete(request)

    assert [message["role"] for message in server.bodies[0]["messages"]] == ["user", "user"]


def test_extra_of_every_value() -> None:
    """The `extra` of messages, tool calls and tools is added to these objects."""
    call = llm.ToolCall(id="call-1", name="weather", arguments="{}", extra={"openai": {"a": 1}})
    messages = (
        llm.Message(role="user", content="Hi", name="Ann", extra={"openai": {"b": 2}}),
        llm.Message(role="assistant", tool_calls=(call,), reasoning="Hm.", extra={"other": {}}),
        llm.Message(role="tool", name="weather", tool_call_id="call-1", content="rain"),
    )
    tool = replace(WEATHER, extra={"openai": {"strict": True}})
    with serve_openai() as server, connect(f"{server.url}/v1") as provider:
        failure_of(provider, llm.CompletionRequest(messages=messages, tools=(tool,)), streams=False)

        (body,) = server.bodies
    function = {"name": "weather", "arguments": "{}"}
    assert body["messages"] == [
        {"role": "user", "content": "Hi", "name": "Ann", "b": 2},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call-1", "type": "function", "function": function, "a": 1}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call-1"},
    ]
    assert body["tools"][0]["function"]["strict"] is True


def test_files() -> None:
    """A recording, an uploaded file, a document and a picture in its URL reach the server."""
    files = {
        "a recording": llm.Media(media_type="audio/wav", data=b"a recording"),
        "file-1": llm.Media(media_type="application/pdf", uri="file-1"),
        "a document": llm.Media(media_type="application/pdf", data=b"a document"),
        "a": llm.Media(media_type="image/png", uri="data:image/png;base64,YQ=="),
    }
    message = llm.Message(role="user", content="Look:", attachments=tuple(files.values()))
    with serve_openai() as server, connect(f"{server.url}/v1") as provider:
        response = provider.complete(llm.CompletionRequest(messages=(message,)))

    assert response.content == f"gpt says {' and '.join(files)}."


@pytest.mark.parametrize(
    "media",
    [
        llm.Media(media_type="audio/ogg", data=b"-"),
        llm.Media(media_type="audio/wav", uri="https://example.com/a.wav"),
        llm.Media(media_type="application/pdf", uri="https://example.com/a.pdf"),
        llm.Media(media_type="image/png", uri="file-1"),
        llm.Media(media_type="image/png", uri="gs://files/a.png"),
        llm.Media(media_type="text/plain", data=b"-"),
        llm.Media(media_type="video/mp4", data=b"-"),
    ],
    ids=lambda media: f"{media.media_type} {media.uri}",
)
def test_files_that_cannot_be_sent(media: llm.Media) -> None:
    """A file in a form that chat completions do not support raises."""
    message = llm.Message(role="user", attachments=(media,))
    with (
        serve_openai() as server,
        connect(f"{server.url}/v1") as provider,
        pytest.raises(UnsupportedRequestError, match=media.media_type),
    ):
        provider.complete(llm.CompletionRequest(messages=(message,)))

    assert server.bodies == []


def test_older_servers() -> None:
    """The field for the maximum length and the role of developers can be those of old servers."""
    settings = {"max_tokens_field": "max_tokens", "developer_role": "system"}
    developer = llm.Message(role="developer", content="Be brief.")
    request = llm.CompletionRequest(messages=(developer, *ask("Hi")), max_tokens=5)
    with (
        serve_openai(max_tokens="max_tokens") as server,
        connect(f"{server.url}/v1", **settings) as provider,
    ):
        provider.complete(request)

    assert server.bodies[0]["max_tokens"] == 5
    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_the_name_of_a_schema() -> None:
    """The title of a schema is its name, without characters that the vendor rejects."""
    schema = {**STRICT, "title": "A city, öf Norway"}
    with serve_openai() as server, connect(f"{server.url}/v1") as provider:
        provider.complete(llm.CompletionRequest(messages=ask("Hi"), response_format=schema))

    assert server.bodies[0]["response_format"]["json_schema"]["name"] == "A_city_f_Norway"


@both_ways
@pytest.mark.parametrize("code", ["unsupported_value", "unsupported_parameter"])
def test_what_this_model_does_not_know(code: str, *, streams: bool) -> None:
    """A setting that this model rejects raises `UnsupportedRequestError`."""
    body = json.dumps({"error": {"message": "Not with this model.", "code": code}})
    with (
        provider_of("application/json", body, status=400) as provider,
        pytest.raises(UnsupportedRequestError, match="Not with this model"),
    ):
        answer(provider, REQUEST, streams=streams)


def test_an_error_event() -> None:
    """An error event in the middle of a stream counts as a failure of the provider."""
    first = {"choices": [{"index": 0, "delta": {"content": "It "}, "finish_reason": None}]}
    events = [first, {"error": {"message": "Overloaded.", "code": 503}}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    chunks = []

    with provider_of("text/event-stream", body) as provider:
        read = provider.stream_completion(REQUEST)
        chunks.append(next(read))
        with pytest.raises(openai.APIError, match="Overloaded") as caught:
            next(read)

    assert chunks == [llm.Chunk(content="It ")]
    assert http.is_provider_fault(caught.value)


def test_counting() -> None:
    """Counting tokens is not supported, which does not count as a failure."""
    with connect("http://127.0.0.1:9") as provider, pytest.raises(NotImplementedError):
        provider.count_tokens(REQUEST.messages)


def test_default_capabilities() -> None:
    """The default is a current model with all capabilities except for recordings."""
    with openai.OpenAI(base_url="http://127.0.0.1:9", api_key="-") as client:
        capabilities = OpenAILLM(client, "gpt").capabilities()

    assert capabilities == replace(ABILITIES, context_window=128_000, supports_audio=False)
