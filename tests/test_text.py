"""The text of a synthesis: every attempt reads it from its beginning; it is freed at the end."""

import contextlib
import gc
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from builds import Freed
from helpers import (
    TIMEOUT,
    VOICE,
    Recorder,
    Synthesiser,
    each_limit,
    in_thread,
    running,
    speakers,
    spoken,
)
from resilience import AllFailedError, Outcome, State, TTSFallback
from resilience._adapters.text import ReplayBuffer, TextReader
from resilience.testing import FakeTTS, ManualClock, ReadText


@given(
    text=st.lists(st.text(min_size=1), min_size=1).filter(lambda text: any(map(str.strip, text))),
    taken=st.lists(st.integers(min_value=0, max_value=12), max_size=4),
    lazy=st.booleans(),
)
@settings(deadline=None)
def test_nothing_is_lost_or_spoken_twice(text: list[str], taken: list[int], *, lazy: bool) -> None:
    """The attempt that succeeds speaks the whole text, however much others have read."""
    failing = [FakeTTS([ReadText(count), ConnectionError()], lazy=lazy) for count in taken]

    heard = spoken(speakers(*failing, FakeTTS(lazy=lazy)), iter(text))

    assert heard == "".join(text)


@pytest.mark.parametrize("text", [["One ", "two."], ("One ", "two."), "One two."])
def test_texts_of_all_sorts(text: Iterable[str]) -> None:
    """A text may be any iterable of fragments; a string is one fragment."""
    provider = FakeTTS()

    assert spoken(speakers(FakeTTS([ReadText(1), ConnectionError()]), provider), text) == "One two."
    assert len(provider.texts[0]) == len([text] if isinstance(text, str) else list(text))


def test_text_fed_by_the_same_thread_after_the_call() -> None:
    """The text may be produced between the call and the first `next()`."""
    fragments: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    group = speakers(FakeTTS([ReadText(2), ConnectionError()]), FakeTTS())

    stream = group.synthesize_stream(iter(fragments.get, None), VOICE)
    for fragment in ("One ", "two.", None):
        fragments.put(fragment)

    assert b"".join(stream) == b"One two."


class TestOtherThreads:
    """Providers that read the text in threads of their own, and attempts that follow."""

    def test_a_late_reader_takes_nothing(self) -> None:
        """A fragment for which an abandoned provider waits is passed to the next attempt."""
        asked, over = threading.Event(), threading.Event()
        readers: list[threading.Thread] = []
        taken: list[str] = []

        def text() -> Iterator[str]:
            asked.set()
            assert over.wait(TIMEOUT)
            yield "One "
            yield "two."

        def read_and_fail(text: Iterable[str]) -> NoReturn:
            readers.append(threading.Thread(target=lambda: taken.extend(text)))
            readers[0].start()
            raise ConnectionError

        provider = FakeTTS()
        stream = speakers(Synthesiser(read_and_fail), provider).synthesize_stream(text(), VOICE)
        assert asked.wait(TIMEOUT)
        assert len(provider.texts) == 1  # the next attempt has begun, without waiting

        over.set()

        assert b"".join(stream) == b"One two."
        readers[0].join(TIMEOUT)
        assert taken == []

    def test_one_thread_at_a_time_reads(self) -> None:
        """A reader that is cut off while it waits for another one reads nothing."""
        source = SlowText()
        readers: list[threading.Thread] = []

        def read_and_fail(text: Iterable[str]) -> NoReturn:
            readers.append(threading.Thread(target=list, args=(text,), daemon=True))
            readers[-1].start()
            assert source.is_read.wait(TIMEOUT)
            raise ConnectionError

        def speak(text: Iterable[str]) -> Iterator[bytes]:
            readers[1].join(TIMEOUT)
            threading.Timer(0.1, source.arrives.set).start()  # until then this reader has to wait
            for fragment in text:
                yield fragment.encode()

        voices = speakers(
            Synthesiser(read_and_fail), Synthesiser(read_and_fail), Synthesiser(speak)
        )

        audio = list(voices.synthesize_stream(source, VOICE))

        assert audio == [b"word"]
        assert not readers[1].is_alive()
        assert source.most == 1

    def test_what_has_been_read_is_available_at_once(self) -> None:
        """A fragment that an earlier attempt has read is available while it still reads."""
        source = SlowText()

        def read_and_fail(text: Iterable[str]) -> NoReturn:
            threading.Thread(target=list, args=(text,), daemon=True).start()
            assert source.is_read.wait(TIMEOUT)
            raise ConnectionError

        voices = speakers(Synthesiser(read_and_fail), FakeTTS())

        with voices.synthesize_stream(chain(["first"], source), VOICE) as audio:
            first = next(audio)
            is_waiting = not source.has_answered

        source.arrives.set()
        assert first == b"first"
        assert is_waiting


