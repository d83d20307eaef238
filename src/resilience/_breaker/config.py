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
    """A change of a breaker's state.

    Attributes:
        name: Name of the breaker.
        old: State that it left.
        new: State that it entered.
        cause: Failure that opened the breaker; None for all other changes.
    """

    name: str
    old: State
    new: State
    cause: BaseException | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state and the counts of a breaker at one moment.

    Attributes:
        name: Name of the breaker.
        state: The state; half-open as soon as the next call would be admitted as a probe.
        consecutive_failures: Counted failures since the last success, `reset()` or `isolate()`,
            including failed probes.
        retry_after: Seconds until a call may be admitted, 0 if one is admitted now; an upper bound
            if probes are under way. None if that is not known: it is isolated until it is reset, or
            the provider asked for an infinite delay.
        probes: Probes under way.
        opened_count: How often the breaker has opened since it was made or reset; each failed probe
            opens it again.
        last_failure: Type name of the last counted failure since the breaker was made or reset;
            None if there was none.
        last_failure_age: Seconds since that failure, by the breaker's clock.
    """

    name: str
    state: State
    consecutive_failures: int
    retry_after: float | None
    probes: int
    opened_count: int
    last_failure: str | None
    last_failure_age: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """Settings of a circuit breaker.

    Zero or None in `name`, `max_failures`, `reset_timeout` or `half_open_max` selects its default.

    Attributes:
        name: Label in logs, events and errors.
        max_failures: Consecutive failures that open a closed breaker.
        reset_timeout: Minimum time that the breaker stays open before it admits a probe, in seconds
            or as a `timedelta`.
        max_reset_timeout: Longest time to which open periods grow, in seconds or as a `timedelta`:
            each time a probe fails, the next period is twice as long as the last one; after the
            breaker has closed, the first period is `reset_timeout` again. 0 for no growth.
        reset_jitter: Largest fraction, from 0 to 1, by which an open period is lengthened at
            random, so that many processes do not probe at the same moment. It does not change the
            delay that `retry_after` returns.
        half_open_max: Calls admitted as probes when half-open, all of which must succeed.
        failure_on: Exceptions that count as failures: a type, a tuple of types, or a predicate.
            Types and tuples also include `AttemptTimeoutError` and `EmptyStreamError`. A
            predicate is called for instances of `Exception`; one that raises or returns a coroutine
            is logged, and the exception counts. `KeyboardInterrupt`, `SystemExit` and
            `GeneratorExit` never count.
        retry_after: Function from a counted exception to the delay that the provider asks for, in
            seconds or as a `timedelta`, or to None if it asks for no delay. A number opens the
            breaker at once, for this delay or `reset_timeout`, whichever is longer; if the breaker
            is already open, a longer delay lengthens the open period. A bool is treated as None. A
            function that raises is logged and treated as if it had returned None. For HTTP, gRPC
            and websocket clients, use `resilience.http.retry_after`.
        on_state_change: Listener for changes of state. Changes arrive in order, one at a time, in
            a thread that caused one of them. A listener that raises is logged.
        clock: Function that returns seconds and never goes back.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A number is negative, not finite, more than 1e9 seconds or, for
            `reset_jitter`, more than 1; or `max_reset_timeout` is less than `reset_timeout`.
    """

    name: str | None = ""
    max_failures: int | None = 5
    reset_timeout: float | timedelta | None = 30.0
    half_open_max: int | None = 3
    failure_on: _settings.ExceptionFilter = Exception
    retry_after: Callable[[Exception], float | timedelta | None] | None = None
    on_state_change: Callable[[StateChange], object] | None = None
    clock: Callable[[], float] = time.monotonic
    max_reset_timeout: float | timedelta | None = 0.0
    reset_jitter: float = 0.0

    def __post_init__(self) -> None:
        """Check all values and put the defaults in."""
        checked = {
            "name": _settings.check_name("name", self.name),
            "max_failures": _settings.check_count("max_failures", self.max_failures, 5),
            "reset_timeout": _settings.check_seconds("reset_timeout", self.reset_timeout, 30.0),
            "half_open_max": _settings.check_count("half_open_max", self.half_open_max, 3),
            "reset_jitter": _settings.check_fraction("reset_jitter", self.reset_jitter),
        }
        for field, value in checked.items():
            object.__setattr__(self, field, value)
        object.__setattr__(self, "max_reset_timeout", self._checked_maximum())
        _settings.check_exception_filter("failure_on", self.failure_on)
        for hook in ("retry_after", "on_state_change"):
            if getattr(self, hook) is not None:
                _settings.check_callable(hook, getattr(self, hook))
        _settings.check_callable("clock", self.clock)

    def _checked_maximum(self) -> float:
        maximum = _settings.check_seconds("max_reset_timeout", self.max_reset_timeout, 0.0)
        minimum = _settings.check_seconds("reset_timeout", self.reset_timeout, 30.0)
        if 0.0 < maximum < minimum:
            msg = f"max_reset_timeout must be 0 or at least reset_timeout, got {maximum!r}"
            raise ValueError(msg)
        return maximum
