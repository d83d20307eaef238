"""Helpers that several test files share: calls of a breaker, threads, and small providers."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import pytest
from typing_extensions import override

from resilience import (
    Attempt,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    Outcome,
    State,
    TTSFallback,
    llm,
    stt,
    tts,
)
from resilience.testing import ManualClock

R = TypeVar("R")

TIMEOUT = 30.0
"""Time limit of a waiting test, in seconds of real time."""

LIMIT = 60.0
"""A time limit of an attempt, in seconds, that no call exceeds."""

REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content="Hello?"),))
VOICE = tts.VoiceProfile(id="asked")

each_limit = pytest.mark.parametrize("limit", [None, LIMIT], ids=["no limit", "limit"])


# ---- functions of providers


def refuse(*_: object) -> NoReturn:
    """Raise a new `ConnectionError`, like a provider that is down."""
    raise ConnectionError


def interrupt(*_: object) -> NoReturn:
    """Raise a new `KeyboardInterrupt`."""
    raise KeyboardInterrupt


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """Return a function that raises an error."""

    def raise_it(*_: object) -> NoReturn:
        raise error

    return raise_it


# ---- calls of a breaker


def succeed(breaker: CircuitBreaker) -> None:
    """Make a call that succeeds."""
    assert breaker.execute(lambda: "ok") == "ok"


def fail(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """Make a call that raises, a `ConnectionError` if nothing else is given."""
    error = ConnectionError() if error is None else error
    with pytest.raises(type(error)) as raised, breaker.guard():
        raise error
    assert raised.value is error


def trip(breaker: CircuitBreaker) -> None:
    """Open a closed breaker by failures."""
    while breaker.state is State.CLOSED:
        fail(breaker)


def rejection(breaker: CircuitBreaker) -> CircuitOpenError:
    """Make a call that is not admitted, and return its error."""
    with pytest.raises(CircuitOpenError) as raised:
        breaker.execute(pytest.fail, "admitted")
    return raised.value


def count_free_slots(breaker: CircuitBreaker) -> int:
    """Return how many calls are admitted at the same time, up to 100; none of them is recorded."""
    free = 0
    with suppress(KeyboardInterrupt, CircuitOpenError), ExitStack() as stack:
        while free < 100:
            stack.enter_context(breaker.guard())
            free += 1
        raise KeyboardInterrupt
    return free


# ---- threads


class Hang:
    """A function that hangs until the event `over` is set."""

    def __init__(self) -> None:
        """Make a function that has not been called yet."""
        self.entered = threading.Event()
        self.over = threading.Event()

    def __call__(self, *_: object) -> None:
        """Hang."""
        self.entered.set()
        assert self.over.wait(TIMEOUT)


def in_threads(functions: Sequence[Callable[[], R]], timeout: float = TIMEOUT) -> list[R]:
    """Call each function in a thread of its own, all at the same time; return their results."""
    barrier = threading.Barrier(len(functions))
    results: dict[int, R] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        barrier.wait(TIMEOUT)
        try:
            results[number] = functions[number]()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(number,), daemon=True)
        for number in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)

    assert not any(thread.is_alive() for thread in threads), "a thread is blocked"
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(functions))]


def in_thread(function: Callable[[], R]) -> R:
    """Call a function in another thread, which has another context; return its result."""
    return in_threads([function])[0]


@contextmanager
def running(function: Callable[[], object]) -> Iterator[threading.Thread]:
    """Call a function in another thread, which must have ended at the end of the block."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    yield thread
    thread.join(TIMEOUT)
    assert not thread.is_alive(), "a thread is blocked"


# ---- groups


class Recorder:
    """Settings of a group with breakers that open at once, and the attempts that it reports."""

    def __init__(
        self,
        *,
        keep_errors: bool = True,
        breaker: dict[str, Any] | None = None,
        **group: Any,  # noqa: ANN401
    ) -> None:
        """Use settings of the breakers and of the group that differ from the usual ones.

        A recorded error refers to its traceback, and so to the request.
        """
        self._keep_errors = keep_errors
        self.clock = ManualClock()
        self.attempts: list[Attempt] = []
        settings = {"max_failures": 1, "half_open_max": 1, "clock": self.clock, **(breaker or {})}
        self.config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(**settings),
            **{"on_attempt": self._record, **group},
        )

    def _record(self, attempt: Attempt) -> None:
        self.attempts.append(attempt if self._keep_errors else replace(attempt, error=None))

    def outcomes(self) -> list[tuple[str, Outcome]]:
        """Return provider and outcome of each attempt, in order."""
        return [(attempt.provider, attempt.outcome) for attempt in self.attempts]


Function = Callable[[], str]
"""A provider that is itself the function to call."""


def call(provider: Function) -> str:
    """Call a provider that is a function."""
    return provider()


def grouped(*providers: Function, config: FallbackConfig | None = None) -> FallbackGroup[Function]:
    """Make a group of functions, named 0, 1 and so on."""
    group = FallbackGroup(providers[0], "0", config)
    for number, provider in enumerate(providers[1:], start=1):
        group.add_fallback(str(number), provider)
    return group


# ---- providers


class Model(llm.Provider):
    """A language model that answers nothing; tests override what they need."""

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        return llm.CompletionResponse()

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
        return [llm.Chunk(finish_reason="stop")]

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        return 1

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return llm.ModelCapabilities(context_window=1)


class Synthesiser(tts.Provider):
    """A synthesiser that is a function of the text."""

    def __init__(self, speak: Callable[[Iterable[str]], Iterable[bytes]]) -> None:
        """Call a function with each text."""
        self._speak = speak

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterable[bytes]:
        return self._speak(text)

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        raise NotImplementedError

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


def speakers(*providers: tts.Provider) -> TTSFallback:
    """Make a group of synthesisers, named 0, 1 and so on, whose breakers open at once."""
    group = TTSFallback(providers[0], "0", Recorder().config)
    for number, provider in enumerate(providers[1:], start=1):
        group.add_fallback(str(number), provider)
    return group


def spoken(group: TTSFallback, text: Iterable[str]) -> str:
    """Return the text that the audio of a `FakeTTS` contains."""
    return b"".join(group.synthesize_stream(text, VOICE)).decode()


class Recogniser(stt.Provider):
    """A recogniser whose sessions a function makes."""

    def __init__(self, start: Callable[[], stt.SessionHandle]) -> None:
        """Call a function for each session."""
        self._start = start

    @override
    def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
        return self._start()


class Handle(stt.SessionHandle):
    """A recognition session without transcripts; tests override what they need."""

    @override
    def send_audio(self, audio: bytes) -> None: ...

    @override
    def partials(self) -> Iterable[stt.Transcript]:
        return ()

    @override
    def finals(self) -> Iterable[stt.Transcript]:
        return ()

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None: ...

    @override
    def close(self) -> None: ...


class WatchedClock:
    """The clock that measures the time limits of one caller, which is the thread of the test."""

    def __init__(self) -> None:
        """Start at 0."""
        self.now = 0.0
        self._reads = threading.Semaphore(0)
        self._caller = threading.current_thread()

    def __call__(self) -> float:
        """Return the time."""
        now = self.now  # first, so that what the test does after a read does not change it
        if threading.current_thread() is self._caller:
            self._reads.release()
        return now

    def advance(self, seconds: float) -> None:
        """Let time pass while the caller waits; return when it has read the time twice."""
        self.now += seconds
        while self._reads.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self._reads.acquire(timeout=TIMEOUT)
