"""A provider that hangs delays a call by one `attempt_timeout`, in each way to call it."""

import signal
import sys
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from types import FrameType
from typing import Any, NoReturn, TypeAlias, TypeVar

import pytest
from typing_extensions import override

from builds import Freed
from helpers import (
    LIMIT,
    REQUEST,
    TIMEOUT,
    VOICE,
    Handle,
    Hang,
    Model,
    Recogniser,
    Recorder,
    Synthesiser,
    WatchedClock,
    call,
    grouped,
    in_threads,
    refuse,
    spoken,
)
from resilience import (
    AllFailedError,
    AttemptTimeoutError,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    ResilienceError,
    State,
    STTFallback,
    TTSFallback,
    llm,
    stt,
    tts,
)
from resilience.testing import FakeLLM, FakeSession, FakeSTT, FakeTTS, ReadText, TTSItem

SHORT = 0.02
"""Seconds until a provider that hangs is abandoned."""
FAIR = 0.1
"""The same, for a test in which a provider also has to answer in time."""
TRIES = 50
"""How often it may be late, because the machine is busy."""

Step: TypeAlias = Sequence[Callable[[], object] | Exception | str]
"""The actions, exceptions and answers of a provider in one call."""

R = TypeVar("R")


# ---- the ways to call providers


@dataclass(frozen=True)
class Fake:
    """A provider that follows a script, its calls, and its streams or sessions."""

    provider: Any
    calls: Sequence[object]
    closable: Sequence[Any]


def _model(steps: Sequence[Step], *, lazy: bool = True) -> Fake:
    model = FakeLLM(*steps, lazy=lazy)
    return Fake(model, model.requests, model.streams)


def _eager_model(steps: Sequence[Step]) -> Fake:
    return _model(steps, lazy=False)


def _recogniser(steps: Sequence[Step]) -> Fake:
    script = [[FakeSession(i) if isinstance(i, str) else i for i in step] for step in steps]
    recogniser = FakeSTT(*script)
    sessions = [each for step in script for each in step if isinstance(each, FakeSession)]
    return Fake(recogniser, recogniser.configs, sessions)


def _synthesiser(steps: Sequence[Step]) -> Fake:
    script = [[i.encode() if isinstance(i, str) else i for i in step] for step in steps]
    synthesiser = FakeTTS(*script)
    return Fake(synthesiser, synthesiser.texts, synthesiser.streams)


def _joined(chunks: Iterable[llm.Chunk]) -> str:
    return "".join(chunk.content for chunk in chunks)


def _stream(group: FallbackGroup[FakeLLM], *, lazy: bool = False) -> str:
    return _joined(group.stream(lambda model: model.stream_completion(REQUEST), lazy=lazy))


def _listen(group: STTFallback) -> str:
    with group.start_stream(stt.StreamConfig()) as session:
        return "".join(transcript.text for transcript in session.finals())


@dataclass(frozen=True)
class Way:
    """A way to call providers: makes a provider from a script, and one whole call of a group."""

    fake: Callable[[Sequence[Step]], Fake]
    group: Any
    call: Callable[[Any], str]


