"""A speech synthesiser that follows a script."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias, final

from typing_extensions import override

from resilience import tts
from resilience.testing._script import Action, FakeStream, ManualClock, Script, started


@final
@dataclass(frozen=True, slots=True)
class ReadText:
    """An item of a `FakeTTS` script: fragments of the text are read but not spoken.

    Attributes:
        fragments: How many fragments are read.
    """

    fragments: int


TTSItem: TypeAlias = bytes | ReadText | Action
"""An item of a `FakeTTS` script."""

TTSStep: TypeAlias = bytes | Exception | Sequence[TTSItem] | None
"""What one call to a `FakeTTS` does."""


@final
class FakeTTS(tts.Provider):
    """A speech synthesiser that follows a script.

    A step is None, audio, an exception, or a sequence of audio, `ReadText` items and actions. With
    None the text is spoken: each fragment, encoded, is a piece of audio. In a sequence only
    `ReadText` reads the text.

    Attributes:
        texts: The fragments that each call has read.
        voices: The voice of each call.
        streams: Streams that were opened.
    """

    def __init__(
        self,
        *steps: TTSStep,
        lazy: bool = True,
        clock: ManualClock | None = None,
        voices: Sequence[tts.VoiceProfile] = (),
    ) -> None:
        """Make a synthesiser that follows a script.

        Args:
            *steps: One step for each call of any method; None if omitted. `list_voices()` and
                `clone_voice()` perform all actions of a step, and then return their result.
            lazy: Whether a stream does nothing before its first `next()`, as generators do.
            clock: The clock that a `Delay` advances.
            voices: Result of `list_voices()`.

        Raises:
            TypeError: A step has another type.
        """
        self._script = Script[TTSStep](
            steps or (None,), clock, type(None), bytes, Exception, Sequence
        )
        self._lazy = lazy
        self._voices = tuple(voices)
        self.texts: list[list[str]] = []
        self.voices: list[tts.VoiceProfile] = []
        self.streams: list[FakeStream[bytes]] = []

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> FakeStream[bytes]:
        taken: list[str] = []
        self.texts.append(taken)
        self.voices.append(voice)
        audio = self._audio(self._script.next_step(), iter(text), taken)
        stream = FakeStream(started(audio, lazy=self._lazy))
        self.streams.append(stream)
        return stream

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        self._act()
        return self._voices

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Return a voice whose id contains the number of samples."""
        self._act()
        return tts.VoiceProfile(id=f"clone-of-{len(samples)}")

    def _act(self) -> None:
        step = self._script.next_step()
        for item in [step] if step is None or isinstance(step, (bytes, Exception)) else step:
            if item is not None and not isinstance(item, (bytes, ReadText)):
                self._script.act(item)

    def _audio(self, step: TTSStep, text: Iterator[str], taken: list[str]) -> Iterator[bytes]:
        if step is None:
            for fragment in text:
                taken.append(fragment)
                yield fragment.encode()
            return
        for item in [step] if isinstance(step, (bytes, Exception)) else step:
            if isinstance(item, bytes):
                yield item
            elif isinstance(item, ReadText):
                taken.extend(islice(text, item.fragments))
            else:
                self._script.act(item)
