"""A server on this machine whose faults follow a script."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import final

from typing_extensions import override

from connections import LocalServer, QuietHandler, run


class Fault(Enum):
    """A fault of the server, instead of an answer."""

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


class LoopbackServer(LocalServer):
    """Does the same to every request."""

    def __init__(self, behaviour: Answer | Fault) -> None:
        """Listen at a free port."""
        super().__init__(_Handler)
        self.behaviour = behaviour

    @property
    @override
    def resets(self) -> bool:
        """Connections end with a reset."""
        return self.behaviour is Fault.RESET


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.0"  # so that the connection ends with the answer

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
            self.server.is_over.wait()

    def _answer(self, answer: Answer) -> None:
        self.send_response_only(answer.status, "As Told")  # and no `Date`
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)


@contextmanager
def serve(behaviour: Answer | Fault) -> Iterator[str]:
    """Run a server and yield its URL; at the end nothing of it is left."""
    with run(LoopbackServer(behaviour)) as server:
        yield server.url


@contextmanager
def refuse() -> Iterator[str]:
    """Yield the URL of a port on which no server listens, and which no other server can use."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
