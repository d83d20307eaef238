"""A turn of a spoken conversation, as in an application, and its result."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar, final

from integration.programs import Pocketsphinx, RecordedFlite
from integration.speech import (
    PHRASES,
    QUESTION,
    SAMPLE_RATE,
    SILENCE,
    VOICES,
    recognise,
    speak,
    words_of,
)
from resilience import (
    Attempt,
    CircuitBreakerConfig,
    FallbackConfig,
    LLMFallback,
    Outcome,
    ResilienceError,
    State,
    STTFallback,
    TTSFallback,
    http,
    llm,
    stt,
    tts,
)

T = TypeVar("T")

SUCCEEDED, FAILED, SKIPPED, CANCELLED = (
    *(Outcome.SUCCEEDED, Outcome.FAILED, Outcome.SKIPPED, Outcome.CANCELLED),
)

PIECE = 8_000  # bytes of audio
HEALTHY_EARS = (Pocketsphinx(), Pocketsphinx())
HEALTHY_VOICES = (RecordedFlite(), RecordedFlite())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The result of a turn.

    Attributes:
        heard: The words of the question as the application recognised it.
        text: The answer as the model wrote it.
        understood: The words of the spoken answer as the user recognised it.
        audio: The spoken answer.
        errors: Errors that were raised to the application, after which it tried once more.
    """

    heard: str
    text: str
    understood: str
    audio: bytes
    errors: tuple[Exception, ...]


class Assistant:
    """Three adapters, each with the primary and the backup of a test."""

    def __init__(
        self,
        *,
        ears: tuple[stt.Provider, stt.Provider] = HEALTHY_EARS,
        model: tuple[llm.Provider, llm.Provider],
        voice: tuple[tts.Provider, tts.Provider] = HEALTHY_VOICES,
        own_voice: tts.VoiceProfile = VOICES["slt"],
        attempt_timeout: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Make an adapter of each pair; voice and timeouts, by kind, are those of the primaries."""
        self.attempts: dict[str, list[tuple[str, Outcome]]] = {"stt": [], "llm": [], "tts": []}

        def config(kind: str) -> FallbackConfig:
            def on_attempt(attempt: Attempt) -> None:
                self.attempts[kind].append((attempt.provider, attempt.outcome))

            return FallbackConfig(
                circuit_breaker=CircuitBreakerConfig(
                    max_failures=1,
                    failure_on=http.is_provider_fault,
                    retry_after=http.retry_after,
                ),
                on_attempt=on_attempt,
            )

        self.stt = STTFallback(
            ears[0], "primary", config("stt"), attempt_timeout=attempt_timeout.get("stt")
        )
        self.stt.add_fallback("backup", ears[1])
        self.llm = LLMFallback(
            model[0], "primary", config("llm"), attempt_timeout=attempt_timeout.get("llm")
        )
        self.llm.add_fallback("backup", model[1])
        self.tts = TTSFallback(
            voice[0],
            "primary",
            config("tts"),
            voices={"slt": own_voice},
            attempt_timeout=attempt_timeout.get("tts"),
        )
        self.tts.add_fallback("backup", voice[1], voices={"slt": VOICES["rms"]})

    def adapter(self, kind: str) -> STTFallback | LLMFallback | TTSFallback:
        """Return the adapter of a kind."""
        adapters: dict[str, STTFallback | LLMFallback | TTSFallback]
        adapters = {"stt": self.stt, "llm": self.llm, "tts": self.tts}
        return adapters[kind]

    def take_turn(self, *, streaming: bool = True) -> Turn:
        """Recognise a question, answer it, and recognise the spoken answer."""
        errors: list[Exception] = []
        question = speak(QUESTION)
        heard = _once_more(lambda: self._hear(question), errors)
        text, audio = _once_more(lambda: self._answer(heard, streaming=streaming), errors)
        return Turn(
            heard=heard,
            text=text,
            understood=recognise(audio),
            audio=audio,
            errors=tuple(errors),
        )

    def _hear(self, audio: bytes) -> str:
        config = stt.StreamConfig(sample_rate=SAMPLE_RATE, language="en-US", keywords=PHRASES)
        with closing(self.stt.start_stream(config)) as session:
            for start in range(0, len(audio), PIECE):
                session.send_audio(audio[start : start + PIECE])
            session.send_audio(SILENCE)
            session.finish()
            return next(session.finals()).text

    def _answer(self, words: str, *, streaming: bool) -> tuple[str, bytes]:
        """Return text and audio of an answer; if streaming, the synthesiser reads the stream."""
        request = llm.CompletionRequest(
            messages=(llm.Message(role="user", content=words),), max_tokens=8
        )
        text: list[str] = []

        def fragments() -> Iterator[str]:
            if not streaming:
                text.append(self.llm.complete(request).content)
                yield text[0]
                return
            with self.llm.stream_completion(request) as chunks:
                for chunk in chunks:
                    text.append(chunk.content)
                    yield chunk.content

        with self.tts.synthesize_stream(fragments(), VOICES["slt"]) as speech:
            audio = b"".join(speech)
        return "".join(text), audio


def _once_more(work: Callable[[], T], errors: list[Exception]) -> T:
    """Call a function; if it raises, record the error and call it a second time."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - the tests check it
        errors.append(error)
        return work()


def check_failover(assistant: Assistant, kind: str, turn: Turn) -> None:
    """The primary of one kind failed once, its circuit is open, and no error was raised."""
    assert turn.errors == ()
    assert assistant.attempts[kind] == [("primary", FAILED), ("backup", SUCCEEDED)]
    assert assistant.adapter(kind).breakers["primary"].state is State.OPEN


def check_second_try(assistant: Assistant, kind: str, turn: Turn) -> None:
    """The primary's error was raised to the application once; then its breaker was open."""
    (error,) = turn.errors
    assert not isinstance(error, ResilienceError)
    attempts = [("primary", FAILED), ("primary", SKIPPED), ("backup", SUCCEEDED)]
    assert assistant.attempts[kind] == attempts


def check_words(turn: Turn, model: str) -> None:
    """Every word of question and answer was recognised, and one model wrote the answer."""
    assert turn.heard == QUESTION
    assert words_of(turn.text) == turn.understood == f"this is {model} rain is water from clouds"
