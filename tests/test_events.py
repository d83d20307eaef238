"""Events are delivered in order, one at a time, outside the lock, whichever thread causes them.

The last tests add events at places where only a garbage collection or a signal can add them.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from threading import RLock
from types import TracebackType
from typing import Any

import pytest
from typing_extensions import override

from helpers import in_thread, in_threads, succeed, trip
from resilience import CircuitBreaker, CircuitBreakerConfig, State, StateChange
from resilience._breaker import events
from resilience._breaker.events import EventQueue
from resilience.testing import ManualClock

RESET_TIMEOUT = 10.0
Action = Callable[[], object]
CONFIG = CircuitBreakerConfig(max_failures=2, reset_timeout=RESET_TIMEOUT, half_open_max=2)


class TestListener:
    """A listener is called for each change in order, one at a time, outside the lock."""

    def test_from_many_threads(self) -> None:
        """Changes by many threads are reported in order, and one at a time."""
        changes: list[StateChange] = []
        overlaps: list[StateChange] = []
        is_reporting = threading.Lock()

        def listen(change: StateChange) -> None:
            if is_reporting.acquire(blocking=False):
                changes.append(change)
                is_reporting.release()
            else:
                overlaps.append(change)

        breaker = CircuitBreaker(replace(CONFIG, on_state_change=listen))

        def work() -> None:
            for _ in range(20):
                breaker.isolate()
                breaker.reset()

        in_threads([work] * 8)

        assert overlaps == []
        assert changes[0].old is State.CLOSED
        assert all(one.new is other.old for one, other in pairwise(changes))
        assert changes[-1].new is State.CLOSED

    def test_none_is_lost(self) -> None:
        """A change during the report of another one is reported next, by the same thread."""
        changes: list[tuple[State, threading.Thread]] = []

        def listen(change: StateChange) -> None:
            changes.append((change.new, threading.current_thread()))
            if change.new is State.OPEN:
                in_thread(breaker.reset)

        breaker = CircuitBreaker(replace(CONFIG, on_state_change=listen))
        breaker.isolate()

        here = threading.current_thread()
        assert changes == [(State.OPEN, here), (State.CLOSED, here)]

    def test_listener_uses_the_breaker(self) -> None:
        """A change that a listener causes is reported after the present one."""
        reported: list[tuple[str, State]] = []

        def listen(change: StateChange) -> None:
            reported.append(("begin", change.new))
            if change.new is State.OPEN:
                breaker.reset()
                succeed(breaker)
            reported.append(("end", change.new))

        breaker = CircuitBreaker(replace(CONFIG, on_state_change=listen))
        breaker.isolate()

        assert reported == [
            ("begin", State.OPEN),
            ("end", State.OPEN),
            ("begin", State.CLOSED),
            ("end", State.CLOSED),
        ]

    def test_listener_sees_the_change(self) -> None:
        """A change is reported after it has been made."""
        states: list[State] = []
        breaker = CircuitBreaker(
            replace(CONFIG, on_state_change=lambda _: states.append(breaker.state))
        )

        trip(breaker)
        breaker.reset()

        assert states == [State.OPEN, State.CLOSED]

    def test_listener_raises(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """A listener that raises is logged and changes nothing."""
        states: list[State] = []

        def listen(change: StateChange) -> None:
            states.append(change.new)
            raise RuntimeError

        breaker = CircuitBreaker(replace(CONFIG, on_state_change=listen, clock=clock))
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        succeed(breaker)
        succeed(breaker)

        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert states == [State.OPEN, State.HALF_OPEN, State.CLOSED]
        assert len(errors) == 3
        assert errors[0].getMessage().startswith("on_state_change raised RuntimeError at ")

    def test_log_handler_raises(self) -> None:
        """The listener is called even if a log handler raises."""
        reported: list[State] = []
        breaker = CircuitBreaker(
            replace(CONFIG, on_state_change=lambda change: reported.append(change.new))
        )

        class Broken(logging.Handler):
            @override
            def emit(self, record: logging.LogRecord) -> None:
                raise LookupError

        logger, handler = logging.getLogger("resilience"), Broken()
        logger.addHandler(handler)
        try:
            with pytest.raises(LookupError):
                trip(breaker)
        finally:
            logger.removeHandler(handler)

        assert reported == [State.OPEN]
        assert breaker.state is State.OPEN

    def test_listener_is_interrupted(self) -> None:
        """Changes during and after a listener that is interrupted are still reported."""
        states: list[State] = []

        def listen(change: StateChange) -> None:
            states.append(change.new)
            if len(states) == 1:
                breaker.reset()
                raise KeyboardInterrupt

        breaker = CircuitBreaker(replace(CONFIG, on_state_change=listen))
        with pytest.raises(KeyboardInterrupt):
            breaker.isolate()
        before = list(states)
        breaker.isolate()

        assert before == [State.OPEN, State.CLOSED]
        assert states == [State.OPEN, State.CLOSED, State.OPEN]


def change(name: str) -> StateChange:
    """Return an event with a name."""
    return StateChange(name=name, old=State.CLOSED, new=State.OPEN)


class DisturbedLock:
    """A reentrant lock that calls functions after it is taken, before and after its release."""

    def __init__(self) -> None:
        """Make a free lock whose functions do nothing."""
        self._lock = RLock()
        self.depth = 0
        self.after_acquire: Action = lambda: None
        self.before_release: Action = lambda: None
        self.after_release: Action = lambda: None

    def __enter__(self) -> None:
        """Take the lock, and call a function once."""
        self._lock.acquire()
        self.depth += 1
        happen, self.after_acquire = self.after_acquire, lambda: None
        happen()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Call a function once, release the lock, and call another one once."""
        happen, self.before_release = self.before_release, lambda: None
        happen()
        self.depth -= 1
        self._lock.release()
        happen, self.after_release = self.after_release, lambda: None
        happen()


