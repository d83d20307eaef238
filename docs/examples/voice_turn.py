"""A conversation by voice that goes on while its recogniser, its model and its speaker break.

It needs two programs and two packages; nothing leaves this machine:

    sudo apt-get install flite espeak-ng
    pip install . pocketsphinx
    python docs/examples/voice_turn.py

The program `flite` plays the user and asks a question. The answer takes three steps, each behind
one object with a primary and a backup:

    STTFallback   pocketsphinx     turns the question into words
    LLMFallback   llm_server.py    answers it, in a process that can be killed
    TTSFallback   espeak-ng, flite speaks the answer

Then the answer is recognised again, as if the user listened. A turn is lost if the user does not
hear every word. Before each turn something is broken or repaired, and the timeline shows who
failed and who stood in. The exit status is 0 if no turn was lost, 1 if one was, and 2 if a
program or a package is missing.
"""

import contextlib
import logging
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from outage import HttpLLM, ServerProcess
from resilience import (
    Attempt,
    CircuitBreakerConfig,
    FallbackConfig,
    LLMFallback,
    STTFallback,
    TTSFallback,
    llm,
    stt,
    tts,
)

try:
    import pocketsphinx
except ImportError:
    print("the package pocketsphinx is missing: pip install pocketsphinx", file=sys.stderr)
    sys.exit(2)

QUESTION = "what is rain"
ANSWERS = [f"this is {name} rain is water from clouds" for name in ("primary", "backup")]
PHRASES = tuple(stt.Keyword(text=phrase) for phrase in (QUESTION, *ANSWERS))
SILENCE = bytes(16_000)
ESPEAK_ARGUMENTS = ("-v", "{voice}", "-s", "140", "--stdout", "--", "{text}")
FLITE_ARGUMENTS = ("-voice", "{voice}", "-t", "{text}", "-o", "/dev/stdout")
SECONDS_UNTIL_PROBE = 2.0

ESPEAK_VOICE = tts.VoiceProfile(id="en-us+f3", sample_rate=22_050)
FLITE_VOICE = tts.VoiceProfile(id="slt", sample_rate=16_000)
SAMPLE_RATES = {"primary": 22_050, "backup": 16_000}  # of the two speakers


class Recogniser(stt.Provider):
    """pocketsphinx, which hears nothing but the keywords of the session."""

    def __init__(self, model: Path) -> None:
        """Use the acoustic model in a directory, which each session loads anew."""
        self._model = model

    def start_stream(self, config: stt.StreamConfig) -> "Hearing":
        """Load the model."""
        return Hearing(self._model, config)


class Hearing(stt.SessionHandle):
    """A session, in which a silent piece of audio ends an utterance."""

    def __init__(self, model: Path, config: stt.StreamConfig) -> None:
        """Load the model; raises if it is not there."""
        dictionary = pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")
        self._decoder = pocketsphinx.Decoder(
            hmm=str(model), dict=dictionary, lm=None, samprate=config.sample_rate, loglevel="FATAL"
        )
        self._finals = SimpleQueue[stt.Transcript | None]()
        self._audio = b""
        self.set_keywords(config.keywords)

    def send_audio(self, audio: bytes) -> None:
        """Collect what is said, and recognise it when it ends."""
        self._audio += audio
        if any(audio):
            return
        self._decoder.start_utt()
        self._decoder.process_raw(self._audio, full_utt=True)
        self._decoder.end_utt()
        self._audio = b""
        heard = self._decoder.hyp()
        self._finals.put(stt.Transcript(text=heard.hypstr if heard else "", is_final=True))

    def partials(self) -> Iterator[stt.Transcript]:
        """Return nothing: it recognises whole utterances."""
        return iter(())

    def finals(self) -> Iterator[stt.Transcript]:
        """Return what was heard, until the session is closed."""
        return iter(self._finals.get, None)

    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        """Hear these phrases and no others."""
        phrases = " | ".join(keyword.text for keyword in keywords)
        self._decoder.add_jsgf_string("turn", f"#JSGF V1.0; grammar turn; public <s> = {phrases};")
        self._decoder.activate_search("turn")

    def close(self) -> None:
        """End the transcripts."""
        self._finals.put(None)


