"""Unusual values: reading an exception never raises, and a rejected setting is named.

`RESILIENCE_LONG=1` tests many more.
"""

import contextlib
import math
import os
import sys
from collections import UserDict, UserString
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, timedelta
from email.message import Message
from email.utils import format_datetime
from enum import IntEnum
from types import MappingProxyType, SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import MagicMock, Mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import refuse
from resilience import (
    AllFailedError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    State,
    http,
)
from resilience.testing import ManualClock

EXAMPLES = 20_000 if "RESILIENCE_LONG" in os.environ else 300
FUZZING = settings(max_examples=EXAMPLES, deadline=None)


# ---- objects that raise


def misbehave(*_: object, **__: object) -> NoReturn:
    """Raise an unusual exception."""
    msg = "hostile"
    raise ArithmeticError(msg)


def hostile(*names: str, base: type = object) -> type:
    """Return a class whose methods and properties of these names raise."""
    members: dict[str, object] = dict.fromkeys(names, misbehave)
    return type("Hostile", (base,), members)


def hostile_property(*names: str, base: type = object) -> type:
    """Return a class whose attributes of these names cannot be read."""
    return type("Unreadable", (base,), {name: property(misbehave) for name in names})


class Endless:
    """An object whose attributes are objects of the same kind, without end."""

    def __getattr__(self, name: str) -> "Endless":
        """Return another such object."""
        return self

    def __str__(self) -> str:
        """Recurse without end."""
        return str(self)


class Status(IntEnum):
    """A status that is an enum of integers."""

    BUSY = 429


class Interrupting:
    """A mapping whose iteration raises after the first item."""

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield one pair, and raise."""
        yield "x-first", "1"
        misbehave()


def quiet(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Wrap a strategy whose description would be very long."""

    @st.composite
    def values_of_many_kinds(draw: st.DrawFn) -> Any:  # noqa: ANN401
        return draw(values)

    return values_of_many_kinds()


COMPARISONS = ("__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__hash__")
CONVERSIONS = ("__str__", "__int__", "__float__", "__index__", "__len__", "__iter__")
OBJECTS = st.sampled_from(
    [
        object,
        Endless,
        Mock,
        MagicMock,
        hostile(*COMPARISONS),
        hostile(*CONVERSIONS),
        hostile(*COMPARISONS, *CONVERSIONS, base=int),
        hostile(*COMPARISONS, *CONVERSIONS, base=float),
        hostile(*COMPARISONS, *CONVERSIONS, "lower", "strip", "encode", base=str),
        hostile(*COMPARISONS, *CONVERSIONS, "decode", "lower", base=bytes),
        hostile("items", "keys", "get", "__getitem__", "__iter__", base=dict),
        hostile("__getattr__"),
    ]
).map(lambda kind: kind())
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 10**400, -(10**400)])
    | st.decimals()
    | st.fractions()
    | st.complex_numbers()
    | st.booleans()
    | st.just(Status.BUSY)
)
DATES = st.datetimes().map(format_datetime) | st.sampled_from(
    [
        "Mon, 31 Dec 9999 23:59:60 -9959",
        "Sat, 01 Jan 0001 00:00:00 +2359",
        "Thu, 01 Jan 99999999999 00:00:00 GMT",
        "Fri, 31 Feb 2031 25:61:61 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "2031-01-01T00:00:00Z",
    ]
)
TEXTS = (
    DATES
    | st.text(max_size=30)
    | st.text(st.characters(categories=["Nd", "Nl", "No"]), max_size=8)
    | st.text("0123456789.,-+eE_ \tinfaNxX\x00\ud800", max_size=12)
    | st.sampled_from(["9" * 500, "1e400", "-0", "١٢", "１", "²", "nan", "inf", "1_0", "", " 7 "])  # noqa: RUF001
)
PLAIN: st.SearchStrategy[Any] = (
    st.none()
    | NUMBERS
    | TEXTS
    | TEXTS.map(UserString)
    | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=20)
    | st.binary(max_size=20).map(bytearray)
    | st.binary(max_size=20).map(memoryview)  # type: ignore[arg-type]
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.timedeltas()
)
ATOMS = PLAIN | OBJECTS
VALUES = quiet(ATOMS | st.lists(ATOMS, max_size=2) | st.lists(ATOMS, max_size=2).map(tuple))


