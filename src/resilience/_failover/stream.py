"""Streams that fail over until their first item, and then read from one provider."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import Context
from inspect import GEN_RUNNING, getgeneratorstate
from itertools import chain
from threading import RLock
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar, cast, final

from typing_extensions import override

from resilience._failover.attempts import Attempts, Call, Member, refuse_result
from resilience._failover.source import ProviderStream, is_iterable
from resilience._fork import renew_after_fork
from resilience._log import logger
from resilience._settings import Uncopyable
from resilience.exceptions import ResilienceError

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")


class StreamRequest(ABC, Generic[T, R]):
    """A caller's request for a stream of items R from a provider of type T."""

    @abstractmethod
    def start_attempt(self, call: Call[T]) -> Callable[[T], Iterable[R]]:
        """Begin an attempt, and return the function that opens its stream."""

    def accept(self, *, empty: bool) -> None:
        """Accept the stream that an attempt has opened, or raise to refuse it."""

    def is_wrong(self, _item: R, /) -> bool:
        """Return whether an item violates the contract."""
        return False

    def is_empty(self, _item: R, /) -> bool:
        """Return whether an item has no content; the stream may still fail over after it."""
        return False

    def input_error(self) -> BaseException | None:
        """Return the exception of the caller's own input, which no provider has caused."""
        return None

    def input_wait(self) -> float:
        """Return the seconds of this attempt in which the provider has waited for input."""
        return 0.0

    def close(self) -> None:
        """Discard the input, which is no longer needed."""


@final
class PlainRequest(StreamRequest[T, R]):
    """A request without input, which accepts every stream."""

    def __init__(self, open_stream: Callable[[T], Iterable[R]]) -> None:
        """Request the stream that a function opens."""
        self._open_stream = open_stream

    @override
    def start_attempt(self, call: Call[T]) -> Callable[[T], Iterable[R]]:
        return self._open_stream


_ENDED: StreamRequest[Any, Any] = PlainRequest(lambda _: ())


@final
class _SharedLock:
    """The lock for the state of all streams: one for all, so that a forked child can replace it.

    It is held only for one or two assignments. Reentrant, because a signal handler may close the
    stream that is being closed at this moment.
    """

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = RLock()
        renew_after_fork(self)

    def _renew_after_fork(self) -> None:
        self.lock = RLock()


_shared = _SharedLock()


