"""With `when_all_open="try"`, providers are tried although every breaker is open."""

from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from helpers import REQUEST, fail
from resilience import (
    AllFailedError,
    Attempt,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    State,
)
from resilience.testing import FakeLLM, ManualClock

Way = Callable[["Blip", str], str]


class Blip:
    """A group of two providers whose breakers an outage of the network has opened."""

    def __init__(
        self,
        *,
        half_open_max: int = 1,
        when_all_open: Literal["fail", "try"] = "try",
        attempt_timeout: float = 0.0,
        reports: bool = True,
    ) -> None:
        """Open all breakers; providers are their own names."""
        self.clock = ManualClock()
        self.attempts: list[Attempt] = []
        self.called: list[str] = []
        self.down: dict[str, Exception] = {}
        breaker = CircuitBreakerConfig(
            max_failures=1,
            half_open_max=half_open_max,
            retry_after=lambda error: error.args[0] if error.args else None,
            clock=self.clock,
        )
        self.group = FallbackGroup(
            "a",
            "a",
            FallbackConfig(
                circuit_breaker=breaker,
                when_all_open=when_all_open,
                attempt_timeout=attempt_timeout,
                on_attempt=self.attempts.append if reports else None,
            ),
        )
        self.group.add_fallback("b", "b")
        for each in self.group.breakers.values():
            fail(each)

    def call(self, provider: str) -> str:
        """Answer, or raise the exception of the provider that is down."""
        self.called.append(provider)
        if provider in self.down:
            raise self.down[provider]
        return provider

    def state(self, provider: str) -> State:
        """Return the state of a breaker."""
        return self.group.breakers[provider].state


def by_call(blip: Blip) -> str:
    """Make a plain call."""
    return blip.group.execute(blip.call)


def by_stream(blip: Blip) -> str:
    """Open a stream and read it."""
    return "".join(blip.group.stream(lambda provider: iter(blip.call(provider))))


def by_lazy_stream(blip: Blip) -> str:
    """Open a stream whose providers do nothing before the first `next()`."""

    def items(provider: str) -> Iterator[str]:
        yield blip.call(provider)

    return "".join(blip.group.stream(items, lazy=True))


def by_session(blip: Blip) -> str:
    """Open a session and close it."""
    with blip.group.session(blip.call) as session:
        return session.handle


WAYS = pytest.mark.parametrize("way", [by_call, by_stream, by_lazy_stream, by_session])


@WAYS
@pytest.mark.parametrize("attempt_timeout", [0, 60])
@pytest.mark.parametrize("reports", [True, False])
def test_tries_in_order(
    way: Callable[[Blip], str], attempt_timeout: float, *, reports: bool
) -> None:
    """The first working provider serves the call, and its breaker closes as after a probe."""
    blip = Blip(attempt_timeout=attempt_timeout, reports=reports)
    blip.down["a"] = ConnectionError()

    assert way(blip) == "b"

    assert blip.called == ["a", "b"]
    assert blip.state("a") is State.OPEN
    assert blip.state("b") is State.CLOSED


@WAYS
def test_fails_by_default(way: Callable[[Blip], str]) -> None:
    """With "fail", no provider is called."""
    blip = Blip(when_all_open="fail")

    with pytest.raises(AllFailedError):
        way(blip)

    assert FallbackConfig().when_all_open == "fail"
    assert blip.called == []


def test_is_not_used_if_a_provider_was_tried() -> None:
    """If one provider failed in this call, the open ones are not tried."""
    blip = Blip()
    blip.group.breakers["b"].reset()
    blip.down["b"] = ConnectionError()

    with pytest.raises(AllFailedError):
        by_call(blip)

    assert blip.called == ["b"]


def test_a_success_is_as_good_as_a_probe() -> None:
    """A success ends the open period: the next calls are probes, until enough have succeeded."""
    blip = Blip(half_open_max=3)

    states = []
    for _ in range(3):
        assert by_call(blip) == "a"
        states.append(blip.state("a"))

    assert states == [State.HALF_OPEN, State.HALF_OPEN, State.CLOSED]


