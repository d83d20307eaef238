"""Objects whose locks are replaced, and whose threads are started again, in a forked child.

A fork copies a lock that another thread holds at that moment, and in the child no thread releases
the copy. It copies no other thread.
"""

import os
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """An object whose locks are replaced in a forked child."""

    def _renew_after_fork(self) -> None:
        """Replace the locks, and discard unfinished work of other threads; in the child."""
        ...


class Restartable(Protocol):
    """An object with threads, which a forked child starts again."""

    def _restart_after_fork(self) -> None:
        """Start new threads, after all locks have been replaced; in the child."""
        ...


_forkables: "WeakSet[Forkable]" = WeakSet()
_restartables: "WeakSet[Restartable]" = WeakSet()


def renew_after_fork(owner: Forkable) -> None:
    """Register an object whose locks are replaced in each forked child, as long as it exists."""
    _forkables.add(owner)


def restart_after_fork(owner: Restartable) -> None:
    """Register an object whose threads are started in each forked child, as long as it exists."""
    _restartables.add(owner)


def _renew_all() -> None:
    for owner in tuple(_forkables):
        owner._renew_after_fork()
    for restartable in tuple(_restartables):
        restartable._restart_after_fork()


def _ignore(*, after_in_child: Callable[[], None]) -> None:
    """Do nothing; used on systems where a process cannot be forked."""


getattr(os, "register_at_fork", _ignore)(after_in_child=_renew_all)
