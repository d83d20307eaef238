"""Speech keeps its words: no fragment of a text is lost or spoken twice."""

import contextlib
import gc
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from resilience import (
    AllFailedError,
    CircuitBreakerConfig,
    EmptyStreamError,
    FallbackConfig,
    State,
    TTSFallback,
    tts,
)
from resilience._text import ReplayedText
from resilience.testing import FakeTTS, ManualClock, Take

VOICE = tts.VoiceProfile(id="asked")
TIMEOUT = 10.0


def speakers(*providers: tts.Provider, max_failures: int = 1) -> TTSFallback:
    """Put providers behind breakers, named 0, 1 and so on."""
    config = FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=max_failures))
    group = TTSFallback(providers[0], "0", config)
    for number, provider in enumerate(providers[1:], start=1):
        group.add_fallback(str(number), provider)
    return group


def spoken(group: TTSFallback, text: Iterable[str]) -> str:
    """Return the words of the audio that a `FakeTTS` makes of a text."""
    return b"".join(group.synthesize_stream(text, VOICE)).decode()


@given(
    text=st.lists(st.text(min_size=1), min_size=1).filter(lambda text: any(map(str.strip, text))),
    taken=st.lists(st.integers(min_value=0, max_value=12), max_size=4),
    lazy=st.booleans(),
)
@settings(deadline=None)
def test_nothing_is_lost_or_spoken_twice(text: list[str], taken: list[int], *, lazy: bool) -> None:
    """However much the failed attempts have taken, the one that succeeds speaks the whole text."""
    failing = [FakeTTS([Take(count), ConnectionError()], lazy=lazy) for count in taken]

    heard = spoken(speakers(*failing, FakeTTS(lazy=lazy)), iter(text))

    assert heard == "".join(text)


@pytest.mark.parametrize("text", [["One ", "two."], ("One ", "two."), "One two."])
def test_texts_of_all_sorts(text: Iterable[str]) -> None:
    """A text may be any iterable of fragments; a string is one fragment."""
    provider = FakeTTS()

    assert spoken(speakers(FakeTTS([Take(1), ConnectionError()]), provider), text) == "One two."
    assert len(provider.texts[0]) == len([text] if isinstance(text, str) else list(text))


def test_text_fed_by_the_same_thread_after_the_call() -> None:
    """The text may be fed between the call and the first `next()`."""
    fragments: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    group = speakers(FakeTTS([Take(2), ConnectionError()]), FakeTTS())

    stream = group.synthesize_stream(iter(fragments.get, None), VOICE)
    for fragment in ("One ", "two.", None):
        fragments.put(fragment)

    assert b"".join(stream) == b"One two."


@pytest.mark.parametrize("silence", [[b""], [b"", b""], [b"", ConnectionError()]])
def test_empty_audio_is_no_audio(silence: list[bytes | Exception]) -> None:
    """A chunk without a byte in it is nothing heard yet."""
    group = speakers(FakeTTS([Take(1), *silence]), FakeTTS())

    assert spoken(group, ["One ", "two."]) == "One two."
    assert group.breakers["0"].state is State.OPEN


def test_empty_audio_in_between() -> None:
    """Only at the beginning is empty audio left out."""
    group = speakers(FakeTTS([b"", b"a", b"", b"b"]))

    assert list(group.synthesize_stream(["One."], VOICE)) == [b"a", b"", b"b"]


def test_closing_cuts_the_provider_off() -> None:
    """A provider that reads the text when the stream is closed takes no more of it."""
    fragments: queue.SimpleQueue[str] = queue.SimpleQueue()
    taken: list[str] = []
    reading = threading.Event()

    class Eater(FakeTTSBase):
        @override
        def synthesize_stream(
            self, text: Iterable[str], voice: tts.VoiceProfile
        ) -> Iterator[bytes]:
            for fragment in text:
                taken.append(fragment)
                reading.set()
            yield b"audio"

    stream = speakers(Eater()).synthesize_stream(iter(fragments.get, ""), VOICE)
    reader = threading.Thread(target=lambda: list(stream))
    fragments.put("one")
    reader.start()
    assert reading.wait(TIMEOUT)

    stream.close()
    for _ in range(5):
        fragments.put("after the closing")
    reader.join(TIMEOUT)

    assert not reader.is_alive()
    assert taken == ["one"]


