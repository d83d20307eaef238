"""Under load, the results of callers, the calls of providers and the events agree.

`RESILIENCE_LONG=1` makes a million calls.
"""

import os
import random
import threading
from collections import Counter
from itertools import pairwise

from helpers import in_threads
from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    Outcome,
    StateChange,
)
from resilience.testing import ManualClock

THREADS = 64
CALLS = 1_000_000 if "RESILIENCE_LONG" in os.environ else 20_000
NEXT = {
    ("closed", "open"),
    ("open", "half-open"),
    ("half-open", "open"),
    ("half-open", "closed"),
}


class Flapping:
    """A provider that is up or down according to a seed, and counts its calls."""

    def __init__(self, seed: int) -> None:
        """Use a seed."""
        self._lock = threading.Lock()
        self._random = random.Random(seed)  # noqa: S311
        self._left = 0
        self._is_up = False
        self.outcomes: Counter[bool] = Counter()

    def call(self) -> None:
        """Succeed or fail, according to the script."""
        with self._lock:
            if self._left == 0:
                self._left = self._random.randint(1, 40)
                self._is_up = not self._is_up
            self._left -= 1
            is_up = self._is_up
            self.outcomes[is_up] += 1
        if not is_up:
            raise ConnectionError


def test_every_call_is_accounted_for() -> None:
    """The results of callers, the calls of the provider and the events agree."""
    clock = ManualClock()
    changes: list[StateChange] = []
    provider = Flapping(seed=1)
    breaker = CircuitBreaker(
        CircuitBreakerConfig(
            max_failures=3,
            half_open_max=2,
            reset_timeout=1.0,
            clock=clock,
            on_state_change=changes.append,
        )
    )
    seen: list[Counter[str]] = []

    def work() -> None:
        mine: Counter[str] = Counter()
        for _ in range(CALLS // THREADS):
            try:
                breaker.execute(provider.call)
                mine["succeeded"] += 1
            except ConnectionError:
                mine["failed"] += 1
            except CircuitOpenError:
                mine["rejected"] += 1
                clock.advance(0.01)
        seen.append(mine)

    in_threads([work] * THREADS, timeout=1200)

    total = sum(seen, Counter[str]())
    assert total["succeeded"] == provider.outcomes[True]
    assert total["failed"] == provider.outcomes[False]
    assert sum(total.values()) == CALLS // THREADS * THREADS
    assert min(total.values()) > 0
    steps = [(str(change.old), str(change.new)) for change in changes]
    assert set(steps) <= NEXT
    assert all(one[1] == other[0] for one, other in pairwise(steps))
    assert steps[-1][1] == str(breaker.state) or str(breaker.state) == "half-open"


def test_a_group_reports_every_attempt() -> None:
    """The reports of attempts, the results of callers and the calls of the providers agree."""
    clock = ManualClock()
    reports: list[Attempt] = []
    config = FallbackConfig(
        circuit_breaker=CircuitBreakerConfig(max_failures=2, reset_timeout=1.0, clock=clock),
        on_attempt=reports.append,
    )
    primary, backup = Flapping(seed=2), Flapping(seed=3)
    group = FallbackGroup(primary, "primary", config)
    group.add_fallback("backup", backup)
    results: list[Counter[str]] = []

    def work() -> None:
        mine: Counter[str] = Counter()
        for _ in range(CALLS // THREADS // 10):
            try:
                group.execute(Flapping.call)
                mine["succeeded"] += 1
            except AllFailedError:
                mine["lost"] += 1
                clock.advance(0.2)
        results.append(mine)

    in_threads([work] * THREADS, timeout=1200)

    total = sum(results, Counter[str]())
    outcomes = Counter((report.provider, report.outcome) for report in reports)
    for name, provider in (("primary", primary), ("backup", backup)):
        assert outcomes[name, Outcome.SUCCEEDED] == provider.outcomes[True]
        assert outcomes[name, Outcome.FAILED] == provider.outcomes[False]
    succeeded = sum(outcomes[name, Outcome.SUCCEEDED] for name in ("primary", "backup"))
    assert succeeded == total["succeeded"]
    assert sum(outcomes["primary", outcome] for outcome in Outcome) == sum(total.values())