class SlowText(Iterator[str]):
    """A text of one late fragment, which counts the threads that read it at the same time."""

    def __init__(self) -> None:
        """Start with no reader."""
        self.is_read = threading.Event()
        self.arrives = threading.Event()
        self.has_answered = False
        self.readers = 0
        self.most = 0

    @override
    def __next__(self) -> str:
        """Return the fragment, once."""
        if self.arrives.is_set():
            raise StopIteration
        self.readers += 1
        self.most = max(self.most, self.readers)
        self.is_read.set()
        self.arrives.wait(TIMEOUT)
        self.has_answered = True
        self.readers -= 1
        return "word"


def test_closing_cuts_the_provider_off() -> None:
    """A provider that reads the text when the stream is closed gets no more of it."""
    fragments: queue.SimpleQueue[str] = queue.SimpleQueue()
    taken: list[str] = []
    reading = threading.Event()

    def read(text: Iterable[str]) -> Iterator[bytes]:
        for fragment in text:
            taken.append(fragment)
            reading.set()
        yield b"audio"

    stream = speakers(Synthesiser(read)).synthesize_stream(iter(fragments.get, ""), VOICE)
    fragments.put("one")
    with running(lambda: list(stream)):
        assert reading.wait(TIMEOUT)
        stream.close()
        for _ in range(5):
            fragments.put("after the closing")

    assert taken == ["one"]


def test_closing_takes_no_more_of_the_text() -> None:
    """After closing, no more of the text is read to check whether audio is missing."""
    fragments: queue.SimpleQueue[str] = queue.SimpleQueue()
    reading = threading.Event()

    def text() -> Iterator[str]:
        reading.set()
        yield from iter(fragments.get, "")

    stream = speakers(FakeTTS()).synthesize_stream(text(), VOICE)
    with running(lambda: list(stream)):
        assert reading.wait(TIMEOUT)
        stream.close()
        fragments.put(" ")
        fragments.put("not read")

    assert fragments.get() == "not read"


@pytest.mark.parametrize("error", [None, ConnectionError()])
def test_an_ended_provider_gets_no_more_text(error: Exception | None) -> None:
    """After the end or an error of the audio its provider gets no more fragments."""
    readers: list[Iterator[str]] = []

    def speak(text: Iterable[str]) -> Iterator[bytes]:
        readers.append(iter(text))
        yield next(readers[0]).encode()
        if error is not None:
            raise error

    stream = TTSFallback(Synthesiser(speak), "0").synthesize_stream(iter(["one", "two"]), VOICE)
    with contextlib.suppress(ConnectionError):
        list(stream)

    assert list(readers[0]) == []
    del stream


