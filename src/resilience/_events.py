"""Events told in the order in which they happened, one at a time, and never under a lock."""

from collections.abc import Callable
from threading import RLock
from typing import Generic, TypeVar, final

E = TypeVar("E")


@final
class EventQueue(Generic[E]):
    """A queue of events of type E, emptied by whichever thread comes first.

    A thread that finds another one telling events leaves its own to that one. So does a listener
    that causes an event itself, which is therefore told after the present one.
    """

    __slots__ = ("_events", "_lock", "_telling")

    def __init__(self, lock: RLock) -> None:
        """Make an empty queue, guarded by the lock of what the events are about."""
        self._lock = lock
        # Guarded by the lock.
        self._events: list[E] = []
        self._telling = False

    def append(self, event: E) -> None:
        """Add an event; the caller holds the lock, under which the event became true."""
        self._events.append(event)

    def tell(self, listener: Callable[[E], object]) -> None:
        """Call the listener for each event in the queue; the caller does not hold the lock."""
        # Without the lock: a thread always sees the events that it appended itself, and those
        # of other threads are theirs to tell.
        if not self._events:
            return
        mine = False
        try:
            while True:
                with self._lock:
                    if self._telling is not mine:
                        return
                    # One statement, so that no interruption can come between the two.
                    self._telling = mine = bool(self._events)
                    if not mine:
                        return
                    event = self._events.pop(0)
                listener(event)
        finally:
            if mine:  # the listener was interrupted
                with self._lock:
                    self._telling = False
