"""Functions that the speech providers share: split a text, choose a format, check the audio."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn, TypeVar

from resilience import tts
from resilience.exceptions import UnsupportedRequestError

T = TypeVar("T")

PCM = "pcm_s16le"
JOINABLE = {PCM, "mulaw", "alaw", "mp3", "aac"}  # audio of several requests may be concatenated

SHORTEST = 40  # characters of the first request; fewer only if the whole text is shorter
LONGEST = 1_000  # characters of one request; every vendor accepts at least so many

# The end of a sentence: punctuation, closing quotes and a space; CJK punctuation; or a newline.
_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019\xbb)\]]*\s|[\u3002\uff01\uff1f\n]")


def refuse(vendor: str, setting: str, value: object) -> NoReturn:
    """Raise `UnsupportedRequestError` for a setting that a vendor does not support."""
    msg = f"{vendor} does not support {setting}={value!r}"
    raise UnsupportedRequestError(msg)


def check_speaking_style(
    vendor: str, voice: tts.VoiceProfile, *, slowest: float, fastest: float, instructions: bool
) -> None:
    """Refuse a pitch, a speed outside the range, and instructions that are not supported."""
    if voice.pitch:
        refuse(vendor, "pitch", voice.pitch)
    if not slowest <= voice.speed <= fastest:
        refuse(vendor, "speed", voice.speed)
    if voice.instructions and not instructions:
        refuse(vendor, "instructions", voice.instructions)


def choose_format(
    vendor: str, voice: tts.VoiceProfile, formats: Mapping[str, Mapping[int, T]]
) -> T:
    """Return the vendor's format for a voice.

    Args:
        vendor: Name of the vendor.
        voice: The voice, with an encoding and a sample rate.
        formats: Formats T of the vendor by encoding and sample rate, in Hz; the first rate of an
            encoding is its default.

    Returns:
        The format.

    Raises:
        UnsupportedRequestError: The vendor has no such format.
    """
    rates = formats.get(voice.encoding or PCM)
    if rates is None:
        refuse(vendor, "encoding", voice.encoding)
    rate = next(iter(rates)) if voice.sample_rate is None else voice.sample_rate
    if rate not in rates:
        refuse(vendor, "sample_rate", voice.sample_rate)
    return rates[rate]


def split_text(text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[str]:
    """Yield the text of each request: some sentences, as soon as they have been read.

    The whole text is one piece if the audio of several requests cannot be concatenated.
    """
    if (voice.encoding or PCM) in JOINABLE:
        yield from _sentences(text)
    elif _has_text(whole := "".join(text)):
        yield whole


def _sentences(text: Iterable[str]) -> Iterator[str]:
    rest, shortest = "", SHORTEST
    for fragment in text:
        rest += fragment
        while end := _end_of_piece(rest, shortest):
            piece, rest = rest[:end], rest[end:]
            if _has_text(piece):
                yield piece
                # The next piece is read while this one is played, so it may be longer: a long text
                # takes few requests.
                shortest = min(2 * shortest, LONGEST // 2)
    if _has_text(rest):
        yield rest


def _end_of_piece(text: str, shortest: int) -> int:
    """Return where the first piece of a text ends; 0 if it is not complete."""
    match = _END.search(text, shortest)
    if match and match.end() <= LONGEST:
        return match.end()
    if len(text) <= LONGEST:
        return 0
    return text.rfind(" ", 0, LONGEST) + 1 or LONGEST


def _has_text(text: str) -> bool:
    """Return whether a text has a letter or a digit, in any script."""
    return any(map(str.isalnum, text))


def check_audio(
    vendor: str, headers: Mapping[str, str], chunks: Iterable[bytes]
) -> Iterator[bytes]:
    """Yield the audio of a response.

    Raises:
        ConnectionError: The response has another content type, or is empty.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind == "application/json":
        msg = f"{vendor} answered with {kind}, which is not audio"
        raise ConnectionError(msg)
    is_empty = True
    for chunk in filter(None, chunks):
        is_empty = False
        yield chunk
    if is_empty:
        msg = f"{vendor} answered without audio"
        raise ConnectionError(msg)
