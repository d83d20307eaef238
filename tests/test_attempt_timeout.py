"""A provider that hangs costs one `attempt_timeout`, and no more, in whichever way it is called."""

import contextlib
import gc
import queue
import signal
import sys
import threading
import traceback
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar, copy_context
from datetime import timedelta
from itertools import chain
from time import monotonic
from types import FrameType
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import pytest
from typing_extensions import override

from builds import Freed
from resilience import (
    AllFailedError,
    Attempt,
    AttemptTimeoutError,
    CircuitBreaker,
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
from resilience.testing import FakeLLM, FakeSession, FakeSTT, FakeTTS, ManualClock, ReadText

SHORT = 0.02
"""Seconds until a provider that hangs is given up."""
FAIR = 0.1
"""The same for a provider that has to answer in time, too."""
TRIES = 50
"""How often it may be late all the same, because the machine stood still."""
LIMIT = 60.0
"""Seconds after which a test has failed."""

REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content="Hello?"),))
VOICE = tts.VoiceProfile(id="any")

Step: TypeAlias = Sequence[Callable[[], object] | Exception | str]
"""What a provider does in one call: actions and exceptions, and what it answers."""

P = TypeVar("P")
R = TypeVar("R")
P_contra = TypeVar("P_contra", contravariant=True)


class Hang:
    """An action of a script that hangs until it is let go."""

    def __init__(self) -> None:
        """Hang."""
        self.entered = threading.Event()
        self.over = threading.Event()

    def __call__(self) -> None:
        """Hang until it is over."""
        self.entered.set()
        assert self.over.wait(LIMIT)


@pytest.fixture
def hang() -> Iterator[Hang]:
    """Return an action that hangs until the end of the test, if it is not let go before."""
    action = Hang()
    yield action
    action.over.set()


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Leave it to the counting of references to free what is used no more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Group(Protocol[P_contra]):
    """What all groups of providers have."""

    @property
    @abstractmethod
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers by name."""

    @abstractmethod
    def add_fallback(
        self,
        name: str,
        provider: P_contra,
        /,
        *,
        attempt_timeout: float | timedelta | None = None,
    ) -> None:
        """Add a provider."""


G = TypeVar("G", bound=Group[Any])


class Service(ABC, Generic[P, G]):
    """One way to call providers P behind a group G; each provider follows a script."""

    lazy: ClassVar[bool] = True

    def __init__(
        self,
        *steps: Step,
        config: FallbackConfig | None = None,
        attempt_timeout: float | timedelta | None = None,
    ) -> None:
        """Make a group of one provider with the name "primary"."""
        self.primary: P = self.provider(*steps)
        self.group: G = self.grouped(self.primary, config, attempt_timeout)

    def add(self, name: str, *steps: Step, attempt_timeout: float | timedelta | None = 0) -> P:
        """Add a provider, which may take as long as it wants if not said otherwise."""
        provider = self.provider(*steps)
        self.group.add_fallback(name, provider, attempt_timeout=attempt_timeout)
        return provider

    @property
    def state(self) -> State:
        """The state of the primary's breaker."""
        return self.group.breakers["primary"].state

    @abstractmethod
    def provider(self, *steps: Step) -> P:
        """Make a provider that follows a script."""

    @abstractmethod
    def grouped(
        self, primary: P, config: FallbackConfig | None, attempt_timeout: float | timedelta | None
    ) -> G:
        """Make a group of one provider."""

    @abstractmethod
    def call(self) -> str:
        """Make one call, and return the whole answer."""

    @abstractmethod
    def asked(self, provider: P) -> int:
        """Return how many calls have reached a provider."""

    @abstractmethod
    def closings(self) -> list[int]:
        """Return for each stream and session of the primary how many times it was closed."""


class Models(Service[FakeLLM, G]):
    """Language models."""

    @override
    def provider(self, *steps: Step) -> FakeLLM:
        return FakeLLM(*steps, lazy=self.lazy)

    @override
    def asked(self, provider: FakeLLM) -> int:
        return len(provider.requests)

    @override
    def closings(self) -> list[int]:
        return [stream.closed for stream in self.primary.streams]


class Execute(Models[FallbackGroup[FakeLLM]]):
    """`FallbackGroup.execute`."""

    @override
    def grouped(
        self,
        primary: FakeLLM,
        config: FallbackConfig | None,
        attempt_timeout: float | timedelta | None,
    ) -> FallbackGroup[FakeLLM]:
        return FallbackGroup(primary, "primary", config, attempt_timeout=attempt_timeout)

    @override
    def call(self) -> str:
        return self.group.execute(lambda provider: provider.complete(REQUEST)).content


class StreamAtCall(Execute):
    """`FallbackGroup.stream`, whose failures come at the first `next()`."""

    commits_late: ClassVar[bool] = False

    @override
    def call(self) -> str:
        stream = self.group.stream(
            lambda provider: provider.stream_completion(REQUEST), lazy=self.commits_late
        )
        return "".join(chunk.content for chunk in stream)


class EagerStreamAtCall(StreamAtCall):
    """The same with providers whose functions do the work."""

    lazy = False


