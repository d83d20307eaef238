"""What a provider returned as a stream is closed exactly once, whoever comes first or last."""

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

from resilience import (
    AllFailedError,
    Attempt,
    AttemptTimeoutError,
    EmptyStreamError,
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
from resilience._failover.source import ProviderStream
from resilience.testing import FakeLLM, FakeTTS

LIMIT = 30.0
REQUEST = llm.CompletionRequest(messages=())
VOICE = tts.VoiceProfile(id="any")
EMPTY = llm.Chunk()


class Counted(Iterator[str]):
    """A stream that counts its closings, and does something when it is asked for an item."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        """Do something at each `next()`."""
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


def read_first(stream: ProviderStream[str]) -> ProviderStream[str]:
    """Read the first item, of which none is empty."""
    return stream.read_first()


class TestWhoeverIsLastCloses:
    """A stream that one thread reads while another one closes it."""

    def test_closed_before_it_is_read(self) -> None:
        """A thread that is late reads nothing."""
        provider = Counted()
        stream = opened(provider)

        stream.close()
        read_first(stream)

        assert (provider.asked, provider.closed, stream.first) == (0, 1, ())

    def test_closed_while_it_is_read(self) -> None:
        """The reader closes it when it is back, and not the other one, which does not wait."""
        closed: list[int] = []

        def close_elsewhere() -> None:
            thread = threading.Thread(target=stream.close)
            thread.start()
            thread.join(LIMIT)
            closed.append(provider.closed)

        provider = Counted(close_elsewhere)
        stream = opened(provider)
        read_first(stream)

        assert closed == [0]
        assert provider.closed == 1

    def test_closed_while_an_item_is_awaited(self) -> None:
        """Whoever closes while another thread is inside leaves it to a later closing."""
        entered, over = threading.Event(), threading.Event()
        waits = [False, True]

        def wait() -> None:
            if waits.pop(0):
                entered.set()
                assert over.wait(LIMIT)

        provider = Counted(wait)
        stream = read_first(opened(provider))
        reader = threading.Thread(target=lambda: next(stream.rest()))
        reader.start()
        assert entered.wait(LIMIT)

        stream.close()
        before = provider.closed
        over.set()
        reader.join(LIMIT)
        stream.close()

        assert (before, provider.closed) == (0, 1)

    @pytest.mark.parametrize("place", ["before", "inside", "after"])
    def test_the_time_is_up_as_a_worker_comes(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A timeout that strikes as the worker takes the opened stream: the next one is tried."""
        over, closed = threading.Event(), threading.Event()
        provider = Counted(lambda: place == "inside" and over.wait(LIMIT))
        original = ProviderStream[str].read_first
        readers: list[object] = []

        def read_late(self: ProviderStream[str], *args: Any) -> object:  # noqa: ANN401
            readers.append(self)
            is_late = len(readers) == 1
            if is_late and place == "before":
                assert over.wait(LIMIT)
            try:
                return original(self, *args)
            finally:
                if is_late and place == "after":
                    assert over.wait(LIMIT)

        monkeypatch.setattr(ProviderStream, "read_first", read_late)
        monkeypatch.setattr(provider, "close", closed.set)
        attempts: list[Attempt] = []
        config = FallbackConfig(attempt_timeout=0.05, on_attempt=attempts.append)
        group = FallbackGroup[Iterator[str]](provider, "0", config)
        group.add_fallback("1", iter(["backup"]), attempt_timeout=0)

        items = list(group.stream(lambda provider: provider, lazy=True))
        was_closed = closed.is_set()
        over.set()

        assert items == ["backup"]
        assert was_closed == (place != "inside")
        assert closed.wait(LIMIT)
        assert isinstance(attempts[0].error, AttemptTimeoutError)


class TestEmptyChunks:
    """A chunk that says nothing commits to nobody, and shows that the provider works."""

    @pytest.mark.parametrize("limit", [None, LIMIT])
    @pytest.mark.parametrize("end", [[], [ConnectionError()]])
    def test_they_commit_to_nobody(self, end: list[Exception], limit: float | None) -> None:
        """A provider that ends or dies after them is failed over."""
        group = LLMFallback(
            FakeLLM([EMPTY, EMPTY, *end]), "0", FallbackConfig(attempt_timeout=limit)
        )
        group.add_fallback("1", FakeLLM([EMPTY, "answer", EMPTY]))

        chunks = list(group.stream_completion(REQUEST))

        assert chunks == [llm.Chunk(content="answer"), EMPTY]

    @pytest.mark.parametrize(
        "chunk",
        [
            llm.Chunk(content="x"),
            llm.Chunk(tool_calls=(llm.ToolCall(id="1", name="f", arguments="{}"),)),
            llm.Chunk(finish_reason="stop"),
            llm.Chunk(usage=llm.Usage()),
        ],
        ids=["content", "tool calls", "finish reason", "usage"],
    )
    def test_what_is_not_empty(self, chunk: llm.Chunk) -> None:
        """Anything that says something commits."""
        group = LLMFallback(FakeLLM([chunk, ConnectionError()]), "0")
        group.add_fallback("1", FakeLLM("never"))

        with group.stream_completion(REQUEST) as stream:
            assert next(stream) is chunk
            assert stream.provider == "0"

    def test_nothing_but_empty_chunks(self) -> None:
        """That is no answer."""
        group = LLMFallback(FakeLLM([EMPTY, EMPTY]), "0")

        with pytest.raises(AllFailedError) as caught:
            group.stream_completion(REQUEST)

        assert isinstance(caught.value.failures["0"], EmptyStreamError)

    def test_each_renews_the_time_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model that thinks longer than the limit, and shows it, is not given up."""
        now = 0.0
        monkeypatch.setattr("resilience._failover.attempts.monotonic", lambda: now)

        def think() -> None:
            nonlocal now
            now += 0.9 * LIMIT

        attempts: list[Attempt] = []
        config = FallbackConfig(attempt_timeout=LIMIT, on_attempt=attempts.append)
        model = FakeLLM([think, EMPTY, think, EMPTY, think, EMPTY, think, "answer"])
        group = LLMFallback(model, "0", config)

        chunks = list(group.stream_completion(REQUEST))

        assert chunks == [llm.Chunk(content="answer")]
        assert [attempt.outcome for attempt in attempts] == [Outcome.SUCCEEDED]

    def test_silence_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without empty chunks the same time is too long."""
        now = 0.0
        monkeypatch.setattr("resilience._failover.attempts.monotonic", lambda: now)
        over = threading.Event()

        def think() -> None:
            nonlocal now
            now += 1.1 * LIMIT
            assert over.wait(LIMIT)

        attempts: list[Attempt] = []
        config = FallbackConfig(attempt_timeout=LIMIT, on_attempt=attempts.append)
        group = LLMFallback(FakeLLM([EMPTY, think, "late"]), "0", config)
        monkeypatch.setattr("resilience._failover.workers.TIMEOUT_MAX", 0.01)

        with pytest.raises(AllFailedError):
            group.stream_completion(REQUEST)
        over.set()

        assert [attempt.outcome for attempt in attempts] == [Outcome.FAILED]

    def test_audio_without_a_byte(self) -> None:
        """The same holds for audio."""
        group = TTSFallback(FakeTTS([b"", b"", ConnectionError()]), "0")
        group.add_fallback("1", FakeTTS([b"", b"audio"]))

        assert list(group.synthesize_stream("Hello", VOICE)) == [b"audio"]


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_empty_items_after_the_stream_was_closed(limit: float | None) -> None:
    """A closed stream ends at the next empty item, whether or not others would follow."""
    asked_again: list[bool] = []
    waiting, closed, ended = threading.Event(), threading.Event(), threading.Event()

    def audio() -> Iterator[bytes]:
        try:
            yield b""
            waiting.set()
            closed.wait(LIMIT)
            yield b""
            asked_again.append(True)
            yield b"too late"
        finally:
            ended.set()

    class Synthesiser:
        def synthesize_stream(self, _text: object, _voice: object) -> Iterator[bytes]:
            return audio()

    synthesiser: Any = Synthesiser()
    stream = TTSFallback(synthesiser, "a", attempt_timeout=limit).synthesize_stream("Hi.", VOICE)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.extend(stream), daemon=True)
    reader.start()
    assert waiting.wait(LIMIT)

    stream.close()
    closed.set()

    assert ended.wait(LIMIT)
    reader.join(LIMIT)
    assert read == []
    assert asked_again == []