@pytest.mark.usefixtures("no_gc")
class TestTheEnd:
    """A text is deleted with its stream, without a garbage collection."""

    @pytest.mark.parametrize("step", [None, b"", [b"audio"], [ReadText(1), ConnectionError()]])
    @pytest.mark.parametrize("is_read", [True, False])
    def test_the_text_is_dropped(
        self, step: bytes | list[bytes | ReadText | Exception] | None, *, is_read: bool
    ) -> None:
        """A text that is itself a stream is closed when its synthesis ends."""

        def text() -> Iterator[str]:
            yield "one "
            yield "two"

        fragments = text()
        reference = weakref.ref(fragments)
        stream = speakers(FakeTTS(step)).synthesize_stream(fragments, VOICE)
        del fragments
        if is_read:
            with contextlib.suppress(AllFailedError):
                next(stream)
        stream.close()

        assert reference() is None

    def test_an_error_of_the_text_is_dropped(self) -> None:
        """After the error of a text is handled, the text and the error are freed."""
        kept: list[weakref.ref[Fragment]] = []

        def text() -> Iterator[str]:
            fragment = Fragment("one")
            kept.append(weakref.ref(fragment))
            yield fragment
            raise LookupError

        with pytest.raises(LookupError):
            list(speakers(FakeTTS([ReadText(2)])).synthesize_stream(text(), VOICE))

        assert [reference() for reference in kept] == [None]

    def test_fragments_without_audio_are_dropped(self) -> None:
        """Fragments that were read by providers without audio are not kept."""
        text = ReplayBuffer(map(Fragment, ("one", "two")))
        kept = [weakref.ref(fragment) for fragment in text.reader()]

        text.close()

        assert [reference() for reference in kept] == [None, None]

    def test_a_source_is_closed_without_a_lock(self) -> None:
        """No lock is held while a source is closed: other threads may close the text."""
        closed: list[bool] = []

        def source() -> Iterator[str]:
            try:
                yield "one"
                yield "two"
            finally:
                in_thread(text.close)
                closed.append(True)

        text = ReplayBuffer(source())
        next(text.reader())

        text.close()

        assert closed == [True]

    def test_ended_while_it_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fragment that is being read is returned even if a signal handler closes the text."""
        text = ReplayBuffer(["one", "two"])
        list(text.reader())
        reader = text.reader()
        read: Callable[[ReplayBuffer, object, list[str]], str] = vars(ReplayBuffer)[
            "_fragment_locked"
        ]

        def close_and_read(self: ReplayBuffer, reader: object, fragments: list[str]) -> str:
            self.close()
            return read(self, reader, fragments)

        monkeypatch.setattr(ReplayBuffer, "_fragment_locked", close_and_read)

        assert list(reader) == ["one"]

    def test_nothing_comes_after_it(self) -> None:
        """Readers of a closed text get nothing, and do not wait."""
        text = ReplayBuffer(iter(["one"]))
        early = text.reader()
        text.close()

        text.commit()

        assert list(early) == list(text.reader()) == []
        assert text.input_wait() == 0.0
        assert not text.has_text()


class TestInputWait:
    """The time in which a provider waits for the text is measured."""

    def test_waiting_of_several_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is the time in which any of its threads waits; no time is counted twice."""
        clock = ManualClock()
        reads = threading.Semaphore(0)

        def read() -> float:
            reads.release()  # a thread begins to wait, or has ended
            return clock()

        monkeypatch.setattr("resilience._adapters.text.monotonic", read)
        fragments: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = ReplayBuffer(iter(fragments.get, "")).reader()
        threads = [threading.Thread(target=next, args=(reader,)) for _ in range(2)]
        for thread in threads:
            thread.start()
            assert reads.acquire(timeout=TIMEOUT)

        clock.advance(1.0)
        fragments.put("one")
        assert reads.acquire(timeout=TIMEOUT)
        clock.advance(2.0)
        while_one_waits = reader.input_wait()
        fragments.put("two")
        for thread in threads:
            thread.join(TIMEOUT)
        clock.advance(4.0)

        assert while_one_waits == 3.0
        assert reader.input_wait() == 3.0

    @pytest.mark.parametrize(
        ("given", "is_own_thread", "counts"),
        [("", False, True), ("... ", False, True), ("Hi", True, True), ("Hi", False, False)],
    )
    def test_waiting_after_something_was_given(
        self, given: str, monkeypatch: pytest.MonkeyPatch, *, is_own_thread: bool, counts: bool
    ) -> None:
        """After a letter or a digit, only waiting of the attempt's own thread is measured."""
        clock = ManualClock()
        monkeypatch.setattr("resilience._adapters.text.monotonic", clock)

        def fragments() -> Iterator[str]:
            if given:
                yield given
            clock.advance(5.0)
            yield "more"

        attempt = threading.get_ident() if is_own_thread else None
        reader = ReplayBuffer(fragments()).reader(lambda: attempt)

        assert list(reader) == [*([given] if given else []), "more"]
        assert reader.input_wait() == (5.0 if counts else 0.0)


class Fragment(str):
    """A string whose deletion can be observed."""

    __slots__ = ("__weakref__",)


def test_memory_is_released_after_the_first_audio() -> None:
    """Fragments that the provider has read are kept only until it has audio."""
    alive: list[weakref.ref[Fragment]] = []

    def observed(word: str) -> Fragment:
        fragment = Fragment(word)
        alive.append(weakref.ref(fragment))
        return fragment

    def speak(text: Iterable[str]) -> Iterator[bytes]:
        for fragment in text:
            audio = fragment.encode()
            del fragment
            yield audio

    text = map(observed, ("one ", "two ", "three ", "four"))
    stream = speakers(Synthesiser(speak)).synthesize_stream(text, VOICE)
    next(stream)
    next(stream)
    gc.collect()

    assert [reference() for reference in alive] == [None, None]


