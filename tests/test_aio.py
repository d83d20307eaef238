"""Calls and streams in asyncio applications run in threads, and are closed in every case."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from bridges import (
    AHEAD,
    LIMIT,
    LOOPS,
    REQUEST,
    Gate,
    Source,
    cancel,
    cancelled_at_each_await,
    group,
    join_threads,
    outcomes,
    run,
    start,
)
from resilience import AllFailedError, aio
from resilience.testing import FakeLLM

VARIABLE: ContextVar[str] = ContextVar("variable", default="nobody's")
LIMITS = pytest.mark.parametrize("limit", [None, LIMIT], ids=["no limit", "limit"])


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    join_threads()


@LOOPS
class TestCall:
    """`call` makes one call in a thread."""

    def test_what_it_passes_on(self, loop: str) -> None:
        """Arguments, the result and the caller's context are passed on."""

        def fn(*args: int, **kwargs: int) -> object:
            return args, kwargs, VARIABLE.get(), threading.get_ident() != in_loop

        async def main() -> object:
            VARIABLE.set("the caller's")
            return await aio.call(fn, 1, 2, third=3)

        in_loop = threading.get_ident()

        assert run(loop, main()) == ((1, 2), {"third": 3}, "the caller's", True)

    @pytest.mark.parametrize("kind", [ValueError, StopAsyncIteration, GeneratorExit])
    def test_an_exception_arrives_unchanged(self, loop: str, kind: type[BaseException]) -> None:
        """An exception of any type is raised as the same object."""
        errors = [kind("message")]

        def fail() -> None:
            raise errors[0]

        async def main() -> None:
            with pytest.raises(kind) as caught:
                await aio.call(fail)
            assert caught.value is errors[0]

        run(loop, main())

    def test_stop_iteration(self, loop: str) -> None:
        """A `StopIteration`, which no coroutine can raise, is the cause of a `RuntimeError`."""
        nothing: Iterator[list[int]] = iter(())

        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            run(loop, aio.call(next, nothing))
        with pytest.raises(RuntimeError, match="StopIteration"):
            run(loop, aio.stream(lambda: next(nothing)).__anext__())

        assert isinstance(caught.value.__cause__, StopIteration)

    def test_any_number_at_the_same_time(self, loop: str) -> None:
        """No call waits for a thread, as it would in the default executor."""
        barrier = threading.Barrier(50)

        async def main() -> list[int]:
            return await asyncio.gather(*(aio.call(barrier.wait, LIMIT) for _ in range(50)))

        assert sorted(run(loop, main())) == list(range(50))

    def test_a_late_stream_is_closed(self, loop: str) -> None:
        """A cancelled call ends at once; a stream that it returns later is closed."""
        gate = Gate()
        fake = FakeLLM([gate, "late"])
        model, attempts = group(fake)

        run(loop, cancel(aio.call(model.stream_completion, REQUEST), gate))
        assert attempts == []
        gate.open()

        assert fake.streams[0].closed == 1
        assert outcomes(attempts) == ["0 succeeded"]

    def test_cancelled_at_each_await(self, loop: str) -> None:
        """A call can be cancelled at each place where it waits."""
        assert list(cancelled_at_each_await(loop, lambda: aio.call(int)))


