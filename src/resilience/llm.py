"""The contract of a language model: the methods of a provider, and their arguments and results.

An application has a class for each client library that it uses. The class need not inherit from
`Provider`: it is enough that it has the methods. The values may be subclassed.

Some values have a field `extra`, for data that only one vendor understands. It is a mapping with
the vendor's name as the key: `extra={"anthropic": ...}`. A provider reads its own key and ignores
the others. `extra` takes part in comparisons with `==`, but not in hashes or in the `repr`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from resilience.exceptions import UnsupportedRequestError

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
"""Who wrote a message."""


class ContextWindowExceededError(UnsupportedRequestError):
    """The request is too long for this model; a model with a larger window may serve it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """A picture, a recording or another file that belongs to a message.

    Attributes:
        media_type: Its MIME type, such as "image/png", "audio/wav" or "application/pdf".
        data: Its bytes; None if there is a `uri`. Not in the `repr`.
        uri: Where the vendor finds it: a URL, or the vendor's name of an uploaded file; None if
            there are `data`.
        name: Name of the file.
    """

    media_type: str
    data: bytes | None = field(default=None, repr=False)
    uri: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        """Check that there is either `data` or `uri`.

        Raises:
            ValueError: There are both `data` and `uri`, or neither.
        """
        if (self.data is None) == (self.uri is None):
            found = "neither" if self.data is None else "both"
            msg = f"media must have either data or uri, got {found}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A model's request to call a function.

    Attributes:
        id: Id of this call, to which the result refers.
        name: Name of the function.
        arguments: Its arguments as JSON text, as the model wrote it.
        extra: Data that the vendor must get back with this call, such as a signature.
    """

    id: str
    name: str
    arguments: str
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDefinition:
    """A function that a model may call.

    Attributes:
        name: Name of the function.
        description: What it does, for the model to read.
        parameters: JSON schema of its arguments. Not in the hash.
        extra: Options of one vendor, such as a cache breakpoint.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict[str, object], hash=False)
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who wrote it: "system" or "developer" (instructions; a provider whose vendor has only
            one of the two uses that), "user", "assistant", or "tool" (the result of a call).
        content: Its text; may be empty if there are tool calls or attachments.
        name: Name of the speaker, if several have the same role.
        tool_calls: Calls that an assistant's message requests.
        tool_call_id: In a tool's message, the call that it answers.
        attachments: Pictures and other files, which follow the text.
        reasoning: The model's reasoning before an assistant's message, as text.
        extra: Data that the vendor must get back unchanged with this message, such as signed or
            encrypted reasoning. Other vendors get the message without it.
    """

    role: Role
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    attachments: tuple[Media, ...] = ()
    reasoning: str = ""
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A request to continue a conversation.

    A provider that does not support a field raises `UnsupportedRequestError`; it never ignores the
    field. None selects the provider's default.

    Attributes:
        messages: The conversation, oldest message first.
        tools: Functions that the model may call.
        tool_choice: "auto" (the model decides), "none" (no call), "required" (at least one call),
            or the name of the function that the model must call.
        response_format: JSON schema that the text of the answer must match. Not in the hash.
        temperature: Sampling temperature, 0 or more.
        top_p: Nucleus sampling: share of the probability mass from which tokens are sampled, from 0
            to 1.
        max_tokens: Maximum length of the answer in tokens.
        stop: Stop sequences: the answer ends before the first of them.
        seed: Seed for repeatable sampling, as far as the vendor supports it.
        reasoning_effort: How much the model reasons: "none", "minimal", "low", "medium", "high", or
            another value of the vendor.
        model: The vendor's name of the model that answers. After failover the next provider gets
            the same name, so a provider that does not have this model raises.
        timeout: Timeout of the client for this request, in seconds; independent of
            `attempt_timeout`.
        extra: Options of one vendor.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: str | None = None
    response_format: Mapping[str, object] | None = field(default=None, hash=False)
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    reasoning_effort: str | None = None
    model: str | None = None
    timeout: float | None = None
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens that an answer used.

    Attributes:
        prompt_tokens: Tokens of the request, including cached ones.
        completion_tokens: Tokens of the answer, including reasoning.
        cache_read_tokens: Tokens of the request that were read from the vendor's cache.
        cache_write_tokens: Tokens of the request that were written to the vendor's cache.
        reasoning_tokens: Tokens of the answer that were used for reasoning.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of request and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionResponse:
    """A whole answer.

    Attributes:
        content: Its text.
        tool_calls: Calls that the model requests.
        reasoning: The model's reasoning, as text.
        refusal: The text with which the model refused, if the vendor separates it from `content`.
        finish_reason: Why it ended: "stop", "length" (`max_tokens` or the window is used up),
            "tool_calls" or "content_filter". The provider translates its vendor's words into
            these, and passes on an unknown one unchanged. None if the vendor does not report it.
        usage: The tokens that it used, if the vendor reports them.
        model: The vendor's name of the model that answered.
        id: The vendor's id of the answer.
        provider: Name of the provider that answered, set by `LLMFallback`.
        extra: Data that the vendor must get back unchanged with this answer, and data that only
            this vendor reports.
    """

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    refusal: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    id: str | None = None
    provider: str | None = None
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)

    @property
    def message(self) -> Message:
        """The answer as the assistant's message, to be appended to the next request.

        If there is no content, the refusal is used as the content. `tool_calls`, `reasoning` and
        `extra` are those of the answer.
        """
        return Message(
            role="assistant",
            content=self.content or self.refusal,
            tool_calls=self.tool_calls,
            reasoning=self.reasoning,
            extra=self.extra,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of an answer.

    A chunk is empty if it has no content, tool calls, reasoning, refusal, finish reason or usage.
    `LLMFallback` does not pass on empty chunks at the beginning of a stream, so other data of such
    a chunk must be repeated in a later one.

    Attributes:
        content: The next part of its text.
        tool_calls: Calls that the model requests, each one complete.
        reasoning: The next part of the model's reasoning.
        refusal: The next part of the text with which the model refuses.
        finish_reason: Why the answer ended, in one of the last chunks; None before. The values are
            those of `CompletionResponse.finish_reason`.
        usage: The tokens that the answer used, if the vendor reports them, in one of the last
            chunks.
        model: The vendor's name of the model that answers, in one or more of the chunks.
        id: The vendor's id of the answer, in one or more of the chunks.
        extra: Data that the vendor must get back unchanged with this answer, complete in one of the
            last chunks, and data that only this vendor reports.
    """

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    refusal: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    id: str | None = None
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCapabilities:
    """What a model can do.

    Attributes:
        context_window: Maximum number of tokens of request and answer together.
        max_output_tokens: Maximum number of tokens of an answer; None if only the window limits it.
        supports_tools: Whether it can request function calls.
        supports_vision: Whether it understands pictures.
        supports_streaming: Whether it answers piece by piece.
        supports_structured_output: Whether its answer can be made to match a JSON schema.
        supports_reasoning: Whether it reasons before it answers.
        supports_audio: Whether it understands audio.
    """

    context_window: int
    max_output_tokens: int | None = None
    supports_tools: bool = False
    supports_vision: bool = False
    supports_streaming: bool = True
    supports_structured_output: bool = False
    supports_reasoning: bool = False
    supports_audio: bool = False


