"""Exceptions of HTTP clients are read by their attributes, and reading them never raises."""

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

from helpers import REQUEST, Recorder, fail
from http_answers import (
    GRPC_CODES,
    PROVIDER_FAULT,
    WRONG_PROVIDER,
    WRONG_REQUEST,
    Answers,
    answers,
)
from resilience import AllFailedError, LLMFallback, State, http
from resilience.testing import FakeLLM, ManualClock, StatusError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

STATUSES = {
    **dict.fromkeys([400, 405, 406, 410, 411, 414, 415, 418, 422, 424, 428], WRONG_REQUEST),
    **dict.fromkeys([430, 431, 451, 498, 499], WRONG_REQUEST),
    **dict.fromkeys([403, 404, 413], WRONG_PROVIDER),
    **dict.fromkeys([401, 402, 408, 409, 425, 429], PROVIDER_FAULT),
    **dict.fromkeys([500, 501, 502, 503, 504, 529, 599], PROVIDER_FAULT),
}
NO_ERRORS = [0, -1, 100, 200, 204, 301, 304, 399, 600, 3000, 10**30]
CLOSE_CODES = {
    **dict.fromkeys([1003, 1007, 1008, 1009], WRONG_PROVIDER),
    **{
        4000 + status: WRONG_PROVIDER if status < 500 and answers == PROVIDER_FAULT else answers
        for status, answers in STATUSES.items()
    },
    **dict.fromkeys([1000, 1001, 1006, 1011, 1012, 1013, 4000, 4001, 4399, 4600], PROVIDER_FAULT),
}


class ShapedError(Exception):
    """An exception with given attributes."""

    def __init__(self, **attributes: object) -> None:
        """Set the attributes."""
        super().__init__()
        vars(self).update(attributes)


class HostileError(Exception):
    """An exception none of whose attributes can be read."""

    @override
    def __getattribute__(self, name: str) -> object:
        raise ValueError(name)


class Hostile:
    """An object all of whose methods raise."""

    @override
    def __getattribute__(self, name: str) -> object:
        raise ValueError(name)

    @override
    def __str__(self) -> str:
        raise ValueError

    def __bool__(self) -> bool:
        """Raise."""
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
    """A text that cannot be stripped."""

    __slots__ = ()

    @override
    def __str__(self) -> str:
        return self

    @override
    def strip(self, chars: str | None = None, /) -> str:
        raise ValueError


class HostileKey(str):
    """A key that cannot be compared with the text that has the same hash."""

    __slots__ = ()

    @override
    def __eq__(self, other: object) -> bool:
        raise ValueError

    @override
    def __hash__(self) -> int:
        return hash(str(self))


Pretender = type("Pretender", (), {"__class__": property(lambda _: int)})
"""An object that claims to be an integer."""


class Falsy(SimpleNamespace):
    """A response whose truth value is False, like the failed responses of some clients."""

    def __bool__(self) -> bool:
        """Return False."""
        return False


def with_headers(headers: object) -> ShapedError:
    """Make an exception whose response has some headers."""
    return ShapedError(response=SimpleNamespace(status_code=429, headers=headers))


def at(now: datetime) -> AbstractContextManager[object]:
    """Set the time of day to a constant."""
    return patch.object(http, "time", SimpleNamespace(time=now.timestamp))


def raised_from(error: Exception, cause: BaseException | None) -> Exception:
    """Give an exception a cause."""
    error.__cause__ = cause
    return error


def aws_error(status: object, code: object = "", **headers: str) -> ShapedError:
    """Make an exception with the attributes of botocore's."""
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return ShapedError(response={"Error": {"Code": code}, "ResponseMetadata": metadata})


def shapes_of(status: object) -> Iterator[Exception]:
    """Yield an exception for each attribute that may have a status."""
    yield ShapedError(status_code=status)
    yield ShapedError(status_code=status, response=None)
    yield ShapedError(response=SimpleNamespace(status_code=status))
    yield ShapedError(response=Falsy(status_code=status))
    yield ShapedError(status_code=None, response=SimpleNamespace(status_code=status))
    yield ShapedError(status_code=True, response=SimpleNamespace(status_code=status))
    yield ShapedError(status_code="400", response=SimpleNamespace(status_code=status))
    yield aws_error(status)
    yield from shapes_of_code(status)


