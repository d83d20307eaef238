"""Ten seconds of calls to an LLM server that is killed during an answer and started again.

It needs only the library:

    python docs/examples/outage.py

It starts two small LLM servers on this machine, `primary` and `backup`, adds both to one
`LLMFallback`, and makes four calls a second; every other call is a stream. In the middle of one
streamed answer it kills the primary, and some calls later it starts the primary again on the same
port.

The timeline shows every call when it ends, every failed attempt and every change of state, each
below its cause. No call may be lost. Only the stream that is being read at that moment is cut off:
its caller gets the error, since no other model can continue the same sentence. The exit status is 0
if this is what happened, and the primary answers the last call.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreakerConfig,
    FallbackConfig,
    LLMFallback,
    Outcome,
    State,
    StateChange,
    UnsupportedRequestError,
    llm,
)

CALLS = 40
SECONDS_BETWEEN_CALLS = 0.25
KILLED_IN_CALL = 12
KILLED_AT_CHUNK = 3
STARTED_BEFORE_CALL = 20
WHAT_WILL_BE_SEEN = f"""\
For ten seconds an application calls a model four times a second. The primary's server is killed
during call {KILLED_IN_CALL}, and started again before call {STARTED_BEFORE_CALL}.
In between the backup answers. No call is lost, and only the stream that the kill interrupts is cut.
"""


class HTTPStatusError(Exception):
    """The server answered, but not with a completion."""

    def __init__(self, status_code: int, reason: str) -> None:
        """Keep the status of the response."""
        super().__init__(f"HTTP {status_code} {reason}")
        self.status_code = status_code  # `resilience.http` reads it


class HttpLLM(llm.Provider):
    """A model behind an OpenAI-compatible server, with one connection for each call.

    It supports text only, and refuses tools and attachments.
    """

    def __init__(self, host: str, port: int, timeout: float = 5.0) -> None:
        """Connect to `host:port`; `timeout` is in seconds, for connecting and for each read."""
        self._address = host, port
        self._timeout = timeout

    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        """Return the whole answer."""
        with self._post(request, stream=False) as response:
            choice = json.load(response)["choices"][0]
        return llm.CompletionResponse(
            content=choice["message"]["content"] or "", finish_reason=choice["finish_reason"]
        )

    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        """Yield the answer chunk by chunk; the request is sent at the first `next()`."""
        with self._post(request, stream=True) as response:
            for line in response:
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if data.startswith(b"{") and line.endswith(b"\n"):
                    choice = json.loads(data)["choices"][0]
                    yield llm.Chunk(
                        content=choice["delta"].get("content") or "",
                        finish_reason=choice["finish_reason"],
                    )
        msg = "the stream ended without [DONE]"
        raise ConnectionError(msg)

    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        """Return an estimate: four characters for each token."""
        return sum(len(message.content) for message in messages) // 4

    def capabilities(self) -> llm.ModelCapabilities:
        """Describe the model."""
        return llm.ModelCapabilities(context_window=8192)

    @contextlib.contextmanager
    def _post(self, request: llm.CompletionRequest, *, stream: bool) -> Generator[HTTPResponse]:
        has_files = any(message.attachments for message in request.messages)
        others = replace(request, messages=(), max_tokens=None, extra=None)
        if has_files or others != llm.CompletionRequest(messages=()):
            msg = "this provider supports text only"
            raise UnsupportedRequestError(msg)
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        body = {"messages": messages, "max_tokens": request.max_tokens, "stream": stream}
        headers = {"Content-Type": "application/json"}
        connection = HTTPConnection(*self._address, timeout=self._timeout)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            with connection.getresponse() as response:
                if response.status != HTTPStatus.OK:
                    raise HTTPStatusError(response.status, response.reason)
                yield response


class ServerProcess:
    """`llm_server.py` in a process of its own, on the same port at every start."""

    def __init__(self, name: str) -> None:
        """Start it for the first time."""
        self._name = name
        self.port = 0  # a free one, at the first start
        self.start()

    def start(self) -> None:
        """Start it, and return when it accepts connections."""
        script = Path(__file__).with_name("llm_server.py")
        self._process = subprocess.Popen(
            [sys.executable, script, self._name, str(self.port)],
            stdin=subprocess.PIPE,  # closed when this process ends; then the server ends too
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())

    def restart(self) -> None:
        """Start it again, also if it still runs."""
        self.close()
        self.start()

    def close(self) -> None:
        """Kill it with SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.communicate()


