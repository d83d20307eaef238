"""A group of language models with the interface of a single model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, cast, final

from typing_extensions import override

from resilience import llm
from resilience._adapters.base import Adapter
from resilience._failover.attempts import Attempts, Call
from resilience._failover.execute import NO_ANSWER, NO_OBJECT, execute, execute_unrecorded
from resilience._failover.stream import Stream, StreamRequest, open_request
from resilience.exceptions import EmptyStreamError


@final
class LLMFallback(Adapter[llm.Provider], llm.Provider):
    """Several language models as one `llm.Provider`: the first healthy one answers.

    May be used by any number of threads, if its providers allow that.
    """

    _required = ("complete", "stream_completion")

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        """Return the answer of the first provider that succeeds.

        Args:
            request: The conversation to continue.

        Returns:
            The whole answer, with the name of that provider in `provider`.

        Raises:
            AllFailedError: No provider answered.
        """
        return execute(
            self._group._members,
            lambda provider: provider.complete(request),
            "complete",
            NO_OBJECT,
            _name_provider,
        )

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Stream[llm.Chunk]:
        """Return a stream of the first provider that returns a first chunk; wait for that chunk.

        A stream that ends without a chunk is a failure. Empty chunks before the first one that is
        not empty are not passed on; each of them renews `attempt_timeout`. An error after the first
        chunk is raised to the caller unchanged: output already delivered cannot be retracted.

        Args:
            request: The conversation to continue.

        Returns:
            The answer in chunks.

        Raises:
            AllFailedError: No provider returned a first chunk.
        """
        attempts = Attempts(self._group._members, "stream_completion")
        return open_request(attempts, _Completion(request), Stream)

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        """Return the count of the first provider that can count.

        Providers whose breakers are open are skipped, but no outcome is recorded: a provider that
        can count tokens may still fail to answer.

        Args:
            messages: The conversation.

        Returns:
            Number of tokens.

        Raises:
            AllFailedError: No provider could count.
        """
        return execute_unrecorded(
            self._group._members,
            lambda provider: provider.count_tokens(messages),
            "count_tokens",
            NO_ANSWER,
        )

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        """Return the capabilities of the primary, without failover.

        Returns:
            The capabilities of the first provider.
        """
        return self._group.primary.capabilities()


_SLOTS: dict[str, Any] = {
    each.name: getattr(llm.CompletionResponse, each.name) for each in fields(llm.CompletionResponse)
}
_COPIED: Any = tuple((slot.__get__, slot.__set__) for slot in _SLOTS.values())
_set_provider: Any = _SLOTS["provider"].__set__


def _name_provider(response: llm.CompletionResponse, name: str) -> llm.CompletionResponse:
    """Return a copy with the name, since the provider may return the same object to others."""
    kind: type = type(response)
    if kind is llm.CompletionResponse:  # field by field, in a third of the time of `replace`
        named = object.__new__(llm.CompletionResponse)
        for read, write in _COPIED:
            write(named, read(response))
    elif issubclass(kind, llm.CompletionResponse):
        named = _copied(response)
    else:
        return response  # another class with the same attributes
    _set_provider(named, name)
    return named


def _copied(response: llm.CompletionResponse) -> llm.CompletionResponse:
    """Copy an instance of a subclass, whose constructor may have other parameters."""
    copied = object.__new__(type(response))
    state = cast(
        "tuple[dict[str, object] | None, dict[str, object]]", object.__getstate__(response)
    )
    for key, value in ((state[0] or {}) | state[1]).items():
        object.__setattr__(copied, key, value)
    return copied


@final
class _Completion(StreamRequest[llm.Provider, llm.Chunk]):
    """A request for an answer, which has at least one chunk that is not empty."""

    def __init__(self, request: llm.CompletionRequest) -> None:
        self._request = request

    @override
    def start_attempt(
        self, call: Call[llm.Provider]
    ) -> Callable[[llm.Provider], Iterable[llm.Chunk]]:
        return lambda provider: provider.stream_completion(self._request)

    @override
    def accept(self, *, empty: bool) -> None:
        if empty:
            raise EmptyStreamError

    @override
    def is_wrong(self, item: llm.Chunk, /) -> bool:
        return not hasattr(item, "content")

    @override
    def is_empty(self, item: llm.Chunk, /) -> bool:
        return not (
            item.content
            or item.tool_calls
            or item.reasoning
            or item.refusal
            or item.finish_reason
            or item.usage
        )
