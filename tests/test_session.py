"""A session of a group is opened with failover, and is one call from its opening to its closing."""

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest

from helpers import TIMEOUT, Hang, Recorder, in_thread, in_threads, interrupt, raising, trip
from resilience import (
    AllFailedError,
    Attempt,
    AttemptTimeoutError,
    FallbackConfig,
    FallbackGroup,
    Outcome,
    Session,
    State,
    STTFallback,
    UnsupportedRequestError,
    stt,
)
from resilience.testing import FakeSession


class Line:
    """A connection that a provider opens."""

    def __init__(self) -> None:
        """Open it."""
        self.closings = 0
        self.threads: list[int] = []

    def send(self, text: str) -> str:
        """Return an answer."""
        return text.upper()

    def refuse(self) -> NoReturn:
        """Fail."""
        raise ConnectionError

    def lines(self) -> Iterator[str]:
        """Receive two lines, then fail."""
        yield "one"
        yield "two"
        raise ConnectionError

    def close(self) -> None:
        """Count."""
        self.closings += 1


class Server:
    """A provider that opens connections."""

    def __init__(self, error: Exception | None = None) -> None:
        """Raise an error at each opening, if there is one."""
        self.error = error
        self.opened: list[Line] = []

    def connect(self) -> Line:
        """Open a connection."""
        if self.error is not None:
            raise self.error
        self.opened.append(Line())
        return self.opened[-1]


