"""A chat in the terminal that continues when a model fails.

Without keys it needs only the library. It starts two small servers on this machine, which have no
model and always answer the same:

    python3 -m venv .venv && .venv/bin/pip install -q .
    .venv/bin/python docs/examples/chat.py

With the keys of two vendors in the environment it uses their models:

    .venv/bin/pip install -q '.[openai,anthropic]'
    export OPENAI_API_KEY=... ANTHROPIC_API_KEY=...
    .venv/bin/python docs/examples/chat.py

Each answer is streamed, and begins with the name of the provider that gives it. These commands
cause and end an outage:

    /kill NAME      kill the server with SIGKILL (without keys)
    /start NAME     start it again, on the same port
    /isolate NAME   open the breaker of a provider
    /reset NAME     close it again
    /state          show the states of the breakers
    /quit           end; so does the end of the input

`/kill primary` and then a question: the primary fails, and the backup answers the same question.
After two failures the primary is skipped, and five seconds later it is probed.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping

from outage import HttpLLM, ServerProcess
from resilience import (
    Attempt,
    CircuitBreakerConfig,
    FallbackConfig,
    LLMFallback,
    Outcome,
    http,
    llm,
)
from resilience.providers.anthropic import AnthropicLLM
from resilience.providers.openai import OpenAILLM

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")
MAX_TOKENS = 8  # one sentence of a server without a model, which repeats it without end


def show_attempt(attempt: Attempt) -> None:
    """Print that a provider failed or was skipped."""
    if attempt.outcome in {Outcome.FAILED, Outcome.SKIPPED}:
        print(f"  [{attempt.provider} {attempt.outcome}: {attempt.error}]", flush=True)


CONFIG = FallbackConfig(
    circuit_breaker=CircuitBreakerConfig(
        max_failures=2,
        reset_timeout=5,
        half_open_max=1,
        failure_on=http.is_provider_fault,
        retry_after=http.retry_after,
    ),
    fallback_on=http.may_succeed_elsewhere,
    on_attempt=show_attempt,
)


def vendors(parts: contextlib.ExitStack, models: list[str]) -> LLMFallback:
    """Return the models of two vendors behind one object."""
    # Imported here, since without keys they are not needed, and take seconds.
    import anthropic  # noqa: PLC0415
    import openai  # noqa: PLC0415

    first = parts.enter_context(openai.OpenAI(timeout=20, max_retries=0))
    second = parts.enter_context(anthropic.Anthropic(timeout=20, max_retries=0))
    model = LLMFallback(OpenAILLM(first, models[0]), "openai", CONFIG)
    model.add_fallback("anthropic", AnthropicLLM(second, models[1]))
    return model


def local(servers: Mapping[str, ServerProcess]) -> LLMFallback:
    """Return two servers of this machine behind one object."""
    primary, backup = (HttpLLM("127.0.0.1", server.port) for server in servers.values())
    model = LLMFallback(primary, "primary", CONFIG)
    model.add_fallback("backup", backup)
    return model


class Chat:
    """A conversation, and the commands that break and repair its providers."""

    def __init__(self, model: LLMFallback, servers: Mapping[str, ServerProcess]) -> None:
        """Begin a conversation; the servers are those that can be killed."""
        self._model = model
        self._max_tokens = MAX_TOKENS if servers else None
        self._messages: list[llm.Message] = []
        self._commands: dict[str, dict[str, Callable[[], None]]] = {
            "/kill": {name: server.close for name, server in servers.items()},
            "/start": {name: server.restart for name, server in servers.items()},
            "/isolate": {name: each.isolate for name, each in model.breakers.items()},
            "/reset": {name: each.reset for name, each in model.breakers.items()},
            "/state": {"": lambda: None},
        }

    def run(self) -> None:
        """Answer line by line, until the end of the input."""
        with contextlib.suppress(EOFError):
            while (line := input("you> ").strip()) != "/quit":
                if line.startswith("/"):
                    self._command(*line.split(maxsplit=1))
                elif line:
                    self._ask(line)

    def _command(self, command: str, name: str = "") -> None:
        if command not in self._commands:
            print(f"  [the commands are {', '.join(self._commands)} and /quit]")
        elif name not in self._commands[command]:
            print(f"  [{command} can be followed by: {', '.join(self._commands[command])}]")
        else:
            self._commands[command][name]()
            self._show_states()

    def _show_states(self) -> None:
        states = [f"{name} {breaker.state}" for name, breaker in self._model.breakers.items()]
        print(f"  [breakers: {', '.join(states)}]")

    def _ask(self, question: str) -> None:
        """Print the answer as it arrives; keep both if it is whole, and neither if it is not."""
        asked = llm.Message(role="user", content=question)
        request = llm.CompletionRequest(
            messages=(*self._messages, asked), max_tokens=self._max_tokens
        )
        text, extra = "", None
        try:
            with self._model.stream_completion(request) as answer:
                print(f"{answer.provider}> ", end="", flush=True)
                for chunk in answer:
                    print(chunk.content, end="", flush=True)
                    text += chunk.content
                    extra = chunk.extra or extra  # data that this vendor must get back
        except KeyboardInterrupt:
            print("\n  [stopped]")
        except Exception as error:  # noqa: BLE001 - the chat continues after any exception
            print(f"\n  [no whole answer: {error}]")
        else:
            print()
            self._messages += [asked, llm.Message(role="assistant", content=text, extra=extra)]


def main() -> int:
    """Choose the providers, and chat; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--local", action="store_true", help="use the servers in spite of keys")
    parser.add_argument(
        "--models", nargs=2, default=["gpt-5.5", "claude-opus-5-5"], metavar=("OPENAI", "ANTHROPIC")
    )
    options = parser.parse_args()
    # The chat shows the same events.
    logging.getLogger("resilience").addHandler(logging.NullHandler())
    missing = [key for key in KEYS if not os.environ.get(key)]
    with contextlib.ExitStack() as parts:
        servers: dict[str, ServerProcess] = {}
        if options.local or missing:
            if missing and not options.local:
                print(f"{' and '.join(missing)} not set: two servers without a model answer.")
            for name in ("primary", "backup"):
                servers[name] = parts.enter_context(contextlib.closing(ServerProcess(name)))
            model = local(servers)
        else:
            try:
                model = vendors(parts, options.models)
            except ImportError as error:
                print(f"{error}: .venv/bin/pip install '.[openai,anthropic]'", file=sys.stderr)
                return 2
        first, second = model.breakers
        print(f"{first} answers, and {second} if it fails.")
        print(
            f"Type a question, or {'/kill' if servers else '/isolate'} {first}; --help has more.\n"
        )
        with contextlib.suppress(KeyboardInterrupt):
            Chat(model, servers).run()
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
