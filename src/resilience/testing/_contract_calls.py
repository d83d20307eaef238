"""Calls of a provider with a time limit, and the failures of a contract test."""

from collections.abc import Callable
from threading import Event, Thread
from time import monotonic
from typing import Generic, NoReturn, TypeVar, final

from resilience.exceptions import UnsupportedRequestError

R = TypeVar("R")

UNSUPPORTED = (UnsupportedRequestError, NotImplementedError)
"""What a provider raises that works, but cannot do what it is asked for."""

_BUGS = (AttributeError, ImportError, NameError, TypeError)


def fail(message: str, cause: BaseException | None = None) -> NoReturn:
    """Fail the test that is running."""
    raise AssertionError(message) from cause


def describe(error: BaseException) -> str:
    """Return type and message of an exception."""
    name, message = type(error).__name__, str(error)
    return f"{name}: {message}" if message else name


@final
class ProviderCall(Generic[R]):
    """A call that returns R, in a daemonic thread of its own, which is given up if it hangs."""

    def __init__(self, operation: str, fn: Callable[[], R], limit: float, advice: str) -> None:
        """Start a call.

        Args:
            operation: What messages call it.
            fn: Function that makes the call.
            limit: Seconds to wait for it.
            advice: What to do if it hangs.
        """
        self._operation = operation
        self._fn = fn
        self._limit = limit
        self._advice = advice
        self._results: list[R] = []
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name=f"contract test of {operation}", daemon=True)
        self._thread.start()

    def wait(self) -> bool:
        """Wait for the end of the call, and return whether it has ended."""
        self._thread.join(self._limit)
        return not self._thread.is_alive()

    def error(self) -> BaseException | None:
        """Return what the call raised; fail if it hangs, or if a check in it has failed."""
        if not self.wait():
            fail(f"{self._operation} takes longer than {self._limit:g} s: {self._advice}")
        if isinstance(self._error, AssertionError):
            raise self._error
        return self._error

    def result(self) -> R:
        """Return what the call returned; fail if it hangs or has raised."""
        error = self.error()
        if error is not None:
            fail(
                f"{self._operation} raised {describe(error)}. The provider must be able to do this:"
                " correct it, or what the test class gives it",
                error,
            )
        return self._results[0]

    def check_failed(self, circumstances: str) -> None:
        """Fail unless the call has raised an exception that counts as a failure.

        Args:
            circumstances: Why it must raise.
        """
        error = self.error()
        if error is None:
            fail(
                f"{self._operation} did not raise, although {circumstances}: raise instead, so that"
                " the group can fail over"
            )
        raised = f"{self._operation} raised {describe(error)} when {circumstances}"
        if isinstance(error, UNSUPPORTED):
            fail(f"{raised}, which is never counted as a failure: raise another exception", error)
        if isinstance(error, _BUGS):
            fail(f"{raised}, which looks like a bug of the provider: let the client raise", error)
        if not isinstance(error, Exception):
            fail(f"{raised}, which is no Exception, so the group does not fail over", error)

    def check_unsupported(self, request: str) -> None:
        """Fail unless the call has raised that the provider cannot serve a request.

        Args:
            request: What the provider cannot do.
        """
        error = self.error()
        wanted = "raise UnsupportedRequestError, so that another provider is tried"
        if error is None:
            fail(f"{self._operation} ignored {request}, which it does not support: {wanted}")
        if not isinstance(error, UNSUPPORTED):
            fail(
                f"{self._operation} raised {describe(error)} for {request}, which it does not"
                f" support: {wanted} and no failure is counted",
                error,
            )

    def _run(self) -> None:
        try:
            self._results.append(self._fn())
        except BaseException as error:
            self._error = error


def becomes_true(condition: Callable[[], bool], limit: float) -> bool:
    """Wait until a condition is true, at most so many seconds, and return whether it is."""
    deadline = monotonic() + limit
    pause = Event()
    while not condition():
        if monotonic() >= deadline:
            return False
        pause.wait(0.01)
    return True