def test_a_replay_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments that an attempt reads again are dropped in linear time."""
    length = 1000
    moved = 0
    drop: Callable[[ReplayBuffer, TextReader], None] = vars(ReplayBuffer)["_drop_read_locked"]

    def count_and_drop(self: ReplayBuffer, reader: TextReader) -> None:
        nonlocal moved
        moved += len(self._fragments) - reader.position
        drop(self, reader)

    monkeypatch.setattr(ReplayBuffer, "_drop_read_locked", count_and_drop)
    text = iter(["word"] * length)
    group = speakers(FakeTTS([ReadText(length), ConnectionError()]), FakeTTS())

    assert spoken(group, text) == "word" * length
    assert 0 < moved < 3 * length


def broken_text(error: BaseException) -> Iterator[str]:
    """Yield a fragment, then raise."""
    yield "One "
    raise error


@pytest.mark.parametrize("lazy", [True, False])
def test_an_error_of_the_text(*, lazy: bool) -> None:
    """An error of the text is raised unchanged, never counts, and does not fail over."""
    error = ValueError("the model broke off")
    other = FakeTTS()
    group = speakers(FakeTTS([ReadText(5), b"audio"], lazy=lazy), other)

    with pytest.raises(ValueError, match="broke off") as caught:
        list(group.synthesize_stream(broken_text(error), VOICE))

    assert caught.value is error
    assert other.texts == []
    assert group.breakers["0"].state is State.CLOSED


class TextError(ValueError):
    """An error of the source of a text, whose deletion can be observed."""


def judging(what: str) -> Synthesiser:
    """Return a synthesiser that raises, wraps or swallows an error of the text."""

    def speak(text: Iterable[str]) -> Iterator[bytes]:
        try:
            for fragment in text:
                yield fragment.encode()
        except ValueError as error:
            if what == "raises":
                raise
            if what == "wraps":
                raise ConnectionError from error

    return Synthesiser(speak)


@each_limit
@pytest.mark.parametrize("fragments", [[], ["One "]], ids=["before audio", "after audio"])
@pytest.mark.parametrize("what", ["raises", "wraps", "swallows"])
@pytest.mark.usefixtures("no_gc")
def test_whatever_the_provider_does_with_the_error(
    what: str, fragments: list[str], limit: float | None
) -> None:
    """The text's own error is raised to the caller, and is part of no reference cycle."""
    freed = Freed()

    def make() -> TextError:
        error = TextError("the model broke off")
        weakref.finalize(error, freed.count)
        return error

    def text() -> Iterator[str]:
        yield from fragments
        raise make()

    recorder = Recorder(attempt_timeout=limit)
    group = TTSFallback(judging(what), "0", recorder.config)

    messages: list[str] = []
    try:
        list(group.synthesize_stream(text(), VOICE))
    except ValueError as error:
        messages.append(str(error))

    assert messages == ["the model broke off"]
    assert recorder.outcomes() == [("0", Outcome.CANCELLED)]
    assert freed.wait(TIMEOUT)  # a worker may be about to end its work on it


class Interruption(BaseException):
    """An exception outside `Exception`."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interruption()], ids=repr)
@pytest.mark.parametrize("has_audio", [False, True], ids=["before audio", "after audio"])
def test_an_interruption_of_the_text(error: BaseException, *, has_audio: bool) -> None:
    """An interruption of the text is raised, and never counts, even if the filters name it."""
    filters = (Exception, Interruption)
    recorder = Recorder(breaker={"failure_on": filters}, fallback_on=filters)
    other = FakeTTS()
    group = TTSFallback(FakeTTS(None if has_audio else [ReadText(2)]), "0", recorder.config)
    group.add_fallback("1", other)

    with pytest.raises(type(error)) as caught:
        list(group.synthesize_stream(broken_text(error), VOICE))

    assert caught.value is error
    assert other.texts == []
    assert recorder.outcomes() == [("0", Outcome.CANCELLED)]
    assert group.breakers["0"].state is State.CLOSED


@each_limit
@pytest.mark.parametrize("error", [ValueError(), Interruption()], ids=repr)
@pytest.mark.parametrize("fragments", [[], ["One "]], ids=["before audio", "after audio"])
def test_an_error_of_the_text_in_another_thread(
    error: BaseException,
    fragments: list[str],
    limit: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error of the text is raised, also if only the provider's own thread has received it."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def text() -> Iterator[str]:
        yield from fragments
        raise error

    def speak(text: Iterable[str]) -> Iterator[bytes]:
        with running(lambda: received.extend(text)):
            pass
        yield from map(str.encode, received)

    received: list[str] = []
    recorder, other = Recorder(attempt_timeout=limit), FakeTTS()
    group = TTSFallback(Synthesiser(speak), "0", recorder.config)
    group.add_fallback("1", other)

    with pytest.raises(type(error)) as caught:
        list(group.synthesize_stream(text(), VOICE))

    assert caught.value is error
    assert other.texts == []
    assert recorder.outcomes() == [("0", Outcome.CANCELLED)]


@pytest.mark.parametrize("fragment", [b"two", None, 2])
def test_a_text_that_is_not_made_of_strings(fragment: Any) -> None:  # noqa: ANN401
    """A fragment that is not a string is an error of the text."""
    other = FakeTTS()
    group = speakers(FakeTTS(), other)
    kind = type(fragment).__name__

    with pytest.raises(TypeError, match=f"must consist of strings, got an object of type {kind}"):
        list(group.synthesize_stream(["One ", fragment], VOICE))

    assert other.texts == []
    assert group.breakers["0"].state is State.CLOSED
