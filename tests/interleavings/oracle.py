"""A circuit breaker that does one thing after the other, written from its description alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_FAILURES = 2
HALF_OPEN_MAX = 2
RESET_TIMEOUT = 10.0


@dataclass
class Oracle:
    """The state of a breaker, as far as its users can tell."""

    state: str = "closed"
    period: int = 0
    failures: int = 0
    opened: float = 0.0
    isolated: bool = False
    running: int = 0
    succeeded: int = 0
    admitted: float = 0.0
    events: list[tuple[str, str]] = field(default_factory=list)

    def seen(self, now: float) -> str:
        """Return the state that a reader sees."""
        return "half-open" if self.state == "open" and self._is_due(now) else self.state

    def acquire(self, now: float) -> int | None:
        """Return the period that admits a call, None if none does."""
        if self.state == "open" and self._is_due(now):
            self._move("half-open")
        if self.state == "closed":
            return self.period
        if self.state == "open":
            return None
        all_taken = self.running + self.succeeded >= HALF_OPEN_MAX
        if all_taken and now - self.admitted < RESET_TIMEOUT:
            return None
        self.running += 1
        self.admitted = now
        return self.period

    def succeed(self, period: int) -> None:
        """Hear of a success."""
        if period != self.period:
            return
        self.failures = 0
        if self.state == "half-open":
            self.running -= 1
            self.succeeded += 1
            if self.succeeded >= HALF_OPEN_MAX:
                self._move("closed")

    def fail(self, period: int, now: float) -> None:
        """Hear of a failure."""
        if period != self.period:
            return
        self.failures += 1
        if self.state == "half-open" or self.failures >= MAX_FAILURES:
            self._move("open")
            self.opened = now

    def release(self, period: int) -> None:
        """Hear of a call that was neither."""
        if period == self.period and self.state == "half-open":
            self.running -= 1

    def reset(self) -> None:
        """Close and forget."""
        self._move("closed")

    def isolate(self) -> None:
        """Open until reset."""
        self._move("open")
        self.isolated = True

    def _is_due(self, now: float) -> bool:
        return not self.isolated and now - self.opened >= RESET_TIMEOUT

    def _move(self, state: str) -> None:
        if state != self.state:
            self.events.append((self.state, state))
        self.state = state
        self.period += 1
        self.failures = self.running = self.succeeded = 0
        self.isolated = False


@dataclass(frozen=True)
class Operation:
    """One operation that a thread has done: what, on which permit, with what result, and when.

    Permits are named by whoever records; `begin` and `end` are steps of the schedule.
    """

    name: str
    permit: str
    result: object
    begin: int
    end: int


def is_explained(
    operations: Sequence[Operation],
    start: Oracle,
    permits: dict[str, int],
    now: float,
    final: tuple[str, list[tuple[str, str]]],
) -> bool:
    """Tell whether some order, in which the oracle does the same, has the same results.

    An operation that had ended before another began must come before it. The state at the end and
    the events must be the same, too.
    """
    if not operations:
        return (start.seen(now), start.events) == final
    first_end = min(operation.end for operation in operations)
    for operation in operations:
        if operation.begin > first_end:
            continue
        oracle = Oracle(**{**vars(start), "events": list(start.events)})
        known = dict(permits)
        if does_the_same(oracle, known, operation, now):
            rest = [other for other in operations if other is not operation]
            if is_explained(rest, oracle, known, now, final):
                return True
    return False


def does_the_same(
    oracle: Oracle, permits: dict[str, int], operation: Operation, now: float
) -> bool:
    """Do an operation with the oracle, and tell whether it had the same result."""
    if operation.name == "acquire":
        period = oracle.acquire(now)
        if period is not None:
            permits[operation.permit] = period
        return operation.result == (period is not None)
    if operation.name == "state":
        return operation.result == oracle.seen(now)
    if operation.name == "succeed":
        oracle.succeed(permits[operation.permit])
    elif operation.name == "fail":
        oracle.fail(permits[operation.permit], now)
    elif operation.name == "release":
        oracle.release(permits[operation.permit])
    elif operation.name == "reset":
        oracle.reset()
    else:
        oracle.isolate()
    return True
