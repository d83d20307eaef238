"""What a provider returned as a stream."""

from collections.abc import Iterable, Iterator
from itertools import islice
from threading import Lock
from typing import Generic, Self, TypeVar, final

from resilience._log import log_swallowed

R = TypeVar("R")


@final
class Source(Generic[R]):
    """An iterable of items R from a provider: started at most once, closed exactly once."""

    __slots__ = ("_iterable", "_once", "first", "items")

    def __init__(self, iterable: Iterable[R]) -> None:
        """Take charge of what a provider returned."""
        self._iterable = iterable
        self._once = Lock()  # taken once, by the thread that closes
        self.first: tuple[R, ...] = ()
        self.items: Iterator[R] = iter(())

    def fetch(self) -> Self:
        """Get the first item, if there is one."""
        try:
            self.items = iter(self._iterable)
            self.first = tuple(islice(self.items, 1))
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Close the provider's iterator and its iterable, as far as they can be closed."""
        if not self._once.acquire(blocking=False):
            return
        _close(self.items)
        if self._iterable is not self.items:
            _close(self._iterable)


def _close(closeable: object) -> None:
    try:
        close = getattr(closeable, "close", None)
        if callable(close):
            close()
    except Exception as raised:
        log_swallowed("close() of a provider's stream", raised)
