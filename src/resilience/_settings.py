"""Checks of settings: each error names the setting and the value."""

import inspect
import math
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import NoReturn, SupportsIndex, TypeAlias, cast

from typing_extensions import override

from resilience._log import log_suppressed
from resilience.exceptions import AttemptTimeoutError, EmptyStreamError

ExceptionFilter: TypeAlias = (
    type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]
)
"""A filter of exceptions: a type, a tuple of types, or a predicate."""


_LONGEST = 1e9  # seconds, about 30 years: every clock and every lock can represent it

_INTERRUPTIONS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Exceptions that end a program or a generator; no provider has caused them."""


def check_type(setting: str, value: object, wanted: type) -> None:
    """Raise for a value that is not an instance of a class."""
    if not isinstance(value, wanted):
        msg = f"{setting} must be a {wanted.__name__}, got {value!r}"
        raise TypeError(msg)


def check_name(setting: str, value: object) -> str:
    """Return a string; the empty string for None."""
    if value is None:
        return ""
    if not isinstance(value, str):
        msg = f"{setting} must be a string, got {value!r}"
        raise TypeError(msg)
    return value


def check_count(setting: str, value: object, default: int) -> int:
    """Return a positive whole number; the default for 0 and None."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{setting} must be a whole number, got {value!r}"
        raise TypeError(msg)
    if value < 0:
        msg = f"{setting} must be 0 or more, got {value!r}"
        raise ValueError(msg)
    return value or default


def check_seconds(setting: str, value: object, default: float) -> float:
    """Return a duration in seconds, finite and positive; the default for 0 and None."""
    if value is None:
        return default
    if isinstance(value, timedelta):
        return check_seconds(setting, value.total_seconds(), default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{setting} must be a number of seconds or a timedelta, got {value!r}"
        raise TypeError(msg)
    if not 0 <= value < math.inf:
        msg = f"{setting} must be finite and 0 or more, got {value!r}"
        raise ValueError(msg)
    if value > _LONGEST:
        msg = f"{setting} must be at most {_LONGEST:g} seconds, got {value!r}"
        raise ValueError(msg)
    return float(value) or default


def check_fraction(setting: str, value: object) -> float:
    """Return a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{setting} must be a number from 0 to 1, got {value!r}"
        raise TypeError(msg)
    if not 0 <= value <= 1:
        msg = f"{setting} must be from 0 to 1, got {value!r}"
        raise ValueError(msg)
    return float(value)


def check_choice(setting: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise for a value that is not one of several strings."""
    wanted = " or ".join(map(repr, choices))
    if not isinstance(value, str):
        msg = f"{setting} must be {wanted}, got {value!r}"
        raise TypeError(msg)
    if value not in choices:
        msg = f"{setting} must be {wanted}, got {value!r}"
        raise ValueError(msg)


def check_callable(setting: str, value: object) -> None:
    """Raise for a value that cannot be called, or that is a coroutine function."""
    if not callable(value):
        msg = f"{setting} must be callable, got {value!r}"
        raise TypeError(msg)
    if is_kind(inspect.iscoroutinefunction, value) or is_kind(inspect.isasyncgenfunction, value):
        msg = f"{setting} must be synchronous, got the coroutine function {value!r}"
        raise TypeError(msg)


def is_kind(check: Callable[[object], bool], fn: object) -> bool:
    """Return whether a function, static method or callable object is of a kind of functions."""
    return any(check(each) for each in (fn, getattr(fn, "__func__", fn), type(fn).__call__))


class Uncopyable:
    """An object that cannot be copied or pickled, since a copy would share part of its state."""

    __slots__ = ()

    @override
    def __reduce_ex__(self, _protocol: SupportsIndex, /) -> NoReturn:
        """Raise, for `copy`, `deepcopy` and `pickle`."""
        msg = f"{type(self).__name__} cannot be copied or pickled: it guards state with a lock"
        raise TypeError(msg)


def check_exception_type(setting: str, value: object, wanted: str) -> None:
    """Raise for a value that is not an exception type."""
    if not (isinstance(value, type) and issubclass(value, BaseException)):
        msg = f"{setting} must be {wanted}, got {value!r}"
        raise TypeError(msg)


def check_exception_filter(setting: str, value: object) -> None:
    """Raise for a value that is not an exception type, a tuple of them, or a predicate."""
    wanted = "an exception type, a tuple of exception types or a predicate"
    if isinstance(value, (type, tuple)):
        for each in cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,):
            _check_countable(setting, each, wanted)
    elif callable(value):
        check_callable(setting, value)
    else:
        msg = f"{setting} must be {wanted}, got {value!r}"
        raise TypeError(msg)


def _check_countable(setting: str, value: object, wanted: str) -> None:
    check_exception_type(setting, value, wanted)
    kind = cast("type[BaseException]", value)
    if issubclass(kind, _INTERRUPTIONS) or issubclass(KeyboardInterrupt, kind):
        msg = f"{setting} must not include interruptions such as KeyboardInterrupt, got {kind!r}"
        raise TypeError(msg)


def matches(
    setting: str,
    wanted: ExceptionFilter,
    error: BaseException,
    interrupt_on: tuple[type[BaseException], ...] = (),
) -> bool:
    """Return whether a filter includes an exception.

    Types and tuples also include the library's own errors for a provider that returns nothing,
    since no client library has such errors. A predicate is called for instances of `Exception`
    only; one that raises, or returns a coroutine, is logged and treated as if it had returned True.
    Interruptions of the caller are raised.
    """
    if wanted is Exception and isinstance(error, Exception):  # by far the most common case
        return True
    try:
        if isinstance(wanted, (type, tuple)):
            return isinstance(error, (wanted, AttemptTimeoutError, EmptyStreamError))
        if not isinstance(error, Exception):
            return False
        return bool(refuse_coroutine(setting, wanted(error)))
    except interrupt_on:
        raise
    except Exception as raised:
        log_suppressed(setting, raised)
        return True


def refuse_coroutine(source: str, result: object) -> object:
    """Return a result; raise for a coroutine, which is closed."""
    if isinstance(result, Coroutine):
        result.close()  # otherwise Python warns that it was never awaited
        msg = f"{source} must be synchronous, but returned a coroutine"
        raise TypeError(msg)
    return result
