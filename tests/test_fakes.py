"""The fakes follow their scripts, and a manual clock advances only by `advance`."""

import copy
import json
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from resilience import (
    LLMFallback,
    UnsupportedRequestError,
    http,
    llm,
    stt,
    tts,
)
from resilience.testing import (
    Delay,
    FakeLLM,
    FakeSession,
    FakeStream,
    FakeSTT,
    FakeTTS,
    LLMStep,
    ManualClock,
    ReadText,
    StatusError,
    TTSItem,
)

REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content="How are you?"),))
VOICE = tts.VoiceProfile(id="asked")
CONFIG = stt.StreamConfig()
TIMEOUT = 10.0


def contents(provider: FakeLLM) -> list[str]:
    """Return the content of a streamed answer, chunk by chunk."""
    return [chunk.content for chunk in provider.stream_completion(REQUEST)]


class TestManualClock:
    """The time of a manual clock changes only with `advance`."""

    def test_stands_still(self) -> None:
        """It shows the time of its start until it is advanced."""
        clock = ManualClock(100.0)

        assert clock() == clock() == 100.0
        clock.advance(2.5)
        assert clock() == 102.5

    def test_starts_at_zero(self) -> None:
        """It starts at 0."""
        assert ManualClock()() == 0.0

    def test_never_goes_back(self) -> None:
        """A negative number of seconds raises, and the error shows the value."""
        clock = ManualClock()

        with pytest.raises(ValueError, match=r"seconds must be 0 or more, got -1"):
            clock.advance(-1)

        assert clock() == 0.0

    def test_many_threads(self) -> None:
        """No advance is lost between threads."""
        clock = ManualClock()

        with ThreadPoolExecutor(8) as pool:
            for _ in range(800):
                pool.submit(clock.advance, 1.0)

        assert clock() == 800.0


class TestScript:
    """One step for each call; the last one is repeated."""

    def test_steps(self) -> None:
        """Calls take the steps in order and repeat the last."""
        provider = FakeLLM(ConnectionError("refused"), "one", "two")

        with pytest.raises(ConnectionError, match="refused"):
            provider.complete(REQUEST)

        assert [provider.complete(REQUEST).content for _ in range(3)] == ["one", "two", "two"]
        assert provider.requests == [REQUEST] * 4

    def test_calls_and_streams_share_it(self) -> None:
        """A call and a stream take their steps from the same script."""
        provider = FakeLLM("one", "two")

        assert provider.complete(REQUEST).content == "one"
        assert contents(provider) == ["two", ""]

    def test_without_steps(self) -> None:
        """Without a script a model answers "ok", and a synthesiser speaks its text."""
        assert FakeLLM().complete(REQUEST).content == "ok"
        assert list(FakeTTS().synthesize_stream(["Hi"], VOICE)) == [b"Hi"]
        assert list(FakeSTT().start_stream(CONFIG).finals()) == []

    def test_delay(self) -> None:
        """A delay advances the fake's clock, in the middle of a stream too."""
        clock = ManualClock()
        provider = FakeLLM([Delay(2.5), "one", Delay(1), "two"], clock=clock)
        stream = provider.stream_completion(REQUEST)

        times = [(next(stream).content, clock()) for _ in range(2)]

        assert times == [("one", 2.5), ("two", 3.5)]

    def test_delay_without_clock(self) -> None:
        """A delay without a clock raises `ValueError`."""
        with pytest.raises(ValueError, match=r"Delay\(seconds=1\) needs the fake's clock"):
            FakeLLM([Delay(1), "late"]).complete(REQUEST)

    def test_a_repeated_exception(self) -> None:
        """The traceback of an exception that is raised repeatedly does not grow."""
        error = ConnectionError()
        provider = FakeLLM(error)

        lengths = set[int]()
        for _ in range(3):
            with pytest.raises(ConnectionError) as raised:
                contents(provider)
            assert raised.value is error
            lengths.add(len(raised.traceback))

        assert len(lengths) == 1

    def test_function(self) -> None:
        """A function in a script is called, for instance to wait at a barrier."""
        meeting = threading.Barrier(2, timeout=TIMEOUT)
        provider = FakeLLM([meeting.wait, "met"])

        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(provider.complete, REQUEST) for _ in range(2)]

            assert [answer.result(TIMEOUT).content for answer in answers] == ["met", "met"]

    def test_interruption(self) -> None:
        """An interruption can be part of a script like any other exception."""
        with pytest.raises(KeyboardInterrupt):
            FakeLLM([KeyboardInterrupt()]).complete(REQUEST)

    def test_many_threads(self) -> None:
        """Each step is taken once, however many threads call."""
        provider = FakeLLM(*map(str, range(200)), "over")

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(provider.complete, [REQUEST] * 200))

        assert sorted(int(answer.content) for answer in answers) == list(range(200))