class StreamAtFirstNext(StreamAtCall):
    """`FallbackGroup.stream` that commits at the first `next()`."""

    commits_late = True


class EagerStreamAtFirstNext(StreamAtFirstNext):
    """The same with providers whose functions do the work."""

    lazy = False


class Complete(Models[LLMFallback]):
    """`LLMFallback.complete`."""

    @override
    def grouped(
        self,
        primary: FakeLLM,
        config: FallbackConfig | None,
        attempt_timeout: float | timedelta | None,
    ) -> LLMFallback:
        return LLMFallback(primary, "primary", config, attempt_timeout=attempt_timeout)

    @override
    def call(self) -> str:
        return self.group.complete(REQUEST).content


class StreamCompletion(Complete):
    """`LLMFallback.stream_completion`."""

    @override
    def call(self) -> str:
        return "".join(chunk.content for chunk in self.group.stream_completion(REQUEST))


class StartStream(Service[FakeSTT, STTFallback]):
    """`STTFallback.start_stream`."""

    sessions: tuple[FakeSession, ...] | None = None

    @override
    def provider(self, *steps: Step) -> FakeSTT:
        script = [
            [FakeSession(item) if isinstance(item, str) else item for item in step]
            for step in steps
        ]
        if self.sessions is None:  # the primary's
            items = chain.from_iterable(script)
            self.sessions = tuple(item for item in items if isinstance(item, FakeSession))
        return FakeSTT(*script)

    @override
    def grouped(
        self,
        primary: FakeSTT,
        config: FallbackConfig | None,
        attempt_timeout: float | timedelta | None,
    ) -> STTFallback:
        return STTFallback(primary, "primary", config, attempt_timeout=attempt_timeout)

    @override
    def call(self) -> str:
        session = self.group.start_stream(stt.StreamConfig())
        heard = "".join(transcript.text for transcript in session.finals())
        session.close()
        return heard

    @override
    def asked(self, provider: FakeSTT) -> int:
        return len(provider.configs)

    @override
    def closings(self) -> list[int]:
        return [session.closed for session in self.sessions or ()]


class Synthesize(Service[FakeTTS, TTSFallback]):
    """`TTSFallback.synthesize_stream`."""

    @override
    def provider(self, *steps: Step) -> FakeTTS:
        script = [
            [item.encode() if isinstance(item, str) else item for item in step] for step in steps
        ]
        return FakeTTS(*script, lazy=self.lazy)

    @override
    def grouped(
        self,
        primary: FakeTTS,
        config: FallbackConfig | None,
        attempt_timeout: float | timedelta | None,
    ) -> TTSFallback:
        return TTSFallback(primary, "primary", config, attempt_timeout=attempt_timeout)

    @override
    def call(self) -> str:
        return b"".join(self.group.synthesize_stream(iter(["Hello."]), VOICE)).decode()

    @override
    def asked(self, provider: FakeTTS) -> int:
        return len(provider.texts)

    @override
    def closings(self) -> list[int]:
        return [stream.closed for stream in self.primary.streams]


class EagerSynthesize(Synthesize):
    """The same with providers whose functions do the work."""

    lazy = False


Kind: TypeAlias = type[Service[Any, Any]]

STREAMS: list[Kind] = [
    StreamAtCall,
    EagerStreamAtCall,
    StreamAtFirstNext,
    EagerStreamAtFirstNext,
    StreamCompletion,
    StartStream,
    Synthesize,
    EagerSynthesize,
]
each_kind = pytest.mark.parametrize("kind", [Execute, Complete, *STREAMS])
each_stream = pytest.mark.parametrize("kind", STREAMS)


def settings(
    attempt_timeout: float | None = None,
    *,
    max_failures: int = 5,
    half_open_max: int = 1,
    clock: ManualClock | None = None,
    on_attempt: Callable[[Attempt], object] | None = None,
) -> FallbackConfig:
    """Return settings of a group whose breakers have a clock that stands still."""
    return FallbackConfig(
        circuit_breaker=CircuitBreakerConfig(
            max_failures=max_failures,
            half_open_max=half_open_max,
            clock=clock or ManualClock(),
        ),
        attempt_timeout=attempt_timeout,
        on_attempt=on_attempt,
    )


def fail() -> None:
    """Raise a new exception, so that nobody keeps the traceback."""
    raise ConnectionError


class Token:
    """Something that a caller has, and that dies when nobody holds it any more."""


TOKEN: ContextVar[Token] = ContextVar("TOKEN")


def tracked(call: Callable[[], R], released: Callable[[], object]) -> R:
    """Make a call, and be told when neither it nor what it left behind holds its context."""

    def call_in_context() -> R:
        token = Token()
        weakref.finalize(token, released)
        TOKEN.set(token)
        return call()

    return copy_context().run(call_in_context)


