"""Settings of all tests, and fixtures that several files share."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import Hang, WatchedClock
from resilience.testing import ManualClock


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exclude the objects of imports from later collections, which they would make slow."""
    use_hypothesis()
    gc.collect()
    gc.freeze()


@given(st.none())
def use_hypothesis(_: None) -> None:
    """Let hypothesis make its random generator, whose owner it cannot find once it is frozen."""


@pytest.fixture(scope="module", autouse=True)
def _freeze() -> Iterator[None]:
    """Do the same with the objects that the tests of a module have imported."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that only the test advances."""
    return ManualClock(1000.0)


@pytest.fixture
def hang() -> Iterator[Hang]:
    """Return a function that hangs, at most until the end of the test."""
    function = Hang()
    yield function
    function.over.set()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> WatchedClock:
    """Return a clock that measures time limits; a caller that waits reads it again and again."""
    clock = WatchedClock()
    monkeypatch.setattr("resilience._failover.attempts.monotonic", clock)
    monkeypatch.setattr("resilience._adapters.text.monotonic", clock)
    monkeypatch.setattr("resilience._failover.workers.TIMEOUT_MAX", 0.001)
    return clock


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Disable the garbage collection: an object is freed by its reference count, or never."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, in which a warning is an error."""
    docs = Path(__file__).parent.parent / "docs"
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(docs), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return target
