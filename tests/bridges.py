"""Helpers of the tests of `resilience.aio`: sources that wait and record threads, and loops."""

import asyncio
import importlib.util
import itertools
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from functools import partial
from typing import Any, TypeVar, final

import pytest

from resilience import Attempt, FallbackConfig, LLMFallback, llm

R = TypeVar("R")

LIMIT = 30.0
"""Time limit of a wait in seconds."""

AHEAD = 16
"""How many items a stream reads ahead."""

REQUEST = llm.CompletionRequest(messages=())

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None

# Skipped before a test makes a coroutine, which would be reported as one that was never awaited.
LOOPS = pytest.mark.parametrize(
    "loop",
    [
        "asyncio",
        pytest.param(
            "uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="not installed: uvloop")
        ),
    ],
)


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return a new loop."""
    if name == "asyncio":
        return asyncio.new_event_loop()
    uvloop: Any = importlib.import_module("uvloop")
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def join_threads() -> None:
    """Wait until no thread of the bridge is left."""
    for thread in threading.enumerate():
        if thread.name == "resilience-aio":
            thread.join(LIMIT)
            assert not thread.is_alive()


def run(loop: str, coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine in a loop, which is closed at the end."""
    with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
        return runner.run(coroutine)


@final
class Gate:
    """A place where a thread waits until the gate is opened."""

    def __init__(self) -> None:
        """Close the gate."""
        self._reached = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> bool:
        """Wait at the gate, and return False; in a thread."""
        self._reached.set()
        assert self._open.wait(LIMIT)
        return False

    async def reached(self) -> None:
        """Wait until a thread waits at the gate; in a task."""
        assert await asyncio.to_thread(self._reached.wait, LIMIT)

    def open(self, *, join: bool = True) -> None:
        """Let the thread continue, and wait until no thread of the bridge is left."""
        self._open.set()
        if join:
            join_threads()


@final
class Source:
    """An iterator over 1000 numbers that records the thread of each step."""

    def __init__(
        self,
        count: int = 1000,
        gate: Callable[[], object] = int,
        closing: Callable[[], object] = int,
    ) -> None:
        """Yield `count` numbers, with a gate after the first and one before it is closed."""
        self._gate = gate
        self._closing = closing
        self._count = count
        self.threads: list[int] = []
        self.returned = 0
        self.closed = 0
        self.is_closed = threading.Event()

    def open(self) -> "Source":
        """Return the iterator."""
        self.threads.append(threading.get_ident())
        return self

    def __iter__(self) -> "Source":
        """Return the iterator."""
        return self

    def __next__(self) -> int:
        """Return the next number."""
        self.threads.append(threading.get_ident())
        if self.returned:
            self._gate()
        if self.returned == self._count:
            raise StopIteration
        self.returned += 1
        return self.returned

    def close(self) -> None:
        """Record the closing."""
        self.threads.append(threading.get_ident())
        self._closing()
        self.closed += 1
        self.is_closed.set()


def group(
    *providers: llm.Provider, limit: float | None = None
) -> tuple[LLMFallback, list[Attempt]]:
    """Return a group of models, "0", "1" and so on, and the list of its attempts."""
    attempts: list[Attempt] = []
    config = FallbackConfig(on_attempt=attempts.append, attempt_timeout=limit)
    model = LLMFallback(providers[0], "0", config)
    for number, provider in enumerate(providers[1:], 1):
        model.add_fallback(str(number), provider)
    return model, attempts


def outcomes(attempts: list[Attempt]) -> list[str]:
    """Return the outcome of each attempt."""
    return [f"{attempt.provider} {attempt.outcome}" for attempt in attempts]


def start(awaitable: Awaitable[R]) -> "asyncio.Task[R]":
    """Wait for something in a task of its own."""

    async def wait() -> R:
        return await awaitable

    return asyncio.create_task(wait())


async def cancel(awaitable: Awaitable[Any], gate: Gate) -> None:
    """Cancel the wait for something when its thread is at the gate; it must end at once."""
    task = start(awaitable)
    await asyncio.sleep(0)  # otherwise the thread may be at the gate before the task waits
    await gate.reached()
    task.cancel()
    await asyncio.wait([task], timeout=LIMIT)
    assert task.cancelled()


class _CancelAt(Awaitable[R]):
    def __init__(self, n: int, coroutine: Coroutine[Any, Any, R]) -> None:
        self._n = n
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, None, R]:
        """Pass on everything between the coroutine and its task."""
        resume: Callable[[], Any] = partial(self._coroutine.send, None)
        for suspensions in itertools.count():
            try:
                awaited = resume()
            except StopIteration as end:
                result: R = end.value
                return result
            if suspensions == self._n and (task := asyncio.current_task()):
                task.cancel()
            try:
                yield awaited
                resume = partial(self._coroutine.send, None)
            except BaseException as error:  # noqa: BLE001
                resume = partial(self._coroutine.throw, error)
        raise AssertionError


def cancelled_at_each_await(
    loop: str, scenario: Callable[[], Coroutine[Any, Any, object]]
) -> Iterator[int]:
    """Run a scenario again and again, and cancel its task where it is suspended for the n-th time.

    Yields n after each run, when no thread is left, and ends after the first that is not cancelled.
    """

    async def is_cancelled(n: int) -> bool:
        task = start(_CancelAt(n, scenario()))
        await asyncio.wait([task], timeout=LIMIT)
        assert task.cancelled() or task.exception() is None
        return task.cancelled()

    for n in itertools.count():
        if not run(loop, is_cancelled(n)):
            return
        join_threads()
        yield n
