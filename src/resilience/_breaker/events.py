"""The lock of a breaker, and its events: dispatched in order, one at a time, outside the lock."""

import logging
from collections.abc import Callable
from threading import RLock, get_ident
from typing import TypeVar, TypeVarTuple, final

from resilience._breaker.config import State, StateChange
from resilience._fork import renew_after_fork
from resilience._log import log_suppressed, logger
from resilience._settings import refuse_coroutine

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

UNNAMED = "(unnamed)"
"""Used in log lines instead of an empty name."""


@final
class EventQueue:
    """The lock of a breaker, and the events of the changes that are made under it.

    The thread that makes a change dispatches its event, after the lock is released. If another
    thread is dispatching at that time, that thread also dispatches this event. An event that a
    listener causes is dispatched after the present one.
    """

    __slots__ = (
        "__weakref__",
        "_dispatcher",
        "_events",
        "_inside",
        "_listener",
        "_lock",
        "append",
        "interrupt_on",
        "watchers",
    )

    def __init__(self, listener: Callable[[StateChange], object] | None) -> None:
        """Keep the listener of a breaker."""
        self._listener = listener
        # Exceptions with which a framework interrupts the caller of a group: they are not
        # suppressed if a hook raises them. Set before the breaker is used.
        self.interrupt_on: tuple[type[BaseException], ...] = ()
        # Called for each change, before the listener, which may be slow. They must neither block
        # nor raise. Replaced as a whole, with the lock held; read without it.
        self.watchers: tuple[Callable[[], object], ...] = ()
        # Reentrant, because a garbage collection or a signal may interrupt a thread that holds the
        # lock, and run a finalizer or a handler that uses the same breaker.
        self._lock = RLock()
        # The threads that hold the lock, are about to take it, or have just released it. A thread
        # adds and discards only itself, and a set does each in one step.
        self._inside: set[int] = set()
        # Guarded by the lock. `_dispatcher` is cleared without it, but only by that thread itself.
        self._events: list[StateChange] = []
        self._dispatcher: int | None = None
        # Adds an event; called with the lock held, right after the change of state. It is the
        # method of the list itself: in a Python function, a signal handler could add a later event
        # before this one.
        self.append: Callable[[StateChange], None] = self._events.append
        renew_after_fork(self)

    def run_locked(self, change: Callable[[*Ts], R], *args: *Ts) -> R:
        """Make a change of state under the lock, then dispatch the events that it has caused."""
        thread, inside = get_ident(), self._inside
        is_nested = thread in inside
        try:
            # Before the lock is taken, and until after its release. In the other order, code that a
            # signal or a garbage collection runs in between would dispatch events under the lock.
            inside.add(thread)
            with self._lock:
                result = change(*args)
        finally:
            if not is_nested:
                inside.discard(thread)
                # Without the lock: a thread always sees the events that it has added itself.
                if self._events:
                    self._dispatch_all()
        # Not inside the section: an exception between a `return` there and the release of the lock
        # would leave it locked for ever.
        return result

    def _dispatch_all(self) -> None:
        # Without the lock: a dispatching thread first clears `_dispatcher`, and then checks for
        # further events; this thread has added its events before it reads `_dispatcher`. So one of
        # the two threads dispatches them.
        dispatcher, thread = self._dispatcher, get_ident()
        if dispatcher is not None:
            return
        try:
            if self.run_locked(self._start_locked, thread):
                while self._events:
                    self._dispatch_first()
        finally:
            # Without the lock: only this thread writes and removes its own number.
            if self._dispatcher == thread:
                self._dispatcher = None
                if self._events:  # added by a thread that left them to this one
                    self._dispatch_all()

    def _start_locked(self, thread: int) -> bool:
        if self._dispatcher is None:
            self._dispatcher = thread
        return self._dispatcher == thread

    def _dispatch_first(self) -> None:
        change = self._events[0]
        try:
            # Inside `try`: if the thread is interrupted, either the event is still in the queue or
            # the listener is called.
            del self._events[0]
            for watcher in self.watchers:
                watcher()
            _log(change)
        finally:  # a log handler may raise, or be interrupted: the listener is called anyway
            if self._listener is not None:
                try:
                    refuse_coroutine("on_state_change", self._listener(change))
                except self.interrupt_on:
                    raise
                except Exception as raised:
                    log_suppressed("on_state_change", raised)

    def _renew_after_fork(self) -> None:
        """Replace the lock, and remove the threads of the parent; in the child."""
        thread = get_ident()
        self._lock = RLock()
        # Changed in place: this thread may itself have forked in a locked section or a listener.
        self._inside.intersection_update({thread})
        if self._dispatcher != thread:
            self._dispatcher = None


def _log(change: StateChange) -> None:
    cause = None if change.cause is None else type(change.cause).__name__
    logger.log(
        logging.WARNING if change.new is State.OPEN else logging.INFO,
        "circuit %s is %s",
        change.name or UNNAMED,
        change.new,
        extra={
            "resilience_circuit": change.name,
            "resilience_old_state": str(change.old),
            "resilience_new_state": str(change.new),
            "resilience_error": cause,
        },
    )
