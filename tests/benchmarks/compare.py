"""Measures this library, other circuit breakers and bare calls side by side, and prints a table.

    python tests/benchmarks/compare.py [--json] [--rounds N]
    python tests/benchmarks/compare.py --check

All candidates of a case run in turn in each round, so that a busy machine slows all of them. The
figures are medians over the rounds, in nanoseconds for one call, and ratios to the bare call. A
library that is not installed is left out.

With `--check` it measures this library alone, in a few seconds, and fails if one of the ratios in
`BOUNDS` is exceeded.
"""

import argparse
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

from resilience import (
    CircuitBreaker,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    llm,
)

Work = Callable[[], object]
Case = dict[str, Work]
Table = dict[str, dict[str, float]]

NEVER = 10**9  # failures, seconds: more than in any benchmark
CALLS = 2_000
CHECK_ROUNDS = 40
ITEMS = 1_000
REQUEST = llm.CompletionRequest(messages=())
ANSWER = llm.CompletionResponse(content="ok")


def nothing() -> None:
    """Do what a bare call does."""


def refuse() -> None:
    """Fail."""
    raise ConnectionError


def swallowing(work: Work) -> Work:
    """Return a function that does the work and ignores that it raises."""

    def swallow() -> None:
        try:  # noqa: SIM105 - a context manager would cost more than what is measured
            work()
        except Exception:  # noqa: BLE001, S110
            pass

    return swallow


class Through:
    """The cost of a wrapper that passes a function and its arguments on, and does nothing else."""

    def execute(self, fn: Callable[..., object], /, *args: object, **kwargs: object) -> object:
        """Call the function."""
        return fn(*args, **kwargs)

    def complete(self, request: llm.CompletionRequest) -> object:
        """Call a provider's method by way of a function of the provider, as adapters do."""
        return self.execute_with(lambda provider: provider.complete(request))

    def execute_with(self, fn: Callable[["Model"], object]) -> object:
        """Call the function with a provider."""
        return fn(MODEL)


class Model(llm.Provider):
    """A provider that does as little as possible."""

    def __init__(self, *, fails: bool = False) -> None:
        """Answer always, or fail always."""
        self._fails = fails

    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:  # noqa: ARG002
        """Answer at once."""
        if self._fails:
            raise ConnectionError
        return ANSWER

    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:  # noqa: ARG002
        """Yield the same chunk again and again."""
        chunk = llm.Chunk(content="a")
        for _ in range(ITEMS):
            yield chunk

    def count_tokens(self, messages: object) -> int:  # noqa: ARG002
        """Count nothing."""
        return 0

    def capabilities(self) -> llm.ModelCapabilities:
        """Describe nothing."""
        return llm.ModelCapabilities(context_window=1)


MODEL = Model()

BOUNDS = {
    "closed and healthy": ("passed through", 1.8),
    "failing": ("bare", 6.8),
    "rejected": ("bare", 4.2),
    "group, primary answers": ("passed through", 2.1),
    "group, open primary is skipped": ("passed through", 16.0),
    "group, primary fails": ("passed through", 36.0),
    "language model, primary answers": ("passed through", 12.0),
    f"stream of {ITEMS} items": ("bare", 5.6),
}
"""For each case, the case that it is compared with, and the highest allowed ratio of the costs.

The ratio is an eighth higher than the highest of 20 runs on a busy machine, each on CPython 3.13
and 3.15.
"""


def breakers(*, peers: bool) -> dict[str, Callable[[Work, str], Work]]:
    """Return for each library a function that protects a function, in a given state."""
    makers = {
        "pybreaker": _protect_by_pybreaker,
        "circuitbreaker": _protect_by_circuitbreaker,
        "pyresilience": _protect_by_pyresilience,
        "fluxgate": _protect_by_fluxgate,
    }
    found = {
        name: maker for name, maker in makers.items() if peers and importlib.util.find_spec(name)
    }
    return {"resilience": _protect, **found}


def _protect(fn: Work, state: str) -> Work:
    breaker = CircuitBreaker(CircuitBreakerConfig(max_failures=NEVER))
    if state == "open":
        breaker.isolate()
    return lambda: breaker.execute(fn)


def _protect_by_pybreaker(fn: Work, state: str) -> Work:
    import pybreaker  # noqa: PLC0415

    breaker = pybreaker.CircuitBreaker(fail_max=NEVER, reset_timeout=NEVER)
    if state == "open":
        breaker.open()
    return lambda: breaker.call(fn)


