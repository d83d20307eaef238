"""Events that come at places where only a garbage collection can bring them.

How a breaker's listeners are called stands in `test_circuit_rules.py`.
"""

from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from resilience._events import EventQueue

if TYPE_CHECKING:
    from collections.abc import Callable


class DisturbedLock:
    """A reentrant lock that lets something happen in the moment before it is left."""

    def __init__(self) -> None:
        """Make a free lock with which nothing happens."""
        lock: Any = RLock()
        self._lock = lock
        self.acquire, self.release = lock.acquire, lock.release
        self._is_owned = lock._is_owned  # noqa: SLF001
        self.before_release: Callable[[], object] = lambda: None

    def __enter__(self) -> None:
        """Take the lock."""
        self._lock.acquire()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let it happen, and free the lock."""
        happen, self.before_release = self.before_release, lambda: None
        happen()
        self._lock.release()


def test_added_while_the_last_one_is_ticked_off() -> None:
    """An event that is added just before the lock is left for the last time is told too."""
    lock: Any = DisturbedLock()
    queue = EventQueue[str](lock)
    told: list[str] = []

    def add_second() -> None:
        queue.append("second")
        queue.tell(listen)

    def listen(event: str) -> None:
        told.append(event)
        if event == "first":
            lock.before_release = add_second

    with lock:
        queue.append("first")
    queue.tell(listen)

    assert told == ["first", "second"]


def test_not_told_under_the_lock() -> None:
    """Who holds the lock tells nothing, and the event waits for the next who does not."""
    lock = RLock()
    queue = EventQueue[str](lock)
    told: list[str] = []

    with lock:
        queue.append("event")
        queue.tell(told.append)
        before = list(told)
    queue.tell(told.append)

    assert before == []
    assert told == ["event"]
