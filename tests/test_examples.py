"""The examples print the described output, name missing parts, and end without an error."""

import importlib
import os
import runpy
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from resilience import CircuitBreakerConfig, FallbackConfig, LLMFallback, llm
from resilience.testing import FakeLLM, ManualClock

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")
REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content="What is rain?"),))


def run(
    name: str, *arguments: str, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an example to its end, without keys."""
    inherited = {name: value for name, value in os.environ.items() if name not in KEYS}
    return subprocess.run(  # noqa: S603
        [sys.executable, EXAMPLES / name, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        env={**inherited, "PYTHONWARNINGS": "ignore", **environment},
        check=False,
    )


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import the examples, without the packages that only one of them needs."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("outage", "voice_turn"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("name", ["chat.py", "outage.py", "voice_turn.py"])
def test_help(name: str) -> None:
    """`--help` shows the docstring, which has the command, and starts nothing."""
    done = run(name, "--help", PATH="/nonexistent")

    assert done.returncode == 0
    assert done.stderr == ""
    assert f"python docs/examples/{name}" in done.stdout


class TestOutage:
    """`outage.py`."""

    def test_begins_with_what_will_be_seen_and_survives_head(self) -> None:
        """Its output may be cut off; it begins with a description and the heads of the columns."""
        command = [sys.executable, str(EXAMPLES / "outage.py")]
        with subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout
            assert child.stderr
            lines = [child.stdout.readline() for _ in range(5)]
            child.stdout.close()
            errors = child.stderr.read()

            assert child.wait(60) == 1
        assert lines[0].startswith("For ten seconds an application calls a model")
        assert lines[4].split() == ["time", "no", "kind", "answer", "from", "took"]
        assert errors == ""

    @pytest.mark.usefixtures("examples")
    def test_causes_stand_before_effects(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A change of state is printed below the call that caused it, a probe above its outcome."""
        timeline: Any = importlib.import_module("outage").Timeline()
        clock = ManualClock()
        breaker = CircuitBreakerConfig(
            max_failures=1,
            reset_timeout=1,
            half_open_max=1,
            clock=clock,
            on_state_change=timeline.on_state_change,
        )
        config = FallbackConfig(circuit_breaker=breaker, on_attempt=timeline.on_attempt)
        refused = ConnectionError("refused")
        model = LLMFallback(FakeLLM(refused, refused, "first"), "primary", config)
        model.add_fallback("backup", FakeLLM("second"))

        for _ in range(3):
            timeline.call(timeline.now(), "plain", model.complete(REQUEST).content, "answered")
            clock.advance(1)

        lines = capsys.readouterr().out.splitlines()
        assert [" ".join(line.split()[2:6]) for line in lines] == [
            "-- primary failed: refused",
            "-- breaker of primary:",
            "1 plain second backup",
            "-- breaker of primary:",
            "-- primary failed: refused",
            "-- breaker of primary:",
            "2 plain second backup",
            "-- breaker of primary:",
            "3 plain first primary",
            "-- breaker of primary:",
        ]
        assert [line.partition("primary: ")[2] for line in lines if "->" in line] == [
            "closed -> open",
            "open -> half-open",
            "half-open -> open",
            "open -> half-open",
            "half-open -> closed",
        ]


class TestChat:
    """`chat.py` with servers of its own."""

    def test_survives_a_killed_server(self) -> None:
        """After `/kill` the backup answers the same question, and after `/start` the primary."""
        commands = "one", "/kill primary", "two", "/start primary", "three", "/quit", "four"

        done = run("chat.py", text="\n".join(commands))

        assert done.returncode == 0
        assert done.stderr == ""
        assert done.stdout.count("primary> This is primary: rain is water from clouds.") == 2
        assert done.stdout.count("backup> This is backup: rain is water from clouds.") == 1
        first, failed, second, third = (
            done.stdout.index(text)
            for text in ("primary> ", "[primary failed: ", "backup> ", "[breakers: ")
        )
        assert first < third < failed < second
        assert done.stdout.rindex("primary> ") > second

    def test_operators_commands(self) -> None:
        """Breakers can be isolated and reset; if all are isolated, the chat continues."""
        commands = "/isolate primary", "one", "/isolate backup", "two", "/reset backup", "three"

        done = run("chat.py", "--local", text="\n".join(commands))

        assert done.returncode == 0
        assert "[breakers: primary open, backup closed]" in done.stdout
        assert "[no whole answer: all providers failed: primary: CircuitOpenError" in done.stdout
        assert done.stdout.count("backup> This is backup") == 2

    def test_wrong_commands(self) -> None:
        """After an unknown command or name, the chat prints the valid ones."""
        done = run("chat.py", text="/help\n/kill\n/kill openai\n")

        assert "[the commands are /kill, /start, /isolate, /reset, /state and /quit]" in done.stdout
        assert done.stdout.count("[/kill can be followed by: primary, backup]") == 2

    def test_says_which_key_is_missing(self) -> None:
        """With one key it prints which other one it needs, and uses its own servers."""
        done = run("chat.py", OPENAI_API_KEY="key")

        assert done.stdout.startswith("ANTHROPIC_API_KEY not set: two servers without a model")


class TestVoiceTurn:
    """The parts of `voice_turn.py` that need no programs."""

    def test_names_all_that_is_missing(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All missing parts are named together, with the commands of the docstring."""
        monkeypatch.setattr(sys, "argv", ["voice_turn.py", "--play"])
        monkeypatch.setenv("PATH", "/nonexistent")
        monkeypatch.setitem(sys.modules, "pocketsphinx", None)
        monkeypatch.syspath_prepend(str(EXAMPLES))

        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / "voice_turn.py"), run_name="__main__")

        said = capsys.readouterr().err
        assert ended.value.code == 2
        parts = "program flite", "program espeak-ng", "package pocketsphinx", "that plays sound"
        assert [part for part in parts if part not in said.splitlines()[0]] == []
        documented = (
            (EXAMPLES / "voice_turn.py").read_text(encoding="utf-8").partition('"""\n\n')[0]
        )
        commands = said.partition("\n\n")[2].rstrip()
        assert commands in documented
        assert "apt-get install" in commands
        assert "pocketsphinx" in commands

    @pytest.mark.usefixtures("examples")
    @pytest.mark.skipif(os.name == "nt", reason="the player is a script")
    def test_plays(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """A player gets a WAV file; if it fails, that is printed once, and nothing else played."""
        player = tmp_path / "aplay"
        player.write_text(f'#!/bin/sh\n/bin/cp "$2" "{tmp_path}/played.wav"\nexit 1\n')
        player.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        voice_turn: Any = importlib.import_module("voice_turn")
        speaker = voice_turn.Player()

        speaker.play(b"\x01\x02" * 100, 16_000)
        speaker.play(b"\x03\x04", 16_000)

        with wave.open(str(tmp_path / "played.wav")) as played:
            assert played.getparams()[:4] == (1, 2, 16_000, 100)
            assert played.readframes(100) == b"\x01\x02" * 100
        assert capsys.readouterr().err == f"nothing can be heard: {player} failed\n"
