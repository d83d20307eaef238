"""Settings of a single provider of a group."""

from typing import Any

import pytest

from helpers import REQUEST, VOICE, Recorder, raising, refuse
from resilience import (
    AllFailedError,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    State,
    STTFallback,
    TTSFallback,
    stt,
)
from resilience.testing import FakeLLM, FakeSTT, FakeTTS, ManualClock


class TestSettingsOfOneProvider:
    """`circuit_breaker` sets the breaker of one provider."""

    def test_replaces_those_of_the_group(self) -> None:
        """Primary and fallbacks may have their own settings; the breakers keep their names."""
        clock = ManualClock()
        own = CircuitBreakerConfig(name="ignored", max_failures=1, reset_timeout=5, clock=clock)
        group = FallbackGroup(
            "a",
            "a",
            FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=2)),
            circuit_breaker=own,
        )
        group.add_fallback("b", "b")
        group.add_fallback("c", "c", circuit_breaker=own)

        with pytest.raises(AllFailedError):
            group.execute(refuse)

        states = {name: str(each.state) for name, each in group.breakers.items()}
        assert states == {"a": "open", "b": "closed", "c": "open"}
        assert group.breakers["a"].name == "a"
        clock.advance(5)
        assert group.breakers["c"].state is State.HALF_OPEN

    def test_its_clock_measures_its_attempts(self) -> None:
        """The duration of an attempt is measured by the clock of the provider's own breaker."""
        clock = ManualClock()
        recorder = Recorder()
        own = CircuitBreakerConfig(clock=clock)
        group = FallbackGroup("a", "a", recorder.config, circuit_breaker=own)

        group.execute(lambda _: clock.advance(3))

        assert recorder.attempts[0].duration == 3

    def test_its_filter_applies(self) -> None:
        """`failure_on` of the provider's own settings decides what counts, also in a session."""
        group = FallbackGroup(
            "a", "a", circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=KeyError)
        )
        with pytest.raises(AllFailedError):
            group.execute(refuse)
        assert group.breakers["a"].state is State.CLOSED

        class Crash(BaseException):
            pass

        own = CircuitBreakerConfig(max_failures=1, failure_on=Crash)
        group.add_fallback("b", "b", circuit_breaker=own)
        group.breakers["a"].isolate()

        with group.session(lambda name: name) as session, pytest.raises(Crash):
            session.execute(raising(Crash()))
        assert group.breakers["b"].state is State.OPEN

    @pytest.mark.parametrize("wrong", [3, FallbackConfig()])
    def test_refuses(self, wrong: Any) -> None:
        """A value that is not a `CircuitBreakerConfig` is rejected, and no provider is added."""
        group = FallbackGroup("a", "a")

        with pytest.raises(TypeError, match="circuit_breaker must be a CircuitBreakerConfig"):
            group.add_fallback("b", "b", circuit_breaker=wrong)

        assert list(group.breakers) == ["a"]

    def test_through_the_adapters(self) -> None:
        """All adapters accept the settings for the primary and for fallbacks."""
        own = CircuitBreakerConfig(max_failures=1)
        model = LLMFallback(FakeLLM(ConnectionError()), "a", circuit_breaker=own)
        model.add_fallback("b", FakeLLM(ConnectionError()), circuit_breaker=own)
        with pytest.raises(AllFailedError):
            model.complete(REQUEST)
        speech = TTSFallback(FakeTTS(ConnectionError()), "a", circuit_breaker=own)
        speech.add_fallback("b", FakeTTS(ConnectionError()), circuit_breaker=own)
        with pytest.raises(AllFailedError):
            list(speech.synthesize_stream(["a"], VOICE))
        recogniser = STTFallback(FakeSTT(ConnectionError()), "a", circuit_breaker=own)
        recogniser.add_fallback("b", FakeSTT(ConnectionError()), circuit_breaker=own)
        with pytest.raises(AllFailedError):
            recogniser.start_stream(stt.StreamConfig())

        for adapter in (model, speech, recogniser):
            assert {each.state for each in adapter.breakers.values()} == {State.OPEN}
