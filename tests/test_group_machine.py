"""A group and its streams behave like an oracle, whatever the order of events.

`RESILIENCE_LONG=1` makes many more runs.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from inspect import GEN_CLOSED, getgeneratorstate
from itertools import chain, islice, zip_longest
from typing import Literal, TypeAlias, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from typing_extensions import override

from breaker_oracle import BreakerOracle, Change, Permit
from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    StateChange,
    Stream,
)
from resilience.testing import FakeStream, ManualClock

RUNS = 10_000 if "RESILIENCE_LONG" in os.environ else 300
RESET_TIMEOUT = 10
MOST_PROVIDERS = 4


class RefusedError(Exception):
    """It counts and fails over, and may request a delay."""

    def __init__(self, wait: float | None = None) -> None:
        """Fail, and request a delay in seconds."""
        super().__init__(wait)
        self.wait = wait


class BrokenError(Exception):
    """It counts, and is raised to the caller."""


class TooLongError(Exception):
    """It does not count, but fails over."""


class WrongRequestError(Exception):
    """It does not count, and is raised to the caller."""


COUNTED = (RefusedError, BrokenError)
FAILED_OVER = (RefusedError, TooLongError)

Form: TypeAlias = Literal["lazy", "generator", "eager", "owner", "list"]
Action: TypeAlias = Literal["advance", "reset", "isolate", "add", "close"]
Effect: TypeAlias = "tuple[Action, int] | Plan"
"""Something that happens during a call: an action, or another call."""


@dataclass(frozen=True)
class Step:
    """The events while a provider is awaited, and the exception that it raises at the end."""

    effects: tuple[Effect, ...] = ()
    error: BaseException | None = None


@dataclass(frozen=True)
class Script:
    """The steps of a provider for its call, and then for each item of its stream."""

    form: Form = "lazy"
    call: Step = Step()
    items: tuple[Step, ...] = (Step(), Step())

    def early(self) -> int:
        """Return how many items are made by the call itself."""
        return {"eager": 1, "list": len(self.items)}.get(self.form, 0)


@dataclass(frozen=True)
class Plan:
    """The scripts of one call, for the first provider, the second, and so on."""

    scripts: tuple[Script, ...]

    def script(self, provider: str) -> Script:
        """Return a provider's script; a provider without one answers."""
        number = int(provider)
        return self.scripts[number] if number < len(self.scripts) else Script()


@dataclass(frozen=True)
class Profile:
    """Settings of the oracle and of the real group."""

    providers: int
    max_failures: int
    half_open_max: int
    reports: bool
    predicates: bool
    tries_all: bool
    attempt_timeout: int


class World(ABC):
    """The operations of a group: the oracle or the real one."""

    armed: tuple[Effect, ...] = ()

    @abstractmethod
    def advance(self, seconds: int) -> object:
        """Advance the time."""

    @abstractmethod
    def reset(self, number: int) -> object:
        """Reset a breaker."""

    @abstractmethod
    def isolate(self, number: int) -> object:
        """Isolate a breaker."""

    @abstractmethod
    def add(self, number: int) -> object:
        """Add a provider."""

    @abstractmethod
    def execute(self, plan: Plan) -> object:
        """Make a call, and return its result or its error."""

    @abstractmethod
    def stream(self, plan: Plan, number: int, *, lazily: bool) -> object:
        """Open a stream of that number, and return the error if it cannot be opened."""

    @abstractmethod
    def read(self, number: int) -> object:
        """Return the next item, or an error, or None for the end."""

    @abstractmethod
    def close(self, number: int) -> object:
        """Close the stream of that number, or of another if there is none."""

    @abstractmethod
    def drop(self, number: int) -> object:
        """Drop a stream."""

    def arm(self, effects: tuple[Effect, ...]) -> None:
        """Set an action of the listener at the next report."""
        self.armed = effects

    def fire(self) -> None:
        """Do the action that `arm` has set, in the listener."""
        effects, self.armed = self.armed, ()
        self.apply(effects)

    def apply(self, effects: tuple[Effect, ...]) -> None:
        """Do an event during a call."""
        for effect in effects:
            if isinstance(effect, Plan):
                self.execute(effect)
            else:
                action, number = effect
                getattr(self, action)(number)


@dataclass
class Call:
    """An attempt that was admitted."""

    breaker: BreakerOracle
    permit: Permit
    started: float
    is_settled: bool = False


