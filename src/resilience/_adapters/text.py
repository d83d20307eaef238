"""A text that every attempt to synthesise it can read from the beginning."""

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from threading import Condition, get_ident
from time import monotonic
from typing import final

from typing_extensions import override

from resilience._fork import renew_after_fork


def has_text(fragment: str) -> bool:
    """Return whether a fragment has a letter or a digit, in any script."""
    return any(map(str.isalnum, fragment))


@final
class ReplayBuffer:
    """Fragments of a source that can be read only once; they are kept until `commit()`.

    Each attempt has its own reader, which cuts off the reader of the attempt before. One thread at
    a time takes a fragment from the source, without the lock. It puts the fragment into the buffer,
    where the present reader gets it, even if the reader of that thread has been cut off.

    The source is advanced and dropped in one context, whichever threads do it.
    """

    def __init__(self, source: Iterable[str]) -> None:
        """Read from a source; a plain string is one fragment."""
        self._context = copy_context()
        iterable = (source,) if isinstance(source, str) else source
        # In a list, from which it is removed in its context.
        self._source: list[Iterator[object]] = [self._context.run(iter, iterable)]
        self.changed = Condition()
        # Guarded by the lock of the condition; `error` and `_reader` are also read without it, each
        # by one read of a reference.
        self._reader: TextReader | None = None
        self._fragments: list[str] = []
        self._taker: int | None = None  # the thread that is taking a fragment from the source
        self._exhausted = False
        self._committed = False
        self._closed = False
        self.error: BaseException | None = None
        renew_after_fork(self)

    def reader(self, thread: Callable[[], int | None] = get_ident) -> "TextReader":
        """Cut off the present reader, and return one that starts at the beginning.

        Args:
            thread: Returns the thread on which the attempt runs; other threads belong to the
                provider.

        Returns:
            A reader for one attempt.
        """
        reader = TextReader(self, thread)
        with self.changed:
            if not self._closed:
                self._reader = reader
            self.changed.notify_all()
        return reader

    def commit(self) -> None:
        """Drop fragments that the present reader has read, now and in future."""
        with self.changed:
            self._committed = True
            if self._reader is not None:
                self._drop_read_locked(self._reader)

    def close(self) -> None:
        """Cut off the present reader and later ones, and drop the source and the buffer."""
        with self.changed:
            dropped = self._fragments, self.error
            self._closed = True
            self._reader = self.error = None
            self._fragments = []  # a new list: this thread may be reading the old one
            self.changed.notify_all()
        del dropped  # without the lock, like the source: deleting them may run foreign code
        self._drop_unused_source()

    def has_text(self) -> bool:
        """Return whether the text has a letter or a digit; read the source if necessary.

        Cuts off the present reader.
        """
        return any(map(has_text, self.reader()))

    def input_wait(self) -> float:
        """Return the seconds for which the present reader has waited for the source."""
        reader = self._reader
        return 0.0 if reader is None else reader.input_wait()

    def read(self, reader: "TextReader") -> str:
        """Return a reader's next fragment.

        Raises:
            StopIteration: The text has ended, or the reader has been cut off.
            BaseException: The source has raised it.
        """
        fragment = None
        while fragment is None:
            fragment = self._read_or_take(reader)
        return fragment

    def _read_or_take(self, reader: "TextReader") -> str | None:
        """Return a reader's next fragment, or take it from the source first and return None."""
        thread = get_ident()
        taker: int | None = None
        try:
            with self.changed:
                while self._must_wait_locked(reader):
                    self.changed.wait()
                if reader is not self._reader:
                    raise StopIteration
                fragments = self._fragments
                fragment: str | None = None
                if reader.position < len(fragments):
                    fragment = self._fragment_locked(reader, fragments)
                elif self._exhausted:
                    raise StopIteration if self.error is None else self.error
                else:
                    self._taker = taker = thread  # one statement: no interruption in between
            if taker is not None:
                self._take()
            return fragment
        finally:
            if taker is not None:
                with self.changed:
                    self._taker = None
                    self.changed.notify_all()
                self._drop_unused_source()

    def _must_wait_locked(self, reader: "TextReader") -> bool:
        """Return whether a reader needs the fragment that another thread is taking now."""
        wants_more = reader is self._reader and reader.position == len(self._fragments)
        return wants_more and self._taker is not None

    def _fragment_locked(self, reader: "TextReader", fragments: list[str]) -> str:
        fragment = fragments[reader.position]
        reader.position += 1
        # Only when half of the list has been read, so that a long text takes linear time.
        if self._committed and 2 * reader.position >= len(fragments):
            self._drop_read_locked(reader)
        return fragment

    def _drop_read_locked(self, reader: "TextReader") -> None:
        del self._fragments[: reader.position]
        reader.position = 0

    def _take(self) -> None:
        """Take one fragment from the source; only in the thread that is the taker."""
        try:
            fragment = self._context.run(next, self._source[0])
            text = _check_fragment(fragment)
        except StopIteration:
            self._exhaust(None)
        except BaseException as error:
            self._exhaust(error)
        else:
            with self.changed:
                self._fragments.append(text)

    def _exhaust(self, error: BaseException | None) -> None:
        with self.changed:
            self.error = error
            self._exhausted = True

    def _drop_unused_source(self) -> None:
        """Drop the source of a closed text, unless a thread is taking a fragment: it does so."""
        source: list[Iterator[object]] = []
        context = Context()
        with self.changed:
            if self._closed and self._taker is None:
                # Together with its context, since a reader that was cut off may keep this object.
                source, self._source = self._source, source
                context, self._context = self._context, context
        context.run(source.clear)

    def _renew_after_fork(self) -> None:
        """Replace the lock; a fragment that another thread was taking is lost with it."""
        self.changed = Condition()
        if self._taker != get_ident():
            self._taker = None
            self._context = self._context.copy()  # the old one stays in use by a parent's thread
        if self._reader is not None:
            self._reader.renew(is_waiting=self._taker is not None)


