"""The tables of settings in the README and the docs have each field, with its default."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from resilience import (
    AllFailedError,
    Attempt,
    AttemptTimeoutError,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    Snapshot,
    StateChange,
    llm,
    stt,
    tts,
)

ROOT = Path(__file__).parent.parent
VALUES = [
    (f"{module.__name__.rpartition('.')[2]}.{name}", value)
    for module in (llm, stt, tts)
    for name, value in vars(module).items()
    if dataclasses.is_dataclass(value)
]


def shown(field: dataclasses.Field[Any]) -> str:
    """Return how a table shows the default of a field."""
    if callable(field.default_factory):
        return f"{getattr(field.default_factory, '__name__', '')}()"
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, str):
        return json.dumps(field.default)
    if callable(field.default):
        prefix = field.default.__module__.replace("builtins", "")
        return f"{prefix}.{field.default.__qualname__}".removeprefix(".")
    return repr(field.default)


def rows(page: str, head: str) -> list[tuple[str, str]]:
    """Return the first two cells of each row of the one table that begins with a head."""
    before, found, after = (ROOT / page).read_text(encoding="utf-8").partition(f"\n{head} ")
    assert found
    assert f"\n{head} " not in before + after, "there is more than one such table"
    lines = after.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [(name.strip("`"), default.strip("`")) for _, name, default, *_ in cells]


@pytest.mark.parametrize(
    ("page", "head", "config"),
    [
        ("README.md", "| `CircuitBreakerConfig` | default |", CircuitBreakerConfig),
        ("README.md", "| `FallbackConfig` | default |", FallbackConfig),
        ("docs/circuit-breaker.md", "| field | default |", CircuitBreakerConfig),
        ("docs/group.md", "| field | default |", FallbackConfig),
    ],
)
def test_the_table_has_all_settings(page: str, head: str, config: Any) -> None:  # noqa: ANN401
    """A table of settings has all fields in their order, their defaults, and nothing else."""
    expected = [(field.name, shown(field)) for field in dataclasses.fields(config)]

    assert rows(page, head) == expected


@pytest.mark.parametrize(("name", "value"), VALUES, ids=[name for name, _ in VALUES])
def test_the_table_has_all_fields(name: str, value: Any) -> None:  # noqa: ANN401
    """A table of a contract's value has all fields in their order, and their defaults."""
    expected = [(field.name, shown(field)) for field in dataclasses.fields(value)]

    assert rows("docs/adapters.md", f"| `{name}` | default |") == expected


@pytest.mark.parametrize(
    ("page", "before", "value"),
    [
        ("reference/resilience.md", "| `StateChange` |", StateChange),
        ("reference/resilience.md", "| `Attempt` |", Attempt),
        ("reference/exceptions.md", "| `CircuitOpenError` | meaning", CircuitOpenError),
        ("reference/exceptions.md", "| `AllFailedError` | meaning", AllFailedError),
        ("reference/exceptions.md", "| `AttemptTimeoutError` | meaning", AttemptTimeoutError),
        ("circuit-breaker.md", "### Snapshot\n", Snapshot),
    ],
)
def test_the_table_has_all_fields_of_a_report(page: str, before: str, value: Any) -> None:  # noqa: ANN401
    """A table of a report or an error has all fields in their order, each with its meaning."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").rpartition(f"\n{before}")[2]
    table = text.partition("|---|---|\n")[2].partition("\n\n")[0]

    cells = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)

    names = re.findall("`([a-z_]+)`", "".join(cells))
    assert names == list(inspect.signature(value).parameters)
