"""Errors of the library can be copied, pickled and rebuilt from their arguments."""

import copy
import json
import pickle

import pytest

from resilience import (
    AllFailedError,
    AttemptTimeoutError,
    CircuitOpenError,
    EmptyStreamError,
    ResilienceError,
)


class NotAnErrorError(Exception):
    """An exception that is unpickled as a string, and has no representation."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Make the pickle a string."""
        return str, ("changed",)

    def __repr__(self) -> str:
        """Raise."""
        raise RuntimeError


class UnreadableError(Exception):
    """An exception whose text cannot be read, and which cannot be pickled."""

    def __init__(self, *, needed: int) -> None:
        """Take an argument that `pickle` does not pass."""
        super().__init__()
        self.needed = needed

    def __str__(self) -> str:
        """Fail."""
        raise ZeroDivisionError


all_errors = pytest.mark.parametrize(
    "error",
    [
        CircuitOpenError("name", 1.5),
        CircuitOpenError("name"),
        CircuitOpenError("name", 1.5, "OSError: refused"),
        AttemptTimeoutError("name", 0.5, 64),
        AttemptTimeoutError(provider="name", timeout=0.5),
        AttemptTimeoutError("name", 0.5),
        AllFailedError({"a": CircuitOpenError("a", 2.0), "b": ValueError("b")}),
        AllFailedError({}),
        AllFailedError("all providers failed: a: ValueError: a"),
        EmptyStreamError(),
        EmptyStreamError(message="no chunk came"),
        ResilienceError("message"),
    ],
)


@all_errors
def test_errors_survive_pickle_and_copy(error: ResilienceError) -> None:
    """A copy of an error has its type, text and data."""
    error.add_note("a note")

    for again in (
        pickle.loads(pickle.dumps(error)),  # noqa: S301
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__notes__ == ["a note"]
        for field in ("name", "retry_after", "reason", "provider", "timeout", "hanging"):
            assert getattr(again, field, None) == getattr(error, field, None)


@all_errors
def test_errors_are_rebuilt_from_their_arguments(error: ResilienceError) -> None:
    """Every error can be rebuilt from its `args` after these were stored as JSON."""
    again = type(error)(*json.loads(json.dumps(error.args)))

    assert str(again) == str(error)
    assert again.args == error.args
    assert isinstance(error, AllFailedError) or again.__reduce__()[:2] == error.__reduce__()[:2]


def test_an_error_rebuilt_from_its_message() -> None:
    """An `AllFailedError` rebuilt from its message has that message and no failures."""
    error = AllFailedError({"a": CircuitOpenError("a", 2.0), "b": ValueError("b")})

    again = AllFailedError(*error.args)

    assert str(again) == str(error)
    assert dict(again.failures) == {}
    assert again.retry_after is None
    assert again.__cause__ is None


def test_the_cause_survives_too() -> None:
    """The last failure is the cause, also of a copy."""
    error = AllFailedError({"a": ValueError("a"), "b": OSError("b")})

    again = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert error.__cause__ is error.failures["b"]
    assert repr(again.__cause__) == repr(again.failures["b"]) == "OSError('b')"
    assert AllFailedError({}).__cause__ is None


@pytest.mark.parametrize("failure", ["unreadable", "no error"])
def test_failures_that_do_not_pickle(failure: str) -> None:
    """A pickle has their type and text instead; a copy in the same process has the exceptions."""
    odd = UnreadableError(needed=1) if failure == "unreadable" else NotAnErrorError()
    error = AllFailedError({"a": odd})

    again = pickle.loads(pickle.dumps(error))  # noqa: S301

    assert type(again.failures["a"]) is ResilienceError
    assert type(odd).__name__ in str(again)
    assert copy.copy(error).failures["a"] is odd
    assert type(odd).__name__ in repr(error)


def test_failures_are_read_only() -> None:
    """`failures` cannot be changed, and is a copy of the argument."""
    failures: dict[str, Exception] = {"a": ValueError()}
    error = AllFailedError(failures)

    failures.clear()

    assert list(error.failures) == ["a"]
    with pytest.raises(TypeError):
        error.failures["b"] = ValueError()  # type: ignore[index]
