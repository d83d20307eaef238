"""A language model that follows a script."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar, final

from typing_extensions import override

from resilience import llm
from resilience.testing._script import Action, FakeStream, ManualClock, Script, started

T = TypeVar("T")

LLMItem: TypeAlias = str | llm.Chunk | llm.CompletionResponse | Action
"""An item of a `FakeLLM` script: a string is the content of a chunk, a response a chunk."""

LLMStep: TypeAlias = str | llm.CompletionResponse | Exception | Sequence[LLMItem]
"""What one call to a `FakeLLM` does."""


@final
class FakeLLM(llm.Provider):
    """A language model that follows a script.

    A step is an answer (a string or a response), an exception, or a sequence of strings, chunks,
    responses and actions. A string that is a step is streamed word by word, with a last chunk that
    has the finish reason; a response is streamed as one chunk; the items of a sequence are streamed
    as they are, so an empty sequence is an empty stream. `complete()` joins the chunks that would
    be streamed.

    Attributes:
        requests: Requests in the order of the calls.
        counted: Messages whose tokens were counted, in the order of the calls.
        streams: Streams that were opened.
    """

    def __init__(
        self,
        *steps: LLMStep,
        lazy: bool = True,
        clock: ManualClock | None = None,
        capabilities: llm.ModelCapabilities | None = None,
    ) -> None:
        """Make a model that follows a script.

        Args:
            *steps: One step for each call; "ok" if omitted.
            lazy: Whether a stream does nothing before its first `next()`, as generators do.
            clock: The clock that a `Delay` advances.
            capabilities: Result of `capabilities()`; a context window of 8192 tokens if omitted.

        Raises:
            TypeError: A step has another type.
        """
        self._script = Script[LLMStep](
            steps or ("ok",), clock, str, llm.CompletionResponse, Exception, Sequence
        )
        self._lazy = lazy
        self._capabilities = capabilities or llm.ModelCapabilities(context_window=8192)
        self.requests: list[llm.CompletionRequest] = []
        self.counted: list[tuple[llm.Message, ...]] = []
        self.streams: list[FakeStream[llm.Chunk]] = []

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        self.requests.append(request)
        step = self._script.next_step()
        if isinstance(step, llm.CompletionResponse):
            return step
        return _joined(list(self._chunks(step)))

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> FakeStream[llm.Chunk]:
        self.requests.append(request)
        chunks = self._chunks(self._script.next_step())
        stream = FakeStream(started(chunks, lazy=self._lazy))
        self.streams.append(stream)
        return stream

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        """Return the number of words; this uses no step of the script."""
        self.counted.append(tuple(messages))
        return sum(len(message.content.split()) for message in messages)

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return self._capabilities

    def _chunks(self, step: LLMStep) -> Iterator[llm.Chunk]:
        if isinstance(step, str):
            words = re.findall(r"\S+\s*|\s+", step)
            step = [*words, llm.Chunk(finish_reason="stop")]
        for item in [step] if isinstance(step, (llm.CompletionResponse, Exception)) else step:
            if isinstance(item, str):
                yield llm.Chunk(content=item)
            elif isinstance(item, llm.Chunk):
                yield item
            elif isinstance(item, llm.CompletionResponse):
                yield _as_chunk(item)
            else:
                self._script.act(item)


def _as_chunk(response: llm.CompletionResponse) -> llm.Chunk:
    return llm.Chunk(
        content=response.content,
        tool_calls=response.tool_calls,
        reasoning=response.reasoning,
        refusal=response.refusal,
        finish_reason=response.finish_reason,
        usage=response.usage,
        model=response.model,
        id=response.id,
        extra=response.extra,
    )


def _joined(chunks: Sequence[llm.Chunk]) -> llm.CompletionResponse:
    return llm.CompletionResponse(
        content="".join(chunk.content for chunk in chunks),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        reasoning="".join(chunk.reasoning for chunk in chunks),
        refusal="".join(chunk.refusal for chunk in chunks),
        finish_reason=_last(chunk.finish_reason for chunk in chunks),
        usage=_last(chunk.usage for chunk in chunks),
        model=_last(chunk.model for chunk in chunks),
        id=_last(chunk.id for chunk in chunks),
        extra=_last(chunk.extra for chunk in chunks),
    )


def _last(values: Iterable[T | None]) -> T | None:
    """Return the last value that is not None, if there is one."""
    return next((value for value in reversed(list(values)) if value is not None), None)
