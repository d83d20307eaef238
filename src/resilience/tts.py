"""The contract of a speech synthesiser: the methods of a provider, and their arguments and results.

The values may be subclassed. Some have a field `extra`, for data that only one vendor understands.
It is a mapping with the vendor's name as the key. A provider reads its own key and ignores the
others. `extra` takes part in comparisons with `==`, but not in hashes or in the `repr`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceProfile:
    """A voice of one provider, and how it should speak.

    A provider that does not support a field raises `UnsupportedRequestError`; it never ignores the
    field.

    Attributes:
        id: The provider's id of the voice.
        name: A name to display.
        language: BCP-47 tag of the language that it speaks; None if it speaks several.
        sample_rate: Samples in a second of its audio, in Hz; None for the provider's default.
        encoding: Format of its audio: "pcm_s16le" (16-bit little-endian PCM), "mulaw", "mp3",
            "opus", or another that the provider documents; None for the provider's default.
        speed: How fast it speaks; 1.0 is the voice's own speed, 2.0 is twice as fast.
        pitch: Semitones above (or, if negative, below) the voice's own pitch.
        instructions: How to speak, as text for the model.
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

    A method that cannot do its work raises an exception; it never returns an empty result instead.
    Several threads may call one provider at the same time.
    """

    @abstractmethod
    def synthesize_stream(self, text: Iterable[str], voice: VoiceProfile) -> Iterable[bytes]:
        """Synthesise a text as it arrives.

        The work may begin with this call or with the first `next()`. If the returned object has a
        method `close()`, it is called once when the audio has ended or is no longer needed, by any
        thread, but not while a `next()` is under way.

        Args:
            text: Fragments of the text, which can be read only once. Reading may wait for the next
                fragment; the provider may read in a thread of its own.
            voice: Voice to speak with.

        Returns:
            The audio in order, with one channel, in the encoding and sample rate of the voice;
            16-bit little-endian PCM if the voice has no encoding, unless the provider documents
            another. At least one piece if the text has a letter or a digit. Iterating over it
            raises if the audio breaks off.

        Raises:
            UnsupportedRequestError: The synthesiser does not support what the voice asks for.
            Exception: There is no audio.
        """
        ...

    @abstractmethod
    def list_voices(self) -> Sequence[VoiceProfile]:
        """Return the voices that the provider has.

        Returns:
            All voices, in the provider's order.

        Raises:
            Exception: The voices cannot be listed.
        """
        ...

    @abstractmethod
    def clone_voice(self, samples: Sequence[bytes]) -> VoiceProfile:
        """Make a voice that sounds like some recordings.

        Args:
            samples: Recordings of one voice, each a whole file in a format that the provider
                accepts.

        Returns:
            The new voice.

        Raises:
            Exception: The voice cannot be made.
        """
        ...
