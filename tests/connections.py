"""Servers on this machine, of which nothing is left at the end of a test."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any, TypeAlias, TypeVar

from typing_extensions import override

Request: TypeAlias = socket.socket | tuple[bytes, socket.socket]
ServerT = TypeVar("ServerT", bound="LocalServer")


class LocalServer(ThreadingHTTPServer):
    """Serves each request in a thread of its own.

    Attributes:
        is_over: Set at the end of the test: what hangs waits for it.
    """

    daemon_threads = False  # so that closing the server waits for them

    def __init__(self, handler: type[BaseHTTPRequestHandler], *, listens: bool = True) -> None:
        """Listen on a free port, or reserve a port on which no server listens."""
        super().__init__(("127.0.0.1", 0), handler, bind_and_activate=False)
        self.is_over = Event()
        self.listens = listens
        self.server_bind()
        if listens:
            self.server_activate()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.address}"

    @property
    def resets(self) -> bool:
        """Connections end with a reset."""
        return False

    @override
    def shutdown_request(self, request: Request) -> None:
        """End a connection."""
        if self.resets and isinstance(request, socket.socket):
            # Closed without lingering and not shut down before, it is reset.
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_request(request)
        else:
            super().shutdown_request(request)


class CountingServer(LocalServer):
    """Counts the connections that its clients have open, and waits until a client has left.

    After an answer the server closes its own side only. So a client that forgets to close a
    connection is seen here.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], *, listens: bool = True) -> None:
        """Listen at a free port, or hold one at which nobody listens."""
        super().__init__(handler, listens=listens)
        self._guard = Lock()
        self._open = set[Request]()

    def count_connections(self) -> int:
        """Return how many connections are open."""
        with self._guard:
            return len(self._open)

    @override
    def server_close(self) -> None:
        """Close the connections that clients have left open, too."""
        with self._guard:
            for request in self._open:
                _shut_down(request, socket.SHUT_RDWR)
        super().server_close()

    @override
    def process_request(self, request: Request, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    @override
    def shutdown_request(self, request: Request) -> None:
        """Close the server's side, and then the connection, when the client has left."""
        if self.resets:
            super().shutdown_request(request)
            return
        _shut_down(request, socket.SHUT_WR)
        with suppress(OSError):
            while isinstance(request, socket.socket) and request.recv(65_536):
                pass
        self.close_request(request)

    @override
    def close_request(self, request: Request) -> None:
        with self._guard:
            self._open.discard(request)
        super().close_request(request)


class QuietHandler(BaseHTTPRequestHandler):
    """Answers in chunks, and prints nothing."""

    protocol_version = "HTTP/1.1"

    def send_chunk(self, piece: bytes) -> None:
        """Send a piece of the body; an empty one is its end."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def run(server: ServerT) -> Iterator[ServerT]:
    """Run a server until the end of the test, unless it does not listen."""
    with server:
        thread = Thread(target=server.serve_forever, args=(0.005,))
        if server.listens:
            thread.start()
        try:
            yield server
        finally:
            server.is_over.set()
            if server.listens:
                server.shutdown()
                thread.join()


def _shut_down(request: Request, side: int) -> None:
    if isinstance(request, socket.socket):
        with suppress(OSError):
            request.shutdown(side)
