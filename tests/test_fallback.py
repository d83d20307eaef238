"""A group tries its providers in order, and tells two questions apart."""

import contextlib
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable

import pytest

from resilience import (
    AllFailedError,
    Attempt,
    AttemptTimeoutError,
    CircuitBreakerConfig,
    CircuitOpenError,
    EmptyStreamError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    ResilienceError,
    State,
    execute_with_result,
    llm,
)
from resilience.testing import FakeLLM, ManualClock, Pause

TIMEOUT = 10.0
REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content="Hello, you?"),))

Provider = Callable[[], str]


def raising(error: BaseException) -> Provider:
    """Return a provider that raises."""

    def provider() -> str:
        raise error

    return provider


def call(provider: Provider) -> str:
    """Do what a group is asked to do with a provider."""
    return provider()


def grouped(*providers: Provider, config: FallbackConfig | None = None) -> FallbackGroup[Provider]:
    """Put providers behind breakers, named 0, 1 and so on."""
    group = FallbackGroup(providers[0], "0", config)
    for number, provider in enumerate(providers[1:], start=1):
        group.add_fallback(str(number), provider)
    return group


class BadRequestError(Exception):
    """A wrong request: counts against nobody and goes nowhere."""


class ContextTooLongError(Exception):
    """Too long for this model: counts against nobody, but the next may take it."""


class TestOrder:
    """Entries are tried in order, and the first success is returned."""

    def test_the_primary_answers(self) -> None:
        """Nobody else is asked if the primary succeeds."""
        group = grouped(lambda: "primary", raising(AssertionError()))

        assert group.execute(call) == execute_with_result(group, call) == "primary"

    def test_the_first_healthy_one_answers(self) -> None:
        """Each failure moves on to the next."""
        group = grouped(raising(ConnectionError()), raising(TimeoutError()), lambda: "third")

        assert group.execute(call) == "third"

    def test_an_open_one_is_skipped(self) -> None:
        """A provider whose breaker is open is not called."""
        group = grouped(raising(AssertionError()), lambda: "1")
        group.breakers["0"].isolate()

        assert group.execute(call) == "1"

    def test_it_comes_back_by_itself(self) -> None:
        """After `reset_timeout` the primary is tried again, and serves."""
        clock = ManualClock()
        breaker = CircuitBreakerConfig(max_failures=1, half_open_max=1, clock=clock)
        llms = LLMFallback(
            FakeLLM(ConnectionError(), "back"), "0", FallbackConfig(circuit_breaker=breaker)
        )
        llms.add_fallback("1", FakeLLM("backup"))

        first = llms.complete(REQUEST).content
        clock.advance(30.0)
        second = llms.complete(REQUEST).content

        assert (first, second) == ("backup", "back")
        assert llms.breakers["0"].state is State.CLOSED


