"""Behaviour of every ready-made language model, with the real clients."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from llm_servers.kits import (
    ABILITIES,
    BLIND,
    KITS,
    PATIENCE,
    PICTURE,
    STRICT,
    WEATHER,
    Kit,
    answer,
    ask,
    both_ways,
    converse,
    failure_of,
)
from llm_servers.server import STATUSES, Fault, Server
from resilience import LLMFallback, UnsupportedRequestError, http, llm
from resilience.testing import FakeLLM

USAGE = llm.Usage(
    prompt_tokens=30,
    completion_tokens=12,
    cache_read_tokens=20,
    cache_write_tokens=4,
    reasoning_tokens=7,
)
UNTIMELY = {Fault.NONE, Fault.REFUSED, Fault.SILENT, Fault.TOO_LONG}
FAULTS = [fault for fault in Fault if fault not in UNTIMELY]
ONLY_IN_STREAMS = {Fault.NO_END, Fault.ERROR_EVENT}


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest) -> Kit:
    """Yield each vendor whose client is installed."""
    kit = KITS[request.param]
    pytest.importorskip(kit.package)
    return kit


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    """Yield a stack that closes servers and clients when the test has ended."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def server(kit: Kit, parts: ExitStack) -> Server:
    """Run a healthy server."""
    return parts.enter_context(kit.serve())


@pytest.fixture
def provider(kit: Kit, server: Server, parts: ExitStack) -> llm.Provider:
    """Make a provider for the server."""
    return parts.enter_context(kit.make(server.url))


@both_ways
def test_a_text(provider: llm.Provider, *, streams: bool) -> None:
    """Text, finish reason, usage, model and id are translated."""
    response = answer(provider, llm.CompletionRequest(messages=ask("Hello?")), streams=streams)

    name = response.content.partition(" ")[0]
    assert response.content == f"{name} says nothing."
    assert response.finish_reason == "stop"
    assert response.usage in {USAGE, replace(USAGE, cache_write_tokens=0)}
    assert response.model == f"{name}-1"
    assert response.id


def test_a_text_is_streamed_in_pieces(provider: llm.Provider) -> None:
    """The text is yielded in the pieces in which the vendor sends it."""
    chunks = list(provider.stream_completion(llm.CompletionRequest(messages=ask("Hello?"))))

    assert [chunk.content.strip() for chunk in chunks if chunk.content][1:] == ["says", "nothing."]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]


@both_ways
@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions(
    provider: llm.Provider, server: Server, role: llm.Role, *, streams: bool
) -> None:
    """Instructions of both roles are sent to the vendor."""
    instructions = llm.Message(role=role, content="Be brief.")

    answer(provider, llm.CompletionRequest(messages=(instructions, *ask("Hi."))), streams=streams)

    assert "Be brief." in str(server.bodies[0])


@both_ways
def test_a_picture(provider: llm.Provider, *, streams: bool) -> None:
    """The bytes of a picture are sent to the vendor."""
    (message,) = ask("What is it?")
    request = llm.CompletionRequest(messages=(replace(message, attachments=(PICTURE,)),))

    assert answer(provider, request, streams=streams).content.endswith("says a picture.")


def test_a_picture_elsewhere(provider: llm.Provider) -> None:
    """The link to a picture is sent to the vendor, also without a text."""
    picture = llm.Media(media_type="image/png", uri="https://example.com/a.png")
    request = llm.CompletionRequest(messages=(llm.Message(role="user", attachments=(picture,)),))

    assert provider.complete(request).content.endswith("says https://example.com/a.png.")


def test_a_document(provider: llm.Provider) -> None:
    """The bytes of a document are sent to the vendor."""
    document = llm.Media(media_type="application/pdf", data=b"a document", name="a.pdf")
    request = llm.CompletionRequest(messages=(llm.Message(role="user", attachments=(document,)),))

    assert provider.complete(request).content.endswith("says a document.")


@both_ways
@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_forced_tool(provider: llm.Provider, choice: str, *, streams: bool) -> None:
    """A forced tool is called."""
    request = llm.CompletionRequest(
        messages=ask("Hello?"), tools=(WEATHER,), tool_choice=choice, reasoning_effort="none"
    )

    response = answer(provider, request, streams=streams)

    (call,) = response.tool_calls
    assert (call.name, call.arguments, bool(call.id)) == ("weather", '{"city": "Oslo"}', True)
    assert response.finish_reason == "tool_calls"


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_a_tool_that_may_be_called(provider: llm.Provider, choice: str | None) -> None:
    """The model decides whether to call a tool, unless none may be called."""
    request = llm.CompletionRequest(
        messages=ask("Is it raining in Bergen?"), tools=(WEATHER,), tool_choice=choice
    )

    assert bool(provider.complete(request).tool_calls) == (choice != "none")