class SpeechError(Exception):
    """A program did not speak to the end."""


class Speaker(tts.Provider):
    """A program that writes a WAV file to its standard output."""

    def __init__(self, program: str, arguments: Sequence[str], voice: tts.VoiceProfile) -> None:
        """Speak with a program; its arguments are formatted with `voice` and `text`."""
        self.program = program
        self.killed_after = sys.maxsize  # bytes of audio
        self._arguments = arguments
        self._voice = voice

    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        """Take the whole text, and yield the audio as the program writes it."""
        words = "".join(text)
        arguments = [each.format(voice=voice.id, text=words) for each in self._arguments]
        spoken = 0
        with subprocess.Popen([self.program, *arguments], stdout=subprocess.PIPE) as child:
            assert child.stdout
            child.stdout.read(44)  # the header of the WAV file
            while audio := child.stdout.read(8_000):
                yield audio
                spoken += len(audio)
                if spoken > self.killed_after:
                    child.kill()
        if child.returncode != 0:  # unseen, this would be a short answer and no error
            msg = f"{self.program} ended with {child.returncode}"
            raise SpeechError(msg)

    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        """Return the one voice that this conversation uses."""
        return (self._voice,)

    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Refuse: such a program has the voices that it has."""
        raise NotImplementedError


def listen(recogniser: stt.Provider, audio: bytes, sample_rate: int) -> str:
    """Return the words of one utterance."""
    config = stt.StreamConfig(sample_rate=sample_rate, keywords=PHRASES)
    with contextlib.closing(recogniser.start_stream(config)) as session:
        session.send_audio(audio)
        session.send_audio(SILENCE)
        return next(iter(session.finals())).text


class Timeline:
    """Shows what happens when it happens."""

    def __init__(self) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def show(self, who: str, what: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self._start:5.2f} s  {who:<10}  {what}", flush=True)

    def config(self, kind: str) -> FallbackConfig:
        """Return settings for one kind of providers, with a listener that shows each attempt."""

        def on_attempt(attempt: Attempt) -> None:
            error = f" ({type(attempt.error).__name__}: {attempt.error})" if attempt.error else ""
            self.show(kind, f"{attempt.provider} {attempt.outcome}{error}")

        breaker = CircuitBreakerConfig(
            max_failures=1, reset_timeout=SECONDS_UNTIL_PROBE, half_open_max=1
        )
        return FallbackConfig(circuit_breaker=breaker, on_attempt=on_attempt)


class Assistant:
    """Hears, thinks and speaks, each with a primary and a backup, and can be broken."""

    def __init__(self, timeline: Timeline, parts: contextlib.ExitStack) -> None:
        """Start all parts, which end with the stack."""
        self._timeline = timeline
        model = Path(pocketsphinx.get_model_path("en-us/en-us"))
        self._model = Path(parts.enter_context(TemporaryDirectory())) / "model"
        self._model.symlink_to(model)
        self._hearing = STTFallback(Recogniser(self._model), "primary", timeline.config("hearing"))
        self._hearing.add_fallback("backup", Recogniser(model))

        self._server = parts.enter_context(contextlib.closing(ServerProcess("primary")))
        spare = parts.enter_context(contextlib.closing(ServerProcess("backup")))
        primary = HttpLLM("127.0.0.1", self._server.port)
        self._thinking = LLMFallback(primary, "primary", timeline.config("thinking"))
        self._thinking.add_fallback("backup", HttpLLM("127.0.0.1", spare.port))

        self._speaker = Speaker("espeak-ng", ESPEAK_ARGUMENTS, ESPEAK_VOICE)
        flite = Speaker("flite", FLITE_ARGUMENTS, FLITE_VOICE)
        self._speaking = TTSFallback(self._speaker, "primary", timeline.config("speaking"))
        self._speaking.add_fallback("backup", flite, voices={ESPEAK_VOICE.id: FLITE_VOICE})

    def answer(self, question: bytes) -> tuple[str, bytes, int]:
        """Return the answer to a spoken question: its text, its audio, its sample rate in Hz."""
        words = listen(self._hearing, question, 16_000)
        self._timeline.show("hearing", f'heard "{words}"')
        text: list[str] = []
        try:
            audio, sample_rate = self._speak(self._think(words, text))
        except SpeechError as error:
            # The user has heard the beginning. Only the application knows what to do then; this
            # one begins again, and the breaker keeps it from the same speaker.
            self._timeline.show("speaking", f"was cut ({error}), so it is said again")
            audio, sample_rate = self._speak(text)
        return "".join(text), audio, sample_rate

    def _think(self, words: str, text: list[str]) -> Iterator[str]:
        """Yield the fragments of an answer as they come, and add them to a list."""
        message = llm.Message(role="user", content=words)
        request = llm.CompletionRequest(messages=(message,), max_tokens=8)
        with self._thinking.stream_completion(request) as completion:
            for chunk in completion:
                text.append(chunk.content)
                yield chunk.content

    def _speak(self, text: Iterable[str]) -> tuple[bytes, int]:
        with self._speaking.synthesize_stream(text, ESPEAK_VOICE) as speech:
            audio = b"".join(speech)
            return audio, SAMPLE_RATES[str(speech.provider)]

    def cut_speech(self) -> None:
        """Let the primary speaker be killed (SIGKILL) in each sentence."""
        self._speaker.killed_after = 30_000

    def kill_server(self) -> None:
        """Kill the primary model's server (SIGKILL)."""
        self._server.close()

    def lose_files(self) -> None:
        """Let the primary recogniser's model and the primary speaker's program be missing."""
        time.sleep(SECONDS_UNTIL_PROBE)  # so that each primary is tried again
        self._model.unlink()
        self._speaker.program = "espeak-ng-is-missing"

    def repair(self) -> None:
        """Make everything as it was."""
        self._model.symlink_to(pocketsphinx.get_model_path("en-us/en-us"))
        self._server.start()
        self._speaker.program = "espeak-ng"
        self._speaker.killed_after = sys.maxsize
        time.sleep(SECONDS_UNTIL_PROBE)


