"""The changes that breakers of several processes exchange, and their effects; no network."""

import json
import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    State,
)
from resilience._news import MAX_MESSAGE_BYTES, BreakerSync, Change, Kind, parse_change
from resilience.testing import ManualClock

SECRET = "hunter2"  # noqa: S105
RESET_TIMEOUT = 30.0
MAX_SECONDS = 300.0


class Process:
    """One of several processes: a breaker with a clock of its own, and its changes to send."""

    def __init__(self, origin: str, *, operators: bool, start: float, **settings: Any) -> None:  # noqa: ANN401
        """Attach to a closed breaker."""
        self.origin = origin
        self.clock = ManualClock(start)
        values = {"max_failures": 1, "half_open_max": 1, "reset_timeout": RESET_TIMEOUT}
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(name="model", clock=self.clock, **{**values, **settings})
        )
        self.changes: list[BreakerSync] = []
        self.watch = BreakerSync(
            "model", self.breaker, self.changes.append, max_seconds=MAX_SECONDS, operators=operators
        )
        self.watch.attach()

    def look(self) -> Change | None:
        """Return the change to send, if any."""
        return self.watch.take_change(self.origin)

    def told(self) -> Change:
        """Return the change to send; fail if there is none."""
        news = self.look()
        assert news is not None
        return news

    def fail(self, error: Exception | None = None) -> None:
        """Make a call that fails, which opens the breaker."""
        error = error or ConnectionError(SECRET)
        with pytest.raises(type(error)), self.breaker.guard():
            raise error

    def left(self) -> float | None:
        """Return the seconds for which the breaker is still open."""
        return self.breaker.snapshot().retry_after


class Fleet:
    """Processes whose clocks show different times."""

    def __init__(self, *, operators: bool = False, count: int = 3, **settings: Any) -> None:  # noqa: ANN401
        """Start all processes."""
        self.processes = [
            Process(f"p{number}", operators=operators, start=1000.0 * number, **settings)
            for number in range(count)
        ]

    def __iter__(self) -> Iterator[Process]:
        """Yield the processes."""
        return iter(self.processes)

    def advance(self, seconds: float) -> None:
        """Advance the clocks of all processes."""
        for process in self:
            process.clock.advance(seconds)

    def spread(self) -> list[tuple[str, Kind]]:
        """Deliver the changes of all processes until there are none; return these changes."""
        spread: list[tuple[str, Kind]] = []
        while told := [news for process in self if (news := process.look())]:
            assert len(spread) < 20, "they tell each other for ever"
            for news in told:
                spread.append((news.origin, news.kind))
                for process in self:
                    if process.origin != news.origin:
                        read = parse_change(news.to_json())
                        assert read
                        assert read == news
                        process.watch.apply(read)
        return spread

    def states(self) -> list[State]:
        """Return the states of all breakers."""
        return [process.breaker.state for process in self]


OPENED = Change(
    kind=Kind.OPENED, name="model", origin="far", seconds=10.0, planned=10.0, error="OSError"
)
ISOLATED = Change(kind=Kind.ISOLATED, name="model", origin="far", seconds=10.0)
CLOSED = Change(kind=Kind.CLOSED, name="model", origin="far")
RESET = Change(kind=Kind.RESET, name="model", origin="far")
NEWS = {news.kind: news for news in (OPENED, ISOLATED, CLOSED, RESET)}


def shorten(value: object) -> str:
    """Return a short name of a parameter."""
    return ascii(value)[:20]


def fields_of(news: Change) -> dict[str, Any]:
    """Return the fields of a message, to change some of them."""
    return {field: getattr(news, field) for field in Change.__slots__}


@pytest.fixture
def alone() -> Process:
    """Return a process with `operators=True`, whose breaker is closed."""
    return Process("p0", operators=True, start=0.0)