def test_a_failure_changes_nothing() -> None:
    """A failure does not change the open period."""
    blip = Blip()
    blip.down = {"a": ConnectionError(), "b": ConnectionError()}
    blip.clock.advance(10)

    with pytest.raises(AllFailedError) as raised:
        by_call(blip)

    assert [type(each) for each in raised.value.failures.values()] == [ConnectionError] * 2
    assert raised.value.retry_after == 20
    assert blip.group.breakers["a"].snapshot().retry_after == 20
    assert blip.group.breakers["a"].snapshot().opened_count == 1


def test_a_requested_delay_holds() -> None:
    """A failure that asks for a longer delay lengthens the open period."""
    blip = Blip()
    blip.down = {"a": ConnectionError(100), "b": ConnectionError()}

    with pytest.raises(AllFailedError):
        by_call(blip)

    assert blip.group.breakers["a"].snapshot().retry_after == 100
    assert blip.group.breakers["b"].snapshot().retry_after == 30


def test_isolated_breakers_are_never_tried() -> None:
    """A provider whose breaker is isolated, with or without a time limit, is not called."""
    blip = Blip()
    blip.group.breakers["a"].isolate()
    blip.group.breakers["b"].isolate(5)

    with pytest.raises(AllFailedError) as raised:
        by_call(blip)

    assert blip.called == []
    assert all(isinstance(each, CircuitOpenError) for each in raised.value.failures.values())


def test_one_more_probe() -> None:
    """A half-open breaker whose slots are taken admits one more probe, which may close it."""
    blip = Blip()
    blip.clock.advance(30)
    hanging = [breaker.guard() for breaker in blip.group.breakers.values()]
    for each in hanging:
        each.__enter__()

    assert by_call(blip) == "a"
    assert blip.state("a") is State.CLOSED


def test_a_probe_beyond_the_slots_may_fail() -> None:
    """Such a probe opens the breaker again if it fails."""
    blip = Blip()
    blip.clock.advance(30)
    hanging = [breaker.guard() for breaker in blip.group.breakers.values()]
    for each in hanging:
        each.__enter__()
    blip.down = {"a": ConnectionError(), "b": ConnectionError()}

    with pytest.raises(AllFailedError):
        by_call(blip)

    assert blip.state("a") is blip.state("b") is State.OPEN


def test_a_late_success_of_an_ended_period_is_ignored() -> None:
    """A forced call that ends after a reset and a new outage does not end the new period."""
    blip = Blip()
    breaker = blip.group.breakers["a"]

    def reset_and_fail(provider: str) -> str:
        breaker.reset()
        with pytest.raises(KeyError), breaker.guard():
            raise KeyError
        return provider

    assert blip.group.execute(reset_and_fail) == "a"

    assert breaker.state is State.OPEN


def test_reports() -> None:
    """Each provider is reported as skipped, and then how the forced attempt has ended."""
    blip = Blip()
    blip.group.breakers["a"].isolate()

    by_call(blip)

    reports = [(attempt.provider, str(attempt.outcome)) for attempt in blip.attempts]
    assert reports == [("a", "skipped"), ("b", "skipped"), ("b", "succeeded")]


def test_calls_that_are_not_recorded() -> None:
    """A call that is not recorded is made too, and ends no open period."""
    blip = Blip()
    blip.group.breakers["a"].isolate()

    assert blip.group.execute(blip.call, record=False) == "b"

    assert blip.state("b") is State.OPEN


def test_an_inner_group_decides_for_itself() -> None:
    """A group of groups tries its members, and the inner group applies its own setting."""
    inner = Blip()
    outer = FallbackGroup(inner, "inner", FallbackConfig(when_all_open="try"))

    assert outer.execute(by_call) == "a"


def test_through_an_adapter() -> None:
    """A model that works again answers at once, although its breaker is open."""
    config = FallbackConfig(
        circuit_breaker=CircuitBreakerConfig(max_failures=1), when_all_open="try"
    )
    model = LLMFallback(FakeLLM(ConnectionError(), "back"), "model", config)
    with pytest.raises(AllFailedError):
        model.complete(REQUEST)

    assert model.complete(REQUEST).content == "back"


@pytest.mark.parametrize(
    ("value", "error"), [("retry", ValueError), (None, TypeError), (True, TypeError)]
)
def test_refuses(value: object, error: type[Exception]) -> None:
    """The message has the setting, its allowed values and the given value."""
    with pytest.raises(error, match=f"when_all_open must be 'fail' or 'try', got {value!r}"):
        FallbackConfig(when_all_open=value)  # type: ignore[arg-type]
