"""Exceptions of HTTP clients are read by their shape, and reading them never raises."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from http import HTTPStatus
from io import BytesIO
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock, patch
from urllib.error import HTTPError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from resilience import CircuitBreaker, CircuitBreakerConfig, State, http
from resilience.testing import ManualClock

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PROVIDERS_OWN = [408, 409, 425, 429]
CLIENTS_OWN = [400, 401, 402, 403, 404, 405, 410, 413, 415, 422, 424, 426, 428, 430, 431, 451, 499]
NO_CLIENT_ERRORS = [0, -1, 100, 200, 204, 301, 304, 399, 500, 502, 503, 504, 529, 599, 10**30]


class ShapedError(Exception):
    """An exception with the attributes that it is given."""

    def __init__(self, **attributes: object) -> None:
        """Take the attributes."""
        super().__init__()
        vars(self).update(attributes)


class HostileError(Exception):
    """An exception none of whose attributes can be read."""

    @override
    def __getattribute__(self, name: str) -> object:
        raise ValueError(name)


class Hostile:
    """An object that raises at whatever is done with it."""

    @override
    def __getattribute__(self, name: str) -> object:
        raise ValueError(name)

    @override
    def __str__(self) -> str:
        raise ValueError

    def __bool__(self) -> bool:
        """Have no truth."""
        raise ValueError

    @override
    def __eq__(self, other: object) -> bool:
        raise ValueError

    @override
    def __hash__(self) -> int:
        raise ValueError


class HostileInteger(int):
    """An integer that cannot be compared."""

    @override
    def __eq__(self, other: object) -> bool:
        raise ValueError

    @override
    def __hash__(self) -> int:
        raise ValueError


class HostileText(str):
    """A text that cannot be worked with."""

    __slots__ = ()

    @override
    def __str__(self) -> str:
        return self

    @override
    def strip(self, chars: str | None = None, /) -> str:
        raise ValueError


Pretender = type("Pretender", (), {"__class__": property(lambda _: int)})
"""An object that claims to be an integer."""


class Falsy(SimpleNamespace):
    """A response that is false, like the failed ones of some clients."""

    def __bool__(self) -> bool:
        """Be false."""
        return False


def with_headers(headers: object) -> ShapedError:
    """Make an exception whose response has some headers."""
    return ShapedError(response=SimpleNamespace(status_code=429, headers=headers))


def at(now: datetime) -> AbstractContextManager[object]:
    """Stop the wall clock."""
    return patch.object(http, "time", SimpleNamespace(time=now.timestamp))


def shapes_of(status: object) -> Iterator[ShapedError]:
    """Yield an exception for each shape that a status may come in."""
    yield ShapedError(status_code=status)
    yield ShapedError(status_code=status, response=None)
    yield ShapedError(response=SimpleNamespace(status_code=status))
    yield ShapedError(response=Falsy(status_code=status))
    yield ShapedError(status_code=None, response=SimpleNamespace(status_code=status))
    yield ShapedError(status_code=True, response=SimpleNamespace(status_code=status))
    yield ShapedError(code=status, headers={})
    yield ShapedError(status=status, headers={})
    yield ShapedError(status="RESOURCE_EXHAUSTED", code=status, headers={})


@pytest.mark.parametrize("status", CLIENTS_OWN)
def test_a_client_error_is_not_the_providers_fault(status: int) -> None:
    """A status that speaks against the request is not the provider's fault, in any shape."""
    assert not any(map(http.is_provider_fault, shapes_of(status)))


@pytest.mark.parametrize("status", PROVIDERS_OWN + NO_CLIENT_ERRORS)
def test_every_other_status_is_the_providers_fault(status: int) -> None:
    """Timeout, conflict, too early, too many, and all but 400 to 499 are the provider's fault."""
    assert all(map(http.is_provider_fault, shapes_of(status)))


def test_a_status_may_be_an_enum() -> None:
    """A status may be a member of an enum of integers."""
    assert not any(map(http.is_provider_fault, shapes_of(HTTPStatus.NOT_FOUND)))
    assert all(map(http.is_provider_fault, shapes_of(HTTPStatus.TOO_MANY_REQUESTS)))


