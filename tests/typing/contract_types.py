"""Uses of the contracts that type checkers must accept or reject; this is never run."""

import unittest
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_type

from typing_extensions import override

from resilience import UnsupportedRequestError, llm, stt, tts
from resilience.testing import (
    FakeLLM,
    FakeSession,
    FakeSTT,
    LLMProviderContract,
    StatusError,
    STTProviderContract,
    TTSProviderContract,
)

# a conversation

picture = llm.Media(media_type="image/png", data=b"")
question = llm.Message(role="developer", content="Be brief.", attachments=(picture,))
tool = llm.ToolDefinition(name="weather", parameters={"type": "object"})
request = llm.CompletionRequest(
    messages=(question,),
    tools=(tool,),
    tool_choice="weather",
    response_format={"type": "object"},
    top_p=0.5,
    seed=1,
    reasoning_effort="low",
    model="large",
    timeout=2.5,
    extra={"north": {"tier": 1}},
)

assert_type(picture.data, bytes | None)
assert_type(question.attachments, tuple[llm.Media, ...])
assert_type(request.response_format, Mapping[str, object] | None)
assert_type(request.extra, Mapping[str, object] | None)
assert_type(replace(request, seed=2), llm.CompletionRequest)

llm.Message(role="moderator")  # type: ignore[arg-type]
llm.Message(role="user", attachments=[picture])  # type: ignore[arg-type]
llm.Message("user")  # type: ignore[call-arg]
llm.Media(data=b"")  # type: ignore[call-arg]
llm.Media(media_type="text/plain", data="text")  # type: ignore[arg-type]
llm.CompletionRequest(messages=(), extra={1: "north"})  # type: ignore[dict-item]
llm.CompletionRequest(messages=(), response_format="json")  # type: ignore[arg-type]
request.seed = 2  # type: ignore[misc]

# an answer

answer = llm.CompletionResponse(content="Rain.")
assert_type(answer.message, llm.Message)
assert_type(answer.refusal, str)
assert_type(answer.provider, str | None)
assert_type(llm.Chunk(reasoning="Clouds.").reasoning, str)
assert_type(llm.Usage(cache_read_tokens=1).total_tokens, int)
answer.message = question  # type: ignore[misc]
too_long: UnsupportedRequestError = llm.ContextWindowExceededError("9000 tokens")

# speech

assert_type(stt.StreamConfig(encoding="mulaw").interim_results, bool)
assert_type(stt.Transcript(text="").channel, int | None)
assert_type(tts.VoiceProfile(id="anna", speed=1.5).pitch, float)
stt.Word(text="rain", start=0.0, duration=0.5, speaker=1)  # type: ignore[arg-type]

# values of an application's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced(llm.CompletionRequest):
    """A request with a field of the application's."""

    trace: str


class Model(llm.Provider):
    """A model that also accepts the application's requests."""

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        """Answer with the trace, if there is one."""
        content = request.trace if isinstance(request, Traced) else ""
        return llm.CompletionResponse(content=content)

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        """Answer in chunks."""
        yield llm.Chunk(content=self.complete(request).content)

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        """Count messages."""
        return len(messages)

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        """Return what models of this kind can do."""
        return llm.ModelCapabilities(context_window=1, supports_reasoning=True)


Model().complete(Traced(messages=(question,), trace="t-1"))
Traced(messages=(question,))  # type: ignore[call-arg]

# `finish()` is no member of the contract


def finish(session: stt.SessionHandle) -> None:
    """End the audio of a session, which may be unable to do so."""
    session.finish()  # type: ignore[attr-defined]


# fakes

FakeLLM("text", answer, [llm.Chunk(), answer, "text", StatusError(503)], StatusError(429))
FakeLLM([b"text"])  # type: ignore[list-item]
assert_type(FakeSTT().start_stream(stt.StreamConfig()), FakeSession)
assert_type(FakeSession(finishing=StatusError(503)).finish(), None)
assert_type(StatusError(429, retry_after=0.5).status_code, int)
StatusError("429")  # type: ignore[arg-type]

# contract tests


class TestFake(LLMProviderContract, unittest.TestCase):
    """A user's test class, for both runners."""

    time_limit = 2
    tool_request = request
    unsupported_requests = (request,)

    @override
    def make_provider(self) -> FakeLLM:
        return FakeLLM()

    @override
    def make_broken_provider(self) -> llm.Provider:
        return FakeLLM(ConnectionError("refused"))

    @override
    def close_provider(self, provider: llm.Provider) -> None:
        assert_type(provider.capabilities(), llm.ModelCapabilities)


class TestWrong(STTProviderContract):
    """Errors in a test class that checkers must reject."""

    audio = "speech"  # type: ignore[assignment]

    @override
    def make_provider(self) -> llm.Provider:  # type: ignore[override]
        return FakeLLM()


assert_type(TestFake().make_interrupted_provider(), llm.Provider | None)
assert_type(TTSProviderContract.voice, tts.VoiceProfile)
assert_type(STTProviderContract().make_provider(), stt.Provider)
