"""A sequential circuit breaker, written only from the description.

The state machines of the breaker and of the group, and the interleavings, compare the real breaker
with it. It shares no code with the library. Times are whole seconds, so that both sides calculate
exactly.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Permit(NamedTuple):
    """Admits a call: the number of the period to which the call belongs."""

    period: int
    is_forced: bool = False


class Change(NamedTuple):
    """A change of state, and the failure that caused it."""

    name: str
    old: str
    new: str
    cause: object


@dataclass(slots=True)
class BreakerOracle:
    """The state of a breaker.

    A call begins with `acquire`, which returns a permit, and ends with `record_success`,
    `record_failure` or `release`. Each method that depends on the time takes it as `now`.
    `force` begins a call that is made although the breaker is open.
    """

    max_failures: int
    half_open_max: int
    reset_timeout: float
    name: str = ""
    changes: list[Change] = field(default_factory=list)  # may be shared by several breakers
    state: str = "closed"
    # Number of the present period; outcomes of calls that another period admitted change nothing.
    period: int = 0
    under_way: int = 0
    failures: int = 0  # in a row
    successes: int = 0
    last_admission: float = 0
    open_until: float = 0
    max_reset_timeout: float = 0  # longest open period; 0 for no growth
    open_seconds: float = 0  # length of the last open period, without a requested delay
    is_isolated: bool = False
    # Only for snapshots.
    failures_in_a_row: int = 0
    opened_count: int = 0
    last_failure: tuple[str, float] | None = None  # its type and time

    def copy(self) -> "BreakerOracle":
        """Return a breaker in the same state."""
        return replace(self, changes=list(self.changes))

    def visible_state(self, now: float) -> str:
        """Return the state as the property `state` shows it."""
        return "half-open" if self.state == "open" and now >= self.open_until else self.state

    def retry_after(self, now: float) -> float | None:
        """Return the seconds until a call may be admitted, None if that is not known."""
        if self.state == "open":
            end = self.open_until
        elif self.state == "half-open" and self._slots_are_taken():
            end = self.last_admission + self.reset_timeout
        else:
            end = now
        return None if end == math.inf else max(0, end - now)

    def acquire(self, now: float) -> Permit | None:
        """Begin a call; None if it is not admitted."""
        self._end_if_elapsed(now)
        if self.state == "open":
            return None
        if self.state == "half-open" and self._slots_are_taken():
            probes_hang = now >= self.last_admission + self.reset_timeout
            if not probes_hang:
                return None
        return self._admit(now)

    def force(self, now: float) -> Permit | None:
        """Begin a call in any state; None if the breaker is isolated."""
        self._end_if_elapsed(now)
        if self.state != "open":
            return self._admit(now)
        return None if self.is_isolated else Permit(self.period, is_forced=True)

    def record_success(self, permit: Permit) -> None:
        """End a call that has succeeded."""
        if permit.period != self.period:
            return
        if permit.is_forced:
            self._enter("half-open")
        else:
            self.under_way -= 1
        self.successes += 1
        self.failures = self.failures_in_a_row = 0
        if self.state == "half-open" and self.successes >= self.half_open_max:
            self._enter("closed")

    def record_failure(
        self, permit: Permit, now: float, cause: object, delay: float | None = None
    ) -> None:
        """End a call that has failed; its provider may request a delay in seconds.

        The cause is an exception, or only its type.
        """
        if permit.period != self.period:
            self._lengthen(now, delay)
            return
        kind = cause if isinstance(cause, type) else type(cause)
        self.last_failure = (kind.__name__, now)
        if permit.is_forced:
            self._lengthen(now, delay)
            return
        self.under_way -= 1
        self.failures += 1
        self.failures_in_a_row += 1
        is_delayed = delay is not None
        if self.state == "half-open" or is_delayed or self.failures >= self.max_failures:
            longest = max(self.max_reset_timeout, self.reset_timeout)
            grown = min(2 * self.open_seconds, longest)
            self._open(grown if self.state == "half-open" else self.reset_timeout, now, cause)
            self._lengthen(now, delay)

    def release(self, permit: Permit) -> None:
        """End a call that has neither succeeded nor failed."""
        if permit.period == self.period and not permit.is_forced:
            self.under_way -= 1

    def reset(self) -> None:
        """Close, and clear everything."""
        self._enter("closed")
        self.failures_in_a_row = self.opened_count = 0
        self.last_failure = None

    def isolate(self, now: float = 0, seconds: float = math.inf) -> None:
        """Open for a number of seconds, or until `reset`."""
        self._open(self.reset_timeout, now)
        self.open_until = now + seconds
        self.is_isolated = True
        self.failures_in_a_row = 0

    def snapshot(self, now: float) -> tuple[object, ...]:
        """Return the values of the fields of a `Snapshot`, in their order."""
        kind, time = self.last_failure or (None, now)
        return (
            self.name,
            self.visible_state(now),
            self.failures_in_a_row,
            self.retry_after(now),
            self.under_way if self.state == "half-open" else 0,
            self.opened_count,
            kind,
            None if kind is None else now - time,
        )

    def _admit(self, now: float) -> Permit:
        self.last_admission = now
        self.under_way += 1
        return Permit(self.period)

    def _end_if_elapsed(self, now: float) -> None:
        if self.state == "open" and now >= self.open_until:
            self._enter("half-open")

    def _open(self, seconds: float, now: float, cause: object = None) -> None:
        self.opened_count += self.state != "open"
        self._enter("open", cause)
        self.open_seconds = seconds
        self.open_until = now + seconds
        self.is_isolated = False

    def _slots_are_taken(self) -> bool:
        return self.under_way + self.successes >= self.half_open_max

    def _lengthen(self, now: float, delay: float | None) -> None:
        """Lengthen the open period, unless it has elapsed; also for a late failure."""
        if self.state == "open" and now < self.open_until:
            self.open_until = max(self.open_until, now + (delay or 0))

    def _enter(self, state: str, cause: object = None) -> None:
        """Begin a new period."""
        if state != self.state:
            self.changes.append(Change(self.name, self.state, state, cause))
        self.state = state
        self.period += 1
        self.under_way = self.failures = self.successes = 0
