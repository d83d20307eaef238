"""Fakes and a manual clock, for tests of applications and of this library.

A fake follows a script with one step for each call; the last step is repeated for ever. A step is
what the call answers, an exception that it raises, or a sequence of such items in order, among
which an exception is raised in the middle, a `Pause` advances the manual clock, and a function
without parameters is called, for instance to wait at a barrier.

    primary = FakeLLM(ConnectionError("refused"), "Hello again")       # down once, then back
    cut = FakeLLM(["Hello", ConnectionError("reset")])                 # dies in mid-stream
    slow = FakeLLM([Pause(2.5), "Hello"], clock=clock)                 # late by the manual clock

All fakes record what they were asked, and may be shared between threads.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from threading import Lock
from typing import Generic, TypeAlias, TypeVar, final

from typing_extensions import override

from resilience import llm, stt, tts

R = TypeVar("R")
S = TypeVar("S")


@final
class ManualClock:
    """A clock for `CircuitBreakerConfig.clock` that stands still until it is advanced."""

    def __init__(self, start: float = 0.0) -> None:
        """Make a clock that shows so many seconds."""
        self._lock = Lock()
        self._now = start

    def __call__(self) -> float:
        """Return the seconds that the clock shows."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: How much; 0 or more.

        Raises:
            ValueError: The seconds are negative.
        """
        if seconds < 0:
            msg = f"seconds must not be negative, not {seconds!r}"
            raise ValueError(msg)
        with self._lock:
            self._now += seconds


@final
@dataclass(frozen=True, slots=True)
class Pause:
    """An item of a script: time passes on the fake's manual clock.

    Attributes:
        seconds: How much time passes.
    """

    seconds: float


@final
@dataclass(frozen=True, slots=True)
class Take:
    """An item of a `FakeTTS` script: fragments of the text are read, and not spoken.

    Attributes:
        fragments: How many fragments are read.
    """

    fragments: int


Action: TypeAlias = BaseException | Pause | Callable[[], object]
"""An item of a script that brings no result: it raises, lets time pass, or calls a function."""


@final
class FakeStream(Iterator[R]):
    """A provider's stream, which follows one step of a script and records its closing.

    Attributes:
        closed: How many times `close()` was called.
    """

    def __init__(self, items: Iterator[R]) -> None:
        """Make a stream of what an iterator yields."""
        self._items = items
        self.closed: int = 0

    @override
    def __next__(self) -> R:
        """Return the next item, or raise as the script says."""
        return next(self._items)

    def close(self) -> None:
        """Record the closing."""
        self.closed += 1


class _Script(Generic[S]):
    """Steps of type S, one for each call."""

    def __init__(self, steps: Sequence[S], clock: ManualClock | None) -> None:
        self._lock = Lock()
        self._steps = list(steps)
        self._clock = clock

    def next_step(self) -> S:
        with self._lock:
            return self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]

    def act(self, action: Action) -> None:
        """Do what an item says that brings no result."""
        if isinstance(action, BaseException):
            raise action
        if isinstance(action, Pause):
            if self._clock is None:
                msg = f"{action} needs the fake's clock, which is not set"
                raise ValueError(msg)
            self._clock.advance(action.seconds)
        else:
            action()


def _started(items: Iterator[R], *, lazy: bool) -> Iterator[R]:
    """Return the items; if not lazy, get the first one now."""
    return items if lazy else chain(tuple(islice(items, 1)), items)


LLMItem: TypeAlias = str | llm.Chunk | Action
LLMStep: TypeAlias = str | llm.CompletionResponse | Exception | Sequence[LLMItem]


@final
class FakeLLM(llm.Provider):
    """A language model that follows a script.

    A step is an answer (a string or a response), an exception, or a sequence of strings, chunks
    and actions. A string that is a step is streamed word by word, with a last chunk that has the
    finish reason; a sequence is streamed as it is, so an empty one is an empty stream.

    Attributes:
        requests: Requests in the order of the calls.
        counted: Messages whose tokens were counted, in the order of the calls.
        streams: Streams that were opened.
    """

    def __init__(
        self,
        *steps: LLMStep,
        lazy: bool = True,
        clock: ManualClock | None = None,
        capabilities: llm.ModelCapabilities | None = None,
    ) -> None:
        """Make a model that follows a script.

        Args:
            *steps: One step for each call; "ok" if omitted.
            lazy: Whether a stream does nothing before its first `next()`, as generators do.
            clock: What `Pause` advances.
            capabilities: What `capabilities()` returns, a context window of 8192 tokens if omitted.
        """
        self._script = _Script[LLMStep](steps or ("ok",), clock)
        self._lazy = lazy
        self._capabilities = capabilities or llm.ModelCapabilities(context_window=8192)
        self.requests: list[llm.CompletionRequest] = []
        self.counted: list[tuple[llm.Message, ...]] = []
        self.streams: list[FakeStream[llm.Chunk]] = []

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        self.requests.append(request)
        step = self._script.next_step()
        if isinstance(step, llm.CompletionResponse):
            return step
        chunks = list(self._chunks(step))
        return llm.CompletionResponse(
            content="".join(chunk.content for chunk in chunks),
            tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
            finish_reason=chunks[-1].finish_reason if chunks else None,
            usage=chunks[-1].usage if chunks else None,
        )

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> FakeStream[llm.Chunk]:
        self.requests.append(request)
        chunks = self._chunks(self._script.next_step())
        stream = FakeStream(_started(chunks, lazy=self._lazy))
        self.streams.append(stream)
        return stream

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        """Return the number of words; this takes no step of the script."""
        self.counted.append(tuple(messages))
        return sum(len(message.content.split()) for message in messages)

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return self._capabilities

    def _chunks(self, step: LLMStep) -> Iterator[llm.Chunk]:
        if isinstance(step, llm.CompletionResponse):
            yield llm.Chunk(
                content=step.content,
                tool_calls=step.tool_calls,
                finish_reason=step.finish_reason,
                usage=step.usage,
            )
            return
        if isinstance(step, str):
            words = re.findall(r"\S+\s*|\s+", step)
            step = [*words, llm.Chunk(finish_reason="stop")]
        for item in [step] if isinstance(step, Exception) else step:
            if isinstance(item, str):
                yield llm.Chunk(content=item)
            elif isinstance(item, llm.Chunk):
                yield item
            else:
                self._script.act(item)


TTSItem: TypeAlias = bytes | Take | Action
TTSStep: TypeAlias = bytes | Exception | Sequence[TTSItem] | None


@final
class FakeTTS(tts.Provider):
    """A speech synthesiser that follows a script.

    A step is None, which speaks: each fragment of the text, encoded, is a chunk of audio. Or it is
    audio for any text, an exception, or a sequence of audio, `Take` items and actions, in which
    nothing else reads the text.

    Attributes:
        texts: For each call the fragments that the synthesiser has taken.
        voices: For each call the voice.
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
            *steps: One step for each call of any method; None if omitted.
            lazy: Whether a stream does nothing before its first `next()`, as generators do.
            clock: What `Pause` advances.
            voices: What `list_voices()` returns.
        """
        self._script = _Script[TTSStep](steps or (None,), clock)
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
        stream = FakeStream(_started(audio, lazy=self._lazy))
        self.streams.append(stream)
        return stream

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        self._raise_if_scripted()
        return self._voices

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Return a voice whose id tells the number of samples."""
        self._raise_if_scripted()
        return tts.VoiceProfile(id=f"clone-of-{len(samples)}")

    def _raise_if_scripted(self) -> None:
        step = self._script.next_step()
        if isinstance(step, Exception):
            raise step

    def _audio(self, step: TTSStep, text: Iterator[str], taken: list[str]) -> Iterator[bytes]:
        if step is None:
            for fragment in text:
                taken.append(fragment)
                yield fragment.encode()
            return
        for item in [step] if isinstance(step, (bytes, Exception)) else step:
            if isinstance(item, bytes):
                yield item
            elif isinstance(item, Take):
                taken.extend(islice(text, item.fragments))
            else:
                self._script.act(item)


STTItem: TypeAlias = str | stt.Transcript | Action


@final
class FakeSession(stt.SessionHandle):
    """A recognition session that follows scripts.

    Attributes:
        audio: Chunks of audio that were sent.
        keywords: Keywords that were set last.
        closed: How many times `close()` was called.
    """

    def __init__(
        self,
        *finals: STTItem,
        partials: Sequence[STTItem] = (),
        sending: Sequence[Action | None] = (),
        clock: ManualClock | None = None,
    ) -> None:
        """Make a session that follows scripts.

        Args:
            *finals: Final transcripts, or actions in between; a string is the text of one.
            partials: The same for partial transcripts.
            sending: What sending does before it accepts a chunk: one action for each chunk, the
                last one for all that follow; None for nothing.
            clock: What `Pause` advances.
        """
        self._script = _Script[Action | None](sending or (None,), clock)
        self._finals = finals
        self._partials = partials
        self.audio: list[bytes] = []
        self.keywords: tuple[stt.Keyword, ...] = ()
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

    @override
    def close(self) -> None:
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
            *steps: One step for each call; a session that hears nothing if omitted.
            clock: What `Pause` advances.
        """
        self._script = _Script[STTStep](steps or (FakeSession(),), clock)
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
