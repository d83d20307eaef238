"""Properties of the CPython that runs the tests."""

import gc
import sys
import sysconfig
from threading import Event
from time import monotonic

HAS_GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")
"""Whether it has the GIL, so that an object without references is freed at once.

Without the GIL an object is freed by the thread that made it. If another thread drops it, it is
freed when the first thread next runs bytecode, or at the next garbage collection.
"""

IS_EXPERIMENTAL = not HAS_GIL and sys.version_info < (3, 14)
"""CPython 3.13 without the GIL, which has two faults that concern tests.

If a thread was ever started, the interpreter clears every module at its exit before it frees the
objects of the main module, so finalizers do not work. And a forked child waits for ever for an
object that another thread of its parent was using at the moment of the fork.
"""


class Freed:
    """Counts objects that were freed, and waits for them.

    A thread that waits without running bytecode may wait for an object that it has to free itself.
    """

    def __init__(self, number: int = 1) -> None:
        """Wait for a number of objects."""
        self._number = number
        self._freed: list[None] = []

    def count(self) -> None:
        """Count one object, as its finalizer."""
        # Without a lock: a finalizer may run in the thread that is waiting.
        self._freed.append(None)

    def wait(self, seconds: float) -> bool:
        """Wait until all have been freed; False if the time limit has elapsed."""
        end, pause = monotonic() + seconds, Event()
        while len(self._freed) < self._number and monotonic() < end:
            pause.wait(0.001)  # and run bytecode in between
            if not HAS_GIL:
                gc.collect()
        return len(self._freed) >= self._number