def shapes_of_code(status: object) -> Iterator[Exception]:
    """Yield an exception for each attribute in which not every number is a status."""
    yield ShapedError(status=status)
    yield ShapedError(status=status, code="rate_limit_exceeded", headers=None)
    yield ShapedError(status="OVERLOADED", code=status, headers={})
    yield ShapedError(status_code=None, response=None, code=status)
    yield ShapedError(http_status=status, status=None, code=None)
    yield ShapedError(code=lambda: status)
    yield ShapedError(rcvd=SimpleNamespace(code=status), code=500)


@pytest.mark.parametrize(("status", "expected"), STATUSES.items())
def test_a_status_decides(status: int, expected: Answers) -> None:
    """Each status has the results of the table, in any attribute."""
    assert {answers(error) for error in shapes_of(status)} == {expected}


@pytest.mark.parametrize("status", NO_ERRORS)
def test_a_number_that_is_no_error_is_a_provider_fault(status: int) -> None:
    """All numbers but those of the table count and fail over."""
    assert {answers(error) for error in shapes_of(status)} == {PROVIDER_FAULT}


def test_what_counts_fails_over() -> None:
    """No status counts as a failure without failing over."""
    assert (True, False) not in {answers(ShapedError(status_code=n)) for n in range(380, 620)}


@pytest.mark.parametrize(("code", "expected"), CLOSE_CODES.items())
def test_a_close_code_decides(code: int, expected: Answers) -> None:
    """Each close code of a websocket has the results of the table."""
    assert {answers(error) for error in shapes_of_code(code)} == {expected}


@pytest.mark.parametrize(("name", "expected"), GRPC_CODES.items())
def test_a_grpc_code_decides(name: str, expected: Answers) -> None:
    """Each code of gRPC has the results of the table, as a member of an enum or as a name."""
    member = SimpleNamespace(name=name, value=3)

    for status in (member, name):
        assert {answers(error) for error in shapes_of(status)} == {expected}
        assert answers(ShapedError(grpc_status_code=status, code=HTTPStatus.OK)) == expected


def test_a_status_may_be_an_enum() -> None:
    """A status may be a member of an enum of integers."""
    assert {answers(error) for error in shapes_of(HTTPStatus.NOT_FOUND)} == {WRONG_PROVIDER}
    assert {answers(error) for error in shapes_of(HTTPStatus.BAD_REQUEST)} == {WRONG_REQUEST}
    assert {answers(error) for error in shapes_of(HTTPStatus.TOO_MANY_REQUESTS)} == {PROVIDER_FAULT}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "ValidationException", WRONG_REQUEST),
        (400, "ThrottlingException", PROVIDER_FAULT),
        (400, "Throttling", PROVIDER_FAULT),
        (400, "ServiceQuotaExceededException", PROVIDER_FAULT),
        (424, "ModelErrorException", PROVIDER_FAULT),
        (403, "AccessDeniedException", WRONG_PROVIDER),
        (400, None, WRONG_REQUEST),
        (None, "internalServerException", PROVIDER_FAULT),
    ],
)
def test_the_error_codes_of_aws_are_read(status: object, code: object, expected: Answers) -> None:
    """Throttling, quotas and failed models are the provider's fault, with any status."""
    assert answers(aws_error(status, code)) == expected


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
def test_an_exception_without_a_status_is_a_provider_fault(error: BaseException) -> None:
    """An exception without a status that is an integer is the provider's fault."""
    assert answers(error) == PROVIDER_FAULT
    assert http.retry_after(error) is None


def test_attributes_that_raise_are_ignored() -> None:
    """An attribute that raises when it is read or compared is treated as missing."""
    errors = [
        HostileError(),
        ShapedError(response=Hostile()),
        ShapedError(status_code=Hostile(), headers=Hostile()),
        ShapedError(status_code=Pretender()),
        ShapedError(code=Hostile(), status=Hostile(), http_status=Hostile(), rcvd=Hostile()),
        ShapedError(code=HostileError),
        ShapedError(code=lambda: 1 / 0),
        ShapedError(details=Hostile(), body=[Hostile(), {"error": Hostile()}]),
        ShapedError(response={HostileKey("Error"): 1, HostileKey("ResponseMetadata"): 1}),
        with_headers(Hostile()),
        with_headers({"retry-after": Hostile()}),
        with_headers({"retry-after": 10**5000}),
        with_headers({"retry-after-ms": Hostile(), "retry-after": Hostile()}),
    ]

    assert {answers(error) for error in errors} == {PROVIDER_FAULT}
    assert all(http.retry_after(error) is None for error in errors)


