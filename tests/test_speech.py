"""Functions that the speech providers share."""

from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import UnsupportedRequestError, tts
from resilience.providers._shared import own_options
from resilience.providers._speech import (
    LONGEST,
    SHORTEST,
    check_audio,
    choose_format,
    split_text,
)

VOICE = tts.VoiceProfile(id="-")
FORMATS = {"pcm_s16le": {24_000: "pcm24", 8_000: "pcm8"}, "mp3": {22_050: "mp3"}}


def cut(*fragments: str, encoding: str | None = None) -> list[str]:
    """Return the pieces of a text."""
    return list(split_text(fragments, tts.VoiceProfile(id="-", encoding=encoding)))


@given(st.lists(st.text(alphabet="ab 1.!?\n-\u3002", max_size=300), max_size=30))
def test_no_letter_is_lost(fragments: list[str]) -> None:
    """The pieces are the text in order; only characters without sound may be missing."""
    found = cut(*fragments)

    def letters(parts: list[str]) -> str:
        return "".join(filter(str.isalnum, "".join(parts)))

    assert letters(found) == letters(fragments)
    assert all(any(map(str.isalnum, piece)) for piece in found)
    assert max(map(len, found), default=0) <= LONGEST


@given(st.text(alphabet="ab. ", max_size=3_000), st.data())
def test_fragments_do_not_matter(text: str, data: st.DataObject) -> None:
    """The same text, split into other fragments, gives the same pieces."""
    ends = data.draw(st.lists(st.integers(0, len(text)), max_size=9).map(sorted))

    fragments = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]

    assert cut(*fragments) == cut(text)


@pytest.mark.parametrize(
    "end",
    [". ", "! ", "? ", "\u2026 ", '." ', ".\u201d ", ".) ", ".\n", "\n", "\u3002", "\uff1f"],
)
def test_ends_of_sentences(end: str) -> None:
    """A piece ends with a sentence, as soon as it is complete."""
    first = "a" * SHORTEST + end

    assert next(iter(split_text(endless(first), VOICE))) == first


def endless(first: str) -> Iterator[str]:
    """Yield one fragment, and fail if another one is read."""
    yield first
    pytest.fail("a further fragment was read")


@pytest.mark.parametrize("text", ["3.14", "e.g", "a.b", "...and"])
def test_no_end_of_a_sentence(text: str) -> None:
    """A full stop in front of a letter, a digit or another full stop does not end a piece."""
    whole = "a" * SHORTEST + text + " b" * SHORTEST

    assert cut(whole) == [whole]


def test_short_sentences_are_joined() -> None:
    """A piece has a minimum length, which grows, so that a long text needs few requests."""
    found = cut("It rains. " * 1_000)

    lengths = [len(piece) for piece in found]
    assert lengths[0] == SHORTEST + 10
    assert lengths[:4] == sorted(set(lengths[:4]))
    assert len(found) < 30


def test_a_text_without_sentences() -> None:
    """A text without an end of a sentence is cut between words, or, without words, anywhere."""
    words = cut("rain " * 500)
    letters = cut("a" * (2 * LONGEST + 1))

    assert all(piece.endswith("rain ") for piece in words)
    assert list(map(len, letters)) == [LONGEST, LONGEST, 1]
    assert max(map(len, cut("rain " * 300 + "ends. " + "a" * SHORTEST))) <= LONGEST


def test_a_line_without_letters_is_no_piece() -> None:
    """A piece without letters and digits is not sent."""
    assert cut("-" * SHORTEST + "-\n", "rain") == ["rain"]


@pytest.mark.parametrize(
    ("encoding", "count"),
    [(None, 2), ("pcm_s16le", 2), ("mulaw", 2), ("mp3", 2), ("wav", 1), ("flac", 1), ("opus", 1)],
)
def test_files_that_cannot_be_joined(encoding: str | None, count: int) -> None:
    """A text is cut only if the audio of two requests can be joined."""
    sentence = "a" * 2 * SHORTEST + ". "

    assert len(cut(sentence, sentence, encoding=encoding)) == count
    assert cut(" - ", encoding=encoding) == []


@pytest.mark.parametrize(
    ("encoding", "sample_rate", "expected"),
    [
        (None, None, "pcm24"),
        (None, 8_000, "pcm8"),
        ("pcm_s16le", 24_000, "pcm24"),
        ("mp3", None, "mp3"),
    ],
)
def test_formats(encoding: str | None, sample_rate: int | None, expected: str) -> None:
    """The format is that of encoding and rate; without them it is PCM, and the first rate."""
    voice = tts.VoiceProfile(id="-", encoding=encoding, sample_rate=sample_rate)

    assert choose_format("vendor", voice, FORMATS) == expected


def test_formats_that_are_not_there() -> None:
    """Any other encoding or rate is unsupported."""
    for voice, message in (
        (tts.VoiceProfile(id="-", encoding="flac"), "vendor does not support encoding='flac'"),
        (tts.VoiceProfile(id="-", sample_rate=1), "vendor does not support sample_rate=1"),
    ):
        with pytest.raises(UnsupportedRequestError, match=message):
            choose_format("vendor", voice, FORMATS)


def test_options_of_one_vendor() -> None:
    """Only the options of this vendor are returned, as a copy."""
    extra = {"vendor": {"a": 1}, "other": {"b": 2}}

    options = own_options("vendor", extra)
    options["a"] = 2

    assert extra["vendor"] == {"a": 1}
    assert own_options("third", extra) == own_options("vendor", None) == {}


def test_audio_is_handed_on_as_it_comes() -> None:
    """Audio is passed on as it arrives, without empty chunks."""
    chunks = chain([b"", b"\1"], (pytest.fail("too early") for _ in "x"))

    assert next(check_audio("vendor", {"content-type": "audio/pcm"}, chunks)) == b"\1"
    assert list(check_audio("vendor", {}, [b"\1", b"", b"\2"])) == [b"\1", b"\2"]


@pytest.mark.parametrize(
    ("kind", "chunks"),
    [
        ("audio/pcm", []),
        ("audio/pcm", [b"", b""]),
        ("text/html; charset=utf-8", [b"\1"]),
        ("Application/JSON", [b"\1"]),
    ],
)
def test_no_audio(kind: str, chunks: list[bytes]) -> None:
    """An empty response, an HTML page and JSON raise."""
    with pytest.raises(ConnectionError, match="vendor answered"):
        list(check_audio("vendor", {"content-type": kind}, chunks))
