"""The synthesiser of ElevenLabs, for the client of `elevenlabs` 2.70."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, final

from typing_extensions import override

from resilience import tts
from resilience.providers._shared import own_options
from resilience.providers._speech import (
    check_audio,
    check_speaking_style,
    choose_format,
    refuse,
    split_text,
)

_VENDOR = "elevenlabs"
_RATES = (24_000, 8_000, 16_000, 22_050, 32_000, 44_100, 48_000)
_FORMATS: Mapping[str, Mapping[int, str]] = {
    "pcm_s16le": {rate: f"pcm_{rate}" for rate in _RATES},
    "wav": {rate: f"wav_{rate}" for rate in _RATES},
    "mulaw": {8_000: "ulaw_8000"},
    "alaw": {8_000: "alaw_8000"},
    "mp3": {44_100: "mp3_44100_128", 22_050: "mp3_22050_32", 24_000: "mp3_24000_48"},
    "opus": {48_000: "opus_48000_128"},
}
_ENGLISH = {"eleven_flash_v2", "eleven_turbo_v2", "eleven_monolingual_v1"}
_NO_RETRIES = {
    "max_retries": 0
}  # the client has no such setting of its own; it never retries a stream


class _Client(Protocol):
    """The parts of `elevenlabs.ElevenLabs` that are used."""

    @property
    @abstractmethod
    def text_to_speech(self) -> Any: ...

    @property
    @abstractmethod
    def voices(self) -> Any: ...


@final
class ElevenLabsTTS(tts.Provider):
    """Speech of the voices of ElevenLabs, one request for one or more sentences.

    The text is read sentence by sentence. Each request is streamed and not retried; its timeout is
    the client's. Audio is 16-bit PCM at 24 kHz unless the voice requests another format.

    May be used by any number of threads.
    """

    def __init__(self, client: _Client, model: str) -> None:
        """Use a client that the application makes and closes.

        Args:
            client: An `elevenlabs.ElevenLabs`.
            model: Name of the model, such as "eleven_flash_v2_5".
        """
        self._client = client
        self._model = model

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        """Synthesise a text as it arrives.

        Args:
            text: Fragments of the text.
            voice: Voice to speak with. Only the part of its language before the first hyphen is
                sent. `extra["elevenlabs"]` has further arguments of the client's
                `text_to_speech.stream`, such as `{"voice_settings": {"stability": 0.4}}`.

        Returns:
            The audio in order. Closing it closes the response that is being read.

        Raises:
            UnsupportedRequestError: The model does not support a setting of the voice.
            Exception: The request failed, or the response has no audio; raised by iterating.
        """
        return self._speak(split_text(text, voice), voice.id, _options(self._model, voice))

    def _speak(
        self, texts: Iterable[str], voice_id: str, options: Mapping[str, Any]
    ) -> Iterator[bytes]:
        stream = self._client.text_to_speech.with_raw_response.stream
        for text in texts:
            with stream(voice_id, text=text, **options) as response:
                yield from check_audio(_VENDOR, response.headers, response.data)

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        voices: list[tts.VoiceProfile] = []
        token: str | None = None
        while True:
            page = self._client.voices.search(
                page_size=100, next_page_token=token, request_options=_NO_RETRIES
            )
            voices += [
                tts.VoiceProfile(id=voice.voice_id, name=voice.name or "") for voice in page.voices
            ]
            token = page.next_page_token if page.has_more else None
            if token is None:
                break
        if not voices:
            msg = f"{_VENDOR} answered without voices"
            raise ConnectionError(msg)
        return tuple(voices)

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        name = "Cloned voice"
        made = self._client.voices.ivc.create(
            name=name, files=list(samples), request_options=_NO_RETRIES
        )
        return tts.VoiceProfile(id=made.voice_id, name=name)


def _options(model: str, voice: tts.VoiceProfile) -> dict[str, Any]:
    check_speaking_style(_VENDOR, voice, slowest=0.7, fastest=1.2, instructions=False)
    own = own_options(_VENDOR, voice.extra)
    given = dict(own.pop("voice_settings", ()))  # a mapping, or the client's `VoiceSettings`
    settings = {name: value for name, value in given.items() if value is not None}
    if voice.speed != 1:
        settings = {"speed": voice.speed, **settings}
    options = {
        "model_id": model,
        "output_format": choose_format(_VENDOR, voice, _FORMATS),
        **({"voice_settings": settings} if settings else {}),
        **({"language_code": _language_code(model, voice.language)} if voice.language else {}),
    }
    return {**options, **own}


def _language_code(model: str, language: str) -> str:
    code = language.partition("-")[0].lower()
    # These models detect the language from the text.
    if "multilingual" in model or (model in _ENGLISH and code != "en"):
        refuse(f"{_VENDOR} model {model}", "language", language)
    return code
