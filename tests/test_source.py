"""A stream that a provider has returned: its first item, and how it is closed."""

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from types import FunctionType, ModuleType
from typing import Any

import pytest
from typing_extensions import override

from helpers import (
    LIMIT,
    REQUEST,
    TIMEOUT,
    VOICE,
    Hang,
    Recorder,
    Synthesiser,
    WatchedClock,
    each_limit,
    in_thread,
    running,
)
from resilience import (
    AllFailedError,
    Attempt,
    AttemptTimeoutError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    STTFallback,
    TTSFallback,
    llm,
    stt,
)
from resilience._failover.source import ProviderStream
from resilience.testing import FakeLLM

EMPTY = llm.Chunk()


class Counted(Iterator[str]):
    """A stream that counts its calls, and calls a function for each item."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        """Call a function at each `next()`."""
        self._act = act
        self.asked = 0
        self.closed = 0

    @override
    def __next__(self) -> str:
        self.asked += 1
        self._act()
        return "item"

    def close(self) -> None:
        """Count."""
        self.closed += 1


def opened(provider: Counted) -> ProviderStream[str]:
    """Return a stream that a provider has returned."""
    stream: ProviderStream[str] = ProviderStream(copy_context())
    stream.open(lambda returned: returned, provider)
    return stream


class TestTwoThreads:
    """If one thread reads a stream while another one closes it, it is closed once."""

    def test_closed_before_it_is_read(self) -> None:
        """A thread that reads a closed stream gets no item."""
        provider = Counted()
        stream = opened(provider)

        stream.close()
        stream.read_first()

        assert (provider.asked, provider.closed, stream.first) == (0, 1, ())

    def test_closed_while_it_is_read(self) -> None:
        """The reader closes the stream after the item; the other thread does not wait."""
        closed: list[int] = []

        def close_elsewhere() -> None:
            in_thread(stream.close)
            closed.append(provider.closed)

        provider = Counted(close_elsewhere)
        stream = opened(provider)
        stream.read_first()

        assert closed == [0]
        assert provider.closed == 1

    def test_closed_while_an_item_is_awaited(self, hang: Hang) -> None:
        """If a thread closes a stream while another one waits for an item, it is closed then."""
        waits = [False, True]

        def wait() -> None:
            if waits.pop(0):
                hang()

        provider = Counted(wait)
        stream = opened(provider).read_first()
        with running(lambda: next(stream.rest())):
            assert hang.entered.wait(TIMEOUT)
            stream.close()
            before = provider.closed
            hang.over.set()
        stream.close()

        assert (before, provider.closed) == (0, 1)

    @pytest.mark.parametrize("place", ["before", "inside", "after"])
    def test_timeout_as_a_worker_takes_it(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If the limit elapses while a worker reads the first item, the next provider is tried."""
        over, closed = threading.Event(), threading.Event()
        now = 0.0
        monkeypatch.setattr("resilience._failover.attempts.monotonic", lambda: now)
        monkeypatch.setattr("resilience._failover.workers.TIMEOUT_MAX", 0.001)

        def time_out() -> None:
            nonlocal now
            now += LIMIT
            assert over.wait(TIMEOUT)

        provider = Counted(time_out if place == "inside" else lambda: None)
        original = ProviderStream[str].read_first
        readers: list[object] = []

        def read_late(self: ProviderStream[str], *args: Any) -> object:  # noqa: ANN401
            readers.append(self)
            is_late = len(readers) == 1
            if is_late and place == "before":
                time_out()
            try:
                return original(self, *args)
            finally:
                if is_late and place == "after":
                    time_out()

        monkeypatch.setattr(ProviderStream, "read_first", read_late)
        monkeypatch.setattr(provider, "close", closed.set)
        recorder = Recorder(attempt_timeout=LIMIT)
        group = FallbackGroup[Iterator[str]](provider, "0", recorder.config)
        group.add_fallback("1", iter(["backup"]), attempt_timeout=0)

        items = list(group.stream(lambda provider: provider, lazy=True))
        was_closed = closed.is_set()
        over.set()

        assert items == ["backup"]
        assert was_closed == (place != "inside")
        assert closed.wait(TIMEOUT)
        assert isinstance(recorder.attempts[0].error, AttemptTimeoutError)


