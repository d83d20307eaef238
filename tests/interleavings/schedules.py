"""Runs threads in every order of their steps that may change the result.

`explore` runs a case repeatedly, once for each order. Two steps are independent if neither writes
what the other accesses; of the orders that differ only in independent steps, one is enough. Another
order is run only if two steps of an earlier one race (dynamic partial-order reduction with source
sets and sleep sets; Abdulla, Aronis, Jonsson and Sagonas, 2014).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol, TypeAlias

from interleavings.stepper import LOCK, Access, Stepper

Clock: TypeAlias = dict[int, int]
"""For each thread the index of its last step that has to come before some step, or is that step."""


class Case(Protocol):
    """Threads, and a check when all of them have ended."""

    @property
    def stepper(self) -> Stepper:
        """The threads, none of which has begun."""
        ...

    def check(self) -> None:
        """Check the results of the threads; called if their schedule is new."""

    def discard(self) -> None:
        """Drop the remaining objects of the threads, when all of them have ended."""


@dataclass
class _Node:
    """A place in a schedule: its possible steps, those to leave out or to try, the chosen one."""

    enabled: dict[int, Access]
    asleep: dict[int, Access]
    to_try: set[int]
    chosen: int = -1
    clock: Clock = field(default_factory=dict)
    releases_lock: bool = False

    @property
    def access(self) -> Access:
        """The access of the chosen step."""
        return self.enabled[self.chosen]

    def choose(self) -> bool:
        """Choose a step that has not been tried; False if none is left."""
        if self.chosen >= 0:
            self.asleep[self.chosen] = self.access
        self.chosen = next((each for each in self.to_try if each not in self.asleep), -1)
        return self.chosen >= 0

    def comes_before(self, number: int, access: Access) -> bool:
        """Return whether the chosen step has to come before a later step of a thread."""
        return (
            self.chosen == number
            or _conflict(self.access, access)
            or (self.releases_lock and _conflict(LOCK, access))
        )

    def asleep_after(self) -> dict[int, Access]:
        """Return the steps to leave out after the chosen step: those that are independent of it."""
        return {
            number: other
            for number, other in self.asleep.items()
            if not _conflict(self.access, other)
        }


def explore(make: Callable[[], Case]) -> int:
    """Run a case under every schedule that may change the result; return their number."""
    schedules = 0
    nodes: list[_Node] = []
    while True:
        schedules += _run_once(make(), nodes)
        while nodes and not _choose(nodes):
            pass
        if not nodes:
            return schedules


def _run_once(case: Case, nodes: list[_Node]) -> bool:
    """Run the chosen steps, then continue to the end; False if it repeats an earlier schedule."""
    stepper = case.stepper
    depth = 0
    while enabled := stepper.enabled():
        if depth == len(nodes) and not stepper.finishes:
            stepper.finishes = not _extend(nodes, stepper)
        if depth < len(nodes):
            stepper.step(nodes[depth].chosen)
            nodes[depth].releases_lock = stepper.released_lock
        else:
            stepper.step(enabled[0])
        depth += 1
    assert all(stepper.done), "the threads wait for each other"
    if stepper.errors:
        raise stepper.errors[0]
    if not stepper.finishes:
        case.check()
    case.discard()
    return not stepper.finishes


def _extend(nodes: list[_Node], stepper: Stepper) -> bool:
    """Add the present place to a schedule; False if each of its steps is to be left out."""
    for number, access in enumerate(stepper.next_access):
        if not stepper.done[number]:
            _plan_reversals(nodes, number, access)
    enabled = {number: stepper.next_access[number] for number in stepper.enabled()}
    asleep = nodes[-1].asleep_after() if nodes else {}
    nodes.append(_Node(enabled, asleep, set([each for each in enabled if each not in asleep][:1])))
    return _choose(nodes)


def _choose(nodes: list[_Node]) -> bool:
    """Choose a new step at the last place; remove the place and return False if none is left."""
    node = nodes.pop()
    if not node.choose():
        return False
    node.clock = _clock(nodes, node.chosen, node.access)
    nodes.append(node)
    return True


def _clock(nodes: list[_Node], number: int, access: Access) -> Clock:
    """Return the clock of the next step of a thread."""
    clock: Clock = {}
    for node in nodes:
        if node.comes_before(number, access):
            clock.update({key: max(at, clock.get(key, -1)) for key, at in node.clock.items()})
    clock[number] = len(nodes)
    return clock


def _plan_reversals(nodes: list[_Node], number: int, access: Access) -> None:
    """Plan a schedule for each earlier step that races with the next step of a thread.

    The two steps conflict, and no other step orders them. In the planned schedule the next step of
    the thread comes first.
    """
    past = next((node.clock for node in reversed(nodes) if node.chosen == number), {})
    clock = _clock(nodes, number, access)
    for index, node in enumerate(nodes):
        is_ordered = node.chosen == number or past.get(node.chosen, -1) >= index
        if not is_ordered and _conflict(node.access, access):
            first = _first_threads(nodes, index, number, clock)
            if node.to_try.isdisjoint(first):
                node.to_try.add(first[0])


def _first_threads(nodes: list[_Node], index: int, number: int, clock: Clock) -> list[int]:
    """Return the threads that could be the first in a schedule that reverses a race.

    That schedule has the next step of a thread, and the steps after the one at the index that do
    not have to come after it. A thread can be the first if nothing of this comes before its step.
    """
    thread = nodes[index].chosen
    steps = [
        (at, node.chosen, node.clock)
        for at, node in enumerate(nodes)
        if at > index and node.clock.get(thread, -1) < index
    ]
    steps.append((len(nodes), number, clock))
    return [
        each
        for at, each, its_clock in steps
        if not any(
            earlier < at and its_clock.get(other, -1) >= earlier for earlier, other, _ in steps
        )
    ]


@cache
def _conflict(one: Access, other: Access) -> bool:
    return any(
        name == other_name and (how != other_how or how == "write")
        for name, how in one
        for other_name, other_how in other
    )
