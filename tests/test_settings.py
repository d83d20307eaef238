"""Accepted settings, and rejected settings with their messages."""

import dataclasses
import math
from asyncio import CancelledError
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from resilience import (
    Attempt,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    Outcome,
    State,
    StateChange,
)

NUMBERS = ["max_failures", "half_open_max"]
NO_HOOKS: list[object] = [3, "hook", [print]]


class OwnInterrupt(KeyboardInterrupt):
    """An interruption of an application's own."""


async def coroutine_function(_: object = None) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("field", "default"),
    [("name", ""), ("max_failures", 5), ("reset_timeout", 30.0), ("half_open_max", 3)],
)
@pytest.mark.parametrize("value", [0, None])
def test_defaults(field: str, default: object, value: Any) -> None:  # noqa: ANN401
    """A zero or None in the first four selects the default."""
    value = "" if field == "name" and value == 0 else value

    config = CircuitBreakerConfig(**{field: value})

    assert config == CircuitBreakerConfig()
    assert getattr(config, field) == default


@pytest.mark.parametrize("value", [0.0, -0.0, timedelta()])
def test_zero_seconds(value: float | timedelta) -> None:
    """A zero of any kind selects the default timeout."""
    assert CircuitBreakerConfig(reset_timeout=value).reset_timeout == 30.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(timedelta(minutes=2), 120.0), (timedelta(milliseconds=5), 0.005), (7, 7.0), (1e-9, 1e-9)],
)
def test_seconds(value: float | timedelta, seconds: float) -> None:
    """A timeout is a number of seconds or a timedelta, and is kept in seconds."""
    assert CircuitBreakerConfig(reset_timeout=value).reset_timeout == seconds


def refusal(kind: type[Exception], make: Callable[..., object], field: str, value: object) -> str:
    """Check that a setting is rejected, and return the message."""
    with pytest.raises(kind) as raised:
        make(**{field: value})
    return str(raised.value)


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [-1, -(10**30)])
def test_negative_numbers(field: str, value: int) -> None:
    """A negative number raises `ValueError` naming field and value."""
    message = refusal(ValueError, CircuitBreakerConfig, field, value)

    assert message == f"{field} must be 0 or more, got {value!r}"


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [2.0, math.nan, math.inf, "3", True, False, [], b""])
def test_no_whole_numbers(field: str, value: object) -> None:
    """A value that is not a whole number raises `TypeError` naming field and value."""
    message = refusal(TypeError, CircuitBreakerConfig, field, value)

    assert message == f"{field} must be a whole number, got {value!r}"


@pytest.mark.parametrize(
    ("make", "field"),
    [(CircuitBreakerConfig, "reset_timeout"), (FallbackConfig, "attempt_timeout")],
)
class TestSeconds:
    """Durations that are rejected."""

    @pytest.mark.parametrize(
        "value", [-1, -1e-9, math.nan, math.inf, -math.inf, -(10**400), 10**400]
    )
    def test_wrong_number(self, make: Callable[..., object], field: str, value: float) -> None:
        """A negative or non-finite number raises `ValueError` naming field and value."""
        message = refusal(ValueError, make, field, value)

        assert message.startswith(f"{field} must be ")
        assert message.endswith(f", got {value!r}")

    @pytest.mark.parametrize("value", [timedelta(seconds=-1), timedelta(days=-999999999)])
    def test_negative_timedelta(
        self, make: Callable[..., object], field: str, value: timedelta
    ) -> None:
        """A negative timedelta raises `ValueError` naming field and value."""
        message = refusal(ValueError, make, field, value)

        assert message.startswith(f"{field} must be ")
        assert message.endswith((f"got {value!r}", f"got {value.total_seconds()!r}"))

    @pytest.mark.parametrize("value", [1e9 + 1, timedelta.max])
    def test_too_long(
        self, make: Callable[..., object], field: str, value: float | timedelta
    ) -> None:
        """More than 1e9 seconds raise `ValueError`, and the message has the limit."""
        message = refusal(ValueError, make, field, value)

        assert getattr(make(**{field: 1e9}), field) == 1e9
        assert message.startswith(f"{field} must be at most 1e+09 seconds, got ")

    def test_infinity(self, make: Callable[..., object], field: str) -> None:
        """The message for infinity is that it is not finite."""
        assert refusal(ValueError, make, field, math.inf) == (
            f"{field} must be finite and 0 or more, got inf"
        )

    @pytest.mark.parametrize("value", ["30", True, False, [], 3j])
    def test_no_number(self, make: Callable[..., object], field: str, value: object) -> None:
        """A value that is neither a number nor a timedelta raises `TypeError` naming both."""
        message = refusal(TypeError, make, field, value)

        assert message == f"{field} must be a number of seconds or a timedelta, got {value!r}"


