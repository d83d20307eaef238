"""Every Python block in the README and the docs runs, and prints the text below it."""

import ast
import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n?^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path) -> None:
    """The blocks of a page run in order, in one namespace, and print the text below them.

    A block that needs a package that is not installed is left out, and the test is skipped.
    """
    namespace: dict[str, object] = {"__name__": page.stem}
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
    if left_out:
        pytest.skip(f"all other blocks ran; not installed: {', '.join(left_out)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link points to a file that exists."""
    links = LINK.findall(page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_is_short() -> None:
    """The README has at most 120 lines."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 120