@dataclass
class Source:
    """The iterable that a provider returned."""

    provider: str
    steps: list[Step]
    items: int = 0
    closed: int = 0

    def close(self) -> None:
        """Close it; closing it again changes nothing."""
        self.closed = 1


@dataclass
class OracleStream:
    """A stream, which is one call at a time."""

    plan: Plan
    breakers: tuple[BreakerOracle, ...]
    remaining: Iterator[BreakerOracle]
    is_forced: bool = False
    failures: dict[str, BaseException] = field(default_factory=dict)
    call: Call | None = None
    source: Source | None = None
    first: list[str] = field(default_factory=list)
    is_committed: bool = False
    is_closed: bool = False
    is_read: bool = False
    has_ended: bool = False


class Oracle(World):
    """A group written from its description. It returns the exceptions that a group raises."""

    def __init__(self, profile: Profile) -> None:
        """Make a group of healthy providers."""
        self.profile = profile
        self.now = 0
        self.breakers: list[BreakerOracle] = []
        self.changes: list[Change] = []
        self.reports: list[object] = []
        self.sources: list[Source] = []
        self.streams: dict[int, OracleStream] = {}
        for number in range(profile.providers):
            self.add(number)

    @override
    def advance(self, seconds: int) -> None:
        self.now += seconds

    @override
    def reset(self, number: int) -> None:
        self.breakers[number % len(self.breakers)].reset()

    @override
    def isolate(self, number: int) -> None:
        self.breakers[number % len(self.breakers)].isolate()

    @override
    def add(self, number: int) -> None:
        if len(self.breakers) < MOST_PROVIDERS:
            self.breakers.append(
                BreakerOracle(
                    self.profile.max_failures,
                    self.profile.half_open_max,
                    RESET_TIMEOUT,
                    str(len(self.breakers)),
                    self.changes,
                )
            )

    @override
    def execute(self, plan: Plan) -> object:
        breakers = tuple(self.breakers)
        failures: dict[str, BaseException] = {}
        for force in (False, True) if self.profile.tries_all else (False,):
            if failures:
                break
            for breaker in breakers:
                call = self._admit(breaker, force=force)
                if call is None:
                    continue
                error = self._perform(plan.script(breaker.name).call)
                self._settle(call, error)
                if error is None:
                    return breaker.name
                if not isinstance(error, FAILED_OVER):
                    return error
                failures[breaker.name] = error
        return self._all_failed(breakers, failures)

    @override
    def stream(self, plan: Plan, number: int, *, lazily: bool) -> object:
        breakers = tuple(self.breakers)
        stream = OracleStream(plan, breakers, iter(breakers))
        error = self._begin(stream, fetch=not lazily)
        if error is None:
            self.streams[number] = stream
        return error

    @override
    def read(self, number: int) -> object:
        stream = self.streams[number]
        if stream.has_ended:
            return None
        stream.is_read = True
        result = self._read(stream)
        stream.is_read = False
        if stream.is_closed and not _is_interruption(result):
            result = None
        if not isinstance(result, str):
            self._end(stream)
        return result

    @override
    def close(self, number: int) -> None:
        if self.streams:
            stream = self.streams[nearest(number, self.streams)]
            stream.is_closed = True
            self._abandon(stream)
            if not stream.is_read:
                self._end(stream)

    @override
    def drop(self, number: int) -> None:
        self.close(number)
        del self.streams[number]

    def provider(self, number: int) -> str | None:
        """Name the provider that serves a stream."""
        stream = self.streams[number]
        return stream.call.breaker.name if stream.call and stream.is_committed else None

    def _perform(self, step: Step) -> BaseException | None:
        self.apply(step.effects)
        return step.error

    def _admit(self, breaker: BreakerOracle, *, force: bool) -> Call | None:
        permit = breaker.force(self.now) if force else breaker.acquire(self.now)
        if permit is None and force:
            return None  # it was reported when the call was not forced yet
        if permit is None:
            self._report(breaker, "skipped", self._refusal(breaker), 0)
            return None
        return Call(breaker, permit, self.now)

    def _refusal(self, breaker: BreakerOracle) -> tuple[str, str, float | None]:
        """Describe the error for a call that is not admitted now."""
        return "open", breaker.name, breaker.retry_after(self.now)

    def _settle(
        self, call: Call, error: BaseException | None, *, is_abandoned: bool = False
    ) -> bool:
        if call.is_settled:
            return False
        call.is_settled = True
        if is_abandoned or _is_interruption(error):
            outcome = "cancelled"
            call.breaker.release(call.permit)
        elif error is None:
            outcome = "succeeded"
            call.breaker.record_success(call.permit)
        elif isinstance(error, COUNTED):
            outcome = "failed"
            delay = getattr(error, "wait", None)
            call.breaker.record_failure(call.permit, self.now, error, delay)
        else:
            outcome = "ignored"
            call.breaker.release(call.permit)
        self._report(call.breaker, outcome, error, self.now - call.started)
        return True

    def _report(self, breaker: BreakerOracle, outcome: str, error: object, duration: float) -> None:
        if self.profile.reports:
            self.reports.append((breaker.name, outcome, error, duration))
            self.fire()

    def _all_failed(
        self, breakers: tuple[BreakerOracle, ...], failures: dict[str, BaseException]
    ) -> object:
        reasons: dict[str, object] = {}
        for breaker in breakers:
            reasons[breaker.name] = failures.get(breaker.name, self._refusal(breaker))
        waits = [breaker.retry_after(self.now) for breaker in breakers]
        retry_after = min((wait for wait in waits if wait is not None), default=None)
        return "all failed", list(reasons.items()), reasons[breakers[-1].name], retry_after

    def _begin(self, stream: OracleStream, *, fetch: bool) -> object:
        """Try the remaining providers; return the error if none of them serves."""
        for breaker in stream.remaining:
            stream.call = self._admit(breaker, force=stream.is_forced)
            if stream.call is None:
                continue
            error = self._open(stream, breaker, fetch=fetch)
            if error is None or not self._may_go_on(stream, error):
                return error
        if stream.failures or stream.is_forced or not self.profile.tries_all:
            return self._all_failed(stream.breakers, stream.failures)
        stream.is_forced, stream.remaining = True, iter(stream.breakers)
        return self._begin(stream, fetch=fetch)

    def _open(
        self, stream: OracleStream, breaker: BreakerOracle, *, fetch: bool
    ) -> BaseException | None:
        script = stream.plan.script(breaker.name)
        early, later = script.items[: script.early()], script.items[script.early() :]
        stream.source = None
        for step in (script.call, *early):
            error = self._perform(step)
            if error is not None:
                return error
        stream.source = Source(breaker.name, [Step() for _ in early] + list(later))
        if script.form != "list":
            self.sources.append(stream.source)
        if stream.call and stream.call.is_settled:
            return None  # closed by the provider itself, so no item is needed
        return self._fetch_first(stream) if fetch else None

    def _fetch_first(self, stream: OracleStream) -> BaseException | None:
        item = self._fetch(stream)
        if isinstance(item, BaseException):
            return item
        if not stream.is_closed:
            stream.is_committed = True
            stream.first = [] if item is None else [item]
        return None

    def _fetch(self, stream: OracleStream) -> str | BaseException | None:
        source = stream.source
        if source is None or not source.steps:
            return None
        error = self._perform(source.steps.pop(0))
        if error is not None:
            return error
        source.items += 1
        return f"{source.provider}.{source.items}"

    def _may_go_on(self, stream: OracleStream, error: BaseException) -> bool:
        """Abandon a provider, and return whether another one is tried."""
        assert stream.call
        if stream.source:
            stream.source.close()
        if not self._settle(stream.call, error) or not isinstance(error, FAILED_OVER):
            return False
        stream.failures[stream.call.breaker.name] = error
        return True

    def _read(self, stream: OracleStream) -> object:
        if not stream.is_committed:
            error: object = self._fetch_first(stream)
            if isinstance(error, BaseException) and self._may_go_on(stream, error):
                error = self._begin(stream, fetch=True)
            if error is not None or stream.is_closed:
                return error
        if stream.first:
            return stream.first.pop()
        item = self._fetch(stream)
        if isinstance(item, BaseException) and stream.call:
            self._settle(stream.call, item)
        return item

    def _abandon(self, stream: OracleStream) -> None:
        if stream.call:
            self._settle(stream.call, None, is_abandoned=not stream.is_committed)

    def _end(self, stream: OracleStream) -> None:
        self._abandon(stream)
        stream.has_ended = True
        if stream.source:
            stream.source.close()


