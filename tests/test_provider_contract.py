"""The contract tests pass for providers that keep their contract, and fail for others."""

import contextlib
import unittest
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count, repeat
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread
from threading import enumerate as running_threads
from types import ModuleType
from typing import Any, cast

import pytest
from typing_extensions import override

from resilience import LLMFallback, STTFallback, TTSFallback, UnsupportedRequestError, llm, stt, tts
from resilience.testing import (
    FakeLLM,
    FakeSession,
    FakeSTT,
    FakeTTS,
    LLMProviderContract,
    STTProviderContract,
    TTSProviderContract,
    _contract_stt,
)
from wrong_providers import (
    ANSWER,
    CALL,
    CHUNKS,
    EVERYTHING,
    HANGING,
    TIMEOUT,
    WEATHER,
    Line,
    Model,
    Recogniser,
    Synthesiser,
    TextModel,
    hang,
    recogniser,
    refuse,
    wrong,
)

TOOL_REQUEST = llm.CompletionRequest(
    messages=(llm.Message(role="user", content="Does it rain in Oslo?"),), tools=(WEATHER,)
)
CUT = ConnectionError("reset")
CONTRACTS: list[Any] = [LLMProviderContract, STTProviderContract, TTSProviderContract]


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    """End the hanging calls when the test has ended."""
    HANGING.clear()
    yield
    HANGING.set()


# Providers that keep their contracts; pytest collects these classes.


class TestFakeLLM(LLMProviderContract):
    """The fake keeps the contract with lazy streams."""

    lazy = True

    @override
    def make_provider(self) -> FakeLLM:
        return FakeLLM(capabilities=EVERYTHING, lazy=self.lazy)

    @override
    def make_broken_provider(self) -> FakeLLM:
        return FakeLLM(ConnectionError("refused"), lazy=self.lazy)

    @override
    def make_interrupted_provider(self) -> FakeLLM:
        return FakeLLM(["Hel", ConnectionError("reset")], lazy=self.lazy)


class TestEagerFakeLLM(TestFakeLLM):
    """The fake keeps the contract with eager streams."""

    lazy = False


class TestFakeTTS(TTSProviderContract):
    """The fake keeps the contract."""

    samples = (b"RIFF",)

    @override
    def make_provider(self) -> FakeTTS:
        return FakeTTS(voices=[self.voice])

    @override
    def make_broken_provider(self) -> FakeTTS:
        return FakeTTS(ConnectionError("refused"), lazy=False)

    @override
    def make_interrupted_provider(self) -> FakeTTS:
        return FakeTTS([b"audio", ConnectionError("reset")])


class TestFakeSTT(STTProviderContract):
    """The fake keeps the contract."""

    @override
    def make_provider(self) -> FakeSTT:
        return FakeSTT(FakeSession("hello", partials=["hel"]))

    @override
    def make_broken_provider(self) -> FakeSTT:
        return FakeSTT(ConnectionError("refused"))

    @override
    def make_interrupted_provider(self) -> FakeSTT:
        return FakeSTT(FakeSession("hel", ConnectionError("reset"), partials=[CUT], sending=[CUT]))


class TestModel(LLMProviderContract):
    """A model that supports everything keeps the contract."""

    tool_request: llm.CompletionRequest | None = TOOL_REQUEST

    @override
    def make_provider(self) -> llm.Provider:
        return Model()

    @override
    def make_broken_provider(self) -> llm.Provider:
        return wrong(Model, complete=refuse, stream_completion=refuse)()


class TestTextModel(TestModel):
    """A model that supports only text keeps the contract, if it raises for other requests."""

    tool_request = None
    unsupported_requests = (llm.CompletionRequest(messages=(), seed=1),)

    @override
    def make_provider(self) -> llm.Provider:
        return TextModel()


class LLMFallbackContract(TestModel):
    """A group keeps the contract, also with threads for its attempts.

    pytest collects this class, though its name does not begin with "Test".
    """

    @override
    def make_provider(self) -> llm.Provider:
        return LLMFallback(Model(), "model", attempt_timeout=TIMEOUT)


class TestSynthesiser(TTSProviderContract):
    """A synthesiser that cannot list or clone voices keeps the contract."""

    unsupported_voices: Sequence[tts.VoiceProfile] = (tts.VoiceProfile(id="v-1", speed=2.0),)

    @override
    def make_provider(self) -> tts.Provider:
        return Synthesiser()

    @override
    def make_broken_provider(self) -> tts.Provider:
        return wrong(Synthesiser, synthesize_stream=refuse)()


class TestSynthesiserOfWholeTexts(TestSynthesiser):
    """A synthesiser that waits for the whole text, and returns a list, keeps the contract."""

    unsupported_voices: Sequence[tts.VoiceProfile] = ()

    @override
    def make_provider(self) -> tts.Provider:
        return wrong(
            Synthesiser, synthesize_stream=lambda _self, text, _voice: ["".join(text).encode()]
        )()


class TestTTSFallback(TestSynthesiser):
    """A group keeps the contract, also with threads for its attempts."""

    unsupported_voices: Sequence[tts.VoiceProfile] = ()

    @override
    def make_provider(self) -> tts.Provider:
        return TTSFallback(FakeTTS(voices=[self.voice]), "fake", attempt_timeout=TIMEOUT)


class TestRecogniser(STTProviderContract):
    """A recogniser keeps the contract."""

    unsupported_configs: Sequence[stt.StreamConfig] = (
        stt.StreamConfig(channels=2),
        stt.StreamConfig(encoding="opus"),
    )

    @override
    def make_provider(self) -> stt.Provider:
        return Recogniser()

    @override
    def make_broken_provider(self) -> stt.Provider:
        return wrong(Recogniser, start_stream=refuse)()

    @override
    def make_interrupted_provider(self) -> stt.Provider:
        return recogniser(send_audio=lambda self, _audio: self.end(CUT))()


class TestRecogniserWithoutFinish(TestRecogniser):
    """A recogniser whose sessions end only when they are closed keeps the contract."""

    unsupported_configs: Sequence[stt.StreamConfig] = ()

    @override
    def make_provider(self) -> stt.Provider:
        return recogniser(finish=None)()


