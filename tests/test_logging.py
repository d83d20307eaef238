"""Log lines of the library, and contents that are never logged."""

import inspect
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import pytest
from typing_extensions import override

from helpers import call, fail, grouped, refuse
from resilience import (
    AllFailedError,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    FallbackGroup,
    LLMFallback,
    State,
    StateChange,
    STTFallback,
    TTSFallback,
    llm,
    stt,
    tts,
)
from resilience.testing import FakeLLM, FakeSession, FakeSTT, FakeTTS, ManualClock

SECRET = "hunter2"  # noqa: S105
ORDINARY = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
REQUEST = llm.CompletionRequest(messages=(llm.Message(role="user", content=SECRET),))


class UnreadableError(Exception):
    """An exception that cannot be read."""

    @override
    def __str__(self) -> str:
        raise RuntimeError(SECRET)

    @override
    def __repr__(self) -> str:
        raise RuntimeError(SECRET)


class FalsyError(Exception):
    """An exception whose truth value is False, as with an empty list of causes."""

    def __len__(self) -> int:
        """Return 0."""
        return 0


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    """Record all log levels."""
    caplog.set_level(logging.DEBUG, "resilience")


def breaker_with(clock: ManualClock, **settings: Any) -> CircuitBreaker:  # noqa: ANN401
    """Return a breaker that opens at the first failure and closes after the first probe."""
    return CircuitBreaker(
        CircuitBreakerConfig(name="model", max_failures=1, half_open_max=1, clock=clock, **settings)
    )


def extra(record: logging.LogRecord) -> dict[str, object]:
    """Return the extra fields of a record."""
    return {key: value for key, value in vars(record).items() if key not in ORDINARY}