class Switchboard:
    """A group of providers whose breakers open at the first failure."""

    def __init__(self, *servers: Server, **settings: Any) -> None:  # noqa: ANN401
        """Name the providers 0, 1 and so on."""
        recorder = Recorder(
            breaker={"failure_on": lambda error: not isinstance(error, ValueError)}, **settings
        )
        self.clock = recorder.clock
        self.attempts = recorder.attempts
        self.group = FallbackGroup(servers[0], "0", recorder.config)
        for number, server in enumerate(servers[1:], start=1):
            self.group.add_fallback(str(number), server)

    def connect(self) -> Session[Line]:
        """Open a session."""
        return self.group.session(Server.connect)

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes of the attempts, in order."""
        return [attempt.outcome for attempt in self.attempts]

    def state(self, server: str = "0") -> State:
        """Return the state of a breaker."""
        return self.group.breakers[server].state

    def make_due(self) -> None:
        """Let the next call of the first breaker be a probe."""
        trip(self.group.breakers["0"])
        self.clock.advance(30)


class TestOpening:
    """The first provider that opens a handle serves the session."""

    def test_fails_over(self) -> None:
        """A provider that cannot open it fails, and the next one is tried."""
        down, up = Server(ConnectionError()), Server()
        board = Switchboard(down, up)

        with board.connect() as session:
            assert session.provider == "1"
            assert session.handle is up.opened[0]
            assert session.execute(lambda line: line.send("hello")) == "HELLO"
            assert repr(session) == "<Session provider='1' open>"

        assert repr(session) == "<Session provider='1' closed>"
        assert board.outcomes() == [Outcome.FAILED, Outcome.SUCCEEDED]
        assert {attempt.operation for attempt in board.attempts} == {"session"}

    def test_all_fail(self) -> None:
        """If no provider opens a handle, the failures are raised."""
        board = Switchboard(Server(ConnectionError()), Server(TimeoutError()))

        with pytest.raises(AllFailedError) as raised:
            board.connect()

        assert [type(each) for each in raised.value.failures.values()] == [
            ConnectionError,
            TimeoutError,
        ]

    @pytest.mark.parametrize("wrong", ["none", "coroutine"])
    @pytest.mark.parametrize("attempt_timeout", [0, 60])
    def test_what_is_no_handle(self, wrong: str, attempt_timeout: float) -> None:
        """None or a coroutine instead of a handle fails the attempt, and the provider is named."""

        async def connect() -> None:
            pass

        board = Switchboard(Server(), attempt_timeout=attempt_timeout)

        with pytest.raises(AllFailedError, match=r"session\(\) of provider '0'"):
            board.group.session(lambda _: None if wrong == "none" else connect())

        assert board.outcomes() == [Outcome.FAILED]

    def test_a_late_handle_is_closed(self, hang: Hang) -> None:
        """A handle that is opened after the time limit is closed, and the next provider serves."""
        closed = threading.Event()

        class Late(Line):
            def close(self) -> None:
                super().close()
                closed.set()

        def connect(server: Server) -> Line:
            if server is slow:
                hang()
                return Late()
            return server.connect()

        slow, quick = Server(), Server()
        board = Switchboard(slow, quick)
        board.group = FallbackGroup(slow, "slow", attempt_timeout=0.01)
        board.group.add_fallback("quick", quick, attempt_timeout=0)

        session = board.group.session(connect)
        assert session.provider == "quick"
        assert not closed.is_set()
        hang.over.set()

        assert closed.wait(TIMEOUT)
        session.close()

    def test_a_provider_that_hangs(self, hang: Hang) -> None:
        """An attempt that takes too long fails with `AttemptTimeoutError`."""
        group = FallbackGroup(hang, "hanging", attempt_timeout=0.01)

        with pytest.raises(AllFailedError) as raised:
            group.session(hang)

        assert isinstance(raised.value.failures["hanging"], AttemptTimeoutError)


class TestOutcome:
    """The life of a session is one call, which is settled once."""

    def test_succeeds_when_closed(self) -> None:
        """A session that is closed without a failure has succeeded, and its handle is closed."""
        board = Switchboard(Server())
        session = board.connect()

        assert board.outcomes() == []
        session.close()
        session.close()

        assert board.outcomes() == [Outcome.SUCCEEDED]
        assert session.handle.closings == 1

    def test_fails_when_a_function_raises(self) -> None:
        """An exception of a function is raised unchanged, and settles the call as failed."""
        board = Switchboard(Server())

        with board.connect() as session, pytest.raises(ConnectionError):
            session.execute(Line.refuse)

        assert board.outcomes() == [Outcome.FAILED]
        assert board.state() is State.OPEN
        assert session.handle.closings == 1

    def test_the_first_exception_settles_it(self) -> None:
        """After an exception that does not count, a later one changes nothing."""
        board = Switchboard(Server())

        with board.connect() as session:
            with pytest.raises(ValueError, match=r"^$"):
                session.execute(raising(ValueError()))
            with pytest.raises(ConnectionError):
                session.execute(Line.refuse)

        assert board.outcomes() == [Outcome.IGNORED]
        assert board.state() is State.CLOSED

    def test_an_unsupported_request_does_not_count(self) -> None:
        """`UnsupportedRequestError` settles the call as neither a success nor a failure."""
        board = Switchboard(Server())

        with board.connect() as session, pytest.raises(UnsupportedRequestError):
            session.execute(raising(UnsupportedRequestError()))

        assert board.outcomes() == [Outcome.IGNORED]

    def test_a_coroutine_is_refused(self) -> None:
        """A function that returns a coroutine fails with a `TypeError`."""

        async def send() -> None:
            pass

        board = Switchboard(Server())

        with board.connect() as session, pytest.raises(TypeError, match="coroutine"):
            _ = session.execute(lambda _: send())

    def test_an_interruption_does_not_settle_it(self) -> None:
        """`KeyboardInterrupt` in a function leaves the call open."""
        board = Switchboard(Server())
        session = board.connect()

        with pytest.raises(KeyboardInterrupt):
            session.execute(interrupt)
        assert board.outcomes() == []

        session.close()
        assert board.outcomes() == [Outcome.SUCCEEDED]

    def test_the_callers_own_exception(self) -> None:
        """An exception that leaves the `with` block never counts, and the handle is closed."""
        board = Switchboard(Server())

        with pytest.raises(ConnectionError), board.connect() as session:
            raise ConnectionError

        assert board.outcomes() == [Outcome.CANCELLED]
        assert board.state() is State.CLOSED
        assert session.handle.closings == 1

    def test_dropping_it(self) -> None:
        """If a session is dropped, its handle is closed, and nothing is recorded."""
        board = Switchboard(Server())
        session = board.connect()
        line = session.handle

        del session
        gc.collect()

        assert line.closings == 1
        assert board.outcomes() == [Outcome.CANCELLED]

    def test_dropping_it_releases_the_slot_of_a_probe(self) -> None:
        """If the session of a probe is dropped, its slot is released."""
        board = Switchboard(Server())
        board.make_due()

        board.connect()
        gc.collect()

        board.connect().close()
        assert board.state() is State.CLOSED

    @pytest.mark.parametrize(
        "place", ["session.Session.__init__", "attempts.Attempts.clear_failures"]
    )
    def test_a_session_that_is_never_returned(
        self, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        """A handle whose opening was interrupted is closed, and its slot released."""
        board = Switchboard(Server(), keep_errors=False)
        board.make_due()

        with monkeypatch.context() as patch:
            patch.setattr(f"resilience._failover.{place}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                board.connect()
        gc.collect()

        assert board.outcomes() == [Outcome.CANCELLED]
        assert [line.closings for line in board.group.primary.opened] == [1]
        board.connect().close()
        assert board.state() is State.CLOSED

    def test_a_handle_without_close(self) -> None:
        """A handle that has no `close()` is dropped."""
        group = FallbackGroup("a", "a")

        with group.session(lambda name: name) as session:
            assert session.execute(str.upper) == "A"

    def test_close_raises(self) -> None:
        """An exception of the handle's `close()` is raised by `close()`; the call has succeeded."""

        class Stuck(Line):
            def close(self) -> None:
                raise OSError

        board = Switchboard(Server())
        session = board.group.session(lambda _: Stuck())

        with pytest.raises(OSError, match=r"^$"):
            session.close()

        assert board.outcomes() == [Outcome.SUCCEEDED]

    def test_close_hides_no_other_exception(self, caplog: pytest.LogCaptureFixture) -> None:
        """An exception of `close()` after the caller's own exception is logged."""

        class Stuck(Line):
            def close(self) -> None:
                raise OSError

        board = Switchboard(Server())

        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(KeyError),
            board.group.session(lambda _: Stuck()),
        ):
            raise KeyError

        assert "OSError" in caplog.text


