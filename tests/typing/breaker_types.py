"""Uses of breakers that type checkers must accept or reject; this is never run."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from datetime import timedelta
from typing import assert_type

from resilience import (
    AllFailedError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    Snapshot,
    State,
    StateChange,
)
from resilience import http as resilience_http
from resilience.testing import ManualClock

breaker = CircuitBreaker()


def ask(question: str, *, temperature: float = 1.0) -> int:
    """Take positional and keyword arguments."""
    return len(question) + int(temperature)


def identity(value: bytes) -> bytes:
    """Return what was given."""
    return value


def words(text: str) -> Iterator[str]:
    """Yield words."""
    yield from text.split()


def dialogue(first: str) -> Generator[str, int, bytes]:
    """Yield, take and return different types."""
    number = yield first
    return bytes(number)


# execute: arguments and results keep their types

assert_type(breaker.execute(ask, "why?"), int)
assert_type(breaker.execute(ask, "why?", temperature=0.5), int)
assert_type(breaker.execute(lambda: "ok"), str)
assert_type(breaker.execute(identity, b""), bytes)
assert_type(breaker.execute(int), int)

breaker.execute(ask)  # type: ignore[arg-type]
breaker.execute(ask, 3)  # type: ignore[call-overload]
breaker.execute(ask, "why?", 0.5)  # type: ignore[call-overload]
breaker.execute(ask, "why?", heat=0.5)  # type: ignore[call-arg]
breaker.execute(ask, "why?", temperature="hot")  # type: ignore[arg-type]
breaker.execute(3)  # type: ignore[call-overload]
breaker.execute(fn=ask)  # type: ignore[call-overload]

# the decorator keeps the signature

decorated = breaker(ask)
assert_type(decorated("why?"), int)
assert_type(decorated("why?", temperature=0.5), int)
assert_type(breaker(words)("some text"), Iterator[str])
assert_type(breaker(dialogue)("first"), Generator[str, int, bytes])

decorated()  # type: ignore[call-arg]
decorated(3)  # type: ignore[arg-type]
decorated("why?", heat=0.5)  # type: ignore[call-arg]
breaker("ask")  # type: ignore[call-overload]


class Client:
    """Has a protected method."""

    @breaker
    def ask(self, question: str) -> int:
        """Return, in a protected call."""
        return len(question)


assert_type(Client().ask("why?"), int)
Client().ask(3)  # type: ignore[arg-type]

# guard: it does not suppress errors of the body, so no code is needed after it


def guarded() -> int:
    """Return from within."""
    with breaker.guard() as nothing:
        assert_type(nothing, None)
        return 1


# properties

assert_type(breaker.state, State)
assert_type(breaker.name, str)
assert_type(str(breaker.state), str)
assert_type(breaker.reset(), None)
assert_type(breaker.isolate(), None)

breaker.state = State.OPEN  # type: ignore[misc]
breaker.name = "other"  # type: ignore[misc]


# settings


def counts(error: Exception) -> bool:
    """Return whether an exception counts."""
    return isinstance(error, OSError)


def wait(error: Exception) -> float | None:
    """Return a delay."""
    return 1.0 if error.args else None


changes: list[StateChange] = []
config = CircuitBreakerConfig(
    name="model",
    max_failures=1,
    reset_timeout=timedelta(seconds=5),
    half_open_max=1,
    failure_on=counts,
    retry_after=wait,
    on_state_change=changes.append,
    clock=ManualClock(),
)
CircuitBreaker(config)
CircuitBreaker(config=config)
CircuitBreaker(None)
CircuitBreakerConfig(failure_on=OSError, reset_timeout=5)
CircuitBreakerConfig(failure_on=(OSError, ValueError), retry_after=resilience_http.retry_after)
CircuitBreakerConfig(failure_on=resilience_http.is_provider_fault)

CircuitBreaker("model")  # type: ignore[arg-type]
CircuitBreakerConfig("model")  # type: ignore[call-arg]
CircuitBreakerConfig(max_failures=1.5)  # type: ignore[arg-type]
CircuitBreakerConfig(reset_timeout="5")  # type: ignore[arg-type]
CircuitBreakerConfig(failure_on=int)  # type: ignore[arg-type]
CircuitBreakerConfig(failure_on=BaseExceptionGroup)
CircuitBreakerConfig(failure_on=(OSError, BaseExceptionGroup))
CircuitBreakerConfig(failure_on=[OSError])  # type: ignore[arg-type]
CircuitBreakerConfig(retry_after=len)  # type: ignore[arg-type]
CircuitBreakerConfig(on_state_change=ask)  # type: ignore[arg-type]
CircuitBreakerConfig(clock=None)  # type: ignore[arg-type]
CircuitBreakerConfig(reset_time=5)  # type: ignore[call-arg]
config.max_failures = 2  # type: ignore[misc]

# events and errors

change = StateChange(name="model", old=State.CLOSED, new=State.OPEN)
assert_type(change.old, State)
assert_type(change.cause, BaseException | None)
change.new = State.CLOSED  # type: ignore[misc]
StateChange("model", State.CLOSED, State.OPEN)  # type: ignore[call-arg]


def gauge(breaker: CircuitBreaker) -> Snapshot:
    """Read a snapshot of a breaker."""
    breaker.isolate()
    breaker.isolate(2.5)
    breaker.isolate(timedelta(seconds=2))
    breaker.isolate("soon")  # type: ignore[arg-type]
    assert_type(breaker.snapshot().retry_after, float | None)
    assert_type(breaker.snapshot().state, State)
    CircuitBreakerConfig(max_reset_timeout=timedelta(minutes=5), reset_jitter=0.1)
    CircuitBreakerConfig(reset_jitter="much")  # type: ignore[arg-type]
    return breaker.snapshot()


def describe(state: State) -> str:
    """Name each state, so that a checker detects that there are no others."""
    match state:
        case State.CLOSED:
            return "closed"
        case State.OPEN:
            return "open"
        case State.HALF_OPEN:
            return "half-open"


def look(refused: CircuitOpenError, failed: AllFailedError) -> None:
    """Read the data of errors."""
    assert_type(refused.name, str)
    assert_type(refused.retry_after, float | None)
    assert_type(refused.reason, str | None)
    assert_type(failed.failures, Mapping[str, BaseException])
    assert_type(failed.retry_after, float | None)
    failed.failures["model"] = refused  # type: ignore[index]


class Derived(CircuitBreaker):  # type: ignore[misc]
    """The breaker is final."""


handler: Callable[[StateChange], object] = changes.append

# None selects a default, as 0 does.
CircuitBreakerConfig(name=None, max_failures=None, reset_timeout=None, half_open_max=None)

# A breaker cannot protect what is asynchronous.


async def ask_later(question: str) -> int:
    """Answer later."""
    return len(question)


async def words_later(text: str) -> AsyncIterator[str]:
    """Yield words later."""
    yield text


breaker(ask_later)  # type: ignore[deprecated]
breaker(words_later)  # type: ignore[deprecated]
