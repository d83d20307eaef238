"""Providers for the clients of four vendors, written as an application writes them.

Each client retries nothing by itself and has a timeout, which is for each read. With `lazy` the
work of a stream or session begins when it is first used, else with the call that returns it.
"""

import ssl
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from queue import Empty, SimpleQueue
from typing import final

import anthropic
import httpx
import openai
from anthropic.lib.streaming import ParsedMessageStreamEvent
from anthropic.types import MessageParam, RawMessageStreamEvent
from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from deepgram.listen.v1.socket_client import V1SocketClient
from deepgram.listen.v1.types.listen_v1results import ListenV1Results
from elevenlabs.client import ElevenLabs
from elevenlabs.core.request_options import RequestOptions
from openai.types.chat import ChatCompletionChunk, ChatCompletionUserMessageParam
from typing_extensions import override

from integration.opening import open_at_first_next, open_at_once
from integration.speech import SAMPLE_RATE, VOICES
from resilience import llm, stt, tts

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load them is slow
MAX_TOKENS = 8  # where the request does not say


def _whole(chunks: Iterator[llm.Chunk]) -> Iterator[llm.Chunk]:
    """Raise if an answer has no end, which no client does."""
    last = None
    for last in chunks:
        yield last
    if last is not None and last.finish_reason is None:
        msg = "the answer breaks off"
        raise ConnectionError(msg)


class _Model(llm.Provider):
    """What all language models here have in common."""

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        return sum(len(message.content) for message in messages) // 4

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return llm.ModelCapabilities(context_window=8192)

    @abstractmethod
    def close(self) -> None:
        """Close the client."""


@final
class OpenAIModel(_Model):
    """A model with the client `openai`."""

    def __init__(self, address: str, name: str, *, timeout: float, lazy: bool = False) -> None:
        """Talk to a server about the model with a name."""
        self._client = openai.OpenAI(
            api_key="-", base_url=f"http://{address}/v1", timeout=timeout, max_retries=0
        )
        self._name = name
        self._lazy = lazy

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        completion = self._client.chat.completions.create(
            model=self._name,
            max_tokens=request.max_tokens,
            messages=_openai_messages(request),
            stream=False,
        )
        choice = completion.choices[0]
        return llm.CompletionResponse(
            content=choice.message.content or "", finish_reason=choice.finish_reason
        )

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        def create() -> openai.Stream[ChatCompletionChunk]:
            return self._client.chat.completions.create(
                model=self._name,
                max_tokens=request.max_tokens,
                messages=_openai_messages(request),
                stream=True,
            )

        def read(stream: openai.Stream[ChatCompletionChunk]) -> Iterator[llm.Chunk]:
            for chunk in stream:
                choice = chunk.choices[0]
                yield llm.Chunk(
                    content=choice.delta.content or "", finish_reason=choice.finish_reason
                )

        return (open_at_first_next if self._lazy else open_at_once)(
            create, lambda stream: _whole(read(stream))
        )

    @override
    def close(self) -> None:
        self._client.close()


def _openai_messages(request: llm.CompletionRequest) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": message.content} for message in request.messages]


@final
class AnthropicModel(_Model):
    """A model with the client `anthropic`; lazily, with its helper for streams."""

    def __init__(self, address: str, name: str, *, timeout: float, lazy: bool = False) -> None:
        """Talk to a server about the model with a name."""
        self._client = anthropic.Anthropic(
            api_key="-", base_url=f"http://{address}", timeout=timeout, max_retries=0
        )
        self._name = name
        self._lazy = lazy

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        message = self._client.messages.create(
            model=self._name,
            max_tokens=request.max_tokens or MAX_TOKENS,
            messages=_anthropic_messages(request),
        )
        text = "".join(block.text for block in message.content if block.type == "text")
        return llm.CompletionResponse(content=text, finish_reason=message.stop_reason)

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        if self._lazy:
            return open_at_first_next(
                lambda: self._client.messages.stream(
                    model=self._name,
                    max_tokens=request.max_tokens or MAX_TOKENS,
                    messages=_anthropic_messages(request),
                ),
                lambda events: _whole(_anthropic_chunks(events)),
            )
        return open_at_once(
            lambda: self._client.messages.create(
                model=self._name,
                max_tokens=request.max_tokens or MAX_TOKENS,
                messages=_anthropic_messages(request),
                stream=True,
            ),
            lambda events: _whole(_anthropic_chunks(events)),
        )

    @override
    def close(self) -> None:
        self._client.close()


def _anthropic_messages(request: llm.CompletionRequest) -> list[MessageParam]:
    return [{"role": "user", "content": message.content} for message in request.messages]


def _anthropic_chunks(
    events: Iterable[RawMessageStreamEvent | ParsedMessageStreamEvent],
) -> Iterator[llm.Chunk]:
    for event in events:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            yield llm.Chunk(content=event.delta.text)
        elif event.type == "message_delta":
            yield llm.Chunk(finish_reason=event.delta.stop_reason)