class TestStream:
    """An exception of an iterator of a session settles its call."""

    def test_items_and_error(self) -> None:
        """Items are returned as they arrive; the error is raised unchanged and settles the call."""
        board = Switchboard(Server())
        session = board.connect()
        lines = session.stream(Line.lines)

        assert [next(lines), next(lines)] == ["one", "two"]
        with pytest.raises(ConnectionError):
            next(lines)
        session.close()

        assert board.outcomes() == [Outcome.FAILED]

    def test_leaving_it_closes_the_iterable(self) -> None:
        """Closing the iterator closes the iterable of the function, and settles nothing."""
        closed: list[bool] = []

        def ticks(_line: Line) -> Iterator[int]:
            try:
                while True:
                    yield 1
            finally:
                closed.append(True)

        board = Switchboard(Server())
        with board.connect() as session:
            stream = session.stream(ticks)
            next(stream)
            stream.close()  # type: ignore[attr-defined]
            assert closed == [True]
            assert board.outcomes() == []

        assert board.outcomes() == [Outcome.SUCCEEDED]

    def test_dropping_it_in_a_reference_cycle(self) -> None:
        """The iterable is closed once, in whichever order the collector deletes the objects."""
        iterable = Mock()
        iterable.__iter__ = lambda _: iter([1])
        holder: list[object] = []

        with Switchboard(Server()).connect() as session:
            stream = session.stream(lambda _: iterable)
            next(stream)
            holder += [holder, stream]
            del stream, holder
            gc.collect()

        assert iterable.close.call_count == 1

    def test_what_is_not_iterable(self) -> None:
        """A function whose result is not iterable fails with a `TypeError`."""
        board = Switchboard(Server())

        with (
            board.connect() as session,
            pytest.raises(
                TypeError, match=r"stream\(\) of provider '0' returned an object of type"
            ),
        ):
            session.stream(lambda _: 3)  # type: ignore[arg-type, return-value]

        assert board.outcomes() == [Outcome.FAILED]