class TestTwoQuestions:
    """What counts and what moves on are asked separately."""

    config = FallbackConfig(
        circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=ConnectionError),
        fallback_on=(ConnectionError, ContextTooLongError),
    )

    def test_a_wrong_request(self) -> None:
        """It counts against nobody and reaches the caller unchanged, at once."""
        error = BadRequestError()
        group = grouped(raising(error), raising(AssertionError()), config=self.config)

        with pytest.raises(BadRequestError) as caught:
            group.execute(call)

        assert caught.value is error
        assert group.breakers["0"].state is State.CLOSED

    def test_a_context_too_long(self) -> None:
        """It counts against nobody, but another provider is tried."""
        group = grouped(raising(ContextTooLongError()), lambda: "1", config=self.config)

        assert group.execute(call) == "1"
        assert group.breakers["0"].state is State.CLOSED

    def test_a_refused_connection(self) -> None:
        """It counts and moves on."""
        group = grouped(raising(ConnectionRefusedError()), lambda: "1", config=self.config)

        assert group.execute(call) == "1"
        assert group.breakers["0"].state is State.OPEN

    def test_a_predicate_that_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged, and the call moves on as if it were not set."""

        def predicate(_error: Exception) -> bool:
            raise ZeroDivisionError

        config = FallbackConfig(fallback_on=predicate)

        assert grouped(raising(ValueError()), lambda: "1", config=config).execute(call) == "1"
        assert "fallback_on raised ZeroDivisionError" in caplog.text


class TestAllFailed:
    """When nobody succeeded, the error says all there is to know."""

    def test_it_names_every_provider(self) -> None:
        """Failures stand in order by name, skipped ones with their wait; the last is the cause."""
        clock = ManualClock()
        breaker = CircuitBreakerConfig(max_failures=1, reset_timeout=20.0, clock=clock)
        config = FallbackConfig(circuit_breaker=breaker)
        first, last = ConnectionError("refused"), ValueError("odd")
        group = grouped(raising(first), lambda: "1", raising(last), config=config)
        for name in ("0", "1"):
            with pytest.raises(ConnectionError), group.breakers[name].guard():
                raise ConnectionError
            clock.advance(5.0)

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        error = caught.value
        assert list(error.failures) == ["0", "1", "2"]
        assert isinstance(error.failures["0"], CircuitOpenError)
        assert error.failures["2"] is last
        assert error.__cause__ is last
        assert error.retry_after == pytest.approx(10.0)
        assert "1: CircuitOpenError" in str(error)
        assert "2: ValueError: odd" in str(error)

    def test_nobody_is_open(self) -> None:
        """Without an open breaker there is no wait to tell."""
        with pytest.raises(AllFailedError) as caught:
            grouped(raising(ConnectionError())).execute(call)

        assert caught.value.retry_after is None

    def test_isolated_ones_cannot_say(self) -> None:
        """A provider that is isolated does not say when to come back."""
        group = grouped(lambda: "0")
        group.breakers["0"].isolate()

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after is None

    def test_a_group_inside_a_group(self) -> None:
        """What an inner group or breaker raises is a failure like any other, and no skip."""
        inner = grouped(raising(ConnectionError()))
        reports: list[Attempt] = []
        config = FallbackConfig(on_attempt=reports.append)
        group = grouped(
            lambda: inner.execute(call), raising(CircuitOpenError("x", 3.0)), config=config
        )

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert isinstance(caught.value.failures["0"], AllFailedError)
        assert [report.outcome for report in reports] == [Outcome.FAILED, Outcome.FAILED]

    def test_failures_are_read_only(self) -> None:
        """Nobody changes them, nor the mapping that they were copied from."""
        failures: dict[str, Exception] = {"a": ValueError()}
        error = AllFailedError(failures)

        failures.clear()

        assert list(error.failures) == ["a"]
        with pytest.raises(TypeError):
            error.failures["b"] = ValueError()  # type: ignore[index]


class ShapeShiftingError(Exception):
    """Comes out of pickle as a string, and has no representation."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Become a string."""
        return str, ("changed",)

    def __repr__(self) -> str:
        """Raise."""
        raise RuntimeError


class UnspeakableError(Exception):
    """An exception whose text cannot be read, which is false, and which does not pickle."""

    def __init__(self, *, needed: int) -> None:
        """Take what `pickle` does not give."""
        super().__init__()
        self.needed = needed

    def __str__(self) -> str:
        """Fail."""
        raise ZeroDivisionError

    def __bool__(self) -> bool:
        """Be false."""
        return False


