"""The bridge for asyncio applications: calls, streams and sessions on threads, awaited by tasks.

The library is synchronous, and so are the clients behind it. Here their blocking calls run on
threads, so that the event loop is never blocked. It works with any functions, not only with those
of this library, and on any loop of asyncio, also uvloop and anyio's asyncio backend.

A call has a thread of its own, and so has each stream and each session, from its opening to its
closing. The threads have a copy of the caller's `contextvars` context. They are not those of the
loop's default executor: a provider that hangs neither uses up that pool, nor keeps `asyncio.run` or
the interpreter from ending, since the threads are daemonic.

A blocking call cannot be interrupted, only abandoned. So a thread ends at the end, the closing or
the cancellation of its work, except that a provider which hangs keeps its thread until it returns:
set the timeout of its client, and `attempt_timeout`. The number of threads has no limit; where many
calls may hang at the same time, limit them with an `asyncio.Semaphore`.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from queue import SimpleQueue
from threading import RLock, Thread
from types import GeneratorType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, final

from typing_extensions import override

__all__ = ["Session", "Stream", "call", "session", "stream"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)

_READ_AHEAD = 16
"""Items of a stream that its thread reads before the application has taken the first of them."""


async def call(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a thread, and return what it returns.

    If the task is cancelled, the call is abandoned: it goes on in its thread, and what it returns
    or raises is dropped. A `Stream` or a `Session` of this library is closed by that.

    Args:
        fn: A function that may block, such as `model.complete`.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        What the function returned.

    Raises:
        Exception: What the function raised, unchanged; a `StopIteration`, which no coroutine can
            raise, as the cause of a `RuntimeError`.
        RuntimeError: No thread can be started.
    """
    results: list[R] = []
    thread = _Thread(lambda: results.append(fn(*args, **kwargs)))
    await thread.wait(lambda: False)
    _raise_any(thread.errors)
    return results.pop()


def stream(
    open_stream: Callable[P, Iterable[R]], /, *args: P.args, **kwargs: P.kwargs
) -> "Stream[R]":
    """Return an asynchronous iterator over a stream, which a thread opens, reads and closes.

    Needs no running loop: the stream is opened when it is entered or first read.

    Args:
        open_stream: A function that may block, such as `model.stream_completion`. It returns an
            iterable, which is closed at the end if it has a `close()`.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The stream, to be used in `async with` or `async for`.
    """
    return Stream(partial(open_stream, *args, **kwargs))


