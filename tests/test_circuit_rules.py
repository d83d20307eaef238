"""Rules of the breaker: locks, late results, lost slots, order of events, time."""

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar

import pytest
from typing_extensions import override

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    State,
    StateChange,
)
from resilience.testing import ManualClock

R = TypeVar("R")

PATIENCE = 10.0  # seconds of real time, after which a thread counts as blocked
RESET_TIMEOUT = 10.0
THREADS = 16


def in_threads(functions: Sequence[Callable[[], R]]) -> list[R]:
    """Call each function in a thread of its own, at the same time, and wait for all."""
    barrier = threading.Barrier(len(functions))
    results: SimpleQueue[R] = SimpleQueue()
    errors: SimpleQueue[BaseException] = SimpleQueue()

    def work(function: Callable[[], R]) -> None:
        barrier.wait(PATIENCE)
        try:
            results.put(function())
        except BaseException as error:  # noqa: BLE001
            errors.put(error)

    threads = [threading.Thread(target=work, args=(each,), daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert not any(thread.is_alive() for thread in threads), "a thread is blocked"
    if not errors.empty():
        raise errors.get()
    return [results.get() for _ in functions]


def elsewhere(function: Callable[[], object]) -> None:
    """Call a function in another thread, and wait for it."""
    in_threads([function])


def fail(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """Make a call that raises."""
    error = error or ConnectionError()
    with pytest.raises(type(error)), breaker.guard():
        raise error


def refuse() -> NoReturn:
    """Fail like a provider that is down."""
    raise ConnectionError


def succeed(breaker: CircuitBreaker) -> None:
    """Make a call that succeeds."""
    assert breaker.execute(lambda: "ok") == "ok"


def trip(breaker: CircuitBreaker) -> None:
    """Open a breaker by failures."""
    while breaker.state is State.CLOSED:
        fail(breaker)


def count_free_slots(breaker: CircuitBreaker) -> int:
    """Tell how many calls are admitted at the same time; none of them is recorded."""
    free = 0
    with contextlib.suppress(KeyboardInterrupt, CircuitOpenError), contextlib.ExitStack() as stack:
        while free < 100:
            stack.enter_context(breaker.guard())
            free += 1
        raise KeyboardInterrupt
    return free


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still."""
    return ManualClock(1000.0)


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


class Foreign:
    """Foreign code in one place of a breaker, which uses the breaker in another thread."""

    def __init__(self, place: str) -> None:
        """Do nothing yet, in one of the places."""
        self.clock = ManualClock()
        self.visits = 0
        self._is_active = False
        self._place = place
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(
                max_failures=1,
                half_open_max=1,
                reset_timeout=RESET_TIMEOUT,
                failure_on=self._counts,
                retry_after=self._wait,
                on_state_change=lambda _: self.visit("on_state_change"),
                clock=self._read,
            )
        )

    def _counts(self, _: Exception) -> bool:
        self.visit("failure_on")
        return True

    def _wait(self, _: Exception) -> None:
        self.visit("retry_after")

    def _read(self) -> float:
        self.visit("clock")
        return self.clock()

    def visit(self, place: str) -> None:
        """Use the breaker in another thread, if this is the place."""
        if self._is_active and place == self._place:
            self._is_active = False
            self.visits += 1
            elsewhere(self.breaker.reset)
            elsewhere(lambda: fail(self.breaker))
            elsewhere(self.breaker.reset)

    def prepare(self, state: str) -> None:
        """Bring the breaker into a state."""
        if state != "closed":
            fail(self.breaker)
        if state == "due":
            self.clock.advance(RESET_TIMEOUT)

    def act(self, action: str) -> None:
        """Do something with the breaker."""
        self._is_active = True
        with contextlib.suppress(ConnectionError, CircuitOpenError):
            if action == "succeed":
                self.breaker.execute(self.visit, "fn")
            elif action == "fail":
                with self.breaker.guard():
                    self.visit("fn")
                    raise ConnectionError
            elif action == "iterate":
                list(self.breaker(self._iterate)())
            elif action == "state":
                assert self.breaker.state in State
            elif action == "reset":
                self.breaker.reset()
            else:
                self.breaker.isolate()

    def _iterate(self) -> Iterator[int]:
        self.visit("fn")
        yield 1


class ForeignHandler(logging.Handler):
    """A log handler that is foreign code."""

    def __init__(self, foreign: Foreign) -> None:
        """Handle the records of a breaker."""
        super().__init__()
        self._foreign = foreign

    @override
    def handle(self, record: logging.LogRecord) -> bool:
        """Take no lock: another thread logs while this one handles a record."""
        self._foreign.visit("log handler")
        return True


class TestLock:
    """The lock is never held while foreign code runs."""

    @pytest.mark.parametrize(
        ("place", "state", "action"),
        [
            ("fn", "closed", "succeed"),
            ("fn", "closed", "fail"),
            ("fn", "closed", "iterate"),
            ("fn", "due", "succeed"),
            ("fn", "due", "fail"),
            ("fn", "due", "iterate"),
            ("failure_on", "closed", "fail"),
            ("failure_on", "due", "fail"),
            ("retry_after", "closed", "fail"),
            ("retry_after", "due", "fail"),
            ("on_state_change", "closed", "fail"),
            ("on_state_change", "closed", "isolate"),
            ("on_state_change", "open", "reset"),
            ("on_state_change", "due", "succeed"),
            ("on_state_change", "due", "fail"),
            ("log handler", "closed", "fail"),
            ("log handler", "closed", "isolate"),
            ("log handler", "closed", "reset"),
            ("log handler", "due", "succeed"),
            ("log handler", "due", "fail"),
            ("clock", "closed", "fail"),
            ("clock", "open", "succeed"),
            ("clock", "open", "state"),
            ("clock", "due", "succeed"),
            ("clock", "due", "fail"),
            ("clock", "due", "state"),
        ],
    )
    def test_is_free(
        self, caplog: pytest.LogCaptureFixture, place: str, state: str, action: str
    ) -> None:
        """Other threads can use the breaker while fn, a hook, a listener or the clock runs."""
        foreign = Foreign(place)
        foreign.prepare(state)
        handler = ForeignHandler(foreign)
        logger = logging.getLogger("resilience")
        caplog.set_level(logging.DEBUG, logger.name)

        logger.addHandler(handler)
        try:
            foreign.act(action)
        finally:
            logger.removeHandler(handler)

        assert foreign.visits == 1

    def test_healthy_path_takes_no_lock(
        self, config: CircuitBreakerConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A closed breaker with a count of 0 admits calls and records successes without a lock."""
        lock = threading.RLock()
        monkeypatch.setattr("resilience._breaker.events.RLock", lambda: lock)
        breaker = CircuitBreaker(config)

        def use() -> State:
            succeed(breaker)
            breaker(len)("decorated")
            with breaker.guard():
                return breaker.state

        with lock:
            elsewhere(use)


LATE_RESULTS = {
    "success": None,
    "failure": ConnectionError(),
    "retry after": TimeoutError(),
    "uncounted": ValueError(),
    "interruption": KeyboardInterrupt(),
}


class TestLateResults:
    """A result belongs to the period that admitted the call."""

    @pytest.mark.parametrize("admitted", ["closed", "half-open"])
    @pytest.mark.parametrize("first", [succeed, fail], ids=["succeed", "fail"])
    @pytest.mark.parametrize(
        ("since", "result"),
        [
            pytest.param(since, result, id=f"{since}-{name}")
            for since in ("opened", "probing", "half probed", "closed", "reset", "isolated")
            for name, result in LATE_RESULTS.items()
            if (since, name) != ("opened", "retry after")  # this one lengthens the period
        ],
    )
    def test_changes_nothing(
        self,
        admitted: str,
        since: str,
        first: Callable[[CircuitBreaker], None],
        result: BaseException | None,
    ) -> None:
        """A breaker goes on after a late result as it does without it."""
        one, other = Life(admitted, since), Life(admitted, since)

        one.end_late_call(result)

        assert one.go_on(first) == other.go_on(first)
        assert one.changes == other.changes

    @pytest.mark.parametrize("admitted", ["closed", "half-open"])
    def test_longer_delay(self, admitted: str) -> None:
        """A longer delay that a late failure brings lengthens the present open period."""
        life = Life(admitted, "opened")
        changes = len(life.changes)

        life.end_late_call(TimeoutError())
        waits = [refusal(life.breaker)]
        life.clock.advance(59.0)
        waits.append(refusal(life.breaker))
        life.clock.advance(1.0)

        assert waits == [60.0, 1.0]
        assert len(life.changes) == changes
        assert count_free_slots(life.breaker) == 2


class Life:
    """A breaker that has changed its state since it admitted a call, which is still under way."""

    def __init__(self, admitted: str, since: str) -> None:
        """Admit a call in one state, and go on to another."""
        self.clock = ManualClock()
        self.changes: list[tuple[State, State]] = []
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(
                max_failures=2,
                half_open_max=2,
                reset_timeout=RESET_TIMEOUT,
                failure_on=(ConnectionError, TimeoutError),
                retry_after=lambda error: 60.0 if isinstance(error, TimeoutError) else None,
                on_state_change=lambda change: self.changes.append((change.old, change.new)),
                clock=self.clock,
            )
        )
        if admitted == "half-open":
            self._open()
            self.clock.advance(RESET_TIMEOUT)
        self._late = self.breaker.guard()
        self._late.__enter__()
        self._probe = self.breaker.guard()
        self._move_on(since)

    def _open(self) -> None:
        while self.breaker.state is not State.OPEN:
            fail(self.breaker)

    def _move_on(self, since: str) -> None:
        if since == "isolated":
            self.breaker.isolate()
            return
        if since == "reset":
            self.breaker.reset()
            fail(self.breaker)
            return
        self._open()
        self.clock.advance(RESET_TIMEOUT / 2)
        if since == "opened":
            return
        self.clock.advance(RESET_TIMEOUT / 2)
        if since == "probing":
            self._probe.__enter__()
            return
        succeed(self.breaker)
        if since == "closed":
            succeed(self.breaker)
            fail(self.breaker)

    def end_late_call(self, error: BaseException | None) -> None:
        """Let the call that was admitted long ago end."""
        if error is None:
            self._late.__exit__(None, None, None)
        else:
            assert not self._late.__exit__(type(error), error, None)

    def go_on(self, first: Callable[[CircuitBreaker], None]) -> list[object]:
        """Use the breaker, and return all that can be observed."""
        seen: list[object] = [self.breaker.state]
        for use in (first, fail, succeed, succeed, fail, fail):
            try:
                use(self.breaker)
                seen.append("admitted")
            except CircuitOpenError as error:
                seen.append(error.retry_after)
            seen.append(self.breaker.state)
            self.clock.advance(RESET_TIMEOUT / 4)
            if self.breaker.state is not State.CLOSED:
                seen.append(count_free_slots(self.breaker))
        return seen


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
    """A probe slot is always released."""

    @pytest.mark.parametrize(
        ("way", "error"),
        [
            pytest.param(way, error, id=f"{way}-{error!r}")
            for way in ("execute", "guard", "function", "generator function")
            for error in INTERRUPTIONS
            # This one is also what a generator that is left after an item gets: a success.
            if way != "generator function" or not isinstance(error, GeneratorExit)
        ],
    )
    def test_probe(self, due: CircuitBreaker, error: BaseException, way: str) -> None:
        """A probe that is neither a success nor a failure releases its slot."""
        for _ in range(5):
            with pytest.raises(type(error)):
                call(due, way, error)

        assert due.state is State.HALF_OPEN
        assert count_free_slots(due) == 2

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_successes_stay(self, due: CircuitBreaker, error: BaseException) -> None:
        """A slot that is released leaves the successes of other probes as they are."""
        succeed(due)
        fail(due, error)
        before = due.state

        succeed(due)

        assert before is State.HALF_OPEN
        assert due.state is State.CLOSED

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_count_stays(self, config: CircuitBreakerConfig, error: BaseException) -> None:
        """In a closed breaker the count stays as it is."""
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

        for _ in range(3):
            with pytest.raises(KeyboardInterrupt), breaker.guard():
                raise TimeoutError

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

        def interrupt(*_: object) -> NoReturn:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(CircuitBreaker, way, interrupt)
            with pytest.raises(KeyboardInterrupt):
                due.execute(work)

        assert count_free_slots(due) == 1


class TestHungProbes:
    """A hung probe cannot block the breaker."""

    def test_one_more(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """With all slots taken, one more probe is admitted after each further `reset_timeout`."""
        hang(due)
        clock.advance(3)
        hang(due)
        seen = []
        for _ in range(3):
            clock.advance(RESET_TIMEOUT - 0.25)
            seen.append(refusal(due))
            clock.advance(0.25)
            hang(due)
            seen.append(refusal(due))

        assert seen == [0.25, RESET_TIMEOUT] * 3

    def test_more_probes_close(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """It closes when enough of the further probes have succeeded."""
        hang(due)
        hang(due)
        states = []
        for _ in range(2):
            clock.advance(RESET_TIMEOUT)
            succeed(due)
            states.append(due.state)

        assert states == [State.HALF_OPEN, State.CLOSED]

    def test_one_of_several_hangs(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """The successes of the other probes count."""
        hang(due)
        succeed(due)
        clock.advance(RESET_TIMEOUT)

        succeed(due)

        assert due.state is State.CLOSED

    def test_results_do_not_prolong(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """The time runs from the last admission, whatever outcomes are recorded since."""
        hang(due)
        slow = hang(due)
        clock.advance(RESET_TIMEOUT - 1)
        slow.__exit__(None, None, None)
        before = count_free_slots(due)
        clock.advance(1)

        after = count_free_slots(due)

        assert (before, after) == (0, 1)

    def test_old_success_counts(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """A late success of an older probe counts in the same half-open period."""
        old = [hang(due), hang(due)]
        clock.advance(RESET_TIMEOUT)
        hang(due)

        for guard in old:
            guard.__exit__(None, None, None)

        assert due.state is State.CLOSED

    def test_old_failure_counts(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """A late failure of an older probe opens the breaker in the same half-open period."""
        old = [hang(due), hang(due)]
        clock.advance(RESET_TIMEOUT)
        succeed(due)

        old[0].__exit__(ConnectionError, ConnectionError(), None)

        assert due.state is State.OPEN

    def test_a_clock_may_begin_below_zero(self, config: CircuitBreakerConfig) -> None:
        """A hung probe is replaced on time whatever the clock showed at its beginning."""
        clock = ManualClock(-1000.0)
        breaker = CircuitBreaker(replace(config, max_failures=1, half_open_max=1, clock=clock))
        fail(breaker)
        clock.advance(RESET_TIMEOUT)
        hang(breaker)
        clock.advance(RESET_TIMEOUT)

        assert count_free_slots(breaker) == 1

    def test_a_slow_thread_lengthens_nothing(
        self, config: CircuitBreakerConfig, clock: ManualClock
    ) -> None:
        """A thread that is slow after reading the time does not move the last admission back."""
        times = iter([clock(), clock() + 100.0, clock() + 99.0 - RESET_TIMEOUT, clock() + 101.0])
        breaker = CircuitBreaker(replace(config, max_failures=1, clock=lambda: next(times)))
        fail(breaker)

        probes = [breaker._try_acquire() for _ in range(3)]

        assert [probe is not None for probe in probes] == [True, True, False]

    def test_a_released_slot_is_free_at_once(self, due: CircuitBreaker) -> None:
        """A slot that was released can be used at once."""
        hang(due)
        for _ in range(3):
            fail(due, KeyboardInterrupt())

        assert count_free_slots(due) == 1


HELD: list[AbstractContextManager[None]] = []


def hang(breaker: CircuitBreaker) -> AbstractContextManager[None]:
    """Begin a call that does not end, unless its guard is left."""
    guard = breaker.guard()
    guard.__enter__()
    HELD.append(guard)  # a guard that is dropped releases its slot
    return guard


@pytest.fixture(autouse=True)
def _release_all() -> Iterator[None]:
    """End the calls that hang at the end of their test."""
    yield
    HELD.clear()


def refusal(breaker: CircuitBreaker) -> float | None:
    """Make a call that is rejected, and return the error's `retry_after`."""
    with pytest.raises(CircuitOpenError) as raised:
        breaker.execute(pytest.fail, "admitted")
    return raised.value.retry_after


class TestNumberOfProbes:
    """No more than the allowed probes, however many threads arrive at once."""

    @pytest.mark.parametrize("allowed", [1, 2, 5])
    def test_threads(self, config: CircuitBreakerConfig, clock: ManualClock, allowed: int) -> None:
        """Of many threads that arrive at once, as many as allowed are admitted."""
        breaker = CircuitBreaker(replace(config, half_open_max=allowed))
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        assert rush(breaker) == allowed

    def test_hung(self, due: CircuitBreaker, clock: ManualClock) -> None:
        """Of many threads that arrive when all probes hang, one is admitted."""
        hang(due)
        hang(due)
        clock.advance(RESET_TIMEOUT)

        assert rush(due) == 1

    def test_opens_once(self, config: CircuitBreakerConfig) -> None:
        """Many threads that fail at once open the breaker once."""
        changes: list[StateChange] = []
        breaker = CircuitBreaker(replace(config, on_state_change=changes.append))
        inside = threading.Barrier(THREADS)

        def call() -> None:
            inside.wait(PATIENCE)
            raise ConnectionError

        def work() -> None:
            with pytest.raises(ConnectionError):
                breaker.execute(call)

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

    def begin() -> bool:
        try:
            hang(breaker)
        except CircuitOpenError:
            return False
        return True

    return in_threads([begin] * THREADS).count(True)


class TestEvents:
    """Events are delivered in order, one at a time, outside the lock."""

    def test_from_many_threads(self, config: CircuitBreakerConfig) -> None:
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

        breaker = CircuitBreaker(replace(config, on_state_change=listen))

        def work() -> None:
            for _ in range(20):
                breaker.isolate()
                breaker.reset()

        in_threads([work] * 8)

        assert overlaps == []
        assert changes[0].old is State.CLOSED
        assert all(one.new is other.old for one, other in pairwise(changes))
        assert changes[-1].new is State.CLOSED

    def test_none_is_lost(self, config: CircuitBreakerConfig) -> None:
        """A change during the report of another one is reported next, by the same thread."""
        changes: list[tuple[State, threading.Thread]] = []

        def listen(change: StateChange) -> None:
            changes.append((change.new, threading.current_thread()))
            if change.new is State.OPEN:
                elsewhere(breaker.reset)

        breaker = CircuitBreaker(replace(config, on_state_change=listen))
        breaker.isolate()

        here = threading.current_thread()
        assert changes == [(State.OPEN, here), (State.CLOSED, here)]

    def test_listener_uses_the_breaker(self, config: CircuitBreakerConfig) -> None:
        """A change that a listener causes is reported after the present one."""
        reported: list[tuple[str, State]] = []

        def listen(change: StateChange) -> None:
            reported.append(("begin", change.new))
            if change.new is State.OPEN:
                breaker.reset()
                succeed(breaker)
            reported.append(("end", change.new))

        breaker = CircuitBreaker(replace(config, on_state_change=listen))
        breaker.isolate()

        assert reported == [
            ("begin", State.OPEN),
            ("end", State.OPEN),
            ("begin", State.CLOSED),
            ("end", State.CLOSED),
        ]

    def test_listener_sees_the_change(self, config: CircuitBreakerConfig) -> None:
        """A change is reported after it has been made."""
        states: list[State] = []
        breaker = CircuitBreaker(
            replace(config, on_state_change=lambda _: states.append(breaker.state))
        )

        trip(breaker)
        breaker.reset()

        assert states == [State.OPEN, State.CLOSED]

    def test_listener_raises(
        self,
        config: CircuitBreakerConfig,
        clock: ManualClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A listener that raises is logged and harms nothing."""
        states: list[State] = []

        def listen(change: StateChange) -> None:
            states.append(change.new)
            raise RuntimeError

        breaker = CircuitBreaker(replace(config, on_state_change=listen))
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        succeed(breaker)
        succeed(breaker)

        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert states == [State.OPEN, State.HALF_OPEN, State.CLOSED]
        assert len(errors) == 3
        assert errors[0].getMessage().startswith("on_state_change raised RuntimeError at ")

    def test_log_handler_raises(self, config: CircuitBreakerConfig) -> None:
        """The listener is called even if a log handler raises."""
        reported: list[State] = []
        breaker = CircuitBreaker(
            replace(config, on_state_change=lambda change: reported.append(change.new))
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

    def test_listener_is_interrupted(self, config: CircuitBreakerConfig) -> None:
        """A change during a listener that is interrupted is reported all the same."""
        states: list[State] = []

        def listen(change: StateChange) -> None:
            states.append(change.new)
            if len(states) == 1:
                breaker.reset()
                raise KeyboardInterrupt

        breaker = CircuitBreaker(replace(config, on_state_change=listen))
        with pytest.raises(KeyboardInterrupt):
            breaker.isolate()

        assert states == [State.OPEN, State.CLOSED]
        assert breaker.state is State.CLOSED


class TestTime:
    """Time comes from `clock` only; it is read once for each decision."""

    @pytest.mark.parametrize(
        ("state", "action", "reads"),
        [
            ("closed", "state", 0),
            ("closed", "succeed", 0),
            ("closed", "fail", 1),
            ("closed", "uncounted", 0),
            ("closed", "reset", 0),
            ("closed", "isolate", 0),
            ("open", "state", 1),
            ("open", "succeed", 1),
            ("open", "reset", 0),
            ("due", "state", 1),
            ("due", "succeed", 1),
            ("due", "fail", 2),
            ("due", "uncounted", 1),
            ("full", "state", 0),
            ("full", "succeed", 1),
        ],
    )
    def test_reads(
        self, config: CircuitBreakerConfig, clock: ManualClock, state: str, action: str, reads: int
    ) -> None:
        """An admission, a rejection, a failure and a look at the state read it at most once."""
        times: list[float] = []

        def read() -> float:
            times.append(clock())
            return times[-1]

        breaker = CircuitBreaker(replace(config, half_open_max=1, clock=read))
        if state != "closed":
            trip(breaker)
        if state in {"due", "full"}:
            clock.advance(RESET_TIMEOUT)
        if state == "full":
            hang(breaker)
        times.clear()

        act(breaker, action)

        assert len(times) == reads

    def test_refusal_is_consistent(self, config: CircuitBreakerConfig) -> None:
        """`retry_after` of a rejection is measured at the time of the rejection."""
        times = iter([0.0, 0.0, 9.0, 1000.0])
        breaker = CircuitBreaker(replace(config, clock=lambda: next(times)))
        fail(breaker)
        fail(breaker)

        assert refusal(breaker) == 1

    def test_reopened_while_time_is_read(
        self, config: CircuitBreakerConfig, clock: ManualClock
    ) -> None:
        """A call that reads the time while the last probe fails is rejected."""
        interludes: list[Callable[[], object]] = []

        def read() -> float:
            if interludes:
                interludes.pop()()
            return clock()

        breaker = CircuitBreaker(replace(config, clock=read))
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        probe = hang(breaker)
        error = ConnectionError()
        interludes.append(lambda: probe.__exit__(ConnectionError, error, None))

        assert refusal(breaker) == RESET_TIMEOUT


def act(breaker: CircuitBreaker, action: str) -> None:
    """Do one thing with a breaker."""
    with contextlib.suppress(CircuitOpenError, ConnectionError, ValueError):
        if action == "state":
            assert breaker.state in State
        elif action == "reset":
            breaker.reset()
        elif action == "isolate":
            breaker.isolate()
        elif action == "succeed":
            breaker.execute(str)
        else:
            call(breaker, "execute", ConnectionError() if action == "fail" else ValueError())


class TestRetryAfter:
    """If `retry_after(exc)` returns a number, the breaker opens at once, for at least so long."""

    def test_number(self, config: CircuitBreakerConfig, clock: ManualClock) -> None:
        """One failure with a number opens it, at least for that time."""
        breaker = CircuitBreaker(replace(config, retry_after=lambda _: 60.0))
        fail(breaker)
        clock.advance(59)
        before = breaker.state
        clock.advance(1)

        assert before is State.OPEN
        assert breaker.state is State.HALF_OPEN

    @pytest.mark.parametrize(("delay", "wait"), [(60.0, 60.0), (9.0, 9.0), (5.0, 8.0), (-1, 8.0)])
    def test_late(
        self, config: CircuitBreakerConfig, clock: ManualClock, delay: float, wait: float
    ) -> None:
        """A later failure makes an open period longer, never shorter, and keeps its reason."""
        breaker = CircuitBreaker(
            replace(config, retry_after=lambda error: delay if error.args else None)
        )
        late = hang(breaker)
        trip(breaker)
        clock.advance(2.0)

        late.__exit__(ConnectionError, ConnectionError(429), None)
        with pytest.raises(CircuitOpenError) as raised:
            breaker.execute(pytest.fail, "admitted")

        assert raised.value.retry_after == wait
        assert raised.value.reason == "ConnectionError"

    def test_late_uncounted(self, config: CircuitBreakerConfig) -> None:
        """An exception that does not count lengthens nothing."""
        breaker = CircuitBreaker(
            replace(config, retry_after=lambda error: 60.0 if error.args else None)
        )
        late = hang(breaker)
        trip(breaker)

        late.__exit__(ValueError, ValueError("not among failure_on"), None)

        assert refusal(breaker) == RESET_TIMEOUT


def drop_in_cycle(group: FallbackGroup[str]) -> None:
    """Open a stream, and drop it in a cycle of references."""
    ring: list[object] = [group.stream(iter)]
    ring.append(ring)


class DroppedStream:
    """A probe that is a stream in a reference cycle, which is collected under the breaker's lock.

    The lock is held while a change of state is made, so the collection runs there: when a call
    from before the opening fails, too late to change anything itself.
    """

    def __init__(self, config: CircuitBreakerConfig, clock: ManualClock) -> None:
        """Start the probe, and drop it."""
        self.changes: list[StateChange] = []
        self.errors: list[AssertionError] = []
        self.on_closed: Callable[[], object] = lambda: None
        config = replace(
            config, max_failures=1, half_open_max=1, on_state_change=self._listen, clock=clock
        )
        group = FallbackGroup("model", "model", FallbackConfig(circuit_breaker=config))
        self.breaker = group.breakers["model"]
        self._late = hang(self.breaker)
        trip(self.breaker)
        clock.advance(RESET_TIMEOUT)
        drop_in_cycle(group)

    def _listen(self, change: StateChange) -> None:
        self.changes.append(change)
        if change.new is State.CLOSED:
            try:
                self.on_closed()
            except AssertionError as error:
                self.errors.append(error)

    def end_late_call(self) -> None:
        """Let the call from before the opening fail."""
        self._late.__exit__(ConnectionError, ConnectionError(), None)


@pytest.fixture
def dropped(
    config: CircuitBreakerConfig, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DroppedStream]:
    """Return a stream that is collected as soon as the breaker makes a change of state."""

    def collect(**fields: Any) -> StateChange:  # noqa: ANN401
        gc.collect()
        return StateChange(**fields)

    gc.disable()
    stream = DroppedStream(config, clock)
    monkeypatch.setattr("resilience._breaker.breaker.StateChange", collect)
    yield stream
    gc.enable()


class TestCollection:
    """A garbage collection may run while the lock is held, and end a stream of the breaker."""

    def test_stream_ends(self, dropped: DroppedStream) -> None:
        """The stream that is collected has succeeded, and nothing is blocked."""
        before = dropped.breaker.state

        elsewhere(dropped.end_late_call)

        assert before is State.HALF_OPEN
        assert dropped.breaker.state is State.CLOSED
        assert [change.new for change in dropped.changes] == [
            State.OPEN,
            State.HALF_OPEN,
            State.CLOSED,
        ]

    def test_lock_is_free(self, dropped: DroppedStream) -> None:
        """The change that the end of the stream causes is not reported under the lock either."""
        dropped.on_closed = lambda: elsewhere(dropped.breaker.reset)

        dropped.end_late_call()

        assert [change.new for change in dropped.changes][-1] is State.CLOSED
        assert dropped.errors == []