class TestFakeLLM:
    """A language model that follows a script."""

    def test_string(self) -> None:
        """A string is streamed word by word, and ends with a reason."""
        provider = FakeLLM("Hello  there, you")

        chunks = list(provider.stream_completion(REQUEST))

        assert [chunk.content for chunk in chunks] == ["Hello  ", "there, ", "you", ""]
        assert [chunk.finish_reason for chunk in chunks] == [None, None, None, "stop"]
        assert provider.complete(REQUEST) == llm.CompletionResponse(
            content="Hello  there, you", finish_reason="stop"
        )

    def test_response(self) -> None:
        """A response is returned as it is, and streamed as one chunk with the same fields."""
        response = llm.CompletionResponse(
            content="Looking it up.",
            tool_calls=(llm.ToolCall(id="1", name="search", arguments="{}"),),
            reasoning="I do not know.",
            refusal="No.",
            finish_reason="tool_calls",
            usage=llm.Usage(prompt_tokens=3, completion_tokens=4),
            model="large",
            id="answer-1",
            extra={"north": "signature"},
        )
        provider = FakeLLM(response)

        (chunk,) = provider.stream_completion(REQUEST)

        assert provider.complete(REQUEST) is response
        assert chunk == llm.Chunk(
            content=response.content,
            tool_calls=response.tool_calls,
            reasoning=response.reasoning,
            refusal=response.refusal,
            finish_reason=response.finish_reason,
            usage=response.usage,
            model=response.model,
            id=response.id,
            extra=response.extra,
        )

    def test_sequence(self) -> None:
        """A sequence is streamed as it is, and joined for a call."""
        last = llm.Chunk(content="b", finish_reason="length", usage=llm.Usage(prompt_tokens=1))
        provider = FakeLLM(["a", last])

        assert list(provider.stream_completion(REQUEST)) == [llm.Chunk(content="a"), last]
        assert provider.complete(REQUEST) == llm.CompletionResponse(
            content="ab", finish_reason="length", usage=last.usage
        )

    def test_joined(self) -> None:
        """A call joins texts and tool calls of a sequence, and has the last of all other fields."""
        calls = [llm.ToolCall(id=name, name=name, arguments="{}") for name in "xy"]
        provider = FakeLLM(
            [
                llm.Chunk(reasoning="It ", model="large", id="1"),
                llm.Chunk(reasoning="rains.", refusal="I ", tool_calls=(calls[0],)),
                llm.Chunk(refusal="won't.", tool_calls=(calls[1],), extra={"north": "old"}),
                llm.Chunk(finish_reason="stop", extra={"north": "new"}),
                llm.Chunk(usage=llm.Usage(prompt_tokens=1)),
            ]
        )

        assert provider.complete(REQUEST) == llm.CompletionResponse(
            reasoning="It rains.",
            refusal="I won't.",
            tool_calls=tuple(calls),
            finish_reason="stop",
            usage=llm.Usage(prompt_tokens=1),
            model="large",
            id="1",
            extra={"north": "new"},
        )

    def test_late_response(self) -> None:
        """A sequence may contain a response, for instance after a delay."""
        clock = ManualClock()
        response = llm.CompletionResponse(content="late", reasoning="Hm.", finish_reason="stop")
        provider = FakeLLM([Delay(2.5), response], clock=clock)

        assert provider.complete(REQUEST) == response
        assert list(provider.stream_completion(REQUEST)) == [
            llm.Chunk(content="late", reasoning="Hm.", finish_reason="stop")
        ]
        assert clock() == 5.0

    def test_unsupported(self) -> None:
        """A script can define a model that does not support a request."""
        blind, seeing = FakeLLM(UnsupportedRequestError("no pictures")), FakeLLM("A cat.")
        model = LLMFallback(blind, "blind")
        model.add_fallback("seeing", seeing)
        picture = llm.Media(media_type="image/png", data=b"png")
        message = llm.Message(role="user", content="What is it?", attachments=(picture,))
        request = llm.CompletionRequest(messages=(message,))

        answers = [model.complete(request).content for _ in range(9)]

        assert answers == ["A cat."] * 9
        assert blind.requests == seeing.requests == [request] * 9

    def test_empty(self) -> None:
        """An empty sequence is an empty stream, and an empty answer."""
        provider = FakeLLM([])

        assert contents(provider) == []
        assert provider.complete(REQUEST) == llm.CompletionResponse(content="")

    def test_error_in_the_middle(self) -> None:
        """An exception in a sequence is raised after the items before it."""
        stream = FakeLLM(["Hello", ConnectionError("reset"), "never"]).stream_completion(REQUEST)

        assert next(stream).content == "Hello"
        with pytest.raises(ConnectionError, match="reset"):
            next(stream)

    @pytest.mark.parametrize("step", [ConnectionError(), [ConnectionError()]])
    def test_lazy(self, step: LLMStep) -> None:
        """A lazy stream fails at its first `next()`."""
        stream = FakeLLM(step).stream_completion(REQUEST)

        with pytest.raises(ConnectionError):
            next(stream)

    @pytest.mark.parametrize("step", [ConnectionError(), [ConnectionError()]])
    def test_eager(self, step: LLMStep) -> None:
        """An eager stream fails at the call."""
        provider = FakeLLM(step, lazy=False)

        with pytest.raises(ConnectionError):
            provider.stream_completion(REQUEST)

    def test_eager_loses_nothing(self) -> None:
        """An eager stream yields all its items."""
        assert contents(FakeLLM(["a", "b"], lazy=False)) == ["a", "b"]

    def test_streams(self) -> None:
        """Streams are recorded, and count the calls of `close()`."""
        provider = FakeLLM(["a", "b"])
        stream = provider.stream_completion(REQUEST)

        stream.close()

        assert provider.streams == [stream]
        assert stream.closed == 1

    def test_closed_streams(self) -> None:
        """A closed stream has ended."""
        stream = FakeLLM(["a", "b"]).stream_completion(REQUEST)
        next(stream)

        stream.close()

        assert list(stream) == []

    def test_count_tokens(self) -> None:
        """Tokens are words, and counting takes no step of the script."""
        provider = FakeLLM("one", "two")

        assert provider.count_tokens(REQUEST.messages) == 3
        assert provider.counted == [REQUEST.messages]
        assert provider.complete(REQUEST).content == "one"

    def test_capabilities(self) -> None:
        """The capabilities are those of the argument."""
        capabilities = llm.ModelCapabilities(context_window=1000)

        assert FakeLLM(capabilities=capabilities).capabilities() is capabilities
        assert FakeLLM().capabilities().context_window == 8192


