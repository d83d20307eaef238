"""A stream that a provider has returned."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import repeat
from threading import Lock
from typing import Generic, Self, TypeVar, cast, final

from resilience._log import log_suppressed

T = TypeVar("T")
R = TypeVar("R")


@final
class ProviderStream(Generic[R]):
    """An iterable of items R from a provider: started at most once, closed exactly once.

    It is advanced and closed in one context, whichever threads do it. A generator that sets a
    context variable at its beginning could not reset it at its end in another context.
    """

    __slots__ = (
        "_context",
        "_in_use",
        "_interrupt_on",
        "_is_closing",
        "_iterator",
        "_returned",
        "_was_closed",
        "first",
    )

    def __init__(
        self, context: Context, interrupt_on: tuple[type[BaseException], ...] = ()
    ) -> None:
        """Prepare to call a provider in a context, and to hold what it returns.

        If closing raises an exception in `interrupt_on`, `close()` raises it; others are logged.
        """
        self._interrupt_on = interrupt_on
        self._returned: defaultdict[int, Iterable[R]] = defaultdict()
        self._context = context
        self._iterator: Iterator[R] = iter(())
        self.first: tuple[R, ...] = ()
        self._is_closing = False
        self._was_closed = False
        # Held by the thread that reads the first item, and for ever by the thread that closes.
        self._in_use = Lock()

    def __del__(self) -> None:
        """Close a stream that has not been closed, for instance after an interruption."""
        if not getattr(self, "_was_closed", True):  # if missing, the constructor was interrupted
            with suppress(RuntimeError):  # in a forked child: a thread of the parent was reading
                self._context.run(self._close)

    def open(self, fn: Callable[[T], Iterable[R]], argument: T) -> Iterable[R]:
        """Call a function of the provider, and hold what it returns."""
        return call_and_hold(self._returned, self._context, fn, argument)

    def release(self) -> Iterable[R]:
        """Return what the provider returned, without closing it."""
        return self._returned.pop(0)

    @property
    def returned(self) -> object:
        """What the provider returned."""
        return self._returned.get(0)

    def read_first(
        self,
        is_empty: Callable[[R], bool] = lambda _: False,
        on_empty: Callable[[], None] = lambda: None,
    ) -> Self:
        """Read the first item that is not empty, if there is one, unless the stream is closed.

        Args:
            is_empty: Function of an item that returns whether it is empty.
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
            # whether the stream is in use. So at least one of the two threads closes the stream.
            self._in_use.release()
            if self._is_closing:
                self.close()
        return self

    def _read_first(
        self, is_empty: Callable[[R], bool], on_empty: Callable[[], None]
    ) -> tuple[R, ...]:
        self._iterator = iter(self._returned[0])
        for item in self._iterator:
            if not is_empty(item):
                return (item,)
            on_empty()
        return ()

    def rest(self) -> Iterator[R]:
        """Return an iterator over the items after the first."""
        if not self.first:  # the stream has ended, so `next` must not be called again
            return iter(())
        # C code only: `map` ends when `next` raises StopIteration.
        read = cast("Callable[[object, Iterator[R]], R]", self._context.run)
        return map(read, repeat(next), repeat(self._iterator))

    def close(self) -> None:
        """Close the provider's iterator and its iterable, if they have a `close()`.

        If another thread is reading the first item, that thread closes them when it has finished.
        """
        self._is_closing = True
        if not self._in_use.acquire(blocking=False):
            return
        try:
            self._context.run(self._close)
        except RuntimeError:  # the context is in use: a thread is still reading, and closes later
            if self._was_closed:  # raised by the provider, and in `interrupt_on`
                raise
            self._in_use.release()

    def _close(self) -> None:
        if self._was_closed:  # in a reference cycle, this finalizer may run before its owner's
            return
        self._was_closed = True
        try:
            close(self._iterator, self._interrupt_on)
        finally:
            for iterable in self._returned.values():
                if iterable is not self._iterator:
                    close(iterable, self._interrupt_on)


def call_and_hold(
    held: "defaultdict[int, R]", context: Context, fn: Callable[[T], R], argument: T
) -> R:
    """Call a function in a context, and store its result in a dictionary without a gap."""
    # A `defaultdict` calls its factory and stores the result in C code: an exception that is thrown
    # into this thread cannot be raised between the two steps.
    held.default_factory = cast("Callable[[], R]", partial(context.run, fn, argument))
    try:
        return held[0]
    finally:
        held.default_factory = None  # it refers to the provider


def is_iterable(value: object) -> bool:
    """Return whether a value is iterable, without iterating over it."""
    return hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")


def close(returned: object, interrupt_on: tuple[type[BaseException], ...]) -> None:
    """Close an object that a provider has returned, if it has a `close()`.

    Exceptions are logged, except for the types in `interrupt_on`, which are raised.
    """
    try:
        method = getattr(returned, "close", None)
        if callable(method):
            method()
    except interrupt_on:
        raise
    except Exception as raised:
        log_suppressed("close() of a provider's stream", raised)