def session(open_session: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Session[T]":
    """Return a session, which a thread opens and closes, and whose methods are called in threads.

    Needs no running loop: the session is opened by `async with`.

    Args:
        open_session: A function that may block, such as `recogniser.start_stream`. It returns an
            object, which is closed at the end if it has a `close()`.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The session, to be used in `async with`.
    """
    return Session(partial(open_session, *args, **kwargs))


@final
class Stream(AsyncIterator[R_co]):
    """An asynchronous iterator over the items R of a stream, which one thread owns; see `stream`.

    `async with` opens the stream and closes it at the end; `async for` alone opens it, too. Each
    way to leave a stream closes it: its end, an error, `aclose()`, `close()`, the end of `async
    with`, a cancellation of the task that opens or reads it, and dropping it. Errors are raised to
    the reader after the items that came before them.

    The thread reads up to 16 items ahead, and then waits until the application takes one. It also
    closes the stream. If it is inside the provider at that time, another thread calls `close()`, so
    that a `resilience.Stream` is settled at once, and the thread closes it again when it is back;
    a generator is closed only then. An opening under way goes on, and what it opens is closed.

    One task at a time may read; any thread may close. Belongs to the loop in which it is opened.
    """

    __slots__ = ("__weakref__", "_reader")

    def __init__(self, open_stream: Callable[[], Iterable[R_co]]) -> None:
        """Prepare to read what a function opens."""
        self._reader = _Reader(open_stream)

    @property
    def provider(self) -> str | None:
        """The attribute of this name of the stream: who serves it, None if that is not known."""
        return _provider(self._reader)

    async def __aenter__(self) -> Self:
        """Open the stream and return it, or raise what opening it raised."""
        await self._reader.open()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        """Close the stream."""
        await self._reader.aclose()

    @override
    async def __anext__(self) -> R_co:
        """Return the next item; at the first time open the stream."""
        items, errors = self._reader.items, self._reader.errors
        await self._reader.wait(lambda: bool(items))
        if self._reader.is_closing:
            raise StopAsyncIteration
        if items:
            self._reader.go_on()
            return items.popleft()
        try:
            _raise_any(errors)
        except StopAsyncIteration as error:  # it would pass for the end
            msg = "the stream raised StopAsyncIteration"
            raise RuntimeError(msg) from error
        raise StopAsyncIteration

    def close(self) -> None:
        """Close the stream without waiting for it; from any thread, with or without a loop.

        A task that waits for an item gets the end of the stream. Closing again does nothing.
        """
        self._reader.close()

    async def aclose(self) -> None:
        """Close the stream, and wait until it is closed; not for a provider that is busy.

        Raises:
            Exception: What the stream's `close()` raised in its thread. `close()`, a cancellation
                and dropping the stream discard that.
        """
        await self._reader.aclose()

    def __del__(self) -> None:
        """Close a stream that was dropped."""
        if hasattr(self, "_reader"):  # if not, its making has failed
            self._reader.close()


@final
class Session(Generic[T_co]):
    """An object T that is open as long as an `async with` block runs; see `session`.

    Several tasks may use it at the same time, as far as the object allows that: each call and each
    stream has a thread of its own. A cancellation of a call abandons the call, and leaves the
    session open. Belongs to the loop in which it is opened.

    Leaving the block closes the streams and then the object, in the thread that has opened it.
    Dropping the session does the same.
    """

    __slots__ = ("__weakref__", "_holder", "_readers")

    def __init__(self, open_session: Callable[[], T_co]) -> None:
        """Prepare to use what a function opens."""
        self._readers: list[_Reader[Any]] = []
        self._holder = _Holder(open_session)

    @property
    def provider(self) -> str | None:
        """The attribute of this name of the object: who serves it, None if that is not known."""
        return _provider(self._holder)

    async def __aenter__(self) -> Self:
        """Open the session and return it, or raise what opening it raised."""
        await self._holder.open()
        self._opened()  # raises if it was closed meanwhile
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        """Close the session."""
        await self.aclose()

    async def call(
        self, fn: Callable[Concatenate[T_co, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function with the object in a thread; otherwise the same as `call`.

        Args:
            fn: A function that may block, such as `lambda line: line.send_audio(audio)`.
            *args: Its arguments after the object.
            **kwargs: Its keyword arguments.

        Returns:
            What the function returned.

        Raises:
            Exception: What the function raised, as with `call`.
            RuntimeError: The session is not open, or no thread can be started.
        """
        return await call(fn, self._opened(), *args, **kwargs)

    def stream(
        self, fn: Callable[Concatenate[T_co, P], Iterable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> "Stream[R]":
        """Return an asynchronous iterator over what a function of the object returns.

        Args:
            fn: A function that may block, such as `lambda line: line.finals()`.
            *args: Its arguments after the object.
            **kwargs: Its keyword arguments.

        Returns:
            The stream, the same as from `stream`, which the session closes at its own end.

        Raises:
            RuntimeError: The session is not open.
        """
        opened = stream(fn, self._opened(), *args, **kwargs)
        self._readers = [reader for reader in self._readers if not reader.has_ended]
        self._readers.append(opened._reader)
        return opened

    def close(self) -> None:
        """Close the session without waiting for it; from any thread, with or without a loop.

        Closing again does nothing.
        """
        for reader in self._readers:
            reader.close()
        self._holder.close()

    async def aclose(self) -> None:
        """Close the session, and wait until the object is closed.

        Raises:
            Exception: What the object's `close()` raised. `close()` and dropping the session
                discard that.
        """
        self.close()
        await self._holder.aclose()

    def __del__(self) -> None:
        """Close a session that was dropped."""
        if hasattr(self, "_holder"):  # if not, its making has failed
            self.close()

    def _opened(self) -> T_co:
        if not self._holder.is_open or self._holder.is_closing:
            msg = "the session is not open"
            raise RuntimeError(msg)
        return cast("T_co", self._holder.opened)


class _Thread:
    """A daemonic thread, and what it shares with the tasks that wait for it.

    It refers to none of the public objects, so that these can be dropped while it runs.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        """Prepare a thread that does some work in a copy of the present context."""
        self._work = work
        self._context = copy_context()
        self._loop: asyncio.AbstractEventLoop | None = None  # None until it is started
        # Set whenever something has changed for which a task may wait.
        self._changed = asyncio.Event()
        self.has_ended = False
        self.is_closing = False
        self.errors: list[BaseException] = []

    async def wait(self, is_due: Callable[[], bool]) -> None:
        """Start the thread, and wait until something is due, or nothing can become due any more.

        If that raises, as when the task is cancelled, nobody waits for the thread any more.
        """
        try:
            self._start()
            await self._until(lambda: is_due() or self.has_ended or self.is_closing)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Discard the outcome."""
        self.is_closing = True
        self.errors.clear()

    def _start(self) -> None:
        if self._loop is None and not self.is_closing:
            self._loop = asyncio.get_running_loop()
            try:
                _run_in_thread(self._context, self._run)
            except BaseException:
                self.has_ended = True
                raise

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            if not self.is_closing:  # else nobody wants it, and it may be a consequence of that
                self.errors.append(error)
        self.has_ended = True
        self._notify()

    def _notify(self) -> None:
        """Let the tasks that wait look again; from any thread."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._changed.set)
            except RuntimeError:  # the loop is closed: nobody will ever look
                self.close()

    async def _until(self, is_due: Callable[[], bool]) -> None:
        await asyncio.sleep(0)  # a task for which everything is due at once must let others run
        while not is_due():
            self._changed.clear()
            await self._changed.wait()


class _Owner(_Thread, ABC, Generic[T]):
    """A thread that opens something, uses it and closes it."""

    def __init__(self, open_it: Callable[[], T]) -> None:
        super().__init__(self._open_use_close)
        self._open = open_it
        self.opened: T | None = None
        self.is_open = False
        self.close_errors: list[BaseException] = []
        # Whether the owner was busy when it was closed, and all was done to end that.
        self._is_let_go = False
        # One item for each time that the owner may go on. Unlike a semaphore it may be used by a
        # finalizer that runs while this very thread uses it.
        self._permits: SimpleQueue[None] = SimpleQueue()
        # Reentrant for the same reason. Guards whether the owner is inside foreign code, which may
        # block. It sets that first, and then reads `is_closing`; the one who closes sets
        # `is_closing` first, and then reads whether the owner is busy. So one sees the other.
        self._lock = RLock()
        self._is_busy = False

    @abstractmethod
    def _use(self, opened: T) -> None:
        """Use what was opened until there is no more to do, or it is to be closed."""

    async def open(self) -> None:
        """Wait until it is open, or raise why it is not; in a task."""
        await self.wait(lambda: self.is_open)
        if not self.is_open:
            _raise_any(self.errors)

    def go_on(self) -> None:
        """Allow the owner one more step."""
        self._permits.put(None)

    @override
    def close(self) -> None:
        """Have it closed; from any thread, also by a finalizer."""
        if self.is_closing:
            return
        super().close()
        self.go_on()
        self._notify()
        with self._lock:
            is_busy = self._is_busy
        if is_busy:
            self._interrupt()

    async def aclose(self) -> None:
        """Have it closed, and wait until it is, unless the owner is busy; in a task."""
        self.close()
        if self._loop is not None:
            await self._until(lambda: self.has_ended or self._is_let_go)
        _raise_any(self.close_errors)

    def _open_use_close(self) -> None:
        self._mark(is_busy=True)
        try:
            self.opened = self._open()
        finally:
            self._mark(is_busy=False)
        self.is_open = True
        self._notify()
        try:
            self._use(self.opened)
        finally:
            self._mark(is_busy=False)
            try:
                _close(self.opened)
            except BaseException as error:
                self.close_errors.append(error)

    def _mark(self, *, is_busy: bool) -> bool:
        """Enter or leave foreign code that may block; False if it is to be closed."""
        with self._lock:
            self._is_busy = is_busy
            return not self.is_closing

    def _interrupt(self) -> None:
        """Close it from outside in a thread, since that may block."""
        try:
            _run_in_thread(self._context.copy(), self._close_from_outside)
        except RuntimeError:  # there is no thread: the owner closes it when it is back
            self._is_let_go = True

    def _close_from_outside(self) -> None:
        if not isinstance(self.opened, GeneratorType):  # closed only by the one who runs it
            with suppress(BaseException):
                _close(self.opened)
        self._is_let_go = True
        self._notify()


@final
class _Reader(_Owner[Iterable[R]]):
    """Reads a stream of items R, a few of them ahead."""

    def __init__(self, open_stream: Callable[[], Iterable[R]]) -> None:
        super().__init__(open_stream)
        self.items: deque[R] = deque()
        for _ in range(_READ_AHEAD - 1):
            self.go_on()

    @override
    def _use(self, opened: Iterable[R]) -> None:
        if not self._mark(is_busy=True):
            return
        for item in opened:
            self._mark(is_busy=False)
            self.items.append(item)
            self._notify()
            self._permits.get()  # waits while the application is slow
            if not self._mark(is_busy=True):
                return


@final
class _Holder(_Owner[T]):
    """Holds something open until it is closed."""

    @override
    def _use(self, opened: T) -> None:
        self._permits.get()


def _provider(owner: _Owner[Any]) -> str | None:
    provider: str | None = getattr(owner.opened, "provider", None)
    return provider


def _raise_any(errors: list[BaseException]) -> None:
    # Held by no local variable: its traceback holds this frame, which must not hold it.
    if errors:
        raise errors.pop()


def _close(opened: object) -> None:
    close = getattr(opened, "close", None)
    if callable(close):
        close()


def _run_in_thread(context: Context, work: Callable[[], None]) -> None:
    if sys.is_finalizing():
        # A thread that is started now may never run, and `start` would wait for ever.
        msg = "no thread can be started, since the interpreter is shutting down"
        raise RuntimeError(msg)
    Thread(target=context.run, args=(work,), name="resilience-aio", daemon=True).start()
