"""Which calls may pass: the state machine of a circuit breaker."""

import logging
import math
from collections.abc import Callable
from threading import RLock

from resilience import _settings
from resilience._circuit_config import CircuitBreakerConfig, State, StateChange
from resilience._events import EventQueue
from resilience._log import log_swallowed, logger
from resilience._periods import Closed, HalfOpen, Open, Period, Permit, Probe
from resilience._settings import matches
from resilience.exceptions import CircuitOpenError

_DEFAULTS = CircuitBreakerConfig()


class Circuit:
    """Admits calls and hears how they ended.

    This is the interface in two steps, for a call that begins in one place and ends in another:
    `try_acquire` gives a permit, which must be handed back once, to `succeeded`, `failed` or
    `released`. May be used by any number of threads.
    """

    __slots__ = ("__weakref__", "_config", "_events", "_lock", "_period", "_reset_timeout")

    def __init__(self, config: CircuitBreakerConfig | None = None) -> None:
        """Make a closed circuit.

        Args:
            config: Settings, the defaults if omitted.

        Raises:
            TypeError: The settings are something else.
        """
        self._config = _DEFAULTS if config is None else config
        _settings.kind("config", self._config, CircuitBreakerConfig)
        self._reset_timeout = _settings.seconds("reset_timeout", self._config.reset_timeout, 30.0)
        # Reentrant, because a garbage collection may strike while the lock is held, and drop a
        # stream that then reports to this very circuit.
        self._lock = RLock()
        # Guarded by the lock: which period is the present one, and what stands in it.
        self._period: Period = Closed()
        self._events: EventQueue[StateChange] = EventQueue(self._lock)

    @property
    def name(self) -> str:
        """The label from the settings."""
        return self._config.name

    @property
    def state(self) -> State:
        """The present state; half-open as soon as the next call would be admitted as a probe."""
        period = self._period  # without the lock: one read, and an open period never changes
        if isinstance(period, Open) and self._config.clock() >= period.until:
            return State.HALF_OPEN
        return period.state

    def reset(self) -> None:
        """Close the circuit, clear everything, and forget the calls under way."""
        self._force(Closed())
        logger.info("circuit %s was reset", self.name, extra={"resilience_circuit": self.name})

    def isolate(self) -> None:
        """Hold the circuit open until `reset()` is called."""
        self._force(Open(math.inf))
        extra = {"resilience_circuit": self.name}
        logger.warning("circuit %s was isolated", self.name, extra=extra)

    def try_acquire(self) -> Permit | None:
        """Ask for admission of one call.

        Returns:
            A permit, or None if the call is not admitted.
        """
        # Without the lock: one read of the reference admits the call to that closed period. If
        # the circuit moves on in the meantime, the call belongs to a period that is over.
        period = self._period
        return period if type(period) is Closed else self._admit(period, self._config.clock())

    def acquire(self) -> Permit:
        """Ask for admission of one call.

        Returns:
            A permit.

        Raises:
            CircuitOpenError: The call is not admitted.
        """
        period = self._period  # without the lock, as in try_acquire
        if type(period) is Closed:
            return period
        now = self._config.clock()
        permit = self._admit(period, now)
        if permit is None:
            raise self.rejection(now)
        return permit

    def try_observe(self) -> Permit | None:
        """Ask for admission of one call that shall be no evidence.

        Returns:
            A permit that nobody looks at, or None if the circuit is open.
        """
        return None if self.state is State.OPEN else Closed()

    def rejection(self, now: float | None = None) -> CircuitOpenError:
        """Make the error for a call that is not admitted.

        Args:
            now: Time of the clock at which it was not admitted, read now if omitted.

        Returns:
            An error with the circuit's name and the seconds left to wait.
        """
        if now is None:
            now = self._config.clock()
        period = self._period
        if isinstance(period, Open):
            until = period.until
        elif isinstance(period, HalfOpen):
            until = period.last_admission + self._reset_timeout
        else:  # closed since
            until = now
        wait = until - now
        if wait == math.inf:
            return CircuitOpenError(self._config.name)
        return CircuitOpenError(self._config.name, max(0.0, wait))

    def succeeded(self, permit: Permit) -> None:
        """Hear that an admitted call has succeeded.

        Args:
            permit: What admitted the call.
        """
        # Without the lock: a count of 0 leaves a success nothing to write; a failure that is
        # counted just now has simply come after it.
        if permit.failures == 0:
            return
        with self._lock:
            if isinstance(permit, Closed):
                permit.failures = 0
            elif permit.is_held:
                period = permit.period
                if period.successes + 1 >= self._config.half_open_max:
                    self._move_locked(period, Closed())
                permit.is_held = False  # last: whoever is interrupted before still holds the slot
                period.successes += 1
        self._events.tell(self._announce)

    def failed(self, permit: Permit, error: BaseException) -> bool:
        """Hear that an admitted call has raised.

        Args:
            permit: What admitted the call.
            error: What the call raised. If it does not count, the permit is only given back.

        Returns:
            True if the exception counts as a failure.
        """
        try:
            config = self._config
            if not isinstance(error, Exception) or not matches(
                "failure_on", config.failure_on, error
            ):
                self.released(permit)
                return False
            hook = config.retry_after
            stay = 0.0 if hook is None else self._stay(hook, error)
            now = config.clock()
        except BaseException:  # an interruption of the hooks
            self.released(permit)
            raise
        with self._lock:
            self._count_locked(permit, error, now, stay)
        self._events.tell(self._announce)
        return True

    def released(self, permit: Permit) -> None:
        """Hear that an admitted call has ended, neither with success nor with failure.

        Args:
            permit: What admitted the call.
        """
        if isinstance(permit, Probe):
            with self._lock:
                if permit.is_held:
                    permit.is_held = False
                    permit.period.taken -= 1
            self._events.tell(self._announce)
        # Closed: nothing was taken, and the count stays as it is.

    def _admit(self, period: Period, now: float) -> Permit | None:
        if isinstance(period, Open) and now < period.until:
            return None  # without the lock: it was open when it was read, and never changes
        with self._lock:
            permit = self._admit_locked(now)
        self._events.tell(self._announce)
        return permit

    def _admit_locked(self, now: float) -> Permit | None:
        period = self._period
        if isinstance(period, Open) and now >= period.until:
            self._move_locked(period, HalfOpen())
            period = self._period
        if isinstance(period, Open):
            return None
        if isinstance(period, Closed):
            return period
        probe = Probe(period, self.released)
        full = period.taken >= self._config.half_open_max
        if full and now - period.last_admission < self._reset_timeout:
            return None
        period.taken += 1
        probe.is_held = True
        # A thread that was slow to come here brings an earlier time.
        period.last_admission = max(period.last_admission, now)
        return probe

    def _count_locked(self, permit: Permit, error: Exception, now: float, stay: float) -> None:
        if isinstance(permit, Closed):
            permit.failures += 1
            if stay or permit.failures >= self._config.max_failures:
                self._move_locked(permit, Open(now + (stay or self._reset_timeout)), error)
        elif permit.is_held:
            self._move_locked(permit.period, Open(now + (stay or self._reset_timeout)), error)
            permit.is_held = False

    def _move_locked(self, old: Period, new: Period, cause: Exception | None = None) -> bool:
        """Go from one period to another, unless the old one is already over."""
        change = StateChange(name=self.name, old=old.state, new=new.state, cause=cause)
        if self._period is not old:
            return False
        self._period = new
        if old.state is not new.state:
            self._events.append(change)
        return True

    def _force(self, period: Closed | Open) -> None:
        moved = False
        while not moved:  # again only if a collected stream has moved the circuit meanwhile
            with self._lock:
                moved = self._move_locked(self._period, period)
        self._events.tell(self._announce)

    def _stay(self, hook: Callable[[Exception], float | None], error: Exception) -> float:
        """Return the seconds to stay open at the provider's own word, 0 if it has none."""
        try:
            wait = hook(error)
            return 0.0 if wait is None else max(self._reset_timeout, float(wait))
        except Exception as raised:
            log_swallowed("retry_after", raised)
            return 0.0

    def _announce(self, change: StateChange) -> None:
        try:
            self._log(change)
        finally:  # a log handler may raise, or be interrupted: the listener is told all the same
            self._tell(change)

    def _log(self, change: StateChange) -> None:
        cause = None if change.cause is None else type(change.cause).__name__
        logger.log(
            logging.WARNING if change.new is State.OPEN else logging.INFO,
            "circuit %s is %s",
            change.name,
            change.new,
            extra={
                "resilience_circuit": change.name,
                "resilience_old_state": str(change.old),
                "resilience_new_state": str(change.new),
                "resilience_error": cause,
            },
        )

    def _tell(self, change: StateChange) -> None:
        if self._config.on_state_change is None:
            return
        try:
            self._config.on_state_change(change)
        except Exception as raised:
            log_swallowed("on_state_change", raised)
