"""Calls, streams and sessions in threads, for asyncio applications.

The library and the clients of its providers are synchronous. This module runs their blocking calls
in threads, so that the event loop is never blocked. The functions of this module work with any
blocking function, not only with those of this library, and with any event loop for asyncio,
including uvloop and the asyncio backend of anyio.

Each call has its own thread, and so has each stream and each session while it is open. The threads
run in a copy of the caller's `contextvars` context. They do not belong to the loop's default
executor, so a hanging provider does not occupy that pool. They are daemon threads, so a hanging
provider does not prevent `asyncio.run` or the interpreter from ending.

A blocking call cannot be interrupted, only abandoned. A thread ends when its work ends, is closed
or is cancelled. If the provider hangs, the thread waits until the provider returns: set the timeout
of the client, and `attempt_timeout`. The number of threads has no limit; if many calls may
hang at the same time, limit them with an `asyncio.Semaphore`.
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
"""How many items of a stream its thread reads before the application takes the first one."""


async def call(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a thread, and return its result.

    If the task is cancelled, the call is abandoned: it continues in its thread, and its result or
    exception is discarded. If the result is a `Stream` or a `Session` of this library, it is closed
    by that.

    Args:
        fn: A function that may block, such as `model.complete`.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The result of the function.

    Raises:
        Exception: The function raised; its exception is raised unchanged. Only a `StopIteration`,
            which no coroutine can raise, becomes the cause of a `RuntimeError`.
        RuntimeError: No thread can be started.
    """
    results: list[R] = []
    thread = _Thread(lambda: results.append(fn(*args, **kwargs)))
    await thread.wait(lambda: False)
    _raise_first(thread.errors)
    return results.pop()


def stream(
    open_stream: Callable[P, Iterable[R]], /, *args: P.args, **kwargs: P.kwargs
) -> "Stream[R]":
    """Return an asynchronous iterator over a stream; a thread opens, reads and closes the stream.

    Needs no running loop: the stream is opened by `async with` or by the first read.

    Args:
        open_stream: A function that may block, such as `model.stream_completion`. It returns an
            iterable; if that has a `close()`, it is called at the end.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The stream, to be used in `async with` or `async for`.
    """
    return Stream(partial(open_stream, *args, **kwargs))