def test_what_a_failed_attempt_left_in_its_context() -> None:
    """A finalizer of what a failed provider put into its context runs without the streams' lock."""
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
    """An exception of `interrupt_on` reaches the reader, even of a closed stream."""

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


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_what_is_refused_is_closed(limit: float | None) -> None:
    """What cannot be iterated over, or lacks methods of a session, is closed in its context."""
    variable: ContextVar[str] = ContextVar("variable")
    closed: list[str] = []

    class Returned:
        """A response that is no iterable, and half a session."""

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

    assert closed == ["stream", "session"]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("way", ["read", "closed", "closed unread"])
def test_an_ended_stream_at_interpreter_exit(
    monkeypatch: pytest.MonkeyPatch, way: str, *, lazy: bool
) -> None:
    """Dropping a stream that has ended uses no module, which may have been cleared by then."""
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
def test_the_time_limit_of_the_caller_while_a_stream_is_closed(*, wanted: bool) -> None:
    """An exception of `interrupt_on` is raised by `close()` and listeners, any other is logged."""

    class TimeLimitExceededError(Exception):
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


def test_a_stream_whose_user_was_interrupted() -> None:
    """A thread that was interrupted as it took the stream does not keep it from being closed."""
    provider = Counted()
    stream = opened(provider)
    stream._in_use.acquire()

    del stream

    assert provider.closed == 1


