"""What a circuit breaker does with the calls that are given to it."""

import functools
import gc
import inspect
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
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

FailureOn: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], object]


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


def with_hook(clock: ManualClock, hook: Callable[[Exception], float | None]) -> CircuitBreaker:
    """Return a breaker with a hook for the provider's own word."""
    return CircuitBreaker(
        CircuitBreakerConfig(
            max_failures=3,
            reset_timeout=RESET_TIMEOUT,
            half_open_max=1,
            retry_after=hook,
            clock=clock,
        )
    )


class TestExecute:
    """`execute(fn, /, *args, **kwargs)`."""

    def test_result(self, breaker: CircuitBreaker) -> None:
        """The result is fn's."""
        result = object()

        assert breaker.execute(lambda: result) is result

    def test_arguments(self, breaker: CircuitBreaker) -> None:
        """All arguments are passed on, whatever they are called."""

        def call(*args: object, **kwargs: object) -> object:
            return args, kwargs

        result = breaker.execute(call, 1, [2], fn=3, self=4, args=5)

        assert result == ((1, [2]), {"fn": 3, "self": 4, "args": 5})

    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), StopIteration(3)])
    def test_error(self, breaker: CircuitBreaker, error: BaseException) -> None:
        """What fn raises goes to the caller as it is."""

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
        assert str(raised.value) == "circuit 'model' is open, retry in 6 s"

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.254, "0.25"), (29.998, "30"), (3599.5, "3599.5"), (1e6, "1000000")]
    )
    def test_the_wait_is_told_in_plain_numbers(self, seconds: float, text: str) -> None:
        """Seconds are told without exponents, and no finer than hundredths."""
        error = CircuitOpenError("model", seconds)

        assert str(error) == f"circuit 'model' is open, retry in {text} s"

    def test_coroutine_function(self, breaker: CircuitBreaker) -> None:
        """A coroutine function raises `TypeError`, and its coroutine is closed."""

        async def call() -> None:
            """Do nothing."""

        with pytest.raises(TypeError, match=r"fn must be synchronous.*call"):
            _ = breaker.execute(call)
        gc.collect()  # a coroutine that was never closed would warn here

    def test_coroutine_counts_neither_way(
        self, breaker: CircuitBreaker, clock: ManualClock
    ) -> None:
        """A coroutine function is neither a success nor a failure, and gives its slot back."""

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
        """The settings may be left out."""
        breaker = CircuitBreaker()

        trip(breaker)

        assert breaker.name == ""
        assert not is_admitted(breaker)

    def test_wrong_settings(self) -> None:
        """Settings of another kind are refused."""
        with pytest.raises(TypeError, match="config must be a CircuitBreakerConfig, not 5"):
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
        """The time runs from the opening, and rejected calls do not prolong it."""
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
        """When half-open, at most `half_open_max` calls are admitted, the rest are refused."""
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
        """Each change is told with name, old and new state, and the failure that caused it."""
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


