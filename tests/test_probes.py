"""Probes of a half-open breaker: their number, and the release of their slots."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest

from helpers import (
    TIMEOUT,
    count_free_slots,
    fail,
    in_threads,
    interrupt,
    refuse,
    rejection,
    succeed,
    trip,
)
from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    State,
    StateChange,
)
from resilience._breaker.periods import Probe
from resilience.testing import ManualClock

RESET_TIMEOUT = 10.0
THREADS = 16


@pytest.fixture
def config(clock: ManualClock) -> CircuitBreakerConfig:
    """Return settings of a breaker that opens after 2 failures and closes after 2 probes."""
    return CircuitBreakerConfig(
        max_failures=2,
        reset_timeout=RESET_TIMEOUT,
        half_open_max=2,
        failure_on=(ConnectionError, TimeoutError),
        clock=clock,
    )


@pytest.fixture
def due(config: CircuitBreakerConfig, clock: ManualClock) -> CircuitBreaker:
    """Return a breaker whose next call is a probe."""
    breaker = CircuitBreaker(config)
    trip(breaker)
    clock.advance(RESET_TIMEOUT)
    return breaker


HELD: list[AbstractContextManager[None]] = []


def begin(breaker: CircuitBreaker) -> AbstractContextManager[None]:
    """Begin a call that ends only when its guard is left."""
    guard = breaker.guard()
    guard.__enter__()
    HELD.append(guard)  # a guard that is dropped releases its slot
    return guard


@pytest.fixture(autouse=True)
def _release_all() -> Iterator[None]:
    """Drop the calls that did not end, after their test."""
    yield
    HELD.clear()


INTERRUPTIONS = [ValueError(), KeyboardInterrupt(), SystemExit(), GeneratorExit(), BaseException()]
"""Errors that are neither a success nor a failure, one of them an exception that does not count."""


def call(breaker: CircuitBreaker, way: str, error: BaseException) -> None:
    """Make a call that raises, in one of the ways to make calls."""

    def function() -> None:
        raise error

    def generator_function() -> Iterator[int]:
        yield 1
        raise error

    if way == "execute":
        breaker.execute(function)
    elif way == "guard":
        with breaker.guard():
            raise error
    elif way == "function":
        breaker(function)()
    else:
        list(breaker(generator_function)())


class TestSlots:
    """A probe that is neither a success nor a failure releases its slot."""

    @pytest.mark.parametrize(
        ("way", "error"),
        [
            pytest.param(way, error, id=f"{way}-{error!r}")
            for way in ("execute", "guard", "function", "generator function")
            for error in INTERRUPTIONS
            # A generator that is closed after an item also gets this one: a success.
            if way != "generator function" or not isinstance(error, GeneratorExit)
        ],
    )
    def test_probe(self, due: CircuitBreaker, error: BaseException, way: str) -> None:
        """A probe that is neither a success nor a failure releases its slot."""
        kept: list[object] = []  # the traceback of an exception refers to its probe
        for _ in range(5):
            with pytest.raises(type(error)) as caught:
                call(due, way, error)
            kept.append(caught.value)

        assert due.state is State.HALF_OPEN
        assert count_free_slots(due) == 2

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_successes_stay(self, due: CircuitBreaker, error: BaseException) -> None:
        """Releasing a slot does not change the successes of other probes."""
        succeed(due)
        fail(due, error)
        before = due.state

        succeed(due)

        assert before is State.HALF_OPEN
        assert due.state is State.CLOSED

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_count_stays(self, config: CircuitBreakerConfig, error: BaseException) -> None:
        """In a closed breaker the count of failures does not change."""
        breaker = CircuitBreaker(config)
        fail(breaker)
        fail(breaker, error)
        before = breaker.state

        fail(breaker)

        assert before is State.CLOSED
        assert breaker.state is State.OPEN

    def test_cancelled_stream(self, config: CircuitBreakerConfig, clock: ManualClock) -> None:
        """A stream that is closed before its first item releases its slot."""
        group = FallbackGroup("any", "model", FallbackConfig(circuit_breaker=config))
        breaker = group.breakers["model"]
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        for _ in range(5):
            group.stream(iter, lazy=True).close()

        assert count_free_slots(breaker) == 2

    @pytest.mark.parametrize("place", ["failure_on", "retry_after"])
    def test_interrupted_hook(
        self, config: CircuitBreakerConfig, clock: ManualClock, place: str
    ) -> None:
        """A hook that is interrupted takes no slot."""

        def counts(error: Exception) -> bool:
            if place == "failure_on" and isinstance(error, TimeoutError):
                raise KeyboardInterrupt
            return True

        def wait(error: Exception) -> None:
            if place == "retry_after" and isinstance(error, TimeoutError):
                raise KeyboardInterrupt

        breaker = CircuitBreaker(replace(config, failure_on=counts, retry_after=wait))
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        kept: list[object] = []  # the traceback of an exception refers to its probe
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt) as caught, breaker.guard():
                raise TimeoutError
            kept.append(caught.value)

        assert count_free_slots(breaker) == 2

    def test_interrupted_listener(self, config: CircuitBreakerConfig, clock: ManualClock) -> None:
        """A listener that is interrupted while a probe is admitted takes no slot."""

        def listen(change: StateChange) -> None:
            if change.new is State.HALF_OPEN:
                raise KeyboardInterrupt

        breaker = CircuitBreaker(replace(config, half_open_max=1, on_state_change=listen))
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        with pytest.raises(KeyboardInterrupt):
            breaker.execute(pytest.fail, "the call was interrupted before it began")

        assert count_free_slots(breaker) == 1


class TestForgottenProbes:
    """A probe to which no reference is left releases its slot."""

    def test_dropped(self, due: CircuitBreaker) -> None:
        """A permit that is dropped without an outcome releases its slot."""
        for _ in range(5):
            assert due._try_acquire() is not None

        assert count_free_slots(due) == 2

    def test_settled_twice(self, due: CircuitBreaker) -> None:
        """Only its first outcome is recorded, and no slot is released twice."""
        probe = due._acquire()

        due._release(probe)
        due._release(probe)
        due._record_success(probe)
        due._record_failure(probe, ConnectionError())
        del probe

        assert count_free_slots(due) == 2

    @pytest.mark.parametrize(
        ("way", "work"),
        [
            ("_record_success", str),
            ("_record_success_locked", str),
            ("_transition_locked", str),
            ("_record_failure", refuse),
            ("_record_failure_locked", refuse),
            ("_transition_locked", refuse),
        ],
    )
    def test_interrupted_while_it_is_settled(
        self,
        due: CircuitBreaker,
        monkeypatch: pytest.MonkeyPatch,
        way: str,
        work: Callable[[], object],
    ) -> None:
        """An interruption before the outcome is recorded releases the slot."""
        due.execute(str)  # the next success would close it

        with monkeypatch.context() as patch:
            patch.setattr(CircuitBreaker, way, interrupt)
            with pytest.raises(KeyboardInterrupt):
                due.execute(work)

        assert count_free_slots(due) == 1


class TestHungProbes:
    """A hung probe cannot block the breaker."""

    def test_one_more(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """With all slots taken, one more probe is admitted after each further `reset_timeout`."""
        begin(due)
        clock.advance(3)
        begin(due)
        seen = []
        for _ in range(3):
            clock.advance(RESET_TIMEOUT - 0.25)
            seen.append(rejection(due).retry_after)
            clock.advance(0.25)
            begin(due)
            seen.append(rejection(due).retry_after)

        assert seen == [0.25, RESET_TIMEOUT] * 3

    def test_more_probes_close(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """It closes when enough of the further probes have succeeded."""
        begin(due)
        begin(due)
        states = []
        for _ in range(2):
            clock.advance(RESET_TIMEOUT)
            succeed(due)
            states.append(due.state)

        assert states == [State.HALF_OPEN, State.CLOSED]

    def test_one_of_several_hangs(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """If one probe hangs, the successes of the others are counted."""
        begin(due)
        succeed(due)
        clock.advance(RESET_TIMEOUT)

        succeed(due)

        assert due.state is State.CLOSED

    def test_results_do_not_prolong(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """The time is measured from the last admission, whatever outcomes are recorded since."""
        begin(due)
        slow = begin(due)
        clock.advance(RESET_TIMEOUT - 1)
        slow.__exit__(None, None, None)
        before = count_free_slots(due)
        clock.advance(1)

        after = count_free_slots(due)

        assert (before, after) == (0, 1)

    def test_old_success_counts(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """A late success of an older probe is counted in the same half-open period."""
        old = [begin(due), begin(due)]
        clock.advance(RESET_TIMEOUT)
        begin(due)

        for guard in old:
            guard.__exit__(None, None, None)

        assert due.state is State.CLOSED

    def test_old_failure_counts(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """A late failure of an older probe opens the breaker in the same half-open period."""
        old = [begin(due), begin(due)]
        clock.advance(RESET_TIMEOUT)
        succeed(due)

        old[0].__exit__(ConnectionError, ConnectionError(), None)

        assert due.state is State.OPEN

    def test_a_slow_thread_lengthens_nothing(
        self, config: CircuitBreakerConfig, clock: ManualClock
    ) -> None:
        """A thread that is slow after reading the time does not set the last admission back."""
        times = iter([clock(), clock() + 100.0, clock() + 99.0 - RESET_TIMEOUT, clock() + 101.0])
        breaker = CircuitBreaker(replace(config, max_failures=1, clock=lambda: next(times)))
        fail(breaker)

        probes = [breaker._try_acquire() for _ in range(3)]

        assert [probe is not None for probe in probes] == [True, True, False]

    def test_a_released_slot_is_free_at_once(self, due: CircuitBreaker) -> None:
        """A slot that was released can be used at once."""
        begin(due)
        for _ in range(3):
            fail(due, KeyboardInterrupt())

        assert count_free_slots(due) == 1


class TestNumberOfProbes:
    """No more than the allowed probes are admitted, for any number of threads."""

    @pytest.mark.parametrize("allowed", [1, 2, 5])
    def test_threads(self, config: CircuitBreakerConfig, clock: ManualClock, allowed: int) -> None:
        """If many threads call at once, as many as allowed are admitted."""
        breaker = CircuitBreaker(replace(config, half_open_max=allowed))
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        assert rush(breaker) == allowed

    def test_hung(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """If many threads call while all probes hang, one is admitted."""
        begin(due)
        begin(due)
        clock.advance(RESET_TIMEOUT)

        assert rush(due) == 1

    def test_opens_once(self, config: CircuitBreakerConfig) -> None:
        """Many threads that fail at once open the breaker once."""
        changes: list[StateChange] = []
        breaker = CircuitBreaker(replace(config, on_state_change=changes.append))
        inside = threading.Barrier(THREADS)

        def call_and_fail() -> None:
            inside.wait(TIMEOUT)
            raise ConnectionError

        def work() -> None:
            with pytest.raises(ConnectionError):
                breaker.execute(call_and_fail)

        in_threads([work] * THREADS)

        assert [change.new for change in changes] == [State.OPEN]

    def test_counts_every_failure(self, config: CircuitBreakerConfig) -> None:
        """No failure is lost when many threads fail at once."""
        each = 50
        breaker = CircuitBreaker(replace(config, max_failures=THREADS * each + 1))

        def work() -> None:
            for _ in range(each):
                fail(breaker)

        in_threads([work] * THREADS)
        before = breaker.state
        fail(breaker)

        assert before is State.CLOSED
        assert breaker.state is State.OPEN


def rush(breaker: CircuitBreaker) -> int:
    """Begin calls that do not end in many threads at once, and count those that were admitted."""
    permits = in_threads([breaker._try_acquire] * THREADS)
    return sum(permit is not None for permit in permits)


def test_a_constructor_that_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe whose constructor was interrupted is deleted without an error."""
    errors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)

    Probe.__new__(Probe)
    gc.collect()

    assert not errors
