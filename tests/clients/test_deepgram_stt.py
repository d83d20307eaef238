"""Recognition with the real client of Deepgram, against a server on this machine."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import pytest
from typing_extensions import override

from clients.loopback import refuse
from clients.speech_servers import (
    PATIENCE,
    Ears,
    accept_only,
    break_off,
    deepgram_client,
    listen,
    results,
)
from resilience import (
    Attempt,
    AttemptTimeoutError,
    CircuitBreakerConfig,
    FallbackConfig,
    State,
    STTFallback,
    UnsupportedRequestError,
    http,
    stt,
)
from resilience.providers import deepgram
from resilience.testing import FakeSession, FakeSTT, ManualClock

T = TypeVar("T")

ENGLISH = stt.StreamConfig(language="en")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect to this machine directly, whatever proxy the environment defines."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(autouse=True)
def _leaves_no_threads() -> Iterator[None]:
    """When a test has closed a session, no thread of the session is left."""
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith("resilience-deepgram")] == []


@pytest.fixture
def ears() -> Iterator[Ears]:
    """Run a recogniser."""
    with listen() as server:
        yield server


def provider(address: str, *, timeout: float = PATIENCE, model: str = "nova-3") -> Any:  # noqa: ANN401
    """Return a provider."""
    return deepgram.DeepgramSTT(deepgram_client(address), model, timeout=timeout)


@contextmanager
def session_with(
    ears: Ears, *, timeout: float = PATIENCE, model: str = "nova-3"
) -> Iterator[tuple[deepgram.DeepgramSession, Any]]:
    """Yield a session and the server's connection to it."""
    session = provider(ears.address, timeout=timeout, model=model).start_stream(ENGLISH)
    with closing(session):
        yield session, ears.lines.get(timeout=PATIENCE)


def say(line: Any, *messages: Mapping[str, object]) -> None:  # noqa: ANN401
    """Send messages to a client."""
    for message in messages:
        line.send(json.dumps(message))


def in_threads(*works: Callable[[], T]) -> list[T | Exception]:
    """Run functions at the same time; return the result or the exception of each."""
    outcomes: list[SimpleQueue[T | Exception]] = [SimpleQueue() for _ in works]
    start = threading.Barrier(len(works))

    def run(work: Callable[[], T], outcome: SimpleQueue[T | Exception]) -> None:
        start.wait(PATIENCE)
        try:
            outcome.put(work())
        except Exception as error:  # noqa: BLE001 - the test checks it
            outcome.put(error)

    threads = [
        threading.Thread(target=run, args=pair) for pair in zip(works, outcomes, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        return [outcome.get(timeout=PATIENCE) for outcome in outcomes]
    finally:
        for thread in threads:
            thread.join()


def texts(transcripts: Iterator[stt.Transcript]) -> list[str]:
    """Return the texts of transcripts."""
    return [transcript.text for transcript in transcripts]


# ---- the request


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            stt.StreamConfig(),
            {
                "model": ["nova-3"],
                "encoding": ["linear16"],
                "sample_rate": ["16000"],
                "channels": ["1"],
                "language": ["multi"],
                "interim_results": ["true"],
            },
        ),
        (
            stt.StreamConfig(
                sample_rate=8_000,
                channels=2,
                encoding="mulaw",
                language="de-CH",
                keywords=(stt.Keyword(text="resilience"), stt.Keyword(text="half open")),
                interim_results=False,
                extra={"deepgram": {"endpointing": 300}, "other": {"endpointing": 1}},
            ),
            {
                "model": ["nova-3"],
                "encoding": ["mulaw"],
                "sample_rate": ["8000"],
                "channels": ["2"],
                "multichannel": ["true"],
                "language": ["de-CH"],
                "interim_results": ["false"],
                "keyterm": ["resilience", "half open"],
                "endpointing": ["300"],
            },
        ),
        (
            stt.StreamConfig(channels=2, extra={"deepgram": {"multichannel": "false"}}),
            {
                "model": ["nova-3"],
                "encoding": ["linear16"],
                "sample_rate": ["16000"],
                "channels": ["2"],
                "multichannel": ["false"],
                "language": ["multi"],
                "interim_results": ["true"],
            },
        ),
    ],
)
def test_request(ears: Ears, config: stt.StreamConfig, expected: dict[str, list[str]]) -> None:
    """Every field of the configuration is in the query of the handshake."""
    provider(ears.address).start_stream(config).close()

    query: dict[str, list[str]] = {}
    for name, value in ears.queries[0]:
        query.setdefault(name, []).append(value)
    assert query == expected


