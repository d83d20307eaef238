"""A server on this machine that misbehaves according to a script."""

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import final

from typing_extensions import override


class Fault(Enum):
    """What the server does instead of answering."""

    RESET = auto()
    SILENCE = auto()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server sends.

    Attributes:
        status: Status of the response.
        headers: Headers of the response.
        body: Its body, which ends with the connection.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b"{}"


class LoopbackServer(ThreadingMixIn, HTTPServer):
    """Does the same to every request, each in a thread of its own."""

    daemon_threads = False  # so that closing the server waits for them

    def __init__(self, behaviour: Answer | Fault) -> None:
        """Listen at a free port."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour
        self.released = threading.Event()

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.server_port}"

    @override
    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """End a connection."""
        if self.behaviour is Fault.RESET and isinstance(request, socket.socket):
            # Closed without lingering and not shut down before, it is reset.
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_request(request)
        else:
            super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._serve()

    def _serve(self) -> None:
        assert isinstance(self.server, LoopbackServer)
        behaviour = self.server.behaviour
        if isinstance(behaviour, Answer):
            self._answer(behaviour)
        elif behaviour is Fault.SILENCE:
            self.server.released.wait()

    def _answer(self, answer: Answer) -> None:
        self.send_response_only(answer.status, "As Told")  # and no `Date`
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(behaviour: Answer | Fault) -> Iterator[str]:
    """Run a server and yield its URL; at the end nothing of it is left."""
    server = LoopbackServer(behaviour)
    thread = threading.Thread(target=server.serve_forever, args=(0.005,))
    thread.start()
    try:
        yield server.url
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def refuse() -> Iterator[str]:
    """Yield the URL of a port at which no server listens, and which no other one can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
