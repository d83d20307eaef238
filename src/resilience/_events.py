"""Events told in the order in which they happened, one at a time, and never under a lock."""

from collections.abc import Callable
from threading import Condition, RLock
from typing import Generic, TypeVar, final

E = TypeVar("E")


@final
class EventQueue(Generic[E]):
    """A queue of events of type E, emptied by whichever thread comes first.

    A thread that finds another one telling events leaves its own to that one. So does a listener
    that causes an event itself, which is therefore told after the present one.
    """

    __slots__ = ("_events", "_lock", "_telling", "append")

    def __init__(self, lock: RLock) -> None:
        """Make an empty queue, guarded by the lock of what the events are about."""
        self._lock = lock
        # Guarded by the lock.
        self._events: list[E] = []
        self._telling = False
        # Adds an event; the caller holds the lock, under which the event became true. It is the
        # list's own method, so that no signal handler can cause a later event before this one.
        self.append: Callable[[E], None] = self._events.append

    def tell(self, listener: Callable[[E], object]) -> None:
        """Call the listener for each event in the queue.

        If the lock is held by this thread nothing is told: the caller then is a stream that a
        garbage collection has dropped in the middle of a locked section, and whoever leaves that
        section tells its events too.
        """
        # Without the lock: a thread always sees the events that it appended itself, and those
        # of other threads are theirs to tell.
        if not self._events or self._is_held():
            return
        mine = False
        try:
            while True:
                event: E | None = None
                with self._lock:
                    if self._telling is not mine:
                        return
                    # One statement, so that no interruption can come between the two.
                    self._telling = mine = bool(self._events)
                    if mine:
                        event = self._events.pop(0)
                if event is not None:
                    listener(event)
                elif not self._events:  # else one was added as the lock was left
                    return
        finally:
            if mine:  # the listener was interrupted: the others are told all the same
                with self._lock:
                    self._telling = False
                self.tell(listener)

    def _is_held(self) -> bool:
        """Tell whether this thread holds the lock."""
        try:
            Condition(self._lock).notify(0)  # wakes nobody, and refuses without the lock
        except RuntimeError:
            return False
        return True
