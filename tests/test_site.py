"""The docs are built into a site, whose reference has every public name."""

import html
import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("furo")
pytest.importorskip("myst_parser")
InventoryFile = pytest.importorskip("sphinx.util.inventory").InventoryFile

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = DOCS / "reference"
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


def page_of(module: str) -> str:
    """Return the name of the page of a module, without its suffix."""
    return module.removeprefix("resilience.").replace(".", "-")


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
    text = (REFERENCE / f"{page_of(module)}.md").read_text(encoding="utf-8")

    section = text.partition(f"# {module}\n")[2].partition("\n## ")[0]
    names = [f"{module}.{name}" for name in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)]

    assert set(public_names(module)) <= set(names)
    namespace = importlib.import_module(module)
    assert [name for name in names if not hasattr(namespace, name.rpartition(".")[2])] == []


def test_each_module_has_a_page() -> None:
    """The reference has one page for each public module, and links to it."""
    index = (DOCS / "reference.md").read_text(encoding="utf-8")

    assert sorted(page.stem for page in REFERENCE.glob("*.md")) == sorted(map(page_of, MODULES))
    assert [
        name for name in MODULES if f"[{name}](reference/{page_of(name)}.md)" not in index
    ] == []


def test_signatures_are_public(site: Path) -> None:
    """No signature has a private name, and each default is shown as in the source."""
    signatures = [
        html.unescape(re.sub("<[^>]*>|\\s+", "", signature))
        for page in (site / "reference").glob("*.html")
        for signature in re.findall(
            r'<dt class="sig [^>]*>(.*?)</dt>', page.read_text(encoding="utf-8"), re.DOTALL
        )
    ]

    assert [each for each in signatures if re.search(r"(?<!\w)_[a-zA-Z]|[<~]", each)] == []
    text = "".join(signatures)
    assert "clock:Callable[[],float]=time.monotonic" in text
    assert "circuit_breaker:CircuitBreakerConfig=CircuitBreakerConfig()" in text
    assert "execute(fn:Callable[P,R],/,*args:P.args,**kwargs:P.kwargs,)→R" in text


@pytest.mark.parametrize(
    ("page", "name", "target"),
    [
        ("tutorial", "LLMFallback", "reference/resilience.html#resilience.LLMFallback"),
        ("errors", "AllFailedError", "reference/resilience.html#resilience.AllFailedError"),
        ("adapters", "llm.Provider", "reference/llm.html#resilience.llm.Provider"),
        ("asyncio", "await aio.call(fn, *args)", "reference/aio.html#resilience.aio.call"),
        ("reference/llm", "ModelCapabilities", "#resilience.llm.ModelCapabilities"),
        ("reference/resilience", "Outcome", "#resilience.Outcome"),
        ("reference/resilience", "ResilienceError", "#resilience.ResilienceError"),
        ("reference/aio", "Stream", "#resilience.aio.Stream"),
        ("reference/http", "retry_after", "#resilience.http.retry_after"),
    ],
)
def test_names_are_links(site: Path, page: str, name: str, target: str) -> None:
    """A public name in a text is a link to its place in the reference."""
    text = (site / f"{page}.html").read_text(encoding="utf-8")

    links = re.findall(rf'<a [^>]*href="{re.escape(target)}"[^>]*>(.*?)</a>', text, re.DOTALL)
    assert name in [html.unescape(re.sub("<[^>]*>", "", link)) for link in links]


@pytest.mark.parametrize(
    ("page", "argument"),
    [
        ("redis", "max_seconds"),
        ("resilience", "primary_name"),
        ("providers-openai", "max_tokens_field"),
        ("testing", "retry_after"),
    ],
)
def test_arguments_of_constructors_are_described(site: Path, page: str, argument: str) -> None:
    """The arguments of a constructor are in the reference, with their meaning."""
    text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")

    assert re.search(rf"<strong>{argument}</strong> \S \w", text)


def test_constructors_that_users_do_not_call_are_left_out(site: Path) -> None:
    """An object that a call returns is described without its constructor."""
    text = (site / "reference" / "aio.html").read_text(encoding="utf-8")

    assert "Prepare to read a stream" not in text


@pytest.mark.parametrize(("page", "name"), [("installation", "redis"), ("providers", "openai")])
def test_names_of_packages_are_not_links(site: Path, page: str, name: str) -> None:
    """The name of a vendor's package does not lead to the module of this library."""
    text = (site / f"{page}.html").read_text(encoding="utf-8")

    assert f'<span class="pre">{name}</span>' in text
    assert not re.search(rf'<a [^>]*><code [^>]*><span class="pre">{name}</span>', text)


def test_needs_no_network(site: Path) -> None:
    """No page loads anything from another server."""
    pages = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]

    assert pages
    assert [
        page for page in pages if 'src="http' in page or 'rel="stylesheet" href="http' in page
    ] == []
