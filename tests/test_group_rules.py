"""Rules for every group: locks, when calls are settled and streams closed, what is logged."""

import contextlib
import copy
import logging
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

import pytest
from typing_extensions import override

from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    STTFallback,
    TTSFallback,
    llm,
    stt,
    tts,
)
from resilience.testing import FakeLLM, FakeSTT, FakeTTS, ManualClock

TIMEOUT = 10.0
REQUEST = llm.CompletionRequest(
    messages=(llm.Message(role="system"), llm.Message(role="user")), max_tokens=3
)
VOICE = tts.VoiceProfile(id="v", name="n", language="de", sample_rate=8000)


class Look:
    """Foreign code that observes whether it is called under a lock."""

    def __init__(self) -> None:
        """Start with nothing that needs the lock."""
        self.blocked: list[bool] = []
        self.needs_the_lock: list[Callable[[], object]] = []

    def __call__(self, *_: object) -> bool:
        """Do what needs the lock in another thread, and return True."""
        thread = threading.Thread(target=self.needs_the_lock[0], daemon=True)
        thread.start()
        thread.join(TIMEOUT)
        self.blocked.append(thread.is_alive())
        return True


def refuse(*_: object) -> NoReturn:
    """Fail like a provider that is down."""
    raise ConnectionError


def interrupt(*_: object) -> NoReturn:
    """Be interrupted."""
    raise KeyboardInterrupt


class Owner(Iterable[str]):
    """An iterable whose closing is reported."""

    def __init__(self, items: Sequence[str | Exception], close: Callable[[], object]) -> None:
        """Make it of items; an exception among them is raised."""
        self._items = items
        self.close = close

    @override
    def __iter__(self) -> Iterator[str]:
        """Yield the items."""
        for item in self._items:
            if isinstance(item, Exception):
                raise item
            yield item


class TestLocks:
    """No lock is held while foreign code runs, and a healthy call takes none."""

    @pytest.mark.parametrize(
        "use",
        [
            lambda group: group.execute(str),
            lambda group: group.execute(refuse),
            lambda group: group.execute(int),
            lambda group: group.execute(interrupt),
            lambda group: group.stream(iter, lazy=True).close(),
            lambda group: (group.breakers["0"].isolate(), group.execute(str)),
        ],
        ids=["succeeded", "failed", "ignored", "cancelled", "given up", "skipped"],
    )
    def test_listener(self, use: Callable[[FallbackGroup[str]], object]) -> None:
        """The listener for attempts may use the breakers from another thread."""
        look = Look()
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(failure_on=ConnectionError), on_attempt=look
        )
        group = FallbackGroup("text", "0", config)
        look.needs_the_lock.append(group.breakers["0"].reset)

        with contextlib.suppress(AllFailedError, KeyboardInterrupt):
            use(group)

        assert look.blocked == [False]

    def test_predicate(self) -> None:
        """So may the predicate that decides whether the next provider is tried."""
        look = Look()
        group = FallbackGroup("text", "0", FallbackConfig(fallback_on=look))
        look.needs_the_lock.append(group.breakers["0"].reset)

        with pytest.raises(AllFailedError):
            group.execute(refuse)

        assert look.blocked == [False]

    def test_log_handler(self) -> None:
        """So may the handlers of log lines."""
        look = Look()

        class Handler(logging.Handler):
            @override
            def handle(self, record: logging.LogRecord) -> bool:
                return "failed with" not in record.msg or look()

        group = FallbackGroup("text", "0")
        look.needs_the_lock.append(group.breakers["0"].reset)
        logger, handler = logging.getLogger("resilience"), Handler()
        logger.addHandler(handler)
        try:
            with pytest.raises(AllFailedError):
                group.execute(refuse)
        finally:
            logger.removeHandler(handler)

        assert look.blocked == [False]

    def test_close(self) -> None:
        """While a provider closes its stream, another thread may close the stream, too."""
        look = Look()
        stream = FallbackGroup(Owner(["a", "b"], look), "0").stream(lambda owner: owner)
        look.needs_the_lock.append(stream.close)
        next(stream)

        stream.close()

        assert look.blocked == [False]

    def test_healthy_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Healthy calls and streams go on while another thread holds the breaker's lock."""
        lock = threading.RLock()
        monkeypatch.setattr("resilience._breaker.events.RLock", lambda: lock)
        groups = [
            FallbackGroup(["a"], "0"),
            FallbackGroup(["a"], "0", FallbackConfig(on_attempt=lambda _: None)),
        ]
        lengths: list[int] = []

        def work() -> None:
            for group in groups:
                lengths.append(group.execute(len))
                lengths.append(group.execute(len, record=False))
                lengths.append(len(list(group.stream(iter))))

        with lock:
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(TIMEOUT)

        assert lengths == [1] * 6