def _protect_by_circuitbreaker(fn: Work, state: str) -> Work:
    import circuitbreaker  # noqa: PLC0415

    threshold = 1 if state == "open" else NEVER
    breaker = circuitbreaker.CircuitBreaker(failure_threshold=threshold, recovery_timeout=NEVER)
    if state == "open":
        swallowing(breaker(refuse))()
    protected = breaker(fn)
    return lambda: protected()  # noqa: PLW0108 - as deep as the others


def _protect_by_pyresilience(fn: Work, state: str) -> Work:
    import pyresilience  # noqa: PLC0415

    threshold = 1 if state == "open" else NEVER
    config = pyresilience.CircuitBreakerConfig(failure_threshold=threshold, recovery_timeout=NEVER)
    is_down = [state == "open"]

    def maybe() -> object:
        if is_down[0]:
            raise ConnectionError
        return fn()

    protected = pyresilience.resilient(circuit_breaker=config)(maybe if is_down[0] else fn)
    if is_down[0]:
        swallowing(protected)()
    return lambda: protected()  # noqa: PLW0108 - as deep as the others


def _protect_by_fluxgate(fn: Work, state: str) -> Work:
    import fluxgate  # noqa: PLC0415
    from fluxgate import trippers  # noqa: PLC0415

    never = trippers.FailureStreak(NEVER)
    breaker = fluxgate.CircuitBreaker(tripper=never)
    if state == "open":
        breaker.force_open()
    return lambda: breaker.call(fn)


def breaker_cases(*, peers: bool = True) -> dict[str, Case]:
    """Return the cases in which one function is protected."""
    makers = breakers(peers=peers)
    through = Through()
    return {
        "closed and healthy": {
            "bare": lambda: nothing(),  # noqa: PLW0108 - as deep as the others
            "passed through": lambda: through.execute(nothing),
            **{name: maker(nothing, "closed") for name, maker in makers.items()},
        },
        "failing": {
            "bare": swallowing(lambda: refuse()),  # noqa: PLW0108 - as deep as the others
            **{name: swallowing(maker(refuse, "closed")) for name, maker in makers.items()},
        },
        "rejected": {
            "bare": swallowing(lambda: refuse()),  # noqa: PLW0108 - as deep as the others
            **{name: swallowing(maker(nothing, "open")) for name, maker in makers.items()},
        },
    }


def group_cases(*, peers: bool = True) -> dict[str, Case]:
    """Return the cases of a group of two language models."""
    model, through = MODEL, Through()
    cases: dict[str, Case] = {}
    for title, primary, is_open in (
        ("group, primary answers", Model(), False),
        ("group, open primary is skipped", Model(), True),
        ("group, primary fails", Model(fails=True), False),
    ):
        breaker = CircuitBreakerConfig(max_failures=NEVER)
        group = FallbackGroup(primary, "primary", FallbackConfig(circuit_breaker=breaker))
        group.add_fallback("backup", model)
        if is_open:
            group.breakers["primary"].isolate()
        cases[title] = {
            "bare": lambda: MODEL.complete(REQUEST),
            "passed through": lambda: through.complete(REQUEST),
            "resilience": lambda group=group: group.execute(answer),  # type: ignore[misc]
        }
        if peers and not is_open and importlib.util.find_spec("langchain_core"):
            cases[title]["langchain-core"] = _langchain(primary, model)
    adapter = LLMFallback(model, "primary")
    cases["language model, primary answers"] = {
        "bare": lambda: MODEL.complete(REQUEST),
        "passed through": lambda: through.complete(REQUEST),
        "resilience": lambda: adapter.complete(REQUEST),
    }
    cases[f"stream of {ITEMS} items"] = {
        "bare": lambda: _drain(model.stream_completion(REQUEST)),
        "resilience": lambda: _drain(adapter.stream_completion(REQUEST)),
    }
    return cases


def answer(model: Model) -> llm.CompletionResponse:
    """Ask a model."""
    return model.complete(REQUEST)


def _langchain(primary: Model, backup: Model) -> Work:
    from langchain_core.runnables import RunnableLambda  # noqa: PLC0415

    chain = RunnableLambda(primary.complete).with_fallbacks([RunnableLambda(backup.complete)])
    return lambda: chain.invoke(REQUEST)


def _drain(items: object) -> None:
    for _ in items:  # type: ignore[attr-defined]
        pass


def measure(case: Case, rounds: int, calls: int) -> dict[str, float]:
    """Return for each candidate the median of the nanoseconds for one call, minus the loop's."""
    case = {"loop": lambda: None, **case}
    figures: dict[str, list[float]] = {name: [] for name in case}
    for _ in range(rounds):
        for name, work in case.items():
            begin = time.perf_counter_ns()
            for _ in range(calls):
                work()
            figures[name].append((time.perf_counter_ns() - begin) / calls)
    medians = {name: statistics.median(each) for name, each in figures.items()}
    loop = medians.pop("loop")
    return {name: median - loop for name, median in medians.items()}


