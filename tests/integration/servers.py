"""Servers on this machine with the wire formats of four vendors, and with faults."""

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import cycle
from operator import xor
from typing import Any, final
from urllib.parse import parse_qs, urlsplit

from typing_extensions import override

from connections import LocalServer, QuietHandler, run
from integration.speech import answer_of, recognise, speak

PIECE = 4_000  # bytes of audio


class Fault(Enum):
    """A fault of a server, from the earliest moment to the latest."""

    NONE = auto()
    REFUSED = auto()
    RESET_BEFORE_HEADERS = auto()
    SILENT_BEFORE_HEADERS = auto()
    TOO_MANY_REQUESTS = auto()
    SERVER_ERROR = auto()
    RESET_AFTER_HEADERS = auto()
    SILENT_AFTER_HEADERS = auto()
    CUT_AFTER_HEADERS = auto()
    EMPTY = auto()
    HTML = auto()
    RESET_IN_THE_MIDDLE = auto()
    SILENT_IN_THE_MIDDLE = auto()
    CUT_IN_THE_MIDDLE = auto()


RESETS = {Fault.RESET_BEFORE_HEADERS, Fault.RESET_AFTER_HEADERS, Fault.RESET_IN_THE_MIDDLE}
SILENCES = {Fault.SILENT_BEFORE_HEADERS, Fault.SILENT_AFTER_HEADERS, Fault.SILENT_IN_THE_MIDDLE}
STATUSES = {Fault.TOO_MANY_REQUESTS: 429, Fault.SERVER_ERROR: 500}
BEFORE_HEADERS = {Fault.RESET_BEFORE_HEADERS, Fault.SILENT_BEFORE_HEADERS}
AFTER_HEADERS = {*(Fault.RESET_AFTER_HEADERS, Fault.SILENT_AFTER_HEADERS, Fault.CUT_AFTER_HEADERS)}
IN_THE_MIDDLE = {*(Fault.RESET_IN_THE_MIDDLE, Fault.SILENT_IN_THE_MIDDLE, Fault.CUT_IN_THE_MIDDLE)}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The content that a healthy server sends, and the pieces that only end it."""

    kind: str
    pieces: tuple[bytes, ...]
    end: bytes = b""


class Server(LocalServer):
    """Serves all four vendors at one port."""

    def __init__(self, fault: Fault) -> None:
        """Listen at a free port, or reserve one at which no server listens."""
        super().__init__(_Handler, listens=fault is not Fault.REFUSED)
        self.fault = fault
        self.requests = 0

    @property
    @override
    def resets(self) -> bool:
        """Connections end with a reset."""
        return self.fault in RESETS


@contextmanager
def serve(fault: Fault = Fault.NONE) -> Iterator[Server]:
    """Run a server."""
    with run(Server(fault)) as server:
        yield server


class _Handler(QuietHandler):
    @property
    def _server(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._server.requests += 1
        with suppress(ConnectionError):  # a client may disconnect early
            if self._admits():
                self._send(_reply(url.path, parse_qs(url.query), request))

    def do_GET(self) -> None:
        """Recognise speech, over a WebSocket."""
        self._server.requests += 1
        self.close_connection = True
        with suppress(ConnectionError):
            if self._admits():
                self.send_response(101)
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                self.send_header("Sec-WebSocket-Accept", _accept(self.headers["sec-websocket-key"]))
                self.end_headers()
                self._recognise()

    def _admits(self) -> bool:
        """Apply the fault, if it is before the headers; return whether to continue."""
        fault = self._server.fault
        self.close_connection = True
        if fault in SILENCES & BEFORE_HEADERS:
            self._server.is_over.wait()
        elif status := STATUSES.get(fault):
            body = b'{"error": {"type": "as_told", "message": "As told."}}'
            self.send_response(status)
            self.send_header("Retry-After", "30")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        return fault not in BEFORE_HEADERS and fault not in STATUSES

    def _send(self, reply: Reply) -> None:
        fault = self._server.fault
        pieces, end = reply.pieces, reply.end
        if fault is Fault.HTML:
            reply = Reply(kind="text/html", pieces=(b"<html><p>Sign in to this network.</html>",))
            pieces, end = reply.pieces, reply.end
        elif fault is Fault.EMPTY or fault in AFTER_HEADERS:
            pieces = ()
        elif fault in IN_THE_MIDDLE:
            pieces = pieces[: len(pieces) // 2]
        self.send_response(200)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in pieces:
            self.send_chunk(piece)
        if fault in SILENCES:
            self._server.is_over.wait()
        elif fault not in AFTER_HEADERS | IN_THE_MIDDLE:
            if end:
                self.send_chunk(end)
            self.send_chunk(b"")

    def _recognise(self) -> None:
        """Send the words of each utterance, and end when the client does."""
        fault = self._server.fault
        audio = b""
        if fault in AFTER_HEADERS - SILENCES:
            return
        if fault is Fault.EMPTY:
            self._frame(8, struct.pack(">H", 1000))
        while (frame := self._read_frame())[0] != 8:  # a close frame
            audio += frame[1] if frame[0] == 2 else b""  # a binary one
            if fault in SILENCES | {Fault.EMPTY}:
                continue
            if frame[0] == 2 and not any(frame[1]):
                if fault in IN_THE_MIDDLE:
                    return
                self._frame(1, _results(recognise(audio)))
                audio = b""
            elif frame[0] == 1 and json.loads(frame[1]) == {"type": "CloseStream"}:
                self._frame(8, struct.pack(">H", 1000))
                self._read_frame()
                return
        self._frame(8, frame[1])

    def _read_frame(self) -> tuple[int, bytes]:
        head = self.rfile.read(2)
        if len(head) < 2:
            raise ConnectionResetError
        size = head[1] & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self.rfile.read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.rfile.read(8))
        mask = cycle(self.rfile.read(4))
        return head[0] & 0xF, bytes(map(xor, self.rfile.read(size), mask))

    def _frame(self, kind: int, data: bytes) -> None:
        length = struct.pack(">BH", 126, len(data)) if len(data) > 125 else bytes([len(data)])
        self.wfile.write(bytes([0x80 | kind]) + length + data)
        self.wfile.flush()


def _accept(key: str) -> str:
    """Return the answer to a WebSocket's key."""
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode())  # noqa: S324
    return base64.b64encode(digest.digest()).decode()