class Interrupter:
    """An action of a script that raises `KeyboardInterrupt` in the main thread, by a signal."""

    def __init__(self) -> None:
        """Wait to be called."""
        self._noticed = threading.Event()

    def __call__(self) -> None:
        """Send signals to the waiting main thread until it has noticed one."""
        main, noticed = threading.main_thread().ident, threading.Event()
        assert main is not None
        self._noticed = noticed
        while not noticed.is_set():
            # A thread that is just about to wait for a lock notices only the next signal. One that
            # does something else may be in the tool that measures coverage, which is not to suffer.
            if sys._current_frames()[main].f_code.co_name == "_is_done_within":
                signal.pthread_kill(main, signal.SIGINT)
            noticed.wait(0.01)

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """Raise at the first signal."""
        if not self._noticed.is_set():
            self._noticed.set()
            raise KeyboardInterrupt


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    """Return an action that interrupts the main thread."""
    action = Interrupter()
    handler = signal.signal(signal.SIGINT, action.handle)
    yield action
    signal.signal(signal.SIGINT, handler)


def let_pass(seconds: float) -> None:
    """Return when so many seconds have really passed: that is how long a call hangs."""
    hang = Hang()
    group = FallbackGroup(hang, "slow", attempt_timeout=seconds)
    with pytest.raises(AllFailedError):
        group.execute(lambda provider: provider())
    hang.over.set()


def in_time(call: Callable[[], R]) -> R:
    """Make a call that is in time, unless the machine stands still; then make it again."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(AllFailedError):
            return call()
    return call()


class TestTheNextProvider:
    """A provider that hangs is left behind."""

    @each_kind
    def test_it_is_tried_when_the_time_is_up(self, kind: Kind, hang: Hang) -> None:
        """While a provider hangs, the next one answers."""
        service = kind([hang, "late"], config=settings(SHORT))
        backup = service.add("backup", ["in time"])

        answer = service.call()

        assert not hang.over.is_set()
        assert answer == "in time"
        assert service.asked(backup) == 1

    @each_kind
    def test_the_wait_is_the_sum_of_the_timeouts(self, kind: Kind, hang: Hang) -> None:
        """If all providers hang, the caller waits as long as their timeouts together."""
        service = kind([hang, "late"], attempt_timeout=SHORT)
        service.add("second", [hang, "late"], attempt_timeout=2 * SHORT)

        begin = monotonic()
        with pytest.raises(AllFailedError) as caught:
            service.call()
        took = monotonic() - begin

        assert not hang.over.is_set()
        assert 3 * SHORT <= took < LIMIT / 3
        errors = caught.value.failures.values()
        assert [type(error) for error in errors] == [AttemptTimeoutError, AttemptTimeoutError]

    def test_opening_and_the_first_item_share_one_timeout(self, hang: Hang) -> None:
        """What opening a stream has taken is missing while its first item is awaited."""

        def hanging() -> Iterator[str]:
            hang()
            yield "late"

        def opened(provider: Callable[[], Iterator[str]]) -> Iterator[str]:
            let_pass(0.18)
            return provider()

        def waited() -> float:
            group = FallbackGroup(hanging, "primary", attempt_timeout=0.2)
            begin = monotonic()
            with pytest.raises(AllFailedError):
                list(group.stream(opened, lazy=True))
            return monotonic() - begin

        assert any(0.2 <= waited() < 0.35 for _ in range(TRIES))

    def test_only_the_first_item_is_bounded(self) -> None:
        """Once a stream has begun it may pause, and its items are made in the reader's thread."""

        def speak() -> Iterator[threading.Thread]:
            yield threading.current_thread()
            let_pass(2 * FAIR)
            yield threading.current_thread()

        group = FallbackGroup(speak, "primary", settings(FAIR, max_failures=10**6))

        first, second = in_time(lambda: list(group.stream(lambda provider: provider())))

        assert first is not threading.current_thread()
        assert second is threading.current_thread()

    @each_kind
    def test_a_provider_in_time_is_served(self, kind: Kind) -> None:
        """With a limit that is kept, a call brings what it brings without one."""
        service = kind(["in time"], attempt_timeout=LIMIT)
        backup = service.add("backup", ["in time"])

        assert service.call() == "in time"
        assert service.call() == "in time"
        assert service.asked(service.primary) == 2
        assert service.asked(backup) == 0


