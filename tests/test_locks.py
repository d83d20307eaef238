"""No lock is held while foreign code runs, and a healthy call takes none."""

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typing_extensions import override

from helpers import fail, in_thread, interrupt, refuse, succeed, trip
from resilience import (
    AllFailedError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    State,
    StateChange,
)
from resilience.testing import ManualClock

RESET_TIMEOUT = 10.0


class Foreign:
    """Foreign code in one place of a breaker, which uses the breaker in another thread."""

    def __init__(self, place: str) -> None:
        """Do nothing yet, in one of the places."""
        self.clock = ManualClock()
        self.visits = 0
        self._is_active = False
        self._place = place
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(
                max_failures=1,
                half_open_max=1,
                reset_timeout=RESET_TIMEOUT,
                failure_on=self._counts,
                retry_after=self._wait,
                on_state_change=lambda _: self.visit("on_state_change"),
                clock=self._read,
            )
        )

    def _counts(self, _: Exception) -> bool:
        self.visit("failure_on")
        return True

    def _wait(self, _: Exception) -> None:
        self.visit("retry_after")

    def _read(self) -> float:
        self.visit("clock")
        return self.clock()

    def visit(self, place: str) -> None:
        """Use the breaker in another thread, if this is the place."""
        if self._is_active and place == self._place:
            self._is_active = False
            self.visits += 1
            in_thread(self.breaker.reset)
            in_thread(lambda: fail(self.breaker))
            in_thread(self.breaker.reset)

    def prepare(self, state: str) -> None:
        """Bring the breaker into a state."""
        if state != "closed":
            fail(self.breaker)
        if state == "due":
            self.clock.advance(RESET_TIMEOUT)

    def act(self, action: str) -> None:
        """Do something with the breaker."""
        self._is_active = True
        with contextlib.suppress(ConnectionError, CircuitOpenError):
            if action == "succeed":
                self.breaker.execute(self.visit, "fn")
            elif action == "fail":
                with self.breaker.guard():
                    self.visit("fn")
                    raise ConnectionError
            elif action == "iterate":
                list(self.breaker(self._iterate)())
            elif action == "state":
                assert self.breaker.state in State
            elif action == "reset":
                self.breaker.reset()
            else:
                self.breaker.isolate()

    def _iterate(self) -> Iterator[int]:
        self.visit("fn")
        yield 1


class ForeignHandler(logging.Handler):
    """A log handler that is foreign code."""

    def __init__(self, foreign: Foreign) -> None:
        """Handle the records of a breaker."""
        super().__init__()
        self._foreign = foreign

    @override
    def handle(self, record: logging.LogRecord) -> bool:
        """Take no lock: another thread logs while this one handles a record."""
        self._foreign.visit("log handler")
        return True


class TestBreaker:
    """The lock of a breaker is never held while foreign code runs."""

    @pytest.mark.parametrize(
        ("place", "state", "action"),
        [
            ("fn", "closed", "succeed"),
            ("fn", "closed", "fail"),
            ("fn", "closed", "iterate"),
            ("fn", "due", "succeed"),
            ("fn", "due", "fail"),
            ("fn", "due", "iterate"),
            ("failure_on", "closed", "fail"),
            ("failure_on", "due", "fail"),
            ("retry_after", "closed", "fail"),
            ("retry_after", "due", "fail"),
            ("on_state_change", "closed", "fail"),
            ("on_state_change", "closed", "isolate"),
            ("on_state_change", "open", "reset"),
            ("on_state_change", "due", "succeed"),
            ("on_state_change", "due", "fail"),
            ("log handler", "closed", "fail"),
            ("log handler", "closed", "isolate"),
            ("log handler", "closed", "reset"),
            ("log handler", "due", "succeed"),
            ("log handler", "due", "fail"),
            ("clock", "closed", "fail"),
            ("clock", "open", "succeed"),
            ("clock", "open", "state"),
            ("clock", "due", "succeed"),
            ("clock", "due", "fail"),
            ("clock", "due", "state"),
        ],
    )
    def test_is_free(
        self, caplog: pytest.LogCaptureFixture, place: str, state: str, action: str
    ) -> None:
        """Other threads can use the breaker while fn, a hook, a listener or the clock runs."""
        foreign = Foreign(place)
        foreign.prepare(state)
        handler = ForeignHandler(foreign)
        logger = logging.getLogger("resilience")
        caplog.set_level(logging.DEBUG, logger.name)

        logger.addHandler(handler)
        try:
            foreign.act(action)
        finally:
            logger.removeHandler(handler)

        assert foreign.visits == 1

    def test_healthy_path_takes_no_lock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A closed breaker with a count of 0 admits calls and records successes without a lock."""
        lock = threading.RLock()
        monkeypatch.setattr("resilience._breaker.events.RLock", lambda: lock)
        breaker = CircuitBreaker()

        def use() -> State:
            succeed(breaker)
            breaker(len)("decorated")
            with breaker.guard():
                return breaker.state

        with lock:
            in_thread(use)


class Look:
    """Foreign code that takes a lock in another thread, and fails if that thread is blocked."""

    def __init__(self) -> None:
        """Start without an action that takes the lock."""
        self.calls = 0
        self.needs_the_lock: list[Callable[[], object]] = []

    def __call__(self, *_: object) -> bool:
        """Do the action that takes the lock in another thread, and return True."""
        in_thread(self.needs_the_lock[0])
        self.calls += 1
        return True


class _Owner:
    """An iterable whose closing is foreign code."""

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close

    def __iter__(self) -> Iterator[str]:
        return iter("ab")


class TestGroup:
    """A group holds no lock while foreign code runs, and a healthy call takes none."""

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
        ids=["succeeded", "failed", "ignored", "cancelled", "closed", "skipped"],
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

        assert look.calls == 1

    def test_predicate(self) -> None:
        """The predicate that decides whether the next provider is tried may do the same."""
        look = Look()
        group = FallbackGroup("text", "0", FallbackConfig(fallback_on=look))
        look.needs_the_lock.append(group.breakers["0"].reset)

        with pytest.raises(AllFailedError):
            group.execute(refuse)

        assert look.calls == 1

    def test_log_handler(self) -> None:
        """The handlers of log lines may do the same."""
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

        assert look.calls == 1

    def test_close(self) -> None:
        """While a provider closes its stream, another thread may close the stream, too."""
        look = Look()
        stream = FallbackGroup(_Owner(look), "0").stream(lambda owner: owner)
        look.needs_the_lock.append(stream.close)
        next(stream)

        stream.close()

        assert look.calls == 1

    def test_healthy_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Healthy calls and streams work while another thread holds the breaker's lock."""
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
            in_thread(work)

        assert lengths == [1] * 6


