"""States of a circuit breaker: when it opens, for how long, and when it closes."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from helpers import count_free_slots, fail, raising, rejection, succeed, trip
from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, State, StateChange
from resilience.testing import ManualClock

RESET_TIMEOUT = 10.0
CONFIG = CircuitBreakerConfig(
    name="model",
    max_failures=2,
    reset_timeout=RESET_TIMEOUT,
    half_open_max=2,
    failure_on=(ConnectionError, TimeoutError),
)


@pytest.fixture
def changes() -> list[StateChange]:
    """Return a list of the changes of state."""
    return []


@pytest.fixture
def breaker(clock: ManualClock, changes: list[StateChange]) -> CircuitBreaker:
    """Return a breaker that opens after 2 failures and closes after 2 successful probes."""
    return CircuitBreaker(
        replace(CONFIG, failure_on=Exception, clock=clock, on_state_change=changes.append)
    )


class TestStates:
    """Closed, open, half-open."""

    def test_begins_closed(self) -> None:
        """A new breaker is closed, and has the name of its settings."""
        breaker = CircuitBreaker(CircuitBreakerConfig(name="model"))

        assert breaker.state is State.CLOSED
        assert breaker.name == "model"

    def test_defaults(self, clock: ManualClock) -> None:
        """By default 5 failures in a row open a breaker for 30 s, and 3 probes close it."""
        breaker = CircuitBreaker(CircuitBreakerConfig(clock=clock))
        states = []
        for _ in range(5):
            states.append(breaker.state)
            fail(breaker)
        wait = rejection(breaker).retry_after
        clock.advance(30)
        for _ in range(3):
            states.append(breaker.state)
            succeed(breaker)

        assert states == [State.CLOSED] * 5 + [State.HALF_OPEN] * 3
        assert breaker.state is State.CLOSED
        assert wait == 30

    def test_no_settings(self) -> None:
        """The settings may be omitted."""
        breaker = CircuitBreaker()

        trip(breaker)

        assert rejection(breaker).name == breaker.name == ""

    def test_wrong_settings(self) -> None:
        """Settings of another type are refused."""
        with pytest.raises(TypeError, match="config must be a CircuitBreakerConfig, got 5"):
            CircuitBreaker(5)  # type: ignore[arg-type]

    def test_failures_open(self, breaker: CircuitBreaker) -> None:
        """At `max_failures` the breaker opens."""
        fail(breaker)
        before = breaker.state

        fail(breaker)

        assert before is State.CLOSED
        assert breaker.state is State.OPEN

    def test_success_clears(self, breaker: CircuitBreaker) -> None:
        """A success sets the count of consecutive failures to 0."""
        for _ in range(5):
            fail(breaker)
            succeed(breaker)

        assert breaker.state is State.CLOSED

    def test_open_for_reset_timeout(
        self, breaker: CircuitBreaker, clock: ManualClock, changes: list[StateChange]
    ) -> None:
        """After `reset_timeout` the state is half-open; only the next call makes the change."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT - 0.25)
        before = breaker.state, rejection(breaker).retry_after
        clock.advance(0.25)
        after = breaker.state
        known = len(changes)
        succeed(breaker)

        assert before == (State.OPEN, 0.25)
        assert after is State.HALF_OPEN
        assert known == 1
        assert [(change.old, change.new) for change in changes[1:]] == [
            (State.OPEN, State.HALF_OPEN)
        ]

    def test_probes_close(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """It closes when `half_open_max` probes have succeeded, not merely started."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        with breaker.guard(), breaker.guard():
            started = breaker.state
        ended = breaker.state

        assert started is State.HALF_OPEN
        assert ended is State.CLOSED

    def test_no_more_probes(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """When half-open, at most `half_open_max` calls are admitted, the rest are rejected."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        with breaker.guard(), breaker.guard():
            clock.advance(3)

            assert rejection(breaker).retry_after == 7

    def test_successful_probes_keep_their_slots(
        self, breaker: CircuitBreaker, clock: ManualClock
    ) -> None:
        """Probes that succeeded are included in the `half_open_max` that are admitted."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        with breaker.guard():
            succeed(breaker)

            assert count_free_slots(breaker) == 0
        assert breaker.state is State.CLOSED

    @pytest.mark.parametrize("successes", [0, 1])
    def test_probe_fails(self, breaker: CircuitBreaker, clock: ManualClock, successes: int) -> None:
        """The first failed probe opens the breaker again for a new period."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT + 5)
        for _ in range(successes):
            succeed(breaker)
        fail(breaker)
        states = [breaker.state]
        clock.advance(RESET_TIMEOUT - 0.25)
        states.append(breaker.state)
        clock.advance(0.25)
        states.append(breaker.state)

        succeed(breaker)
        states.append(breaker.state)

        assert states == [State.OPEN, State.OPEN, State.HALF_OPEN, State.HALF_OPEN]

    def test_closes_with_no_failures(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """A breaker that closed again counts from 0."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        succeed(breaker)
        succeed(breaker)

        fail(breaker)

        assert breaker.state is State.CLOSED

    def test_events(
        self, breaker: CircuitBreaker, clock: ManualClock, changes: list[StateChange]
    ) -> None:
        """Each change is reported with name, old and new state, and the failure that caused it."""
        errors = [ConnectionError("first"), ConnectionError("second"), ConnectionError("probe")]
        fail(breaker, errors[0])
        fail(breaker, errors[1])
        clock.advance(RESET_TIMEOUT)
        fail(breaker, errors[2])
        clock.advance(RESET_TIMEOUT)
        succeed(breaker)
        succeed(breaker)

        seen = [(change.name, change.old, change.new, change.cause) for change in changes]

        assert seen == [
            ("model", State.CLOSED, State.OPEN, errors[1]),
            ("model", State.OPEN, State.HALF_OPEN, None),
            ("model", State.HALF_OPEN, State.OPEN, errors[2]),
            ("model", State.OPEN, State.HALF_OPEN, None),
            ("model", State.HALF_OPEN, State.CLOSED, None),
        ]

    def test_repr(self, breaker: CircuitBreaker) -> None:
        """The `repr` of a breaker has its name and its state."""
        assert repr(breaker) == "<CircuitBreaker 'model' closed>"

    def test_state_values(self) -> None:
        """`str(state)` is the value."""
        assert [str(state) for state in State] == ["closed", "open", "half-open"]
        assert [state.value for state in State] == ["closed", "open", "half-open"]
        assert f"{State.HALF_OPEN}" == "half-open"


class TestReason:
    """`CircuitOpenError.reason`: the failure that opened the breaker."""

    def test_failure(self, breaker: CircuitBreaker) -> None:
        """The reason is type and message of the last failure, as text, and part of the message."""
        fail(breaker, ConnectionError("first"))
        fail(breaker, TimeoutError("second"))

        error = rejection(breaker)

        assert error.reason == "TimeoutError: second"
        assert str(error) == (
            "circuit 'model' is open, retry in 10 s (last failure: TimeoutError: second)"
        )

    def test_probes(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """The reason is kept while probes are under way, and replaced when one of them fails."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        with breaker.guard(), breaker.guard():
            probing = rejection(breaker).reason
            fail_probe = breaker.guard()
            clock.advance(RESET_TIMEOUT)
            fail_probe.__enter__()
            fail_probe.__exit__(OSError, OSError("again"), None)

        assert probing == "ConnectionError"
        assert rejection(breaker).reason == "OSError: again"

    def test_operator(self, breaker: CircuitBreaker) -> None:
        """An isolated breaker has no reason, even if it was open before."""
        trip(breaker)
        breaker.isolate()

        assert rejection(breaker).reason is None

    def test_unreadable(self, breaker: CircuitBreaker) -> None:
        """An error whose text cannot be read is shown by its type."""

        class UnreadableError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        for _ in range(2):
            fail(breaker, UnreadableError())

        assert (rejection(breaker).reason or "").startswith("UnreadableError (")

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.254, "0.25"), (29.998, "30"), (3599.5, "3599.5"), (1e6, "1000000")]
    )
    def test_seconds_in_the_message(self, seconds: float, text: str) -> None:
        """The message gives seconds without exponents, rounded to hundredths."""
        error = CircuitOpenError("model", seconds)

        assert str(error) == f"circuit 'model' is open, retry in {text} s"

    def test_no_name_in_the_message(self) -> None:
        """The message for a breaker without a name has "(unnamed)" instead."""
        error = CircuitOpenError("", 6.0)

        assert str(error) == "circuit (unnamed) is open, retry in 6 s"


