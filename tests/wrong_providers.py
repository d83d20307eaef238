"""Providers that keep their contracts, and functions that make wrong ones of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar, cast

from typing_extensions import override

from resilience import UnsupportedRequestError, llm, stt, tts

T = TypeVar("T")

TIMEOUT = 10.0
HANGING = Event()
"""Ends the hanging calls when a test has ended."""

EVERYTHING = llm.ModelCapabilities(
    context_window=8192,
    supports_tools=True,
    supports_vision=True,
    supports_structured_output=True,
    supports_reasoning=True,
    supports_audio=True,
)
ANSWER = llm.CompletionResponse(
    content="Hello.",
    finish_reason="stop",
    usage=llm.Usage(prompt_tokens=3, completion_tokens=2),
)
CHUNKS = (
    llm.Chunk(),
    llm.Chunk(content="Hel"),
    llm.Chunk(content="lo."),
    llm.Chunk(finish_reason="stop"),
    llm.Chunk(usage=llm.Usage(prompt_tokens=3, completion_tokens=2)),
)
WEATHER = llm.ToolDefinition(name="weather")
CALL = llm.ToolCall(id="c-1", name="weather", arguments='{"city": "Oslo"}')


def hang(*_arguments: object) -> None:
    """Return when the test has ended."""
    HANGING.wait(TIMEOUT)


def refuse(*_arguments: object) -> Any:
    """Raise like a client whose server cannot be reached."""
    msg = "refused"
    raise ConnectionError(msg)


def wrong(base: type[T], **methods: Callable[..., object] | None) -> type[T]:
    """Return a class of providers or sessions with some replaced methods."""
    return cast("type[T]", type(f"Wrong{base.__name__}", (base,), methods))


class Model(llm.Provider):
    """A model that keeps its contract; it calls a tool if there is one."""

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        if request.tools:
            return llm.CompletionResponse(tool_calls=(CALL,), finish_reason="tool_calls")
        return ANSWER

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
        if request.tools:
            yield llm.Chunk()
            yield llm.Chunk(tool_calls=(CALL,), finish_reason="tool_calls")
        else:
            yield from CHUNKS

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        return len(messages)

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return EVERYTHING


class TextModel(Model):
    """A model that keeps its contract, and supports only text."""

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        self._check(request)
        return ANSWER

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterable[llm.Chunk]:
        self._check(request)
        return list(CHUNKS)

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        msg = "no tokeniser"
        raise UnsupportedRequestError(msg)

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return llm.ModelCapabilities(context_window=8192)

    def _check(self, request: llm.CompletionRequest) -> None:
        has_files = any(message.attachments for message in request.messages)
        settings = (request.response_format, request.reasoning_effort, request.seed)
        if has_files or request.tools or any(settings):
            msg = "text only"
            raise UnsupportedRequestError(msg)


class Synthesiser(tts.Provider):
    """A synthesiser that keeps its contract: it speaks each fragment as it arrives."""

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterable[bytes]:
        if voice.speed != 1.0:
            msg = "one speed only"
            raise UnsupportedRequestError(msg)
        for fragment in text:
            yield fragment.encode()

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        raise NotImplementedError

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


class Line(stt.SessionHandle):
    """A session that keeps its contract: it recognises a word in each piece of audio."""

    def __init__(self) -> None:
        """Make queues of partial and final transcripts."""
        self.queues: dict[bool, SimpleQueue[Any]] = {False: SimpleQueue(), True: SimpleQueue()}

    @override
    def send_audio(self, audio: bytes) -> None:
        for is_final, queue in self.queues.items():
            queue.put(stt.Transcript(text="hello", is_final=is_final, confidence=0.5))

    @override
    def partials(self) -> Iterable[stt.Transcript]:
        return self.read(self.queues[False])

    @override
    def finals(self) -> Iterable[stt.Transcript]:
        return self.read(self.queues[True])

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """End the transcripts."""
        self.end()

    @override
    def close(self) -> None:
        self.end()

    def end(self, error: Exception | None = None) -> None:
        """Signal the end or an exception to the readers."""
        for queue in self.queues.values():
            queue.put(error)

    def read(self, queue: SimpleQueue[Any]) -> Iterator[stt.Transcript]:
        """Yield transcripts as they arrive."""
        while isinstance(item := queue.get(timeout=TIMEOUT), stt.Transcript):
            yield item
        queue.put(item)
        if item is not None:
            raise item


class Recogniser(stt.Provider):
    """A recogniser that keeps its contract."""

    @override
    def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
        if config.channels != 1 or config.encoding != "pcm_s16le":
            raise NotImplementedError
        return Line()


def recogniser(**methods: Callable[..., object] | None) -> type[Recogniser]:
    """Return a class of recognisers whose sessions have some replaced methods."""
    return wrong(Recogniser, start_stream=lambda _self, _config: wrong(Line, **methods)())
