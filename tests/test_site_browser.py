"""The site can be read in a narrow and a wide window, in a light and a dark theme."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("furo")
pytest.importorskip("myst_parser")
pytest.importorskip("websockets")
from browser import PROGRAM, Browser, start_browser

pytestmark = pytest.mark.skipif(not PROGRAM, reason="not installed: the program chromium")

PHONE, DESK = 390, 1280
IMAGES = Path(__file__).parent.parent / "docs" / "images"
# Elements that are cut off at the right edge of the window.
CUT_OFF = """(() => {
  const width = document.documentElement.clientWidth;
  const parts = document.querySelectorAll("article :is(td, th, dt, li, p, svg)");
  const cut = [...parts].filter(part => part.getBoundingClientRect().right > width + 1);
  const page = document.documentElement.scrollWidth > width ? ["the page"] : [];
  return [...page, ...cut.map(part => part.tagName + " " + part.textContent.slice(0, 60))];
})()"""
SCROLLED_CODE = """[...document.querySelectorAll("article pre")]
  .filter(block => block.scrollWidth > block.clientWidth)
  .map(block => block.textContent.slice(0, 60))"""
# The sizes in which the letters of the diagrams are shown, in pixels.
LETTERS = """[...document.querySelectorAll("svg.diagram text")].map(
  text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a)"""
COLOURS = """(theme => {
  document.body.dataset.theme = theme;
  const parts = document.querySelectorAll("svg.diagram :is(rect, text)");
  return [...parts].map(part => getComputedStyle(part).fill).concat(
    getComputedStyle(document.body).backgroundColor);
})"""
UNDERLINED = """[...document.querySelectorAll("article :is(a:has(> code), .sig a, .nn)")]
  .filter(link => getComputedStyle(link).textDecorationLine.includes("underline"))
  .map(link => link.textContent)"""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Run a browser."""
    with start_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def pages(site: Path) -> list[Path]:
    """Return all pages of the site."""
    found = sorted(page for page in site.rglob("*.html") if "_static" not in page.parts)
    assert len(found) > 30
    return found


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_is_cut_off(site: Path, window: Browser, width: int) -> None:
    """No page is wider than its window, and no cell of a table is outside of it."""
    window.set_window(width)
    cut_off = {}

    for page in pages(site):
        window.open(page)
        cut_off[page.name] = window.evaluate(CUT_OFF)

    assert {name: parts for name, parts in cut_off.items() if parts} == {}


def test_code_fits(site: Path, window: Browser) -> None:
    """In a wide window no block of code has to be scrolled."""
    window.set_window(DESK)
    scrolled = {}

    for page in pages(site):
        window.open(page)
        scrolled[page.name] = window.evaluate(SCROLLED_CODE)

    assert {name: blocks for name, blocks in scrolled.items() if blocks} == {}


def test_rows_are_stacked_on_a_phone(site: Path, window: Browser) -> None:
    """In a narrow window the cells of a row are below each other, with the heads of columns."""
    script = """(() => {
      const cells = [...document.querySelectorAll("#defaults tbody tr:first-child td")];
      return cells.map(cell => [cell.getBoundingClientRect().left < 60, cell.dataset.head ?? ""]);
    })()"""
    window.set_window(PHONE)
    window.open(site / "group.html")
    stacked = window.evaluate(script)

    window.set_window(DESK)
    side_by_side = window.evaluate(script)

    assert stacked == [[True, ""], [True, "default"], [True, "meaning"]]
    assert not any(is_left for is_left, _ in side_by_side)


@pytest.mark.parametrize("page", ["circuit-breaker", "group"])
def test_diagrams_can_be_read(site: Path, window: Browser, page: str) -> None:
    """In a narrow window the letters of a diagram have at least 11 pixels."""
    window.set_window(PHONE)
    window.open(site / f"{page}.html")

    sizes = window.evaluate(LETTERS)

    assert len(sizes) > 10
    assert min(sizes) >= 11


@pytest.mark.parametrize("system", ["light", "dark"])
@pytest.mark.parametrize("page", ["circuit-breaker", "group"])
def test_diagrams_follow_the_theme(site: Path, window: Browser, page: str, system: str) -> None:
    """Whatever the theme of the system is, the reader's choice changes page and diagram."""
    window.set_window(DESK, system)
    window.open(site / f"{page}.html")

    dark, light, automatic = (
        window.evaluate(f"{COLOURS}({theme!r})") for theme in ("dark", "light", "auto")
    )

    assert [colour for colour in dark if colour in light] == []
    assert automatic == (dark if system == "dark" else light)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_names_are_not_underlined(site: Path, window: Browser, theme: str) -> None:
    """Names of modules and classes have no line below them, also in code."""
    window.set_window(DESK, theme)
    underlined = {}

    for page in pages(site):
        window.open(page)
        underlined[page.name] = window.evaluate(UNDERLINED)

    assert {name: links for name, links in underlined.items() if links} == {}


@pytest.mark.parametrize("image", sorted(IMAGES.glob("*.svg")), ids=lambda image: image.name)
def test_diagrams_follow_the_system_by_themselves(window: Browser, image: Path) -> None:
    """A diagram that is shown alone, as in the repository, has the theme of the system."""
    root = ET.parse(image).getroot()  # noqa: S314
    assert root.get("class") == "diagram"
    assert int(re.sub(r"\D", "", root.get("width") or "")) <= 400
    colours = []

    for theme in ("light", "dark"):
        window.set_window(DESK, theme)
        window.open(image)
        colours.append(window.evaluate("getComputedStyle(document.querySelector('rect')).fill"))

    assert colours[0] != colours[1]
