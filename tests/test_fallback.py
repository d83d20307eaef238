"""A group tries its providers in order; two settings classify each exception."""

import contextlib
import copy
import gc
import json
import logging
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import cast

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
    TTSFallback,
    UnsupportedRequestError,
    execute_with_result,
    llm,
    tts,
)
from resilience.testing import Delay, FakeLLM, FakeTTS, ManualClock

TIMEOUT = 10.0
REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content="Hello, you?"),))

Provider = Callable[[], str]


def raising(error: BaseException) -> Provider:
    """Return a provider that raises."""

    def provider() -> str:
        raise error

    return provider


def call(provider: Provider) -> str:
    """Call a provider."""
    return provider()


def grouped(*providers: Provider, config: FallbackConfig | None = None) -> FallbackGroup[Provider]:
    """Put providers behind breakers, named 0, 1 and so on."""
    group = FallbackGroup(providers[0], "0", config)
    for number, provider in enumerate(providers[1:], start=1):
        group.add_fallback(str(number), provider)
    return group


class BadRequestError(Exception):
    """A wrong request: does not count and does not fail over."""


class ContextTooLongError(Exception):
    """Too long for this model: does not count, but fails over."""


class OwnTimeout(BaseException):
    """An exception that is no `Exception`, like the timeouts of some libraries."""


class OwnRefusalError(UnsupportedRequestError):
    """A refusal of a provider's own."""


class FakeLLMBase:
    """A model that does nothing; it inherits from no class, as users need not."""

    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        """Fail."""
        raise NotImplementedError(request)

    def stream_completion(self, request: llm.CompletionRequest) -> list[llm.Chunk]:
        """Fail."""
        raise NotImplementedError(request)

    def capabilities(self) -> llm.ModelCapabilities:
        """Fail."""
        raise NotImplementedError


class TestOrder:
    """Providers are tried in order, and the first success is returned."""

    def test_the_primary_answers(self) -> None:
        """No other provider is called if the primary succeeds."""
        group = grouped(lambda: "primary", raising(AssertionError()))

        assert group.execute(call) == execute_with_result(group, call) == "primary"

    def test_the_first_healthy_one_answers(self) -> None:
        """After each failure the next provider is tried."""
        group = grouped(raising(ConnectionError()), raising(TimeoutError()), lambda: "third")

        assert group.execute(call) == "third"

    def test_an_open_one_is_skipped(self) -> None:
        """A provider whose breaker is open is not called."""
        group = grouped(raising(AssertionError()), lambda: "1")
        group.breakers["0"].isolate()

        assert group.execute(call) == "1"

    def test_it_comes_back_by_itself(self) -> None:
        """After `reset_timeout` the primary is tried again."""
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


class TestFilters:
    """`failure_on` decides what counts, and `fallback_on` what fails over."""

    config = FallbackConfig(
        circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=ConnectionError),
        fallback_on=(ConnectionError, ContextTooLongError),
    )

    def test_a_wrong_request(self) -> None:
        """It does not count, and is raised to the caller as it is, at once."""
        error = BadRequestError()
        group = grouped(raising(error), raising(AssertionError()), config=self.config)

        with pytest.raises(BadRequestError) as caught:
            group.execute(call)

        assert caught.value is error
        assert group.breakers["0"].state is State.CLOSED

    def test_a_context_too_long(self) -> None:
        """It does not count, but another provider is tried."""
        group = grouped(raising(ContextTooLongError()), lambda: "1", config=self.config)

        assert group.execute(call) == "1"
        assert group.breakers["0"].state is State.CLOSED

    def test_a_refused_connection(self) -> None:
        """It counts, and another provider is tried."""
        group = grouped(raising(ConnectionRefusedError()), lambda: "1", config=self.config)

        assert group.execute(call) == "1"
        assert group.breakers["0"].state is State.OPEN

    def test_a_predicate_that_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged, and another provider is tried."""

        def predicate(_error: Exception) -> bool:
            raise ZeroDivisionError

        config = FallbackConfig(fallback_on=predicate)

        assert grouped(raising(ValueError()), lambda: "1", config=config).execute(call) == "1"
        assert "fallback_on raised ZeroDivisionError" in caplog.text

    def test_a_predicate_that_returns_a_coroutine(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged, and another provider is tried."""

        async def answer() -> bool:
            return False

        config = FallbackConfig(fallback_on=cast("Callable[[Exception], bool]", lambda _: answer()))

        assert grouped(raising(ValueError()), lambda: "1", config=config).execute(call) == "1"
        assert "fallback_on raised TypeError" in caplog.text

    @pytest.mark.parametrize(
        ("failure_on", "outcome"), [(Exception, Outcome.IGNORED), (OwnTimeout, Outcome.FAILED)]
    )
    def test_a_base_exception(self, failure_on: type[BaseException], outcome: Outcome) -> None:
        """An exception that is no `Exception` fails over if `fallback_on` names its type."""
        reports: list[Attempt] = []
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=failure_on),
            fallback_on=OwnTimeout,
            on_attempt=reports.append,
        )
        error = OwnTimeout()
        group = grouped(raising(error), config=config)

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.failures["0"] is error
        assert caught.value.__cause__ is error
        assert [report.outcome for report in reports] == [outcome]

    def test_a_base_exception_that_is_not_named(self) -> None:
        """Any other is raised to the caller at once, and no predicate is called for it."""
        asked: list[BaseException] = []
        config = FallbackConfig(fallback_on=lambda error: bool(asked.append(error)))  # type: ignore[func-returns-value]
        group = grouped(raising(OwnTimeout()), raising(AssertionError()), config=config)

        with pytest.raises(OwnTimeout):
            group.execute(call)

        assert asked == []


