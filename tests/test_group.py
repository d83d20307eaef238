"""A group of providers: order, names, calls that are not recorded, and what cannot be copied."""

import contextlib
import copy
import pickle
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import NoReturn

import pytest
from typing_extensions import override

from helpers import (
    REQUEST,
    Function,
    Model,
    Recorder,
    call,
    grouped,
    in_thread,
    in_threads,
    raising,
    refuse,
)
from resilience import (
    AllFailedError,
    CircuitBreaker,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    State,
    STTFallback,
    TTSFallback,
    execute_with_result,
    llm,
    stt,
)
from resilience.testing import FakeLLM, FakeSTT, FakeTTS, ManualClock


class TestOrder:
    """Providers are tried in order, and the first success is returned."""

    def test_the_primary_answers(self) -> None:
        """No other provider is called if the primary succeeds."""
        group = grouped(lambda: "primary", raising(AssertionError()))

        assert group.execute(call) == execute_with_result(group, call) == "primary"

    def test_the_first_healthy_one_answers(self) -> None:
        """After each failure the next provider is tried."""
        group = grouped(refuse, raising(TimeoutError()), lambda: "third")

        assert group.execute(call) == "third"

    def test_an_open_one_is_skipped(self) -> None:
        """A provider whose breaker is open is not called."""
        group = grouped(raising(AssertionError()), lambda: "1")
        group.breakers["0"].isolate()

        assert group.execute(call) == "1"

    def test_a_success_clears_the_count(self) -> None:
        """A success of a provider sets the number of its consecutive failures to 0."""
        config = FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=2))
        llms = LLMFallback(FakeLLM(ConnectionError(), "yes", ConnectionError(), "yes"), "0", config)
        llms.add_fallback("1", FakeLLM("backup"))

        answers = [llms.complete(REQUEST).content for _ in range(4)]

        assert answers == ["backup", "yes", "backup", "yes"]
        assert llms.breakers["0"].snapshot().consecutive_failures == 0

    def test_the_primary_is_tried_again(self) -> None:
        """After `reset_timeout` the primary is tried again."""
        recorder = Recorder()
        llms = LLMFallback(FakeLLM(ConnectionError(), "back"), "0", recorder.config)
        llms.add_fallback("1", FakeLLM("backup"))

        first = llms.complete(REQUEST).content
        recorder.clock.advance(30.0)
        second = llms.complete(REQUEST).content

        assert (first, second) == ("backup", "back")
        assert llms.breakers["0"].state is State.CLOSED

    def test_an_exception_group(self) -> None:
        """An exception group is handled like any other exception."""
        group = grouped(raising(ExceptionGroup("two", [ValueError(), OSError()])), lambda: "1")

        assert group.execute(call) == "1"


class TestNames:
    """Names are unique, and providers may be added at any time."""

    def test_bad_names(self) -> None:
        """A name that is empty, already used or no string is refused, and named in the error."""
        group = grouped(lambda: "0")

        with pytest.raises(ValueError, match="name must not be empty, got ''"):
            group.add_fallback("", call)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="name '0' is already used in this group"):
            group.add_fallback("0", lambda: "1")
        with pytest.raises(TypeError, match="name must be a string, got 7"):
            group.add_fallback(7, lambda: "1")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="config"):
            FallbackGroup(call, "0", "config")  # type: ignore[arg-type]

        assert list(group.breakers) == ["0"]

    def test_breakers(self) -> None:
        """Breakers are in order, by the names of their providers, and cannot be replaced."""
        group = grouped(lambda: "0", lambda: "1")

        assert [(name, each.name) for name, each in group.breakers.items()] == [
            ("0", "0"),
            ("1", "1"),
        ]
        with pytest.raises(TypeError):
            group.breakers["0"] = group.breakers["1"]  # type: ignore[index]
        assert group.primary() == "0"

    def test_adding_during_traffic(self) -> None:
        """Threads can add providers while other threads make calls."""
        group = grouped(refuse, lambda: "1")

        def add(number: int) -> list[str]:
            for each in range(20):
                group.add_fallback(f"{number}-{each}", lambda: "late")
            return []

        def use() -> list[str]:
            return [group.execute(call) for _ in range(100)]

        tasks: list[Callable[[], list[str]]] = [partial(add, number) for number in range(4)]
        results = in_threads([*tasks, *[use] * 4])

        assert set(chain.from_iterable(results)) == {"1"}
        assert len(group.breakers) == 82

    def test_an_addition_that_interrupts_another(self) -> None:
        """A signal handler may add a provider while this thread adds one; both are added."""
        group = FallbackGroup(0, "primary")

        class Name(str):
            """A name whose comparison is interrupted once."""

            __slots__ = ()
            __hash__ = str.__hash__

            @override
            def __eq__(self, other: object) -> bool:
                if len(group.breakers) == 1:
                    group.add_fallback("handler", 1)
                return str.__eq__(self, other)

        def add() -> None:
            group.add_fallback(Name("interrupted"), 2)

        in_thread(add)

        assert list(group.breakers) == ["primary", "handler", "interrupted"]