class SilentFirstLine(Line):
    """A session whose first transcripts have no text, and that has no partial ones."""

    @override
    def send_audio(self, audio: bytes) -> None:
        for text in ("", "hello"):
            self.queues[True].put(stt.Transcript(text=text, is_final=True))

    @override
    def partials(self) -> Iterable[stt.Transcript]:
        return ()


class TestRecogniserWithoutPartials(TestRecogniserWithoutFinish):
    """A recogniser with only final transcripts, some without text, keeps the contract."""

    @override
    def make_provider(self) -> stt.Provider:
        line = wrong(SilentFirstLine, finish=None)
        return wrong(Recogniser, start_stream=lambda *_: line())()

    @override
    def make_interrupted_provider(self) -> stt.Provider:
        line = wrong(SilentFirstLine, send_audio=lambda self, _audio: self.end(CUT))
        return wrong(Recogniser, start_stream=lambda *_: line())()


class TestSTTFallback(TestRecogniser):
    """A group keeps the contract, also with threads for its attempts."""

    unsupported_configs: Sequence[stt.StreamConfig] = ()

    @override
    def make_provider(self) -> stt.Provider:
        return STTFallback(Recogniser(), "recogniser", attempt_timeout=TIMEOUT)


class TestClasses:
    """Collection of the classes, and their requirements."""

    def test_collected_by_pytest(self, request: pytest.FixtureRequest) -> None:
        """Pytest collects the subclasses of a module, and not the imported base classes."""
        module = request.node.getparent(pytest.Module)

        names = {node.name for node in module.collect()}

        assert {"LLMFallbackContract", "TestFakeLLM", "TestFakeSTT", "TestFakeTTS"} <= names
        assert names.isdisjoint(contract.__name__ for contract in CONTRACTS)
        assert not any(contract.__test__ for contract in CONTRACTS)

    def test_not_collected_on_demand(self) -> None:
        """A subclass with `__test__ = False` is not collected."""

        class Base(LLMProviderContract):
            __test__ = False

        class Derived(Base):
            pass

        assert (Base.__test__, Derived.__test__) == (False, True)

    def test_collected_by_unittest(self) -> None:
        """`unittest` collects a subclass that is a `TestCase`, and not the imported classes."""
        module = ModuleType("a_test_module")
        case = type("Mine", (TestFakeLLM, unittest.TestCase), {})
        vars(module).update({contract.__name__: contract for contract in CONTRACTS}, Mine=case)

        suite = unittest.TestLoader().loadTestsFromModule(module)

        names = {test.id().rpartition(".")[2] for test in flatten(suite)}
        assert names == {name for name in dir(LLMProviderContract) if name.startswith("test_")}

    @pytest.mark.parametrize("contract", [TestFakeLLM, TestFakeSTT, TestFakeTTS, TestModel])
    def test_runs_under_unittest(self, contract: type) -> None:
        """Under `unittest` a correct provider passes; tests whose hook is missing are skipped."""
        result = run_unittest(contract)

        assert result.wasSuccessful()
        assert result.testsRun > 10
        assert all("set or override `" in reason for _, reason in result.skipped)

    def test_fails_under_unittest(self) -> None:
        """Under `unittest` a wrong provider is a failure, not an error."""
        hooks = {"make_provider": lambda _: wrong(Model, complete=lambda *_: None)()}

        result = run_unittest(type("Mine", (TestModel,), hooks))

        failed = {test.id().rpartition(".")[2]: text for test, text in result.failures}
        assert "raise instead, so that the group can fail over" in failed["test_complete_answers"]
        assert "test_tool_calls" in failed
        assert "test_streamed_tool_calls" not in failed
        assert result.errors == []

    @pytest.mark.parametrize("method", ["make_provider", "make_broken_provider"])
    @pytest.mark.parametrize("contract", CONTRACTS)
    def test_says_what_to_override(self, contract: type, method: str) -> None:
        """A class that lacks a method fails with the method's name."""
        with pytest.raises(NotImplementedError, match=rf"override {method}\(\) in the test class"):
            getattr(contract(), method)()

    @pytest.mark.parametrize(
        ("contract", "test", "hook"),
        [
            (TestModel, "interrupted_complete_raises", "make_interrupted_provider"),
            (TestModel, "interrupted_stream_raises", "make_interrupted_provider"),
            (TestModel, "interrupted_streams_leave_nothing", "make_interrupted_provider"),
            (TestModel, "unsupported_requests", "unsupported_requests"),
            (TestTextModel, "tool_calls", "tool_request"),
            (TestTextModel, "streamed_tool_calls", "tool_request"),
            (TestTextModel, "tool_results", "tool_request"),
            (TestFakeTTS, "unsupported_voices", "unsupported_voices"),
            (TestSynthesiser, "clone_voice", "samples"),
            (TestFakeSTT, "unsupported_configs", "unsupported_configs"),
        ],
    )
    def test_skips(self, contract: type, test: str, hook: str) -> None:
        """A test whose hook or attribute is missing is skipped, with its name as the reason."""
        with pytest.raises(unittest.SkipTest, match=f"set or override `{hook}` to run this test"):
            getattr(contract(), f"test_{test}")()