def test_keywords_of_older_models(ears: Ears) -> None:
    """Models before nova-3 take keywords with a boost."""
    keywords = (stt.Keyword(text="breaker", boost=2.5), stt.Keyword(text="probe"))
    config = stt.StreamConfig(language="en", keywords=keywords)

    provider(ears.address, model="nova-2").start_stream(config).close()

    sent = [value for name, value in ears.queries[0] if name == "keywords"]
    assert sent == ["breaker:2.5", "probe:1"]


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("nova-3", stt.StreamConfig(encoding="wav"), "deepgram does not support encoding='wav'"),
        ("nova-2-meeting", stt.StreamConfig(), "nova-2-meeting does not support language=None"),
        (
            "nova-3",
            stt.StreamConfig(keywords=(stt.Keyword(text="a", boost=3.0),)),
            "deepgram does not support boost=3.0",
        ),
    ],
)
def test_unsupported(ears: Ears, model: str, config: stt.StreamConfig, message: str) -> None:
    """A value that Deepgram does not support raises before anything is sent, and is named."""
    with pytest.raises(UnsupportedRequestError, match=message):
        provider(ears.address, model=model).start_stream(config)

    assert ears.queries == []


# ---- transcripts


def test_transcript(ears: Ears) -> None:
    """Every part of a result is translated."""
    words = [
        {"word": "hi", "punctuated_word": "Hi.", "start": 1.5, "end": 1.75, "confidence": 0.5},
        {"word": "yes", "start": 2.0, "end": 2.5, "confidence": 0.75},
    ]
    alternative = {
        "transcript": "Hi. yes",
        "confidence": 0.875,
        "languages": ["es", "en"],
        "words": [{**word, "speaker": 1} for word in words],
    }
    message = results(
        "",
        channel={"alternatives": [alternative]},
        channel_index=[1, 2],
        start=1.25,
        duration=1.5,
        speech_final=True,
    )

    with session_with(ears) as (session, line):
        say(line, message)
        transcript = next(session.finals())

    assert transcript == stt.Transcript(
        text="Hi. yes",
        is_final=True,
        confidence=0.875,
        start=1.25,
        duration=1.5,
        words=(
            stt.Word(text="Hi.", start=1.5, duration=0.25, confidence=0.5, speaker="1"),
            stt.Word(text="yes", start=2.0, duration=0.5, confidence=0.75, speaker="1"),
        ),
        ends_utterance=True,
        speaker="1",
        channel=1,
        language="es",
        extra=transcript.extra,
    )
    assert transcript.extra is not None
    assert transcript.extra["deepgram"] == message


def test_several_speakers(ears: Ears) -> None:
    """With several speakers `speaker` is None, and with one channel `channel` is None."""
    words = [
        {"word": "a", "start": 0.0, "end": 0.5, "confidence": 1.0, "speaker": speaker}
        for speaker in (0, 1)
    ]
    alternative = {"transcript": "a a", "confidence": 1.0, "words": words}

    with session_with(ears) as (session, line):
        say(line, results("", channel={"alternatives": [alternative]}))
        transcript = next(session.finals())

    assert [word.speaker for word in transcript.words] == ["0", "1"]
    assert (transcript.speaker, transcript.channel, transcript.language) == (None, None, None)


