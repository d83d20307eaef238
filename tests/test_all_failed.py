"""`AllFailedError`: its failures, its `retry_after`, and groups inside groups."""

import logging
import pickle
from typing import Any, NoReturn

import pytest
from typing_extensions import override

from helpers import REQUEST, VOICE, Recorder, call, fail, grouped, raising, refuse
from resilience import (
    AllFailedError,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    Outcome,
    State,
    TTSFallback,
    UnsupportedRequestError,
)
from resilience.testing import FakeLLM, FakeTTS, ManualClock


def _call(provider: Any) -> str:  # noqa: ANN401
    """Call a provider, which may be a group."""
    if isinstance(provider, FallbackGroup):
        return provider.execute(_call)
    return provider or "backup"


class UnreadableError(Exception):
    """An exception whose text cannot be read, and whose truth value is False."""

    @override
    def __str__(self) -> str:
        raise ZeroDivisionError

    def __bool__(self) -> bool:
        """Return False."""
        return False


class TestFailures:
    """The error has the failure of each provider, and the last one as its cause."""

    def test_it_names_every_provider(self) -> None:
        """Failures are in order, with the wait of skipped providers; the last one is the cause."""
        recorder = Recorder(breaker={"reset_timeout": 20.0})
        last = ValueError("odd")
        group = grouped(refuse, lambda: "1", raising(last), config=recorder.config)
        for name in ("0", "1"):
            fail(group.breakers[name])
            recorder.clock.advance(5.0)

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        error = caught.value
        assert list(error.failures) == ["0", "1", "2"]
        assert isinstance(error.failures["0"], CircuitOpenError)
        assert error.failures["2"] is last
        assert error.__cause__ is last
        assert error.retry_after == pytest.approx(10.0)
        assert "1: CircuitOpenError" in str(error)
        assert "2: ValueError: odd" in str(error)

    @pytest.mark.parametrize("name", ["another", "0"])
    def test_a_circuit_open_error_of_a_provider(self, name: str) -> None:
        """A `CircuitOpenError` of a provider is a failure; its wait is not used for the group."""
        recorder = Recorder(breaker={"reset_timeout": 20.0})
        group = grouped(raising(CircuitOpenError(name, 7.0)), config=recorder.config)

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert caught.value.retry_after == again.retry_after == 20.0
        assert recorder.outcomes() == [("0", Outcome.FAILED)]

    def test_a_text_that_cannot_be_read(self) -> None:
        """An exception whose text cannot be read is shown by its type, also if it is falsy."""
        with pytest.raises(AllFailedError) as caught:
            grouped(raising(UnreadableError())).execute(call)

        assert "UnreadableError" in str(caught.value)


