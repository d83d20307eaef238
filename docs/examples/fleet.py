"""Measure an outage of a provider in eight processes, with and without `RedisNews`.

Run it with the library, the package `redis` and a Redis server installed:

    sudo apt install redis-server   # Debian, Ubuntu; `brew install redis` on a Mac
    python3 -m venv .venv && .venv/bin/pip install -q '.[redis]'
    .venv/bin/python docs/examples/fleet.py

It takes ten seconds and has two rounds. In each, eight processes call the same small LLM server at
random times, each twenty times a second. The server is killed, and started again later. In the
first round each breaker works on its own; in the second, the processes notify each other through a
Redis server, which this program starts on a free port and stops at the end. With `--url` it uses a
running server.

Each round prints when the breakers open and close, and how many attempts failed. The exit status is
0 if fewer attempts failed with `RedisNews` than without, and all processes got answers at the end.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import IO

from outage import HttpLLM, ServerProcess
from resilience import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, StateChange, llm
from resilience.redis import RedisNews

PROCESSES = 8
CALLS_PER_SECOND = 20.0
MAX_FAILURES = 5
RESET_TIMEOUT = 0.8
SECONDS_UP, SECONDS_DOWN = 0.3, 1.6
LONGEST_WAIT = 10.0
REQUEST = llm.CompletionRequest(
    messages=(llm.Message(role="user", content="What is rain?"),), max_tokens=1
)
NO_REDIS = """Redis is missing. Install the server and the package, and run this again:

    sudo apt install redis-server   # Debian, Ubuntu; `brew install redis` on a Mac
    .venv/bin/pip install -q '.[redis]'

or use a running server: --url redis://127.0.0.1:6379
"""


def run_member(number: int, port: int, url: str, namespace: str) -> None:
    """Call the server until standard input is closed, and print events as lines of JSON."""

    def report(what: str) -> None:
        line = json.dumps([what, time.monotonic()]) + "\n"
        os.write(sys.stdout.fileno(), line.encode())  # in one call, since two threads write

    def on_state_change(change: StateChange) -> None:
        report(str(change.new))

    logging.getLogger("resilience").addHandler(logging.NullHandler())
    breaker = CircuitBreaker(
        CircuitBreakerConfig(
            name="server",
            max_failures=MAX_FAILURES,
            reset_timeout=RESET_TIMEOUT,
            half_open_max=1,
            on_state_change=on_state_change,
        )
    )
    stopped = threading.Event()

    def wait_for_stop() -> None:
        sys.stdin.read()
        stopped.set()

    threading.Thread(target=wait_for_stop, daemon=True).start()
    model = HttpLLM("127.0.0.1", port)
    intervals = random.Random(number)  # noqa: S311
    with contextlib.ExitStack() as stack:
        if url:
            from redis import Redis  # noqa: PLC0415 - not needed in the first round

            client = stack.enter_context(Redis.from_url(url, socket_timeout=1.0))
            stack.enter_context(RedisNews(client, namespace, {"server": breaker}))
        while not stopped.wait(intervals.expovariate(CALLS_PER_SECOND)):
            try:
                breaker.execute(model.complete, REQUEST)
                report("answered")
            except CircuitOpenError:
                pass
            except (OSError, HTTPException):  # the server may die while it answers
                report("failed")


@dataclass
class Member:
    """A process of the fleet, and the events that it has printed."""

    process: "subprocess.Popen[str]"
    events: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])

    def read(self, output: IO[str]) -> None:
        """Record the events that the process prints, until it ends."""
        for line in output:
            what, moment = json.loads(line)
            self.events.append((what, moment))

    def has(self, what: str, since: float) -> bool:
        """Return whether an event has happened since a time."""
        return any(name == what and moment > since for name, moment in tuple(self.events))


@contextlib.contextmanager
def start_fleet(port: int, url: str) -> Generator[list[Member]]:
    """Start the processes; they end with the `with` statement."""
    namespace = f"fleet-{uuid.uuid4().hex}"
    members: list[Member] = []
    threads: list[threading.Thread] = []
    with contextlib.ExitStack() as stack:
        for number in range(PROCESSES):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, __file__, "--member", str(number), str(port), url, namespace],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            member = Member(process)
            assert process.stdout
            threads.append(threading.Thread(target=member.read, args=(process.stdout,)))
            threads[-1].start()
            members.append(member)
        yield members
        for member in members:
            assert member.process.stdin
            member.process.stdin.close()
        for thread in threads:
            thread.join(LONGEST_WAIT)


def wait_for_all(members: list[Member], what: str, since: float) -> tuple[float, float]:
    """Wait for an event in each process; return the seconds until the first and the last."""
    while not all(member.has(what, since) for member in members):
        if time.monotonic() > since + LONGEST_WAIT:
            sys.exit(f"not all processes were {what} within {LONGEST_WAIT:.0f} s")
        time.sleep(0.01)
    moments = [
        min(moment for name, moment in member.events if name == what and moment > since)
        for member in members
    ]
    return min(moments) - since, max(moments) - since


def measure_outage(title: str, url: str) -> int:
    """Kill the server during the calls, and start it again; return how many attempts failed."""
    print(f"\n{title}")
    server = ServerProcess("server")
    with contextlib.closing(server), start_fleet(server.port, url) as members:
        wait_for_all(members, "answered", time.monotonic())
        time.sleep(SECONDS_UP)
        killed = time.monotonic()
        server.close()
        first, last = wait_for_all(members, "open", killed)
        all_open = killed + last
        print(f"  the server is killed; the breakers open {first:.2f} to {last:.2f} s later")
        time.sleep(max(0.0, killed + SECONDS_DOWN - time.monotonic()))
        started = time.monotonic()
        server.start()
        first, last = wait_for_all(members, "closed", started)
        print(f"  the server is started; the breakers close {first:.2f} to {last:.2f} s later")
        wait_for_all(members, "answered", time.monotonic())
    failed = [moment for each in members for name, moment in each.events if name == "failed"]
    probes = sum(moment > all_open for moment in failed)
    print(f"  {len(failed)} attempts failed, {probes} of them were probes")
    return len(failed)


@contextlib.contextmanager
def start_redis() -> Generator[str]:
    """Start a Redis server on a free port, without storage on disk; yield its URL."""
    program = shutil.which("redis-server")
    if not program:
        sys.exit(NO_REDIS)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            program,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            folder,
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                wait_for_port(port)
                yield f"redis://127.0.0.1:{port}"
            finally:
                process.kill()


def wait_for_port(port: int) -> None:
    """Wait until a server listens on a port of this machine."""
    for _ in range(1000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.01)
    sys.exit("the Redis server does not listen on its port")


def main() -> bool:
    """Measure both rounds; return whether fewer attempts failed with `RedisNews`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="", help="a running Redis server")
    url = parser.parse_args().url
    if not importlib.util.find_spec("redis"):
        sys.exit(NO_REDIS)
    print(
        f"{PROCESSES} processes, each with {CALLS_PER_SECOND:.0f} calls a second,"
        f" max_failures={MAX_FAILURES}, reset_timeout={RESET_TIMEOUT}"
    )
    with contextlib.nullcontext(url) if url else start_redis() as address:
        alone = measure_outage("Without RedisNews", "")
        together = measure_outage("With RedisNews", address)
    print(f"\nfailed attempts: {alone} without RedisNews, {together} with it")
    return together < alone


if __name__ == "__main__":
    if sys.argv[1:2] == ["--member"]:
        run_member(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        sys.exit(0 if main() else 1)