class TestFakeTTS:
    """A speech synthesiser that follows a script."""

    def test_speaks(self) -> None:
        """Each fragment is one chunk of audio; text and voice are recorded."""
        provider = FakeTTS()

        assert list(provider.synthesize_stream(iter(["One ", "two."]), VOICE)) == [b"One ", b"two."]
        assert provider.texts == [["One ", "two."]]
        assert provider.voices == [VOICE]
        assert [stream.closed for stream in provider.streams] == [0]

    def test_sequence(self) -> None:
        """`ReadText` reads fragments without audio; only fragments that are read are recorded."""
        provider = FakeTTS([ReadText(1), b"audio", ConnectionError("reset")])
        stream = provider.synthesize_stream(iter(["One ", "two."]), VOICE)

        assert next(stream) == b"audio"
        with pytest.raises(ConnectionError, match="reset"):
            next(stream)
        assert provider.texts == [["One "]]

    def test_audio(self) -> None:
        """Audio is spoken for any text."""
        assert list(FakeTTS(b"beep").synthesize_stream(["Hi"], VOICE)) == [b"beep"]

    @pytest.mark.parametrize("lazy", [True, False])
    def test_lazy_or_eager(self, *, lazy: bool) -> None:
        """An exception is raised by the call or by the first `next()`."""
        provider = FakeTTS(ConnectionError(), lazy=lazy)

        if lazy:
            stream = provider.synthesize_stream(["Hi"], VOICE)
            with pytest.raises(ConnectionError):
                next(stream)
        else:
            with pytest.raises(ConnectionError):
                provider.synthesize_stream(["Hi"], VOICE)

    def test_voices(self) -> None:
        """Listing and cloning use steps too; an exception is raised."""
        provider = FakeTTS(ConnectionError(), ConnectionError(), None, voices=[VOICE])

        with pytest.raises(ConnectionError):
            provider.list_voices()
        with pytest.raises(ConnectionError):
            provider.clone_voice([])

        assert provider.list_voices() == (VOICE,)
        assert provider.clone_voice([b"a", b"b"]) == tts.VoiceProfile(id="clone-of-2")

    def test_voices_in_time(self) -> None:
        """In a sequence, delays and exceptions apply to these methods; items of speech do not."""
        clock = ManualClock()
        step: list[TTSItem] = [b"audio", ReadText(1), Delay(2.5), ConnectionError()]
        provider = FakeTTS(step, b"audio", clock=clock, voices=[VOICE])

        with pytest.raises(ConnectionError):
            provider.list_voices()

        assert clock() == 2.5
        assert provider.list_voices() == (VOICE,)