class TestOwnership:
    """What a provider returns has an owner from the moment of its return."""

    def test_a_dropped_stream_is_closed(self) -> None:
        """A stream that is lost before anybody reads it is closed."""
        provider = Counted()

        opened(provider)
        gc.collect()

        assert provider.closed == 1

    @pytest.mark.parametrize("attempt_timeout", [0, 60])
    def test_stop_iteration(self, attempt_timeout: float) -> None:
        """A provider's `StopIteration` is an exception like any other, not a missing result."""
        group = FallbackGroup("a", "a", FallbackConfig(attempt_timeout=attempt_timeout))

        for verb in (group.session, group.stream, group.execute):
            with pytest.raises(AllFailedError) as raised:
                verb(lambda _: next(iter(())))
            assert isinstance(raised.value.failures["a"], StopIteration)


@pytest.mark.parametrize("items", [["text"], [b"ab"], [3]], ids=["str", "bytes", "int"])
def test_chunks_that_are_none(items: list[Any]) -> None:
    """Something else than a chunk fails the attempt with a `TypeError` that names the provider."""
    group = LLMFallback(FakeLLM(), "a")

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
def test_audio_that_is_none(audio: Any) -> None:  # noqa: ANN401
    """Pieces that are no bytes fail the attempt with a `TypeError` that names the provider."""

    class Wrong:
        def synthesize_stream(self, _text: object, _voice: object) -> Any:  # noqa: ANN401
            return audio

        list_voices = clone_voice = synthesize_stream

    wrong: Any = Wrong()
    group = TTSFallback(wrong, "a")

    with pytest.raises(AllFailedError, match=r"synthesize_stream\(\) of provider 'a' returned"):
        next(group.synthesize_stream(["Hello"], VOICE))


def test_an_ended_stream_keeps_no_request() -> None:
    """A stream that is kept after its end does not keep the prompt."""

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
    """Return what an object refers to, directly or not, but for modules and classes."""
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(each))
        yield each
        waiting += gc.get_referents(each)