class TestSettled:
    """Only the first outcome of an attempt is recorded."""

    def test_a_reader_that_fails_by_the_closing_is_no_failure(self) -> None:
        """A session that is closed has succeeded, whatever its readers raise because of that."""
        reading, closed, failed = threading.Event(), threading.Event(), threading.Event()

        class Session(stt.SessionHandle):
            @override
            def send_audio(self, audio: bytes) -> None: ...
            @override
            def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None: ...
            @override
            def partials(self) -> Iterable[stt.Transcript]:
                return ()

            @override
            def finals(self) -> Iterable[stt.Transcript]:
                reading.set()
                assert closed.wait(TIMEOUT)
                raise ConnectionError

            @override
            def close(self) -> None:
                closed.set()
                assert failed.wait(TIMEOUT)

        class Recogniser(stt.Provider):
            @override
            def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
                return Session()

        attempts: list[Attempt] = []
        group = STTFallback(Recogniser(), "0", FallbackConfig(on_attempt=attempts.append))
        session = group.start_stream(stt.StreamConfig())

        def read() -> None:
            with pytest.raises(ConnectionError):
                session.finals()
            failed.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert reading.wait(TIMEOUT)
        session.close()
        reader.join(TIMEOUT)

        assert [attempt.outcome for attempt in attempts] == [Outcome.SUCCEEDED]

    def test_an_exhausted_stream_has_succeeded_before_it_is_closed(self) -> None:
        """An interruption of the closing changes nothing about that."""
        attempts: list[Attempt] = []
        seen: list[list[Outcome]] = []

        def close() -> NoReturn:
            seen.append([attempt.outcome for attempt in attempts])
            raise KeyboardInterrupt

        config = FallbackConfig(on_attempt=attempts.append)
        stream = FallbackGroup(Owner(["a"], close), "0", config).stream(lambda owner: owner)
        with pytest.raises(KeyboardInterrupt):
            list(stream)

        assert seen == [[Outcome.SUCCEEDED]]

    def test_counting_tokens_is_reported(self) -> None:
        """An attempt that the breaker does not record is reported like any other."""
        attempts: list[Attempt] = []

        class Uncounted(Asked):
            @override
            def count_tokens(self, messages: Sequence[llm.Message]) -> int:
                raise ConnectionError

        group = LLMFallback(Uncounted(), "0", FallbackConfig(on_attempt=attempts.append))
        group.add_fallback("1", FakeLLM())
        group.count_tokens(REQUEST.messages)

        reports = [(attempt.provider, attempt.outcome) for attempt in attempts]
        assert reports == [("0", Outcome.FAILED), ("1", Outcome.SUCCEEDED)]


class TestClosed:
    """A provider's stream is closed as soon as it has ended or was given up."""

    @pytest.mark.parametrize("items", [["a"], ["a", ConnectionError()]])
    def test_ended(self, items: Sequence[str | Exception]) -> None:
        """It is closed at its end or its error, although the stream is still referenced."""
        closings: list[None] = []
        owner = Owner(items, lambda: closings.append(None))
        stream = FallbackGroup(owner, "0").stream(lambda owner: owner)

        with contextlib.suppress(ConnectionError):
            list(stream)

        assert len(closings) == 1
        del stream

    def test_silent(self) -> None:
        """A stream without an item is closed before the next provider is called."""
        silent = FakeLLM([])
        closings: list[int] = []
        group = LLMFallback(silent, "0")
        group.add_fallback("1", FakeLLM([lambda: closings.append(silent.streams[0].closed), "b"]))

        list(group.stream_completion(REQUEST))

        assert closings == [1]

    @pytest.mark.parametrize("error", [None, ConnectionError()])
    def test_text(self, error: Exception | None) -> None:
        """After the end or an error of the audio its provider gets no more fragments."""
        readers: list[Iterator[str]] = []

        def speak(text: Iterable[str]) -> Iterator[bytes]:
            readers.append(iter(text))
            yield next(readers[0]).encode()
            if error is not None:
                raise error

        stream = TTSFallback(Speaking(speak), "0").synthesize_stream(iter(["one", "two"]), VOICE)
        with contextlib.suppress(ConnectionError):
            list(stream)

        assert list(readers[0]) == []
        del stream


class Speaking(tts.Provider):
    """A synthesiser that is a function of the text."""

    def __init__(self, speak: Callable[[Iterable[str]], Iterable[bytes]]) -> None:
        """Call a function for each text."""
        self._speak = speak

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterable[bytes]:
        return self._speak(text)

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        return ()

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


class Asked(llm.Provider):
    """A model that records its arguments."""

    def __init__(self) -> None:
        """Start with no calls."""
        self.asked: list[object] = []

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        self.asked.append(request)
        return llm.CompletionResponse()

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
        self.asked.append(request)
        return [llm.Chunk(finish_reason="stop")]

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        self.asked.append(messages)
        return 1

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return llm.ModelCapabilities(context_window=1)


