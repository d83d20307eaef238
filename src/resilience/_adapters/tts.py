"""A group of speech synthesisers with the interface of a single synthesiser."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self, cast, final
from weakref import ref

from typing_extensions import override

from resilience import _settings, tts
from resilience._adapters.base import Adapter
from resilience._adapters.text import ReplayBuffer
from resilience._breaker.config import CircuitBreakerConfig
from resilience._failover.attempts import Attempts, Call, Member
from resilience._failover.config import FallbackConfig
from resilience._failover.execute import NO_ANSWER, NO_OBJECT, execute
from resilience._failover.stream import Stream, StreamRequest, StreamState, open_request
from resilience.exceptions import EmptyStreamError


@final
class SpeechStream(Stream[bytes]):
    """The audio of the first provider that has returned audio."""

    __slots__ = ("_voice_of",)

    _voice_of: Callable[[Member[tts.Provider]], tts.VoiceProfile]

    def __new__(
        cls,
        state: StreamState[Any, bytes],
        voice_of: Callable[[Member[tts.Provider]], tts.VoiceProfile],
    ) -> Self:
        """Make the iterator over a stream that has been started."""
        self = super().__new__(cls, state)
        self._voice_of = voice_of
        return self

    @property
    def voice(self) -> tts.VoiceProfile | None:
        """The voice that speaks, with its sample rate and encoding; None before there is audio."""
        member = self._state.member
        if member is None:
            return None
        # A group of synthesisers as a provider returns such a stream, too.
        inner = self._state.returned
        own = inner.voice if isinstance(inner, SpeechStream) else None
        return own or self._voice_of(member)


@final
class TTSFallback(Adapter[tts.Provider], tts.Provider):
    """Several speech synthesisers as one `tts.Provider`: the first healthy one speaks.

    May be used by any number of threads, if its providers allow that.
    """

    _required = ("synthesize_stream",)

    def __init__(
        self,
        primary: tts.Provider,
        primary_name: str,
        config: FallbackConfig | None = None,
        *,
        voices: Mapping[str, tts.VoiceProfile] | None = None,
        attempt_timeout: float | timedelta | None = None,
        circuit_breaker: CircuitBreakerConfig | None = None,
    ) -> None:
        """Make a group of one provider.

        Args:
            primary: Provider that is tried first.
            primary_name: Its name, also the name of its breaker.
            config: Settings; the defaults if omitted.
            voices: Mapping from the id of a requested voice to the voice that the primary uses
                instead. A voice that is not mapped is passed on unchanged.
            attempt_timeout: Time limit in seconds of an attempt with the primary; overrides the
                setting of the group. 0 for no limit.
            circuit_breaker: Settings of the primary's breaker, instead of the group's.

        Raises:
            TypeError: An argument has the wrong type, or the provider lacks a main method of its
                contract.
            ValueError: The name is empty, or the timeout is negative or not finite.
        """
        voice_map = _check_voices(voices)
        super().__init__(
            primary,
            primary_name,
            config,
            attempt_timeout=attempt_timeout,
            circuit_breaker=circuit_breaker,
        )
        self._group._members[0].notes = voice_map

    @override
    def add_fallback(
        self,
        name: str,
        provider: tts.Provider,
        *,
        voices: Mapping[str, tts.VoiceProfile] | None = None,
        attempt_timeout: float | timedelta | None = None,
        circuit_breaker: CircuitBreakerConfig | None = None,
    ) -> None:
        """Add a provider, which is tried after the present ones.

        May be called at any time. Calls already under way do not use the new provider.

        Args:
            name: Its name, also the name of its breaker.
            provider: The provider.
            voices: Mapping from the id of a requested voice to the voice that this provider uses
                instead. A voice that is not mapped is passed on unchanged.
            attempt_timeout: Time limit in seconds of an attempt with this provider; overrides the
                setting of the group. 0 for no limit.
            circuit_breaker: Settings of its breaker, instead of the group's.

        Raises:
            TypeError: An argument has the wrong type, or the provider lacks a main method of its
                contract.
            ValueError: The name is empty or already used, or the timeout is negative or not finite.
        """
        notes = _check_voices(voices)
        self._add(name, provider, attempt_timeout, circuit_breaker, notes)

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> SpeechStream:
        """Return the audio of the first provider that returns any.

        Each attempt reads the text from its beginning, so no fragment is lost or spoken twice. The
        first `next()` waits for audio and fails over, so the same thread may produce the text after
        this call. An error of the text itself is raised to the caller unchanged.

        If a provider returns no audio, the attempt fails if the text has a letter or a digit.
        Otherwise, for instance for blanks, punctuation or emoji, it succeeds.

        Args:
            text: Fragments of the text; usually an iterator over the output of a model.
            voice: Voice to speak with.

        Returns:
            The audio in pieces, in the format of the voice that speaks.

        Raises:
            AllFailedError: No provider returned audio. The first `next()` may raise it too.
        """
        speech = _Speech(text, voice)
        attempts = Attempts(
            self._group._members, "synthesize_stream", input_error=speech.input_error
        )
        return open_request(
            attempts, speech, lambda state: SpeechStream(state, speech.voice_of), lazy=True
        )

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        """Return the voices of the first provider that can list them.

        Returns:
            Voices of one provider; other providers may not have them.

        Raises:
            AllFailedError: No provider could list its voices.
        """
        return execute(
            self._group._members, lambda provider: provider.list_voices(), "list_voices", NO_ANSWER
        )

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Make a voice with the first provider that succeeds.

        Args:
            samples: Recordings of the voice.

        Returns:
            A voice of one provider; the other providers do not have it.

        Raises:
            AllFailedError: No provider could make the voice.
        """
        return execute(
            self._group._members,
            lambda provider: provider.clone_voice(samples),
            "clone_voice",
            NO_OBJECT,
        )


