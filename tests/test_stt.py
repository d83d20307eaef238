"""A recognition session is one call to its provider's breaker, from its start to its end."""

import gc
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from typing_extensions import override

from helpers import TIMEOUT, Handle, Recogniser, Recorder, refuse
from resilience import (
    AllFailedError,
    CircuitOpenError,
    Outcome,
    State,
    STTFallback,
    STTSession,
    stt,
)
from resilience.testing import Delay, FakeSession, FakeSTT

CONFIG = stt.StreamConfig(language="en-US")


class Recognisers:
    """A group whose breakers open at the first failure, and what it reports."""

    def __init__(self, *providers: stt.Provider, max_failures: int = 1) -> None:
        """Name the providers 0, 1 and so on."""
        recorder = Recorder(
            breaker={
                "max_failures": max_failures,
                "failure_on": lambda error: not isinstance(error, ValueError),
            }
        )
        self.clock = recorder.clock
        self.attempts = recorder.attempts
        self.group = STTFallback(providers[0], "0", recorder.config)
        for number, provider in enumerate(providers[1:], start=1):
            self.group.add_fallback(str(number), provider)

    def start(self) -> STTSession:
        """Start a session."""
        return self.group.start_stream(CONFIG)

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes of the attempts, in order."""
        return [attempt.outcome for attempt in self.attempts]

    @property
    def state(self) -> State:
        """State of the primary's breaker."""
        return self.group.breakers["0"].state


def half_open(*sessions: FakeSession) -> Recognisers:
    """Return a primary whose next session is the only probe."""
    recognisers = Recognisers(FakeSTT(ConnectionError(), *sessions))
    with pytest.raises(AllFailedError):
        recognisers.start()
    recognisers.clock.advance(30)
    return recognisers


class TestStart:
    """The first provider that starts a session serves it."""

    def test_fails_over(self) -> None:
        """A start that raises counts, and the next provider is tried with the same settings."""
        primary, second = FakeSTT(ConnectionError()), FakeSTT(FakeSession("Hello"))
        recognisers = Recognisers(primary, second)

        session = recognisers.start()

        assert [transcript.text for transcript in session.finals()] == ["Hello"]
        assert recognisers.state is State.OPEN
        assert primary.configs == second.configs == [CONFIG]

    def test_all_fail(self) -> None:
        """If no provider starts a session, the error has the reason of each."""
        recognisers = Recognisers(FakeSTT(ConnectionError("refused")), FakeSTT(OSError("broken")))

        with pytest.raises(AllFailedError, match=r"0: ConnectionError: refused; 1: OSError"):
            recognisers.start()
        with pytest.raises(AllFailedError) as caught:
            recognisers.start()

        assert [type(error) for error in caught.value.failures.values()] == [CircuitOpenError] * 2

    def test_added_during_a_session(self) -> None:
        """A provider that is added during a session serves the next one."""
        recognisers = Recognisers(FakeSTT(FakeSession("one"), ConnectionError()))

        session = recognisers.start()
        recognisers.group.add_fallback("late", FakeSTT(FakeSession("two")))
        session.close()

        assert [transcript.text for transcript in recognisers.start().finals()] == ["two"]


class TestPassedOn:
    """Audio, keywords and transcripts are passed on unchanged."""

    def test_everything(self) -> None:
        """Audio and keywords reach the provider's session, and its transcripts the caller."""
        inner = FakeSession("final", partials=("par", "partial"))
        session = Recognisers(FakeSTT(inner)).start()
        keywords = (stt.Keyword(text="resilience"),)

        session.send_audio(b"\0\1")
        session.send_audio(b"\2\3")
        session.set_keywords(keywords)
        partials, finals = list(session.partials()), list(session.finals())
        session.close()

        assert inner.audio == [b"\0\1", b"\2\3"]
        assert inner.keywords == keywords
        assert [transcript.text for transcript in partials] == ["par", "partial"]
        assert finals == [stt.Transcript(text="final", is_final=True)]
        assert session.provider == "0"
        assert inner.closed == 1

    def test_transcripts_as_a_list(self) -> None:
        """A provider may return its transcripts in a list."""

        class Listing(Handle):
            @override
            def finals(self) -> Iterable[stt.Transcript]:
                return [stt.Transcript(text="Hello")]

        session = Recognisers(Recogniser(Listing)).start()

        assert [transcript.text for transcript in session.finals()] == ["Hello"]