def test_a_tool_without_parameters(provider: llm.Provider) -> None:
    """A tool needs neither description nor parameters."""
    tool = llm.ToolDefinition(name="now")
    request = llm.CompletionRequest(messages=ask("Hi"), tools=(tool,), tool_choice="now")

    assert provider.complete(request).tool_calls[0].name == "now"


def test_parts_of_calls_are_empty_chunks(provider: llm.Provider) -> None:
    """Tool calls are complete in the last chunk, after an empty chunk for each of their parts."""
    request = llm.CompletionRequest(messages=ask("Hi"), tools=(WEATHER,), tool_choice="required")

    *before, last = provider.stream_completion(request)

    assert {chunk for chunk in before if not chunk.reasoning} <= {llm.Chunk()}
    assert len(last.tool_calls) == 1


@both_ways
def test_a_schema(provider: llm.Provider, *, streams: bool) -> None:
    """An answer matches the schema."""
    request = llm.CompletionRequest(messages=ask("Where?"), response_format=STRICT)

    assert answer(provider, request, streams=streams).content == '{"city": "Oslo"}'


@both_ways
def test_all_settings(provider: llm.Provider, kit: Kit, server: Server, *, streams: bool) -> None:
    """Every setting of a request is sent to the vendor, or raises."""
    settings: dict[str, Any] = {
        "temperature": 0.25,
        "top_p": 0.75,
        "max_tokens": 77,
        "stop": ("END",),
        "seed": 13,
        "reasoning_effort": "low",
        "model": "another",
        "timeout": 20.5,
    }
    for name in kit.limits:
        request = llm.CompletionRequest(messages=ask("Hi"), **{name: settings.pop(name)})
        with pytest.raises(UnsupportedRequestError, match=name):
            answer(provider, request, streams=streams)

    request = llm.CompletionRequest(messages=ask("Hi"), **settings)
    response = answer(provider, request, streams=streams)

    assert response.model == "another-1"
    sent = str(server.bodies[-1]).lower()
    for name in set(settings) - {"model", "timeout", "stop"}:
        assert str(settings[name]) in sent
    assert "end" in sent


def test_reasoning_none(provider: llm.Provider) -> None:
    """Reasoning can be disabled."""
    request = llm.CompletionRequest(messages=ask("Hi"), reasoning_effort="none")

    assert provider.complete(request).reasoning == ""


def test_reasoning_none_of_a_model_that_cannot(kit: Kit, server: Server, parts: ExitStack) -> None:
    """A request to disable reasoning is accepted for a model that does not reason."""
    provider = parts.enter_context(kit.make(server.url, BLIND))

    request = llm.CompletionRequest(messages=ask("Hi"), reasoning_effort="none")
    assert provider.complete(request).content
    assert "effort" not in str(server.bodies)
    assert "budget" not in str(server.bodies)


def test_extra_without_a_value(provider: llm.Provider, kit: Kit) -> None:
    """None in `extra` is not sent as an option."""
    (message,) = ask("Hi")
    request = llm.CompletionRequest(
        messages=(replace(message, extra={kit.name: None}),), extra={kit.name: None}
    )

    assert provider.complete(request).content


@both_ways
def test_no_answer_is_raised(kit: Kit, parts: ExitStack, *, streams: bool) -> None:
    """Every failure raises an exception that counts, with the requested delay, if any."""
    server = parts.enter_context(kit.serve())
    provider = parts.enter_context(kit.make(server.url))
    for fault in FAULTS:
        if fault in ONLY_IN_STREAMS and not streams:
            continue
        server.fault = fault

        error = failure_of(provider, llm.CompletionRequest(messages=ask("Hi")), streams=streams)

        assert http.is_provider_fault(error), fault
        assert http.may_succeed_elsewhere(error), fault
        assert http.retry_after(error) == (7.0 if fault in STATUSES else None)


