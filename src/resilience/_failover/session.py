"""Sessions: long-lived handles that are opened with failover; each session is one call."""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from threading import Lock
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, final

from typing_extensions import override

from resilience import _settings
from resilience._failover.attempts import Attempts, Call, refuse_result
from resilience._failover.execute import NO_ANSWER, NOT_STARTED
from resilience._failover.source import ProviderStream, call_and_hold, is_iterable
from resilience._log import log_suppressed

T = TypeVar("T")
H = TypeVar("H")
R = TypeVar("R")
S = TypeVar("S")


@final
class Opened(Generic[H]):
    """A handle H that a provider has opened: closed exactly once, if it can be closed.

    It is opened and closed in one context, whichever threads do it.
    """

    __slots__ = ("_closing", "_context", "_handles", "call", "was_closed")

    def __init__(self, call: Call[Any]) -> None:
        """Prepare to open a handle in the context of a call."""
        self.call: Call[Any] = call
        # Copied here, in the caller's thread: the handle may be opened on a worker thread.
        self._context = call.context
        self.was_closed: bool = False
        self._closing = Lock()  # taken by the thread that closes
        self._handles: defaultdict[int, H] = defaultdict()

    def __del__(self) -> None:
        """Close a handle for which no session was made, because the caller was interrupted."""
        if hasattr(self, "_handles"):  # if missing, the constructor was interrupted
            self.close_quietly()

    def open(self, open_handle: Callable[[T], H], provider: T, required: tuple[str, ...]) -> None:
        """Open the handle; raise if the provider returned something else."""
        handle = call_and_hold(self._handles, self._context, open_handle, provider)
        if type(handle) in NO_ANSWER or not all(hasattr(handle, name) for name in required):
            call, wrong = self.call, self._handles.pop(0)
            self._context.run(refuse_result, call.member, call.operation, wrong)

    @property
    def handle(self) -> H:
        """The object that the provider returned."""
        return self._handles[0]

    def close(self) -> None:
        """Close the handle, if it has been opened and not yet closed."""
        if not self._closing.acquire(blocking=False):
            return
        try:
            self._context.run(self._close)
        finally:
            if not self.was_closed:  # interrupted before the handle was closed
                self._closing.release()

    def _close(self) -> None:
        for handle in self._handles.values():
            close = getattr(handle, "close", None)
            self.was_closed = True
            if callable(close):
                _settings.refuse_coroutine(f"close() of {self.call.member.name!r}", close())

    def close_quietly(self) -> None:
        """Close the handle; an exception is logged."""
        try:
            self.close()
        except self.call.member.config.interrupt_on:
            raise
        except Exception as raised:
            log_suppressed("close() of a provider's session", raised)


class Session(_settings.Uncopyable, Generic[H]):
    """A handle H of the first provider that could open one; a session is one call of the breaker.

    The first exception that a function called by `execute` or `stream` raises settles the call: it
    has failed, or is ignored if the exception does not count. The call has succeeded if the session
    is closed before that. If the session is dropped, or an exception of the caller's own leaves the
    `with` block, the call is cancelled, and the handle is closed.

    The handle is opened and closed in one `contextvars` context, whichever threads do it; each
    iterator of `stream` is advanced and closed in a copy of this context.

    May be used by as many threads as the provider's own handle. Cannot be copied.
    """

    def __init__(self, opened: Opened[H]) -> None:
        """Settle the call of a handle that has been opened."""
        self._opened = opened
        self._call = opened.call

    @override
    def __repr__(self) -> str:
        state = "closed" if self._opened.was_closed else "open"
        return f"<{type(self).__name__} provider={self.provider!r} {state}>"

    @property
    def handle(self) -> H:
        """The object that the provider opened; exceptions of its methods are not recorded."""
        return self._opened.handle

    @property
    def provider(self) -> str:
        """Name of the provider that serves the session."""
        return self._call.member.name

    def execute(self, fn: Callable[[H], R]) -> R:
        """Call a function of the handle; an exception settles the call.

        Args:
            fn: Synchronous function of the handle.

        Returns:
            The result of the function.

        Raises:
            Exception: The function raised; its exception is raised unchanged.
        """
        return self._execute(fn, "execute")

    def stream(self, fn: Callable[[H], Iterable[R]]) -> Iterator[R]:
        """Call a function of the handle that returns an iterable; an exception settles the call.

        Args:
            fn: Function of the handle that returns an iterable of items R.

        Returns:
            The items as they arrive. Closing or dropping the iterator closes the iterable.

        Raises:
            Exception: The function raised; its exception is raised unchanged. Iterating may raise
                too.
        """
        return self._stream(fn, "stream")

    def close(self) -> None:
        """Record a success, unless the call is already settled, and close the handle.

        Closing again does nothing.
        """
        try:
            self._call.succeed()
        finally:
            self._opened.close()

    def __enter__(self) -> Self:
        """Return the session; the end of the `with` statement closes it."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session; the caller's own exception is neither a success nor a failure."""
        if exc is None:
            self.close()
        else:
            self._cancel()

    def __del__(self) -> None:
        """Close a session that was never closed, as neither a success nor a failure."""
        if hasattr(self, "_call"):  # if missing, the constructor was interrupted
            self._cancel()

    def _cancel(self) -> None:
        try:
            self._call.cancel()
        finally:
            self._opened.close_quietly()

    def _execute(self, fn: Callable[[H], R], method: str) -> R:
        try:
            result = fn(self.handle)
            if type(result) in NOT_STARTED:
                refuse_result(self._call.member, method, result)
        except BaseException as error:
            self._settle(error)
            raise
        return result

    def _stream(self, fn: Callable[[H], Iterable[R]], method: str) -> Iterator[R]:
        member, context = self._call.member, self._call.context.copy()
        stream: ProviderStream[R] = ProviderStream(context, member.config.interrupt_on)
        try:
            if not is_iterable(stream.open(fn, self.handle)):
                context.run(refuse_result, member, method, stream.release())
        except BaseException as error:
            self._settle(error)
            raise
        return self._read(stream)

    def _read(self, stream: ProviderStream[R]) -> Generator[R, None, None]:
        try:
            yield from stream.read_first().first
            yield from stream.rest()
        except BaseException as error:
            self._settle(error)
            raise
        finally:
            stream.close()

    def _settle(self, error: BaseException) -> None:
        if self._call.is_outcome(error):  # an interruption does not settle the call
            self._call.fail(error)


def open_session(
    attempts: Attempts[T],
    open_handle: Callable[[T], H],
    make: Callable[[Opened[H]], S],
    required: tuple[str, ...] = (),
) -> S:
    """Open a handle with one provider after the other, and return a session S for it.

    Args:
        attempts: Attempts with providers T.
        open_handle: Function of a provider that opens a handle.
        make: Function of the opened handle that returns the session.
        required: Methods that the handle must have.

    Returns:
        The session.

    Raises:
        AllFailedError: No provider opened a handle.
    """
    try:
        return attempts.first_success(lambda call: make(_open(call, open_handle, required)))
    finally:
        attempts.clear_failures()


def _open(call: Call[T], open_handle: Callable[[T], H], required: tuple[str, ...]) -> Opened[H]:
    opened: Opened[H] = Opened(call)

    def work(provider: T) -> "Opened[H]":
        opened.open(open_handle, provider, required)
        return opened

    return call.run(work, lambda late: late.close_quietly())
