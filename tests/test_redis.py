"""`RedisNews` with a fake Redis, without a network, and with all faults of a Redis server.

Tests with a real server are in `integration/test_redis.py`, tests of the messages' effects in
`test_news.py`.
"""

import copy
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from typing_extensions import override

from resilience import CircuitBreaker, CircuitBreakerConfig, State, _fork, redis
from resilience._breaker.periods import Closed
from resilience.redis import RedisNews
from resilience.testing import ManualClock

LIMIT = 30.0
"""Time limit of a test in seconds."""

OPENED: dict[str, object] = {
    "kind": "opened",
    "name": "model",
    "origin": "far",
    "seconds": 10.0,
    "planned": 10.0,
    "error": "OSError",
}


class Server:
    """A fake Redis with the commands that `RedisNews` uses, and clients for it."""

    def __init__(self) -> None:
        """Start without keys."""
        self.changed = threading.Condition(threading.RLock())
        self.kept: dict[str, tuple[object, int]] = {}
        self.commands: list[tuple[str, tuple[object, ...]]] = []
        """Each with the name of the thread."""
        self.subscriptions: list[Subscription] = []
        self.down: Exception | None = None
        self.errors: dict[str, Exception] = {}
        """What some commands are answered with."""
        self.gate: threading.Event | None = None
        """What everything waits for."""
        self.is_silent = False
        self.on_ask: Callable[[], object] = str
        """What happens before a subscriber gets a message."""
        self.encode: Callable[[str], object] = str

    def pubsub(self) -> "Subscription":
        """Return a subscription without a channel."""
        return Subscription(self)

    def pipeline(self, *, transaction: bool) -> "Pipeline":
        """Return an empty pipeline."""
        assert not transaction
        return Pipeline(self)

    def enter(self, *command: object) -> None:
        """Record a command, which may hang or fail."""
        with self.changed:
            self.commands.append((threading.current_thread().name, command))
            self.changed.notify_all()
        if self.gate:
            assert self.gate.wait(LIMIT)
        if self.down:
            raise self.down

    def deliver(self, message: object, channel: str = "chat:news") -> int:
        """Send a message to all subscribers."""
        with self.changed:
            for each in self.subscriptions:
                if each.channel == channel and not self.is_silent:
                    each.messages.put({"type": "message", "channel": channel, "data": message})
            self.changed.notify_all()
        return len(self.subscriptions)

    def wait_for(self, has_happened: Callable[[], object]) -> None:
        """Wait until a condition is true; it is checked after every command."""
        with self.changed:
            assert self.changed.wait_for(has_happened, LIMIT)

    def settle(self) -> None:
        """Wait until all messages that were delivered before have been handled."""
        marks = [(each, len(each.asked)) for each in self.subscriptions]
        self.wait_for(
            lambda: all(each.is_closed or len(each.asked) > mark + 1 for each, mark in marks)
        )

    def named(self, name: str) -> list[tuple[object, ...]]:
        """Return the commands with a name."""
        with self.changed:
            return [command for _, command in self.commands if command[0] == name]

    def published(self) -> list[dict[str, object]]:
        """Return the published messages."""
        return [json.loads(str(message)) for _, _, message in self.named("publish")]


class Subscription:
    """One connection of a subscriber."""

    def __init__(self, server: Server) -> None:
        """Make a subscription without a channel."""
        self.server = server
        self.channel = ""
        self.messages: SimpleQueue[dict[str, object]] = SimpleQueue()
        self.asked: list[float] = []
        self.is_closed = False

    def subscribe(self, channel: str) -> None:
        """Subscribe; a message confirms it."""
        self.server.enter("subscribe", channel)
        self.channel = channel
        with self.server.changed:
            self.server.subscriptions.append(self)
        self.messages.put({"type": "subscribe", "channel": channel, "data": 1})

    def get_message(self, *, timeout: float) -> Mapping[str, object] | None:
        """Return the next message; None if there is none within the timeout."""
        with self.server.changed:
            self.asked.append(timeout)
            self.server.changed.notify_all()
        self.server.on_ask()
        if self.server.down:
            raise self.server.down
        try:
            return self.messages.get(timeout=timeout)
        except Empty:
            return None

    def ping(self) -> None:
        """Receive an answer, if the server is not silent."""
        self.server.enter("ping")
        if not self.server.is_silent:
            self.messages.put({"type": "pong", "channel": None, "data": ""})

    def close(self) -> None:
        """Unsubscribe."""
        with self.server.changed:
            self.is_closed = True
            self.server.subscriptions.remove(self) if self.channel else None
            self.server.changed.notify_all()