class TestOddExceptions:
    """Providers raise odd things."""

    def test_a_text_that_cannot_be_read(self) -> None:
        """The error of the group can be read all the same."""
        with pytest.raises(AllFailedError) as caught:
            grouped(raising(UnspeakableError(needed=1))).execute(call)

        assert "UnspeakableError" in str(caught.value)

    def test_an_exception_group(self) -> None:
        """A group of exceptions is an exception like any other."""
        group = grouped(raising(ExceptionGroup("two", [ValueError(), OSError()])), lambda: "1")

        assert group.execute(call) == "1"

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
    def test_interruptions(self, error: BaseException) -> None:
        """What is not an `Exception` is never failed over and counts for nobody."""
        config = FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=1))
        group = grouped(raising(error), raising(AssertionError()), config=config)

        with pytest.raises(type(error)):
            group.execute(call)

        assert group.breakers["0"].state is State.CLOSED

    @pytest.mark.parametrize(
        "error",
        [
            CircuitOpenError("name", 1.5),
            CircuitOpenError("name"),
            CircuitOpenError(name="name", retry_after=1.5),
            AttemptTimeoutError(provider="name", timeout=0.5),
            AllFailedError({"a": CircuitOpenError("a", 2.0), "b": ValueError("b")}),
            AttemptTimeoutError("name", 0.5),
            EmptyStreamError(),
            ResilienceError("message"),
        ],
    )
    def test_errors_survive_pickle_and_copy(self, error: ResilienceError) -> None:
        """Every error of the library comes back with its type, text and data."""
        error.add_note("a note")

        for again in (
            pickle.loads(pickle.dumps(error)),  # noqa: S301
            copy.copy(error),
            copy.deepcopy(error),
        ):
            assert type(again) is type(error)
            assert str(again) == str(error)
            assert getattr(again, "retry_after", None) == getattr(error, "retry_after", None)
            assert again.__notes__ == ["a note"]

    def test_the_cause_survives_too(self) -> None:
        """The last failure is the cause, also of a copy."""
        error = AllFailedError({"a": ValueError("a"), "b": OSError("b")})

        again = pickle.loads(pickle.dumps(error))  # noqa: S301

        assert error.__cause__ is error.failures["b"]
        assert repr(again.__cause__) == repr(again.failures["b"]) == "OSError('b')"
        assert AllFailedError({}).__cause__ is None

    @pytest.mark.parametrize("failure", ["unspeakable", "shape-shifting"])
    def test_failures_that_do_not_pickle(self, failure: str) -> None:
        """They leave their type and text behind; a copy in the same process keeps them."""
        odd = UnspeakableError(needed=1) if failure == "unspeakable" else ShapeShiftingError()
        error = AllFailedError({"a": odd})

        again = pickle.loads(pickle.dumps(error))  # noqa: S301

        assert type(again.failures["a"]) is ResilienceError
        assert type(odd).__name__ in str(again)
        assert copy.copy(error).failures["a"] is odd
        assert type(odd).__name__ in repr(error)

    @pytest.mark.parametrize("name", ["another", "0"])
    def test_a_provider_that_says_that_it_is_open(self, name: str) -> None:
        """How long a group inside the group has to wait is not how long this one has to."""
        group = grouped(raising(CircuitOpenError(name, 7.0)))

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after is None


class Once:
    """Something that is called, and interrupted the first time."""

    def __init__(self, clock: ManualClock) -> None:
        """Tell the time of another clock."""
        self._clock = clock
        self.interrupts = False

    def __call__(self) -> float:
        """Tell the time, or be interrupted."""
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt
        return self._clock()


class TestOddProviders:
    """Whatever a provider does, the breaker stands."""

    def test_a_coroutine_function(self) -> None:
        """It is refused as soon as it is noticed, goes nowhere, and counts for nobody."""

        async def answer() -> str:
            raise AssertionError

        reports: list[Attempt] = []
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1), on_attempt=reports.append
        )
        for listens in (config, FallbackConfig(circuit_breaker=config.circuit_breaker)):
            group = FallbackGroup(answer, "0", listens)
            group.add_fallback("1", answer)

            with pytest.raises(TypeError, match="must be synchronous"):
                _ = group.execute(lambda provider: provider())

            assert group.breakers["0"].state is State.CLOSED
        assert [report.outcome for report in reports] == [Outcome.CANCELLED]

    @pytest.mark.parametrize("kind", ["call", "stream"])
    def test_a_clock_that_is_interrupted(self, kind: str) -> None:
        """An interruption before the provider is called costs no slot."""
        clock = ManualClock()
        once = Once(clock)
        breaker = CircuitBreakerConfig(max_failures=1, half_open_max=1, clock=once)
        reports: list[Attempt] = []
        model = LLMFallback(
            FakeLLM(ConnectionError(), "back"),
            "0",
            FallbackConfig(circuit_breaker=breaker, on_attempt=reports.append),
        )
        with pytest.raises(AllFailedError):
            model.complete(REQUEST)
        clock.advance(30.0)

        once.interrupts = True
        with pytest.raises(KeyboardInterrupt):
            _ = model.complete(REQUEST) if kind == "call" else model.stream_completion(REQUEST)

        assert model.complete(REQUEST).content == "back"

    def test_a_type_that_cannot_be_asked(self, caplog: pytest.LogCaptureFixture) -> None:
        """An exception whose type raises when it is asked counts, and the next is tried."""

        class Unasked(type):
            def __instancecheck__(cls, instance: object) -> bool:
                raise RuntimeError

        class UnaskedError(Exception, metaclass=Unasked):
            """Nobody can tell whether it is one."""

        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=UnaskedError)
        )
        group = grouped(raising(ConnectionError()), lambda: "1", config=config)

        assert group.execute(call) == "1"
        assert group.breakers["0"].state is State.OPEN
        assert "failure_on raised RuntimeError" in caplog.text


