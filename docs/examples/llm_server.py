"""A small LLM server on loopback that uses OpenAI's wire format but has no model.

`outage.py` starts two of these servers. To start one by hand, give a name and a port:

    python docs/examples/llm_server.py primary 8080

The server prints its port; for port 0 it chooses a free one. It ends when its standard input is
closed, so it ends with the process that started it.
"""

import contextlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECONDS_FOR_A_WORD = 0.02


class CompletionHandler(BaseHTTPRequestHandler):
    """Answers every POST as if it were sent to `/v1/chat/completions`."""

    name = "unnamed"

    def do_POST(self) -> None:
        """Answer with `max_tokens` words, in one piece or as a stream."""
        size = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(size))
        text = f"This is {self.name}: rain is water from clouds."
        words = itertools.islice(itertools.cycle(text.split()), request["max_tokens"])
        with contextlib.suppress(ConnectionError):  # the client may disconnect early
            if request["stream"]:
                self._send_stream(words)
            else:
                self._send_completion(" ".join(words))

    def _send_completion(self, text: str) -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice]}).encode()
        self._send_head({"Content-Type": "application/json", "Content-Length": len(body)})
        self.wfile.write(body)

    def _send_stream(self, words: Iterable[str]) -> None:
        self._send_head({"Content-Type": "text/event-stream"})
        for word in words:
            time.sleep(SECONDS_FOR_A_WORD)
            self._send_chunk({"content": f"{word} "}, None)
        self._send_chunk({}, "stop")
        self.wfile.write(b"data: [DONE]\n\n")

    def _send_chunk(self, delta: dict[str, str], finish_reason: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())

    def _send_head(self, headers: dict[str, object]) -> None:
        self.send_response_only(HTTPStatus.OK)  # the other `send_response` logs each request
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()


def main(name: str, port: int) -> None:
    """Serve until standard input is closed."""
    CompletionHandler.name = name
    server = ThreadingHTTPServer(("127.0.0.1", port), CompletionHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