class TestRetryAfter:
    """`AllFailedError.retry_after` is the shortest wait after which a call may succeed."""

    @pytest.mark.parametrize(
        ("max_failures", "isolated", "wait"),
        [(2, False, 0), (1, False, 7), (1, True, 7), (2, True, 0)],
    )
    def test_failed_just_now(self, max_failures: int, wait: float, *, isolated: bool) -> None:
        """It is 0 if the breaker of a failed provider is still closed, otherwise its wait."""
        recorder = Recorder(breaker={"reset_timeout": 7, "max_failures": max_failures})
        group = grouped(refuse, refuse, config=recorder.config)
        if isolated:
            group.breakers["1"].isolate()

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after == wait

    def test_isolated(self) -> None:
        """It is None if all breakers are isolated."""
        group = grouped(lambda: "0")
        group.breakers["0"].isolate()

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after is None

    @pytest.mark.parametrize("error", [UnsupportedRequestError(), NotImplementedError()])
    def test_a_provider_that_does_not_support_the_request(self, error: Exception) -> None:
        """A provider that does not support the request is ignored."""
        recorder = Recorder(breaker={"reset_timeout": 7})
        group = FallbackGroup("a", "a", recorder.config)

        with pytest.raises(AllFailedError) as alone:
            group.execute(raising(error))
        group.add_fallback("b", "b")
        with pytest.raises(AllFailedError) as caught:
            group.execute(lambda provider: raising(error if provider == "a" else OSError())(""))

        assert alone.value.retry_after is None
        assert caught.value.retry_after == 7

    @pytest.mark.parametrize("isolated", [False, True])
    def test_a_group_that_has_just_opened(self, *, isolated: bool) -> None:
        """For a group inside a group, it is the wait until both breakers admit a call."""
        recorder = Recorder(breaker={"reset_timeout": 7})
        inner = FallbackGroup("a", "a", recorder.config)
        outer = FallbackGroup(inner, "inner")

        def serve(group: FallbackGroup[str]) -> str:
            try:
                return str(group.execute(raising(OSError())))
            finally:
                if isolated:
                    outer.breakers["inner"].isolate()

        with pytest.raises(AllFailedError) as caught:
            outer.execute(serve)

        assert caught.value.retry_after == (None if isolated else 7)

    def test_a_probe_was_ignored(self) -> None:
        """It is 0 if a breaker is half-open and the next call would be admitted."""
        errors = iter([ConnectionError(), ValueError()])

        def provider() -> str:
            raise next(errors, KeyboardInterrupt())

        recorder = Recorder(breaker={"failure_on": ConnectionError})
        group = grouped(provider, config=recorder.config)
        with pytest.raises(AllFailedError):
            group.execute(call)
        recorder.clock.advance(30.0)

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        with pytest.raises(KeyboardInterrupt):
            group.execute(call)  # it is admitted
        assert caught.value.retry_after == 0.0

    def test_an_open_period_that_has_elapsed(self) -> None:
        """It is 0, and never negative, if `reset_timeout` elapsed while others were tried."""
        recorder = Recorder()

        def refuse_slowly() -> NoReturn:
            recorder.clock.advance(60.0)
            raise ConnectionError

        group = grouped(refuse, config=recorder.config)
        fail(group.breakers["0"])
        group.add_fallback("1", refuse_slowly)

        with pytest.raises(AllFailedError) as raised:
            group.execute(call)

        skipped = raised.value.failures["0"]
        assert isinstance(skipped, CircuitOpenError)
        assert skipped.retry_after == raised.value.retry_after == 0.0