class TestNames:
    """Names are unique, and providers may be added at any time."""

    def test_bad_names(self) -> None:
        """An empty, taken or wrongly typed name is refused and named."""
        group = grouped(lambda: "0")

        with pytest.raises(ValueError, match="''"):
            group.add_fallback("", call)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'0'"):
            group.add_fallback("0", lambda: "1")
        with pytest.raises(TypeError, match="7"):
            group.add_fallback(7, lambda: "1")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="config"):
            FallbackGroup(call, "0", "config")  # type: ignore[arg-type]

        assert list(group.breakers) == ["0"]

    def test_breakers(self) -> None:
        """They stand in order under the names of their providers, and cannot be replaced."""
        group = grouped(lambda: "0", lambda: "1")

        assert [(name, each.name) for name, each in group.breakers.items()] == [
            ("0", "0"),
            ("1", "1"),
        ]
        with pytest.raises(TypeError):
            group.breakers["0"] = group.breakers["1"]  # type: ignore[index]
        assert group.primary() == "0"

    def test_adding_during_traffic(self) -> None:
        """Threads that add and threads that call do not disturb each other."""
        group = grouped(raising(ConnectionError()), lambda: "1")
        barrier = threading.Barrier(8)
        results: list[str] = []

        def add(number: int) -> None:
            barrier.wait(TIMEOUT)
            for each in range(20):
                group.add_fallback(f"{number}-{each}", lambda: "late")

        def use() -> None:
            barrier.wait(TIMEOUT)
            results.extend(group.execute(call) for _ in range(100))

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        threads += [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)

        assert set(results) == {"1"}
        assert len(group.breakers) == 82