@final
class StreamState(Generic[T, R]):
    """One stream: opened, committed to a provider, read, settled and closed.

    When it is committed, only the provider that serves it is read; nothing fails over any more.
    One thread reads, any thread may close. The thread that finishes last closes the provider's
    iterable: the thread that closes the stream, or, if another thread is reading, that thread when
    its `next()` has returned.
    """

    __slots__ = ("_attempts", "_call", "_request", "_stream", "closed", "committed", "has_ended")

    def __init__(self, attempts: Attempts[T], request: StreamRequest[T, R]) -> None:
        """Prepare to open a stream for a request."""
        self._attempts = attempts
        self._request: StreamRequest[T, R] = request
        # Written under the shared lock, except `_stream`, which belongs to the thread that reads.
        # `closed` is read without it, before and after each item. The thread that closes sets it,
        # and then checks whether the generator runs; the thread that reads runs the generator, and
        # then reads the flag. So at least one of them ends the stream; at the latest the reader
        # does, when it reads the next item or drops the stream.
        self._call: Call[T] | None = None
        self._stream: ProviderStream[R] | None = None
        self.committed: bool = False
        self.closed: bool = False
        # Whether nothing is left to do. Finalizers check it, since they may run when the
        # interpreter has already cleared its modules.
        self.has_ended: bool = False

    def __del__(self) -> None:
        """End a stream whose opening was interrupted; all others have already ended."""
        if not getattr(self, "has_ended", True):  # if missing, the constructor was interrupted
            self._end()

    @property
    def provider(self) -> str | None:
        """Name of the provider that serves the stream; None before there is one."""
        return None if self.member is None else self.member.name

    @property
    def member(self) -> Member[T] | None:
        """The member that serves the stream; None before there is one."""
        return self._call.member if self._call is not None and self.committed else None

    @property
    def returned(self) -> object:
        """The object that the provider tried last has returned; None before there is one."""
        stream = self._stream
        return None if stream is None else stream.returned

    def start(self, *, lazy: bool) -> None:
        """Open the stream; if lazy, call the provider's function but do not wait for an item."""
        raised: BaseException | None = None
        try:
            if lazy:
                self._attempts.first_success(self._open)
            else:
                self._commit()
        except BaseException as error:
            raised = self._judge(error)
            self._end()
        try:
            if raised is not None:
                raise raised
        finally:
            del raised  # its traceback refers to this frame: avoid a reference cycle

    def items(self) -> Generator[R, None, None]:
        """Yield all items, and settle the call at the end."""
        raised: BaseException | None = None
        try:
            try:
                if not self.closed and not self.committed:
                    self._commit()
                for item in self._committed_items():
                    if self.closed:
                        return
                    yield item
                    if self.closed:
                        return
                raised = self._take_input_error()
            except BaseException as error:
                raised = self._judge(error)
            # After the `except` block: inside it, the provider's exception would become the context
            # of an error of the input, which may be the cause of that exception.
            if raised is not None:
                raise raised
        finally:
            del raised  # as in `start`
            self._end()

    def close(self, items: Generator[R, None, None]) -> None:
        """End the stream; the generator of its items may be running in another thread."""
        with _shared.lock:
            self.closed = True
        self._settle()
        self._request.close()
        if getgeneratorstate(items) != GEN_RUNNING:
            self._end()

    def _committed_items(self) -> Iterable[R]:
        stream = self._stream
        return () if stream is None else chain(stream.first, stream.rest())

    def _open(self, call: Call[T]) -> None:
        self._stream = self._run(call, self._opening(call))

    def _commit(self) -> None:
        call, opened = self._call, self._stream
        self._stream = None
        if call is None or opened is None or not self._read_opened(call, opened):
            self._attempts.first_success(self._open_and_read)
        self._attempts.clear_failures()

    def _read_opened(self, call: Call[T], stream: ProviderStream[R]) -> bool:
        """Read the first item of the stream that `_open` has opened; False to try another provider.

        A worker that is late closes the stream when it has finished; a worker that has not started
        yet finds the stream closed.
        """
        try:
            self._accept(self._run(call, lambda _: stream.read_first(*self._reading(call))))
        except BaseException as error:
            stream.close()
            if not self._attempts.may_go_on(call, error):
                raise
            return False
        return True

    def _open_and_read(self, call: Call[T]) -> None:
        opening = self._opening(call)
        self._accept(self._run(call, lambda provider: self._read_first(call, opening(provider))))

    def _read_first(self, call: Call[T], stream: ProviderStream[R]) -> ProviderStream[R]:
        # If the attempt has ended in the meantime, no item is read, since an item may be expensive.
        return stream if call.is_settled else stream.read_first(*self._reading(call))

    def _run(self, call: Call[T], work: Callable[[T], ProviderStream[R]]) -> ProviderStream[R]:
        return call.run(work, lambda stream: stream.close(), self._request.input_wait)

    def _reading(self, call: Call[T]) -> tuple[Callable[[R], bool], Callable[[], None]]:
        request = self._request
        return (
            # If the attempt has been abandoned, reading ends at the next item, empty or not.
            lambda item: not call.is_settled and _is_empty(request, call, item),
            lambda: call.renew_limit(request.input_wait),
        )

    def _opening(self, call: Call[T]) -> Callable[[T], ProviderStream[R]]:
        """Begin an attempt, unless the stream is closed; return the function that opens it."""
        with _shared.lock:
            replaced, self._call = self._call, call
        del replaced  # without the lock: deleting its context may run foreign code
        self._refuse_if_closed()
        open_stream = self._request.start_attempt(call)
        context = call.context  # read here, because the lambda may run on a worker thread
        return lambda provider: _open_in(context, call, open_stream, provider)

    def _accept(self, stream: ProviderStream[R]) -> None:
        """Commit to a stream that has its first item, or has ended without an item."""
        try:
            self._request.accept(empty=not stream.first)
        except BaseException:
            stream.close()
            raise
        if stream.first and self._call is not None:
            self._call.note_first_item()
        with _shared.lock:
            self._stream = stream
            self.committed = not self.closed
        self._refuse_if_closed()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            self._settle()
            msg = "the stream was closed while it was being opened"
            raise ResilienceError(msg)

    def _judge(self, error: BaseException) -> BaseException | None:
        """Settle the call with an exception, and return the exception for the caller, if any."""
        if self._is_consequence(error):  # the call is settled already
            logger.debug("a closed stream raised %s", type(error).__name__)
            return None
        input_error = self._take_input_error()
        if input_error is None and self._call is not None:
            self._call.fail(error)
        return error if input_error is None else input_error

    def _is_consequence(self, error: BaseException) -> bool:
        """Return whether an exception was caused by closing the stream, and is no interruption."""
        interrupt_on = () if self._call is None else self._call.member.config.interrupt_on
        return self.closed and isinstance(error, Exception) and not isinstance(error, interrupt_on)

    def _take_input_error(self) -> BaseException | None:
        """Return the exception of the caller's own input, and cancel the call if there is one."""
        error = self._request.input_error()
        if error is not None and self._call is not None:
            self._call.cancel()
        return error

    def _settle(self) -> None:
        if self._call is not None:
            if self.committed:
                self._call.succeed()
            else:
                self._call.cancel()

    def _end(self) -> None:
        self._settle()
        if self._stream is not None:
            self._stream.close()
        if not self.has_ended:
            self._request.close()
            self._request = _ENDED  # a stream that is kept must not keep a prompt
            self._attempts.clear_failures()
            self.has_ended = True


