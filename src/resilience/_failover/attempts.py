"""Attempts of one call, with one provider of a group after the other."""

import logging
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import replace
from datetime import timedelta
from threading import Lock, get_ident
from time import monotonic
from typing import Any, Generic, NoReturn, TypeVar, final

from resilience import _settings
from resilience._breaker.breaker import CircuitBreaker
from resilience._breaker.periods import Permit
from resilience._failover.config import Attempt, FallbackConfig, Outcome
from resilience._failover.source import close
from resilience._failover.workers import WorkerPool
from resilience._log import log_suppressed, logger
from resilience.exceptions import AllFailedError, UnsupportedRequestError, _was_skipped

T = TypeVar("T")
R = TypeVar("R")


@final
class Member(Generic[T]):
    """One provider of a group, of type T, with its breaker."""

    __slots__ = (
        "_listener",
        "breaker",
        "clock",
        "config",
        "has_fast_path",
        "name",
        "provider",
        "workers",
    )

    def __init__(
        self,
        name: str,
        provider: T,
        config: FallbackConfig,
        attempt_timeout: float | timedelta | None,
    ) -> None:
        """Make a member with a closed breaker; the timeout overrides that of the group."""
        self.name: str = name
        self.provider: T = provider
        self.config: FallbackConfig = config
        self.clock: Callable[[], float] = config.circuit_breaker.clock
        self.breaker: CircuitBreaker = CircuitBreaker(replace(config.circuit_breaker, name=name))
        timeout = config.attempt_timeout if attempt_timeout is None else attempt_timeout
        limit = _settings.check_seconds("attempt_timeout", timeout, 0.0)
        self.workers: WorkerPool | None = WorkerPool(name, limit) if limit else None
        self._listener = config.on_attempt
        # Whether a call needs neither a worker nor a report.
        self.has_fast_path: bool = self.workers is None and self._listener is None

    def skip(self) -> None:
        """Log and report that the breaker did not admit an attempt."""
        self.log_skip()
        if self._listener is not None:
            self.report(Outcome.SKIPPED, self.breaker._rejection(), self.clock())

    def log_skip(self) -> None:
        """Log that the provider was not tried."""
        if logger.isEnabledFor(logging.DEBUG):
            extra = {"resilience_provider": self.name}
            logger.debug("provider %s is skipped", self.name, extra=extra)

    def report(self, outcome: Outcome, error: BaseException | None, started: float) -> None:
        """Report how an attempt has ended that had started at a time of the clock."""
        listener = self._listener
        if listener is None:
            return
        duration = self.clock() - started
        attempt = Attempt(provider=self.name, outcome=outcome, error=error, duration=duration)
        try:
            listener(attempt)
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
        "_limit_state",
        "_permit",
        "_settled",
        "_started",
        "member",
        "operation",
        "thread",
    )

    def __init__(self, member: Member[T], permit: Permit, operation: str) -> None:
        """Make a call that the member's breaker has admitted just now."""
        self.member: Member[T] = member
        self.operation: str = operation
        # The thread on which the provider's code was called last.
        self.thread: int | None = None
        self._permit = permit
        self._context: Context | None = None
        self._started = 0.0 if member.has_fast_path else member.clock()
        # How much of the time limit was used, up to which time, and how long the provider had
        # waited for input by then. One tuple, since a worker replaces it while the caller reads it.
        self._limit_state = (0.0, 0.0, 0.0)
        self._settled = Lock()  # taken once, by the first outcome

    @property
    def context(self) -> Context:
        """The context for what lives longer than one function, on whichever threads it is used.

        A copy of the caller's context: the caller is the first to read it.
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
            self.member.report(Outcome.SUCCEEDED, None, self._started)

    def cancel(self) -> None:
        """Record that the call was given up: neither a success nor a failure."""
        if self._settled.acquire(blocking=False):
            self._release(Outcome.CANCELLED, None)

    def fail(self, error: BaseException) -> bool:
        """Record an exception, as a failure if it counts; False if the call was settled before."""
        if not self._settled.acquire(blocking=False):
            return False
        if isinstance(error, self.member.config.interrupt_on):
            self._release(Outcome.CANCELLED, error)
        elif _was_skipped(error):
            self._release(Outcome.SKIPPED, error)
        elif self.is_unsupported(error):
            self._release(Outcome.IGNORED, error)
        else:
            self._record(error)
        return True

    def is_outcome(self, error: BaseException) -> bool:
        """Tell whether an exception is more than an interruption of the thread."""
        if isinstance(error, (Exception, *self.member.config.interrupt_on)):
            return True
        failure_on = self.member.config.circuit_breaker.failure_on
        return _settings.matches("failure_on", failure_on, error)

    def is_unsupported(self, error: BaseException) -> bool:
        """Tell whether an exception means that a healthy provider does not support this request."""
        return _is_unsupported(error, self.member.provider, self.operation)

    def _record(self, error: BaseException) -> None:
        if self.member.breaker._record_failure(self._permit, error):
            outcome = Outcome.FAILED
        else:
            outcome = Outcome.IGNORED if isinstance(error, Exception) else Outcome.CANCELLED
        self.member.report(outcome, error, self._started)

    def _release(self, outcome: Outcome, error: BaseException | None) -> None:
        self.member.breaker._release(self._permit)
        self.member.report(outcome, error, self._started)

    def run(
        self,
        fn: Callable[[T], R],
        discard: Callable[[R], object],
        input_wait: Callable[[], float] = float,
    ) -> R:
        """Call a function of the provider, within the time that is left for this attempt.

        Args:
            fn: What to call with the provider.
            discard: What to do with a result that comes too late.
            input_wait: Returns the seconds for which the provider has waited for input.

        Returns:
            What the function returned.

        Raises:
            AttemptTimeoutError: The time is up.
            RuntimeError: No thread can be started. The call is settled then, as cancelled.
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
        """Start the time limit of this attempt anew, since the provider has returned something."""
        if self.member.workers is not None:
            self._limit_state = (0.0, monotonic(), input_wait())

    def _used(self, input_wait: Callable[[], float]) -> float:
        before, since, waited = self._limit_state
        return before + (monotonic() - since) - (input_wait() - waited)


