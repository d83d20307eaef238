"""One call's way through the providers of a group, in order."""

import logging
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import replace
from datetime import timedelta
from threading import Lock
from time import monotonic
from typing import Generic, TypeVar, final

from resilience import _settings
from resilience._circuit_breaker import CircuitBreaker
from resilience._fallback_config import Attempt, FallbackConfig, Outcome
from resilience._log import log_swallowed, logger
from resilience._periods import Permit
from resilience._workers import Workers
from resilience.exceptions import AllFailedError

T = TypeVar("T")
R = TypeVar("R")


@final
class Entry(Generic[T]):
    """One provider of a group, of type T, with its breaker."""

    __slots__ = (
        "_listener",
        "breaker",
        "clock",
        "config",
        "is_plain",
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
        """Make an entry with a closed breaker; the timeout overrides that of the group."""
        self.name: str = name
        self.provider: T = provider
        self.config: FallbackConfig = config
        self.clock: Callable[[], float] = config.circuit_breaker.clock
        self.breaker: CircuitBreaker = CircuitBreaker(replace(config.circuit_breaker, name=name))
        timeout = config.attempt_timeout if attempt_timeout is None else attempt_timeout
        limit = _settings.seconds("attempt_timeout", timeout, 0.0)
        self.workers: Workers | None = Workers(name, limit) if limit else None
        self._listener = config.on_attempt
        # Whether a success is nobody's business but the breaker's.
        self.is_plain: bool = self.workers is None and self._listener is None

    def skipped(self) -> None:
        """Tell that the breaker did not admit an attempt."""
        if logger.isEnabledFor(logging.DEBUG):
            extra = {"resilience_provider": self.name}
            logger.debug("provider %s is skipped", self.name, extra=extra)
        if self._listener is not None:
            self.report(Outcome.SKIPPED, self.breaker.rejection(), self.clock())

    def report(self, outcome: Outcome, error: BaseException | None, started: float) -> None:
        """Tell how an attempt has ended that had started at a time of the clock."""
        listener = self._listener
        if listener is None:
            return
        duration = self.clock() - started
        attempt = Attempt(provider=self.name, outcome=outcome, error=error, duration=duration)
        try:
            listener(attempt)
        except Exception as raised:
            log_swallowed("on_attempt", raised)


@final
class Call(Generic[T]):
    """One admitted call to a provider of type T, settled once.

    The first word counts and later ones are not heard, from whichever thread they come.
    """

    __slots__ = ("_once", "_permit", "_started", "_used", "context", "entry")

    def __init__(self, entry: Entry[T], permit: Permit, started: float) -> None:
        """Make a call that the entry's breaker has admitted at a time of its clock."""
        self.entry: Entry[T] = entry
        # With a time limit, what the provider does for this call it does in one context, on
        # whichever threads.
        self.context: Context | None = copy_context() if entry.workers else None
        self._permit = permit
        self._started = started
        self._used = 0.0
        self._once = Lock()  # taken once, by the first word

    @property
    def is_settled(self) -> bool:
        """Whether the first word has been said."""
        return self._once.locked()

    def succeeded(self) -> None:
        """Settle the call as a success."""
        if self._once.acquire(blocking=False):
            self.entry.breaker.succeeded(self._permit)
            self.entry.report(Outcome.SUCCEEDED, None, self._started)

    def cancelled(self) -> None:
        """Settle the call as neither success nor failure."""
        if self._once.acquire(blocking=False):
            self.entry.breaker.released(self._permit)
            self.entry.report(Outcome.CANCELLED, None, self._started)

    def failed(self, error: BaseException) -> bool:
        """Settle the call as one that raised; False if it was settled before."""
        if not self._once.acquire(blocking=False):
            return False
        if self.entry.breaker.failed(self._permit, error):
            outcome = Outcome.FAILED
        elif isinstance(error, Exception):
            outcome = Outcome.IGNORED
        else:
            outcome = Outcome.CANCELLED
        self.entry.report(outcome, error, self._started)
        return True

    def bounded(
        self,
        fn: Callable[[T], R],
        discard: Callable[[R], object],
        idle: Callable[[], float] = float,
    ) -> R:
        """Call a function of the provider, within the time that is left for this attempt.

        Args:
            fn: What to call with the provider.
            discard: What to do with a result that comes too late.
            idle: Tells the seconds of this attempt that are not the provider's doing.

        Returns:
            What the function returned.

        Raises:
            AttemptTimeoutError: The time is up.
        """
        workers, provider, context = self.entry.workers, self.entry.provider, self.context
        if workers is None or context is None:
            return fn(provider)
        timeout, before = workers.timeout, self._used
        started, waited = monotonic(), idle()

        def used() -> float:
            return before + (monotonic() - started) - (idle() - waited)

        try:
            return workers.call(lambda: fn(provider), discard, lambda: timeout - used(), context)
        finally:
            self._used = used()


def no_error() -> None:
    """Tell of no error, for a call without an input of its own."""


@final
class Run(Generic[T]):
    """One call's way through providers of type T, for one thread at a time."""

    __slots__ = ("_entries", "_failures", "_input_error", "_remaining")

    def __init__(
        self,
        entries: tuple[Entry[T], ...],
        input_error: Callable[[], Exception | None] = no_error,
    ) -> None:
        """Stand before the first provider; what the caller's own input raises ends the way."""
        self._entries = entries
        self._input_error = input_error
        self._remaining = iter(entries)
        self._failures: dict[str, Exception] = {}

    def begin(self, attempt: Callable[[Call[T]], R]) -> R:
        """Make attempts with the providers that are left, until one of them succeeds.

        Args:
            attempt: Makes one attempt. If it succeeds, whoever gets its result settles its call.

        Returns:
            The attempt's result.

        Raises:
            AllFailedError: No attempt succeeded.
        """
        for entry in self._remaining:
            started = entry.clock()
            permit = entry.breaker.try_acquire()
            if permit is None:
                entry.skipped()
                continue
            call = Call(entry, permit, started)
            try:
                return attempt(call)
            except BaseException as error:
                if not self.gave_up(call, error):
                    self.forget()
                    raise
        raise self.all_failed()

    def gave_up(self, call: Call[T], error: BaseException) -> bool:
        """Settle an attempt that raised, and tell whether another provider may be tried.

        An attempt that was settled before it raised has been given up by the caller, and one that
        failed for the caller's own input would fail anywhere: neither goes further.
        """
        if self._input_error() is not None:
            call.cancelled()
        return call.failed(error) and self.moves_on(call.entry, error)

    def moves_on(self, entry: Entry[T], error: BaseException) -> bool:
        """Tell whether another provider may be tried after one has failed."""
        if not isinstance(error, Exception):
            return False
        if not _settings.matches("fallback_on", entry.config.fallback_on, error):
            return False
        self._failures[entry.name] = error
        logger.warning(
            "provider %s failed with %s",
            entry.name,
            type(error).__name__,
            extra={
                "resilience_provider": entry.name,
                "resilience_error": type(error).__name__,
            },
        )
        return True

    def all_failed(self) -> AllFailedError:
        """Make the error for a way that came to its end."""
        failures = {
            entry.name: self._failures[entry.name]
            if entry.name in self._failures
            else entry.breaker.rejection()
            for entry in self._entries
        }
        self.forget()
        return AllFailedError(failures)

    def forget(self) -> None:
        """Let go of the failures so far; their tracebacks hold what led here."""
        self._failures.clear()