class TestFakeSTT:
    """A speech recogniser and its sessions, which follow scripts."""

    def test_records_every_start(self) -> None:
        """Configurations are recorded in order."""
        provider = FakeSTT()
        configs = [stt.StreamConfig(), stt.StreamConfig(language="de")]

        for config in configs:
            provider.start_stream(config)

        assert provider.configs == configs

    def test_transcripts(self) -> None:
        """Strings are the texts of transcripts; transcripts are returned as they are."""
        transcript = stt.Transcript(text="whole", confidence=0.5, is_final=True)
        session = FakeSession("final", transcript, partials=("fi", "fina"))

        assert list(session.finals()) == [stt.Transcript(text="final", is_final=True), transcript]
        assert list(session.partials()) == [stt.Transcript(text="fi"), stt.Transcript(text="fina")]

    def test_reading_raises(self) -> None:
        """An exception among the transcripts is raised after those before it."""
        finals = FakeSession("one", ConnectionError("reset")).finals()

        assert next(finals).text == "one"
        with pytest.raises(ConnectionError, match="reset"):
            next(finals)

    def test_sending(self) -> None:
        """Each chunk of audio has its own action, the last one is repeated."""
        session = FakeSession(sending=(None, ConnectionError("reset")))

        session.send_audio(b"one")
        for _ in range(2):
            with pytest.raises(ConnectionError, match="reset"):
                session.send_audio(b"two")

        assert session.audio == [b"one"]

    def test_records(self) -> None:
        """Keywords, the end of the audio and closings are recorded."""
        session = FakeSession()
        keywords = [stt.Keyword(text="resilience")]

        session.set_keywords(keywords)
        session.finish()
        session.close()
        session.close()

        assert session.keywords == tuple(keywords)
        assert session.finished == 1
        assert session.closed == 2

    def test_finish(self) -> None:
        """The end of the audio can be scripted; the transcripts follow their script as before."""
        session = FakeSession("last words", finishing=ConnectionError("reset"))

        for _ in range(2):
            with pytest.raises(ConnectionError, match="reset"):
                session.finish()

        assert session.finished == 2
        assert [transcript.text for transcript in session.finals()] == ["last words"]

    @pytest.mark.parametrize("step", [ConnectionError(), [ConnectionError()]])
    def test_start_fails(self, step: ConnectionError | Sequence[ConnectionError]) -> None:
        """A start that fails raises; its configuration is still recorded."""
        provider = FakeSTT(step)

        with pytest.raises(ConnectionError):
            provider.start_stream(CONFIG)

        assert provider.configs == [CONFIG]

    def test_slow_start(self) -> None:
        """Actions are done before the start; a step without a session starts an empty one."""
        clock = ManualClock()
        session = FakeSession()
        provider = FakeSTT([Delay(3), session], [Delay(1)], clock=clock)

        assert provider.start_stream(CONFIG) is session
        assert clock() == 3
        assert list(provider.start_stream(CONFIG).finals()) == []
        assert clock() == 4

    def test_sessions(self) -> None:
        """Without a script each call starts a session of its own."""
        provider = FakeSTT()

        assert provider.start_stream(CONFIG) is not provider.start_stream(CONFIG)

    def test_session_with_a_clock(self) -> None:
        """A delay in a session advances the clock of the session."""
        clock = ManualClock()

        assert [each.text for each in FakeSession(Delay(1), "late", clock=clock).finals()] == [
            "late"
        ]
        assert clock() == 1