class Provider(Protocol):
    """A language model.

    A method that cannot do its work raises an exception; it never returns an empty result instead.
    A provider may raise any exceptions, with one rule: if the model works but does not support what
    a request asks for (a picture for a model without vision, a forced tool), the provider raises
    `UnsupportedRequestError`, and `ContextWindowExceededError` if the request is too long. It never
    ignores a field that it does not support.

    A conversation may contain messages of other vendors: a provider sends the data in `extra` under
    its own key unchanged, and sends messages of other vendors without their `extra`.

    Several threads may call one provider at the same time.
    """

    @abstractmethod
    def complete(self, request: CompletionRequest) -> CompletionResponse:
        """Answer a request.

        Args:
            request: The conversation to continue.

        Returns:
            The whole answer, with one of the standard finish reasons.

        Raises:
            UnsupportedRequestError: The model cannot do what the request asks for.
            Exception: There is no answer.
        """
        ...

    @abstractmethod
    def stream_completion(self, request: CompletionRequest) -> Iterable[Chunk]:
        """Answer a request piece by piece.

        The work may begin with this call or with the first `next()`. If the returned object has a
        method `close()`, it is called once when the answer has ended or is no longer needed, by any
        thread, but not while a `next()` is under way.

        Signs of work are passed on at once: reasoning as chunks with `reasoning`, each part of an
        incomplete tool call as an empty chunk, `Chunk()`. A provider that sends nothing for too
        long may time out.

        Args:
            request: The conversation to continue.

        Returns:
            The answer in order; at least one chunk that is not empty, and one with the finish
            reason. Iterating over it raises if the answer breaks off.

        Raises:
            UnsupportedRequestError: The model cannot do what the request asks for.
            Exception: There is no answer.
        """
        ...

    @abstractmethod
    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Count the tokens of a conversation.

        Args:
            messages: The conversation.

        Returns:
            Number of tokens, exact or estimated.

        Raises:
            Exception: The tokens cannot be counted.
        """
        ...

    @abstractmethod
    def capabilities(self) -> ModelCapabilities:
        """Describe the model.

        Returns:
            What the model can do; the same at each call.
        """
        ...