class TestPassedOn:
    """Providers get the caller's arguments, and the caller gets what they raise."""

    def test_requests(self) -> None:
        """A model gets the same request object."""
        model = Asked()
        group = LLMFallback(model, "0")

        group.complete(REQUEST)
        list(group.stream_completion(REQUEST))
        group.count_tokens(REQUEST.messages)

        given = [REQUEST, REQUEST, REQUEST.messages]
        assert all(seen is each for seen, each in zip(model.asked, given, strict=True))

    def test_voices(self) -> None:
        """A voice that is not mapped is passed on whole, each time."""
        provider = FakeTTS()
        group = TTSFallback(provider, "0", voices={"other": tts.VoiceProfile(id="own")})
        another = tts.VoiceProfile(id="another")

        for voice in (VOICE, another):
            list(group.synthesize_stream(["a"], voice))

        assert provider.voices == [VOICE, another]

    def test_a_refused_error_of_a_stream(self) -> None:
        """What `fallback_on` does not include is raised to the caller, without failover."""
        asked: list[str] = []

        def open_stream(provider: str) -> NoReturn:
            asked.append(provider)
            raise LookupError

        group = FallbackGroup("0", "0", FallbackConfig(fallback_on=OSError))
        group.add_fallback("1", "1")

        with pytest.raises(LookupError):
            group.stream(open_stream)

        assert asked == ["0"]

    def test_a_wait_that_is_not_the_groups(self) -> None:
        """The wait of an error that a provider raises is not the group's, nor after pickling."""

        def closed(_: str) -> NoReturn:
            raise CircuitOpenError(name="0", retry_after=7.0)

        with pytest.raises(AllFailedError) as raised:
            FallbackGroup("0", "0").execute(closed)

        again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301
        assert raised.value.retry_after == again.retry_after == 0.0


STATEFUL = [
    CircuitBreaker,
    lambda: FallbackGroup("text", "0"),
    lambda: LLMFallback(FakeLLM(), "0"),
    lambda: STTFallback(FakeSTT(), "0"),
    lambda: TTSFallback(FakeTTS(), "0"),
    lambda: FallbackGroup("text", "0").stream(iter),
    lambda: STTFallback(FakeSTT(), "0").start_stream(stt.StreamConfig()),
]


@pytest.mark.parametrize("make", STATEFUL, ids=lambda make: type(make()).__name__)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"]
)
def test_what_guards_state_is_not_copied(
    make: Callable[[], object], duplicate: Callable[[object], object]
) -> None:
    """Breakers, groups, adapters, streams and sessions cannot be copied or pickled."""
    value = make()

    with pytest.raises(TypeError, match=f"{type(value).__name__} cannot be copied or pickled"):
        duplicate(value)


def test_a_stream_can_be_weakly_referenced() -> None:
    """A weak reference to a stream does not keep it."""
    stream = FallbackGroup("text", "0").stream(iter)
    reference = weakref.ref(stream)
    before = reference()

    assert before is stream
    del before, stream
    assert reference() is None


def test_log_lines_have_constant_texts(caplog: pytest.LogCaptureFixture) -> None:
    """The log lines of a group have constant texts and lazy arguments."""
    caplog.set_level(logging.DEBUG, "resilience")
    config = FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=1), on_attempt=refuse)
    group = FallbackGroup[Callable[[], str]](refuse, "0", config)
    group.add_fallback("1", str)

    for _ in range(2):
        group.execute(lambda provider: provider())

    assert {record.msg for record in caplog.records} == {
        "circuit %s is %s",
        "provider %s failed with %s",
        "provider %s is skipped",
        "%s raised %s at %s:%d",
    }


def test_a_call_that_is_not_recorded_asks_for_no_delay() -> None:
    """A breaker that opens while such a call fails is not kept open for longer by it."""
    delays = iter([None, 99.0])
    breaker = CircuitBreakerConfig(
        max_failures=1, reset_timeout=30, retry_after=lambda _: next(delays), clock=ManualClock()
    )
    group = FallbackGroup("p", "0", FallbackConfig(circuit_breaker=breaker))

    def fail(_: object) -> NoReturn:
        raise ConnectionError

    def open_and_fail(_: object) -> NoReturn:
        with pytest.raises(AllFailedError):
            group.execute(fail)
        fail(None)

    with pytest.raises(AllFailedError) as caught:
        group.execute(open_and_fail, record=False)

    assert caught.value.retry_after == 30


def test_an_addition_that_interrupts_another() -> None:
    """A signal handler may add a provider while this thread is adding one; both are added."""
    group = FallbackGroup(0, "primary")

    class Name(str):
        """A name whose comparison is interrupted once."""

        __slots__ = ()
        __hash__ = str.__hash__

        @override
        def __eq__(self, other: object) -> bool:
            if len(group.breakers) == 1:
                group.add_fallback("handler", 1)
            return str.__eq__(self, other)

    def add() -> None:
        group.add_fallback(Name("interrupted"), 2)

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    thread.join(TIMEOUT)

    assert list(group.breakers) == ["primary", "handler", "interrupted"]
