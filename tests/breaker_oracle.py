"""A circuit breaker that does one thing after the other, written from its description alone.

The state machines of the breaker and of the group, and the interleavings, compare the real breaker
with it. It shares no code with the library. Times are whole seconds, so that both sides calculate
exactly.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Permit(NamedTuple):
    """What admits a call: the number of the period that it belongs to."""

    period: int


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
    """

    max_failures: int
    half_open_max: int
    reset_timeout: float
    name: str = ""
    changes: list[Change] = field(default_factory=list)  # may be shared by several breakers
    state: str = "closed"
    # Of the present period; the outcome of a call that another one has admitted changes nothing.
    period: int = 0
    under_way: int = 0
    failures: int = 0  # in a row
    successes: int = 0
    last_admission: float = 0
    open_until: float = 0

    def copy(self) -> "BreakerOracle":
        """Return a breaker in the same state."""
        return replace(self, changes=list(self.changes))

    def visible_state(self, now: float) -> str:
        """Return the state that a reader sees."""
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
        if self.state == "open" and now >= self.open_until:
            self._enter("half-open")
        if self.state == "open":
            return None
        if self.state == "half-open" and self._slots_are_taken():
            probes_hang = now >= self.last_admission + self.reset_timeout
            if not probes_hang:
                return None
        self.last_admission = now
        self.under_way += 1
        return Permit(self.period)

    def record_success(self, permit: Permit) -> None:
        """End a call that has succeeded."""
        if permit.period != self.period:
            return
        self.under_way -= 1
        self.successes += 1
        self.failures = 0
        if self.state == "half-open" and self.successes >= self.half_open_max:
            self._enter("closed")

    def record_failure(
        self, permit: Permit, now: float, cause: object, delay: float | None = None
    ) -> None:
        """End a call that has failed; its provider may ask for a delay of so many seconds."""
        if permit.period != self.period:
            self._lengthen(now, delay)
            return
        self.under_way -= 1
        self.failures += 1
        is_delayed = delay is not None
        if self.state == "half-open" or is_delayed or self.failures >= self.max_failures:
            self._enter("open", cause)
            self.open_until = now + max(self.reset_timeout, delay or 0)

    def release(self, permit: Permit) -> None:
        """End a call that has neither succeeded nor failed."""
        if permit.period == self.period:
            self.under_way -= 1

    def reset(self) -> None:
        """Close, and forget everything."""
        self._enter("closed")

    def isolate(self) -> None:
        """Open until `reset`."""
        self._enter("open")
        self.open_until = math.inf

    def _slots_are_taken(self) -> bool:
        return self.under_way + self.successes >= self.half_open_max

    def _lengthen(self, now: float, delay: float | None) -> None:
        """Lengthen the open period, unless it has elapsed; a late failure may still ask for it."""
        if self.state == "open" and now < self.open_until:
            self.open_until = max(self.open_until, now + (delay or 0))

    def _enter(self, state: str, cause: object = None) -> None:
        """Begin a new period."""
        if state != self.state:
            self.changes.append(Change(self.name, self.state, state, cause))
        self.state = state
        self.period += 1
        self.under_way = self.failures = self.successes = 0
