"""Public names, types, docstrings and modules."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

import resilience

PACKAGE = Path(resilience.__file__).parent
MODULES = sorted(
    module.name.removeprefix("resilience.")
    for module in pkgutil.walk_packages([str(PACKAGE)], prefix="resilience.")
)
ROOT_EXPORTS = [
    "AllFailedError",
    "Attempt",
    "AttemptTimeoutError",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitOpenError",
    "EmptyStreamError",
    "FallbackConfig",
    "FallbackGroup",
    "LLMFallback",
    "Outcome",
    "ResilienceError",
    "STTFallback",
    "STTSession",
    "Session",
    "Snapshot",
    "SpeechStream",
    "State",
    "StateChange",
    "Stream",
    "TTSFallback",
    "UnsupportedRequestError",
    "execute_with_result",
]
MECHANISM = {"_breaker", "_failover", "_fork", "_log", "_news", "_settings", "redis"}
PUBLIC_MODULES = [
    *("aio", "exceptions", "http", "llm"),
    "providers",
    *(f"providers.{name}" for name in ("anthropic", "deepgram", "elevenlabs", "google", "openai")),
    *("redis", "stt", "testing", "tts"),
]


def public_objects() -> Iterator[tuple[str, object]]:
    """Yield every public name of the root and of the public modules."""
    for name in resilience.__all__:
        yield name, getattr(resilience, name)
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(f"resilience.{module_name}")
        yield module_name, module
        for name, value in vars(module).items():
            if is_public_here(module, name, value):
                yield f"{module_name}.{name}", value


def is_public_here(module: ModuleType, name: str, value: object) -> bool:
    """Return whether a name is a public class or function that the module defines."""
    is_ours = str(getattr(value, "__module__", None)).startswith(module.__name__)
    return not name.startswith("_") and is_ours and (inspect.isclass(value) or callable(value))


OBJECTS = dict(public_objects())
CLASSES = {name: value for name, value in OBJECTS.items() if inspect.isclass(value)}


def test_root_exports() -> None:
    """The root exports these names, sorted, and nothing else."""
    modules = {name for name, value in vars(resilience).items() if isinstance(value, ModuleType)}
    names = {name for name in vars(resilience) if not name.startswith("_")} - modules

    assert resilience.__all__ == ROOT_EXPORTS
    assert sorted(resilience.__all__) == resilience.__all__
    assert names == set(ROOT_EXPORTS)


def test_public_modules() -> None:
    """The modules without an underscore are the public ones."""
    assert [name for name in MODULES if "_" not in name] == PUBLIC_MODULES
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", CLASSES)
def test_type_hints(name: str) -> None:
    """`get_type_hints` works on every public class, and on each of its methods."""
    cls = CLASSES[name]

    fields = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
    functions = [
        member.fget if isinstance(member, property) else member for member in vars(cls).values()
    ]

    assert set(get_type_hints(cls)) == fields
    for function in filter(inspect.isfunction, functions):
        assert set(get_type_hints(function)) == set(inspect.get_annotations(function))


@pytest.mark.parametrize("name", OBJECTS)
def test_docstrings(name: str) -> None:
    """Every public name has a docstring, and so has every public member of a class."""
    value = OBJECTS[name]

    members = [
        (key, member)
        for key, member in inspect.getmembers(value)
        if not key.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
    ]

    assert inspect.getdoc(value)
    if inspect.isclass(value) and not issubclass(value, BaseException):
        assert [key for key, member in members if not inspect.getdoc(member)] == []


def file_of(module: str) -> Path:
    """Return the path of a module or a package."""
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(module: str) -> set[str]:
    """Return the modules of the library that a module imports, at any place in it."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "resilience":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resilience."):
            found.add(str(node.module).removeprefix("resilience."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("resilience") for alias in node.names)
    return found


def test_no_cycles() -> None:
    """There is no cycle of imports."""
    order = list(TopologicalSorter({name: imports_of(name) for name in MODULES}).static_order())

    assert set(order) == set(MODULES)


@pytest.mark.parametrize("name", ["llm", "stt", "tts", "http", "aio", "exceptions"])
def test_contracts_import_nothing_but_exceptions(name: str) -> None:
    """These modules import only `exceptions` of the library, which imports nothing of it."""
    assert imports_of(name) <= {"exceptions"} - {name}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("testing")])
def test_fakes_import_the_contracts(name: str) -> None:
    """`testing` imports only the contracts and `exceptions`, besides its own parts."""
    others = {other for other in imports_of(name) if not other.startswith("testing.")}

    assert others <= {"exceptions", "llm", "stt", "tts"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("providers")])
def test_ready_made_providers_import_the_contracts(name: str) -> None:
    """`providers` imports only contracts and exceptions, besides its own parts."""
    others = {other for other in imports_of(name) if not other.startswith("providers.")}

    assert others <= {"exceptions", "llm", "stt", "tts"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in MECHANISM])
def test_mechanism_imports_no_contracts(name: str) -> None:
    """The modules of breakers and groups do not import the contracts."""
    assert imports_of(name).isdisjoint({"llm", "stt", "tts"})


@pytest.mark.parametrize("name", MODULES)
def test_imports_are_at_the_top(name: str) -> None:
    """No import is inside a function or under `TYPE_CHECKING`."""
    tree = ast.parse(file_of(name).read_text(encoding="utf-8"))

    everywhere = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]

    assert [node for node in everywhere if node not in tree.body] == []


def test_only_the_standard_library_is_needed() -> None:
    """The modules import nothing but the standard library and `typing_extensions`."""
    code = (
        # From 3.15 on, traceback imports a module that is missing in `sys.stdlib_module_names`.
        "import importlib, sys, traceback; before = set(sys.modules); "
        "[importlib.import_module(name) for name in sys.argv[1:]]; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    names = [f"resilience.{name}" for name in MODULES]

    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", code, *names],
        capture_output=True,
        text=True,
        check=True,
    )

    assert set(done.stdout.split()) == {"resilience", "typing_extensions"}
