"""Settings of a circuit breaker, its states, and the changes of state that it reports."""

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
    cause: BaseException | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """Settings of a circuit breaker.

    Zero or None in one of the first four selects its default.

    Attributes:
        name: Label in logs, events and errors.
        max_failures: Consecutive failures that open a closed breaker.
        reset_timeout: Seconds, or a `timedelta`, that the breaker stays open at least before it
            admits a probe.
        half_open_max: Calls admitted as probes when half-open, all of which must succeed.
        failure_on: Exceptions that count as failures: a type, a tuple of types, or a predicate.
            Types always include the library's own `AttemptTimeoutError` and `EmptyStreamError`. A
            predicate is called for instances of `Exception`; one that raises or returns a coroutine
            is logged, and the exception counts. `KeyboardInterrupt`, `SystemExit` and
            `GeneratorExit` never count.
        retry_after: Function from a counted exception to the delay that the provider asks for, in
            seconds or as a `timedelta`, or None if it does not ask. A number opens the breaker at
            once, for at least that long and never for less than `reset_timeout`; if the breaker is
            already open, a longer delay lengthens the open period. A bool is treated as None. A
            function that raises is logged and treated as if it had returned None.
            `resilience.http.retry_after` is made for this.
        on_state_change: Listener for changes of state. Changes arrive in order, one at a time, in
            a thread that caused one of them. A listener that raises is logged.
        clock: Function that returns seconds and never goes back.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A number is negative, not finite, or more than 1e9 seconds.
    """

    name: str | None = ""
    max_failures: int | None = 5
    reset_timeout: float | timedelta | None = 30.0
    half_open_max: int | None = 3
    failure_on: _settings.ExceptionFilter = Exception
    retry_after: Callable[[Exception], float | timedelta | None] | None = None
    on_state_change: Callable[[StateChange], object] | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        """Check all values and put the defaults in."""
        checked = {
            "name": _settings.check_name("name", self.name),
            "max_failures": _settings.check_count("max_failures", self.max_failures, 5),
            "reset_timeout": _settings.check_seconds("reset_timeout", self.reset_timeout, 30.0),
            "half_open_max": _settings.check_count("half_open_max", self.half_open_max, 3),
        }
        for field, value in checked.items():
            object.__setattr__(self, field, value)
        _settings.check_exception_filter("failure_on", self.failure_on)
        for hook in ("retry_after", "on_state_change"):
            if getattr(self, hook) is not None:
                _settings.check_callable(hook, getattr(self, hook))
        _settings.check_callable("clock", self.clock)