class TestUnsupported:
    """A provider that cannot serve a request is healthy, and another one is tried."""

    def group(self, primary: llm.Provider, reports: list[Attempt]) -> LLMFallback:
        """Put a model and a backup into a group in which everything counts and nothing moves on."""
        self.asked: list[BaseException] = []
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=self.ask),
            fallback_on=lambda error: not self.ask(error),
            on_attempt=reports.append,
        )
        group = LLMFallback(primary, "0", config)
        group.add_fallback("1", FakeLLM("backup"))
        return group

    def ask(self, error: Exception) -> bool:
        """Count everything."""
        self.asked.append(error)
        return True

    @pytest.mark.parametrize(
        "error", [NotImplementedError(), UnsupportedRequestError("no pictures"), OwnRefusalError()]
    )
    @pytest.mark.parametrize("kind", ["call", "stream"])
    def test_it_says_so(self, error: Exception, kind: str) -> None:
        """It never counts and always fails over, and neither filter is called for it."""
        reports: list[Attempt] = []
        group = self.group(FakeLLM(error), reports)

        if kind == "call":
            group.complete(REQUEST)
        else:
            list(group.stream_completion(REQUEST))

        assert self.asked == []
        assert [(each.outcome, each.error) for each in reports] == [
            (Outcome.IGNORED, error),
            (Outcome.SUCCEEDED, None),
        ]
        assert group.breakers["0"].state is State.CLOSED

    def test_a_method_that_is_missing(self) -> None:
        """The same holds for a method of the contract that the provider does not have."""

        class Countless:
            complete = FakeLLM.complete
            stream_completion = FakeLLM.stream_completion

        reports: list[Attempt] = []
        group = self.group(Countless(), reports)  # type: ignore[arg-type]

        assert group.count_tokens(REQUEST.messages) == 2
        assert self.asked == []
        assert [report.outcome for report in reports] == [Outcome.IGNORED, Outcome.SUCCEEDED]

    def test_another_attribute_that_is_missing(self) -> None:
        """Any other `AttributeError` is an error of the provider, like a `TypeError`."""

        def use_client() -> None:
            raise AttributeError(name="client", obj=group)

        reports: list[Attempt] = []
        group = self.group(FakeLLM([use_client]), reports)

        with pytest.raises(AttributeError):
            group.complete(REQUEST)

        assert [report.outcome for report in reports] == [Outcome.FAILED]
        assert group.breakers["0"].state is State.OPEN


