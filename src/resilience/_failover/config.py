"""Settings of a group of providers, and the reports of its attempts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Literal, final

from typing_extensions import override

from resilience import _settings
from resilience._breaker.config import CircuitBreakerConfig


class Outcome(Enum):
    """How an attempt ended; `str` gives the value.

    Attributes:
        SUCCEEDED: The provider returned a result.
        FAILED: The attempt raised an exception that counts as a failure.
        IGNORED: The attempt raised an exception that does not count.
        SKIPPED: The breaker did not admit the call, or the provider is itself a group none of whose
            breakers admitted it.
        CANCELLED: The attempt neither succeeded nor failed: the caller closed, dropped or
            interrupted it before that, or the caller's own text raised.
    """

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    IGNORED = "ignored"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"

    @override
    def __str__(self) -> str:
        return str(self.value)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Report of one attempt that has ended.

    Attributes:
        provider: Name of the provider.
        outcome: How the attempt ended.
        error: Exception that it raised, or the `CircuitOpenError` if it was skipped; otherwise
            None.
        duration: Seconds from its admission to its end, by the breaker's clock. A stream ends with
            its last item or when it is closed, a session when it is closed.
        operation: The method of the contract that was called, such as "complete" or "start_stream",
            or "execute", "stream" or "session" of a group.
        first_item: Seconds from its admission to the first item of a stream that the caller gets;
            None for anything else, and if there was no item.
    """

    provider: str
    outcome: Outcome
    error: BaseException | None
    duration: float
    operation: str = "execute"
    first_item: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackConfig:
    """Settings of a group of providers.

    Attributes:
        circuit_breaker: Settings of the breakers. Each provider gets a breaker of its own, named
            after the provider.
        fallback_on: Exceptions after which the next provider is tried, in the forms of
            `CircuitBreakerConfig.failure_on`; all others are raised to the caller at once.
        interrupt_on: Types of exceptions with which a framework interrupts the caller of a group,
            such as the time limit of a task queue. They are raised to the caller at once and never
            count; `failure_on` and `fallback_on` do not apply.
        on_attempt: Listener for the report of each attempt that ended, called in the thread in
            which it ended. A listener that raises is logged.
        attempt_timeout: Time limit of one attempt, in seconds or as a `timedelta`: until a call
            returns, a stream has its first item, or a session is started. None or 0 for no limit.
            With a limit the attempt runs on a worker thread, and is abandoned when the time has
            elapsed.
        when_all_open: What to do if every provider was skipped. "fail": raise `AllFailedError`.
            "try": try them in order anyway, except for isolated ones. A success ends the open
            period early, as a probe does; a failure changes nothing, unless the provider asks for a
            longer delay.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The timeout is negative or not finite, or `when_all_open` is neither "fail" nor
            "try".
    """

    circuit_breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    fallback_on: _settings.ExceptionFilter = Exception
    interrupt_on: tuple[type[BaseException], ...] = ()
    on_attempt: Callable[[Attempt], object] | None = None
    attempt_timeout: float | timedelta | None = None
    when_all_open: Literal["fail", "try"] = "fail"

    def __post_init__(self) -> None:
        """Check all values."""
        _settings.check_type("circuit_breaker", self.circuit_breaker, CircuitBreakerConfig)
        _settings.check_exception_filter("fallback_on", self.fallback_on)
        _settings.check_type("interrupt_on", self.interrupt_on, tuple)
        for each in self.interrupt_on:
            _settings.check_exception_type("interrupt_on", each, "a tuple of exception types")
        if self.on_attempt is not None:
            _settings.check_callable("on_attempt", self.on_attempt)
        _settings.check_seconds("attempt_timeout", self.attempt_timeout, 0.0)
        _settings.check_choice("when_all_open", self.when_all_open, ("fail", "try"))
