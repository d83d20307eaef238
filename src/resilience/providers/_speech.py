"""What the speech providers share: cutting a text, choosing a format, checking the audio."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar, cast

from resilience import tts
from resilience.exceptions import UnsupportedRequestError

T = TypeVar("T")

PCM = "pcm_s16le"
JOINABLE = {PCM, "mulaw", "alaw", "mp3", "aac"}  # audio of several requests may be concatenated

SHORTEST = 40  # characters of the first request, unless the text is shorter
LONGEST = 1_000  # characters of one request; no vendor accepts fewer

# A full stop or the like with closing quotes and a blank, a full stop of Chinese, or a new line.
_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019\xbb)\]]*\s|[\u3002\uff01\uff1f\n]")


def refuse(vendor: str, setting: str, value: object) -> NoReturn:
    """Raise `UnsupportedRequestError` for a setting that a vendor cannot carry."""
    msg = f"{vendor} does not support {setting}={value!r}"
    raise UnsupportedRequestError(msg)


def own_options(vendor: str, extra: Mapping[str, object] | None) -> dict[str, Any]:
    """Return the options of one vendor."""
    return dict(cast("Mapping[str, object]", (extra or {}).get(vendor) or {}))


def check_manner(
    vendor: str, voice: tts.VoiceProfile, *, slowest: float, fastest: float, instructions: bool
) -> None:
    """Refuse a pitch, and a speed or instructions that the vendor does not take."""
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
        UnsupportedRequestError: There is none.
    """
    rates = formats.get(voice.encoding or PCM)
    if rates is None:
        refuse(vendor, "encoding", voice.encoding)
    rate = next(iter(rates)) if voice.sample_rate is None else voice.sample_rate
    if rate not in rates:
        refuse(vendor, "sample_rate", voice.sample_rate)
    return rates[rate]


def pieces(text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[str]:
    """Yield the text of each request: some sentences, as soon as they have been read.

    The whole text is one piece if the audio of several requests would be no valid file.
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
                # While a piece is heard the next one is written, which may be longer; a long text
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
    """Tell whether there is something to pronounce: a letter or a digit, in any script."""
    return any(map(str.isalnum, text))


def check_audio(
    vendor: str, headers: Mapping[str, str], chunks: Iterable[bytes]
) -> Iterator[bytes]:
    """Yield the audio of a response.

    Raises:
        ConnectionError: The response is no audio, or is empty.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind == "application/json":
        msg = f"{vendor} answered with {kind}, which is no audio"
        raise ConnectionError(msg)
    is_empty = True
    for chunk in filter(None, chunks):
        is_empty = False
        yield chunk
    if is_empty:
        msg = f"{vendor} answered without audio"
        raise ConnectionError(msg)