def _results(text: str) -> bytes:
    """Return a final transcript in Deepgram's format."""
    alternative = {"transcript": text, "confidence": 0.9, "words": []}
    results = {
        "type": "Results",
        "channel_index": [0, 1],
        "start": 0.0,
        "duration": 1.0,
        "is_final": True,
        "speech_final": True,
        "channel": {"alternatives": [alternative]},
        "metadata": {"request_id": "-", "model_uuid": "-", "model_info": {}},
    }
    return json.dumps(results).encode()


def _reply(path: str, query: dict[str, list[str]], request: dict[str, Any]) -> Reply:
    if path == "/v1/chat/completions":
        return _openai_stream(request) if request.get("stream") else _openai(request)
    if path == "/v1/messages":
        return _anthropic_stream(request) if request.get("stream") else _anthropic(request)
    if path == "/v1/audio/speech":
        audio = speak(request["input"], request["voice"])
    elif path == "/v1/speak":  # Deepgram, whose voices are named flite-slt-en
        audio = speak(request["text"], query["model"][0].split("-")[1])
    else:  # ElevenLabs
        audio = speak(request["text"], path.split("/")[3])
    pieces = [audio[at : at + PIECE] for at in range(0, len(audio), PIECE)]
    return Reply(kind="audio/pcm", pieces=tuple(pieces))


def _openai(request: dict[str, Any]) -> Reply:
    message = {"role": "assistant", "content": answer_of(request["model"])}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return _json({"id": "-", "object": "chat.completion", "created": 0, "choices": [choice]})


def _openai_stream(request: dict[str, Any]) -> Reply:
    def event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        chunk = {"id": "-", "object": "chat.completion.chunk", "created": 0, "choices": [choice]}
        return f"data: {json.dumps(chunk)}\n\n".encode()

    words = answer_of(request["model"]).split()
    pieces = [event({"content": f"{word} "}) for word in words]
    return Reply(
        kind="text/event-stream", pieces=(*pieces, event({}, "stop")), end=b"data: [DONE]\n\n"
    )


def _anthropic_message(request: dict[str, Any]) -> dict[str, Any]:
    usage = {"input_tokens": 1, "output_tokens": 1}
    head = {"id": "-", "type": "message", "role": "assistant", "model": request["model"]}
    return {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}


def _anthropic(request: dict[str, Any]) -> Reply:
    content = [{"type": "text", "text": answer_of(request["model"])}]
    return _json({**_anthropic_message(request), "content": content, "stop_reason": "end_turn"})


def _anthropic_stream(request: dict[str, Any]) -> Reply:
    def event(kind: str, **data: object) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()

    block = {"type": "text", "text": ""}
    start = event("message_start", message=_anthropic_message(request)) + event(
        "content_block_start", index=0, content_block=block
    )
    words = [
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": f"{word} "})
        for word in answer_of(request["model"]).split()
    ]
    stop = event("content_block_stop", index=0) + event(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"output_tokens": 8},
    )
    return Reply(kind="text/event-stream", pieces=(start, *words, stop), end=event("message_stop"))


def _json(value: object) -> Reply:
    body = json.dumps(value).encode()
    return Reply(kind="application/json", pieces=(body[:20], body[20:]))
