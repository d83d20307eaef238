"""Which exceptions count against a provider, and which fail over to the next one."""

import copy
import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias, cast

import pytest

from helpers import (
    LIMIT,
    REQUEST,
    VOICE,
    Handle,
    Recogniser,
    Recorder,
    each_limit,
    fail,
    raising,
    refuse,
)
from resilience import (
    AllFailedError,
    Attempt,
    AttemptTimeoutError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    EmptyStreamError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    State,
    StateChange,
    STTFallback,
    TTSFallback,
    UnsupportedRequestError,
    stt,
)
from resilience.testing import FakeLLM, FakeSession, FakeSTT, FakeTTS

FailureOn: TypeAlias = (
    type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], object]
)


class WrongRequestError(Exception):
    """A wrong request: does not count and does not fail over."""


class ContextTooLongError(Exception):
    """Too long for this model: does not count, but fails over."""


class TimeUpError(Exception):
    """The time limit of a task queue."""


class PanicError(BaseException):
    """An exception that an extension module raises when it panics."""


class KilledError(BaseException):
    """What ends a green thread."""


class OwnRefusalError(UnsupportedRequestError):
    """A refusal of a provider's own."""


async def coroutine(*_: object) -> str:
    """Do nothing, later."""
    return "never"


async def generate(*_: object) -> Any:  # noqa: ANN401
    """Do nothing, later."""
    yield "never"


def with_filter(failure_on: FailureOn) -> CircuitBreaker:
    """Return a breaker that opens at the first failure that counts."""
    counts = cast("Callable[[Exception], bool]", failure_on)
    return CircuitBreaker(CircuitBreakerConfig(max_failures=1, failure_on=counts))


