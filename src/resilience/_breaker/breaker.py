"""The state machine of a circuit breaker, and the calls that it protects."""

import inspect
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import wraps
from types import CoroutineType, GeneratorType, TracebackType
from typing import Any, Never, ParamSpec, TypeVar, cast, final, overload

from typing_extensions import deprecated, override

from resilience import _settings
from resilience._breaker.config import CircuitBreakerConfig, Snapshot, State, StateChange
from resilience._breaker.events import UNNAMED, EventQueue
from resilience._breaker.open_time import Opening, OpenTime, requested_delay
from resilience._breaker.periods import (
    UNRECORDED,
    Closed,
    Forced,
    HalfOpen,
    Open,
    Period,
    Permit,
    Probe,
)
from resilience._log import logger
from resilience._settings import matches
from resilience.exceptions import CircuitOpenError, _describe

P = ParamSpec("P")
R = TypeVar("R")

_DEFAULTS = CircuitBreakerConfig()


@final
class CircuitBreaker(_settings.Uncopyable):
    """A circuit breaker for the calls to one provider.

    A closed breaker admits every call, until `max_failures` calls in a row have failed. An open
    breaker rejects calls with `CircuitOpenError` until `reset_timeout` has elapsed. A half-open
    breaker admits `half_open_max` calls as probes: it closes when all of them have succeeded, and
    opens again when one fails. If probes hang, one more is admitted after each further
    `reset_timeout`.

    A call that raises an exception that does not count, or that is interrupted, is neither a
    success nor a failure. The outcome of a call that ends after the breaker has changed its state
    is ignored; only a longer `retry_after` still lengthens an open period.

    May be used by any number of threads. A healthy call takes no lock, and no lock is held while
    the protected function, a hook, a listener or a log handler runs. Cannot be copied.
    """

    # A call that begins in one place and ends in another takes two steps: `_try_acquire` returns a
    # permit, whose outcome is recorded once, by `_record_success`, `_record_failure` or `_release`.

    __slots__ = (
        "__weakref__",
        "_config",
        "_events",
        "_half_open_max",
        "_last_failure",
        "_max_failures",
        "_open_time",
        "_opened_count",
        "_period",
        "_reset_count",
    )

    def __init__(self, config: CircuitBreakerConfig | None = None) -> None:
        """Make a closed breaker.

        Args:
            config: Settings, the defaults if omitted.

        Raises:
            TypeError: The settings are not a `CircuitBreakerConfig`.
        """
        config = _DEFAULTS if config is None else config
        _settings.check_type("config", config, CircuitBreakerConfig)
        self._config = config
        self._max_failures = _settings.check_count("max_failures", config.max_failures, 5)
        self._half_open_max = _settings.check_count("half_open_max", config.half_open_max, 3)
        self._open_time = OpenTime(config)
        self._events = EventQueue(config.on_state_change)
        # Written under the lock of the events, like all attributes of periods and probes.
        self._period: Period = Closed()
        self._opened_count = 0
        self._reset_count = 0
        self._last_failure: tuple[type[BaseException], float] | None = None  # and when it was

    @override
    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self.state}>"

    @property
    def name(self) -> str:
        """The label from the settings."""
        return self._config.name or ""

    @property
    def state(self) -> State:
        """The present state; half-open as soon as the next call would be admitted as a probe."""
        # Without the lock: one read of the period, and one of its end, which only becomes later.
        period = self._period
        if isinstance(period, Open) and self._config.clock() >= period.until:
            return State.HALF_OPEN
        return period.state

    def snapshot(self) -> Snapshot:
        """Return the state and the counts at this moment, for health pages and gauges.

        Takes the lock, and changes nothing.

        Returns:
            All values, read at one moment.
        """
        return self._events.run_locked(self._snapshot_locked, self._config.clock())

    def reset(self) -> None:
        """Close the breaker and clear all counts; the outcomes of calls under way are ignored."""
        # Repeated only if another thread, or the finalizer of a stream, has changed the period.
        while not self._events.run_locked(self._reset_locked, self._period):
            pass
        logger.info("circuit %s was reset", self.name or UNNAMED, extra=self._log_fields())

    def isolate(self, seconds: float | timedelta | None = None) -> None:
        """Hold the breaker open, for some time or until `reset()` is called.

        An isolated breaker admits no call, not even if `when_all_open` is "try".

        Args:
            seconds: Seconds, or a `timedelta`, after which the breaker is half-open, as after any
                other open period; 0 to make the next call a probe. None to stay open until
                `reset()`.

        Raises:
            TypeError: Not a number or a `timedelta`.
            ValueError: Negative, not finite, or more than 1e9 seconds.
        """
        until = math.inf
        if seconds is not None:
            until = self._config.clock() + _settings.check_seconds("seconds", seconds, 0.0)
        isolated = Open(until, seconds=self._open_time.reset_timeout, is_isolated=True)
        while not self._events.run_locked(self._transition_locked, self._period, isolated):
            pass
        logger.warning("circuit %s was isolated", self.name or UNNAMED, extra=self._log_fields())

    # ---- calls

    @overload
    def execute(self, fn: Callable[[], R], /) -> R: ...
    @overload
    def execute(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def execute(self, fn: Callable[..., R], /, *args: object, **kwargs: object) -> R:
        """Call a function if the breaker admits it.

        Args:
            fn: Synchronous function to protect.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The result of the function. A coroutine raises `TypeError`; any other object that does
            its work later, such as a `Future`, is a success as soon as it is returned.

        Raises:
            CircuitOpenError: The breaker did not admit the call; the function was not called.
            TypeError: The function returned a coroutine.
        """
        period = self._period  # without the lock; _try_acquire, inlined
        permit = period if type(period) is Closed else self._acquire()
        try:
            # Most calls have no arguments, and unpacking empty arguments takes as long as the call.
            result = fn(*args, **kwargs) if args or kwargs else fn()
        except BaseException as error:
            self._record_failure(permit, error)
            raise
        if CoroutineType is type(result):
            self._release(permit)
            _settings.refuse_coroutine(f"fn {_name_of(fn)}", result)
        if permit.failures:  # without the lock; _record_success, inlined
            self._record_success(permit)
        return result

    def guard(self) -> AbstractContextManager[None]:
        """Guard the body of a `with` statement as one call, admitted on entry.

        Returns:
            A context manager for one `with` statement. Its entry raises `CircuitOpenError` if the
            breaker does not admit the call.
        """
        return _Guard(self)

    @overload
    @deprecated("a breaker cannot protect an asynchronous function")
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, Any] | AsyncIterator[Any]], /
    ) -> Callable[P, Never]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Callable[P, R]: ...
    def __call__(self, fn: Callable[P, R], /) -> Callable[P, R]:
        """Decorate a function, so that the breaker protects each call of it.

        The whole iteration of a generator function is one call, admitted at the first `next()`. It
        succeeds when the iteration ends, or when the generator is closed after an item.

        Args:
            fn: Synchronous function to protect.

        Returns:
            A function with the same parameters and the same result. It raises `TypeError` if `fn`
            is not a generator function itself but wraps one, and returns a generator or a context
            manager: decorate the generator function itself, or use `guard()` in its body.

        Raises:
            TypeError: The function is asynchronous, or cannot be called.
        """
        _settings.check_callable("fn", fn)
        if _settings.is_kind(inspect.isgeneratorfunction, fn):
            return cast("Callable[P, R]", self._guard_generator(cast("Callable[P, Any]", fn)))

        @wraps(fn)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.execute(fn, *args, **kwargs)

        wraps_generator = inspect.isgeneratorfunction(inspect.unwrap(fn))
        return _checked(guarded) if wraps_generator else guarded

    def _guard_generator(
        self, fn: Callable[P, Generator[Any, Any, Any]]
    ) -> Callable[P, Generator[Any, Any, Any]]:
        @wraps(fn)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, Any, Any]:
            permit = self._acquire()
            try:
                result = yield from fn(*args, **kwargs)
            except GeneratorExit:  # closed after an item, which shows that the function works
                self._record_success(permit)
                raise
            except BaseException as error:
                self._record_failure(permit, error)
                raise
            self._record_success(permit)
            return result

        return guarded

    # ---- the two steps of a call

    def _try_acquire(self) -> Permit | None:
        """Return a permit for one call; None if the call is not admitted."""
        # Without the lock: one read of the reference admits the call to that closed period. If
        # the breaker opens in the meantime, the call belongs to a period that has ended.
        period = self._period
        return period if type(period) is Closed else self._admit(period, self._config.clock())

    def _acquire(self) -> Permit:
        """Return a permit for one call, or raise `CircuitOpenError`."""
        period = self._period  # without the lock, as in _try_acquire
        if type(period) is Closed:
            return period
        now = self._config.clock()
        permit = self._admit(period, now)
        if permit is None:
            raise self._rejection(now)
        return permit

    def _try_acquire_unrecorded(self) -> Permit | None:
        """Return a permit whose outcome is discarded; None if the breaker is open."""
        return None if self.state is State.OPEN else UNRECORDED

    def _try_force(self) -> Permit | None:
        """Return a permit for one call even if the breaker is open; None if it is isolated."""
        return self._events.run_locked(self._force_locked, self._config.clock())

    def _try_force_unrecorded(self) -> Permit | None:
        """Return a permit whose outcome is discarded; None if the breaker is isolated."""
        period = self._period  # without the lock: one read
        return None if isinstance(period, Open) and period.is_isolated else UNRECORDED

    def _rejection(self, now: float | None = None) -> CircuitOpenError:
        """Return the error for a call that was not admitted, at a time of the clock or now."""
        if now is None:
            now = self._config.clock()
        # Without the lock: one read of the period. If another thread changes it at this moment, the
        # error shows a slightly older state.
        period = self._period
        return CircuitOpenError(self.name, self._wait(period, now), period.reason)

    def _wait(self, period: Period, now: float) -> float | None:
        """Return the seconds until a call may be admitted; None if that is not known."""
        if isinstance(period, Closed):
            return 0.0
        if isinstance(period, Open):
            until = period.until
        elif period.slots_used < self._half_open_max:
            until = now
        else:
            until = period.last_admission + self._open_time.reset_timeout
        if until == math.inf:
            return None
        return until - now if until > now else 0.0

    def _record_success(self, permit: Permit) -> None:
        """Record that an admitted call has succeeded."""
        # Without the lock: if the count is 0, a success has nothing to write. A failure that is
        # counted at this moment is regarded as a later one.
        if permit.failures:
            self._events.run_locked(self._record_success_locked, permit)

    def _record_success_locked(self, permit: Permit) -> None:
        if isinstance(permit, Closed):
            permit.failures = 0
        elif isinstance(permit, Forced):
            self._end_early_locked(permit.period)
        elif permit.is_held:
            period = permit.period
            if period.successes + 1 >= self._half_open_max:
                self._transition_locked(period, Closed())
            # Last, and with no call in between: if the thread is interrupted before this, the probe
            # still holds the slot, and releases it.
            permit.is_held = False
            period.failures = 0
            period.successes += 1

    def _end_early_locked(self, opened: Open) -> None:
        """End an open period because a forced call has succeeded, which counts as a probe."""
        half_open = HalfOpen(opened)
        half_open.failures = 0
        half_open.slots_used = half_open.successes = 1
        if self._transition_locked(opened, half_open) and self._half_open_max == 1:
            self._transition_locked(half_open, Closed())

    def _record_failure(self, permit: Permit, error: BaseException) -> bool:
        """Record that an admitted call has raised; False if the exception does not count."""
        try:
            config, interrupt_on = self._config, self._events.interrupt_on
            # The first condition is the commonest case of the second, and one call cheaper.
            if not (
                (config.failure_on is Exception and isinstance(error, Exception))
                or matches("failure_on", config.failure_on, error, interrupt_on)
            ):
                self._release(permit)
                return False
            if permit is UNRECORDED:
                return True
            delay = None
            if config.retry_after is not None and isinstance(error, Exception):
                delay = requested_delay(config.retry_after, error, interrupt_on)
            # Without the lock: the locked section returns False if it needs a missing opening.
            may_open = delay is not None or permit.failures + 1 >= self._max_failures
            opening = None
            if may_open or type(permit) is not Closed:
                opening = self._prepare_opening(error, delay)
            now = config.clock()
        except BaseException:  # the hooks were interrupted
            self._release(permit)
            raise
        record = self._record_failure_locked
        if not self._events.run_locked(record, permit, error, now, opening):  # the count has grown
            opening = self._prepare_opening(error, delay)
            self._events.run_locked(record, permit, error, now, opening)
        return True

    def _prepare_opening(self, error: BaseException, delay: float | None) -> Opening:
        return Opening(_describe(error), delay, self._open_time.draw_jitter())

    def _record_failure_locked(
        self, permit: Permit, error: BaseException, now: float, opening: Opening | None
    ) -> bool:
        """Record a failure; False if it opens the breaker, and nothing is prepared for that."""
        if isinstance(permit, Closed):
            if opening is None and permit.failures + 1 >= self._max_failures:
                return False
            if permit is self._period:
                self._last_failure = (type(error), now)
            permit.failures += 1
            if opening and (permit.failures >= self._max_failures or opening.delay is not None):
                self._open_locked(permit, error, now, opening)
        else:
            if permit.period is self._period:
                self._last_failure = (type(error), now)
            if opening and isinstance(permit, Probe) and permit.is_held:
                permit.period.failures += 1
                self._open_locked(permit.period, error, now, opening)
                permit.is_held = False
            # The failure of a forced call changes nothing, unless the provider asks for a delay.
        if opening and opening.delay is not None:
            self._lengthen_locked(now, now + opening.delay)
        return True

    def _open_locked(
        self, period: Closed | HalfOpen, error: BaseException, now: float, opening: Opening
    ) -> None:
        seconds = self._open_time.after(period)
        delay = 0.0 if opening.delay is None else opening.delay
        # The requested delay is not doubled and has no jitter. It is the last argument of `max`,
        # since it may be NaN.
        until = now + max(seconds * opening.jitter, delay)
        opened = Open(until, seconds=seconds, failures=period.failures, reason=opening.reason)
        self._transition_locked(period, opened, error)

    def _lengthen_locked(self, now: float, until: float) -> None:
        """Lengthen the present open period, if the provider asks for a longer delay.

        Any call may lengthen it, even one whose own period has ended. A period that has elapsed is
        not lengthened, because `state` may already have returned half-open.
        """
        period = self._period
        if isinstance(period, Open) and now < period.until < until:
            period.until = until

    def _release(self, permit: Permit) -> None:
        """Record that an admitted call has ended without success or failure."""
        if isinstance(permit, Probe):
            self._events.run_locked(self._release_locked, permit)
        # Closed: there is no slot to release, and the count is not changed.

    def _release_locked(self, probe: Probe) -> None:
        if probe.is_held:
            probe.is_held = False
            probe.period.slots_used -= 1

    # ---- the state

    def _admit(self, period: Period, now: float) -> Permit | None:
        if isinstance(period, Open) and now < period.until:
            return None  # without the lock: the period was open when it was read
        return self._events.run_locked(self._admit_locked, now)

    def _admit_locked(self, now: float) -> Permit | None:
        period = self._present_locked(now)
        if isinstance(period, Open):
            return None
        if isinstance(period, Closed):
            return period
        return self._take_slot_locked(period, self._half_open_max, now)

    def _force_locked(self, now: float) -> Permit | None:
        """Admit a call in any period, unless the breaker is isolated."""
        period = self._present_locked(now)
        if isinstance(period, Open):
            return None if period.is_isolated else Forced(period)
        if isinstance(period, Closed):
            return period
        return self._take_slot_locked(period, math.inf, now)

    def _present_locked(self, now: float) -> Period:
        """Return the present period; end it first if it is open and has elapsed."""
        period = self._period
        if isinstance(period, Open) and now >= period.until:
            self._transition_locked(period, HalfOpen(period))
            period = self._period
        return period

    def _take_slot_locked(self, period: HalfOpen, slots: float, now: float) -> Probe | None:
        """Admit a probe, if a slot is free or `reset_timeout` has elapsed since the last probe."""
        # Between the count of the slots and the last assignment nothing may be called: a signal
        # handler or a finalizer there could use the same slot, and there would be one probe too
        # many. So the probe is made before, and also the time of its admission, which is not the
        # present one if a thread that was slow has read the clock before the last admission.
        probe = Probe(period, self._release)
        admission = max(period.last_admission, now)
        is_full = period.slots_used >= slots
        if is_full and now - period.last_admission < self._open_time.reset_timeout:
            return None
        period.slots_used += 1
        probe.is_held = True
        period.last_admission = admission
        return probe

    def _transition_locked(
        self, old: Period, new: Period, cause: BaseException | None = None
    ) -> bool:
        """Replace one period by another, unless the old one has already ended."""
        change = StateChange(name=self.name, old=old.state, new=new.state, cause=cause)
        # Nothing is called between the comparison and the assignment, so neither a finalizer nor a
        # signal handler can replace the period in between.
        if self._period is not old:
            return False
        self._period = new
        if old.state is not new.state:
            self._events.append(change)
            self._opened_count += new.state is State.OPEN
        return True

    def _reset_locked(self, old: Period) -> bool:
        """Start a new closed period, unless the old period has already ended."""
        if not self._transition_locked(old, Closed()):
            return False
        self._reset_count += 1
        self._opened_count = 0
        self._last_failure = None
        return True

    def _snapshot_locked(self, now: float) -> Snapshot:
        period, failure = self._period, self._last_failure
        is_over = isinstance(period, Open) and now >= period.until
        return Snapshot(
            name=self.name,
            state=State.HALF_OPEN if is_over else period.state,
            consecutive_failures=period.failures,
            retry_after=self._wait(period, now),
            probes=period.slots_used - period.successes if isinstance(period, HalfOpen) else 0,
            opened_count=self._opened_count,
            last_failure=None if failure is None else failure[0].__name__,
            # A thread that was slow may have read the clock before the last failure.
            last_failure_age=None if failure is None else max(0.0, now - failure[1]),
        )

    def _log_fields(self) -> dict[str, object]:
        return {"resilience_circuit": self.name}


@final
class _Guard(AbstractContextManager[None]):
    """One call, whose function is the body of a `with` statement."""

    __slots__ = ("_breaker", "_permit")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._permit: Permit | None = None

    @override
    def __enter__(self) -> None:
        self._permit = self._breaker._acquire()

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        permit, self._permit = self._permit, None
        if permit is None:  # another `with` statement has already used this guard
            return
        if exc is None:
            self._breaker._record_success(permit)
        else:
            self._breaker._record_failure(permit, exc)


def _checked(fn: Callable[P, R]) -> Callable[P, R]:
    """Raise for a result whose work begins after the call, where the breaker cannot guard it."""

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        result = fn(*args, **kwargs)
        if isinstance(result, (GeneratorType, AbstractContextManager)):
            msg = (
                f"fn {_name_of(fn)} wraps a generator function, and the breaker cannot guard what "
                "it returns: decorate the generator function itself, or use guard() in its body"
            )
            raise TypeError(msg)
        return result

    return checked


def _name_of(fn: object) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)
