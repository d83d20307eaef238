"""Streams that fail over until their first item, and belong to one provider from then on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from inspect import GEN_RUNNING, getgeneratorstate
from itertools import chain
from threading import RLock
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, final

from typing_extensions import override

from resilience._log import logger
from resilience._run import Call, Run
from resilience._source import Source
from resilience.exceptions import ResilienceError

T = TypeVar("T")
R = TypeVar("R")


class StreamRequest(ABC, Generic[T, R]):
    """What a caller asks of a stream of items R from a provider of type T."""

    @abstractmethod
    def opener(self) -> Callable[[T], Iterable[R]]:
        """Begin an attempt, and return the function that opens it."""

    def opened(self, *, empty: bool) -> None:
        """Accept the stream that an attempt has opened, or refuse it by raising."""

    def is_blank(self, _item: R, /) -> bool:
        """Tell whether an item at the beginning is nothing yet."""
        return False

    def error(self) -> Exception | None:
        """Return what the caller's own input has raised: nobody else's failure."""
        return None

    def idle(self) -> float:
        """Return the seconds of this attempt in which the provider waited for input."""
        return 0.0

    def ended(self) -> None:
        """Hear that nobody needs the input any more."""


@final
class PlainRequest(StreamRequest[T, R]):
    """A request without an input of its own, which accepts every stream."""

    def __init__(self, open_stream: Callable[[T], Iterable[R]]) -> None:
        """Ask for what a function opens."""
        self._open_stream = open_stream

    @override
    def opener(self) -> Callable[[T], Iterable[R]]:
        return self._open_stream


@final
class Reading(Generic[T, R]):
    """The life of one stream: opened, committed to a provider, read, settled and closed.

    One thread reads, any thread may close. Whoever leaves last closes what the provider returned:
    the one who closes if nobody is reading, else the reader as soon as it is back.
    """

    __slots__ = ("_call", "_lock", "_request", "_run", "_source", "closed", "committed")

    def __init__(self, run: Run[T], request: StreamRequest[T, R]) -> None:
        """Prepare to serve a request on a way through providers."""
        # Reentrant, because a signal handler may close the stream that is just being closed.
        lock = RLock()
        nothing: Source[R] = Source(())
        self._run = run
        self._request = request
        self._lock = lock
        # Written under the lock, but for `_source`, which belongs to the thread that reads.
        # `closed` is read without it, before and after each item: who closes sets it first and then
        # looks whether somebody reads, and who reads is seen to read first and then looks at it. So
        # one of them sees the other, and ends the stream; at the latest the reader does, when it
        # comes back for the next item or drops the stream.
        self._call: Call[T] | None = None
        self._source: Source[R] = nothing
        self.committed: bool = False
        self.closed: bool = False

    def __del__(self) -> None:
        """End a stream whose making was interrupted; any other has been ended by then."""
        if hasattr(self, "closed"):  # else it was interrupted before there was anything to end
            self._end()

    @property
    def provider(self) -> str | None:
        """Name of the provider that serves the stream, None before there is one."""
        return self._call.entry.name if self._call is not None and self.committed else None

    def start(self, *, lazily: bool) -> None:
        """Open the stream; lazily, call the provider's function but await no item."""
        try:
            with self._judging():
                if lazily:
                    self._run.begin(self._open)
                else:
                    self._commit()
        except BaseException:
            self._end()
            raise

    def items(self) -> Generator[R, None, None]:
        """Yield all items, and settle the call at the end."""
        try:
            with self._judging():
                if not self.closed and not self.committed:
                    self._commit()
                for items in (self._source.first, self._source.rest()):
                    for item in items:
                        if self.closed:
                            return
                        yield item
                        if self.closed:
                            return
                self._raise_input_error()
        finally:
            self._end()

    def close(self, items: Generator[R, None, None]) -> None:
        """End the stream, whose items come from a generator that may be running elsewhere."""
        with self._lock:
            self.closed = True
        self._settle()
        self._request.ended()
        if getgeneratorstate(items) != GEN_RUNNING:
            self._end()

    def _open(self, call: Call[T]) -> None:
        self._enter(call)
        opener = self._request.opener()
        self._source = self._bounded(call, lambda provider: Source(opener(provider), call.context))

    def _commit(self) -> None:
        if self._call is None or not self._fetched(self._call):
            self._run.begin(self._open_and_fetch)
        self._run.forget()

    def _fetched(self, call: Call[T]) -> bool:
        """Get the first item of what `_open` has opened; False if another provider shall."""
        opened = [self._source]  # taken by the thread that comes to fetch
        self._source = Source(())
        try:
            self._accept(self._bounded(call, lambda _: opened.pop().fetch(self._request.is_blank)))
        except BaseException as error:
            with suppress(IndexError):  # else no thread came, and nobody else closes it
                opened.pop().close()
            if not self._run.gave_up(call, error):
                raise
            return False
        return True

    def _open_and_fetch(self, call: Call[T]) -> None:
        self._enter(call)
        opener = self._request.opener()

        def work(provider: T) -> Source[R]:
            source = Source(opener(provider), call.context)
            # An attempt that is over by now wants no item, which may be what costs.
            return source if call.is_settled else source.fetch(self._request.is_blank)

        self._accept(self._bounded(call, work))

    def _bounded(self, call: Call[T], work: Callable[[T], Source[R]]) -> Source[R]:
        return call.bounded(work, lambda source: source.close(), self._request.idle)

    def _enter(self, call: Call[T]) -> None:
        """Begin an attempt, unless the stream has been closed."""
        with self._lock:
            self._call = call
        self._refuse_if_closed()

    def _accept(self, source: Source[R]) -> None:
        """Commit to a stream that has its first item, or has ended without one."""
        try:
            self._request.opened(empty=not source.first)
        except BaseException:
            source.close()
            raise
        with self._lock:
            self._source = source
            self.committed = not self.closed
        self._refuse_if_closed()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            self._settle()
            msg = "the stream was closed while it was being opened"
            raise ResilienceError(msg)

    @contextmanager
    def _judging(self) -> Generator[None, None, None]:
        """Settle the call if it raises, and choose what the caller is told."""
        try:
            yield
        except Exception as error:
            if self.closed:  # its end has been told already, this is only an echo
                logger.debug("a closed stream raised %s", type(error).__name__)
                return
            self._raise_input_error()
            self._fail(error)
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def _raise_input_error(self) -> None:
        call, error = self._call, self._request.error()
        if call is not None and error is not None:
            call.cancelled()
            raise error

    def _fail(self, error: BaseException) -> None:
        if self._call is not None:
            self._call.failed(error)

    def _settle(self) -> None:
        if self._call is not None:
            if self.committed:
                self._call.succeeded()
            else:
                self._call.cancelled()

    def _end(self) -> None:
        self._settle()
        self._source.close()
        self._request.ended()
        self._run.forget()