class TestUnrecorded:
    """Calls such as counting tokens are not recorded by the breakers."""

    def models(self, recorder: Recorder, *steps: str | Exception) -> LLMFallback:
        """Return a model that follows a script, and a backup."""
        models = LLMFallback(FakeLLM(*steps), "0", recorder.config)
        models.add_fallback("1", FakeLLM("backup"))
        return models

    def test_it_does_not_reset_the_count(self) -> None:
        """The breaker of a failing model opens although tokens are counted before each request."""
        models = self.models(Recorder(breaker={"max_failures": 2}), ConnectionError())

        for _ in range(2):
            assert models.count_tokens(REQUEST.messages) == 1
            models.complete(REQUEST)

        assert models.breakers["0"].state is State.OPEN

    def test_it_takes_no_probe_slot_and_closes_nothing(self) -> None:
        """Such a call neither closes a half-open breaker nor uses a slot."""
        recorder = Recorder()
        models = self.models(recorder, ConnectionError(), "back")
        models.complete(REQUEST)
        recorder.clock.advance(30.0)

        models.count_tokens(REQUEST.messages)

        assert models.breakers["0"].state is State.HALF_OPEN
        assert models.complete(REQUEST).content == "back"

    def test_it_skips_open_ones_and_fails_over(self) -> None:
        """A model with an open breaker is skipped; a failed count is reported, but not recorded."""

        class Uncounted(Model):
            @override
            def count_tokens(self, messages: Sequence[llm.Message]) -> int:
                raise ConnectionError

        recorder = Recorder()
        isolated = FakeLLM()
        models = LLMFallback(isolated, "0", recorder.config)
        models.breakers["0"].isolate()
        models.add_fallback("1", Uncounted())
        models.add_fallback("2", FakeLLM())

        assert models.count_tokens(REQUEST.messages) == 1
        assert isolated.counted == []
        assert models.breakers["1"].state is State.CLOSED
        assert recorder.outcomes() == [
            ("0", Outcome.SKIPPED),
            ("1", Outcome.FAILED),
            ("2", Outcome.SUCCEEDED),
        ]

    def test_no_delay(self) -> None:
        """A breaker that opens during such a call is not held open longer by its failure."""
        delays = iter([None, 99.0])
        recorder = Recorder(breaker={"retry_after": lambda _: next(delays)})
        group = FallbackGroup("p", "0", recorder.config)

        def open_and_fail(_: object) -> NoReturn:
            with pytest.raises(AllFailedError):
                group.execute(refuse)
            refuse()

        with pytest.raises(AllFailedError) as caught:
            group.execute(open_and_fail, record=False)

        assert caught.value.retry_after == 30


def test_a_model_gets_the_request_itself() -> None:
    """A model gets the caller's request object, and its messages when tokens are counted."""
    asked: list[object] = []

    class Recording(Model):
        @override
        def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
            asked.append(request)
            return super().complete(request)

        @override
        def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
            asked.append(request)
            return super().stream_completion(request)

        @override
        def count_tokens(self, messages: Sequence[llm.Message]) -> int:
            asked.append(messages)
            return super().count_tokens(messages)

    group = LLMFallback(Recording(), "0")

    group.complete(REQUEST)
    list(group.stream_completion(REQUEST))
    group.count_tokens(REQUEST.messages)

    given = [REQUEST, REQUEST, REQUEST.messages]
    assert all(seen is each for seen, each in zip(asked, given, strict=True))


def test_capabilities_are_the_primarys() -> None:
    """The capabilities are those of the primary, without failover."""
    mine = llm.ModelCapabilities(context_window=1)
    models = LLMFallback(FakeLLM(capabilities=mine), "0")
    models.breakers["0"].isolate()

    assert models.capabilities() is mine


class Once:
    """A clock that can be interrupted once."""

    def __init__(self, clock: ManualClock) -> None:
        """Show the time of another clock."""
        self._clock = clock
        self.interrupts = False

    def __call__(self) -> float:
        """Return the time, or be interrupted."""
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt
        return self._clock()


@pytest.mark.parametrize("kind", ["call", "stream"])
def test_a_clock_that_is_interrupted(kind: str) -> None:
    """An interruption before the provider is called takes no slot."""
    clock = ManualClock()
    once = Once(clock)
    recorder = Recorder(breaker={"clock": once})
    model = LLMFallback(FakeLLM(ConnectionError(), "back"), "0", recorder.config)
    with pytest.raises(AllFailedError):
        model.complete(REQUEST)
    clock.advance(30.0)

    once.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        _ = model.complete(REQUEST) if kind == "call" else model.stream_completion(REQUEST)

    assert model.complete(REQUEST).content == "back"


STATEFUL = [
    CircuitBreaker,
    lambda: FallbackGroup("text", "0"),
    lambda: LLMFallback(FakeLLM(), "0"),
    lambda: STTFallback(FakeSTT(), "0"),
    lambda: TTSFallback(FakeTTS(), "0"),
    lambda: FallbackGroup("text", "0").stream(iter),
    lambda: STTFallback(FakeSTT(), "0").start_stream(stt.StreamConfig()),
]


@pytest.mark.parametrize("make", STATEFUL, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"]
)
def test_what_guards_state_is_not_copied(
    make: Callable[[], object], duplicate: Callable[[object], object]
) -> None:
    """Breakers, groups, adapters, streams and sessions cannot be copied or pickled."""
    value = make()

    with pytest.raises(TypeError, match=f"{type(value).__name__} cannot be copied or pickled"):
        duplicate(value)


def test_a_stream_can_be_weakly_referenced() -> None:
    """A weak reference to a stream does not keep it alive."""
    stream = FallbackGroup("text", "0").stream(iter)
    reference = weakref.ref(stream)
    before = reference()

    assert before is stream
    del before, stream
    assert reference() is None


class Big:
    """An object whose deletion can be observed."""


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("last", [lambda: "ok", refuse])
def test_a_request_is_deleted_after_its_call(last: Function) -> None:
    """After a failover, or after all failed, no cycle of references keeps the request alive."""
    group = grouped(refuse, last)

    def ask() -> weakref.ref[Big]:
        big = Big()

        def with_big(provider: Function) -> str:
            assert big is not None
            return provider()

        with contextlib.suppress(AllFailedError):
            group.execute(with_big)
        return weakref.ref(big)

    assert ask()() is None
