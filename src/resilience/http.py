"""Classification of exceptions of HTTP, gRPC and websocket clients by their attributes.

    breaker = CircuitBreakerConfig(failure_on=is_provider_fault, retry_after=retry_after)
    config = FallbackConfig(circuit_breaker=breaker, fallback_on=may_succeed_elsewhere)

No client library is imported, and no function here raises, whatever the attributes of an exception
are. An exception is classified by its status:

=======================================================  =================  =====================
status                                                   is_provider_fault  may_succeed_elsewhere
=======================================================  =================  =====================
400, 405, 411, 414, 415, 422 and all other 4xx           no                 no
403 not allowed, 404 no such model, 413 too large        no                 yes
401 wrong key, 402 no credit                             yes                yes
408, 409, 425, 429, 5xx, any other number, no status     yes                yes
gRPC INVALID_ARGUMENT, OUT_OF_RANGE                      no                 no
gRPC FAILED_PRECONDITION, ALREADY_EXISTS                 no                 no
gRPC NOT_FOUND, PERMISSION_DENIED, UNIMPLEMENTED         no                 yes
all other gRPC codes                                     yes                yes
websocket close codes 1003, 1007, 1008, 1009             no                 yes
websocket close codes 4400 to 4499                       no                 as for 400 to 499
websocket close codes 4500 to 4599                       yes                yes
no status, but NotImplementedError                       no                 yes
no status, but UnsupportedRequestError                   no                 yes
=======================================================  =================  =====================

The status is read from the first of these attributes that has one. It may be a whole number, a
member of a gRPC enum, or the name of such a member:

* `status_code`, `grpc_status_code`, `response.status_code`, and the `HTTPStatusCode` in the
  `response` of botocore. The error codes of AWS for throttling, quotas and failed models, which may
  come with status 400 or 424, override that status and are classified like 429.
* `http_status`, `status` and `code` (or `code()`, as in gRPC), if the number is in the table.
  If an exception has `rcvd`, the close frame that the server sent, its code replaces `code`.

An exception without a status is classified by its `__cause__`, if it has one, an `ExceptionGroup`
by its members, and `AllFailedError` by its `failures`. For several exceptions a predicate is true
if it is true for any of them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import IntEnum
from functools import partial
from itertools import islice
from typing import TypeVar

from typing_extensions import TypeIs

from resilience.exceptions import AllFailedError, UnsupportedRequestError

_T = TypeVar("_T")

_DICT = type(dict[object, object]())
_LIST = type(list[object]())

_LONGEST = 1e9  # seconds: a longer wait is a mistake, such as a time stamp instead of a delay
_MOST = 100  # how many exceptions, or parts of an error's details, are read
_NO_WAIT = -1.0  # the wait of an exception whose parts must not be read


class _Verdict(IntEnum):
    """How an exception is classified. For several exceptions, the highest verdict applies."""

    WRONG_REQUEST = 0  # no provider would accept the request
    WRONG_PROVIDER = 1  # this provider does not accept the request, another provider may
    PROVIDER_FAULT = 2  # the provider does not work


_TABLE: tuple[tuple[Iterable[int | str], _Verdict], ...] = (  # a later row overrides an earlier one
    (range(400, 500), _Verdict.WRONG_REQUEST),
    ((403, 404, 413), _Verdict.WRONG_PROVIDER),
    ((401, 402, 408, 409, 425, 429), _Verdict.PROVIDER_FAULT),
    (range(500, 600), _Verdict.PROVIDER_FAULT),
    ((1003, 1007, 1008, 1009), _Verdict.WRONG_PROVIDER),  # close codes: data, policy, size
    (("INVALID_ARGUMENT", "OUT_OF_RANGE"), _Verdict.WRONG_REQUEST),
    (("FAILED_PRECONDITION", "ALREADY_EXISTS"), _Verdict.WRONG_REQUEST),
    (("NOT_FOUND", "PERMISSION_DENIED", "UNIMPLEMENTED"), _Verdict.WRONG_PROVIDER),
    (("UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"), _Verdict.PROVIDER_FAULT),
    (("OK", "CANCELLED", "UNKNOWN", "ABORTED"), _Verdict.PROVIDER_FAULT),
    (("INTERNAL", "UNAVAILABLE", "DATA_LOSS"), _Verdict.PROVIDER_FAULT),
    # AWS error codes, which some services send with status 400 or 424.
    (("Throttling", "ThrottlingException"), _Verdict.PROVIDER_FAULT),
    (("ServiceQuotaExceededException", "ModelErrorException"), _Verdict.PROVIDER_FAULT),
)
_VERDICTS = {status: verdict for statuses, verdict in _TABLE for status in statuses}
_VERDICTS.update({4000 + status: _Verdict.PROVIDER_FAULT for status in range(500, 600)})
_VERDICTS.update(  # the server closed the websocket because of the request
    {4000 + code: min(_VERDICTS[code], _Verdict.WRONG_PROVIDER) for code in range(400, 500)}
)


def is_provider_fault(exc: BaseException) -> bool:
    """Return whether an exception counts as a failure of the provider that raised it.

    For `CircuitBreakerConfig.failure_on`. A wrong key (401) and missing credit (402) count, because
    all requests fail until they are fixed.

    Args:
        exc: Exception of a client library, or an exception raised from it.

    Returns:
        The value in the table of this module's docstring; True if there is no status.
    """
    return _judge(exc) is _Verdict.PROVIDER_FAULT


def may_succeed_elsewhere(exc: BaseException) -> bool:
    """Return whether another provider may succeed with the same request.

    For `FallbackConfig.fallback_on`. It is true for all faults of a provider, and for requests that
    only this provider refuses, such as a request for a model that it does not have.

    Args:
        exc: Exception of a client library, or an exception raised from it.

    Returns:
        The value in the table of this module's docstring; True if there is no status.
    """
    return _judge(exc) is not _Verdict.WRONG_REQUEST


def retry_after(exc: BaseException) -> float | None:
    """Return how long the provider asks its clients to wait.

    For `CircuitBreakerConfig.retry_after`. The first of these that can be parsed is used:

    * the header `retry-after-ms`, in milliseconds,
    * the header `retry-after`, in seconds or as an HTTP date, which is compared with the `date`
      header of the same response, otherwise with the system time; if two headers were joined
      (`120, 120`), the first value,
    * Google's `RetryInfo` in `details` or `body`, as a protobuf message or as JSON.

    The headers are those of `response`, otherwise `headers` or `resp_headers` of the exception.

    Args:
        exc: Exception of a client library, or an exception raised from it.

    Returns:
        Seconds, 0 for a date in the past; None if there is no number from 0 to 1e9. If an exception
        has no delay, that of its `__cause__` is returned, and for an `ExceptionGroup` the longest
        delay of its members. For `AllFailedError` it is None: the breakers of the inner group
        already wait.
    """
    waits = [wait for wait in _gather(exc, _own_wait) if wait is not None and wait >= 0]
    return max(waits, default=None)


def _judge(exc: BaseException) -> _Verdict:
    verdicts = _gather(exc, _own_verdict) or [None]
    return max(_Verdict.PROVIDER_FAULT if each is None else each for each in verdicts)


def _gather(exc: BaseException, read: Callable[[BaseException], _T | None]) -> list[_T | None]:
    """Read an exception; if the result is None, read its parts instead, each of them once."""
    results: list[_T | None] = []
    pending, seen = [exc], {id(exc)}
    for each in pending:  # the list grows during the loop
        result = read(each)
        parts = _parts(each) if result is None and len(pending) < _MOST else []
        if not parts:
            results.append(result)
        pending += [part for part in parts if id(part) not in seen]
        seen.update(map(id, parts))
    return results


def _parts(exc: BaseException) -> list[BaseException]:
    """Return the members of a group, or the cause of any other exception."""
    parts: Iterable[BaseException | None]
    try:
        if _is(exc, BaseExceptionGroup):
            parts = exc.exceptions
        elif _is(exc, AllFailedError):
            parts = exc.failures.values()
        else:
            parts = [exc.__cause__]
        return [part for part in parts if _is(part, BaseException)]
    except Exception:
        return []


def _own_verdict(exc: BaseException) -> _Verdict | None:
    for value, default in _statuses(exc):
        if (status := _status(value)) is not None:
            return _VERDICTS.get(status, default)
    is_unsupported = _is(exc, NotImplementedError) or _is(exc, UnsupportedRequestError)
    return _Verdict.WRONG_PROVIDER if is_unsupported else None


def _statuses(exc: BaseException) -> Iterator[tuple[object, _Verdict | None]]:
    """Yield values that may be a status, and the verdict for a number not in the table."""
    response = _attribute(exc, "response")
    yield _attribute(exc, "status_code"), _Verdict.PROVIDER_FAULT
    yield _attribute(exc, "grpc_status_code"), _Verdict.PROVIDER_FAULT
    yield _attribute(response, "status_code"), _Verdict.PROVIDER_FAULT
    yield _item(_item(response, "Error"), "Code"), None
    yield _item(_item(response, "ResponseMetadata"), "HTTPStatusCode"), _Verdict.PROVIDER_FAULT
    yield _attribute(exc, "http_status"), None
    yield _attribute(exc, "status"), None
    # Last, and never if there is `rcvd`: reading `code` is deprecated in aiohttp and websockets.
    yield _called(_attribute(_attribute(exc, "rcvd", exc), "code")), None


def _status(value: object) -> int | str | None:
    """Return a plain integer, or the name of a code that is in the table."""
    name = value if _is(value, str) else _attribute(value, "name")
    if _is(name, str) and (plain := str.__str__(name)) in _VERDICTS:
        return plain
    return _integer(value)


# ---- the delay


def _own_wait(exc: BaseException) -> float | None:
    return next((wait for wait in _waits(exc) if wait is not None), None)


def _waits(exc: BaseException) -> Iterator[float | None]:
    yield _NO_WAIT if _is(exc, AllFailedError) else None
    headers = next((each for each in _headers(exc) if each is not None), None)
    value = _header(headers, "retry-after")
    yield _seconds(_header(headers, "retry-after-ms"), units_per_second=1000)
    yield _seconds(value)
    yield _seconds_between(_header(headers, "date"), value)
    yield _retry_info(_attribute(exc, "details"), _attribute(exc, "body"))


def _headers(exc: BaseException) -> Iterator[object]:
    response = _attribute(exc, "response")
    yield _attribute(response, "headers")
    yield _attribute(exc, "headers")
    yield _attribute(exc, "resp_headers")
    yield _item(_item(response, "ResponseMetadata"), "HTTPHeaders")


def _header(headers: object, name: str) -> str | None:
    """Return the first header of a name, in upper or lower case, from any mapping."""
    try:
        items = getattr(headers, "items", dict[object, object]().items)
        found = [_text(value) for key, value in items() if _text(key).lower() == name]
        return str.strip(found[0]) if found else None
    except Exception:
        return None


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _seconds(value: str | None, *, units_per_second: int = 1) -> float | None:
    number = "" if value is None or "_" in value else value.partition(",")[0]
    return _sensible(_tried(lambda: float(number) / units_per_second))


def _sensible(seconds: float | None) -> float | None:
    return seconds if seconds is not None and 0 <= seconds <= _LONGEST else None


def _seconds_between(start: str | None, end: str | None) -> float | None:
    """Return the time between two HTTP dates; without a start, the time from now."""
    begin, stop = (_tried(partial(_time_stamp, date or "")) for date in (start, end))
    begin = time.time() if begin is None else begin
    return _sensible(None if stop is None else max(0.0, stop - begin))


def _time_stamp(value: str) -> float:
    date = parsedate_to_datetime(value)
    # A date without a zone is in UTC, as all dates of HTTP are.
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _retry_info(*details: object) -> float | None:
    """Find Google's RetryInfo: an object with a `retry_delay`, or JSON with a `retryDelay`."""
    pending = list(details)
    for each in islice(pending, _MOST):  # the list grows during the loop
        wait = _duration(_attribute(each, "retry_delay"))
        if _is(text := _item(each, "retryDelay"), str):
            wait = _seconds(str.removesuffix(text, "s"))
        if wait is not None:
            return wait
        pending += [_item(each, "error"), _item(each, "details")]
        pending += _LIST.copy(each) if _is(each, _LIST) else []
    return None


def _duration(delay: object) -> float | None:
    whole, billionths = (_integer(_attribute(delay, name)) for name in ("seconds", "nanos"))
    if whole is None or billionths is None or min(whole, billionths) < 0:
        return None
    return _sensible(whole + billionths / 1e9) if max(whole, billionths) <= _LONGEST else None


# ---- reading attributes of any value


def _is(value: object, kind: type[_T]) -> TypeIs[_T]:
    """Return whether a value is of a type, without calling code of the value."""
    return issubclass(type(value), kind)


def _integer(value: object) -> int | None:
    """Return a plain `int`, not an instance of a subclass that compares in its own way."""
    return int.__int__(value) if _is(value, int) and not _is(value, bool) else None


def _attribute(owner: object, name: str, default: object = None) -> object:
    return _tried(lambda: getattr(owner, name, default))


def _called(value: object) -> object:
    return _tried(value) if callable(value) else value


def _item(owner: object, key: str) -> object:
    return _tried(lambda: _DICT.get(owner, key)) if _is(owner, _DICT) else None


def _tried(function: Callable[[], _T]) -> _T | None:
    try:
        return function()
    except Exception:
        return None
