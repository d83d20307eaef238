"""How an attempt that raised is judged: recorded or not, and whether another provider is tried."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import pytest
from typing_extensions import override

from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    State,
    StateChange,
    STTFallback,
    TTSFallback,
    UnsupportedRequestError,
    llm,
    stt,
    tts,
)
from resilience.testing import FakeLLM, FakeSession, FakeSTT, FakeTTS, ManualClock

REQUEST = llm.CompletionRequest(messages=())
VOICE = tts.VoiceProfile(id="any")
LIMIT = 30.0


class TimeUpError(Exception):
    """The time limit of a task queue."""


class PanicError(BaseException):
    """What an extension module raises when it panics."""


def raising(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises an error."""

    def fail(*_: object) -> NoReturn:
        raise error

    return fail


class Reported:
    """Settings for a group with breakers that open at once, and what is reported."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401
        """Take further settings of the group."""
        self.clock = ManualClock()
        self.attempts: list[Attempt] = []
        self.config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(
                max_failures=1, half_open_max=1, clock=self.clock, **settings.pop("breaker", {})
            ),
            on_attempt=self.attempts.append,
            **settings,
        )

    def outcomes(self) -> list[tuple[str, Outcome]]:
        """Return who was tried, and with which outcome."""
        return [(attempt.provider, attempt.outcome) for attempt in self.attempts]


class TestGroupsInGroups:
    """A group may be the provider of another group."""

    def test_one_hiccup(self) -> None:
        """Skips inside count nowhere outside: the provider is tried again when its time is up."""
        clock, up = ManualClock(), False
        breaker = CircuitBreakerConfig(max_failures=1, clock=clock)

        def vendor(_: object) -> str:
            if not up:
                raise ConnectionError
            return "served"

        inner = FallbackGroup("vendor", "vendor", FallbackConfig(circuit_breaker=breaker))
        outer = FallbackGroup(
            inner,
            "inner",
            FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=5, clock=clock)),
        )
        with pytest.raises(AllFailedError):
            outer.execute(lambda group: group.execute(vendor))
        up = True

        waits: list[float | None] = []
        for _ in range(4):
            clock.advance(7)
            with pytest.raises(AllFailedError) as caught:
                outer.execute(lambda group: group.execute(vendor))
            waits.append(caught.value.retry_after)
        clock.advance(2)

        assert waits == [23, 16, 9, 2]
        assert outer.breakers["inner"].state is State.CLOSED
        assert outer.execute(lambda group: group.execute(vendor)) == "served"

    @pytest.mark.parametrize("depth", [1, 2])
    def test_nobody_was_tried(self, depth: int) -> None:
        """A group all of whose providers were skipped is itself skipped, however deep it is."""
        reported = Reported()
        group: Any = FallbackGroup("vendor", "0")
        group.breakers["0"].isolate()
        for _ in range(depth):
            group = FallbackGroup(group, "0", reported.config)
        group.add_fallback("1", None)

        answer = group.execute(call)

        assert answer == "backup"
        assert reported.outcomes()[-2:] == [("0", Outcome.SKIPPED), ("1", Outcome.SUCCEEDED)]
        assert group.breakers["0"].state is State.CLOSED

    def test_a_probe_that_is_skipped_inside(self) -> None:
        """A probe of a group that skips all its providers releases its slot."""
        reported = Reported()
        inner: Any = FallbackGroup("vendor", "vendor")
        outer = FallbackGroup(inner, "inner", reported.config)
        with pytest.raises(AllFailedError):
            outer.execute(raising(ConnectionError()))
        reported.clock.advance(30)
        inner.breakers["vendor"].isolate()

        for _ in range(3):
            with pytest.raises(AllFailedError):
                outer.execute(call)
        inner.breakers["vendor"].reset()

        before = outer.breakers["inner"].state
        assert outer.execute(call) == "vendor"
        assert (before, outer.breakers["inner"].state) == (State.HALF_OPEN, State.CLOSED)

    def test_somebody_was_tried(self) -> None:
        """A group one of whose providers failed has failed."""
        reported = Reported()
        inner = FallbackGroup("vendor", "vendor")
        inner.add_fallback("open", "vendor")
        inner.breakers["open"].isolate()
        outer = FallbackGroup(inner, "inner", reported.config)

        with pytest.raises(AllFailedError):
            outer.execute(lambda group: group.execute(raising(ConnectionError())))

        assert reported.outcomes() == [("inner", Outcome.FAILED)]
        assert outer.breakers["inner"].state is State.OPEN


def call(provider: Any) -> str:  # noqa: ANN401
    """Call a provider, which may be a group."""
    if isinstance(provider, FallbackGroup):
        return provider.execute(call)
    return provider or "backup"


class TestRetryAfter:
    """`AllFailedError.retry_after` is the shortest wait after which a call has a chance."""

    def test_a_provider_that_is_still_closed(self) -> None:
        """A provider that failed just now, and may be tried again at once, makes it 0."""
        group = FallbackGroup("a", "a")
        group.add_fallback("b", "b")
        group.breakers["b"].isolate()

        with pytest.raises(AllFailedError) as caught:
            group.execute(raising(ConnectionError()))

        assert caught.value.retry_after == 0

    def test_a_provider_that_has_just_opened(self) -> None:
        """A provider whose failure has opened its breaker makes it that breaker's wait."""
        reported = Reported(breaker={"reset_timeout": 7})
        group = FallbackGroup("a", "a", reported.config)

        with pytest.raises(AllFailedError) as caught:
            group.execute(raising(ConnectionError()))

        assert caught.value.retry_after == 7

    @pytest.mark.parametrize("error", [UnsupportedRequestError(), NotImplementedError()])
    def test_a_provider_that_does_not_support_the_request(self, error: Exception) -> None:
        """Waiting does not help with a provider that does not support the request."""
        reported = Reported(breaker={"reset_timeout": 7})
        group = FallbackGroup("a", "a", reported.config)

        with pytest.raises(AllFailedError) as alone:
            group.execute(raising(error))
        group.add_fallback("b", "b")
        with pytest.raises(AllFailedError) as caught:
            group.execute(lambda provider: raising(error if provider == "a" else OSError())(""))

        assert alone.value.retry_after is None
        assert caught.value.retry_after == 7

    @pytest.mark.parametrize("isolated", [False, True])
    def test_a_group_that_has_just_opened(self, *, isolated: bool) -> None:
        """A group inside a group has a chance when both breakers admit a call."""
        reported = Reported(breaker={"reset_timeout": 7})
        inner = FallbackGroup("a", "a", reported.config)
        outer = FallbackGroup(inner, "inner")

        def serve(group: FallbackGroup[str]) -> str:
            try:
                return str(group.execute(raising(OSError())))
            finally:
                if isolated:
                    outer.breakers["inner"].isolate()

        with pytest.raises(AllFailedError) as caught:
            outer.execute(serve)

        assert caught.value.retry_after == (None if isolated else 7)

    def test_nobody_can_say(self) -> None:
        """If all breakers are isolated, it is None."""
        group = FallbackGroup("a", "a")
        group.breakers["a"].isolate()

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after is None


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
        Deaf(error), "0", config
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