class TestMessages:
    """Messages are checked field by field."""

    @pytest.mark.parametrize("news", NEWS.values(), ids=str)
    @pytest.mark.parametrize("encode", [str, str.encode])
    def test_reads_what_it_writes(self, news: Change, encode: Callable[[str], object]) -> None:
        """A message that was written can be read, as text and as bytes."""
        assert parse_change(encode(news.to_json())) == news

    def test_largest(self) -> None:
        """The longest message of the library is short enough to be read."""
        news = Change(
            kind=Kind.ISOLATED,
            name="\N{SNOWMAN}" * 42,
            origin='"' * 100,
            error='"' * 100,
            seconds=1e9 / 7,
            planned=1e9 / 7,
        )

        assert len(news.to_json()) < MAX_MESSAGE_BYTES
        assert parse_change(news.to_json()) == news

    def test_unknownfields_of(self) -> None:
        """Fields of a later version are ignored."""
        message = json.dumps({**json.loads(OPENED.to_json()), "colour": "blue"})

        assert parse_change(message) == OPENED

    def test_size(self) -> None:
        """A message of 1,024 bytes is read, and a longer one is rejected, for all characters."""
        message = OPENED.to_json()

        assert parse_change(message.ljust(MAX_MESSAGE_BYTES)) == OPENED
        assert parse_change(message.ljust(MAX_MESSAGE_BYTES + 1)) is None
        assert parse_change(message.encode().ljust(MAX_MESSAGE_BYTES + 1)) is None
        assert parse_change(message[:-1] + ',"x":"' + "\N{SNOWMAN}" * 340 + '"}') is None

    @pytest.mark.parametrize(
        "message",
        [
            None,
            17,
            [],
            {},
            "",
            b"",
            b"\xff\xfe\x00",
            "\ud800",
            "news",
            "{",
            "null",
            "[]",
            "17",
            "{}",
            "[" * 1024,
            '{"kind":' * 128,
            "1" * 1024,
        ],
        ids=shorten,
    )
    def test_nonsense(self, message: object) -> None:
        """For a message that is not a JSON object with the right fields, the result is None."""
        assert parse_change(message) is None

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *product(["kind"], [None, 1, "", "OPENED", "exploded", [], {}]),
            *product(["name"], [None, 1, ["model"], {}]),
            *product(["origin", "error"], [None, 1, "a\nb", "\x1b[31m", "\xe9", "x" * 101, []]),
            *product(
                ["seconds", "planned"],
                [None, "1", True, -1, -1e-9, 1e9 + 1, 10**400, math.nan, math.inf, []],
            ),
        ],
        ids=shorten,
    )
    def test_fields(self, field: str, value: object) -> None:
        """For a message with a wrong or a missing field, the result is None."""
        fields = json.loads(OPENED.to_json())
        wrong = json.dumps({**fields, field: value})
        del fields[field]

        assert parse_change(wrong) is None
        assert parse_change(json.dumps(fields)) is None


