"""Synthesisers behind a group: audio, silence, failover and voices."""

from typing import Any

import pytest

from helpers import VOICE, speakers, spoken
from resilience import AllFailedError, EmptyStreamError, State, TTSFallback, tts
from resilience.testing import FakeTTS, ReadText


@pytest.mark.parametrize("silence", [[b""], [b"", b""], [b"", ConnectionError()]])
def test_empty_audio_is_no_audio(silence: list[bytes | Exception]) -> None:
    """An empty piece of audio does not commit to a provider."""
    group = speakers(FakeTTS([ReadText(1), *silence]), FakeTTS())

    assert spoken(group, ["One ", "two."]) == "One two."
    assert group.breakers["0"].state is State.OPEN


def test_empty_audio_in_between() -> None:
    """Empty pieces after the first audio are passed on."""
    group = speakers(FakeTTS([b"", b"a", b"", b"b"]))

    assert list(group.synthesize_stream(["One."], VOICE)) == [b"a", b"", b"b"]


@pytest.mark.parametrize("reads", [ReadText(9), ReadText(0)])
def test_silence_for_real_text_is_a_failure(reads: ReadText) -> None:
    """No audio for a text with a letter is a failure, whether it was read or not."""
    group = speakers(FakeTTS([reads]), FakeTTS())

    assert spoken(group, iter([" ", "Hello."])) == " Hello."
    assert group.breakers["0"].state is State.OPEN


@pytest.mark.parametrize("text", ["7", "٣", "é", "你好", "नमस्ते", "<b>a</b>", "…\u200bя"])
def test_letters_and_digits_of_any_script(text: str) -> None:
    """No audio for a letter or a digit of any script is a failure."""
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
    """No audio for a text without a letter or a digit is a success."""
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
    """`voices` that are not a mapping from ids to voices are rejected."""
    with pytest.raises(TypeError, match=r"voices must be a .*, got "):
        TTSFallback(FakeTTS(), "0", voices=voices)
    with pytest.raises(TypeError, match=r"voices must be a .*, got "):
        speakers(FakeTTS()).add_fallback("1", FakeTTS(), voices=voices)


def test_voices_of_a_provider_that_was_refused() -> None:
    """The voices of a rejected `add_fallback` are not used for a later provider."""
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


def test_voices_that_are_not_mapped() -> None:
    """A voice that is not mapped is passed on unchanged, each time."""
    provider = FakeTTS()
    group = TTSFallback(provider, "0", voices={"other": tts.VoiceProfile(id="own")})
    another = tts.VoiceProfile(id="another")

    for voice in (VOICE, another):
        list(group.synthesize_stream(["a"], voice))

    assert provider.voices == [VOICE, another]


class TestVoice:
    """The attribute `voice` of a stream is the voice that speaks."""

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
        """Without a mapping it is the requested voice."""
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