class Deaf(stt.Provider):
    """A recogniser that does not start."""

    def __init__(self, error: BaseException) -> None:
        """Raise an error."""
        self._error = error

    @override
    def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
        raise self._error


class TestInterruptOn:
    """What `interrupt_on` names is raised to the caller at once, and never counts."""

    @each_kind
    @pytest.mark.parametrize("limit", [None, LIMIT])
    @pytest.mark.parametrize("error", [TimeUpError(), PanicError()], ids=["error", "panic"])
    def test_everywhere(
        self,
        make: Callable[[BaseException, FallbackConfig], object],
        error: BaseException,
        limit: float | None,
    ) -> None:
        """In calls, streams, sessions and texts."""
        reported = Reported(
            interrupt_on=(TimeUpError, PanicError),
            fallback_on=(Exception, PanicError),
            attempt_timeout=limit,
            breaker={"failure_on": (Exception, PanicError)},
        )

        with pytest.raises(type(error)) as caught:
            make(error, reported.config)

        assert caught.value is error
        assert reported.outcomes() == [("0", Outcome.CANCELLED)]

    def test_the_next_provider_is_not_tried(self) -> None:
        """A call that was interrupted goes no further."""
        reported = Reported(interrupt_on=(TimeUpError,))
        group = LLMFallback(FakeLLM(TimeUpError()), "0", reported.config)
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
        """An interruption that strikes in a hook is raised, and neither logged nor counted."""

        def strike(_: object) -> NoReturn:
            raise TimeUpError

        if hook == "fallback_on":
            reported = Reported(interrupt_on=(TimeUpError,), fallback_on=strike)
        else:
            reported = Reported(interrupt_on=(TimeUpError,), breaker={hook: strike})
        group = FallbackGroup("0", "0", reported.config)
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

    @pytest.mark.parametrize("value", [TimeUpError, [TimeUpError], (3,), (str,)], ids=repr)
    def test_what_it_may_be(self, value: Any) -> None:  # noqa: ANN401
        """A tuple of exception types, and nothing else."""
        with pytest.raises(TypeError, match="interrupt_on must be"):
            FallbackConfig(interrupt_on=value)