def seen(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return levels and texts of all records."""
    return [(record.levelname, record.getMessage()) for record in caplog.records]


class TestBreaker:
    """Records of a breaker."""

    def test_levels(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """WARNING when it opens or re-opens, INFO when it probes, closes or is reset."""
        breaker = breaker_with(clock)
        fail(breaker)
        clock.advance(30)
        fail(breaker)
        clock.advance(30)
        breaker.execute(str)
        breaker.reset()
        breaker.isolate()

        assert seen(caplog) == [
            ("WARNING", "circuit model is open"),
            ("INFO", "circuit model is half-open"),
            ("WARNING", "circuit model is open"),
            ("INFO", "circuit model is half-open"),
            ("INFO", "circuit model is closed"),
            ("INFO", "circuit model was reset"),
            ("WARNING", "circuit model is open"),
            ("WARNING", "circuit model was isolated"),
        ]

    def test_extra(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """The extra keys name the circuit, both states and the type of the failure."""
        breaker = breaker_with(clock)

        fail(breaker, ConnectionRefusedError(SECRET))

        assert extra(caplog.records[0]) == {
            "resilience_circuit": "model",
            "resilience_old_state": "closed",
            "resilience_new_state": "open",
            "resilience_error": "ConnectionRefusedError",
        }

    def test_no_failure(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """A change without a failure has none in its extra keys."""
        breaker_with(clock).isolate()

        assert extra(caplog.records[0])["resilience_error"] is None

    def test_constant_texts(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """The texts are constant, with lazy arguments."""
        breaker = breaker_with(clock)
        breaker.isolate()
        breaker.reset()

        assert {record.msg for record in caplog.records} == {
            "circuit %s is %s",
            "circuit %s was isolated",
            "circuit %s was reset",
        }

    def test_no_name(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """A breaker without a name is called "(unnamed)" in the texts, not in the extra keys."""
        breaker = CircuitBreaker(CircuitBreakerConfig(max_failures=1, clock=clock))
        breaker.isolate()
        breaker.reset()

        assert [text for _, text in seen(caplog)] == [
            "circuit (unnamed) is open",
            "circuit (unnamed) was isolated",
            "circuit (unnamed) is closed",
            "circuit (unnamed) was reset",
        ]
        assert {extra(record)["resilience_circuit"] for record in caplog.records} == {""}

    def test_operator(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """`isolate()` and `reset()` are logged with the name of the breaker."""
        breaker = breaker_with(clock)
        breaker.isolate()
        breaker.reset()

        assert {record.msg: extra(record)["resilience_circuit"] for record in caplog.records} == {
            "circuit %s is %s": "model",
            "circuit %s was isolated": "model",
            "circuit %s was reset": "model",
        }

    def test_ordinary_calls(self, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
        """A success, an uncounted exception, a rejection and reading the state log nothing."""
        breaker = breaker_with(clock, failure_on=ConnectionError)
        breaker.execute(str)
        fail(breaker, ValueError())
        breaker.isolate()
        caplog.clear()
        with pytest.raises(CircuitOpenError):
            breaker.execute(str)

        assert breaker.state in State
        assert caplog.records == []

    @pytest.mark.parametrize("error", [UnreadableError(SECRET), FalsyError(SECRET)], ids=[0, 1])
    def test_unreadable_errors(
        self, clock: ManualClock, caplog: pytest.LogCaptureFixture, error: Exception
    ) -> None:
        """A failure is logged by its type, and raised to the caller unchanged."""
        changes: list[StateChange] = []
        breaker = breaker_with(clock, on_state_change=changes.append)

        fail(breaker, error)

        assert len(changes) == 1
        assert extra(caplog.records[0])["resilience_error"] == type(error).__name__


class TestHooks:
    """Records of hooks and listeners that raise."""

    @pytest.mark.parametrize("hook", ["failure_on", "retry_after", "on_state_change"])
    @pytest.mark.parametrize("error", [RuntimeError(SECRET), UnreadableError(SECRET)], ids=[0, 1])
    def test_raise(
        self, clock: ManualClock, caplog: pytest.LogCaptureFixture, hook: str, error: Exception
    ) -> None:
        """An ERROR names the hook, the type of its exception, and the place."""

        def broken(_: object) -> bool:
            raise error

        fail(breaker_with(clock, **{hook: broken}), ConnectionError(SECRET))

        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        line = broken.__code__.co_firstlineno + 1
        assert record.getMessage() == f"{hook} raised {type(error).__name__} at {__file__}:{line}"
        assert record.exc_info is None
        assert extra(record) == {
            "resilience_source": hook,
            "resilience_error": type(error).__name__,
        }

    @pytest.mark.parametrize("hook", ["retry_after", "on_state_change", "on_attempt"])
    def test_coroutine(self, caplog: pytest.LogCaptureFixture, hook: str) -> None:
        """A hook that returns a coroutine is logged like one that raises; nothing is awaited."""
        returned: list[Coroutine[None, None, None]] = []

        async def later() -> None:
            """Be closed, and so never warn."""

        def asynchronous(_: object) -> object:
            returned.append(later())
            return returned[-1]

        settings: dict[str, Any] = {hook: asynchronous}
        breaker = {} if hook == "on_attempt" else settings
        config = CircuitBreakerConfig(max_failures=1, **breaker)
        outer = settings if hook == "on_attempt" else {}
        group = FallbackGroup(1, "a", FallbackConfig(circuit_breaker=config, **outer))

        with pytest.raises(AllFailedError):
            group.execute(refuse)

        assert [inspect.getcoroutinestate(each) for each in returned] == [inspect.CORO_CLOSED]
        assert f"{hook} raised TypeError" in caplog.text


def broken_listener(_: object) -> None:
    """Raise with a secret."""
    raise RuntimeError(SECRET)


CONFIG = FallbackConfig(
    circuit_breaker=CircuitBreakerConfig(max_failures=1, on_state_change=broken_listener),
    on_attempt=broken_listener,
)


def complete(error: Exception) -> None:
    """Call models of which one fails."""
    adapter = LLMFallback(FakeLLM(error), "primary", CONFIG)
    adapter.add_fallback("backup", FakeLLM(SECRET))
    for _ in range(2):
        assert adapter.complete(REQUEST).content == SECRET
        assert adapter.count_tokens(REQUEST.messages) == 1


def complete_with_none(error: Exception) -> None:
    """Call models of which all fail."""
    adapter = LLMFallback(FakeLLM(error), "primary", CONFIG)
    for _ in range(2):
        with pytest.raises(AllFailedError):
            adapter.complete(REQUEST)


def stream(error: Exception) -> None:
    """Read a stream that raises in the middle."""
    adapter = LLMFallback(FakeLLM(error), "primary", CONFIG)
    adapter.add_fallback("backup", FakeLLM([SECRET, error]))
    with pytest.raises(type(error)):
        list(adapter.stream_completion(REQUEST))


def speak(error: Exception) -> None:
    """Synthesise a text with synthesisers of which one fails."""
    adapter = TTSFallback(FakeTTS(error), "primary", CONFIG)
    adapter.add_fallback("backup", FakeTTS())
    assert list(adapter.synthesize_stream([SECRET], tts.VoiceProfile(id=SECRET)))


def listen(error: Exception) -> None:
    """Read transcripts of a session that raises in the middle."""
    adapter = STTFallback(FakeSTT(error), "primary", CONFIG)
    adapter.add_fallback("backup", FakeSTT(FakeSession(SECRET, error)))
    session = adapter.start_stream(stt.StreamConfig())
    session.send_audio(SECRET.encode())
    with pytest.raises(type(error)):
        list(session.finals())
    session.close()


SCENARIOS = [complete, complete_with_none, stream, speak, listen]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    "error",
    [ConnectionError(SECRET), UnreadableError(SECRET), FalsyError(SECRET)],
    ids=["readable", "unreadable", "falsy"],
)
def test_no_contents_are_logged(
    caplog: pytest.LogCaptureFixture, scenario: Callable[[Exception], None], error: Exception
) -> None:
    """Prompts, transcripts, text, audio and messages of exceptions are never logged."""
    scenario(error)

    assert caplog.records
    assert [leak for record in caplog.records for leak in leaks(record)] == []
    assert {record.name for record in caplog.records} == {"resilience"}
    keys = {key for record in caplog.records for key in extra(record)}
    assert [key for key in keys if not key.startswith("resilience_")] == []


def leaks(record: logging.LogRecord) -> Iterator[str]:
    """Yield the texts in a record that it should not contain."""
    if SECRET in record.getMessage():
        yield record.getMessage()
    values = [*extra(record).values(), *cast("tuple[object, ...]", record.args)]
    yield from (
        type(value).__name__
        for value in values
        if not isinstance(value, (str, int, State, type(None)))
    )
    if record.exc_info or record.stack_info:
        yield "a traceback"


class TestGroup:
    """Records of a group."""

    def test_levels(self, caplog: pytest.LogCaptureFixture) -> None:
        """WARNING when a provider fails and the next is tried, DEBUG when one is skipped."""
        config = FallbackConfig(circuit_breaker=CircuitBreakerConfig(max_failures=1))
        adapter = LLMFallback(FakeLLM(ConnectionError(SECRET)), "primary", config)
        adapter.add_fallback("backup", FakeLLM("ok"))
        adapter.complete(REQUEST)
        adapter.complete(REQUEST)

        assert seen(caplog) == [
            ("WARNING", "circuit primary is open"),
            ("WARNING", "provider primary failed with ConnectionError"),
            ("DEBUG", "provider primary is skipped"),
        ]
        assert extra(caplog.records[1]) == {
            "resilience_provider": "primary",
            "resilience_error": "ConnectionError",
        }
        assert extra(caplog.records[2]) == {"resilience_provider": "primary"}

    def test_constant_texts(self, caplog: pytest.LogCaptureFixture) -> None:
        """The texts are constant, with lazy arguments."""
        config = FallbackConfig(
            circuit_breaker=CircuitBreakerConfig(max_failures=1), on_attempt=refuse
        )
        group = grouped(refuse, str, config=config)

        for _ in range(2):
            group.execute(call)

        assert {record.msg for record in caplog.records} == {
            "circuit %s is %s",
            "provider %s failed with %s",
            "provider %s is skipped",
            "%s raised %s at %s:%d",
        }
