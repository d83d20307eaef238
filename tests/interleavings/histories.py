"""Histories of operations of several threads, and a check for an equivalent sequential order."""

from collections.abc import Sequence
from dataclasses import dataclass

from breaker_oracle import BreakerOracle, Change, Permit

DELAY = 25
"""Delay in seconds that a provider requests in the operation "delay"."""


@dataclass(frozen=True)
class Operation:
    """One operation of a thread: its name, its permit, its result, its beginning and its end.

    Permits have names of their own here; `begin` and `end` are steps of the schedule.
    """

    name: str
    permit: str
    result: object
    begin: int
    end: int


def is_explained(
    operations: Sequence[Operation],
    start: BreakerOracle,
    permits: dict[str, Permit],
    now: float,
    final: tuple[str, list[Change]],
) -> bool:
    """Return whether some sequential order of the operations has the same results.

    An operation that had ended before another began must come before it. The state at the end and
    the changes of state must be the same, too.
    """
    if not operations:
        return (start.visible_state(now), start.changes) == final
    first_end = min(operation.end for operation in operations)
    for operation in operations:
        if operation.begin > first_end:
            continue
        oracle, known = start.copy(), dict(permits)
        if does_the_same(oracle, known, operation, now):
            rest = [other for other in operations if other is not operation]
            if is_explained(rest, oracle, known, now, final):
                return True
    return False


def does_the_same(
    oracle: BreakerOracle, permits: dict[str, Permit], operation: Operation, now: float
) -> bool:
    """Apply an operation to the oracle, and return whether the result is the same."""
    if operation.name in {"acquire", "force"}:
        permit = oracle.acquire(now) if operation.name == "acquire" else oracle.force(now)
        if permit is not None:
            permits[operation.permit] = permit
        return operation.result == (permit is not None)
    if operation.name == "state":
        return operation.result == oracle.visible_state(now)
    if operation.name == "snapshot":
        return operation.result == oracle.snapshot(now)
    if operation.name == "succeed":
        oracle.record_success(permits[operation.permit])
    elif operation.name == "fail":
        oracle.record_failure(permits[operation.permit], now, ConnectionError)
    elif operation.name == "delay":
        oracle.record_failure(permits[operation.permit], now, ConnectionError, DELAY)
    elif operation.name == "release":
        oracle.release(permits[operation.permit])
    elif operation.name == "reset":
        oracle.reset()
    else:
        oracle.isolate()
    return True
