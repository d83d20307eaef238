"""What the library iterates or closes, it advances and closes in one context to the end.

Each subject sets a context variable at its beginning and resets it at its end, as tracers do. That
raises in any other context.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar

import pytest
from typing_extensions import override

from builds import HAS_GIL
from resilience import FallbackGroup, State, STTFallback, TTSFallback, llm, stt, tts
from resilience.testing import FakeTTS, ReadText

LIMITS = pytest.mark.parametrize("limit", [None, 30.0], ids=["no limit", "limit"])
LIMIT = 30.0
VOICE = tts.VoiceProfile(id="any")
VARIABLE: ContextVar[str] = ContextVar("variable", default="the caller's")


class Traced:
    """An iterable that sets the variable for as long as it is iterated over."""

    def __init__(self, *items: str) -> None:
        """Yield some items."""
        self._items = items
        self.seen: list[str] = []
        self.ends = 0

    def __iter__(self) -> Iterator[str]:
        """Yield the items, and look at the variable each time."""
        token = VARIABLE.set("its own")
        try:
            for item in self._items:
                self.seen.append(VARIABLE.get())
                yield item
        finally:
            VARIABLE.reset(token)
            self.ends += 1


def in_thread(fn: Callable[[], object]) -> None:
    """Call a function in another thread, which has another context."""
    thread = threading.Thread(target=fn)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()


def close_in_thread(stream: object) -> None:
    """Close a stream in another thread."""
    in_thread(stream.close)  # type: ignore[attr-defined]


@LIMITS
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("end", [list, close_in_thread, lambda stream: stream.close()])
def test_a_stream(
    limit: float | None,
    end: Callable[[object], object],
    caplog: pytest.LogCaptureFixture,
    *,
    lazy: bool,
) -> None:
    """A provider's stream, whoever reads it and whoever closes it."""
    provider = Traced("a", "b", "c")
    group = FallbackGroup(provider, "primary", attempt_timeout=limit)

    stream = group.stream(iter, lazy=lazy)
    assert next(stream) == "a"
    end(stream)

    assert set(provider.seen) == {"its own"}
    assert provider.ends == 1
    assert VARIABLE.get() == "the caller's"
    assert caplog.records == []


@LIMITS
def test_a_stream_read_by_several_threads(limit: float | None) -> None:
    """One thread after the other may read a stream."""
    provider = Traced("a", "b", "c")
    stream = FallbackGroup(provider, "primary", attempt_timeout=limit).stream(iter, lazy=True)
    items: list[str] = []

    while len(items) < 3:
        in_thread(lambda: items.append(next(stream)))
    assert list(stream) == []

    assert items == ["a", "b", "c"]
    assert provider.ends == 1


def write(_request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
    """Write an answer, as a language model does."""
    return (llm.Chunk(content=each) for each in Traced("Hello ", "you."))


@LIMITS
def test_a_models_stream_as_text(limit: float | None) -> None:
    """A model's stream feeds a synthesiser, on whichever threads that reads it."""
    model = FallbackGroup(write, "model")
    speaker = TTSFallback(FakeTTS(), "speaker", attempt_timeout=limit)

    for _ in range(6):
        chunks = model.stream(lambda write: write(llm.CompletionRequest(messages=())))
        text = (chunk.content for chunk in chunks)
        assert b"".join(speaker.synthesize_stream(text, VOICE)) == b"Hello you."

    assert model.breakers["model"].state is State.CLOSED


class Threaded(tts.Provider):
    """A synthesiser that reads the text in a thread of its own."""

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        audio: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def send() -> None:
            for fragment in text:
                audio.put(fragment.encode())
            audio.put(b"")

        threading.Thread(target=send, daemon=True).start()
        yield from iter(lambda: audio.get(timeout=LIMIT), b"")

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        raise NotImplementedError

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


@LIMITS
@pytest.mark.parametrize("backup", [FakeTTS, Threaded])
def test_a_text_after_failover(limit: float | None, backup: Callable[[], tts.Provider]) -> None:
    """A text that one provider has begun to read, and another one ends."""
    text = Traced("One ", "two ", "three.")
    failing = FakeTTS([ReadText(2), ConnectionError()])
    speaker = TTSFallback(failing, "primary", attempt_timeout=limit)
    speaker.add_fallback("backup", backup(), attempt_timeout=limit)

    audio = b"".join(speaker.synthesize_stream(text, VOICE))

    assert audio == b"One two three."
    assert set(text.seen) == {"its own"}
    assert text.ends == 1


@LIMITS
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(
            close_in_thread,
            marks=pytest.mark.skipif(not HAS_GIL, reason="another thread frees what it has made"),
        ),
        lambda stream: stream.close(),
    ],
)
def test_a_text_that_is_not_read_to_its_end(
    limit: float | None, end: Callable[[object], object]
) -> None:
    """A text whose speech is closed is dropped, and so closed, in its own context."""
    text = Traced("One ", "two ", "three.")
    speaker = TTSFallback(FakeTTS(), "speaker", attempt_timeout=limit)

    audio = speaker.synthesize_stream(iter(text), VOICE)
    next(audio)
    end(audio)

    assert text.ends == 1
    assert VARIABLE.get() == "the caller's"


class Recogniser(stt.Provider, stt.SessionHandle):
    """A recogniser and its session, traced from its start to its close."""

    def __init__(self) -> None:
        """Hear two words."""
        self.heard = Traced("one", "two")
        self.tokens: list[object] = []

    @override
    def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
        self._session = iter(Traced("session"))
        next(self._session)
        return self

    @override
    def send_audio(self, audio: bytes) -> None:
        pass

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return iter(())

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        return (stt.Transcript(text=text, is_final=True) for text in self.heard)

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        pass

    @override
    def close(self) -> None:
        assert next(self._session, None) is None


@LIMITS
@pytest.mark.parametrize("close", [lambda session: session.close(), close_in_thread])
def test_a_session(limit: float | None, close: Callable[[object], object]) -> None:
    """A session is closed in the context in which it was started, whoever closes it."""
    recogniser = Recogniser()
    session = STTFallback(recogniser, "ears", attempt_timeout=limit).start_stream(
        stt.StreamConfig()
    )

    close(session)

    assert next(recogniser._session, None) is None


@LIMITS
def test_transcripts(limit: float | None) -> None:
    """Transcripts that one thread begins to read, and another one ends."""
    recogniser = Recogniser()
    group = STTFallback(recogniser, "ears", attempt_timeout=limit)
    session = group.start_stream(stt.StreamConfig())
    words: list[str] = []

    finals = session.finals()
    words.append(next(finals).text)
    in_thread(lambda: words.extend(each.text for each in finals))
    session.close()

    assert words == ["one", "two"]
    assert recogniser.heard.ends == 1


@LIMITS
def test_transcripts_that_are_left_early(limit: float | None) -> None:
    """Transcripts whose reader has gone are closed in their own context."""
    recogniser = Recogniser()
    group = STTFallback(recogniser, "ears", attempt_timeout=limit)

    with contextlib.closing(group.start_stream(stt.StreamConfig())) as session:
        for _ in session.finals():
            break

    assert recogniser.heard.ends == 1


@LIMITS
def test_the_text_sees_the_callers_variables(limit: float | None) -> None:
    """A text sees the variables as they were when its speech was asked for."""
    speaker = TTSFallback(FakeTTS(), "speaker", attempt_timeout=limit)
    token = VARIABLE.set("at the call")

    audio = speaker.synthesize_stream((VARIABLE.get() for _ in range(1)), VOICE)
    VARIABLE.reset(token)

    assert b"".join(audio) == b"at the call"
