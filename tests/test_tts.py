"""Synthesisers behind a group: no fragment of a text is lost or spoken twice."""

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

from builds import Freed
from helpers import Synthesiser
from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreakerConfig,
    EmptyStreamError,
    FallbackConfig,
    Outcome,
    State,
    TTSFallback,
    tts,
)
from resilience._adapters.text import ReplayBuffer, TextReader
from resilience.testing import FakeTTS, ManualClock, ReadText

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
    """Return the text in the audio of a `FakeTTS`."""
    return b"".join(group.synthesize_stream(text, VOICE)).decode()


class FakeTTSBase(tts.Provider):
    """A synthesiser that only speaks."""

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        raise NotImplementedError

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


@given(
    text=st.lists(st.text(min_size=1), min_size=1).filter(lambda text: any(map(str.strip, text))),
    taken=st.lists(st.integers(min_value=0, max_value=12), max_size=4),
    lazy=st.booleans(),
)
@settings(deadline=None)
def test_nothing_is_lost_or_spoken_twice(text: list[str], taken: list[int], *, lazy: bool) -> None:
    """However much the failed attempts have read, the one that succeeds speaks the whole text."""
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
    """The text may be fed between the call and the first `next()`."""
    fragments: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    group = speakers(FakeTTS([ReadText(2), ConnectionError()]), FakeTTS())

    stream = group.synthesize_stream(iter(fragments.get, None), VOICE)
    for fragment in ("One ", "two.", None):
        fragments.put(fragment)

    assert b"".join(stream) == b"One two."


@pytest.mark.parametrize("silence", [[b""], [b"", b""], [b"", ConnectionError()]])
def test_empty_audio_is_no_audio(silence: list[bytes | Exception]) -> None:
    """A chunk without a byte in it does not commit to a provider."""
    group = speakers(FakeTTS([ReadText(1), *silence]), FakeTTS())

    assert spoken(group, ["One ", "two."]) == "One two."
    assert group.breakers["0"].state is State.OPEN


def test_empty_audio_in_between() -> None:
    """Empty chunks after the first audio are passed on."""
    group = speakers(FakeTTS([b"", b"a", b"", b"b"]))

    assert list(group.synthesize_stream(["One."], VOICE)) == [b"a", b"", b"b"]


