"""Periods of a circuit breaker in one state, and the permits that admit calls in each of them.

Each period is an object of its own, and the outcome of a call is recorded in the period that
admitted it. A period that has ended can still be written to, but is never read again: that is why
late outcomes change nothing.
"""

import math
from collections.abc import Callable
from typing import ClassVar, TypeAlias, final

from resilience._breaker.config import State


@final
class Closed:
    """A closed period: every call is admitted, consecutive failures are counted."""

    __slots__ = ("failures",)
    state: ClassVar[State] = State.CLOSED

    def __init__(self) -> None:
        """Start with no failures."""
        self.failures: int = 0


@final
class Open:
    """An open period: no call is admitted until it has elapsed."""

    __slots__ = ("reason", "until")
    state: ClassVar[State] = State.OPEN

    def __init__(self, until: float, reason: str | None) -> None:
        """Start a period until a time of the clock, because of a failure; neither ever changes."""
        self.until: float = until
        self.reason: str | None = reason


@final
class HalfOpen:
    """A half-open period: some calls are admitted as probes, and must all succeed."""

    __slots__ = ("last_admission", "reason", "slots_used", "successes")
    state: ClassVar[State] = State.HALF_OPEN

    def __init__(self, reason: str | None) -> None:
        """Start with all slots free, after a period that was opened because of a failure."""
        self.slots_used: int = 0  # by probes under way and by probes that succeeded
        self.successes: int = 0
        self.last_admission: float = -math.inf
        self.reason: str | None = reason


@final
class Probe:
    """A slot of a half-open period, released when the probe is deleted if not before."""

    __slots__ = ("_release", "is_held", "period")
    failures: ClassVar[int] = (
        1  # the one that opened the breaker: never the count of a fast success
    )

    def __init__(self, period: HalfOpen, release: Callable[["Probe"], object]) -> None:
        """Prepare for a slot of a period, which is not used yet."""
        self.period: HalfOpen = period
        self.is_held: bool = False  # guarded by the breaker's lock
        self._release = release

    def __del__(self) -> None:
        """Release the slot, if the call was interrupted or its permit was dropped."""
        # Without the lock: nothing else refers to the probe any more.
        if getattr(self, "is_held", False):  # else settled, or its making was interrupted
            self._release(self)


Period: TypeAlias = Closed | Open | HalfOpen

UNRECORDED: Closed = Closed()
"""A permit whose outcome is discarded: it has never been the period of a breaker."""

Permit: TypeAlias = Closed | Probe
"""What admitted a call, and records its outcome: a closed period, or a slot of a half-open one."""