# ---- reading exceptions

KEYS = (
    st.sampled_from(["retry-after", "Retry-After", "RETRY-AFTER-MS", "retry-after-ms", "x"])
    | st.sampled_from([b"Retry-After", b"retry-after-ms", b"\xff"])
    | ATOMS
)
PAIRS = quiet(st.lists(st.tuples(KEYS, VALUES), max_size=3))


def message(pairs: list[tuple[Any, Any]]) -> Message:
    """Put pairs into headers of the standard library, as far as these accept them."""
    headers = Message()
    for key, value in pairs:
        with contextlib.suppress(Exception):
            headers[key] = value
    return headers


def as_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Put pairs into a dictionary, as far as it accepts them."""
    headers: dict[Any, Any] = {}
    for key, value in pairs:
        with contextlib.suppress(Exception):
            headers[key] = value
    return headers


HEADERS = (
    PAIRS
    | PAIRS.map(as_dict)
    | PAIRS.map(message)
    | PAIRS.map(lambda pairs: UserDict(as_dict(pairs)))
    | PAIRS.map(lambda pairs: MappingProxyType(as_dict(pairs)))
    | PAIRS.map(lambda pairs: SimpleNamespace(items=lambda: pairs))
    | PAIRS.map(lambda pairs: SimpleNamespace(items=lambda: iter(pairs)))
    | VALUES.map(lambda value: SimpleNamespace(items=value))
    | VALUES.map(lambda value: SimpleNamespace(items=lambda: value))
    | VALUES.map(lambda value: SimpleNamespace(items=lambda: [value]))
    | st.builds(Interrupting)
    | VALUES
)
STATUSES = quiet(
    VALUES
    | st.integers(380, 520)
    | st.integers(1000, 1020)
    | st.integers(4380, 4620)
    | st.integers(380, 520).map(str)
    | st.sampled_from(["NOT_FOUND", "UNAVAILABLE", "Throttling"])
    | st.builds(SimpleNamespace, name=st.sampled_from(["INVALID_ARGUMENT", "OK"]) | VALUES)
    | VALUES.map(lambda value: lambda: value)
    | st.sampled_from([misbehave, misbehave, SystemError])
)
DURATIONS = quiet(
    st.builds(SimpleNamespace, seconds=VALUES, nanos=VALUES)
    | st.builds(SimpleNamespace, seconds=st.integers(), nanos=st.integers())
    | st.builds(hostile_property("seconds"))
    | st.integers().map(lambda seconds: f"{seconds}s")
    | TEXTS.map(lambda text: f"{text}s")
    | VALUES
)
INFOS = quiet(
    st.builds(SimpleNamespace, retry_delay=DURATIONS)
    | st.builds(dict, retryDelay=DURATIONS)
    | st.builds(hostile_property("retry_delay"))
)
DETAILS = quiet(
    st.recursive(
        INFOS | VALUES,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(hostile("__iter__", "__len__", "copy", base=list))
            | st.builds(dict, error=inner, details=inner)
            | st.builds(dict, error=inner).map(hostile("get", "__getitem__", base=dict))
        ),
        max_leaves=4,
    )
)
METADATA = quiet(st.builds(dict, HTTPStatusCode=STATUSES, HTTPHeaders=HEADERS) | VALUES)
NAMES = (
    *("status_code", "grpc_status_code", "status", "code", "http_status", "rcvd"),
    *("response", "headers", "resp_headers", "details", "body", "exceptions", "__cause__"),
)
BASES = (
    *(Exception, TimeoutError, ConnectionError, KeyboardInterrupt),
    *(BaseExceptionGroup, AllFailedError),
)


# Made once, since making a strategy takes longer than drawing from it.
INNER: st.SearchStrategy[BaseException] = st.deferred(lambda: ERRORS)
RESPONSES = quiet(
    st.builds(SimpleNamespace, status_code=STATUSES, headers=HEADERS)
    | st.builds(dict, Error=st.builds(dict, Code=STATUSES) | VALUES, ResponseMetadata=METADATA)
    | INNER
    | st.sampled_from([hostile_property("status_code"), hostile_property("headers")]).map(
        lambda kind: kind()
    )
    | VALUES
)
ATTRIBUTES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["status_code", "grpc_status_code"], STATUSES),
    **dict.fromkeys(["status", "code", "http_status"], STATUSES),
    "rcvd": st.builds(SimpleNamespace, code=STATUSES) | VALUES,
    "response": RESPONSES,
    **dict.fromkeys(["headers", "resp_headers"], HEADERS),
    **dict.fromkeys(["details", "body"], DETAILS),
}
SOME_ATTRIBUTES = st.lists(st.sampled_from(list(ATTRIBUTES)), max_size=4, unique=True)
UNREADABLE = st.lists(st.sampled_from(NAMES), max_size=2)
KINDS = st.sampled_from(BASES)
PARTS: st.SearchStrategy[list[BaseException]] = st.just([]) | st.lists(INNER, max_size=2)


@st.composite
def errors(draw: st.DrawFn) -> BaseException:
    """Draw exceptions, with others as their members and causes."""
    attributes = {name: draw(ATTRIBUTES[name]) for name in draw(SOME_ATTRIBUTES)}
    return shaped(attributes, draw(UNREADABLE), draw(KINDS), draw(PARTS))


ERRORS: st.SearchStrategy[BaseException] = errors()


def shaped(
    attributes: dict[str, object],
    unreadable: list[str],
    base: type,
    parts: Sequence[BaseException] = (),
) -> BaseException:
    """Make an exception with some attributes, and with others that cannot be read.

    The parts are the members of a group; without a group the first is the cause, and the last is
    its cause.
    """
    kind = hostile_property(*unreadable, base=base)
    error: BaseException
    if issubclass(base, BaseExceptionGroup):
        error = kind("", parts or [KeyError()])
    elif issubclass(base, AllFailedError):
        error = AllFailedError(
            {str(id(part)): part for part in parts if isinstance(part, Exception)}
        )
    else:
        error = kind()
    with contextlib.suppress(AttributeError, IndexError):  # it cannot be read, or does not exist
        error.__cause__ = parts[0]
        parts[0].__cause__ = error if len(parts) == 1 else parts[-1]
    for name, value in attributes.items():
        if name not in unreadable:
            setattr(error, name, value)
    return error


@given(error=ERRORS)
@FUZZING
def test_reading_an_exception_never_raises(error: BaseException) -> None:
    """For any exception, a fault also fails over, and the delay is valid or None."""
    is_fault = http.is_provider_fault(error)
    moves_on = http.may_succeed_elsewhere(error)
    wait = http.retry_after(error)

    assert (is_fault, moves_on) in {(True, True), (False, True), (False, False)}
    assert wait is None or (type(wait) is float and math.isfinite(wait) and wait >= 0)


@given(name=st.sampled_from(["Retry-After", "Retry-After-Ms"]), value=VALUES | TEXTS)
@FUZZING
def test_no_header_gives_an_endless_wait(name: str, value: object) -> None:
    """For any header, the delay is finite and not negative, or None."""
    response = SimpleNamespace(headers={name: value})

    wait = http.retry_after(shaped({"response": response}, [], Exception))

    assert wait is None or (type(wait) is float and math.isfinite(wait) and wait >= 0)


@given(value=TEXTS)
@FUZZING
def test_a_header_means_the_same_as_bytes(value: str) -> None:
    """Headers that are bytes are read like headers that are text."""
    value = value.encode("latin-1", "replace").decode("latin-1")
    as_text = SimpleNamespace(headers={"Retry-After-Ms": value})
    as_bytes = SimpleNamespace(headers={b"Retry-After-Ms": value.encode("latin-1")})

    waits = [
        http.retry_after(shaped({"response": response}, [], Exception))
        for response in (as_text, as_bytes)
    ]

    assert waits[0] == waits[1]


# ---- settings


async def coroutine_function(*_: object) -> None:
    """Do nothing, later."""


CALLABLES = st.sampled_from(
    [
        misbehave,
        coroutine_function,
        lambda *_: None,
        lambda *_: math.nan,
        lambda *_: -math.inf,
        lambda *_: 10**400,
        lambda *_: "seven",
        lambda *_: hostile("__bool__", "__float__", "__lt__", "__gt__")(),
        lambda: None,
        len,
        int,
        object,
        MagicMock(),
        staticmethod(coroutine_function),
        hostile("__call__")(),
    ]
)
TYPES = st.sampled_from(
    [
        Exception,
        ValueError,
        BaseException,
        KeyboardInterrupt,
        int,
        type,
        State,
    ]
)
FILTERS = TYPES | st.lists(TYPES | PLAIN, max_size=3).map(tuple) | CALLABLES
ANYTHING = quiet(
    PLAIN
    | st.lists(PLAIN, max_size=2)
    | st.sampled_from([object(), Mock(), MagicMock(), timedelta.min, timedelta.max, sys.maxsize])
    | FILTERS
)
FIELDS = {
    "name": ANYTHING | st.text(max_size=5),
    "max_failures": ANYTHING | st.integers(-1, 4),
    "reset_timeout": ANYTHING | st.floats(-1, 60) | st.timedeltas(),
    "half_open_max": ANYTHING | st.integers(-1, 4),
    "failure_on": ANYTHING | FILTERS,
    "retry_after": ANYTHING | CALLABLES,
    "on_state_change": ANYTHING | CALLABLES,
}
GROUP_FIELDS = {
    "circuit_breaker": ANYTHING,
    "fallback_on": ANYTHING | FILTERS,
    "on_attempt": ANYTHING | CALLABLES,
    "attempt_timeout": ANYTHING | st.floats(-1, 60) | st.timedeltas(),
}


def shown(value: object) -> list[str]:
    """Return how a message may show a value: itself, or one of its parts, or its seconds."""
    parts = [value, *value] if isinstance(value, tuple) else [value]
    if isinstance(value, timedelta):
        parts.append(value.total_seconds())
    return [repr(part) for part in parts]


def made(kind: Callable[..., Any], fields: dict[str, object]) -> Any:  # noqa: ANN401
    """Make settings, or return None if they were refused with the right message."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        refusal = str(error)
    assert any(
        refusal.startswith((f"{field} must ", f"{field} {value!r} is "))
        and any(text in refusal for text in shown(value))
        for field, value in fields.items()
    ), refusal
    return None


