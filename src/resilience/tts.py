"""The contract of a speech synthesiser: what a provider does and the values it exchanges."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceProfile:
    """A voice of one provider.

    Attributes:
        id: The provider's own name for it.
        name: A name for people to read.
        language: BCP-47 tag of the language that it speaks; None if it speaks several.
        sample_rate: Samples in a second of its audio, in Hz; None if it is not fixed.
    """

    id: str
    name: str = ""
    language: str | None = None
    sample_rate: int | None = None


class Provider(Protocol):
    """A speech synthesiser.

    A method that cannot do its work raises; it never returns something empty instead. One provider
    may be called by several threads at a time.
    """

    @abstractmethod
    def synthesize_stream(self, text: Iterable[str], voice: VoiceProfile) -> Iterable[bytes]:
        """Synthesise a text as it arrives.

        The work may begin with this call or with the first `next()`. If what is returned has a
        method `close()`, it is called once when the audio has ended or is no longer needed, by any
        thread, but not while a `next()` is under way.

        Args:
            text: Fragments of the text, which can be read once; reading may wait for the next one,
                and may take place in a thread of the provider's.
            voice: Voice to speak with.

        Returns:
            The audio in order: 16-bit little-endian PCM of one channel, unless the provider says
            otherwise; at least one piece if the text has a letter or a digit. Iterating over it
            raises if the audio breaks off.

        Raises:
            Exception: There is no audio.
        """
        ...

    @abstractmethod
    def list_voices(self) -> Sequence[VoiceProfile]:
        """Return the voices that the provider has.

        Returns:
            All voices, in the provider's order.

        Raises:
            Exception: They cannot be listed.
        """
        ...

    @abstractmethod
    def clone_voice(self, samples: Sequence[bytes]) -> VoiceProfile:
        """Make a voice that sounds like some recordings.

        Args:
            samples: Recordings of one voice, each a whole file in a format that the provider reads.

        Returns:
            The new voice.

        Raises:
            Exception: It cannot be made.
        """
        ...
