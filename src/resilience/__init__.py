"""Circuit breakers and failover for language models, speech recognisers and synthesisers."""

from resilience._adapters import LLMFallback, STTFallback, TTSFallback
from resilience._circuit_breaker import CircuitBreaker
from resilience._circuit_config import CircuitBreakerConfig, State, StateChange
from resilience._fallback import FallbackGroup, execute_with_result
from resilience._fallback_config import Attempt, FallbackConfig, Outcome
from resilience._stream import Stream
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
