"""Each interleaving of a few threads has the same results as some sequential order.

The quick cases run with the other tests; `RESILIENCE_LONG=1` adds the long ones.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping

import pytest

from breaker_oracle import BreakerOracle, Change, Permit
from interleavings.histories import DELAY, Operation, does_the_same, is_explained
from interleavings.schedules import explore
from interleavings.stepper import CooperativeLock, Stepper
from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    State,
    StateChange,
)
from resilience._breaker import breaker as breaker_module
from resilience._breaker import events, periods
from resilience.testing import ManualClock

MAX_FAILURES = 2
HALF_OPEN_MAX = 2
RESET_TIMEOUT = 10

STATE = {str(breaker_module.__file__): frozenset({"_period", "failures", "until"})}
"""Attributes that are read without the lock to admit calls and to record outcomes."""

EVENTS = {**STATE, str(events.__file__): frozenset({"_dispatcher"})}
"""The same, and attributes that are read without the lock to dispatch events."""

Script = tuple[str, ...]
"""Operations of one thread, such as "acquire a", "fail a", "reset" or "state".

"work a" and "break a" are whole calls of `execute`, with a function that succeeds or raises.
"""

CLOSED: Script = ()
SHAKY: Script = ("acquire w", "acquire x", "acquire y", "fail y")
OPEN: Script = ("acquire w", "acquire x", "acquire y", "fail y", "fail x")
DUE: Script = ("acquire w", "acquire x", "acquire y", "fail y", "fail x", "advance")
PROBING: Script = (*DUE, "acquire p")
FULL: Script = (*PROBING, "acquire q")
ALMOST_CLOSED: Script = (*FULL, "succeed p")
HUNG: Script = (*FULL, "advance")

QUICK: list[tuple[Script, tuple[Script, ...]]] = [
    (CLOSED, (("acquire a", "fail a"), ("acquire b", "fail b"))),
    (SHAKY, (("fail w",), ("succeed x",), ("acquire a",))),
    (SHAKY, (("fail w", "state"), ("acquire a", "succeed a"))),
    (SHAKY, (("fail w",), ("isolate", "state"))),
    (PROBING, (("succeed p", "state"), ("acquire a", "succeed a"))),
    (FULL, (("release p",), ("acquire a",), ("acquire b",))),
    (ALMOST_CLOSED, (("succeed q",), ("acquire a",), ("state",))),
    (ALMOST_CLOSED, (("fail q",), ("reset", "state"))),
    (HUNG, (("acquire a",), ("acquire b",), ("succeed p",))),
    (SHAKY, (("work a",), ("fail w",))),
    (ALMOST_CLOSED, (("work a",), ("succeed q",))),
    (SHAKY, (("fail w",), ("snapshot",), ("snapshot",))),
    (OPEN, (("force a", "succeed a"), ("force b", "succeed b"))),
    (OPEN, (("force a", "delay a"), ("delay w", "snapshot"))),
    (FULL, (("force a", "fail a"), ("succeed p", "snapshot"))),
]

ANNOUNCING: list[tuple[Script, tuple[Script, ...]]] = [
    (CLOSED, (("isolate",), ("reset",))),
    (PROBING, (("fail p",), ("reset",))),
]

LONG: list[tuple[Script, tuple[Script, ...]]] = [
    (SHAKY, (("fail w",), ("reset",), ("state",))),
    (DUE, (("acquire a",), ("acquire b",), ("state",))),
    (DUE, (("acquire a", "succeed a"), ("acquire b", "fail b"))),
    (DUE, (("acquire a", "release a"), ("acquire b", "succeed b"))),
    (PROBING, (("fail p",), ("succeed w",), ("acquire a",))),
    (SHAKY, (("fail w",), ("succeed x",), ("reset",))),
    (ALMOST_CLOSED, (("succeed q",), ("isolate",), ("acquire a",))),
    (HUNG, (("acquire a", "succeed a"), ("succeed p",))),
    (SHAKY, (("work a",), ("break b",))),
    (DUE, (("work a",), ("work b",))),
    (SHAKY, (("work a",), ("fail w",), ("state",))),
    (OPEN, (("force a", "succeed a"), ("acquire b", "reset"))),
    (OPEN, (("force a", "succeed a"), ("reset", "acquire b"))),
    (OPEN, (("force a", "succeed a"), ("delay w",), ("state",))),
]


class Case:
    """A breaker and its oracle in the same state, and threads that use the breaker."""

    def __init__(
        self,
        prepared: Script,
        scripts: tuple[Script, ...],
        shared: Mapping[str, frozenset[str]],
    ) -> None:
        """Prepare both, and start the threads."""
        self.clock = ManualClock()
        self.changes: list[Change] = []
        config = CircuitBreakerConfig(
            max_failures=MAX_FAILURES,
            half_open_max=HALF_OPEN_MAX,
            reset_timeout=RESET_TIMEOUT,
            retry_after=lambda error: DELAY if error.args else None,
            clock=self.clock,
            on_state_change=self._on_change,
        )
        self.breaker = CircuitBreaker(config)
        self.lock = CooperativeLock()
        self.breaker._events._lock = self.lock  # type: ignore[assignment]
        self.permits: dict[str, periods.Permit] = {}
        self.oracle = BreakerOracle(MAX_FAILURES, HALF_OPEN_MAX, RESET_TIMEOUT)
        self.known: dict[str, Permit] = {}
        for action in prepared:
            self._prepare(action)
        self.history: list[Operation] = []
        self.stepper = Stepper([self._body(script) for script in scripts], shared)
        self.lock.stepper = self.stepper

    def check(self) -> None:
        """Check that some sequential order has the results of the history."""
        now = self.clock()
        final = (str(self.breaker.state), self.changes)

        assert is_explained(self.history, self.oracle, self.known, now, final), self.history

    def discard(self) -> None:
        """Drop the permits, which releases their slots while no thread takes steps."""
        self.lock.stepper = None
        self.permits.clear()

    def _prepare(self, action: str) -> None:
        if action == "advance":
            self.clock.advance(RESET_TIMEOUT)
            return
        name, _, permit = action.partition(" ")
        operation = Operation(name, permit, self._do(name, permit), 0, 0)
        assert does_the_same(self.oracle, self.known, operation, self.clock())

    def _body(self, script: Script) -> Callable[[], None]:
        def body() -> None:
            for action in script:
                name, _, permit = action.partition(" ")
                if name in {"work", "break"}:
                    self._execute(name, permit)
                    continue
                if permit not in self.permits and name in {"succeed", "fail", "delay", "release"}:
                    continue  # was not admitted
                begin = self._begin()
                self._end(name, permit, self._do(name, permit), begin)

        return body

    def _execute(self, name: str, permit: str) -> None:
        """Make a whole call: an admission and an end."""
        begin = self._begin()

        def work() -> None:
            nonlocal begin
            self._end("acquire", permit, True, begin)  # noqa: FBT003
            begin = self._begin()
            if name == "break":
                raise ConnectionError

        try:
            self.breaker.execute(work)
        except CircuitOpenError:
            self._end("acquire", permit, False, begin)  # noqa: FBT003
        except ConnectionError:
            self._end("fail", permit, None, begin)
        else:
            self._end("succeed", permit, None, begin)

    def _begin(self) -> int:
        self.stepper.pause(frozenset({("history", "begin")}))
        return self.stepper.now

    def _end(self, name: str, permit: str, result: object, begin: int) -> None:
        self.stepper.pause(frozenset({("history", "end")}))
        self.history.append(Operation(name, permit, result, begin, self.stepper.now))

    def _do(self, name: str, permit: str) -> object:
        breaker = self.breaker
        if name in {"acquire", "force"}:
            admitted = breaker._try_acquire() if name == "acquire" else breaker._try_force()
            if admitted is not None:
                self.permits[permit] = admitted
            return admitted is not None
        if name == "state":
            return str(breaker.state)
        if name == "snapshot":
            seen = dataclasses.astuple(breaker.snapshot())
            return tuple(str(each) if isinstance(each, State) else each for each in seen)
        if name == "succeed":
            breaker._record_success(self.permits[permit])
        elif name == "fail":
            breaker._record_failure(self.permits[permit], ConnectionError())
        elif name == "delay":
            breaker._record_failure(self.permits[permit], ConnectionError("busy"))
        elif name == "release":
            breaker._release(self.permits[permit])
        elif name == "reset":
            breaker.reset()
        else:
            breaker.isolate()
        return None

    def _on_change(self, change: StateChange) -> None:
        cause = None if change.cause is None else type(change.cause)
        self.changes.append(Change(change.name, str(change.old), str(change.new), cause))


def _schedules(
    prepared: Script, scripts: tuple[Script, ...], shared: Mapping[str, frozenset[str]]
) -> int:
    return explore(lambda: Case(prepared, scripts, shared))


@pytest.mark.parametrize(("prepared", "scripts"), QUICK)
def test_every_interleaving_is_explained(prepared: Script, scripts: tuple[Script, ...]) -> None:
    """Each history of a quick case has the results of some sequential order."""
    schedules = _schedules(prepared, scripts, STATE)

    print(f"{schedules} schedules")
    assert schedules > 1


@pytest.mark.parametrize(("prepared", "scripts"), ANNOUNCING)
def test_every_interleaving_is_announced(prepared: Script, scripts: tuple[Script, ...]) -> None:
    """Each event is dispatched once and in order, however two threads dispatch them."""
    schedules = _schedules(prepared, scripts, EVENTS)

    print(f"{schedules} schedules")
    assert schedules > 1


@pytest.mark.skipif("RESILIENCE_LONG" not in os.environ, reason="takes minutes")
@pytest.mark.parametrize(("prepared", "scripts"), [*QUICK, *LONG])
def test_every_long_interleaving_is_explained(
    prepared: Script, scripts: tuple[Script, ...]
) -> None:
    """Each history of a long case has the results of some sequential order."""
    schedules = _schedules(prepared, scripts, EVENTS)

    print(f"{schedules} schedules")
    assert schedules > 1