class TestOpenings:
    """An opening in one process opens the breakers of the others."""

    def test_spreads(self) -> None:
        """The others open once, for the remaining seconds, whatever their clocks show."""
        fleet = Fleet()
        first, *others = fleet
        first.fail()
        first.clock.advance(12.0)  # until it is sent

        assert fleet.spread() == [("p0", Kind.OPENED)]
        assert [process.left() for process in others] == [18.0, 18.0]
        fleet.advance(18.0)
        assert fleet.states() == [State.HALF_OPEN] * 3
        assert fleet.spread() == []

    def test_reason(self) -> None:
        """The reason contains the failure's type and the process; the error's text is not sent."""
        fleet = Fleet()
        first, second, _ = fleet
        first.fail()
        message = first.told().to_json()
        second.watch.apply(parse_change(message) or RESET)

        assert SECRET not in message
        with pytest.raises(CircuitOpenError) as raised:
            second.breaker.execute(str)
        assert raised.value.reason == "ConnectionError (reported by p0)"

    @pytest.mark.parametrize("name", ["Bröken", "X" * 101], ids=["not ASCII", "long"])
    def test_a_strange_type(self, name: str) -> None:
        """The name of a type with other characters is replaced."""
        process = Process("p0", operators=False, start=0.0)
        process.fail(type(name, (Exception,), {})())

        assert process.told().error == "Exception"

    def test_an_unreadable_error(self) -> None:
        """The type of an error whose text cannot be read is sent."""

        class UnreadableError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        process = Process("p0", operators=False, start=0.0)
        process.fail(UnreadableError())

        assert process.told().error == "UnreadableError"

    def test_is_like_an_ordinary_opening(self) -> None:
        """It counts as an opening, keeps the count of failures, and is not an isolation."""
        config = CircuitBreakerConfig(max_failures=2, clock=ManualClock())
        group = FallbackGroup(
            "only", "model", FallbackConfig(circuit_breaker=config, when_all_open="try")
        )
        breaker = group.breakers["model"]
        watch = BreakerSync("model", breaker, str, max_seconds=MAX_SECONDS, operators=False)
        watch.attach()
        with pytest.raises(ConnectionError), breaker.guard():
            raise ConnectionError
        watch.apply(OPENED)

        snapshot = breaker.snapshot()
        assert (snapshot.opened_count, snapshot.consecutive_failures) == (1, 1)
        assert group.execute(str.upper) == "ONLY"

    def test_growth(self) -> None:
        """The next open period grows from the one in the other process."""
        fleet = Fleet(max_reset_timeout=500.0)
        first, second, third = fleet
        first.fail()
        fleet.spread()
        fleet.advance(30.0)
        second.fail()  # a probe
        assert fleet.spread() == [("p1", Kind.OPENED)]
        assert [process.left() for process in fleet] == [60.0] * 3
        fleet.advance(60.0)
        third.fail()

        assert fleet.spread() == [("p2", Kind.OPENED)]
        assert [process.left() for process in fleet] == [120.0] * 3

    def test_no_growth_from_nothing(self, alone: Process) -> None:
        """A shorter period of another process does not make the next period shorter."""
        alone.watch.apply(Change(kind=Kind.OPENED, name="model", origin="far", seconds=10.0))
        alone.clock.advance(10.0)
        alone.fail()

        assert alone.left() == RESET_TIMEOUT

    def test_jitter(self) -> None:
        """Jitter lengthens received periods too, so that not all probe at the same moment."""
        seconds = set[float | None]()
        for _ in range(5):
            process = Process("p0", operators=False, start=0.0, reset_jitter=1.0)
            process.watch.apply(OPENED)
            seconds.add(process.left())
            process.watch.apply(Change(**{**fields_of(OPENED), "seconds": MAX_SECONDS}))
            assert process.left() == MAX_SECONDS

        assert len(seconds) == 5
        assert all(left is not None and 10.0 <= left <= 20.0 for left in seconds)

    def test_ends_the_probes(self, alone: Process) -> None:
        """A half-open breaker opens, and its probe has no effect any more."""
        alone.fail()
        alone.clock.advance(30.0)
        with alone.breaker.guard():
            alone.watch.apply(OPENED)

        assert alone.left() == 10.0

    def test_is_open_for_longer_already(self, alone: Process) -> None:
        """A longer open period is never shortened."""
        alone.fail()
        alone.watch.apply(OPENED)

        assert alone.left() == RESET_TIMEOUT

    def test_lengthens(self) -> None:
        """A shorter open period is lengthened, and that is not sent again."""
        fleet = Fleet(retry_after=lambda error: error.errno)
        first, second, _ = fleet
        first.fail(OSError(0, ""))
        second.fail(OSError(250, ""))

        assert sorted(fleet.spread()) == [("p0", Kind.OPENED), ("p1", Kind.OPENED)]
        assert [process.left() for process in fleet] == [250.0] * 3

    def test_a_late_delay(self) -> None:
        """A delay that lengthens the period by more than a limit is sent, a shorter one is not."""
        fleet = Fleet(retry_after=lambda error: error.errno)
        first, second, _ = fleet
        permits = [first.breaker._acquire() for _ in range(3)]
        for permit, seconds, kinds in zip(
            permits, (40, 50, 51), ([Kind.OPENED], [], [Kind.OPENED]), strict=True
        ):
            first.breaker._record_failure(permit, OSError(seconds, ""))
            assert [kind for _, kind in fleet.spread()] == kinds

        assert second.left() == 51.0

    def test_is_over(self, alone: Process) -> None:
        """An open period that has elapsed is not sent."""
        alone.fail()
        alone.clock.advance(30.0)

        assert alone.look() is None

    def test_was_open_before(self) -> None:
        """The period of a breaker is sent if it is open when attached, but not if half-open."""
        process = Process("p0", operators=False, start=0.0)
        process.watch.detach()
        process.fail()
        process.watch.attach()
        assert process.told().seconds == RESET_TIMEOUT
        process.watch.detach()
        process.clock.advance(30.0)
        with process.breaker.guard():
            process.watch.attach()

            assert process.look() is None

    def test_limit(self, alone: Process) -> None:
        """A received period lasts for at most `max_seconds`, whatever is in the message."""
        for kind in (Kind.OPENED, Kind.ISOLATED):
            alone.watch.apply(Change(**{**fields_of(OPENED), "kind": kind, "seconds": 1e9}))
            assert alone.left() == MAX_SECONDS
            alone.clock.advance(MAX_SECONDS)
            assert alone.breaker.state is State.HALF_OPEN
            assert alone.look() is None

    def test_a_delay_without_end(self) -> None:
        """A period without an end is sent with `max_seconds`, and sent again before they elapse."""
        process = Process("p0", operators=False, start=0.0, retry_after=lambda _: math.inf)
        process.fail()
        assert process.told().seconds == MAX_SECONDS
        process.clock.advance(MAX_SECONDS / 30)
        assert process.look() is None
        process.clock.advance(1.0)

        assert process.told().seconds == MAX_SECONDS


