"""The manual clock, and the scripts and streams of the fakes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from threading import Lock
from typing import Generic, TypeAlias, TypeVar, final

from typing_extensions import override

R = TypeVar("R")
S = TypeVar("S")


@final
class ManualClock:
    """A clock for `CircuitBreakerConfig.clock` whose time changes only with `advance()`."""

    def __init__(self, start: float = 0.0) -> None:
        """Make a clock that begins at a number of seconds."""
        self._lock = Lock()
        self._now = start

    def __call__(self) -> float:
        """Return the present time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Advance the clock.

        Args:
            seconds: By how much; 0 or more.

        Raises:
            ValueError: The seconds are negative.
        """
        if seconds < 0:
            msg = f"seconds must be 0 or more, got {seconds!r}"
            raise ValueError(msg)
        with self._lock:
            self._now += seconds


@final
@dataclass(frozen=True, slots=True)
class Delay:
    """An item of a script: advances the fake's manual clock.

    Attributes:
        seconds: By how much the clock is advanced.
    """

    seconds: float


Action: TypeAlias = BaseException | Delay | Callable[[], object]
"""An item of a script that has no result: it raises, advances the clock, or calls a function."""


@final
class FakeStream(Iterator[R]):
    """A provider's stream, which follows one step of a script and records its closing.

    Attributes:
        closed: How many times `close()` was called.
    """

    def __init__(self, items: Iterator[R]) -> None:
        """Make a stream of the items of an iterator."""
        self._items = items
        self._lock = Lock()
        self.closed: int = 0

    @override
    def __next__(self) -> R:
        """Return the next item, or raise as the script defines; a closed stream has ended."""
        if self.closed:
            raise StopIteration
        return next(self._items)

    def close(self) -> None:
        """Record the call."""
        with self._lock:
            self.closed += 1


class Script(Generic[S]):
    """Steps of type S, one for each call."""

    def __init__(self, steps: Sequence[S], clock: ManualClock | None, *kinds: type) -> None:
        """Make a script of steps, each an instance of one of several types."""
        for step in steps:
            if not isinstance(step, kinds):
                names = ", ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                msg = f"a step of a script must be one of {names}, got {step!r}"
                raise TypeError(msg)
        self._lock = Lock()
        self._steps = list(steps)
        self._clock = clock

    def next_step(self) -> S:
        with self._lock:
            return self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]

    def act(self, action: Action) -> None:
        """Perform an item that has no result."""
        if isinstance(action, BaseException):
            raise action.with_traceback(None)  # otherwise its traceback grows each time
        if isinstance(action, Delay):
            if self._clock is None:
                msg = f"{action} needs the fake's clock, which is not set"
                raise ValueError(msg)
            self._clock.advance(action.seconds)
        else:
            action()


def started(items: Iterator[R], *, lazy: bool) -> Iterator[R]:
    """Return the items; if not lazy, get the first one now."""
    return items if lazy else chain(tuple(islice(items, 1)), items)