def test_closing_takes_no_more_of_the_text() -> None:
    """A provider that ends without audio after the closing is not asked what it has not said."""
    fragments: queue.SimpleQueue[str] = queue.SimpleQueue()
    reading = threading.Event()

    def text() -> Iterator[str]:
        reading.set()
        yield from iter(fragments.get, "")

    stream = speakers(FakeTTS()).synthesize_stream(text(), VOICE)
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    assert reading.wait(TIMEOUT)

    stream.close()
    fragments.put(" ")
    fragments.put("for somebody else")
    reader.join(TIMEOUT)

    assert not reader.is_alive()
    assert fragments.get() == "for somebody else"


class TestTheEnd:
    """What was spoken dies with its stream, and needs no garbage collection."""

    @pytest.fixture(autouse=True)
    def _no_collection(self) -> Iterator[None]:
        """Let nothing be collected meanwhile."""
        gc.disable()
        yield
        gc.enable()

    @pytest.mark.parametrize("step", [None, b"", [b"audio"], [Take(1), ConnectionError()]])
    @pytest.mark.parametrize("is_read", [True, False])
    def test_the_text_is_let_go(
        self, step: bytes | list[bytes | Take | Exception] | None, *, is_read: bool
    ) -> None:
        """A text that is itself a stream is dropped, and so closed, when its speech has ended."""

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

    def test_an_error_of_the_text_is_let_go(self) -> None:
        """Who has handled the error of a text keeps nothing of it."""
        kept: list[weakref.ref[Fragment]] = []

        def text() -> Iterator[str]:
            fragment = Fragment("one")
            kept.append(weakref.ref(fragment))
            yield fragment
            raise LookupError

        with pytest.raises(LookupError):
            list(speakers(FakeTTS([Take(2)])).synthesize_stream(text(), VOICE))

        assert [reference() for reference in kept] == [None]

    def test_fragments_without_audio_are_let_go(self) -> None:
        """What was read by providers that had no audio is not kept."""
        text = ReplayedText(map(Fragment, ("one", "two")))
        kept = [weakref.ref(fragment) for fragment in text.reader()]

        text.end()

        assert [reference() for reference in kept] == [None, None]

    def test_the_end_of_a_text_is_under_no_lock(self) -> None:
        """What the source of a text does at its end may use the speech in other threads."""
        others: list[threading.Thread] = []

        def source() -> Iterator[str]:
            try:
                yield "one"
                yield "two"
            finally:
                others.append(threading.Thread(target=text.end))
                others[0].start()
                others[0].join(TIMEOUT)
                others.append(others[0])

        text = ReplayedText(source())
        next(text.reader())

        text.end()

        assert len(others) == 2
        assert not others[0].is_alive()

    def test_ended_while_it_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A signal handler that ends a text in the middle of its reading takes nothing back."""
        text = ReplayedText(["one", "two"])
        list(text.reader())
        reader = text.reader()
        read: Callable[[ReplayedText, object, list[str]], str] = vars(ReplayedText)[
            "_fragment_locked"
        ]

        def end_and_read(self: ReplayedText, reader: object, fragments: list[str]) -> str:
            self.end()
            return read(self, reader, fragments)

        monkeypatch.setattr(ReplayedText, "_fragment_locked", end_and_read)

        assert list(reader) == ["one"]

    def test_nothing_comes_after_it(self) -> None:
        """Whoever comes too late reads nothing, waits for nothing and commits to nothing."""
        text = ReplayedText(iter(["one"]))
        early = text.reader()
        text.end()

        text.commit()

        assert list(early) == list(text.reader()) == []
        assert text.idle() == 0.0
        assert not text.says_something()


class TestIdleTime:
    """How long a provider has waited for the text is not its own doing."""

    def test_waiting_of_several_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is idle as long as any of its threads waits, and no time counts twice."""
        clock = ManualClock()
        reads = threading.Semaphore(0)

        def read() -> float:
            reads.release()  # a thread begins to wait, or has ended
            return clock()

        monkeypatch.setattr("resilience._text.monotonic", read)
        fragments: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = ReplayedText(iter(fragments.get, "")).reader()
        threads = [threading.Thread(target=next, args=(reader,)) for _ in range(2)]
        for thread in threads:
            thread.start()
            assert reads.acquire(timeout=TIMEOUT)

        clock.advance(1.0)
        fragments.put("one")
        assert reads.acquire(timeout=TIMEOUT)
        clock.advance(2.0)
        while_one_waits = reader.idle()
        fragments.put("two")
        for thread in threads:
            thread.join(TIMEOUT)
        clock.advance(4.0)

        assert while_one_waits == 3.0
        assert reader.idle() == 3.0