@pytest.mark.parametrize(
    "error",
    [
        Exception(),
        ConnectionRefusedError(),
        TimeoutError(),
        KeyboardInterrupt(),
        ShapedError(response=None),
        ShapedError(response={"status_code": 400}),
        ShapedError(status_code="400"),
        ShapedError(status_code=400.0),
        ShapedError(status_code=None),
        ShapedError(status_code=True),
        Mock(spec=Exception, status_code=Mock(), response=MagicMock()),
    ],
)
def test_what_has_no_status_is_the_providers_fault(error: BaseException) -> None:
    """An exception without a status that is an integer is the provider's fault."""
    assert http.is_provider_fault(error)
    assert http.retry_after(error) is None


def test_attributes_that_raise_say_nothing() -> None:
    """What raises when it is read or looked at is taken as missing."""
    errors = [
        HostileError(),
        ShapedError(response=Hostile()),
        ShapedError(status_code=Hostile(), headers=Hostile()),
        ShapedError(status_code=Pretender()),
        with_headers(Hostile()),
        with_headers({"retry-after": Hostile()}),
        with_headers({"retry-after": 10**5000}),
        with_headers({"retry-after-ms": Hostile(), "retry-after": Hostile()}),
    ]

    assert all(map(http.is_provider_fault, errors))
    assert all(http.retry_after(error) is None for error in errors)


@pytest.mark.parametrize("name", ["code", "status"])
def test_a_code_without_headers_is_no_status(name: str) -> None:
    """A code on an exception without headers may mean anything, and is no status."""
    assert http.is_provider_fault(ShapedError(**{name: 404}))
    assert http.is_provider_fault(ShapedError(**{name: 404}, headers=None))


def test_the_exceptions_own_status_comes_first() -> None:
    """If an exception and its response contradict each other, the exception's word counts."""
    in_mid_stream = ShapedError(
        status_code=200, response=SimpleNamespace(status_code=404), code=404
    )

    assert http.is_provider_fault(in_mid_stream)