def _is_unsupported(error: BaseException, provider: object, operation: str) -> bool:
    if isinstance(error, AttributeError):  # a method of the contract that it does not have
        return error.obj is provider and error.name == operation
    if isinstance(error, AllFailedError):  # a group of which no provider has failed
        return bool(error.failures) and all(
            _was_skipped(each) or _is_unsupported(each, provider, operation)
            for each in error.failures.values()
        )
    return isinstance(error, (NotImplementedError, UnsupportedRequestError))


def no_error() -> None:
    """Return no error, for a call without an input of its own."""


def refuse_result(member: Member[Any], operation: str, result: object) -> NoReturn:
    """Raise for a result that is not what the contract says; it is closed, if it can be closed."""
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
        "_members",
        "_operation",
        "_record",
        "_remaining",
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

        An error of the caller's own input ends the attempts. Without `record`, open breakers are
        skipped, but no outcome is recorded.
        """
        self._members = members
        self._operation = operation
        self._remaining = iter(members)
        self._record = record
        self._input_error = input_error
        self._failures: dict[str, BaseException] = {}

    def first_success(self, attempt: Callable[[Call[T]], R]) -> R:
        """Make attempts with the members that remain, until one of them succeeds.

        Args:
            attempt: Makes one attempt. If it succeeds, its caller settles the call.

        Returns:
            The attempt's result.

        Raises:
            AllFailedError: No attempt succeeded.
        """
        for member in self._remaining:
            permit = self._acquire(member.breaker)
            if permit is None:
                member.skip()
                continue
            call = Call(member, permit, self._operation)
            try:
                return attempt(call)
            except BaseException as error:
                if not self.may_go_on(call, error):
                    self.clear_failures()
                    raise
        raise self.all_failed()

    def first_call(self, permit: Permit) -> Call[T]:
        """Return a call of the first member that was admitted already."""
        return Call(next(self._remaining), permit, self._operation)

    def _acquire(self, breaker: CircuitBreaker) -> Permit | None:
        return breaker._try_acquire() if self._record else breaker._try_acquire_unrecorded()

    def may_go_on(self, call: Call[T], error: BaseException) -> bool:
        """Settle an attempt that raised, and tell whether another provider may be tried.

        An attempt that was settled before it raised was given up by the caller, and one that failed
        because of the caller's own input would fail anywhere: neither is followed by another.
        """
        if self._input_error() is not None:
            call.cancel()
        member = call.member
        if not call.fail(error) or isinstance(error, member.config.interrupt_on):
            return False
        if _was_skipped(error):
            member.log_skip()
        elif not call.is_unsupported(error) and not _settings.matches(
            "fallback_on", member.config.fallback_on, error
        ):
            return False
        else:
            _log_failure(member.name, error)
        self._failures[member.name] = error
        return True

    def all_failed(self) -> AllFailedError:
        """Return the error for a call that no member has served."""
        failures = {
            member.name: self._failures[member.name]
            if member.name in self._failures  # an exception may be false
            else member.breaker._rejection()
            for member in self._members
        }
        waits = [self._wait(member, failures[member.name]) for member in self._members]
        self.clear_failures()
        return AllFailedError(failures, min((w for w in waits if w is not None), default=None))

    def _wait(self, member: Member[T], error: BaseException) -> float | None:
        """Return the seconds after which a member may be tried, None if that is not known."""
        wait = member.breaker._rejection().retry_after
        if isinstance(error, AllFailedError) and error.failures:  # a group, which has to wait, too
            inner = error.retry_after
            return None if wait is None or inner is None else max(wait, inner)
        # A request that is not supported is not supported later either.
        return None if _is_unsupported(error, member.provider, self._operation) else wait

    def clear_failures(self) -> None:
        """Drop the failures so far; their tracebacks hold the frames of this call."""
        self._failures.clear()


def _log_failure(provider: str, error: BaseException) -> None:
    logger.warning(
        "provider %s failed with %s",
        provider,
        type(error).__name__,
        extra={"resilience_provider": provider, "resilience_error": type(error).__name__},
    )