def send(session: stt.SessionHandle) -> None:
    """Send some audio."""
    session.send_audio(b"\0\0")


def read_finals(session: stt.SessionHandle) -> None:
    """Read all final transcripts."""
    list(session.finals())


def read_partials(session: stt.SessionHandle) -> None:
    """Read all partial transcripts."""
    list(session.partials())


def failing(error: Exception) -> FakeSession:
    """Return a session whose methods raise; those that read raise after one transcript."""
    return FakeSession("one", error, partials=("one", error), sending=(error,))


ways = pytest.mark.parametrize("use", [send, read_finals, read_partials])


class TestSettled:
    """The life of a session is one call, settled once."""

    @ways
    def test_failure(self, use: Callable[[stt.SessionHandle], None]) -> None:
        """An exception of sending or reading is a failure, and is raised unchanged."""
        error = ConnectionError("reset")
        recognisers = Recognisers(FakeSTT(failing(error)))
        session = recognisers.start()

        with pytest.raises(ConnectionError) as caught:
            use(session)
        state_before_close = recognisers.state
        session.close()

        assert caught.value is error
        assert state_before_close is State.OPEN
        assert recognisers.outcomes() == [Outcome.FAILED]
        assert recognisers.attempts[0].error is error

    @pytest.mark.parametrize("method", ["finals", "partials"])
    def test_reading_raises_at_the_call(self, method: str) -> None:
        """Reading that raises is a failure, whether the call or the iteration raises."""

        class Eager(Handle):
            @override
            def partials(self) -> Iterable[stt.Transcript]:
                raise ConnectionError

            finals = partials

        recognisers = Recognisers(Recogniser(Eager))
        session = recognisers.start()

        with pytest.raises(ConnectionError):
            getattr(session, method)()

        assert recognisers.state is State.OPEN

    def test_row_of_failures(self) -> None:
        """Sessions that fail after their start, one after the other, open the breaker."""
        recognisers = Recognisers(
            FakeSTT(*(failing(ConnectionError()) for _ in range(3))),
            FakeSTT(FakeSession("served")),
            max_failures=3,
        )

        for _ in range(3):
            session = recognisers.start()
            with pytest.raises(ConnectionError):
                read_finals(session)
            session.close()

        assert recognisers.state is State.OPEN
        assert [transcript.text for transcript in recognisers.start().finals()] == ["served"]

    def test_not_settled_before_its_end(self) -> None:
        """The end of the transcripts does not settle the call; the end of the session does."""
        recognisers = half_open(FakeSession("one"))
        session = recognisers.start()

        read_finals(session)
        before = recognisers.state
        session.close()

        assert before is State.HALF_OPEN
        assert recognisers.state is State.CLOSED

    @ways
    def test_uncounted(self, use: Callable[[stt.SessionHandle], None]) -> None:
        """An exception that does not count makes the session neither a failure nor a success."""
        error = ValueError("bad audio")
        recognisers = half_open(failing(error))
        session = recognisers.start()

        with pytest.raises(ValueError, match="bad audio"):
            use(session)
        session.close()

        assert recognisers.state is State.HALF_OPEN
        assert recognisers.outcomes()[1:] == [Outcome.IGNORED]

    def test_keywords(self) -> None:
        """An exception of changing the keywords does not settle the call."""

        class Fixed(Handle):
            @override
            def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
                raise NotImplementedError

        recognisers = Recognisers(Recogniser(Fixed))
        session = recognisers.start()

        with pytest.raises(NotImplementedError):
            session.set_keywords(())
        session.close()

        assert recognisers.outcomes() == [Outcome.SUCCEEDED]


def test_a_reader_keeps_the_session() -> None:
    """A session is not dropped as long as its transcripts are read."""
    inner = FakeSession("one", "two")
    transcripts = iter(Recognisers(FakeSTT(inner)).start().finals())
    gc.collect()

    assert next(transcripts).text == "one"
    assert inner.closed == 0