@both_ways
def test_a_refused_connection_is_raised(kit: Kit, parts: ExitStack, *, streams: bool) -> None:
    """A refused connection counts as a failure of the provider."""
    server = parts.enter_context(kit.serve(Fault.REFUSED))
    provider = parts.enter_context(kit.make(server.url))

    error = failure_of(provider, llm.CompletionRequest(messages=ask("Hi")), streams=streams)

    assert http.is_provider_fault(error)


@both_ways
def test_a_silent_server(provider: llm.Provider, server: Server, *, streams: bool) -> None:
    """The timeout of a request is passed to the client."""
    server.fault = Fault.SILENT
    request = llm.CompletionRequest(messages=ask("Hi"), timeout=0.2)
    begin = time.monotonic()

    error = failure_of(provider, request, streams=streams)

    assert time.monotonic() - begin < PATIENCE / 2
    assert "time" in f"{type(error).__name__} {error}".lower()
    assert http.is_provider_fault(error)


@both_ways
def test_a_request_that_is_too_long(
    provider: llm.Provider, server: Server, *, streams: bool
) -> None:
    """A request that is too long for the window fails over, and does not count."""
    server.fault = Fault.TOO_LONG

    with pytest.raises(llm.ContextWindowExceededError):
        answer(provider, llm.CompletionRequest(messages=ask("Hi")), streams=streams)


@both_ways
def test_a_wrong_request(provider: llm.Provider, server: Server, *, streams: bool) -> None:
    """For a rejected request the client's exception is raised, and does not count."""
    request = llm.CompletionRequest(messages=(llm.Message(role="tool", tool_call_id="unknown"),))

    error = failure_of(provider, request, streams=streams)

    assert not http.is_provider_fault(error)
    assert not http.may_succeed_elsewhere(error)
    assert server.errors == ["a result without its call"]


@pytest.mark.parametrize(
    "request_",
    [
        llm.CompletionRequest(messages=ask("Hi"), tools=(WEATHER,)),
        llm.CompletionRequest(messages=ask("Hi"), response_format=STRICT),
        llm.CompletionRequest(messages=ask("Hi"), response_format={}),
        llm.CompletionRequest(messages=ask("Hi"), reasoning_effort="low"),
        llm.CompletionRequest(messages=(llm.Message(role="user", attachments=(PICTURE,)),)),
        llm.CompletionRequest(
            messages=(
                llm.Message(
                    role="user", attachments=(llm.Media(media_type="audio/wav", data=b"-"),)
                ),
            )
        ),
    ],
    ids=["tools", "schema", "any JSON", "reasoning", "picture", "recording"],
)
@both_ways
def test_what_the_model_cannot_do(
    kit: Kit, server: Server, parts: ExitStack, request_: llm.CompletionRequest, *, streams: bool
) -> None:
    """A request that the capabilities exclude raises, and nothing is sent."""
    provider = parts.enter_context(kit.make(server.url, BLIND))

    with pytest.raises(UnsupportedRequestError):
        answer(provider, request_, streams=streams)

    assert server.bodies == []
    assert provider.capabilities() == BLIND


@pytest.mark.parametrize(
    ("ability", "media_type"), [("supports_vision", "image/png"), ("supports_audio", "audio/wav")]
)
def test_one_ability_is_missing(
    kit: Kit, server: Server, parts: ExitStack, ability: str, media_type: str
) -> None:
    """A file raises if the model lacks only the capability for this type of file."""
    lacks: dict[str, Any] = {ability: False}
    provider = parts.enter_context(kit.make(server.url, replace(ABILITIES, **lacks)))
    media = llm.Media(media_type=media_type, data=b"-")
    message = llm.Message(role="user", attachments=(media,))

    with pytest.raises(UnsupportedRequestError, match=media_type):
        provider.complete(llm.CompletionRequest(messages=(message,)))

    assert server.bodies == []


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_file_where_none_may_be(provider: llm.Provider, server: Server, role: llm.Role) -> None:
    """A file in instructions or in an answer raises, and is not left out."""
    message = llm.Message(role=role, content="Hi", attachments=(PICTURE,))

    with pytest.raises(UnsupportedRequestError, match="file"):
        provider.complete(llm.CompletionRequest(messages=(message, *ask("Hi"))))

    assert server.bodies == []


@pytest.mark.parametrize("kit", ["anthropic", "google"], indirect=True)
@pytest.mark.parametrize("arguments", ["{", "[]", "1"])
def test_calls_with_arguments_that_are_no_object(provider: llm.Provider, arguments: str) -> None:
    """A call of another vendor's model raises where the vendor would refuse it."""
    call = llm.ToolCall(id="1", name="weather", arguments=arguments)
    message = llm.Message(role="assistant", tool_calls=(call,))

    with pytest.raises(UnsupportedRequestError, match="not a JSON object"):
        provider.complete(llm.CompletionRequest(messages=(*ask("Hi"), message)))