@final
class _Speech(StreamRequest[tts.Provider, bytes]):
    """A request for speech, whose text every attempt reads from its beginning."""

    def __init__(self, text: Iterable[str], voice: tts.VoiceProfile) -> None:
        self._text = ReplayBuffer(text)
        self._voice = voice

    @override
    def start_attempt(self, call: Call[tts.Provider]) -> Callable[[tts.Provider], Iterable[bytes]]:
        # This attempt's own reader, whichever thread uses it. An abandoned provider may keep the
        # reader for a long time, and must not keep the call too.
        attempt = ref(call)
        reader = self._text.reader(lambda: (call := attempt()) and call.thread)
        voice = self.voice_of(call.member)
        return lambda provider: provider.synthesize_stream(reader, voice)

    def voice_of(self, member: Member[tts.Provider]) -> tts.VoiceProfile:
        """Return the voice that is passed to a provider."""
        voice_map = cast("Mapping[str, tts.VoiceProfile]", member.notes)
        return voice_map.get(self._voice.id, self._voice)

    @override
    def accept(self, *, empty: bool) -> None:
        if not empty:
            self._text.commit()
        elif self._text.has_text():
            raise EmptyStreamError

    @override
    def is_wrong(self, item: bytes, /) -> bool:
        return not isinstance(cast("object", item), (bytes, bytearray, memoryview))

    @override
    def is_empty(self, item: bytes, /) -> bool:
        return not item

    @override
    def input_error(self) -> BaseException | None:
        return self._text.error

    @override
    def input_wait(self) -> float:
        return self._text.input_wait()

    @override
    def close(self) -> None:
        self._text.close()


def _check_voices(
    voices: Mapping[str, tts.VoiceProfile] | None,
) -> Mapping[str, tts.VoiceProfile]:
    if voices is None:
        return {}
    _settings.check_type("voices", voices, Mapping)
    for requested, voice in voices.items():
        _settings.check_type("voices", requested, str)
        _settings.check_type("voices", voice, tts.VoiceProfile)
    return dict(voices)