@pytest.mark.parametrize("name", ["code", "status", "http_status"])
def test_not_every_number_is_a_status(name: str) -> None:
    """A number such as an exit code is not a status, so the cause is read."""
    cause = ShapedError(status_code=404)

    for number in (0, 1, 2, 127, 399, 600, 4600, 40001):
        assert answers(raised_from(ShapedError(**{name: number}), cause)) == WRONG_PROVIDER


@pytest.mark.parametrize("number", [400, 499, 500, 599, 4400, 4500, 4599, "ABORTED"])
def test_a_status_of_its_own_comes_before_the_cause(number: object) -> None:
    """A number or a name that is a status decides, whatever the cause is."""
    expected = answers(ShapedError(status_code=number))

    for cause in (ShapedError(status_code=404), ShapedError(status_code=503)):
        for shape in shapes_of_code(number):
            assert answers(raised_from(shape, cause)) == expected


def test_deprecated_attributes_are_not_read() -> None:
    """The `code` of an exception is not read if `status` or `rcvd` replaces it."""

    class DeprecatedError(ShapedError):
        @property
        def code(self) -> int:
            pytest.fail("it was read")

    assert answers(DeprecatedError(status=404)) == WRONG_PROVIDER
    assert answers(DeprecatedError(status=200)) == PROVIDER_FAULT
    assert answers(DeprecatedError(rcvd=None)) == PROVIDER_FAULT


def test_the_exceptions_own_status_comes_first() -> None:
    """If an exception and its response have different statuses, the exception's is used."""
    in_mid_stream = ShapedError(
        status_code=200, response=SimpleNamespace(status_code=404), code=404
    )

    assert answers(in_mid_stream) == PROVIDER_FAULT


def test_a_status_that_cannot_be_compared_is_read() -> None:
    """An integer that redefines comparison is compared as the number that it is."""
    assert answers(ShapedError(status_code=HostileInteger(404))) == WRONG_PROVIDER
    assert answers(ShapedError(status_code=HostileInteger(429))) == PROVIDER_FAULT
    assert answers(ShapedError(code=HostileText("NOT_FOUND"))) == WRONG_PROVIDER


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
        ({"retry-after": "120, 120"}, 120.0),
        ({"retry-after": "5, 10"}, 5.0),
        ({"retry-after": "5, soon"}, 5.0),
        ({"retry-after-ms": "1500,9"}, 1.5),
        ({"retry-after": "1000000000"}, 1e9),
        ({"retry-after-ms": "1000000000000"}, 1e9),
    ],
)
def test_a_number_is_a_wait(headers: Mapping[object, object], seconds: float) -> None:
    """Milliseconds are used before seconds, in any kind of mapping, spelling and type."""
    assert http.retry_after(with_headers(headers)) == seconds
    assert http.retry_after(ShapedError(headers=headers)) == seconds
    assert http.retry_after(ShapedError(resp_headers=headers)) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *[
            "",
            " ",
            "soon",
            "-1",
            "-0.001",
            "nan",
            "inf",
            "-inf",
            "1e999",
            ", 10",
            "soon, 10",
            "10s",
            "0x10",
        ],
        *["9" * 100_000, "\N{SUPERSCRIPT TWO}", "5\x006"],
        *["2026-01-02T03:05:05Z", "Fri, 99 Jan 2026 03:05:05 GMT", "Fri, 02 Jan 9999 03:05:05 GMT"],
        *["1 Jan 0000 00:00 +9999", "1 Jan 99999999999 00:00", "1 Jan 2026 00:00 +99999999999"],
        *[b"", b"\xff\xfe", None, True, [], ["5"], ("5", "6"), {"5": "5"}, ...],
        *[float("nan"), float("inf"), -1, 10**30],
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_an_invalid_value_is_no_wait(value: object) -> None:
    """A value that is negative, infinite, too large or unreadable is ignored."""
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
    """More than 1e9 seconds, such as a time stamp sent by mistake, are ignored."""
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
        ("Fri, 02 Jan 2026 03:05:35 GMT, Fri, 02 Jan 2026 03:05:35 GMT", 90.0),
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


