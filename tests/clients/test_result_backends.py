"""Errors that a task queue's result backend has stored as JSON."""

import json

import pytest

from resilience import (
    AllFailedError,
    AttemptTimeoutError,
    CircuitOpenError,
    EmptyStreamError,
    ResilienceError,
)

celery = pytest.importorskip("celery")
base = pytest.importorskip("celery.backends.base")


@pytest.mark.parametrize(
    "error",
    [
        CircuitOpenError("north", 1.5),
        CircuitOpenError("north", 1.5, "OSError: refused"),
        CircuitOpenError("north"),
        AllFailedError({"north": CircuitOpenError("north", 1.5), "south": OSError("refused")}),
        AttemptTimeoutError("north", 2.0),
        AttemptTimeoutError(provider="north", timeout=2.0),
        EmptyStreamError(),
        ResilienceError("the stream was closed while it was being opened"),
    ],
)
def test_celery(error: ResilienceError) -> None:
    """An error read from celery's result backend has the same class and message."""
    backend = base.Backend(app=celery.Celery(set_as_current=False))

    stored = json.dumps(backend.prepare_exception(error, "json"))
    again = backend.exception_to_python(json.loads(stored))

    assert type(again) is type(error)
    assert str(again) == str(error)
