"""Streams fail over until their first item, and are settled and closed once."""

import contextlib
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NoReturn

import pytest
from typing_extensions import override

from helpers import REQUEST, TIMEOUT, Recorder, refuse, running, trip
from resilience import (
    AllFailedError,
    CircuitBreaker,
    EmptyStreamError,
    FallbackGroup,
    LLMFallback,
    Outcome,
    Session,
    State,
    Stream,
)
from resilience._breaker.periods import Probe
from resilience._failover.source import ProviderStream
from resilience._failover.stream import StreamState
from resilience.testing import FakeLLM, FakeStream

Items = Callable[[], Iterable[str]]


class Served:
    """A group of functions that return iterables, and what it reports."""

    def __init__(self, *providers: Items, half_open_max: int = 1) -> None:
        """Put the functions behind breakers, named 0, 1 and so on."""
        recorder = Recorder(breaker={"max_failures": 2, "half_open_max": half_open_max})
        self.clock = recorder.clock
        self.outcomes = recorder.outcomes
        self.group = FallbackGroup(providers[0], "0", recorder.config)
        for number, provider in enumerate(providers[1:], start=1):
            self.group.add_fallback(str(number), provider)

    def stream(self, *, lazy: bool = False) -> Stream[str]:
        """Open a stream."""
        return self.group.stream(lambda provider: provider(), lazy=lazy)

    def state(self, name: str = "0") -> State:
        """Return the state of a breaker."""
        return self.group.breakers[name].state

    def open_then_wait(self) -> None:
        """Let the next call of the first breaker be a probe."""
        trip(self.group.breakers["0"])
        self.clock.advance(30.0)


def lazy(*items: str | BaseException) -> Items:
    """Return a generator function that yields and raises."""

    def generate() -> Iterator[str]:
        for item in items:
            if isinstance(item, BaseException):
                raise item
            yield item

    return generate


class Recorded:
    """A function whose streams are recorded, with the number of times they were closed."""

    def __init__(self, items: Items) -> None:
        """Wrap another function."""
        self._items = items
        self.streams: list[FakeStream[str]] = []

    def __call__(self) -> FakeStream[str]:
        """Open one more stream."""
        self.streams.append(FakeStream(iter(self._items())))
        return self.streams[-1]

    def closings(self) -> list[int]:
        """Return how often each stream was closed."""
        return [stream.closed for stream in self.streams]


@pytest.mark.parametrize("is_lazy", [False, True])
@pytest.mark.parametrize("broken", [lazy(ConnectionError()), refuse])
def test_a_failure_before_the_first_item_fails_over(broken: Items, *, is_lazy: bool) -> None:
    """A failure fails over, whether the call or the first `next()` raises."""
    served = Served(broken, lazy("a", "b"))

    stream = served.stream(lazy=is_lazy)

    assert list(stream) == ["a", "b"]
    assert stream.provider == "1"
    assert served.outcomes() == [("0", Outcome.FAILED), ("1", Outcome.SUCCEEDED)]


def test_a_later_error_goes_to_the_caller_once() -> None:
    """After the first item there is no failover, and failures open the breaker."""
    served = Served(lazy("a", ConnectionError("cut")), lazy("other"))

    for _ in range(2):
        stream = served.stream()
        assert next(stream) == "a"
        with pytest.raises(ConnectionError, match="cut"):
            next(stream)
        assert list(stream) == []

    assert served.state() is State.OPEN
    assert list(served.stream()) == ["other"]


def test_lazy_calls_the_function_at_once() -> None:
    """If lazy, the function is called at once, and the first item is awaited later."""
    provider = Recorded(lazy("a"))
    served = Served(provider)

    stream = served.stream(lazy=True)

    assert len(provider.streams) == 1
    assert stream.provider is None
    assert next(stream) == "a"
    assert stream.provider == "0"


def test_an_empty_stream_succeeds_when_it_ends() -> None:
    """A group does not know whether an item was expected, so an empty stream is a success."""
    served = Served(lazy())

    assert list(served.stream()) == []
    assert served.outcomes() == [("0", Outcome.SUCCEEDED)]


def test_a_model_without_a_chunk_has_failed() -> None:
    """For a language model a stream without a chunk is a failure."""
    group = LLMFallback(FakeLLM([]), "silent")

    with pytest.raises(AllFailedError) as caught:
        group.stream_completion(REQUEST)

    assert isinstance(caught.value.failures["silent"], EmptyStreamError)


def _exhaust(stream: Stream[str]) -> None:
    assert list(stream) == ["a", "b", "c"]