class TestReset:
    """`reset()` closes it, clears everything, and forgets the calls under way."""

    def test_open(self, breaker: CircuitBreaker, changes: list[StateChange]) -> None:
        """An open breaker is closed, and says so."""
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
        """A closed breaker forgets its failures, and has no change to tell."""
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
        """No time makes an isolated breaker probe."""
        breaker.isolate()
        clock.advance(1e15)

        assert breaker.state is State.OPEN
        assert not is_admitted(breaker)

    def test_wait_is_unknown(self, breaker: CircuitBreaker) -> None:
        """Nobody can say when an isolated breaker will admit calls."""
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
        """A breaker that is open already, also one that is due, is held open without an event."""
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
        """The body of a guard that is not admitted is not run."""
        trip(breaker)

        with pytest.raises(CircuitOpenError), breaker.guard():
            pytest.fail("the body ran")

    def test_admits_on_entry(self, breaker: CircuitBreaker) -> None:
        """A guard that was made while the breaker was closed is refused if it is open by then."""
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
        """A guard that is entered and dropped gives its slot back."""
        trip(breaker)
        clock.advance(RESET_TIMEOUT)

        for _ in range(3):
            breaker.guard().__enter__()
            gc.collect()

        assert is_admitted(breaker)

    def test_entered_and_left_by_two(self, breaker: CircuitBreaker) -> None:
        """A guard is one call: leaving it again says nothing."""
        guard = breaker.guard()
        with guard:
            pass

        for _ in range(3):
            guard.__exit__(ConnectionError, ConnectionError(), None)

        assert breaker.state is State.CLOSED

    def test_no_decorator(self, breaker: CircuitBreaker) -> None:
        """A guard does not pretend to guard a function: the breaker itself is the decorator."""
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
        """The decorated function looks like the function."""

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
        """Whatever can be called can be decorated."""
        assert breaker(functools.partial(int, base=2))("101") == 5

    @pytest.mark.parametrize("fn", [None, 3, "fn"])
    def test_no_function(self, breaker: CircuitBreaker, fn: object) -> None:
        """What cannot be called is refused."""
        with pytest.raises(TypeError, match=f"fn must be callable, not {fn!r}"):
            breaker(fn)  # type: ignore[arg-type]


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
        """Items are no success yet, only the end is."""

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
        """An iteration that is given up is neither, gives its slot back, and is closed itself."""
        closed: list[int] = []

        @breaker
        def numbers() -> Iterator[int]:
            try:
                yield 1
                yield 2
            finally:
                closed.append(1)

        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        for _ in range(4):
            generator = numbers()
            next(generator)
            del generator
            gc.collect()

        assert len(closed) == 4
        assert breaker.state is State.HALF_OPEN
        assert is_admitted(breaker)

    def test_never_started(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """An iteration that was never started took no slot."""

        @breaker
        def numbers() -> Iterator[int]:
            yield 1

        trip(breaker)
        clock.advance(RESET_TIMEOUT)
        generators = [numbers() for _ in range(5)]

        assert is_admitted(breaker)
        assert len(generators) == 5

    def test_partial(self, breaker: CircuitBreaker) -> None:
        """A generator function with arguments bound is still one."""

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


class TestFailureOn:
    """`failure_on`: which exceptions count: a type, a tuple of types, or a predicate."""

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
        """An exception that is meant counts."""
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
    def test_only_exceptions_count(self, error: BaseException) -> None:
        """What is no `Exception` never counts, and no predicate is asked about it."""
        asked: list[Exception] = []

        def counts(error: Exception) -> bool:
            asked.append(error)
            return True

        breaker = with_filter(counts)

        fail(breaker, error)

        assert breaker.state is State.CLOSED
        assert asked == []

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
    def test_own_verdicts(self, error: Exception) -> None:
        """Types always include the library's own verdicts on a silent provider."""
        breaker = with_filter(ConnectionError)

        fail(breaker, error)

        assert breaker.state is State.OPEN

    def test_predicate_decides_on_own_verdicts(self) -> None:
        """A predicate is asked about the library's own verdicts like about anything else."""
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
    """`retry_after`: the provider's own word on how long to stay away."""

    @pytest.mark.parametrize(
        ("wait", "stay"),
        [
            (25, 25),
            (RESET_TIMEOUT, RESET_TIMEOUT),
            (1.5, RESET_TIMEOUT),
            (0, RESET_TIMEOUT),
            (-5, RESET_TIMEOUT),
            (math.nan, RESET_TIMEOUT),
            (-math.inf, RESET_TIMEOUT),
        ],
    )
    def test_number(self, clock: ManualClock, wait: float, stay: float) -> None:
        """A number opens the breaker at once, for so long but never less than `reset_timeout`."""
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

    def test_none(self, clock: ManualClock) -> None:
        """None means the ordinary rules."""
        breaker = with_hook(clock, lambda _: None)
        states = []

        for _ in range(3):
            states.append(breaker.state)
            fail(breaker, ConnectionError())

        assert states == [State.CLOSED] * 3
        assert breaker.state is State.OPEN
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
        """The provider's word holds for one period only."""
        waits = iter([60.0, None])
        breaker = with_hook(clock, lambda _: next(waits))
        fail(breaker, ConnectionError())
        clock.advance(60)
        fail(breaker, ConnectionError())

        clock.advance(RESET_TIMEOUT)

        assert breaker.state is State.HALF_OPEN

    def test_asked_about_counted_exceptions(self, clock: ManualClock) -> None:
        """The hook is asked about exceptions that count, and about no others."""
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
        """An answer that is no number is logged and taken as None."""
        breaker = with_hook(clock, lambda _: answer)

        fail(breaker, ConnectionError())

        assert breaker.state is State.CLOSED
        assert [record.levelno for record in caplog.records] == [logging.ERROR]

    def test_raises(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """A hook that raises is logged and taken as None."""

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
        """Only differences of time matter."""
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
        """A clock that raises costs no slot."""
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
