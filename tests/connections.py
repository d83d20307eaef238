"""A server on this machine that counts the connections that its clients have open."""

import socket
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any, TypeAlias

from typing_extensions import override

Request: TypeAlias = socket.socket | tuple[bytes, socket.socket]


class CountingServer(ThreadingHTTPServer):
    """Serves each connection in a thread of its own, and waits until the client has left it.

    After an answer the server closes its own side only. So a client that forgets to close a
    connection is seen here.
    """

    daemon_threads = False  # so that closing the server waits for them

    def __init__(self, handler: type[BaseHTTPRequestHandler], *, listens: bool = True) -> None:
        """Listen at a free port, or hold one at which nobody listens."""
        super().__init__(("127.0.0.1", 0), handler, bind_and_activate=False)
        self._guard = Lock()
        self._open = set[Request]()
        self.server_bind()
        if listens:
            self.server_activate()

    def count_connections(self) -> int:
        """Return how many connections are open."""
        with self._guard:
            return len(self._open)

    def hang_up(self) -> None:
        """Close the connections that clients have left open."""
        with self._guard:
            for request in self._open:
                _shut_down(request, socket.SHUT_RDWR)

    @override
    def process_request(self, request: Request, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    @override
    def shutdown_request(self, request: Request) -> None:
        """Close the server's side, and then the connection, when the client has left."""
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


def _shut_down(request: Request, side: int) -> None:
    if isinstance(request, socket.socket):
        with suppress(OSError):
            request.shutdown(side)