def _is_empty(request: StreamRequest[Any, R], call: Call[Any], item: R) -> bool:
    if request.is_wrong(item):
        refuse_result(call.member, call.operation, item)
    return request.is_empty(item)


def _open_in(
    context: Context, call: Call[T], open_stream: Callable[[T], Iterable[R]], provider: T
) -> ProviderStream[R]:
    stream: ProviderStream[R] = ProviderStream(context, call.member.config.interrupt_on)
    if not is_iterable(stream.open(open_stream, provider)):
        context.run(refuse_result, call.member, call.operation, stream.release())
    return stream


class Stream(chain[Any], Iterator[R_co], Uncopyable):
    """An iterator over items R of the first provider that has returned an item.

    Until its first item a stream fails over. After that it reads from one provider, and a later
    error is raised to the caller unchanged. The call is settled, and the provider's iterable is
    closed, once: when the stream is exhausted, raises, is closed, leaves its `with` statement or is
    dropped.

    One thread at a time may read. Any thread may close: if another thread is waiting for an item,
    the stream ends for that thread. Cannot be copied.
    """

    # A subclass of `chain` with one generator: a class with a `__next__` in Python would take twice
    # the time for each item.

    __slots__ = ("__weakref__", "_items", "_state")

    _state: StreamState[Any, R_co]
    _items: Generator[R_co, None, None]

    # For type checkers: the same function, with the type of the items.
    __next__: Callable[..., R_co] = cast("Any", chain[Any].__next__)

    def __new__(cls, state: StreamState[Any, R_co]) -> Self:
        """Make the iterator over a stream that has been started."""
        items = state.items()
        self = super().__new__(cls, items)
        self._items = items
        self._state = state
        return self

    @classmethod
    @override
    def from_iterable(cls, iterable: object, /) -> NoReturn:
        """Raise `TypeError`: only a group opens a stream."""
        msg = "a Stream cannot be made from an iterable, only opened by a group"
        raise TypeError(msg)

    @override
    def __repr__(self) -> str:
        state = "closed" if self._state.closed or self._state.has_ended else "open"
        return f"<{type(self).__name__} provider={self.provider!r} {state}>"

    @property
    def provider(self) -> str | None:
        """Name of the provider that serves the stream; None before its first item."""
        return self._state.provider

    def close(self) -> None:
        """End the stream. Closing it again does nothing."""
        self._state.close(self._items)

    def __enter__(self) -> Self:
        """Return the stream; the end of the `with` statement closes it."""
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
        """Close a dropped stream, even if the traceback of an error still refers to its parts."""
        # If there is no state, the constructor was interrupted.
        if hasattr(self, "_state") and not self._state.has_ended:
            self.close()


def open_request(
    attempts: Attempts[T],
    request: StreamRequest[T, R],
    make: Callable[[StreamState[T, R]], S],
    *,
    lazy: bool = False,
) -> S:
    """Open a stream S; if lazy, call the provider's function but do not wait for an item."""
    # Not in the constructor: the error of an attempt refers to the frames in which it was raised,
    # and the frame of the constructor refers to the stream, so the error would keep it alive.
    state = StreamState(attempts, request)
    state.start(lazy=lazy)
    return make(state)