def turn(assistant: Assistant, timeline: Timeline) -> bool:
    """Ask a question aloud and listen to the answer; return whether every word came back."""
    user = Speaker("flite", FLITE_ARGUMENTS, FLITE_VOICE)
    question = b"".join(user.synthesize_stream([QUESTION], FLITE_VOICE))
    timeline.show("user", f'says "{QUESTION}"')
    try:
        text, audio, sample_rate = assistant.answer(question)
    except Exception as error:  # noqa: BLE001 - whatever it is, there is no answer
        timeline.show("user", f"hears nothing ({type(error).__name__}: {error})")
        return False
    ear = Recogniser(Path(pocketsphinx.get_model_path("en-us/en-us")))
    heard = listen(ear, audio, sample_rate)
    timeline.show("user", f'hears "{heard}"')
    return heard == " ".join(re.findall("[a-z]+", text.lower()))


def main() -> int:
    """Run all turns; return the exit status."""
    if missing := [program for program in ("flite", "espeak-ng") if not shutil.which(program)]:
        print(f"missing: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    logging.getLogger("resilience").addHandler(logging.NullHandler())  # the timeline says it all
    timeline = Timeline()
    with contextlib.ExitStack() as parts:
        assistant = Assistant(timeline, parts)
        turns: list[tuple[str, Callable[[], None]]] = [
            ("everything works", lambda: None),
            ("the primary speaker is killed in mid-sentence", assistant.cut_speech),
            ("the primary model's server is killed, too", assistant.kill_server),
            ("the files of primary recogniser and speaker are missing", assistant.lose_files),
            ("everything is repaired", assistant.repair),
        ]
        lost = 0
        for number, (what, happen) in enumerate(turns, start=1):
            happen()
            timeline.show(f"-- turn {number}", what)
            lost += not turn(assistant, timeline)
    print(f"{len(turns)} turns, {lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
