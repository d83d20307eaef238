"""Contract tests of streams, which models and synthesisers have."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import ClassVar, Generic, TypeVar

from resilience.testing._contract_base import CUT, UNREACHABLE, P, ProviderContract
from resilience.testing._contract_calls import read_all
from resilience.testing._contract_values import check_iterable

R = TypeVar("R")


class StreamContract(ProviderContract[P], Generic[P, R]):
    """Tests of a provider P whose streams have items R."""

    __test__ = False

    _method: ClassVar[str]
    _items: ClassVar[str]

    @abstractmethod
    def _open(self, provider: P) -> Iterable[R]: ...

    @abstractmethod
    def _check_items(self, items: Sequence[object]) -> None:
        """Fail unless these are the items of a whole stream."""
        ...

    def test_stream_is_whole(self) -> None:
        """A stream yields a whole answer, and can be closed when it has ended."""
        with self._working() as provider:
            self._check_items(self._call(self._method, lambda: self._read(provider)))

    def test_stream_of_broken_provider_raises(self) -> None:
        """A stream raises when it is opened or read, if the provider cannot be reached."""
        with self._broken() as provider:
            self._start(self._method, lambda: self._read(provider)).check_failed(UNREACHABLE)

    def test_interrupted_stream_raises(self) -> None:
        """A stream that breaks off raises, and does not end as if it were complete."""
        with self._interrupted() as provider:
            self._start(self._method, lambda: self._read(provider)).check_failed(CUT)

    def test_stream_is_closed_unread(self) -> None:
        """A stream can be closed before it is read, and the provider still works afterwards."""
        with self._working() as provider:
            self._call(f"closing {self._method} unread", lambda: self._read_and_close(provider, 0))
            self._check_next_stream(provider)

    def test_stream_is_closed_early(self) -> None:
        """A stream can be closed after its first item, and the provider still works afterwards."""
        with self._working() as provider:
            self._call(f"closing {self._method} early", lambda: self._read_and_close(provider, 1))
            self._check_next_stream(provider)

    def test_stream_is_closed_by_another_thread(self) -> None:
        """A stream can be closed by a thread that has not opened it."""
        with self._working() as provider:
            stream = self._call(self._method, lambda: self._open(provider))
            iterator = iter(stream)
            self._call("reading in another thread", lambda: list(islice(iterator, 1)))
            self._call("close() in another thread", lambda: _close(iterator, stream))

    def test_stream_is_read_by_another_thread(self) -> None:
        """A stream can be opened by one thread and read by others."""
        with self._working() as provider:
            stream = self._call(self._method, lambda: self._open(provider))
            iterator = iter(stream)
            first = self._call("reading in another thread", lambda: list(islice(iterator, 1)))
            rest = self._call(
                "reading on in another thread", lambda: read_all(iterator, self._method)
            )
            _close(iterator, stream)
            self._check_items(first + rest)

    def test_streams_are_independent(self) -> None:
        """Two streams can be read in turn."""
        with self._working() as provider:
            operation = f"two of {self._method} that are read in turn"
            for items in self._call(operation, lambda: self._read_in_turn(provider)):
                self._check_items(items)

    def test_streams_in_several_threads(self) -> None:
        """Several threads can use the provider's streams at the same time."""
        with self._working() as provider:
            for items in self._call_in_threads(self._method, lambda: self._read(provider)):
                self._check_items(items)

    def test_streams_leave_nothing(self) -> None:
        """A stream that has ended leaves no thread and no connection."""
        with self._working() as provider:
            self._check_leftovers(f"{self._method} to its end", lambda: self._read(provider))

    def test_closed_streams_leave_nothing(self) -> None:
        """A stream that is closed early leaves no thread and no connection."""
        with self._working() as provider:
            self._check_leftovers(
                f"{self._method} closed early", lambda: self._read_and_close(provider, 1)
            )

    def test_failed_streams_leave_nothing(self) -> None:
        """A stream that cannot be opened leaves no thread and no connection."""
        with self._broken() as provider:
            self._check_leftovers(f"{self._method} that failed", lambda: self._read(provider))

    def test_interrupted_streams_leave_nothing(self) -> None:
        """A stream that breaks off leaves no thread and no connection."""
        with self._interrupted() as provider:
            self._check_leftovers(f"{self._method} that broke off", lambda: self._read(provider))

    def _read(self, provider: P) -> list[R]:
        return self._read_and_close(provider, None)

    def _read_and_close(self, provider: P, count: int | None) -> list[R]:
        stream = self._open(provider)
        check_iterable(stream, self._items, self._method)
        iterator = iter(stream)
        try:
            return read_all(islice(iterator, count), self._method)
        finally:
            _close(iterator, stream)

    def _read_in_turn(self, provider: P) -> list[list[R]]:
        streams = [self._open(provider) for _ in range(2)]
        iterators = [iter(stream) for stream in streams]
        first = [list(islice(iterator, 1)) for iterator in iterators]
        items = [
            before + read_all(rest, self._method)
            for before, rest in zip(first, iterators, strict=True)
        ]
        _close(*iterators, *streams)
        return items

    def _check_next_stream(self, provider: P) -> None:
        name = f"{self._method} after another one was closed"
        self._check_items(self._call(name, lambda: self._read(provider)))


def _close(*objects: object) -> None:
    """Close an iterator and its iterable, which may be the same, if they have a `close()`."""
    for returned in {id(each): each for each in objects}.values():
        close = getattr(returned, "close", None)
        if callable(close):
            close()
