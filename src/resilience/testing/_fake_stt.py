"""A speech recogniser and recognition sessions that follow scripts."""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TypeAlias, final

from typing_extensions import override

from resilience import stt
from resilience.testing._script import Action, ManualClock, Script

STTItem: TypeAlias = str | stt.Transcript | Action
"""An item of a `FakeSession` script: a string is the text of a transcript."""


@final
class FakeSession(stt.SessionHandle):
    """A recognition session that follows scripts.

    Attributes:
        audio: Pieces of audio that were sent.
        keywords: Keywords that were set last.
        finished: How many times `finish()` was called.
        closed: How many times `close()` was called.
    """

    def __init__(
        self,
        *finals: STTItem,
        partials: Sequence[STTItem] = (),
        sending: Sequence[Action | None] = (),
        finishing: Action | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        """Make a session that follows scripts.

        Args:
            *finals: Final transcripts, and actions between them; a string is the text of a
                transcript.
            partials: The same for partial transcripts.
            sending: Actions of `send_audio()`: one for each piece of audio, the last one for all
                that follow; None does nothing.
            finishing: Action of `finish()`; None does nothing.
            clock: The clock that a `Delay` advances.
        """
        self._script = Script[Action | None](sending or (None,), clock, object)
        self._finals = finals
        self._partials = partials
        self._finishing = finishing
        self._lock = Lock()
        self.audio: list[bytes] = []
        self.keywords: tuple[stt.Keyword, ...] = ()
        self.finished: int = 0
        self.closed: int = 0

    @override
    def send_audio(self, audio: bytes) -> None:
        action = self._script.next_step()
        if action is not None:
            self._script.act(action)
        self.audio.append(audio)

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return self._transcripts(self._partials, is_final=False)

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        return self._transcripts(self._finals, is_final=True)

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        self.keywords = tuple(keywords)

    def finish(self) -> None:
        """Record that the audio has ended; the transcripts follow their script as before."""
        with self._lock:
            self.finished += 1
        if self._finishing is not None:
            self._script.act(self._finishing)

    @override
    def close(self) -> None:
        with self._lock:
            self.closed += 1

    def _transcripts(self, items: Sequence[STTItem], *, is_final: bool) -> Iterator[stt.Transcript]:
        for item in items:
            if isinstance(item, str):
                yield stt.Transcript(text=item, is_final=is_final)
            elif isinstance(item, stt.Transcript):
                yield item
            else:
                self._script.act(item)


STTStep: TypeAlias = FakeSession | Exception | Sequence[Action | FakeSession]
"""What one call to a `FakeSTT` does."""


@final
class FakeSTT(stt.Provider):
    """A speech recogniser that follows a script.

    A step is a session, an exception, or a sequence of actions and a session.

    Attributes:
        configs: Configurations in the order of the calls.
    """

    def __init__(self, *steps: STTStep, clock: ManualClock | None = None) -> None:
        """Make a recogniser that follows a script.

        Args:
            *steps: One step for each call; a new session without transcripts if omitted.
            clock: The clock that a `Delay` advances.

        Raises:
            TypeError: A step has another type.
        """
        self._script = Script[STTStep](steps or ((),), clock, FakeSession, Exception, Sequence)
        self.configs: list[stt.StreamConfig] = []

    @override
    def start_stream(self, config: stt.StreamConfig) -> FakeSession:
        self.configs.append(config)
        step = self._script.next_step()
        for item in [step] if isinstance(step, (FakeSession, Exception)) else step:
            if isinstance(item, FakeSession):
                return item
            self._script.act(item)
        return FakeSession()
