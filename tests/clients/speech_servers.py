"""Servers on this machine that answer like a speech vendor, or fail, and record requests."""

import json
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar, final
from urllib.parse import parse_qsl, urlsplit

import pytest
from typing_extensions import override

from connections import CountingServer, QuietHandler
from connections import run as run_server

deepgram = pytest.importorskip("deepgram")
httpx = pytest.importorskip("httpx")
websockets = pytest.importorskip("websockets.sync.server")
with warnings.catch_warnings():
    # It imports a deprecated part of another package, which is not what the tests check.
    warnings.simplefilter("ignore", DeprecationWarning)
    pytest.importorskip("deepgram.listen.v1.client")

EarsT = TypeVar("EarsT", bound="Ears")

PATIENCE = 20.0  # seconds, long enough never to be needed


def http_client(timeout: float) -> Any:  # noqa: ANN401
    """Return a client of httpx that loads no certificates, which is slow."""
    return httpx.Client(timeout=timeout, verify=False)


def deepgram_client(
    address: str,
    *,
    timeout: float = PATIENCE,
    transport: Any = None,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Return a client of Deepgram for a server on this machine."""
    environment = pytest.importorskip("deepgram.environment").DeepgramClientEnvironment(
        base=f"http://{address}",
        production=f"ws://{address}",
        agent=f"ws://{address}",
        agent_rest=f"http://{address}",
    )
    return deepgram.DeepgramClient(
        api_key="-",
        environment=environment,
        httpx_client=transport or http_client(timeout),
        timeout=timeout,
        max_retries=0,
    )


# ---- HTTP


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server sends; the body ends with the connection, or with its length.

    Attributes:
        status: Status of the response.
        headers: Further headers.
        pieces: The body.
        is_endless: Whether the last piece is repeated until the client has closed the connection.
        is_cut: Whether the connection ends before the body is complete.
        is_silent: Whether nothing is sent after the pieces, and the connection stays open.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    pieces: Sequence[bytes] = (b"\1\2", b"\3\4")
    is_endless: bool = False
    is_cut: bool = False
    is_silent: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of a client."""

    path: str
    query: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401
        """The body."""
        return json.loads(self.body)


class SpeechServer(CountingServer):
    """Sends the replies in order, and the last of them to all further requests.

    A path with a reply of its own always gets that reply.
    """

    def __init__(self, replies: Sequence[Reply], by_path: Mapping[str, Reply]) -> None:
        """Listen at a free port."""
        super().__init__(_Handler)
        self.by_path = by_path
        self.replies = list(replies)
        self.requests: list[Request] = []
        self.client_left = threading.Event()

    def next_reply(self) -> Reply:
        """Return the reply to the next request."""
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def serve(*replies: Reply, by_path: Mapping[str, Reply] | None = None) -> Iterator[SpeechServer]:
    """Run a server."""
    with run_server(SpeechServer(replies or [Reply()], by_path or {})) as server:
        yield server


class _Handler(QuietHandler):
    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        server = self.server
        assert isinstance(server, SpeechServer)
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        query = dict(parse_qsl(url.query))
        server.requests.append(Request(path=url.path, query=query, body=body))
        reply = server.by_path.get(url.path) or server.next_reply()
        self.close_connection = True
        try:
            self._send(reply, server)
        except OSError:
            server.client_left.set()

    def _send(self, reply: Reply, server: SpeechServer) -> None:
        self.send_response_only(reply.status, "As Told")
        for name, value in {"Content-Type": "audio/pcm", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in reply.pieces:
            self.send_chunk(piece)
        while reply.is_endless:
            self.send_chunk(reply.pieces[-1])
        if reply.is_silent:
            server.is_over.wait()
        elif not reply.is_cut:
            self.send_chunk(b"")


def as_json(value: object) -> Reply:
    """Return a reply in JSON."""
    return Reply(headers={"Content-Type": "application/json"}, pieces=[json.dumps(value).encode()])


# ---- websockets


class Ears:
    """A server with Deepgram's interface for recognition, which the test controls.

    Attributes:
        address: Host and port.
        queries: The query of each handshake, as pairs.
        lines: The connections, in their order.
        received: The messages of the clients, bytes or a dictionary; None when one has
            disconnected.
    """

    def __init__(
        self,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Accept all clients, or refuse all with a status."""
        self.address = ""
        self.queries: list[list[tuple[str, str]]] = []
        self.lines = SimpleQueue[Any]()
        self.connections = set[Any]()  # that are open
        self.received = SimpleQueue[Any]()
        self._status = status
        self._headers = headers or {}
        self._body = body

    def refuse(self, connection: Any, request: Any) -> Any:  # noqa: ANN401
        """Answer to a handshake."""
        self.queries.append(parse_qsl(urlsplit(request.path).query))
        if self._status is None:
            return None
        response = connection.respond(self._status, self._body.decode())
        for name, value in self._headers.items():
            response.headers[name] = value
        return response

    def listen(self, line: Any) -> None:  # noqa: ANN401
        """Record messages until the connection ends."""
        self.lines.put(line)
        self.connections.add(line)
        with suppress(Exception):
            for message in line:
                self.hear(line, message if isinstance(message, bytes) else json.loads(message))
        self.connections.discard(line)
        self.received.put(None)

    def hear(self, line: Any, message: Any) -> None:  # noqa: ANN401, ARG002 - for subclasses
        """Record a message of a client."""
        self.received.put(message)


class Recogniser(Ears):
    """A server that answers by itself: it recognises a word in each piece of audio.

    The word is partial at first, and final when the client has sent its last audio.
    """

    def __init__(self, *, is_cut: bool = False) -> None:
        """Answer, or end the connection at the first audio."""
        super().__init__()
        self._is_cut = is_cut

    @override
    def hear(self, line: Any, message: Any) -> None:
        if message == {"type": "CloseStream"}:
            line.send(json.dumps(results("hello", is_final=True)))
            line.close()
        elif isinstance(message, bytes):
            line.send(json.dumps(results("hel", is_final=False)))
            if self._is_cut:
                break_off(line)
        elif message["type"] == "Configure":
            line.send(json.dumps({"type": "ConfigureSuccess", "request_id": "-"}))


def results(text: str, **fields: object) -> dict[str, Any]:
    """Return a message with a transcript."""
    alternative = {"transcript": text, "confidence": 0.9, "words": []}
    return {
        "type": "Results",
        "channel_index": [0, 1],
        "start": 0.0,
        "duration": 1.0,
        "is_final": True,
        "speech_final": False,
        "channel": {"alternatives": [alternative]},
        "metadata": {"request_id": "-", "model_uuid": "-", "model_info": {}},
        **fields,
    }


@contextmanager
def listen(
    status: int | None = None, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Iterator[Ears]:
    """Run a recogniser that the test controls."""
    with run(Ears(status, headers, body)) as ears:
        yield ears


@contextmanager
def run(ears: EarsT) -> Iterator[EarsT]:
    """Run a recogniser."""
    with websockets.serve(ears.listen, "127.0.0.1", 0, process_request=ears.refuse) as server:
        ears.address = f"127.0.0.1:{server.socket.getsockname()[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield ears
        finally:
            server.shutdown()
            thread.join()


def break_off(line: Any) -> None:  # noqa: ANN401
    """End a connection without a message."""
    line.socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def accept_only() -> Iterator[str]:
    """Yield the address of a server that never answers; at the end all connections are reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