class TestAllFailed:
    """When no provider succeeded, the error tells the failure of each, and when to come back."""

    def test_it_names_every_provider(self) -> None:
        """Failures are in order by name, skipped ones with their wait; the last is the cause."""
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

    def test_a_breaker_is_closed(self) -> None:
        """If a provider failed and its breaker is still closed, the wait is 0."""
        group = grouped(lambda: "0", raising(ConnectionError()))
        group.breakers["0"].isolate()

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after == 0.0

    def test_a_probe_was_ignored(self) -> None:
        """The wait is 0, too, if a breaker is half-open and the next call would be admitted."""
        clock = ManualClock()
        errors = iter([ConnectionError(), ValueError()])

        def provider() -> str:
            raise next(errors, KeyboardInterrupt())

        breaker = CircuitBreakerConfig(max_failures=1, failure_on=ConnectionError, clock=clock)
        group = grouped(provider, config=FallbackConfig(circuit_breaker=breaker))
        with pytest.raises(AllFailedError):
            group.execute(call)
        clock.advance(30.0)

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        with pytest.raises(KeyboardInterrupt):
            group.execute(call)  # it is admitted
        assert caught.value.retry_after == 0.0

    def test_isolated_ones_cannot_say(self) -> None:
        """There is no wait if the only provider is isolated."""
        group = grouped(lambda: "0")
        group.breakers["0"].isolate()

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after is None

    def test_a_group_inside_a_group(self) -> None:
        """What an inner group or breaker raises after a call is a failure like any other."""
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

    def test_an_inner_group_that_tried_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        """An inner group that has skipped all of its providers is skipped by the outer one."""
        caplog.set_level(logging.DEBUG, "resilience")
        reports: list[Attempt] = []
        inner, clock = open_group(7.0)
        breaker = CircuitBreakerConfig(max_failures=1, clock=clock)
        config = FallbackConfig(circuit_breaker=breaker, on_attempt=reports.append)
        group = grouped(lambda: inner.execute(call), lambda: "1", config=config)
        caplog.clear()

        assert group.execute(call) == "1"

        assert [report.outcome for report in reports] == [Outcome.SKIPPED, Outcome.SUCCEEDED]
        assert group.breakers["0"].state is State.CLOSED
        assert [record.getMessage() for record in caplog.records] == [
            "provider 0 is skipped",  # by the inner group
            "provider 0 is skipped",
        ]

    @pytest.mark.parametrize(("other", "wait"), [(20.0, 7.0), (5.0, 5.0)])
    def test_the_wait_of_an_inner_group(self, other: float, wait: float) -> None:
        """Its wait takes part in that of the outer group, to which it is no failure."""
        inner, clock = open_group(7.0)
        breaker = CircuitBreakerConfig(max_failures=1, reset_timeout=other, clock=clock)
        group = grouped(
            lambda: inner.execute(call),
            raising(ConnectionError()),
            config=FallbackConfig(circuit_breaker=breaker),
        )

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after == wait

    @pytest.mark.parametrize("kind", ["call", "stream", "speech"])
    def test_a_group_inside_an_adapter(self, kind: str) -> None:
        """The same holds for an adapter that is a provider of an adapter, also for its streams."""
        reports: list[Attempt] = []
        config = FallbackConfig(on_attempt=reports.append)
        inner_models, inner_voices = LLMFallback(FakeLLM(), "0"), TTSFallback(FakeTTS(), "0")
        inner_models.breakers["0"].isolate()
        inner_voices.breakers["0"].isolate()
        models, voices = (
            LLMFallback(inner_models, "0", config),
            TTSFallback(inner_voices, "0", config),
        )
        models.add_fallback("1", FakeLLM())
        voices.add_fallback("1", FakeTTS())

        if kind == "call":
            models.complete(REQUEST)
        elif kind == "stream":
            list(models.stream_completion(REQUEST))
        else:
            list(voices.synthesize_stream(["text"], tts.VoiceProfile(id="voice")))

        assert [report.outcome for report in reports] == [Outcome.SKIPPED, Outcome.SUCCEEDED]

    def test_failures_are_read_only(self) -> None:
        """They cannot be changed, and are copied from the mapping that was given."""
        failures: dict[str, Exception] = {"a": ValueError()}
        error = AllFailedError(failures)

        failures.clear()

        assert list(error.failures) == ["a"]
        with pytest.raises(TypeError):
            error.failures["b"] = ValueError()  # type: ignore[index]


def open_group(wait: float) -> tuple[FallbackGroup[Provider], ManualClock]:
    """Return a group whose one provider has failed and is open for so many seconds."""
    clock = ManualClock()
    breaker = CircuitBreakerConfig(max_failures=1, reset_timeout=wait, clock=clock)
    group = grouped(raising(ConnectionError()), config=FallbackConfig(circuit_breaker=breaker))
    with pytest.raises(AllFailedError):
        group.execute(call)
    return group, clock