class Pipeline:
    """Commands that are sent together."""

    def __init__(self, server: Server) -> None:
        """Queue nothing yet."""
        self.server = server
        self.commands: list[tuple[Any, ...]] = []

    def get(self, name: str) -> None:
        """Queue GET."""
        self.commands.append(("get", name))

    def pttl(self, name: str) -> None:
        """Queue PTTL."""
        self.commands.append(("pttl", name))

    def set(self, name: str, value: str, *, px: int) -> None:
        """Queue SET."""
        self.commands.append(("set", name, value, px))

    def delete(self, name: str) -> None:
        """Queue DEL."""
        self.commands.append(("delete", name))

    def publish(self, channel: str, message: str) -> None:
        """Queue PUBLISH."""
        self.commands.append(("publish", channel, message))

    def execute(self, *, raise_on_error: bool) -> Sequence[object]:
        """Send all commands, and return the replies."""
        assert not raise_on_error
        return [self._execute(*command) for command in self.commands]

    def _execute(self, command: str, name: str, *rest: Any) -> object:  # noqa: ANN401
        self.server.enter(command, name, *rest)
        if command in self.server.errors:
            return self.server.errors[command]
        kept = self.server.kept
        with self.server.changed:
            if command == "publish":
                return self.server.deliver(self.server.encode(rest[0]), name)
            if command == "set":
                kept[name] = (self.server.encode(rest[0]), rest[1])
                return True
            if command == "delete":
                return int(kept.pop(name, None) is not None)
            return kept.get(name, (None, -2))[command == "pttl"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a fake Redis; the intervals of the threads are short."""
    monkeypatch.setattr(redis, "_CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(redis, "_MIN_RETRY_DELAY", 0.01)
    return Server()


@pytest.fixture
def start(server: Server) -> Iterator[Callable[..., RedisNews]]:
    """Return a function that starts a `RedisNews`, which is closed at the end of the test."""
    with ExitStack() as stack:

        def start(breaker: CircuitBreaker, namespace: str = "chat", **options: Any) -> RedisNews:  # noqa: ANN401
            news = stack.enter_context(RedisNews(server, namespace, {"model": breaker}, **options))
            server.wait_for(lambda: server.named("pttl"))
            server.settle()
            return news

        yield start


def alive() -> list[threading.Thread]:
    """Return the running threads of all `RedisNews`."""
    return [each for each in threading.enumerate() if each.name.startswith("resilience-redis")]


def join_all(threads: Sequence[threading.Thread] = ()) -> None:
    """Wait until these threads have ended, or all of them if none are given."""
    for thread in threads or alive():
        thread.join(LIMIT)
        assert not thread.is_alive()


Start = Callable[..., RedisNews]


def make_breaker(**settings: Any) -> CircuitBreaker:  # noqa: ANN401
    """Return a breaker that opens at the first failure and closes after the first probe."""
    values = {"max_failures": 1, "half_open_max": 1, "clock": ManualClock(), **settings}
    return CircuitBreaker(CircuitBreakerConfig(name="model", **values))


def fail(breaker: CircuitBreaker) -> None:
    """Make a call that fails."""
    with pytest.raises(ConnectionError), breaker.guard():
        raise ConnectionError


def threads_of(server: Server) -> set[str]:
    """Return the names of the threads that have sent commands."""
    return {thread for thread, _ in server.commands}


def link_lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return levels and texts of the log lines about the connection."""
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.getMessage().startswith("Redis messages")
    ]


