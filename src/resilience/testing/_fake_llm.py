"""A language model that follows a script of a test."""

import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias, final

from typing_extensions import override

from resilience import llm
from resilience.testing._script import Action, FakeStream, ManualClock, Script, started

LLMItem: TypeAlias = str | llm.Chunk | Action
"""An item of a `FakeLLM` script: a string is the content of a chunk."""

LLMStep: TypeAlias = str | llm.CompletionResponse | Exception | Sequence[LLMItem]
"""What one call to a `FakeLLM` does."""


@final
class FakeLLM(llm.Provider):
    """A language model that follows a script.

    A step is an answer (a string or a response), an exception, or a sequence of strings, chunks
    and actions. A string that is a step is streamed word by word, with a last chunk that has the
    finish reason; a sequence is streamed as it is, so an empty one is an empty stream.

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
            clock: What `Delay` advances.
            capabilities: What `capabilities()` returns, a context window of 8192 tokens if omitted.

        Raises:
            TypeError: A step is something else.
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
        chunks = list(self._chunks(step))
        return llm.CompletionResponse(
            content="".join(chunk.content for chunk in chunks),
            tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
            finish_reason=chunks[-1].finish_reason if chunks else None,
            usage=chunks[-1].usage if chunks else None,
        )

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> FakeStream[llm.Chunk]:
        self.requests.append(request)
        chunks = self._chunks(self._script.next_step())
        stream = FakeStream(started(chunks, lazy=self._lazy))
        self.streams.append(stream)
        return stream

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        """Return the number of words; this takes no step of the script."""
        self.counted.append(tuple(messages))
        return sum(len(message.content.split()) for message in messages)

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return self._capabilities

    def _chunks(self, step: LLMStep) -> Iterator[llm.Chunk]:
        if isinstance(step, llm.CompletionResponse):
            yield llm.Chunk(
                content=step.content,
                tool_calls=step.tool_calls,
                finish_reason=step.finish_reason,
                usage=step.usage,
            )
            return
        if isinstance(step, str):
            words = re.findall(r"\S+\s*|\s+", step)
            step = [*words, llm.Chunk(finish_reason="stop")]
        for item in [step] if isinstance(step, Exception) else step:
            if isinstance(item, str):
                yield llm.Chunk(content=item)
            elif isinstance(item, llm.Chunk):
                yield item
            else:
                self._script.act(item)
