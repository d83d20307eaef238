"""The three kinds of providers, each served by a group behind the provider's own interface."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Generic, TypeVar, final

from typing_extensions import override

from resilience import llm, stt, tts
from resilience._circuit_breaker import CircuitBreaker
from resilience._fallback import FallbackGroup
from resilience._fallback_config import FallbackConfig
from resilience._session import Session
from resilience._stream import Stream, StreamRequest, serve
from resilience._text import ReplayedText
from resilience.exceptions import EmptyStreamError

T = TypeVar("T")


class _Adapter(Generic[T]):
    """A group of providers of type T."""

    def __init__(
        self,
        primary: T,
        primary_name: str,
        config: FallbackConfig | None = None,
        *,
        attempt_timeout: float | timedelta | None = None,
    ) -> None:
        """Make a group of one provider.

        Args:
            primary: Provider that is tried first.
            primary_name: Its name, and its breaker's.
            config: Settings, the defaults if omitted.
            attempt_timeout: Seconds that an attempt with the primary may take; overrides the
                setting of the group. 0 for no limit.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is empty, or the timeout negative or not finite.
        """
        self._group = FallbackGroup(primary, primary_name, config, attempt_timeout=attempt_timeout)

    def add_fallback(
        self, name: str, provider: T, *, attempt_timeout: float | timedelta | None = None
    ) -> None:
        """Add a provider, to be tried after those that are there. Allowed during traffic.

        Args:
            name: Its name, and its breaker's.
            provider: The provider.
            attempt_timeout: Seconds that an attempt with it may take; overrides the setting of
                the group. 0 for no limit.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is empty or taken, or the timeout negative or not finite.
        """
        self._group.add_fallback(name, provider, attempt_timeout=attempt_timeout)

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers by the names of their providers, in order; a read-only snapshot."""
        return self._group.breakers


@final
class LLMFallback(_Adapter[llm.Provider], llm.Provider):
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
class STTFallback(_Adapter[stt.Provider], stt.Provider):
    """Speech recognisers behind one `stt.Provider`: the first healthy one listens.

    May be used by any number of threads, if the providers may.
    """

    @override
    def start_stream(self, config: stt.StreamConfig) -> Session:
        """Start a session with the first provider that can.

        The life of the session is one call to the provider's breaker. It failed if sending audio
        or reading transcripts raised, and succeeded if it was closed otherwise; so close it.

        Args:
            config: Audio format, language and keywords.

        Returns:
            A session that hands everything through to the provider's own.

        Raises:
            AllFailedError: No provider started a session.
        """
        run = self._group.run()
        call, session = run.begin(
            lambda call: call.bounded(
                lambda provider: provider.start_stream(config), lambda session: session.close()
            )
        )
        run.forget()
        return Session(call, session)


@final
class TTSFallback(_Adapter[tts.Provider], tts.Provider):
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
    def error(self) -> Exception | None:
        return self._text.error

    @override
    def idle(self) -> float:
        return self._text.idle()

    @override
    def ended(self) -> None:
        self._text.reader()  # cuts off the one before


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
    return _Voiced(provider, voices) if voices else provider