class TestReset:
    """`reset()` closes the breaker and clears everything."""

    def test_open(self, breaker: CircuitBreaker, changes: list[StateChange]) -> None:
        """An open breaker is closed, and reports it."""
        trip(breaker)

        breaker.reset()

        assert breaker.state is State.CLOSED
        assert changes[1:] == [StateChange(name="model", old=State.OPEN, new=State.CLOSED)]

    def test_half_open(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """A half-open breaker is closed."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        succeed(breaker)

        breaker.reset()

        assert breaker.state is State.CLOSED

    def test_count(self, breaker: CircuitBreaker, changes: list[StateChange]) -> None:
        """The failures of a closed breaker are cleared, and no change is reported."""
        fail(breaker)

        breaker.reset()
        fail(breaker)

        assert breaker.state is State.CLOSED
        assert changes == []


class TestIsolate:
    """`isolate()` holds the breaker open until `reset()`."""

    def test_time_does_not_end_it(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """An isolated breaker stays open for any time."""
        breaker.isolate()
        clock.advance(1e15)

        assert breaker.state is State.OPEN
        assert count_free_slots(breaker) == 0

    def test_wait_is_unknown(self, breaker: CircuitBreaker) -> None:
        """The error of an isolated breaker has no `retry_after`."""
        breaker.isolate()

        error = rejection(breaker)

        assert error.retry_after is None
        assert str(error) == "circuit 'model' is open until it is reset"

    def test_reset_ends_it(self, breaker: CircuitBreaker) -> None:
        """A reset closes an isolated breaker."""
        breaker.isolate()

        breaker.reset()

        assert breaker.state is State.CLOSED
        succeed(breaker)

    def test_already_open(
        self, breaker: CircuitBreaker, clock: ManualClock, changes: list[StateChange]
    ) -> None:
        """A breaker that is open, or would admit a probe, is held open without an event."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        breaker.isolate()

        assert breaker.state is State.OPEN
        assert len(changes) == 1


def with_hook(
    clock: ManualClock, hook: Callable[[Exception], float | timedelta | None]
) -> CircuitBreaker:
    """Return a breaker with a `retry_after` hook."""
    return CircuitBreaker(
        CircuitBreakerConfig(
            max_failures=3,
            reset_timeout=RESET_TIMEOUT,
            half_open_max=1,
            retry_after=hook,
            clock=clock,
        )
    )


class TestRetryAfter:
    """`retry_after`: the delay that the provider asks for."""

    @pytest.mark.parametrize(
        ("wait", "stay"),
        [
            (25, 25),
            (timedelta(seconds=25), 25),
            (timedelta(days=-1), RESET_TIMEOUT),
            (RESET_TIMEOUT, RESET_TIMEOUT),
            (1.5, RESET_TIMEOUT),
            (0, RESET_TIMEOUT),
            (-5, RESET_TIMEOUT),
            (math.nan, RESET_TIMEOUT),
            (-math.inf, RESET_TIMEOUT),
        ],
    )
    def test_number(self, clock: ManualClock, wait: float | timedelta, stay: float) -> None:
        """A number or `timedelta` opens the breaker at once, for at least `reset_timeout`."""
        breaker = with_hook(clock, lambda _: wait)

        fail(breaker)
        seconds = rejection(breaker).retry_after
        clock.advance(stay - 0.25)
        before = breaker.state
        clock.advance(0.25)

        assert seconds == stay
        assert (before, breaker.state) == (State.OPEN, State.HALF_OPEN)

    def test_infinity(self, clock: ManualClock) -> None:
        """Infinity holds the breaker open until it is reset."""
        breaker = with_hook(clock, lambda _: math.inf)

        fail(breaker)
        clock.advance(1e15)

        assert breaker.state is State.OPEN

    @pytest.mark.parametrize("answer", [None, False, True])
    def test_none(
        self, clock: ManualClock, caplog: pytest.LogCaptureFixture, *, answer: bool | None
    ) -> None:
        """None and bools change nothing."""
        breaker = with_hook(clock, lambda _: answer)
        states = []

        for _ in range(3):
            states.append(breaker.state)
            fail(breaker)

        assert states == [State.CLOSED] * 3
        assert breaker.state is State.OPEN
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert rejection(breaker).retry_after == RESET_TIMEOUT

    def test_probe(self, clock: ManualClock) -> None:
        """A probe that fails with a number opens the breaker again, for that time only."""
        delays = iter([0.0, 60.0, None])
        breaker = with_hook(clock, lambda _: next(delays))
        fail(breaker)
        clock.advance(RESET_TIMEOUT)

        fail(breaker)
        requested = rejection(breaker).retry_after
        clock.advance(60)
        fail(breaker)

        assert requested == 60
        assert rejection(breaker).retry_after == RESET_TIMEOUT

    def test_only_for_counted_exceptions(self, clock: ManualClock) -> None:
        """The hook is called for exceptions that count, and for no others."""
        called: list[Exception] = []
        breaker = CircuitBreaker(
            CircuitBreakerConfig(failure_on=ConnectionError, retry_after=called.append, clock=clock)
        )
        counted = ConnectionError()

        fail(breaker, ValueError())
        fail(breaker, KeyboardInterrupt())
        fail(breaker, counted)

        assert called == [counted]

    @pytest.mark.parametrize("answer", ["soon", [], 10**400], ids=["text", "list", "too large"])
    def test_no_number(
        self, clock: ManualClock, caplog: pytest.LogCaptureFixture, answer: float
    ) -> None:
        """A result that is not a number is logged and treated as None."""
        breaker = with_hook(clock, lambda _: answer)

        fail(breaker)

        assert breaker.state is State.CLOSED
        assert [record.levelno for record in caplog.records] == [logging.ERROR]


class TestLateDelay:
    """A late failure may lengthen the present open period."""

    config = CircuitBreakerConfig(
        max_failures=2,
        reset_timeout=RESET_TIMEOUT,
        failure_on=ConnectionError,
        retry_after=lambda error: error.args[0] if error.args else None,
    )

    @pytest.mark.parametrize(("delay", "wait"), [(60.0, 60.0), (9.0, 9.0), (5.0, 8.0), (-1, 8.0)])
    def test_counted(self, clock: ManualClock, delay: float, wait: float) -> None:
        """A late delay makes the period longer, never shorter, and keeps its reason."""
        breaker = CircuitBreaker(replace(self.config, clock=clock))
        late = breaker.guard()
        late.__enter__()
        trip(breaker)
        clock.advance(2.0)

        late.__exit__(ConnectionError, ConnectionError(delay), None)

        assert rejection(breaker).retry_after == wait
        assert rejection(breaker).reason == "ConnectionError"

    def test_uncounted(self, clock: ManualClock) -> None:
        """An exception that does not count lengthens nothing."""
        breaker = CircuitBreaker(replace(self.config, clock=clock))
        late = breaker.guard()
        late.__enter__()
        trip(breaker)

        late.__exit__(ValueError, ValueError(60.0), None)

        assert rejection(breaker).retry_after == RESET_TIMEOUT

    @pytest.mark.parametrize("after", [0.0, 1.0])
    def test_elapsed(self, after: float, clock: ManualClock) -> None:
        """A period that has elapsed is not lengthened, since `state` has returned half-open."""
        breaker = CircuitBreaker(replace(self.config, clock=clock))
        late = breaker.guard()
        late.__enter__()
        trip(breaker)
        clock.advance(RESET_TIMEOUT + after)

        late.__exit__(ConnectionError, ConnectionError(60.0), None)

        assert breaker.state is State.HALF_OPEN


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
        result: BaseException | None,
    ) -> None:
        """A late result does not change the behaviour of a breaker."""
        for first in (succeed, fail):
            one, other = Life(admitted, since), Life(admitted, since)

            one.end_late_call(result)

            assert one.go_on(first) == other.go_on(first)
            assert one.changes == other.changes

    @pytest.mark.parametrize("admitted", ["closed", "half-open"])
    def test_longer_delay(self, admitted: str) -> None:
        """A late failure with a longer delay lengthens the present open period."""
        life = Life(admitted, "opened")
        changes = len(life.changes)

        life.end_late_call(TimeoutError())
        waits = [rejection(life.breaker).retry_after]
        life.clock.advance(59.0)
        waits.append(rejection(life.breaker).retry_after)
        life.clock.advance(1.0)

        assert waits == [60.0, 1.0]
        assert len(life.changes) == changes
        assert count_free_slots(life.breaker) == 2


