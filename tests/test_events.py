"""Events that are added at places where only a garbage collection or a signal can add them.

How a breaker's listeners are called stands in `test_circuit_rules.py`.
"""

from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

from resilience import State, StateChange
from resilience._breaker.events import EventQueue

if TYPE_CHECKING:
    from collections.abc import Callable


def change(name: str) -> StateChange:
    """Return an event with a name."""
    return StateChange(name=name, old=State.CLOSED, new=State.OPEN)


class DisturbedLock:
    """A reentrant lock that lets something happen before it is released, and after that."""

    def __init__(self) -> None:
        """Make a free lock with which nothing happens."""
        self._lock = RLock()
        self.depth = 0
        self.after_acquire: Callable[[], object] = lambda: None
        self.before_release: Callable[[], object] = lambda: None
        self.after_release: Callable[[], object] = lambda: None

    def __enter__(self) -> None:
        """Take the lock."""
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
        """Let it happen, and free the lock."""
        happen, self.before_release = self.before_release, lambda: None
        happen()
        self.depth -= 1
        self._lock.release()
        happen, self.after_release = self.after_release, lambda: None
        happen()


class Disturbed:
    """A queue with a disturbed lock, and what its listener was told, and at which depth."""

    def __init__(self) -> None:
        """Make an empty queue."""
        self.lock = DisturbedLock()
        self.told: list[str] = []
        self.depths: list[int] = []
        self.queue = EventQueue(self.listen)
        lock: Any = self.lock
        self.queue._lock = lock

    def listen(self, event: StateChange) -> None:
        """Be told of an event."""
        self.told.append(event.name)
        self.depths.append(self.lock.depth)

    def add(self, name: str) -> None:
        """Add an event, in a locked section of its own."""
        self.queue.run_locked(self.queue.append, change(name))


@pytest.mark.parametrize("place", ["after_acquire", "before_release", "after_release"])
def test_added_inside_another_section(place: str) -> None:
    """What is added while this thread has the lock, or just had it, is told after its release."""
    disturbed = Disturbed()
    setattr(disturbed.lock, place, lambda: disturbed.add("nested"))

    disturbed.add("outer")

    assert sorted(disturbed.told) == ["nested", "outer"]
    assert disturbed.depths == [0, 0]


@pytest.mark.parametrize("place", ["after_acquire", "before_release", "after_release"])
def test_added_while_the_queue_starts_to_announce(place: str) -> None:
    """An event that is added as the announcing starts is told too, once, and outside the lock."""
    disturbed = Disturbed()
    disturbed.lock.after_release = lambda: setattr(
        disturbed.lock, place, lambda: disturbed.add("second")
    )

    disturbed.add("first")

    assert sorted(disturbed.told) == ["first", "second"]
    assert disturbed.depths == [0, 0]


def test_added_by_the_listener() -> None:
    """An event that a listener causes is told after the present one."""
    disturbed = Disturbed()
    ends: list[str] = []

    def listen(event: StateChange) -> None:
        disturbed.listen(event)
        if event.name == "first":
            disturbed.add("second")
        ends.append(event.name)

    disturbed.queue._listener = listen
    disturbed.add("first")

    assert disturbed.told == ["first", "second"]
    assert ends == ["first", "second"]


def test_an_interrupted_listener() -> None:
    """After a listener was interrupted, the remaining events are told, and later ones too."""
    disturbed = Disturbed()

    def listen(event: StateChange) -> None:
        disturbed.listen(event)
        if event.name == "first":
            disturbed.add("second")
            raise KeyboardInterrupt

    disturbed.queue._listener = listen
    with pytest.raises(KeyboardInterrupt):
        disturbed.add("first")
    disturbed.add("third")

    assert disturbed.told == ["first", "second", "third"]


def test_another_thread_is_faster() -> None:
    """Who finds another thread announcing, at the last moment, leaves its event to that one."""
    disturbed = Disturbed()
    another = -1

    def be_faster() -> None:
        disturbed.queue._announcer = another

    disturbed.lock.after_release = lambda: setattr(disturbed.lock, "after_acquire", be_faster)
    disturbed.add("first")
    before = list(disturbed.told)
    disturbed.queue._announcer = None  # the other one ends
    disturbed.add("second")

    assert before == []
    assert disturbed.told == ["first", "second"]
