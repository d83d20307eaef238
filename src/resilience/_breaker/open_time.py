"""How long a breaker stays open."""

from collections.abc import Callable
from datetime import timedelta

from resilience._log import log_suppressed


def requested_delay(
    hook: Callable[[Exception], float | timedelta | None], error: Exception
) -> float | None:
    """Return the seconds that the provider asks for, None if it does not ask.

    A bool is no number of seconds: `isinstance(error, RateLimitError) and 60` may well be False. A
    hook that raises is logged and treated as if it had returned None.
    """
    try:
        delay = hook(error)
        if delay is None or isinstance(delay, bool):
            return None
        return delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    except Exception as raised:
        log_suppressed("retry_after", raised)
        return None