class Owner(Iterable[str]):
    """An iterable, not an iterator, whose `close()` raises."""

    def __init__(self, items: Iterator[str]) -> None:
        """Own some items."""
        self._items = items
        self.closed = 0

    @override
    def __iter__(self) -> Iterator[str]:
        """Return the items."""
        return self._items

    def close(self) -> None:
        """Count, and raise."""
        self.closed += 1
        raise OSError


class Real(World):
    """The group under test; its providers are their own names."""

    def __init__(self, profile: Profile) -> None:
        """Make a group of healthy providers."""
        self.clock = ManualClock()
        self.changes: list[Change] = []
        self.reports: list[object] = []
        self.sources: list[FakeStream[str] | Owner | Generator[str, None, None]] = []
        self.streams: dict[int, Stream[str]] = {}
        breaker = CircuitBreakerConfig(
            max_failures=profile.max_failures,
            half_open_max=profile.half_open_max,
            reset_timeout=RESET_TIMEOUT,
            failure_on=(lambda e: isinstance(e, COUNTED)) if profile.predicates else COUNTED,
            retry_after=lambda error: error.wait if isinstance(error, RefusedError) else None,
            on_state_change=self._on_change,
            clock=self.clock,
        )
        config = FallbackConfig(
            circuit_breaker=breaker,
            fallback_on=(lambda e: isinstance(e, FAILED_OVER))
            if profile.predicates
            else FAILED_OVER,
            on_attempt=self._on_attempt if profile.reports else None,
            attempt_timeout=profile.attempt_timeout,
            when_all_open="try" if profile.tries_all else "fail",
        )
        self.group = FallbackGroup("0", "0", config)
        for number in range(1, profile.providers):
            self.add(number)

    @override
    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @override
    def reset(self, number: int) -> None:
        breakers = tuple(self.group.breakers.values())
        breakers[number % len(breakers)].reset()

    @override
    def isolate(self, number: int) -> None:
        breakers = tuple(self.group.breakers.values())
        breakers[number % len(breakers)].isolate()

    @override
    def add(self, number: int) -> None:
        name = str(len(self.group.breakers))
        if len(self.group.breakers) < MOST_PROVIDERS:
            self.group.add_fallback(name, name)
        else:
            with pytest.raises(ValueError, match="already used"):
                self.group.add_fallback("0", name)

    @override
    def execute(self, plan: Plan) -> object:
        def work(provider: str) -> str:
            self._perform(plan.script(provider).call)
            return provider

        return _outcome(lambda: self.group.execute(work))

    @override
    def stream(self, plan: Plan, number: int, *, lazily: bool) -> object:
        def begin() -> None:
            self.streams[number] = self.group.stream(
                lambda provider: self._open(provider, plan.script(provider)),
                lazy=lazily,
            )

        return _outcome(begin)

    @override
    def read(self, number: int) -> object:
        return _outcome(lambda: next(self.streams[number], None))

    @override
    def close(self, number: int) -> None:
        if self.streams:
            self.streams[nearest(number, self.streams)].close()

    @override
    def drop(self, number: int) -> None:
        del self.streams[number]

    def _open(self, provider: str, script: Script) -> Iterable[str]:
        self._perform(script.call)
        items = self._items(provider, script)
        if script.form == "list":
            return list(items)
        source = self._source(items, script)
        self.sources.append(source)
        return source

    def _source(
        self, items: Generator[str, None, None], script: Script
    ) -> FakeStream[str] | Owner | Generator[str, None, None]:
        if script.form == "generator":
            return items
        if script.form == "owner":
            return Owner(items)
        return FakeStream(chain(tuple(islice(items, script.early())), items))

    def _items(self, provider: str, script: Script) -> Generator[str, None, None]:
        for number, step in enumerate(script.items, start=1):
            self._perform(step)
            yield f"{provider}.{number}"

    def _perform(self, step: Step) -> None:
        self.apply(step.effects)
        if step.error is not None:
            raise step.error

    def _on_attempt(self, attempt: Attempt) -> None:
        error = _describe(attempt.error)
        self.reports.append((attempt.provider, str(attempt.outcome), error, attempt.duration))
        if self.armed:
            self.fire()
            raise ValueError  # which is only logged

    def _on_change(self, change: StateChange) -> None:
        self.changes.append(Change(change.name, str(change.old), str(change.new), change.cause))


