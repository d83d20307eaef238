"""What a circuit breaker is told and what it tells: its settings, states and changes of state."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import final

from typing_extensions import override

from resilience import _settings


class State(Enum):
    """State of a breaker; `str` gives the value."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"

    @override
    def __str__(self) -> str:
        return str(self.value)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """A breaker went from one state to another.

    Attributes:
        name: Name of the breaker.
        old: State that it left.
        new: State that it entered.
        cause: Failure that opened it, None for every other change.
    """

    name: str
    old: State
    new: State
    cause: Exception | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """Settings of a circuit breaker.

    Zero or None in one of the first four selects its default.

    Attributes:
        name: Label in logs, events and errors.
        max_failures: Consecutive failures that open a closed breaker.
        reset_timeout: Seconds that the breaker stays open at least, before it probes.
        half_open_max: Calls admitted as probes when half-open, all of which must succeed.
        failure_on: Exceptions that count as failures: a type, a tuple of types, or a predicate.
            Types always include the library's own `AttemptTimeoutError` and `EmptyStreamError`. A
            predicate that raises is logged, and the exception counts.
        retry_after: Function from a counted exception to the seconds that the provider asks to be
            left alone, or None if it does not say. A number opens the breaker at once, for at
            least that long and never for less than `reset_timeout`. A function that raises is
            logged and taken as None. `resilience.http.retry_after` is made for this.
        on_state_change: Listener for changes of state. Changes arrive in order, one at a time, in
            the thread of one of those who caused them. A listener that raises is logged.
        clock: Function that returns seconds and never goes back.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A number is negative, not finite, or more than 1e9 seconds.
    """

    name: str = ""
    max_failures: int = 5
    reset_timeout: float | timedelta = 30.0
    half_open_max: int = 3
    failure_on: _settings.ExceptionFilter = Exception
    retry_after: Callable[[Exception], float | None] | None = None
    on_state_change: Callable[[StateChange], object] | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        """Check all values and put the defaults in."""
        checked = {
            "name": _settings.text("name", self.name),
            "max_failures": _settings.count("max_failures", self.max_failures, 5),
            "reset_timeout": _settings.seconds("reset_timeout", self.reset_timeout, 30.0),
            "half_open_max": _settings.count("half_open_max", self.half_open_max, 3),
        }
        for field, value in checked.items():
            object.__setattr__(self, field, value)
        _settings.exception_filter("failure_on", self.failure_on)
        for hook in ("retry_after", "on_state_change"):
            if getattr(self, hook) is not None:
                _settings.function(hook, getattr(self, hook))
        _settings.function("clock", self.clock)
