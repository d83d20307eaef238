"""The synthesiser of OpenAI, for the client of `openai` 3."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, final

from typing_extensions import override

from resilience import tts
from resilience.exceptions import UnsupportedRequestError
from resilience.providers._shared import own_options
from resilience.providers._speech import (
    check_audio,
    check_speaking_style,
    choose_format,
    refuse,
    split_text,
)

_SPEECH_FORMATS: Mapping[str, Mapping[int, str]] = {
    "pcm_s16le": {24_000: "pcm"},
    **{name: {24_000: name} for name in ("mp3", "aac", "flac", "wav")},
    "opus": {48_000: "opus"},
}


class _SpeechClient(Protocol):
    """The parts of `openai.OpenAI` that are used for speech."""

    @property
    @abstractmethod
    def audio(self) -> Any: ...


@final
class OpenAITTS(tts.Provider):
    """Speech of OpenAI's voices, one request for one or more sentences.

    The text is read sentence by sentence. Each request is streamed, with the timeout and
    the retries of the client. Audio is 16-bit PCM at 24 kHz, unless the voice requests another
    format.

    May be used by any number of threads.
    """

    def __init__(self, client: _SpeechClient, model: str) -> None:
        """Use a client that the application makes and closes.

        Args:
            client: An `openai.OpenAI`, made with a timeout and `max_retries=0`.
            model: Name of the model, such as "gpt-4o-mini-tts".
        """
        self._client = client
        self._model = model

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        """Synthesise a text as it arrives.

        Args:
            text: Fragments of the text.
            voice: Voice to speak with. Its language must be None, because the models detect it
                from the text. `extra["openai"]` has further arguments of the client's
                `audio.speech.create`.

        Returns:
            The audio in order. Closing it closes the response that is being read.

        Raises:
            UnsupportedRequestError: The model does not support a setting of the voice.
            Exception: The request failed, or the response has no audio; raised by iterating.
        """
        return self._speak(split_text(text, voice), _speech_options(self._model, voice))

    def _speak(self, texts: Iterable[str], options: Mapping[str, Any]) -> Iterator[bytes]:
        create = self._client.audio.speech.with_streaming_response.create
        for text in texts:
            with create(input=text, **options) as response:
                yield from check_audio("openai", response.headers, response.iter_bytes())

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        msg = "openai has no list of voices"
        raise UnsupportedRequestError(msg)

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        msg = "openai makes no voices without the recorded consent of the speaker"
        raise UnsupportedRequestError(msg)


def _speech_options(model: str, voice: tts.VoiceProfile) -> dict[str, Any]:
    has_instructions = not model.startswith("tts-1")
    check_speaking_style("openai", voice, slowest=0.25, fastest=4.0, instructions=has_instructions)
    if voice.language:
        refuse("openai", "language", voice.language)
    options = {
        "model": model,
        "voice": voice.id,
        "response_format": choose_format("openai", voice, _SPEECH_FORMATS),
        **({"speed": voice.speed} if voice.speed != 1 else {}),
        **({"instructions": voice.instructions} if voice.instructions else {}),
    }
    return {**options, **own_options("openai", voice.extra)}