def measure_threads(threads: int, rounds: int) -> dict[str, float]:
    """Return the nanoseconds for one call when threads share one healthy breaker."""
    shared = CircuitBreaker()
    locked = TwiceLocked()
    candidates: Case = {
        "bare method": Shared().call,
        "resilience": lambda: shared.execute(nothing),
        "lock twice": locked.call,
    }
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            figures[name].append(_time_threads(threads, work))
    return {name: statistics.median(each) for name, each in figures.items()}


class Shared:
    """An object with a plain method, shared between threads."""

    def call(self) -> None:
        """Call what a breaker would protect."""
        nothing()


class TwiceLocked:
    """A breaker that takes a lock before and after each call."""

    def __init__(self) -> None:
        """Make it closed."""
        self._lock = threading.Lock()
        self._failures = 0

    def call(self) -> None:
        """Admit, call, record."""
        with self._lock:
            if self._failures:
                return
        nothing()
        with self._lock:
            self._failures = 0


def _time_threads(threads: int, work: Work) -> float:
    barrier = threading.Barrier(threads + 1)

    def run() -> None:
        barrier.wait()
        for _ in range(CALLS * 10):
            work()
        barrier.wait()

    for _ in range(threads):
        threading.Thread(target=run).start()
    barrier.wait()
    begin = time.perf_counter_ns()
    barrier.wait()
    return (time.perf_counter_ns() - begin) / (CALLS * 10 * threads)


def memory() -> float:
    """Return the bytes of one breaker, of many."""
    many = 1_000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [CircuitBreaker() for _ in range(many)]
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / len(kept)


def import_times(rounds: int) -> dict[str, float]:
    """Return the milliseconds of two imports, each minus the time of an empty process."""
    statements = {
        "nothing": "pass",
        "standard library": "import dataclasses, enum, logging, threading",
        "resilience": "import resilience",
    }
    figures: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(rounds):
        for name, statement in statements.items():
            begin = time.perf_counter_ns()
            subprocess.run([sys.executable, "-c", statement], check=True)  # noqa: S603
            figures[name].append((time.perf_counter_ns() - begin) / 1e6)
    medians = {name: statistics.median(each) for name, each in figures.items()}
    empty = medians.pop("nothing")
    return {name: median - empty for name, median in medians.items()}


def run(rounds: int) -> dict[str, Table]:
    """Measure everything."""
    calls: Table = {}
    for title, case in {**breaker_cases(), **group_cases()}.items():
        calls[title] = measure(case, rounds, CALLS // 100 if "stream" in title else CALLS)
    calls["construction"] = measure({"resilience": CircuitBreaker}, rounds, CALLS)
    for threads in (1, 2, 8):
        calls[f"{threads} threads, one breaker"] = measure_threads(threads, max(3, rounds // 4))
    return {
        "nanoseconds for one call": calls,
        "bytes of one breaker": {"memory": {"resilience": memory()}},
        "milliseconds of an import": {"import": import_times(rounds)},
    }


def check() -> bool:
    """Print each ratio with its bound, and return whether none is exceeded."""
    cases = {**breaker_cases(peers=False), **group_cases(peers=False)}
    holds = True
    for title, (reference, bound) in BOUNDS.items():
        calls = CALLS // 100 if "stream" in title else CALLS
        figures = measure(cases[title], CHECK_ROUNDS, calls)
        ratio = figures["resilience"] / figures[reference]
        holds = holds and ratio <= bound
        verdict = "ok" if ratio <= bound else "TOO SLOW"
        print(f"{verdict}: {title}: {ratio:.2f} times {reference}, at most {bound}")
    return holds


def print_tables(results: dict[str, Table]) -> None:
    """Print the results as Markdown."""
    build = "free-threaded" if not getattr(sys, "_is_gil_enabled", lambda: True)() else "with GIL"
    print(f"CPython {platform.python_version()} ({build}), {platform.machine()}, ", end="")
    print(f"{os.cpu_count()} cores, {platform.system()}\n")
    for title, table in results.items():
        print(f"| {title} | | | |\n|---|---|---|---|")
        for case, figures in table.items():
            base = next(iter(figures.values()))
            for name, figure in figures.items():
                print(f"| {case} | {name} | {figure:,.0f} | {figure / base:.2f} |")
        print()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--rounds", type=int, default=40, help="how often to measure each case")
    parser.add_argument("--check", action="store_true", help="fail if this library is too slow")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.check:
        sys.exit(0 if check() else 1)
    results = run(arguments.rounds)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print_tables(results)


if __name__ == "__main__":
    main()