def test_a_status_that_cannot_be_compared_is_read() -> None:
    """An integer that redefines comparison is compared as the number that it is."""
    assert not http.is_provider_fault(ShapedError(status_code=HostileInteger(404)))
    assert http.is_provider_fault(ShapedError(status_code=HostileInteger(429)))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "  7\t"}, 7.0),
        ({"Retry-After": "30"}, 30.0),
        ({"RETRY-AFTER": b"30"}, 30.0),
        ({b"Retry-After": b"30"}, 30.0),
        ({"retry-after": 30}, 30.0),
        ({"retry-after": HostileText(" 30 ")}, 30.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"Retry-After-MS": b"1500"}, 1.5),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "9", "retry-after-ms": "soon"}, 9.0),
        ({"retry-after": "9", "retry-after-ms": "-1"}, 9.0),
        ({"retry-after": "9", "retry-after-ms": "nan"}, 9.0),
        ({"x-retry-after": "1", "retry-after": "9"}, 9.0),
        ({b"\xff": b"1", b"retry-after": b"9"}, 9.0),
        ({"retry-after": "1000000000"}, 1e9),
        ({"retry-after-ms": "1000000000000"}, 1e9),
    ],
)
def test_a_number_is_a_wait(headers: Mapping[object, object], seconds: float) -> None:
    """Milliseconds come first, then seconds, whatever the mapping, its spelling and its types."""
    assert http.retry_after(with_headers(headers)) == seconds
    assert http.retry_after(ShapedError(headers=headers)) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *["", " ", "soon", "-1", "-0.001", "nan", "inf", "-inf", "1e999", "5, 10", "10s", "0x10"],
        *["9" * 100_000, "\N{SUPERSCRIPT TWO}", "5\x006"],
        *["2026-01-02T03:05:05Z", "Fri, 99 Jan 2026 03:05:05 GMT", "Fri, 02 Jan 9999 03:05:05 GMT"],
        *["1 Jan 0000 00:00 +9999", "1 Jan 99999999999 00:00", "1 Jan 2026 00:00 +99999999999"],
        *[b"", b"\xff\xfe", None, True, [], ["5"], ("5", "6"), {"5": "5"}, ...],
        *[float("nan"), float("inf"), -1, 10**30],
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_value_without_sense_is_no_wait(value: object) -> None:
    """What is negative, endless, absurd or not to be understood says nothing."""
    assert http.retry_after(with_headers({"retry-after": value})) is None
    assert http.retry_after(with_headers({"retry-after-ms": value})) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retry-after", "1000000001"),
        ("retry-after", str(round(NOW.timestamp()))),
        ("retry-after", "Fri, 02 Jan 2126 03:04:05 GMT"),
        ("retry-after-ms", "1000000000001"),
        ("retry-after-ms", str(round(NOW.timestamp() * 1000))),
    ],
)
def test_an_absurd_wait_is_no_wait(name: str, value: str) -> None:
    """More than 1e9 seconds, such as a time stamp sent by mistake, say nothing."""
    with at(NOW):
        assert http.retry_after(with_headers({name: value})) is None


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Fri, 02 Jan 2026 03:05:35 GMT", 90.0),
        ("Friday, 02-Jan-26 03:05:35 GMT", 90.0),
        ("Fri, 02 Jan 2026 04:05:35 +0100", 90.0),
        ("Fri, 02 Jan 2026 03:05:35 -0000", 90.0),
        ("Fri, 02 Jan 2026 03:05:35", 90.0),
        (b"Fri, 02 Jan 2026 03:05:35 GMT", 90.0),
        ("Fri, 02 Jan 2026 03:04:05 GMT", 0.0),
        ("Fri, 02 Jan 2026 03:04:04 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
    ids=repr,
)
def test_a_date_is_a_wait(date: object, seconds: float) -> None:
    """A date is a wait from now on, or none if it is past; without a zone it is in UTC."""
    with at(NOW):
        assert http.retry_after(with_headers({"Retry-After": date})) == seconds


