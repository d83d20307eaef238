"""The stream that a provider has returned."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import Context
from itertools import repeat
from threading import Lock
from typing import Generic, Self, TypeVar, cast, final

from resilience._log import log_suppressed

R = TypeVar("R")


@final
class ProviderStream(Generic[R]):
    """An iterable of items R from a provider: started at most once, closed exactly once.

    It is advanced and closed in one context, on whichever threads. A generator that sets a context
    variable at its beginning could not reset it at its end in another context.
    """

    __slots__ = (
        "_context",
        "_in_use",
        "_interrupt_on",
        "_is_closing",
        "_iterable",
        "_iterator",
        "_was_closed",
        "first",
    )

    def __init__(
        self,
        iterable: Iterable[R],
        context: Context,
        interrupt_on: tuple[type[BaseException], ...] = (),
    ) -> None:
        """Take over what a provider has returned, and the context in which it did so.

        Interruptions of the caller are raised by `close()`; what else is raised there is logged.
        """
        self._interrupt_on = interrupt_on
        self._iterable = iterable
        self._context = context
        self._iterator: Iterator[R] = iter(())
        self.first: tuple[R, ...] = ()
        self._is_closing = False
        self._was_closed = False
        # Held by the thread that reads the first item, and for ever by the one that closes.
        self._in_use = Lock()

    def __del__(self) -> None:
        """Close a stream that has not been closed, also if whoever used it was interrupted."""
        if not getattr(self, "_was_closed", True):  # if missing, its making was interrupted
            with suppress(RuntimeError):  # a thread of the parent of this process is still reading
                self._context.run(self._close)

    def read_first(self, is_empty: Callable[[R], bool], on_empty: Callable[[], None]) -> Self:
        """Read the first item that is not empty, if there is one, unless the stream is closed.

        Args:
            is_empty: Tells whether an item is empty.
            on_empty: Called for each empty item.

        Returns:
            The stream itself.
        """
        if not self._in_use.acquire(blocking=False):
            return self
        try:
            self.first = self._context.run(self._read_first, is_empty, on_empty)
        except BaseException:
            self._is_closing = True
            raise
        finally:
            # First release, then check. The thread that closes first sets the flag, and then checks
            # whether the stream is in use. So one of the two sees the other.
            self._in_use.release()
            if self._is_closing:
                self.close()
        return self

    def _read_first(
        self, is_empty: Callable[[R], bool], on_empty: Callable[[], None]
    ) -> tuple[R, ...]:
        self._iterator = iter(self._iterable)
        for item in self._iterator:
            if not is_empty(item):
                return (item,)
            on_empty()
        return ()

    def rest(self) -> Iterator[R]:
        """Return an iterator over the items after the first."""
        if not self.first:  # at its end, and not to be asked again
            return iter(())
        # In C alone: it ends when `next` raises StopIteration.
        read = cast("Callable[[object, Iterator[R]], R]", self._context.run)
        return map(read, repeat(next), repeat(self._iterator))

    def close(self) -> None:
        """Close the provider's iterator and its iterable, as far as they can be closed.

        A thread that is reading the first item closes them instead, when it has finished.
        """
        self._is_closing = True
        if not self._in_use.acquire(blocking=False):
            return
        try:
            self._context.run(self._close)
        except RuntimeError:  # the context is entered: a thread is still reading, and closes later
            self._in_use.release()

    def _close(self) -> None:
        self._was_closed = True
        try:
            close(self._iterator, self._interrupt_on)
        finally:
            if self._iterable is not self._iterator:
                close(self._iterable, self._interrupt_on)


def is_iterable(value: object) -> bool:
    """Tell whether a value can be iterated over, without starting it."""
    return hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")


def close(returned: object, interrupt_on: tuple[type[BaseException], ...]) -> None:
    """Close what a provider has returned, if it can be closed.

    What that raises is logged, except for interruptions of the caller.
    """
    try:
        method = getattr(returned, "close", None)
        if callable(method):
            method()
    except interrupt_on:
        raise
    except Exception as raised:
        log_suppressed("close() of a provider's stream", raised)