def drop_in_cycle(group: FallbackGroup[str]) -> None:
    """Open a stream, and drop it in a cycle of references."""
    ring: list[object] = [group.stream(iter)]
    ring.append(ring)


class DroppedStream:
    """A probe that is a stream in a reference cycle, which is collected under the breaker's lock.

    The lock is held while a change of state is made, so the collection runs there: when a call
    from before the opening fails, too late to change anything itself.
    """

    def __init__(self, clock: ManualClock) -> None:
        """Start the probe, and drop it."""
        self.changes: list[StateChange] = []
        self.errors: list[AssertionError] = []
        self.on_closed: Callable[[], object] = lambda: None
        config = CircuitBreakerConfig(
            max_failures=1,
            half_open_max=1,
            reset_timeout=RESET_TIMEOUT,
            on_state_change=self._listen,
            clock=clock,
        )
        group = FallbackGroup("model", "model", FallbackConfig(circuit_breaker=config))
        self.breaker = group.breakers["model"]
        self._late = self.breaker.guard()
        self._late.__enter__()
        trip(self.breaker)
        clock.advance(RESET_TIMEOUT)
        drop_in_cycle(group)

    def _listen(self, change: StateChange) -> None:
        self.changes.append(change)
        if change.new is State.CLOSED:
            try:
                self.on_closed()
            except AssertionError as error:
                self.errors.append(error)

    def end_late_call(self) -> None:
        """Let the call that began before the opening fail."""
        self._late.__exit__(ConnectionError, ConnectionError(), None)


def _collect(**fields: Any) -> StateChange:  # noqa: ANN401
    """Collect garbage whenever a breaker makes a change of state."""
    gc.collect()
    return StateChange(**fields)


@pytest.fixture
def dropped(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[DroppedStream]:
    """Return a stream that is collected as soon as the breaker makes a change of state."""
    gc.disable()
    stream = DroppedStream(clock)
    monkeypatch.setattr("resilience._breaker.breaker.StateChange", _collect)
    yield stream
    gc.enable()


class TestCollection:
    """A garbage collection may run while the lock is held, and end a stream of the breaker."""

    def test_stream_ends(self, dropped: DroppedStream) -> None:
        """The stream that is collected has succeeded, and nothing is blocked."""
        before = dropped.breaker.state

        in_thread(dropped.end_late_call)

        assert before is State.HALF_OPEN
        assert dropped.breaker.state is State.CLOSED
        assert [change.new for change in dropped.changes] == [
            State.OPEN,
            State.HALF_OPEN,
            State.CLOSED,
        ]

    def test_lock_is_free(self, dropped: DroppedStream) -> None:
        """The change that the end of the stream causes is not reported under the lock."""
        dropped.on_closed = lambda: in_thread(dropped.breaker.reset)

        dropped.end_late_call()

        assert [change.new for change in dropped.changes][-1] is State.CLOSED
        assert dropped.errors == []

    @pytest.mark.parametrize("action", ["isolate", "reset"])
    def test_during_an_action_of_an_operator(
        self, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, action: str
    ) -> None:
        """A probe that a collection ends during `isolate()` or `reset()` changes nothing."""
        config = CircuitBreakerConfig(max_failures=1, half_open_max=1, clock=clock)
        breaker = CircuitBreaker(config)
        error = ConnectionError() if action == "reset" else None
        trip(breaker)
        clock.advance(30.0)

        class Garbage:
            def __init__(self) -> None:
                self.itself = self
                self.probe = breaker.guard()
                self.probe.__enter__()

            def __del__(self) -> None:
                self.probe.__exit__(None if error is None else type(error), error, None)

        gc.disable()
        try:
            Garbage()
            monkeypatch.setattr("resilience._breaker.breaker.StateChange", _collect)
            getattr(breaker, action)()
        finally:
            gc.enable()

        assert breaker.state is (State.CLOSED if action == "reset" else State.OPEN)
