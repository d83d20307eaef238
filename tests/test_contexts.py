"""Every iterable is advanced and closed by the library in one context.

The iterables of these tests set a context variable at their beginning and reset it at their end, as
tracers do. A reset raises in any other context.
"""

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Self

import pytest
from typing_extensions import override

from builds import HAS_GIL
from helpers import VOICE, Handle, Recogniser, Synthesiser, each_limit, in_thread
from resilience import FallbackGroup, State, STTFallback, STTSession, TTSFallback, llm, stt, tts
from resilience.testing import FakeTTS, ReadText

VARIABLE: ContextVar[str] = ContextVar("variable", default="the caller's")


class Traced:
    """An iterable that sets the variable for as long as it is iterated over."""

    def __init__(self, *items: str) -> None:
        """Yield some items."""
        self._items = items
        self.seen: list[str] = []
        self.ends = 0

    def __iter__(self) -> Iterator[str]:
        """Yield the items, and read the variable each time."""
        token = VARIABLE.set("its own")
        try:
            for item in self._items:
                self.seen.append(VARIABLE.get())
                yield item
        finally:
            VARIABLE.reset(token)
            self.ends += 1


def close_in_thread(stream: object) -> None:
    """Close a stream in another thread."""
    in_thread(stream.close)  # type: ignore[attr-defined]


@each_limit
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("end", [list, close_in_thread, lambda stream: stream.close()])
def test_a_stream(
    limit: float | None,
    end: Callable[[object], object],
    caplog: pytest.LogCaptureFixture,
    *,
    lazy: bool,
) -> None:
    """A provider's stream keeps its context, whichever threads read and close it."""
    provider = Traced("a", "b", "c")
    group = FallbackGroup(provider, "primary", attempt_timeout=limit)

    stream = group.stream(iter, lazy=lazy)
    assert next(stream) == "a"
    end(stream)

    assert set(provider.seen) == {"its own"}
    assert provider.ends == 1
    assert VARIABLE.get() == "the caller's"
    assert caplog.records == []


@each_limit
def test_a_stream_read_by_several_threads(limit: float | None) -> None:
    """A stream keeps its context if one thread after the other reads it."""
    provider = Traced("a", "b", "c")
    stream = FallbackGroup(provider, "primary", attempt_timeout=limit).stream(iter, lazy=True)
    items: list[str] = []

    while len(items) < 3:
        in_thread(lambda: items.append(next(stream)))
    assert list(stream) == []

    assert items == ["a", "b", "c"]
    assert provider.ends == 1


class TracedAtOnce(Iterator[str]):
    """An iterator over nothing that sets the variable in `iter()`, before it is advanced."""

    @override
    def __iter__(self) -> Self:
        self.token = VARIABLE.set("its own")
        return self

    @override
    def __next__(self) -> str:
        VARIABLE.reset(self.token)
        raise StopIteration


@each_limit
def test_what_is_set_before_the_first_item(limit: float | None) -> None:
    """Streams and texts keep the context in which `iter()` of the iterable was called."""
    group = FallbackGroup(TracedAtOnce(), "primary", attempt_timeout=limit)
    speaker = TTSFallback(FakeTTS(), "speaker", attempt_timeout=limit)

    assert list(group.stream(lambda provider: provider)) == []
    assert list(speaker.synthesize_stream(TracedAtOnce(), VOICE)) == []

    assert VARIABLE.get() == "the caller's"