@pytest.mark.parametrize("kit", ["anthropic", "google"], indirect=True)
def test_messages_with_names(provider: llm.Provider) -> None:
    """The name of a speaker raises where the vendor has none."""
    message = llm.Message(role="user", content="Hi", name="Ann")

    with pytest.raises(UnsupportedRequestError, match="name"):
        provider.complete(llm.CompletionRequest(messages=(message,)))


@both_ways
def test_options_of_the_vendor(
    provider: llm.Provider, kit: Kit, server: Server, *, streams: bool
) -> None:
    """The `extra` of this vendor is added to the call, that of another vendor is not."""
    request = llm.CompletionRequest(
        messages=ask("Hi"), extra={kit.name: kit.options, "other": {"no_such_field": 1}}
    )

    answer(provider, request, streams=streams)

    assert str(kit.options["service_tier"]) in str(server.bodies[0])


def test_a_stream_that_is_closed(provider: llm.Provider, server: Server) -> None:
    """Closing the returned stream closes the connection."""
    server.endless = True
    stream = cast("Any", provider.stream_completion(llm.CompletionRequest(messages=ask("Hi"))))
    for chunk in stream:
        if chunk.content:
            break
    assert not server.gone.is_set()

    stream.close()

    assert server.gone.wait(30)


def test_a_stream_that_is_never_read(provider: llm.Provider) -> None:
    """A stream that is closed before its first item leaves no connection open."""
    stream = cast("Any", provider.stream_completion(llm.CompletionRequest(messages=ask("Hi"))))

    stream.close()

    assert list(stream) == []


def test_several_threads(provider: llm.Provider) -> None:
    """One provider serves several threads at a time."""
    barrier = threading.Barrier(4, timeout=30)
    answers: list[str] = []

    def work(name: str, *, streams: bool) -> None:
        barrier.wait()
        request = llm.CompletionRequest(messages=ask("Hi"), model=name)
        answers.append(answer(provider, request, streams=streams).content)

    threads = [
        threading.Thread(target=work, args=(name,), kwargs={"streams": name > "b"})
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(answers) == [f"{name} says nothing." for name in "abcd"]


def test_failover_from_a_picture(kit: Kit, server: Server, parts: ExitStack) -> None:
    """For a picture, a model without vision is skipped, and its breaker records nothing."""
    model = LLMFallback(parts.enter_context(kit.make(server.url, BLIND)), "blind")
    model.add_fallback("sighted", FakeLLM("A cloud."))
    picture = llm.Message(role="user", content="What is it?", attachments=(PICTURE,))

    for _ in range(6):
        assert model.complete(llm.CompletionRequest(messages=(picture,))).content == "A cloud."

    assert str(model.breakers["blind"].state) == "closed"


@both_ways
def test_a_tool_loop(provider: llm.Provider, *, streams: bool) -> None:
    """Tool calls and their results are sent back, in their order."""
    request = llm.CompletionRequest(
        messages=ask("Is it raining in Oslo or Bergen?"), tools=(WEATHER,)
    )

    answers = converse(provider, request, ["rain", "sun"], streams=streams)

    assert [len(each.tool_calls) for each in answers] == [1, 1, 0]
    assert answers[-1].content.endswith("says rain and sun.")
    for one, two in pairwise(each.tool_calls[0] for each in answers[:-1]):
        assert one.id != two.id


def test_the_page_runs(
    parts: ExitStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first block of the page runs unchanged, and answers also if the first vendor is down."""
    for package in ("openai", "anthropic"):
        pytest.importorskip(package)
        server = parts.enter_context(KITS[package].serve())
        path = "/v1" if package == "openai" else ""
        monkeypatch.setenv(f"{package.upper()}_BASE_URL", server.url + path)
        monkeypatch.setenv(f"{package.upper()}_API_KEY", "-")
        if package == "openai":
            server.fault = Fault.UNAVAILABLE
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    page = Path(__file__).parent.parent.parent / "docs" / "providers.md"
    code = page.read_text("utf-8").partition("```python\n")[2].partition("```")[0]

    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102

    assert capsys.readouterr().out == "claude-opus-5-5 says nothing.\n"