@final
class Stream(chain[R]):
    """An iterator over items R of whichever provider had a first one.

    Until its first item a stream fails over; from then on it belongs to one provider, and a later
    error goes to the caller as it is. Each way to leave a stream settles its call and closes what
    the provider returned, once: exhausting it, an error, `close()`, the end of a `with` statement,
    or dropping it.

    One thread at a time may read. Any thread may close: a reader that waits for an item meanwhile
    gets the end of the stream instead of it.
    """

    # A chain of one generator: a class with a `__next__` in Python would take twice the time for
    # each item.

    __slots__ = ("_items", "_reading")

    _reading: Reading[Any, R]
    _items: Generator[R, None, None]

    def __new__(cls, reading: Reading[Any, R]) -> Self:
        """Make the iterator over a stream that has been started."""
        items = reading.items()
        self = super().__new__(cls, items)
        self._items = items
        self._reading = reading
        return self

    @property
    def provider(self) -> str | None:
        """Name of the provider that serves the stream, None before its first item."""
        return self._reading.provider

    def close(self) -> None:
        """End the stream. Closing it again does nothing."""
        self._reading.close(self._items)

    def __enter__(self) -> Self:
        """Return the stream, which the end of the `with` statement closes."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the stream."""
        self.close()

    def __del__(self) -> None:
        """Close a stream that was dropped, even if an error's traceback still holds its parts."""
        if hasattr(self, "_reading"):  # else its making was interrupted
            self.close()


def serve(run: Run[T], request: StreamRequest[T, R], *, lazily: bool = False) -> Stream[R]:
    """Open a stream; lazily, call the provider's function but await no item."""
    # Not in the constructor: whoever keeps the error of an attempt keeps the frames below which
    # it was raised, and with the constructor's frame would keep the stream.
    reading = Reading(run, request)
    reading.start(lazily=lazily)
    return Stream(reading)