class StaleReader(tts.Provider):
    """Reads the text in a thread of its own, and fails while that sits in the middle of it."""

    def __init__(self) -> None:
        """Have read nothing."""
        self.taken: list[str] = []
        self.thread = threading.Thread()

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        self.thread = threading.Thread(target=lambda: self.taken.extend(text))
        self.thread.start()
        raise ConnectionError

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        raise NotImplementedError

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


def test_a_stale_reader_takes_nothing_from_the_next_attempt() -> None:
    """The fragment that a given-up provider is just waiting for goes to the next attempt."""
    asked, given_out = threading.Event(), threading.Event()

    def text() -> Iterator[str]:
        asked.set()
        assert given_out.wait(TIMEOUT)
        yield "One "
        yield "two."

    stale, provider = StaleReader(), FakeTTS()
    stream = speakers(stale, provider).synthesize_stream(text(), VOICE)
    assert asked.wait(TIMEOUT)
    assert len(provider.texts) == 1  # the next attempt has begun, without waiting

    given_out.set()

    assert b"".join(stream) == b"One two."
    stale.thread.join(TIMEOUT)
    assert stale.taken == []


class Fragment(str):
    """A string whose end can be observed."""

    __slots__ = ("__weakref__",)


def test_memory_is_given_back_after_the_first_audio() -> None:
    """Fragments that the provider has read are kept only until it has audio."""
    alive: list[weakref.ref[Fragment]] = []

    def observed(word: str) -> Fragment:
        fragment = Fragment(word)
        alive.append(weakref.ref(fragment))
        return fragment

    class Forgetful(FakeTTSBase):
        @override
        def synthesize_stream(
            self, text: Iterable[str], voice: tts.VoiceProfile
        ) -> Iterator[bytes]:
            for fragment in text:
                audio = fragment.encode()
                del fragment
                yield audio

    text = map(observed, ("one ", "two ", "three ", "four"))
    stream = speakers(Forgetful()).synthesize_stream(text, VOICE)
    next(stream)
    next(stream)
    gc.collect()

    assert [reference() for reference in alive] == [None, None]


class FakeTTSBase(tts.Provider):
    """A synthesiser that only speaks."""

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        raise NotImplementedError

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


def broken_text(error: Exception) -> Iterator[str]:
    """Yield something, then raise."""
    yield "One "
    raise error


@pytest.mark.parametrize("lazy", [True, False])
def test_an_error_of_the_text_goes_to_the_caller(*, lazy: bool) -> None:
    """It is nobody's failure, and no other provider is tried."""
    error = ValueError("the model broke off")
    other = FakeTTS()
    group = speakers(FakeTTS([Take(5), b"audio"], lazy=lazy), other)

    with pytest.raises(ValueError, match="broke off") as caught:
        list(group.synthesize_stream(broken_text(error), VOICE))

    assert caught.value is error
    assert other.texts == []
    assert group.breakers["0"].state is State.CLOSED


class Wrapping(FakeTTSBase):
    """A provider that raises an error of its own for whatever happens to it."""

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        try:
            for fragment in text:
                yield fragment.encode()
        except ValueError as error:
            raise ConnectionError from error


