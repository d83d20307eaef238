"""Language models for the clients of two vendors, as in an application.

The clients do not retry, and have a timeout for each read. With `lazy`, the work of a stream begins
when it is first used, otherwise in the call that returns it.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import final

import anthropic
import openai
from anthropic.lib.streaming import ParsedMessageStreamEvent
from anthropic.types import MessageParam, RawMessageStreamEvent
from openai.types.chat import ChatCompletionChunk, ChatCompletionUserMessageParam
from typing_extensions import override

from integration.opening import open_at_first_next, open_at_once
from resilience import llm

MAX_TOKENS = 8  # if the request has no limit


def _whole(chunks: Iterator[llm.Chunk]) -> Iterator[llm.Chunk]:
    """Raise if an answer has no end, since the clients do not."""
    last = None
    for last in chunks:
        yield last
    if last is not None and last.finish_reason is None:
        msg = "the answer breaks off"
        raise ConnectionError(msg)


class _Model(llm.Provider):
    """The base of the language models of this module."""

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        return sum(len(message.content) for message in messages) // 4

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return llm.ModelCapabilities(context_window=8192)

    @abstractmethod
    def close(self) -> None:
        """Close the client."""


@final
class OpenAIModel(_Model):
    """A model with the client `openai`."""

    def __init__(self, address: str, name: str, *, timeout: float, lazy: bool = False) -> None:
        """Use a server and the name of a model."""
        self._client = openai.OpenAI(
            api_key="-", base_url=f"http://{address}/v1", timeout=timeout, max_retries=0
        )
        self._name = name
        self._lazy = lazy

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        completion = self._client.chat.completions.create(
            model=self._name,
            max_tokens=request.max_tokens,
            messages=_openai_messages(request),
            stream=False,
        )
        choice = completion.choices[0]
        return llm.CompletionResponse(
            content=choice.message.content or "", finish_reason=choice.finish_reason
        )

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        def create() -> openai.Stream[ChatCompletionChunk]:
            return self._client.chat.completions.create(
                model=self._name,
                max_tokens=request.max_tokens,
                messages=_openai_messages(request),
                stream=True,
            )

        def read(stream: openai.Stream[ChatCompletionChunk]) -> Iterator[llm.Chunk]:
            for chunk in stream:
                choice = chunk.choices[0]
                yield llm.Chunk(
                    content=choice.delta.content or "", finish_reason=choice.finish_reason
                )

        return (open_at_first_next if self._lazy else open_at_once)(
            create, lambda stream: _whole(read(stream))
        )

    @override
    def close(self) -> None:
        self._client.close()


def _openai_messages(request: llm.CompletionRequest) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": message.content} for message in request.messages]


@final
class AnthropicModel(_Model):
    """A model with the client `anthropic`; if lazy, with its helper for streams."""

    def __init__(self, address: str, name: str, *, timeout: float, lazy: bool = False) -> None:
        """Use a server and the name of a model."""
        self._client = anthropic.Anthropic(
            api_key="-", base_url=f"http://{address}", timeout=timeout, max_retries=0
        )
        self._name = name
        self._lazy = lazy

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        message = self._client.messages.create(
            model=self._name,
            max_tokens=request.max_tokens or MAX_TOKENS,
            messages=_anthropic_messages(request),
        )
        text = "".join(block.text for block in message.content if block.type == "text")
        return llm.CompletionResponse(content=text, finish_reason=message.stop_reason)

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        if self._lazy:
            return open_at_first_next(
                lambda: self._client.messages.stream(
                    model=self._name,
                    max_tokens=request.max_tokens or MAX_TOKENS,
                    messages=_anthropic_messages(request),
                ),
                lambda events: _whole(_anthropic_chunks(events)),
            )
        return open_at_once(
            lambda: self._client.messages.create(
                model=self._name,
                max_tokens=request.max_tokens or MAX_TOKENS,
                messages=_anthropic_messages(request),
                stream=True,
            ),
            lambda events: _whole(_anthropic_chunks(events)),
        )

    @override
    def close(self) -> None:
        self._client.close()


def _anthropic_messages(request: llm.CompletionRequest) -> list[MessageParam]:
    return [{"role": "user", "content": message.content} for message in request.messages]


def _anthropic_chunks(
    events: Iterable[RawMessageStreamEvent | ParsedMessageStreamEvent],
) -> Iterator[llm.Chunk]:
    for event in events:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            yield llm.Chunk(content=event.delta.text)
        elif event.type == "message_delta":
            yield llm.Chunk(finish_reason=event.delta.stop_reason)
