"""A recognition session that is one call to its provider's breaker."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, final

from typing_extensions import override

from resilience import stt
from resilience._log import log_swallowed
from resilience._run import Call


@final
class Session(stt.SessionHandle):
    """Hands everything through to a provider's session, and settles its call once.

    The first exception that sending audio or reading transcripts raises settles the call: it has
    failed, or is neither failure nor success if the exception does not count. It succeeded if the
    session was closed before. Dropping a session without closing it closes it and gives the call's
    permit back.

    May be used by as many threads as the provider's own session.
    """

    def __init__(self, call: Call[Any], session: stt.SessionHandle) -> None:
        """Watch over a session that has been started."""
        self._once = Lock()  # taken once, by the thread that closes
        self._session = session
        self._call = call

    @property
    def provider(self) -> str:
        """Name of the provider that serves the session."""
        return self._call.entry.name

    @override
    def send_audio(self, audio: bytes) -> None:
        with self._watched():
            self._session.send_audio(audio)

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return self._transcripts(self._session.partials)

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        return self._transcripts(self._session.finals)

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        self._session.set_keywords(keywords)

    @override
    def close(self) -> None:
        """Settle the call and close the provider's session. Closing again does nothing."""
        try:
            self._call.succeeded()
        finally:
            self._close()

    def __del__(self) -> None:
        """Close a session that was never closed, and give the permit back."""
        if not hasattr(self, "_call"):  # its making was interrupted
            return
        self._call.cancelled()
        try:
            self._close()
        except Exception as raised:
            log_swallowed("close() of a provider's session", raised)

    def _close(self) -> None:
        if self._once.acquire(blocking=False):
            self._session.close()

    def _transcripts(
        self, read: Callable[[], Iterable[stt.Transcript]]
    ) -> Iterator[stt.Transcript]:
        with self._watched():
            transcripts = read()
        return self._watch_each(transcripts)

    def _watch_each(self, transcripts: Iterable[stt.Transcript]) -> Iterator[stt.Transcript]:
        with self._watched():
            yield from transcripts

    @contextmanager
    def _watched(self) -> Generator[None, None, None]:
        try:
            yield
        except Exception as error:
            self._call.failed(error)
            raise