class _Voices(tts.Provider):
    """What all synthesisers here have in common: the client, and what they cannot do."""

    def __init__(self, address: str, *, timeout: float, lazy: bool = False) -> None:
        """Talk to a server."""
        self._http = httpx.Client(timeout=timeout, verify=NO_CERTIFICATES)
        self._url = f"http://{address}"
        self._timeout = timeout
        self._lazy = lazy

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        return tuple(VOICES.values())

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError

    def close(self) -> None:
        """Close the client."""
        self._http.close()


@final
class ElevenLabsVoices(_Voices):
    """Speech with the client `elevenlabs`."""

    def __init__(self, address: str, *, timeout: float, lazy: bool = False) -> None:
        """Talk to a server."""
        super().__init__(address, timeout=timeout, lazy=lazy)
        self._client = ElevenLabs(
            api_key="-", base_url=self._url, timeout=timeout, httpx_client=self._http
        )

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        options = RequestOptions(max_retries=0)
        if self._lazy:
            return self._client.text_to_speech.stream(
                voice.id,
                text="".join(text),
                output_format="pcm_16000",
                request_options=options,
            )
        return open_at_once(
            lambda: self._client.text_to_speech.with_raw_response.stream(
                voice.id,
                text="".join(text),
                output_format="pcm_16000",
                request_options=options,
            ),
            lambda response: response.data,
        )


@final
class DeepgramVoices(_Voices):
    """Speech with the client `deepgram-sdk`."""

    def __init__(self, address: str, *, timeout: float, lazy: bool = False) -> None:
        """Talk to a server."""
        super().__init__(address, timeout=timeout, lazy=lazy)
        self._client = _deepgram(address, self._http)

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        if self._lazy:
            audio: Iterator[bytes] = self._client.speak.v1.audio.generate(
                text="".join(text),
                model=voice.id,
                encoding="linear16",
                container="none",
                sample_rate=SAMPLE_RATE,
            )
            return audio
        return open_at_once(
            lambda: self._client.speak.v1.audio.with_raw_response.generate(
                text="".join(text),
                model=voice.id,
                encoding="linear16",
                container="none",
                sample_rate=SAMPLE_RATE,
            ),
            lambda response: response.data,
        )


@final
class DeepgramEars(stt.Provider):
    """Recognition with the client `deepgram-sdk`, over a WebSocket."""

    def __init__(self, address: str, *, timeout: float, lazy: bool = False) -> None:
        """Talk to a server; the timeout is for each transcript."""
        self._http = httpx.Client(timeout=timeout, verify=NO_CERTIFICATES)
        self._client = _deepgram(address, self._http)
        self._timeout = timeout
        self._lazy = lazy

    @override
    def start_stream(self, config: stt.StreamConfig) -> "DeepgramSession":
        session = DeepgramSession(
            lambda: self._client.listen.v1.connect(
                model="nova-3",
                encoding="linear16",
                sample_rate=config.sample_rate,
                language=config.language,
                keyterm=[keyword.text for keyword in config.keywords],
            ),
            self._timeout,
        )
        if not self._lazy:
            session.connect()
        return session

    def close(self) -> None:
        """Close the client."""
        self._http.close()


@final
class DeepgramSession(stt.SessionHandle):
    """A WebSocket, read by a thread of its own."""

    def __init__(
        self, connect: Callable[[], AbstractContextManager[V1SocketClient]], timeout: float
    ) -> None:
        """Connect when it is first used."""
        self._connect = connect
        self._timeout = timeout
        self._connection = ExitStack()
        self._socket: V1SocketClient | None = None
        self._reader: threading.Thread | None = None
        self._finals = SimpleQueue[stt.Transcript | Exception | None]()
        self._closing = threading.Event()

    def connect(self) -> V1SocketClient:
        """Connect, if that is still to be done."""
        if self._socket is None:
            self._socket = self._connection.enter_context(self._connect())
            self._reader = threading.Thread(target=self._read, args=(self._socket,))
            self._reader.start()
        return self._socket

    def _read(self, socket: V1SocketClient) -> None:
        try:
            for message in socket:
                if isinstance(message, ListenV1Results) and message.is_final:
                    text = message.channel.alternatives[0].transcript
                    self._finals.put(stt.Transcript(text=text, is_final=True))
            if not self._closing.is_set():
                self._finals.put(ConnectionError("the session ended by itself"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader of finals gets it
            self._finals.put(error)
        self._finals.put(None)

    @override
    def send_audio(self, audio: bytes) -> None:
        self.connect().send_media(audio)

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return iter(())

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        while (final := self._next()) is not None:
            if isinstance(final, Exception):
                raise final
            yield final

    def _next(self) -> stt.Transcript | Exception | None:
        try:
            return self._finals.get(timeout=self._timeout)
        except Empty:
            msg = "no transcript came"
            raise TimeoutError(msg) from None

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        raise NotImplementedError

    @override
    def close(self) -> None:
        self._closing.set()
        self._connection.close()
        if self._reader is not None:
            self._reader.join()


def _deepgram(address: str, client: httpx.Client) -> DeepgramClient:
    url = f"ws://{address}"
    environment = DeepgramClientEnvironment(
        base=f"http://{address}", production=url, agent=url, agent_rest=url
    )
    return DeepgramClient(api_key="-", environment=environment, httpx_client=client, max_retries=0)