WAYS = {
    "execute": Way(
        _model,
        FallbackGroup,
        lambda group: group.execute(lambda model: model.complete(REQUEST)).content,
    ),
    "stream": Way(_model, FallbackGroup, _stream),
    "stream, eager provider": Way(_eager_model, FallbackGroup, _stream),
    "lazy stream": Way(_model, FallbackGroup, lambda group: _stream(group, lazy=True)),
    "lazy stream, eager provider": Way(
        _eager_model, FallbackGroup, lambda group: _stream(group, lazy=True)
    ),
    "session": Way(_recogniser, STTFallback, _listen),
    "speech": Way(_synthesiser, TTSFallback, lambda group: spoken(group, iter(["Hello."]))),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
each_stream = pytest.mark.parametrize("way", list(WAYS.values())[1:], ids=list(WAYS)[1:])
EXECUTE = WAYS["execute"]


class Service:
    """A group of providers that follow scripts, called in one way."""

    def __init__(
        self,
        way: Way,
        *steps: Step,
        config: FallbackConfig | None = None,
        attempt_timeout: float | timedelta | None = None,
    ) -> None:
        """Make a group of one provider with the name "primary"."""
        self._way = way
        self.primary = way.fake(steps)
        self.group = way.group(
            self.primary.provider, "primary", config, attempt_timeout=attempt_timeout
        )

    def add(self, name: str, *steps: Step, attempt_timeout: float | timedelta | None = 0) -> Fake:
        """Add a provider, which has no time limit if none is given."""
        fake = self._way.fake(steps)
        self.group.add_fallback(name, fake.provider, attempt_timeout=attempt_timeout)
        return fake

    @property
    def state(self) -> State:
        """The state of the primary's breaker."""
        state: State = self.group.breakers["primary"].state
        return state

    def call(self) -> str:
        """Make one call, and return the whole answer."""
        return self._way.call(self.group)

    def closings(self) -> list[int]:
        """Return for each stream or session of the primary how many times it was closed."""
        return [each.closed for each in self.primary.closable]


def settings(attempt_timeout: float, max_failures: int = 5, **breaker: Any) -> Recorder:  # noqa: ANN401
    """Return settings of a group with a time limit, whose attempts are recorded."""
    breaker["max_failures"] = max_failures
    return Recorder(keep_errors=False, attempt_timeout=attempt_timeout, breaker=breaker)


# ---- time and threads


class Token:
    """An object whose deletion can be observed."""


TOKEN: ContextVar[Token] = ContextVar("TOKEN")


def tracked(call: Callable[[], R], released: Callable[[], object]) -> R:
    """Make a call, and call a function when nothing refers to its context any more."""

    def call_in_context() -> R:
        token = Token()
        weakref.finalize(token, released)
        TOKEN.set(token)
        return call()

    return copy_context().run(call_in_context)


class Interrupter:
    """An action of a script that raises `KeyboardInterrupt` in the main thread, by a signal."""

    def __init__(self) -> None:
        """Prepare the signal handler."""
        self._received = threading.Event()

    def __call__(self) -> None:
        """Send signals to the waiting main thread until it has received one."""
        main, received = threading.main_thread().ident, threading.Event()
        assert main is not None
        self._received = received
        while not received.is_set():
            # A thread that is about to wait for a lock receives only the next signal. A thread that
            # does something else may be running the tool that measures coverage.
            if sys._current_frames()[main].f_code.co_name == "_is_done_within":
                signal.pthread_kill(main, signal.SIGINT)
            received.wait(0.01)

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Raise at the first signal."""
        if not self._received.is_set():
            self._received.set()
            raise KeyboardInterrupt


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    """Return an action that interrupts the main thread."""
    action = Interrupter()
    handler = signal.signal(signal.SIGINT, action.handle)
    yield action
    signal.signal(signal.SIGINT, handler)


class TestTheNextProvider:
    """A provider that hangs is abandoned, and the next one is tried."""

    @each_way
    def test_it_is_tried_when_the_time_is_up(self, way: Way, hang: Hang) -> None:
        """While a provider hangs, the next one answers."""
        service = Service(way, [hang, "late"], attempt_timeout=SHORT)
        backup = service.add("backup", ["in time"])

        answer = service.call()

        assert not hang.over.is_set()
        assert answer == "in time"
        assert len(backup.calls) == 1

    @each_way
    def test_the_wait_is_the_sum_of_the_timeouts(self, way: Way, hang: Hang) -> None:
        """If all providers hang, the caller waits for the sum of their timeouts."""
        service = Service(way, [hang, "late"], attempt_timeout=SHORT)
        service.add("second", [hang, "late"], attempt_timeout=2 * SHORT)

        begin = monotonic()
        with pytest.raises(AllFailedError) as caught:
            service.call()
        took = monotonic() - begin

        assert not hang.over.is_set()
        assert 3 * SHORT <= took < TIMEOUT / 3
        errors = caught.value.failures.values()
        assert [type(error) for error in errors] == [AttemptTimeoutError, AttemptTimeoutError]

    def test_opening_and_the_first_item_share_one_timeout(
        self, watched: WatchedClock, hang: Hang
    ) -> None:
        """The time that opening a stream has taken is not available for its first item."""

        def late() -> Iterator[str]:
            watched.advance(0.5 * LIMIT)
            hang()
            yield "late"

        def open_slowly() -> Iterable[str]:
            watched.advance(0.5 * LIMIT)
            return late()

        recorder = Recorder(attempt_timeout=LIMIT)
        group = FallbackGroup[Callable[[], Iterable[str]]](open_slowly, "0", recorder.config)
        group.add_fallback("1", lambda: ["in time"], attempt_timeout=0)

        stream = group.stream(lambda provider: provider(), lazy=True)

        assert list(stream) == ["in time"]
        assert watched.now == LIMIT
        assert isinstance(recorder.attempts[0].error, AttemptTimeoutError)

    def test_only_the_first_item_is_bounded(self, watched: WatchedClock) -> None:
        """After its first item a stream may pause, and is read in the reader's own thread."""

        def items() -> Iterator[threading.Thread]:
            yield threading.current_thread()
            watched.now += 2 * LIMIT
            yield threading.current_thread()

        group = FallbackGroup(items, "primary", attempt_timeout=LIMIT)

        first, second = group.stream(lambda provider: provider())

        assert first is not threading.current_thread()
        assert second is threading.current_thread()

    @each_way
    def test_a_provider_in_time_is_served(self, way: Way) -> None:
        """If a provider answers within the limit, the result is the same as without a limit."""
        service = Service(way, ["in time"], attempt_timeout=LIMIT)
        backup = service.add("backup", ["in time"])

        assert service.call() == "in time"
        assert service.call() == "in time"
        assert len(service.primary.calls) == 2
        assert len(backup.calls) == 0


class TestSettings:
    """The limit of the group, of one provider, and of the primary."""

    @each_way
    def test_each_provider_may_have_its_own(self, way: Way, hang: Hang) -> None:
        """The limit of a provider overrides that of the group, also for the primary."""
        config = FallbackConfig(attempt_timeout=0.01)
        service = Service(way, [hang, "late"], config=config, attempt_timeout=0.02)
        service.add("own", [hang, "late"], attempt_timeout=timedelta(milliseconds=30))
        service.add("group's", [hang, "late"], attempt_timeout=None)

        with pytest.raises(AllFailedError) as caught:
            service.call()

        limits = {
            name: error.timeout
            for name, error in caught.value.failures.items()
            if isinstance(error, AttemptTimeoutError) and error.provider == name
        }
        assert limits == {"primary": 0.02, "own": 0.03, "group's": 0.01}

    @each_way
    def test_without_a_limit_there_is_no_thread(
        self, way: Way, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a limit, and with a limit of 0, providers are called in the caller's thread."""
        started: list[threading.Thread] = []
        monkeypatch.setattr(threading.Thread, "start", started.append)
        threads: list[threading.Thread] = []
        step: Step = [lambda: threads.append(threading.current_thread()), "in time"]
        failing: Step = [step[0], ConnectionError()]
        without = Service(way, failing)
        without.add("backup", step, attempt_timeout=None)
        config = FallbackConfig(attempt_timeout=SHORT)
        switched_off = Service(way, failing, config=config, attempt_timeout=0)
        switched_off.add("backup", step, attempt_timeout=timedelta(0))

        assert [without.call(), switched_off.call()] == ["in time", "in time"]
        assert threads == [threading.current_thread()] * 4
        assert started == []

    @pytest.mark.parametrize("way", [EXECUTE, WAYS["session"], WAYS["speech"]])
    def test_what_cannot_be_a_limit_is_refused(self, way: Way) -> None:
        """A negative limit is refused, and the error names the argument."""
        service = Service(way, ["in time"])

        with pytest.raises(ValueError, match="attempt_timeout"):
            Service(way, ["in time"], attempt_timeout=-1)
        with pytest.raises(ValueError, match="attempt_timeout"):
            service.add("backup", ["in time"], attempt_timeout=-1)
        assert list(service.group.breakers) == ["primary"]

    def test_the_error(self, hang: Hang) -> None:
        """A timeout is an error of this library and a `TimeoutError`, with name and limit."""
        service = Service(EXECUTE, [hang, "late"], attempt_timeout=SHORT)

        with pytest.raises(AllFailedError) as caught:
            service.call()

        error = caught.value.failures["primary"]
        assert isinstance(error, AttemptTimeoutError)
        assert isinstance(error, ResilienceError)
        assert isinstance(error, TimeoutError)
        assert caught.value.__cause__ is error
        assert (error.provider, error.timeout) == ("primary", SHORT)


class TestLateResults:
    """What an abandoned call returns or raises is discarded."""

    @each_way
    def test_success(self, way: Way, hang: Hang) -> None:
        """A late success changes neither the answer nor the breaker."""
        recorder = settings(SHORT, max_failures=2)
        never, released = Hang(), Freed()
        service = Service(way, [hang, "late"], [never, "later"], config=recorder.config)
        service.add("backup", ["in time"])

        answer = tracked(service.call, released.count)
        hang.over.set()
        assert released.wait(TIMEOUT)

        assert answer == "in time"
        assert recorder.outcomes() == [
            ("primary", Outcome.FAILED),
            ("backup", Outcome.SUCCEEDED),
        ]
        assert service.call() == "in time"
        assert service.state is State.OPEN  # the late success did not reset the count
        never.over.set()

    @each_way
    def test_failure(self, way: Way, hang: Hang) -> None:
        """An attempt that has timed out has failed once, whatever it raises later."""
        recorder, released = settings(SHORT, max_failures=2), Freed()
        service = Service(way, [hang, refuse], config=recorder.config)
        service.add("backup", ["in time"])

        tracked(service.call, released.count)
        hang.over.set()
        assert released.wait(TIMEOUT)

        assert recorder.outcomes() == [
            ("primary", Outcome.FAILED),
            ("backup", Outcome.SUCCEEDED),
        ]
        assert service.state is State.CLOSED

    @each_stream
    @pytest.mark.parametrize("end", ["late", refuse])
    def test_closed_once(self, way: Way, hang: Hang, end: str | Callable[[], NoReturn]) -> None:
        """A stream or a session that is returned too late is closed exactly once."""
        released = Freed()
        service = Service(way, [hang, end], attempt_timeout=SHORT)
        service.add("backup", ["in time"])

        tracked(service.call, released.count)
        before = sum(service.closings())
        hang.over.set()
        assert released.wait(TIMEOUT)

        assert before == 0 or not hang.entered.is_set()  # or it hung before that
        assert set(service.closings()) <= {1}
        if end == "late":
            assert service.closings() == [1]

    def test_a_session_is_closed_by_the_worker(self, hang: Hang) -> None:
        """The caller who has abandoned a session does not wait for its closing."""
        closing, released = Hang(), Freed()
        threads: list[threading.Thread] = []

        class Late(Handle):
            @override
            def close(self) -> None:
                threads.append(threading.current_thread())
                closing()

        def start() -> stt.SessionHandle:
            threads.append(threading.current_thread())
            hang()
            return Late()

        group = STTFallback(Recogniser(start), "primary", attempt_timeout=SHORT)
        group.add_fallback("backup", FakeSTT())

        tracked(lambda: group.start_stream(stt.StreamConfig()).provider, released.count)
        hang.over.set()
        assert closing.entered.wait(TIMEOUT)
        closing.over.set()
        assert released.wait(TIMEOUT)

        starter, closer = threads
        assert starter is closer
        assert closer is not threading.current_thread()

    @pytest.mark.parametrize("lazy", [False, True])
    def test_a_stream_is_closed_by_the_worker(self, hang: Hang, *, lazy: bool) -> None:
        """The caller who has abandoned a first item does not wait for the closing."""
        late, released = LateStream(hang), Freed()
        group = FallbackGroup[Iterable[str]](late, "primary", attempt_timeout=SHORT)
        group.add_fallback("backup", ["in time"], attempt_timeout=0)

        def read() -> str:
            return "".join(group.stream(lambda provider: provider, lazy=lazy))

        answer = tracked(read, released.count)
        hang.over.set()
        assert released.wait(TIMEOUT)

        assert answer == "in time"
        assert len(late.closers) == 1
        assert late.closers[0] is not threading.current_thread()

    def test_opened_too_late(self, hang: Hang) -> None:
        """No item is read from a stream that is opened too late; it is closed."""
        asked: list[bool] = []
        late, released = LateStream(lambda: asked.append(True)), Freed()

        def open_late(_provider: object) -> Iterator[str]:
            hang()
            return late

        group = FallbackGroup("a", "a", attempt_timeout=SHORT)

        def read() -> None:
            with pytest.raises(AllFailedError):
                group.stream(open_late)

        tracked(read, released.count)
        hang.over.set()

        assert released.wait(TIMEOUT)
        assert len(late.closers) == 1
        assert asked == []

    @pytest.mark.usefixtures("no_gc")
    def test_no_worker_for_the_first_item(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stream that is open, but cannot be read because too many calls hang, is closed."""
        provider = FakeLLM(["primary"])
        recorder = Recorder(attempt_timeout=LIMIT)
        group = FallbackGroup(provider, "primary", recorder.config)
        group.add_fallback("second", FakeLLM(["second"]), attempt_timeout=0)
        stream = group.stream(lambda model: model.stream_completion(REQUEST), lazy=True)
        monkeypatch.setattr("resilience._failover.workers.MAX_ABANDONED", 0)

        assert _joined(stream) == "second"

        assert [each.closed for each in provider.streams] == [1]
        assert [str(attempt.error) for attempt in recorder.attempts] == [
            "'primary' was not called: 0 abandoned calls still hang",
            "None",
        ]


class LateStream(Iterator[str]):
    """A stream whose items hang, and which records the threads that close it."""

    def __init__(self, hang: Callable[[], object]) -> None:
        """Call a function for each item."""
        self.closers: list[threading.Thread] = []
        self._hang = hang

    @override
    def __next__(self) -> str:
        self._hang()
        return "late"

    def close(self) -> None:
        """Record the thread."""
        self.closers.append(threading.current_thread())


class TestTheBreaker:
    """A timeout is a failure of the provider."""

    @each_way
    def test_a_hung_provider_opens_its_breaker(self, way: Way, hang: Hang) -> None:
        """After `max_failures` timeouts a provider is not called any more."""
        released = Freed(10)
        recorder = settings(SHORT, max_failures=2)
        service = Service(way, [hang, "late"], config=recorder.config)
        service.add("backup", ["in time"])

        answers = [tracked(service.call, released.count) for _ in range(10)]
        state = service.state
        hang.over.set()
        assert released.wait(TIMEOUT)

        assert answers == ["in time"] * 10
        assert state is State.OPEN
        assert len(service.primary.calls) == 2

    @each_way
    def test_it_counts_whatever_the_types(self, way: Way, hang: Hang) -> None:
        """A timeout counts and fails over, whichever types the settings contain."""
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=(KeyError,)),
            fallback_on=KeyError,
            attempt_timeout=0.01,
        )
        service = Service(way, [hang, "late"], config=config)
        service.add("backup", ["in time"])

        assert service.call() == "in time"
        assert service.state is State.OPEN

    @pytest.mark.parametrize("way", [EXECUTE, WAYS["stream"], WAYS["session"]])
    def test_a_predicate_decides(self, way: Way, hang: Hang) -> None:
        """A predicate is called for a timeout like for any other exception."""
        errors: list[Exception] = []

        def is_included(error: Exception) -> bool:
            errors.append(error)
            return False

        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=is_included),
            fallback_on=is_included,
            attempt_timeout=0.01,
        )
        service = Service(way, [hang, "late"], config=config)
        service.add("backup", ["in time"])

        with pytest.raises(AttemptTimeoutError, match="'primary' did not answer"):
            service.call()

        assert len(errors) == 2
        assert service.state is State.CLOSED

    @each_way
    def test_a_probe_that_hangs(self, way: Way, hang: Hang) -> None:
        """A probe that hangs opens the breaker again, and a later one closes it."""
        recorder, released = settings(FAIR, max_failures=1), Freed(2)
        service = Service(way, [refuse], [hang, "late"], ["in time"], config=recorder.config)
        service.add("backup", ["from the backup"])
        states: list[State] = []

        answers = [tracked(service.call, released.count)]
        states.append(service.state)
        recorder.clock.advance(30.0)
        answers.append(tracked(service.call, released.count))
        states.append(service.state)
        recorder.clock.advance(30.0)
        hang.over.set()  # the result of the hung probe belongs to a period that has ended
        assert released.wait(TIMEOUT)
        states.append(service.state)

        assert answers == ["from the backup"] * 2
        assert states == [State.OPEN, State.OPEN, State.HALF_OPEN]
        assert recovers(service, recorder)

    def test_probes_that_hang_at_once(self, hang: Hang) -> None:
        """However many probes hang at the same time, the breaker recovers."""
        recorder = settings(FAIR, max_failures=1, half_open_max=3)
        service = Service(EXECUTE, [refuse], [hang, "late"], config=recorder.config)
        service.add("backup", ["from the backup"])
        service.call()
        recorder.clock.advance(30.0)

        answers = in_threads([service.call] * 3)
        state = service.state
        hang.over.set()

        assert answers == ["from the backup"] * 3
        assert state is State.OPEN
        assert recovers(service, recorder)

    def test_counting_tokens_is_bounded_and_not_recorded(self, hang: Hang) -> None:
        """A model that hangs while it counts costs one timeout, and its breaker stays closed."""

        class Hung(Model):
            @override
            def count_tokens(self, messages: Sequence[llm.Message]) -> int:
                hang()
                return 0

        group = LLMFallback(Hung(), "primary", settings(SHORT, max_failures=1).config)
        group.add_fallback("backup", FakeLLM(), attempt_timeout=0)

        assert group.count_tokens(REQUEST.messages) == 1
        assert group.breakers["primary"].state is State.CLOSED

    def test_voices_are_bounded(self, hang: Hang) -> None:
        """A synthesiser that hangs while it lists or clones voices is abandoned."""

        class Hung(Synthesiser):
            @override
            def list_voices(self) -> Sequence[tts.VoiceProfile]:
                hang()
                return ()

            @override
            def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
                hang()
                return VOICE

        group = TTSFallback(Hung(refuse), "primary", attempt_timeout=SHORT)
        group.add_fallback("backup", FakeTTS(voices=[VOICE]), attempt_timeout=0)

        assert group.list_voices() == (VOICE,)
        assert group.clone_voice([b"audio"]).id == "clone-of-1"
        assert not hang.over.is_set()


def recovers(service: Service, recorder: Recorder) -> bool:
    """Return whether the primary is used again, if necessary after some more probes."""
    for _ in range(TRIES):
        recorder.clock.advance(30.0)
        service.call()
        if service.state is State.CLOSED:
            return True
    return False


class TestManyCalls:
    """No more than 64 calls of a provider are left hanging."""

    def test_one_after_the_other(self, hang: Hang) -> None:
        """With 64 calls hanging, further ones fail at once, until some of them return."""
        before, released = set(threading.enumerate()), Freed(64)
        reports: Counter[tuple[str, type]] = Counter()
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=10**6),
            attempt_timeout=0.01,
            on_attempt=lambda attempt: reports.update([(attempt.provider, type(attempt.error))]),
        )
        service = Service(EXECUTE, [hang, "late"], config=config)
        service.add("backup", ["in time"])

        answers = [tracked(service.call, released.count) for _ in range(64)]
        begin = monotonic()
        answers += [service.call() for _ in range(1000 - 64)]
        took = monotonic() - begin
        hanging = len(set(threading.enumerate()) - before)
        first_reports = dict(reports)
        hang.over.set()
        assert released.wait(TIMEOUT)

        assert answers == ["in time"] * 1000
        assert hanging == 64
        assert len(service.primary.calls) == 64
        assert first_reports == {
            ("primary", AttemptTimeoutError): 1000,
            ("backup", type(None)): 1000,
        }
        assert took < (1000 - 64) * 0.01 / 2
        assert any(service.call() == "late" for _ in range(1000))
        assert len(set(threading.enumerate()) - before) <= 65

    def test_at_the_same_time(self, hang: Hang, monkeypatch: pytest.MonkeyPatch) -> None:
        """More than 64 calls may start at the same time; while they hang, no other call starts."""
        callers, is_held = 70, True
        monkeypatch.setattr(
            "resilience._failover.attempts.monotonic", lambda: 0.0 if is_held else monotonic()
        )
        all_hang = threading.Barrier(callers + 1)
        calls: list[str] = []

        def hang_together(provider: str) -> None:
            calls.append(provider)
            if len(calls) <= callers:
                all_hang.wait(TIMEOUT)
                hang()

        group = FallbackGroup("hung", "0", settings(0.05, max_failures=1000).config)

        def fail() -> None:
            with pytest.raises(AllFailedError):
                group.execute(hang_together)

        def release() -> None:
            nonlocal is_held
            all_hang.wait(TIMEOUT)
            is_held = False

        in_threads([*[fail] * callers, release])

        fail()

        assert len(calls) == callers


class TestTheCallersContext:
    """Context variables, interruptions, tracebacks and requests of the caller."""

    @each_way
    def test_context_variables_reach_the_provider(self, way: Way) -> None:
        """A provider reads the caller's context variables; the caller does not get its changes."""
        variable: ContextVar[str] = ContextVar("variable", default="default")
        seen: list[tuple[str, threading.Thread]] = []

        def look() -> None:
            seen.append((variable.get(), threading.current_thread()))
            variable.set("the provider's")

        service = Service(way, [look, "in time"], attempt_timeout=LIMIT)

        def call_as(name: str) -> tuple[str, str]:
            variable.set(name)
            return service.call(), variable.get()

        kept = [copy_context().run(call_as, name) for name in ("first", "second")]

        assert kept == [("in time", "first"), ("in time", "second")]
        assert [name for name, _ in seen] == ["first", "second"]
        assert threading.current_thread() not in [thread for _, thread in seen]

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
    @each_way
    def test_an_interruption_of_the_waiting_caller(
        self, way: Way, hang: Hang, interrupter: Interrupter
    ) -> None:
        """An interruption is raised at once, and the attempt has neither succeeded nor failed."""
        recorder = settings(LIMIT, max_failures=1)
        interrupted: Step = [interrupter, hang, "late"]
        service = Service(
            way, interrupted, [ConnectionError()], interrupted, ["in time"], config=recorder.config
        )
        service.add("backup", ["from the backup"])

        begin = monotonic()
        with pytest.raises(KeyboardInterrupt):
            service.call()
        closed = service.state
        service.call()
        recorder.clock.advance(30.0)
        with pytest.raises(KeyboardInterrupt):
            service.call()
        half_open = service.state
        took = monotonic() - begin
        answer = service.call()  # the only slot was released

        assert took < TIMEOUT / 3
        assert closed is State.CLOSED
        assert half_open is State.HALF_OPEN
        assert answer == "in time"
        assert service.state is State.CLOSED
        assert recorder.outcomes() == [
            ("primary", Outcome.CANCELLED),
            ("primary", Outcome.FAILED),
            ("backup", Outcome.SUCCEEDED),
            ("primary", Outcome.CANCELLED),
            ("primary", Outcome.SUCCEEDED),
        ]

    @each_way
    def test_errors_keep_their_traceback(self, way: Way) -> None:
        """The function of the provider that raised is in the traceback."""
        service = Service(way, [refuse], attempt_timeout=LIMIT)

        with pytest.raises(AllFailedError) as caught:
            service.call()

        error = caught.value.failures["primary"]
        assert type(error) is ConnectionError
        assert traceback.extract_tb(error.__traceback__)[-1].name == "refuse"

    def test_an_error_that_does_not_fail_over_keeps_its_traceback(self) -> None:
        """The traceback of an error that is raised to the caller includes the provider."""
        config = FallbackConfig(fallback_on=KeyError, attempt_timeout=LIMIT)

        with pytest.raises(ConnectionError) as caught:
            grouped(refuse, config=config).execute(call)

        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[0] == "test_an_error_that_does_not_fail_over_keeps_its_traceback"
        assert names[-1] == "refuse"

    @pytest.mark.usefixtures("no_gc")
    @each_way
    @pytest.mark.parametrize("end", ["served", "failed", "hung"])
    def test_a_request_is_freed_after_its_call(self, way: Way, hang: Hang, end: str) -> None:
        """No cycle of references keeps a request alive, once its provider has ended."""
        steps: dict[str, Step] = {
            "served": ["in time"],
            "failed": [refuse],
            "hung": [hang, "late"],
        }
        released = Freed()
        service = Service(way, steps[end], attempt_timeout=SHORT if end == "hung" else LIMIT)
        service.add("backup", ["in time"])

        answer = tracked(service.call, released.count)
        hang.over.set()

        assert answer == "in time"
        assert released.wait(TIMEOUT)

    @pytest.mark.usefixtures("no_gc")
    @pytest.mark.parametrize("error", [ConnectionError, KeyError, SystemExit])
    def test_a_request_is_freed_with_its_error(self, error: type[BaseException]) -> None:
        """An error does not keep the request alive, once the caller has dropped the error."""
        released = Freed()
        config = FallbackConfig(fallback_on=ConnectionError, attempt_timeout=LIMIT)
        group = FallbackGroup("a", "a", config)
        group.add_fallback("b", "b")

        def fail(_token: Token) -> NoReturn:
            raise error

        def call() -> None:
            token = Token()
            weakref.finalize(token, released.count)
            try:
                group.execute(lambda _: fail(token))
            except (AllFailedError, KeyError, SystemExit):
                return

        call()

        assert released.wait(TIMEOUT)


class TestSpeech:
    """The time in which a synthesiser waits for the text is not part of its limit."""

    def test_a_hung_synthesiser_that_reads_again(self) -> None:
        """A synthesiser that reads after it was abandoned takes no text from the next one."""
        words = [f"{number} " for number in range(10)]

        def speak() -> tuple[str, list[list[str]]]:
            hang, released = Hang(), threading.Event()
            hung = FakeTTS([ReadText(3), hang, ReadText(10), released.set, b"late"])
            group = TTSFallback(hung, "primary", attempt_timeout=SHORT)
            group.add_fallback("backup", FakeTTS(), attempt_timeout=0)
            stream = group.synthesize_stream(iter(words), VOICE)
            audio = [next(stream), next(stream)]
            hang.over.set()
            assert released.wait(TIMEOUT) or not hung.texts
            return b"".join([*audio, *stream]).decode(), hung.texts

        results = [speak()]
        while results[-1][1] != [words[:3]] and len(results) < TRIES:
            results.append(speak())  # it was abandoned before it could hang

        assert {audio for audio, _ in results} == {"".join(words)}
        assert results[-1][1] == [words[:3]]

    @pytest.mark.parametrize("script", [None, [ReadText(2), b"One two."]])
    def test_a_slow_text(
        self, script: Sequence[ReadText | bytes] | None, watched: WatchedClock
    ) -> None:
        """A synthesiser that waits for the text's own source does not time out."""

        def text() -> Iterator[str]:
            watched.advance(2 * LIMIT)
            yield "One "
            if script:  # otherwise the caller has the first audio, and does not wait
                watched.advance(2 * LIMIT)
            yield "two."

        group = TTSFallback(FakeTTS(script), "primary", attempt_timeout=LIMIT)

        assert spoken(group, text()) == "One two."

    def test_a_synthesiser_that_hangs_after_a_slow_text(
        self, watched: WatchedClock, hang: Hang
    ) -> None:
        """The time after the wait for a slow text is part of the limit."""

        def text() -> Iterator[str]:
            yield "One "
            watched.advance(2 * LIMIT)
            yield "two."

        script: list[TTSItem] = [ReadText(2), lambda: watched.advance(LIMIT), hang, b"late"]
        recorder = Recorder(attempt_timeout=LIMIT)
        group = TTSFallback(FakeTTS(script), "primary", recorder.config)
        group.add_fallback("backup", FakeTTS(), attempt_timeout=0)

        assert spoken(group, text()) == "One two."
        assert isinstance(recorder.attempts[0].error, AttemptTimeoutError)

    @pytest.mark.parametrize("reads", [True, False])
    def test_time_that_is_not_spent_waiting(
        self, watched: WatchedClock, hang: Hang, *, reads: bool
    ) -> None:
        """Only waiting for the text lengthens the limit."""

        def speak(text: Iterable[str]) -> Iterator[bytes]:
            if reads:
                list(text)
            watched.advance(LIMIT)
            hang()
            yield b"late"

        recorder = Recorder(attempt_timeout=LIMIT)
        group = TTSFallback(Synthesiser(speak), "0", recorder.config)
        group.add_fallback("1", FakeTTS(), attempt_timeout=0)

        assert spoken(group, ["in time"]) == "in time"
        assert isinstance(recorder.attempts[0].error, AttemptTimeoutError)

    def test_waiting_before_the_first_item_is_awaited(
        self, watched: WatchedClock, hang: Hang
    ) -> None:
        """The time for which a provider's own thread waits before the first `next()` is ignored."""
        is_asked, arrives, is_read = threading.Event(), threading.Event(), threading.Event()

        def text() -> Iterator[str]:
            is_asked.set()
            assert arrives.wait(TIMEOUT)
            yield "One."

        def speak(text: Iterable[str]) -> Iterator[bytes]:
            def read() -> None:
                list(text)
                is_read.set()

            threading.Thread(target=read, daemon=True).start()
            return audio()

        def audio() -> Iterator[bytes]:
            watched.advance(LIMIT)
            hang()
            yield b"late"

        group = TTSFallback(Synthesiser(speak), "primary", attempt_timeout=LIMIT)
        stream = group.synthesize_stream(text(), VOICE)
        assert is_asked.wait(TIMEOUT)
        watched.now += 5 * LIMIT
        arrives.set()
        assert is_read.wait(TIMEOUT)

        with pytest.raises(AllFailedError) as caught:
            next(stream)

        assert isinstance(caught.value.failures["primary"], AttemptTimeoutError)

    def test_waiting_of_an_earlier_attempt(self, watched: WatchedClock, hang: Hang) -> None:
        """The time for which one synthesiser has waited does not lengthen the limit of the next."""

        def text() -> Iterator[str]:
            watched.now += 5 * LIMIT
            yield "One."

        group = TTSFallback(FakeTTS([ReadText(1), ConnectionError()]), "primary")
        script: list[TTSItem] = [ReadText(1), lambda: watched.advance(LIMIT), hang]
        group.add_fallback("second", FakeTTS(script), attempt_timeout=LIMIT)

        with pytest.raises(AllFailedError) as caught:
            list(group.synthesize_stream(text(), VOICE))

        assert watched.now == 6 * LIMIT
        assert isinstance(caught.value.failures["second"], AttemptTimeoutError)

    def test_a_hung_synthesiser_that_reads_ahead(self, watched: WatchedClock) -> None:
        """A synthesiser is abandoned although its own thread waits for more of the text."""
        waits_again, over = threading.Event(), threading.Event()

        def text() -> Iterator[str]:
            yield "Hello. "
            waits_again.set()
            assert over.wait(TIMEOUT)

        def speak(text: Iterable[str]) -> Iterator[bytes]:
            threading.Thread(target=list, args=(text,), daemon=True).start()
            assert waits_again.wait(TIMEOUT)
            watched.advance(LIMIT)
            assert over.wait(TIMEOUT)
            yield b"late"

        recorder = Recorder(attempt_timeout=LIMIT)
        group = TTSFallback(Synthesiser(speak), "hung", recorder.config)
        group.add_fallback("backup", FakeTTS([b"in time"]), attempt_timeout=0)

        stream = group.synthesize_stream(text(), VOICE)
        first = next(stream)
        over.set()

        assert first == b"in time"
        assert stream.provider == "backup"
        assert isinstance(recorder.attempts[0].error, AttemptTimeoutError)