@LOOPS
class TestStream:
    """`stream` reads in a thread of its own."""

    def test_one_thread_owns_it(self, loop: str) -> None:
        """One thread opens, reads and closes, with the context in which `stream` was called."""
        source = Source(3)
        seen: list[str] = []

        def opened() -> Source:
            seen.append(VARIABLE.get())
            return source.open()

        async def main() -> list[int]:
            VARIABLE.set("the caller's")
            stream = aio.stream(opened)
            VARIABLE.set("a later one")
            async with stream:
                return [item async for item in stream]

        assert run(loop, main()) == [1, 2, 3]
        assert seen == ["the caller's"]
        assert source.closed == 1
        assert len(set(source.threads)) == 1
        assert threading.get_ident() not in source.threads

    @LIMITS
    def test_failover(self, loop: str, limit: float | None) -> None:
        """Opening fails over; `provider` is set when the stream has been entered."""
        model, attempts = group(FakeLLM(ConnectionError()), FakeLLM("Hello."), limit=limit)

        async def main() -> list[str]:
            stream = aio.stream(model.stream_completion, REQUEST)
            assert stream.provider is None
            async with stream:
                assert stream.provider == "1"
                return [chunk.content async for chunk in stream]

        assert run(loop, main()) == ["Hello.", ""]
        assert outcomes(attempts) == ["0 failed", "1 succeeded"]

    def test_an_opening_that_fails(self, loop: str) -> None:
        """The error is raised where the stream is entered, or by the first `anext`."""
        model, _ = group(FakeLLM(ConnectionError()))

        async def main() -> None:
            with pytest.raises(AllFailedError):
                async with aio.stream(model.stream_completion, REQUEST):
                    pytest.fail("entered")
            stream = aio.stream(model.stream_completion, REQUEST)
            with pytest.raises(AllFailedError):
                await anext(stream)
            assert await anext(stream, "end") == "end"

        run(loop, main())

    @pytest.mark.parametrize("kind", [ValueError, StopAsyncIteration])
    def test_an_error_in_the_middle(self, loop: str, kind: type[Exception]) -> None:
        """An error is raised after the items before it, and never treated as the end."""
        error = kind("message")

        def source() -> Iterator[int]:
            yield 1
            raise error

        async def main() -> None:
            async with aio.stream(source) as stream:
                join_threads()
                await stream.__aenter__()  # does not raise the reader's error
            stream = aio.stream(source)
            assert await anext(stream) == 1
            with pytest.raises((ValueError, RuntimeError)) as caught:
                await anext(stream)
            assert error in (caught.value, caught.value.__cause__)
            assert await anext(stream, "end") == "end"

        run(loop, main())

    def test_back_pressure(self, loop: str) -> None:
        """The thread reads 16 items ahead, and then waits for the application."""
        ahead = threading.Semaphore(AHEAD)
        is_ahead = threading.Event()

        def source() -> Iterator[int]:
            for number in itertools.count(1):
                assert ahead.acquire(blocking=False)  # otherwise it is too far ahead
                if number == AHEAD:
                    is_ahead.set()
                yield number

        async def main() -> None:
            async with aio.stream(source) as stream:
                assert await aio.call(is_ahead.wait, LIMIT)
                for number in range(1, 200):
                    ahead.release()
                    assert await anext(stream) == number

        run(loop, main())

    def test_others_run_meanwhile(self, loop: str) -> None:
        """A task that reads items that are already available lets others run between two items."""
        turns: list[str] = []
        gate = Gate()

        def source() -> Iterator[int]:
            yield from range(AHEAD - 1)
            gate()

        async def other() -> None:
            for _ in range(AHEAD):
                turns.append("other")
                await asyncio.sleep(0)

        async def main() -> None:
            async with aio.stream(source) as stream:
                await gate.reached()
                task = start(other())
                for _ in range(AHEAD - 1):
                    await anext(stream)
                    turns.append("reader")
                gate.open()
                await task

        run(loop, main())

        assert turns.count("reader") == AHEAD - 1
        assert ("reader", "reader") not in itertools.pairwise(turns)

    @LIMITS
    @pytest.mark.parametrize("is_entered", [False, True])
    def test_cancelled_at_each_await(
        self, loop: str, limit: float | None, *, is_entered: bool
    ) -> None:
        """Wherever its task is cancelled, a stream is closed once, and its call settled once."""
        south = FakeLLM("It rains.")
        model, attempts = group(FakeLLM([ConnectionError()]), south, limit=limit)

        async def scenario() -> None:
            async with aio.stream(model.stream_completion, REQUEST) as stream:
                assert [chunk.content async for chunk in stream] == ["It ", "rains.", ""]

        async def unentered() -> None:
            stream = aio.stream(model.stream_completion, REQUEST)
            assert [chunk.content async for chunk in stream] == ["It ", "rains.", ""]

        places = 0
        for places in cancelled_at_each_await(loop, scenario if is_entered else unentered):  # noqa: B007
            assert {stream.closed for stream in south.streams} <= {1}
            assert outcomes(attempts).count("1 succeeded") == len(south.streams)

        assert places >= 3 + is_entered
        assert south.streams

    @LIMITS
    def test_cancelled_while_it_is_opened(self, loop: str, limit: float | None) -> None:
        """The task ends at once; a stream that is opened later is closed."""
        gate = Gate()
        fake = FakeLLM([gate, "late"])
        model, attempts = group(fake, limit=limit)

        run(loop, cancel(aio.stream(model.stream_completion, REQUEST).__aenter__(), gate))
        assert attempts == []
        gate.open()

        assert outcomes(attempts) == ["0 succeeded"]
        assert fake.streams[0].closed == 1

    @LIMITS
    @pytest.mark.parametrize("is_cancelled", [False, True])
    def test_ended_while_the_thread_waits_for_an_item(
        self, loop: str, limit: float | None, *, is_cancelled: bool
    ) -> None:
        """The call is settled at once; the provider is closed when it returns."""
        gate = Gate()
        fake = FakeLLM(["first", gate, "late"])
        model, attempts = group(fake, limit=limit)

        async def main() -> None:
            async with aio.stream(model.stream_completion, REQUEST) as stream:
                assert (await anext(stream)).content == "first"
                if is_cancelled:
                    await cancel(anext(stream), gate)
                else:
                    task = start(anext(stream, None))
                    await gate.reached()
                    await stream.aclose()
                    assert await task is None
            assert outcomes(attempts) == ["0 succeeded"]

        run(loop, main())
        assert fake.streams[0].closed == 0
        gate.open()

        assert fake.streams[0].closed == 1

    def test_closed_by_another_thread(self, loop: str) -> None:
        """A task that waits for an item gets the end; items that were read ahead are dropped.

        It does not wait for the `close()` of the provider, as `aclose()` does.
        """
        gate, closing = Gate(), Gate()
        seen: list[str] = []

        def close() -> None:
            seen.append(VARIABLE.get())
            closing()

        source = Source(gate=gate, closing=close)

        async def main() -> None:
            VARIABLE.set("the caller's")
            stream = aio.stream(source.open)
            assert await anext(stream) == 1
            task = start(anext(stream, "end"))
            await gate.reached()
            await asyncio.to_thread(stream.close)
            assert await task == "end"
            await closing.reached()
            assert not source.is_closed.is_set()
            closing.open(join=False)
            await stream.aclose()
            assert source.closed == 1
            gate.open()
            stream = aio.stream(range, 3)
            assert await anext(stream) == 0
            stream.close()
            assert await anext(stream, "end") == "end"

        run(loop, main())

        assert set(seen) == {"the caller's"}

    @pytest.mark.parametrize("has_yielded", [False, True])
    def test_a_generator_is_closed_by_its_thread(self, loop: str, *, has_yielded: bool) -> None:
        """A generator is closed by its thread, so it can reset its context variable."""
        gate = Gate()
        ends: list[str] = []

        class LateLock:
            def __enter__(self) -> None:
                if ends == ["near"] and threading.current_thread() is not threading.main_thread():
                    gate()

            def __exit__(self, *_: object) -> None:
                pass

        def source() -> Iterator[int]:
            token = VARIABLE.set("its own")
            try:
                yield 1
                if not has_yielded:
                    gate()
                ends.append("near")
                yield 2
            finally:
                VARIABLE.reset(token)
                ends.append(VARIABLE.get())

        async def main() -> None:
            stream = aio.stream(source)
            stream._reader._lock = LateLock()  # type: ignore[assignment]
            async with stream:
                assert await anext(stream) == 1
                await cancel(anext(stream), gate)

        run(loop, main())
        assert "nobody's" not in ends
        gate.open()

        assert ends == ["near", "nobody's"]
