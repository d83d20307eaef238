"""Attempts of one call, with one provider of a group after the other."""

import logging
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from dataclasses import replace
from datetime import timedelta
from threading import Lock, get_ident
from time import monotonic
from typing import Any, Generic, NoReturn, TypeVar, final

from resilience import _settings
from resilience._breaker.breaker import CircuitBreaker
from resilience._breaker.config import CircuitBreakerConfig
from resilience._breaker.periods import Permit
from resilience._failover.config import Attempt, FallbackConfig, Outcome
from resilience._failover.source import close
from resilience._failover.workers import WorkerPool
from resilience._log import log_suppressed, logger
from resilience.exceptions import (
    AllFailedError,
    CircuitOpenError,
    UnsupportedRequestError,
    _was_skipped,
)

T = TypeVar("T")
R = TypeVar("R")


@final
class Member(Generic[T]):
    """One provider of a group, of type T, with its breaker."""

    __slots__ = (
        "breaker",
        "clock",
        "config",
        "has_fast_path",
        "listener",
        "name",
        "notes",
        "provider",
        "workers",
    )

    def __init__(
        self,
        name: str,
        provider: T,
        config: FallbackConfig,
        attempt_timeout: float | timedelta | None,
        circuit_breaker: CircuitBreakerConfig | None,
        notes: object = None,
    ) -> None:
        """Make a member with a closed breaker; timeout and breaker override those of the group.

        `notes` is any object that an adapter stores in the member.
        """
        breaker_config = config.circuit_breaker if circuit_breaker is None else circuit_breaker
        _settings.check_type("circuit_breaker", breaker_config, CircuitBreakerConfig)
        timeout = config.attempt_timeout if attempt_timeout is None else attempt_timeout
        limit = _settings.check_seconds("attempt_timeout", timeout, 0.0)
        self.name: str = name
        self.provider: T = provider
        self.config: FallbackConfig = config
        self.clock: Callable[[], float] = breaker_config.clock
        self.breaker: CircuitBreaker = CircuitBreaker(replace(breaker_config, name=name))
        self.breaker._events.interrupt_on = config.interrupt_on  # its hooks may raise them
        self.workers: WorkerPool | None = WorkerPool(name, limit) if limit else None
        self.listener: Callable[[Attempt], object] | None = config.on_attempt
        self.notes: object = notes
        # Whether a call needs neither a worker nor a report.
        self.has_fast_path: bool = self.workers is None and self.listener is None

    def skip(self, operation: str) -> None:
        """Log and report that the breaker did not admit an attempt."""
        self.log_skip()
        if self.listener is not None:
            self.report(operation, Outcome.SKIPPED, self.breaker._rejection(), self.clock())

    def log_skip(self) -> None:
        """Log that the provider was not tried."""
        if logger.isEnabledFor(logging.DEBUG):
            extra = {"resilience_provider": self.name}
            logger.debug("provider %s is skipped", self.name, extra=extra)

    def report(
        self,
        operation: str,
        outcome: Outcome,
        error: BaseException | None,
        started: float,
        first_item: float | None = None,
    ) -> None:
        """Report how an attempt has ended; `started` is a time of the clock."""
        listener = self.listener
        if listener is None:
            return
        attempt = Attempt(
            provider=self.name,
            outcome=outcome,
            error=error,
            duration=self.clock() - started,
            operation=operation,
            first_item=first_item,
        )
        try:
            _settings.refuse_coroutine("on_attempt", listener(attempt))
        except self.config.interrupt_on:
            raise
        except Exception as raised:
            log_suppressed("on_attempt", raised)


