"""Threads on which a call can be left behind.

A synchronous call cannot be interrupted. It can only be abandoned: the caller stops waiting, and
what the call brings in the end is thrown away by the thread that made it.
"""

from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX, Lock, RLock, Thread
from typing import Any, Generic, TypeVar, final

from typing_extensions import override

from resilience._log import log_swallowed, logger
from resilience.exceptions import AttemptTimeoutError

R = TypeVar("R")

IDLE_SECONDS = 30.0
"""How long an idle thread waits for its next call before it ends."""

MAX_ABANDONED = 64
"""How many abandoned calls of one provider may hang; with so many, further calls are refused."""


@final
class Workers:
    """Makes the calls of one provider on daemonic threads, which are used again.

    May be used by any number of threads, and in forked children. What is shared needs no lock:
    each operation on the list and on the set is atomic.
    """

    def __init__(self, provider: str, timeout: float) -> None:
        """Prepare for calls that may take so many seconds."""
        self.timeout = timeout
        self._provider = provider
        self._idle: list[_Worker] = []
        self._abandoned: set[_Task[Any]] = set()

    def call(
        self,
        fn: Callable[[], R],
        discard: Callable[[R], object],
        remaining: Callable[[], float],
        context: Context,
    ) -> R:
        """Make a call on a worker.

        Args:
            fn: What to call.
            discard: What to do with a result that comes too late.
            remaining: Tells the seconds left to wait.
            context: What to call it in.

        Returns:
            What the call returned.

        Raises:
            AttemptTimeoutError: The call was abandoned, or too many earlier ones still hang.
        """
        if self._is_full():
            raise self._refusal()
        task = _Task(fn, discard, self._abandoned, context)
        try:
            while not self._worker().accept(task):
                pass  # it has ended just now
            if task.wait(remaining) or not task.abandon():
                return task.take()
        except BaseException:  # what the call raised, or an interruption of this thread
            if not task.abandon():
                task.throw_away()
            raise
        raise AttemptTimeoutError(self._provider, self.timeout)

    def _is_full(self) -> bool:
        if len(self._abandoned) < MAX_ABANDONED:
            return False
        for task in self._abandoned.copy():
            if not task.is_hanging():
                self._abandoned.discard(task)
        return len(self._abandoned) >= MAX_ABANDONED

    def _refusal(self) -> AttemptTimeoutError:
        error = AttemptTimeoutError(self._provider, self.timeout)
        error.add_note(f"It was not even asked: {MAX_ABANDONED} earlier calls still hang.")
        return error

    def _worker(self) -> "_Worker":
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # another caller was faster
                break
            if worker.is_alive():  # not one of the process that this one was forked from
                return worker
        worker = _Worker(f"resilience-{self._provider}", self._idle)
        Context().run(worker.start)  # where threads inherit a context, it outlives this call
        return worker


@final
class _Task(Generic[R]):
    """One call; its outcome belongs to the first who claims it, the caller or the worker."""

    def __init__(
        self,
        fn: Callable[[], R],
        discard: Callable[[R], object],
        abandoned: "set[_Task[Any]]",
        context: Context,
    ) -> None:
        self.worker: _Worker | None = None  # since it was given this task
        self._is_over = False
        self._fn = fn
        self._discard = discard
        self._abandoned = abandoned
        self._context = context
        self._claim = Lock()  # taken once, by whoever claims the outcome
        self._done = Lock()  # released once, when the caller may take the outcome
        self._done.acquire()
        # What the call has brought.
        self._error: BaseException | None = None
        self._results: list[R] = []

    def wait(self, remaining: Callable[[], float]) -> bool:
        """Wait for the outcome; in the caller. False if the time is up."""
        while (left := remaining()) > 0:
            if self._done.acquire(timeout=min(left, TIMEOUT_MAX)):
                return True
        return False

    def take(self) -> R:
        """Return or raise what the call has brought; in the caller."""
        error, self._error = self._error, None
        if error is None:
            return self._results[0]  # and left there, in case of an interruption here
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, which must not hold it

    def abandon(self) -> bool:
        """Leave the call behind; in the caller. False if its outcome is there by now."""
        if self.worker is not None:  # else no thread will ever work on it
            self._abandoned.add(self)
        if self._claim.acquire(blocking=False):
            return True
        self._abandoned.discard(self)
        return False

    def is_hanging(self) -> bool:
        """Tell whether a thread of this process still works on it."""
        return not self._is_over and self.worker is not None and self.worker.is_alive()

    def work(self, worker: "_Worker") -> None:
        """Make the call and deliver what it brings; in the worker."""
        try:
            self._results.append(self._context.run(self._fn))
        except BaseException as error:
            self._error = error
        if self._claim.acquire(blocking=False):
            self._is_over = True
            worker.rest()  # before the caller goes on, so that its next call finds it
            self._done.release()
        else:
            self.throw_away()
            self._is_over = True
            self._abandoned.discard(self)
            worker.rest()

    def throw_away(self) -> None:
        """Drop what came too late."""
        error, self._error = self._error, None
        if error is not None:
            logger.debug("an abandoned call raised %s", type(error).__name__)
        for result in self._results:
            try:
                self._discard(result)
            except Exception as raised:
                log_swallowed("closing what an abandoned call returned", raised)


@final
class _Worker(Thread):
    """A thread that works on one task after the other."""

    def __init__(self, name: str, idle: "list[_Worker]") -> None:
        super().__init__(name=name, daemon=True)
        self._idle = idle
        # Reentrant, because a finalizer or a signal handler may want a worker while it is held.
        self._lock = RLock()
        # Guarded by the lock: either a task is accepted or the thread ends.
        self._tasks: SimpleQueue[_Task[Any]] = SimpleQueue()
        self._has_ended = False

    def accept(self, task: _Task[Any]) -> bool:
        """Work on a task as soon as possible; False if the thread has ended."""
        with self._lock:
            if self._has_ended:
                return False
            task.worker = self
            self._tasks.put(task)
            return True

    def rest(self) -> None:
        """Be there for the next task."""
        self._idle.append(self)

    @override
    def run(self) -> None:
        while not self._has_ended:  # without the lock: only this thread writes it
            try:
                self._tasks.get(timeout=IDLE_SECONDS).work(self)
            except Empty:
                self._end()

    def _end(self) -> None:
        """End the thread, unless a task has come just now."""
        with self._lock:
            self._has_ended = True  # first, so that who comes in between looks for another
            self._has_ended = self._tasks.empty()
        if self._has_ended:
            with suppress(ValueError):  # a caller has taken it, and will look for another
                self._idle.remove(self)