def session(open_session: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Session[T]":
    """Return a session; threads open it, close it and call its methods.

    Needs no running loop: the session is opened by `async with`.

    Args:
        open_session: A function that may block, such as `recogniser.start_stream`. It returns an
            object; if that has a `close()`, it is called at the end.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The session, to be used in `async with`.
    """
    return Session(partial(open_session, *args, **kwargs))


@final
class Stream(AsyncIterator[R_co]):
    """An asynchronous iterator over the items R of a stream, read in a thread; see `stream`.

    `async with` opens the stream and closes it at the end; `async for` alone opens it too. The
    stream is also closed when it ends, raises or is dropped, and when the task that opens or reads
    it is cancelled. An error is raised after the items that the stream yielded before it.

    The thread reads up to 16 items ahead, and then waits until the application takes one. It also
    closes the stream. If it is waiting for the provider at that time, another thread calls
    `close()`, so that the outcome of a `resilience.Stream` is recorded at once; the first thread
    calls `close()` again when the provider returns. A generator is closed only then. A stream that
    is closed while it is being opened is closed as soon as it is open.

    Only one task at a time may read; any thread may close. The stream belongs to the event loop in
    which it is opened.
    """

    __slots__ = ("__weakref__", "_reader")

    def __init__(self, open_stream: Callable[[], Iterable[R_co]]) -> None:
        """Prepare to read a stream; nothing is opened yet.

        Args:
            open_stream: A function without parameters that returns an iterable.
        """
        self._reader = _Reader(open_stream)

    @property
    def provider(self) -> str | None:
        """Name of the provider that serves the stream; None if that is not known."""
        return _provider_name(self._reader)

    async def __aenter__(self) -> Self:
        """Open the stream.

        Returns:
            This stream.

        Raises:
            Exception: Opening the stream raised, such as `AllFailedError`.
            RuntimeError: No thread can be started.
        """
        await self._reader.open()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        """Close the stream."""
        await self._reader.aclose()

    @override
    async def __anext__(self) -> R_co:
        """Wait for the next item; the first call opens the stream.

        Returns:
            The item.

        Raises:
            StopAsyncIteration: The stream has ended, or is closed.
            Exception: The stream raised; its exception is raised unchanged.
        """
        items, errors = self._reader.items, self._reader.errors
        await self._reader.wait(lambda: bool(items))
        if self._reader.is_closing:
            raise StopAsyncIteration
        if items:
            self._reader.allow_step()
            return items.popleft()
        try:
            _raise_first(errors)
        except StopAsyncIteration as error:  # the reader would treat it as the end
            msg = "the stream raised StopAsyncIteration"
            raise RuntimeError(msg) from error
        raise StopAsyncIteration

    def close(self) -> None:
        """Close the stream without waiting for it; from any thread, with or without a loop.

        A task that waits for an item gets the end of the stream. Closing again does nothing.
        """
        self._reader.close()

    async def aclose(self) -> None:
        """Close the stream and wait until it is closed, but not until a busy provider returns.

        Raises:
            Exception: The stream's own `close()` raised in its thread. `close()` of this class, a
                cancellation, and dropping the stream discard this exception.
        """
        await self._reader.aclose()

    def __del__(self) -> None:
        """Close a stream that was dropped."""
        if hasattr(self, "_reader"):  # if missing, the constructor has failed
            self._reader.close()


@final
class Session(Generic[T_co]):
    """An object T that is open while an `async with` block runs; see `session`.

    Several tasks may use it at the same time if the object is thread-safe: each call and each
    stream has its own thread. Cancelling a call abandons the call; the session stays open. The
    session belongs to the event loop in which it is opened.

    At the end of the block, the streams and the object are closed; the object is closed in the
    thread that opened it, and does not wait for a stream that takes long to close. Dropping the
    session does the same.
    """

    __slots__ = ("__weakref__", "_holder", "_readers")

    def __init__(self, open_session: Callable[[], T_co]) -> None:
        """Prepare to use an object; nothing is opened yet.

        Args:
            open_session: A function without parameters that returns the object.
        """
        self._readers: list[_Reader[Any]] = []
        self._holder = _Holder(open_session)

    @property
    def provider(self) -> str | None:
        """Name of the provider that serves the session; None if that is not known."""
        return _provider_name(self._holder)

    async def __aenter__(self) -> Self:
        """Open the session.

        Returns:
            This session.

        Raises:
            Exception: Opening the object raised, such as `AllFailedError`.
            RuntimeError: The session is already closed, or no thread can be started.
        """
        await self._holder.open()
        self._check_open()  # raises if the session was closed in the meantime
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        """Close the session."""
        await self.aclose()

    async def call(
        self, fn: Callable[Concatenate[T_co, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function with the object in a thread, like `call` of this module.

        Args:
            fn: A function that may block, such as `lambda handle: handle.send_audio(audio)`.
            *args: Its arguments after the object.
            **kwargs: Its keyword arguments.

        Returns:
            The result of the function.

        Raises:
            Exception: The function raised, as for `call` of this module.
            RuntimeError: The session is not open, or no thread can be started.
        """
        return await call(fn, self._check_open(), *args, **kwargs)

    def stream(
        self, fn: Callable[Concatenate[T_co, P], Iterable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> "Stream[R]":
        """Return an asynchronous iterator over the result of a function of the object.

        Args:
            fn: A function that may block, such as `lambda handle: handle.finals()`.
            *args: Its arguments after the object.
            **kwargs: Its keyword arguments.

        Returns:
            A stream, as returned by `stream` of this module; closing the session closes it.

        Raises:
            RuntimeError: The session is not open.
        """
        opened = stream(fn, self._check_open(), *args, **kwargs)
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
            Exception: The object's own `close()` raised. `close()` of this class, and dropping the
                session, discard this exception.
        """
        self.close()
        await self._holder.aclose()

    def __del__(self) -> None:
        """Close a session that was dropped."""
        if hasattr(self, "_holder"):  # if missing, the constructor has failed
            self.close()

    def _check_open(self) -> T_co:
        if not self._holder.is_open or self._holder.is_closing:
            msg = "the session is not open"
            raise RuntimeError(msg)
        return cast("T_co", self._holder.opened)


class _Thread:
    """A daemon thread, and the state that it shares with the tasks that wait for it.

    It does not refer to the public objects, so that these can be dropped while it runs.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        """Prepare a thread that calls a function in a copy of the present context."""
        self._work = work
        self._context = copy_context()
        self._loop: asyncio.AbstractEventLoop | None = None  # None until it is started
        # Set after each change that may make a condition of `wait` true.
        self._changed = asyncio.Event()
        self.has_ended = False
        self.is_closing = False
        self.errors: list[BaseException] = []

    async def wait(self, is_ready: Callable[[], bool]) -> None:
        """Start the thread, and wait until a condition is true, or the thread ends or is closed.

        If that raises, for instance because the task is cancelled, the thread is closed.
        """
        try:
            self._start()
            await self._wait_until(lambda: is_ready() or self.has_ended or self.is_closing)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Discard the exception of the thread, if any; `is_closing` becomes True."""
        self.is_closing = True
        self.errors.clear()

    def _start(self) -> None:
        if self._loop is None:
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
            if not self.is_closing:  # otherwise closing may have caused the exception
                self.errors.append(error)
        self.has_ended = True
        self._notify()

    def _notify(self) -> None:
        """Wake the waiting tasks, which then check their conditions again; from any thread."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._changed.set)
            except RuntimeError:  # the loop is closed, so no task waits any more
                self.close()

    async def _wait_until(self, is_ready: Callable[[], bool]) -> None:
        await asyncio.sleep(0)  # even if the condition is already true, other tasks must run
        while not is_ready():
            self._changed.clear()
            await self._changed.wait()


class _Owner(_Thread, ABC, Generic[T]):
    """A thread that opens an object, uses it and closes it."""

    def __init__(self, open_it: Callable[[], T]) -> None:
        super().__init__(self._run_lifetime)
        self._open = open_it
        self.opened: T | None = None
        self.is_open = False
        self.close_errors: list[BaseException] = []
        # Whether `aclose` need not wait: the thread is busy, and closes the object when the foreign
        # code returns.
        self._is_left_to_thread = False
        # One item for each step that the thread may take. Unlike a semaphore, the queue may be used
        # by a finalizer that runs while the same thread uses it.
        self._steps: SimpleQueue[None] = SimpleQueue()
        # Reentrant for the same reason. Guards `_is_busy`: whether the thread is inside foreign
        # code, which may block. The thread sets it first, and then reads `is_closing`; the thread
        # that closes sets `is_closing` first, and then reads `_is_busy`. So at least one of the two
        # threads closes the object.
        self._lock = RLock()
        self._is_busy = False

    @abstractmethod
    def _use(self, opened: T) -> None:
        """Use the opened object until it is exhausted or should be closed."""

    async def open(self) -> None:
        """Wait in a task until the object is open; raise the exception of opening it."""
        await self.wait(lambda: self.is_open)
        if not self.is_open:
            _raise_first(self.errors)

    def allow_step(self) -> None:
        """Allow the thread one more step."""
        self._steps.put(None)

    @override
    def close(self) -> None:
        """Close the object, without waiting; from any thread or from a finalizer."""
        if self.is_closing:
            return
        super().close()
        self.allow_step()
        self._notify()
        with self._lock:
            is_busy, is_open = self._is_busy, self.is_open
        if is_busy and is_open:
            self._close_in_other_thread()
        else:
            self._is_left_to_thread = is_busy  # opening cannot be interrupted

    async def aclose(self) -> None:
        """Close the object; wait in a task until it is closed, unless the thread is busy."""
        self.close()
        if self._loop is not None:
            await self._wait_until(lambda: self.has_ended or self._is_left_to_thread)
        _raise_first(self.close_errors)

    def _run_lifetime(self) -> None:
        if not self._set_busy(is_busy=True):
            return
        try:
            self.opened = self._open()
        finally:
            self._set_busy(is_busy=False)
        self.is_open = True
        self._notify()
        try:
            self._use(self.opened)
        finally:
            self._set_busy(is_busy=False)
            try:
                _close(self.opened)
            except BaseException as error:
                self.close_errors.append(error)

    def _set_busy(self, *, is_busy: bool) -> bool:
        """Record that foreign code is entered or left; False if the object should be closed."""
        with self._lock:
            self._is_busy = is_busy
            return not self.is_closing

    def _close_in_other_thread(self) -> None:
        """Call `close()` of the object in another thread, because it may block."""
        try:
            _run_in_thread(self._context.copy(), self._close_while_busy)
        except RuntimeError:  # no thread can be started: the busy thread closes the object
            self._is_left_to_thread = True

    def _close_while_busy(self) -> None:
        if not isinstance(self.opened, GeneratorType):  # a generator that runs cannot be closed
            with suppress(BaseException):
                _close(self.opened)
        self._is_left_to_thread = True
        self._notify()


@final
class _Reader(_Owner[Iterable[R]]):
    """Reads the items R of a stream, up to `_READ_AHEAD` ahead."""

    def __init__(self, open_stream: Callable[[], Iterable[R]]) -> None:
        super().__init__(open_stream)
        self.items: deque[R] = deque()
        for _ in range(_READ_AHEAD - 1):
            self.allow_step()

    @override
    def _use(self, opened: Iterable[R]) -> None:
        if not self._set_busy(is_busy=True):
            return
        for item in opened:
            self._set_busy(is_busy=False)
            self.items.append(item)
            self._notify()
            self._steps.get()  # waits while the application is slow
            if not self._set_busy(is_busy=True):
                return


@final
class _Holder(_Owner[T]):
    """Keeps an object open until it is closed."""

    @override
    def _use(self, opened: T) -> None:
        self._steps.get()


def _provider_name(owner: _Owner[Any]) -> str | None:
    provider: str | None = getattr(owner.opened, "provider", None)
    return provider


def _raise_first(errors: list[BaseException]) -> None:
    # Not in a local variable: its traceback refers to this frame, so that would be a cycle.
    if errors:
        raise errors.pop()


def _close(opened: object) -> None:
    close = getattr(opened, "close", None)
    if callable(close):
        close()


def _run_in_thread(context: Context, work: Callable[[], None]) -> None:
    if sys.is_finalizing():
        # A thread started now may never run, and `start` would wait for ever.
        msg = "no thread can be started, since the interpreter is shutting down"
        raise RuntimeError(msg)
    Thread(target=context.run, args=(work,), name="resilience-aio", daemon=True).start()