class TestSettings:
    """The limit of the group, of one provider, and of the primary."""

    @each_kind
    def test_each_provider_may_have_its_own(self, kind: Kind, hang: Hang) -> None:
        """The limit of a provider overrides that of the group, also for the primary."""
        service = kind([hang, "late"], config=settings(0.01), attempt_timeout=0.02)
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

    @each_kind
    def test_without_a_limit_there_is_no_thread(
        self, kind: Kind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a limit, and with one of 0, providers are called in the caller's own thread."""
        started: list[threading.Thread] = []
        monkeypatch.setattr(threading.Thread, "start", started.append)
        threads: list[threading.Thread] = []
        step: Step = [lambda: threads.append(threading.current_thread()), "in time"]
        failing: Step = [step[0], ConnectionError()]
        without = kind(failing)
        without.add("backup", step, attempt_timeout=None)
        switched_off = kind(failing, config=settings(SHORT), attempt_timeout=0)
        switched_off.add("backup", step, attempt_timeout=timedelta(0))

        assert [without.call(), switched_off.call()] == ["in time", "in time"]
        assert threads == [threading.current_thread()] * 4
        assert started == []

    @each_kind
    @pytest.mark.parametrize("limit", [-1, float("nan"), float("inf")])
    def test_what_cannot_be_a_limit_is_refused(self, kind: Kind, limit: float) -> None:
        """A limit that is negative or not finite is refused by name, wherever it is given."""
        service = kind(["in time"])

        with pytest.raises(ValueError, match="attempt_timeout"):
            kind(["in time"], attempt_timeout=limit)
        with pytest.raises(ValueError, match="attempt_timeout"):
            service.add("backup", ["in time"], attempt_timeout=limit)
        assert list(service.group.breakers) == ["primary"]


class TestWhatComesTooLate:
    """An abandoned call goes on, and nobody hears of it."""

    @each_kind
    def test_a_late_success_is_dropped(self, kind: Kind, hang: Hang) -> None:
        """What a call brings in the end changes neither the answer nor the breaker."""
        reports: list[tuple[str, Outcome]] = []
        config = settings(
            SHORT,
            max_failures=2,
            on_attempt=lambda attempt: reports.append((attempt.provider, attempt.outcome)),
        )
        never, released = Hang(), Freed()
        service = kind([hang, "late"], [never, "later"], config=config)
        service.add("backup", ["in time"])

        answer = tracked(service.call, released.tell)
        hang.over.set()
        assert released.wait(LIMIT)

        assert answer == "in time"
        assert reports == [("primary", Outcome.FAILED), ("backup", Outcome.SUCCEEDED)]
        assert service.call() == "in time"
        assert service.state is State.OPEN  # the success in between did not reset the count
        never.over.set()

    @each_kind
    def test_a_late_failure_does_not_count_again(self, kind: Kind, hang: Hang) -> None:
        """An attempt that has timed out has failed once, whatever it raises later."""
        reports: list[tuple[str, Outcome]] = []
        config = settings(
            SHORT,
            max_failures=2,
            on_attempt=lambda attempt: reports.append((attempt.provider, attempt.outcome)),
        )
        released = Freed()
        service = kind([hang, fail], config=config)
        service.add("backup", ["in time"])

        tracked(service.call, released.tell)
        hang.over.set()
        assert released.wait(LIMIT)

        assert reports == [("primary", Outcome.FAILED), ("backup", Outcome.SUCCEEDED)]
        assert service.state is State.CLOSED

    @each_stream
    @pytest.mark.parametrize("end", ["late", fail])
    def test_a_late_stream_is_closed_once(
        self, kind: Kind, hang: Hang, end: str | Callable[[], None]
    ) -> None:
        """A stream or a session that comes too late is closed exactly once, if there is one."""
        released = Freed()
        service = kind([hang, end], config=settings(SHORT))
        service.add("backup", ["in time"])

        tracked(service.call, released.tell)
        before = sum(service.closings())
        hang.over.set()
        assert released.wait(LIMIT)

        assert before == 0 or not hang.entered.is_set()  # or it hung even before that
        assert set(service.closings()) <= {1}
        if end == "late":
            assert service.closings() == [1]

    def test_a_late_session_is_closed_by_the_worker(self, hang: Hang) -> None:
        """Whoever has waited long enough for a session does not wait for its closing."""
        closing, provider = Hang(), HungSTT(hang)
        provider.session.on_close = closing
        released = Freed()
        group = STTFallback(provider, "primary", attempt_timeout=SHORT)
        group.add_fallback("backup", FakeSTT())

        tracked(lambda: group.start_stream(stt.StreamConfig()).provider, released.tell)
        hang.over.set()
        assert closing.entered.wait(LIMIT)
        closing.over.set()
        assert released.wait(LIMIT)

        (closer,) = provider.session.closers
        assert closer is provider.thread
        assert closer is not threading.current_thread()

    @pytest.mark.parametrize("lazy", [False, True])
    def test_a_late_stream_is_closed_by_the_worker(self, hang: Hang, *, lazy: bool) -> None:
        """Whoever has waited long enough for a first item does not wait for the closing."""
        late, released = LateStream(hang), Freed()
        group = FallbackGroup[Iterable[str]](late, "primary", attempt_timeout=SHORT)
        group.add_fallback("backup", ["in time"], attempt_timeout=0)

        def read() -> str:
            return "".join(group.stream(lambda provider: provider, lazy=lazy))

        answer = tracked(read, released.tell)
        hang.over.set()
        assert released.wait(LIMIT)

        assert answer == "in time"
        assert len(late.closers) == 1
        assert late.closers[0] is not threading.current_thread()


class LateStream(Iterator[str]):
    """A stream whose first item hangs."""

    def __init__(self, hang: Hang) -> None:
        """Prepare to hang."""
        self.closers: list[threading.Thread] = []
        self._hang = hang

    @override
    def __next__(self) -> str:
        self._hang()
        return "late"

    def close(self) -> None:
        """Record the thread."""
        self.closers.append(threading.current_thread())


class RecordingSession(stt.SessionHandle):
    """A session that records in which threads it is closed."""

    def __init__(self) -> None:
        """Make a session that is open."""
        self.closers: list[threading.Thread] = []
        self.on_close: Callable[[], object] = bool

    @override
    def send_audio(self, audio: bytes) -> None:
        raise NotImplementedError

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        raise NotImplementedError

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        raise NotImplementedError

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        raise NotImplementedError

    @override
    def close(self) -> None:
        self.closers.append(threading.current_thread())
        self.on_close()


class HungSTT(stt.Provider):
    """A recogniser that hangs before it starts a session."""

    def __init__(self, hang: Hang) -> None:
        """Prepare to hang."""
        self.session = RecordingSession()
        self.thread: threading.Thread | None = None
        self._hang = hang

    @override
    def start_stream(self, config: stt.StreamConfig) -> RecordingSession:
        self.thread = threading.current_thread()
        self._hang()
        return self.session


class TestTheBreaker:
    """A timeout is a failure of the provider."""

    @each_kind
    def test_a_hung_provider_opens_its_breaker(self, kind: Kind, hang: Hang) -> None:
        """After `max_failures` timeouts a provider is not touched any more."""
        released = Freed(10)
        service = kind([hang, "late"], config=settings(SHORT, max_failures=2))
        service.add("backup", ["in time"])

        answers = [tracked(service.call, released.tell) for _ in range(10)]
        state = service.state
        hang.over.set()
        assert released.wait(LIMIT)

        assert answers == ["in time"] * 10
        assert state is State.OPEN
        assert service.asked(service.primary) == 2

    @each_kind
    @pytest.mark.parametrize(
        "failure_on", [OSError, (ConnectionError,), (KeyError, ConnectionError), ValueError]
    )
    def test_it_counts_whatever_types_do(
        self, kind: Kind, hang: Hang, failure_on: type[Exception] | tuple[type[Exception], ...]
    ) -> None:
        """No client's exceptions include a timeout, so it counts, and moves on, with any types."""
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=failure_on),
            fallback_on=failure_on,
            attempt_timeout=0.01,
        )
        service = kind([hang, "late"], config=config)
        service.add("backup", ["in time"])

        assert service.call() == "in time"
        assert service.state is State.OPEN

    @each_kind
    def test_a_predicate_is_asked(self, kind: Kind, hang: Hang) -> None:
        """A predicate decides about a timeout like about anything else."""
        asked: list[Exception] = []

        def refuse(error: Exception) -> bool:
            asked.append(error)
            return False

        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=refuse),
            fallback_on=refuse,
            attempt_timeout=0.01,
        )
        service = kind([hang, "late"], config=config)
        service.add("backup", ["in time"])

        with pytest.raises(AttemptTimeoutError, match="'primary' did not answer"):
            service.call()

        assert len(asked) == 2
        assert service.state is State.CLOSED

    @each_kind
    def test_a_probe_that_hangs(self, kind: Kind, hang: Hang) -> None:
        """A probe that hangs opens the breaker again, and a later one closes it."""
        clock, released = ManualClock(), Freed(2)
        config = settings(FAIR, max_failures=1, clock=clock)
        service = kind([fail], [hang, "late"], ["in time"], config=config)
        service.add("backup", ["from the backup"])
        states: list[State] = []

        answers = [tracked(service.call, released.tell)]
        states.append(service.state)
        clock.advance(30.0)
        answers.append(tracked(service.call, released.tell))
        states.append(service.state)
        clock.advance(30.0)
        hang.over.set()  # what the hung probe brings now belongs to a period that is over
        assert released.wait(LIMIT)
        states.append(service.state)

        assert answers == ["from the backup"] * 2
        assert states == [State.OPEN, State.OPEN, State.HALF_OPEN]
        assert recovers(service, clock)

    def test_probes_that_hang_at_once(self, hang: Hang) -> None:
        """However many probes hang at the same time, the breaker recovers."""
        clock = ManualClock()
        config = settings(FAIR, max_failures=1, half_open_max=3, clock=clock)
        service = Execute([fail], [hang, "late"], config=config)
        service.add("backup", ["from the backup"])
        service.call()
        clock.advance(30.0)
        answers: list[str] = []
        callers = [
            threading.Thread(target=lambda: answers.append(service.call()), daemon=True)
            for _ in range(3)
        ]

        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(LIMIT)
        state = service.state
        hang.over.set()

        assert answers == ["from the backup"] * 3
        assert state is State.OPEN
        assert recovers(service, clock)

    def test_counting_tokens_is_bounded_and_no_evidence(self, hang: Hang) -> None:
        """A model that hangs while it counts costs one timeout, and its breaker stays closed."""
        group = LLMFallback(HungLLM(hang), "primary", settings(SHORT, max_failures=1))
        group.add_fallback("backup", FakeLLM(), attempt_timeout=0)

        counted = group.count_tokens(REQUEST.messages)

        assert counted == 1
        assert group.breakers["primary"].state is State.CLOSED

    def test_voices_are_bounded(self, hang: Hang) -> None:
        """A synthesiser that hangs while it lists or makes voices is given up."""
        group = TTSFallback(HungTTS(hang), "primary", settings(SHORT))
        group.add_fallback("backup", FakeTTS(voices=[VOICE]), attempt_timeout=0)

        assert group.list_voices() == (VOICE,)
        assert group.clone_voice([b"audio"]).id == "clone-of-1"
        assert not hang.over.is_set()


