"""The two questions, what counts and what moves on, answered for HTTP-shaped exceptions."""

import pytest

from resilience import (
    AllFailedError,
    CircuitBreakerConfig,
    FallbackConfig,
    LLMFallback,
    State,
    http,
    llm,
)
from resilience.testing import FakeLLM, ManualClock, StatusError

REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content="Hello?"),))


def models(
    clock: ManualClock, primary: FakeLLM, backup: FakeLLM, *, reset_timeout: float = 5.0
) -> LLMFallback:
    """Return two models under the policy that the docs recommend."""
    config = FallbackConfig(
        circuit_breaker=CircuitBreakerConfig(
            failure_on=http.is_provider_fault,
            retry_after=http.retry_after,
            reset_timeout=reset_timeout,
            half_open_max=1,
            clock=clock,
        ),
        fallback_on=http.may_succeed_elsewhere,
    )
    group = LLMFallback(primary, "primary", config)
    group.add_fallback("backup", backup)
    return group


@pytest.mark.parametrize("status", [400, 405, 415, 422])
def test_a_bad_request_reaches_the_caller_at_once(status: int) -> None:
    """A wrong request counts against nobody and goes nowhere."""
    backup = FakeLLM()
    group = models(ManualClock(), FakeLLM(StatusError(status)), backup)

    for _ in range(20):
        with pytest.raises(StatusError):
            group.complete(REQUEST)

    assert [breaker.state for breaker in group.breakers.values()] == [State.CLOSED] * 2
    assert backup.requests == []


def test_one_429_opens_exactly_that_provider_for_as_long_as_it_asks() -> None:
    """A provider that says `retry-after: 20` is left alone for 20 seconds, and nobody else is."""
    clock = ManualClock()
    primary = FakeLLM(StatusError(429, retry_after=20), "back")
    group = models(clock, primary, FakeLLM("backup"))

    assert group.complete(REQUEST).content == "backup"
    assert [str(breaker.state) for breaker in group.breakers.values()] == ["open", "closed"]

    clock.advance(19.9)
    assert group.complete(REQUEST).content == "backup"
    assert len(primary.requests) == 1

    clock.advance(0.1)
    assert group.complete(REQUEST).content == "back"


def test_nothing_shortens_the_wait() -> None:
    """Neither token counts nor late results of earlier calls bring a provider back earlier."""
    clock = ManualClock()
    primary = FakeLLM(["early", "late"], StatusError(429, retry_after=20), "back")
    group = models(clock, primary, FakeLLM("backup"))
    early = group.stream_completion(REQUEST)

    assert group.complete(REQUEST).content == "backup"
    list(early)
    group.count_tokens(REQUEST.messages)
    clock.advance(19.0)
    with pytest.raises(StatusError), group.breakers["backup"].guard():
        raise StatusError(429, retry_after=60)

    assert group.breakers["primary"].state is State.OPEN
    with pytest.raises(AllFailedError) as caught:
        group.complete(REQUEST)
    assert caught.value.retry_after == pytest.approx(1.0)


def test_the_wait_is_never_less_than_the_reset_timeout() -> None:
    """A provider that asks for less than `reset_timeout` is left alone for `reset_timeout`."""
    clock = ManualClock()
    primary = FakeLLM(StatusError(429, retry_after=1), "back")
    group = models(clock, primary, FakeLLM("backup"), reset_timeout=30.0)
    group.complete(REQUEST)

    clock.advance(29.9)

    assert group.breakers["primary"].state is State.OPEN
