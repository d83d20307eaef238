"""Changes of breakers that processes send to each other, and the effects of received changes.

Nothing here uses a network. Each process has its own breakers. A change that was received from
another process is never sent again.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TypeGuard, cast, final

from resilience._breaker.breaker import CircuitBreaker
from resilience._breaker.events import UNNAMED
from resilience._breaker.periods import Closed, HalfOpen, Open, Period
from resilience._log import logger

MAX_MESSAGE_BYTES = 1024
"""Longest message that is read, in bytes; all messages of this library are shorter."""

_MAX_TEXT_LENGTH = 100
_MAX_SECONDS = 1e9  # seconds, as in the settings
_GRACE_PERIOD = 2.0  # seconds after its end in which an isolation is still sent


class Kind(Enum):
    """What happened to a breaker."""

    OPENED = "opened"
    CLOSED = "closed"
    ISOLATED = "isolated"
    RESET = "reset"


OPERATOR_KINDS = frozenset({Kind.ISOLATED, Kind.RESET})
"""Changes that only `isolate()` and `reset()` cause."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of one breaker.

    Attributes:
        kind: What happened to the breaker.
        name: Name of the breaker.
        seconds: Remaining open time in seconds.
        planned: Length of the open period in seconds, without jitter and requested delay; the next
            period grows from it.
        error: Type name of the failure that opened the breaker; "" if there was none.
        origin: Name of the process that sent the message.
    """

    kind: Kind
    name: str
    origin: str
    seconds: float = 0.0
    planned: float = 0.0
    error: str = ""

    def to_json(self) -> str:
        """Return the message that other processes can parse."""
        return json.dumps({**asdict(self), "kind": self.kind.value}, separators=(",", ":"))


def parse_change(message: object) -> Change | None:
    """Return the change that a message describes; None if any part of it is invalid."""
    try:
        encoded = message.encode() if isinstance(message, str) else message
        if not isinstance(encoded, bytes) or len(encoded) > MAX_MESSAGE_BYTES:
            return None
        fields: object = json.loads(encoded)
    except (ValueError, RecursionError):
        return None
    return _parse_fields(cast("dict[str, object]", fields)) if isinstance(fields, dict) else None


def _parse_fields(fields: Mapping[str, object]) -> Change | None:
    kind, name, origin = fields.get("kind"), fields.get("name"), fields.get("origin")
    seconds, planned, error = fields.get("seconds"), fields.get("planned"), fields.get("error")
    if not (isinstance(kind, str) and kind in _KINDS and isinstance(name, str)):
        return None
    if not (
        is_safe_text(origin)
        and is_safe_text(error)
        and _is_duration(seconds)
        and _is_duration(planned)
    ):
        return None
    return Change(
        kind=_KINDS[kind],
        name=name,
        origin=origin,
        seconds=float(seconds),
        planned=float(planned),
        error=error,
    )


_KINDS = {kind.value: kind for kind in Kind}


def is_safe_text(text: object) -> TypeGuard[str]:
    """Return whether a text may be part of a message and of a log line."""
    if not isinstance(text, str) or len(text) > _MAX_TEXT_LENGTH:
        return False
    return text.isascii() and text.isprintable()


def _is_duration(seconds: object) -> TypeGuard[float]:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return False
    return 0 <= seconds <= _MAX_SECONDS


@final
class BreakerSync:
    """Finds the changes of one breaker to send, and applies those of other processes to it.

    Both are decided under the breaker's lock: a received change is marked as known to the others
    in the same locked section that applies it, so it cannot be sent.
    """

    __slots__ = (
        "_breaker",
        "_is_attached",
        "_max_seconds",
        "_name",
        "_on_change",
        "_operators",
        "_reset_count",
        "_shared",
        "_shared_until",
        "has_changed",
    )

    def __init__(
        self,
        name: str,
        breaker: CircuitBreaker,
        on_change: "Callable[[BreakerSync], object]",
        *,
        max_seconds: float,
        operators: bool,
    ) -> None:
        """Keep a breaker, and a function to call after each change; it must not block or raise."""
        self._name = name
        self._breaker = breaker
        self._max_seconds = max_seconds
        self._operators = operators
        self._on_change = on_change
        # Set before `on_change` is called; the owner clears it before it reads the breaker because
        # of that call. If two threads read False, both call `on_change`, which is harmless.
        self.has_changed: bool = False
        # Guarded by the breaker's lock: the last period that was sent or received, and the end that
        # was sent. Infinity if it was received: then it is never sent again.
        self._is_attached = False
        self._shared: Period | None = Closed()
        # The number of resets that other processes know; None if the last one has to be sent again.
        self._reset_count: int | None = 0
        self._shared_until = math.inf

    def attach(self) -> None:
        """Start finding changes; an earlier change is sent only if the breaker is open."""
        self._breaker._events.run_locked(self._attach_locked)

    def _attach_locked(self) -> None:
        events = self._breaker._events
        if not isinstance(self._breaker._period, Open):
            self._shared = self._breaker._period
        self._reset_count = self._breaker._reset_count
        self._is_attached = True
        events.watchers = (*events.watchers, self._notify)

    def detach(self) -> None:
        """Stop finding changes and applying those of other processes."""
        self._breaker._events.run_locked(self._detach_locked)

    def _detach_locked(self) -> None:
        events = self._breaker._events
        self._is_attached = False
        events.watchers = tuple(each for each in events.watchers if each != self._notify)

    def _notify(self) -> None:
        """Report a change of the breaker; called in the thread of a call or in a signal handler."""
        if not self.has_changed:
            self.has_changed = True
            self._on_change(self)

    # ---- sending

    def take_change(self, origin: str) -> Change | None:
        """Return the next change to send, and mark it as sent; None if there is none.

        A reset is sent even if the breaker has changed since, because nothing else ends an
        isolation in other processes.

        An open period is sent again if it was lengthened by more than `max_seconds / 30`. One
        without an end is sent again at that interval, since other processes keep it for at most
        `max_seconds`.
        """
        now = self._breaker._config.clock()
        return self._breaker._events.run_locked(self._take_change_locked, now, origin)

    def _take_change_locked(self, now: float, origin: str) -> Change | None:
        period = self._breaker._period
        if self._operators and self._reset_count != self._breaker._reset_count:
            self._reset_count = self._breaker._reset_count
            if isinstance(period, Closed):
                self._shared, self._shared_until = period, now
            return Change(kind=Kind.RESET, name=self._name, origin=origin)
        if isinstance(period, HalfOpen):
            return None
        if isinstance(period, Open):
            return self._take_opening_locked(period, now, origin)
        # Only a reset clears the number of openings.
        if period is self._shared or not self._breaker._opened_count:
            return None
        self._shared, self._shared_until = period, now
        return Change(kind=Kind.CLOSED, name=self._name, origin=origin)

    def _take_opening_locked(self, period: Open, now: float, origin: str) -> Change | None:
        if period.is_isolated and not self._operators:
            return None
        until = min(period.until, now + self._max_seconds)
        if until <= now - (_GRACE_PERIOD if period.is_isolated else 0.0):
            return None  # it ended before it could be sent
        if period is self._shared and until <= self._shared_until + self._max_seconds / 30:
            return None
        self._shared, self._shared_until = period, until
        error = (period.reason or "").partition(":")[0].partition(" ")[0]
        return Change(
            kind=Kind.ISOLATED if period.is_isolated else Kind.OPENED,
            name=self._name,
            origin=origin,
            seconds=max(0.0, until - now),
            planned=period.seconds,
            error=error if is_safe_text(error) else "Exception",
        )

    def mark_unsent(self, change: Change) -> None:
        """Have a change sent again, because sending it has failed."""
        self._breaker._events.run_locked(self._mark_change_unsent_locked, change.kind)

    def mark_opening_unsent(self) -> None:
        """Mark the present period as not sent if it is open, because others may have lost it."""
        self._breaker._events.run_locked(self._mark_unsent_locked, Open)

    def _mark_change_unsent_locked(self, kind: Kind) -> None:
        if kind is Kind.RESET:
            self._reset_count = None
        self._mark_unsent_locked(None)

    def _mark_unsent_locked(self, kind: type[Open] | None) -> None:
        is_own = self._shared_until < math.inf
        if is_own and (kind is None or isinstance(self._shared, kind)):
            self._shared = None

    # ---- receiving

    def apply(self, change: Change) -> None:
        """Apply a change of another process; the breaker stays open for at most `max_seconds`."""
        if change.kind in OPERATOR_KINDS and not self._operators:
            return
        breaker = self._breaker
        jitter = 1.0 if change.kind is Kind.ISOLATED else breaker._open_time.draw_jitter()
        seconds = min(change.seconds * jitter, self._max_seconds)
        now = breaker._config.clock()
        if breaker._events.run_locked(self._apply_locked, change, now, now + seconds):
            self._log(change)

    def _apply_locked(self, change: Change, now: float, until: float) -> bool:
        """Apply a change; return whether the period was replaced."""
        if not self._is_attached:
            return False
        period = self._breaker._present_locked(now)
        if change.kind is Kind.CLOSED:
            return self._half_open_locked(period)
        if change.kind is Kind.RESET:
            return self._reset_locked(period)
        return self._open_locked(period, change, until)

    def _open_locked(self, period: Period, change: Change, until: float) -> bool:
        is_isolated = change.kind is Kind.ISOLATED
        if isinstance(period, Open) and (period.is_isolated or not is_isolated):
            # An isolation is lengthened only by another isolation; no period is shortened.
            if period.is_isolated is is_isolated and period.until < until:
                period.until = until
                self._shared, self._shared_until = period, math.inf
            return False
        if is_isolated:  # it ends what an earlier reset has done
            self._reset_count = self._breaker._reset_count
        opened = Open(
            until,
            seconds=max(change.planned, self._breaker._open_time.reset_timeout),
            failures=period.failures,
            reason=None if is_isolated else f"{change.error} (reported by {change.origin})",
            is_isolated=is_isolated,
        )
        return self._replace_locked(period, opened)

    def _half_open_locked(self, period: Period) -> bool:
        # A closed or half-open breaker admits calls already. An isolation is not ended.
        if isinstance(period, Open) and not period.is_isolated:
            return self._replace_locked(period, HalfOpen(period))
        return False

    def _reset_locked(self, period: Period) -> bool:
        self._reset_count = self._breaker._reset_count
        has_changed = self._replace_locked(period, Closed())
        self._breaker._opened_count = 0
        self._breaker._last_failure = None
        return has_changed

    def _replace_locked(self, old: Period, new: Period) -> bool:
        # Marked as known before it becomes the present period, so that it is never sent.
        self._shared, self._shared_until = new, math.inf
        return self._breaker._transition_locked(old, new)

    def _log(self, change: Change) -> None:
        logger.info(
            "circuit %s was %s in process %s",
            self._breaker.name or UNNAMED,
            change.kind.value,
            change.origin,
            extra={
                "resilience_circuit": self._breaker.name,
                "resilience_change": change.kind.value,
                "resilience_origin": change.origin,
                "resilience_error": change.error or None,
            },
        )