class Life:
    """A breaker that has changed its state since it admitted a call, which is still under way."""

    def __init__(self, admitted: str, since: str) -> None:
        """Admit a call in one state, and change to another."""
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
            trip(self.breaker)
            self.clock.advance(RESET_TIMEOUT)
        self._late = self.breaker.guard()
        self._late.__enter__()
        self._probe = self.breaker.guard()
        self._move_on(since)

    def _move_on(self, since: str) -> None:
        if since == "isolated":
            self.breaker.isolate()
            return
        if since == "reset":
            self.breaker.reset()
            fail(self.breaker)
            return
        while self.breaker.state is not State.OPEN:
            fail(self.breaker)
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
        """End the call that was admitted before the changes."""
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
    def test_reads(self, clock: ManualClock, state: str, action: str, reads: int) -> None:
        """An admission, a rejection, a failure and `state` read the clock at most once."""
        times: list[float] = []

        def read() -> float:
            times.append(clock())
            return times[-1]

        breaker = CircuitBreaker(replace(CONFIG, half_open_max=1, clock=read))
        if state != "closed":
            trip(breaker)
        if state in {"due", "full"}:
            clock.advance(RESET_TIMEOUT)
        if state == "full":
            probe = breaker._try_acquire()
            assert probe is not None
        times.clear()

        _act(breaker, action)

        assert len(times) == reads

    def test_rejection_is_consistent(self) -> None:
        """`retry_after` of a rejection is measured at the time of the rejection."""
        times = iter([0.0, 0.0, 9.0, 1000.0])
        breaker = CircuitBreaker(replace(CONFIG, clock=lambda: next(times)))
        fail(breaker)
        fail(breaker)

        assert rejection(breaker).retry_after == 1

    def test_reopened_while_time_is_read(self, clock: ManualClock) -> None:
        """A call that reads the time while the last probe fails is rejected."""
        interludes: list[Callable[[], object]] = []

        def read() -> float:
            if interludes:
                interludes.pop()()
            return clock()

        breaker = CircuitBreaker(replace(CONFIG, clock=read))
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        probe = breaker.guard()
        probe.__enter__()
        error = ConnectionError()
        interludes.append(lambda: probe.__exit__(ConnectionError, error, None))

        assert rejection(breaker).retry_after == RESET_TIMEOUT

    def test_default(self) -> None:
        """The default is `time.monotonic`."""
        assert CircuitBreakerConfig().clock is time.monotonic

    @pytest.mark.parametrize("start", [-1e6, 0.0, 1e9])
    @pytest.mark.parametrize("later", [RESET_TIMEOUT, RESET_TIMEOUT + 1, 1000.0])
    def test_any_origin(self, start: float, later: float) -> None:
        """Only differences matter: an open period ends, and a hung probe is replaced, on time."""
        clock = ManualClock(start)
        breaker = CircuitBreaker(replace(CONFIG, max_failures=1, half_open_max=1, clock=clock))
        fail(breaker)
        clock.advance(RESET_TIMEOUT - 1)
        states = [breaker.state]
        clock.advance(1)
        states.append(breaker.state)
        hung = breaker._try_acquire()
        clock.advance(later)

        assert states == [State.OPEN, State.HALF_OPEN]
        assert count_free_slots(breaker) == 1
        assert hung is not None

    def test_raises(self, clock: ManualClock) -> None:
        """A clock that raises takes no slot."""
        broken: list[Exception] = []

        def read() -> float:
            if broken:
                raise broken.pop()
            return clock()

        breaker = CircuitBreaker(
            CircuitBreakerConfig(max_failures=1, half_open_max=1, reset_timeout=1.0, clock=read)
        )
        fail(breaker)
        clock.advance(1)
        guard = breaker.guard()
        guard.__enter__()
        broken.append(RuntimeError())
        with pytest.raises(RuntimeError):
            guard.__exit__(ConnectionError, ConnectionError(), None)

        assert count_free_slots(breaker) == 1


def _act(breaker: CircuitBreaker, action: str) -> None:
    """Use a breaker in one way."""
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
            breaker.execute(raising(ConnectionError() if action == "fail" else ValueError()))
