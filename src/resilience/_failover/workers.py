"""Worker threads, whose calls can be abandoned.

A synchronous call cannot be interrupted. It can only be abandoned: the caller stops waiting, and
what the call returns in the end is discarded by the thread that made it.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX, Lock, RLock, Thread
from typing import Any, Generic, TypeVar, final

from typing_extensions import override

from resilience._log import log_suppressed, logger
from resilience.exceptions import AttemptTimeoutError

R = TypeVar("R")

IDLE_SECONDS = 30.0
"""How long an idle thread waits for its next call before it ends."""

SHORTEST_WAIT = 0.005
"""Seconds that a caller waits at least, since what is left may grow again while it waits."""

MAX_ABANDONED = 64
"""How many abandoned calls of one provider may hang; with so many, further calls are refused."""


@final
class WorkerPool:
    """Makes the calls of one provider on daemonic threads, which are used again.

    May be used by any number of threads, and in forked children. What is shared needs no lock:
    each operation on the list and on the set is atomic.
    """

    def __init__(self, provider: str, timeout: float) -> None:
        """Prepare for calls that may take so many seconds."""
        self.timeout: float = timeout
        self.provider: str = provider
        self.abandoned: set[Task[Any]] = set()
        self._idle: list[_Worker] = []

    def check_room(self) -> None:
        """Raise `AttemptTimeoutError` if too many abandoned calls still hang."""
        if len(self.abandoned) < MAX_ABANDONED:
            return
        self._forget_ended()
        hanging = len(self.abandoned)
        if hanging >= MAX_ABANDONED:
            logger.warning(
                "provider %s is not called: %d abandoned calls still hang",
                self.provider,
                hanging,
                extra={"resilience_provider": self.provider},
            )
            raise AttemptTimeoutError(self.provider, self.timeout, hanging)

    def _forget_ended(self) -> None:
        for task in self.abandoned.copy():
            if not task.is_hanging():
                self.abandoned.discard(task)

    def start(self, fn: Callable[[], R], discard: Callable[[R], object]) -> "Task[R]":
        """Start a call on a worker.

        Args:
            fn: What to call.
            discard: What to do with a result that comes too late.

        Returns:
            The call, whose result the caller has to wait for.

        Raises:
            RuntimeError: No thread can be started.
        """
        task = Task(self, fn, discard)
        try:
            while not self._worker().accept(task):
                pass  # it has ended just now
        except BaseException:  # an interruption after a worker has accepted it, or no worker
            task.give_up()
            raise
        return task

    def _worker(self) -> "_Worker":
        if sys.is_finalizing():
            # A thread that is started now may never run, and its caller would wait for ever.
            msg = f"provider {self.provider!r} needs a thread, but the interpreter is shutting down"
            raise RuntimeError(msg)
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # another caller was faster
                break
            if worker.is_alive():  # not one of the process that this one was forked from
                return worker
        worker = _Worker(f"resilience-{self.provider}", self._idle)
        Context().run(worker.start)  # where threads inherit a context, it outlives this call
        return worker


@final
class Task(Generic[R]):
    """One call; either its caller or its worker claims the outcome, and the first one gets it."""

    def __init__(
        self, pool: WorkerPool, fn: Callable[[], R], discard: Callable[[R], object]
    ) -> None:
        """Prepare a call that no worker has accepted yet."""
        self.worker: _Worker | None = None  # set by the worker that accepts this task
        self._pool = pool
        self._is_over = False
        self._fn = fn
        self._discard = discard
        self._claim = Lock()  # taken once, by whoever claims the outcome
        self._done = Lock()  # released once, when the caller may take the outcome
        self._done.acquire()
        # The outcome of the call.
        self._error: BaseException | None = None
        self._results: list[R] = []

    def wait(self, remaining: Callable[[], float]) -> R:
        """Wait for the outcome, and return or raise it; in the caller.

        Args:
            remaining: Returns the seconds left to wait.

        Returns:
            What the call returned.

        Raises:
            AttemptTimeoutError: The time is up, and the call was abandoned.
        """
        try:
            if self._is_done_within(remaining) or not self._abandon():
                return self._result()
        except BaseException:  # what the call raised, or an interruption of this thread
            self.give_up()
            raise
        raise AttemptTimeoutError(self._pool.provider, self._pool.timeout)

    def give_up(self) -> None:
        """Abandon the call, or discard the outcome that was delivered meanwhile; in the caller."""
        if not self._abandon():
            self._discard_outcome()

    def is_hanging(self) -> bool:
        """Tell whether a thread of this process still works on it."""
        return not self._is_over and self.worker is not None and self.worker.is_alive()

    def work(self, worker: "_Worker") -> None:
        """Make the call and deliver its outcome; in the worker."""
        try:
            self._results.append(self._fn())
        except BaseException as error:
            self._error = error
        if self._claim.acquire(blocking=False):
            self._is_over = True
            worker.mark_idle()  # before the caller goes on, so that its next call finds it
            self._done.release()
        else:
            self._discard_outcome()
            self._is_over = True
            self._pool.abandoned.discard(self)
            worker.mark_idle()

    def _is_done_within(self, remaining: Callable[[], float]) -> bool:
        while (left := remaining()) > 0:
            if self._done.acquire(timeout=min(max(left, SHORTEST_WAIT), TIMEOUT_MAX)):
                return True
        return False

    def _result(self) -> R:
        """Return or raise the outcome; in the caller."""
        error, self._error = self._error, None
        if error is None:
            return self._results[0]  # and left there, in case of an interruption here
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, which must not hold it

    def _abandon(self) -> bool:
        """Abandon the call; in the caller. False if its outcome was delivered meanwhile."""
        if self.worker is not None:  # else no thread will ever work on it
            self._pool.abandoned.add(self)
        if self._claim.acquire(blocking=False):
            return True
        self._pool.abandoned.discard(self)
        return False

    def _discard_outcome(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            logger.debug("an abandoned call raised %s", type(error).__name__)
        for result in self._results:
            try:
                self._discard(result)
            except Exception as raised:
                log_suppressed("closing what an abandoned call returned", raised)


@final
class _Worker(Thread):
    """A thread that works on one task after the other."""

    def __init__(self, name: str, idle: "list[_Worker]") -> None:
        super().__init__(name=name, daemon=True)
        self._idle = idle
        # Reentrant, because a finalizer or a signal handler may need a worker while it is held.
        self._lock = RLock()
        # Guarded by the lock: either a task is accepted or the thread ends.
        self._tasks: SimpleQueue[Task[Any]] = SimpleQueue()
        self._has_ended = False

    def accept(self, task: Task[Any]) -> bool:
        """Work on a task as soon as possible; False if the thread has ended."""
        with self._lock:
            if self._has_ended:
                return False
            task.worker = self
            self._tasks.put(task)
            return True

    def mark_idle(self) -> None:
        """Offer the thread for the next task."""
        self._idle.append(self)

    @override
    def run(self) -> None:
        while not self._has_ended:  # without the lock: only this thread writes it
            try:
                self._tasks.get(timeout=IDLE_SECONDS).work(self)
            except Empty:
                self._end()

    def _end(self) -> None:
        """End the thread, unless a task was accepted just now."""
        with self._lock:
            self._has_ended = True  # first, so that a caller in between uses another worker
            self._has_ended = self._tasks.empty()
        if self._has_ended:
            with suppress(ValueError):  # a caller has taken it, and will use another
                self._idle.remove(self)