@pytest.mark.parametrize("skew", [-86400, -300, 0, 300, 86400])
def test_a_date_is_measured_from_the_date_of_the_response(skew: int) -> None:
    """The clock of this machine is not read if the response has a date."""
    then = NOW + timedelta(seconds=skew)
    date, later = (format_datetime(then + timedelta(seconds=wait)) for wait in (0, 60))

    with at(NOW):
        assert http.retry_after(with_headers({"Retry-After": later, "Date": date})) == 60.0
        assert http.retry_after(with_headers({"Retry-After": date, "Date": later})) == 0.0
        assert http.retry_after(aws_error(429, retry_after=later)) is None
        assert http.retry_after(aws_error(429, **{"retry-after": later, "date": date})) == 60.0


@pytest.mark.parametrize("date", ["", "now", "5", None, b"\xff", "1 Jan 99999999999 00:00"])
def test_an_invalid_date_of_the_response_is_ignored(date: object) -> None:
    """Without a readable date of the response, the time of day is used."""
    headers = {"retry-after": "Fri, 02 Jan 2026 03:05:35 GMT", "date": date}

    with at(NOW):
        assert http.retry_after(with_headers(headers)) == 90.0


def test_an_absurd_date_of_the_response_gives_no_wait() -> None:
    """More than 1e9 seconds between the two dates are ignored."""
    headers = {
        "retry-after": "Fri, 02 Jan 2026 03:05:35 GMT",
        "date": "Thu, 01 Jan 1970 00:00:00 GMT",
    }

    with at(NOW):
        assert http.retry_after(with_headers(headers)) is None


def test_the_headers_of_botocore_are_read() -> None:
    """The headers that botocore puts into a dictionary are found."""
    assert http.retry_after(aws_error(429, **{"retry-after": "7"})) == 7.0


# ---- Google's RetryInfo


def retry_info(seconds: object, nanos: object = 0) -> SimpleNamespace:
    """Make an object with the attributes of the protobuf message."""
    return SimpleNamespace(retry_delay=SimpleNamespace(seconds=seconds, nanos=nanos))


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        (retry_info(34), 34.0),
        (retry_info(34, 500_000_000), 34.5),
        (retry_info(0), 0.0),
        (retry_info(10**9), 1e9),
        (retry_info(0, 1), 1e-9),
        (retry_info(HostileInteger(34)), 34.0),
        ({"retryDelay": "34s"}, 34.0),
        ({"retryDelay": "34.25s"}, 34.25),
        ({"retryDelay": HostileText("34s")}, 34.0),
        ({"retryDelay": "0s"}, 0.0),
    ],
)
def test_retry_info_is_a_wait(info: object, seconds: float) -> None:
    """The delay of a RetryInfo is found in details of any depth that Google sends."""
    error = {"code": 429, "details": [{"reason": "RATE_LIMIT_EXCEEDED"}, info]}

    assert http.retry_after(ShapedError(details=[object(), info])) == seconds
    assert http.retry_after(ShapedError(details=error)) == seconds
    assert http.retry_after(ShapedError(details={"error": error})) == seconds
    assert http.retry_after(ShapedError(body=[{"error": error}])) == seconds


