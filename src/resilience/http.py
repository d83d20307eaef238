"""Reading the exceptions of HTTP clients by their shape, whatever library raised them.

    CircuitBreakerConfig(failure_on=is_provider_fault, retry_after=retry_after)

The shape is a status, `exc.status_code` or `exc.response.status_code`, and headers,
`exc.response.headers` or `exc.headers`, as in most client libraries. Beside `exc.headers` the
status may also be `exc.status` or `exc.code`, as in `urllib.error.HTTPError`. Nothing here
raises, whatever the attributes turn out to be.
"""

import time
from datetime import UTC
from email.utils import parsedate_to_datetime

_CLIENT_ERRORS = range(400, 500)

_PROVIDERS_OWN = frozenset({408, 409, 425, 429})
"""Client errors that say nothing against the request: timeout, conflict, too early, too many."""

_LONGEST = 1e9  # seconds: a longer wait is nonsense, such as a time stamp sent by mistake


def is_provider_fault(exc: BaseException) -> bool:
    """Tell whether an exception is the provider's fault and not that of the request.

    Made to be given to `CircuitBreakerConfig.failure_on`.

    Args:
        exc: What a client library raised.

    Returns:
        False for client errors, which are the statuses 400 to 499 but for 408 (timeout), 409
        (conflict), 425 (too early) and 429 (too many requests). True for everything else: other
        statuses, refused connections, timeouts, and whatever has no status at all.
    """
    status = _status(exc)
    return status not in _CLIENT_ERRORS or status in _PROVIDERS_OWN


def retry_after(exc: BaseException) -> float | None:
    """Return for how long the provider asks to be left alone.

    Made to be given to `CircuitBreakerConfig.retry_after`.

    Args:
        exc: What a client library raised.

    Returns:
        Seconds, from the header `retry-after-ms`, or from `retry-after`, which is a number of
        seconds or an HTTP date (one in the past gives 0); None if the headers do not say, or not
        sensibly.
    """
    headers = _headers(exc)
    seconds = _seconds(_header(headers, "retry-after-ms"), units_per_second=1000)
    if seconds is not None:
        return seconds
    value = _header(headers, "retry-after")
    seconds = _seconds(value)
    return _seconds_until(value) if seconds is None else seconds


def _status(exc: BaseException) -> int | None:
    owners = [(exc, "status_code"), (_attribute(exc, "response"), "status_code")]
    if _attribute(exc, "headers") is not None:  # else a code may be an exit code or anything
        owners += [(exc, "status"), (exc, "code")]
    numbers = (_integer(_attribute(owner, name)) for owner, name in owners)
    return next((number for number in numbers if number is not None), None)


def _integer(value: object) -> int | None:
    """Return a plain integer, whose comparisons are Python's own."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return int.__int__(value)
    except Exception:
        return None
    return None


def _headers(exc: BaseException) -> object:
    headers = _attribute(_attribute(exc, "response"), "headers")
    return _attribute(exc, "headers") if headers is None else headers


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def _header(headers: object, name: str) -> str | None:
    """Return a header, the first of several, from any mapping and in any spelling."""
    try:
        items = getattr(headers, "items", dict[object, object]().items)
        found = [_text(value) for key, value in items() if _text(key).lower() == name]
        return str.strip(found[0]) if found else None
    except Exception:
        return None


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _seconds(value: str | None, *, units_per_second: int = 1) -> float | None:
    try:
        number = "nan" if value is None or "_" in value else value
        seconds = float(number) / units_per_second
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _LONGEST else None


def _seconds_until(value: str | None) -> float | None:
    try:
        date = parsedate_to_datetime(value or "")
        # A date without a zone is in UTC, as all dates of HTTP are.
        stamp = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except Exception:
        return None
    wait = stamp - time.time()
    return max(0.0, wait) if wait <= _LONGEST else None
