"""The docs build into a site, whose reference has every public name."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("furo")
pytest.importorskip("myst_parser")
InventoryFile = pytest.importorskip("sphinx.util.inventory").InventoryFile

DOCS = Path(__file__).parent.parent / "docs"
MODULES = [
    "resilience",
    *(
        f"resilience.{name}"
        for name in ("aio", "exceptions", "http", "llm", "redis", "stt", "testing", "tts")
    ),
    *(
        f"resilience.providers.{name}"
        for name in ("anthropic", "deepgram", "elevenlabs", "google", "openai")
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, in which a warning is an error."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return target


def public_names(module: str) -> list[str]:
    """Return the public names that a module defines, or lists in `__all__`."""
    namespace = vars(importlib.import_module(module))
    defined = [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]
    return [f"{module}.{name}" for name in namespace.get("__all__", defined)]


@pytest.mark.parametrize("module", MODULES)
def test_reference_is_complete(site: Path, module: str) -> None:
    """Every public name is in the reference."""
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    known = {name for kind in inventory.data.values() for name in kind}

    names = public_names(module)

    assert names
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize("module", MODULES)
def test_reference_is_complete_unbuilt(module: str) -> None:
    """Every public name is in the table of its module, and every name of the table exists."""
    text = (DOCS / "reference.md").read_text(encoding="utf-8")

    section = text.partition(f"\n## {module}\n")[2].partition("\n## ")[0]
    names = [f"{module}.{name}" for name in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)]

    assert set(public_names(module)) <= set(names)
    namespace = importlib.import_module(module)
    assert [name for name in names if not hasattr(namespace, name.rpartition(".")[2])] == []


def test_needs_no_network(site: Path) -> None:
    """No page loads anything from elsewhere."""
    pages = [page.read_text(encoding="utf-8") for page in site.glob("*.html")]

    assert pages
    assert [
        page for page in pages if 'src="http' in page or 'rel="stylesheet" href="http' in page
    ] == []
