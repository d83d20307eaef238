"""A speech synthesiser in a child process that is stopped: `attempt_timeout`."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic

import pytest
from typing_extensions import override

from resilience import FallbackConfig, TTSFallback, tts
from resilience.testing import FakeTTS

FLITE = shutil.which("flite")
VOICE = tts.VoiceProfile(id="slt", sample_rate=16_000)
TIMEOUT = 1.0


class Flite(tts.Provider):
    """Speaks with the program `flite`; its child process may be stopped when it has started."""

    def __init__(self, *, stop: bool) -> None:
        """Let the child processes work, or stop them."""
        self._stop = stop
        self.children: list[subprocess.Popen[bytes]] = []

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        """Pass the whole text at once, and return the audio as it arrives."""
        command = ["flite", "-voice", voice.id, "-t", "".join(text), "-o", "/dev/stdout"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:  # noqa: S603
            self.children.append(child)
            if self._stop:
                os.kill(child.pid, signal.SIGSTOP)
            assert child.stdout is not None
            while audio := child.stdout.read(4096):
                yield audio
        if child.returncode != 0:
            msg = f"flite ended with {child.returncode}"
            raise RuntimeError(msg)

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        return (VOICE,)

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


@pytest.mark.skipif(FLITE is None, reason="flite is not installed")
def test_a_stopped_child_costs_one_timeout() -> None:
    """The next synthesiser speaks in less than 1.2 seconds, and has the whole text."""
    stopped, backup = Flite(stop=True), FakeTTS()
    speech = TTSFallback(stopped, "stopped", FallbackConfig(attempt_timeout=TIMEOUT))
    speech.add_fallback("backup", backup)

    begin = monotonic()
    audio = b"".join(speech.synthesize_stream(iter(["Hello ", "there."]), VOICE))
    took = monotonic() - begin

    (child,) = stopped.children
    child.kill()
    assert audio == b"Hello there."
    assert TIMEOUT <= took < TIMEOUT + 0.2


@pytest.mark.skipif(FLITE is None, reason="flite is not installed")
def test_a_working_child_is_heard() -> None:
    """The audio of a synthesiser that works within the limit is passed on unchanged."""
    speech = TTSFallback(Flite(stop=False), "flite", FallbackConfig(attempt_timeout=30.0))

    audio = b"".join(speech.synthesize_stream(["Hello there."], VOICE))

    assert len(audio) > 16_000  # half a second of 16-bit samples at 16 kHz
