"""A circuit breaker does what an oracle says, whatever happens to it in whatever order.

`RESILIENCE_LONG=1` makes many more runs.
"""

import math
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from typing_extensions import override

from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, StateChange
from resilience.testing import ManualClock

RUNS = 20_000 if "RESILIENCE_LONG" in os.environ else 300
RESET_TIMEOUT = 10


class CountedError(Exception):
    """A failure that counts, perhaps with the provider's word on how long to stay away."""

    def __init__(self, wait: float | None = None) -> None:
        """Fail, and ask for so many seconds."""
        super().__init__(wait)
        self.wait = wait


class UncountedError(Exception):
    """An exception that does not count."""


@dataclass
class Oracle:
    """A breaker as its description tells it, which does one thing after the other.

    All times are whole seconds, so that both sides calculate exactly.
    """

    max_failures: int
    half_open_max: int
    state: str = "closed"
    period: int = 0  # a result counts only if this is still what it was at the admission
    failures: int = 0
    until: float = 0
    under_way: int = 0
    succeeded: int = 0
    last_admission: float = 0
    changes: list[tuple[str, str, BaseException | None]] = field(default_factory=list)

    def look(self, now: float) -> str:
        """Tell the state that a reader sees."""
        return "half-open" if self.state == "open" and now >= self.until else self.state

    def admit(self, now: float) -> int | None:
        """Return the period that a call is admitted to, None if it is refused."""
        if self.look(now) != self.state:
            self._go("half-open")
        if self.state == "open":
            return None
        if self.state == "half-open":
            all_taken = self.under_way + self.succeeded >= self.half_open_max
            if all_taken and now < self.last_admission + RESET_TIMEOUT:
                return None
            self.under_way += 1
            self.last_admission = now
        return self.period

    def wait(self, now: float) -> float | None:
        """Tell how long a call that is refused now should wait."""
        end = self.until if self.state == "open" else self.last_admission + RESET_TIMEOUT
        return None if end == math.inf else end - now

    def hear(self, period: int, error: BaseException | None, now: float) -> None:
        """Record how a call ended."""
        if period != self.period:
            if isinstance(error, CountedError) and self.state == "open" and now < self.until:
                self.until = max(self.until, now + (error.wait or 0))
            return
        self.under_way -= 1
        if error is None:
            self.failures = 0
            self.succeeded += 1
            if self.state == "half-open" and self.succeeded >= self.half_open_max:
                self._go("closed")
        elif isinstance(error, CountedError):
            self.failures += 1
            is_busy = error.wait is not None
            if self.state == "half-open" or is_busy or self.failures >= self.max_failures:
                self._go("open", error)
                self.until = now + max(RESET_TIMEOUT, error.wait or 0)

    def reset(self) -> None:
        """Close, and forget everything."""
        self._go("closed")

    def isolate(self) -> None:
        """Stay open until reset."""
        self._go("open")
        self.until = math.inf

    def _go(self, state: str, cause: BaseException | None = None) -> None:
        if state != self.state:
            self.changes.append((self.state, state, cause))
        self.state = state
        self.period += 1
        self.failures = self.under_way = self.succeeded = 0


ERRORS = st.one_of(
    st.none(),
    st.builds(CountedError),
    st.builds(CountedError),
    st.builds(CountedError, st.sampled_from([0, 5, RESET_TIMEOUT, 25, math.inf])),
    st.builds(UncountedError),
    st.sampled_from([KeyboardInterrupt, SystemExit, GeneratorExit]).map(lambda kind: kind()),
)


@dataclass
class Call:
    """A call under way, and the period that admitted it."""

    guard: AbstractContextManager[None]
    period: int


class BreakerMachine(RuleBasedStateMachine):
    """Calls overlap, and end in any order, or never."""

    calls = Bundle("calls")

    @initialize(max_failures=st.integers(1, 3), half_open_max=st.integers(1, 3))
    def begin(self, max_failures: int, half_open_max: int) -> None:
        """Make a breaker and its oracle."""
        self.clock = ManualClock()
        self.changes: list[StateChange] = []
        self.oracle = Oracle(max_failures, half_open_max)
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(
                name="model",
                max_failures=max_failures,
                half_open_max=half_open_max,
                reset_timeout=RESET_TIMEOUT,
                failure_on=CountedError,
                retry_after=lambda error: error.wait if isinstance(error, CountedError) else None,
                on_state_change=self.changes.append,
                clock=self.clock,
            )
        )

    @rule(target=calls)
    def admit(self) -> object:
        """Begin a call; both admit it, or both refuse it and tell the same wait."""
        period = self.oracle.admit(self.clock())
        guard = self.breaker.guard()
        if period is None:
            self._expect_refusal(guard)
            return multiple()
        guard.__enter__()
        return Call(guard, period)

    @rule(call=consumes(calls), error=ERRORS)
    def end(self, call: Call, error: BaseException | None) -> None:
        """End a call that began at any time."""
        self.oracle.hear(call.period, error, self.clock())
        if error is None:
            call.guard.__exit__(None, None, None)
        else:
            assert not call.guard.__exit__(type(error), error, None)

    @rule(error=ERRORS)
    def execute(self, error: BaseException | None) -> None:
        """Make a whole call."""

        def work() -> str:
            if error is not None:
                raise error
            return "ok"

        period = self.oracle.admit(self.clock())
        if period is None:
            self._expect_refusal(self.breaker.guard())
            return
        self.oracle.hear(period, error, self.clock())
        if error is None:
            assert self.breaker.execute(work) == "ok"
        else:
            with pytest.raises(type(error)) as raised:
                self.breaker.execute(work)
            assert raised.value is error

    @rule(seconds=st.sampled_from([1, 5, RESET_TIMEOUT - 1, RESET_TIMEOUT, RESET_TIMEOUT, 25]))
    def advance(self, seconds: int) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    @rule()
    def reset(self) -> None:
        """Reset both."""
        self.oracle.reset()
        self.breaker.reset()

    @rule()
    def isolate(self) -> None:
        """Isolate both."""
        self.oracle.isolate()
        self.breaker.isolate()

    @invariant()
    def same_state(self) -> None:
        """A reader sees the same state of both."""
        assert str(self.breaker.state) == self.oracle.look(self.clock())

    @invariant()
    def same_changes(self) -> None:
        """Both have changed in the same way, for the same causes."""
        seen = [(str(change.old), str(change.new), change.cause) for change in self.changes]

        assert seen == self.oracle.changes

    def _expect_refusal(self, guard: AbstractContextManager[None]) -> None:
        with pytest.raises(CircuitOpenError) as raised:
            guard.__enter__()
        assert raised.value.name == "model"
        assert raised.value.retry_after == self.oracle.wait(self.clock())

    @override
    def teardown(self) -> None:
        """Expect that after a reset everything works, whatever is still under way."""
        self.reset()
        assert self.breaker.execute(str) == ""


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=RUNS, stateful_step_count=40, deadline=None)