class NotAnErrorError(Exception):
    """Is unpickled as a string, and has no representation."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Become a string."""
        return str, ("changed",)

    def __repr__(self) -> str:
        """Raise."""
        raise RuntimeError


class UnreadableError(Exception):
    """An exception whose text cannot be read, which is false, and which cannot be pickled."""

    def __init__(self, *, needed: int) -> None:
        """Take an argument that `pickle` does not pass."""
        super().__init__()
        self.needed = needed

    def __str__(self) -> str:
        """Fail."""
        raise ZeroDivisionError

    def __bool__(self) -> bool:
        """Be false."""
        return False


all_errors = pytest.mark.parametrize(
    "error",
    [
        CircuitOpenError("name", 1.5),
        CircuitOpenError("name"),
        CircuitOpenError("name", 1.5, "OSError: refused"),
        AttemptTimeoutError("name", 0.5, 64),
        AttemptTimeoutError(provider="name", timeout=0.5),
        AttemptTimeoutError("name", 0.5),
        AllFailedError({"a": CircuitOpenError("a", 2.0), "b": ValueError("b")}),
        AllFailedError({}),
        AllFailedError("all providers failed: a: ValueError: a"),
        EmptyStreamError(),
        EmptyStreamError(message="no chunk came"),
        ResilienceError("message"),
    ],
)


class TestOddExceptions:
    """Providers raise unusual exceptions."""

    def test_a_text_that_cannot_be_read(self) -> None:
        """The error of the group names its type, also if the exception is false."""
        with pytest.raises(AllFailedError) as caught:
            grouped(raising(UnreadableError(needed=1))).execute(call)

        assert "UnreadableError" in str(caught.value)

    def test_an_exception_group(self) -> None:
        """A group of exceptions is an exception like any other."""
        group = grouped(raising(ExceptionGroup("two", [ValueError(), OSError()])), lambda: "1")

        assert group.execute(call) == "1"

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
    def test_interruptions(self, error: BaseException) -> None:
        """An interruption of the program never fails over and never counts."""
        config = FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=1))
        group = grouped(raising(error), raising(AssertionError()), config=config)

        with pytest.raises(type(error)):
            group.execute(call)

        assert group.breakers["0"].state is State.CLOSED

    @all_errors
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
            assert again.__notes__ == ["a note"]
            for field in ("name", "retry_after", "reason", "provider", "timeout", "hanging"):
                assert getattr(again, field, None) == getattr(error, field, None)

    @all_errors
    def test_errors_are_rebuilt_from_their_arguments(self, error: ResilienceError) -> None:
        """Every error can be rebuilt from its `args` after these were stored as JSON."""
        again = type(error)(*json.loads(json.dumps(error.args)))

        assert str(again) == str(error)
        assert again.args == error.args
        assert isinstance(error, AllFailedError) or again.__reduce__()[:2] == error.__reduce__()[:2]

    def test_an_error_rebuilt_from_its_message(self) -> None:
        """An `AllFailedError` rebuilt from its message has that message and no failures."""
        error = AllFailedError({"a": CircuitOpenError("a", 2.0), "b": ValueError("b")})

        again = AllFailedError(*error.args)

        assert str(again) == str(error)
        assert dict(again.failures) == {}
        assert again.retry_after is None
        assert again.__cause__ is None

    def test_the_cause_survives_too(self) -> None:
        """The last failure is the cause, also of a copy."""
        error = AllFailedError({"a": ValueError("a"), "b": OSError("b")})

        again = pickle.loads(pickle.dumps(error))  # noqa: S301

        assert error.__cause__ is error.failures["b"]
        assert repr(again.__cause__) == repr(again.failures["b"]) == "OSError('b')"
        assert AllFailedError({}).__cause__ is None

    @pytest.mark.parametrize("failure", ["unreadable", "no error"])
    def test_failures_that_do_not_pickle(self, failure: str) -> None:
        """A pickle has their type and text instead; a copy in the same process keeps them."""
        odd = UnreadableError(needed=1) if failure == "unreadable" else NotAnErrorError()
        error = AllFailedError({"a": odd})

        again = pickle.loads(pickle.dumps(error))  # noqa: S301

        assert type(again.failures["a"]) is ResilienceError
        assert type(odd).__name__ in str(again)
        assert copy.copy(error).failures["a"] is odd
        assert type(odd).__name__ in repr(error)

    @pytest.mark.parametrize("name", ["another", "0"])
    def test_a_provider_that_says_that_it_is_open(self, name: str) -> None:
        """The wait of an error that a provider raises is not that of the group."""
        breaker = CircuitBreakerConfig(max_failures=1, reset_timeout=20.0, clock=ManualClock())
        group = grouped(
            raising(CircuitOpenError(name, 7.0)), config=FallbackConfig(circuit_breaker=breaker)
        )

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after == 20.0


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