class TestBaseExceptions:
    """What is no `Exception` counts and fails over only if it is named."""

    def test_named_in_a_session(self) -> None:
        """A session whose transcripts raise it has failed, also if it is closed afterwards."""
        reported = Reported(breaker={"failure_on": PanicError})
        provider = FakeSTT(FakeSession("one", raising(PanicError())))
        session = STTFallback(provider, "0", reported.config).start_stream(stt.StreamConfig())

        with pytest.raises(PanicError):
            list(session.finals())
        session.close()

        assert reported.outcomes() == [("0", Outcome.FAILED)]

    @pytest.mark.parametrize("limit", [None, LIMIT])
    def test_named(self, limit: float | None) -> None:
        """A type that `failure_on` and `fallback_on` name is a failure like any other."""
        panic = PanicError("index out of range")
        reported = Reported(
            fallback_on=(Exception, PanicError),
            attempt_timeout=limit,
            breaker={"failure_on": PanicError},
        )
        group = FallbackGroup(raising(panic), "0", reported.config)
        group.add_fallback("1", lambda: "backup")

        assert group.execute(lambda provider: provider()) == "backup"
        with group.stream(lambda provider: [provider()]) as stream:
            assert list(stream) == ["backup"]

        assert reported.outcomes()[:2] == [("0", Outcome.FAILED), ("1", Outcome.SUCCEEDED)]
        assert group.breakers["0"].state is State.OPEN

    def test_not_named(self) -> None:
        """A predicate is not asked about what is no `Exception`."""
        asked: list[object] = []
        reported = Reported(
            fallback_on=asked.append,
            breaker={"failure_on": asked.append},
        )
        group = FallbackGroup("p", "0", reported.config)

        with pytest.raises(PanicError):
            group.execute(raising(PanicError()))

        assert asked == []
        assert reported.outcomes() == [("0", Outcome.CANCELLED)]


class TestUnsupported:
    """A healthy provider that cannot serve a request is passed over, and never blamed."""

    @pytest.mark.parametrize(
        "error",
        [NotImplementedError(), UnsupportedRequestError("no eyes")],
        ids=["builtin", "ours"],
    )
    @each_kind
    def test_never_counts(
        self, error: Exception, make: Callable[[BaseException, FallbackConfig], object]
    ) -> None:
        """It is neither put to `failure_on` nor to `fallback_on`."""
        asked: list[object] = []
        reported = Reported(
            fallback_on=asked.append,
            breaker={"failure_on": asked.append},
        )

        with pytest.raises((AllFailedError, type(error))):
            make(error, reported.config)

        assert asked == []
        assert {outcome for _, outcome in reported.outcomes()} <= {
            Outcome.IGNORED,
            Outcome.CANCELLED,  # the error of a text
        }

    def test_the_next_provider_is_tried(self) -> None:
        """Whatever `fallback_on` says."""
        reported = Reported(fallback_on=())
        group = LLMFallback(FakeLLM(UnsupportedRequestError("no eyes")), "0", reported.config)
        group.add_fallback("1", FakeLLM("I see."))

        assert group.complete(REQUEST).content == "I see."
        assert group.breakers["0"].state is State.CLOSED

    def test_inside_a_group(self) -> None:
        """A group none of whose providers supports a request is not blamed, either."""
        reported = Reported()
        inner = FallbackGroup(FakeLLM(UnsupportedRequestError("no eyes")), "blind")
        inner.add_fallback("open", FakeLLM())
        inner.breakers["open"].isolate()
        outer = FallbackGroup(inner, "0", reported.config)

        with pytest.raises(AllFailedError):
            outer.execute(lambda group: group.execute(lambda model: model.complete(REQUEST)))

        assert reported.outcomes() == [("0", Outcome.IGNORED)]

    def test_a_method_that_is_not_there(self) -> None:
        """A provider without an optional method of its contract does not support it."""

        class Voice:
            def synthesize_stream(self, *_: object) -> Iterator[bytes]:
                yield b"audio"

        provider: Any = Voice()
        reported = Reported()
        group = TTSFallback(provider, "0", reported.config)
        group.add_fallback("1", FakeTTS(voices=[VOICE]))

        for _ in range(5):
            assert group.list_voices() == (VOICE,)
        assert list(group.synthesize_stream("Hello", VOICE)) == [b"audio"]

        assert ("0", Outcome.FAILED) not in reported.outcomes()

    def test_an_attribute_of_its_own(self) -> None:
        """A provider that fails with another `AttributeError` has failed."""
        reported = Reported()
        group = LLMFallback(FakeLLM(AttributeError("x")), "0", reported.config)

        with pytest.raises(AllFailedError):
            group.complete(REQUEST)

        assert reported.outcomes() == [("0", Outcome.FAILED)]


async def coroutine(*_: object) -> str:
    """Do nothing, later."""
    return "never"


async def generate(*_: object) -> Any:  # noqa: ANN401
    """Do nothing, later."""
    yield "never"


