"""Calls through a circuit breaker, and its states."""

import functools
import gc
import inspect
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeAlias, cast

import pytest

from resilience import (
    AttemptTimeoutError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    EmptyStreamError,
    State,
    StateChange,
)
from resilience.testing import ManualClock

RESET_TIMEOUT = 10.0

FailureOn: TypeAlias = (
    type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], object]
)


def fail(breaker: CircuitBreaker, error: BaseException) -> None:
    """Make a call that raises."""
    with pytest.raises(type(error)), breaker.guard():
        raise error


def succeed(breaker: CircuitBreaker) -> None:
    """Make a call that succeeds."""
    assert breaker.execute(lambda: "ok") == "ok"


def trip(breaker: CircuitBreaker) -> None:
    """Open a breaker by failures."""
    while breaker.state is not State.OPEN:
        fail(breaker, ConnectionError())


def is_admitted(breaker: CircuitBreaker) -> bool:
    """Tell whether a call is admitted; the call is neither a success nor a failure."""
    with pytest.raises((KeyboardInterrupt, CircuitOpenError)) as raised, breaker.guard():
        raise KeyboardInterrupt
    return raised.type is KeyboardInterrupt


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still."""
    return ManualClock(1000.0)


@pytest.fixture
def changes() -> list[StateChange]:
    """Return a list of the changes of state."""
    return []


@pytest.fixture
def breaker(clock: ManualClock, changes: list[StateChange]) -> CircuitBreaker:
    """Return a breaker that opens after 2 failures and closes after 2 successful probes."""
    return CircuitBreaker(
        CircuitBreakerConfig(
            name="model",
            max_failures=2,
            reset_timeout=RESET_TIMEOUT,
            half_open_max=2,
            clock=clock,
            on_state_change=changes.append,
        )
    )


def with_filter(failure_on: FailureOn) -> CircuitBreaker:
    """Return a breaker that opens at the first failure that counts."""
    counts = cast("Callable[[Exception], bool]", failure_on)
    return CircuitBreaker(CircuitBreakerConfig(max_failures=1, failure_on=counts))


def with_hook(
    clock: ManualClock, hook: Callable[[Exception], float | timedelta | None]
) -> CircuitBreaker:
    """Return a breaker with a `retry_after` hook."""
    return CircuitBreaker(
        CircuitBreakerConfig(
            max_failures=3,
            reset_timeout=RESET_TIMEOUT,
            half_open_max=1,
            retry_after=hook,
            clock=clock,
        )
    )


class OwnTimeout(BaseException):
    """An exception that is no `Exception`, like the timeouts of some libraries."""


class TestExecute:
    """`execute(fn, /, *args, **kwargs)`."""

    def test_result(self, breaker: CircuitBreaker) -> None:
        """`execute` returns what fn returns."""
        result = object()

        assert breaker.execute(lambda: result) is result

    def test_arguments(self, breaker: CircuitBreaker) -> None:
        """All arguments are passed on, whatever their names."""

        def call(*args: object, **kwargs: object) -> object:
            return args, kwargs

        result = breaker.execute(call, 1, [2], fn=3, self=4, args=5)

        assert result == ((1, [2]), {"fn": 3, "self": 4, "args": 5})

    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), StopIteration(3)])
    def test_error(self, breaker: CircuitBreaker, error: BaseException) -> None:
        """What fn raises is raised to the caller as it is."""

        def call() -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            breaker.execute(call)

        assert raised.value is error
        assert raised.value.__context__ is None

    def test_open(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """An open breaker raises `CircuitOpenError` without calling fn."""
        trip(breaker)
        clock.advance(4)

        with pytest.raises(CircuitOpenError) as raised:
            breaker.execute(pytest.fail, "fn was called")

        assert raised.value.name == "model"
        assert raised.value.retry_after == 6
        assert str(raised.value).startswith("circuit 'model' is open, retry in 6 s")

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.254, "0.25"), (29.998, "30"), (3599.5, "3599.5"), (1e6, "1000000")]
    )
    def test_seconds_in_the_message(self, seconds: float, text: str) -> None:
        """The message gives seconds without exponents, rounded to hundredths."""
        error = CircuitOpenError("model", seconds)

        assert str(error) == f"circuit 'model' is open, retry in {text} s"

    def test_no_name_in_the_message(self) -> None:
        """The message for a breaker without a name says so."""
        error = CircuitOpenError("", 6.0)

        assert str(error) == "circuit (unnamed) is open, retry in 6 s"

    def test_coroutine_function(self, breaker: CircuitBreaker) -> None:
        """A coroutine function raises `TypeError`, and its coroutine is closed."""

        async def call() -> None:
            """Do nothing."""

        with pytest.raises(TypeError, match=r"fn .*\.call must be synchronous"):
            _ = breaker.execute(call)
        gc.collect()  # a coroutine that was never closed would warn here

    def test_coroutine_counts_neither_way(
        self, breaker: CircuitBreaker, clock: ManualClock
    ) -> None:
        """A coroutine function is neither a success nor a failure, and releases its slot."""

        async def call() -> None:
            """Do nothing."""

        fail(breaker, ConnectionError())
        for _ in range(3):
            with pytest.raises(TypeError):
                _ = breaker.execute(call)
        closed = breaker.state
        fail(breaker, ConnectionError())
        opened = breaker.state
        clock.advance(RESET_TIMEOUT)
        for _ in range(3):
            with pytest.raises(TypeError):
                _ = breaker.execute(call)

        assert closed is State.CLOSED
        assert opened is State.OPEN
        assert breaker.state is State.HALF_OPEN
        assert is_admitted(breaker)

    def test_nested(self, breaker: CircuitBreaker) -> None:
        """A protected function may use the same breaker."""
        assert breaker.execute(breaker.execute, lambda: 3) == 3


class TestStates:
    """Closed, open, half-open."""

    def test_begins_closed(self) -> None:
        """A new breaker is closed, and has the name of its settings."""
        breaker = CircuitBreaker(CircuitBreakerConfig(name="model"))

        assert breaker.state is State.CLOSED
        assert breaker.name == "model"

    def test_defaults(self, clock: ManualClock) -> None:
        """Without settings, 5 failures in a row open a breaker for 30 s."""
        breaker = CircuitBreaker(CircuitBreakerConfig(clock=clock))
        for _ in range(4):
            fail(breaker, ConnectionError())
        before = breaker.state
        fail(breaker, ConnectionError())

        with pytest.raises(CircuitOpenError) as raised:
            breaker.execute(lambda: None)

        assert before is State.CLOSED
        assert raised.value.retry_after == 30

    def test_no_settings(self) -> None:
        """The settings may be omitted."""
        breaker = CircuitBreaker()

        trip(breaker)

        assert breaker.name == ""
        assert not is_admitted(breaker)

    def test_wrong_settings(self) -> None:
        """Settings of another type are refused."""
        with pytest.raises(TypeError, match="config must be a CircuitBreakerConfig, got 5"):
            CircuitBreaker(5)  # type: ignore[arg-type]

    def test_default_probes(self, clock: ManualClock) -> None:
        """Without settings, 3 probes must succeed."""
        breaker = CircuitBreaker(CircuitBreakerConfig(clock=clock))
        trip(breaker)
        clock.advance(30)
        states = []
        for _ in range(3):
            succeed(breaker)
            states.append(breaker.state)

        assert states == [State.HALF_OPEN, State.HALF_OPEN, State.CLOSED]

    def test_failures_open(self, breaker: CircuitBreaker) -> None:
        """At `max_failures` the breaker opens."""
        fail(breaker, ConnectionError())
        before = breaker.state

        fail(breaker, ConnectionError())

        assert before is State.CLOSED
        assert breaker.state is State.OPEN

    def test_success_clears(self, breaker: CircuitBreaker) -> None:
        """A success sets the count of consecutive failures to 0."""
        for _ in range(5):
            fail(breaker, ConnectionError())
            succeed(breaker)

        assert breaker.state is State.CLOSED

    def test_open_for_reset_timeout(
        self, breaker: CircuitBreaker, clock: ManualClock, changes: list[StateChange]
    ) -> None:
        """After `reset_timeout` the state reads half-open; only the next call makes the change."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT - 0.25)
        before = breaker.state, is_admitted(breaker)
        clock.advance(0.25)
        after = breaker.state
        known = len(changes)

        admitted = is_admitted(breaker)

        assert before == (State.OPEN, False)
        assert after is State.HALF_OPEN
        assert known == 1
        assert admitted
        assert [(change.old, change.new) for change in changes[1:]] == [
            (State.OPEN, State.HALF_OPEN)
        ]

    def test_time_runs_from_opening(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """`reset_timeout` runs from the opening, and rejected calls do not lengthen it."""
        trip(breaker)
        for _ in range(10):
            clock.advance(RESET_TIMEOUT / 10)
            before = breaker.state
            if before is State.OPEN:
                assert not is_admitted(breaker)

        assert breaker.state is State.HALF_OPEN

    def test_probes_close(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """It closes when `half_open_max` probes have succeeded, not merely started."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        with breaker.guard(), breaker.guard():
            started = breaker.state
        ended = breaker.state

        assert started is State.HALF_OPEN
        assert ended is State.CLOSED

    def test_no_more_probes(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """When half-open, at most `half_open_max` calls are admitted, the rest are rejected."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        with breaker.guard(), breaker.guard():
            clock.advance(3)
            with pytest.raises(CircuitOpenError) as raised:
                breaker.execute(pytest.fail, "a third probe")

        assert raised.value.retry_after == 7

    def test_successful_probes_keep_their_slots(
        self, breaker: CircuitBreaker, clock: ManualClock
    ) -> None:
        """Probes that succeeded are among the `half_open_max` that are admitted."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        with breaker.guard():
            succeed(breaker)
            third = is_admitted(breaker)

        assert not third
        assert breaker.state is State.CLOSED

    @pytest.mark.parametrize("successes", [0, 1])
    def test_probe_fails(self, breaker: CircuitBreaker, clock: ManualClock, successes: int) -> None:
        """The first failed probe opens the breaker again for a new period."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT + 5)
        for _ in range(successes):
            succeed(breaker)
        fail(breaker, ConnectionError())
        states = [breaker.state]
        clock.advance(RESET_TIMEOUT - 0.25)
        states.append(breaker.state)
        clock.advance(0.25)
        states.append(breaker.state)

        succeed(breaker)
        states.append(breaker.state)

        assert states == [State.OPEN, State.OPEN, State.HALF_OPEN, State.HALF_OPEN]

    def test_closes_with_no_failures(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """A breaker that closed again counts from 0."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        succeed(breaker)
        succeed(breaker)

        fail(breaker, ConnectionError())

        assert breaker.state is State.CLOSED

    def test_events(
        self, breaker: CircuitBreaker, clock: ManualClock, changes: list[StateChange]
    ) -> None:
        """Each change is reported with name, old and new state, and the failure that caused it."""
        errors = [ConnectionError("first"), ConnectionError("second"), ConnectionError("probe")]
        fail(breaker, errors[0])
        fail(breaker, errors[1])
        clock.advance(RESET_TIMEOUT)
        fail(breaker, errors[2])
        clock.advance(RESET_TIMEOUT)
        succeed(breaker)
        succeed(breaker)

        seen = [(change.name, change.old, change.new, change.cause) for change in changes]

        assert seen == [
            ("model", State.CLOSED, State.OPEN, errors[1]),
            ("model", State.OPEN, State.HALF_OPEN, None),
            ("model", State.HALF_OPEN, State.OPEN, errors[2]),
            ("model", State.OPEN, State.HALF_OPEN, None),
            ("model", State.HALF_OPEN, State.CLOSED, None),
        ]

    def test_repr(self, breaker: CircuitBreaker) -> None:
        """A breaker shows its name and state."""
        assert repr(breaker) == "<CircuitBreaker 'model' closed>"

    def test_state_values(self) -> None:
        """`str(state)` is the value."""
        assert [str(state) for state in State] == ["closed", "open", "half-open"]
        assert [state.value for state in State] == ["closed", "open", "half-open"]
        assert f"{State.HALF_OPEN}" == "half-open"


class TestReason:
    """`CircuitOpenError.reason`: the failure that opened the breaker."""

    def rejection(self, breaker: CircuitBreaker) -> CircuitOpenError:
        """Make a call that is rejected."""
        with pytest.raises(CircuitOpenError) as raised:
            breaker.execute(pytest.fail, "fn was called")
        return raised.value

    def test_failure(self, breaker: CircuitBreaker) -> None:
        """It is type and message of the last failure, as text, and is part of the message."""
        fail(breaker, ConnectionError("first"))
        fail(breaker, TimeoutError("second"))

        error = self.rejection(breaker)

        assert error.reason == "TimeoutError: second"
        assert str(error) == (
            "circuit 'model' is open, retry in 10 s (last failure: TimeoutError: second)"
        )

    def test_probes(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """It stays while probes are under way, and is replaced when one of them fails."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        with breaker.guard(), breaker.guard():
            probing = self.rejection(breaker).reason
            fail_probe = breaker.guard()
            clock.advance(RESET_TIMEOUT)
            fail_probe.__enter__()
            fail_probe.__exit__(OSError, OSError("again"), None)

        assert probing == "ConnectionError"
        assert self.rejection(breaker).reason == "OSError: again"

    def test_operator(self, breaker: CircuitBreaker) -> None:
        """A breaker that is isolated has none, also if it was open before."""
        trip(breaker)
        breaker.isolate()

        assert self.rejection(breaker).reason is None

    def test_retry_after(self, clock: ManualClock) -> None:
        """A single failure that opens the breaker by `retry_after` is the reason, too."""
        breaker = with_hook(clock, lambda _: 25.0)
        fail(breaker, ConnectionError("busy"))

        assert self.rejection(breaker).reason == "ConnectionError: busy"

    def test_unreadable(self, breaker: CircuitBreaker) -> None:
        """An error whose text cannot be read is named by its type."""

        class UnreadableError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        for _ in range(2):
            fail(breaker, UnreadableError())

        assert (self.rejection(breaker).reason or "").startswith("UnreadableError (")


class TestReset:
    """`reset()` closes it, clears everything, and forgets the calls under way."""

    def test_open(self, breaker: CircuitBreaker, changes: list[StateChange]) -> None:
        """An open breaker is closed, and reports it."""
        trip(breaker)

        breaker.reset()

        assert breaker.state is State.CLOSED
        assert changes[1:] == [StateChange(name="model", old=State.OPEN, new=State.CLOSED)]

    def test_half_open(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """A half-open breaker is closed."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        succeed(breaker)

        breaker.reset()

        assert breaker.state is State.CLOSED

    def test_count(self, breaker: CircuitBreaker, changes: list[StateChange]) -> None:
        """A closed breaker forgets its failures, and reports no change."""
        fail(breaker, ConnectionError())

        breaker.reset()
        fail(breaker, ConnectionError())

        assert breaker.state is State.CLOSED
        assert changes == []

    def test_calls_under_way(self, breaker: CircuitBreaker) -> None:
        """Calls that were admitted before the reset are not counted after it."""

        def call() -> None:
            breaker.reset()
            raise ConnectionError

        for _ in range(3):
            with pytest.raises(ConnectionError):
                breaker.execute(call)

        assert breaker.state is State.CLOSED


class TestIsolate:
    """`isolate()` holds it open until `reset()`."""

    def test_time_does_not_end_it(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """An isolated breaker stays open however much time passes."""
        breaker.isolate()
        clock.advance(1e15)

        assert breaker.state is State.OPEN
        assert not is_admitted(breaker)

    def test_wait_is_unknown(self, breaker: CircuitBreaker) -> None:
        """The error of an isolated breaker has no `retry_after`."""
        breaker.isolate()

        with pytest.raises(CircuitOpenError, match="'model' is open until it is reset") as raised:
            breaker.execute(lambda: None)

        assert raised.value.retry_after is None

    def test_reset_ends_it(self, breaker: CircuitBreaker) -> None:
        """A reset closes an isolated breaker."""
        breaker.isolate()

        breaker.reset()

        assert breaker.state is State.CLOSED
        succeed(breaker)

    def test_already_open(
        self, breaker: CircuitBreaker, clock: ManualClock, changes: list[StateChange]
    ) -> None:
        """A breaker that is open, or due for a probe, is held open without an event."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        breaker.isolate()

        assert breaker.state is State.OPEN
        assert len(changes) == 1

    def test_half_open(
        self, breaker: CircuitBreaker, clock: ManualClock, changes: list[StateChange]
    ) -> None:
        """The probes of a half-open breaker cannot close it once it is isolated."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        with breaker.guard(), breaker.guard():
            breaker.isolate()

        assert breaker.state is State.OPEN
        assert changes[-1] == StateChange(name="model", old=State.HALF_OPEN, new=State.OPEN)


class TestGuard:
    """`guard()` admits on entry and records on exit."""

    def test_open(self, breaker: CircuitBreaker) -> None:
        """The body of a guard that is not admitted does not run."""
        trip(breaker)

        with pytest.raises(CircuitOpenError), breaker.guard():
            pytest.fail("the body ran")

    def test_admits_on_entry(self, breaker: CircuitBreaker) -> None:
        """A guard that was made while the breaker was closed is rejected if it has opened since."""
        guard = breaker.guard()
        trip(breaker)

        with pytest.raises(CircuitOpenError), guard:
            pytest.fail("the body ran")

    def test_records_on_exit(self, breaker: CircuitBreaker) -> None:
        """The end of the body is a success, an exception in it a failure."""
        fail(breaker, ConnectionError())
        with breaker.guard():
            pass
        fail(breaker, ConnectionError())
        before = breaker.state
        fail(breaker, ConnectionError())

        assert before is State.CLOSED
        assert breaker.state is State.OPEN

    @pytest.mark.parametrize("error", [ValueError("no"), StopIteration(1), GeneratorExit()])
    def test_error(self, breaker: CircuitBreaker, error: BaseException) -> None:
        """What the body raises leaves the `with` statement as it is."""
        with pytest.raises(type(error)) as raised, breaker.guard():
            raise error

        assert raised.value is error

    def test_dropped(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """A guard that is entered and dropped releases its slot."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        for _ in range(3):
            breaker.guard().__enter__()
            gc.collect()

        assert is_admitted(breaker)

    def test_entered_and_left_by_two(self, breaker: CircuitBreaker) -> None:
        """A guard is one call: leaving it again records nothing."""
        guard = breaker.guard()
        with guard:
            pass

        for _ in range(3):
            guard.__exit__(ConnectionError, ConnectionError(), None)

        assert breaker.state is State.CLOSED

    def test_no_decorator(self, breaker: CircuitBreaker) -> None:
        """A guard cannot be used as a decorator: the breaker itself is one."""
        with pytest.raises(TypeError):
            breaker.guard()(lambda: None)  # type: ignore[operator]


class TestDecorator:
    """`@breaker`."""

    def test_arguments_and_result(self, breaker: CircuitBreaker) -> None:
        """Arguments and result are those of the function."""

        @breaker
        def add(one: int, *, fn: int, self: int) -> int:
            return one + fn + self

        assert add(1, fn=2, self=3) == 6

    def test_metadata(self, breaker: CircuitBreaker) -> None:
        """The decorated function has name, docstring and signature of the function."""

        def ask(question: str) -> str:
            """Ask."""
            return question

        decorated = breaker(ask)

        assert decorated.__name__ == "ask"
        assert decorated.__doc__ == "Ask."
        assert inspect.signature(decorated) == inspect.signature(ask)

    def test_every_call(self, breaker: CircuitBreaker) -> None:
        """Each call goes through the breaker."""
        calls: list[int] = []

        @breaker
        def call() -> None:
            calls.append(1)
            raise ConnectionError

        for _ in range(2):
            with pytest.raises(ConnectionError):
                call()

        with pytest.raises(CircuitOpenError):
            call()

        assert len(calls) == 2

    def test_method(self, breaker: CircuitBreaker) -> None:
        """A method can be decorated in its class."""

        class Client:
            def __init__(self) -> None:
                self.answer = 42

            @breaker
            def ask(self, add: int) -> int:
                return self.answer + add

        assert Client().ask(1) == 43

    def test_callable_object(self, breaker: CircuitBreaker) -> None:
        """Any callable can be decorated."""
        assert breaker(functools.partial(int, base=2))("101") == 5

    @pytest.mark.parametrize("fn", [None, 3, "fn"])
    def test_no_function(self, breaker: CircuitBreaker, fn: object) -> None:
        """An object that cannot be called is refused."""
        with pytest.raises(TypeError, match=f"fn must be callable, got {fn!r}"):
            breaker(fn)  # type: ignore[call-overload]


async def coroutine_function() -> None:
    """Do nothing."""


async def async_generator_function() -> AsyncGenerator[int, None]:
    """Yield something."""
    yield 1


class AsyncCallable:
    """An object that is called like a coroutine function."""

    async def __call__(self) -> None:
        """Do nothing."""

    async def method(self) -> None:
        """Do nothing."""


class AsyncIterable:
    """An object that is called like an asynchronous generator function."""

    async def __call__(self) -> AsyncGenerator[int, None]:
        """Yield something."""
        yield 1


@pytest.mark.parametrize(
    "fn",
    [
        coroutine_function,
        async_generator_function,
        functools.partial(coroutine_function),
        functools.partial(async_generator_function),
        AsyncCallable(),
        AsyncCallable().method,
        AsyncIterable(),
        staticmethod(coroutine_function),
        staticmethod(async_generator_function),
    ],
    ids=[
        "coroutine function",
        "async generator function",
        "partial coroutine function",
        "partial async generator function",
        "callable object",
        "method",
        "async generator object",
        "static coroutine method",
        "static async generator method",
    ],
)
def test_async_functions_are_refused(breaker: CircuitBreaker, fn: Callable[[], object]) -> None:
    """Decorating an `async def` or async generator function raises `TypeError` at once."""
    with pytest.raises(TypeError, match="fn must be synchronous"):
        breaker(fn)


class TestGeneratorFunction:
    """Decorating a generator function guards the whole iteration."""

    def test_items_and_result(self, breaker: CircuitBreaker) -> None:
        """Items, what is sent, and the result pass through."""

        @breaker
        def echo(first: str) -> Generator[str, str, int]:
            sent = yield first
            sent = yield sent.upper()
            return len(sent)

        generator = echo("hello")
        items = [next(generator), generator.send("a")]
        with pytest.raises(StopIteration) as ended:
            generator.send("four")

        assert items == ["hello", "A"]
        assert ended.value.value == 4
        assert inspect.isgeneratorfunction(echo)

    def test_admitted_at_first_next(self, breaker: CircuitBreaker) -> None:
        """The call is admitted at the first `next()`."""

        @breaker
        def numbers() -> Iterator[int]:
            pytest.fail("the body ran")
            yield 1

        generator = numbers()
        trip(breaker)

        with pytest.raises(CircuitOpenError):
            next(generator)

    def test_fails_in_the_middle(self, breaker: CircuitBreaker) -> None:
        """An iteration that raises has failed, however many items it had."""

        @breaker
        def numbers() -> Iterator[int]:
            yield 1
            yield 2
            raise ConnectionError

        for _ in range(2):
            with pytest.raises(ConnectionError):
                list(numbers())

        assert breaker.state is State.OPEN

    def test_succeeds_at_the_end(self, breaker: CircuitBreaker) -> None:
        """The iteration succeeds at its end, and not at each item."""

        @breaker
        def numbers() -> Iterator[int]:
            yield 1

        fail(breaker, ConnectionError())
        generator = numbers()
        next(generator)
        fail(breaker, ConnectionError())
        opened = breaker.state
        breaker.reset()
        fail(breaker, ConnectionError())
        list(numbers())
        fail(breaker, ConnectionError())

        assert opened is State.OPEN
        assert breaker.state is State.CLOSED

    def test_closed_early(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """An iteration that is left after an item has succeeded, and is closed."""
        closed: list[int] = []
        states: list[State] = []

        @breaker
        def numbers() -> Iterator[int]:
            try:
                yield 1
                yield 2
            finally:
                closed.append(1)

        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        for _ in range(2):
            states.append(breaker.state)
            generator = numbers()
            next(generator)
            del generator
            gc.collect()

        assert len(closed) == 2
        assert states == [State.HALF_OPEN] * 2
        assert breaker.state is State.CLOSED

    def test_fails_when_closed(self, breaker: CircuitBreaker) -> None:
        """An iteration that raises while it is closed has failed."""

        @breaker
        def numbers() -> Generator[int, None, None]:
            try:
                yield 1
            finally:
                raise ConnectionError

        for _ in range(2):
            generator = numbers()
            next(generator)
            with pytest.raises(ConnectionError):
                generator.close()

        assert breaker.state is State.OPEN

    def test_never_started(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """An iteration that was never started has taken no slot."""

        @breaker
        def numbers() -> Iterator[int]:
            yield 1

        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        generators = [numbers() for _ in range(5)]

        assert is_admitted(breaker)
        assert len(generators) == 5

    def test_partial(self, breaker: CircuitBreaker) -> None:
        """A `partial` of a generator function is guarded like the function."""

        def numbers(last: int) -> Iterator[int]:
            yield last
            raise ConnectionError

        for _ in range(2):
            with pytest.raises(ConnectionError):
                list(breaker(functools.partial(numbers, 3))())

        assert breaker.state is State.OPEN

    def test_callable_object(self, breaker: CircuitBreaker) -> None:
        """An object whose calls are generators is guarded like a generator function."""

        class Numbers:
            def __call__(self) -> Iterator[int]:
                yield 1
                raise ConnectionError

        for _ in range(2):
            with pytest.raises(ConnectionError):
                list(breaker(Numbers())())

        assert breaker.state is State.OPEN

    def test_static_method(self, breaker: CircuitBreaker) -> None:
        """A static method that is a generator function is guarded like any other."""

        class Client:
            @breaker
            @staticmethod
            def numbers() -> Iterator[int]:
                yield 1
                raise ConnectionError

        for _ in range(2):
            with pytest.raises(ConnectionError):
                list(Client.numbers())

        assert breaker.state is State.OPEN

    def test_wrapper(self, breaker: CircuitBreaker) -> None:
        """A function that wraps a generator function and returns a generator raises `TypeError`."""

        def numbers() -> Iterator[int]:
            yield 1

        @functools.wraps(numbers)
        def wrapper() -> Iterator[int]:
            return numbers()

        with pytest.raises(TypeError, match="decorate the generator function itself"):
            breaker(wrapper)()

    def test_context_manager(self, breaker: CircuitBreaker) -> None:
        """So does a function that `contextmanager` has made of a generator function."""

        @breaker
        @contextmanager
        def connected() -> Iterator[int]:
            yield 1

        with pytest.raises(TypeError, match=r"connected wraps a generator function.*use guard\(\)"):
            connected()

    def test_wrapper_that_iterates(self, breaker: CircuitBreaker) -> None:
        """A wrapper that returns something else is guarded like any function."""

        def numbers() -> Iterator[int]:
            yield 1

        @functools.wraps(numbers)
        def wrapper() -> list[int]:
            return list(numbers())

        assert breaker(wrapper)() == [1]


class TestFailureOn:
    """`failure_on`: the exceptions that count, as a type, a tuple of types, or a predicate."""

    @pytest.mark.parametrize(
        "failure_on",
        [
            ConnectionError,
            OSError,
            (TimeoutError, ConnectionError),
            (OSError,),
            lambda error: isinstance(error, ConnectionError),
            repr,
        ],
        ids=["type", "base", "tuple", "tuple of one", "predicate", "truthy"],
    )
    def test_counts(self, failure_on: FailureOn) -> None:
        """An exception that the filter includes counts."""
        breaker = with_filter(failure_on)

        fail(breaker, ConnectionRefusedError("refused"))

        assert breaker.state is State.OPEN

    @pytest.mark.parametrize(
        "failure_on",
        [
            ConnectionError,
            (TimeoutError, ConnectionError),
            (),
            lambda error: isinstance(error, ConnectionError),
            lambda _: None,
        ],
        ids=["type", "tuple", "empty tuple", "predicate", "falsy"],
    )
    def test_does_not_count(self, failure_on: FailureOn) -> None:
        """Any other exception leaves the breaker as it is."""
        breaker = with_filter(failure_on)

        fail(breaker, ValueError("wrong request"))

        assert breaker.state is State.CLOSED

    def test_uncounted_is_no_success(self) -> None:
        """An exception that does not count leaves the count as it is."""
        breaker = CircuitBreaker(CircuitBreakerConfig(max_failures=2, failure_on=ConnectionError))
        fail(breaker, ConnectionError())
        fail(breaker, ValueError())
        before = breaker.state

        fail(breaker, ConnectionError())

        assert before is State.CLOSED
        assert breaker.state is State.OPEN

    @pytest.mark.parametrize(
        "error", [KeyboardInterrupt(), SystemExit(), GeneratorExit(), BaseException()], ids=repr
    )
    def test_predicates_are_for_exceptions(self, error: BaseException) -> None:
        """A predicate is not called for what is no `Exception`, which does not count."""
        asked: list[Exception] = []

        def counts(error: Exception) -> bool:
            asked.append(error)
            return True

        breaker = with_filter(counts)

        fail(breaker, error)

        assert breaker.state is State.CLOSED
        assert asked == []

    @pytest.mark.parametrize("failure_on", [Exception, (Exception, OwnTimeout), OwnTimeout])
    def test_base_exceptions(self, failure_on: FailureOn) -> None:
        """An exception that is no `Exception` counts if its own type is named."""
        breaker = with_filter(failure_on)

        fail(breaker, OwnTimeout())

        assert breaker.state is (State.CLOSED if failure_on is Exception else State.OPEN)

    def test_predicate_is_asynchronous(self, caplog: pytest.LogCaptureFixture) -> None:
        """A predicate that returns a coroutine is logged, and the exception counts."""

        async def answer() -> bool:
            return False

        breaker = with_filter(lambda _: answer())

        fail(breaker, ConnectionError())
        gc.collect()  # a coroutine that was never closed would warn here

        assert breaker.state is State.OPEN
        assert caplog.records[0].getMessage().startswith("failure_on raised TypeError at ")

    def test_predicate_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """A predicate that raises is logged, and the exception counts."""

        def broken(error: Exception) -> bool:
            raise RuntimeError(error)

        breaker = with_filter(broken)

        fail(breaker, ConnectionError("refused"))

        assert breaker.state is State.OPEN
        assert caplog.records[0].getMessage().startswith("failure_on raised RuntimeError at ")
        assert caplog.records[0].levelno == logging.ERROR

    @pytest.mark.parametrize("error", [AttemptTimeoutError("model", 1.0), EmptyStreamError()])
    def test_own_errors(self, error: Exception) -> None:
        """Types always include the library's own errors for a silent provider."""
        breaker = with_filter(ConnectionError)

        fail(breaker, error)

        assert breaker.state is State.OPEN

    def test_predicate_decides_on_own_errors(self) -> None:
        """A predicate is called for the library's own errors like for any others."""
        breaker = with_filter(lambda error: not isinstance(error, EmptyStreamError))

        fail(breaker, EmptyStreamError())

        assert breaker.state is State.CLOSED

    def test_circuit_open_error_of_fn(self) -> None:
        """A `CircuitOpenError` that fn itself raises is a failure like any other."""
        inner, outer = with_filter(Exception), with_filter(Exception)
        inner.isolate()

        with pytest.raises(CircuitOpenError):
            outer.execute(inner.execute, lambda: None)

        assert outer.state is State.OPEN


class TestRetryAfter:
    """`retry_after`: the delay that the provider asks for."""

    @pytest.mark.parametrize(
        ("wait", "stay"),
        [
            (25, 25),
            (timedelta(seconds=25), 25),
            (timedelta(days=-1), RESET_TIMEOUT),
            (RESET_TIMEOUT, RESET_TIMEOUT),
            (1.5, RESET_TIMEOUT),
            (0, RESET_TIMEOUT),
            (-5, RESET_TIMEOUT),
            (math.nan, RESET_TIMEOUT),
            (-math.inf, RESET_TIMEOUT),
        ],
    )
    def test_number(self, clock: ManualClock, wait: float | timedelta, stay: float) -> None:
        """A number or `timedelta` opens the breaker at once, for at least `reset_timeout`."""
        breaker = with_hook(clock, lambda _: wait)

        fail(breaker, ConnectionError())
        with pytest.raises(CircuitOpenError) as raised:
            breaker.execute(lambda: None)
        clock.advance(stay - 0.25)
        before = breaker.state
        clock.advance(0.25)

        assert raised.value.retry_after == stay
        assert before is State.OPEN
        assert breaker.state is State.HALF_OPEN

    def test_infinity(self, clock: ManualClock) -> None:
        """Infinity holds the breaker open until it is reset."""
        breaker = with_hook(clock, lambda _: math.inf)

        fail(breaker, ConnectionError())
        clock.advance(1e15)

        assert breaker.state is State.OPEN

    @pytest.mark.parametrize("answer", [None, False, True])
    def test_none(
        self, clock: ManualClock, caplog: pytest.LogCaptureFixture, *, answer: bool | None
    ) -> None:
        """None means the ordinary rules, and so does a bool, which is no number."""
        breaker = with_hook(clock, lambda _: answer)
        states = []

        for _ in range(3):
            states.append(breaker.state)
            fail(breaker, ConnectionError())

        assert states == [State.CLOSED] * 3
        assert breaker.state is State.OPEN
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        clock.advance(RESET_TIMEOUT)
        assert is_admitted(breaker)

    def test_probe(self, clock: ManualClock) -> None:
        """A probe that fails with a number opens the breaker again for so long."""
        waits = iter([0.0, 60.0])
        breaker = with_hook(clock, lambda _: next(waits))
        fail(breaker, ConnectionError())
        clock.advance(RESET_TIMEOUT)

        fail(breaker, ConnectionError())
        clock.advance(59)
        before = breaker.state
        clock.advance(1)

        assert before is State.OPEN
        assert breaker.state is State.HALF_OPEN

    def test_next_period_is_ordinary(self, clock: ManualClock) -> None:
        """The delay holds for one open period only."""
        waits = iter([60.0, None])
        breaker = with_hook(clock, lambda _: next(waits))
        fail(breaker, ConnectionError())
        clock.advance(60)
        fail(breaker, ConnectionError())

        clock.advance(RESET_TIMEOUT)

        assert breaker.state is State.HALF_OPEN

    def test_asked_about_counted_exceptions(self, clock: ManualClock) -> None:
        """The hook is called for exceptions that count, and for no others."""
        asked: list[Exception] = []
        breaker = CircuitBreaker(
            CircuitBreakerConfig(failure_on=ConnectionError, retry_after=asked.append, clock=clock)
        )
        counted = ConnectionError()

        fail(breaker, ValueError())
        fail(breaker, KeyboardInterrupt())
        fail(breaker, counted)

        assert asked == [counted]

    @pytest.mark.parametrize("answer", ["soon", [], 10**400], ids=["text", "list", "too large"])
    def test_no_number(
        self, clock: ManualClock, caplog: pytest.LogCaptureFixture, answer: float
    ) -> None:
        """A result that is no number is logged and treated as None."""
        breaker = with_hook(clock, lambda _: answer)

        fail(breaker, ConnectionError())

        assert breaker.state is State.CLOSED
        assert [record.levelno for record in caplog.records] == [logging.ERROR]

    def test_raises(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """A hook that raises is logged and treated as if it had returned None."""

        def broken(error: Exception) -> float:
            raise RuntimeError(error)

        breaker = with_hook(clock, broken)

        for _ in range(3):
            fail(breaker, ConnectionError())

        assert breaker.state is State.OPEN
        assert caplog.records[0].getMessage().startswith("retry_after raised RuntimeError at ")


class TestClock:
    """Time comes from `clock` only."""

    def test_default(self) -> None:
        """The default is `time.monotonic`."""
        assert CircuitBreakerConfig().clock is time.monotonic

    @pytest.mark.parametrize("start", [-1e6, 0.0, 1e9])
    def test_any_origin(self, start: float) -> None:
        """Only differences between times matter."""
        clock = ManualClock(start)
        breaker = CircuitBreaker(
            CircuitBreakerConfig(max_failures=1, reset_timeout=timedelta(minutes=1), clock=clock)
        )
        fail(breaker, ConnectionError())
        clock.advance(59)
        before = breaker.state
        clock.advance(1)

        assert before is State.OPEN
        assert breaker.state is State.HALF_OPEN

    def test_raises(self, clock: ManualClock) -> None:
        """A clock that raises takes no slot."""
        broken: list[Exception] = []

        def read() -> float:
            if broken:
                raise broken.pop()
            return clock()

        breaker = CircuitBreaker(
            CircuitBreakerConfig(max_failures=1, half_open_max=1, reset_timeout=1.0, clock=read)
        )
        fail(breaker, ConnectionError())
        clock.advance(1)
        guard = breaker.guard()
        guard.__enter__()
        broken.append(RuntimeError())
        with pytest.raises(RuntimeError):
            guard.__exit__(ConnectionError, ConnectionError(), None)

        assert is_admitted(breaker)
