"""The first sample of the README and the chat, unchanged, with the clients of two vendors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stand_in import StandIn, answer_of, stand_in

pytest.importorskip("anthropic")
pytest.importorskip("openai")

ROOT = Path(__file__).parents[2]
SAMPLE = re.findall(
    r"^```python\n([^`]*)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
)[0]


def run(server: StandIn, *arguments: str, text: str = "") -> str:
    """Run Python with the keys of both vendors, and return what it prints."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **server.environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("down", "asked"), [([], ["openai"]), (["openai"], ["openai", "anthropic"])]
)
def test_the_sample_fails_over(down: list[str], asked: list[str]) -> None:
    """It prints the answer of the first vendor, or that of the second if the first is down."""
    with stand_in() as server:
        server.down.update(down)

        printed = run(server, "-c", SAMPLE)

        assert printed.strip() == answer_of(asked[-1])
        assert server.asked == asked


def test_the_chat_fails_over() -> None:
    """With both keys it talks to both vendors; an isolated one is skipped."""
    with stand_in() as server:
        chat = str(ROOT / "docs" / "examples" / "chat.py")

        printed = run(server, chat, text="one\n/isolate openai\ntwo\n")

        assert f"openai> {answer_of('openai')}" in printed
        assert "[openai skipped: circuit 'openai' is open until it is reset]" in printed
        assert f"anthropic> {answer_of('anthropic')}" in printed
        assert server.asked == ["openai", "anthropic"]
