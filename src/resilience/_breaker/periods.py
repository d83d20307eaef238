"""Periods of a circuit breaker in one state, and the permits that admit calls in each of them.

Each period is an object of its own, and the outcome of a call is recorded in the period that
admitted it. A period that has ended can still be written to, but is never read again; therefore
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
    reason: ClassVar[str | None] = None

    def __init__(self) -> None:
        """Start with no failures."""
        self.failures: int = 0


@final
class Open:
    """An open period: until it has elapsed, only forced calls are admitted."""

    __slots__ = ("failures", "is_isolated", "reason", "seconds", "until")
    state: ClassVar[State] = State.OPEN

    def __init__(
        self,
        until: float,
        *,
        seconds: float,
        failures: int = 0,
        reason: str | None = None,
        is_isolated: bool = False,
    ) -> None:
        """Start a period.

        Args:
            until: Time of the clock at which it has elapsed.
            seconds: Its length without jitter and requested delay, from which the next one grows.
            failures: Consecutive failures that opened it.
            reason: Type and message of the last of them.
            is_isolated: Whether it was opened by `isolate()`.
        """
        self.until: float = until  # only becomes later, by a delay that the provider asks for
        self.seconds: float = seconds
        self.failures: int = failures
        self.reason: str | None = reason
        self.is_isolated: bool = is_isolated


@final
class HalfOpen:
    """A half-open period: some calls are admitted as probes, and all of them must succeed."""

    __slots__ = ("failures", "last_admission", "reason", "seconds", "slots_used", "successes")
    state: ClassVar[State] = State.HALF_OPEN

    def __init__(self, opened: Open) -> None:
        """Start with all slots free, after an open period."""
        self.seconds: float = opened.seconds
        self.failures: int = opened.failures
        self.reason: str | None = opened.reason
        self.slots_used: int = 0  # by probes under way and by probes that succeeded
        self.successes: int = 0
        self.last_admission: float = -math.inf


@final
class Probe:
    """A slot of a half-open period; released at the latest when the probe is deleted."""

    __slots__ = ("_release", "is_held", "period")
    # The failure that opened the breaker; not 0, so that a success is recorded.
    failures: ClassVar[int] = 1

    def __init__(self, period: HalfOpen, release: Callable[["Probe"], object]) -> None:
        """Prepare for a slot of a period; the slot is not used yet."""
        self.period: HalfOpen = period
        self.is_held: bool = False  # guarded by the breaker's lock
        self._release = release

    def __del__(self) -> None:
        """Release the slot, if the call was interrupted or its permit was dropped."""
        # Without the lock: nothing else refers to the probe any more.
        if getattr(self, "is_held", False):  # otherwise settled, or the constructor was interrupted
            self._release(self)


@final
class Forced:
    """A permit for a call in an open period (`when_all_open="try"`)."""

    __slots__ = ("period",)
    failures: ClassVar[int] = 1  # as for a probe

    def __init__(self, period: Open) -> None:
        """Admit a call that may end this period early."""
        self.period: Open = period


Period: TypeAlias = Closed | Open | HalfOpen

UNRECORDED: Closed = Closed()
"""A permit whose outcome is discarded: it has never been the period of a breaker."""

Permit: TypeAlias = Closed | Probe | Forced
"""A permit admits a call and records its outcome."""
