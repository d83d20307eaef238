"""The contract of a speech synthesiser: what a provider does and the values it exchanges.

The values may be subclassed. `extra`, where a value has it, holds what a single vendor understands,
in a mapping with the vendor's name as the key. A provider reads its own key and ignores the others.
`extra` takes part in comparisons with `==`, but not in hashes or in the `repr`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceProfile:
    """A voice of one provider, and how it is to speak.

    A provider that cannot do what a field asks for raises `UnsupportedRequestError`; it never
    ignores the field.

    Attributes:
        id: The provider's own name for it.
        name: A name for people to read.
        language: BCP-47 tag of the language that it speaks; None if it speaks several.
        sample_rate: Samples in a second of its audio, in Hz; None for the provider's default.
        encoding: Format of its audio: "pcm_s16le" (16-bit little-endian PCM), "mulaw", "mp3",
            "opus", or another that the provider documents; None for the provider's default.
        speed: How fast it speaks; 1.0 is the voice's own speed, 2.0 is twice as fast.
        pitch: Semitones above (or, if negative, below) the voice's own pitch.
        instructions: How to speak, in words for the model to read.
        extra: Options of one vendor.
    """

    id: str
    name: str = ""
    language: str | None = None
    sample_rate: int | None = None
    encoding: str | None = None
    speed: float = 1.0
    pitch: float = 0.0
    instructions: str = ""
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


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
            The audio in order, of one channel, in the encoding and at the rate of the voice, or
            else 16-bit little-endian PCM, unless the provider documents another; at least one
            piece if the text has a letter or a digit. Iterating over it raises if the audio breaks
            off.

        Raises:
            UnsupportedRequestError: The synthesiser cannot do what the voice asks for.
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
