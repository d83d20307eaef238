"""A spoken conversation that continues while its recogniser, model and synthesiser fail.

It needs two programs and two packages; it makes no connection to another machine. On Debian:

    sudo apt-get install python3-venv flite espeak-ng
    python3 -m venv .venv && .venv/bin/pip install -q . pocketsphinx
    .venv/bin/python docs/examples/voice_turn.py

With `--play` the questions and answers are also played, if the machine has a sound card and one of
the programs aplay, paplay, afplay, ffplay and play.

The program `flite` speaks the user's question. The answer takes three steps, each with a primary
and a backup:

    STTFallback   pocketsphinx     recognises the question
    LLMFallback   llm_server.py    answers it, in a process that can be killed
    TTSFallback   espeak-ng, flite speaks the answer

Then the spoken answer is recognised again, to check that the user can understand it. A turn is lost
if a word is missing. Before each turn something is broken or repaired, and the timeline shows which
providers failed and which answered. The exit status is 0 if no turn was lost, 1 if one was, and 2
if a program or a package is missing; then it prints everything that is missing.
"""

import argparse
import contextlib
import importlib
import logging
import re
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

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

pocketsphinx: Any = None  # a missing one is named together with the programs that are missing
with contextlib.suppress(ImportError):
    pocketsphinx = importlib.import_module("pocketsphinx")

QUESTION = "what is rain"
ANSWERS = [f"this is {name} rain is water from clouds" for name in ("primary", "backup")]
PHRASES = tuple(stt.Keyword(text=phrase) for phrase in (QUESTION, *ANSWERS))
SILENCE = bytes(16_000)
ESPEAK_ARGUMENTS = ("-v", "{voice}", "-s", "140", "--stdout", "--", "{text}")
FLITE_ARGUMENTS = ("-voice", "{voice}", "-t", "{text}", "-o", "/dev/stdout")
SECONDS_UNTIL_PROBE = 2.0

ESPEAK_VOICE = tts.VoiceProfile(id="en-us+f3", sample_rate=22_050)
FLITE_VOICE = tts.VoiceProfile(id="slt", sample_rate=16_000)
SAMPLE_RATES = {"primary": 22_050, "backup": 16_000}  # of the two synthesisers

PLAYERS = {  # and the arguments with which each plays a WAV file and ends
    "aplay": ("-q",),
    "paplay": (),
    "afplay": (),
    "ffplay": ("-nodisp", "-autoexit", "-loglevel", "error"),
    "play": ("-q",),
}


class Recogniser(stt.Provider):
    """pocketsphinx, which recognises only the keywords of the session."""

    def __init__(self, model: Path) -> None:
        """Use the acoustic model in a directory; each session loads it again."""
        self._model = model

    def start_stream(self, config: stt.StreamConfig) -> "RecogniserSession":
        """Load the model."""
        return RecogniserSession(self._model, config)


class RecogniserSession(stt.SessionHandle):
    """A session in which a silent piece of audio ends an utterance."""

    def __init__(self, model: Path, config: stt.StreamConfig) -> None:
        """Load the model; raises if it does not exist."""
        dictionary = pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")
        self._decoder = pocketsphinx.Decoder(
            hmm=str(model), dict=dictionary, lm=None, samprate=config.sample_rate, loglevel="FATAL"
        )
        self._finals = SimpleQueue[stt.Transcript | None]()
        self._audio = b""
        self.set_keywords(config.keywords)

    def send_audio(self, audio: bytes) -> None:
        """Collect the audio of an utterance, and recognise it at its end."""
        self._audio += audio
        if any(audio):
            return
        self._decoder.start_utt()
        self._decoder.process_raw(self._audio, full_utt=True)
        self._decoder.end_utt()
        self._audio = b""
        result = self._decoder.hyp()
        self._finals.put(stt.Transcript(text=result.hypstr if result else "", is_final=True))

    def partials(self) -> Iterator[stt.Transcript]:
        """Return no transcripts: only whole utterances are recognised."""
        return iter(())

    def finals(self) -> Iterator[stt.Transcript]:
        """Return one transcript for each utterance, until the session is closed."""
        return iter(self._finals.get, None)

    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        """Recognise these phrases only."""
        phrases = " | ".join(keyword.text for keyword in keywords)
        self._decoder.add_jsgf_string("turn", f"#JSGF V1.0; grammar turn; public <s> = {phrases};")
        self._decoder.activate_search("turn")

    def close(self) -> None:
        """End the transcripts."""
        self._finals.put(None)


class SpeechError(Exception):
    """A program ended before the end of the speech."""