def write(_request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
    """Write an answer, as a language model does."""
    return (llm.Chunk(content=each) for each in Traced("Hello ", "you."))


@each_limit
def test_a_models_stream_as_text(limit: float | None) -> None:
    """A model's stream keeps its context if it is the text of a synthesiser."""
    model = FallbackGroup(write, "model")
    speaker = TTSFallback(FakeTTS(), "speaker", attempt_timeout=limit)

    for _ in range(6):
        chunks = model.stream(lambda write: write(llm.CompletionRequest(messages=())))
        text = (chunk.content for chunk in chunks)
        assert b"".join(speaker.synthesize_stream(text, VOICE)) == b"Hello you."

    assert model.breakers["model"].state is State.CLOSED


def speak_in_thread(text: Iterable[str]) -> Iterator[bytes]:
    """Speak a text that a thread of its own reads."""
    yield from in_thread(lambda: [fragment.encode() for fragment in text])


@each_limit
@pytest.mark.parametrize(
    "backup", [FakeTTS(), Synthesiser(speak_in_thread)], ids=["same thread", "own thread"]
)
def test_a_text_after_failover(limit: float | None, backup: tts.Provider) -> None:
    """A text keeps its context if one provider begins to read it and another one continues."""
    text = Traced("One ", "two ", "three.")
    failing = FakeTTS([ReadText(2), ConnectionError()])
    speaker = TTSFallback(failing, "primary", attempt_timeout=limit)
    speaker.add_fallback("backup", backup, attempt_timeout=limit)

    audio = b"".join(speaker.synthesize_stream(text, VOICE))

    assert audio == b"One two three."
    assert set(text.seen) == {"its own"}
    assert text.ends == 1


@each_limit
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
    """The text of a closed synthesis is closed in its own context."""
    text = Traced("One ", "two ", "three.")
    speaker = TTSFallback(FakeTTS(), "speaker", attempt_timeout=limit)

    audio = speaker.synthesize_stream(iter(text), VOICE)
    next(audio)
    end(audio)

    assert text.ends == 1
    assert VARIABLE.get() == "the caller's"


class TracedSession(Handle):
    """A recognition session, traced from its start to its close, with two transcripts."""

    def __init__(self) -> None:
        """Start."""
        self.words = Traced("one", "two")
        self.life = iter(Traced("session"))
        next(self.life)

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        return (stt.Transcript(text=text, is_final=True) for text in self.words)

    @override
    def close(self) -> None:
        assert next(self.life, None) is None


def start_traced(limit: float | None) -> tuple[STTSession, TracedSession]:
    """Start a traced session behind a group; return both."""
    handles: list[TracedSession] = []

    def start() -> TracedSession:
        handles.append(TracedSession())
        return handles[-1]

    group = STTFallback(Recogniser(start), "0", attempt_timeout=limit)
    return group.start_stream(stt.StreamConfig()), handles[0]


@each_limit
@pytest.mark.parametrize("close", [lambda session: session.close(), close_in_thread])
def test_a_session(limit: float | None, close: Callable[[object], object]) -> None:
    """A session is closed in the context in which it was started, whichever thread closes it."""
    session, handle = start_traced(limit)

    close(session)

    assert next(handle.life, None) is None


@each_limit
def test_transcripts(limit: float | None) -> None:
    """Transcripts keep their context if one thread begins to read and another one continues."""
    session, handle = start_traced(limit)
    words: list[str] = []

    finals = session.finals()
    words.append(next(finals).text)
    in_thread(lambda: words.extend(each.text for each in finals))
    session.close()

    assert words == ["one", "two"]
    assert handle.words.ends == 1


@each_limit
def test_transcripts_see_the_variables_of_their_session(limit: float | None) -> None:
    """Transcripts see what the provider has set when it started the session."""

    class Following(Handle):
        """A session whose transcripts are the value of the variable."""

        @override
        def finals(self) -> Iterator[stt.Transcript]:
            yield stt.Transcript(text=VARIABLE.get(), is_final=True)

    def start() -> Following:
        VARIABLE.set("the session's")
        return Following()

    group = STTFallback(Recogniser(start), "0", attempt_timeout=limit)
    with group.start_stream(stt.StreamConfig()) as session:
        words = [each.text for each in session.finals()]

    assert words == ["the session's"]
    assert VARIABLE.get() == "the caller's"


@each_limit
def test_transcripts_that_are_left_early(limit: float | None) -> None:
    """Transcripts that are not read to their end are closed in their own context."""
    session, handle = start_traced(limit)

    with session:
        for _ in session.finals():
            break

    assert handle.words.ends == 1


@each_limit
def test_the_text_sees_the_callers_variables(limit: float | None) -> None:
    """A text reads the variables of the context in which its synthesis was requested."""
    speaker = TTSFallback(FakeTTS(), "speaker", attempt_timeout=limit)
    token = VARIABLE.set("at the call")

    audio = speaker.synthesize_stream((VARIABLE.get() for _ in range(1)), VOICE)
    VARIABLE.reset(token)

    assert b"".join(audio) == b"at the call"
