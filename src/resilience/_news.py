"""Messages between processes about changes of their breakers, and the effect of a message.

Nothing here uses a network. Every process has its own breakers, and sends their changes to others;
a change that a message has caused is never sent again.
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

LARGEST_MESSAGE = 1024
"""Limit of a message in bytes; every message of this library is shorter."""

_LARGEST_TEXT = 100
_LONGEST = 1e9  # seconds, as in the settings
_GRACE = 2.0  # seconds for which an isolation that has already ended is still sent


class Kind(Enum):
    """What has happened to a breaker."""

    OPENED = "opened"
    CLOSED = "closed"
    ISOLATED = "isolated"
    RESET = "reset"


OF_OPERATORS = frozenset({Kind.ISOLATED, Kind.RESET})
"""Changes that only `isolate()` and `reset()` cause."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """A change of one breaker.

    Attributes:
        kind: What has happened.
        name: Name of the breaker.
        seconds: Remaining open time in seconds.
        planned: Length of the open period without jitter and delay; the next one grows from it.
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
        """Return the message."""
        return json.dumps({**asdict(self), "kind": self.kind.value}, separators=(",", ":"))


def read_news(message: object) -> News | None:
    """Return the content of a message; None if any part of it is not valid."""
    try:
        encoded = message.encode() if isinstance(message, str) else message
        if not isinstance(encoded, bytes) or len(encoded) > LARGEST_MESSAGE:
            return None
        fields: object = json.loads(encoded)
    except (ValueError, RecursionError):
        return None
    return _check(cast("dict[str, object]", fields)) if isinstance(fields, dict) else None


def _check(fields: Mapping[str, object]) -> News | None:
    kind, name, origin = fields.get("kind"), fields.get("name"), fields.get("origin")
    seconds, planned, error = fields.get("seconds"), fields.get("planned"), fields.get("error")
    if not (isinstance(kind, str) and kind in _KINDS and isinstance(name, str)):
        return None
    if not (is_plain(origin) and is_plain(error) and _is_time(seconds) and _is_time(planned)):
        return None
    return News(
        kind=_KINDS[kind],
        name=name,
        origin=origin,
        seconds=float(seconds),
        planned=float(planned),
        error=error,
    )


_KINDS = {kind.value: kind for kind in Kind}


def is_plain(text: object) -> TypeGuard[str]:
    """Tell whether a text may be part of a message and of a log line."""
    if not isinstance(text, str) or len(text) > _LARGEST_TEXT:
        return False
    return text.isascii() and text.isprintable()


def _is_time(seconds: object) -> TypeGuard[float]:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return False
    return 0 <= seconds <= _LONGEST


