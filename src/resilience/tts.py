from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, final
@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceProfile:
    id: str
    name: str = ""
    language: str | None = None
    sample_rate: int | None = None
class Provider(Protocol):
    @abstractmethod
    def synthesize_stream(self, text: Iterable[str], voice: VoiceProfile) -> Iterable[bytes]: ...
    @abstractmethod
    def list_voices(self) -> Sequence[VoiceProfile]: ...
    @abstractmethod
    def clone_voice(self, samples: Sequence[bytes]) -> VoiceProfile: ...
