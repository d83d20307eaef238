from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, final
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Keyword:
    text: str
    boost: float = 1.0
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    sample_rate: int = 16_000
    channels: int = 1
    language: str | None = None
    keywords: tuple[Keyword, ...] = ()
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    text: str
    start: float
    duration: float
    confidence: float | None = None
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    text: str
    is_final: bool = False
    confidence: float | None = None
    start: float = 0.0
    duration: float = 0.0
    words: tuple[Word, ...] = ()
class SessionHandle(Protocol):
    @abstractmethod
    def send_audio(self, audio: bytes) -> None: ...
    @abstractmethod
    def partials(self) -> Iterable[Transcript]: ...
    @abstractmethod
    def finals(self) -> Iterable[Transcript]: ...
    @abstractmethod
    def set_keywords(self, keywords: Sequence[Keyword]) -> None: ...
    @abstractmethod
    def close(self) -> None: ...
class Provider(Protocol):
    @abstractmethod
    def start_stream(self, config: StreamConfig) -> SessionHandle: ...