@pytest.mark.parametrize("value", [0, 0.25, 1, 1.0])
def test_fraction(value: float) -> None:
    """`reset_jitter` is a number from 0 to 1."""
    assert CircuitBreakerConfig(reset_jitter=value).reset_jitter == value


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_wrong_fraction(value: float) -> None:
    """Any other number raises `ValueError` naming field and value."""
    message = refusal(ValueError, CircuitBreakerConfig, "reset_jitter", value)

    assert message == f"reset_jitter must be from 0 to 1, got {value!r}"


@pytest.mark.parametrize("value", ["0.5", True, None, timedelta(seconds=1)])
def test_no_fraction(value: object) -> None:
    """A value that is not a number raises `TypeError` naming field and value."""
    message = refusal(TypeError, CircuitBreakerConfig, "reset_jitter", value)

    assert message == f"reset_jitter must be a number from 0 to 1, got {value!r}"


@pytest.mark.parametrize("value", [3, b"model", ["model"], State.OPEN])
def test_name(value: object) -> None:
    """A name that is not a string raises `TypeError` naming field and value."""
    message = refusal(TypeError, CircuitBreakerConfig, "name", value)

    assert message == f"name must be a string, got {value!r}"


@pytest.mark.parametrize(
    ("make", "field"), [(CircuitBreakerConfig, "failure_on"), (FallbackConfig, "fallback_on")]
)
class TestExceptionFilter:
    """Filters of exceptions: a type, a tuple of types, or a predicate."""

    wanted = "an exception type, a tuple of exception types or a predicate"

    @pytest.mark.parametrize(
        "value",
        [
            ValueError,
            (ValueError, OSError),
            (),
            callable,
            Exception,
            ExceptionGroup,
            BaseExceptionGroup,
            (OSError, CancelledError),
        ],
    )
    def test_accepted(self, make: Callable[..., object], field: str, value: object) -> None:
        """Each of the forms is kept unchanged."""
        assert getattr(make(**{field: value}), field) is value

    @pytest.mark.parametrize(
        ("value", "refused"),
        [
            (int, int),
            ((ValueError, int), int),
            ((ValueError, "OSError"), "OSError"),
            ((ValueError, (OSError,)), (OSError,)),
        ],
    )
    def test_no_exceptions(
        self, make: Callable[..., object], field: str, value: object, refused: object
    ) -> None:
        """Types that are not exceptions raise `TypeError` naming field and value."""
        message = refusal(TypeError, make, field, value)

        assert message == f"{field} must be {self.wanted}, got {refused!r}"

    @pytest.mark.parametrize(
        "kind", [BaseException, KeyboardInterrupt, SystemExit, GeneratorExit, OwnInterrupt]
    )
    @pytest.mark.parametrize("is_in_tuple", [True, False])
    def test_interruptions(
        self,
        make: Callable[..., object],
        field: str,
        kind: type[BaseException],
        *,
        is_in_tuple: bool,
    ) -> None:
        """A type that includes interruptions of the program raises `TypeError`."""
        message = refusal(TypeError, make, field, (ValueError, kind) if is_in_tuple else kind)

        assert message.startswith(f"{field} must not include interruptions")
        assert message.endswith(f", got {kind!r}")

    @pytest.mark.parametrize("value", [None, 3, "ValueError", [ValueError], ValueError()])
    def test_no_predicate(self, make: Callable[..., object], field: str, value: object) -> None:
        """A value in none of these forms raises `TypeError` naming field and value."""
        message = refusal(TypeError, make, field, value)

        assert message == f"{field} must be {self.wanted}, got {value!r}"

    def test_coroutine_function(self, make: Callable[..., object], field: str) -> None:
        """A coroutine function raises `TypeError`, since a coroutine is always true."""
        message = refusal(TypeError, make, field, coroutine_function)

        assert message.startswith(f"{field} must be synchronous, got the coroutine function <")