@final
class Call(Generic[T]):
    """One admitted call to a provider of type T, settled once.

    Only the first outcome is recorded; later ones are ignored, in whichever thread they occur.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_first_item",
        "_limit_state",
        "_permit",
        "_settled",
        "_started",
        "member",
        "operation",
        "thread",
    )

    def __init__(self, member: Member[T], permit: Permit, operation: str) -> None:
        """Make a call that the member's breaker has just admitted."""
        self.member: Member[T] = member
        self.operation: str = operation
        # The thread on which the provider's code was called last.
        self.thread: int | None = None
        self._permit = permit
        self._context: Context | None = None
        self._started = 0.0 if member.listener is None else member.clock()
        self._first_item: float | None = None
        # The used part of the time limit, the time at which it was measured, and how long the
        # provider had waited for input until then. A single tuple, since a worker may replace it
        # while the caller reads it.
        self._limit_state = (0.0, 0.0, 0.0)
        self._settled = Lock()  # taken once, by the first outcome

    @property
    def context(self) -> Context:
        """The context for objects that live longer than one function, whichever threads use them.

        A copy of the caller's context, because the caller is the first to read this property.
        """
        if self._context is None:
            self._context = copy_context()
        return self._context

    @property
    def is_settled(self) -> bool:
        """Whether an outcome was recorded."""
        return self._settled.locked()

    def succeed(self) -> None:
        """Record a success."""
        if self._settled.acquire(blocking=False):
            self.member.breaker._record_success(self._permit)
            self._report(Outcome.SUCCEEDED, None)

    def cancel(self) -> None:
        """Record that the caller has ended the call early: neither a success nor a failure."""
        if self._settled.acquire(blocking=False):
            self._release(Outcome.CANCELLED, None)

    def fail(self, error: BaseException) -> Outcome | None:
        """Record an exception, as a failure if it counts.

        Returns:
            CANCELLED for an interruption of the caller, SKIPPED for a group that tried none of its
            providers, IGNORED for a request that the provider does not support, FAILED for all
            other exceptions, whether they count or not. None if the call was settled before.
        """
        if not self._settled.acquire(blocking=False):
            return None
        kind = self._classify(error)
        if kind is not Outcome.FAILED:
            self._release(kind, error)
        elif self.member.breaker._record_failure(self._permit, error):
            self._report(Outcome.FAILED, error)
        else:
            self._report(Outcome.IGNORED if self.is_outcome(error) else Outcome.CANCELLED, error)
        return kind

    def _classify(self, error: BaseException) -> Outcome:
        member = self.member
        if isinstance(error, member.config.interrupt_on):
            return Outcome.CANCELLED
        if not isinstance(error, _SPECIAL):
            return Outcome.FAILED
        if _was_skipped(error):
            return Outcome.SKIPPED
        is_unsupported = _is_unsupported(error, member.provider, self.operation)
        return Outcome.IGNORED if is_unsupported else Outcome.FAILED

    def is_outcome(self, error: BaseException) -> bool:
        """Return whether an exception is an outcome, and not an interruption of the thread."""
        config = self.member.config
        return isinstance(error, (Exception, *config.interrupt_on)) or any(
            _settings.matches("", named, error)  # types outside Exception
            for named in (self.member.breaker._config.failure_on, config.fallback_on)
        )

    def _release(self, outcome: Outcome, error: BaseException | None) -> None:
        self.member.breaker._release(self._permit)
        self._report(outcome, error)

    def _report(self, outcome: Outcome, error: BaseException | None) -> None:
        self.member.report(self.operation, outcome, error, self._started, self._first_item)

    def note_first_item(self) -> None:
        """Record the time at which the first item of a stream has arrived."""
        if self.member.listener is not None:
            self._first_item = self.member.clock() - self._started

    def run(
        self,
        fn: Callable[[T], R],
        discard: Callable[[R], object],
        input_wait: Callable[[], float] = float,
    ) -> R:
        """Call a function of the provider, within the remaining time limit of this attempt.

        Args:
            fn: Function to call with the provider.
            discard: Function to call with a result that is returned too late.
            input_wait: Returns the seconds for which the provider has waited for input.

        Returns:
            The result of the function.

        Raises:
            AttemptTimeoutError: The time limit has elapsed.
            RuntimeError: No thread can be started. The call is then settled as cancelled.
        """
        workers, provider = self.member.workers, self.member.provider
        if workers is None:
            self.thread = get_ident()
            return fn(provider)

        def work() -> R:
            self.thread = get_ident()
            return fn(provider)

        used, _, _ = self._limit_state
        self._limit_state = (used, monotonic(), input_wait())
        workers.check_room()
        try:
            task = workers.start(work, discard)
        except BaseException:
            self.cancel()
            raise
        try:
            return task.wait(lambda: workers.timeout - self._used(input_wait))
        finally:
            self._limit_state = (self._used(input_wait), 0.0, 0.0)

    def renew_limit(self, input_wait: Callable[[], float]) -> None:
        """Restart the time limit of this attempt, since the provider has returned an item."""
        if self.member.workers is not None:
            self._limit_state = (0.0, monotonic(), input_wait())

    def _used(self, input_wait: Callable[[], float]) -> float:
        before, since, waited = self._limit_state
        return before + (monotonic() - since) - (input_wait() - waited)


_SPECIAL = (
    AllFailedError,
    AttributeError,
    CircuitOpenError,
    NotImplementedError,
    UnsupportedRequestError,
)
"""Types of exceptions that need a further check: not all are failures."""


def _is_unsupported(error: BaseException, provider: object, operation: str) -> bool:
    if isinstance(error, AttributeError):  # the provider does not have this contract method
        return error.obj is provider and error.name == operation
    if isinstance(error, AllFailedError):  # a group in which no provider has failed
        return error._is_unsupported
    return isinstance(error, (NotImplementedError, UnsupportedRequestError))


def no_error() -> None:
    """Return None, for a call without input of the caller."""


def refuse_result(member: Member[Any], operation: str, result: object) -> NoReturn:
    """Raise for a result that violates the contract; close the result first, if possible."""
    method = f"{operation}() of provider {member.name!r}"
    _settings.refuse_coroutine(method, result)
    close(result, member.config.interrupt_on)
    msg = f"{method} returned {_type_of(result)}"
    raise TypeError(msg)


def _type_of(result: object) -> str:
    return "None" if result is None else f"an object of type {type(result).__qualname__}"


