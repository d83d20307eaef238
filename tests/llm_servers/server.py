"""A test server on this machine, with the API of a vendor of language models.

The other modules of this folder check the requests and make the answers of each vendor. They reject
what the vendor rejects, so a provider that omits a signature or sends an unknown field fails in the
tests too.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeAlias, final

from typing_extensions import override

from connections import CountingServer, QuietHandler, run

Json: TypeAlias = dict[str, Any]
PAGE = b"<html><p>Sign in to this network.</html>"


class Fault(Enum):
    """A fault of a server."""

    NONE = auto()
    REFUSED = auto()
    SILENT = auto()
    RESET_BEFORE_HEADERS = auto()
    UNAUTHORIZED = auto()
    TOO_MANY_REQUESTS = auto()
    UNAVAILABLE = auto()
    TOO_LONG = auto()
    RESET_AFTER_HEADERS = auto()
    EMPTY = auto()
    HTML = auto()
    CUT = auto()
    NO_END = auto()
    ERROR_EVENT = auto()


STATUSES = {Fault.UNAUTHORIZED: 401, Fault.TOO_MANY_REQUESTS: 429, Fault.UNAVAILABLE: 503}
RESETS = {Fault.RESET_BEFORE_HEADERS, Fault.RESET_AFTER_HEADERS}


class RefusedError(Exception):
    """The server answers with an error."""

    def __init__(self, message: str, status: int = 400) -> None:
        """Make an error from its message and its status."""
        super().__init__(message)
        self.status = status


def require(condition: object, message: str) -> None:
    """Reject a request unless a condition is true."""
    if not condition:
        raise RefusedError(message)


def allow(value: Any, *names: str) -> None:
    """Reject an object with an unknown field."""
    require(isinstance(value, dict), f"not an object: {value!r}")
    unknown = set(value) - set(names)
    require(not unknown, f"unknown fields: {sorted(unknown)}")


def check_schema(schema: Any) -> None:
    """Reject a value that is not the JSON schema of an object."""
    require(isinstance(schema, dict) and schema.get("type") == "object", "malformed schema")
    require(isinstance(schema.get("properties"), dict), "malformed schema: no properties")


def sign(text: str) -> str:
    """Return the signature of a thought."""
    return hashlib.sha256(f"secret {text}".encode()).hexdigest()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request in a form that is the same for every vendor.

    Attributes:
        text: The last text of the user.
        results: Results of tools since then.
        tool: Tool that may be called; None if none may.
        is_forced: It must be called.
        media: Bytes or links of the files that belong to the text.
        schema: Schema of the answer.
        thinks: The model is to reason.
    """

    text: str
    results: tuple[str, ...] = ()
    tool: str | None = None
    is_forced: bool = False
    media: tuple[str, ...] = ()
    schema: Json | None = None
    thinks: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Idea:
    """An answer of the model, before it is converted to the format of a vendor."""

    thought: str = ""
    text: str = ""
    calls: tuple[tuple[str, Json], ...] = ()


def think(question: Question, name: str) -> Idea:
    """Answer a question: call the tool for one city after the other, then return the results."""
    cities = [word.strip("?.,") for word in question.text.split() if word[:1].isupper()][1:]
    thought = f"{name} thinks about step {len(question.results)}." if question.thinks else ""
    if question.tool and (question.is_forced or len(question.results) < len(cities)):
        city = (*cities, "Oslo")[len(question.results)]
        return Idea(thought=thought, calls=((question.tool, {"city": city}),))
    if question.schema is not None:
        fields = dict.fromkeys(question.schema["properties"], "Oslo")
        return Idea(thought=thought, text=json.dumps(fields))
    told = " and ".join([*question.results, *question.media]) or "nothing"
    return Idea(thought=thought, text=f"{name} says {told}.")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A body in pieces."""

    kind: str
    pieces: tuple[bytes, ...]


Answer: TypeAlias = Callable[[str, Json, Mapping[str, str]], Reply]
"""Answers path, body and headers of a request, or raises `RefusedError`."""
Error: TypeAlias = Callable[[int, str, bool], bytes]
"""Formats status and message of an error as the vendor does, as a body or as an event."""


class Server(CountingServer):
    """Serves one vendor, each request in a thread of its own.

    Attributes:
        fault: Its fault; may be changed at any time.
        bodies: The bodies of all requests.
        errors: Error messages of the requests that were rejected.
        gone: Set when a client has closed a stream before its end.
    """

    def __init__(self, answer: Answer, error: Error, fault: Fault) -> None:
        """Listen on a free port, or reserve a port on which no server listens."""
        super().__init__(_Handler, listens=fault is not Fault.REFUSED)
        self.answer, self.error, self.fault = answer, error, fault
        self.bodies: list[Json] = []
        self.errors: list[str] = []
        self.endless = False
        self.gone = threading.Event()

    @property
    @override
    def resets(self) -> bool:
        """Connections end with a reset."""
        return self.fault in RESETS


@contextmanager
def serve(answer: Answer, error: Error, fault: Fault = Fault.NONE) -> Iterator[Server]:
    """Run a server."""
    with run(Server(answer, error, fault)) as server:
        yield server


class _Handler(QuietHandler):
    @property
    def _server(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.close_connection = True
        server = self._server
        server.bodies.append(body)
        fault = server.fault
        with suppress(ConnectionError):  # a client may disconnect early
            if status := STATUSES.get(fault):
                self._fail(status, "as told")
            elif fault is Fault.SILENT:
                server.is_over.wait()
            elif fault is Fault.TOO_LONG:
                self._fail(400, "too long")
            elif fault is not Fault.RESET_BEFORE_HEADERS:
                try:
                    reply = server.answer(self.path, body, dict(self.headers.items()))
                except RefusedError as error:
                    server.errors.append(str(error))
                    self._fail(error.status, str(error))
                else:
                    self._send(reply)

    def _fail(self, status: int, message: str) -> None:
        body = self._server.error(status, message, False)  # noqa: FBT003 - a body
        self.send_response(status)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _send(self, reply: Reply) -> None:
        fault, pieces, kind = self._server.fault, reply.pieces, reply.kind
        if fault is Fault.HTML:
            kind, pieces = "text/html", (PAGE,)
        elif fault in {Fault.EMPTY, Fault.RESET_AFTER_HEADERS}:
            pieces = ()
        elif fault in {Fault.CUT, Fault.NO_END, Fault.ERROR_EVENT}:
            pieces = pieces[: len(pieces) // 2]
        if fault is Fault.ERROR_EVENT:
            pieces = (*pieces, self._server.error(503, "as told", True))  # noqa: FBT003 - an event
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in self._endless(pieces) if self._server.endless else pieces:
            self.send_chunk(piece)
        if fault not in {Fault.CUT, Fault.RESET_AFTER_HEADERS}:
            self.send_chunk(b"")

    def _endless(self, pieces: tuple[bytes, ...]) -> Iterator[bytes]:
        """Yield the pieces, and then comments until the client has disconnected."""
        try:
            yield from pieces[:-1]
            self.connection.settimeout(30)
            with suppress(ConnectionError):
                self.connection.recv(1)
        finally:  # also if the client has disconnected before it received all pieces
            self._server.gone.set()


def events(values: Iterable[Json], *texts: str, named: bool = False) -> tuple[bytes, ...]:
    """Return server-sent events, with JSON and then with texts; with the type as their name."""
    return (
        *(
            (f"event: {value['type']}\n" if named else "").encode()
            + f"data: {json.dumps(value)}\n\n".encode()
            for value in values
        ),
        *(f"data: {text}\n\n".encode() for text in texts),
    )