@pytest.fixture(autouse=True)
def _all_levels_and_no_threads(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Record all log levels, and check that no thread is left for the next test."""
    caplog.set_level(logging.DEBUG, "resilience")
    yield
    join_all()


class TestTelling:
    """Changes that a process sends."""

    @pytest.mark.parametrize("encode", [str, str.encode])
    def test_opens_and_closes(
        self, server: Server, start: Start, encode: Callable[[str], object]
    ) -> None:
        """An opening opens the other breaker, and a closing makes it half-open."""
        server.encode = encode
        clock = ManualClock()
        first, second = make_breaker(clock=clock), make_breaker()
        start(first)
        start(second)
        fail(first)
        server.wait_for(lambda: second.state is State.OPEN)
        clock.advance(30.0)
        first.execute(str)
        server.wait_for(lambda: second.state is State.HALF_OPEN)
        server.settle()

        assert [news["kind"] for news in server.published()] == ["opened", "closed"]
        assert server.kept == {}

    def test_is_kept_first(self, server: Server, start: Start) -> None:
        """The key expires with the open period, and is stored before the message is sent."""
        breaker = make_breaker(reset_timeout=7.5)
        start(breaker)
        fail(breaker)
        server.wait_for(lambda: server.named("publish"))

        told = [command for _, command in server.commands if command[0] in {"set", "publish"}]
        (_, key, value, milliseconds), (_, channel, message) = told
        assert (key, milliseconds, channel) == ("chat:opened:model", 7500, "chat:news")
        assert value == message
        assert server.published()[0]["seconds"] == 7.5

    def test_operators(self, server: Server, start: Start) -> None:
        """An isolation has a key of its own, and a reset deletes both."""
        breaker = make_breaker()
        start(breaker, operators=True)
        fail(breaker)
        breaker.isolate()
        server.wait_for(lambda: "chat:isolated:model" in server.kept)
        breaker.isolate(0)
        server.wait_for(lambda: server.kept["chat:isolated:model"][1] == 1)
        breaker.reset()
        server.wait_for(lambda: not server.kept)

        assert server.published()[-1]["kind"] == "reset"

    def test_no_call_waits(self, server: Server, start: Start) -> None:
        """No command is sent in the thread of a call, which continues although Redis hangs."""
        breaker = make_breaker()
        news = start(breaker, operators=True)
        server.gate = threading.Event()
        fail(breaker)
        server.wait_for(lambda: server.named("set"))
        breaker.isolate()
        breaker.reset()
        news.close()
        server.gate.set()

        assert threads_of(server) == {"resilience-redis-send", "resilience-redis-receive"}

    def test_is_told_at_once(
        self, server: Server, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An opening is sent at once, before the application's listener has returned."""
        listened: list[bool] = []

        def listen(_: object) -> None:
            server.wait_for(lambda: server.named("publish"))
            listened.append(True)

        breaker = make_breaker(on_state_change=listen)
        news = start(breaker)
        monkeypatch.setattr(redis, "_CHECK_INTERVAL", 2 * LIMIT)
        server.wait_for(lambda: server.subscriptions[0].asked[-1] > LIMIT)
        fail(breaker)
        news.close()
        server.deliver("")  # so that the receiver ends

        assert listened == [True]

    def test_many_changes(self, server: Server, start: Start) -> None:
        """A thousand openings while Redis hangs need no memory; the last state is sent."""
        breaker = make_breaker()
        news = start(breaker)
        server.gate = threading.Event()
        longest = 0
        for _ in range(1000):
            fail(breaker)
            longest = max(longest, news._control.changed.qsize())
            breaker.reset()
        fail(breaker)
        server.gate.set()
        server.wait_for(lambda: "chat:opened:model" in server.kept)
        server.settle()

        assert longest <= 2
        assert len(server.published()) <= 4

    def test_a_change_during_each_message(
        self, server: Server, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The queue does not grow if the breaker changes again whenever a change is sent."""
        breaker = make_breaker()
        sizes: list[int] = []
        publish = RedisNews._publish

        def publish_and_open(news: RedisNews, *change: Any) -> None:  # noqa: ANN401
            publish(news, *change)
            if len(sizes) < 20:
                breaker.reset()
                fail(breaker)
                sizes.append(news._control.changed.qsize())

        monkeypatch.setattr(RedisNews, "_publish", publish_and_open)
        start(breaker)
        fail(breaker)
        server.wait_for(lambda: len(server.named("publish")) > 20)

        assert max(sizes) <= 2  # an entry of the breaker, and one to check all

    def test_is_looked_at(self, server: Server, start: Start) -> None:
        """Changes without an event, such as isolating an open breaker, are sent after a while."""
        breaker = make_breaker()
        start(breaker, operators=True)
        breaker._events.watchers = ()
        fail(breaker)
        breaker.isolate()

        server.wait_for(lambda: "chat:isolated:model" in server.kept)

    def test_is_looked_at_among_changes(
        self, server: Server, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All breakers are checked at each interval, however many changes there are."""
        looked: list[int] = []
        news = start(make_breaker())
        news.close()
        join_all()

        class Busy:
            is_stopped = False

            def __init__(self) -> None:
                self.changed = self

            def get(self, *, timeout: float) -> object:
                assert timeout > 0
                self.is_stopped = len(looked) > 3
                return next(iter(news._syncs.values()))

        def tell(watches: Any) -> bool:  # noqa: ANN401
            looked.extend(1 for _ in watches if isinstance(watches, type({}.values())))
            return True

        monkeypatch.setattr(RedisNews, "_send_changes", lambda _, watches: tell(watches))
        busy: Any = Busy()
        news._run_sender(busy)

        assert len(looked) == 4
        assert server.published() == []


class TestHearing:
    """Effects of messages and keys that a process reads."""

    def test_starts_late(self, server: Server, start: Start) -> None:
        """A breaker opens until its key expires, not for the time in the message."""
        server.kept["chat:opened:model"] = (json.dumps(OPENED), 4000)
        breaker = make_breaker()
        start(breaker)

        assert breaker.snapshot().retry_after == 4.0
        assert server.published() == []

    @pytest.mark.parametrize(
        ("key", "changes", "milliseconds"),
        [
            ("chat:opened:model", {"name": "other"}, 4000),
            ("chat:opened:model", {"kind": "isolated"}, 4000),
            ("chat:isolated:model", {}, 4000),
            ("chat:opened:model", {"origin": None}, 4000),
            ("chat:opened:other", {}, 4000),
            ("else:opened:model", {}, 4000),
        ],
    )
    def test_strange_keys(
        self, server: Server, start: Start, key: str, changes: dict[str, object], milliseconds: int
    ) -> None:
        """A key of another breaker or namespace, or with invalid content, is ignored."""
        server.kept[key] = (json.dumps({**OPENED, **changes}), milliseconds)
        breaker = make_breaker()
        start(breaker, operators=True)

        assert breaker.state is State.CLOSED

    @pytest.mark.parametrize("milliseconds", [-1, -2, None, "4000"])
    def test_no_expiry(
        self,
        server: Server,
        start: Start,
        caplog: pytest.LogCaptureFixture,
        milliseconds: Any,  # noqa: ANN401
    ) -> None:
        """A key that does not expire, or has expired, changes nothing."""
        server.kept["chat:opened:model"] = (json.dumps(OPENED), milliseconds)
        breaker = make_breaker()
        start(breaker)

        assert breaker.state is State.CLOSED
        assert caplog.records == []

    def test_isolated(self, server: Server, start: Start) -> None:
        """A process that starts late reads isolations too, with `operators=True`."""
        server.kept["chat:isolated:model"] = (json.dumps({**OPENED, "kind": "isolated"}), 4000)
        first, second = make_breaker(), make_breaker()
        start(first)
        start(second, operators=True)

        assert (first.state, second.state) == (State.CLOSED, State.OPEN)

    @pytest.mark.parametrize(
        "message",
        [
            "",
            b"\xff",
            None,
            17,
            "{",
            "[" * 1000,
            json.dumps({**OPENED, "name": "unknown"}),
            json.dumps({**OPENED, "seconds": -1}),
            json.dumps({**OPENED, "seconds": 1e300}),
            json.dumps({**OPENED, "kind": "isolated"}),
            json.dumps(OPENED) + " " * 1024,
        ],
    )
    def test_nonsense(self, server: Server, start: Start, message: object) -> None:
        """An invalid message, or one of an unknown breaker, is ignored; the next one is applied."""
        breaker = make_breaker()
        start(breaker)
        server.deliver(message)
        server.settle()
        assert breaker.state is State.CLOSED
        server.deliver(json.dumps(OPENED))

        server.wait_for(lambda: breaker.state is State.OPEN)

    def test_limit(self, server: Server, start: Start) -> None:
        """A message keeps the breaker open for `max_seconds` at most."""
        breakers = {5.0: make_breaker(), 300.0: make_breaker()}
        start(breakers[5.0], max_seconds=timedelta(seconds=5))
        start(breakers[300.0])
        server.deliver(json.dumps({**OPENED, "seconds": 1e9}))

        for seconds, breaker in breakers.items():
            server.settle()
            assert breaker.state is State.OPEN
            assert breaker.snapshot().retry_after == seconds

    def test_namespaces(self, server: Server, start: Start) -> None:
        """Breakers of another namespace are not changed."""
        first, second = make_breaker(), make_breaker()
        start(first)
        start(second, "else")
        fail(first)
        server.wait_for(lambda: server.named("publish"))
        server.settle()

        assert second.state is State.CLOSED

    def test_own_messages(self, server: Server, start: Start) -> None:
        """A process does not apply its own messages, also after a reconnection."""
        breaker = make_breaker()
        news = start(breaker, operators=True)
        message = json.dumps({**OPENED, "origin": news._origin})
        server.kept["chat:opened:model"] = (message, 4000)
        server.deliver(message)
        server.subscriptions[0].messages.put({"type": "subscribe", "channel": "", "data": 1})
        server.settle()

        assert breaker.state is State.CLOSED

    def test_is_logged(
        self, server: Server, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A received change is logged with its origin, once for each change of state."""
        breaker = make_breaker()
        start(breaker, operators=True)
        for news in (OPENED, {**OPENED, "seconds": 20.0}, {**OPENED, "kind": "isolated"}):
            server.deliver(json.dumps(news))
        server.settle()
        server.settle()

        assert [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if " in process far" in record.getMessage()
        ] == [
            ("INFO", "circuit model was opened in process far"),
            ("INFO", "circuit model was isolated in process far"),
        ]

    def test_a_clock_that_raises(
        self, server: Server, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An exception of the application's code is logged, and the next message is applied."""
        errors: list[Exception] = []

        def clock() -> float:
            if errors and threading.current_thread().name == "resilience-redis-receive":
                raise errors.pop()
            return 0.0

        breaker = make_breaker(clock=clock)
        start(breaker)
        errors.append(RuntimeError())
        server.deliver(json.dumps(OPENED))
        server.settle()
        assert breaker.state is State.CLOSED
        server.deliver(json.dumps(OPENED))
        server.wait_for(lambda: breaker.state is State.OPEN)

        assert any(
            record.getMessage().startswith("RedisNews raised RuntimeError at")
            for record in caplog.records
        )
        assert link_lines(caplog) == []


class TestLosses:
    """Calls work without Redis."""

    def test_is_down(self, server: Server, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        """One WARNING and one INFO are logged; missed changes are sent and read afterwards."""
        first, second = make_breaker(), make_breaker()
        start(first)
        start(second)
        caplog.clear()
        server.down = ConnectionError("refused")
        server.wait_for(lambda: not server.subscriptions)
        fail(first)
        server.wait_for(lambda: len(server.named("subscribe")) > 6)
        assert second.state is State.CLOSED
        server.down = None
        server.wait_for(lambda: second.state is State.OPEN)
        server.wait_for(lambda: len(link_lines(caplog)) == 4)
        server.settle()

        stopped = ("WARNING", "Redis messages of namespace chat stopped: ConnectionError")
        resumed = ("INFO", "Redis messages of namespace chat resumed")
        assert sorted(link_lines(caplog)) == [resumed, resumed, stopped, stopped]

    def test_is_down_at_first(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        """It starts without Redis, and reads the keys when Redis is available."""
        server.down = TimeoutError()
        server.kept["chat:opened:model"] = (json.dumps(OPENED), 4000)
        breaker = make_breaker()
        with RedisNews(server, "chat", {"model": breaker}):
            server.wait_for(lambda: len(server.named("subscribe")) > 3)
            assert breaker.execute(str) == ""
            server.down = None
            server.wait_for(lambda: breaker.state is State.OPEN)
            server.wait_for(lambda: len(link_lines(caplog)) == 2)

        assert [level for level, _ in link_lines(caplog)] == ["WARNING", "INFO"]

    def test_extra(self, server: Server, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        """The extra keys of both lines name the namespace and the type of the error."""
        start(make_breaker())
        server.down = ConnectionError("refused")
        server.wait_for(lambda: link_lines(caplog))
        server.down = None
        server.wait_for(lambda: len(link_lines(caplog)) == 2)

        records = [each for each in caplog.records if each.msg.startswith("Redis messages")]
        fields = [
            {key: value for key, value in vars(each).items() if key.startswith("resilience_")}
            for each in records
        ]
        assert fields == [
            {"resilience_namespace": "chat", "resilience_error": "ConnectionError"},
            {"resilience_namespace": "chat", "resilience_error": None},
        ]

    def test_is_full(self, server: Server, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        """If Redis is full, changes are still published, and stored when there is room."""
        first, second = make_breaker(), make_breaker()
        start(first)
        start(second)
        server.errors["set"] = MemoryError()
        fail(first)
        server.wait_for(lambda: second.state is State.OPEN)
        server.wait_for(lambda: len(server.named("set")) > 2)
        assert link_lines(caplog) == [
            ("WARNING", "Redis messages of namespace chat stopped: MemoryError")
        ]
        del server.errors["set"]
        server.wait_for(lambda: len(link_lines(caplog)) == 2)

        assert link_lines(caplog)[1] == ("INFO", "Redis messages of namespace chat resumed")
        assert "chat:opened:model" in server.kept

    def test_cannot_be_read(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        """Messages are applied although no key can be read; the keys are read when they can be."""
        server.errors["get"] = PermissionError()
        server.kept["chat:opened:model"] = (json.dumps({**OPENED, "seconds": 99.0}), 99_000)
        breaker = make_breaker()
        with RedisNews(server, "chat", {"model": breaker}):
            server.wait_for(lambda: len(server.named("get")) > 4)
            server.deliver(json.dumps(OPENED))
            server.wait_for(lambda: breaker.state is State.OPEN)
            assert breaker.snapshot().retry_after == 10.0
            server.errors.clear()
            server.wait_for(lambda: len(link_lines(caplog)) == 2)

        assert breaker.snapshot().retry_after == 99.0
        assert [text for _, text in link_lines(caplog)] == [
            "Redis messages of namespace chat stopped: PermissionError",
            "Redis messages of namespace chat resumed",
        ]

    def test_one_key_cannot_be_read(self, server: Server) -> None:
        """Keys that can be read are applied although another one cannot be read."""
        server.kept["chat:opened:model"] = (json.dumps(OPENED), 4000)
        breaker, other = make_breaker(), make_breaker()
        broken: Any = TypeError()
        server.kept["chat:opened:broken"] = (broken, 1)
        with RedisNews(server, "chat", {"broken": other, "model": breaker}):
            server.wait_for(lambda: breaker.state is State.OPEN)

        assert other.state is State.CLOSED

    def test_is_silent(
        self,
        server: Server,
        start: Start,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A PING is sent on a silent connection, which is closed if there is no answer."""
        monkeypatch.setattr(redis, "_PING_AFTER", 0.5)  # longer than any pause of a busy machine
        start(make_breaker())
        server.wait_for(lambda: len(server.named("ping")) > 1)
        assert link_lines(caplog) == []
        (connection,) = server.subscriptions
        server.is_silent = True
        server.wait_for(lambda: connection.is_closed)
        server.is_silent = False
        server.wait_for(lambda: len(link_lines(caplog)) >= 2)

        assert link_lines(caplog)[0] == (
            "WARNING",
            "Redis messages of namespace chat stopped: TimeoutError",
        )

    def test_connects_again_by_itself(self, server: Server, start: Start) -> None:
        """When the client has subscribed again, the keys are read and openings sent again."""
        first, second = make_breaker(), make_breaker()
        start(first)
        fail(first)
        server.wait_for(lambda: server.kept)
        start(second)
        server.kept.clear()
        for each in server.subscriptions:
            each.messages.put({"type": "subscribe", "channel": "", "data": 1})

        server.wait_for(lambda: "chat:opened:model" in server.kept)
        assert second.state is State.OPEN

    def test_closings_are_told_once(self, server: Server, start: Start) -> None:
        """After a reconnection a closing is not sent again."""
        breaker = make_breaker()
        start(breaker)
        fail(breaker)
        server.wait_for(server.published)
        with breaker._events._lock:
            breaker._period = Closed()
        server.wait_for(lambda: len(server.published()) == 2)
        server.subscriptions[0].messages.put({"type": "subscribe", "channel": "", "data": 1})
        reads = len(server.named("get"))
        server.wait_for(lambda: len(server.named("get")) > reads)
        server.settle()

        assert [news["kind"] for news in server.published()] == ["opened", "closed"]

    def test_asks_once(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """One PING is sent on a silent connection before it is closed."""
        news = start(make_breaker())
        news.close()
        join_all()
        asked: list[float] = []
        now = [0.0]

        def wait(*, timeout: float) -> None:
            now[0] += timeout

        monkeypatch.setattr(redis, "_CHECK_INTERVAL", 1.0)
        monkeypatch.setattr(redis, "time", SimpleNamespace(monotonic=lambda: now[0]))
        silent: Any = SimpleNamespace(get_message=wait, ping=lambda: asked.append(now[0]))
        with pytest.raises(TimeoutError, match="no message from Redis for 11 s"):
            news._read_channel(silent, redis._ThreadControl())

        assert asked == [6.0]

    def test_growing_delay(
        self, server: Server, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The delays between attempts grow up to a limit; after a long connection they restart."""
        delays: list[float] = []
        over = 12

        def pause(run: redis._ThreadControl, seconds: float) -> None:
            delays.append(seconds)
            run.is_stopped = len(delays) == over

        monkeypatch.setattr(redis._ThreadControl, "pause", pause)
        news = start(make_breaker())
        server.down = ConnectionError()
        server.wait_for(lambda: len(delays) == over)
        assert delays[:4] == [0.01, 0.02, 0.04, 0.08]
        assert max(delays) == delays[-1] == 10.0
        delays.clear()
        over = 2
        times = iter([0.0, 10.0, 20.0, 31.0, 0.0])
        monkeypatch.setattr(redis, "time", SimpleNamespace(monotonic=lambda: next(times)))
        news._run_receiver(redis._ThreadControl())

        assert delays == [0.01, 0.01]

    def test_a_sender_that_fails(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """It tries again after growing delays, and at once when Redis is available again."""
        breaker = make_breaker()
        news = start(breaker)
        news.close()
        timeouts: list[float] = []

        class Never:
            is_stopped = False

            def __init__(self) -> None:
                self.changed = self

            def get(self, *, timeout: float) -> None:
                timeouts.append(timeout)
                self.is_stopped = len(timeouts) == 7
                if len(timeouts) < 6:
                    now.append(now[-1] + timeout)
                    raise Empty

        now = [0.0]
        monkeypatch.setattr(redis, "_CHECK_INTERVAL", 1.0)
        monkeypatch.setattr(redis, "time", SimpleNamespace(monotonic=lambda: now[-1]))
        told = iter([True, False, False, False, False, False, True, True])
        monkeypatch.setattr(RedisNews, "_send_changes", lambda *_: next(told))
        never: Any = Never()
        news._run_sender(never)

        assert timeouts == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 1.0]

    def test_a_log_handler_that_raises(self, server: Server) -> None:
        """A log handler that raises ends no thread."""

        class Raising(logging.Handler):
            @override
            def handle(self, record: logging.LogRecord) -> bool:
                raise RuntimeError

        handler = Raising()
        breaker = make_breaker()
        with RedisNews(server, "chat", {"model": breaker}) as news:
            logging.getLogger("resilience").addHandler(handler)
            try:
                server.down = ConnectionError()
                server.wait_for(lambda: "receive" in news._connection_log._failing)
                server.down = None
                server.wait_for(lambda: not news._connection_log._failing)
                server.deliver(json.dumps(OPENED))
                server.wait_for(lambda: breaker.state is State.OPEN)
                server.settle()
            finally:
                logging.getLogger("resilience").removeHandler(handler)

            assert len(alive()) == 2


class TestLife:
    """Start, end and forks."""

    def test_close(self, server: Server) -> None:
        """After `close()` nothing is sent or applied, and the threads end; it may be repeated."""
        breaker = make_breaker()
        news = RedisNews(server, "chat", {"model": breaker})
        server.wait_for(lambda: server.named("pttl"))
        threads = alive()
        news.close()
        news.close()
        fail(breaker)
        breaker.reset()
        server.deliver(json.dumps(OPENED))
        join_all(threads)

        assert len(threads) == 2
        assert alive() == []
        assert breaker.state is State.CLOSED
        assert server.subscriptions == []
        assert server.published() == []
        assert breaker._events.watchers == ()

    def test_close_while_down(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        """The threads end without a further attempt, whatever the delay is."""
        server.down = ConnectionError()
        news = RedisNews(server, "chat", {"model": make_breaker()})
        server.wait_for(lambda: len(server.named("subscribe")) > 5)
        news.close()
        join_all()

        assert alive() == []
        assert len(link_lines(caplog)) == 1

    def test_a_client_that_is_closed_first(
        self, server: Server, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An error after `close()` is not logged."""
        server.on_ask = start(make_breaker()).close
        server.down = ValueError()
        join_all()

        assert link_lines(caplog) == []

    def test_repr(self, start: Start) -> None:
        """The `repr` has the namespace and the breakers."""
        assert repr(start(make_breaker())) == "<RedisNews 'chat' of 'model'>"

    def test_copy(self, start: Start) -> None:
        """A `RedisNews` cannot be copied."""
        with pytest.raises(TypeError, match="RedisNews cannot be copied"):
            copy.copy(start(make_breaker()))

    def test_without_breakers(self, server: Server) -> None:
        """A group without breakers reads nothing."""
        with RedisNews(server, "chat", {}):
            server.wait_for(lambda: server.subscriptions and server.subscriptions[0].asked[1:])

        assert server.named("get") == []

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"client": None}, TypeError, "client.pubsub must be callable, got None"),
            ({"namespace": ""}, ValueError, "namespace must have 1 to 256 bytes as JSON, got ''"),
            ({"namespace": 1}, TypeError, "namespace must be a string, got 1"),
            ({"breakers": []}, TypeError, r"breakers must be a Mapping, got \[\]"),
            ({"breakers": {"": None}}, ValueError, "name must have 1 to 256 bytes"),
            ({"breakers": {"\N{SNOWMAN}" * 43: None}}, ValueError, "name must have 1 to 256"),
            ({"breakers": {"a": None}}, TypeError, r"breakers\['a'\] must be a CircuitBreaker"),
            ({"max_seconds": -1}, ValueError, "max_seconds must be finite and 0 or more, got -1"),
        ],
    )
    def test_arguments(
        self, server: Server, arguments: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        """A wrong argument is rejected and named, and no thread is started."""
        given: dict[str, Any] = {"client": server, "namespace": "chat", "breakers": {}, **arguments}

        with pytest.raises(error, match=text):
            RedisNews(**given)
        assert alive() == []

    def test_an_asynchronous_client(self) -> None:
        """A client for asyncio is rejected."""

        class AsyncSubscription:
            async def subscribe(self, channel: str) -> None: ...

        class AsyncClient:
            def pubsub(self) -> AsyncSubscription:
                return AsyncSubscription()

            def pipeline(self) -> None: ...

        client: Any = AsyncClient()
        with pytest.raises(TypeError, match=r"client.pubsub\(\).subscribe must be synchronous"):
            RedisNews(client, "chat", {})

    def test_no_thread(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the second thread cannot be started, the first one ends, and nothing is attached."""
        start = threading.Thread.start

        def start_one(thread: threading.Thread) -> None:
            if alive():
                msg = "can't start new thread"
                raise RuntimeError(msg)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_one)
        breaker = make_breaker()
        with pytest.raises(RuntimeError, match="can't start"):
            RedisNews(server, "chat", {"model": breaker})
        join_all()

        assert breaker._events.watchers == ()

    def test_fork(self, server: Server, start: Start) -> None:
        """A child has threads and an origin of its own, and sends its changes."""
        breaker = make_breaker()
        news = start(breaker)
        origin, old = news._origin, alive()
        server.gate = threading.Event()
        fail(breaker)
        server.wait_for(lambda: server.named("set"))
        breaker.reset()
        fail(breaker)  # is in the queue of the parent
        assert news._syncs["model"].has_changed
        _fork._renew_all()
        server.gate.set()
        join_all(old)
        server.wait_for(lambda: any(each["origin"] == news._origin for each in server.published()))

        assert news._origin != origin
        assert len(alive()) == 2
        server.wait_for(lambda: server.subscriptions)
        server.settle()  # what the parent has stored and sent
        server.wait_for(lambda: not news._syncs["model"].has_changed)
        sent = len(server.named("set"))
        breaker.reset()
        fail(breaker)
        server.wait_for(lambda: len(server.named("set")) > sent)

    def test_fork_after_close(self, start: Start) -> None:
        """A child of a closed `RedisNews` has no threads."""
        start(make_breaker()).close()
        join_all()
        _fork._renew_all()

        assert alive() == []

    def test_fork_without_threads(
        self,
        start: Start,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A child that can start no thread works without messages."""

        def refuse(_: threading.Thread) -> None:
            msg = "can't start new thread"
            raise RuntimeError(msg)

        breaker = make_breaker()
        start(breaker)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        _fork._renew_all()
        fail(breaker)

        assert breaker.state is State.OPEN
        assert any("RedisNews raised RuntimeError" in each.getMessage() for each in caplog.records)

    def test_order_in_a_child(self, start: Start) -> None:
        """No thread is started before all locks have been replaced."""
        breaker = make_breaker()
        start(breaker)
        locks: list[bool] = []
        old = breaker._events._lock

        class Recording:
            def _restart_after_fork(self) -> None:
                locks.append(breaker._events._lock is old)

        recording = Recording()
        _fork.restart_after_fork(recording)
        _fork._renew_all()

        assert locks == [False]

    def test_origin(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        """An origin has host and process, and is unique; an unusual host name is left out."""
        news = start(make_breaker())
        assert f":{os.getpid()}:" in news._origin
        strange = SimpleNamespace(gethostname=lambda: "h\xf6st\n" + "x" * 100)
        monkeypatch.setattr(redis, "socket", strange)

        names = {redis._make_process_name() for _ in range(5)}
        assert len(names) == 5
        assert all(name.startswith(f"host:{os.getpid()}:") for name in names)
