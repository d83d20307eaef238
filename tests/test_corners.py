"""Details of the mechanism that no other test would notice if they changed."""

import gc
import threading
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from time import monotonic
from typing import Any, NoReturn

import pytest
from typing_extensions import override

from resilience import (
    AllFailedError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    State,
    StateChange,
    TTSFallback,
    tts,
)
from resilience.testing import FakeTTS, ManualClock

TIMEOUT = 10.0
VOICE = tts.VoiceProfile(id="voice")


def refuse() -> NoReturn:
    """Fail like a provider that is down."""
    raise ConnectionError


def call(provider: Callable[[], str]) -> str:
    """Call a provider."""
    return provider()


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock for breakers."""
    return ManualClock()


class TestBreaker:
    """A breaker with one probe, which stays open for 30 seconds after one failure."""

    @pytest.fixture
    def config(self, clock: ManualClock) -> CircuitBreakerConfig:
        """Return its settings."""
        return CircuitBreakerConfig(max_failures=1, half_open_max=1, clock=clock)

    @pytest.mark.parametrize("seconds", [30.0, 31.0, 1000.0])
    def test_a_hung_probe_is_replaced_however_late(
        self, config: CircuitBreakerConfig, clock: ManualClock, seconds: float
    ) -> None:
        """One more probe is admitted at `reset_timeout` after the last, and at any time later."""
        breaker = CircuitBreaker(config)
        with pytest.raises(ConnectionError):
            breaker.execute(refuse)
        clock.advance(30.0)
        hung = breaker.guard()
        hung.__enter__()
        clock.advance(seconds)

        assert breaker.execute(str) == ""
        assert breaker.state is State.CLOSED

    def test_a_wait_is_never_negative(
        self, config: CircuitBreakerConfig, clock: ManualClock
    ) -> None:
        """The wait is 0 for a breaker whose `reset_timeout` elapsed while others were tried."""

        def refuse_slowly() -> NoReturn:
            clock.advance(60.0)
            raise ConnectionError

        group = FallbackGroup[Callable[[], str]](
            refuse, "0", FallbackConfig(circuit_breaker=config)
        )
        with pytest.raises(AllFailedError):
            group.execute(call)
        group.add_fallback("1", refuse_slowly)

        with pytest.raises(AllFailedError) as raised:
            group.execute(call)

        skipped = raised.value.failures["0"]
        assert isinstance(skipped, CircuitOpenError)
        assert skipped.retry_after == raised.value.retry_after == 0.0

    @pytest.mark.parametrize("force", ["isolate", "reset"])
    def test_an_operator_is_not_overruled(
        self,
        config: CircuitBreakerConfig,
        clock: ManualClock,
        monkeypatch: pytest.MonkeyPatch,
        force: str,
    ) -> None:
        """A stream that is collected in the middle of `isolate()` or `reset()` changes nothing."""
        opens = force == "reset"  # else the end of the stream would close the breaker
        error = ConnectionError()
        group = FallbackGroup[Callable[[], str]](
            refuse, "0", FallbackConfig(circuit_breaker=config)
        )
        with pytest.raises(AllFailedError):
            group.execute(call)
        clock.advance(30.0)
        breaker = group.breakers["0"]

        class Garbage:
            """A reference cycle with a probe that ends when it is collected."""

            def __init__(self) -> None:
                """Start the probe."""
                self.itself = self
                self.probe = breaker.guard()
                self.probe.__enter__()

            def __del__(self) -> None:
                """End the probe."""
                if opens:
                    self.probe.__exit__(ConnectionError, error, None)
                else:
                    self.probe.__exit__(None, None, None)

        def collect(**fields: Any) -> StateChange:  # noqa: ANN401
            gc.collect()
            return StateChange(**fields)

        gc.disable()
        try:
            Garbage()
            monkeypatch.setattr("resilience._breaker.breaker.StateChange", collect)
            getattr(breaker, force)()
        finally:
            gc.enable()

        assert breaker.state is (State.CLOSED if opens else State.OPEN)

    def test_a_generator_function_keeps_its_name(self, config: CircuitBreakerConfig) -> None:
        """A decorated generator function has name and docstring of the function."""

        @CircuitBreaker(config)
        def words() -> Iterator[str]:
            """Yield words."""
            yield "a"

        assert (words.__name__, words.__doc__) == ("words", "Yield words.")
        assert list(words()) == ["a"]


@pytest.mark.parametrize(
    ("kind", "field"),
    [(CircuitBreakerConfig, "reset_timeout"), (FallbackConfig, "attempt_timeout")],
)
class TestLongestTime:
    """A duration may be at most 1e9 seconds."""

    def test_it_is_accepted(self, kind: Callable[..., object], field: str) -> None:
        """The longest duration is accepted."""
        assert getattr(kind(**{field: 1e9}), field) == 1e9

    def test_more_is_refused(self, kind: Callable[..., object], field: str) -> None:
        """One second more is refused."""
        with pytest.raises(ValueError, match=f"{field} must be at most 1e.09 seconds"):
            kind(**{field: 1e9 + 1})

    def test_infinity_is_refused(self, kind: Callable[..., object], field: str) -> None:
        """The message for infinity is that it is not finite."""
        with pytest.raises(ValueError, match=f"{field} must be finite"):
            kind(**{field: float("inf")})


class OneMethodTTS(tts.Provider, ABC):
    """A synthesiser with one method."""

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        raise NotImplementedError

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


class HungTTS(OneMethodTTS):
    """A synthesiser whose stream takes all of its time to open, and then hangs."""

    def __init__(self, clock: ManualClock, go_on: threading.Event) -> None:
        """Advance a clock, and hang until an event."""
        self._clock = clock
        self._go_on = go_on

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        self._clock.advance(60.0)
        return self._audio()

    def _audio(self) -> Iterator[bytes]:
        self._go_on.wait(TIMEOUT)
        yield b"late"


class TestTimeLimit:
    """The time limit of an attempt, on a clock that only the providers advance."""

    @pytest.fixture
    def waiting(self, monkeypatch: pytest.MonkeyPatch) -> ManualClock:
        """Return the clock by which waiting is measured."""
        clock = ManualClock()
        monkeypatch.setattr("resilience._failover.attempts.monotonic", clock)
        return clock

    @pytest.fixture
    def go_on(self) -> Iterator[threading.Event]:
        """Return an event for which hanging code waits, set at the end in any case."""
        event = threading.Event()
        yield event
        event.set()

    def test_opening_and_first_item_share_it(
        self, waiting: ManualClock, go_on: threading.Event
    ) -> None:
        """The limit covers the provider's function and its first item together."""

        def late() -> Iterator[str]:
            go_on.wait(TIMEOUT)
            yield "late"

        def open_slowly() -> Iterable[str]:
            waiting.advance(60.0)
            return late()

        group = FallbackGroup[Callable[[], Iterable[str]]](
            open_slowly, "0", FallbackConfig(attempt_timeout=60.0)
        )
        group.add_fallback("1", lambda: ["in time"])

        stream = group.stream(lambda provider: provider(), lazy=True)

        assert list(stream) == ["in time"]

    def test_a_synthesiser_that_does_not_read_has_no_more(
        self, waiting: ManualClock, go_on: threading.Event
    ) -> None:
        """Only waiting for the text lengthens the limit of a synthesiser."""
        voices = TTSFallback(HungTTS(waiting, go_on), "0", FallbackConfig(attempt_timeout=60.0))
        voices.add_fallback("1", FakeTTS())

        audio = voices.synthesize_stream(["in time"], VOICE)

        assert list(audio) == [b"in time"]


