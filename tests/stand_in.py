"""A server on this machine with the APIs of two vendors, at their own paths."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from connections import LocalServer, QuietHandler, run

TEXT = "Rain is water from clouds."
PATHS = {"/v1/chat/completions": "openai", "/v1/messages": "anthropic"}


def answer_of(vendor: str) -> str:
    """Return the answer of a vendor to every request."""
    return f"{TEXT} ({vendor})"


@final
class StandIn(LocalServer):
    """Answers as OpenAI and as Anthropic, except for those that are down."""

    def __init__(self) -> None:
        """Listen at a free port."""
        super().__init__(_Handler)
        self.down: set[str] = set()
        self.asked: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """Return variables with which both clients find this server, and believe to have keys."""
        return {
            "OPENAI_API_KEY": "stand-in",
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "ANTHROPIC_API_KEY": "stand-in",
            "ANTHROPIC_BASE_URL": self.url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.0"  # so that the connection ends with the answer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        vendor = PATHS[self.path]
        assert isinstance(self.server, StandIn)
        self.server.asked.append(vendor)
        if vendor in self.server.down:
            self.send_error(503)
            return
        is_stream = request.get("stream", False)
        body = _EVENTS[vendor](answer_of(vendor)) if is_stream else _WHOLE[vendor]()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if is_stream else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _completion() -> bytes:
    message = {"role": "assistant", "content": answer_of("openai")}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(_completion_with([choice])).encode()


def _completion_with(choices: list[Any]) -> dict[str, Any]:
    return {
        "id": "c-1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": choices,
    }


def _completion_events(text: str) -> bytes:
    deltas = [{"content": f"{word} "} for word in text.split()]
    events = [_chunk(delta, None) for delta in deltas]
    lines = [*map(json.dumps, [*events, _chunk({}, "stop")]), "[DONE]"]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def _chunk(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**_completion_with([choice]), "object": "chat.completion.chunk"}


def _message() -> bytes:
    block = {"type": "text", "text": answer_of("anthropic")}
    return json.dumps({**_start(), "content": [block], "stop_reason": "end_turn"}).encode()


def _start() -> dict[str, Any]:
    usage = {"input_tokens": 1, "output_tokens": 1}
    fixed = {"id": "m-1", "type": "message", "role": "assistant", "model": "m"}
    return {**fixed, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}


def _message_events(text: str) -> bytes:
    texts = [{"type": "text_delta", "text": f"{word} "} for word in text.split()]
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": _start()},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in texts),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()


_WHOLE = {"openai": _completion, "anthropic": _message}
_EVENTS = {"openai": _completion_events, "anthropic": _message_events}


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Run the server; at the end nothing of it is left."""
    with run(StandIn()) as server:
        yield server
