"""Real programs and clients: tests are skipped, with the reason, if a part is missing."""

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
        # It imports a deprecated part of another package, which is not what the tests check.
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
    """Do not import a module that needs speech programs if one of them is missing."""
    is_left_out = MISSING and module_path.name != "test_redis.py"
    return _Module.from_parent(parent, path=module_path) if is_left_out else None


@pytest.fixture(scope="session", autouse=True)
def _no_proxy() -> Iterator[None]:
    """Connect to this machine directly, whatever proxy the environment defines."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "127.0.0.1")
        environment.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    """Close everything that a test has started, in reverse order."""
    with ExitStack() as stack:
        yield stack
