"""Deepgram's recogniser and synthesiser, for the client of `deepgram-sdk` 7."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread, current_thread
from time import monotonic
from typing import Any, Protocol, final

from typing_extensions import override

from resilience import stt, tts
from resilience.exceptions import UnsupportedRequestError
from resilience.providers._shared import own_options
from resilience.providers._speech import (
    check_audio,
    check_speaking_style,
    choose_format,
    refuse,
    split_text,
)

_VENDOR = "deepgram"
_KEEP_ALIVE = 4.0  # seconds; after ten without a message the server closes the connection

_AUDIO = {"pcm_s16le": "linear16"} | {
    name: name
    for name in (
        *("alaw", "amr-nb", "amr-wb", "flac", "g729", "mulaw", "ogg-opus", "opus", "speex"),
    )
}
_MULTILINGUAL = {"nova-2", "nova-2-general", "nova-3", "nova-3-general", "nova-3-medical"}

_PCM_RATES = (24_000, 8_000, 16_000, 32_000, 48_000)
_FORMATS: Mapping[str, Mapping[int, Mapping[str, object]]] = {
    "pcm_s16le": {
        rate: {"encoding": "linear16", "container": "none", "sample_rate": rate}
        for rate in _PCM_RATES
    },
    **{
        name: {
            rate: {"encoding": name, "container": "none", "sample_rate": rate}
            for rate in (8_000, 16_000)
        }
        for name in ("mulaw", "alaw")
    },
    "wav": {rate: {"encoding": "linear16", "sample_rate": rate} for rate in _PCM_RATES},
    "flac": {
        rate: {"encoding": "flac", "sample_rate": rate}
        for rate in (48_000, 8_000, 16_000, 22_050, 32_000)
    },
    "mp3": {22_050: {"encoding": "mp3"}},
    "aac": {22_050: {"encoding": "aac"}},
    "opus": {48_000: {"encoding": "opus"}},
}


class _Client(Protocol):
    """The parts of `deepgram.DeepgramClient` that are used."""

    @property
    @abstractmethod
    def listen(self) -> Any: ...

    @property
    @abstractmethod
    def speak(self) -> Any: ...

    @property
    @abstractmethod
    def manage(self) -> Any: ...


@final
class DeepgramSTT(stt.Provider):
    """Speech recognition with Deepgram's models, over one websocket for each session.

    May be used by any number of threads.
    """

    def __init__(self, client: _Client, model: str, *, timeout: float = 10.0) -> None:
        """Use a client that the application makes and closes.

        Args:
            client: A `deepgram.DeepgramClient`.
            model: Name of the model, such as "nova-3". The models named "flux" have another
                interface and are not supported.
            timeout: Longest time in seconds between two messages of the server after `finish()`,
                and until its answer to `set_keywords`.
        """
        self._client = client
        self._model = model
        self._timeout = timeout

    @override
    def start_stream(self, config: stt.StreamConfig) -> "DeepgramSession":
        """Start a session; returns when the websocket is open.

        The client waits for that for at most ten seconds.

        Args:
            config: The audio of the session. If it has several channels, each is recognised
                separately. `extra["deepgram"]` has further arguments of the client's
                `listen.v1.connect`, such as `{"smart_format": "true", "diarize_model": "latest"}`.

        Returns:
            A session, which the caller closes.

        Raises:
            UnsupportedRequestError: The model does not support a setting of the configuration.
            Exception: The session cannot be started; the client's exception is raised unchanged.
        """
        options = _listen_options(self._model, config)
        connection = ExitStack()
        socket = connection.enter_context(self._client.listen.v1.connect(**options))
        try:
            return DeepgramSession(socket, connection, self._timeout)
        except BaseException:
            connection.close()
            raise


@final
class DeepgramSession(stt.SessionHandle):
    """A recognition session over a websocket.

    One thread receives messages, another sends keep-alive messages; `close()` ends both. May be
    used by any number of threads.

    `ends_utterance` of a final transcript is Deepgram's `speech_final`. An `UtteranceEnd` message
    is a final transcript without text that has `ends_utterance`. Other transcripts without text
    are discarded. `extra["deepgram"]` of a transcript is the message from which it was made.
    """

    def __init__(self, socket: Any, connection: ExitStack, timeout: float) -> None:
        """Start the threads for an open websocket."""
        self._socket = socket
        self._connection = connection
        self._timeout = timeout
        self._partials = SimpleQueue[stt.Transcript | None]()
        self._finals = SimpleQueue[stt.Transcript | None]()
        self._answers = SimpleQueue[Mapping[str, Any] | None]()
        self._unanswered = 0  # requests for other keywords
        self._error: Exception | None = None
        self._last_message = monotonic()
        self._finished = Event()
        self._keep_alive_stopped = Event()
        self._configuring = Lock()
        self._closing = Lock()  # taken once, by the thread that closes
        self._threads = [
            Thread(target=work, name=f"resilience-deepgram-{work.__name__}", daemon=True)
            for work in (self._receive, self._keep_alive)
        ]
        for thread in self._threads:
            thread.start()

    @override
    def send_audio(self, audio: bytes) -> None:
        self._check()
        if audio:  # an empty message would end the session
            self._socket.send_media(audio)

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return self._read(self._partials)

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        return self._read(self._finals)

    def finish(self) -> None:
        """Send the end of the audio; the transcripts end after the last words.

        Raises:
            Exception: The session is broken.
        """
        self._check()
        self._last_message = monotonic()
        self._finished.set()
        self._keep_alive_stopped.set()
        self._socket.send_close_stream()

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        request = _Json(type="Configure", keyterms=_key_terms(keywords))
        with (
            self._configuring
        ):  # Deepgram rejects a second request before it has answered the first
            self._socket.send_configure(request)
            self._unanswered += 1
            try:
                answer = self._answer()
            except Empty:
                msg = f"{_VENDOR} did not answer to new keywords"
                raise TimeoutError(msg) from None
        if answer is None:
            self._answers.put(None)
            self._check()
            msg = f"the session with {_VENDOR} has ended"
            raise ConnectionError(msg)
        if answer["type"] == "ConfigureFailure":
            msg = f"{_VENDOR} refused {keywords=}: {answer.get('description')}"
            raise UnsupportedRequestError(msg)

    def _answer(self) -> Mapping[str, Any] | None:
        """Return the answer to the last request, and discard late answers to earlier ones."""
        while True:
            answer = self._answers.get(timeout=self._timeout)
            self._unanswered -= 1
            if answer is None or not self._unanswered:
                return answer

    @override
    def close(self) -> None:
        if self._closing.acquire(blocking=False):
            self._keep_alive_stopped.set()
            self._connection.close()
            for thread in self._threads:
                if thread is not current_thread():  # a finalizer may run in any thread
                    thread.join()

    def _receive(self) -> None:
        """Put each message into its queue until the websocket is closed."""
        error: Exception | None = None
        try:
            for message in self._socket:
                self._last_message = monotonic()
                if message is not None:  # the client does not know every type of message
                    self._distribute(message.dict())
            if not self._finished.is_set():
                error = ConnectionError(f"{_VENDOR} closed the session before finish()")
        except Exception as raised:
            error = raised
        if not self._closing.locked():
            self._error = error
        self._keep_alive_stopped.set()
        for queue in (self._partials, self._finals, self._answers):
            queue.put(None)

    def _distribute(self, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        if kind == "Results":
            transcript = _transcript(message)
            if transcript.text or transcript.ends_utterance:
                (self._finals if transcript.is_final else self._partials).put(transcript)
        elif kind == "UtteranceEnd":
            self._finals.put(_end_of_utterance(message))
        elif kind in {"ConfigureSuccess", "ConfigureFailure"}:
            self._answers.put(message)
        elif kind == "Error":
            msg = f"{_VENDOR} reports an error: {message.get('description')}"
            raise ConnectionError(msg)

    def _keep_alive(self) -> None:
        while not self._keep_alive_stopped.wait(_KEEP_ALIVE):
            with suppress(Exception):  # the receiving thread reports it
                self._socket.send_keep_alive()

    def _read(self, queue: SimpleQueue[stt.Transcript | None]) -> Iterator[stt.Transcript]:
        while (transcript := self._next(queue)) is not None:
            yield transcript
        queue.put(None)  # for other readers
        self._check()

    def _next(self, queue: SimpleQueue[stt.Transcript | None]) -> stt.Transcript | None:
        while True:
            try:
                return queue.get(timeout=self._timeout)
            except Empty:
                # Before finish(), the speaker may be silent.
                silence = monotonic() - self._last_message
                if self._finished.is_set() and silence >= self._timeout:
                    msg = f"{_VENDOR} did not end the session after finish()"
                    raise TimeoutError(msg) from None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class _Json(dict[str, object]):
    """A message that the client can send, as it sends its own models."""

    def dict(self) -> "_Json":
        """Return this message, which the client encodes as JSON."""
        return self


def _listen_options(model: str, config: stt.StreamConfig) -> dict[str, Any]:
    if config.encoding not in _AUDIO:
        refuse(_VENDOR, "encoding", config.encoding)
    if config.language is None and model not in _MULTILINGUAL:
        refuse(f"{_VENDOR} model {model}", "language", None)
    return {
        "model": model,
        "encoding": _AUDIO[config.encoding],
        "sample_rate": config.sample_rate,
        "channels": config.channels,
        "multichannel": "true" if config.channels > 1 else None,
        "language": config.language or "multi",
        "interim_results": "true" if config.interim_results else "false",
        **_keyword_options(model, config.keywords),
        **own_options(_VENDOR, config.extra),
    }


def _keyword_options(model: str, keywords: Sequence[stt.Keyword]) -> dict[str, list[str]]:
    if model.startswith("nova-3"):
        return {"keyterm": _key_terms(keywords)}
    return {"keywords": [f"{keyword.text}:{keyword.boost:g}" for keyword in keywords]}


def _key_terms(keywords: Sequence[stt.Keyword]) -> list[str]:
    for keyword in keywords:
        if keyword.boost != 1:
            refuse(_VENDOR, "boost", keyword.boost)
    return [keyword.text for keyword in keywords]


def _transcript(message: Mapping[str, Any]) -> stt.Transcript:
    best = message["channel"]["alternatives"][0]
    words = tuple(_word(word) for word in best.get("words") or ())
    speakers = {word.speaker for word in words}
    return stt.Transcript(
        text=best["transcript"],
        is_final=message.get("is_final", False),
        confidence=best.get("confidence"),
        start=message["start"],
        duration=message["duration"],
        words=words,
        ends_utterance=message.get("speech_final", False),
        speaker=speakers.pop() if len(speakers) == 1 else None,
        channel=_channel(message["channel_index"]),
        language=next(iter(best.get("languages") or ()), None),
        extra={_VENDOR: message},
    )


def _word(word: Mapping[str, Any]) -> stt.Word:
    return stt.Word(
        text=word.get("punctuated_word") or word["word"],
        start=word["start"],
        duration=word["end"] - word["start"],
        confidence=word.get("confidence"),
        speaker=None if word.get("speaker") is None else str(word["speaker"]),
    )


def _end_of_utterance(message: Mapping[str, Any]) -> stt.Transcript:
    return stt.Transcript(
        text="",
        is_final=True,
        start=message["last_word_end"],
        ends_utterance=True,
        channel=_channel(message["channel"]),
        extra={_VENDOR: message},
    )


def _channel(index_and_count: Sequence[int]) -> int | None:
    index, count = index_and_count
    return index if count > 1 else None


@final
class DeepgramTTS(tts.Provider):
    """Speech of Deepgram's voices, one request for one or more sentences.

    The text is read sentence by sentence. Each request is streamed, with the timeout and
    the retries of the client. Audio is 16-bit PCM at 24 kHz, unless the voice requests another
    format.

    May be used by any number of threads.
    """

    def __init__(self, client: _Client) -> None:
        """Use a client that the application makes and closes.

        Args:
            client: A `deepgram.DeepgramClient`, made with `max_retries=0`.
        """
        self._client = client

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        """Synthesise a text as it arrives.

        Args:
            text: Fragments of the text.
            voice: Voice to speak with; its id is a model, such as "aura-2-thalia-en".
                `extra["deepgram"]` has further arguments of the client's
                `speak.v1.audio.generate`, such as `{"bit_rate": 48000}`.

        Returns:
            The audio in order. Closing it closes the response that is being read.

        Raises:
            UnsupportedRequestError: Deepgram does not support a setting of the voice.
            Exception: The request failed, or the response has no audio; raised by iterating.
        """
        return self._speak(split_text(text, voice), _speak_options(voice))

    def _speak(self, texts: Iterable[str], options: Mapping[str, Any]) -> Iterator[bytes]:
        generate = self._client.speak.v1.audio.with_raw_response.generate
        for text in texts:
            with generate(text=text, **options) as response:
                yield from check_audio(_VENDOR, response.headers, response.data)

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        models = self._client.manage.v1.models.list().tts
        if not models:
            msg = f"{_VENDOR} answered without voices"
            raise ConnectionError(msg)
        return tuple(
            tts.VoiceProfile(
                id=model.canonical_name,
                name=model.name or "",
                language=next(iter(model.languages or ()), None),
            )
            for model in models
        )

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        msg = f"{_VENDOR} does not clone voices"
        raise UnsupportedRequestError(msg)


def _speak_options(voice: tts.VoiceProfile) -> dict[str, Any]:
    check_speaking_style(_VENDOR, voice, slowest=0.7, fastest=1.5, instructions=False)
    language = (voice.language or "").partition("-")[0].lower()
    if language and language != voice.id.rpartition("-")[2]:  # the id ends with it
        refuse(f"{_VENDOR} voice {voice.id}", "language", voice.language)
    return {
        "model": voice.id,
        "speed": None if voice.speed == 1 else voice.speed,
        **choose_format(_VENDOR, voice, _FORMATS),
        **own_options(_VENDOR, voice.extra),
    }
