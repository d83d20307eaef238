"""What a setting may be: each refusal names the setting and the value."""

import inspect
import math
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, NoReturn, TypeAlias, cast

from resilience._log import log_swallowed
from resilience.exceptions import AttemptTimeoutError, EmptyStreamError

ExceptionFilter: TypeAlias = (
    type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
)
"""Which exceptions are meant: those of a type, of one of several types, or by a predicate."""


_LONGEST = 1e9  # seconds, some 30 years: finite for every clock and every lock


def kind(setting: str, value: object, wanted: type) -> None:
    """Refuse what is not an instance of a class."""
    if not isinstance(value, wanted):
        msg = f"{setting} must be a {wanted.__name__}, not {value!r}"
        raise TypeError(msg)


def text(setting: str, value: object) -> str:
    """Return a string, the empty one for None."""
    if value is None:
        return ""
    if not isinstance(value, str):
        msg = f"{setting} must be a string, not {value!r}"
        raise TypeError(msg)
    return value


def count(setting: str, value: object, default: int) -> int:
    """Return a positive whole number, the default for 0 and None."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{setting} must be a whole number, not {value!r}"
        raise TypeError(msg)
    if value < 0:
        msg = f"{setting} must not be negative, not {value!r}"
        raise ValueError(msg)
    return value or default


def seconds(setting: str, value: object, default: float) -> float:
    """Return a duration in seconds, finite and positive, the default for 0 and None."""
    if value is None:
        return default
    if isinstance(value, timedelta):
        return seconds(setting, value.total_seconds(), default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{setting} must be a number of seconds or a timedelta, not {value!r}"
        raise TypeError(msg)
    if not 0 <= value < math.inf:
        msg = f"{setting} must be finite and not negative, not {value!r}"
        raise ValueError(msg)
    if value > _LONGEST:
        msg = f"{setting} must be at most {_LONGEST:g} seconds, not {value!r}"
        raise ValueError(msg)
    return float(value) or default


def function(setting: str, value: object) -> None:
    """Refuse what cannot be called, and what would only return a coroutine."""
    if not callable(value):
        msg = f"{setting} must be callable, not {value!r}"
        raise TypeError(msg)
    if is_kind(inspect.iscoroutinefunction, value) or is_kind(inspect.isasyncgenfunction, value):
        msg = f"{setting} must be synchronous, not the coroutine function {value!r}"
        raise TypeError(msg)


def is_kind(check: Callable[[object], bool], fn: object) -> bool:
    """Tell whether a function, static method or callable object is of a kind of functions."""
    return any(check(each) for each in (fn, getattr(fn, "__func__", fn), type(fn).__call__))


def refuse_coroutine(fn: object, result: Coroutine[Any, Any, Any]) -> NoReturn:
    """Refuse a function that has returned a coroutine, which is closed."""
    result.close()  # else the interpreter warns that it was never awaited
    msg = f"fn must be synchronous, not the coroutine function {fn!r}"
    raise TypeError(msg)


def exception_filter(setting: str, value: object) -> None:
    """Refuse what is neither a type of exceptions, nor a tuple of them, nor a predicate."""
    if not isinstance(value, (type, tuple)):
        function(setting, value)
        return
    for each in cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,):
        if not (isinstance(each, type) and issubclass(each, Exception)):
            msg = f"{setting} must hold subclasses of Exception, not {each!r}"
            raise TypeError(msg)


def matches(setting: str, wanted: ExceptionFilter, error: Exception) -> bool:
    """Tell whether an exception is among the wanted.

    Types stand for themselves and for the verdicts of this library on a silent provider, which no
    client knows of. A predicate that raises is logged and taken as if it had not been set.
    """
    try:
        if isinstance(wanted, (type, tuple)):
            return isinstance(error, (wanted, AttemptTimeoutError, EmptyStreamError))
        return bool(wanted(error))
    except Exception as raised:
        log_swallowed(setting, raised)
        return True