@pytest.mark.parametrize("attempt_timeout", [0, 60])
def test_context(attempt_timeout: float) -> None:
    """A variable that is set while the handle is opened can be reset while it is closed."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []

    class Bound(Line):
        def __init__(self) -> None:
            super().__init__()
            self.token = variable.set("opened")

        def close(self) -> None:
            seen.append(variable.get())
            variable.reset(self.token)

    board = Switchboard(Server(), attempt_timeout=attempt_timeout)
    session = board.group.session(lambda _: Bound())

    in_thread(session.close)

    assert seen == ["opened"]
    assert variable.get() == "none"


def test_many_threads_close() -> None:
    """However many threads close a session, its handle is closed once."""
    board = Switchboard(Server())
    session = board.connect()

    in_threads([session.close] * 8)

    assert session.handle.closings == 1
    assert board.outcomes() == [Outcome.SUCCEEDED]


class TestWrongMethods:
    """Asynchronous methods of a recogniser's session raise an error with their names."""

    @pytest.mark.parametrize("method", ["send_audio", "finish", "set_keywords", "close"])
    def test_a_coroutine(self, method: str) -> None:
        """The `TypeError` names provider and method, and the coroutine is closed."""

        async def wrong(*_: object) -> None:
            pass

        inner = Mock(spec=FakeSession())
        setattr(inner, method, wrong)
        recogniser = Mock(spec=stt.Provider)
        recogniser.start_stream.return_value = inner
        session = STTFallback(recogniser, "north").start_stream(stt.StreamConfig())

        arguments = {"send_audio": (b"",), "set_keywords": ((),)}.get(method, ())
        with pytest.raises(TypeError, match=rf"{method}\(\) of (provider )?'north' must be sync"):
            getattr(session, method)(*arguments)


class TestInterruptions:
    """Interruptions by the caller's framework are raised, at any place."""

    def test_while_the_handle_is_closed(self) -> None:
        """An interruption in the handle's `close()` is raised, also after another exception."""

        class Stuck(Line):
            def close(self) -> None:
                raise TimeLimitError

        board = Switchboard(Server(), interrupt_on=(TimeLimitError,))

        with pytest.raises(TimeLimitError), board.group.session(lambda _: Stuck()):
            raise KeyError

    def test_a_type_that_only_fallback_on_names(self) -> None:
        """An exception outside `Exception` that does not count settles the call as ignored."""
        board = Switchboard(Server(), fallback_on=(Exception, Panic))

        def panic(_line: Line) -> NoReturn:
            raise Panic

        with board.connect() as session, pytest.raises(Panic):
            session.execute(panic)

        assert board.outcomes() == [Outcome.IGNORED]

    def test_a_close_that_is_interrupted_before_it_begins(self) -> None:
        """If `close()` is interrupted before it begins, the next one closes the handle, once."""
        board = Switchboard(Server())
        session = board.connect()
        opened = session._opened
        context, opened._context = opened._context, Interrupted()  # type: ignore[assignment]

        with pytest.raises(KeyboardInterrupt):
            session.close()
        opened._context = context
        assert repr(session) == "<Session provider='0' open>"
        session.close()
        session.close()

        assert session.handle.closings == 1


class Interrupted:
    """A context in which the thread is interrupted."""

    def run(self, *_: object) -> NoReturn:
        """Raise."""
        raise KeyboardInterrupt


class TimeLimitError(Exception):
    """The time limit of a task queue."""


class RefusedError(ConnectionError):
    """A refused connection, which can be weakly referenced."""

    def __init__(self, alive: "weakref.WeakSet[RefusedError]") -> None:
        """Add this error to the existing ones."""
        super().__init__()
        alive.add(self)


class Panic(BaseException):
    """A crash of an extension module."""


def test_a_failed_opening_frees_its_exceptions() -> None:
    """Exceptions of a failed opening are freed without a garbage collection."""

    def listen(attempt: Attempt) -> None:
        if attempt.outcome is Outcome.SKIPPED:
            raise TimeLimitError

    config = FallbackConfig(on_attempt=listen, interrupt_on=(TimeLimitError,))
    group = FallbackGroup(Server(), "0", config)
    group.add_fallback("1", Server())
    group.breakers["1"].isolate()
    alive: weakref.WeakSet[RefusedError] = weakref.WeakSet()

    def connect(_server: Server) -> NoReturn:
        raise RefusedError(alive)

    gc.disable()
    try:
        with pytest.raises(TimeLimitError):
            group.session(connect)
        assert len(alive) == 0
    finally:
        gc.enable()
