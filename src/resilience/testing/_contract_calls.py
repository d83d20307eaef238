"""Calls of a provider with a time limit, and the failures of a contract test."""

from collections.abc import Callable, Iterable
from itertools import islice
from threading import Event, Thread
from time import monotonic
from typing import Generic, NoReturn, TypeVar, final

from resilience.exceptions import UnsupportedRequestError

R = TypeVar("R")
T = TypeVar("T")

UNSUPPORTED = (UnsupportedRequestError, NotImplementedError)
"""Exceptions of a provider that works, but does not support a request."""

_MAX_ITEMS = 100_000  # of a stream or list that ends

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
    """A call that returns R, in its own daemon thread, which is abandoned if it hangs."""

    def __init__(self, operation: str, fn: Callable[[], R], limit: float, advice: str) -> None:
        """Start a call.

        Args:
            operation: Name of the call in messages.
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
        """Return the exception of the call; fail if it hangs, or if a check in it has failed."""
        if not self.wait():
            fail(f"{self._operation} takes longer than {self._limit:g} s: {self._advice}")
        if isinstance(self._error, AssertionError):
            raise self._error
        return self._error

    def result(self) -> R:
        """Return the result of the call; fail if it hangs or has raised."""
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
        """Fail unless the call has raised `UnsupportedRequestError` or `NotImplementedError`.

        Args:
            request: What the provider does not support.
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


def read_all(items: Iterable[T], operation: str) -> list[T]:
    """Read all items; fail if there are so many that they would fill the memory.

    Args:
        items: What the provider returned.
        operation: Where the items come from.

    Returns:
        The items.
    """
    found = list(islice(items, _MAX_ITEMS + 1))
    if len(found) > _MAX_ITEMS:
        fail(f"{operation} gave more than {_MAX_ITEMS:,} items: it must end")
    return found


def becomes_true(condition: Callable[[], bool], limit: float) -> bool:
    """Wait at most `limit` seconds until a condition is true; return whether it is."""
    deadline = monotonic() + limit
    pause = Event()
    while not condition():
        if monotonic() >= deadline:
            return False
        pause.wait(0.01)
    return True