def recovers(service: Service[Any, Any], clock: ManualClock) -> bool:
    """Tell whether the primary comes back, if need be after some more probes."""
    for _ in range(TRIES):
        clock.advance(30.0)
        service.call()
        if service.state is State.CLOSED:
            return True
    return False


class HungLLM(llm.Provider):
    """A model that hangs in every method."""

    def __init__(self, hang: Hang) -> None:
        """Prepare to hang."""
        self._hang = hang

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        raise NotImplementedError

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
        raise NotImplementedError

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        self._hang()
        return 0

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        raise NotImplementedError


class HungTTS(tts.Provider):
    """A synthesiser that hangs where it is asked for voices."""

    def __init__(self, hang: Hang) -> None:
        """Prepare to hang."""
        self._hang = hang

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterable[bytes]:
        raise NotImplementedError

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        self._hang()
        return ()

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        self._hang()
        return VOICE


def test_ten_thousand_calls_to_a_hanging_provider(hang: Hang) -> None:
    """No more than 64 calls are left hanging, further ones fail at once, until some come back."""
    before = set(threading.enumerate())
    released = Freed(64)
    reports: Counter[tuple[str, type]] = Counter()
    config = settings(
        0.01,
        max_failures=10**6,
        on_attempt=lambda attempt: reports.update([(attempt.provider, type(attempt.error))]),
    )
    service = Execute([hang, "late"], config=config)
    service.add("backup", ["in time"])

    begin = monotonic()
    answers = [tracked(service.call, released.tell) for _ in range(64)]
    answers += [service.call() for _ in range(10_000 - 64)]
    took = monotonic() - begin
    hanging = len(set(threading.enumerate()) - before)
    first_reports = dict(reports)
    hang.over.set()
    assert released.wait(LIMIT)

    assert answers == ["in time"] * 10_000
    assert hanging == 64
    assert service.asked(service.primary) == 64
    assert first_reports == {
        ("primary", AttemptTimeoutError): 10_000,
        ("backup", type(None)): 10_000,
    }
    assert took < 10_000 * 0.01 / 2  # 64 timeouts, and the rest failed at once
    assert any(service.call() == "late" for _ in range(1000))
    assert len(set(threading.enumerate()) - before) <= 65


