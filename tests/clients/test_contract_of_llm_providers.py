"""The ready-made language models pass the contract tests, with their vendors' clients."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest
from typing_extensions import override

from llm_servers.kits import ABILITIES, KITS, PICTURE, STRICT, WEATHER, ask
from llm_servers.server import Fault, Server
from resilience import llm
from resilience.testing import LLMProviderContract

# Everything that a model may not support; tools are tested in `test_llm_providers`.
TOOLS_ONLY = llm.ModelCapabilities(context_window=1000, supports_tools=True)
HELLO = llm.CompletionRequest(messages=ask("Say hello."))
FORCED = llm.CompletionRequest(
    messages=ask("Is it raining in Oslo?"), tools=(WEATHER,), tool_choice="required"
)
REASONED = replace(FORCED, tool_choice="auto", reasoning_effort="low", model="another")


def with_file(role: llm.Role, media: llm.Media = PICTURE) -> llm.CompletionRequest:
    """Return a request with a file in a message of a role."""
    message = llm.Message(role=role, content="This.", tool_call_id="c-1", attachments=(media,))
    return llm.CompletionRequest(messages=(*HELLO.messages, message))


class VendorContract(LLMProviderContract):
    """The contract of one vendor's provider."""

    __test__ = False

    vendor: str
    capabilities = TOOLS_ONLY
    interruption = Fault.CUT
    tool_request = FORCED

    @pytest.fixture(autouse=True)
    def _run_servers(self) -> Iterator[None]:
        kit = KITS[self.vendor]
        pytest.importorskip(kit.package)
        self.clients: dict[llm.Provider, ExitStack] = {}
        with (
            kit.serve() as working,
            kit.serve(self.interruption) as cut,
            kit.serve(Fault.REFUSED) as off,
        ):
            self.working, self.cut, self.off = working, cut, off
            yield
        assert self.clients == {}

    def _make(self, server: Server) -> llm.Provider:
        with ExitStack() as stack:
            provider = stack.enter_context(KITS[self.vendor].make(server.url, self.capabilities))
            self.clients[provider] = stack.pop_all()
        return provider

    @override
    def make_provider(self) -> llm.Provider:
        return self._make(self.working)

    @override
    def make_broken_provider(self) -> llm.Provider:
        return self._make(self.off)

    @override
    def make_interrupted_provider(self) -> llm.Provider:
        return self._make(self.cut)

    @override
    def close_provider(self, provider: llm.Provider) -> None:
        self.clients.pop(provider).close()

    @override
    def count_connections(self) -> int:
        return self.working.count_connections() + self.cut.count_connections()


class TestOpenAILLM(VendorContract):
    """The contract of OpenAI's provider."""

    vendor = "openai"
    unsupported_requests: Sequence[llm.CompletionRequest] = (
        replace(HELLO, reasoning_effort="low"),
        with_file("assistant"),
        with_file("system"),
        with_file("tool"),
    )


class TestAnthropicLLM(VendorContract):
    """The contract of Anthropic's provider."""

    vendor = "anthropic"
    unsupported_requests: Sequence[llm.CompletionRequest] = (
        replace(HELLO, temperature=0.0),
        replace(HELLO, top_p=1.0),
        replace(HELLO, seed=0),
        replace(HELLO, reasoning_effort="low"),
        replace(HELLO, messages=(replace(HELLO.messages[0], name="Anna"),)),
        with_file("assistant"),
        with_file("system"),
        with_file("user", llm.Media(media_type="video/mp4", data=b"-")),
    )


class TestGoogleLLM(VendorContract):
    """The contract of Google's provider."""

    vendor = "google"
    unsupported_requests: Sequence[llm.CompletionRequest] = (
        replace(HELLO, reasoning_effort="low"),
        replace(HELLO, messages=(replace(HELLO.messages[0], name="Anna"),)),
        with_file("assistant"),
        with_file("system"),
        with_file("user", llm.Media(media_type="video/mp4", data=b"-")),
    )


class AbleContract(VendorContract):
    """The contract of a provider whose model supports everything, with requests that use it."""

    __test__ = False

    capabilities = ABILITIES
    interruption = Fault.NO_END
    request = llm.CompletionRequest(
        messages=(
            llm.Message(role="developer", content="Be brief."),
            *ask("Where?"),
        ),
        response_format=STRICT,
        max_tokens=77,
        stop=("END",),
        reasoning_effort="low",
        timeout=20.0,
    )
    tool_request = REASONED


class TestAbleOpenAILLM(AbleContract, TestOpenAILLM):
    """The contract of OpenAI's provider, with all settings."""

    unsupported_requests = (with_file("assistant"),)


class TestAbleAnthropicLLM(AbleContract, TestAnthropicLLM):
    """The contract of Anthropic's provider, with all settings."""

    unsupported_requests = (replace(REASONED, tool_choice="required"),)


class TestAbleGoogleLLM(AbleContract, TestGoogleLLM):
    """The contract of Google's provider, with all settings."""

    unsupported_requests = (with_file("assistant"),)