class TestLeftovers:
    """Threads and connections that count as leaked, and those that do not."""

    def test_kept_thread(self) -> None:
        """A thread that the provider keeps for all calls does not count as leaked."""
        with ThreadPoolExecutor(1) as pool:
            provider = wrong(Model, complete=lambda *_: pool.submit(lambda: ANSWER).result())

            run(TestModel(), "complete_leaves_nothing", make_provider=provider, time_limit=0.4)

    def test_thread_that_ends_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread that ends soon after the call does not count as leaked."""
        HANGING.clear()
        looks = count()

        def look() -> list[Thread]:
            if next(looks) == 2:  # after all calls
                HANGING.set()
            return running_threads()

        monkeypatch.setattr("resilience.testing._contract_base.running_threads", look)

        run(
            TestModel(),
            "complete_leaves_nothing",
            make_provider=leaking(Model, "complete"),
        )

    def test_kept_connection(self) -> None:
        """A connection that is kept for the next call, or closed late, does not count as leaked."""
        connections = iter([1, 7, 4, 3])

        run(TestModel(), "complete_leaves_nothing", count_connections=connections.__next__)

        assert list(connections) == []

    def test_before_the_client_is_closed(self) -> None:
        """Threads that end only when the client is closed count as leaked."""
        with pytest.raises(AssertionError, match=LEFT_THREADS):
            run(
                TestModel(),
                "complete_leaves_nothing",
                make_provider=leaking(Model, "complete"),
                close_provider=lambda _: HANGING.set(),
                time_limit=0.4,
            )


class TestClosing:
    """`close_provider()` is called at the end of each test."""

    @pytest.mark.parametrize(
        ("contract", "test"),
        [
            (TestModel, "test_complete_answers"),
            (TestModel, "test_complete_of_broken_provider_raises"),
            (TestFakeLLM, "test_interrupted_stream_raises"),
        ],
    )
    def test_closes_each_provider(self, contract: type, test: str) -> None:
        """A provider of each kind is closed, once."""
        closed: list[object] = []

        run(contract(), test.removeprefix("test_"), close_provider=closed.append)

        assert len(closed) == 1

    def test_closes_after_a_failure(self) -> None:
        """A provider is closed after a failure, which an exception of closing does not replace."""
        closed: list[object] = []

        def close(provider: object) -> None:
            closed.append(provider)
            refuse()

        with pytest.raises(AssertionError, match="returned an empty answer"):
            run(
                TestModel(),
                "complete_answers",
                make_provider=complete_gives(content=""),
                close_provider=close,
            )

        assert len(closed) == 1

    def test_closing_fails(self) -> None:
        """An exception of closing fails the test."""
        with pytest.raises(AssertionError, match=r"close_provider\(\) raised ConnectionError"):
            run(TestModel(), "complete_answers", close_provider=refuse)


def run(contract: Any, test: str, **hooks: Any) -> None:
    """Run one test of a contract class, with some replaced methods and attributes."""
    vars(contract).update(hooks)
    getattr(contract, f"test_{test}")()


def run_unittest(contract: type) -> unittest.TestResult:
    """Run all tests of a contract under `unittest`."""
    case = type(contract.__name__, (contract, unittest.TestCase), {})
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromTestCase(case).run(result)
    return result


def flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


# Wrong models: for each, the test that fails, a part of its message, and the fault.


def complete_gives(**fields: Any) -> Callable[[], Any]:
    """Return models whose answers have wrong fields."""
    return wrong(Model, complete=lambda _self, _request: replace(ANSWER, **fields))


def stream_gives(*chunks: Any) -> Callable[[], Any]:
    """Return models whose streams have these items."""
    return wrong(Model, stream_completion=lambda _self, _request: iter(chunks))


def complete_raises(error: BaseException) -> Callable[[], Any]:
    """Return models whose `complete()` raises."""
    return wrong(Model, complete=lambda *_: _raise(error))


def stream_raises(error: BaseException) -> Callable[[], Any]:
    """Return models whose streams raise when they are opened."""
    return wrong(Model, stream_completion=lambda *_: _raise(error))


def opens(stream: Callable[[], Any]) -> Callable[[], Any]:
    """Return models that return a stream of this class."""
    return wrong(Model, stream_completion=lambda *_: stream())


def tool_calls_are(*, finish_reason: str = "tool_calls", **fields: Any) -> Callable[[], Any]:
    """Return models whose tool calls have wrong fields."""
    call = replace(CALL, **fields)
    response = llm.CompletionResponse(tool_calls=(call,), finish_reason=finish_reason)
    chunk = llm.Chunk(tool_calls=(call,), finish_reason=finish_reason)
    return wrong(Model, complete=lambda *_: response, stream_completion=lambda *_: iter([chunk]))


def knows_two_roles(model: Model, request: llm.CompletionRequest) -> llm.CompletionResponse:
    """Translate the messages of users and assistants only."""
    roles = {"user": "USER", "assistant": "BOT"}
    assert [roles[message.role] for message in request.messages]
    return Model.complete(model, request)


def lacks(capability: str) -> Callable[[], Any]:
    """Return models that do not raise for requests that their capabilities exclude."""
    capabilities = replace(EVERYTHING, **{capability: False})
    return wrong(Model, capabilities=lambda _: capabilities)


def _raise(error: BaseException) -> None:
    raise error


async def coroutine(*_: object) -> None:
    """Return a coroutine."""


async def async_generator(*_: object) -> Any:
    """Return an asynchronous generator."""
    yield llm.Chunk()


class PinnedStream(Iterator[Any]):
    """Wrong: only the thread that has opened the stream can use it."""

    def __init__(self, items: Iterable[Any] = CHUNKS, *, reads: bool = False) -> None:
        """Make a stream; other threads can read it if that is allowed."""
        self._items = iter(items)
        self._reads = reads
        self._thread = current_thread()

    @override
    def __next__(self) -> Any:
        if not self._reads:
            self._check()
        return next(self._items)

    def close(self) -> None:
        """Close the stream; raise in another thread than its own."""
        self._check()

    def _check(self) -> None:
        if current_thread() is not self._thread:
            msg = "another thread"
            raise RuntimeError(msg)


class UnclosableStream(PinnedStream):
    """Wrong: the stream cannot be closed."""

    @override
    def close(self) -> None:
        msg = "cannot be closed now"
        raise RuntimeError(msg)


class ClosingModel(Model):
    """Wrong: closing a stream early closes the client."""

    def __init__(self) -> None:
        """Make a client that is open."""
        self.is_open = True

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
        if not self.is_open:
            refuse()
        return self._read()

    def _read(self) -> Iterator[llm.Chunk]:
        try:
            yield from CHUNKS
        except GeneratorExit:
            self.is_open = False


class ForgetfulModel(Model):
    """Wrong: the model has one stream at a time."""

    chunks: Iterator[llm.Chunk]

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
        self.chunks = iter(CHUNKS)
        while chunk := next(self.chunks, None):
            yield chunk


class BusyModel(Model):
    """Wrong: the model serves one thread at a time."""

    def __init__(self) -> None:
        """Make a model that is free."""
        self._lock = Lock()
        self._has_refused = Event()

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        if not self._lock.acquire(blocking=False):
            self._has_refused.set()
            msg = "busy"
            raise RuntimeError(msg)
        self._has_refused.wait(TIMEOUT)  # until a second thread has called
        return ANSWER

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
        self.complete(request)
        return iter(CHUNKS)


def leaking(base: type, method: str) -> Callable[[], Any]:
    """Return providers of which each call of a method leaves a thread."""
    original = getattr(base, method)

    def leak(*arguments: object) -> Any:
        Thread(target=hang, name="left", daemon=True).start()
        return original(*arguments)

    return wrong(base, **{method: leak})


REFUSING_MODEL: Any = wrong(Model, complete=refuse, stream_completion=refuse)
SILENT_MODEL = wrong(Model, complete=lambda *_: ANSWER, stream_completion=lambda *_: iter(()))
PASSES_EXTRA = wrong(Model, complete=lambda _, request: replace(ANSWER, **request.extra))
NUMBERS = count(1)
LEFT_THREADS = r"left threads running after 0.4 s: left, left, left; each must end"


def case(test: str, message: str, provider: Any = None, **hooks: Any) -> Any:
    """Return a case: the test that fails, a pattern of its message, and the wrong provider."""
    if provider is not None:
        hooks["make_provider"] = provider
    return pytest.param(test, message, hooks, id=f"{test}: {message}")


def broken(test: str, message: str, provider: Any, **hooks: Any) -> Any:
    """Return a wrong provider whose server cannot be reached."""
    return case(test, message, make_broken_provider=provider, **hooks)


def interrupted(test: str, message: str, provider: Any, **hooks: Any) -> Any:
    """Return a wrong provider whose server closes the connection in the middle."""
    return case(test, message, make_interrupted_provider=provider, **hooks)


WRONG_MODELS = [
    # values
    case(
        "complete_answers",
        "give CompletionResponse, got NoneType: if there is nothing to return, raise",
        wrong(Model, complete=lambda *_: None),
    ),
    case(
        "complete_answers",
        "got coroutine: the contract is synchronous",
        wrong(Model, complete=coroutine),
    ),
    case(
        "complete_answers",
        "returned an empty answer: raise instead, so that the group can fail over",
        complete_gives(content=" "),
    ),
    case("complete_answers", "content must be str, got None", complete_gives(content=None)),
    case(
        "complete_answers",
        r"tool_calls must be tuple\[.*ToolCall, ...\], got \[.*\(list\)",
        complete_gives(tool_calls=[CALL]),
    ),
    case(
        "complete_answers",
        r"tool_calls must be tuple.*got \('c-1',\)",
        complete_gives(tool_calls=("c-1",)),
    ),
    case(
        "complete_answers",
        r"ToolCall.arguments must be str, got \{.*\(dict\)",
        complete_gives(tool_calls=(replace(CALL, arguments=cast("Any", {})),)),
    ),
    case("complete_answers", "usage must be .*Usage | None, got {", complete_gives(usage={})),
    case(
        "complete_answers",
        "Usage.prompt_tokens must be int, got True",
        complete_gives(usage=llm.Usage(prompt_tokens=True)),
    ),
    case(
        "complete_answers",
        "Usage.cache_read_tokens must be int, got None",
        complete_gives(usage=llm.Usage(cache_read_tokens=cast("Any", None))),
    ),
    case(
        "complete_answers",
        "numbers of tokens are 0 or more",
        complete_gives(usage=llm.Usage(completion_tokens=-1)),
    ),
    case("complete_answers", "extra must be .*Mapping.*got 'c2ln'", complete_gives(extra="c2ln")),
    case(
        "complete_answers",
        "finish reason 'end_turn': translate .* into one of stop, length, tool_calls",
        complete_gives(finish_reason="end_turn"),
    ),
    case("complete_answers", "finish reason None", complete_gives(finish_reason=None)),
    case(
        "complete_answers",
        "raised ConnectionError: no. The provider must be able",
        complete_raises(ConnectionError("no")),
    ),
    case(
        "complete_answers",
        "complete.. takes longer than 0.4 s: give the client a time limit",
        wrong(Model, complete=hang),
        time_limit=0.4,
    ),
    case(
        "extra_of_other_vendors_is_ignored",
        "`extra` of another vendor raised TypeError",
        PASSES_EXTRA,
    ),
    # streams
    case(
        "stream_is_whole",
        "give an iterable of Chunk, got NoneType",
        wrong(Model, stream_completion=lambda *_: None),
    ),
    case(
        "stream_is_whole",
        "got async_generator: the contract is synchronous",
        wrong(Model, stream_completion=async_generator),
    ),
    case(
        "stream_is_whole",
        "give an iterable of Chunk, got str",
        wrong(Model, stream_completion=lambda *_: "Hello."),
    ),
    case(
        "stream_is_whole",
        "an item of stream_completion.. must give Chunk, got str",
        stream_gives("Hello."),
    ),
    case(
        "stream_is_whole",
        "ended without a chunk: raise instead, so that the group can fail over",
        stream_gives(),
    ),
    case(
        "stream_is_whole", "returned an empty answer", stream_gives(llm.Chunk(finish_reason="stop"))
    ),
    case("stream_is_whole", "finish reason None", stream_gives(llm.Chunk(content="Hello."))),
    case(
        "stream_is_whole",
        "finish reason 'STOP'",
        stream_gives(llm.Chunk(content="Hello.", finish_reason="STOP")),
    ),
    case(
        "stream_is_whole",
        "went on after its finish reason",
        stream_gives(*CHUNKS, llm.Chunk(content="?")),
    ),
    case(
        "stream_is_whole",
        "Chunk.reasoning must be str, got None",
        stream_gives(llm.Chunk(reasoning=cast("Any", None))),
    ),
    case(
        "stream_is_whole",
        "stream_completion.. takes longer than 0.4 s",
        wrong(Model, stream_completion=lambda *_: iter(hang, None)),
        time_limit=0.4,
    ),
    case(
        "stream_is_whole",
        "stream_completion.. raised RuntimeError: cannot",
        opens(UnclosableStream),
    ),
    case(
        "stream_is_closed_unread",
        "closing stream_completion.. unread raised RuntimeError: cannot",
        opens(UnclosableStream),
    ),
    case(
        "stream_is_closed_early",
        "closing stream_completion.. early raised RuntimeError: cannot",
        opens(UnclosableStream),
    ),
    case(
        "stream_is_closed_early",
        "after another one was closed raised ConnectionError",
        ClosingModel,
    ),
    case(
        "stream_is_closed_by_another_thread",
        "close.. in another thread raised RuntimeError",
        opens(partial(PinnedStream, reads=True)),
    ),
    case(
        "stream_is_read_by_another_thread",
        "reading in another thread raised RuntimeError",
        opens(PinnedStream),
    ),
    case("streams_are_independent", "returned an empty answer", ForgetfulModel),
    case(
        "streams_in_several_threads", "in 4 threads at a time raised RuntimeError: busy", BusyModel
    ),
    case(
        "complete_in_several_threads", "in 4 threads at a time raised RuntimeError: busy", BusyModel
    ),
    # failures
    broken(
        "complete_of_broken_provider_raises",
        "did not raise, although the provider cannot be reached: raise instead, so",
        SILENT_MODEL,
    ),
    broken("stream_of_broken_provider_raises", "did not raise, although", SILENT_MODEL),
    broken(
        "complete_of_broken_provider_raises",
        "raised UnsupportedRequestError: no when .* never counted",
        complete_raises(UnsupportedRequestError("no")),
    ),
    broken(
        "complete_of_broken_provider_raises",
        "raised NotImplementedError when",
        complete_raises(NotImplementedError()),
    ),
    broken(
        "stream_of_broken_provider_raises",
        "raised AttributeError: no .* looks like a bug",
        stream_raises(AttributeError("no")),
    ),
    broken(
        "stream_of_broken_provider_raises",
        "give an iterable of Chunk, got NoneType",
        wrong(Model, stream_completion=lambda *_: None),
    ),
    broken(
        "complete_of_broken_provider_raises",
        "raised SystemExit: 1 .* no Exception",
        complete_raises(SystemExit(1)),
    ),
    broken(
        "complete_of_broken_provider_raises",
        "takes longer than 0.4 s",
        wrong(Model, complete=hang),
        time_limit=0.4,
    ),
    interrupted(
        "interrupted_complete_raises",
        "did not raise, although the connection was closed in the middle",
        SILENT_MODEL,
    ),
    interrupted(
        "interrupted_stream_raises",
        "did not raise, although the connection was closed in the middle",
        stream_gives(llm.Chunk(content="Hel")),
    ),
    # leaked threads and connections
    case(
        "streams_leave_nothing",
        f"to its end {LEFT_THREADS}",
        leaking(Model, "stream_completion"),
        time_limit=0.4,
    ),
    case(
        "closed_streams_leave_nothing",
        f"closed early {LEFT_THREADS}",
        leaking(Model, "stream_completion"),
        time_limit=0.4,
    ),
    broken(
        "failed_streams_leave_nothing",
        f"that failed {LEFT_THREADS}",
        leaking(REFUSING_MODEL, "stream_completion"),
        time_limit=0.4,
    ),
    interrupted(
        "interrupted_streams_leave_nothing",
        f"that broke off {LEFT_THREADS}",
        leaking(Model, "stream_completion"),
        time_limit=0.4,
    ),
    case("complete_leaves_nothing", LEFT_THREADS, leaking(Model, "complete"), time_limit=0.4),
    broken(
        "failed_complete_leaves_nothing",
        LEFT_THREADS,
        leaking(REFUSING_MODEL, "complete"),
        time_limit=0.4,
    ),
    case(
        "complete_leaves_nothing",
        "3 times complete.. left \\d+ connections open after 0.4 s: release each",
        count_connections=count(step=3).__next__,
        time_limit=0.4,
    ),
    # tools
    case(
        "tool_calls",
        "returned no tool call for `tool_request`",
        wrong(Model, complete=lambda *_: ANSWER),
    ),
    case("streamed_tool_calls", "returned no tool call for `tool_request`", stream_gives(*CHUNKS)),
    *(
        case(test, message, tool_calls_are(**fields))
        for test in ("tool_calls", "streamed_tool_calls")
        for message, fields in {
            "finish reason 'stop' with a tool call": {"finish_reason": "stop"},
            "ids are empty or not unique": {"id": ""},
            "called the tool 'news', which is not among": {"name": "news"},
            "arguments '{\"ci', which are no JSON object: collect the parts": {"arguments": '{"ci'},
            "arguments '3', which are no JSON": {"arguments": "3"},
        }.items()
    ),
    case(
        "tool_calls",
        "ids are empty or not unique: results need them",
        wrong(
            Model,
            complete=lambda *_: replace(
                ANSWER, tool_calls=(CALL, CALL), finish_reason="tool_calls"
            ),
        ),
    ),
    case(
        "tool_results",
        "an answer to the results of tool calls raised KeyError",
        wrong(Model, complete=knows_two_roles),
    ),
    case(
        "tool_results",
        "an answer to the results of tool calls ended without a chunk",
        stream_gives(),
    ),
    # what the model cannot do
    case(
        "unsupported_requests",
        "complete.. ignored a picture, which it does not support: raise Unsupported",
        wrong(TextModel, _check=lambda *_: None),
    ),
    case(
        "unsupported_requests",
        "complete.. raised ValueError: 400 for a picture",
        wrong(TextModel, _check=lambda *_: _raise(ValueError("400"))),
    ),
    case(
        "unsupported_requests",
        "stream_completion.. ignored a picture",
        wrong(TextModel, stream_completion=lambda *_: iter(CHUNKS)),
    ),
    *(
        case("unsupported_requests", f"complete.. ignored {what}, which", lacks(name))
        for name, what in {
            "supports_vision": "a picture",
            "supports_audio": "a recording",
            "supports_tools": "tools",
            "supports_structured_output": "a response format",
            "supports_reasoning": "a reasoning effort",
        }.items()
    ),
    case(
        "unsupported_requests",
        "ignored one of `unsupported_requests`",
        unsupported_requests=[TOOL_REQUEST],
    ),
    # other rules
    case(
        "count_tokens",
        "returned 0 for `request`: return how many tokens",
        wrong(Model, count_tokens=lambda *_: 0),
    ),
    case("count_tokens", "returned True for `request`", wrong(Model, count_tokens=lambda *_: True)),
    case("count_tokens", "must give int, got str", wrong(Model, count_tokens=lambda *_: "3")),
    case("count_tokens", "raised ConnectionError: refused", wrong(Model, count_tokens=refuse)),
    case(
        "capabilities",
        "must give ModelCapabilities, got dict",
        wrong(Model, capabilities=lambda _: {}),
    ),
    case(
        "capabilities",
        "differed between two calls",
        wrong(Model, capabilities=lambda _: replace(EVERYTHING, context_window=next(NUMBERS))),
    ),
    case(
        "capabilities",
        "context_window=0",
        wrong(Model, capabilities=lambda _: replace(EVERYTHING, context_window=0)),
    ),
]


@pytest.mark.parametrize(("test", "message", "hooks"), WRONG_MODELS)
def test_wrong_models(test: str, message: str, hooks: dict[str, Any]) -> None:
    """Each wrong model fails its test, with a message that describes what to do."""
    check_is_caught(TestModel(), test, message, hooks)


def check_is_caught(contract: Any, test: str, message: str, hooks: dict[str, Any]) -> None:
    """Run one test of a contract, which must fail with a message."""
    with pytest.raises((AssertionError, unittest.SkipTest), match=message):
        run(contract, test, **hooks)


# Wrong synthesisers.


def speaks(*pieces: Any) -> Callable[[], Any]:
    """Return synthesisers that return these pieces of audio for any text."""
    return wrong(Synthesiser, synthesize_stream=lambda *_: iter(pieces))


def measure_text(_: object, text: Any, _voice: object) -> list[bytes]:
    """Call `len` with the text."""
    return [b"audio"] * len(text)


def read_twice(_: object, text: Iterable[str], _voice: object) -> Iterator[bytes]:
    """Read the text a second time."""
    if "".join(text):
        yield from (fragment.encode() for fragment in text)


def stop_at_empty(_: object, text: Iterable[str], _voice: object) -> Iterator[bytes]:
    """Treat an empty fragment as the end of the text."""
    yield from (fragment.encode() for fragment in iter(partial(next, iter(text), ""), ""))


def speak_in_thread(*, error_ends: bool, waits: bool = True) -> Any:
    """Read the text in another thread, whose exceptions are lost or end the audio."""

    def synthesize(_: object, text: Iterable[str], _voice: object) -> Iterator[bytes]:
        pieces: SimpleQueue[bytes | None] = SimpleQueue()

        def read() -> None:
            with contextlib.suppress(ConnectionError):
                for fragment in text:
                    pieces.put(fragment.encode())
                if not error_ends:
                    pieces.put(None)
            if error_ends:
                pieces.put(None)

        Thread(target=read, daemon=True).start()
        first = pieces.get(timeout=TIMEOUT)
        yield from [first] if first else []
        if waits:
            yield from iter(partial(pieces.get, timeout=TIMEOUT), None)

    return wrong(Synthesiser, synthesize_stream=synthesize)


REFUSING_SYNTHESISER: Any = wrong(Synthesiser, synthesize_stream=refuse)
TWO_VOICES = [tts.VoiceProfile(id="v-1"), "v-2"]

WRONG_SYNTHESISERS = [
    case(
        "stream_is_whole",
        "ended without audio: raise instead, so that the group can fail over",
        speaks(),
    ),
    case("stream_is_whole", "ended without audio", speaks(b"", b"")),
    case("stream_is_whole", "must give bytes, got str", speaks("audio")),
    case("stream_is_whole", "must give bytes, got bytearray", speaks(bytearray(b"audio"))),
    case(
        "stream_is_whole",
        "give an iterable of bytes, got bytes",
        wrong(Synthesiser, synthesize_stream=lambda *_: b"audio"),
    ),
    case(
        "stream_is_whole",
        "raised TypeError: .* has no len",
        wrong(Synthesiser, synthesize_stream=measure_text),
    ),
    case(
        "stream_is_whole",
        "synthesize_stream.. ended without audio",
        wrong(Synthesiser, synthesize_stream=read_twice),
    ),
    case(
        "text_that_comes_slowly",
        "ended before it had read the whole text: wait for the next",
        wrong(Synthesiser, synthesize_stream=stop_at_empty),
    ),
    case(
        "text_that_comes_slowly",
        "ended before it had read the whole text",
        speak_in_thread(error_ends=True, waits=False),
    ),
    case(
        "text_that_fails",
        "takes longer than 0.4 s: hand the exception",
        speak_in_thread(error_ends=False),
        time_limit=0.4,
    ),
    case(
        "text_that_fails",
        "ended as if it were whole, although reading the text raised",
        speak_in_thread(error_ends=True),
    ),
    case("unsupported_voices", "ignored one of `unsupported_voices`, which", speaks(b"audio")),
    case(
        "extra_of_other_vendors_is_ignored",
        "`extra` of another vendor raised TypeError",
        wrong(
            Synthesiser,
            synthesize_stream=lambda _, _t, voice: (
                [b"audio"] if voice.extra is None else replace(voice, **voice.extra)
            ),
        ),
    ),
    case(
        "list_voices",
        "returned no voice: raise instead",
        wrong(Synthesiser, list_voices=lambda _: []),
    ),
    case(
        "list_voices",
        "must give VoiceProfile, got str",
        wrong(Synthesiser, list_voices=lambda _: TWO_VOICES),
    ),
    case(
        "list_voices",
        "an iterable of VoiceProfile, got NoneType",
        wrong(Synthesiser, list_voices=lambda _: None),
    ),
    case("list_voices", "raised ConnectionError", wrong(Synthesiser, list_voices=refuse)),
    broken(
        "list_voices_of_broken_provider",
        "returned no voice",
        wrong(Synthesiser, list_voices=lambda _: []),
    ),
    broken(
        "list_voices_of_broken_provider",
        "raised TypeError.* looks like a bug",
        wrong(Synthesiser, list_voices=lambda _: _raise(TypeError("no"))),
    ),
    case(
        "clone_voice",
        "must give VoiceProfile, got str",
        wrong(Synthesiser, clone_voice=lambda *_: "v-2"),
        samples=[b"RIFF"],
    ),
    case(
        "clone_voice",
        "VoiceProfile.sample_rate must be int | None, got '24 kHz'",
        wrong(
            Synthesiser,
            clone_voice=lambda *_: tts.VoiceProfile(id="v", sample_rate=cast("Any", "24 kHz")),
        ),
        samples=[b"RIFF"],
    ),
    broken("stream_of_broken_provider_raises", "did not raise, although", speaks()),
    interrupted("interrupted_stream_raises", "did not raise, although", speaks(b"audio")),
    case(
        "closed_streams_leave_nothing",
        LEFT_THREADS,
        leaking(Synthesiser, "synthesize_stream"),
        time_limit=0.4,
    ),
    broken(
        "failed_streams_leave_nothing",
        LEFT_THREADS,
        leaking(REFUSING_SYNTHESISER, "synthesize_stream"),
        time_limit=0.4,
    ),
]


@pytest.mark.parametrize(("test", "message", "hooks"), WRONG_SYNTHESISERS)
def test_wrong_synthesisers(test: str, message: str, hooks: dict[str, Any]) -> None:
    """Each wrong synthesiser fails its test, with a message that describes what to do."""
    check_is_caught(TestSynthesiser(), test, message, hooks)


# Wrong recognisers.


def hears(**fields: Any) -> Callable[[], Any]:
    """Return recognisers whose transcripts, partial and final, have wrong fields."""
    transcript = stt.Transcript(text="hello")
    return recogniser(
        partials=lambda _: iter([replace(transcript, **fields)]),
        finals=lambda _: iter([replace(transcript, **{"is_final": True, **fields})]),
    )


class OnceClosedLine(Line):
    """Wrong: the session cannot be closed twice."""

    is_closed = False

    @override
    def close(self) -> None:
        if self.is_closed:
            msg = "closed already"
            raise RuntimeError(msg)
        self.is_closed = True
        self.end()


class OneLineRecogniser(Recogniser):
    """Wrong: the recogniser has one session at a time, and none after it."""

    lines = 0

    @override
    def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
        self.lines += 1
        if self.lines > 1:
            msg = "one session only"
            raise RuntimeError(msg)
        return super().start_stream(config)


def block_when_unread(line: Line, _audio: bytes) -> None:
    """Wait until partial transcripts are read."""
    line.queues[False].put(stt.Transcript(text="hel"))
    hang()


def break_finals(line: Line, _audio: bytes) -> None:
    """Break off, but let partial transcripts end as if they were complete."""
    line.queues[False].put(stt.Transcript(text="hel"))
    line.queues[False].put(None)
    line.queues[True].put(CUT)


REFUSING_RECOGNISER: Any = wrong(Recogniser, start_stream=refuse)

WRONG_RECOGNISERS = [
    case(
        "final_transcripts",
        "a session with send_audio, partials, finals, set_keywords, close, got NoneType: if there",
        wrong(Recogniser, start_stream=lambda *_: None),
    ),
    case(
        "final_transcripts",
        "got coroutine: the contract is synchronous",
        wrong(Recogniser, start_stream=coroutine),
    ),
    case(
        "final_transcripts",
        "must give a session with set_keywords, got WrongLine",
        recogniser(set_keywords=None),
    ),
    case(
        "final_transcripts",
        "finals.. takes longer than 0.4 s: transcripts must end after finish",
        recogniser(finish=lambda _: None),
        time_limit=0.4,
    ),
    case(
        "final_transcripts",
        "finals.. ended without a transcript that has text",
        recogniser(send_audio=lambda *_: None),
    ),
    case(
        "final_transcripts",
        "finals.. has given no text after 0.4 s",
        recogniser(send_audio=lambda *_: None, finish=None),
        time_limit=0.4,
    ),
    case(
        "final_transcripts",
        "finals.. must give Transcript, got str",
        recogniser(finals=lambda _: ["hello"]),
    ),
    case("final_transcripts", "Transcript.words must be tuple.*Word, ...", hears(words=[])),
    case("final_transcripts", "gave is_final=False: set it to True", hears(is_final=False)),
    case("partial_transcripts", "gave is_final=True: set it to False", hears(is_final=True)),
    case(
        "final_transcripts",
        "gave the confidences .87.0.: they are from 0 to 1",
        hears(confidence=87.0),
    ),
    case(
        "final_transcripts",
        "gave the confidences .None, -0.1.",
        hears(words=(stt.Word(text="hello", start=0, duration=1, confidence=-0.1),)),
    ),
    case("final_transcripts", "finals.. raised TypeError", recogniser(finals=lambda _: None)),
    case(
        "final_transcripts",
        "finish.. takes longer than 0.4 s",
        recogniser(finish=hang),
        time_limit=0.4,
    ),
    case(
        "final_transcripts",
        "send_audio.. takes longer than 0.4 s",
        recogniser(send_audio=block_when_unread),
        time_limit=0.4,
    ),
    case(
        "final_transcripts",
        "close.. takes longer than 0.4 s",
        recogniser(close=hang),
        time_limit=0.4,
    ),
    case(
        "close_ends_transcripts",
        "partials.. takes longer than 0.4 s: .* when the session is closed",
        recogniser(close=lambda _: None),
        time_limit=0.4,
    ),
    case(
        "close_ends_transcripts",
        "partials.. raised ConnectionError: reset",
        recogniser(close=lambda line: line.end(CUT)),
    ),
    case(
        "close_twice",
        "the second close.. raised RuntimeError: closed already",
        wrong(Recogniser, start_stream=lambda *_: OnceClosedLine()),
    ),
    case(
        "close_twice",
        "a session after another one was closed raised RuntimeError",
        OneLineRecogniser,
    ),
    case(
        "sessions_are_independent",
        "a session while another one is open raised RuntimeError",
        OneLineRecogniser,
    ),
    case(
        "sessions_in_several_threads",
        "a session in 4 threads at a time raised RuntimeError",
        OneLineRecogniser,
    ),
    case("set_keywords", "raised ConnectionError: refused", recogniser(set_keywords=refuse)),
    case(
        "unsupported_configs",
        "ignored one of `unsupported_configs`, which",
        wrong(Recogniser, start_stream=lambda *_: Line()),
    ),
    case(
        "extra_of_other_vendors_is_ignored",
        "`extra` of another vendor raised ConnectionError",
        wrong(Recogniser, start_stream=lambda _, config: refuse() if config.extra else Line()),
    ),
    broken(
        "start_of_broken_provider_raises",
        "did not raise, although the provider cannot be reached: raise instead, so",
        Recogniser,
    ),
    interrupted(
        "interrupted_session_raises",
        "finals.. did not raise, although the session broke off",
        recogniser(send_audio=lambda line, _: line.end()),
    ),
    interrupted(
        "interrupted_session_raises",
        "partials.. did not raise, although the session broke off",
        recogniser(send_audio=break_finals),
    ),
    case(
        "finished_sessions_leave_nothing",
        LEFT_THREADS,
        leaking(Recogniser, "start_stream"),
        time_limit=0.4,
    ),
    case(
        "closed_sessions_leave_nothing",
        LEFT_THREADS,
        leaking(Recogniser, "start_stream"),
        time_limit=0.4,
    ),
    broken(
        "failed_sessions_leave_nothing",
        LEFT_THREADS,
        leaking(REFUSING_RECOGNISER, "start_stream"),
        time_limit=0.4,
    ),
    interrupted(
        "interrupted_sessions_leave_nothing",
        f"that broke off {LEFT_THREADS}",
        leaking(Recogniser, "start_stream"),
        time_limit=0.4,
    ),
]


@pytest.mark.parametrize(("test", "message", "hooks"), WRONG_RECOGNISERS)
def test_wrong_recognisers(test: str, message: str, hooks: dict[str, Any]) -> None:
    """Each wrong recogniser fails its test, with a message that describes what to do."""
    check_is_caught(TestRecogniser(), test, message, hooks)


@pytest.mark.parametrize(
    ("contract", "cases"),
    [
        (LLMProviderContract, WRONG_MODELS),
        (TTSProviderContract, WRONG_SYNTHESISERS),
        (STTProviderContract, WRONG_RECOGNISERS),
    ],
)
def test_each_test_catches_something(contract: type, cases: list[Any]) -> None:
    """Each contract test fails for a wrong provider; those of streams fail for a model."""
    tests = {name.removeprefix("test_") for name in dir(contract) if name.startswith("test_")}
    shared = {case.values[0] for case in WRONG_MODELS if case.values[0] in dir_of_streams()}

    assert tests - {case.values[0] for case in cases} - shared == set()


def dir_of_streams() -> set[str]:
    """Return the tests that models and synthesisers have in common."""
    both = {*dir(LLMProviderContract)} & {*dir(TTSProviderContract)}
    return {name.removeprefix("test_") for name in both}


ENDLESS_MODEL = wrong(Model, stream_completion=lambda *_: repeat(llm.Chunk(content="a")))
ENDLESS_SYNTHESISER = wrong(
    Synthesiser,
    synthesize_stream=lambda *_: repeat(b"a"),
    list_voices=lambda _: repeat(tts.VoiceProfile(id="v-1")),
)
ENDLESS_RECOGNISER = recogniser(
    partials=lambda _: repeat(stt.Transcript(text="a")),
    finals=lambda _: repeat(stt.Transcript(text="a", is_final=True)),
)
STREAM_TESTS = """failed_streams_leave_nothing interrupted_stream_raises
    interrupted_streams_leave_nothing stream_is_closed_early stream_is_closed_unread
    stream_is_read_by_another_thread stream_is_whole stream_of_broken_provider_raises
    streams_are_independent streams_in_several_threads streams_leave_nothing"""
"""Tests that read the stream of a model or a synthesiser to its end."""


@pytest.mark.parametrize(
    ("contract", "provider", "failing"),
    [
        (TestModel, ENDLESS_MODEL, f"{STREAM_TESTS} streamed_tool_calls tool_results"),
        (
            TestSynthesiser,
            ENDLESS_SYNTHESISER,
            f"""{STREAM_TESTS} extra_of_other_vendors_is_ignored list_voices
            list_voices_of_broken_provider text_that_comes_slowly text_that_fails
            unsupported_voices""",
        ),
        (
            TestRecogniser,
            ENDLESS_RECOGNISER,
            """close_ends_transcripts close_twice final_transcripts finished_sessions_leave_nothing
            interrupted_session_raises interrupted_sessions_leave_nothing partial_transcripts
            sessions_are_independent sessions_in_several_threads""",
        ),
    ],
)
def test_what_never_ends(contract: Callable[[], Any], provider: object, failing: str) -> None:
    """Whatever is endless fails the tests that read it to the end, and is not read any further."""
    makers = dict.fromkeys(
        ("make_provider", "make_broken_provider", "make_interrupted_provider"), provider
    )
    threads, failed = {*running_threads()}, set[str]()
    for name in dir(contract):
        if name.startswith("test_"):
            try:
                run(contract(), name.removeprefix("test_"), **makers)
            except AssertionError as failure:
                if "gave more than 100,000 items: it must end" in str(failure):
                    failed.add(name.removeprefix("test_"))

    assert failed == {*failing.split()}
    for thread in {*running_threads()} - threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("texts", "read"),
    [(["", "one", "two"], ["", "one"]), (["", ""], ["", ""]), ([], [])],
)
def test_a_session_without_finish_is_read_until_there_is_text(
    texts: list[str], read: list[str]
) -> None:
    """Transcripts are read up to the first with text, or to the end if none has any."""
    transcripts = [stt.Transcript(text=text, is_final=True) for text in texts]

    assert [each.text for each in _contract_stt._until_text(transcripts)] == read
