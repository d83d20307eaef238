"""A text that every attempt to speak it reads from its beginning, until one of them has audio."""

from collections.abc import Iterable, Iterator
from threading import Condition, Lock
from time import monotonic
from typing import final

from typing_extensions import override


@final
class ReplayedText:
    """Fragments of a one-shot source, kept until `commit()`.

    Each attempt reads through a reader of its own, which cuts off the reader before it. One thread
    at a time takes a fragment from the source, and not under the lock. What it gets goes into the
    buffer, and so to the present reader, also if its own reader has been cut off meanwhile.
    """

    def __init__(self, source: Iterable[str]) -> None:
        """Read from a source; a plain string is one fragment."""
        self._source: Iterator[str] = iter((source,) if isinstance(source, str) else source)
        self._changed = Condition()
        # Guarded by the lock of the condition; `error` and `_reader` are read without, each by one
        # read of a reference.
        self._reader: TextReader | None = None
        self._fragments: list[str] = []
        self._taking = False
        self._exhausted = False
        self._committed = False
        self._is_over = False
        self.error: Exception | None = None

    def reader(self) -> "TextReader":
        """Cut off the reader before, and return one that stands at the beginning."""
        reader = TextReader(self)
        with self._changed:
            if not self._is_over:
                self._reader = reader
            self._changed.notify_all()
        return reader

    def commit(self) -> None:
        """Keep no fragment that the present reader has read."""
        with self._changed:
            self._committed = True
            if self._reader is not None:
                del self._fragments[: self._reader.position]
                self._reader.position = 0

    def end(self) -> None:
        """Cut off the present reader and those to come, and let go of all that they have read."""
        with self._changed:
            # Let go of after the section: the end of a source is foreign code.
            dropped = self._source, self._fragments, self.error
            self._is_over = True
            self._reader = self.error = None
            self._source = iter(())
            self._fragments = []  # a new one: this thread may just be looking at the old one
            self._changed.notify_all()
        del dropped

    def says_something(self) -> bool:
        """Tell whether there is more than blanks, if need be by reading on; cuts off the reader."""
        return any(fragment.strip() for fragment in self.reader())

    def idle(self) -> float:
        """Return the seconds for which the present reader has waited for the source."""
        reader = self._reader
        return 0.0 if reader is None else reader.idle()

    def next_for(self, reader: "TextReader") -> str:
        """Return a reader's next fragment.

        Raises:
            StopIteration: The text is at its end, or the reader has been cut off.
            Exception: The source has raised it.
        """
        fragment = None
        while fragment is None:
            fragment = self._read_or_take(reader)
        return fragment

    def _read_or_take(self, reader: "TextReader") -> str | None:
        """Return a reader's next fragment; None after it had first to be taken from the source."""
        taking = False
        try:
            with self._changed:
                while self._must_wait_locked(reader):
                    self._changed.wait()
                if reader is not self._reader:
                    raise StopIteration
                fragments = self._fragments
                if reader.position < len(fragments):
                    return self._fragment_locked(reader, fragments)
                if self._exhausted:
                    raise StopIteration if self.error is None else self.error
                self._taking = taking = True  # one statement: no interruption in between
            self._take()
            return None
        finally:
            if taking:
                with self._changed:
                    self._taking = False
                    self._changed.notify_all()

    def _must_wait_locked(self, reader: "TextReader") -> bool:
        """Tell whether a reader needs the fragment that another thread is just taking."""
        wants_more = reader is self._reader and reader.position == len(self._fragments)
        return wants_more and self._taking

    def _fragment_locked(self, reader: "TextReader", fragments: list[str]) -> str:
        if self._committed:
            return fragments.pop(0)
        reader.position += 1
        return fragments[reader.position - 1]

    def _take(self) -> None:
        """Take one fragment from the source; only in the thread that has set `_taking`."""
        try:
            fragment = next(self._source)
        except StopIteration:
            self._end(None)
        except Exception as error:
            self._end(error)
        else:
            with self._changed:
                self._fragments.append(fragment)

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            self.error = error
            self._exhausted = True


@final
class TextReader(Iterator[str]):
    """The fragments of a text, for one attempt to speak it."""

    __slots__ = ("_idle", "_lock", "_text", "_waiting", "_waiting_since", "position")

    def __init__(self, text: ReplayedText) -> None:
        """Stand at the beginning of a text."""
        self._text = text
        self.position = 0  # in the buffer, guarded by its lock
        self._lock = Lock()
        # Guarded by this lock: how many threads of the provider wait, since when, and how long
        # some thread has waited before.
        self._waiting = 0
        self._waiting_since = 0.0
        self._idle = 0.0

    @override
    def __next__(self) -> str:
        self._wait(1)
        try:
            return self._text.next_for(self)
        finally:
            self._wait(-1)

    def idle(self) -> float:
        """Return the seconds for which this reader has waited."""
        return self._wait(0)

    def _wait(self, more: int) -> float:
        """Let one more thread wait, or one less; return for how long some thread has waited."""
        with self._lock:
            now = monotonic()
            if self._waiting:
                self._idle += now - self._waiting_since
            self._waiting_since = now
            self._waiting += more
            return self._idle
