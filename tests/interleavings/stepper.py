"""Runs real threads step by step.

A step ends before each line of the library that accesses state which is read without the lock, and
before each acquisition of the lock; state that is only accessed under the lock needs no further
steps.
"""

import ast
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from _typeshed import TraceFunction

TIMEOUT = 30.0

Access: TypeAlias = frozenset[tuple[str, str]]
"""The accesses of a step: names with "read", "write" or a word that conflicts with all."""

LOCK: Access = frozenset({("lock", "write")})


class Stepper:
    """Runs some threads, one step of one of them at a time."""

    def __init__(
        self, bodies: Sequence[Callable[[], None]], shared: Mapping[str, frozenset[str]]
    ) -> None:
        """Start one thread for each body; none of them runs yet.

        Args:
            bodies: The functions of the threads.
            shared: For each file of the library the attributes that are read without a lock.
        """
        self._points = {file: _accesses(file, names) for file, names in shared.items()}
        self._idents: dict[int, int] = {}
        # Locks that one thread acquires and another one releases: much faster than semaphores.
        self._go = [_taken_lock() for _ in bodies]
        self._back = _taken_lock()
        self.waits_for: list[CooperativeLock | None] = [None for _ in bodies]
        self.next_access: list[Access] = [frozenset() for _ in bodies]
        self.done = [False for _ in bodies]
        self.errors: list[BaseException] = []
        self.now = 0
        self.released_lock = False  # whether the last step has released the lock
        self.finishes = False  # whether a step continues until its thread ends or has to wait
        for number, body in enumerate(bodies):
            threading.Thread(target=self._run, args=(number, body), daemon=True).start()
            assert self._back.acquire(timeout=TIMEOUT)

    def enabled(self) -> list[int]:
        """Return the threads that can take a step."""
        return [
            number
            for number, lock in enumerate(self.waits_for)
            if not self.done[number] and (lock is None or lock.is_free_for(number))
        ]

    def step(self, number: int) -> None:
        """Let one thread take one step."""
        self.now += 1
        self.released_lock = False
        self._go[number].release()
        assert self._back.acquire(timeout=TIMEOUT), "a step does not end"

    def pause(self, access: "Access", lock: "CooperativeLock | None" = None) -> None:
        """End the step of the present thread; the next one begins with an access."""
        number = self.current()
        if self.finishes and (lock is None or lock.is_free_for(number)):
            return
        self.waits_for[number] = lock
        self.next_access[number] = access
        self._back.release()
        assert self._go[number].acquire(timeout=TIMEOUT)
        self.waits_for[number] = None

    def current(self) -> int:
        """Return the number of the present thread."""
        return self._idents[threading.get_ident()]

    def is_stepping(self) -> bool:
        """Return whether the present thread is one of those that take steps."""
        return threading.get_ident() in self._idents

    def _run(self, number: int, body: Callable[[], None]) -> None:
        self._idents[threading.get_ident()] = number
        self.pause(frozenset())
        sys.settrace(self._trace)
        try:
            body()
        except BaseException as error:  # noqa: BLE001
            self.errors.append(error)
        finally:
            sys.settrace(None)
            self.done[number] = True
            self._back.release()

    def _trace(self, frame: FrameType, event: str, _arg: object) -> "TraceFunction | None":
        points = self._points.get(frame.f_code.co_filename)
        if points is None:
            return None
        if event == "line" and frame.f_lineno in points:
            self.pause(points[frame.f_lineno])
        return self._trace


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class CooperativeLock:
    """A reentrant lock that ends the step of a thread that has to wait."""

    def __init__(self) -> None:
        """Make a free lock."""
        self.stepper: Stepper | None = None
        self._owner: int | None = None
        self._depth = 0

    def is_free_for(self, number: int) -> bool:
        """Return whether a thread could take the lock."""
        return self._owner in {None, number}

    def __enter__(self) -> None:
        """Take the lock; a step ends before."""
        stepper = self.stepper
        if stepper is None or not stepper.is_stepping():
            assert self._owner is None
            return
        stepper.pause(LOCK, self)
        assert self.is_free_for(stepper.current())
        self._owner = stepper.current()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        if self.stepper is not None and self._owner is not None:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self.stepper.released_lock = True


@cache
def _accesses(file: str, attributes: frozenset[str]) -> dict[int, Access]:
    """Return for each line of a file which of the attributes it accesses, and how."""
    lines: dict[int, set[tuple[str, str]]] = {}
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in attributes:
            how = "write" if isinstance(node.ctx, ast.Store) else "read"
            lines.setdefault(node.lineno, set()).add((node.attr, how))
    return {line: frozenset(accessed) for line, accessed in lines.items()}
