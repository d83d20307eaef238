"""Two ways in which clients open a stream: in the call, or at the first item."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Generic, TypeVar, final

from typing_extensions import override

T = TypeVar("T")
S = TypeVar("S")


def open_at_once(
    open_source: Callable[[], AbstractContextManager[S]], read: Callable[[S], Iterator[T]]
) -> Iterator[T]:
    """Open a source, and return its items."""
    source = ExitStack()
    return _Opened(read(source.enter_context(open_source())), source)


def open_at_first_next(
    open_source: Callable[[], AbstractContextManager[S]], read: Callable[[S], Iterator[T]]
) -> Iterator[T]:
    """Return the items of a source that is opened when the first item is read."""
    with open_source() as source:
        yield from read(source)


@final
class _Opened(Iterator[T], Generic[T]):
    """Items of an open source: closing them closes the source, even if none was read."""

    def __init__(self, items: Iterator[T], source: ExitStack) -> None:
        self._items = items
        self._source = source

    @override
    def __next__(self) -> T:
        return next(self._items)

    def close(self) -> None:
        self._source.close()
