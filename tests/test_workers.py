"""Threads whose calls can be abandoned: reuse, limit, and end of idle threads."""

import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Generic, NoReturn, TypeVar

import pytest
from typing_extensions import override

from builds import Freed
from helpers import LIMIT, TIMEOUT, in_threads
from resilience import AttemptTimeoutError
from resilience._failover import workers as workers_module
from resilience._failover.workers import IDLE_SECONDS, MAX_ABANDONED, WorkerPool

R = TypeVar("R")


class Slow(Generic[R]):
    """A call that hangs until it is ended; a test can wait until nothing refers to it."""

    def __init__(self, result: Callable[[], R]) -> None:
        """Hang, and then return what a function returns."""
        self.entered = threading.Event()
        self.over = threading.Event()
        self.released = Freed()
        self.thread: threading.Thread | None = None
        self._result = result

    def __call__(self) -> R:
        """Hang until it is ended."""
        self.thread = threading.current_thread()
        self.entered.set()
        assert self.over.wait(TIMEOUT)
        return self._result()

    def tracked(self) -> Callable[[], R]:
        """Return an object that makes this call, and to which there is no other reference."""
        call = _Held(self)
        weakref.finalize(call, self.released.count)
        return call

    def end(self) -> None:
        """End it, and wait until its worker has dropped it."""
        self.over.set()
        assert self.released.wait(TIMEOUT)


class _Held(Generic[R]):
    """A call whose deletion can be observed."""

    def __init__(self, call: Slow[R]) -> None:
        self._call = call

    def __call__(self) -> R:
        return self._call()