def _break(stream: Stream[str]) -> None:
    for _ in stream:
        stream.close()


def _leave(stream: Stream[str]) -> None:
    with stream:
        next(stream)


def _close_twice(stream: Stream[str]) -> None:
    next(stream)
    stream.close()
    stream.close()
    assert next(stream, None) is None


def _drop(stream: Stream[str]) -> None:
    next(stream)


def _do_nothing(_stream: Stream[str]) -> None:
    pass


WAYS = [_exhaust, _break, _leave, _close_twice, _drop, _do_nothing, Stream.close]


@pytest.mark.parametrize("leave", WAYS)
@pytest.mark.parametrize("is_lazy", [False, True])
def test_each_way_to_leave_closes_once(
    leave: Callable[[Stream[str]], None], *, is_lazy: bool
) -> None:
    """However a stream ends, it is settled once, and the providers' iterables are closed once."""
    abandoned = Recorded(lazy(ConnectionError()))
    provider = Recorded(lazy("a", "b", "c"))
    served = Served(abandoned, provider)

    leave(served.stream(lazy=is_lazy))
    gc.collect()

    was_read = leave not in {_do_nothing, Stream.close} or not is_lazy
    assert abandoned.closings() == [1]
    assert provider.closings() == ([1] if was_read else [])
    assert served.outcomes()[-1] == (
        ("1", Outcome.SUCCEEDED) if was_read else ("0", Outcome.CANCELLED)
    )


def test_closing_after_the_first_item_is_a_success() -> None:
    """Closing after the first item is a success, which closes a half-open breaker."""
    served = Served(lazy("a", "stop", ConnectionError()))
    served.open_then_wait()

    with served.stream() as stream:
        next(stream)

    assert served.state() is State.CLOSED


def test_closing_before_the_first_item_releases_the_slot() -> None:
    """A probe that is closed before its first item is neither a success nor a failure."""
    served = Served(lazy("a"))
    served.open_then_wait()

    served.stream(lazy=True).close()

    assert served.state() is State.HALF_OPEN
    assert list(served.stream()) == ["a"]
    assert served.state() is State.CLOSED


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_probe_releases_its_slot(interruption: type[BaseException]) -> None:
    """An interruption while the first item is awaited is neither success nor failure."""
    results = [lazy(interruption()), lazy("a")]

    def provider() -> Iterable[str]:
        return results.pop(0)()

    served = Served(provider, lazy("other"))
    served.open_then_wait()

    with pytest.raises(interruption):
        served.stream()

    assert served.stream().provider == "0"


def test_long_streams_as_probes() -> None:
    """Several streams can be the probes; the breaker closes when all of them have succeeded."""
    served = Served(lazy("a", "b"), lazy("other"), half_open_max=2)
    served.open_then_wait()

    first, second = served.stream(), served.stream()

    assert served.stream().provider == "1"
    list(first)
    assert served.state() is State.HALF_OPEN
    list(second)
    assert served.state() is State.CLOSED


class Owner:
    """An iterable, not an iterator, that can be closed."""

    def __init__(self, error: Exception | None = None) -> None:
        """Raise an error when closed, or none."""
        self._error = error
        self.closed = 0

    def __iter__(self) -> Iterator[str]:
        """Yield one item."""
        yield "a"

    def close(self) -> None:
        """Count, and perhaps raise."""
        self.closed += 1
        if self._error is not None:
            raise self._error


def test_kinds_of_iterables() -> None:
    """Lists, objects with `__iter__` and `close`, and iterators without `close` are accepted."""
    owner = Owner()

    for provider in (lambda: ["a"], lambda: owner, lambda: iter(("a",))):
        assert list(Served(provider).stream()) == ["a"]

    assert owner.closed == 1


def test_what_cannot_be_iterated_is_a_failure() -> None:
    """A provider that returns something that is not iterable has failed."""
    served = Served(lambda: None, lazy("a"))  # type: ignore[arg-type, return-value]

    assert list(served.stream()) == ["a"]


def test_an_error_of_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An error of a provider's `close()` is logged, and the stream ends as without it."""
    owner = Owner(RuntimeError("secret"))
    served = Served(lambda: owner)

    assert list(served.stream()) == ["a"]
    assert "close()" in caplog.text
    assert "secret" not in caplog.text
    assert served.outcomes() == [("0", Outcome.SUCCEEDED)]


