"""The contract of a speech recogniser: what a provider does and the values it exchanges.

The values may be subclassed. `extra`, where a value has it, holds what a single vendor understands,
in a mapping with the vendor's name as the key. A provider reads its own key and ignores the others.
`extra` takes part in comparisons with `==`, but not in hashes or in the `repr`.
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
        boost: How much likelier than otherwise, on the provider's scale.
    """

    text: str
    boost: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """The audio of a session, and what to make of it.

    A provider that cannot do what a field asks for raises `UnsupportedRequestError`; it never
    ignores the field.

    Attributes:
        sample_rate: Samples of one channel in a second, in Hz.
        channels: Number of channels, interleaved.
        encoding: Format of the audio: "pcm_s16le" (16-bit little-endian PCM), "mulaw", "alaw",
            "opus", "flac", or another that the provider documents.
        language: BCP-47 tag of the language; None for the provider to detect it.
        keywords: Phrases that are likely to occur.
        interim_results: Whether transcripts that may still change are wanted, if the recogniser has
            them.
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
        confidence: From 0, a guess, to 1, certain; None if the provider does not say.
        speaker: Who says it, by a label that holds within the session; None if the provider does
            not say.
    """

    text: str
    start: float
    duration: float
    confidence: float | None = None
    speaker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was recognised in a stretch of audio.

    Attributes:
        text: The words.
        is_final: Whether it will not change any more.
        confidence: From 0, a guess, to 1, certain; None if the provider does not say.
        start: Seconds from the beginning of the session.
        duration: Seconds that it covers.
        words: Each word by itself, if the provider says.
        ends_utterance: Whether the speaker has finished, as far as the provider can tell. Such a
            transcript may have no text.
        speaker: Who says it, by a label that holds within the session; None if the provider does
            not say, or there are several.
        channel: Channel of the audio, from 0; None if all were recognised together.
        language: BCP-47 tag of the language that was recognised; None if the provider does not say.
        extra: What one vendor alone reports.
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

    One thread may send audio while others read transcripts. A method that cannot do its work
    raises; a session that is broken does not end its transcripts as if nothing had happened.

    A session may have one more method, `finish()`, which takes nothing and returns None: no more
    audio comes, and the transcripts end by themselves after the last words. It does not wait for
    them; `close()` is still called afterwards. It is no member of the protocol, since not every
    recogniser can do it: the session of `STTFallback` always has it, and it does nothing if the
    provider's session has none.
    """

    @abstractmethod
    def send_audio(self, audio: bytes) -> None:
        """Send the next stretch of audio.

        Args:
            audio: Samples in the format of the session's configuration, any number of them.

        Raises:
            Exception: The session cannot take it.
        """
        ...

    @abstractmethod
    def partials(self) -> Iterable[Transcript]:
        """Return transcripts that may still change, as they come.

        Returns:
            An iterable that waits for the next one, and ends with the session.

        Raises:
            Exception: The session is broken; iterating may raise it, too.
        """
        ...

    @abstractmethod
    def finals(self) -> Iterable[Transcript]:
        """Return transcripts that will not change any more, as they come.

        Returns:
            An iterable that waits for the next one, and ends with the session.

        Raises:
            Exception: The session is broken; iterating may raise it, too.
        """
        ...

    @abstractmethod
    def set_keywords(self, keywords: Sequence[Keyword]) -> None:
        """Replace the phrases that are likely to occur.

        Args:
            keywords: The new phrases.

        Raises:
            Exception: The provider cannot change them in a session.
        """
        ...

    @abstractmethod
    def close(self) -> None:
        """End the session and release what it holds.

        Any thread may call it, also while others wait for transcripts, which end then. Closing it
        again does nothing.
        """
        ...


class Provider(Protocol):
    """A speech recogniser.

    A method that cannot do its work raises. One provider may be called by several threads at a
    time.
    """

    @abstractmethod
    def start_stream(self, config: StreamConfig) -> SessionHandle:
        """Start a session, and return it when it is ready for audio.

        A session is not moved to another provider once it has been returned. So whatever can fail
        at the beginning (connection, handshake, authorisation) belongs in this call.

        Args:
            config: The audio of the session.

        Returns:
            A session, which the caller closes.

        Raises:
            UnsupportedRequestError: The recogniser cannot do what the configuration asks for.
            Exception: The session cannot be started.
        """
        ...