class Swallowing(FakeTTSBase):
    """A provider that ends the audio, whatever happens to it."""

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        try:
            for fragment in text:
                yield fragment.encode()
        except ValueError:
            return


@pytest.mark.parametrize("provider", [Wrapping(), Swallowing()])
def test_an_error_of_the_text_is_seen_through_the_provider(provider: tts.Provider) -> None:
    """Wrapped or swallowed by the provider, the text's error reaches the caller as it is."""
    error = ValueError("the model broke off")
    group = speakers(provider)
    heard: list[bytes] = []

    with pytest.raises(ValueError, match="broke off") as caught:
        heard.extend(group.synthesize_stream(broken_text(error), VOICE))

    assert caught.value is error
    assert group.breakers["0"].state is State.CLOSED


@pytest.mark.parametrize("reads", [Take(9), Take(0)])
def test_silence_for_real_text_is_a_failure(reads: Take) -> None:
    """No audio for text that has something to say is a failure, whether it was read or not."""
    group = speakers(FakeTTS([reads]), FakeTTS())

    assert spoken(group, iter([" ", "Hello."])) == " Hello."
    assert group.breakers["0"].state is State.OPEN


@pytest.mark.parametrize("text", [[], [""], ["  ", "\n"]])
def test_silence_for_no_text_is_not(text: list[str]) -> None:
    """No audio for no text is a success."""
    group = speakers(FakeTTS([Take(9)]))

    assert spoken(group, iter(text)) == ""
    assert group.breakers["0"].state is State.CLOSED


def test_all_silent() -> None:
    """When nobody has audio, the first `next()` says so."""
    stream = speakers(FakeTTS([])).synthesize_stream(["Hello."], VOICE)

    with pytest.raises(AllFailedError) as caught:
        next(stream)

    assert isinstance(caught.value.failures["0"], EmptyStreamError)


def test_a_cut_speech_reaches_the_caller_once() -> None:
    """After the first audio nothing is spoken again by another provider."""
    other = FakeTTS()
    group = speakers(FakeTTS([Take(1), b"one", ConnectionError("cut")]), other)
    stream = group.synthesize_stream(["one ", "two"], VOICE)

    assert next(stream) == b"one"
    with pytest.raises(ConnectionError, match="cut"):
        next(stream)

    assert other.texts == []
    assert group.breakers["0"].state is State.OPEN


def test_voices_stand_in_for_others() -> None:
    """Each provider speaks with its own voice for the one that was asked for."""
    first, second, third = FakeTTS(ConnectionError()), FakeTTS(ConnectionError()), FakeTTS()
    mine, yours = tts.VoiceProfile(id="mine"), tts.VoiceProfile(id="yours")
    group = TTSFallback(first, "first", voices={"asked": mine})
    group.add_fallback("second", second, voices={"asked": yours, "other": mine})
    group.add_fallback("third", third)

    assert spoken(group, ["Hello."]) == "Hello."

    assert (first.voices, second.voices, third.voices) == ([mine], [yours], [VOICE])


@pytest.mark.parametrize("voices", ["ab", 1, {"asked": "own"}, {1: tts.VoiceProfile(id="own")}])
def test_voices_that_are_none(voices: Any) -> None:  # noqa: ANN401
    """What is no mapping from ids to voices is refused, here and there."""
    with pytest.raises(TypeError, match=r"voices .* not "):
        TTSFallback(FakeTTS(), "0", voices=voices)
    with pytest.raises(TypeError, match=r"voices .* not "):
        speakers(FakeTTS()).add_fallback("1", FakeTTS(), voices=voices)


def test_voices_are_listed_and_cloned_by_the_first_healthy_provider() -> None:
    """`list_voices` and `clone_voice` fail over like any call, with mapped voices or without."""
    group = TTSFallback(FakeTTS(ConnectionError()), "0", voices={"asked": VOICE})
    group.add_fallback("1", FakeTTS(voices=[VOICE]), voices={"x": VOICE})

    assert group.list_voices() == (VOICE,)
    assert group.clone_voice([b"one", b"two"]).id == "clone-of-2"