class Odd:
    """A provider of all kinds whose methods return what they should not."""

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
    """A result that is not what the contract says is a failure of that attempt."""

    @pytest.mark.parametrize("limit", [None, LIMIT])
    @pytest.mark.parametrize("method", CALLS)
    @pytest.mark.parametrize(
        ("result", "told"),
        [
            (coroutine, "must be synchronous, but returned a coroutine"),
            (lambda: None, "returned None"),
            (generate, "returned an object of type async_generator"),
        ],
        ids=["coroutine", "None", "generator"],
    )
    def test_the_error_names_provider_and_method(
        self, method: str, result: Callable[[], Any], told: str, limit: float | None
    ) -> None:
        """The next provider is tried, and the error names whom to correct."""
        adapter, backup, use = CALLS[method]
        reported = Reported(attempt_timeout=limit)
        group = adapter(Odd(result), "odd", reported.config)
        group.add_fallback("backup", backup)

        assert use(group)

        assert reported.outcomes()[0] == ("odd", Outcome.FAILED)
        assert str(reported.attempts[0].error) == f"{method}() of provider 'odd' {told}"
        assert isinstance(reported.attempts[0].error, TypeError)

    def test_transcripts(self) -> None:
        """A session whose transcripts cannot be iterated over has failed."""

        class Deaf(Mute):
            def finals(self) -> None:
                return None

        reported = Reported()
        provider: Any = Starts(Deaf())
        session = STTFallback(provider, "0", reported.config).start_stream(stt.StreamConfig())

        with pytest.raises(TypeError, match=r"finals\(\) of provider '0' returned None"):
            session.finals()

        assert reported.outcomes() == [("0", Outcome.FAILED)]


class Mute:
    """A session with all methods."""

    def send_audio(self, audio: bytes) -> None:
        """Accept audio."""

    def partials(self) -> Iterator[stt.Transcript]:
        """Hear nothing."""
        return iter(())

    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        """Accept keywords."""

    def close(self) -> None:
        """Close."""


class Starts:
    """A recogniser with one session."""

    def __init__(self, session: object) -> None:
        """Return a session."""
        self._session = session

    def start_stream(self, _config: stt.StreamConfig) -> object:
        """Return the session."""
        return self._session


class TestNoThread:
    """A lack of threads is nobody's failure."""

    @each_kind
    def test_it_is_raised(
        self,
        make: Callable[[Any, FallbackConfig], object],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The caller is told, no provider is blamed, and none follows."""

        def refuse(_thread: object) -> NoReturn:
            msg = "can't start new thread"
            raise RuntimeError(msg)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        caplog.set_level(logging.INFO, "resilience")
        reported = Reported(attempt_timeout=LIMIT)

        with pytest.raises(RuntimeError, match="start new thread"):
            make(ConnectionError(), reported.config)

        assert reported.outcomes() == [("0", Outcome.CANCELLED)]
        assert caplog.records == []

    def test_the_next_provider_is_not_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What this process lacks, another provider cannot give."""
        monkeypatch.setattr(threading.Thread, "start", raising(RuntimeError("no thread")))
        group = FallbackGroup("a", "a", FallbackConfig(attempt_timeout=LIMIT))
        group.add_fallback("b", "b", attempt_timeout=0)

        with pytest.raises(RuntimeError, match="no thread"):
            group.execute(str)


class TestRecording:
    """What is raised while a success is recorded is not a failure of the provider."""

    @pytest.mark.parametrize("reports", [True, False])
    @pytest.mark.parametrize("limit", [None, LIMIT])
    def test_the_next_provider_is_not_called(self, limit: float | None, *, reports: bool) -> None:
        """An interruption of a listener reaches the caller, and nobody else is called."""

        def listen(change: StateChange) -> None:
            if change.new is State.CLOSED:
                raise KeyboardInterrupt

        reported = Reported(attempt_timeout=limit, breaker={"on_state_change": listen})
        config = reported.config if reports else replace(reported.config, on_attempt=None)
        group = FallbackGroup("0", "0", config)
        group.add_fallback("1", "1")
        group.breakers["0"].isolate(0)
        called: list[str] = []

        with pytest.raises(KeyboardInterrupt):
            group.execute(called.append)

        assert called == ["0"]
        assert group.breakers["0"].state is State.CLOSED


class TestPredicates:
    """A predicate that does not answer is treated as if it had returned True."""

    def test_a_coroutine_function_in_disguise(self, caplog: pytest.LogCaptureFixture) -> None:
        """One that returns a coroutine is logged, and the coroutine is closed."""
        reported = Reported(fallback_on=lambda _: coroutine())
        group = FallbackGroup(raising(ConnectionError()), "0", reported.config)
        group.add_fallback("1", lambda: "backup")

        assert group.execute(lambda provider: provider()) == "backup"

        errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert [message.split(" at ")[0] for message in errors] == ["fallback_on raised TypeError"]
