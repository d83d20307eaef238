"""Worker threads, whose calls can be abandoned.

A synchronous call cannot be interrupted. It can only be abandoned: the caller stops waiting, and
the thread that makes the call discards its late result.
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
"""Minimum wait of a caller in seconds, since the remaining time may grow while it waits."""

MAX_ABANDONED = 64
"""Limit of abandoned calls that hang for one provider; at the limit, further calls are rejected."""


@final
class WorkerPool:
    """Makes the calls to one provider on daemon threads, which are reused.

    May be used by any number of threads, and in forked children. The shared list and set need no
    lock, because each operation on them is atomic.
    """

    def __init__(self, provider: str, timeout: float) -> None:
        """Prepare for calls with a time limit in seconds."""
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
            fn: Function to call.
            discard: Function to call with a result that is returned too late.

        Returns:
            The task; the caller has to wait for its result.

        Raises:
            RuntimeError: No thread can be started.
        """
        task = Task(self, fn, discard)
        try:
            while not self._worker().accept(task):
                pass  # this worker has just ended
        except BaseException:  # no worker can be started, or this thread was interrupted
            task.give_up()
            raise
        return task

    def _worker(self) -> "_Worker":
        if sys.is_finalizing():
            # A thread started now may never run, and its caller would wait for ever.
            msg = f"provider {self.provider!r} needs a thread, but the interpreter is shutting down"
            raise RuntimeError(msg)
        while self._idle:
            try:
                worker = self._idle.pop()
            except IndexError:  # another caller was faster
                break
            if worker.is_alive():  # after a fork, threads of the parent are not alive
                return worker
        worker = _Worker(f"resilience-{self.provider}", self._idle)
        # In an empty context: in some versions of Python a thread inherits and keeps the context.
        Context().run(worker.start)
        return worker


@final
class Task(Generic[R]):
    """One call; its caller and its worker compete for the outcome, and the first one gets it."""

    def __init__(
        self, pool: WorkerPool, fn: Callable[[], R], discard: Callable[[R], object]
    ) -> None:
        """Prepare a call that no worker has accepted yet."""
        self.worker: _Worker | None = None  # set by the worker that accepts this task
        self._pool = pool
        self._is_over = False
        self._fn = fn
        self._discard = discard
        self._claim = Lock()  # taken once, by the thread that claims the outcome
        self._done = Lock()  # released once, when the caller may take the outcome
        self._done.acquire()
        # The outcome of the call.
        self._error: BaseException | None = None
        self._results: list[R] = []

    def wait(self, remaining: Callable[[], float]) -> R:
        """Wait for the outcome, and return or raise it; in the caller.

        Args:
            remaining: Returns the remaining seconds to wait.

        Returns:
            The result of the call.

        Raises:
            AttemptTimeoutError: The time limit has elapsed, and the call was abandoned.
        """
        try:
            if self._is_done_within(remaining) or not self._abandon():
                return self._result()
        except BaseException:  # an exception of the call, or an interruption of this thread
            self.give_up()
            raise
        raise AttemptTimeoutError(self._pool.provider, self._pool.timeout)

    def give_up(self) -> None:
        """Abandon the call, or discard the outcome that was delivered meanwhile; in the caller."""
        if not self._abandon():
            self._discard_outcome()

    def is_hanging(self) -> bool:
        """Return whether a thread of this process still works on it."""
        return not self._is_over and self.worker is not None and self.worker.is_alive()

    def work(self, worker: "_Worker") -> None:
        """Make the call and deliver its outcome; in the worker."""
        try:
            self._results.append(self._fn())
        except BaseException as error:
            self._error = error
        if self._claim.acquire(blocking=False):
            self._is_over = True
            worker.mark_idle()  # before the caller continues, so that its next call can use it
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
            return self._results[0]  # not removed, since this thread may be interrupted here
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame: avoid a reference cycle

    def _abandon(self) -> bool:
        """Abandon the call; in the caller. False if its outcome was delivered meanwhile."""
        if self.worker is not None:  # otherwise no thread will ever work on it
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
                log_suppressed("closing the result of an abandoned call", raised)


@final
class _Worker(Thread):
    """A thread that works on one task after the other."""

    def __init__(self, name: str, idle: "list[_Worker]") -> None:
        super().__init__(name=name, daemon=True)
        self._idle = idle
        # Reentrant, because a finalizer or a signal handler may need a worker while it is held.
        self._lock = RLock()
        # Guarded by the lock, so that either a task is accepted or the thread ends.
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
        """End the thread, unless a task has just been accepted."""
        with self._lock:
            self._has_ended = True  # first, so that a caller in between uses another worker
            self._has_ended = self._tasks.empty()
        if self._has_ended:
            with suppress(ValueError):  # a caller has removed it, and will use another worker
                self._idle.remove(self)
