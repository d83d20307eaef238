"""How long a breaker stays open."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, final

from resilience import _settings
from resilience._breaker.config import CircuitBreakerConfig
from resilience._breaker.periods import Closed, HalfOpen
from resilience._log import log_suppressed


class Opening(NamedTuple):
    """The values with which a failure opens the breaker.

    They are computed before the lock is taken, because that calls foreign code.
    """

    reason: str
    """Type and message of the failure, as text."""
    delay: float | None
    """Delay that the provider requests, in seconds; None if it requests none."""
    jitter: float
    """Factor by which the period is lengthened."""


@final
class OpenTime:
    """The lengths of a breaker's open periods, in seconds."""

    __slots__ = ("_jitter", "_maximum", "reset_timeout")

    def __init__(self, config: CircuitBreakerConfig) -> None:
        """Read the settings of a breaker."""
        self.reset_timeout: float = _settings.check_seconds(
            "reset_timeout", config.reset_timeout, 30.0
        )
        self._maximum = _settings.check_seconds(
            "max_reset_timeout", config.max_reset_timeout, self.reset_timeout
        )
        self._jitter = config.reset_jitter

    def after(self, period: Closed | HalfOpen) -> float:
        """Return the length of the open period that follows another period, without jitter."""
        if isinstance(period, Closed):
            return self.reset_timeout
        return min(2 * period.seconds, self._maximum)

    def draw_jitter(self) -> float:
        """Return a random factor for the length of one open period; called without the lock."""
        return 1 + self._jitter * random.random() if self._jitter else 1.0


def requested_delay(
    hook: Callable[[Exception], float | timedelta | None],
    error: Exception,
    interrupt_on: tuple[type[BaseException], ...],
) -> float | None:
    """Return the delay in seconds that the provider requests; None if it requests none.

    A bool is treated as None, because `isinstance(error, RateLimitError) and 60` may be False. A
    hook that raises is logged and treated as if it had returned None.
    """
    try:
        delay = hook(error)
        _settings.refuse_coroutine("retry_after", delay)
        if delay is None or isinstance(delay, bool):
            return None
        return delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    except interrupt_on:
        raise
    except Exception as raised:
        log_suppressed("retry_after", raised)
        return None