def nearest(number: int, streams: Iterable[int]) -> int:
    """Choose the stream of that number, or the nearest one."""
    return min(streams, key=lambda candidate: (abs(candidate - number), candidate))


def difference(seen: Iterable[object], expected: Iterable[object]) -> object:
    """Return the first difference; showing whole lists is slow."""
    pairs = zip_longest(seen, expected)
    return next((pair for pair in pairs if pair[0] != pair[1]), None)


def _is_interruption(result: object) -> bool:
    return isinstance(result, BaseException) and not isinstance(result, Exception)


def _outcome(act: Callable[[], object]) -> object:
    try:
        return act()
    except AllFailedError as error:
        failures = [(name, _describe(each)) for name, each in error.failures.items()]
        return "all failed", failures, _describe(error.__cause__), error.retry_after
    except BaseException as error:  # noqa: BLE001  # it is compared
        return error.with_traceback(None)  # whose frames would hold the stream


def _describe(error: BaseException | None) -> object:
    if isinstance(error, CircuitOpenError):
        return "open", error.name, error.retry_after
    return error


FAILURES = (
    st.builds(RefusedError)
    | st.builds(RefusedError)
    | st.builds(RefusedError, st.sampled_from([0, 25, math.inf]))
    | st.builds(BrokenError)
    | st.builds(TooLongError)
    | st.builds(WrongRequestError)
    | st.sampled_from([KeyboardInterrupt, SystemExit]).map(lambda kind: kind())
)
SECONDS = st.sampled_from([1, 5, RESET_TIMEOUT - 1, RESET_TIMEOUT, RESET_TIMEOUT, 25])
NUMBERS = st.integers(0, MOST_PROVIDERS - 1)