@final
class Attempts(Generic[T]):
    """The attempts of one call with members of type T, for one thread at a time."""

    __slots__ = (
        "_failures",
        "_input_error",
        "_is_forced",
        "_members",
        "_record",
        "_remaining",
        "operation",
    )

    def __init__(
        self,
        members: tuple[Member[T], ...],
        operation: str,
        *,
        record: bool = True,
        input_error: Callable[[], BaseException | None] = no_error,
    ) -> None:
        """Start with the first member.

        An error of the caller's own input ends the attempts. Without `record`, members with open
        breakers are skipped, but no outcome is recorded.
        """
        self._members = members
        self.operation: str = operation
        self._remaining: Iterator[Member[T]] = iter(members)
        self._record = record
        self._is_forced = False
        self._input_error = input_error
        self._failures: dict[str, BaseException] = {}

    def first_call(self, permit: Permit) -> Call[T]:
        """Return a call of the first member, which has already been admitted."""
        return Call(next(self._remaining), permit, self.operation)

    def first_success(
        self,
        attempt: Callable[[Call[T]], R],
        call_directly: Callable[[Member[T]], R] | None = None,
    ) -> R:
        """Make attempts with the remaining members, until one of them succeeds.

        Args:
            attempt: Makes one attempt. If it succeeds, its caller settles the call.
            call_directly: Makes one attempt with a member that needs neither a worker nor a report.
                It makes no `Call`, because that takes as long as the rest of such an attempt.

        Returns:
            The attempt's result.

        Raises:
            AllFailedError: No attempt succeeded.
        """
        for member in self._remaining:
            permit = self._acquire(member.breaker)
            if permit is None:
                if not self._is_forced:  # otherwise it was reported before
                    member.skip(self.operation)
                continue
            call: Call[T] | None = None
            try:
                if call_directly is None or not member.has_fast_path:
                    call = Call(member, permit, self.operation)
                    return attempt(call)
                result = call_directly(member)
            except BaseException as error:
                if not self.may_go_on(call or Call(member, permit, self.operation), error):
                    self.clear_failures()
                    raise
            else:
                # Not above: an exception of a log handler or a listener here is no failure.
                member.breaker._record_success(permit)
                return result
        if self._may_force():
            self._is_forced = True
            self._remaining = iter(self._members)
            return self.first_success(attempt, call_directly)
        raise self.all_failed()

    def _acquire(self, breaker: CircuitBreaker) -> Permit | None:
        if self._is_forced:
            return breaker._try_force() if self._record else breaker._try_force_unrecorded()
        return breaker._try_acquire() if self._record else breaker._try_acquire_unrecorded()

    def _may_force(self) -> bool:
        """Return whether all providers were skipped, and are to be tried anyway."""
        return (
            self._members[0].config.when_all_open == "try"
            and not self._is_forced
            and all(map(_was_skipped, self._failures.values()))
        )

    def may_go_on(self, call: Call[T], error: BaseException) -> bool:
        """Settle an attempt that raised; return whether another provider may be tried.

        No further attempt is made if the attempt was settled before it raised, because the caller
        has cancelled it, or if the caller's own input raised, because every provider would fail.
        """
        if self._input_error() is not None:
            call.cancel()
        member = call.member
        kind = call.fail(error)
        if kind is None or kind is Outcome.CANCELLED:
            return False
        if kind is Outcome.SKIPPED:
            member.log_skip()
        elif kind is Outcome.FAILED and not _settings.matches(
            "fallback_on", member.config.fallback_on, error, member.config.interrupt_on
        ):
            return False
        else:
            _log_failure(member.name, error)
        self._failures[member.name] = error
        return True

    def all_failed(self) -> AllFailedError:
        """Return the error for a call in which no member succeeded."""
        failures = {
            member.name: self._failures[member.name]
            if member.name in self._failures  # not `get() or`: an exception may be falsy
            else member.breaker._rejection()
            for member in self._members
        }
        waits = [self._wait(member, failures[member.name]) for member in self._members]
        self.clear_failures()
        error = AllFailedError(failures, min((w for w in waits if w is not None), default=None))
        error._is_unsupported = all(
            _was_skipped(failure) or _is_unsupported(failure, member.provider, self.operation)
            for member, failure in zip(self._members, failures.values(), strict=True)
        )
        return error

    def _wait(self, member: Member[T], error: BaseException) -> float | None:
        """Return the seconds after which a member may be tried; None if that is not known."""
        wait = member.breaker._rejection().retry_after
        if isinstance(error, AllFailedError) and error.failures:  # a group, which has its own wait
            inner = error.retry_after
            return None if wait is None or inner is None else max(wait, inner)
        # A request that is not supported now will not be supported later.
        return None if _is_unsupported(error, member.provider, self.operation) else wait

    def clear_failures(self) -> None:
        """Drop the failures recorded so far; their tracebacks refer to the frames of this call."""
        self._failures.clear()


def _log_failure(provider: str, error: BaseException) -> None:
    logger.warning(
        "provider %s failed with %s",
        provider,
        type(error).__name__,
        extra={"resilience_provider": provider, "resilience_error": type(error).__name__},
    )
