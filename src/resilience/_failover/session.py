"""Sessions: long-lived handles that are opened with failover, and are one call each."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import Context
from threading import Lock
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast, final

from typing_extensions import override

from resilience._failover.attempts import Attempts, Call, refuse_result
from resilience._failover.execute import NO_ANSWER, NOT_STARTED
from resilience._failover.source import ProviderStream, is_iterable
from resilience._log import log_suppressed
from resilience._settings import Uncopyable

T = TypeVar("T")
H = TypeVar("H")
R = TypeVar("R")
S = TypeVar("S")


@final
class Opened(Generic[H]):
    """A handle H that a provider has opened: closed exactly once, if it can be closed.

    It is opened and closed in one context, on whichever threads.
    """

    __slots__ = ("_closing", "_context", "_handles")

    def __init__(self, context: Context) -> None:
        """Prepare to open a handle in a context."""
        self._context = context
        self._closing = Lock()  # taken once, by the thread that closes
        self._handles: list[H] = []

    def __del__(self) -> None:
        """Close a handle whose session was never made, since its caller was interrupted."""
        if hasattr(self, "_handles"):  # if missing, the making of this object was interrupted
            self.close_quietly()

    def open(self, open_handle: Callable[[T], H], provider: T) -> H:
        """Open the handle."""
        # In C alone: an exception that is thrown into this thread cannot strike between the return
        # of the function and the moment when the list has the handle.
        run = cast("Callable[[Callable[[T], H], T], H]", self._context.run)
        self._handles.extend(map(run, (open_handle,), (provider,)))
        return self.handle

    @property
    def handle(self) -> H:
        """What the provider has returned."""
        return self._handles[0]

    def refuse(self, call: Call[Any]) -> None:
        """Close what is no handle, and raise."""
        self._context.run(refuse_result, call.member, call.operation, self._handles.pop())

    def close(self) -> None:
        """Close the handle, if it has been opened and not yet closed."""
        if self._closing.acquire(blocking=False):
            for handle in self._handles:
                close = getattr(handle, "close", None)
                if callable(close):
                    self._context.run(close)

    def close_quietly(self) -> None:
        """Close the handle, and log what that raises."""
        try:
            self.close()
        except Exception as raised:
            log_suppressed("close() of a provider's session", raised)


class Session(Uncopyable, Generic[H]):
    """A handle H of the first provider that could open one; its life is one call to the breaker.

    The first exception that a function called by `execute` or `stream` raises settles the call: it
    has failed, or is neither failure nor success if the exception does not count. The call has
    succeeded if the session is closed before. Dropping a session closes the handle, and is neither;
    so is a `with` block that is left by an exception of the caller's own.

    The handle is opened and closed in one `contextvars` context, whichever threads do it; each
    iterator of `stream` is advanced and closed in a copy of that.

    May be used by as many threads as the provider's own handle. Cannot be copied.
    """

    def __init__(self, call: Call[Any], opened: Opened[H]) -> None:
        """Settle the call of a handle that has been opened."""
        self._opened = opened
        self._call = call

    @override
    def __repr__(self) -> str:
        state = "closed" if self._call.is_settled else "open"
        return f"<{type(self).__name__} provider={self.provider!r} {state}>"

    @property
    def handle(self) -> H:
        """What the provider has opened; what is done with it directly settles nothing."""
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
            What the function returned.

        Raises:
            Exception: What the function raised, unchanged.
        """
        try:
            result = fn(self.handle)
            if type(result) in NOT_STARTED:
                refuse_result(self._call.member, "execute", result)
        except BaseException as error:
            self._settle(error)
            raise
        return result

    def stream(self, fn: Callable[[H], Iterable[R]]) -> Iterator[R]:
        """Call a function of the handle that returns an iterable; an exception settles the call.

        Args:
            fn: Function of the handle that returns an iterable of items R.

        Returns:
            The items as they come. Closing or dropping the iterator closes the iterable.

        Raises:
            Exception: What the function raised, unchanged; iterating may raise, too.
        """
        return self._stream(fn, "stream")

    def close(self) -> None:
        """Settle the call as a success, if nothing has failed, and close the handle.

        Closing again does nothing.
        """
        try:
            self._call.succeed()
        finally:
            self._opened.close()

    def __enter__(self) -> Self:
        """Return the session, which the end of the `with` statement closes."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session; an exception of the caller's own is neither success nor failure."""
        if exc is None:
            self.close()
        else:
            self._give_up()

    def __del__(self) -> None:
        """Close a session that was never closed, as neither a success nor a failure."""
        if hasattr(self, "_call"):  # if missing, its making was interrupted
            self._give_up()

    def _give_up(self) -> None:
        try:
            self._call.cancel()
        finally:
            self._opened.close_quietly()

    def _stream(self, fn: Callable[[H], Iterable[R]], method: str) -> Iterator[R]:
        member, context = self._call.member, self._call.context.copy()
        try:
            iterable = context.run(fn, self.handle)
            if not is_iterable(iterable):
                context.run(refuse_result, member, method, iterable)
        except BaseException as error:
            self._settle(error)
            raise
        return self._read(ProviderStream(iterable, context, member.config.interrupt_on))

    def _read(self, stream: ProviderStream[R]) -> Generator[R, None, None]:
        try:
            stream.read_first(_is_nothing, _ignore)
            yield from stream.first
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
    make: Callable[[Call[Any], Opened[H]], S],
    required: tuple[str, ...] = (),
) -> S:
    """Open a handle with one provider after the other, and make a session S of it.

    Args:
        attempts: Attempts with providers T.
        open_handle: Function of a provider that opens a handle.
        make: Makes the session.
        required: Methods that the handle must have.

    Returns:
        The session.

    Raises:
        AllFailedError: No provider opened a handle.
    """
    session = attempts.first_success(lambda call: make(call, _open(call, open_handle, required)))
    attempts.clear_failures()
    return session


def _open(call: Call[T], open_handle: Callable[[T], H], required: tuple[str, ...]) -> Opened[H]:
    opened: Opened[H] = Opened(call.context)  # of this thread; what follows may run on a worker

    def work(provider: T) -> "Opened[H]":
        handle = opened.open(open_handle, provider)
        if type(handle) in NO_ANSWER or not all(hasattr(handle, name) for name in required):
            opened.refuse(call)
        return opened

    return call.run(work, lambda late: late.close_quietly())


def _is_nothing(_item: object) -> bool:
    return False


def _ignore() -> None:
    pass
