"""Providers for programs on this machine, which may be missing, killed or stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from enum import Enum, auto
from pathlib import Path
from queue import SimpleQueue
from typing import IO, final

from typing_extensions import override

from integration.opening import open_at_first_next, open_at_once
from integration.speech import VOICES, flite_arguments, recognise, speak
from resilience import stt, tts

LLM_SERVER = Path(__file__).parents[2] / "docs" / "examples" / "llm_server.py"
PIECE = 4_000  # bytes of audio


class Fault(Enum):
    """What happens to a program."""

    NONE = auto()
    MISSING = auto()
    KILLED_AT_START = auto()
    KILLED_IN_THE_MIDDLE = auto()
    STOPPED = auto()


class Children:
    """Starts child processes of a program, each with the same fault."""

    def __init__(self, program: str, fault: Fault) -> None:
        """Start nothing yet."""
        self._program = f"{program}-is-missing" if fault is Fault.MISSING else program
        self.fault = fault
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a child process, with its fault if the fault is at the start."""
        child = subprocess.Popen(  # noqa: S603
            [self._program, *arguments],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # what this process finds
        )
        self._children.append(child)
        if self.fault is Fault.KILLED_AT_START:
            child.kill()
            _output(child).read()  # its output before that
        elif self.fault is Fault.STOPPED:
            child.send_signal(signal.SIGSTOP)
        return child

    def close(self) -> None:
        """Kill all child processes that still run."""
        for child in self._children:
            child.kill()
            child.wait()


@final
class Flite(tts.Provider):
    """Speech with `flite`, one child process for each text."""

    def __init__(self, fault: Fault = Fault.NONE, *, lazy: bool = True) -> None:
        """Use the same fault for each child; if lazy, it starts at the first `next()`."""
        self._children = Children("flite", fault)
        self._lazy = lazy

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        open_child = open_at_first_next if self._lazy else open_at_once
        return open_child(
            lambda: self._children.start(flite_arguments("".join(text), voice.id)), self._read
        )

    def _read(self, child: subprocess.Popen[bytes]) -> Iterator[bytes]:
        output = _output(child)
        output.read(44)  # the header of the WAV file
        while audio := output.read(PIECE):
            yield audio
            if self._children.fault is Fault.KILLED_IN_THE_MIDDLE:
                child.kill()
        _check(child)

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        return tuple(VOICES.values())

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError

    def close(self) -> None:
        """Kill all child processes that still run."""
        self._children.close()


@final
class RecordedFlite(tts.Provider):
    """Speech with `flite`, which is started once for each text."""

    @override
    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> Iterator[bytes]:
        yield speak("".join(text), voice.id)

    @override
    def list_voices(self) -> Sequence[tts.VoiceProfile]:
        return tuple(VOICES.values())

    @override
    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        raise NotImplementedError


@final
class Pocketsphinx(stt.Provider):
    """Recognition in this process."""

    @override
    def start_stream(self, config: stt.StreamConfig) -> "Session":
        return Session()


class Session(stt.SessionHandle):
    """A session in which a silent piece of audio ends an utterance."""

    def __init__(self) -> None:
        """Wait for audio."""
        self._finals = SimpleQueue[str | None]()
        self._audio = b""

    @override
    def send_audio(self, audio: bytes) -> None:
        self._audio += audio
        if not any(audio):
            self._finals.put(recognise(self._audio))
            self._audio = b""

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return iter(())

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        while (text := self._finals.get()) is not None:
            yield stt.Transcript(text=text, is_final=True)

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        raise NotImplementedError

    @override
    def close(self) -> None:
        self._finals.put(None)


@final
class PocketsphinxProcess(stt.Provider):
    """Recognition with `recogniser.py`, one child process for each session."""

    def __init__(self, fault: Fault = Fault.NONE) -> None:
        """Use the same fault for each child."""
        self._children = Children(sys.executable, fault)

    @override
    def start_stream(self, config: stt.StreamConfig) -> "ProcessSession":
        child = self._children.start(["-m", "integration.recogniser"])
        if _output(child).readline() != b"ready\n":
            with child:
                _check(child)
        return ProcessSession(child, self._children.fault)

    def close(self) -> None:
        """Kill all child processes that still run."""
        self._children.close()


@final
class ProcessSession(stt.SessionHandle):
    """A session with a child process that has loaded its model."""

    def __init__(self, child: subprocess.Popen[bytes], fault: Fault) -> None:
        """Use a child process that has a fault."""
        self._child = child
        self._fault = fault

    @override
    def send_audio(self, audio: bytes) -> None:
        if self._fault is Fault.KILLED_IN_THE_MIDDLE:
            self._child.kill()
            self._child.wait()
        assert self._child.stdin is not None
        self._child.stdin.write(len(audio).to_bytes(4, "big") + audio)

    @override
    def partials(self) -> Iterator[stt.Transcript]:
        return iter(())

    @override
    def finals(self) -> Iterator[stt.Transcript]:
        for line in _output(self._child):
            yield stt.Transcript(text=line.decode().strip(), is_final=True)
        _check(self._child)

    @override
    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        raise NotImplementedError

    @override
    def close(self) -> None:
        with self._child:
            self._child.kill()


@final
class ModelServer:
    """`llm_server.py` in a process of its own, which can be killed."""

    def __init__(self, name: str) -> None:
        """Start the server, and return when it listens."""
        self._parts = ExitStack()
        self._child = self._parts.enter_context(
            subprocess.Popen(  # noqa: S603
                [sys.executable, LLM_SERVER, name, "0"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        self.address = f"127.0.0.1:{int(_output(self._child).readline())}"

    def close(self) -> None:
        """Kill it."""
        self._child.kill()
        self._parts.close()


def _output(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdout is not None
    return child.stdout


def _check(child: subprocess.Popen[bytes]) -> None:
    """Raise if a child process has failed."""
    if child.wait() != 0:
        msg = f"the program ended with {child.returncode}"
        raise ChildProcessError(msg)
