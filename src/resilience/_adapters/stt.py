"""A group of speech recognisers with the interface of a single recogniser."""

from collections.abc import Iterator, Sequence
from typing import final

from typing_extensions import override

from resilience import _settings, stt
from resilience._adapters.base import Adapter
from resilience._failover.attempts import Attempts
from resilience._failover.session import Session, open_session

_SESSION = ("send_audio", "partials", "finals", "set_keywords", "close")


@final
class STTSession(Session[stt.SessionHandle], stt.SessionHandle):
    """A recognition session of the first provider that could start one.

    An exception while sending audio or reading transcripts settles its call, as described for
    `Session`; an exception of `set_keywords` does not. For other methods of the provider's own
    session, use `execute` and `stream`.
    """

    @override
    def send_audio(self, audio: bytes) -> None:
        self._execute(lambda handle: handle.send_audio(audio), "send_audio")

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return self._stream(lambda handle: handle.partials(), "partials")

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        return self._stream(lambda handle: handle.finals(), "finals")

    def finish(self) -> None:
        """Signal the end of the audio to the provider; the transcripts end after the last words.

        Does nothing if the provider's session has no `finish()`. Read the transcripts until they
        end, and close the session afterwards: an exception before their end is a failure of the
        provider.

        Raises:
            Exception: The session is broken.
        """
        finish = getattr(self.handle, "finish", None)
        if callable(finish):
            self._execute(lambda _: finish(), "finish")

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        result: object = self.handle.set_keywords(keywords)
        _settings.refuse_coroutine(f"set_keywords() of provider {self.provider!r}", result)


@final
class STTFallback(Adapter[stt.Provider], stt.Provider):
    """Several speech recognisers as one `stt.Provider`: the first healthy one recognises.

    May be used by any number of threads, if its providers allow that.
    """

    _required = ("start_stream",)

    @override
    def start_stream(self, config: stt.StreamConfig) -> STTSession:
        """Start a session with the first provider that succeeds.

        The life of the session is one call to the provider's breaker. The call fails if sending
        audio, finishing or reading transcripts raises; it succeeds if the session is closed before
        that. So close the session.

        Args:
            config: Audio format, language and keywords.

        Returns:
            A session that passes all calls on to the provider's own session.

        Raises:
            AllFailedError: No provider started a session.
        """
        attempts = Attempts(self._group._members, "start_stream")
        return open_session(attempts, lambda each: each.start_stream(config), STTSession, _SESSION)
