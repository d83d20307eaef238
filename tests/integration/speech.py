"""Texts and their audio: `flite` speaks and pocketsphinx recognises, both on this machine."""

import re
import subprocess
from functools import cache
from threading import Lock

import pocketsphinx

from resilience import stt, tts

SAMPLE_RATE = 16_000
QUESTION = "what is rain"
ANSWERS = tuple(f"this is {name} rain is water from clouds" for name in ("primary", "backup"))
PHRASES = tuple(stt.Keyword(text=text) for text in (QUESTION, *ANSWERS))
SILENCE = bytes(SAMPLE_RATE)  # half a second, which ends an utterance
VOICES = {
    name: tts.VoiceProfile(id=name, language="en-US", sample_rate=SAMPLE_RATE)
    for name in ("slt", "rms")
}

_engine = Lock()  # pocketsphinx is not thread-safe


def answer_of(name: str) -> str:
    """Return the text that a model with a name writes."""
    return f"This is {name}: rain is water from clouds."


def words_of(text: str) -> str:
    """Return the words of a text as a recogniser writes them."""
    return " ".join(re.findall("[a-z]+", text.lower()))


def flite_arguments(text: str, voice: str) -> list[str]:
    """Return the arguments with which `flite` writes a WAV file to its output."""
    return ["-voice", voice, "-t", text, "-o", "/dev/stdout"]


@cache
def speak(text: str, voice: str = "slt") -> bytes:
    """Return a text as 16-bit PCM at 16 kHz."""
    command = ["flite", *flite_arguments(text, voice)]
    wav = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout  # noqa: S603
    return wav[44:]  # without its header


@cache
def recognise(audio: bytes) -> str:
    """Return the recognised phrase, one of those that the tests use.

    The same audio is recognised once, to save time.
    """
    with _engine:
        decoder = _decoder()
        decoder.start_utt()
        decoder.process_raw(audio, full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp()
    return heard.hypstr if heard else ""


@cache
def _decoder() -> pocketsphinx.Decoder:
    decoder = pocketsphinx.Decoder(lm=None, samprate=SAMPLE_RATE, loglevel="FATAL")
    phrases = " | ".join(keyword.text for keyword in PHRASES)
    decoder.add_jsgf_string("turn", f"#JSGF V1.0; grammar turn; public <turn> = {phrases};")
    decoder.activate_search("turn")
    return decoder
