"""The contract of a speech recogniser: the methods of a provider, and their arguments and results.

The values may be subclassed. Some have a field `extra`, for data that only one vendor understands.
It is a mapping with the vendor's name as the key. A provider reads its own key and ignores the
others. `extra` takes part in comparisons with `==`, but not in hashes or in the `repr`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyword:
    """A word or phrase that is likely to occur.

    Attributes:
        text: The phrase.
        boost: How much more likely the phrase is, on the provider's scale.
    """

    text: str
    boost: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """The audio of a session, and how to recognise it.

    A provider that does not support a field raises `UnsupportedRequestError`; it never ignores the
    field.

    Attributes:
        sample_rate: Samples of one channel in a second, in Hz.
        channels: Number of channels, interleaved.
        encoding: Format of the audio: "pcm_s16le" (16-bit little-endian PCM), "mulaw", "alaw",
            "opus", "flac", or another that the provider documents.
        language: BCP-47 tag of the language; None for the provider to detect it.
        keywords: Phrases that are likely to occur.
        interim_results: Whether the recogniser should return transcripts that may still change, if
            it has them.
        extra: Options of one vendor.
    """

    sample_rate: int = 16_000
    channels: int = 1
    encoding: str = "pcm_s16le"
    language: str | None = None
    keywords: tuple[Keyword, ...] = ()
    interim_results: bool = True
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One recognised word.

    Attributes:
        text: The word.
        start: Seconds from the beginning of the session.
        duration: Seconds that it takes.
        confidence: From 0 (a guess) to 1 (certain); None if the provider does not report it.
        speaker: Label of the speaker, valid within the session; None if the provider does not
            report it.
    """

    text: str
    start: float
    duration: float
    confidence: float | None = None
    speaker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """The text that was recognised in a part of the audio.

    Attributes:
        text: The words.
        is_final: Whether it will not change any more.
        confidence: From 0 (a guess) to 1 (certain); None if the provider does not report it.
        start: Seconds from the beginning of the session.
        duration: Seconds that it covers.
        words: The words one by one, if the provider reports them.
        ends_utterance: Whether the speaker has finished, as far as the provider can detect. Such a
            transcript may have no text.
        speaker: Label of the speaker, valid within the session; None if the provider does not
            report it, or there are several speakers.
        channel: Channel of the audio, from 0; None if all were recognised together.
        language: BCP-47 tag of the language that was recognised; None if the provider does not
            report it.
        extra: Data that only this vendor reports.
    """

    text: str
    is_final: bool = False
    confidence: float | None = None
    start: float = 0.0
    duration: float = 0.0
    words: tuple[Word, ...] = ()
    ends_utterance: bool = False
    speaker: str | None = None
    channel: int | None = None
    language: str | None = None
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


class SessionHandle(Protocol):
    """A recognition session that has been started.

    One thread may send audio while others read transcripts. A method that cannot do its work raises
    an exception; if a session breaks off, its transcripts raise an exception, they do not end.

    A session may have one more method, `finish()`, which has no arguments and returns None. It
    signals the end of the audio to the recogniser, so that the transcripts end after the last
    words. It does not wait for them; `close()` is still called afterwards. It is not a member of
    the protocol, since not every recogniser supports it. The session of `STTFallback` always has
    it; there it does nothing if the provider's session has no `finish()`.
    """

    @abstractmethod
    def send_audio(self, audio: bytes) -> None:
        """Send the next piece of audio.

        Args:
            audio: Samples in the format of the session's configuration, any number of them.

        Raises:
            Exception: The session cannot accept the audio.
        """
        ...

    @abstractmethod
    def partials(self) -> Iterable[Transcript]:
        """Return transcripts that may still change, as they arrive.

        Returns:
            An iterable that waits for the next transcript, and ends with the session.

        Raises:
            Exception: The session is broken; iterating may raise it too.
        """
        ...

    @abstractmethod
    def finals(self) -> Iterable[Transcript]:
        """Return transcripts that will not change any more, as they arrive.

        Returns:
            An iterable that waits for the next transcript, and ends with the session.

        Raises:
            Exception: The session is broken; iterating may raise it too.
        """
        ...

    @abstractmethod
    def set_keywords(self, keywords: Sequence[Keyword]) -> None:
        """Replace the phrases that are likely to occur.

        Args:
            keywords: The new phrases.

        Raises:
            Exception: The provider cannot change the phrases during a session.
        """
        ...

    @abstractmethod
    def close(self) -> None:
        """End the session and release its resources.

        Any thread may call it, even while other threads wait for transcripts; it ends the
        transcripts. Closing a session again does nothing.
        """
        ...


class Provider(Protocol):
    """A speech recogniser.

    A method that cannot do its work raises an exception. Several threads may call one provider at
    the same time.
    """

    @abstractmethod
    def start_stream(self, config: StreamConfig) -> SessionHandle:
        """Start a session, and return it when it is ready for audio.

        A session is not moved to another provider once it has been returned. So connect, complete
        the handshake and authorise in this call.

        Args:
            config: The audio of the session.

        Returns:
            A session; the caller closes it.

        Raises:
            UnsupportedRequestError: The recogniser does not support the configuration.
            Exception: The session cannot be started.
        """
        ...