@pytest.mark.parametrize("read", [1, 2])
def test_closing_within_the_loop(read: int) -> None:
    """A loop that closes its stream ends there, and the call has succeeded."""
    provider = Recorded(lazy("a", "b", "c"))
    served = Served(provider)
    stream = served.stream()
    seen: list[str] = []

    for item in stream:
        seen.append(item)
        if len(seen) == read:
            stream.close()

    assert seen == ["a", "b", "c"][:read]
    assert provider.closings() == [1]
    assert served.outcomes() == [("0", Outcome.SUCCEEDED)]


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_closed_stream_is_at_its_end(*, is_lazy: bool) -> None:
    """A stream that is closed before it is read has no items, and calls no provider."""
    provider = Recorded(lazy("a"))
    served = Served(provider)
    stream = served.stream(lazy=is_lazy)

    stream.close()

    assert list(stream) == []
    assert provider.closings() == [1]
    assert len(served.outcomes()) == 1


@pytest.mark.parametrize(
    "unmade",
    [
        lambda: chain.__new__(Stream),
        lambda: object.__new__(StreamState),
        lambda: object.__new__(ProviderStream),
        lambda: object.__new__(type(CircuitBreaker().guard())),
        lambda: object.__new__(Session),
        lambda: object.__new__(Probe),
    ],
    ids=["stream", "reading", "source", "guard", "session", "probe"],
)
def test_an_object_that_was_not_initialised(unmade: Callable[[], object]) -> None:
    """An object whose making was interrupted is deleted without an error."""
    unraisable: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append

    unmade()
    gc.collect()
    sys.unraisablehook = hook

    assert unraisable == []


def test_every_provider_is_skipped() -> None:
    """If every provider is skipped, the stream raises as a call would."""
    served = Served(lazy("a"))
    served.group.breakers["0"].isolate()

    with pytest.raises(AllFailedError):
        served.stream()

    assert served.outcomes() == [("0", Outcome.SKIPPED)]


class AtItsEnd(Iterator[str]):
    """An empty iterator that counts its calls."""

    def __init__(self) -> None:
        """Start with no calls."""
        self.asked = 0

    @override
    def __next__(self) -> str:
        """End."""
        self.asked += 1
        raise StopIteration


@pytest.mark.parametrize("is_lazy", [False, True])
def test_an_empty_stream_is_read_once(*, is_lazy: bool) -> None:
    """After the end of an iterator, `next()` is not called again."""
    provider = AtItsEnd()
    stream = Served(lambda: provider).stream(lazy=is_lazy)

    assert list(stream) == []
    assert provider.asked == 1


def test_a_late_thread_takes_nothing_from_the_next_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream of an abandoned attempt is closed, so its thread reads no item."""
    first, second = Recorded(lazy("a")), Recorded(lazy("b", "c", "d"))
    group = FallbackGroup(first, "0")
    group.add_fallback("1", second)
    stream = group.stream(lambda provider: provider(), lazy=True)
    late: list[Callable[[], object]] = []

    def time_out(_call: object, work: Callable[[object], object], *_: object) -> NoReturn:
        monkeypatch.undo()
        late.append(lambda: work(first))
        raise TimeoutError

    monkeypatch.setattr("resilience._failover.attempts.Call.run", time_out)
    items = [next(stream)]
    with contextlib.suppress(IndexError):  # which the thread discards
        late[0]()
    items += stream

    assert items == ["b", "c", "d"]
    assert first.closings() == second.closings() == [1]


def test_abandoned_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose first item no thread has read is closed at once."""
    owner = Owner()
    group = FallbackGroup(owner, "0", attempt_timeout=60)
    stream = group.stream(lambda owner: owner, lazy=True)

    monkeypatch.setattr("resilience._failover.workers.WorkerPool.check_room", refuse)
    with pytest.raises(AllFailedError) as raised:
        next(stream)

    assert owner.closed == 1
    assert raised.value.failures.keys() == {"0"}


def test_closing_while_another_thread_reads() -> None:
    """The reader gets the end of the stream, and closes the provider's iterable."""
    reading, go_on = threading.Event(), threading.Event()

    def wait() -> Iterator[str]:
        yield "a"
        reading.set()
        assert go_on.wait(TIMEOUT)
        yield "b"

    provider = Recorded(wait)
    served = Served(provider)
    stream = served.stream()
    seen: list[str] = []
    with running(lambda: seen.extend(stream)):
        assert reading.wait(TIMEOUT)
        stream.close()

        assert served.outcomes() == [("0", Outcome.SUCCEEDED)]
        assert provider.closings() == [0]
        go_on.set()
    assert seen == ["a"]
    assert provider.closings() == [1]