@pytest.mark.parametrize(
    "info",
    [
        *[retry_info(-1), retry_info(10**10), retry_info(10**400), retry_info(-(10**400))],
        *[retry_info("34"), retry_info(34.0), retry_info(34, None), retry_info(34, 0.5)],
        *[retry_info(1, -1), retry_info(1, 10**400), retry_info(1, -(10**400))],
        *[retry_info(Hostile()), retry_info(timedelta(seconds=1))],
        SimpleNamespace(retry_delay=None),
        SimpleNamespace(retry_delay=timedelta(seconds=34)),
        *[{"retryDelay": value} for value in ("", "s", "soon", "-1s", "nans", "1e10s", "3m", None)],
        *[{"retryDelay": 34}, {"retry-delay": "34s"}, "34s", 34, ("34s",), MagicMock(), Mock()],
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_an_invalid_retry_info_is_no_wait(info: object) -> None:
    """A delay that is negative, too large or unreadable is ignored."""
    assert http.retry_after(ShapedError(details=[info], body={"details": info})) is None


def test_headers_come_before_retry_info() -> None:
    """A readable header is used instead of a RetryInfo."""
    info = [{"retryDelay": "34s"}]

    assert http.retry_after(ShapedError(details=info, headers={"retry-after": "5"})) == 5.0
    assert http.retry_after(ShapedError(details=info, headers={"retry-after": "soon"})) == 34.0


def test_details_without_end() -> None:
    """Details that contain themselves are read up to a limit, and ignored."""
    endless: list[object] = [{"error": {}}]
    endless += [endless, endless]

    assert http.retry_after(ShapedError(details=endless)) is None


# ---- members and causes of an exception


@pytest.mark.parametrize(
    ("status", "expected"), [(400, WRONG_REQUEST), (404, WRONG_PROVIDER), (503, PROVIDER_FAULT)]
)
def test_an_exception_without_a_status_is_judged_by_its_cause(
    status: int, expected: Answers
) -> None:
    """A wrapper is classified like the exception that it was raised from, at any depth."""
    inner = ShapedError(status_code=status, headers={"retry-after": "90"})

    wrapped = raised_from(RuntimeError("wrapped"), inner)
    twice = raised_from(ValueError("wrapped again"), wrapped)

    for error in (wrapped, twice):
        assert answers(error) == expected
        assert http.retry_after(error) == 90.0


def test_the_cause_is_read_only_for_what_is_missing() -> None:
    """A status or a delay of the exception itself is used, and not that of its cause."""
    cause = ShapedError(status_code=429, headers={"retry-after": "90"})

    assert answers(raised_from(ShapedError(status_code=400), cause)) == WRONG_REQUEST
    assert http.retry_after(raised_from(with_headers({"retry-after": "5"}), cause)) == 5.0
    assert http.retry_after(raised_from(ShapedError(status_code=503), cause)) == 90.0


def test_a_context_is_no_cause() -> None:
    """An exception that was being handled when another one was raised is not read."""
    error = RuntimeError()
    error.__context__ = ShapedError(status_code=400, headers={"retry-after": "5"})

    assert answers(error) == PROVIDER_FAULT
    assert http.retry_after(error) is None


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([400], WRONG_REQUEST),
        ([400, 422, 405], WRONG_REQUEST),
        ([400, 404], WRONG_PROVIDER),
        ([404, 403], WRONG_PROVIDER),
        ([400, 503], PROVIDER_FAULT),
        ([503, 400], PROVIDER_FAULT),
        ([401, 404], PROVIDER_FAULT),
        ([400, None], PROVIDER_FAULT),
        ([None], PROVIDER_FAULT),
    ],
)
def test_a_group_is_judged_by_its_members(statuses: list[object], expected: Answers) -> None:
    """Each predicate is true of a group if it is true of any member, at any depth."""
    members = [ShapedError(status_code=status) for status in statuses]
    wrapped = [raised_from(RuntimeError(), member) for member in members]
    group = ExceptionGroup("", members)
    failed = AllFailedError(dict(zip("abc", members, strict=False)))

    assert answers(group) == expected
    assert answers(ExceptionGroup("", [group, *wrapped])) == expected
    assert answers(raised_from(RuntimeError(), BaseExceptionGroup("", wrapped))) == expected
    assert answers(failed) == expected


def test_what_a_provider_cannot_do_does_not_count() -> None:
    """A missing method does not count, nor does it in a group of such providers."""
    failed = AllFailedError({"a": NotImplementedError(), "b": ShapedError(status_code=413)})

    assert answers(NotImplementedError()) == WRONG_PROVIDER
    assert answers(failed) == WRONG_PROVIDER


def test_the_longest_wait_in_a_group_counts() -> None:
    """The delay of an exception group is the longest delay of its members."""
    members = [with_headers({"retry-after": wait}) for wait in ("5", "60", "soon", "7")]

    assert http.retry_after(ExceptionGroup("", members)) == 60.0
    assert http.retry_after(ExceptionGroup("", members[2:3])) is None


def test_the_status_of_a_group_comes_first() -> None:
    """A group that has a status of its own is classified by that."""

    class StatusGroup(ExceptionGroup[Exception]):
        status_code = 404

    assert answers(StatusGroup("", [ShapedError(status_code=503)])) == WRONG_PROVIDER