@pytest.fixture(params=["EST5", "UTC0", "JST-9"])
def _in_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put the process into a time zone."""
    if not hasattr(time, "tzset"):
        pytest.skip("this system cannot change the time zone of a process")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_in_zone")
def test_the_machines_time_zone_does_not_matter() -> None:
    """A date without a zone means the same on a machine in any time zone."""
    with at(NOW):
        assert http.retry_after(with_headers({"retry-after": "Fri, 02 Jan 2026 03:05:35"})) == 90.0


@pytest.mark.parametrize(
    "headers",
    [
        *[None, 5, "retry-after: 5", b"retry-after", ["retry-after"], [("retry-after", "5")]],
        *[object(), Mock(), MagicMock(), {}, {None: None}, {"retry-after ": "5"}],
        *[SimpleNamespace(items=None), SimpleNamespace(items=lambda: [1]), {"date": "5"}],
        SimpleNamespace(items=lambda: [("retry-after",)]),
    ],
)
def test_headers_without_a_wait_say_nothing(headers: object) -> None:
    """Headers that lack the names, or are no headers at all, say nothing."""
    assert http.retry_after(with_headers(headers)) is None
    assert http.retry_after(ShapedError(headers=headers)) is None


def test_the_first_of_several_headers_counts() -> None:
    """If a header comes more than once, the first one counts."""
    headers = Message()
    headers["Retry-After"] = "5"
    headers["retry-after"] = "10"

    assert http.retry_after(with_headers(headers)) == 5.0


def test_the_headers_of_the_response_come_first() -> None:
    """The response's headers count, and the exception's own only without them."""
    response = Falsy(headers={"retry-after": "5"})

    both = ShapedError(response=response, headers={"retry-after": "9"})
    without_headers = ShapedError(response=object(), headers={"retry-after": "9"})

    assert http.retry_after(both) == 5.0
    assert http.retry_after(without_headers) == 9.0


def test_the_standard_librarys_own_error_is_read() -> None:
    """The status and the headers of `urllib.error.HTTPError` are found."""
    headers = Message()
    headers["Retry-After"] = "5"

    with HTTPError("http://localhost", 404, "Not Found", headers, BytesIO()) as error:
        assert not http.is_provider_fault(error)
        assert http.retry_after(error) == 5.0


def test_an_interrupt_is_not_swallowed() -> None:
    """An attribute that is interrupted by the user interrupts the reading."""

    class Interrupted(Exception):  # noqa: N818
        @property
        def status_code(self) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        http.is_provider_fault(Interrupted())


def test_a_breaker_obeys_the_provider() -> None:
    """A breaker that is given both functions ignores client errors and stays away when asked."""
    clock = ManualClock()
    breaker = CircuitBreaker(
        CircuitBreakerConfig(
            max_failures=2,
            reset_timeout=10.0,
            failure_on=http.is_provider_fault,
            retry_after=http.retry_after,
            clock=clock,
        )
    )

    def fail(error: Exception) -> None:
        raise error

    for _ in range(5):
        with pytest.raises(ShapedError):
            breaker.execute(fail, ShapedError(status_code=400))
    after_client_errors = breaker.state
    with pytest.raises(ShapedError):
        breaker.execute(fail, with_headers({"retry-after": "60"}))
    clock.advance(59.0)
    before_the_time = breaker.state
    clock.advance(1.0)

    assert after_client_errors is State.CLOSED
    assert before_the_time is State.OPEN
    assert breaker.state is State.HALF_OPEN


# ---- anything at all

NAMES = st.sampled_from(["retry-after", "Retry-After", "retry-after-ms", "RETRY-AFTER-MS", "date"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.text("0123456789.,-+eE_ \u0663\uff11", max_size=12)
    | st.datetimes().map(format_datetime)
    | st.builds(Hostile)
    | st.builds(HostileInteger, st.integers())
    | st.builds(HostileText, st.text(max_size=5))
    | st.builds(Pretender),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=3,
)
KEYS = NAMES | NAMES.map(str.encode) | st.text(max_size=5) | st.integers()
PAIRS = st.lists(st.tuples(KEYS, VALUES), max_size=4)
HEADERS = PAIRS.map(dict) | PAIRS.map(lambda pairs: SimpleNamespace(items=lambda: pairs)) | VALUES
RESPONSES = VALUES | st.builds(SimpleNamespace, status_code=VALUES, headers=HEADERS)
ERRORS = st.builds(HostileError) | st.fixed_dictionaries(
    {},
    optional={
        "status_code": VALUES | st.integers(390, 510),
        "response": RESPONSES,
        "headers": HEADERS,
        "status": VALUES,
        "code": VALUES,
    },
).map(lambda attributes: ShapedError(**attributes))


@given(error=ERRORS)
@settings(deadline=None)
def test_nothing_makes_the_reading_raise(error: Exception) -> None:
    """Whatever an exception carries, the answer is a truth and a sensible wait or None."""
    is_fault = http.is_provider_fault(error)
    seconds = http.retry_after(error)

    assert is_fault is True or is_fault is False
    assert seconds is None or (type(seconds) is float and 0.0 <= seconds <= 1e9)


@given(seconds=st.floats(0, 1e9), form=st.sampled_from([repr, "{:.3f}".format, "{:e}".format]))
@settings(deadline=None)
def test_every_sensible_number_is_a_wait(seconds: float, form: Callable[[float], str]) -> None:
    """A number from 0 up is the wait, as seconds or as milliseconds, however it is written."""
    text = form(seconds)

    assert http.retry_after(with_headers({"retry-after": text})) == float(text)
    assert http.retry_after(with_headers({"retry-after-ms": text})) == float(text) / 1000


@given(
    seconds=st.integers(-(10**9), 10**9),
    now=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001
)
@settings(deadline=None)
def test_every_date_is_a_wait(seconds: int, now: datetime) -> None:
    """A date is as far away as it is later than now, and never less than 0."""
    now = now.replace(microsecond=0, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=seconds), usegmt=True)

    with at(now):
        assert http.retry_after(with_headers({"retry-after": date})) == max(0.0, seconds)
