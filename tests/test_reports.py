"""What reports of attempts, answers and representations say about who served a call."""

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    STTFallback,
    TTSFallback,
    llm,
    stt,
    tts,
)
from resilience.testing import FakeLLM, FakeSession, FakeSTT, FakeTTS, ManualClock


def test_reports_name_the_operation() -> None:
    """`operation` is the method of the contract, or the verb of the group."""
    attempts: list[Attempt] = []
    config = FallbackConfig(on_attempt=attempts.append)
    model = LLMFallback(FakeLLM("answer"), "a", config)
    request = llm.CompletionRequest(messages=())
    model.complete(request)
    list(model.stream_completion(request))
    model.count_tokens(())
    recogniser = STTFallback(FakeSTT(FakeSession()), "a", config)
    recogniser.start_stream(stt.StreamConfig()).close()
    speech = TTSFallback(FakeTTS(), "a", config)
    list(speech.synthesize_stream(["a"], tts.VoiceProfile(id="any")))
    speech.list_voices()
    speech.clone_voice(())
    group = FallbackGroup("a", "a", config)
    group.execute(str.upper)
    list(group.stream(str.upper))
    group.session(str.upper).close()
    group.breakers["a"].isolate()
    with pytest.raises(AllFailedError):
        group.execute(str.upper)

    assert [attempt.operation for attempt in attempts] == [
        "complete",
        "stream_completion",
        "count_tokens",
        "start_stream",
        "synthesize_stream",
        "list_voices",
        "clone_voice",
        "execute",
        "stream",
        "session",
        "execute",
    ]


@pytest.mark.parametrize("lazy", [False, True])
def test_reports_have_the_time_to_the_first_item(*, lazy: bool) -> None:
    """`first_item` is measured from the admission; without an item, and for calls, it is None."""
    clock = ManualClock()
    attempts: list[Attempt] = []
    config = FallbackConfig(
        circuit_breaker=CircuitBreakerConfig(clock=clock), on_attempt=attempts.append
    )
    group = FallbackGroup("a", "a", config)

    def items(_name: str) -> Iterator[int]:
        clock.advance(2)
        yield 1
        clock.advance(5)
        yield 2

    list(group.stream(items, lazy=lazy))
    list(group.stream(lambda _: [], lazy=lazy))
    group.execute(lambda _: clock.advance(1))

    assert [(each.first_item, each.duration) for each in attempts] == [(2, 7), (None, 0), (None, 1)]


def test_the_answer_names_its_provider() -> None:
    """`CompletionResponse.provider` is the entry that answered; the provider's own is unchanged."""
    answer = llm.CompletionResponse(content="yes", provider="inner")
    group = LLMFallback(FakeLLM(ConnectionError()), "first")
    group.add_fallback("second", FakeLLM(answer))
    request = llm.CompletionRequest(messages=())

    served = group.complete(request)
    group.breakers["first"].isolate()

    assert served == dataclasses.replace(answer, provider="second")
    assert group.complete(request).provider == "second"
    assert answer.provider == "inner"


def test_the_answer_may_be_a_stand_in() -> None:
    """An answer of the application's own class is returned as it is."""

    class Answer:
        content = "yes"

    answer: Any = Answer()

    class Model:
        def complete(self, _request: llm.CompletionRequest) -> Any:  # noqa: ANN401
            return answer

        stream_completion = count_tokens = capabilities = complete

    model: Any = Model()
    assert LLMFallback(model, "own").complete(llm.CompletionRequest(messages=())) is answer


def test_a_group_shows_its_breakers() -> None:
    """Its `repr` says in which state each provider is, a stream's who serves it."""
    group = FallbackGroup("a", "a")
    group.add_fallback("b", "b")
    group.breakers["a"].isolate()

    assert repr(group) == "<FallbackGroup 'a' open, 'b' closed>"
    stream = group.stream(lambda name: name * 2)
    assert repr(stream) == "<Stream provider='b' open>"
    stream.close()
    assert repr(stream) == "<Stream provider='b' closed>"


class TestSubclassesOfAnswers:
    """The name is put into a copy of an answer of the application's own subclass, too."""

    def complete(self, answer: llm.CompletionResponse) -> Any:  # noqa: ANN401
        """Return the answer through a group."""
        group = LLMFallback(FakeLLM(answer), "named")
        return group.complete(llm.CompletionRequest(messages=()))

    def test_with_a_constructor_of_its_own(self) -> None:
        """Its constructor is not called, and what it has set is kept."""

        class Answer(llm.CompletionResponse):
            def __init__(self, raw: dict[str, int]) -> None:
                super().__init__(content="yes")
                object.__setattr__(self, "raw", raw)

        answer = Answer({"status": 200})

        served = self.complete(answer)

        assert (served.provider, served.content, served.raw) == ("named", "yes", {"status": 200})
        assert type(served) is Answer
        assert answer.provider is None

    def test_with_more_fields(self) -> None:
        """Fields that its constructor does not take are kept."""

        @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
        class Answer(llm.CompletionResponse):
            cost: float = dataclasses.field(default=0.0, init=False)

        answer = Answer(content="yes")
        object.__setattr__(answer, "cost", 0.5)

        served = self.complete(answer)

        assert (served.provider, served.cost) == ("named", 0.5)

    def test_a_mock(self) -> None:
        """A mock of an answer is returned as it is."""
        answer = Mock(spec=llm.CompletionResponse)
        model = Mock(spec=llm.Provider)
        model.complete.return_value = answer

        group = LLMFallback(model, "named")

        assert group.complete(llm.CompletionRequest(messages=())) is answer