def test_a_group_of_providers_asks_for_no_wait() -> None:
    """An `AllFailedError` has no delay, because the breakers of its providers already wait."""
    throttled = with_headers({"retry-after": "60"})
    failed = raised_from(AllFailedError({"a": throttled}), throttled)

    assert http.retry_after(failed) is None
    assert http.retry_after(raised_from(RuntimeError(), failed)) is None
    assert answers(raised_from(AllFailedError({}), None)) == PROVIDER_FAULT


def test_circles_end() -> None:
    """Exceptions that are each other's causes or members are read once each."""
    first, second = RuntimeError(), RuntimeError()
    raised_from(first, raised_from(second, first))
    member = ShapedError(status_code=400, headers={"retry-after": "5"})
    group = ExceptionGroup("", [first, raised_from(ValueError(), member), member])
    raised_from(second, group)

    assert answers(first) == WRONG_REQUEST
    assert answers(group) == WRONG_REQUEST
    assert http.retry_after(first) == 5.0
    assert answers(raised_from(first, first)) == PROVIDER_FAULT


def test_causes_without_end() -> None:
    """At most a hundred exceptions are read; the status of a later one is not found."""

    class EndlessError(Exception):
        @property
        @override
        def __cause__(self) -> BaseException:  # type: ignore[override]
            return EndlessError()

    class EndlessGroup(ExceptionGroup[Exception]):
        @property
        def exceptions(self) -> tuple[Exception, ...]:
            return EndlessGroup("", [self]), EndlessGroup("", [self])

    assert answers(EndlessError()) == PROVIDER_FAULT
    assert http.retry_after(EndlessError()) is None
    assert answers(EndlessGroup("", [ValueError()])) == PROVIDER_FAULT
    assert answers(chain_of(99)) == WRONG_REQUEST
    assert answers(chain_of(100)) == PROVIDER_FAULT


def chain_of(wrappers: int) -> Exception:
    """Wrap a client error in a number of exceptions."""
    error: Exception = ShapedError(status_code=400)
    for _ in range(wrappers):
        error = raised_from(RuntimeError(), error)
    return error


def test_a_large_group_is_judged_whole() -> None:
    """All members of a group are classified, however many there are."""
    members = [ShapedError(status_code=400) for _ in range(1000)]

    assert answers(ExceptionGroup("", members)) == WRONG_REQUEST
    assert answers(ExceptionGroup("", [*members, ShapedError(status_code=503)])) == PROVIDER_FAULT


def test_parts_that_are_none_are_ignored() -> None:
    """A member that cannot be read, or is not an exception, is ignored."""

    class HostileGroup(ExceptionGroup[Exception]):
        @property
        def exceptions(self) -> tuple[Exception, ...]:
            raise ValueError

    class StrangeGroup(ExceptionGroup[Exception]):
        exceptions = (400, None)  # type: ignore[assignment]

    for group in (HostileGroup, StrangeGroup):
        assert answers(group("", [ShapedError(status_code=400)])) == PROVIDER_FAULT


# ---- where headers are found