# Composite, since hypothesis takes minutes to print what is built of such nested strategies. Parts
# are made once, since making a strategy takes longer than drawing from it.


def actions(*names: Action) -> st.SearchStrategy[Effect]:
    """Make actions of some names; the frequency of a name is that in the list."""
    kinds = st.sampled_from(names)
    numbers = {"advance": SECONDS, "close": st.integers(0, 20)}

    @st.composite
    def action(draw: st.DrawFn) -> Effect:
        name = draw(kinds)
        return name, draw(numbers.get(name, NUMBERS))

    return action()


def steps(
    effects: st.SearchStrategy[Effect], errors: st.SearchStrategy[BaseException]
) -> st.SearchStrategy[Step]:
    """Make steps: one of four contains an event, and one of four fails."""
    some = st.lists(effects, min_size=1, max_size=2)
    chances = st.integers(0, 15)

    @st.composite
    def step(draw: st.DrawFn) -> Step:
        chance = draw(chances)
        happens = tuple(draw(some)) if chance % 4 == 3 else ()
        return Step(happens, draw(errors) if chance >= 12 else None)

    return step()


def scripts(effects: st.SearchStrategy[Effect]) -> st.SearchStrategy[Script]:
    """Make scripts of such steps; only a call may raise `GeneratorExit`."""
    forms = st.sampled_from(get_args(Form))
    calls = steps(effects, FAILURES | st.builds(GeneratorExit))
    items = st.lists(steps(effects, FAILURES), max_size=5)

    @st.composite
    def script(draw: st.DrawFn) -> Script:
        return Script(draw(forms), draw(calls), tuple(draw(items)))

    return script()


def plans(effects: st.SearchStrategy[Effect]) -> st.SearchStrategy[Plan]:
    """Make plans of such scripts."""
    some = st.lists(scripts(effects), max_size=3)

    @st.composite
    def plan(draw: st.DrawFn) -> Plan:
        return Plan(tuple(draw(some)))

    return plan()


ACTIONS = actions("advance", "advance", "advance", "advance", "reset", "reset", "isolate", "add")
INNER_EFFECTS = ACTIONS | plans(ACTIONS)
PLANS = plans(INNER_EFFECTS | actions("close") | actions("close"))


