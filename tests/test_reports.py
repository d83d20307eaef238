"""Reports of attempts, and the provider's name in answers and representations."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest

from helpers import REQUEST, VOICE, Recorder, call, grouped, refuse
from resilience import (
    AllFailedError,
    Attempt,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    STTFallback,
    TTSFallback,
    llm,
    stt,
)
from resilience.testing import Delay, FakeLLM, FakeSession, FakeSTT, FakeTTS


def test_reports_name_the_operation() -> None:
    """`operation` is the method of the contract or of the group."""
    recorder = Recorder()
    config = recorder.config
    model = LLMFallback(FakeLLM("answer"), "a", config)
    model.complete(REQUEST)
    list(model.stream_completion(REQUEST))
    model.count_tokens(())
    recogniser = STTFallback(FakeSTT(FakeSession()), "a", config)
    recogniser.start_stream(stt.StreamConfig()).close()
    speech = TTSFallback(FakeTTS(), "a", config)
    list(speech.synthesize_stream(["a"], VOICE))
    speech.list_voices()
    speech.clone_voice(())
    group = FallbackGroup("a", "a", config)
    group.execute(str.upper)
    list(group.stream(str.upper))
    group.session(str.upper).close()
    group.breakers["a"].isolate()
    with pytest.raises(AllFailedError):
        group.execute(str.upper)

    assert [attempt.operation for attempt in recorder.attempts] == [
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
    recorder = Recorder()
    clock = recorder.clock
    clock.advance(100)
    group = FallbackGroup("a", "a", recorder.config)

    def items(_name: str) -> Iterator[int]:
        clock.advance(2)
        yield 1
        clock.advance(5)
        yield 2

    list(group.stream(items, lazy=lazy))
    list(group.stream(lambda _: [], lazy=lazy))
    group.execute(lambda _: clock.advance(1))

    assert [(each.first_item, each.duration) for each in recorder.attempts] == [
        (2, 7),
        (None, 0),
        (None, 1),
    ]


def test_the_answer_names_its_provider() -> None:
    """`CompletionResponse.provider` is the provider's name; the provider's object is unchanged."""
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
    """An answer of the application's own class is returned unchanged."""

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
    """The `repr` of a group has the states, that of a stream its provider and state."""
    group = FallbackGroup("a", "a")
    group.add_fallback("b", "b")
    group.breakers["a"].isolate()

    assert repr(group) == "<FallbackGroup 'a' open, 'b' closed>"
    stream = group.stream(lambda name: name * 2)
    assert repr(stream) == "<Stream provider='b' open>"
    stream.close()
    assert repr(stream) == "<Stream provider='b' closed>"


class TestSubclassesOfAnswers:
    """The name is put into a copy of an answer of the application's own subclass."""

    def complete(self, answer: llm.CompletionResponse) -> Any:  # noqa: ANN401
        """Return the answer through a group."""
        group = LLMFallback(FakeLLM(answer), "named")
        return group.complete(llm.CompletionRequest(messages=()))

    def test_with_a_constructor_of_its_own(self) -> None:
        """The constructor of the subclass is not called, and its attributes are kept."""

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
        """Fields that the constructor does not take are kept."""

        @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
        class Answer(llm.CompletionResponse):
            cost: float = dataclasses.field(default=0.0, init=False)

        answer = Answer(content="yes")
        object.__setattr__(answer, "cost", 0.5)

        served = self.complete(answer)

        assert (served.provider, served.cost) == ("named", 0.5)

    def test_a_mock(self) -> None:
        """A mock of an answer is returned unchanged."""
        answer = Mock(spec=llm.CompletionResponse)
        model = Mock(spec=llm.Provider)
        model.complete.return_value = answer

        group = LLMFallback(model, "named")

        assert group.complete(llm.CompletionRequest(messages=())) is answer


def test_outcomes_and_durations() -> None:
    """Each attempt is reported with its outcome and its duration by the breaker's clock."""
    recorder = Recorder(breaker={"failure_on": ConnectionError})
    clock = recorder.clock
    failing = FakeLLM([Delay(2.0), ConnectionError()], clock=clock)
    models = LLMFallback(failing, "failing", recorder.config)
    models.add_fallback("ignored", FakeLLM(ValueError()))
    models.add_fallback("good", FakeLLM([Delay(0.5), "ok"], clock=clock))

    models.complete(REQUEST)
    models.complete(REQUEST)

    assert [(each.provider, str(each.outcome), each.duration) for each in recorder.attempts] == [
        ("failing", "failed", 2.0),
        ("ignored", "ignored", 0.0),
        ("good", "succeeded", 0.5),
        ("failing", "skipped", 0.0),
        ("ignored", "ignored", 0.0),
        ("good", "succeeded", 0.5),
    ]
    assert isinstance(recorder.attempts[0].error, ConnectionError)
    assert isinstance(recorder.attempts[3].error, CircuitOpenError)
    assert recorder.attempts[2].error is None


def test_a_listener_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """An error of the listener is logged, and the call is not affected."""

    def listener(_attempt: Attempt) -> None:
        raise ZeroDivisionError

    config = FallbackConfig(on_attempt=listener)

    assert grouped(refuse, lambda: "1", config=config).execute(call) == "1"
    assert caplog.text.count("on_attempt raised ZeroDivisionError") == 2


def test_an_exhausted_stream_has_succeeded_before_it_is_closed() -> None:
    """An exhausted stream has succeeded before its provider's `close()` is called."""
    recorder = Recorder()
    seen: list[list[Outcome]] = []

    def close() -> NoReturn:
        seen.append([attempt.outcome for attempt in recorder.attempts])
        raise KeyboardInterrupt

    class Owner:
        def __init__(self) -> None:
            self.close = close

        def __iter__(self) -> Iterator[str]:
            return iter("a")

    stream = FallbackGroup(Owner(), "0", recorder.config).stream(lambda owner: owner)
    with pytest.raises(KeyboardInterrupt):
        list(stream)

    assert seen == [[Outcome.SUCCEEDED]]