@final
class Watch:
    """Sends the changes of one breaker, and applies the messages of other processes to it.

    Both are decided under the breaker's lock, so that a change caused by a message is marked before
    it could be sent.
    """

    __slots__ = (
        "_breaker",
        "_is_attached",
        "_known",
        "_known_until",
        "_max_seconds",
        "_name",
        "_on_change",
        "_operators",
        "has_changed",
    )

    def __init__(
        self,
        name: str,
        breaker: CircuitBreaker,
        on_change: "Callable[[Watch], object]",
        *,
        max_seconds: float,
        operators: bool,
    ) -> None:
        """Prepare to call a function when the breaker has changed; it must not block or raise."""
        self._name = name
        self._breaker = breaker
        self._max_seconds = max_seconds
        self._operators = operators
        self._on_change = on_change
        # Set before `on_change` is called, and cleared before the breaker is read. If two threads
        # find it clear, both call `on_change`, which does no harm.
        self.has_changed: bool = False
        # Guarded by the breaker's lock: the last period that other processes know, and until when
        # they know it; infinity if it need not be sent again, even if sending has failed.
        self._is_attached = False
        self._known: Period | None = Closed()
        self._known_until = math.inf

    def attach(self) -> None:
        """Begin to send changes; of earlier changes only an open period is sent."""
        self._breaker._events.run_locked(self._attach_locked)

    def _attach_locked(self) -> None:
        events = self._breaker._events
        if not isinstance(self._breaker._period, Open):
            self._known = self._breaker._period
        self._is_attached = True
        events.watchers = (*events.watchers, self._notify)

    def detach(self) -> None:
        """Stop sending changes and applying messages."""
        self._breaker._events.run_locked(self._detach_locked)

    def _detach_locked(self) -> None:
        events = self._breaker._events
        self._is_attached = False
        events.watchers = tuple(each for each in events.watchers if each != self._notify)

    def _notify(self) -> None:
        """Called after a change of the breaker, in the thread of a call or in a signal handler."""
        if not self.has_changed:
            self.has_changed = True
            self._on_change(self)

    # ---- sending

    def look(self, origin: str) -> News | None:
        """Return the change to send, and mark it as sent; None if there is none.

        An open period is sent again if it has become much longer. One without an end is sent again
        from time to time, since other processes keep it only for `max_seconds`.
        """
        self.has_changed = False
        now = self._breaker._config.clock()
        return self._breaker._events.run_locked(self._look_locked, now, origin)

    def _look_locked(self, now: float, origin: str) -> News | None:
        period = self._breaker._period
        if isinstance(period, HalfOpen):
            return None
        if isinstance(period, Open):
            return self._look_at_open_locked(period, now, origin)
        # Only a reset clears the number of openings.
        kind = Kind.CLOSED if self._breaker._opened_count else Kind.RESET
        if period is self._known or (kind is Kind.RESET and not self._operators):
            return None
        self._known, self._known_until = period, now
        return News(kind=kind, name=self._name, origin=origin)

    def _look_at_open_locked(self, period: Open, now: float, origin: str) -> News | None:
        if period.is_isolated and not self._operators:
            return None
        until = min(period.until, now + self._max_seconds)
        if until <= now - (_GRACE if period.is_isolated else 0.0):
            return None  # it has ended before it could be sent
        if period is self._known and until <= self._known_until + self._max_seconds / 30:
            return None
        self._known, self._known_until = period, until
        error = (period.reason or "").partition(":")[0].partition(" ")[0]
        return News(
            kind=Kind.ISOLATED if period.is_isolated else Kind.OPENED,
            name=self._name,
            origin=origin,
            seconds=max(0.0, until - now),
            planned=period.seconds,
            error=error if is_plain(error) else "Exception",
        )

    def forget(self) -> None:
        """Send the present period again, since sending it has failed."""
        self._breaker._events.run_locked(self._forget_locked, None)

    def forget_opening(self) -> None:
        """Send the present period again if it is open, since others may have lost it."""
        self._breaker._events.run_locked(self._forget_locked, Open)

    def _forget_locked(self, kind: type[Open] | None) -> None:
        is_own = self._known_until < math.inf
        if is_own and (kind is None or isinstance(self._known, kind)):
            self._known = None

    # ---- receiving

    def hear(self, news: News) -> None:
        """Apply the change of another process to this breaker, for at most `max_seconds`."""
        if news.kind in OF_OPERATORS and not self._operators:
            return
        breaker = self._breaker
        jitter = 1.0 if news.kind is Kind.ISOLATED else breaker._open_time.draw_jitter()
        seconds = min(news.seconds * jitter, self._max_seconds)
        now = breaker._config.clock()
        if breaker._events.run_locked(self._hear_locked, news, now, now + seconds):
            self._log(news)

    def _hear_locked(self, news: News, now: float, until: float) -> bool:
        """Return whether the state or its reason has changed."""
        if not self._is_attached:
            return False
        period = self._breaker._present_locked(now)
        if news.kind is Kind.CLOSED:
            return self._probe_locked(period)
        if news.kind is Kind.RESET:
            return self._reset_locked(period)
        return self._open_locked(period, news, until)

    def _open_locked(self, period: Period, news: News, until: float) -> bool:
        is_isolated = news.kind is Kind.ISOLATED
        if isinstance(period, Open) and (period.is_isolated or not is_isolated):
            # Only another isolation lengthens an isolation; no period is shortened.
            if period.is_isolated is is_isolated and period.until < until:
                period.until = until
                self._known, self._known_until = period, math.inf
            return False
        opened = Open(
            until,
            seconds=max(news.planned, self._breaker._open_time.reset_timeout),
            failures=period.failures,
            reason=None if is_isolated else f"{news.error} (news from {news.origin})",
            is_isolated=is_isolated,
        )
        return self._replace_locked(period, opened)

    def _probe_locked(self, period: Period) -> bool:
        # If the breaker is closed or half-open, it admits calls already. An isolation is not ended.
        if isinstance(period, Open) and not period.is_isolated:
            return self._replace_locked(period, HalfOpen(period))
        return False

    def _reset_locked(self, period: Period) -> bool:
        has_changed = self._replace_locked(period, Closed())
        self._breaker._opened_count = 0
        self._breaker._last_failure = None
        return has_changed

    def _replace_locked(self, old: Period, new: Period) -> bool:
        # Marked before it becomes the present period, so that it is never sent.
        self._known, self._known_until = new, math.inf
        return self._breaker._transition_locked(old, new)

    def _log(self, news: News) -> None:
        logger.info(
            "circuit %s was %s in %s",
            self._breaker.name or UNNAMED,
            news.kind.value,
            news.origin,
            extra={
                "resilience_circuit": self._breaker.name,
                "resilience_news": news.kind.value,
                "resilience_origin": news.origin,
                "resilience_error": news.error or None,
            },
        )
