"""The ready-made language models of three vendors, each with a server that checks requests."""

from contextlib import ExitStack
from dataclasses import replace
from itertools import permutations

import pytest

from llm_servers.kits import (
    KITS,
    LOOP,
    PICTURE,
    REQUEST,
    STRICT,
    WEATHER,
    Kit,
    answer,
    ask,
    both_ways,
    converse,
)
from llm_servers.server import Fault, Server
from resilience import (
    Attempt,
    CircuitBreakerConfig,
    FallbackConfig,
    LLMFallback,
    Outcome,
    State,
    http,
    llm,
)

QUESTION = ask("Is it raining in Oslo or Bergen?")
LATE = {Fault.CUT, Fault.NO_END, Fault.ERROR_EVENT}  # after the first words of a stream
NEVER = {Fault.NONE, Fault.SILENT, Fault.TOO_LONG}
FAULTS = [fault for fault in Fault if fault not in NEVER]
ONLY_IN_STREAMS = {Fault.NO_END, Fault.ERROR_EVENT}

with_each_vendor = pytest.mark.parametrize("kit", list(KITS.values()), ids=list(KITS))
with_each_pair = pytest.mark.parametrize(
    ("one", "other"), list(permutations(KITS.values(), 2)), ids=lambda kit: kit.name
)


class Model:
    """An adapter of several models, with their servers and the attempts."""

    def __init__(self, parts: ExitStack, *kits: Kit, fault: Fault = Fault.NONE) -> None:
        """Start the servers, of which the first has a fault."""
        self.attempts: list[tuple[str, Outcome]] = []
        self.servers: dict[str, Server] = {}
        breaker = CircuitBreakerConfig(
            max_failures=1, failure_on=http.is_provider_fault, retry_after=http.retry_after
        )
        config = FallbackConfig(
            circuit_breaker=breaker,
            fallback_on=http.may_succeed_elsewhere,
            on_attempt=self._note,
        )
        providers: list[llm.Provider] = []
        for kit in kits:
            server = parts.enter_context(kit.serve(Fault.NONE if providers else fault))
            self.servers[kit.name] = server
            providers.append(parts.enter_context(kit.make(server.url)))
        self.fallback = LLMFallback(providers[0], kits[0].name, config)
        for kit, provider in zip(kits[1:], providers[1:], strict=True):
            self.fallback.add_fallback(kit.name, provider)

    def _note(self, attempt: Attempt) -> None:
        self.attempts.append((attempt.provider, attempt.outcome))

    def served(self) -> list[str]:
        """Return the names of the providers that have served since the last call."""
        served = [name for name, outcome in self.attempts if outcome is Outcome.SUCCEEDED]
        self.attempts.clear()
        return served


@with_each_vendor
@both_ways
def test_a_picture(parts: ExitStack, kit: Kit, *, streams: bool) -> None:
    """The model receives a picture."""
    model = Model(parts, kit)
    looks = llm.Message(role="user", content="What is it?", attachments=(PICTURE,))

    response = answer(model.fallback, llm.CompletionRequest(messages=(looks,)), streams=streams)

    assert response.content.endswith("says a picture.")
    assert response.finish_reason == "stop"


@with_each_vendor
@both_ways
def test_a_forced_tool(parts: ExitStack, kit: Kit, *, streams: bool) -> None:
    """A forced tool is called, and the answer contains its result."""
    model = Model(parts, kit)
    request = llm.CompletionRequest(messages=ask("Hi"), tools=(WEATHER,), tool_choice="weather")

    called = answer(model.fallback, request, streams=streams)

    (call,) = called.tool_calls
    assert (call.name, called.finish_reason) == ("weather", "tool_calls")
    result = llm.Message(role="tool", tool_call_id=call.id, content="rain")
    told = replace(
        request, messages=(*request.messages, called.message, result), tool_choice="none"
    )
    assert answer(model.fallback, told, streams=streams).content.endswith("says rain.")


@with_each_vendor
@both_ways
def test_a_schema(parts: ExitStack, kit: Kit, *, streams: bool) -> None:
    """An answer matches a JSON schema."""
    request = llm.CompletionRequest(messages=ask("Where?"), response_format=STRICT)

    response = answer(Model(parts, kit).fallback, request, streams=streams)

    assert response.content == '{"city": "Oslo"}'


@with_each_vendor
@both_ways
def test_a_reasoning_tool_loop(parts: ExitStack, kit: Kit, *, streams: bool) -> None:
    """There are two rounds of tool calls with reasoning, whose signatures the server checks."""
    if kit.name == "openai":  # a compatible server, since OpenAI itself keeps its reasoning
        kit = replace(kit, serve=lambda fault: KITS["openai"].serve(fault, reasons_aloud=True))
    model = Model(parts, kit)

    answers = converse(model.fallback, LOOP, ["rain", "sun"], streams=streams)

    assert [len(each.tool_calls) for each in answers] == [1, 1, 0]
    assert all(each.reasoning for each in answers)
    assert answers[-1].content.endswith("says rain and sun.")
    assert model.servers[kit.name].errors == []


@with_each_pair
@both_ways
def test_a_conversation_goes_on_elsewhere(
    parts: ExitStack, one: Kit, other: Kit, *, streams: bool
) -> None:
    """A loop begins at one vendor, continues at another after a 503, and ends at the first."""
    model = Model(parts, one, other)
    messages = list(QUESTION)
    served: list[str] = []

    for result, fault in (("rain", Fault.UNAVAILABLE), ("sun", Fault.NONE)):
        called = answer(model.fallback, replace(LOOP, messages=tuple(messages)), streams=streams)
        served += model.served()
        (call,) = called.tool_calls
        messages += [
            called.message,
            llm.Message(role="tool", tool_call_id=call.id, content=result),
        ]
        model.servers[one.name].fault = fault
        if fault is Fault.NONE:
            model.fallback.breakers[one.name].reset()
    last = answer(model.fallback, replace(LOOP, messages=tuple(messages)), streams=streams)

    assert [*served, *model.served()] == [one.name, other.name, one.name]
    assert last.content.endswith("says rain and sun.")
    assert all(server.errors == [] for server in model.servers.values())


@with_each_vendor
@pytest.mark.parametrize(
    ("fault", "streams"),
    [
        (fault, streams)
        for fault in FAULTS
        for streams in (False, True)
        if streams or fault not in ONLY_IN_STREAMS
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Fault) else f"streams={value}",
)
def test_a_fault(parts: ExitStack, kit: Kit, fault: Fault, *, streams: bool) -> None:
    """After a fault before the first words the backup answers; a later fault is raised once."""
    backup = next(each for each in KITS.values() if each is not kit)
    model = Model(parts, kit, backup, fault=fault)

    if streams and fault in LATE:
        chunks = model.fallback.stream_completion(REQUEST)
        assert next(chunks).content
        with pytest.raises(Exception, match=r".") as caught:
            list(chunks)
        assert http.is_provider_fault(caught.value)
    response = answer(model.fallback, REQUEST, streams=streams)

    assert response.content.endswith("says nothing.")
    assert model.served() == [backup.name]
    assert model.fallback.breakers[kit.name].state is State.OPEN
    assert len(model.servers[kit.name].bodies) == (fault is not Fault.REFUSED)
