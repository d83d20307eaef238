"""A recognition session is one call to its provider's breaker, from its start to its end."""

import gc
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest
from typing_extensions import override

from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    Outcome,
    State,
    STTFallback,
    stt,
)
from resilience._failover.attempts import Attempts
from resilience._failover.session import Session
from resilience.testing import Delay, FakeSession, FakeSTT, ManualClock

CONFIG = stt.StreamConfig(language="en-US")
TIMEOUT = 10.0


class Recognisers:
    """A group whose breakers open at the first failure, and what it reports."""

    def __init__(self, *providers: stt.Provider, max_failures: int = 1) -> None:
        """Name the providers 0, 1 and so on."""
        self.clock = ManualClock()
        self.attempts: list[Attempt] = []
        breaker = CircuitBreakerConfig(
            max_failures=max_failures,
            half_open_max=1,
            failure_on=lambda error: not isinstance(error, ValueError),
            clock=self.clock,
        )
        self.group = STTFallback(
            providers[0],
            "0",
            FallbackConfig(circuit_breaker=breaker, on_attempt=self.attempts.append),
        )
        for number, provider in enumerate(providers[1:], start=1):
            self.group.add_fallback(str(number), provider)

    def start(self) -> stt.SessionHandle:
        """Start a session."""
        return self.group.start_stream(CONFIG)

    def outcomes(self) -> list[Outcome]:
        """Return how the attempts ended, in order."""
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

    def test_moves_on(self) -> None:
        """A start that raises counts, and the next provider is tried with the same settings."""
        primary, second = FakeSTT(ConnectionError()), FakeSTT(FakeSession("Hello"))
        recognisers = Recognisers(primary, second)

        session = recognisers.start()

        assert [transcript.text for transcript in session.finals()] == ["Hello"]
        assert recognisers.state is State.OPEN
        assert primary.configs == second.configs == [CONFIG]

    def test_nobody(self) -> None:
        """If nobody starts a session, the error names everybody's reason."""
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


class TestHandsThrough:
    """The proxy adds nothing to what the provider's session does."""

    def test_everything(self) -> None:
        """Audio and keywords reach the provider's session, and its transcripts the caller."""
        inner = FakeSession("final", partials=("par", "partial"))
        session = Recognisers(FakeSTT(inner)).group.start_stream(CONFIG)
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

        class Listing(FakeListener):
            @override
            def finals(self) -> Iterable[stt.Transcript]:
                return [stt.Transcript(text="Hello")]

        session = Recognisers(Fixed(Listing())).start()

        assert [transcript.text for transcript in session.finals()] == ["Hello"]


class FakeListener(stt.SessionHandle):
    """A session that hears nothing."""

    @override
    def send_audio(self, audio: bytes) -> None:
        """Take it."""

    @override
    def partials(self) -> Iterable[stt.Transcript]:
        return ()

    @override
    def finals(self) -> Iterable[stt.Transcript]:
        return ()

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        raise NotImplementedError

    @override
    def close(self) -> None:
        """End it."""


class Fixed(stt.Provider):
    """Always returns the same session."""

    def __init__(self, session: stt.SessionHandle) -> None:
        """Return this session."""
        self._session = session

    @override
    def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
        return self._session


def send(session: stt.SessionHandle) -> None:
    """Send some audio."""
    session.send_audio(b"\0\0")


def read_finals(session: stt.SessionHandle) -> None:
    """Read all final transcripts."""
    list(session.finals())


def read_partials(session: stt.SessionHandle) -> None:
    """Read all partial transcripts."""
    list(session.partials())


def dying(error: Exception) -> FakeSession:
    """Return a session whose every method raises, its readers after one transcript."""
    return FakeSession("one", error, partials=("one", error), sending=(error,))


ways = pytest.mark.parametrize("use", [send, read_finals, read_partials])


