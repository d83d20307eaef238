"""The replacement of locks in a forked child, tested without a fork."""

import threading
from collections.abc import Iterator

import pytest

from helpers import TIMEOUT, Hang, in_thread, running
from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    FallbackGroup,
    State,
    StateChange,
    _fork,
)
from resilience._adapters.text import ReplayBuffer


def renew() -> None:
    """Replace the locks, as in a forked child."""
    _fork._renew_all()


def test_a_breaker_whose_listener_runs_in_another_thread(hang: Hang) -> None:
    """The child does not leave its events to a thread that does not exist in it."""
    main = threading.current_thread()
    changes: list[StateChange] = []

    def listen(change: StateChange) -> None:
        if threading.current_thread() is not main:
            hang()
        changes.append(change)

    breaker = CircuitBreaker(CircuitBreakerConfig(on_state_change=listen))
    with running(breaker.isolate):
        assert hang.entered.wait(TIMEOUT)

        renew()
        breaker.reset()

        assert [change.new for change in changes] == [State.CLOSED]
        hang.over.set()


def test_a_breaker_whose_lock_another_thread_holds(hang: Hang) -> None:
    """The child has a lock of its own."""
    breaker = CircuitBreaker()
    with running(lambda: breaker._events.run_locked(hang)):
        assert hang.entered.wait(TIMEOUT)

        renew()
        breaker.isolate()

        assert breaker.state is State.OPEN
        hang.over.set()


def test_a_thread_with_the_number_of_one_of_the_parent(
    hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of the child may get the number of a thread that held the lock in the parent."""
    changes: list[StateChange] = []
    breaker = CircuitBreaker(CircuitBreakerConfig(on_state_change=changes.append))
    with running(lambda: breaker._events.run_locked(hang)) as holder:
        assert hang.entered.wait(TIMEOUT)

        renew()
        monkeypatch.setattr("resilience._breaker.events.get_ident", lambda: holder.ident)
        breaker.isolate()

        assert [change.new for change in changes] == [State.OPEN]
        hang.over.set()


def test_a_breaker_that_this_thread_has_locked() -> None:
    """If a signal handler forks in a locked section, the child delivers events after it."""
    changes: list[StateChange] = []
    breaker = CircuitBreaker(CircuitBreakerConfig(on_state_change=changes.append))
    seen: list[int] = []

    def fork() -> None:
        renew()
        breaker.isolate()
        seen.append(len(changes))

    breaker._events.run_locked(fork)

    assert seen == [0]
    assert [change.new for change in changes] == [State.OPEN]


def test_a_group_whose_lock_another_thread_holds() -> None:
    """Providers can be added in the child."""
    group = FallbackGroup("a", "a")
    in_thread(group._lock.acquire)

    renew()
    assert group._lock.acquire(blocking=False)  # before this thread waits for it
    group.add_fallback("b", "b")

    assert list(group.breakers) == ["a", "b"]


def test_a_text_that_another_thread_reads(hang: Hang) -> None:
    """The child does not wait for a fragment that another thread of the parent was reading."""

    def fragments() -> Iterator[str]:
        yield "One "
        hang()
        yield "two."

    text = ReplayBuffer(fragments())
    reader = text.reader()
    with running(lambda: list(reader)):
        assert hang.entered.wait(TIMEOUT)

        renew()
        waited = text.input_wait()

        assert text.input_wait() == waited  # no thread of the child waits
        with pytest.raises(ValueError, match="already executing"):
            list(text.reader())  # the generator is that of the parent, and never continues
        text.close()
        hang.over.set()


@pytest.mark.parametrize("before", [[], ["One "]])
def test_a_text_that_this_thread_reads(before: list[str]) -> None:
    """A text whose source forks can be read to its end in the child, and then nobody waits."""

    def fragments() -> Iterator[str]:
        yield from before
        renew()
        yield "two."

    text = ReplayBuffer(fragments())

    # This thread is not that of the attempt, so its wait for a second fragment is not measured.
    assert list(text.reader(lambda: None)) == [*before, "two."]
    waited = text.input_wait()
    assert text.input_wait() == waited


def test_where_nothing_forks() -> None:
    """Where a process cannot be forked, nothing is registered."""
    assert _fork._ignore(after_in_child=renew) is None  # type: ignore[func-returns-value]


def test_a_listener_that_forks() -> None:
    """In its child the thread of the listener still delivers the events."""
    changes: list[State] = []

    def listen(change: StateChange) -> None:
        changes.append(change.new)
        if len(changes) == 1:
            renew()
            breaker.reset()
            assert len(changes) == 1

    breaker = CircuitBreaker(CircuitBreakerConfig(on_state_change=listen))
    breaker.isolate()

    assert changes == [State.OPEN, State.CLOSED]
