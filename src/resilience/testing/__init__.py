"""Fakes, a client's exception, a manual clock, and tests of providers.

A fake follows a script with one step for each call; the last step is repeated for ever. A step is
the result of the call, an exception that it raises, or a sequence of items: results, exceptions to
raise in the middle, a `Delay` that advances the manual clock, or functions without parameters to
call, for instance to wait at a barrier.

    primary = FakeLLM(ConnectionError("refused"), "Hello again")       # fails once, then works
    cut = FakeLLM(["Hello", ConnectionError("reset")])                 # fails in the middle
    slow = FakeLLM([Delay(2.5), "Hello"], clock=clock)                 # slow by the manual clock
    busy = FakeLLM(StatusError(429, retry_after=20))                   # for `resilience.http`

All fakes record their calls, and may be shared between threads.

`LLMProviderContract`, `STTProviderContract` and `TTSProviderContract` test whether a provider class
does what its contract promises.
"""

from resilience.testing._contract_llm import LLMProviderContract
from resilience.testing._contract_stt import STTProviderContract
from resilience.testing._contract_tts import TTSProviderContract
from resilience.testing._fake_llm import FakeLLM, LLMItem, LLMStep
from resilience.testing._fake_stt import FakeSession, FakeSTT, STTItem, STTStep
from resilience.testing._fake_tts import FakeTTS, ReadText, TTSItem, TTSStep
from resilience.testing._script import Action, Delay, FakeStream, ManualClock
from resilience.testing._status_error import StatusError

__all__ = [
    "Action",
    "Delay",
    "FakeLLM",
    "FakeSTT",
    "FakeSession",
    "FakeStream",
    "FakeTTS",
    "LLMItem",
    "LLMProviderContract",
    "LLMStep",
    "ManualClock",
    "ReadText",
    "STTItem",
    "STTProviderContract",
    "STTStep",
    "StatusError",
    "TTSItem",
    "TTSProviderContract",
    "TTSStep",
]
