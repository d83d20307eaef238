"""Circuit breakers and failover for language models, speech recognisers and synthesisers."""

from resilience._circuit_breaker import CircuitBreaker
from resilience._circuit_config import CircuitBreakerConfig, State, StateChange
from resilience._fallback import FallbackGroup, execute_with_result
from resilience._fallback_config import Attempt, FallbackConfig, Outcome
from resilience._llm_fallback import LLMFallback
from resilience._stream import Stream
from resilience._stt_fallback import STTFallback
from resilience._tts_fallback import TTSFallback
from resilience.exceptions import (
    AllFailedError,
    AttemptTimeoutError,
    CircuitOpenError,
    EmptyStreamError,
    ResilienceError,
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
    "State",
    "StateChange",
    "Stream",
    "TTSFallback",
    "execute_with_result",
]