class TestClosings:
    """A closing in one process makes the open breakers of the others half-open."""

    def test_spreads(self) -> None:
        """The others become half-open; when they close too, that changes nothing."""
        fleet = Fleet()
        first, second, third = fleet
        first.fail()
        fleet.spread()
        first.clock.advance(30.0)
        assert first.breaker.execute(str) == ""

        assert fleet.spread() == [("p0", Kind.CLOSED)]
        assert fleet.states() == [State.CLOSED, State.HALF_OPEN, State.HALF_OPEN]
        second.breaker.execute(str)
        third.breaker.execute(str)
        fleet.spread()
        assert fleet.states() == [State.CLOSED] * 3

    def test_an_own_opening(self, alone: Process) -> None:
        """A breaker that has opened by itself probes too, and keeps its counts."""
        alone.fail()
        alone.watch.apply(CLOSED)

        assert alone.breaker.state is State.HALF_OPEN
        assert alone.breaker._rejection().reason == f"ConnectionError: {SECRET}"

    @pytest.mark.parametrize("seconds", [None, 60.0])
    @pytest.mark.parametrize("operators", [True, False])
    def test_ends_no_isolation(self, seconds: float | None, *, operators: bool) -> None:
        """An isolation is not ended, with or without a time limit."""
        process = Process("p0", operators=operators, start=0.0)
        process.breaker.isolate(seconds)
        process.watch.apply(CLOSED)

        assert process.left() == seconds
        assert process.breaker.state is State.OPEN

    def test_ends_no_isolation_that_was_heard(self, alone: Process) -> None:
        """An isolation that was received from another process is not ended."""
        alone.watch.apply(ISOLATED)
        alone.watch.apply(CLOSED)

        assert alone.left() == 10.0

    def test_nothing_to_do(self, alone: Process) -> None:
        """A closed breaker stays closed, and a half-open one keeps its probes."""
        alone.watch.apply(CLOSED)
        assert alone.breaker.state is State.CLOSED
        alone.fail()
        alone.clock.advance(30.0)
        permit = alone.breaker._acquire()
        alone.watch.apply(CLOSED)
        alone.breaker._record_success(permit)

        assert alone.breaker.state is State.CLOSED

    def test_nothing_is_told_at_first(self, alone: Process) -> None:
        """Neither a closed breaker when attached nor a success is sent."""
        alone.breaker.execute(str)

        assert alone.look() is None
        assert alone.changes == []


