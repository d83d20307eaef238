"""The contract of a speech recogniser: what a provider does and the values it exchanges."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Keyword:
    """A word or phrase that is likely to occur.

    Attributes:
        text: The phrase.
        boost: How much likelier than otherwise, on the provider's scale.
    """

    text: str
    boost: float = 1.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """The audio of a session: 16-bit little-endian PCM, unless the provider documents another.

    Attributes:
        sample_rate: Samples of one channel in a second, in Hz.
        channels: Number of channels, interleaved.
        language: BCP-47 tag of the language; None for the provider to detect it.
        keywords: Phrases that are likely to occur.
    """

    sample_rate: int = 16_000
    channels: int = 1
    language: str | None = None
    keywords: tuple[Keyword, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One recognised word.

    Attributes:
        text: The word.
        start: Seconds from the beginning of the session.
        duration: Seconds that it takes.
        confidence: From 0, a guess, to 1, certain; None if the provider does not say.
    """

    text: str
    start: float
    duration: float
    confidence: float | None = None


@final
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
    """

    text: str
    is_final: bool = False
    confidence: float | None = None
    start: float = 0.0
    duration: float = 0.0
    words: tuple[Word, ...] = ()


class SessionHandle(Protocol):
    """A recognition session that has been started.

    One thread may send audio while others read transcripts. A method that cannot do its work
    raises; a session that is broken does not end its transcripts as if nothing had happened.
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
        """Start a session.

        Args:
            config: The audio of the session.

        Returns:
            A session, which the caller closes.

        Raises:
            Exception: The session cannot be started.
        """
        ...