@given(fields=st.fixed_dictionaries({}, optional=FIELDS))
@example({"clock": 3})
@example({"clock": coroutine_function})
@FUZZING
def test_a_breaker_is_refused_or_works(fields: dict[str, object]) -> None:
    """Each rejection names field and value; with accepted settings a breaker works."""
    clock = ManualClock()
    config = made(CircuitBreakerConfig, {"clock": clock, **fields})
    if config is None:
        return
    breaker = CircuitBreaker(config)

    assert breaker.execute(str) == ""
    for _ in range(5):
        with pytest.raises((ConnectionError, CircuitOpenError)):
            breaker.execute(refuse)
        assert breaker.state in State
        clock.advance(20)
    breaker.isolate()
    with pytest.raises(CircuitOpenError) as refusal:
        breaker.execute(str)
    assert refusal.value.retry_after is None
    assert str(refusal.value)
    breaker.reset()
    assert breaker.state is State.CLOSED
    assert breaker.execute(str) == ""


@given(fields=st.fixed_dictionaries({}, optional=GROUP_FIELDS))
@FUZZING
def test_a_group_is_refused_or_works(fields: dict[str, object]) -> None:
    """Each rejection names field and value; with accepted settings a group works."""
    config = made(FallbackConfig, fields)
    # With a limit the calls run on threads, and some limits are too short for any call.
    if config is None or config.attempt_timeout:
        return
    group = FallbackGroup[Callable[[], str]](refuse, "0", config)
    group.add_fallback("1", str)

    with contextlib.suppress(ConnectionError, AllFailedError):  # as the filter decides
        assert group.execute(lambda provider: provider()) == ""
    with contextlib.suppress(ConnectionError, AllFailedError):
        assert list(group.stream(lambda provider: provider())) == []
    group.breakers["0"].isolate()
    assert group.execute(lambda provider: provider()) == ""


@given(name=ANYTHING | st.sampled_from(["", "0", "1"]), attempt_timeout=ANYTHING)
@FUZZING
def test_a_provider_is_refused_or_added(name: object, attempt_timeout: object) -> None:
    """A rejection names the name or the limit, and then no provider is added."""
    group = FallbackGroup("primary", "0")

    def add(**fields: Any) -> bool:  # noqa: ANN401
        group.add_fallback(fallback="another", **fields)
        return True

    is_added = made(add, {"name": name, "attempt_timeout": attempt_timeout})

    assert len(group.breakers) == (2 if is_added else 1)
    assert group.execute(str) == "primary"