class SlowText(Iterator[str]):
    """A text of one late fragment, which two threads must not read at the same time."""

    def __init__(self) -> None:
        """Start with no reader."""
        self.is_read = threading.Event()
        self.arrives = threading.Event()
        self.has_answered = False
        self.readers = 0
        self.most = 0

    @override
    def __next__(self) -> str:
        """Return the fragment, once."""
        if self.arrives.is_set():
            raise StopIteration
        self.readers += 1
        self.most = max(self.most, self.readers)
        self.is_read.set()
        self.arrives.wait(TIMEOUT)
        self.has_answered = True
        self.readers -= 1
        return "word"


class ReadingTTS(OneMethodTTS):
    """A synthesiser that fails while a thread of its own reads the text."""

    def __init__(self, ready: Callable[[threading.Thread], object]) -> None:
        """Fail as soon as a function of the thread returns."""
        self._ready = ready

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        reader = threading.Thread(target=list, args=(text,), daemon=True)
        reader.start()
        self._ready(reader)
        raise ConnectionError


class LateTTS(OneMethodTTS):
    """A synthesiser that does something before it speaks."""

    def __init__(self, before: Callable[[], object]) -> None:
        """Call a function before reading."""
        self._before = before

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        self._before()
        for fragment in text:
            yield fragment.encode()


def test_one_thread_at_a_time_reads_a_text() -> None:
    """A reader that is cut off while it waits for another one reads nothing."""
    source = SlowText()
    readers: list[threading.Thread] = []

    def wait_for_the_second() -> None:
        readers[0].join(TIMEOUT)
        threading.Timer(0.1, source.arrives.set).start()  # until then the third has to wait

    voices = TTSFallback(ReadingTTS(lambda _: source.is_read.wait(TIMEOUT)), "0")
    voices.add_fallback("1", ReadingTTS(readers.append))
    voices.add_fallback("2", LateTTS(wait_for_the_second))

    audio = list(voices.synthesize_stream(source, VOICE))

    assert audio == [b"word"]
    assert not readers[0].is_alive()
    assert source.most == 1


def test_what_has_been_read_is_there_at_once() -> None:
    """A fragment that an earlier attempt has read is available while that one still reads."""
    source = SlowText()
    words = chain(["first"], source)
    voices = TTSFallback(ReadingTTS(lambda _: source.is_read.wait(TIMEOUT)), "0")
    voices.add_fallback("1", FakeTTS())

    with voices.synthesize_stream(words, VOICE) as audio:
        first = next(audio)
        is_waiting = not source.has_answered

    source.arrives.set()
    assert first == b"first"
    assert is_waiting


def test_no_more_calls_when_more_than_64_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that start at the same time may be more than 64; after that no other is started."""
    callers = 70
    is_held, go_on = True, threading.Event()
    monkeypatch.setattr(
        "resilience._failover.attempts.monotonic", lambda: 0.0 if is_held else monotonic()
    )
    all_hang = threading.Barrier(callers + 1)
    calls: list[str] = []

    def hang(provider: str) -> None:
        calls.append(provider)
        if len(calls) <= callers:
            all_hang.wait(TIMEOUT)
            go_on.wait(TIMEOUT)

    breaker = CircuitBreakerConfig(max_failures=1000)
    config = FallbackConfig(circuit_breaker=breaker, attempt_timeout=0.05)
    group = FallbackGroup("hung", "0", config)

    def fail() -> None:
        with pytest.raises(AllFailedError):
            group.execute(hang)

    threads = [threading.Thread(target=fail, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    all_hang.wait(TIMEOUT)
    is_held = False
    for thread in threads:
        thread.join(TIMEOUT)

    fail()

    go_on.set()
    assert len(calls) == callers