class Synthesiser(tts.Provider):
    """A program that writes a WAV file to its standard output."""

    def __init__(self, program: str, arguments: Sequence[str], voice: tts.VoiceProfile) -> None:
        """Speak with a program; its arguments are formatted with `voice` and `text`."""
        self.program = program
        self.killed_after = sys.maxsize  # bytes of audio
        self._arguments = arguments
        self._voice = voice

    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        """Read the whole text, and yield the audio as the program writes it."""
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
        if child.returncode != 0:  # without this check, the audio would be too short, but no error
            msg = f"{self.program} ended with {child.returncode}"
            raise SpeechError(msg)

    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        """Return the one voice that this conversation uses."""
        return (self._voice,)

    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Raise: the program cannot clone voices."""
        raise NotImplementedError


def recognise(recogniser: stt.Provider, audio: bytes, sample_rate: int) -> str:
    """Return the words of one utterance."""
    config = stt.StreamConfig(sample_rate=sample_rate, keywords=PHRASES)
    with contextlib.closing(recogniser.start_stream(config)) as session:
        session.send_audio(audio)
        session.send_audio(SILENCE)
        return next(iter(session.finals())).text


class Timeline:
    """Prints events when they happen."""

    def __init__(self) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def show(self, source: str, text: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self._start:5.2f} s  {source:<11}  {text}", flush=True)

    def config(self, kind: str) -> FallbackConfig:
        """Return settings for one kind of provider, with a listener that prints each attempt."""

        def on_attempt(attempt: Attempt) -> None:
            error = f" ({type(attempt.error).__name__}: {attempt.error})" if attempt.error else ""
            self.show(kind, f"{attempt.provider} {attempt.outcome}{error}")

        breaker = CircuitBreakerConfig(
            max_failures=1, reset_timeout=SECONDS_UNTIL_PROBE, half_open_max=1
        )
        return FallbackConfig(circuit_breaker=breaker, on_attempt=on_attempt)


class Assistant:
    """A recogniser, a model and a synthesiser, each with a primary and a backup."""

    def __init__(self, timeline: Timeline, parts: contextlib.ExitStack) -> None:
        """Start all parts; closing the stack ends them."""
        self._timeline = timeline
        model = Path(pocketsphinx.get_model_path("en-us/en-us"))
        self._model = Path(parts.enter_context(TemporaryDirectory())) / "model"
        self._model.symlink_to(model)
        primary = Recogniser(self._model)
        self._recogniser = STTFallback(primary, "primary", timeline.config("recogniser"))
        self._recogniser.add_fallback("backup", Recogniser(model))

        self._server = parts.enter_context(contextlib.closing(ServerProcess("primary")))
        backup = parts.enter_context(contextlib.closing(ServerProcess("backup")))
        server = HttpLLM("127.0.0.1", self._server.port)
        self._llm = LLMFallback(server, "primary", timeline.config("model"))
        self._llm.add_fallback("backup", HttpLLM("127.0.0.1", backup.port))

        self._espeak = Synthesiser("espeak-ng", ESPEAK_ARGUMENTS, ESPEAK_VOICE)
        flite = Synthesiser("flite", FLITE_ARGUMENTS, FLITE_VOICE)
        self._synthesiser = TTSFallback(self._espeak, "primary", timeline.config("synthesiser"))
        self._synthesiser.add_fallback("backup", flite, voices={ESPEAK_VOICE.id: FLITE_VOICE})

    def answer(self, question: bytes) -> tuple[str, bytes, int]:
        """Return the answer to a spoken question: its text, its audio, its sample rate in Hz."""
        words = recognise(self._recogniser, question, 16_000)
        self._timeline.show("recogniser", f'recognised "{words}"')
        text: list[str] = []
        try:
            audio, sample_rate = self._speak(self._answer(words, text))
        except SpeechError as error:
            # The user has already heard the beginning. The application decides what to do now.
            # This one speaks the answer again; the breaker of the broken synthesiser is open.
            self._timeline.show("synthesiser", f"broke off ({error}), the answer is spoken again")
            audio, sample_rate = self._speak(text)
        return "".join(text), audio, sample_rate

    def _answer(self, words: str, text: list[str]) -> Iterator[str]:
        """Yield the fragments of an answer as they arrive, and add them to a list."""
        message = llm.Message(role="user", content=words)
        request = llm.CompletionRequest(messages=(message,), max_tokens=8)
        with self._llm.stream_completion(request) as completion:
            for chunk in completion:
                text.append(chunk.content)
                yield chunk.content

    def _speak(self, text: Iterable[str]) -> tuple[bytes, int]:
        with self._synthesiser.synthesize_stream(text, ESPEAK_VOICE) as speech:
            audio = b"".join(speech)
            return audio, SAMPLE_RATES[str(speech.provider)]

    def cut_speech(self) -> None:
        """Kill the primary synthesiser with SIGKILL in the middle of each sentence."""
        self._espeak.killed_after = 30_000

    def kill_server(self) -> None:
        """Kill the primary model's server with SIGKILL."""
        self._server.close()

    def remove_files(self) -> None:
        """Remove the files of the primary recogniser and the primary synthesiser."""
        time.sleep(SECONDS_UNTIL_PROBE)  # so that each primary is tried again
        self._model.unlink()
        self._espeak.program = "espeak-ng-is-missing"

    def repair(self) -> None:
        """Repair all parts."""
        self._model.symlink_to(pocketsphinx.get_model_path("en-us/en-us"))
        self._server.start()
        self._espeak.program = "espeak-ng"
        self._espeak.killed_after = sys.maxsize
        time.sleep(SECONDS_UNTIL_PROBE)


