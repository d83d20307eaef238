"""Checks that what a provider returns has the types of its contract."""

import inspect
import reprlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import is_dataclass
from types import UnionType
from typing import NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from resilience.testing._contract_calls import fail

V = TypeVar("V")


def check_value(value: object, kind: type[V], operation: str) -> V:
    """Fail unless a value is an instance of a class, and each of its fields has its type.

    Args:
        value: What the provider returned.
        kind: The class that the contract names.
        operation: Where the value comes from.

    Returns:
        The value.
    """
    if not isinstance(value, kind):
        fail_kind(value, _spell(kind), operation)
    _check_fields(value, kind, operation)
    return value


def check_iterable(value: object, items: str, operation: str) -> None:
    """Fail unless a value can be iterated over, and is not a string or bytes.

    Args:
        value: What the provider returned.
        items: What it must contain.
        operation: Where the value comes from.
    """
    is_iterable = hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")
    if isinstance(value, (str, bytes)) or not is_iterable:
        fail_kind(value, f"an iterable of {items}", operation)


def fail_kind(value: object, wanted: str, operation: str) -> NoReturn:
    """Fail because a value does not match the contract.

    Args:
        value: What the provider returned.
        wanted: What it must be.
        operation: Where the value comes from.
    """
    message = f"{operation} must give {wanted}, got {type(value).__name__}"
    if inspect.iscoroutine(value):
        value.close()  # else it warns that it was never awaited
    if isinstance(value, (Awaitable, AsyncIterator)):
        message += ": the contract is synchronous, so use the client's synchronous interface"
    elif value is None:
        message += ": if there is nothing to return, raise instead, so that the group can fail over"
    fail(message)


def _check_fields(value: object, kind: type[object], operation: str) -> None:
    hints: dict[str, object] = get_type_hints(kind) if is_dataclass(kind) else {}
    for name, hint in hints.items():
        field: object = getattr(value, name)
        if not _fits(field, hint):
            found = f"got {reprlib.repr(field)} ({type(field).__name__})"
            fail(f"{operation}: {kind.__name__}.{name} must be {_spell(hint)}, {found}")
        for inner in (hint, *get_args(hint)):
            for part in _parts(field):
                if isinstance(inner, type) and isinstance(part, inner):
                    _check_fields(part, inner, operation)


def _parts(field: object) -> Sequence[object]:
    return cast("tuple[object, ...]", field) if isinstance(field, tuple) else (field,)


def _fits(value: object, hint: object) -> bool:
    """Return whether a value matches a type hint of the contracts."""
    origin, members, parts = get_origin(hint), get_args(hint), _parts(value)
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in members)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(part, members[0]) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    kind = origin or hint
    return isinstance(kind, type) and isinstance(value, kind)


def _spell(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