class TestThreads:
    """One thread sends while others read."""

    def test_sending_fails_while_another_reads(self) -> None:
        """The failure is counted once, although the reader fails as well."""
        reading, sent = threading.Event(), threading.Event()

        def wait_for_sender() -> None:
            reading.set()
            assert sent.wait(TIMEOUT)

        error = ConnectionError("reset")
        inner = FakeSession("one", wait_for_sender, error, sending=(error,))
        recognisers = Recognisers(FakeSTT(inner), max_failures=2)
        session = recognisers.start()

        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read_finals, session)
            assert reading.wait(TIMEOUT)
            with pytest.raises(ConnectionError):
                send(session)
            sent.set()
            assert isinstance(reader.exception(TIMEOUT), ConnectionError)
        session.close()

        assert recognisers.outcomes() == [Outcome.FAILED]
        assert recognisers.state is State.CLOSED

    def test_closed_while_another_reads(self) -> None:
        """A reader that fails because the session was closed meanwhile is no failure."""
        reading, closed = threading.Event(), threading.Event()

        def wait_for_close() -> None:
            reading.set()
            assert closed.wait(TIMEOUT)

        inner = FakeSession(wait_for_close, ConnectionError("closed"))
        recognisers = Recognisers(FakeSTT(inner))
        session = recognisers.start()

        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read_finals, session)
            assert reading.wait(TIMEOUT)
            session.close()
            closed.set()
            assert isinstance(reader.exception(TIMEOUT), ConnectionError)

        assert recognisers.outcomes() == [Outcome.SUCCEEDED]
        assert recognisers.state is State.CLOSED


def test_duration() -> None:
    """The report of a session has its duration, from the admission to the closing."""
    recognisers = Recognisers(FakeSTT(ConnectionError()))
    provider = FakeSTT([Delay(2), FakeSession()], clock=recognisers.clock)
    recognisers.group.add_fallback("1", provider)

    session = recognisers.start()
    recognisers.clock.advance(12.5)
    session.close()

    assert recognisers.attempts[-1].duration == 14.5


class TestFinish:
    """After `finish()` no more audio is sent, and the transcripts end after the last words."""

    def test_tells_the_provider(self) -> None:
        """`finish()` is passed on, and does not settle the call."""
        inner = FakeSession("last words")
        recognisers = Recognisers(FakeSTT(inner))

        with recognisers.start() as session:
            session.send_audio(b"audio")
            session.finish()
            assert [each.text for each in session.finals()] == ["last words"]
            assert recognisers.outcomes() == []

        assert inner.finished == 1
        assert recognisers.outcomes() == [Outcome.SUCCEEDED]

    def test_a_failure_after_it_counts(self) -> None:
        """A failure of the last transcripts opens the breaker."""
        recognisers = Recognisers(FakeSTT(FakeSession("last", ConnectionError())))

        with recognisers.start() as session:
            session.finish()
            with pytest.raises(ConnectionError):
                list(session.finals())

        assert recognisers.outcomes() == [Outcome.FAILED]
        assert recognisers.state is State.OPEN

    def test_finish_itself_may_fail(self) -> None:
        """An exception of `finish()` counts like one of sending."""
        recognisers = Recognisers(FakeSTT(FakeSession(finishing=ConnectionError())))

        with (
            recognisers.start() as session,
            pytest.raises(ConnectionError),
        ):
            session.finish()

        assert recognisers.outcomes() == [Outcome.FAILED]

    def test_a_provider_without_it(self) -> None:
        """If the provider's session has no `finish()`, the call does nothing."""
        recognisers = Recognisers(Recogniser(Handle))

        with recognisers.start() as session:
            session.finish()

        assert recognisers.outcomes() == [Outcome.SUCCEEDED]


def test_the_providers_own_methods() -> None:
    """Methods that are not in the contract can be called with `execute` and `stream`."""
    inner = FakeSession()
    recognisers = Recognisers(FakeSTT(inner))

    with recognisers.start() as session:
        assert session.handle is inner
        assert session.execute(lambda handle: handle is inner)
        assert list(session.stream(lambda _: ["event"])) == ["event"]
        with pytest.raises(ConnectionError):
            session.execute(refuse)

    assert recognisers.outcomes() == [Outcome.FAILED]
    assert repr(session) == "<STTSession provider='0' closed>"