class Player:
    """Plays audio with the first of the known programs that this machine has."""

    def __init__(self) -> None:
        """Look for a program."""
        self.program = next(filter(None, map(shutil.which, PLAYERS)), None)

    def play(self, audio: bytes, sample_rate: int) -> None:
        """Play 16-bit samples of one channel to their end; after an error, play nothing more."""
        if self.program is None:
            return
        with TemporaryDirectory() as folder:
            file = Path(folder) / "speech.wav"
            with wave.open(str(file), "wb") as writer:
                writer.setparams((1, 2, sample_rate, 0, "NONE", ""))
                writer.writeframes(audio)
            arguments = PLAYERS[Path(self.program).stem]
            done = subprocess.run([self.program, *arguments, file], check=False)
        if done.returncode:
            print(f"nothing can be heard: {self.program} failed", file=sys.stderr)
            self.program = None


def turn(assistant: Assistant, timeline: Timeline, player: Player | None) -> bool:
    """Speak a question and recognise the answer; return whether every word was recognised."""
    user = Synthesiser("flite", FLITE_ARGUMENTS, FLITE_VOICE)
    question = b"".join(user.synthesize_stream([QUESTION], FLITE_VOICE))
    timeline.show("user", f'asks "{QUESTION}"')
    if player:
        player.play(question, FLITE_VOICE.sample_rate or 0)
    try:
        text, audio, sample_rate = assistant.answer(question)
    except Exception as error:  # noqa: BLE001 - after any exception there is no answer
        timeline.show("user", f"hears nothing ({type(error).__name__}: {error})")
        return False
    if player:
        player.play(audio, sample_rate)
    listener = Recogniser(Path(pocketsphinx.get_model_path("en-us/en-us")))
    heard = recognise(listener, audio, sample_rate)
    timeline.show("user", f'hears "{heard}"')
    return heard == " ".join(re.findall("[a-z]+", text.lower()))


def find_missing(player: Player | None) -> list[str]:
    """Return the names of what has to be installed first."""
    missing = [f"the program {name}" for name in ("flite", "espeak-ng") if not shutil.which(name)]
    if pocketsphinx is None:
        missing.append("the package pocketsphinx")
    if player and player.program is None:
        missing.append(f"a program that plays sound ({', '.join(PLAYERS)})")
    return missing


def main() -> int:
    """Run all turns; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--play", action="store_true", help="play the questions and the answers")
    player = Player() if parser.parse_args().play else None
    if missing := find_missing(player):
        needs = str(__doc__).split("\n\n")[2]
        print(f"missing: {', '.join(missing)}. To install all:\n\n{needs}", file=sys.stderr)
        return 2
    # The timeline shows the same events.
    logging.getLogger("resilience").addHandler(logging.NullHandler())
    timeline = Timeline()
    with contextlib.ExitStack() as parts:
        assistant = Assistant(timeline, parts)
        turns: list[tuple[str, Callable[[], None]]] = [
            ("everything works", lambda: None),
            ("the primary synthesiser is killed in each sentence", assistant.cut_speech),
            ("the primary model's server is killed too", assistant.kill_server),
            ("files of the primary recogniser and synthesiser are missing", assistant.remove_files),
            ("everything is repaired", assistant.repair),
        ]
        lost = 0
        for number, (text, prepare) in enumerate(turns, start=1):
            prepare()
            timeline.show(f"-- turn {number}", text)
            lost += not turn(assistant, timeline, player)
    print(f"{len(turns)} turns, {lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