class TestOperators:
    """`isolate()` and `reset()` in one process affect all, if all have `operators=True`."""

    @pytest.mark.parametrize("seconds", [None, 60.0, 0.0])
    def test_not_told(self, seconds: float | None) -> None:
        """By default `isolate()` and `reset()` are not sent."""
        fleet = Fleet()
        first, *_ = fleet
        first.breaker.isolate(seconds)
        assert fleet.spread() == []
        first.breaker.reset()
        assert fleet.spread() == []
        first.fail()
        first.breaker.reset()
        assert fleet.spread() == []
        first.fail()
        first.clock.advance(30.0)
        first.breaker.execute(str)

        assert fleet.spread() == [("p0", Kind.CLOSED)]

    def test_not_heard(self) -> None:
        """By default those of other processes have no effect."""
        process = Process("p0", operators=False, start=0.0)
        process.watch.apply(ISOLATED)
        assert process.breaker.state is State.CLOSED
        process.breaker.isolate()
        process.watch.apply(RESET)

        assert process.left() is None

    def test_isolate_and_reset(self) -> None:
        """An isolation lasts in all processes until a reset in any process."""
        fleet = Fleet(operators=True)
        first, second, third = fleet
        first.breaker.isolate()
        assert fleet.spread() == [("p0", Kind.ISOLATED)]
        assert [process.left() for process in fleet] == [None, MAX_SECONDS, MAX_SECONDS]
        assert third.breaker._try_force() is None
        assert third.breaker._rejection().reason is None
        second.breaker.reset()

        assert fleet.spread() == [("p1", Kind.RESET)]
        assert fleet.states() == [State.CLOSED] * 3
        assert [process.breaker.snapshot().opened_count for process in fleet] == [0] * 3

    @pytest.mark.parametrize("has_failed", [False, True])
    @pytest.mark.parametrize(
        ("then", "told", "states"),
        [
            ("open", [Kind.RESET, Kind.OPENED], [State.OPEN] * 2),
            ("probe", [Kind.RESET], [State.HALF_OPEN, State.CLOSED]),
            ("close", [Kind.RESET], [State.CLOSED] * 2),
        ],
    )
    def test_a_reset_is_told_after_another_change(
        self, then: str, told: list[Kind], states: list[State], *, has_failed: bool
    ) -> None:
        """A reset ends an isolation everywhere, even if the breaker opens before it is told."""
        fleet = Fleet(operators=True, count=2)
        first, second = fleet
        first.breaker.isolate()
        fleet.spread()
        first.breaker.reset()
        if has_failed:
            first.watch.mark_unsent(first.told())
        first.fail()
        if then != "open":
            fleet.advance(RESET_TIMEOUT)
            permit = first.breaker._acquire()
            if then == "close":
                first.breaker._record_success(permit)

        assert fleet.spread() == [("p0", kind) for kind in told]
        assert fleet.states() == states
        assert second.breaker._try_force() is not None

    def test_a_reset_before_an_isolation_of_another_process(self) -> None:
        """A reset that was not told does not end a later isolation."""
        fleet = Fleet(operators=True, count=2)
        first, second = fleet
        first.breaker.reset()
        first.watch.mark_unsent(first.told())
        second.breaker.isolate()
        first.watch.apply(second.told())

        assert fleet.spread() == []
        assert fleet.states() == [State.OPEN] * 2

    def test_is_renewed(self) -> None:
        """An isolation without a time limit lasts as long as its process, and not for ever."""
        fleet = Fleet(operators=True)
        first, *others = fleet
        first.breaker.isolate()
        for _ in range(100):
            fleet.spread()
            fleet.advance(10.0)
        assert fleet.states() == [State.OPEN] * 3
        fleet.processes = others
        fleet.advance(MAX_SECONDS)

        assert fleet.spread() == []
        assert fleet.states() == [State.HALF_OPEN] * 2

    def test_for_some_seconds(self) -> None:
        """An isolation with a time limit has the same end in all processes."""
        fleet = Fleet(operators=True)
        first, *_ = fleet
        first.breaker.isolate(60.0)
        fleet.spread()
        fleet.advance(59.0)
        assert fleet.states() == [State.OPEN] * 3
        fleet.advance(1.0)

        assert fleet.states() == [State.HALF_OPEN] * 3

    def test_for_no_time(self) -> None:
        """`isolate(0)` makes the next call of each process a probe, if it is sent at once."""
        fleet = Fleet(operators=True)
        first, second, _ = fleet
        first.breaker.isolate(0.0)
        assert fleet.spread() == [("p0", Kind.ISOLATED)]
        assert fleet.states() == [State.HALF_OPEN] * 3
        second.breaker.isolate(0.0)
        second.clock.advance(2.0)

        assert second.look() is None

    def test_an_open_breaker(self) -> None:
        """An isolation of an open breaker is sent too, although its state does not change."""
        fleet = Fleet(operators=True)
        first, second, _ = fleet
        first.fail()
        fleet.spread()
        first.changes.clear()
        first.breaker.isolate(200.0)

        assert first.changes == []
        assert fleet.spread() == [("p0", Kind.ISOLATED)]
        assert second.left() == 200.0
        assert second.breaker._try_force() is None

    def test_is_not_shortened(self, alone: Process) -> None:
        """No message makes an isolation shorter, and an opening makes none longer."""
        alone.breaker.isolate()
        alone.watch.apply(ISOLATED)
        assert alone.left() is None
        alone.breaker.isolate(20.0)
        for news in (ISOLATED, Change(**{**fields_of(OPENED), "seconds": 100.0})):
            alone.watch.apply(news)
            assert alone.left() == 20.0
        alone.watch.apply(Change(**{**fields_of(ISOLATED), "seconds": 100.0}))

        assert alone.left() == 100.0

    def test_reset_of_what_is_closed(self, alone: Process) -> None:
        """A reset clears the count of failures; outcomes of calls under way are ignored."""
        alone.fail()
        alone.breaker.reset()
        assert alone.told().kind is Kind.RESET
        alone.watch.apply(RESET)

        assert alone.look() is None
        assert alone.breaker.snapshot().last_failure is None


