"""The contract of a language model: what a provider does and the values it exchanges.

An application writes a class for each client library that it uses, and need not inherit from
`Provider`: having its methods is enough. The values may be subclassed.

`extra`, where a value has it, holds what a single vendor understands, in a mapping with the
vendor's name as the key: `extra={"anthropic": ...}`. A provider reads its own key and ignores the
others. `extra` takes part in comparisons with `==`, but not in hashes or in the `repr`.
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
        uri: Where the vendor finds it: a URL, or what the vendor calls an uploaded file; None if
            there are `data`.
        name: Name of the file.
    """

    media_type: str
    data: bytes | None = field(default=None, repr=False)
    uri: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        """Check that there is one source.

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
        id: Name of this call, to which the result refers.
        name: Name of the function.
        arguments: Its arguments as JSON text, as the model wrote it.
        extra: What the vendor must get back with this call, such as a signature.
    """

    id: str
    name: str
    arguments: str
    extra: Mapping[str, object] | None = field(default=None, hash=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDefinition:
    """A function that a model may ask to be called.

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
        name: Which of several speakers of the same role.
        tool_calls: Calls that an assistant's message asks for.
        tool_call_id: In a tool's message, the call that it answers.
        attachments: Pictures and other files, which follow the text.
        reasoning: The model's reasoning that led to an assistant's message, as text.
        extra: What the vendor must get back verbatim with this message, such as signed or encrypted
            reasoning. Other vendors get the message without it.
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
    """A conversation that a model is to continue.

    A provider that cannot do what a field asks for raises `UnsupportedRequestError`; it never
    ignores the field. None stands for the provider's default everywhere.

    Attributes:
        messages: The conversation, oldest message first.
        tools: Functions that the model may ask for.
        tool_choice: "auto" (the model decides), "none" (no call), "required" (at least one call),
            or the name of the function that the model must ask for.
        response_format: JSON schema that the text of the answer must match. Not in the hash.
        temperature: How freely the model chooses, from 0.
        top_p: Share of the probability from which it chooses, from 0 to 1.
        max_tokens: Longest answer in tokens.
        stop: Texts before which the answer ends.
        seed: Number with which the model's choices can be repeated, as far as the vendor can.
        reasoning_effort: How much the model reasons: "none", "minimal", "low", "medium", "high", or
            another word of the vendor's.
        model: Model that answers, by the vendor's name. After failover the next provider gets the
            same name, so one that does not have it raises.
        timeout: Seconds that the client waits for the vendor; `attempt_timeout` is independent of
            it.
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
        prompt_tokens: Tokens of the request, cached ones included.
        completion_tokens: Tokens of the answer, reasoning included.
        cache_read_tokens: Those of the request that were read from the vendor's cache.
        cache_write_tokens: Those of the request that were written to the vendor's cache.
        reasoning_tokens: Those of the answer that were reasoning.
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
        tool_calls: Functions that the model asks to be called.
        reasoning: The model's reasoning, as text.
        refusal: The text with which the model declined, if the vendor keeps it apart from
            `content`.
        finish_reason: Why it ended: "stop", "length" (`max_tokens` or the window is used up),
            "tool_calls" or "content_filter". The provider translates its vendor's words into
            these, and passes an unknown one on as it is. None if the vendor does not say.
        usage: The tokens that it used, if the vendor reports them.
        model: Model that answered, by the vendor's name.
        id: The vendor's id of the answer.
        provider: Name of the provider that answered, set by `LLMFallback`.
        extra: What the vendor must get back verbatim with this answer, and what it alone reports.
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

        A refusal is its content if there is no other. `tool_calls`, `reasoning` and `extra` are
        those of the answer.
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
    `LLMFallback` does not pass on empty chunks at the beginning of a stream, so what else such a
    chunk has must be repeated in a later one.

    Attributes:
        content: The next part of its text.
        tool_calls: Functions that the model asks to be called, each one complete.
        reasoning: The next part of the model's reasoning.
        refusal: The next part of the text with which the model declines.
        finish_reason: Why the answer ended, in one of the last chunks; None before. The words are
            those of `CompletionResponse.finish_reason`.
        usage: The tokens that the answer used, if the vendor reports them, in one of the last
            chunks.
        model: Model that answers, by the vendor's name, in one or more of the chunks.
        id: The vendor's id of the answer, in one or more of the chunks.
        extra: What the vendor must get back verbatim with this answer, whole in one of the last
            chunks, and what it alone reports.
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
        context_window: Tokens that request and answer may have together.
        max_output_tokens: Tokens that an answer may have; None if nothing but the window limits it.
        supports_tools: Whether it can ask for functions to be called.
        supports_vision: Whether it understands pictures.
        supports_streaming: Whether it answers piece by piece.
        supports_structured_output: Whether its answer can be made to match a JSON schema.
        supports_reasoning: Whether it reasons before it answers.
        supports_audio: Whether it understands recordings.
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

    A method that cannot do its work raises; it never returns something empty instead. Which
    exceptions it raises is up to the provider, with one exception: if the model works but cannot
    do what a request asks for (a picture without vision, a forced tool), it raises
    `UnsupportedRequestError`, and `ContextWindowExceededError` if the request is too long. It never
    leaves out what it cannot carry.

    A conversation may come from another vendor: a provider hands back verbatim what is in `extra`
    under its own key, and sends messages of other vendors without their `extra`.

    One provider may be called by several threads at a time.
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

        The work may begin with this call or with the first `next()`. If what is returned has a
        method `close()`, it is called once when the answer has ended or is no longer needed, by any
        thread, but not while a `next()` is under way.

        What shows that the model works is passed on at once: reasoning as chunks with `reasoning`,
        each part of a tool call that is not complete as an empty chunk, `Chunk()`. A silent
        provider may be given up.

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
            Exception: They cannot be counted.
        """
        ...

    @abstractmethod
    def capabilities(self) -> ModelCapabilities:
        """Describe the model.

        Returns:
            What it can do; the same at each call.
        """
        ...
