"""What a provider returned as a stream."""

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from itertools import dropwhile, islice
from threading import Lock
from typing import Generic, Self, TypeVar, final

from resilience._log import log_swallowed

R = TypeVar("R")


@final
class Source(Generic[R]):
    """An iterable of items R from a provider: started at most once, closed exactly once.

    If it was begun in a context of its own, it is read and closed in that too.
    """

    __slots__ = ("_context", "_iterable", "_iterator", "_once", "first")

    def __init__(self, iterable: Iterable[R], context: Context | None = None) -> None:
        """Take charge of what a provider returned."""
        self._iterable = iterable
        self._context = context
        self._iterator: Iterator[R] = iter(())
        self.first: tuple[R, ...] = ()
        self._once = Lock()  # taken once, by the thread that closes

    def __del__(self) -> None:
        """Close what nobody has closed."""
        if hasattr(self, "_once"):  # else its making was interrupted
            self.close()

    def fetch(self, is_blank: Callable[[R], bool]) -> Self:
        """Get the first item that is not blank, if there is one; within the context."""
        try:
            self._iterator = iter(self._iterable)
            self.first = tuple(islice(dropwhile(is_blank, self._iterator), 1))
        except BaseException:
            self._once.acquire(blocking=False)  # nobody else has it yet
            self._close()
            raise
        return self

    def rest(self) -> Iterator[R]:
        """Return the items after the first."""
        if not self.first:  # at its end, and not to be asked again
            return iter(())
        context = self._context
        return self._iterator if context is None else _within(context, self._iterator)

    def close(self) -> None:
        """Close the provider's iterator and its iterable, as far as they can be closed."""
        if not self._once.acquire(blocking=False):
            return
        if self._context is None:
            self._close()
        else:
            self._context.run(self._close)

    def _close(self) -> None:
        try:
            _close(self._iterator)
        finally:
            if self._iterable is not self._iterator:
                _close(self._iterable)


def _within(context: Context, items: Iterator[R]) -> Iterator[R]:
    while True:
        try:
            item = context.run(next, items)
        except StopIteration:
            return
        yield item


def _close(closeable: object) -> None:
    try:
        close = getattr(closeable, "close", None)
        if callable(close):
            close()
    except Exception as raised:
        log_swallowed("close() of a provider's stream", raised)
