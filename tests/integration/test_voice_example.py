"""The whole example of a spoken conversation."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "voice_turn.py"


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="not installed: the program espeak-ng")
def test_no_turn_is_lost(tmp_path: Path) -> None:
    """All five turns are served, and with `--play` each question and each answer is played."""
    player = tmp_path / "aplay"
    player.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/played"\n')
    player.chmod(0o755)

    done = subprocess.run(  # noqa: S603
        [sys.executable, EXAMPLE, "--play"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("5 turns, 0 lost\n")
    assert len((tmp_path / "played").read_text().splitlines()) == 10