@pytest.fixture
def slow() -> Iterator[Slow[str]]:
    """Return a call that returns "late", at the latest at the end of the test."""
    call = Slow(lambda: "late")
    yield call
    call.over.set()


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when a worker has delivered the outcome of a call."""
    event = threading.Event()
    mark_idle: Callable[[object], None] = vars(workers_module)["_Worker"].mark_idle

    def mark_idle_and_set(worker: object) -> None:
        mark_idle(worker)
        event.set()

    monkeypatch.setattr("resilience._failover.workers._Worker.mark_idle", mark_idle_and_set)
    return event


def drop(_result: object) -> None:
    """Drop a result."""


def until(seconds: float) -> Callable[[], float]:
    """Return a function that returns the remaining seconds."""
    end = monotonic() + seconds
    return lambda: end - monotonic()


def make(
    workers: WorkerPool,
    fn: Callable[[], R],
    discard: Callable[[R], object],
    remaining: Callable[[], float],
) -> R:
    """Make a call in the same way as an attempt with a time limit."""
    workers.check_room()
    return workers.start(fn, discard).wait(remaining)


def call(workers: WorkerPool, fn: Callable[[], R]) -> R:
    """Make a call that has enough time."""
    return make(workers, fn, drop, until(LIMIT))


def abandon(
    workers: WorkerPool, slow: Slow[R], discard: Callable[[R], object] = drop, seconds: float = 0.01
) -> None:
    """Make a call with a short time limit."""
    with pytest.raises(AttemptTimeoutError):
        make(workers, slow.tracked(), discard, until(seconds))


class TestThreads:
    """A thread is started when none is idle, and ends after some idle time."""

    def test_a_thread_is_used_again(self) -> None:
        """Calls that do not overlap use the same thread."""
        workers = WorkerPool("model", LIMIT)

        threads = {call(workers, threading.current_thread) for _ in range(1000)}

        assert len(threads) == 1
        assert threading.current_thread() not in threads

    def test_a_thread_is_idle_before_its_caller_goes_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When a caller has its result, the thread is idle, so one thread is enough."""
        went_on = threading.Event()
        too_late: list[bool] = []
        mark_idle: Callable[[object], None] = vars(workers_module)["_Worker"].mark_idle

        def mark_idle_late(worker: object) -> None:
            too_late.append(went_on.wait(0.05))
            mark_idle(worker)

        monkeypatch.setattr("resilience._failover.workers._Worker.mark_idle", mark_idle_late)

        call(WorkerPool("model", LIMIT), lambda: None)
        went_on.set()

        assert too_late == [False]

    def test_threads_are_daemonic_and_have_a_name(self) -> None:
        """Threads are daemon threads, and have the name of their provider."""
        thread = call(WorkerPool("model", LIMIT), threading.current_thread)

        assert thread.daemon
        assert thread.name == "resilience-model"

    def test_an_abandoned_thread_is_used_again(self, slow: Slow[str]) -> None:
        """While a call hangs another thread is used; after its end its thread is used again."""
        workers = WorkerPool("model", 0.01)

        abandon(workers, slow)
        assert slow.entered.wait(TIMEOUT)
        other = call(workers, threading.current_thread)
        slow.end()
        barrier = threading.Barrier(2)

        def meet() -> threading.Thread:
            barrier.wait(TIMEOUT)
            return threading.current_thread()

        threads = in_threads([lambda: call(workers, meet)] * 2)

        assert other is not slow.thread
        assert set(threads) == {other, slow.thread}

    def test_an_idle_thread_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread ends after its idle time, and the next call starts a new one."""
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.01)
        workers = WorkerPool("model", LIMIT)

        first = call(workers, threading.current_thread)
        first.join(TIMEOUT)
        second = call(workers, threading.current_thread)

        assert not first.is_alive()
        assert second is not first

    def test_a_thread_that_has_ended_is_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread that has ended is dropped."""
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.01)
        workers = WorkerPool("model", LIMIT)

        call(workers, threading.current_thread).join(TIMEOUT)

        assert vars(workers)["_idle"] == []

    def test_the_idle_time_is_30_seconds(self) -> None:
        """The number is that of the docs."""
        assert IDLE_SECONDS == 30

    def test_a_thread_that_is_given_a_call_does_not_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread that accepts a call when its idle time elapses makes that call."""
        monkeypatch.setattr(workers_module, "SimpleQueue", HastyQueue)

        assert (
            make(WorkerPool("model", LIMIT / 3), lambda: "made", drop, until(LIMIT / 3)) == "made"
        )

    def test_a_thread_that_has_ended_is_not_given_a_call(self) -> None:
        """If an idle thread ends before it accepts a call, its caller starts a new one."""
        workers = WorkerPool("model", LIMIT)
        vars(workers)["_idle"].append(Ending())

        assert call(workers, lambda: "made") == "made"

    def test_a_thread_that_is_ending_takes_no_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A finalizer that makes a call while a thread ends uses another thread."""
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.01)
        workers = WorkerPool("model", LIMIT)
        made: list[threading.Thread] = []

        class Collected(SimpleQueue[Any]):
            @override
            def empty(self) -> bool:
                is_empty = super().empty()
                if not made:
                    made.append(threading.current_thread())
                    made.append(call(workers, threading.current_thread))
                return is_empty

        monkeypatch.setattr(workers_module, "SimpleQueue", Collected)
        # On a busy machine a thread may end before it accepts this call, and another makes it.
        call(workers, threading.current_thread).join(TIMEOUT)

        ending, other = made
        assert other is not ending

    def test_a_signal_handler_may_make_a_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A signal handler may make a call at the moment when a thread accepts another one."""
        workers = WorkerPool("model", LIMIT)
        made: list[str] = []

        class Signalled(SimpleQueue[Any]):
            @override
            def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
                super().put(item)
                if not made:
                    made.append("begun")
                    item.worker.mark_idle()  # as it does when the call has ended
                    made.append(call(workers, lambda: "made"))

        monkeypatch.setattr(workers_module, "SimpleQueue", Signalled)

        assert call(workers, lambda: "too") == "too"
        assert made == ["begun", "made"]

    def test_a_thread_whose_caller_was_interrupted_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread that was removed from the idle ones but got no call ends after its idle time."""
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.01)
        take: Callable[[WorkerPool], threading.Thread] = vars(WorkerPool)["_worker"]

        thread = take(WorkerPool("model", LIMIT))
        thread.join(TIMEOUT)

        assert not thread.is_alive()

    def test_a_call_that_is_over_does_not_hang(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If a caller is interrupted as it gets an error, its call does not count as hanging."""
        monkeypatch.setattr(workers_module, "MAX_ABANDONED", 1)
        workers = WorkerPool("model", LIMIT)

        def interrupt(task: object) -> NoReturn:
            vars(workers)["abandoned"].add(task)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("resilience._failover.workers.Task._abandon", interrupt)
            with pytest.raises(KeyboardInterrupt):
                call(workers, lambda: int("no number"))

        assert call(workers, lambda: "made") == "made"

    def test_a_call_without_a_thread_is_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If no thread can be started, the error is raised to the caller, and the call is freed."""
        workers = WorkerPool("model", LIMIT)

        def refuse(_thread: object) -> NoReturn:
            msg = "can't start new thread"
            raise RuntimeError(msg)

        monkeypatch.setattr("resilience._failover.workers._Worker.start", refuse)
        slow = Slow(lambda: "never")
        with pytest.raises(RuntimeError, match="start new thread"):
            call(workers, slow.tracked())

        gc.collect()
        assert slow.released.wait(TIMEOUT)

    def test_interrupted_as_a_worker_takes_the_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the caller is interrupted at that moment, the late result is discarded."""
        accept = workers_module._Worker.accept

        def interrupted(worker: Any, task: Any) -> NoReturn:  # noqa: ANN401
            accept(worker, task)
            raise KeyboardInterrupt

        monkeypatch.setattr(workers_module._Worker, "accept", interrupted)
        discarded = threading.Event()

        with pytest.raises(KeyboardInterrupt):
            WorkerPool("model", TIMEOUT).start(lambda: "late", lambda _: discarded.set())

        assert discarded.wait(TIMEOUT)

    def test_no_thread_at_the_end_of_the_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No call waits for a thread that would never run."""
        workers = WorkerPool("model", LIMIT)
        monkeypatch.setattr("sys.is_finalizing", lambda: True)

        with pytest.raises(RuntimeError, match="'model' needs a thread, but the interpreter"):
            call(workers, lambda: "never")

    def test_another_caller_may_be_faster(self) -> None:
        """If another caller takes the idle thread, a new one is started."""
        workers = WorkerPool("model", LIMIT)
        vars(workers)["_idle"] = Vanishing()

        assert call(workers, lambda: "made") == "made"

    def test_a_dead_thread_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread that is not alive, as after a fork, is not used."""
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.01)
        workers = WorkerPool("model", LIMIT)
        gone = call(workers, threading.current_thread)
        gone.join(TIMEOUT)
        vars(workers)["_idle"].append(gone)

        assert call(workers, threading.current_thread) is not gone

    def test_no_call_is_lost_when_threads_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each call is made, even if threads end often."""
        monkeypatch.setattr(workers_module, "IDLE_SECONDS", 0.0002)
        workers = WorkerPool("model", LIMIT)

        numbers, threads = call_in_threads(workers, callers=4, calls=200)

        assert len(numbers) == 800
        assert threading.current_thread() not in threads

    def test_as_many_threads_as_calls_at_once(self) -> None:
        """Each caller gets its own result, with no more threads than callers."""
        numbers, threads = call_in_threads(WorkerPool("model", LIMIT), callers=8, calls=200)

        assert len(numbers) == 1600
        assert len(threads) <= 8


def test_the_longest_wait_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit may be longer than the longest possible wait for a lock."""
    monkeypatch.setattr(workers_module, "TIMEOUT_MAX", 0.001)
    waits = Slow(lambda: "made")
    looks = itertools.count()

    def remaining() -> float:
        if next(looks) > 3:
            waits.over.set()
        return LIMIT

    assert make(WorkerPool("model", LIMIT), waits, drop, remaining) == "made"


class HastyQueue(SimpleQueue[Any]):
    """A queue whose reader times out several times at the moment when an item arrives."""

    def __init__(self) -> None:
        """Make an empty queue."""
        self._left = 3
        self._has_item = threading.Event()

    @override
    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item."""
        super().put(item)
        self._has_item.set()

    @override
    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the next item, but not at the first attempts."""
        assert self._has_item.wait(TIMEOUT)
        if self._left:
            self._left -= 1
            raise Empty
        return super().get(block, timeout)


class Ending:
    """A thread that ends between the check that it is alive and its acceptance of a call."""

    def is_alive(self) -> bool:
        """Return True."""
        return True

    def accept(self, _task: object) -> bool:
        """Return False, since it has ended."""
        return False


class Vanishing(list[threading.Thread]):
    """A list that has an item when its length is read, and none when the item is taken."""

    @override
    def __len__(self) -> int:
        return super().__len__() or 1


class Forgetful(set[object]):
    """A set that keeps the first item that is discarded."""

    def __init__(self) -> None:
        """Prepare to keep one item."""
        super().__init__()
        self._keeps = True

    @override
    def discard(self, item: object) -> None:
        """Discard an item, unless it is the first."""
        keeps, self._keeps = self._keeps, False
        if not keeps:
            super().discard(item)


def call_in_threads(
    workers: WorkerPool, *, callers: int, calls: int
) -> tuple[list[int], set[threading.Thread]]:
    """Make calls in several threads at once, and return their results and their workers."""

    def answer(number: int) -> tuple[int, threading.Thread]:
        return number, threading.current_thread()

    def make_calls(first: int) -> list[tuple[int, threading.Thread]]:
        return [call(workers, partial(answer, each)) for each in range(first, first + calls)]

    results = in_threads([partial(make_calls, caller * calls) for caller in range(callers)])
    assert [[number for number, _ in each] for each in results] == [
        list(range(caller * calls, (caller + 1) * calls)) for caller in range(callers)
    ]
    made = list(chain.from_iterable(results))
    return [number for number, _ in made], {worker for _, worker in made}


class TestTime:
    """The caller waits until its time limit has elapsed."""

    def test_no_time_left(self, slow: Slow[str]) -> None:
        """A call without remaining time is abandoned."""
        workers = WorkerPool("model", 0.5)

        with pytest.raises(AttemptTimeoutError) as caught:
            make(workers, slow, drop, lambda: 0.0)

        assert (caught.value.provider, caught.value.timeout) == ("model", 0.5)

    def test_time_that_is_added(self, slow: Slow[str]) -> None:
        """If the time is extended meanwhile, the caller continues to wait."""
        answers = iter([0.001, 0.001, 0.001, LIMIT])

        def remaining() -> float:
            left = next(answers)
            if left == LIMIT:
                slow.over.set()
            return left

        assert make(WorkerPool("model", 0.001), slow, drop, remaining) == "late"

    def test_a_result_at_the_last_moment(
        self, delivered: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A result that is available when the time elapses is returned; no call is abandoned."""
        monkeypatch.setattr(workers_module, "MAX_ABANDONED", 1)
        workers = WorkerPool("model", LIMIT)
        discarded: list[str] = []

        def remaining() -> float:
            assert delivered.wait(TIMEOUT)
            return 0.0

        assert make(workers, lambda: "just so", discarded.append, remaining) == "just so"
        assert call(workers, lambda: "next") == "next"
        assert discarded == []


class TestErrors:
    """Exceptions of a call, in time or too late."""

    @pytest.mark.parametrize(
        "error", [ValueError, StopIteration, GeneratorExit, SystemExit, KeyboardInterrupt]
    )
    def test_an_error_reaches_the_caller(self, error: type[BaseException]) -> None:
        """Any exception of a call is raised to the caller unchanged; the thread continues."""
        workers = WorkerPool("model", LIMIT)
        raised = error("what it says")
        threads: list[threading.Thread] = []

        def fail() -> None:
            threads.append(threading.current_thread())
            raise raised

        with pytest.raises(error) as caught:
            call(workers, fail)

        assert caught.value is raised
        assert call(workers, threading.current_thread) is threads[0]

    @pytest.mark.parametrize("error", [ValueError, SystemExit])
    def test_a_late_error_is_logged(
        self, error: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A late error is logged by its type, without its text."""
        caplog.set_level(logging.DEBUG, "resilience")

        def fail() -> str:
            prompt = "the prompt"
            raise error(prompt)

        slow = Slow(fail)
        discarded: list[str] = []

        abandon(WorkerPool("model", 0.01), slow, discarded.append)
        slow.end()

        (record,) = caplog.records
        assert record.levelno == logging.DEBUG
        assert record.getMessage() == f"an abandoned call raised {error.__name__}"
        assert discarded == []

    def test_a_late_result_is_discarded_once(self, slow: Slow[str]) -> None:
        """A late result is passed to `discard`, in the worker and not before."""
        discarded: list[tuple[str, threading.Thread]] = []

        abandon(
            WorkerPool("model", 0.01),
            slow,
            lambda result: discarded.append((result, threading.current_thread())),
        )
        before = list(discarded)
        slow.end()

        assert before == []
        assert slow.thread is not None
        assert discarded == [("late", slow.thread)]

    def test_an_error_of_discarding_is_logged(
        self, slow: Slow[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """If discarding raises, that is logged, and the thread continues."""
        workers = WorkerPool("model", 0.01)

        def fail(_result: str) -> None:
            raise ConnectionError

        abandon(workers, slow, fail)
        slow.end()

        (record,) = caplog.records
        assert record.getMessage().startswith(
            "closing the result of an abandoned call raised ConnectionError at "
        )
        assert call(workers, threading.current_thread) is slow.thread


class TestInterruptions:
    """A call whose caller is interrupted while it waits."""

    def test_its_result_is_discarded_by_the_worker(self, slow: Slow[str]) -> None:
        """The interruption is raised at once, and the late result is discarded once."""
        discarded: list[tuple[str, threading.Thread]] = []
        answers = iter([0.01])

        def remaining() -> float:
            for left in answers:
                return left
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(
                WorkerPool("model", LIMIT),
                slow.tracked(),
                lambda result: discarded.append((result, threading.current_thread())),
                remaining,
            )
        slow.end()

        assert slow.thread is not None
        assert discarded == [("late", slow.thread)]

    def test_its_result_may_be_there_already(self, delivered: threading.Event) -> None:
        """A result that is available when the caller is interrupted is discarded by the caller."""
        discarded: list[tuple[str, threading.Thread]] = []

        def remaining() -> float:
            assert delivered.wait(TIMEOUT)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(
                WorkerPool("model", LIMIT),
                lambda: "unwanted",
                lambda result: discarded.append((result, threading.current_thread())),
                remaining,
            )

        assert discarded == [("unwanted", threading.current_thread())]

    def test_it_counts_as_abandoned_until_it_ends(
        self, slow: Slow[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A call whose caller was interrupted counts as abandoned until it ends."""
        monkeypatch.setattr(workers_module, "MAX_ABANDONED", 1)
        workers = WorkerPool("model", LIMIT)

        def remaining() -> float:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(workers, slow.tracked(), drop, remaining)

        with pytest.raises(AttemptTimeoutError):
            call(workers, lambda: "refused")
        slow.end()
        assert call(workers, lambda: "admitted") == "admitted"


class TestLimit:
    """The number of hanging calls is limited."""

    def test_further_calls_are_refused(
        self,
        slow: Slow[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """With as many calls hanging no other is made, until one returns; error and log say so."""
        monkeypatch.setattr(workers_module, "MAX_ABANDONED", 2)
        workers = WorkerPool("model", 0.01)
        other = Slow(lambda: "later")
        made: list[str] = []
        for hanging in (slow, other):
            abandon(workers, hanging)
            assert hanging.entered.wait(TIMEOUT)
        threads = threading.active_count()

        for _ in range(10):
            with pytest.raises(AttemptTimeoutError) as caught:
                call(workers, lambda: made.append("refused"))
            assert (caught.value.provider, caught.value.timeout) == ("model", 0.01)
            assert str(caught.value) == "'model' was not called: 2 abandoned calls still hang"

        assert "provider model is not called: 2 abandoned calls still hang" in caplog.text
        assert threading.active_count() <= threads
        slow.end()
        call(workers, lambda: made.append("admitted"))
        other.end()
        assert made == ["admitted"]

    def test_a_call_whose_thread_has_died(
        self, slow: Slow[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A call whose thread is not alive does not count as hanging."""
        monkeypatch.setattr(workers_module, "MAX_ABANDONED", 1)
        monkeypatch.setattr(threading, "excepthook", drop)
        workers = WorkerPool("model", 0.01)

        def end_the_thread(_result: str) -> None:
            raise SystemExit

        abandon(workers, slow, end_the_thread)
        assert slow.entered.wait(TIMEOUT)
        slow.over.set()
        assert slow.thread is not None
        slow.thread.join(TIMEOUT)

        assert call(workers, lambda: "admitted") == "admitted"

    def test_a_call_that_has_ended(
        self, slow: Slow[str], delivered: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A call that an interruption has left in the abandoned ones counts until it ends."""
        monkeypatch.setattr(workers_module, "MAX_ABANDONED", 1)
        workers = WorkerPool("model", 0.01)
        vars(workers)["abandoned"] = Forgetful()

        abandon(workers, slow)
        slow.over.set()
        assert delivered.wait(TIMEOUT)

        assert call(workers, lambda: "admitted") == "admitted"

    def test_each_provider_has_a_limit(
        self, slow: Slow[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Hanging calls of one provider do not affect another one."""
        monkeypatch.setattr(workers_module, "MAX_ABANDONED", 1)
        abandon(WorkerPool("model", 0.01), slow)

        assert call(WorkerPool("other", LIMIT), lambda: "admitted") == "admitted"

    def test_the_limit_is_64(self) -> None:
        """The number is that of the docs."""
        assert MAX_ABANDONED == 64