@pytest.mark.parametrize(
    ("make", "field", "values"),
    [
        (CircuitBreakerConfig, "retry_after", NO_HOOKS),
        (CircuitBreakerConfig, "on_state_change", NO_HOOKS),
        (CircuitBreakerConfig, "clock", [*NO_HOOKS, None]),
        (FallbackConfig, "on_attempt", NO_HOOKS),
    ],
)
def test_hooks(make: Callable[..., object], field: str, values: list[object]) -> None:
    """A hook that cannot be called, or is asynchronous, raises `TypeError`."""
    messages = [refusal(TypeError, make, field, value) for value in values]

    assert messages == [f"{field} must be callable, got {value!r}" for value in values]
    assert "must be synchronous" in refusal(TypeError, make, field, coroutine_function)


@pytest.mark.parametrize("value", [(), (TimeoutError,), (KeyboardInterrupt, OSError)])
def test_interrupt_on(value: tuple[type[BaseException], ...]) -> None:
    """`interrupt_on` is a tuple of types of exceptions."""
    assert FallbackConfig(interrupt_on=value).interrupt_on is value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (OSError, "interrupt_on must be a tuple, got <class 'OSError'>"),
        ([OSError], "interrupt_on must be a tuple, got [<class 'OSError'>]"),
        ((OSError, 3), "interrupt_on must be a tuple of exception types, got 3"),
        ((int,), "interrupt_on must be a tuple of exception types, got <class 'int'>"),
    ],
)
def test_wrong_interrupt_on(value: object, message: str) -> None:
    """Any other value of `interrupt_on` raises `TypeError` naming field and value."""
    assert refusal(TypeError, FallbackConfig, "interrupt_on", value) == message


@pytest.mark.parametrize("value", [None, 5, FallbackConfig()])
def test_breaker_settings_of_a_group(value: object) -> None:
    """Settings of breakers that have the wrong type raise `TypeError` naming field and value."""
    message = refusal(TypeError, FallbackConfig, "circuit_breaker", value)

    assert message == f"circuit_breaker must be a CircuitBreakerConfig, got {value!r}"


def test_settings_of_a_group() -> None:
    """Settings of a group that have the wrong type raise `TypeError` naming field and value."""
    with pytest.raises(TypeError, match="config must be a FallbackConfig, got 5"):
        FallbackGroup("any", "model", 5)  # type: ignore[arg-type]


VALUES = [
    CircuitBreakerConfig(),
    FallbackConfig(),
    StateChange(name="model", old=State.CLOSED, new=State.OPEN),
    Attempt(provider="model", outcome=Outcome.SUCCEEDED, error=None, duration=0.0),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
class TestValues:
    """Settings and events are frozen, slotted and keyword-only."""

    def test_frozen(self, value: Any) -> None:  # noqa: ANN401
        """A field cannot be changed."""
        field = dataclasses.fields(value)[0].name

        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, getattr(value, field))

    def test_slotted(self, value: object) -> None:
        """A misspelt field cannot be set."""
        assert not hasattr(value, "__dict__")

    def test_keyword_only(self, value: Any) -> None:  # noqa: ANN401
        """No field can be given by position."""
        with pytest.raises(TypeError):
            type(value)("model")

        assert all(field.kw_only for field in dataclasses.fields(value))

    def test_replace(self, value: Any) -> None:  # noqa: ANN401
        """`dataclasses.replace` makes a copy."""
        assert dataclasses.replace(value) == value


def test_fields() -> None:
    """Fields and defaults are as documented."""
    fields = {field.name: field.default for field in dataclasses.fields(CircuitBreakerConfig)}

    assert list(fields) == [
        "name",
        "max_failures",
        "reset_timeout",
        "half_open_max",
        "failure_on",
        "retry_after",
        "on_state_change",
        "clock",
        "max_reset_timeout",
        "reset_jitter",
    ]
    assert fields["failure_on"] is Exception
    assert fields["retry_after"] is fields["on_state_change"] is None
    assert [field.name for field in dataclasses.fields(StateChange)] == [
        "name",
        "old",
        "new",
        "cause",
    ]
