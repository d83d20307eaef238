"""How long a breaker stays open: growth, jitter, requested delays, and isolation for some time."""

import random
from datetime import timedelta
from typing import Any, NoReturn

import pytest

from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, State
from resilience.testing import ManualClock, StatusError


class Outage:
    """A breaker whose calls fail; one successful probe closes it."""

    def __init__(
        self,
        *,
        reset_timeout: float = 10.0,
        max_reset_timeout: float = 0.0,
        reset_jitter: float = 0.0,
        max_failures: int = 1,
    ) -> None:
        """Make a breaker that opens for `reset_timeout` seconds at first."""
        self.clock = ManualClock()
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(
                max_failures=max_failures,
                half_open_max=1,
                reset_timeout=reset_timeout,
                max_reset_timeout=max_reset_timeout,
                reset_jitter=reset_jitter,
                retry_after=lambda error: error.args[0] if isinstance(error, OSError) else None,
                clock=self.clock,
            )
        )

    def fail(self, error: Exception | None = None) -> float | None:
        """Make a call that fails, and return the seconds for which the breaker is open then."""
        error = error or ValueError()
        with pytest.raises(type(error)), self.breaker.guard():
            raise error
        return self.breaker.snapshot().retry_after

    def fail_probes(self, number: int) -> list[float | None]:
        """Let a number of probes fail, each as soon as it is admitted; return the open times."""
        waits = []
        for _ in range(number):
            self.clock.advance(self.breaker.snapshot().retry_after or 0)
            waits.append(self.fail())
        return waits


class TestGrowth:
    """With `max_reset_timeout`, each failed probe doubles the next open period."""

    def test_doubles_up_to_the_maximum(self) -> None:
        """Each open period is twice as long as the one before, at most the maximum."""
        outage = Outage(max_reset_timeout=60)

        assert outage.fail() == 10
        assert outage.fail_probes(5) == [20, 40, 60, 60, 60]

    def test_of_less_than_a_second(self) -> None:
        """Short periods grow like long ones, and no period has a minimum of its own."""
        outage = Outage(reset_timeout=0.25, max_reset_timeout=0.75)

        assert outage.fail() == 0.25
        assert outage.fail_probes(3) == [0.5, 0.75, 0.75]

    def test_is_off_by_default(self) -> None:
        """Without a maximum all open periods have the same length."""
        outage = Outage()

        assert outage.fail() == 10
        assert outage.fail_probes(3) == [10, 10, 10]

    def test_starts_again_after_closing(self) -> None:
        """After the breaker has closed, the next open period is `reset_timeout` again."""
        outage = Outage(max_reset_timeout=60)
        outage.fail()
        outage.fail_probes(3)
        outage.clock.advance(60)
        outage.breaker.execute(str)

        assert outage.breaker.state is State.CLOSED
        assert outage.fail() == 10

    def test_starts_again_after_a_reset(self) -> None:
        """After `reset()` the next open period is `reset_timeout` again."""
        outage = Outage(max_reset_timeout=60)
        outage.fail()
        outage.fail_probes(3)
        outage.breaker.reset()

        assert outage.fail() == 10

    def test_does_not_double_a_requested_delay(self) -> None:
        """A delay that the provider asks for is not doubled, and is not part of the growth."""
        outage = Outage(max_reset_timeout=60)

        assert outage.fail(OSError(50)) == 50
        assert outage.fail_probes(1) == [20]

    def test_does_not_shorten_a_requested_delay(self) -> None:
        """A delay longer than the maximum is used."""
        outage = Outage(max_reset_timeout=20)
        outage.fail()
        outage.clock.advance(10)

        assert outage.fail(OSError(500)) == 500

    def test_a_requested_delay_does_not_shorten_a_grown_period(self) -> None:
        """A delay shorter than the grown period does not change the period."""
        outage = Outage(max_reset_timeout=60)
        outage.fail()
        outage.fail_probes(1)
        outage.clock.advance(20)

        assert outage.fail(OSError(1)) == 40

    def test_goes_on_after_an_isolation(self) -> None:
        """After an isolation for some time the periods grow as after an ordinary opening."""
        outage = Outage(max_reset_timeout=60)
        outage.breaker.isolate(3)

        assert outage.fail_probes(2) == [20, 40]

    @pytest.mark.parametrize("maximum", [0.5, 29.9])
    def test_refuses_less_than_the_minimum(self, maximum: float) -> None:
        """A maximum below `reset_timeout` is rejected; the message has name and value."""
        message = f"max_reset_timeout must be 0 or at least reset_timeout, got {maximum}"

        with pytest.raises(ValueError, match=f"^{message}$"):
            CircuitBreakerConfig(max_reset_timeout=maximum)

    def test_may_be_the_minimum(self) -> None:
        """0, None and `reset_timeout` itself mean no growth."""
        for maximum in (0, None, 30.0, timedelta(seconds=30)):
            config = CircuitBreakerConfig(max_reset_timeout=maximum)
            assert config.max_reset_timeout in {0.0, 30.0}


