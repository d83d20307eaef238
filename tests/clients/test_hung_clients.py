"""`attempt_timeout` with real clients with default timeouts, and servers that stop sending."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any

import pytest

from resilience import Attempt, AttemptTimeoutError, FallbackConfig, FallbackGroup

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")

TIMEOUT = 1.0
MESSAGES: list[Any] = [{"role": "user", "content": "Hello?"}]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"

Silence = Callable[[socket.socket, threading.Event], None]
Ask = Callable[[str], object]


def accept_only(_connection: socket.socket, over: threading.Event) -> None:
    """Send nothing."""
    over.wait()


def headers_only(connection: socket.socket, over: threading.Event) -> None:
    """Send only the headers of an answer."""
    connection.sendall(HEAD)
    over.wait()


def drip(connection: socket.socket, over: threading.Event) -> None:
    """Send the headers of an answer, and a byte a second, which renews a read timeout."""
    connection.sendall(HEAD)
    while not over.wait(1.0):
        connection.sendall(b":")


@contextlib.contextmanager
def server(silence: Silence) -> Iterator[str]:
    """Run a server on loopback, and yield its address."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(65536)
            silence(connection, over)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        for each in (listener, *connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        thread.join(timeout=10)


def ask_openai(address: str) -> Callable[[], Iterable[object]]:
    """Return a streamed call with a client that is made beforehand, as in an application."""
    client = openai.OpenAI(base_url=address, api_key="none")
    return lambda: client.chat.completions.create(model="m", messages=MESSAGES, stream=True)


def ask_openai_plainly(address: str) -> Callable[[], Iterable[object]]:
    """Return a plain call."""
    client = openai.OpenAI(base_url=address, api_key="none")
    return lambda: client.chat.completions.create(model="m", messages=MESSAGES)


def ask_anthropic(address: str) -> Callable[[], Iterable[object]]:
    """Return a streamed call."""
    client = anthropic.Anthropic(base_url=address, api_key="none")
    return lambda: client.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True)


@pytest.mark.parametrize("silence", [accept_only, headers_only, drip])
@pytest.mark.parametrize("ask", [ask_openai, ask_openai_plainly, ask_anthropic])
def test_a_silent_server_costs_one_timeout(
    ask: Callable[[str], Callable[[], Iterable[object]]], silence: Silence
) -> None:
    """The next provider answers in less than 1.2 seconds, whatever the client's timeout is."""
    attempts: list[Attempt] = []
    config = FallbackConfig(attempt_timeout=TIMEOUT, on_attempt=attempts.append)
    with server(silence) as address:
        group = FallbackGroup(ask(address), "silent", config)
        group.add_fallback("backup", lambda: ["hello"])

        begin = monotonic()
        stream = group.stream(lambda provider: provider())
        items = list(stream)
        took = monotonic() - begin

        assert items == ["hello"]
        assert stream.provider == "backup"
        assert isinstance(attempts[0].error, AttemptTimeoutError)
        assert TIMEOUT <= took < TIMEOUT + 0.2
