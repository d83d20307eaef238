"""After an interruption at any place, breakers recover and no slot is lost.

Each scenario is run repeatedly, and interrupted at the next place of its run each time.
`RESILIENCE_LONG=1` adds a million interruptions at random places.
"""

import contextlib
import ctypes
import dis
import gc
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest

import resilience
from helpers import REQUEST, TIMEOUT, in_thread, trip
from resilience import (
    AllFailedError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Session,
    State,
    StateChange,
    STTFallback,
    TTSFallback,
    stt,
    tts,
)
from resilience.testing import FakeLLM, FakeSession, FakeSTT, FakeTTS, ManualClock

if TYPE_CHECKING:
    from _typeshed import TraceFunction

LONG = 1_000_000 if "RESILIENCE_LONG" in os.environ else 0
RESET_TIMEOUT = 10.0
LIBRARY = str(Path(resilience.__file__).parent)


PLACES = {
    number
    for name, number in dis.opmap.items()
    if name.startswith(("CALL", "JUMP_BACKWARD")) or name == "RESUME"
}


class Interruption(BaseException):
    """An exception that is thrown into a thread."""


def interrupt(thread: int) -> None:
    """Throw an exception into a thread, which raises it at its next opportunity."""
    throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
    throw(ctypes.c_ulong(thread), ctypes.py_object(Interruption))


class Application:
    """Providers behind adapters with one clock, and the changes of their breakers."""

    def __init__(self) -> None:
        """Wrap one healthy provider of each kind."""
        self.clock = ManualClock()
        self.changes: list[StateChange] = []
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(
                max_failures=1,
                half_open_max=1,
                reset_timeout=RESET_TIMEOUT,
                clock=self.clock,
                on_state_change=self.changes.append,
            )
        )
        self.llm = LLMFallback(FakeLLM("one two three"), "llm", config)
        self.stt = STTFallback(FakeSTT(FakeSession("one", "two")), "stt", config)
        self.tts = TTSFallback(FakeTTS(), "tts", config)
        self.broken = LLMFallback(FakeLLM(ConnectionError()), "broken", config)

    def complete(self) -> None:
        """Make a plain call."""
        self.llm.complete(REQUEST)

    def stream(self) -> None:
        """Read a stream to its end."""
        assert len(list(self.llm.stream_completion(REQUEST))) == 4

    def drop_stream(self) -> None:
        """Read a stream, and drop it in the middle."""
        stream = self.llm.stream_completion(REQUEST)
        next(stream)

    def listen(self) -> None:
        """Hold a session."""
        session = self.stt.start_stream(stt.StreamConfig())
        session.send_audio(b"audio")
        assert len(list(session.finals())) == 2
        session.close()

    def speak(self) -> None:
        """Synthesise a text."""
        audio = self.tts.synthesize_stream(iter(["one ", "two"]), tts.VoiceProfile(id="any"))
        assert b"".join(audio) == b"one two"

    def fail(self) -> None:
        """Make a call that fails."""
        with pytest.raises(AllFailedError):
            self.broken.complete(REQUEST)

    def break_all(self) -> None:
        """Let the next call of each breaker be a probe."""
        for adapter in (self.llm, self.stt, self.tts, self.broken):
            for breaker in adapter.breakers.values():
                breaker.reset()
                trip(breaker)
        self.clock.advance(RESET_TIMEOUT)

    def look(self) -> None:
        """Check that another thread can take all locks."""
        free: list[bool] = []

        def take_all() -> None:
            for adapter in (self.llm, self.stt, self.tts, self.broken):
                for breaker in adapter.breakers.values():
                    lock = breaker._events._lock
                    free.append(lock.acquire(timeout=TIMEOUT))
                    lock.release()

        in_thread(take_all)
        assert free == [True] * 4

    def check(self) -> None:
        """Check that the next probes are admitted, succeed, and close the breakers."""
        self.clock.advance(RESET_TIMEOUT)
        for scenario in (self.complete, self.listen, self.speak):
            for _ in range(3):  # a probe that was interrupted may have failed or not
                try:
                    scenario()
                    break
                except (AllFailedError, CircuitOpenError):
                    self.clock.advance(RESET_TIMEOUT)
        for adapter in (self.llm, self.stt, self.tts):
            for breaker in adapter.breakers.values():
                assert breaker.state is State.CLOSED


class ActAt:
    """A trace function that calls a function at one place of the library's code.

    The interpreter raises an interruption or calls a signal handler only after calls, at the
    beginning of functions and in loops; only these are places.
    """

    def __init__(self, place: int, act: Callable[[], object]) -> None:
        """Wait for a number of places."""
        self.left = place
        self._act = act
        self.last: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, _arg: object) -> "TraceFunction | None":
        """Count one more place."""
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            last = self.last.get(frame, -1)
            self.last[frame] = frame.f_lasti
            if last >= 0 and frame.f_code.co_code[last] in PLACES:
                self.left -= 1
                if self.left == 0:
                    self._act()
        elif event == "return":
            self.last.pop(frame, None)
        return self


def _trace(tracer: ActAt, scenario: Callable[[], None]) -> None:
    before = sys.gettrace()
    # CPython 3.12 traces instructions only if some frame has enabled this before.
    sys._getframe().f_trace_opcodes = True
    # A collection would run finalizers of earlier tests here, and an exception in them is ignored.
    gc.disable()
    try:
        sys.settrace(tracer)
        scenario()
        sys.settrace(before)
    finally:
        sys.settrace(before)
        gc.enable()
        tracer.last.clear()  # which refers to the interrupted frames and their objects


