"""Which exceptions count against a provider, and which fail over to the next one."""

import gc
import logging
from collections.abc import Callable
from typing import TypeAlias, cast

import pytest

from helpers import fail, raising
from resilience import (
    AttemptTimeoutError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    EmptyStreamError,
    State,
)

FailureOn: TypeAlias = (
    type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], object]
)


class OwnTimeout(BaseException):
    """An exception that is no `Exception`, like the timeouts of some libraries."""


async def coroutine(*_: object) -> str:
    """Do nothing, later."""
    return "never"


def with_filter(failure_on: FailureOn) -> CircuitBreaker:
    """Return a breaker that opens at the first failure that counts."""
    counts = cast("Callable[[Exception], bool]", failure_on)
    return CircuitBreaker(CircuitBreakerConfig(max_failures=1, failure_on=counts))


class TestFailureOn:
    """`failure_on`: the exceptions that count, as a type, a tuple of types, or a predicate."""

    @pytest.mark.parametrize(
        "failure_on",
        [
            ConnectionError,
            OSError,
            (TimeoutError, ConnectionError),
            (OSError,),
            lambda error: isinstance(error, ConnectionError),
            repr,
        ],
        ids=["type", "base", "tuple", "tuple of one", "predicate", "truthy"],
    )
    def test_counts(self, failure_on: FailureOn) -> None:
        """An exception that the filter includes counts."""
        breaker = with_filter(failure_on)

        fail(breaker, ConnectionRefusedError("refused"))

        assert breaker.state is State.OPEN

    @pytest.mark.parametrize(
        "failure_on",
        [
            ConnectionError,
            (TimeoutError, ConnectionError),
            (),
            lambda error: isinstance(error, ConnectionError),
            lambda _: None,
        ],
        ids=["type", "tuple", "empty tuple", "predicate", "falsy"],
    )
    def test_does_not_count(self, failure_on: FailureOn) -> None:
        """Any other exception leaves the breaker as it is."""
        breaker = with_filter(failure_on)

        fail(breaker, ValueError("wrong request"))

        assert breaker.state is State.CLOSED

    @pytest.mark.parametrize(
        "error", [KeyboardInterrupt(), SystemExit(), GeneratorExit(), BaseException()], ids=repr
    )
    def test_predicates_are_for_exceptions(self, error: BaseException) -> None:
        """A predicate is not called for what is no `Exception`, which does not count."""
        called: list[Exception] = []

        def counts(error: Exception) -> bool:
            called.append(error)
            return True

        breaker = with_filter(counts)

        fail(breaker, error)

        assert breaker.state is State.CLOSED
        assert called == []

    @pytest.mark.parametrize("failure_on", [Exception, (Exception, OwnTimeout), OwnTimeout])
    def test_base_exceptions(self, failure_on: FailureOn) -> None:
        """An exception that is no `Exception` counts if its own type is named."""
        breaker = with_filter(failure_on)

        fail(breaker, OwnTimeout())

        assert breaker.state is (State.CLOSED if failure_on is Exception else State.OPEN)

    @pytest.mark.parametrize(
        ("predicate", "error"),
        [(raising(RuntimeError()), "RuntimeError"), (lambda _: coroutine(), "TypeError")],
        ids=["raises", "returns a coroutine"],
    )
    def test_broken_predicate(
        self, predicate: FailureOn, error: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A predicate that raises or returns a coroutine is logged, and the exception counts."""
        breaker = with_filter(predicate)

        fail(breaker)
        gc.collect()  # a coroutine that was never closed would warn here

        assert breaker.state is State.OPEN
        assert caplog.records[0].getMessage().startswith(f"failure_on raised {error} at ")
        assert caplog.records[0].levelno == logging.ERROR

    @pytest.mark.parametrize("error", [AttemptTimeoutError("model", 1.0), EmptyStreamError()])
    def test_own_errors(self, error: Exception) -> None:
        """Types always include the library's own errors for a silent provider."""
        breaker = with_filter(ConnectionError)

        fail(breaker, error)

        assert breaker.state is State.OPEN

    def test_predicate_decides_on_own_errors(self) -> None:
        """A predicate is called for the library's own errors like for any others."""
        breaker = with_filter(lambda error: not isinstance(error, EmptyStreamError))

        fail(breaker, EmptyStreamError())

        assert breaker.state is State.CLOSED

    def test_circuit_open_error_of_fn(self) -> None:
        """A `CircuitOpenError` that fn itself raises is a failure like any other."""
        inner, outer = with_filter(Exception), with_filter(Exception)
        inner.isolate()

        with pytest.raises(CircuitOpenError):
            outer.execute(inner.execute, lambda: None)

        assert outer.state is State.OPEN