class TestEmptyChunks:
    """A chunk without content does not commit to a provider, but renews the time limit."""

    @each_limit
    @pytest.mark.parametrize("end", [[], [ConnectionError()]])
    def test_they_do_not_commit(self, end: list[Exception], limit: float | None) -> None:
        """A stream that ends or fails after empty chunks fails over."""
        group = LLMFallback(
            FakeLLM([EMPTY, EMPTY, *end]), "0", FallbackConfig(attempt_timeout=limit)
        )
        group.add_fallback("1", FakeLLM([EMPTY, "answer", EMPTY]))

        chunks = list(group.stream_completion(REQUEST))

        assert chunks == [llm.Chunk(content="answer"), EMPTY]

    def test_each_renews_the_time_limit(self, watched: WatchedClock) -> None:
        """A model that sends empty chunks for longer than the limit is not abandoned."""

        def think() -> None:
            watched.advance(0.99 * LIMIT)

        recorder = Recorder(attempt_timeout=LIMIT)
        model = FakeLLM([think, EMPTY, think, EMPTY, think, EMPTY, think, "answer"])
        group = LLMFallback(model, "0", recorder.config)

        chunks = list(group.stream_completion(REQUEST))

        assert chunks == [llm.Chunk(content="answer")]
        assert recorder.outcomes() == [("0", Outcome.SUCCEEDED)]

    def test_silence_after_one_ends_the_attempt(
        self, monkeypatch: pytest.MonkeyPatch, hang: Hang
    ) -> None:
        """A model that is silent for the limit after an empty chunk is abandoned."""
        now = 0.0
        monkeypatch.setattr("resilience._failover.attempts.monotonic", lambda: now)

        def think() -> None:
            nonlocal now
            now += LIMIT
            hang()

        recorder = Recorder(attempt_timeout=LIMIT)
        group = LLMFallback(FakeLLM([EMPTY, think, "late"]), "0", recorder.config)
        monkeypatch.setattr("resilience._failover.workers.TIMEOUT_MAX", 0.01)

        with pytest.raises(AllFailedError):
            group.stream_completion(REQUEST)

        assert isinstance(recorder.attempts[0].error, AttemptTimeoutError)


@each_limit
def test_empty_items_after_the_stream_was_closed(limit: float | None) -> None:
    """A closed stream ends at the next empty item."""
    asked_again: list[bool] = []
    waiting, closed, ended = threading.Event(), threading.Event(), threading.Event()

    def audio() -> Iterator[bytes]:
        try:
            yield b""
            waiting.set()
            closed.wait(TIMEOUT)
            yield b""
            asked_again.append(True)
            yield b"too late"
        finally:
            ended.set()

    group = TTSFallback(Synthesiser(lambda _: audio()), "a", attempt_timeout=limit)
    stream = group.synthesize_stream("Hi.", VOICE)
    read: list[bytes] = []
    with running(lambda: read.extend(stream)):
        assert waiting.wait(TIMEOUT)
        stream.close()
        closed.set()

    assert ended.wait(TIMEOUT)
    assert read == []
    assert asked_again == []


def test_the_context_of_a_failed_attempt() -> None:
    """A finalizer of an object in a failed attempt's context runs without the streams' lock."""
    variable: ContextVar[object] = ContextVar("variable")
    opened: list[list[int]] = []

    class Span:
        def __del__(self) -> None:
            other = FallbackGroup(3, "other")
            thread = threading.Thread(
                target=lambda: opened.append(list(other.stream(lambda provider: [provider]))),
                daemon=True,
            )
            thread.start()
            thread.join(1.0)
            opened.append([])

    def open_stream(provider: int) -> list[int]:
        if provider == 1:
            variable.set(Span())
            raise ConnectionError
        return [provider]

    def drop_frames(attempt: Attempt) -> None:
        if attempt.error is not None:
            attempt.error.__traceback__ = None

    group = FallbackGroup(1, "a", FallbackConfig(on_attempt=drop_frames))
    group.add_fallback("b", 2)

    assert list(group.stream(open_stream)) == [2]
    assert opened == [[3], []]