class TestJitter:
    """With `reset_jitter`, open periods are lengthened at random."""

    @pytest.mark.parametrize(("drawn", "wait"), [(0.0, 10), (0.5, 12.5), (1.0, 15)])
    def test_lengthens(self, drawn: float, wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """A period is longer by the random part of `reset_jitter`."""
        monkeypatch.setattr(random, "random", lambda: drawn)

        assert Outage(reset_jitter=0.5).fail() == wait

    def test_is_drawn_for_each_period(self) -> None:
        """Periods differ, and stay within the limits."""
        waits = {Outage(reset_jitter=0.5).fail() for _ in range(20)}

        assert len(waits) > 1
        assert all(wait is not None and 10 <= wait < 15 for wait in waits)

    def test_does_not_add_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Growth doubles the period without its jitter."""
        monkeypatch.setattr(random, "random", lambda: 1.0)
        outage = Outage(max_reset_timeout=60, reset_jitter=0.5)

        assert outage.fail() == 15
        assert outage.fail_probes(3) == [30, 60, 90]

    def test_of_failures_at_the_same_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Calls that fail together open the breaker with jitter, and with the message of one."""
        monkeypatch.setattr(random, "random", lambda: 1.0)
        others: list[Any] = []

        def clock() -> float:
            if others:  # another call fails while this one reads the clock
                others.pop().__exit__(KeyError, KeyError(), None)
            return 0.0

        breaker = CircuitBreaker(
            CircuitBreakerConfig(max_failures=2, reset_timeout=10, reset_jitter=0.5, clock=clock)
        )
        other = breaker.guard()
        other.__enter__()

        def fail() -> NoReturn:
            others.append(other)
            msg = "over quota"
            raise ValueError(msg)

        with pytest.raises(ValueError, match="quota"):
            breaker.execute(fail)

        assert breaker.snapshot().retry_after == 15
        with pytest.raises(CircuitOpenError) as rejected:
            breaker.execute(str)
        assert rejected.value.reason == "ValueError: over quota"

    def test_leaves_requested_delays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A delay that the provider asks for is not lengthened."""
        monkeypatch.setattr(random, "random", lambda: 1.0)

        assert Outage(reset_jitter=1.0).fail(OSError(50)) == 50

    def test_is_drawn_only_if_the_breaker_may_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failure that is only counted draws no number, nor does a breaker without jitter."""
        monkeypatch.delattr(random, "random")

        assert Outage(reset_jitter=0.5, max_failures=2).fail() == 0
        assert Outage().fail() == 10

    def test_is_drawn_without_the_lock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The random number is drawn while no thread is inside the locked section."""
        outage = Outage(reset_jitter=0.5)
        monkeypatch.setattr(random, "random", lambda: len(outage.breaker._events._inside))

        assert outage.fail() == 10


class TestIsolate:
    """`isolate(seconds)` opens a breaker for some time."""

    @pytest.mark.parametrize("seconds", [5, timedelta(seconds=5)])
    def test_is_half_open_afterwards(self, seconds: float | timedelta) -> None:
        """It rejects calls for this time, and then admits a probe."""
        outage = Outage()

        outage.breaker.isolate(seconds)

        with pytest.raises(CircuitOpenError) as rejected:
            outage.breaker.execute(str)
        assert rejected.value.retry_after == 5
        outage.clock.advance(5)
        assert str(outage.breaker.state) == "half-open"
        assert outage.breaker.execute(str) == ""
        assert str(outage.breaker.state) == "closed"

    def test_zero_makes_the_next_call_a_probe(self) -> None:
        """With 0 the breaker is half-open at once."""
        outage = Outage()
        outage.fail()

        outage.breaker.isolate(0)

        assert outage.breaker.state is State.HALF_OPEN
        assert outage.fail() == 10

    def test_replaces_an_open_period(self) -> None:
        """It may be longer or shorter than the period that it replaces."""
        outage = Outage()
        outage.fail()

        outage.breaker.isolate(100)
        assert outage.breaker.snapshot().retry_after == 100
        outage.breaker.isolate(1)
        assert outage.breaker.snapshot().retry_after == 1

    def test_waits_for_a_reset_without_seconds(self) -> None:
        """Without seconds it stays open until `reset()`."""
        outage = Outage()

        outage.breaker.isolate()
        outage.clock.advance(1e8)

        assert outage.breaker.state is State.OPEN
        assert outage.breaker.snapshot().retry_after is None

    @pytest.mark.parametrize(
        ("seconds", "error"),
        [(-1, ValueError), (float("inf"), ValueError), (1e10, ValueError), ("5", TypeError)],
    )
    def test_refuses(self, seconds: float, error: type[Exception]) -> None:
        """The message names the argument and its value, and nothing changes."""
        outage = Outage()

        with pytest.raises(error, match=f"seconds must be .*, got {seconds!r}"):
            outage.breaker.isolate(seconds)

        assert outage.breaker.state is State.CLOSED


class TestSnapshot:
    """`snapshot()` returns all values of a breaker at one moment."""

    def test_of_a_new_breaker(self) -> None:
        """The snapshot of a closed breaker that was never used."""
        snapshot = CircuitBreaker(CircuitBreakerConfig(name="new")).snapshot()

        assert snapshot.name == "new"
        assert snapshot.state is State.CLOSED
        assert snapshot.retry_after == 0
        assert (snapshot.consecutive_failures, snapshot.probes, snapshot.opened_count) == (0, 0, 0)
        assert (snapshot.last_failure, snapshot.last_failure_age) == (None, None)

    def test_of_an_outage(self) -> None:
        """Failures, openings and probes are counted, and the last failure has a type and an age."""
        outage = Outage(max_failures=2)
        outage.fail()
        outage.clock.advance(1)
        outage.fail(StatusError(503))
        outage.clock.advance(4)

        snapshot = outage.breaker.snapshot()
        assert snapshot.state is State.OPEN
        assert snapshot.consecutive_failures == 2
        assert snapshot.opened_count == 1
        assert (snapshot.last_failure, snapshot.last_failure_age) == ("StatusError", 4)
        assert snapshot.retry_after == 6

        outage.clock.advance(6)
        assert outage.breaker.snapshot().state is State.HALF_OPEN
        with outage.breaker.guard():
            assert outage.breaker.snapshot().probes == 1
            assert outage.breaker.snapshot().retry_after == 10
        after = outage.breaker.snapshot()
        assert (after.state, after.consecutive_failures, after.probes) == (State.CLOSED, 0, 0)
        assert after.opened_count == 1

    def test_a_late_failure_is_not_shown(self) -> None:
        """A failure of a period that has ended is not the last failure."""
        outage = Outage()
        late = outage.breaker.guard()
        late.__enter__()
        outage.fail()
        outage.clock.advance(10)
        outage.breaker.execute(str)

        late.__exit__(KeyError, KeyError(), None)

        assert outage.breaker.snapshot().last_failure == "ValueError"

    def test_after_a_reset(self) -> None:
        """`reset()` clears all of it."""
        outage = Outage()
        outage.fail()

        outage.breaker.reset()

        snapshot = outage.breaker.snapshot()
        assert (snapshot.consecutive_failures, snapshot.opened_count) == (0, 0)
        assert (snapshot.last_failure, snapshot.last_failure_age) == (None, None)

    def test_a_time_that_was_read_too_early(self) -> None:
        """An age is never negative, even if another thread read the clock earlier."""
        outage = Outage()
        outage.clock.advance(5)
        outage.fail()

        snapshot = outage.breaker._snapshot_locked(outage.clock() - 1)

        assert snapshot.last_failure_age == 0
