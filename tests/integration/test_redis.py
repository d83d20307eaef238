"""Messages between processes, through a real Redis that is killed, stopped or full.

With `-s` it prints its measurements.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from resilience import CircuitBreaker, CircuitBreakerConfig, State
from resilience.redis import RedisNews

redis = pytest.importorskip("redis")
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "fleet.py"
LIMIT = 30.0
"""Time limit of a test in seconds."""

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="not installed: the program redis-server"
)


class Server:
    """A `redis-server` on a free port of loopback, without storage on disk."""

    def __init__(self, folder: Path) -> None:
        """Start it for the first time."""
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Start it, and return when it answers."""
        address = ["--port", str(self.port), "--bind", "127.0.0.1"]
        self.process = subprocess.Popen(  # noqa: S603
            [str(shutil.which("redis-server")), *address, "--save", "", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
        )
        with self.client() as client:
            wait_for(lambda: answers(client))

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(LIMIT)

    def client(self, **settings: Any) -> Any:  # noqa: ANN401
        """Return a client."""
        once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        return redis.Redis(port=self.port, **{"socket_timeout": 1.0, "retry": once, **settings})


def answers(client: Any) -> bool:  # noqa: ANN401
    """Return whether a server answers."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def wait_for(has_happened: Callable[[], object], limit: float = LIMIT) -> float:
    """Check a condition until it is true; return after how many seconds."""
    began, pause = time.monotonic(), threading.Event()
    while not has_happened():
        assert time.monotonic() - began < limit
        pause.wait(0.005)
    return time.monotonic() - began


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a Redis that ends with the test."""
    server = Server(tmp_path)
    yield server
    server.process.send_signal(signal.SIGCONT)
    server.kill()


class Records(logging.Handler):
    """Records the log lines about the connection."""

    def __init__(self) -> None:
        """Start without records."""
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("Redis messages"):
            self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def records() -> Iterator[Records]:
    """Return the log lines of the test."""
    logger, records = logging.getLogger("resilience"), Records()
    logger.addHandler(records)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(records)
    logger.setLevel(logging.NOTSET)


class Member:
    """A breaker with its `RedisNews`, as in one of several processes."""

    def __init__(
        self,
        server: Server,
        namespace: str = "chat",
        *,
        settings: dict[str, object] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Start a `RedisNews` with a client of its own."""
        self.breaker = CircuitBreaker(
            CircuitBreakerConfig(name="model", max_failures=1, half_open_max=1)
        )
        self.client = server.client(**(settings or {}))
        self.news = RedisNews(self.client, namespace, {"model": self.breaker}, **options)

    def fail(self) -> None:
        """Make a call that fails."""
        with pytest.raises(ConnectionError), self.breaker.guard():
            raise ConnectionError

    def is_open(self) -> bool:
        """Return whether the breaker is open."""
        return self.breaker.state is State.OPEN


Start = Callable[..., Member]


@pytest.fixture
def start(server: Server) -> Iterator[Start]:
    """Return a function that starts a member and waits until it is subscribed."""
    members: list[Member] = []
    with server.client() as client:

        def start(namespace: str = "chat", **options: Any) -> Member:  # noqa: ANN401
            before = subscribers(client, namespace)
            members.append(Member(server, namespace, **options))
            wait_for(lambda: subscribers(client, namespace) > before)
            return members[-1]

        yield start
    for member in members:
        member.news.close()
    for thread in threading.enumerate():
        if thread.name.startswith("resilience-redis"):
            thread.join(LIMIT)
            assert not thread.is_alive()
    for member in members:
        member.client.close()


def subscribers(client: Any, namespace: str = "chat") -> int:  # noqa: ANN401
    """Return the number of subscribers of a namespace."""
    ((_, number),) = client.pubsub_numsub(f"{namespace}:news")
    return int(number)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode_responses", [False, True])
def test_every_kind_of_client(start: Start, protocol: int, *, decode_responses: bool) -> None:
    """Messages and keys are read with clients that decode or not, and with both protocols."""
    settings = {"protocol": protocol, "decode_responses": decode_responses}
    first, second = start(settings=settings), start(settings=settings)
    first.fail()
    took = wait_for(second.is_open)
    third = start(settings=settings)
    wait_for(third.is_open)
    left = [member.breaker.snapshot().retry_after for member in (first, second, third)]
    print(f"\nan opening arrived after {took * 1000:.0f} ms")

    assert all(seconds is not None and 29.0 < seconds <= 30.0 for seconds in left)


def test_operators(start: Start) -> None:
    """An isolation and a reset are applied by processes with `operators=True`."""
    first, second, third = start(operators=True), start(operators=True), start()
    first.breaker.isolate()
    wait_for(second.is_open)
    late = start(operators=True)
    wait_for(late.is_open)
    second.breaker.reset()
    wait_for(lambda: not first.is_open())
    wait_for(lambda: not late.is_open())

    assert third.breaker.snapshot().opened_count == 0


def test_namespaces(server: Server, start: Start) -> None:
    """Two namespaces in one Redis exchange no messages."""
    here, there = start("here"), start("there")
    here.fail()
    second = start("here")
    wait_for(second.is_open)

    assert there.breaker.state is State.CLOSED
    with server.client() as client:
        assert client.keys() == [b"here:opened:model"]


def test_is_killed_and_started_again(server: Server, start: Start, records: Records) -> None:
    """Calls continue, missed changes are sent later, and each process logs two lines."""
    first, second = start(), start()
    server.kill()
    wait_for(lambda: len(records.lines) == 2)
    began = time.monotonic()
    first.fail()
    assert second.breaker.execute(str) == ""
    took = time.monotonic() - began
    server.start()
    back = wait_for(second.is_open)
    wait_for(lambda: len(records.lines) == 4)
    print(f"\n{took * 1000:.1f} ms for two calls without Redis; news {back:.2f} s after its return")

    assert took < 0.5
    assert [level for level, _ in records.lines] == ["WARNING"] * 2 + ["INFO"] * 2


def test_key_is_kept_again(server: Server, start: Start) -> None:
    """The key of an open period is stored again after Redis has lost its data."""
    first = start(settings={"retry": redis.Redis().get_retry()})
    first.fail()
    with server.client() as client:
        wait_for(client.keys)
        server.kill()
        server.start()
        wait_for(lambda: client.keys() == [b"chat:opened:model"])


def test_is_stopped(server: Server, start: Start, records: Records) -> None:
    """A Redis that does not answer delays no call, and is detected."""
    first, second = start(), start()
    server.process.send_signal(signal.SIGSTOP)
    durations: list[float] = []
    for _ in range(100):
        began = time.monotonic()
        first.fail()
        first.breaker.reset()
        durations.append(time.monotonic() - began)
    first.fail()
    wait_for(lambda: records.lines)
    server.process.send_signal(signal.SIGCONT)
    wait_for(second.is_open)
    print(f"\na call took {max(durations) * 1000:.1f} ms at most")

    assert max(durations) < 0.5


def test_is_full(server: Server, start: Start, records: Records) -> None:
    """A Redis that is full and stores nothing still delivers messages."""
    first, second = start(), start()
    with server.client() as client:
        client.config_set("maxmemory", "1")
        first.fail()
        wait_for(second.is_open)
        wait_for(lambda: records.lines)
        assert client.keys() == []
        client.config_set("maxmemory", "0")
        wait_for(client.keys)
        wait_for(lambda: len(records.lines) == 2)

    assert records.lines[0] == (
        "WARNING",
        "Redis messages of namespace chat stopped: OutOfMemoryError",
    )


@pytest.mark.parametrize("decode_responses", [False, True])
def test_nonsense(server: Server, start: Start, *, decode_responses: bool) -> None:
    """Whatever data is in Redis, calls are served and messages arrive."""
    settings = {"decode_responses": decode_responses}
    with server.client() as client:
        client.rpush("chat:isolated:model", "a list")
        client.set("chat:opened:model", b"\xff\xfe")
        second = start(settings=settings)
        for message in (
            b"\xff\xfe",
            b"{}",
            b"x" * 100_000,
            b"[" * 1000,
            "\ud83d".encode("utf-16", "surrogatepass"),
        ):
            client.publish("chat:news", message)
            assert second.breaker.execute(str) == ""
        opened = {"kind": "opened", "name": "model", "origin": "far", "planned": 1, "error": "E"}

        def arrives() -> bool:
            client.publish("chat:news", json.dumps({**opened, "seconds": 1e9}))
            return second.is_open()

        wait_for(arrives)
    seconds = second.breaker.snapshot().retry_after

    assert seconds is not None
    assert seconds <= 300.0


def test_a_thousand_openings(server: Server, start: Start) -> None:
    """After a thousand openings, of one breaker and of many, the last state is applied."""
    flapping, other = start(), start()
    names = [f"model-{number}" for number in range(500)]
    many, followers = (
        {name: CircuitBreaker(CircuitBreakerConfig(name=name, max_failures=1)) for name in names}
        for _ in range(2)
    )
    with (
        contextlib.closing(server.client()) as client,
        RedisNews(client, "many", many),
        RedisNews(client, "many", followers),
    ):
        wait_for(lambda: subscribers(client, "many") == 2)
        longest, began = 0, time.monotonic()
        for breaker in many.values():
            flapping.fail()
            flapping.breaker.reset()
            longest = max(longest, flapping.news._control.changed.qsize())
            with pytest.raises(ConnectionError), breaker.guard():
                raise ConnectionError
        took = time.monotonic() - began
        flapping.fail()
        wait_for(other.is_open)
        wait_for(lambda: all(each.state is State.OPEN for each in followers.values()))
        arrived = time.monotonic() - began
    print(f"\n1,000 openings in {took:.2f} s, all known to the others after {arrived:.2f} s")

    assert longest <= 2  # of one breaker


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

FORK = """
    import os, sys, threading, time
    from redis import Redis
    from resilience import CircuitBreaker, CircuitBreakerConfig, State
    from resilience.redis import RedisNews

    def wait_for(has_happened):
        end = time.monotonic() + 20
        while not has_happened():
            if time.monotonic() > end:
                os._exit(3)
            time.sleep(0.01)

    def fail(breaker):
        try:
            with breaker.guard():
                raise ConnectionError
        except ConnectionError:
            pass

    def threads():
        return sum(each.name.startswith("resilience-redis") for each in threading.enumerate())

    a, b = (CircuitBreaker(CircuitBreakerConfig(name=name, max_failures=1)) for name in "ab")
    client = Redis(port=int(sys.argv[1]), socket_timeout=1.0)
    news = RedisNews(client, "fork", {"a": a, "b": b})
    wait_for(lambda: client.pubsub_numsub("fork:news")[0][1] == 1)
    child = os.fork()
    if child == 0:
        if threads() != 2:
            os._exit(4)
        wait_for(lambda: a.state is State.OPEN)
        fail(b)
        wait_for(lambda: client.exists("fork:opened:b"))
        os._exit(0)
    wait_for(lambda: client.pubsub_numsub("fork:news")[0][1] == 2)
    fail(a)
    wait_for(lambda: b.state is State.OPEN)
    assert b._rejection().reason.split(":")[1] == str(child), b._rejection().reason
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_fork
def test_fork(server: Server) -> None:
    """Parent and child notify each other, each with threads of its own."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK), str(server.port)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_eight_processes() -> None:
    """With `RedisNews` fewer attempts fail in an outage, and all processes get answers after it."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=90.0,
        check=False,
    )
    print(f"\n{done.stdout}")
    figures = re.search(r"failed attempts: (\d+) without RedisNews, (\d+) with it\n$", done.stdout)

    assert done.returncode == 0, done.stderr
    assert figures
    assert int(figures[2]) < int(figures[1])


def test_without_redis() -> None:
    """Without a Redis server the example prints how to install one."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert done.returncode == 1
    assert "apt install redis-server" in done.stderr