@pytest.mark.parametrize("lazy", [False, True])
def test_the_time_limit_of_the_caller_in_a_stream_that_was_closed(*, lazy: bool) -> None:
    """An exception of `interrupt_on` is raised to the reader, even of a closed stream."""

    class TimeLimitExceededError(Exception):
        pass

    def items() -> Iterator[str]:
        if not lazy:
            yield "first"
        streams[0].close()
        raise TimeLimitExceededError

    group = FallbackGroup(1, "a", FallbackConfig(interrupt_on=(TimeLimitExceededError,)))
    streams = [group.stream(lambda _: items(), lazy=lazy)]

    with pytest.raises(TimeLimitExceededError):
        list(streams[0])


@each_limit
def test_a_refused_result_is_closed(limit: float | None) -> None:
    """A result that is not iterable, or lacks methods of a session, is closed in its context."""
    variable: ContextVar[str] = ContextVar("variable")
    closed: list[str] = []

    class Returned:
        """A response that is not iterable, and lacks methods of a session."""

        def close(self) -> None:
            closed.append(variable.get())

    class Recogniser:
        def start_stream(self, _config: stt.StreamConfig) -> Returned:
            variable.set("session")
            return Returned()

    recogniser: Any = Recogniser()

    def open_stream(_provider: object) -> Any:  # noqa: ANN401
        variable.set("stream")
        return Returned()

    with pytest.raises(AllFailedError, match="returned an object of type"):
        FallbackGroup(1, "a", attempt_timeout=limit).stream(open_stream)
    with pytest.raises(AllFailedError, match="returned an object of type"):
        STTFallback(recogniser, "a", attempt_timeout=limit).start_stream(stt.StreamConfig())
    with pytest.raises(TypeError, match="returned an object of type"):
        FallbackGroup(1, "a", attempt_timeout=limit).session(str).stream(open_stream)

    assert closed == ["stream", "session", "stream"]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("way", ["read", "closed", "closed unread"])