def test_closing_cuts_the_provider_off() -> None:
    """A provider that reads the text when the stream is closed gets no more of it."""
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
    """After the closing the text is not read on to see whether audio is missing."""
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
    """A text is deleted with its stream, without a garbage collection."""

    @pytest.fixture(autouse=True)
    def _no_collection(self) -> Iterator[None]:
        """Disable the garbage collection."""
        gc.disable()
        yield
        gc.enable()

    @pytest.mark.parametrize("step", [None, b"", [b"audio"], [ReadText(1), ConnectionError()]])
    @pytest.mark.parametrize("is_read", [True, False])
    def test_the_text_is_dropped(
        self, step: bytes | list[bytes | ReadText | Exception] | None, *, is_read: bool
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

    def test_an_error_of_the_text_is_dropped(self) -> None:
        """After the error of a text is handled, nothing of the text is kept."""
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

    def test_the_end_of_a_text_is_under_no_lock(self) -> None:
        """The source of a text is closed under no lock: other threads may close the text."""
        others: list[threading.Thread] = []

        def source() -> Iterator[str]:
            try:
                yield "one"
                yield "two"
            finally:
                others.append(threading.Thread(target=text.close))
                others[0].start()
                others[0].join(TIMEOUT)
                others.append(others[0])

        text = ReplayBuffer(source())
        next(text.reader())

        text.close()

        assert len(others) == 2
        assert not others[0].is_alive()

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
        """Readers of a closed text get nothing and wait for nothing."""
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
        """It lasts as long as any of its threads waits, and no time counts twice."""
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
        """With something to pronounce, only the attempt's own thread is excused for waiting."""
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


class ReadsAhead(tts.Provider):
    """Sends the text in a thread of its own, as websocket clients do, and waits for audio."""

    def __init__(self, *, hangs: bool) -> None:
        """Speak, or never say a word."""
        self._hangs = hangs

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        audio: queue.SimpleQueue[bytes] = queue.SimpleQueue()

        def send() -> None:
            for fragment in text:
                if not self._hangs:
                    audio.put(fragment.encode())

        threading.Thread(target=send, daemon=True).start()
        while True:
            yield audio.get()

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        raise NotImplementedError

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


def test_a_hung_synthesiser_that_reads_ahead() -> None:
    """It is given up when its time is up, although the text goes on and its thread waits for it."""
    words: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    words.put("Hello. ")
    group = TTSFallback(ReadsAhead(hangs=True), "hung", attempt_timeout=0.05)
    group.add_fallback("backup", ReadsAhead(hangs=False), attempt_timeout=TIMEOUT)
    heard: list[bytes] = []
    stream = group.synthesize_stream(iter(words.get, None), VOICE)

    listener = threading.Thread(target=lambda: heard.append(next(stream)), daemon=True)
    listener.start()
    listener.join(TIMEOUT)
    words.put(None)

    assert heard == [b"Hello. "]
    assert stream.provider == "backup"


class Cancelled(BaseException):
    """An interruption such as `asyncio.CancelledError`."""


@pytest.mark.parametrize("limit", [None, TIMEOUT])
def test_a_text_that_is_cancelled_in_the_providers_own_thread(
    limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not spoken truncated: what its source raised goes to the caller as it is."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    class Sender(tts.Provider):
        list_voices = clone_voice = ReadsAhead.list_voices  # type: ignore[assignment]

        @override
        def synthesize_stream(
            self, text: Iterable[str], voice: tts.VoiceProfile
        ) -> Iterator[bytes]:
            sender = threading.Thread(target=list, args=(text,))
            sender.start()
            sender.join(TIMEOUT)
            raise ConnectionError

    def text() -> Iterator[str]:
        yield "Do not "
        raise Cancelled

    attempts: list[Attempt] = []
    config = FallbackConfig(attempt_timeout=limit, on_attempt=attempts.append)
    group = TTSFallback(Sender(), "0", config)
    backup = FakeTTS()
    group.add_fallback("1", backup)

    with pytest.raises(Cancelled):
        list(group.synthesize_stream(text(), VOICE))

    assert [attempt.outcome for attempt in attempts] == [Outcome.CANCELLED]
    assert backup.texts == []


class TextError(LookupError):
    """What the source of a text raises."""


class Judges(ReadsAhead):
    """Reads the text in its own thread, and makes something of its error."""

    def __init__(self, what: str) -> None:
        """Raise, wrap or swallow the error."""
        super().__init__(hangs=False)
        self._what = what

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        try:
            for fragment in text:
                yield fragment.encode()
        except TextError as error:
            if self._what == "raises":
                raise
            if self._what == "wraps":
                raise RuntimeError from error


@pytest.mark.parametrize("limit", [None, TIMEOUT])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("what", ["raises", "wraps", "swallows"])
def test_an_error_of_the_text_dies_with_its_handling(
    what: str, limit: float | None, *, is_first: bool
) -> None:
    """Whatever the provider makes of it, it is no part of a reference cycle."""
    died = Freed()

    def make() -> TextError:
        error = TextError()
        weakref.finalize(error, died.tell)
        return error

    def text() -> Iterator[str]:
        if not is_first:
            yield "One "
        raise make()

    group = TTSFallback(Judges(what), "0", attempt_timeout=limit)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(TextError):
            list(group.synthesize_stream(text(), VOICE))
        assert died.wait(TIMEOUT)  # a worker may be about to end its work on it
    finally:
        gc.enable()


class StaleReader(tts.Provider):
    """Reads the text in a thread of its own, and fails while that waits for a fragment."""

    def __init__(self) -> None:
        """Start with nothing read."""
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
    """The fragment for which a provider waits that was given up goes to the next attempt."""
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
    """A string whose deletion can be observed."""

    __slots__ = ("__weakref__",)


def test_memory_is_released_after_the_first_audio() -> None:
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


def test_a_replay_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping what an attempt reads of an earlier attempt's text moves each fragment few times."""
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
def test_an_error_of_the_text_goes_to_the_caller(*, lazy: bool) -> None:
    """It counts for no provider, and no other provider is tried."""
    error = ValueError("the model broke off")
    other = FakeTTS()
    group = speakers(FakeTTS([ReadText(5), b"audio"], lazy=lazy), other)

    with pytest.raises(ValueError, match="broke off") as caught:
        list(group.synthesize_stream(broken_text(error), VOICE))

    assert caught.value is error
    assert other.texts == []
    assert group.breakers["0"].state is State.CLOSED


class Wrapping(FakeTTSBase):
    """A provider that raises an error of its own for an error of the text."""

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        try:
            for fragment in text:
                yield fragment.encode()
        except ValueError as error:
            raise ConnectionError from error


class Swallowing(FakeTTSBase):
    """A provider that ends the audio at an error of the text."""

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


class Interruption(BaseException):
    """An exception that is no `Exception`."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interruption()], ids=repr)
@pytest.mark.parametrize("has_audio", [False, True], ids=["before audio", "after audio"])
def test_an_interruption_of_the_text(error: BaseException, *, has_audio: bool) -> None:
    """It is raised to the caller, and counts for no provider even if the filters name it."""
    filters = (Exception, Interruption)
    reports: list[Attempt] = []
    config = FallbackConfig(
        circuit_breaker=CircuitBreakerConfig(max_failures=1, failure_on=filters),
        fallback_on=filters,
        on_attempt=reports.append,
    )
    other = FakeTTS()
    group = TTSFallback(FakeTTS(None if has_audio else [ReadText(2)]), "0", config)
    group.add_fallback("1", other)

    with pytest.raises(type(error)) as caught:
        list(group.synthesize_stream(broken_text(error), VOICE))

    assert caught.value is error
    assert other.texts == []
    assert [str(report.outcome) for report in reports] == ["cancelled"]
    assert group.breakers["0"].state is State.CLOSED


class ReadingAhead(FakeTTSBase):
    """A provider that reads the text in a thread of its own, and ends the audio at an error."""

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        fragments: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read() -> None:
            with contextlib.suppress(BaseException):
                for fragment in text:
                    fragments.put(fragment)
            fragments.put("")

        threading.Thread(target=read).start()
        for fragment in iter(fragments.get, ""):
            yield fragment.encode()


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("fragments", [[], ["One "]], ids=["before audio", "after audio"])
def test_an_error_of_the_text_in_another_thread(error: BaseException, fragments: list[str]) -> None:
    """It is raised to the caller, also if only a thread of the provider's own has seen it."""

    def text() -> Iterator[str]:
        yield from fragments
        raise error

    other = FakeTTS()
    group = speakers(ReadingAhead(), other)

    with pytest.raises(type(error)) as caught:
        list(group.synthesize_stream(text(), VOICE))

    assert caught.value is error
    assert other.texts == []
    assert group.breakers["0"].state is State.CLOSED


@pytest.mark.parametrize("fragment", [b"two", None, 2])
def test_a_text_that_is_not_made_of_strings(fragment: Any) -> None:  # noqa: ANN401
    """A fragment that is no string is an error of the text."""
    other = FakeTTS()
    group = speakers(FakeTTS(), other)
    kind = type(fragment).__name__

    with pytest.raises(TypeError, match=f"must consist of strings, got an object of type {kind}"):
        list(group.synthesize_stream(["One ", fragment], VOICE))

    assert other.texts == []
    assert group.breakers["0"].state is State.CLOSED


@pytest.mark.parametrize("reads", [ReadText(9), ReadText(0)])
def test_silence_for_real_text_is_a_failure(reads: ReadText) -> None:
    """No audio for text with a letter in it is a failure, whether it was read or not."""
    group = speakers(FakeTTS([reads]), FakeTTS())

    assert spoken(group, iter([" ", "Hello."])) == " Hello."
    assert group.breakers["0"].state is State.OPEN


@pytest.mark.parametrize("text", ["7", "٣", "é", "你好", "नमस्ते", "<b>a</b>", "…\u200bя"])
def test_letters_and_digits_of_any_script(text: str) -> None:
    """A letter or a digit of any script is enough for silence to be a failure."""
    group = speakers(FakeTTS([ReadText(9)]), FakeTTS())

    assert spoken(group, [text]) == text
    assert group.breakers["0"].state is State.OPEN


@pytest.mark.parametrize(
    "text",
    [
        [],
        [""],
        ["  ", "\n"],
        ["...", " - "],
        ["👋🏽", "\u200d\ufe0f"],
        ["**", "</>"],
        ["\u200b\ufeff"],
    ],
    ids=["nothing", "empty", "blanks", "punctuation", "emoji", "markup", "zero width"],
)
def test_silence_for_no_text_is_not(text: list[str]) -> None:
    """No audio for text without a letter or a digit is a success."""
    group = speakers(FakeTTS([ReadText(9)]))

    assert spoken(group, iter(text)) == ""
    assert group.breakers["0"].state is State.CLOSED


def test_all_silent() -> None:
    """When no provider has audio, the first `next()` raises `AllFailedError`."""
    stream = speakers(FakeTTS([])).synthesize_stream(["Hello."], VOICE)

    with pytest.raises(AllFailedError) as caught:
        next(stream)

    assert isinstance(caught.value.failures["0"], EmptyStreamError)


def test_an_error_after_the_first_audio() -> None:
    """After the first audio there is no failover."""
    other = FakeTTS()
    group = speakers(FakeTTS([ReadText(1), b"one", ConnectionError("cut")]), other)
    stream = group.synthesize_stream(["one ", "two"], VOICE)

    assert next(stream) == b"one"
    with pytest.raises(ConnectionError, match="cut"):
        next(stream)

    assert other.texts == []
    assert group.breakers["0"].state is State.OPEN


def test_voices_are_mapped() -> None:
    """Each provider gets its own voice for the one that was requested."""
    first, second, third = FakeTTS(ConnectionError()), FakeTTS(ConnectionError()), FakeTTS()
    mine, yours = tts.VoiceProfile(id="mine"), tts.VoiceProfile(id="yours")
    group = TTSFallback(first, "first", voices={"asked": mine})
    group.add_fallback("second", second, voices={"asked": yours, "other": mine})
    group.add_fallback("third", third)

    assert spoken(group, ["Hello."]) == "Hello."

    assert (first.voices, second.voices, third.voices) == ([mine], [yours], [VOICE])


@pytest.mark.parametrize("voices", ["ab", 1, {"asked": "own"}, {1: tts.VoiceProfile(id="own")}])
def test_voices_that_are_none(voices: Any) -> None:  # noqa: ANN401
    """Voices that are no mapping from ids to voices are refused, for primary and fallback."""
    with pytest.raises(TypeError, match=r"voices must be a .*, got "):
        TTSFallback(FakeTTS(), "0", voices=voices)
    with pytest.raises(TypeError, match=r"voices must be a .*, got "):
        speakers(FakeTTS()).add_fallback("1", FakeTTS(), voices=voices)


def test_voices_of_a_provider_that_was_refused() -> None:
    """The voices of a refused `add_fallback` are not those of the provider added afterwards."""
    mine, yours = tts.VoiceProfile(id="mine"), tts.VoiceProfile(id="yours")
    provider = FakeTTS()
    group = speakers(FakeTTS(ConnectionError()))

    with pytest.raises(ValueError, match="attempt_timeout"):
        group.add_fallback("1", FakeTTS(), voices={"asked": mine}, attempt_timeout=-1)
    group.add_fallback("1", provider, voices={"asked": yours})
    with pytest.raises(ValueError, match="already used"):
        group.add_fallback("1", FakeTTS(), voices={"asked": mine})
    unhashable: Any = ["2"]
    with pytest.raises(TypeError, match="name must be a string"):
        group.add_fallback(unhashable, FakeTTS())

    assert spoken(group, "Hi.") == "Hi."
    assert provider.voices == [yours]


def test_voices_are_listed_and_cloned_by_the_first_healthy_provider() -> None:
    """`list_voices` and `clone_voice` fail over like any call, with mapped voices or without."""
    group = TTSFallback(FakeTTS(ConnectionError()), "0", voices={"asked": VOICE})
    group.add_fallback("1", FakeTTS(voices=[VOICE]), voices={"x": VOICE})

    assert group.list_voices() == (VOICE,)
    assert group.clone_voice([b"one", b"two"]).id == "clone-of-2"


class TestVoice:
    """The stream says which voice speaks."""

    def test_after_failover(self) -> None:
        """It is the voice of the provider that serves, with its sample rate and encoding."""
        own = tts.VoiceProfile(id="own", sample_rate=24_000, encoding="mp3")
        group = TTSFallback(FakeTTS(ConnectionError()), "0")
        group.add_fallback("1", FakeTTS(), voices={"asked": own})

        stream = group.synthesize_stream(["Hello"], VOICE)
        assert stream.voice is None
        assert repr(stream) == "<SpeechStream provider=None open>"
        assert b"".join(stream) == b"Hello"

        assert stream.voice is own
        assert repr(stream) == "<SpeechStream provider='1' closed>"

    def test_without_a_map(self) -> None:
        """Without a voice in place of the one that was asked for, it is that one."""
        stream = speakers(FakeTTS()).synthesize_stream(["Hello"], VOICE)
        next(stream)

        assert stream.voice is VOICE

    def test_of_a_group_inside_a_group(self) -> None:
        """It is the voice that the inner group uses."""
        own = tts.VoiceProfile(id="own", sample_rate=8_000)
        inner = TTSFallback(FakeTTS(), "inner", voices={"asked": own})
        stream = TTSFallback(inner, "outer").synthesize_stream(["Hello"], VOICE)
        next(stream)

        assert stream.provider == "outer"
        assert stream.voice is own


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


def test_voices_that_are_not_mapped() -> None:
    """A voice that is not mapped is passed on whole, each time."""
    provider = FakeTTS()
    group = TTSFallback(provider, "0", voices={"other": tts.VoiceProfile(id="own")})
    another = tts.VoiceProfile(id="another")

    for voice in (VOICE, another):
        list(group.synthesize_stream(["a"], voice))

    assert provider.voices == [VOICE, another]
