"""A circuit breaker behaves like an oracle, whatever the order of events.

`RESILIENCE_LONG=1` makes many more runs.
"""

import dataclasses
import math
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

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

from breaker_oracle import BreakerOracle, Change, Permit
from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    State,
    StateChange,
)
from resilience._breaker import periods
from resilience.testing import ManualClock

RUNS = 20_000 if "RESILIENCE_LONG" in os.environ else 300
RESET_TIMEOUT = 10


class CountedError(Exception):
    """A failure that counts, and may request a delay."""

    def __init__(self, wait: float | None = None) -> None:
        """Fail, and request a delay in seconds."""
        super().__init__(wait)
        self.wait = wait


class UncountedError(Exception):
    """An exception that does not count."""


WAITS = st.sampled_from([0, 5, RESET_TIMEOUT, 25, math.inf])
ERRORS = st.one_of(
    st.none(),
    st.builds(CountedError),
    st.builds(CountedError),
    st.builds(CountedError, WAITS),
    st.builds(UncountedError),
    st.sampled_from([KeyboardInterrupt, SystemExit, GeneratorExit]).map(lambda kind: kind()),
)


@dataclass
class Call:
    """A call under way, and the permit of the oracle."""

    guard: AbstractContextManager[None]
    permit: Permit


class Forced(AbstractContextManager[None]):
    """A call that is made although the breaker is open."""

    def __init__(self, breaker: CircuitBreaker, permit: periods.Permit) -> None:
        """End the call with a permit."""
        self._breaker = breaker
        self._permit = permit

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Record the outcome."""
        if exc is None:
            self._breaker._record_success(self._permit)
        else:
            self._breaker._record_failure(self._permit, exc)


class BreakerMachine(RuleBasedStateMachine):
    """Calls that overlap, and end in any order, or never."""

    calls = Bundle("calls")

    @initialize(
        max_failures=st.integers(1, 3),
        half_open_max=st.integers(1, 3),
        max_reset_timeout=st.sampled_from([0, RESET_TIMEOUT, 25, 80]),
    )
    def begin(self, max_failures: int, half_open_max: int, max_reset_timeout: int) -> None:
        """Make a breaker and its oracle."""
        self.clock = ManualClock()
        self.changes: list[StateChange] = []
        self.oracle = BreakerOracle(
            max_failures,
            half_open_max,
            RESET_TIMEOUT,
            name="model",
            max_reset_timeout=max_reset_timeout,
        )
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(
                name="model",
                max_failures=max_failures,
                half_open_max=half_open_max,
                reset_timeout=RESET_TIMEOUT,
                max_reset_timeout=max_reset_timeout,
                failure_on=CountedError,
                retry_after=lambda error: error.wait if isinstance(error, CountedError) else None,
                on_state_change=self.changes.append,
                clock=self.clock,
            )
        )

    @rule(target=calls)
    def admit(self) -> object:
        """Begin a call; both admit it, or both reject it with the same wait."""
        permit = self.oracle.acquire(self.clock())
        guard = self.breaker.guard()
        if permit is None:
            self._expect_rejection(guard)
            return multiple()
        guard.__enter__()
        return Call(guard, permit)

    @rule(target=calls)
    def force(self) -> object:
        """Begin a call in any state, unless it is isolated."""
        permit = self.oracle.force(self.clock())
        forced = self.breaker._try_force()
        assert (forced is None) == (permit is None)
        if permit is None or forced is None:
            return multiple()
        return Call(Forced(self.breaker, forced), permit)

    @rule(call=consumes(calls), error=ERRORS)
    def end(self, call: Call, error: BaseException | None) -> None:
        """End a call that began at any time."""
        self._record(call.permit, error)
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

        permit = self.oracle.acquire(self.clock())
        if permit is None:
            self._expect_rejection(self.breaker.guard())
            return
        self._record(permit, error)
        if error is None:
            assert self.breaker.execute(work) == "ok"
        else:
            with pytest.raises(type(error)) as raised:
                self.breaker.execute(work)
            assert raised.value is error

    @rule(waits=st.lists(st.none() | WAITS, min_size=2, max_size=3))
    def overload(self, waits: list[float | None]) -> None:
        """Let calls that run at the same time all fail; each may request another delay."""
        calls = [self.admit() for _ in waits]
        for call, wait in zip(calls, waits, strict=True):
            if isinstance(call, Call):
                self.end(call, CountedError(wait))

    @rule(failures=st.integers(1, 3))
    def outage(self, failures: int) -> None:
        """Fail a number of times in a row, and advance the time until probes are admitted."""
        for _ in range(failures):
            self.execute(CountedError())
        self.advance(RESET_TIMEOUT)

    @rule(seconds=st.sampled_from([1, 5, RESET_TIMEOUT - 1, RESET_TIMEOUT, RESET_TIMEOUT, 25]))
    def advance(self, seconds: int) -> None:
        """Advance the time."""
        self.clock.advance(seconds)

    @rule()
    def reset(self) -> None:
        """Reset both."""
        self.oracle.reset()
        self.breaker.reset()

    @rule(seconds=st.sampled_from([None, 0, 5, RESET_TIMEOUT, 25]))
    def isolate(self, seconds: int | None) -> None:
        """Isolate both, for some time or until they are reset."""
        self.oracle.isolate(self.clock(), math.inf if seconds is None else seconds)
        self.breaker.isolate(seconds)

    @invariant()
    def same_state(self) -> None:
        """`state` is the same for both."""
        assert str(self.breaker.state) == self.oracle.visible_state(self.clock())

    @invariant()
    def same_snapshot(self) -> None:
        """Snapshots of both are the same, and change nothing."""
        seen = dataclasses.astuple(self.breaker.snapshot())
        seen = tuple(str(each) if isinstance(each, State) else each for each in seen)

        assert seen == self.oracle.snapshot(self.clock())

    @invariant()
    def same_changes(self) -> None:
        """Both have changed in the same way, for the same causes."""
        seen = [Change(c.name, str(c.old), str(c.new), c.cause) for c in self.changes]

        assert seen == self.oracle.changes

    def _record(self, permit: Permit, error: BaseException | None) -> None:
        """Record in the oracle how a call ended."""
        if error is None:
            self.oracle.record_success(permit)
        elif isinstance(error, CountedError):
            self.oracle.record_failure(permit, self.clock(), error, error.wait)
        else:
            self.oracle.release(permit)

    def _expect_rejection(self, guard: AbstractContextManager[None]) -> None:
        with pytest.raises(CircuitOpenError) as raised:
            guard.__enter__()
        assert raised.value.name == "model"
        assert raised.value.retry_after == self.oracle.retry_after(self.clock())

    @override
    def teardown(self) -> None:
        """After a reset a call succeeds, whatever is still under way."""
        if hasattr(self, "breaker"):  # otherwise the run has ended before it began
            self.reset()
            assert self.breaker.execute(str) == ""


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=RUNS, stateful_step_count=40, deadline=None)