class TestSettled:
    """The life of a session is one call, settled once."""

    @ways
    def test_dies_half_way(self, use: Callable[[stt.SessionHandle], None]) -> None:
        """Sending or reading that raises is a failure; its error reaches the caller as it is."""
        error = ConnectionError("reset")
        recognisers = Recognisers(FakeSTT(dying(error)))
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
        """It does not matter whether the call or the iteration raises."""

        class Eager(FakeListener):
            @override
            def partials(self) -> Iterable[stt.Transcript]:
                raise ConnectionError

            finals = partials

        recognisers = Recognisers(Fixed(Eager()))
        session = recognisers.start()

        with pytest.raises(ConnectionError):
            getattr(session, method)()

        assert recognisers.state is State.OPEN

    def test_one_after_the_other(self) -> None:
        """Sessions that die half-way, one after the other, open the breaker."""
        recognisers = Recognisers(
            FakeSTT(*(dying(ConnectionError()) for _ in range(3))),
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

    def test_closed(self) -> None:
        """A session that is closed has succeeded, and a success ends a row of failures."""
        recognisers = Recognisers(
            FakeSTT(ConnectionError(), FakeSession(), ConnectionError()), max_failures=2
        )
        with pytest.raises(AllFailedError):
            recognisers.start()

        recognisers.start().close()
        with pytest.raises(AllFailedError):
            recognisers.start()

        assert recognisers.state is State.CLOSED
        assert recognisers.outcomes() == [Outcome.FAILED, Outcome.SUCCEEDED, Outcome.FAILED]

    def test_not_settled_before_its_end(self) -> None:
        """Transcripts that are at their end do not end the call: the session does."""
        recognisers = half_open(FakeSession("one"))
        session = recognisers.start()

        read_finals(session)
        before = recognisers.state
        session.close()

        assert before is State.HALF_OPEN
        assert recognisers.state is State.CLOSED

    def test_closed_twice(self) -> None:
        """Closing again does nothing."""
        inner = FakeSession()
        recognisers = Recognisers(FakeSTT(inner))
        session = recognisers.start()

        session.close()
        session.close()

        assert inner.closed == 1
        assert recognisers.outcomes() == [Outcome.SUCCEEDED]

    def test_closed_by_many(self) -> None:
        """If many threads close it at once, it is closed once."""
        inner = FakeSession()
        recognisers = Recognisers(FakeSTT(inner))
        session = recognisers.start()
        together = threading.Barrier(8, timeout=TIMEOUT)

        def close() -> None:
            together.wait()
            session.close()

        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(close) for _ in range(8)]:
                future.result(TIMEOUT)

        assert inner.closed == 1
        assert recognisers.outcomes() == [Outcome.SUCCEEDED]

    @ways
    def test_uncounted(self, use: Callable[[stt.SessionHandle], None]) -> None:
        """An exception that does not count makes the session neither a failure nor a success."""
        error = ValueError("bad audio")
        recognisers = half_open(dying(error))
        session = recognisers.start()

        with pytest.raises(ValueError, match="bad audio"):
            use(session)
        session.close()

        assert recognisers.state is State.HALF_OPEN
        assert recognisers.outcomes()[1:] == [Outcome.IGNORED]

    def test_first_exception_settles(self) -> None:
        """The first exception settles the call, and a session that goes on is not heard again."""
        inner = FakeSession(ConnectionError(), sending=(ValueError(),))
        recognisers = Recognisers(FakeSTT(inner))
        session = recognisers.start()

        with pytest.raises(ValueError):  # noqa: PT011
            send(session)
        with pytest.raises(ConnectionError):
            read_finals(session)
        session.close()

        assert recognisers.outcomes() == [Outcome.IGNORED]
        assert recognisers.state is State.CLOSED

    def test_keywords(self) -> None:
        """That a provider cannot change keywords in a session is no evidence."""
        recognisers = Recognisers(Fixed(FakeListener()))
        session = recognisers.start()

        with pytest.raises(NotImplementedError):
            session.set_keywords(())
        session.close()

        assert recognisers.outcomes() == [Outcome.SUCCEEDED]

    def test_interrupted(self) -> None:
        """An interruption settles nothing: the session still stands, and can be closed."""
        recognisers = Recognisers(FakeSTT(FakeSession(KeyboardInterrupt())))
        session = recognisers.start()

        with pytest.raises(KeyboardInterrupt):
            read_finals(session)
        session.close()

        assert recognisers.outcomes() == [Outcome.SUCCEEDED]

    def test_duration(self) -> None:
        """The report of a session tells how long it lived, by the breaker's clock."""
        recognisers = Recognisers(FakeSTT())
        session = recognisers.start()

        recognisers.clock.advance(12.5)
        session.close()

        assert recognisers.attempts[0].duration == 12.5

    def test_close_raises(self) -> None:
        """An error of the provider's own `close()` reaches the caller and harms nobody."""

        class Stubborn(FakeListener):
            @override
            def close(self) -> None:
                raise OSError

        recognisers = Recognisers(Fixed(Stubborn()))
        session = recognisers.start()

        with pytest.raises(OSError):  # noqa: PT011
            session.close()

        assert recognisers.outcomes() == [Outcome.SUCCEEDED]