class TestAttempts:
    """Each attempt that ended is reported once."""

    def test_outcomes_and_durations(self) -> None:
        """Failed, ignored, skipped, succeeded and cancelled; in seconds of the breaker's clock."""
        clock = ManualClock()
        reports: list[Attempt] = []
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(
                max_failures=1, failure_on=ConnectionError, clock=clock
            ),
            on_attempt=reports.append,
        )
        models = LLMFallback(
            FakeLLM([Pause(2.0), ConnectionError()], clock=clock), "failing", config
        )
        models.add_fallback("ignored", FakeLLM(ValueError()))
        models.add_fallback("good", FakeLLM([Pause(0.5), "ok"], clock=clock))

        models.complete(REQUEST)
        models.complete(REQUEST)

        assert [(each.provider, str(each.outcome), each.duration) for each in reports] == [
            ("failing", "failed", 2.0),
            ("ignored", "ignored", 0.0),
            ("good", "succeeded", 0.5),
            ("failing", "skipped", 0.0),
            ("ignored", "ignored", 0.0),
            ("good", "succeeded", 0.5),
        ]
        assert isinstance(reports[0].error, ConnectionError)
        assert isinstance(reports[3].error, CircuitOpenError)
        assert reports[2].error is None

    def test_an_interruption_is_a_cancelled_attempt(self) -> None:
        """It is reported with what was raised."""
        reports: list[Attempt] = []
        group = grouped(
            raising(KeyboardInterrupt()), config=FallbackConfig(on_attempt=reports.append)
        )

        with pytest.raises(KeyboardInterrupt):
            group.execute(call)

        assert reports[0].outcome is Outcome.CANCELLED
        assert isinstance(reports[0].error, KeyboardInterrupt)

    def test_a_listener_that_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged, and the call goes on."""

        def listener(_attempt: Attempt) -> None:
            raise ZeroDivisionError

        config = FallbackConfig(on_attempt=listener)

        assert grouped(raising(OSError()), lambda: "1", config=config).execute(call) == "1"
        assert caplog.text.count("on_attempt raised ZeroDivisionError") == 2


class TestTokenCounts:
    """Counting tokens is no evidence of a model's health."""

    def models(self, clock: ManualClock, *steps: str | Exception) -> LLMFallback:
        """Return a model that follows a script, and a backup."""
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=2, half_open_max=1, clock=clock)
        )
        models = LLMFallback(FakeLLM(*steps), "0", config)
        models.add_fallback("1", FakeLLM("backup"))
        return models

    def test_it_does_not_reset_the_count(self) -> None:
        """A dead model opens its breaker though tokens are counted before each request."""
        models = self.models(ManualClock(), ConnectionError())

        for _ in range(2):
            assert models.count_tokens(REQUEST.messages) == 2
            models.complete(REQUEST)

        assert models.breakers["0"].state is State.OPEN

    def test_it_takes_no_probe_slot_and_closes_nothing(self) -> None:
        """A breaker that probes neither closes nor loses a slot by it."""
        clock = ManualClock()
        models = self.models(clock, ConnectionError(), ConnectionError(), "back")
        models.complete(REQUEST)
        models.complete(REQUEST)
        clock.advance(30.0)

        models.count_tokens(REQUEST.messages)

        assert models.breakers["0"].state is State.HALF_OPEN
        assert models.complete(REQUEST).content == "back"

    def test_it_skips_open_ones_and_fails_over(self) -> None:
        """An open model is not asked; one that cannot count is not blamed."""

        class Uncountable(FakeLLMBase):
            def count_tokens(self, messages: object) -> int:
                raise NotImplementedError(messages)

        config = FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=1))
        isolated = FakeLLM()
        models = LLMFallback(isolated, "0", config)
        models.breakers["0"].isolate()
        models.add_fallback("1", Uncountable())
        models.add_fallback("2", FakeLLM())

        assert models.count_tokens(REQUEST.messages) == 2
        assert isolated.counted == []
        assert models.breakers["1"].state is State.CLOSED

    def test_capabilities_are_the_primarys(self) -> None:
        """There is no failover for what is only described."""
        mine = llm.ModelCapabilities(context_window=1)
        models = LLMFallback(FakeLLM(capabilities=mine), "0")
        models.breakers["0"].isolate()

        assert models.capabilities() is mine


class FakeLLMBase:
    """A model that does nothing; it inherits from nobody, as users need not."""

    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        """Fail."""
        raise NotImplementedError(request)

    def stream_completion(self, request: llm.CompletionRequest) -> list[llm.Chunk]:
        """Fail."""
        raise NotImplementedError(request)

    def capabilities(self) -> llm.ModelCapabilities:
        """Fail."""
        raise NotImplementedError


class Big:
    """Something whose end can be observed."""


def refuse() -> str:
    """Raise an error that nobody else keeps."""
    raise ConnectionError


@pytest.mark.parametrize("last", [lambda: "ok", refuse])
def test_a_request_dies_with_its_call(last: Provider) -> None:
    """After a failover, or after all failed, no cycle of references keeps the request alive."""
    group = grouped(refuse, last)

    def ask() -> weakref.ref[Big]:
        big = Big()

        def with_big(provider: Provider) -> str:
            assert big is not None
            return provider()

        with contextlib.suppress(AllFailedError):
            group.execute(with_big)
        return weakref.ref(big)

    gc.disable()
    try:
        reference = ask()

        assert reference() is None
    finally:
        gc.enable()