@final
class TextReader(Iterator[str]):
    """The fragments of a text, for one attempt to synthesise it.

    It measures how long the provider waits for the text; this time is not part of the time limit.
    Once the provider has read a letter or a digit, only the waiting time of the attempt's own
    thread is measured: a provider that reads ahead in another thread could already return audio.
    """

    __slots__ = (
        "_buffer",
        "_has_given_text",
        "_thread",
        "_wait_time",
        "_waiting",
        "_waiting_since",
        "position",
    )

    def __init__(self, buffer: ReplayBuffer, thread: Callable[[], int | None]) -> None:
        """Start at the beginning of a text."""
        self._buffer = buffer
        self._thread = thread
        self._has_given_text = False
        # Guarded by the buffer's lock: the position in the buffer; how many threads wait whose
        # waiting time is measured, since when, and how long any of them has waited before.
        self.position = 0
        self._waiting = 0
        self._waiting_since = 0.0
        self._wait_time = 0.0

    @override
    def __next__(self) -> str:
        is_excused = not self._has_given_text or get_ident() == self._thread()
        self._wait(is_excused)
        try:
            fragment = self._buffer.read(self)
        finally:
            self._wait(-is_excused)
        self._has_given_text = self._has_given_text or has_text(fragment)
        return fragment

    def input_wait(self) -> float:
        """Return the seconds for which this reader has waited."""
        return self._wait(0)

    def renew(self, *, is_waiting: bool) -> None:
        """Reset the number of waiting threads in a forked child, which has at most one."""
        self._waiting = min(self._waiting, int(is_waiting))

    def _wait(self, more: int) -> float:
        """Add a number of waiting threads; return for how long any thread has waited."""
        with self._buffer.changed:
            now = monotonic()
            if self._waiting:
                self._wait_time += now - self._waiting_since
            self._waiting_since = now
            self._waiting += more
            return self._wait_time


def _check_fragment(fragment: object) -> str:
    if isinstance(fragment, str):
        return fragment
    msg = f"a text must consist of strings, got an object of type {type(fragment).__qualname__}"
    raise TypeError(msg)