class TestInterrupted:
    """A session that its caller never got."""

    def test_gives_its_slot_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is reported, closed, and another one may be the probe."""
        session = FakeSession()
        recognisers = half_open(session, FakeSession())

        def interrupt(_: object) -> NoReturn:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Attempts, "clear_failures", interrupt)
            with pytest.raises(KeyboardInterrupt):
                recognisers.start()
        gc.collect()

        assert recognisers.outcomes()[-1] is Outcome.CANCELLED
        assert session.closed == 1
        recognisers.start().close()
        assert recognisers.state is State.CLOSED

    def test_half_made(self) -> None:
        """One whose making was interrupted goes without a complaint."""
        Session.__new__(Session)


class TestDropped:
    """A session that is dropped without `close()` holds nothing."""

    def test_gives_its_slot_back(self) -> None:
        """Its slot comes back, it is neither success nor failure, and it is closed."""
        dropped = FakeSession()
        recognisers = half_open(dropped, FakeSession())

        recognisers.start()
        gc.collect()
        recognisers.start().close()

        assert dropped.closed == 1
        assert recognisers.outcomes()[1:] == [Outcome.CANCELLED, Outcome.SUCCEEDED]
        assert recognisers.state is State.CLOSED

    def test_reader_keeps_it(self) -> None:
        """Whoever still reads its transcripts holds it."""
        inner = FakeSession("one", "two")
        transcripts = iter(Recognisers(FakeSTT(inner)).start().finals())
        gc.collect()

        assert next(transcripts).text == "one"
        assert inner.closed == 0

    def test_close_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """An error of the provider's `close()` is logged, and raised to nobody."""

        class Stubborn(FakeListener):
            @override
            def close(self) -> None:
                raise OSError

        recognisers = Recognisers(Fixed(Stubborn()))

        with caplog.at_level(logging.ERROR, "resilience"):
            recognisers.start()
            gc.collect()

        assert "close() of a provider's session raised OSError" in caplog.text


class TestThreads:
    """One thread sends while others read."""

    def test_sending_dies_while_another_reads(self) -> None:
        """The failure of the sender is counted once, though the reader fails as well."""
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


def test_slow_start_is_part_of_the_duration() -> None:
    """The report counts from the admission, not from the provider's answer."""
    clock = ManualClock()
    attempts: list[Attempt] = []
    group = STTFallback(
        FakeSTT([Delay(2), FakeSession()], clock=clock),
        "model",
        FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(clock=clock), on_attempt=attempts.append
        ),
    )

    group.start_stream(CONFIG).close()

    assert [attempt.duration for attempt in attempts] == [2]


class TestFinish:
    """After `finish()` no more audio comes, and the transcripts end after the last words."""

    def test_tells_the_provider(self) -> None:
        """It is passed on, and settles nothing."""
        inner = FakeSession("last words")
        recognisers = Recognisers(FakeSTT(inner))

        with recognisers.group.start_stream(CONFIG) as session:
            session.send_audio(b"audio")
            session.finish()
            assert [each.text for each in session.finals()] == ["last words"]
            assert recognisers.outcomes() == []

        assert inner.finished == 1
        assert recognisers.outcomes() == [Outcome.SUCCEEDED]

    def test_a_failure_in_the_last_words_counts(self) -> None:
        """A recogniser that works at the end and dies there opens its breaker."""
        recognisers = Recognisers(FakeSTT(FakeSession("last", ConnectionError())))

        with recognisers.group.start_stream(CONFIG) as session:
            session.finish()
            with pytest.raises(ConnectionError):
                list(session.finals())

        assert recognisers.outcomes() == [Outcome.FAILED]
        assert recognisers.state is State.OPEN

    def test_finish_itself_may_fail(self) -> None:
        """An exception of `finish()` counts like one of sending."""
        recognisers = Recognisers(FakeSTT(FakeSession(finishing=ConnectionError())))

        with (
            recognisers.group.start_stream(CONFIG) as session,
            pytest.raises(ConnectionError),
        ):
            session.finish()

        assert recognisers.outcomes() == [Outcome.FAILED]

    def test_a_provider_without_it(self) -> None:
        """Where the provider's session has no `finish()`, it does nothing."""

        class Plain(stt.SessionHandle):
            @override
            def send_audio(self, audio: bytes) -> None:
                pass

            @override
            def partials(self) -> Iterable[stt.Transcript]:
                return ()

            finals = partials

            @override
            def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
                pass

            @override
            def close(self) -> None:
                pass

        class Recogniser(stt.Provider):
            @override
            def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
                return Plain()

        recognisers = Recognisers(Recogniser())

        with recognisers.group.start_stream(CONFIG) as session:
            session.finish()

        assert recognisers.outcomes() == [Outcome.SUCCEEDED]


def test_the_providers_own_methods() -> None:
    """What the contract does not name is reached by `execute` and `stream`."""

    def refuse(_handle: stt.SessionHandle) -> NoReturn:
        raise ConnectionError

    inner = FakeSession()
    recognisers = Recognisers(FakeSTT(inner))

    with recognisers.group.start_stream(CONFIG) as session:
        assert session.handle is inner
        assert session.execute(lambda handle: handle is inner)
        assert list(session.stream(lambda _: ["event"])) == ["event"]
        with pytest.raises(ConnectionError):
            session.execute(refuse)

    assert recognisers.outcomes() == [Outcome.FAILED]
    assert repr(session) == "<STTSession provider='0' closed>"