def test_null_for_what_is_not_known(ears: Ears) -> None:
    """Fields that the client's types allow to be null may be null."""
    word = {"word": "hi", "start": 0.0, "end": 0.5, "confidence": 1.0}
    nulls: dict[str, object] = {"punctuated_word": None, "speaker": None}
    alternative = {"transcript": "hi", "confidence": 1.0, "languages": None}

    with session_with(ears) as (session, line):
        for words in ([{**word, **nulls}], None):
            say(line, results("", channel={"alternatives": [{**alternative, "words": words}]}))
        finals = session.finals()
        first, second = next(finals), next(finals)

    assert first.words == (stt.Word(text="hi", start=0.0, duration=0.5, confidence=1.0),)
    assert (first.speaker, first.language, second.words) == (None, None, ())


def test_messages_of_a_type_that_the_client_does_not_know(ears: Ears) -> None:
    """A message of a new type does not end the session."""
    with session_with(ears) as (session, line):
        say(line, {"type": "SomethingNew", "text": "rain"}, results("snow"))

        assert next(session.finals()).text == "snow"


def test_end_of_an_utterance(ears: Ears) -> None:
    """`UtteranceEnd` is a final transcript without text."""
    message = {"type": "UtteranceEnd", "channel": [1, 2], "last_word_end": 2.5}

    with session_with(ears) as (session, line):
        say(line, message)
        transcript = next(session.finals())

    assert (transcript.text, transcript.is_final, transcript.ends_utterance) == ("", True, True)
    assert (transcript.start, transcript.channel) == (2.5, 1)


def test_empty_results_are_left_out(ears: Ears) -> None:
    """A result without text is passed on only if it ends an utterance."""
    with session_with(ears) as (session, line):
        say(
            line,
            {"type": "Metadata", "request_id": "-", "channels": 1},
            results(""),
            results("", is_final=False),
            results("rain", is_final=False),
            results("", speech_final=True),
            results("snow"),
        )
        finals = session.finals()
        found = [next(finals), next(finals)]
        partial = next(session.partials())

    assert [(each.text, each.ends_utterance) for each in found] == [("", True), ("snow", False)]
    assert (partial.text, partial.is_final) == ("rain", False)


def test_two_readers(ears: Ears) -> None:
    """Two threads read partial and final transcripts of a session at once; each gets all."""
    with session_with(ears) as (session, line):

        def speak() -> list[str]:
            for number in range(200):
                say(line, results(f"p{number}", is_final=False), results(f"f{number}"))
            line.close()
            return []

        session.finish()
        partials, finals, _ = in_threads(
            lambda: texts(session.partials()), lambda: texts(session.finals()), speak
        )

    assert partials == [f"p{number}" for number in range(200)]
    assert finals == [f"f{number}" for number in range(200)]


def test_readers_one_after_the_other(ears: Ears) -> None:
    """An iterator continues after the last transcript that was read; a further one ends too."""
    with session_with(ears) as (session, line):
        say(line, results("a"), results("b"), results("c"))
        first = next(session.finals()).text
        session.finish()
        line.close()

        assert first == "a"
        assert texts(session.finals()) == ["b", "c"]
        assert texts(session.finals()) == []
        assert texts(session.partials()) == []


# ---- audio, finish and close


def test_audio(ears: Ears) -> None:
    """Audio is sent unchanged, except for empty pieces, which would end the session."""
    with session_with(ears) as (session, _):
        for audio in (b"\1\2", b"", b"\3\4"):
            session.send_audio(audio)

        assert ears.received.get(timeout=PATIENCE) == b"\1\2"
        assert ears.received.get(timeout=PATIENCE) == b"\3\4"


def test_finish(ears: Ears) -> None:
    """After `finish()` the last words are returned, and the transcripts end by themselves."""
    with session_with(ears) as (session, line):
        session.send_audio(b"\1\2")
        session.finish()
        sent = [ears.received.get(timeout=PATIENCE) for _ in range(2)]
        say(line, results("rain", is_final=False), results("last"), {"type": "Metadata"})
        line.close()

        assert sent == [b"\1\2", {"type": "CloseStream"}]
        assert texts(session.finals()) == ["last"]
        assert texts(session.partials()) == ["rain"]


