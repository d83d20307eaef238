"""Language models, served by a group behind the interface of one."""

from collections.abc import Callable, Iterable, Sequence
from typing import final

from typing_extensions import override

from resilience import llm
from resilience._adapter import Adapter
from resilience._stream import Stream, StreamRequest, serve
from resilience.exceptions import EmptyStreamError


@final
class LLMFallback(Adapter[llm.Provider], llm.Provider):
    """Language models behind one `llm.Provider`: the first healthy one answers.

    May be used by any number of threads, if the providers may.
    """

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        """Return the answer of the first provider that has one.

        Args:
            request: What to answer.

        Returns:
            The whole answer.

        Raises:
            AllFailedError: No provider answered.
        """
        return self._group.execute(lambda provider: provider.complete(request))

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Stream[llm.Chunk]:
        """Return a stream of the first provider that has a first chunk, and wait for that chunk.

        A stream that ends without a chunk is a failure. An error after the first chunk goes to
        the caller as it is: what has been said cannot be taken back.

        Args:
            request: What to answer.

        Returns:
            The answer in chunks.

        Raises:
            AllFailedError: No provider had a first chunk.
        """
        return serve(self._group.run(), _Completion(request))

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        """Return the count of the first provider that can count.

        Providers whose breakers are open are skipped, but no breaker learns from the attempts: a
        model that counts well may answer badly.

        Args:
            messages: What to count.

        Returns:
            Number of tokens.

        Raises:
            AllFailedError: No provider could count.
        """
        return self._group.execute(lambda provider: provider.count_tokens(messages), evidence=False)

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        """Return what the primary can do; there is no failover for what is only described.

        Returns:
            The capabilities of the first provider.
        """
        return self._group.primary.capabilities()


@final
class _Completion(StreamRequest[llm.Provider, llm.Chunk]):
    """A request for an answer, of which the least is one chunk with the reason of its end."""

    def __init__(self, request: llm.CompletionRequest) -> None:
        self._request = request

    @override
    def opener(self) -> Callable[[llm.Provider], Iterable[llm.Chunk]]:
        return lambda provider: provider.stream_completion(self._request)

    @override
    def opened(self, *, empty: bool) -> None:
        if empty:
            raise EmptyStreamError