class TestStatusError:
    """`StatusError` has the attributes of exceptions of HTTP clients."""

    @pytest.mark.parametrize(
        ("status", "counts", "moves_on"),
        [(400, False, False), (404, False, True), (503, True, True)],
    )
    def test_is_classified(self, status: int, *, counts: bool, moves_on: bool) -> None:
        """`resilience.http` reads the status."""
        error = StatusError(status)

        assert http.is_provider_fault(error) is counts
        assert http.may_succeed_elsewhere(error) is moves_on
        assert http.retry_after(error) is None

    @pytest.mark.parametrize("seconds", [0, 20, 0.5])
    def test_asks_for_a_wait(self, seconds: float) -> None:
        """`resilience.http` reads the delay."""
        assert http.retry_after(StatusError(429, retry_after=seconds)) == seconds

    def test_shape(self) -> None:
        """Status and headers are in the same attributes as in exceptions of clients."""
        error = StatusError(429, retry_after=20)

        assert (error.status_code, error.response.status_code) == (429, 429)
        assert error.response.headers == {"retry-after": "20"}
        assert StatusError(503).response.headers == {}

    def test_text(self) -> None:
        """The text has the status, and the delay if there is one."""
        assert str(StatusError(503)) == "HTTP 503"
        assert repr(StatusError(503)) == "StatusError(503)"
        assert str(StatusError(429, retry_after=0)) == "HTTP 429, retry after 0 s"
        assert repr(StatusError(429, retry_after=0.5)) == "StatusError(429, 0.5)"

    @pytest.mark.parametrize("error", [StatusError(503), StatusError(429, retry_after=0.5)])
    def test_survives(self, error: StatusError) -> None:
        """It is rebuilt by `pickle`, by `copy` and from its `args` stored as JSON."""
        rebuilt = StatusError(*json.loads(json.dumps(error.args)))

        for twin in (copy.copy(error), pickle.loads(pickle.dumps(error)), rebuilt):  # noqa: S301
            assert vars(twin) == vars(error)
            assert str(twin) == str(error)


def test_stream_alone() -> None:
    """A stream can be used without a provider."""
    stream = FakeStream(iter([1, 2]))

    assert list(stream) == [1, 2]
    assert stream.closed == 0


@pytest.mark.parametrize("kind", [FakeLLM, FakeSTT, FakeTTS])
def test_a_step_that_is_none_of_its_kinds(kind: type) -> None:
    """A wrong step is refused when the fake is made, not at its first call."""
    with pytest.raises(TypeError, match=r"a step of a script must be one of .*, got 42"):
        kind(42)
