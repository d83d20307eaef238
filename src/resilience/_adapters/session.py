"""A recognition session that is one call to its provider's breaker."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, final

from typing_extensions import override

from resilience import stt
from resilience._failover.attempts import Call, refuse_result
from resilience._failover.source import ProviderStream, is_iterable
from resilience._log import log_suppressed
from resilience._settings import Uncopyable


@final
class Session(stt.SessionHandle, Uncopyable):
    """Passes everything on to a provider's session, and settles its call once.

    The first exception that sending audio or reading transcripts raises settles the call: it has
    failed, or is neither failure nor success if the exception does not count. It succeeded if the
    session was closed before. Dropping a session without closing it closes it and releases the
    call's permit.

    The provider's session is started and closed in one `contextvars` context, whichever threads do
    it; each iterator of transcripts is advanced and closed in a copy of that.

    May be used by as many threads as the provider's own session. Cannot be copied.
    """

    def __init__(self, call: Call[Any], session: stt.SessionHandle) -> None:
        """Settle the call of a session that has been started."""
        self._once = Lock()  # taken once, by the thread that closes
        self._session = session
        self._call = call

    @property
    def provider(self) -> str:
        """Name of the provider that serves the session."""
        return self._call.member.name

    @override
    def send_audio(self, audio: bytes) -> None:
        with self._settling():
            self._session.send_audio(audio)

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return self._transcripts("partials", self._session.partials)

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        return self._transcripts("finals", self._session.finals)

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        self._session.set_keywords(keywords)

    @override
    def close(self) -> None:
        """Settle the call and close the provider's session. Closing again does nothing."""
        try:
            self._call.succeed()
        finally:
            self._close()

    def __del__(self) -> None:
        """Close a session that was never closed, and release the permit."""
        if not hasattr(self, "_call"):  # its making was interrupted
            return
        self._call.cancel()
        try:
            self._close()
        except Exception as raised:
            log_suppressed("close() of a provider's session", raised)

    def _close(self) -> None:
        if self._once.acquire(blocking=False):
            close_in_context(self._call, self._session)

    def _transcripts(
        self, method: str, read: Callable[[], Iterable[stt.Transcript]]
    ) -> Iterator[stt.Transcript]:
        context = self._call.context.copy()
        with self._settling():
            transcripts = context.run(read)
            if not is_iterable(transcripts):
                context.run(refuse_result, self._call.member, method, transcripts)
        interrupt_on = self._call.member.config.interrupt_on
        return self._settle_each(ProviderStream(transcripts, context, interrupt_on))

    def _settle_each(self, transcripts: ProviderStream[stt.Transcript]) -> Iterator[stt.Transcript]:
        try:
            with self._settling():
                transcripts.read_first(_is_nothing, lambda: None)
                yield from transcripts.first
                yield from transcripts.rest()
        finally:
            transcripts.close()

    @contextmanager
    def _settling(self) -> Generator[None, None, None]:
        """Settle the call if it raises; an interruption does not settle it."""
        try:
            yield
        except BaseException as error:
            if self._call.is_outcome(error):
                self._call.fail(error)
            raise


def close_in_context(call: Call[Any], session: stt.SessionHandle) -> None:
    """Close a provider's session in the context in which it was started."""
    call.context.run(session.close)


def _is_nothing(_transcript: stt.Transcript) -> bool:
    return False
