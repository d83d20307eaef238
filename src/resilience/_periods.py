"""Stays of a circuit breaker in one state, and what admits a call in each of them.

Each stay is an object of its own, a period, and a call reports to the period that admitted it. A
period that is over can still be written to, but nobody looks at it any more: that is why late
results change nothing.
"""

import math
from collections.abc import Callable
from typing import ClassVar, TypeAlias, final

from resilience._circuit_config import State


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
    """An open period: no call is admitted until its time is over."""

    __slots__ = ("until",)
    state: ClassVar[State] = State.OPEN

    def __init__(self, until: float) -> None:
        """Start a period that ends at a time of the clock, which never changes."""
        self.until = until


@final
class HalfOpen:
    """A half-open period: some calls are admitted as probes, and must all succeed."""

    __slots__ = ("last_admission", "successes", "taken")
    state: ClassVar[State] = State.HALF_OPEN

    def __init__(self) -> None:
        """Start with all slots free."""
        self.taken: int = 0  # by probes under way and by probes that succeeded
        self.successes: int = 0
        self.last_admission: float = -math.inf


@final
class Probe:
    """A slot of a half-open period, which comes back when nobody holds the probe any more."""

    __slots__ = ("_give_back", "is_held", "period")
    failures: ClassVar[int] = 1  # the one that opened the breaker: a success has that to refute

    def __init__(self, period: HalfOpen, give_back: Callable[["Probe"], object]) -> None:
        """Prepare for a slot of a period, which is not taken yet."""
        self.period: HalfOpen = period
        self.is_held: bool = False  # guarded by the circuit's lock
        self._give_back = give_back

    def __del__(self) -> None:
        """Give the slot back, if whoever held it was interrupted or has forgotten it."""
        # Without the lock: nobody else holds it any more.
        if getattr(self, "is_held", False):  # else settled, or its making was interrupted
            self._give_back(self)


Period: TypeAlias = Closed | Open | HalfOpen

Permit: TypeAlias = Closed | Probe
"""What admitted a call, and hears of its result: a closed period, or a slot of a half-open one."""