class Timeline:
    """Prints events when they happen, and records the results for the summary."""

    def __init__(self) -> None:
        """Start the clock."""
        self._start = time.monotonic()
        self._answered_by = ""
        self._changes: list[str] = []  # that are shown below their causes
        self.results: list[str] = []
        self.primary_states = ["closed"]

    def head(self) -> None:
        """Print the heads of the columns."""
        titles = f"{'time':>7}  {'no':>2}  {'kind':<6}  {'answer':<34}  {'from':<7} {'took':>7}"
        print(titles, flush=True)

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._start

    def event(self, text: str) -> None:
        """Print an event that is not a call."""
        self._show(f"--  {text}")

    def _show(self, text: str) -> None:
        print(f"{self.now():5.2f} s  {text}", flush=True)

    def on_attempt(self, attempt: Attempt) -> None:
        """Record the provider of a success, and print a failure."""
        if attempt.outcome is Outcome.SUCCEEDED:
            self._answered_by = attempt.provider
        elif attempt.outcome is Outcome.FAILED:
            self.event(f"{attempt.provider} failed: {attempt.error}")
            self._show_changes()

    def on_state_change(self, change: StateChange) -> None:
        """Print that a probe is made; the outcome of a call, the other cause, is printed first."""
        self._changes.append(f"breaker of {change.name}: {change.old} -> {change.new}")
        if change.new is State.HALF_OPEN:
            self._show_changes()
        if change.name == "primary":
            self.primary_states.append(str(change.new))

    def _show_changes(self) -> None:
        while self._changes:
            self.event(self._changes.pop(0))

    def call(self, started: float, kind: str, text: str, ending: str) -> None:
        """Print a call that has ended, with the provider that answered, or how else it ended."""
        self.results.append(self._answered_by if ending == "answered" else ending)
        took = (self.now() - started) * 1000
        words = textwrap.shorten(text, 34, placeholder=" ...")
        self._show(
            f"{len(self.results):2}  {kind:<6}  {words:<34}  {self.results[-1]:<7} {took:4.0f} ms"
        )
        self._show_changes()


def ask(
    model: llm.Provider, kind: str, timeline: Timeline, victim: ServerProcess | None
) -> tuple[str, str]:
    """Make one call, and kill the victim during it; return the text and how the call ended."""
    message = llm.Message(role="user", content="What is rain?")
    max_tokens = 100 if victim else 8  # long enough that the answer has not ended before the kill
    request = llm.CompletionRequest(messages=(message,), max_tokens=max_tokens)
    text = ""
    try:
        if kind == "plain":
            return model.complete(request).content, "answered"
        for position, chunk in enumerate(model.stream_completion(request), start=1):
            text += chunk.content
            if victim and position == KILLED_AT_CHUNK:
                timeline.event("primary is killed in the middle of this answer")
                victim.close()
    except AllFailedError as error:  # no provider returned a first item
        return str(error), "lost"
    except OSError:  # the provider broke off in the middle
        return text, "cut"
    return text, "answered"


def talk(model: llm.Provider, primary: ServerProcess, timeline: Timeline) -> None:
    """Make all calls, and cause the outage."""
    for number in range(1, CALLS + 1):
        if number == STARTED_BEFORE_CALL:
            primary.start()
            timeline.event("primary is started again")
        time.sleep(max(0.0, number * SECONDS_BETWEEN_CALLS - timeline.now()))
        started = timeline.now()
        kind = "plain" if number % 2 else "stream"
        victim = primary if number == KILLED_IN_CALL else None
        timeline.call(started, kind, *ask(model, kind, timeline, victim))


def summarise(timeline: Timeline) -> bool:
    """Print the summary; return whether the results are the expected ones."""
    count = Counter(timeline.results)
    print(
        f"{len(timeline.results)} calls: {count['lost']} lost, {count['cut']} stream cut,"
        f" {count['primary']} answered by primary, {count['backup']} by backup"
    )
    states = " ".join(timeline.primary_states)
    recovered = re.fullmatch("closed open (half-open open )*half-open closed", states)
    only_one_cut = count["lost"] == 0 and count["cut"] == 1
    return bool(recovered) and only_one_cut and timeline.results[-1] == "primary"


def main() -> bool:
    """Run the servers, the calls and the outage; return whether the results are as expected."""
    print(WHAT_WILL_BE_SEEN, flush=True)
    # The timeline shows the same events.
    logging.getLogger("resilience").addHandler(logging.NullHandler())
    with (
        contextlib.closing(ServerProcess("primary")) as primary,
        contextlib.closing(ServerProcess("backup")) as backup,
    ):
        timeline = Timeline()
        timeline.head()
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(
                max_failures=2,
                reset_timeout=1.4,
                half_open_max=2,
                on_state_change=timeline.on_state_change,
            ),
            on_attempt=timeline.on_attempt,
        )
        model = LLMFallback(HttpLLM("127.0.0.1", primary.port), "primary", config)
        model.add_fallback("backup", HttpLLM("127.0.0.1", backup.port))
        talk(model, primary, timeline)
    return summarise(timeline)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        sys.exit(0 if main() else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # as with `| head`; the rest of the buffer is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