def _interrupt_everywhere(application: Application, scenario: Callable[[], None]) -> int:
    for place in itertools.count(1):
        application.break_all()
        tracer = ActAt(place, lambda: interrupt(threading.get_ident()))
        with contextlib.suppress(Interruption):
            _trace(tracer, scenario)
        application.look()
        application.check()
        if tracer.left > 0:
            return place
    raise AssertionError


SCENARIOS = ["complete", "stream", "drop_stream", "listen", "speak", "fail"]


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_at_every_place(name: str) -> None:
    """After an interruption at any place, the next probes are admitted and close the breakers."""
    application = Application()

    places = _interrupt_everywhere(application, getattr(application, name))

    print(f"{places} places")  # noqa: T201
    assert places > 20


def _changes_after_interruption(place: int) -> list[State] | None:
    """Interrupt a call that opens a breaker, then reset it; None if there is no such place."""
    changes: list[StateChange] = []
    breaker = CircuitBreaker(CircuitBreakerConfig(max_failures=1, on_state_change=changes.append))
    tracer = ActAt(place, lambda: interrupt(threading.get_ident()))

    def fail() -> None:
        with contextlib.suppress(ConnectionError), breaker.guard():
            raise ConnectionError

    with contextlib.suppress(Interruption):
        _trace(tracer, fail)
    is_open = breaker.state is State.OPEN
    breaker.reset()
    states = [change.new for change in changes]
    assert states == ([State.OPEN, State.CLOSED] if is_open else [])
    return states if tracer.left <= 0 else None


def test_no_change_is_lost_by_an_interruption() -> None:
    """Each change is delivered once, at the latest with the next change."""
    places = itertools.takewhile(
        lambda states: states is not None, map(_changes_after_interruption, itertools.count(1))
    )

    assert len(list(places)) > 20


def _open_session(place: int) -> bool:
    """Interrupt the opening of a session; False if there is no such place."""
    opened: list[FakeSession] = []

    def connect(_provider: str) -> FakeSession:
        opened.append(FakeSession())
        return opened[-1]

    sessions: list[Session[FakeSession]] = []
    group = FallbackGroup("a", "a")
    tracer = ActAt(place, lambda: interrupt(threading.get_ident()))
    with contextlib.suppress(Interruption):
        _trace(tracer, lambda: sessions.append(group.session(connect)))

    # A session that was returned belongs to the caller; any other was closed.
    assert sum(each.closed for each in opened) == len(opened) - len(sessions)
    return tracer.left <= 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_session_is_left_open_by_an_interruption() -> None:
    """A session whose opening is interrupted is closed, if its provider has already opened it."""
    places = next(place for place in itertools.count(1) if not _open_session(place))

    assert places > 20


def _use_at(place: int, action: str) -> bool:
    """Let a signal handler use a breaker at one place of a scenario; False if there is none."""
    clock = ManualClock()
    changes: list[StateChange] = []
    config = CircuitBreakerConfig(
        max_failures=1, half_open_max=1, clock=clock, on_state_change=changes.append
    )
    breaker = CircuitBreaker(config)
    kept: list[object] = []  # a permit that is dropped releases its slot
    probes: list[int] = []
    tracer = ActAt(place, lambda: kept.append(getattr(breaker, action)()))

    def live() -> None:
        with contextlib.suppress(ConnectionError, CircuitOpenError), breaker.guard():
            raise ConnectionError
        clock.advance(30.0)
        with contextlib.suppress(CircuitOpenError):
            breaker.execute(lambda: probes.append(breaker.snapshot().probes))
        breaker.isolate()

    _trace(tracer, live)
    assert max(probes, default=0) <= 1
    steps = [(change.old, change.new) for change in changes]
    assert all(one[1] is other[0] for one, other in itertools.pairwise(steps)), steps
    assert steps[-1][1] is breaker.state
    return tracer.left <= 0


@pytest.mark.parametrize("action", ["reset", "isolate", "_try_acquire"])
def test_a_signal_handler_at_every_place(action: str) -> None:
    """A signal handler may use the breaker anywhere: events stay in order, probes in number."""
    places = next(place for place in itertools.count(1) if not _use_at(place, action))

    assert places > 50


@pytest.mark.skipif(not LONG, reason="takes minutes")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interruptions_at_random_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of many interruptions by another thread, the breakers close."""
    application = Application()
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    errors: list[BaseException] = []
    # An interruption in the finalizer of a dropped stream is not raised to the caller.
    swallowed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    # An interruption may leave the lock of a log handler locked, which this test is not about.
    monkeypatch.setattr(logging.getLogger("resilience"), "disabled", True)
    interrupted = 0
    interval = sys.getswitchinterval()

    scenarios = itertools.cycle([getattr(application, name) for name in SCENARIOS])

    def run_scenarios() -> None:
        while not swallowed:
            with contextlib.suppress(AllFailedError):
                next(scenarios)()

    def work() -> None:
        nonlocal interrupted
        while interrupted < LONG and not errors:
            try:
                application.break_all()
                go.release()
                run_scenarios()
            except Interruption:
                pass
            swallowed.clear()
            interrupted += 1
            try:
                application.check()
            except BaseException as error:  # noqa: BLE001
                errors.append(error)
            application.changes.clear()
            done.release()

    worker = threading.Thread(target=work)
    sys.setswitchinterval(1e-6)
    try:
        worker.start()
        while worker.is_alive() and worker.ident is not None:
            if go.acquire(timeout=0.1):
                interrupt(worker.ident)
                assert done.acquire(timeout=60)
    finally:
        sys.setswitchinterval(interval)
    worker.join()

    assert errors == []
    assert interrupted == LONG