class TestTheCallersContext:
    """What belongs to the caller, and how long."""

    @each_kind
    def test_context_variables_reach_the_provider(self, kind: Kind) -> None:
        """A provider sees the caller's context variables, and what it sets is its own."""
        variable: ContextVar[str] = ContextVar("variable", default="default")
        seen: list[tuple[str, threading.Thread]] = []

        def look() -> None:
            seen.append((variable.get(), threading.current_thread()))
            variable.set("the provider's")

        service = kind([look, "in time"], attempt_timeout=LIMIT)

        def call_as(name: str) -> tuple[str, str]:
            variable.set(name)
            return service.call(), variable.get()

        kept = [copy_context().run(call_as, name) for name in ("first", "second")]

        assert kept == [("in time", "first"), ("in time", "second")]
        assert [name for name, _ in seen] == ["first", "second"]
        assert threading.current_thread() not in [thread for _, thread in seen]

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
    @each_kind
    def test_an_interruption_of_the_waiting_caller(
        self, kind: Kind, hang: Hang, interrupter: Interrupter
    ) -> None:
        """It passes on at once, and the attempt has neither succeeded nor failed."""
        clock = ManualClock()
        reports: list[tuple[str, Outcome]] = []
        config = settings(
            LIMIT,
            max_failures=1,
            clock=clock,
            on_attempt=lambda attempt: reports.append((attempt.provider, attempt.outcome)),
        )
        interrupted: Step = [interrupter, hang, "late"]
        service = kind(interrupted, [ConnectionError()], interrupted, ["in time"], config=config)
        service.add("backup", ["from the backup"])

        begin = monotonic()
        with pytest.raises(KeyboardInterrupt):
            service.call()
        closed = service.state
        service.call()
        clock.advance(30.0)
        with pytest.raises(KeyboardInterrupt):
            service.call()
        half_open = service.state
        took = monotonic() - begin
        answer = service.call()  # the only slot has been given back

        assert took < LIMIT / 3
        assert closed is State.CLOSED
        assert half_open is State.HALF_OPEN
        assert answer == "in time"
        assert service.state is State.CLOSED
        assert reports == [
            ("primary", Outcome.CANCELLED),
            ("primary", Outcome.FAILED),
            ("backup", Outcome.SUCCEEDED),
            ("primary", Outcome.CANCELLED),
            ("primary", Outcome.SUCCEEDED),
        ]

    @each_kind
    def test_errors_keep_their_traceback(self, kind: Kind) -> None:
        """The function of the provider that raised is in the traceback, and so is the caller."""

        def lose_the_connection() -> None:
            raise ConnectionError

        service = kind([lose_the_connection], attempt_timeout=LIMIT)

        with pytest.raises(AllFailedError) as caught:
            service.call()

        error = caught.value.failures["primary"]
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert type(error) is ConnectionError
        assert names[-1] == "lose_the_connection"

    def test_a_refused_error_keeps_its_traceback(self) -> None:
        """An error that goes straight to the caller leads from the call to the provider."""

        def refuse() -> str:
            raise KeyError

        config = FallbackConfig(fallback_on=ConnectionError, attempt_timeout=LIMIT)
        group = FallbackGroup(refuse, "primary", config)

        with pytest.raises(KeyError) as caught:
            group.execute(lambda provider: provider())

        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[0] == "test_a_refused_error_keeps_its_traceback"
        assert names[-1] == "refuse"

    @pytest.mark.usefixtures("no_gc")
    @each_kind
    @pytest.mark.parametrize("way", ["served", "failed", "hung"])
    def test_a_request_dies_with_its_call(self, kind: Kind, hang: Hang, way: str) -> None:
        """No cycle of references keeps what a call was about, once its provider is done."""
        steps: dict[str, Step] = {
            "served": ["in time"],
            "failed": [fail],
            "hung": [hang, "late"],
        }
        released = Freed()
        service = kind(steps[way], attempt_timeout=SHORT if way == "hung" else LIMIT)
        service.add("backup", ["in time"])

        answer = tracked(service.call, released.tell)
        hang.over.set()

        assert answer == "in time"
        assert released.wait(LIMIT / 3)

    @pytest.mark.usefixtures("no_gc")
    @pytest.mark.parametrize("error", [ConnectionError, KeyError, SystemExit])
    def test_a_request_dies_with_its_error(self, error: type[BaseException]) -> None:
        """Nor does an error keep it, once the caller has let go of the error."""
        released = Freed()
        config = FallbackConfig(fallback_on=ConnectionError, attempt_timeout=LIMIT)

        def refuse(_token: Token) -> None:
            raise error

        group = FallbackGroup(refuse, "primary", config)
        group.add_fallback("second", refuse)

        def call() -> None:
            token = Token()
            weakref.finalize(token, released.tell)
            try:
                group.execute(lambda provider: provider(token))
            except (AllFailedError, KeyError, SystemExit):
                return

        call()

        assert released.wait(LIMIT / 3)