class GroupMachine(RuleBasedStateMachine):
    """Calls and streams overlap, and streams end in any order."""

    streams = Bundle("streams")

    @initialize(
        profile=st.builds(
            Profile,
            providers=st.integers(1, 3),
            max_failures=st.integers(1, 3),
            half_open_max=st.integers(1, 3),
            reports=st.sampled_from([True, True, True, False]),
            predicates=st.booleans(),
            tries_all=st.booleans(),
            # In one of 16 runs, since it makes threads. No call takes longer than the limit.
            attempt_timeout=st.sampled_from([0] * 15 + [60]),
        )
    )
    def begin(self, profile: Profile) -> None:
        """Make a group and its oracle."""
        self.opened = 0
        self.oracle = Oracle(profile)
        self.real = Real(profile)

    def both(self, act: Callable[[World], object]) -> object:
        """Do the same with both, and check that the results are the same."""
        expected = act(self.oracle)
        seen = act(self.real)
        assert seen == expected
        return seen

    @rule(plan=PLANS)
    def execute(self, plan: Plan) -> None:
        """Make a whole call."""
        self.both(lambda world: world.execute(plan))

    @rule(target=streams, plan=PLANS, lazily=st.booleans(), items=st.integers(0, 3))
    def open(self, plan: Plan, lazily: bool, items: int) -> object:  # noqa: FBT001  # by name
        """Open a stream, and perhaps read the first items."""
        number = self.opened
        self.opened += 1
        error = self.both(lambda world: world.stream(plan, number, lazily=lazily))
        if error is not None:
            return multiple()
        self.read(number, items)
        return number

    @rule(number=streams, items=st.integers(1, 4))
    def read(self, number: int, items: int) -> None:
        """Read more of a stream, perhaps to its end."""
        for _ in range(items):
            if not isinstance(self.both(lambda world: world.read(number)), str):
                return

    @rule(number=consumes(streams), closings=st.integers(0, 2))
    def leave(self, number: int, closings: int) -> None:
        """Drop a stream, which may have been read or closed before."""
        for _ in range(closings):
            self.both(lambda world: world.close(number))
            self.both(lambda world: world.read(number))
        self.both(lambda world: world.drop(number))

    @rule(action=ACTIONS)
    def do(self, action: Effect) -> None:
        """Advance the time, reset or isolate a breaker, or add a provider."""
        self.both(lambda world: world.apply((action,)))

    @rule()
    def outage(self) -> None:
        """Let all providers fail, and advance the time until they are probed."""
        down = Script(call=Step(error=RefusedError()))
        for _ in range(3):
            self.execute(Plan((down,) * MOST_PROVIDERS))
        self.do(("advance", RESET_TIMEOUT))

    @rule(effects=st.lists(INNER_EFFECTS, min_size=1, max_size=2))
    def arm(self, effects: list[Effect]) -> None:
        """Let the listener use the group at the next report."""
        self.both(lambda world: world.arm(tuple(effects)))

    @invariant()
    def same_states(self) -> None:
        """Breakers, their states and the time are the same for both."""
        now = self.oracle.now
        expected = [(breaker.name, breaker.visible_state(now)) for breaker in self.oracle.breakers]
        breakers = self.real.group.breakers

        assert [(name, str(breaker.state)) for name, breaker in breakers.items()] == expected
        assert difference(self.real.changes, self.oracle.changes) is None
        assert self.real.clock() == now

    @invariant()
    def same_reports(self) -> None:
        """Each attempt that ended was reported once, with the same outcome."""
        assert difference(self.real.reports, self.oracle.reports) is None

    @invariant()
    def same_providers(self) -> None:
        """Each stream is served by the same provider."""
        seen = {number: stream.provider for number, stream in self.real.streams.items()}

        assert seen == {number: self.oracle.provider(number) for number in self.oracle.streams}

    @invariant()
    def closed_once(self) -> None:
        """A provider's iterable is closed once at the end of its stream, and not before."""
        for seen, expected in zip(self.real.sources, self.oracle.sources, strict=True):
            if isinstance(seen, Generator):  # it also closes itself
                assert not expected.closed or getgeneratorstate(seen) == GEN_CLOSED
            else:
                assert seen.closed == expected.closed

    @override
    def teardown(self) -> None:
        """After all streams are dropped, none is open, and no slot is lost; a call succeeds."""
        if not hasattr(self, "real"):  # the run has ended before it began
            return
        for number in tuple(self.real.streams):
            self.leave(number, 0)
        assert not any(breaker.under_way for breaker in self.oracle.breakers)
        self.do(("advance", RESET_TIMEOUT))
        for _ in range(MOST_PROVIDERS):
            self.execute(Plan(()))
        self.same_reports()
        self.same_states()
        self.closed_once()

        self.do(("reset", 0))

        assert self.both(lambda world: world.execute(Plan(()))) == "0"


TestGroupMachine = GroupMachine.TestCase
TestGroupMachine.settings = settings(max_examples=RUNS, stateful_step_count=25, deadline=None)
