"""Calls through a circuit breaker: `execute`, `guard` and the decorator."""

import functools
import gc
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from helpers import count_free_slots, fail, rejection, trip
from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, State
from resilience.testing import ManualClock

RESET_TIMEOUT = 10.0


@pytest.fixture
def breaker(clock: ManualClock) -> CircuitBreaker:
    """Return a breaker that opens after 2 failures and closes after 2 successful probes."""
    return CircuitBreaker(
        CircuitBreakerConfig(
            name="model",
            max_failures=2,
            reset_timeout=RESET_TIMEOUT,
            half_open_max=2,
            clock=clock,
        )
    )


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
        """An exception of fn is raised to the caller unchanged."""

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

        error = rejection(breaker)

        assert (error.name, error.retry_after) == ("model", 6)
        assert str(error).startswith("circuit 'model' is open, retry in 6 s")

    def test_coroutine_function(self, breaker: CircuitBreaker) -> None:
        """A coroutine function raises `TypeError`, and its coroutine is closed."""

        async def call() -> None:
            """Do nothing."""

        with pytest.raises(TypeError, match=r"fn .*\.call must be synchronous"):
            _ = breaker.execute(call)
        gc.collect()  # a coroutine that was not closed would cause a warning here

    def test_coroutine_counts_neither_way(
        self, breaker: CircuitBreaker, clock: ManualClock
    ) -> None:
        """A coroutine function is neither a success nor a failure, and releases its slot."""

        async def call() -> None:
            """Do nothing."""

        fail(breaker)
        for _ in range(3):
            with pytest.raises(TypeError):
                _ = breaker.execute(call)
        closed = breaker.state
        fail(breaker)
        opened = breaker.state
        clock.advance(RESET_TIMEOUT)
        kept: list[object] = []  # the traceback of an exception refers to its probe
        for _ in range(3):
            with pytest.raises(TypeError) as caught:
                _ = breaker.execute(call)
            kept.append(caught.value)

        assert (closed, opened, breaker.state) == (State.CLOSED, State.OPEN, State.HALF_OPEN)
        assert count_free_slots(breaker) == 2

    def test_nested(self, breaker: CircuitBreaker) -> None:
        """A protected function may use the same breaker."""
        assert breaker.execute(breaker.execute, lambda: 3) == 3


class TestGuard:
    """`guard()` admits on entry and records on exit."""

    def test_admits_on_entry(self, breaker: CircuitBreaker) -> None:
        """A guard that was made while the breaker was closed is rejected if it has opened since."""
        guard = breaker.guard()
        trip(breaker)

        with pytest.raises(CircuitOpenError), guard:
            pytest.fail("the body ran")

    def test_records_on_exit(self, breaker: CircuitBreaker) -> None:
        """The end of the body is a success, an exception in it a failure."""
        fail(breaker)
        with breaker.guard():
            pass
        fail(breaker)
        before = breaker.state
        fail(breaker)

        assert before is State.CLOSED
        assert breaker.state is State.OPEN

    @pytest.mark.parametrize("error", [ValueError("no"), StopIteration(1), GeneratorExit()])
    def test_error(self, breaker: CircuitBreaker, error: BaseException) -> None:
        """An exception of the body is raised unchanged by the `with` statement."""
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

        assert count_free_slots(breaker) == 2

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
        """Items, sent values, the result and the name are those of the function."""

        @breaker
        def echo(first: str) -> Generator[str, str, int]:
            """Yield each value that was sent."""
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
        assert (echo.__name__, echo.__doc__) == ("echo", "Yield each value that was sent.")

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

        fail(breaker)
        generator = numbers()
        next(generator)
        fail(breaker)
        opened = breaker.state
        breaker.reset()
        fail(breaker)
        list(numbers())
        fail(breaker)

        assert opened is State.OPEN
        assert breaker.state is State.CLOSED

    def test_closed_early(self, breaker: CircuitBreaker, clock: ManualClock) -> None:
        """An iteration that is ended early, after an item, has succeeded, and is closed."""
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

        assert count_free_slots(breaker) == 2
        assert len(generators) == 5

    @pytest.mark.parametrize("kind", ["partial", "object", "static method"])
    def test_callables(self, breaker: CircuitBreaker, kind: str) -> None:
        """Callables that make generators are guarded like generator functions."""

        def numbers(last: int = 3) -> Iterator[int]:
            yield last
            raise ConnectionError

        class Numbers:
            static = staticmethod(numbers)

            def __call__(self) -> Iterator[int]:
                yield from numbers()

        callables: dict[str, Callable[[], Iterator[int]]] = {
            "partial": functools.partial(numbers, 3),
            "object": Numbers(),
            "static method": vars(Numbers)["static"],
        }
        for _ in range(2):
            with pytest.raises(ConnectionError):
                list(breaker(callables[kind])())

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