class ReadsAhead(tts.Provider):
    """A synthesiser that reads the text in a thread of its own, and then does something else."""

    def __init__(self, act: Callable[[], object], has_read: Callable[[], object]) -> None:
        """Make one that tells when it has read the text."""
        self._act = act
        self._has_read = has_read

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        """Begin to read at once."""

        def read() -> None:
            list(text)
            self._has_read()

        threading.Thread(target=read, daemon=True).start()
        return self._audio()

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        """Have none."""
        return ()

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Make none."""
        raise NotImplementedError

    def _audio(self) -> Iterator[bytes]:
        self._act()
        yield b"late"


class TestSpeech:
    """Speech keeps its words, and a synthesiser is not blamed for a slow text."""

    def test_a_hung_synthesiser_that_reads_on_gets_nothing(self) -> None:
        """If it wakes later and reads on, the one that speaks instead loses nothing."""
        words = [f"{number} " for number in range(10)]

        def speak() -> tuple[str, list[list[str]]]:
            hang, released, heard = Hang(), threading.Event(), list[bytes]()
            hung = FakeTTS([ReadText(3), hang, ReadText(10), released.set, b"late"])
            group = TTSFallback(hung, "primary", attempt_timeout=SHORT)
            group.add_fallback("backup", FakeTTS(), attempt_timeout=0)
            stream = group.synthesize_stream(iter(words), VOICE)
            heard.extend((next(stream), next(stream)))
            hang.over.set()
            assert released.wait(LIMIT) or not hung.texts
            heard.extend(stream)
            return b"".join(heard).decode(), hung.texts

        spoken = [speak()]
        while spoken[-1][1] != [words[:3]] and len(spoken) < TRIES:
            spoken.append(speak())  # it was given up even before it could hang

        assert {heard for heard, _ in spoken} == {"".join(words)}
        assert spoken[-1][1] == [words[:3]]

    @pytest.mark.parametrize("script", [None, [ReadText(2), b"One two."]])
    def test_a_slow_text_is_not_the_synthesisers_fault(
        self, script: Sequence[ReadText | bytes] | None
    ) -> None:
        """The time in which the text's own source keeps it waiting does not count."""

        def slow_text() -> Iterator[str]:
            let_pass(2 * FAIR)
            yield "One "
            let_pass(2 * FAIR)
            yield "two."

        group = TTSFallback(FakeTTS(script), "primary", settings(FAIR, max_failures=10**6))

        spoken = in_time(lambda: b"".join(group.synthesize_stream(slow_text(), VOICE)))

        assert spoken == b"One two."

    def test_a_synthesiser_that_hangs_after_a_slow_text(self, hang: Hang) -> None:
        """Nor does a slow text excuse a synthesiser that hangs after it."""

        def slow_text() -> Iterator[str]:
            yield "One "
            let_pass(2 * SHORT)
            yield "two."

        group = TTSFallback(FakeTTS([ReadText(2), hang, b"late"]), "primary", settings(SHORT))
        group.add_fallback("backup", FakeTTS(), attempt_timeout=0)

        assert b"".join(group.synthesize_stream(slow_text(), VOICE)) == b"One two."
        assert not hang.over.is_set()

    def test_waiting_before_the_first_next_excuses_nothing(self) -> None:
        """What a provider's own thread has waited while nobody waited for audio is no credit."""
        fragments: queue.SimpleQueue[str] = queue.SimpleQueue()

        def waited() -> float:
            hang, has_read = Hang(), threading.Event()
            group = TTSFallback(ReadsAhead(hang, has_read.set), "primary", attempt_timeout=FAIR)
            stream = group.synthesize_stream(iter(fragments.get, ""), VOICE)
            let_pass(5 * FAIR)
            fragments.put("One.")
            fragments.put("")
            assert has_read.wait(LIMIT)
            begin = monotonic()
            with pytest.raises(AllFailedError):
                next(stream)
            hang.over.set()
            return monotonic() - begin

        assert any(waited() < 5 * FAIR for _ in range(TRIES))

    def test_waiting_excuses_only_the_attempt_that_waits(self) -> None:
        """What one synthesiser has waited for the text is not given to the next one."""

        def slow_text() -> Iterator[str]:
            let_pass(0.2)
            yield "One."

        def waited() -> float:
            hang = Hang()
            group = TTSFallback(FakeTTS([ReadText(1), ConnectionError()]), "primary")
            group.add_fallback("second", FakeTTS([ReadText(1), hang]), attempt_timeout=0.2)
            begin = monotonic()
            with pytest.raises(AllFailedError):
                list(group.synthesize_stream(slow_text(), VOICE))
            hang.over.set()
            return monotonic() - begin

        assert any(0.4 <= waited() < 0.55 for _ in range(TRIES))