class TestGroupsInGroups:
    """A group may be the provider of another group."""

    def test_one_outage(self) -> None:
        """A skip in the inner group does not count in the outer one, so probes are not delayed."""
        clock, up = ManualClock(), False
        breaker = CircuitBreakerConfig(max_failures=1, clock=clock)

        def vendor(_: object) -> str:
            if not up:
                raise ConnectionError
            return "served"

        inner = FallbackGroup("vendor", "vendor", FallbackConfig(circuit_breaker=breaker))
        outer = FallbackGroup(
            inner,
            "inner",
            FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=5, clock=clock)),
        )
        with pytest.raises(AllFailedError):
            outer.execute(lambda group: group.execute(vendor))
        up = True

        waits: list[float | None] = []
        for _ in range(4):
            clock.advance(7)
            with pytest.raises(AllFailedError) as caught:
                outer.execute(lambda group: group.execute(vendor))
            waits.append(caught.value.retry_after)
        clock.advance(2)

        assert waits == [23, 16, 9, 2]
        assert outer.breakers["inner"].state is State.CLOSED
        assert outer.execute(lambda group: group.execute(vendor)) == "served"

    @pytest.mark.parametrize("depth", [1, 2])
    def test_none_was_tried(self, depth: int, caplog: pytest.LogCaptureFixture) -> None:
        """A group all of whose providers were skipped is itself skipped, at any depth."""
        recorder = Recorder()
        group: Any = FallbackGroup("vendor", "0")
        group.breakers["0"].isolate()
        for _ in range(depth):
            group = FallbackGroup(group, "0", recorder.config)
        group.add_fallback("1", None)

        caplog.set_level(logging.DEBUG, "resilience")
        caplog.clear()

        assert group.execute(_call) == "backup"

        lines = [record.getMessage() for record in caplog.records]
        assert lines == ["provider 0 is skipped"] * (depth + 1)
        assert recorder.outcomes()[-2:] == [("0", Outcome.SKIPPED), ("1", Outcome.SUCCEEDED)]
        assert group.breakers["0"].state is State.CLOSED

    def test_a_probe_that_is_skipped_inside(self) -> None:
        """A probe of a group that skips all its providers releases its slot."""
        recorder = Recorder()
        inner: Any = FallbackGroup("vendor", "vendor")
        outer = FallbackGroup(inner, "inner", recorder.config)
        with pytest.raises(AllFailedError):
            outer.execute(refuse)
        recorder.clock.advance(30)
        inner.breakers["vendor"].isolate()

        for _ in range(3):
            with pytest.raises(AllFailedError):
                outer.execute(_call)
        inner.breakers["vendor"].reset()

        before = outer.breakers["inner"].state
        assert outer.execute(_call) == "vendor"
        assert (before, outer.breakers["inner"].state) == (State.HALF_OPEN, State.CLOSED)

    def test_one_was_tried(self) -> None:
        """A group one of whose providers failed has failed."""
        recorder = Recorder()
        inner = FallbackGroup("vendor", "vendor")
        inner.add_fallback("open", "vendor")
        inner.breakers["open"].isolate()
        outer = FallbackGroup(inner, "inner", recorder.config)

        with pytest.raises(AllFailedError):
            outer.execute(lambda group: group.execute(refuse))

        assert recorder.outcomes() == [("inner", Outcome.FAILED)]
        assert outer.breakers["inner"].state is State.OPEN

    def test_an_error_that_no_group_has_raised(self) -> None:
        """An error that a provider has made itself counts, whatever its failures are."""
        recorder = Recorder()
        error = AllFailedError({"model": UnsupportedRequestError()})
        group = grouped(raising(error), config=recorder.config)

        with pytest.raises(AllFailedError):
            group.execute(call)

        assert recorder.outcomes() == [("0", Outcome.FAILED)]

    @pytest.mark.parametrize(("other", "wait"), [(20.0, 7.0), (5.0, 5.0)])
    def test_the_wait_of_an_inner_group(self, other: float, wait: float) -> None:
        """The wait of an inner group that skipped all is one of those of the outer group."""
        inner = grouped(refuse, config=Recorder(breaker={"reset_timeout": 7.0}).config)
        fail(inner.breakers["0"])
        outer = Recorder(breaker={"reset_timeout": other})
        group = grouped(lambda: inner.execute(call), refuse, config=outer.config)

        with pytest.raises(AllFailedError) as caught:
            group.execute(call)

        assert caught.value.retry_after == wait

    @pytest.mark.parametrize("kind", ["call", "stream", "speech"])
    def test_a_group_inside_an_adapter(self, kind: str) -> None:
        """The same holds for an adapter that is a provider of an adapter, also for its streams."""
        recorder = Recorder()
        inner_models, inner_voices = LLMFallback(FakeLLM(), "0"), TTSFallback(FakeTTS(), "0")
        inner_models.breakers["0"].isolate()
        inner_voices.breakers["0"].isolate()
        models, voices = (
            LLMFallback(inner_models, "0", recorder.config),
            TTSFallback(inner_voices, "0", recorder.config),
        )
        models.add_fallback("1", FakeLLM())
        voices.add_fallback("1", FakeTTS())

        if kind == "call":
            models.complete(REQUEST)
        elif kind == "stream":
            list(models.stream_completion(REQUEST))
        else:
            list(voices.synthesize_stream(["text"], VOICE))

        assert recorder.outcomes() == [("0", Outcome.SKIPPED), ("1", Outcome.SUCCEEDED)]
