"""Calls of a function of the providers, one after the other, until one of them succeeds."""

from collections.abc import Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TypeVar

from resilience._breaker.periods import Closed
from resilience._failover.attempts import Attempts, Call, Member, refuse_result

T = TypeVar("T")
R = TypeVar("R")

NOT_STARTED: frozenset[type] = frozenset({CoroutineType, AsyncGeneratorType})
"""Types of results whose work has not begun."""

NO_ANSWER: frozenset[type] = NOT_STARTED | {type(None)}
"""The same types and that of None, for methods that must return a value."""

NO_OBJECT: frozenset[type] = NO_ANSWER | {str, bytes, int, dict, list, tuple, GeneratorType}
"""The same types and built-in ones, for methods that must return a value of the contract."""


def execute(
    members: tuple[Member[T], ...],
    fn: Callable[[T], R],
    operation: str,
    refused: frozenset[type] = NOT_STARTED,
    name_result: Callable[[R, str], R] | None = None,
) -> R:
    """Call a function with one provider after the other, until it succeeds.

    Args:
        members: Providers of type T with their breakers.
        fn: Function of a provider.
        operation: Name of the operation, for errors and reports.
        refused: Types of results that are failures.
        name_result: Puts the provider's name into the result.

    Returns:
        The result of the function.

    Raises:
        AllFailedError: The function succeeded with no provider.
    """
    # The path of most calls, without objects that only the others need.
    member = members[0]
    # Without the lock, as in CircuitBreaker._try_acquire; inlined, since a call costs time.
    permit = member.breaker._period
    if type(permit) is Closed and member.has_fast_path:
        try:
            result = fn(member.provider)
            if type(result) in refused:
                refuse_result(member, operation, result)
        except BaseException as error:
            attempts = Attempts(members, operation)
            if not attempts.may_go_on(attempts.first_call(permit), error):
                raise
        else:
            if permit.failures:  # without the lock, as in CircuitBreaker._record_success
                member.breaker._record_success(permit)
            return result if name_result is None else name_result(result, member.name)
    else:
        attempts = Attempts(members, operation)
    result, name = _go_on(attempts, fn, refused)
    return result if name_result is None else name_result(result, name)


def execute_unrecorded(
    members: tuple[Member[T], ...],
    fn: Callable[[T], R],
    operation: str,
    refused: frozenset[type] = NOT_STARTED,
) -> R:
    """Do the same as `execute`, but record no outcome."""
    return _go_on(Attempts(members, operation, record=False), fn, refused)[0]


def _go_on(attempts: Attempts[T], fn: Callable[[T], R], refused: frozenset[type]) -> tuple[R, str]:
    """Call the function with the remaining members; return its result and the provider's name."""
    try:
        return attempts.first_success(
            lambda call: _attempt(call, fn, refused),
            # Not a nested function: its annotations would be evaluated each time.
            lambda member: _call_directly(member, fn, attempts.operation, refused),
        )
    finally:
        attempts.clear_failures()


def _call_directly(
    member: Member[T], fn: Callable[[T], R], operation: str, refused: frozenset[type]
) -> tuple[R, str]:
    """Make one attempt without worker and report."""
    result = fn(member.provider)
    if type(result) in refused:
        refuse_result(member, operation, result)
    return result, member.name


def _attempt(call: Call[T], fn: Callable[[T], R], refused: frozenset[type]) -> tuple[R, str]:
    """Make one attempt, and settle its call if it succeeds."""
    member = call.member
    if member.workers is None:
        result = call.run(fn, _drop)
    else:  # on another thread, which has a context of its own
        context = call.context
        result = call.run(lambda provider: context.run(fn, provider), _drop)
    if type(result) in refused:
        refuse_result(member, call.operation, result)
    call.succeed()
    return result, member.name


def _drop(_result: object) -> None:
    """Drop a result that was returned too late."""
