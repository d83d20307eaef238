"""Circuit breakers and failover for language models, speech recognisers and synthesisers."""

from resilience._adapters.llm import LLMFallback
from resilience._adapters.stt import STTFallback, STTSession
from resilience._adapters.tts import SpeechStream, TTSFallback
from resilience._breaker.breaker import CircuitBreaker
from resilience._breaker.config import CircuitBreakerConfig, Snapshot, State, StateChange
from resilience._failover.config import Attempt, FallbackConfig, Outcome
from resilience._failover.group import FallbackGroup, execute_with_result
from resilience._failover.session import Session
from resilience._failover.stream import Stream
from resilience.exceptions import (
    AllFailedError,
    AttemptTimeoutError,
    CircuitOpenError,
    EmptyStreamError,
    ResilienceError,
    UnsupportedRequestError,
)

__all__ = [
    "AllFailedError",
    "Attempt",
    "AttemptTimeoutError",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitOpenError",
    "EmptyStreamError",
    "FallbackConfig",
    "FallbackGroup",
    "LLMFallback",
    "Outcome",
    "ResilienceError",
    "STTFallback",
    "STTSession",
    "Session",
    "Snapshot",
    "SpeechStream",
    "State",
    "StateChange",
    "Stream",
    "TTSFallback",
    "UnsupportedRequestError",
    "execute_with_result",
]
