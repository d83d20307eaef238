"""Uses of groups and adapters that type checkers must accept or reject; this is never run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import assert_type

from resilience import (
    Attempt,
    CircuitBreaker,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    Session,
    Stream,
    STTFallback,
    STTSession,
    TTSFallback,
    execute_with_result,
    llm,
    stt,
    tts,
)
from resilience.testing import FakeLLM, FakeSTT, FakeTTS


class Search:
    """A provider of some kind of the user's own."""

    def find(self, words: str) -> list[str]:
        """Return what was found."""
        return words.split()

    def each(self, words: str) -> Iterator[str]:
        """Yield what is found."""
        yield from words.split()


# a group of any kind of provider

group = FallbackGroup(Search(), "primary")
group.add_fallback("second", Search(), attempt_timeout=1.5)

assert_type(group, FallbackGroup[Search])
assert_type(group.primary, Search)
assert_type(group.breakers, Mapping[str, CircuitBreaker])
assert_type(group.execute(lambda search: search.find("words")), list[str])
assert_type(execute_with_result(group, lambda search: search.find("words")), list[str])
assert_type(group.stream(lambda search: search.each("words")), Stream[str])
assert_type(group.stream(lambda search: search.find("words"), lazy=True), Stream[str])

FallbackGroup(Search())  # type: ignore[call-arg]
FallbackGroup(Search(), 3)  # type: ignore[arg-type]
group.add_fallback("third", "not a search")  # type: ignore[arg-type]
group.add_fallback(Search(), "third")  # type: ignore[arg-type]
group.stream(lambda search: search.find("words"), lazy="later")  # type: ignore[arg-type]
group.stream(lambda _: 3)  # type: ignore[arg-type, return-value]
group.execute(lambda search: search.find(3))  # type: ignore[arg-type]
group.breakers["primary"] = CircuitBreaker()  # type: ignore[index]
group.primary = Search()  # type: ignore[misc]

# streams

stream = group.stream(lambda search: search.each("words"))
assert_type(stream.provider, str | None)
assert_type(next(stream), str)
assert_type(stream.close(), None)
with stream as opened:
    assert_type(opened, Stream[str])
as_objects: Stream[object] = stream
as_numbers: Stream[int] = stream  # type: ignore[assignment]
for item in stream:
    assert_type(item, str)

# settings and reports

reports: list[Attempt] = []
config = FallbackConfig(
    circuit_breaker=CircuitBreakerConfig(max_failures=1),
    fallback_on=(OSError, TimeoutError),
    on_attempt=reports.append,
    attempt_timeout=2.5,
)
FallbackConfig(config.circuit_breaker)  # type: ignore[call-arg]
FallbackConfig(fallback_on=BaseExceptionGroup)
FallbackConfig(interrupt_on=(KeyboardInterrupt, OSError))
FallbackConfig(fallback_on=int)  # type: ignore[arg-type]
FallbackConfig(interrupt_on=OSError)  # type: ignore[arg-type]
FallbackConfig(on_attempt=len)  # type: ignore[arg-type]
FallbackConfig(attempt_timeout="1")  # type: ignore[arg-type]
config.attempt_timeout = 1.0  # type: ignore[misc]
assert_type(reports[0].outcome, Outcome)
assert_type(reports[0].error, BaseException | None)
assert_type(reports[0].duration, float)

# adapters are providers of their kind

request = llm.CompletionRequest(messages=(llm.Message(role="user", content="Hello?"),))
voice = tts.VoiceProfile(id="voice")

model = LLMFallback(FakeLLM(), "primary", config)
model.add_fallback("second", FakeLLM())
an_llm: llm.Provider = model
assert_type(model.complete(request), llm.CompletionResponse)
assert_type(model.stream_completion(request), Stream[llm.Chunk])
assert_type(model.count_tokens(request.messages), int)
assert_type(model.capabilities(), llm.ModelCapabilities)
assert_type(model.breakers, Mapping[str, CircuitBreaker])

recogniser = STTFallback(FakeSTT(), "primary", attempt_timeout=1.0)
an_stt: stt.Provider = recogniser
session = recogniser.start_stream(stt.StreamConfig())
a_session: stt.SessionHandle = session
assert_type(session, STTSession)
assert_type(session.provider, str)
assert_type(session.handle, stt.SessionHandle)
assert_type(session.execute(lambda handle: handle.send_audio(b"")), None)
assert_type(session.finals(), Iterator[stt.Transcript])
session.finish()

connections = FallbackGroup(Search(), "search")
with connections.session(lambda each: each.find("rain")) as connection:
    assert_type(connection, Session[list[str]])
    assert_type(connection.execute(len), int)
    assert_type(connection.stream(iter), Iterator[str])
group.add_fallback("fourth", Search(), circuit_breaker=CircuitBreakerConfig(max_failures=2))
FallbackGroup(Search(), "primary", circuit_breaker=3)  # type: ignore[arg-type]
FallbackConfig(when_all_open="try")
FallbackConfig(when_all_open="maybe")  # type: ignore[arg-type]
connections.session()  # type: ignore[call-arg]

speaker = TTSFallback(FakeTTS(), "primary", voices={"voice": voice})
speaker.add_fallback("second", FakeTTS(), voices={"voice": voice}, attempt_timeout=1.0)
a_tts: tts.Provider = speaker
speech = speaker.synthesize_stream(["Hello"], voice)
audio: Stream[bytes] = speech
assert_type(speech.voice, tts.VoiceProfile | None)
assert_type(next(speech), bytes)
assert_type(speaker.list_voices(), Sequence[tts.VoiceProfile])
assert_type(speaker.clone_voice([b""]), tts.VoiceProfile)

LLMFallback(FakeTTS(), "primary")  # type: ignore[arg-type]
model.add_fallback("third", FakeSTT())  # type: ignore[arg-type]
model.complete("Hello?")  # type: ignore[arg-type]
STTFallback(FakeSTT(), "primary", voices={})  # type: ignore[call-arg]
speaker.add_fallback("third", FakeTTS(), voices={"voice": "name"})  # type: ignore[dict-item]


# users need not inherit a protocol, and a group inside a group is a provider


class Own:
    """A synthesiser of the user's own, which inherits nothing."""

    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        """Speak."""
        for fragment in text:
            yield f"{voice.id}: {fragment}".encode()

    def list_voices(self) -> list[tts.VoiceProfile]:
        """Have one voice."""
        return [voice]

    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Make a voice."""
        return tts.VoiceProfile(id=str(len(samples)))


TTSFallback(Own(), "own")
TTSFallback(speaker, "nested")


class Incomplete(llm.Provider):
    """A model that lacks methods of the contract."""


Incomplete()  # type: ignore[abstract]
LLMFallback(Search(), "search")  # type: ignore[arg-type]


class Derived(LLMFallback):  # type: ignore[misc]
    """The adapters are final."""