@pytest.mark.parametrize(
    "late", [lazy(ConnectionError()), lazy("too late"), lazy()], ids=["error", "item", "end"]
)
def test_closing_while_another_thread_awaits_the_first_item(late: Items) -> None:
    """A stream that is closed before its first item does not fail over."""
    reading, go_on = threading.Event(), threading.Event()

    def wait() -> Iterator[str]:
        reading.set()
        assert go_on.wait(TIMEOUT)
        yield from late()

    first, other = Recorded(wait), Recorded(lazy("other"))
    served = Served(first, other)
    stream = served.stream(lazy=True)
    seen: list[str] = []
    with running(lambda: seen.extend(stream)):
        assert reading.wait(TIMEOUT)
        stream.close()
        go_on.set()

    assert seen == []
    assert first.closings() == [1]
    assert other.streams == []
    assert served.outcomes() == [("0", Outcome.CANCELLED)]


def test_reading_while_another_thread_is_closing() -> None:
    """A reader gets the end of the stream while the provider is being closed."""
    closing, go_on = threading.Event(), threading.Event()

    class Slow:
        def __iter__(self) -> Iterator[str]:
            return iter("abc")

        def close(self) -> None:
            closing.set()
            assert go_on.wait(TIMEOUT)

    stream = Served(Slow).stream()
    assert next(stream) == "a"
    with running(stream.close):
        assert closing.wait(TIMEOUT)

        assert list(stream) == []
        go_on.set()


def test_an_interrupted_closing_closes_the_rest() -> None:
    """If closing the iterator is interrupted, the iterable is still closed."""
    closed: list[str] = []

    class Response:
        def __iter__(self) -> Iterator[str]:
            try:
                yield "a"
                yield "b"
            finally:
                closed.append("iterator")
                raise KeyboardInterrupt

        def close(self) -> None:
            closed.append("response")

    stream = Served(Response).stream()

    with pytest.raises(KeyboardInterrupt):
        stream.close()

    assert closed == ["iterator", "response"]


def test_a_provider_that_exits_is_no_success() -> None:
    """A `GeneratorExit` that the provider raises is neither success nor failure."""
    served = Served(lazy("a", GeneratorExit()))
    stream = served.stream()
    assert next(stream) == "a"

    with pytest.raises(GeneratorExit):
        next(stream)

    assert served.outcomes() == [("0", Outcome.CANCELLED)]


def test_a_closed_stream_keeps_no_failure() -> None:
    """The errors of earlier attempts are dropped when the stream is closed."""

    class FirstError(Exception):
        pass

    failures: list[weakref.ref[FirstError]] = []

    def fail_once(_: str) -> Iterable[str]:
        if not failures:
            error = FirstError()
            failures.append(weakref.ref(error))
            raise error
        return ["a"]

    group = FallbackGroup("first", "first")
    group.add_fallback("second", "second")
    stream = group.stream(fail_once, lazy=True)

    stream.close()
    gc.collect()

    assert failures[0]() is None


def test_a_provider_added_during_traffic_is_tried_by_the_next_call() -> None:
    """A stream under way does not use a provider that is added."""
    served = Served(lazy(ConnectionError()))
    stream = served.stream(lazy=True)

    served.group.add_fallback("1", lazy("a"))

    with pytest.raises(AllFailedError):
        next(stream)
    assert list(served.stream()) == ["a"]


def test_a_stream_is_not_made_from_an_iterable() -> None:
    """`Stream.from_iterable`, which `itertools.chain` has, raises `TypeError`."""
    with pytest.raises(TypeError, match="only opened by a group"):
        Stream.from_iterable([[1], [2]])


@pytest.mark.parametrize("items", [["a"], ["a", ConnectionError()]])
def test_an_ended_stream_is_closed_at_once(items: Sequence[str | BaseException]) -> None:
    """The provider's iterable is closed at the end or at an error, before the stream is freed."""
    provider = Recorded(lazy(*items))
    stream = Served(provider).stream()

    with contextlib.suppress(ConnectionError):
        list(stream)

    assert provider.closings() == [1]
    del stream


def test_a_stream_without_an_item_is_closed_before_the_next_call() -> None:
    """A stream without an item is closed before the next provider is called."""
    silent = FakeLLM([])
    closings: list[int] = []
    group = LLMFallback(silent, "0")
    group.add_fallback("1", FakeLLM([lambda: closings.append(silent.streams[0].closed), "b"]))

    list(group.stream_completion(REQUEST))

    assert closings == [1]