@pytest.fixture(params=["EST5", "UTC0", "JST-9"])
def _in_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the time zone of the process."""
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
def test_headers_without_a_wait(headers: object) -> None:
    """Headers without these names, and objects that are not headers, are ignored."""
    assert http.retry_after(with_headers(headers)) is None
    assert http.retry_after(ShapedError(headers=headers)) is None


def test_the_first_of_several_headers_counts() -> None:
    """If a header occurs more than once, the first one is used."""
    headers = Message()
    headers["Retry-After"] = "5"
    headers["retry-after"] = "10"

    assert http.retry_after(with_headers(headers)) == 5.0


def test_the_headers_of_the_response_come_first() -> None:
    """The response's headers are used, and the exception's own only without them."""
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
        assert answers(error) == WRONG_PROVIDER
        assert http.retry_after(error) == 5.0
    with HTTPError("http://localhost", 400, "Bad", None, BytesIO()) as error:  # type: ignore[arg-type]
        assert answers(error) == WRONG_REQUEST
        assert http.retry_after(error) is None


def test_an_interrupt_is_not_swallowed() -> None:
    """An interruption while an attribute is read is raised."""

    class Interrupted(Exception):  # noqa: N818
        @property
        def status_code(self) -> int:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        http.is_provider_fault(Interrupted())


# ---- a group with the predicates that the docs recommend


def models(
    primary: FakeLLM, *, max_failures: int = 5, reset_timeout: float = 5.0
) -> tuple[LLMFallback, FakeLLM, ManualClock]:
    """Return two models with the settings that the docs recommend, the backup, and the clock."""
    recorder = Recorder(
        breaker={
            "failure_on": http.is_provider_fault,
            "retry_after": http.retry_after,
            "max_failures": max_failures,
            "reset_timeout": reset_timeout,
        },
        fallback_on=http.may_succeed_elsewhere,
    )
    group, backup = LLMFallback(primary, "primary", recorder.config), FakeLLM("backup")
    group.add_fallback("backup", backup)
    return group, backup, recorder.clock


@pytest.mark.parametrize("status", [400, 405, 415, 422])
def test_a_bad_request_reaches_the_caller_at_once(status: int) -> None:
    """A wrong request never counts and never fails over."""
    group, backup, _ = models(FakeLLM(StatusError(status)))

    for _ in range(20):
        with pytest.raises(StatusError):
            group.complete(REQUEST)

    assert [breaker.state for breaker in group.breakers.values()] == [State.CLOSED] * 2
    assert backup.requests == []


@pytest.mark.parametrize(
    ("status", "state"), [(404, State.CLOSED), (401, State.OPEN), (503, State.OPEN)]
)
def test_another_model_is_tried(status: int, state: State) -> None:
    """The next model answers; only a provider's fault counts."""
    group, _, _ = models(FakeLLM(StatusError(status)), max_failures=1)

    assert group.complete(REQUEST).content == "backup"
    assert group.breakers["primary"].state is state


def test_one_429_opens_only_that_breaker_for_that_long() -> None:
    """A provider that answers `retry-after: 20` is skipped for 20 seconds, and no other is."""
    primary = FakeLLM(StatusError(429, retry_after=20), "back")
    group, _, clock = models(primary)

    assert group.complete(REQUEST).content == "backup"
    assert [str(breaker.state) for breaker in group.breakers.values()] == ["open", "closed"]

    clock.advance(19.9)
    assert group.complete(REQUEST).content == "backup"
    assert len(primary.requests) == 1

    clock.advance(0.1)
    assert group.complete(REQUEST).content == "back"


def test_nothing_shortens_the_wait() -> None:
    """Neither counting tokens nor late results of earlier calls end the open period earlier."""
    primary = FakeLLM(["early", "late"], StatusError(429, retry_after=20), "back")
    group, _, clock = models(primary)
    early = group.stream_completion(REQUEST)

    assert group.complete(REQUEST).content == "backup"
    list(early)
    group.count_tokens(REQUEST.messages)
    clock.advance(19.0)
    fail(group.breakers["backup"], StatusError(429, retry_after=60))

    assert group.breakers["primary"].state is State.OPEN
    with pytest.raises(AllFailedError) as caught:
        group.complete(REQUEST)
    assert caught.value.retry_after == pytest.approx(1.0)


def test_the_wait_is_never_less_than_the_reset_timeout() -> None:
    """A provider that asks for less than `reset_timeout` is skipped for `reset_timeout`."""
    primary = FakeLLM(StatusError(429, retry_after=1), "back")
    group, _, clock = models(primary, reset_timeout=30.0)
    group.complete(REQUEST)

    clock.advance(29.9)

    assert group.breakers["primary"].state is State.OPEN


# ---- any number and any date


@given(seconds=st.floats(0, 1e9), form=st.sampled_from([repr, "{:.3f}".format, "{:e}".format]))
@settings(deadline=None)
def test_every_valid_number_is_a_wait(seconds: float, form: Callable[[float], str]) -> None:
    """A number of 0 or more is the delay, in seconds or milliseconds, in any notation."""
    text = form(seconds)

    assert http.retry_after(with_headers({"retry-after": text})) == float(text)
    assert http.retry_after(with_headers({"retry-after-ms": text})) == float(text) / 1000


@given(
    seconds=st.integers(-(10**9), 10**9),
    now=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001
)
@settings(deadline=None)
def test_every_date_is_a_wait(seconds: int, now: datetime) -> None:
    """For a date, the delay is the seconds from now, and never less than 0."""
    now = now.replace(microsecond=0, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=seconds), usegmt=True)

    with at(now):
        assert http.retry_after(with_headers({"retry-after": date})) == max(0.0, seconds)