class TestTellingAgain:
    """A change that could not be sent is sent later; a received change is never sent."""

    @pytest.mark.parametrize("kind", [Kind.OPENED, Kind.CLOSED])
    def test_failed(self, kind: Kind) -> None:
        """After a failure to send, the present period is sent."""
        process = Process("p0", operators=False, start=0.0)
        process.fail()
        news = process.told()
        if kind is Kind.CLOSED:
            process.clock.advance(30.0)
            process.breaker.execute(str)
            news = process.told()
        process.watch.mark_unsent(news)

        assert process.told().kind is kind
        assert process.look() is None

    def test_openings_only(self) -> None:
        """After a reconnection an opening is sent again, a closing is not."""
        process = Process("p0", operators=False, start=0.0)
        process.fail()
        process.look()
        process.watch.mark_opening_unsent()
        assert process.told().kind is Kind.OPENED
        process.clock.advance(30.0)
        process.breaker.execute(str)
        assert process.told().kind is Kind.CLOSED
        process.watch.mark_opening_unsent()

        assert process.look() is None

    @pytest.mark.parametrize("news", NEWS.values(), ids=str)
    @pytest.mark.parametrize("is_open", [True, False])
    def test_heard(self, alone: Process, news: Change, *, is_open: bool) -> None:
        """A received change is not sent at once, nor after a failure or a reconnection."""
        if is_open:
            alone.fail(OSError())
            alone.look()
        alone.watch.apply(Change(**{**fields_of(news), "seconds": 50.0}))

        assert alone.look() is None
        alone.watch.mark_opening_unsent()
        alone.watch.mark_unsent(CLOSED)
        assert alone.look() is None


class TestAttaching:
    """Attaching to a breaker and detaching from it."""

    def test_changes(self, alone: Process) -> None:
        """`on_change` is called once for several changes, until `has_changed` is cleared."""
        alone.fail()
        alone.breaker.reset()
        alone.breaker.isolate()
        assert alone.changes == [alone.watch]
        alone.look()
        alone.breaker.reset()
        assert alone.changes == [alone.watch]
        alone.watch.has_changed = False
        alone.breaker.isolate()

        assert alone.changes == [alone.watch] * 2

    @pytest.mark.parametrize("news", NEWS.values(), ids=str)
    def test_detached(self, alone: Process, news: Change) -> None:
        """A detached object sends and applies nothing; other attached objects are not affected."""
        others: list[BreakerSync] = []
        other = BreakerSync("model", alone.breaker, others.append, max_seconds=1.0, operators=False)
        other.attach()
        alone.breaker.isolate(5.0)
        alone.watch.detach()
        alone.watch.apply(news)
        alone.changes.clear()
        other.has_changed = False
        others.clear()
        assert alone.left() == 5.0
        alone.breaker.reset()

        assert alone.changes == []
        assert others == [other]
