"""The contract of a language model: what a provider does and the values it exchanges.

An application writes a class for each client library that it uses, and need not inherit from
`Provider`: having its methods is enough.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, final

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
"""Who wrote a message."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A model's request to call a function.

    Attributes:
        id: Name of this call, to which the result refers.
        name: Name of the function.
        arguments: Its arguments as JSON text, as the model wrote it.
    """

    id: str
    name: str
    arguments: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDefinition:
    """A function that a model may ask to be called.

    Attributes:
        name: Name of the function.
        description: What it does, for the model to read.
        parameters: JSON schema of its arguments.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who wrote it.
        content: Its text; may be empty if there are tool calls.
        name: Which of several speakers of the same role.
        tool_calls: Calls that an assistant's message asks for.
        tool_call_id: In a tool's message, the call that it answers.
    """

    role: Role
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A conversation that a model is to continue.

    Attributes:
        messages: The conversation, oldest message first.
        tools: Functions that the model may ask for.
        temperature: How freely the model chooses, from 0; None for the provider's default.
        max_tokens: Longest answer in tokens; None for the provider's default.
        stop: Texts before which the answer ends.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens that an answer used.

    Attributes:
        prompt_tokens: Tokens of the request.
        completion_tokens: Tokens of the answer.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of both together."""
        return self.prompt_tokens + self.completion_tokens


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionResponse:
    """A whole answer.

    Attributes:
        content: Its text.
        tool_calls: Functions that the model asks to be called.
        finish_reason: Why it ended, as the provider names it, such as "stop" or "length".
        usage: The tokens that it used, if the provider reports them.
    """

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        content: The next part of its text.
        tool_calls: Functions that the model asks to be called, each one complete.
        finish_reason: Why the answer ended, in the last chunk; None before.
        usage: The tokens that the answer used, if the provider reports them, in the last chunk.
    """

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCapabilities:
    """What a model can do.

    Attributes:
        context_window: Tokens that request and answer may have together.
        max_output_tokens: Tokens that an answer may have; None if nothing but the window limits it.
        supports_tools: Whether it can ask for functions to be called.
        supports_vision: Whether it understands pictures.
        supports_streaming: Whether it answers piece by piece.
    """

    context_window: int
    max_output_tokens: int | None = None
    supports_tools: bool = False
    supports_vision: bool = False
    supports_streaming: bool = True


class Provider(Protocol):
    """A language model.

    A method that cannot do its work raises; it never returns something empty instead. Which
    exceptions it raises is up to the provider. One provider may be called by several threads
    at a time.
    """

    @abstractmethod
    def complete(self, request: CompletionRequest) -> CompletionResponse:
        """Answer a request.

        Args:
            request: The conversation to continue.

        Returns:
            The whole answer.

        Raises:
            Exception: There is no answer.
        """
        ...

    @abstractmethod
    def stream_completion(self, request: CompletionRequest) -> Iterable[Chunk]:
        """Answer a request piece by piece.

        The work may begin with this call or with the first `next()`. If what is returned has a
        method `close()`, it is called once when the answer has ended or is no longer needed, by any
        thread, but not while a `next()` is under way.

        Args:
            request: The conversation to continue.

        Returns:
            The answer in order; at least one chunk, the last one with the finish reason. Iterating
            over it raises if the answer breaks off.

        Raises:
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
