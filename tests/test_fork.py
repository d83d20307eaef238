"""What is replaced in a forked child, looked at without a fork."""

import threading
from collections.abc import Callable, Iterator

import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    FallbackGroup,
    State,
    StateChange,
    _fork,
)
from resilience._adapters.text import ReplayBuffer

LIMIT = 30.0


def in_thread(fn: Callable[[], object]) -> threading.Thread:
    """Start a thread."""
    thread = threading.Thread(target=fn)
    thread.start()
    return thread


def renew() -> None:
    """Do what is done in a forked child."""
    _fork._renew_all()


class Holder:
    """Runs a function in another thread, which stays in it until it is told to leave."""

    def __init__(self) -> None:
        """Prepare to hold."""
        self.held, self.over = threading.Event(), threading.Event()

    def hold(self, *_: object) -> None:
        """Stay here."""
        self.held.set()
        assert self.over.wait(LIMIT)


@pytest.fixture
def holder() -> Iterator[Holder]:
    """Return a holder that lets go at the end of the test."""
    holder = Holder()
    yield holder
    holder.over.set()


def test_a_breaker_whose_listener_runs_in_another_thread(holder: Holder) -> None:
    """The child does not leave its events to a thread that it does not have."""
    told: list[StateChange] = []

    def listen(change: StateChange) -> None:
        if threading.current_thread() is thread:
            holder.hold()
        told.append(change)

    breaker = CircuitBreaker(CircuitBreakerConfig(on_state_change=listen))
    thread = threading.Thread(target=breaker.isolate)
    thread.start()
    assert holder.held.wait(LIMIT)

    renew()
    breaker.reset()

    assert [change.new for change in told] == [State.CLOSED]
    holder.over.set()
    thread.join(LIMIT)


def test_a_breaker_whose_lock_another_thread_holds(holder: Holder) -> None:
    """The child has a lock of its own."""
    breaker = CircuitBreaker()
    thread = in_thread(lambda: breaker._events.run_locked(holder.hold))
    assert holder.held.wait(LIMIT)

    renew()
    breaker.isolate()

    assert breaker.state is State.OPEN
    holder.over.set()
    thread.join(LIMIT)


def test_a_breaker_that_this_thread_has_locked() -> None:
    """A signal handler that forks in a locked section has a child that announces after it."""
    told: list[StateChange] = []
    breaker = CircuitBreaker(CircuitBreakerConfig(on_state_change=told.append))
    seen: list[int] = []

    def fork() -> None:
        renew()
        breaker.isolate()
        seen.append(len(told))

    breaker._events.run_locked(fork)

    assert seen == [0]
    assert [change.new for change in told] == [State.OPEN]


def test_a_group_whose_lock_another_thread_holds() -> None:
    """Providers can be added in the child."""
    group = FallbackGroup("a", "a")
    group._lock.acquire()

    renew()
    group.add_fallback("b", "b")

    assert list(group.breakers) == ["a", "b"]


def test_a_text_that_another_thread_reads(holder: Holder) -> None:
    """The child does not wait for a fragment that no thread fetches there."""

    def fragments() -> Iterator[str]:
        yield "One "
        holder.hold()
        yield "two."

    text = ReplayBuffer(fragments())
    reader = text.reader()
    thread = in_thread(lambda: list(reader))
    assert holder.held.wait(LIMIT)

    renew()
    with pytest.raises(ValueError, match="already executing"):
        list(text.reader())  # the generator is that of the parent, and never goes on
    text.close()

    assert text.input_wait() == 0.0
    holder.over.set()
    thread.join(LIMIT)


def test_a_text_that_this_thread_reads() -> None:
    """A text whose source forks goes on in the child."""

    def fragments() -> Iterator[str]:
        yield "One "
        renew()
        yield "two."

    text = ReplayBuffer(fragments())

    assert list(text.reader()) == ["One ", "two."]


def test_where_nothing_forks() -> None:
    """Where a process cannot be forked, nothing is registered."""
    assert _fork._ignore(after_in_child=renew) is None  # type: ignore[func-returns-value]


def test_a_listener_that_forks() -> None:
    """In its child it is still the one that announces, and goes on after its end."""
    told: list[State] = []

    def listen(change: StateChange) -> None:
        told.append(change.new)
        if len(told) == 1:
            renew()
            breaker.reset()
            assert len(told) == 1

    breaker = CircuitBreaker(CircuitBreakerConfig(on_state_change=listen))
    breaker.isolate()

    assert told == [State.OPEN, State.CLOSED]