class TestOddProviders:
    """Providers that do not do what a provider should."""

    def test_a_coroutine_function(self) -> None:
        """It fails the attempt with a `TypeError` that names provider and method."""

        async def answer() -> str:
            raise AssertionError

        problem = "must be synchronous, but returned a coroutine"
        reports: list[Attempt] = []
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1), on_attempt=reports.append
        )
        for listens in (config, FallbackConfig(circuit_breaker=config.circuit_breaker)):
            group = FallbackGroup(answer, "0", listens)
            group.add_fallback("1", answer)

            with pytest.raises(AllFailedError) as caught:
                _ = group.execute(lambda provider: provider())
            gc.collect()  # a coroutine that was never closed would warn here

            assert [repr(error) for error in caught.value.failures.values()] == [
                repr(TypeError(f"execute() of provider {name!r} {problem}")) for name in "01"
            ]
            assert group.breakers["0"].state is State.OPEN
        assert [report.outcome for report in reports] == [Outcome.FAILED] * 2

    @pytest.mark.parametrize("kind", ["call", "stream"])
    def test_a_clock_that_is_interrupted(self, kind: str) -> None:
        """An interruption before the provider is called takes no slot."""
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
        """If `isinstance` raises for the type, that is logged, and the exception counts."""

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
        """A name that is empty, already used or no string is refused, and shown in the error."""
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
        """They are in order, by the names of their providers, and cannot be replaced."""
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
            FakeLLM([Delay(2.0), ConnectionError()], clock=clock), "failing", config
        )
        models.add_fallback("ignored", FakeLLM(ValueError()))
        models.add_fallback("good", FakeLLM([Delay(0.5), "ok"], clock=clock))

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
        """It is reported with the exception that was raised."""
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
    """Counting tokens is not recorded by the breakers."""

    def models(self, clock: ManualClock, *steps: str | Exception) -> LLMFallback:
        """Return a model that follows a script, and a backup."""
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=2, half_open_max=1, clock=clock)
        )
        models = LLMFallback(FakeLLM(*steps), "0", config)
        models.add_fallback("1", FakeLLM("backup"))
        return models

    def test_it_does_not_reset_the_count(self) -> None:
        """The breaker of a dead model opens though tokens are counted before each request."""
        models = self.models(ManualClock(), ConnectionError())

        for _ in range(2):
            assert models.count_tokens(REQUEST.messages) == 2
            models.complete(REQUEST)

        assert models.breakers["0"].state is State.OPEN

    def test_it_takes_no_probe_slot_and_closes_nothing(self) -> None:
        """A half-open breaker neither closes nor loses a slot by it."""
        clock = ManualClock()
        models = self.models(clock, ConnectionError(), ConnectionError(), "back")
        models.complete(REQUEST)
        models.complete(REQUEST)
        clock.advance(30.0)

        models.count_tokens(REQUEST.messages)

        assert models.breakers["0"].state is State.HALF_OPEN
        assert models.complete(REQUEST).content == "back"

    def test_it_skips_open_ones_and_fails_over(self) -> None:
        """A model with an open breaker is skipped; one that cannot count is not recorded."""

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
        """There is no failover for the description of a model."""
        mine = llm.ModelCapabilities(context_window=1)
        models = LLMFallback(FakeLLM(capabilities=mine), "0")
        models.breakers["0"].isolate()

        assert models.capabilities() is mine


class Big:
    """An object whose deletion can be observed."""


def refuse() -> str:
    """Raise an error to which there is no other reference."""
    raise ConnectionError


@pytest.mark.parametrize("last", [lambda: "ok", refuse])
def test_a_request_is_deleted_after_its_call(last: Provider) -> None:
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