class Disturbed:
    """A queue with such a lock; records its events, and how often the lock was held then."""

    def __init__(self) -> None:
        """Make an empty queue."""
        self.lock = DisturbedLock()
        self.seen: list[str] = []
        self.depths: list[int] = []
        self.queue = EventQueue(self.listen)
        lock: Any = self.lock
        self.queue._lock = lock

    def listen(self, event: StateChange) -> None:
        """Record an event."""
        self.seen.append(event.name)
        self.depths.append(self.lock.depth)

    def add(self, name: str) -> None:
        """Add an event, in a locked section of its own."""
        self.queue.run_locked(self.queue.append, change(name))


@pytest.mark.parametrize("place", ["after_acquire", "before_release", "after_release"])
def test_added_inside_another_section(place: str) -> None:
    """An event that is added near a locked section of the same thread is delivered after it."""
    disturbed = Disturbed()
    setattr(disturbed.lock, place, lambda: disturbed.add("nested"))

    disturbed.add("outer")

    assert sorted(disturbed.seen) == ["nested", "outer"]
    assert disturbed.depths == [0, 0]


@pytest.mark.parametrize("place", ["after_acquire", "before_release", "after_release"])
def test_added_while_the_delivery_starts(place: str) -> None:
    """An event that is added as the delivery starts is delivered too, once, outside the lock."""
    disturbed = Disturbed()
    disturbed.lock.after_release = lambda: setattr(
        disturbed.lock, place, lambda: disturbed.add("second")
    )

    disturbed.add("first")

    assert sorted(disturbed.seen) == ["first", "second"]
    assert disturbed.depths == [0, 0]


def test_watchers() -> None:
    """Watchers are called before the listener and outside the lock, even if it raises."""
    disturbed = Disturbed()

    def listen(event: StateChange) -> None:
        disturbed.listen(event)
        if event.name == "first":
            raise KeyboardInterrupt

    disturbed.queue._listener = listen
    for name in ("a", "b"):
        watcher = partial(disturbed.listen, change(name))
        disturbed.queue.watchers = (*disturbed.queue.watchers, watcher)
    with pytest.raises(KeyboardInterrupt):
        disturbed.add("first")
    disturbed.add("second")

    assert disturbed.seen == ["a", "b", "first", "a", "b", "second"]
    assert disturbed.depths == [0] * 6


def test_watchers_before_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchers are called even if a log handler raises."""
    disturbed = Disturbed()
    disturbed.queue.watchers = (partial(disturbed.listen, change("watcher")),)

    def log(_: StateChange) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(events, "_log", log)
    with pytest.raises(KeyboardInterrupt):
        disturbed.add("first")

    assert disturbed.seen == ["watcher", "first"]


@pytest.mark.parametrize("another", [-1, 1 << 64])
def test_another_thread_is_faster(another: int) -> None:
    """If another thread begins to deliver at the last moment, it delivers this event too."""
    disturbed = Disturbed()

    def be_faster() -> None:
        disturbed.queue._dispatcher = another

    disturbed.lock.after_release = lambda: setattr(disturbed.lock, "after_acquire", be_faster)
    disturbed.add("first")
    before = list(disturbed.seen)
    disturbed.queue._dispatcher = None  # it ends
    disturbed.add("second")

    assert before == []
    assert disturbed.seen == ["first", "second"]
