"""Every Python block in the README and the docs runs, and prints the text below it.

Blocks that need a vendor's key run too: the vendors' clients use a server on this machine.
"""

import ast
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from resilience import UnsupportedRequestError, tts
from resilience.testing import LLMProviderContract
from stand_in import stand_in

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n?^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def name_of(page: Path) -> str:
    """Return the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def _vendors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the URL of a server on this machine, and keys, for the clients of two vendors."""
    with stand_in() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield


def missing(code: str) -> Iterator[str]:
    """Yield the packages that a block imports and that are not installed."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for package in {name.partition(".")[0] for name in names}:
            if importlib.util.find_spec(package) is None:
                yield package


@pytest.mark.usefixtures("_vendors")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_run(page: Path) -> None:
    """The blocks of a page run in order, in one namespace, and print the text below them.

    A block that needs a package that is not installed is left out, and the test is skipped.
    """
    _, left_out = run_blocks(page)

    if left_out:
        pytest.skip(f"all other blocks ran; not installed: {', '.join(left_out)}")


def run_blocks(page: Path) -> tuple[dict[str, Any], list[str]]:
    """Run the blocks of a page; return its names, and packages that are not installed."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    left_out: list[str] = []
    for code, expected in BLOCK.findall(page.read_text(encoding="utf-8")):
        if packages := list(missing(code)):
            left_out += packages
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), namespace)  # noqa: S102

        if expected:
            assert printed.getvalue() == expected
    return namespace, left_out


@pytest.mark.usefixtures("_vendors")
def test_the_model_of_the_tutorial_keeps_its_contract() -> None:
    """The provider that users copy passes the contract tests of answers and of requests."""
    names, _ = run_blocks(ROOT / "docs" / "tutorial.md")

    class Contract(LLMProviderContract):
        __test__ = False

        @override
        def make_provider(self) -> Any:
            return names["ClientLLM"](names["Client"]("East"))

    Contract().test_complete_answers()
    Contract().test_stream_is_whole()
    Contract().test_unsupported_requests()
    Contract().test_extra_of_other_vendors_is_ignored()


@pytest.mark.parametrize(
    "setting", [{"language": "en"}, {"encoding": "mp3"}, {"sample_rate": 8_000}, {"speed": 2.0}]
)
def test_the_synthesiser_of_the_page_ignores_no_setting(setting: dict[str, Any]) -> None:
    """The provider that users copy raises for what its client does not support."""
    names, _ = run_blocks(ROOT / "docs" / "adapters.md")
    provider = names["VendorTTS"](names["SpeechClient"]())

    with pytest.raises(UnsupportedRequestError):
        list(provider.synthesize_stream(["Good day."], tts.VoiceProfile(id="v-1", **setting)))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link points to a file that exists."""
    links = LINK.findall(page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_is_short() -> None:
    """The README has at most 120 lines."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 120


def run(program: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program, and return its output and its errors, in their order."""
    return subprocess.run(  # noqa: S603
        program,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


def test_readme_shows_all_that_its_sample_prints(tmp_path: Path) -> None:
    """The sample with fakes prints the text below it, including log lines, and nothing else."""
    text = README.read_text(encoding="utf-8")
    ((code, shown),) = re.findall(
        r"^```python\n([^`]*)^```\n\n^```console\n([^`]*)^```$", text, re.MULTILINE
    )

    done = run([sys.executable, "-u", "-c", code], tmp_path)

    assert done.stdout == shown


@pytest.mark.skipif(os.name == "nt", reason="the command is one of a POSIX shell")
class TestFirstCommand:
    """The first commands of the README."""

    lines = re.findall(
        r"^```sh\n([^`]*outage.py)\n```$", README.read_text(encoding="utf-8"), re.MULTILINE
    )

    @staticmethod
    def pretend(folder: Path, script: str) -> str:
        """Make a `python3`, and return a PATH with it."""
        python = folder / "bin" / "python3"
        python.parent.mkdir()
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        return f"{python.parent}{os.pathsep}{os.defpath}"

    def test_says_what_is_needed(self, tmp_path: Path) -> None:
        """Without `venv` they fail with a sentence that names the missing package."""
        path = self.pretend(tmp_path, "exit 1")

        done = run(["/bin/sh", "-c", *self.lines], tmp_path, PATH=path)

        assert done.returncode != 0
        first, last = done.stdout.splitlines()
        assert first.startswith("Installing into .venv")
        assert last.startswith("Failed. Needed: ")
        assert "apt install python3-venv" in last

    def test_shows_what_it_does_before_it_begins(self, tmp_path: Path) -> None:
        """They print a description, install the library, and run the example."""
        made = """echo "made $*"
mkdir -p .venv/bin
printf '#!/bin/sh\\necho pip "$@"\\n' > .venv/bin/pip
printf '#!/bin/sh\\necho python "$@"\\n' > .venv/bin/python
chmod +x .venv/bin/pip .venv/bin/python"""
        path = self.pretend(tmp_path, made)

        done = run(["/bin/sh", "-c", *self.lines], tmp_path, PATH=path)

        assert done.returncode == 0
        assert done.stdout.splitlines()[1:] == [
            "made -m venv .venv",
            "pip install -q .",
            "python docs/examples/outage.py",
        ]
