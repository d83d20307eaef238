"""Real programs and real clients: skipped, with the reason, where a part is missing."""

import importlib
import importlib.util
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from typing_extensions import override

PACKAGES = ("anthropic", "deepgram", "elevenlabs", "google", "httpx", "openai", "pocketsphinx")
MISSING = [f"the package {name}" for name in PACKAGES if not importlib.util.find_spec(name)]
if not shutil.which("flite"):
    MISSING.append("the program flite")

if not MISSING:
    with warnings.catch_warnings():
        # It imports a part of another package that is deprecated, which fails no test of ours.
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("deepgram.listen.v1.client")


class _LeftOut(pytest.Item):
    """Replaces a module that is not imported."""

    @override
    def runtest(self) -> None:
        pytest.skip(f"not installed: {', '.join(MISSING)}")


class _Module(pytest.Module):
    @override
    def collect(self) -> Iterator[pytest.Item]:
        yield _LeftOut.from_parent(self, name="left_out")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Import no module that speaks where something for that is missing."""
    is_left_out = MISSING and module_path.name != "test_redis.py"
    return _Module.from_parent(parent, path=module_path) if is_left_out else None


@pytest.fixture(scope="session", autouse=True)
def _no_proxy() -> Iterator[None]:
    """Reach this machine directly, whatever the environment says."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "127.0.0.1")
        environment.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    """Close what a test has started, the last first."""
    with ExitStack() as stack:
        yield stack
