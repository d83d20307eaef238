from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, final
Role: TypeAlias = Literal["system","user","assistant","tool"]
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    id: str
    name: str
    arguments: str
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDefinition:
    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: Role
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionResponse:
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCapabilities:
    context_window: int
    max_output_tokens: int | None = None
    supports_tools: bool = False
    supports_vision: bool = False
    supports_streaming: bool = True
class Provider(Protocol):
    @abstractmethod
    def complete(self, request: CompletionRequest) -> CompletionResponse: ...
    @abstractmethod
    def stream_completion(self, request: CompletionRequest) -> Iterable[Chunk]: ...
    @abstractmethod
    def count_tokens(self, messages: Sequence[Message]) -> int: ...
    @abstractmethod
    def capabilities(self) -> ModelCapabilities: ...