def test_silence_after_finish(ears: Ears) -> None:
    """If the server sends nothing after `finish()`, a reader gets a `TimeoutError`."""
    with session_with(ears, timeout=0.05) as (session, _):
        session.finish()

        for read in (session.finals, session.partials):
            with pytest.raises(TimeoutError, match="after finish"):
                list(read())


def test_silence_before_finish(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before `finish()` the server may send nothing for any time."""
    monkeypatch.setattr(deepgram, "_KEEP_ALIVE", 0.02)
    with session_with(ears, timeout=0.01) as (session, line):

        def speak() -> list[str]:
            for _ in range(3):
                assert ears.received.get(timeout=PATIENCE) == {"type": "KeepAlive"}
            say(line, results("late"))
            return []

        found, _ = in_threads(lambda: [next(session.finals()).text], speak)

    assert found == ["late"]


def test_each_message_renews_the_patience(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `finish()` the limit is for the time without a message, not for the whole time."""
    clock = ManualClock()
    looks = threading.Semaphore(0)

    def monotonic() -> float:
        looks.release()
        return clock()

    monkeypatch.setattr(deepgram, "monotonic", monotonic)
    with session_with(ears, timeout=0.01) as (session, line):
        finals = session.finals()

        def speak_late() -> str:
            while looks.acquire(blocking=False):
                pass
            assert looks.acquire(timeout=PATIENCE)  # the reader has checked the time limit
            say(line, results("more"))
            return ""

        clock.advance(100.0)
        session.finish()
        for _ in range(3):
            clock.advance(0.009)
            assert in_threads(lambda: next(finals).text, speak_late) == ["more", ""]
        clock.advance(0.02)

        with pytest.raises(TimeoutError):
            next(finals)


def test_keep_alive(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep-alive messages are sent while the caller sends nothing, but not after `finish()`."""
    monkeypatch.setattr(deepgram, "_KEEP_ALIVE", 0.01)
    with session_with(ears) as (session, line):
        kept = [ears.received.get(timeout=PATIENCE) for _ in range(3)]
        session.finish()
        session._threads[1].join(PATIENCE)

        assert kept == [{"type": "KeepAlive"}] * 3
        assert not session._threads[1].is_alive()
        line.close()


def test_close_in_another_thread(ears: Ears) -> None:
    """Closing ends the transcripts of waiting readers without an error, and the websocket."""
    with session_with(ears) as (session, line):

        def close() -> list[str]:
            session.close()
            session.close()
            return []

        outcomes = in_threads(
            lambda: texts(session.partials()), lambda: texts(session.finals()), close
        )

        assert outcomes == [[], [], []]
        assert ears.received.get(timeout=PATIENCE) is None
        assert line.protocol.close_rcvd.code == 1000
        with pytest.raises(Exception, match="1000"):
            session.send_audio(b"\1\2")


def test_close_waits_for_the_threads(ears: Ears) -> None:
    """Closing returns when the threads have ended, except for the thread that closes."""

    class Worker(threading.Thread):
        is_joined = False

        @override
        def join(self, timeout: float | None = None) -> None:
            self.is_joined = True

    worker = Worker()
    with session_with(ears) as (session, _):
        session._threads += [worker, threading.current_thread()]

        session.close()

    assert worker.is_joined


# ---- faults of a session


def close_1011(line: Any) -> None:  # noqa: ANN401
    """Close with the code that Deepgram uses if it has received no audio."""
    line.close(1011, "NET-0001")


def close_1000(line: Any) -> None:  # noqa: ANN401
    """Close with the code for a normal end."""
    line.close()


def report_error(line: Any) -> None:  # noqa: ANN401
    """Report an error, and continue."""
    say(line, {"type": "Error", "variant": "SchemaError", "description": "what was that?"})


def send_nonsense(line: Any) -> None:  # noqa: ANN401
    """Send a result without its parts."""
    say(line, {"type": "Results", "channel": {"alternatives": []}})


@pytest.mark.parametrize("fault", [break_off, close_1011, close_1000, report_error, send_nonsense])
def test_a_session_that_breaks(ears: Ears, fault: Callable[[Any], None]) -> None:
    """A broken session raises in both readers, in `send_audio` and in `finish`."""
    with session_with(ears) as (session, line):
        finals = session.finals()
        say(line, results("rain"))
        fault(line)

        errors = in_threads(lambda: texts(session.partials()), lambda: texts(finals))
        uses: list[Callable[[], None]] = [lambda: session.send_audio(b"\1\2"), session.finish]
        for use in uses:
            with pytest.raises(Exception) as caught:  # noqa: PT011
                use()
            errors.append(caught.value)

        first = errors[0]
        assert isinstance(first, Exception)
        assert http.is_provider_fault(first)
        assert errors == [first] * 4


def test_words_before_the_break(ears: Ears) -> None:
    """Transcripts that arrived before a session broke are returned before the exception."""
    with session_with(ears) as (session, line):
        say(line, results("rain"), results("snow"))
        break_off(line)
        finals = session.finals()

        assert [next(finals).text, next(finals).text] == ["rain", "snow"]
        with pytest.raises(Exception, match="close"):
            next(finals)


def test_a_break_after_finish(ears: Ears) -> None:
    """After `finish()`, transcripts of a session that breaks before its end raise."""
    with session_with(ears) as (session, line):
        session.finish()
        break_off(line)

        with pytest.raises(Exception, match="close"):
            list(session.finals())


def test_sessions_that_die_open_the_breaker(ears: Ears) -> None:
    """A session that breaks after its start is a failure; the backup serves the next session."""
    breaker = CircuitBreakerConfig(max_failures=1, failure_on=http.is_provider_fault)
    group = STTFallback(provider(ears.address), "primary", FallbackConfig(circuit_breaker=breaker))
    group.add_fallback("backup", FakeSTT(FakeSession()))

    with group.start_stream(ENGLISH) as session:
        break_off(ears.lines.get(timeout=PATIENCE))
        with pytest.raises(Exception, match="close"):
            list(session.finals())

    assert group.breakers["primary"].state is State.OPEN
    with group.start_stream(ENGLISH) as session:
        assert session.provider == "backup"


# ---- faults of the handshake


@pytest.mark.parametrize(
    ("status", "is_fault", "may_succeed"),
    [(400, False, False), (401, True, True), (403, False, True), (429, True, True)],
)
def test_a_refused_handshake(status: int, *, is_fault: bool, may_succeed: bool) -> None:
    """A status in the handshake is raised by `start_stream`, with the requested delay."""
    with (
        listen(status, {"Retry-After": "30"}) as ears,
        pytest.raises(Exception, match=str(status)) as caught,
    ):
        provider(ears.address).start_stream(ENGLISH)

    assert http.is_provider_fault(caught.value) is is_fault
    assert http.may_succeed_elsewhere(caught.value) is may_succeed
    assert http.retry_after(caught.value) == 30.0


def test_a_page_in_place_of_a_handshake() -> None:
    """A web page as the answer to the handshake is raised by `start_stream`."""
    with (
        listen(200, body=b"<html>Sign in to this network.</html>") as ears,
        pytest.raises(Exception, match="200"),
    ):
        provider(ears.address).start_stream(ENGLISH)


def test_nobody_listens() -> None:
    """A refused connection is raised by `start_stream`, so that it fails over."""
    with refuse() as url:
        group = STTFallback(provider(url.removeprefix("http://")), "primary")
        group.add_fallback("backup", FakeSTT(FakeSession()))

        with group.start_stream(ENGLISH) as session:
            assert session.provider == "backup"


def test_a_silent_handshake() -> None:
    """A handshake without an answer takes one `attempt_timeout`."""
    attempts: list[Attempt] = []
    config = FallbackConfig(attempt_timeout=0.2, on_attempt=attempts.append)
    with accept_only() as address:
        group = STTFallback(provider(address), "primary", config)
        group.add_fallback("backup", FakeSTT(FakeSession()))

        with group.start_stream(ENGLISH) as session:
            assert session.provider == "backup"

    assert isinstance(attempts[0].error, AttemptTimeoutError)


def test_no_thread_can_be_started(ears: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started for a session, its connection is closed."""

    class NoThread(threading.Thread):
        @override
        def start(self) -> None:
            msg = "can't start new thread"
            raise RuntimeError(msg)

    monkeypatch.setattr(deepgram, "Thread", NoThread)

    with pytest.raises(RuntimeError):
        provider(ears.address).start_stream(ENGLISH)

    assert ears.received.get(timeout=PATIENCE) is None


# ---- keywords


def change_keywords(
    ears: Ears,
    session: deepgram.DeepgramSession,
    answer: Callable[[], None],
    keywords: Sequence[stt.Keyword] = (stt.Keyword(text="probe"),),
) -> object:
    """Change the keywords while a server answers; return the exception of the call."""

    def respond() -> None:
        # One at a time; Deepgram rejects a second request before it has answered the first.
        assert ears.received.get(timeout=PATIENCE) == {
            "type": "Configure",
            "keyterms": [keyword.text for keyword in keywords],
        }
        assert session._configuring.locked()
        answer()

    return in_threads(lambda: session.set_keywords(keywords), respond)[0]


def test_keywords_are_replaced(ears: Ears) -> None:
    """New keywords are sent, and the call waits for the answer, any number of times."""
    with session_with(ears) as (session, line):
        for keywords in ((stt.Keyword(text="probe"), stt.Keyword(text="half open")), ()):
            outcome = change_keywords(
                ears,
                session,
                lambda: say(line, {"type": "ConfigureSuccess", "request_id": "-"}),
                keywords,
            )
            assert outcome is None


def test_keywords_are_refused(ears: Ears) -> None:
    """If the model cannot change keywords, the call raises, and the session continues."""
    refusal = {
        "type": "ConfigureFailure",
        "request_id": "-",
        "code": "CONFIGURE_KEYTERMS_NOT_SUPPORTED",
        "description": "not this model",
    }
    with session_with(ears, model="nova-2") as (session, line):
        error = change_keywords(ears, session, lambda: say(line, refusal, results("rain")))

        assert isinstance(error, UnsupportedRequestError)
        assert "not this model" in str(error)
        assert next(session.finals()).text == "rain"


def test_keywords_are_not_answered(ears: Ears) -> None:
    """If the server does not answer to new keywords, `TimeoutError` is raised."""
    with session_with(ears, timeout=0.05) as (session, _):
        error = change_keywords(ears, session, lambda: None)

    assert isinstance(error, TimeoutError)


def test_an_answer_that_comes_late(ears: Ears) -> None:
    """A late answer to a request that has timed out is not used for the next request."""
    with session_with(ears, timeout=0.05) as (session, line):
        error = change_keywords(ears, session, lambda: None)
        assert isinstance(error, TimeoutError)
        session._timeout = PATIENCE

        error = change_keywords(
            ears,
            session,
            lambda: say(
                line,
                {"type": "ConfigureSuccess", "request_id": "-"},
                {"type": "ConfigureFailure", "request_id": "-", "description": "not this"},
            ),
        )

    assert isinstance(error, UnsupportedRequestError)


def test_keywords_of_a_broken_session(ears: Ears) -> None:
    """If the session breaks during the call, its exception is raised, also by later calls."""
    with session_with(ears) as (session, line):
        error = change_keywords(ears, session, lambda: break_off(line))

        assert isinstance(error, Exception)
        assert http.is_provider_fault(error)
        with pytest.raises(type(error)):
            session.set_keywords(())


def test_keywords_of_a_closed_session(ears: Ears) -> None:
    """If the session is closed during the call, the call raises `ConnectionError`."""
    with session_with(ears) as (session, _):
        error = change_keywords(ears, session, session.close)

    assert isinstance(error, ConnectionError)


def test_keywords_with_a_boost(ears: Ears) -> None:
    """A boost raises, as in the configuration of a session."""
    with session_with(ears) as (session, _), pytest.raises(UnsupportedRequestError):
        session.set_keywords((stt.Keyword(text="probe", boost=2.0),))