def test_an_ended_stream_at_interpreter_exit(
    monkeypatch: pytest.MonkeyPatch, way: str, *, lazy: bool
) -> None:
    """Dropping a stream that has ended uses no module, since modules may be cleared by then."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    stream = FallbackGroup(1, "a").stream(lambda _: ["first", "second"], lazy=lazy)
    if way != "closed unread":
        next(stream)
    if way == "read":
        list(stream)
    else:
        stream.close()

    monkeypatch.setattr("resilience._failover.stream._shared", None)
    monkeypatch.setattr("resilience._failover.stream.getgeneratorstate", None)
    del stream

    assert unraisable == []


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("kind", [Exception, RuntimeError])
def test_the_time_limit_of_the_caller_while_a_stream_is_closed(
    kind: type[Exception], *, wanted: bool
) -> None:
    """An exception of `interrupt_on` is raised by `close()` and listeners; any other is logged."""

    class TimeLimitExceededError(kind):  # type: ignore[misc, valid-type]
        pass

    def interrupt(*_: object) -> None:
        interruptions.append("raised")
        raise TimeLimitExceededError

    class Stream(Counted):
        @override
        def close(self) -> None:
            interrupt()

    interruptions: list[str] = []
    expected = pytest.raises(TimeLimitExceededError) if wanted else contextlib.nullcontext()
    interrupt_on = (TimeLimitExceededError,) if wanted else ()
    closing = FallbackGroup(1, "a", FallbackConfig(interrupt_on=interrupt_on))
    config = FallbackConfig(interrupt_on=interrupt_on, on_attempt=interrupt)
    listening = FallbackGroup(1, "a", config)
    stream = closing.stream(lambda _: Stream())
    next(stream)

    with expected:
        stream.close()
    with expected:
        listening.execute(lambda provider: provider)

    assert interruptions == ["raised", "raised"]


def test_a_stream_whose_reader_was_interrupted() -> None:
    """A stream whose reader was interrupted after marking it as in use is closed when dropped."""
    provider = Counted()
    stream = opened(provider)
    stream._in_use.acquire()

    del stream

    assert provider.closed == 1


class TestOwnership:
    """An object that a provider returns is closed, even after an interruption."""

    def test_a_dropped_stream_is_closed(self) -> None:
        """A stream that is dropped before it is read is closed, once and in its context."""
        variable: ContextVar[str] = ContextVar("variable", default="the caller's")
        closed: list[str] = []

        class Returned(Counted):
            """A stream that notes its context when it is closed."""

            @override
            def close(self) -> None:
                closed.append(variable.get())

        opened(Returned(lambda: variable.set("its own"))).read_first()
        gc.collect()

        assert closed == ["its own"]

    def test_dropped_while_its_context_is_in_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stream that was being read when the process forked is dropped without a warning."""
        unraisable: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        context = copy_context()
        streams = [ProviderStream[str](context)]

        context.run(streams.clear)
        gc.collect()

        assert unraisable == []

    @pytest.mark.parametrize("attempt_timeout", [0, 60])
    def test_stop_iteration(self, attempt_timeout: float) -> None:
        """A provider's `StopIteration` is an exception like any other, not a missing result."""
        group = FallbackGroup("a", "a", FallbackConfig(attempt_timeout=attempt_timeout))

        for verb in (group.session, group.stream, group.execute):
            with pytest.raises(AllFailedError) as raised:
                verb(lambda _: next(iter(())))
            assert isinstance(raised.value.failures["a"], StopIteration)


@pytest.mark.parametrize("items", [["text"], [b"ab"], [3]], ids=["str", "bytes", "int"])
def test_items_that_are_no_chunks(items: list[Any]) -> None:
    """An item that is not a chunk fails the attempt with a `TypeError` naming the provider."""

    class Wrong:
        def stream_completion(self, _request: llm.CompletionRequest) -> list[Any]:
            return items

        complete = count_tokens = capabilities = stream_completion

    wrong: Any = Wrong()
    group = LLMFallback(wrong, "a")
    group.add_fallback("b", FakeLLM("served"))

    assert group.stream_completion(REQUEST).provider == "b"
    group.breakers["b"].isolate()
    with pytest.raises(AllFailedError, match=r"stream_completion\(\) of provider 'a' returned"):
        group.stream_completion(REQUEST)


@pytest.mark.parametrize("audio", ["text", b"pcm", [1]], ids=["str", "bytes", "int"])
def test_items_that_are_no_audio(audio: Any) -> None:  # noqa: ANN401
    """An item that is not bytes fails the attempt with a `TypeError` naming the provider."""

    class Wrong:
        def synthesize_stream(self, _text: object, _voice: object) -> Any:  # noqa: ANN401
            return audio

        list_voices = clone_voice = synthesize_stream

    wrong: Any = Wrong()
    group = TTSFallback(wrong, "a")

    with pytest.raises(AllFailedError, match=r"synthesize_stream\(\) of provider 'a' returned"):
        next(group.synthesize_stream(["Hello"], VOICE))


def test_an_ended_stream_keeps_no_request() -> None:
    """A stream does not refer to its request after its end."""

    class Model:
        def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
            yield llm.Chunk(content=request.messages[0].content)

        complete = count_tokens = capabilities = stream_completion

    model: Any = Model()
    request = llm.CompletionRequest(messages=(llm.Message(role="user", content="secret"),))
    kept = LLMFallback(model, "a").stream_completion(request)
    assert any(each is request for each in reachable(kept))

    list(kept)

    assert not any(each is request for each in reachable(kept))


def reachable(start: object) -> Iterator[object]:
    """Return all objects that an object refers to, directly or not, except modules and classes."""
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(each))
        yield each
        waiting += gc.get_referents(each)
