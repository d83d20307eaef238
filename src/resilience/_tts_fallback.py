"""Speech synthesisers, served by a group behind the interface of one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import final

from typing_extensions import override

from resilience import _settings, tts
from resilience._adapter import Adapter
from resilience._fallback_config import FallbackConfig
from resilience._stream import Stream, StreamRequest, serve
from resilience._text import ReplayedText
from resilience.exceptions import EmptyStreamError


@final
class TTSFallback(Adapter[tts.Provider], tts.Provider):
    """Speech synthesisers behind one `tts.Provider`: the first healthy one speaks.

    May be used by any number of threads, if the providers may.
    """

    def __init__(
        self,
        primary: tts.Provider,
        primary_name: str,
        config: FallbackConfig | None = None,
        *,
        voices: Mapping[str, tts.VoiceProfile] | None = None,
        attempt_timeout: float | timedelta | None = None,
    ) -> None:
        """Make a group of one provider.

        Args:
            primary: Provider that is tried first.
            primary_name: Its name, and its breaker's.
            config: Settings, the defaults if omitted.
            voices: The primary's own voices that stand in for others, by the ids of those. A
                voice that is not mapped is passed on as it is.
            attempt_timeout: Seconds that an attempt with the primary may take; overrides the
                setting of the group. 0 for no limit.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is empty, or the timeout negative or not finite.
        """
        super().__init__(
            _with_voices(primary, voices), primary_name, config, attempt_timeout=attempt_timeout
        )

    @override
    def add_fallback(
        self,
        name: str,
        provider: tts.Provider,
        *,
        voices: Mapping[str, tts.VoiceProfile] | None = None,
        attempt_timeout: float | timedelta | None = None,
    ) -> None:
        """Add a provider, to be tried after those that are there. Allowed during traffic.

        Args:
            name: Its name, and its breaker's.
            provider: The provider.
            voices: Its own voices that stand in for others, by the ids of those. A voice that is
                not mapped is passed on as it is.
            attempt_timeout: Seconds that an attempt with it may take; overrides the setting of
                the group. 0 for no limit.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is empty or taken, or the timeout negative or not finite.
        """
        super().add_fallback(name, _with_voices(provider, voices), attempt_timeout=attempt_timeout)

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Stream[bytes]:
        """Return the speech of the first provider that has audio.

        Each attempt reads the text from its beginning, so no fragment is lost or spoken twice. The
        first `next()` waits for audio and fails over; hence the text may be fed by the same thread
        after this call. An error of the text itself goes to the caller as it is.

        Args:
            text: Fragments of the text; usually an iterator that a model feeds.
            voice: Voice to speak with.

        Returns:
            The audio in chunks, in the format of the provider.

        Raises:
            AllFailedError: No provider had audio. The first `next()` may raise it too.
        """
        speech = _Speech(text, voice)
        return serve(self._group.run(speech.error), speech, lazily=True)

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        """Return the voices of the first provider that can list them.

        Returns:
            Voices of one provider; others may have none of them.

        Raises:
            AllFailedError: No provider could list its voices.
        """
        return self._group.execute(lambda provider: provider.list_voices())

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Make a voice with the first provider that can.

        Args:
            samples: Recordings of the voice.

        Returns:
            A voice of one provider; the others do not know it.

        Raises:
            AllFailedError: No provider could make the voice.
        """
        return self._group.execute(lambda provider: provider.clone_voice(samples))


@final
class _Speech(StreamRequest[tts.Provider, bytes]):
    """A request for speech, whose text every attempt reads from its beginning."""

    def __init__(self, text: Iterable[str], voice: tts.VoiceProfile) -> None:
        self._text = ReplayedText(text)
        self._voice = voice

    @override
    def opener(self) -> Callable[[tts.Provider], Iterable[bytes]]:
        reader = self._text.reader()  # this attempt's own, in whichever thread it runs
        return lambda provider: provider.synthesize_stream(reader, self._voice)

    @override
    def opened(self, *, empty: bool) -> None:
        if not empty:
            self._text.commit()
        elif self._text.says_something():
            raise EmptyStreamError

    @override
    def is_blank(self, item: bytes, /) -> bool:
        return not item

    @override
    def error(self) -> Exception | None:
        return self._text.error

    @override
    def idle(self) -> float:
        return self._text.idle()

    @override
    def ended(self) -> None:
        self._text.end()


@final
class _Voiced(tts.Provider):
    """A provider some of whose voices stand in for others."""

    def __init__(self, provider: tts.Provider, stand_ins: Mapping[str, tts.VoiceProfile]) -> None:
        self._provider = provider
        self._stand_ins = dict(stand_ins)

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterable[bytes]:
        return self._provider.synthesize_stream(text, self._stand_ins.get(voice.id, voice))

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        return self._provider.list_voices()

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        return self._provider.clone_voice(samples)


def _with_voices(
    provider: tts.Provider, voices: Mapping[str, tts.VoiceProfile] | None
) -> tts.Provider:
    if not voices:
        return provider
    _settings.kind("voices", voices, Mapping)
    for requested, voice in voices.items():
        _settings.kind("voices", requested, str)
        _settings.kind("voices", voice, tts.VoiceProfile)
    return _Voiced(provider, voices)