class TestFailureOn:
    """`failure_on`: the exceptions that count, as a type, a tuple of types, or a predicate."""

    @pytest.mark.parametrize(
        "failure_on",
        [
            ConnectionError,
            OSError,
            (TimeoutError, ConnectionError),
            (OSError,),
            lambda error: isinstance(error, ConnectionError),
            repr,
        ],
        ids=["type", "base", "tuple", "tuple of one", "predicate", "truthy"],
    )
    def test_counts(self, failure_on: FailureOn) -> None:
        """An exception that the filter includes counts."""
        breaker = with_filter(failure_on)

        fail(breaker, ConnectionRefusedError("refused"))

        assert breaker.state is State.OPEN

    @pytest.mark.parametrize(
        "failure_on",
        [
            ConnectionError,
            (TimeoutError, ConnectionError),
            (),
            lambda error: isinstance(error, ConnectionError),
            lambda _: None,
        ],
        ids=["type", "tuple", "empty tuple", "predicate", "falsy"],
    )
    def test_does_not_count(self, failure_on: FailureOn) -> None:
        """Any other exception leaves the breaker as it is."""
        breaker = with_filter(failure_on)

        fail(breaker, ValueError("wrong request"))

        assert breaker.state is State.CLOSED

    @pytest.mark.parametrize(
        "error", [KeyboardInterrupt(), SystemExit(), GeneratorExit(), BaseException()], ids=repr
    )
    def test_predicates_are_for_exceptions(self, error: BaseException) -> None:
        """For an exception outside `Exception` no predicate is called, and it does not count."""
        called: list[Exception] = []

        def counts(error: Exception) -> bool:
            called.append(error)
            return True

        breaker = with_filter(counts)

        fail(breaker, error)

        assert breaker.state is State.CLOSED
        assert called == []

    @pytest.mark.parametrize("failure_on", [Exception, (Exception, PanicError), PanicError])
    def test_base_exceptions(self, failure_on: FailureOn) -> None:
        """An exception outside `Exception` counts if its own type is named."""
        breaker = with_filter(failure_on)

        fail(breaker, PanicError())

        assert breaker.state is (State.CLOSED if failure_on is Exception else State.OPEN)

    @pytest.mark.parametrize(
        ("predicate", "error"),
        [(raising(RuntimeError()), "RuntimeError"), (lambda _: coroutine(), "TypeError")],
        ids=["raises", "returns a coroutine"],
    )
    def test_broken_predicate(
        self, predicate: FailureOn, error: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A predicate that raises or returns a coroutine is logged, and the exception counts."""
        breaker = with_filter(predicate)

        fail(breaker)
        gc.collect()  # a coroutine that was not closed would cause a warning here

        assert breaker.state is State.OPEN
        assert caplog.records[0].getMessage().startswith(f"failure_on raised {error} at ")
        assert caplog.records[0].levelno == logging.ERROR

    @pytest.mark.parametrize("error", [AttemptTimeoutError("model", 1.0), EmptyStreamError()])
    def test_own_errors(self, error: Exception) -> None:
        """Types always include the library's own errors for a provider that returns nothing."""
        breaker = with_filter(ConnectionError)

        fail(breaker, error)

        assert breaker.state is State.OPEN

    def test_predicate_decides_on_own_errors(self) -> None:
        """A predicate is called for the library's own errors like for any others."""
        breaker = with_filter(lambda error: not isinstance(error, EmptyStreamError))

        fail(breaker, EmptyStreamError())

        assert breaker.state is State.CLOSED

    def test_circuit_open_error_of_fn(self) -> None:
        """A `CircuitOpenError` that fn itself raises is a failure like any other."""
        inner, outer = with_filter(Exception), with_filter(Exception)
        inner.isolate()

        with pytest.raises(CircuitOpenError):
            outer.execute(inner.execute, lambda: None)

        assert outer.state is State.OPEN


class TestFallbackOn:
    """`failure_on` decides which exceptions count, and `fallback_on` which fail over."""

    @pytest.mark.parametrize(
        ("error", "fails_over", "state"),
        [
            (WrongRequestError(), False, State.CLOSED),
            (ContextTooLongError(), True, State.CLOSED),
            (ConnectionRefusedError(), True, State.OPEN),
        ],
        ids=["wrong request", "context too long", "refused connection"],
    )
    @pytest.mark.parametrize(
        "call",
        [
            lambda group: group.execute(lambda provider: provider()),
            lambda group: "".join(group.stream(lambda provider: [provider()])),
        ],
        ids=["call", "stream"],
    )
    def test_two_settings(
        self,
        error: Exception,
        call: Callable[[FallbackGroup[Callable[..., str]]], str],
        *,
        fails_over: bool,
        state: State,
    ) -> None:
        """The settings are independent; an exception that does not fail over is raised at once."""
        recorder = Recorder(
            breaker={"failure_on": ConnectionError},
            fallback_on=(ConnectionError, ContextTooLongError),
        )
        group = FallbackGroup[Callable[..., str]](raising(error), "0", recorder.config)
        group.add_fallback("1", lambda: "backup")

        if fails_over:
            assert call(group) == "backup"
        else:
            with pytest.raises(type(error)) as raised:
                call(group)
            assert raised.value is error

        assert len(recorder.attempts) == (2 if fails_over else 1)
        assert group.breakers["0"].state is state

    @pytest.mark.parametrize(
        ("predicate", "error"),
        [(raising(RuntimeError()), "RuntimeError"), (lambda _: coroutine(), "TypeError")],
        ids=["raises", "returns a coroutine"],
    )
    def test_broken_predicate(
        self,
        predicate: Callable[[Exception], bool],
        error: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A predicate that raises or returns a coroutine is logged, and the next one is tried."""
        config = FallbackConfig(fallback_on=predicate)
        group = FallbackGroup[Callable[..., str]](refuse, "0", config)
        group.add_fallback("1", lambda: "backup")

        assert group.execute(lambda provider: provider()) == "backup"
        gc.collect()  # a coroutine that was not closed would cause a warning here
        assert f"fallback_on raised {error}" in caplog.text

    def test_broken_type(self, caplog: pytest.LogCaptureFixture) -> None:
        """If `isinstance` raises for a type, that is logged, and the original exception counts."""

        class Broken(type):
            def __instancecheck__(cls, instance: object) -> bool:
                raise RuntimeError

        class BrokenError(Exception, metaclass=Broken):
            pass

        recorder = Recorder(breaker={"failure_on": BrokenError})
        group = FallbackGroup[Callable[..., str]](refuse, "0", recorder.config)
        group.add_fallback("1", lambda: "backup")

        assert group.execute(lambda provider: provider()) == "backup"
        assert group.breakers["0"].state is State.OPEN
        assert "failure_on raised RuntimeError" in caplog.text


KINDS: dict[str, Callable[[Any, FallbackConfig], object]] = {
    "execute": lambda error, config: FallbackGroup("p", "0", config).execute(raising(error)),
    "stream, at the call": lambda error, config: FallbackGroup("p", "0", config).stream(
        raising(error)
    ),
    "stream, at the first item": lambda error, config: list(
        FallbackGroup("p", "0", config).stream(lazily(error), lazy=True)
    ),
    "stream, later": lambda error, config: list(
        FallbackGroup("p", "0", config).stream(lazily(error, "item"))
    ),
    "session, at the start": lambda error, config: STTFallback(
        Recogniser(raising(error)), "0", config
    ).start_stream(stt.StreamConfig()),
    "session, later": lambda error, config: (
        STTFallback(FakeSTT(FakeSession(sending=[raising(error)])), "0", config)
        .start_stream(stt.StreamConfig())
        .send_audio(b"")
    ),
    "text": lambda error, config: list(
        TTSFallback(FakeTTS(), "0", config).synthesize_stream(lazily(error)(None), VOICE)
    ),
}


each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def lazily(error: BaseException, *items: str) -> Callable[[object], Iterator[str]]:
    """Return a function that returns a stream that raises, perhaps after an item."""

    def stream(_: object) -> Iterator[str]:
        yield from items
        raise error

    return stream


class TestInterruptOn:
    """A type in `interrupt_on` is raised to the caller at once, and never counts."""

    @each_kind
    @each_limit
    @pytest.mark.parametrize("error", [TimeUpError(), PanicError(), KilledError()])
    def test_everywhere(
        self,
        make: Callable[[BaseException, FallbackConfig], object],
        error: BaseException,
        limit: float | None,
    ) -> None:
        """Calls, streams, sessions and texts that it interrupts are cancelled."""
        recorder = Recorder(
            interrupt_on=(TimeUpError, PanicError, KilledError),
            fallback_on=(Exception, PanicError),
            attempt_timeout=limit,
            breaker={"failure_on": (Exception, PanicError)},
        )

        with pytest.raises(type(error)) as caught:
            make(error, recorder.config)

        assert caught.value is error
        assert recorder.outcomes() == [("0", Outcome.CANCELLED)]

    def test_the_next_provider_is_not_tried(self) -> None:
        """After an interruption no other provider is tried."""
        recorder = Recorder(interrupt_on=(TimeUpError,))
        group = LLMFallback(FakeLLM(TimeUpError()), "0", recorder.config)
        backup = FakeLLM("never")
        group.add_fallback("1", backup)

        with pytest.raises(TimeUpError):
            group.complete(REQUEST)

        assert backup.requests == []
        assert group.breakers["0"].state is State.CLOSED

    @pytest.mark.parametrize(
        "hook", ["fallback_on", "failure_on", "retry_after", "on_state_change"]
    )
    def test_in_a_hook(self, hook: str, caplog: pytest.LogCaptureFixture) -> None:
        """An interruption in a hook is raised, and neither logged nor counted."""

        def strike(_: object) -> NoReturn:
            raise TimeUpError

        if hook == "fallback_on":
            recorder = Recorder(interrupt_on=(TimeUpError,), fallback_on=strike)
        else:
            recorder = Recorder(interrupt_on=(TimeUpError,), breaker={hook: strike})
        group = FallbackGroup("0", "0", recorder.config)
        group.add_fallback("1", "1")
        called: list[str] = []

        def refuse(provider: str) -> NoReturn:
            called.append(provider)
            raise ConnectionError

        with pytest.raises(TimeUpError):
            group.execute(refuse)

        assert called == ["0"]
        assert "TimeUpError" not in caplog.text
        assert (group.breakers["0"].state is State.OPEN) == (
            hook in {"fallback_on", "on_state_change"}
        )


class TestBaseExceptions:
    """An exception outside `Exception` counts and fails over only if its type is named."""

    def test_named_in_a_session(self) -> None:
        """A session whose transcripts raise such a type has failed, also if it is closed later."""
        recorder = Recorder(breaker={"failure_on": PanicError})
        provider = FakeSTT(FakeSession("one", raising(PanicError())))
        session = STTFallback(provider, "0", recorder.config).start_stream(stt.StreamConfig())

        with pytest.raises(PanicError):
            list(session.finals())
        session.close()

        assert recorder.outcomes() == [("0", Outcome.FAILED)]

    @each_limit
    def test_named(self, limit: float | None) -> None:
        """A type that `failure_on` and `fallback_on` name is a failure like any other."""
        panic = PanicError("index out of range")
        recorder = Recorder(
            fallback_on=(Exception, PanicError),
            attempt_timeout=limit,
            breaker={"failure_on": PanicError},
        )
        group = FallbackGroup[Callable[..., str]](raising(panic), "0", recorder.config)
        group.add_fallback("1", lambda: "backup")

        assert group.execute(lambda provider: provider()) == "backup"
        with group.stream(lambda provider: [provider()]) as stream:
            assert list(stream) == ["backup"]

        assert recorder.outcomes()[:2] == [("0", Outcome.FAILED), ("1", Outcome.SUCCEEDED)]
        assert group.breakers["0"].state is State.OPEN

    def test_not_named(self) -> None:
        """For an exception outside `Exception` no predicate is called; the caller gets it."""
        called: list[object] = []
        recorder = Recorder(
            fallback_on=called.append,
            breaker={"failure_on": called.append},
        )
        group = FallbackGroup("p", "0", recorder.config)

        with pytest.raises(PanicError):
            group.execute(raising(PanicError()))

        assert called == []
        assert recorder.outcomes() == [("0", Outcome.CANCELLED)]

    def test_named_for_failover_only(self) -> None:
        """A type that only `fallback_on` names fails over, and does not count."""
        panic = PanicError()
        recorder = Recorder(fallback_on=PanicError)
        group = FallbackGroup("p", "0", recorder.config)

        with pytest.raises(AllFailedError) as caught:
            group.execute(raising(panic))

        assert caught.value.failures["0"] is caught.value.__cause__ is panic
        assert recorder.outcomes() == [("0", Outcome.IGNORED)]
        assert group.breakers["0"].state is State.CLOSED

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
    def test_interruptions(self, error: BaseException) -> None:
        """An interruption of the program never fails over and never counts."""
        recorder = Recorder()
        group = FallbackGroup("p", "0", recorder.config)
        group.add_fallback("1", "1")

        with pytest.raises(type(error)):
            group.execute(raising(error))

        assert recorder.outcomes() == [("0", Outcome.CANCELLED)]
        assert recorder.attempts[0].error is error
        assert group.breakers["0"].state is State.CLOSED


class TestUnsupported:
    """An unsupported request is not a failure: it never counts, and another provider is tried."""

    @pytest.mark.parametrize(
        "error",
        [NotImplementedError(), UnsupportedRequestError("no pictures"), OwnRefusalError()],
        ids=["builtin", "ours", "subclass"],
    )
    @each_kind
    def test_never_counts(
        self, error: Exception, make: Callable[[BaseException, FallbackConfig], object]
    ) -> None:
        """Neither `failure_on` nor `fallback_on` is called for it."""
        called: list[object] = []
        recorder = Recorder(
            fallback_on=called.append,
            breaker={"failure_on": called.append},
        )

        with pytest.raises((AllFailedError, type(error))):
            make(error, recorder.config)

        assert called == []
        assert {outcome for _, outcome in recorder.outcomes()} <= {
            Outcome.IGNORED,
            Outcome.CANCELLED,  # the error of a text
        }

    def test_the_next_provider_is_tried(self) -> None:
        """The next provider is tried, whatever `fallback_on` is."""
        recorder = Recorder(fallback_on=())
        group = LLMFallback(FakeLLM(UnsupportedRequestError("no pictures")), "0", recorder.config)
        group.add_fallback("1", FakeLLM("backup"))

        assert group.complete(REQUEST).content == "backup"
        assert group.breakers["0"].state is State.CLOSED

    def test_inside_a_group(self) -> None:
        """A group none of whose providers supports a request does not count."""
        recorder = Recorder()
        inner = FallbackGroup(FakeLLM(UnsupportedRequestError("no pictures")), "first")
        inner.add_fallback("open", FakeLLM())
        inner.breakers["open"].isolate()
        outer = FallbackGroup(inner, "0", recorder.config)

        with pytest.raises(AllFailedError):
            outer.execute(lambda group: group.execute(lambda model: model.complete(REQUEST)))

        assert recorder.outcomes() == [("0", Outcome.IGNORED)]

    def test_a_method_that_is_not_there(self) -> None:
        """A provider that lacks an optional method of its contract does not support it."""

        class Voice:
            def synthesize_stream(self, *_: object) -> Iterator[bytes]:
                yield b"audio"

        provider: Any = Voice()
        recorder = Recorder()
        group = TTSFallback(provider, "0", recorder.config)
        group.add_fallback("1", FakeTTS(voices=[VOICE]))

        for _ in range(5):
            assert group.list_voices() == (VOICE,)
        assert list(group.synthesize_stream("Hello", VOICE)) == [b"audio"]

        assert ("0", Outcome.FAILED) not in recorder.outcomes()

    @pytest.mark.parametrize("prepare", [lambda error: error, copy.copy])
    def test_a_method_that_no_inner_provider_has(
        self, prepare: Callable[[Exception], Exception]
    ) -> None:
        """A group whose providers lack an optional method does not support it, either."""

        class Voice:
            def synthesize_stream(self, *_: object) -> Iterator[bytes]:
                yield b"audio"

        class Prepared(Voice):
            def list_voices(self) -> object:
                try:
                    return inner.list_voices()
                except AllFailedError as error:
                    raise prepare(error) from None

        provider: Any = Voice()
        wrapper: Any = Prepared()
        recorder = Recorder()
        inner = TTSFallback(provider, "inner")
        outer = TTSFallback(wrapper, "0", recorder.config)

        with pytest.raises(AllFailedError) as caught:
            outer.list_voices()

        assert recorder.outcomes() == [("0", Outcome.IGNORED)]
        assert caught.value.retry_after is None

    @pytest.mark.parametrize("name", ["complete", "client", "session"])
    def test_another_attribute(self, name: str) -> None:
        """An attribute of another object, or another attribute, is a failure of the provider."""
        recorder = Recorder(fallback_on=())

        def use_client() -> NoReturn:
            raise AttributeError(name=name, obj="client" if name == "complete" else model)

        model = FakeLLM([use_client])
        group = LLMFallback(model, "0", recorder.config)

        with pytest.raises(AttributeError):
            group.complete(REQUEST)

        assert recorder.outcomes() == [("0", Outcome.FAILED)]
        assert group.breakers["0"].state is State.OPEN


class Odd:
    """A provider of all kinds whose methods return a wrong result."""

    def __init__(self, result: Callable[[], Any]) -> None:
        """Return what a function returns."""
        for method in CALLS:
            setattr(self, method, lambda *_: result())


def start(adapter: STTFallback) -> Sequence[object]:
    """Start a session, and read it."""
    session = adapter.start_stream(stt.StreamConfig())
    words = list(session.finals())
    session.close()
    return words


CALLS: dict[str, tuple[type, Any, Callable[[Any], object]]] = {
    "complete": (LLMFallback, FakeLLM("a"), lambda a: a.complete(REQUEST)),
    "stream_completion": (
        LLMFallback,
        FakeLLM("a"),
        lambda a: list(a.stream_completion(REQUEST)),
    ),
    "count_tokens": (LLMFallback, FakeLLM("a"), lambda a: str(a.count_tokens([]))),
    "start_stream": (STTFallback, FakeSTT(FakeSession("a")), start),
    "synthesize_stream": (
        TTSFallback,
        FakeTTS(),
        lambda a: list(a.synthesize_stream("a", VOICE)),
    ),
    "list_voices": (TTSFallback, FakeTTS(voices=[VOICE]), lambda a: a.list_voices()),
    "clone_voice": (TTSFallback, FakeTTS(), lambda a: a.clone_voice([b"a"])),
}


class TestWrongResults:
    """A result that violates the contract is a failure of that attempt."""

    @each_limit
    @pytest.mark.parametrize("method", CALLS)
    @pytest.mark.parametrize(
        ("result", "problem"),
        [
            (coroutine, "must be synchronous, but returned a coroutine"),
            (lambda: None, "returned None"),
            (generate, "returned an object of type async_generator"),
        ],
        ids=["coroutine", "None", "generator"],
    )
    def test_adapters(
        self, method: str, result: Callable[[], Any], problem: str, limit: float | None
    ) -> None:
        """The next provider is tried, and the error names provider and method."""
        adapter, backup, use = CALLS[method]
        recorder = Recorder(attempt_timeout=limit)
        group = adapter(Odd(result), "odd", recorder.config)
        group.add_fallback("backup", backup)

        assert use(group)

        assert recorder.outcomes()[0] == ("odd", Outcome.FAILED)
        assert str(recorder.attempts[0].error) == f"{method}() of provider 'odd' {problem}"
        assert isinstance(recorder.attempts[0].error, TypeError)

    @pytest.mark.parametrize("method", ["complete", "clone_voice"])
    @pytest.mark.parametrize("result", ["text", b"bytes", 1, {}, [], (), (each for each in "")])
    def test_built_in_types(self, method: str, result: object) -> None:
        """An object of a built-in type is not a value of the contract."""
        adapter, backup, use = CALLS[method]
        recorder = Recorder()
        group = adapter(Odd(lambda: result), "odd", recorder.config)
        group.add_fallback("backup", backup)

        assert use(group)

        problem = f"{method}() of provider 'odd' returned an object of type {type(result).__name__}"
        assert str(recorder.attempts[0].error) == problem

    @pytest.mark.parametrize("listener", [None, bool], ids=["no listener", "listener"])
    def test_groups(self, listener: Callable[[Attempt], object] | None) -> None:
        """A coroutine function fails the attempt, with or without a listener."""
        recorder = Recorder(on_attempt=listener)
        group = FallbackGroup(coroutine, "0", recorder.config)
        group.add_fallback("1", coroutine)

        with pytest.raises(AllFailedError) as caught:
            _ = group.execute(lambda provider: provider())
        gc.collect()  # a coroutine that was not closed would cause a warning here

        problem = "must be synchronous, but returned a coroutine"
        assert [repr(error) for error in caught.value.failures.values()] == [
            repr(TypeError(f"execute() of provider {name!r} {problem}")) for name in "01"
        ]
        assert group.breakers["0"].state is State.OPEN

    def test_transcripts(self) -> None:
        """A session whose transcripts cannot be iterated over has failed."""

        class Silent(Handle):
            finals: Any = lambda _: None

        recorder = Recorder()
        group = STTFallback(Recogniser(Silent), "0", recorder.config)
        session = group.start_stream(stt.StreamConfig())

        with pytest.raises(TypeError, match=r"finals\(\) of provider '0' returned None"):
            session.finals()

        assert recorder.outcomes() == [("0", Outcome.FAILED)]


class TestNoThread:
    """A lack of threads is not a failure of a provider."""

    @each_kind
    def test_it_is_raised(
        self,
        make: Callable[[Any, FallbackConfig], object],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is raised to the caller, the call is cancelled, and nothing is logged."""
        monkeypatch.setattr(threading.Thread, "start", raising(RuntimeError("no thread")))
        caplog.set_level(logging.INFO, "resilience")
        recorder = Recorder(attempt_timeout=LIMIT)

        with pytest.raises(RuntimeError, match="no thread"):
            make(ConnectionError(), recorder.config)

        assert recorder.outcomes() == [("0", Outcome.CANCELLED)]
        assert caplog.records == []

    def test_the_next_provider_is_not_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No other provider is tried, because it would need a thread too."""
        monkeypatch.setattr(threading.Thread, "start", raising(RuntimeError("no thread")))
        group = FallbackGroup("a", "a", FallbackConfig(attempt_timeout=LIMIT))
        group.add_fallback("b", "b", attempt_timeout=0)

        with pytest.raises(RuntimeError, match="no thread"):
            group.execute(str)


class TestRecording:
    """An exception that is raised while a success is recorded is not a failure."""

    @pytest.mark.parametrize("reports", [True, False])
    @pytest.mark.parametrize("limit", [None, LIMIT])
    def test_the_next_provider_is_not_called(self, limit: float | None, *, reports: bool) -> None:
        """An interruption of a listener is raised, and no other provider is called."""

        def listen(change: StateChange) -> None:
            if change.new is State.CLOSED:
                raise KeyboardInterrupt

        recorder = Recorder(attempt_timeout=limit, breaker={"on_state_change": listen})
        config = recorder.config if reports else replace(recorder.config, on_attempt=None)
        group = FallbackGroup("0", "0", config)
        group.add_fallback("1", "1")
        group.breakers["0"].isolate(0)
        called: list[str] = []

        with pytest.raises(KeyboardInterrupt):
            group.execute(called.append)

        assert called == ["0"]
        assert group.breakers["0"].state is State.CLOSED