def test_the_error_tells_who_and_how_long(hang: Hang) -> None:
    """A timeout is an error of this library and a `TimeoutError`, with the name and the limit."""
    service = Execute([hang, "late"], attempt_timeout=SHORT)

    with pytest.raises(AllFailedError) as caught:
        service.call()

    error = caught.value.failures["primary"]
    assert isinstance(error, AttemptTimeoutError)
    assert isinstance(error, ResilienceError)
    assert isinstance(error, TimeoutError)
    assert caught.value.__cause__ is error
    assert (error.provider, error.timeout) == ("primary", SHORT)


class TestContextOfAStream:
    """With a limit, a stream is one thing in one context, whichever threads it takes."""

    @pytest.mark.parametrize("way", ["read", "close"])
    @pytest.mark.parametrize("lazy", [False, True])
    def test_a_variable_that_is_set_and_reset(self, *, lazy: bool, way: str) -> None:
        """A provider may set a variable at its beginning, and reset it at its end."""
        variable: ContextVar[str] = ContextVar("variable", default="the caller's")
        seen: list[str] = []

        def provide() -> Iterator[str]:
            token = variable.set("the provider's")
            try:
                for item in "abc":
                    seen.append(variable.get())
                    yield item
            finally:
                variable.reset(token)  # raises in any other context
                seen.append(variable.get())

        outcomes: list[Outcome] = []
        config = settings(
            LIMIT, max_failures=1, on_attempt=lambda attempt: outcomes.append(attempt.outcome)
        )
        group = FallbackGroup(provide, "primary", config)

        stream = group.stream(lambda provider: provider(), lazy=lazy)
        items = list(stream) if way == "read" else [next(stream)]
        stream.close()

        assert items == list("abc")[: len(items)]
        assert seen == ["the provider's"] * len(items) + ["the caller's"]
        assert variable.get() == "the caller's"
        assert outcomes == [Outcome.SUCCEEDED]


class TestGivenUpBetweenOpeningAndTheFirstItem:
    """What was opened is closed, and is asked for nothing more."""

    @pytest.mark.usefixtures("no_gc")
    def test_no_worker_for_the_first_item(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stream that is open, but cannot be read because too many calls hang, is closed."""
        provider = FakeLLM(["primary"])
        request = llm.CompletionRequest(messages=())
        errors: list[str] = []
        config = settings(LIMIT, on_attempt=lambda attempt: errors.append(str(attempt.error)))
        group = FallbackGroup[llm.Provider](provider, "primary", config)
        group.add_fallback("second", FakeLLM(["second"]), attempt_timeout=0)
        stream = group.stream(lambda model: model.stream_completion(request), lazy=True)
        monkeypatch.setattr("resilience._failover.workers.MAX_ABANDONED", 0)

        items = list(stream)

        assert [chunk.content for chunk in items] == ["second"]
        assert [each.closed for each in provider.streams] == [1]
        assert errors == ["'primary' was not called: 0 abandoned calls still hang", "None"]

    def test_opened_too_late(self, hang: Hang) -> None:
        """A stream that is opened too late is closed without being asked for an item."""
        closed = threading.Event()
        asked: list[str] = []

        class Late(Iterator[str]):
            @override
            def __next__(self) -> str:
                asked.append("an item")
                return "late"

            def close(self) -> None:
                closed.set()

        def open_late() -> Iterator[str]:
            hang()
            return Late()

        group = FallbackGroup(open_late, "primary", settings(SHORT))

        with pytest.raises(AllFailedError):
            group.stream(lambda provider: provider())
        hang.over.set()

        assert closed.wait(LIMIT)
        assert asked == []
