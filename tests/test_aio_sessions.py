"""Sessions in asyncio applications, and what is left when a block, a loop or a process ends."""

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from bridges import (
    LIMIT,
    LOOPS,
    Gate,
    Source,
    cancel,
    cancelled_at_each_await,
    join_threads,
    run,
    start,
)
from resilience import STTFallback, aio, stt
from resilience.testing import FakeSession, FakeSTT


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    join_threads()


@LOOPS
class TestSession:
    """`session` holds something open."""

    def test_a_voice_session(self, loop: str) -> None:
        """One task sends audio while another reads transcripts."""
        is_heard = threading.Event()
        fake = FakeSession(lambda: is_heard.wait(LIMIT), "It rains.", sending=[is_heard.set])
        ears = STTFallback(FakeSTT(ConnectionError()), "north")
        ears.add_fallback("south", FakeSTT(fake))

        async def main() -> list[str]:
            session = aio.session(ears.start_stream, stt.StreamConfig())
            assert session.provider is None
            async with session:
                assert session.provider == "south"
                finals = session.stream(lambda line: line.finals())
                first = start(anext(finals))
                await session.call(lambda line, audio: line.send_audio(audio), b"audio")
                return [(await first).text, *[transcript.text async for transcript in finals]]

        assert run(loop, main()) == ["It rains."]
        assert fake.audio == [b"audio"]
        assert fake.closed == 1

    def test_one_thread_opens_and_closes(self, loop: str) -> None:
        """The same thread, which is not that of the loop."""
        source = Source()

        async def main() -> None:
            async with aio.session(source.open):
                assert source.closed == 0

        run(loop, main())

        assert source.closed == 1
        assert len(set(source.threads)) == 1
        assert threading.get_ident() not in source.threads

    def test_not_open(self, loop: str) -> None:
        """Before and after its block it refuses to be used."""

        async def main() -> None:
            session = aio.session(Source)
            for _ in range(2):
                with pytest.raises(RuntimeError, match="not open"):
                    session.stream(iter)
                with pytest.raises(RuntimeError, match="not open"):
                    await session.call(iter)
                with suppress(RuntimeError):
                    async with session:
                        pass
            with pytest.raises(RuntimeError, match="not open"):
                await session.__aenter__()

        run(loop, main())

    def test_errors_arrive_unchanged(self, loop: str) -> None:
        """Those of opening, of a call and of closing; a failed call leaves the session open."""
        error = ConnectionError()

        class Broken:
            def close(self) -> None:
                raise error

        def fail(*_: object) -> Broken:
            raise error

        async def main() -> None:
            with pytest.raises(ConnectionError) as opening:
                await aio.session(fail).__aenter__()
            session = await aio.session(Broken).__aenter__()
            with pytest.raises(ConnectionError) as calling:
                await session.call(fail)
            assert isinstance(await session.call(lambda broken: broken), Broken)
            with pytest.raises(ConnectionError) as closing:
                await session.aclose()
            assert {opening.value, calling.value, closing.value} == {error}
            await session.aclose()

        run(loop, main())

    def test_its_end_closes_its_streams(self, loop: str) -> None:
        """Also one that nobody reads, and whose thread waits for that. It forgets ended ones."""
        source = Source()

        async def main() -> aio.Stream[int]:
            async with aio.session(object) as session:
                stream = session.stream(lambda _: source.open())
                assert await anext(stream) == 1
                for _ in range(3):
                    async with session.stream(lambda _: ()) as ended:
                        assert [item async for item in ended] == []
                assert len(session._readers) == 2
                return stream

        held = run(loop, main())

        assert source.is_closed.wait(LIMIT)
        held.close()

    def test_cancelled_at_each_await(self, loop: str) -> None:
        """Wherever it is cancelled, what was opened is closed, once."""
        sources: list[Source] = []

        def opened() -> Source:
            sources.append(Source())
            return sources[-1]

        async def scenario() -> None:
            async with aio.session(opened) as session:
                assert await session.call(next) == 1
                assert [item async for item in session.stream(lambda _: range(2))] == [0, 1]

        places = 0
        for places in cancelled_at_each_await(loop, scenario):  # noqa: B007
            assert {source.closed for source in sources} <= {1}

        assert places >= 5
        assert sources

    @pytest.mark.parametrize("use", [aio.stream, aio.session])
    def test_cancelled_while_it_is_opened(self, loop: str, use: Callable[..., Any]) -> None:
        """The task ends at once; what is opened later is closed, and not read."""
        gate = Gate()
        source = Source()

        run(loop, cancel(use(lambda: gate() or source).__aenter__(), gate))
        assert source.closed == 0
        gate.open()

        assert source.closed == 1
        assert source.returned == 0

    @pytest.mark.parametrize("use", [aio.stream, aio.session])
    def test_a_slow_opening(self, loop: str, use: Callable[..., Any]) -> None:
        """Entering waits until it is open; a stream need not have an item by then."""
        opening, reading = Gate(), Gate()

        async def main() -> None:
            used = use(lambda: opening() or iter(reading, None))
            task = start(used.__aenter__())
            await opening.reached()
            opening.open(join=False)
            assert await task is used
            await used.aclose()

        run(loop, main())
        reading.open()

    def test_a_cancelled_call_leaves_it_open(self, loop: str) -> None:
        """The call goes on in its thread; the session can be used."""
        gate = Gate()
        source = Source()

        async def main() -> None:
            async with aio.session(source.open) as session:
                await cancel(session.call(lambda _: gate()), gate)
                assert await session.call(next) == 1

        run(loop, main())
        gate.open()

        assert source.closed == 1

    def test_dropped(self, loop: str) -> None:
        """A session that is dropped is closed, also without a loop."""
        source = Source()

        held = [run(loop, aio.session(source.open).__aenter__())]
        assert source.closed == 0
        held.clear()

        assert source.is_closed.wait(LIMIT)


@LOOPS
class TestEndOfStream:
    """Each way to leave a stream closes it."""

    @pytest.mark.parametrize("leave", ["break", "aclosing", "aclose"])
    def test_left_early(self, loop: str, leave: str) -> None:
        """It is closed, also if nobody closes it."""
        source = Source()

        async def read(stream: aio.Stream[int]) -> None:
            async for _ in stream:
                break

        async def main() -> None:
            if leave == "break":
                await read(aio.stream(source.open))
            elif leave == "aclosing":
                async with aclosing(aio.stream(source.open)) as stream:
                    await read(stream)
            else:
                stream = aio.stream(source.open)
                await read(stream)
                await stream.aclose()
                await stream.aclose()

        run(loop, main())

        assert source.is_closed.wait(LIMIT)

    def test_never_read(self, loop: str) -> None:
        """A stream that is not read opens nothing, and a closed one is at its end."""
        source = Source()

        async def main() -> None:
            stream = aio.stream(source.open)
            await stream.aclose()
            assert [item async for item in stream] == []
            async with stream:
                pass

        run(loop, main())

        assert source.threads == []
        incomplete: list[Any] = [aio.Stream, aio.Session]
        for cls in incomplete:
            with pytest.raises(TypeError):
                cls()

    @pytest.mark.parametrize("is_silent", [False, True])
    def test_dropped_without_a_loop(self, loop: str, *, is_silent: bool) -> None:
        """A thread that waits for the application or the provider does not wait for ever."""
        gate = Gate()
        source = Source(gate=gate if is_silent else int)

        held: list[object] = [aio.stream(source.open)]
        held.append(held)  # so that only the garbage collector finds it
        run(loop, held[0].__anext__())  # type: ignore[attr-defined]
        if is_silent:
            asyncio.run(gate.reached())
        assert source.closed == 0
        del held
        gc.collect()

        assert source.is_closed.wait(LIMIT)
        gate.open()

    def test_the_loop_is_closed(self, loop: str) -> None:
        """A thread that waits for its provider closes the stream when it is back."""
        gate = Gate()
        source = Source(gate=gate)
        stream = aio.stream(source.open)

        assert run(loop, stream.__anext__()) == 1
        asyncio.run(gate.reached())
        gate.open()

        assert source.closed == 1
        assert source.returned == 2
        stream.close()

    def test_an_error_of_close(self, loop: str) -> None:
        """`aclose` raises it, once; an error of a provider that was closed is discarded."""

        def source() -> Iterator[int]:
            try:
                yield from range(1000)
            finally:
                raise ConnectionError

        async def main() -> None:
            stream = aio.stream(source)
            assert await anext(stream) == 0
            with pytest.raises(ConnectionError):
                await stream.aclose()
            await stream.aclose()

        run(loop, main())

    def test_an_error_after_closing(self, loop: str) -> None:
        """What a busy provider raises because it is closed, and when it is, is discarded."""
        gate = Gate()

        def fail() -> None:
            raise ConnectionError

        async def main() -> None:
            async with aio.stream(
                Source(gate=lambda: gate() or fail(), closing=fail).open
            ) as stream:
                assert await anext(stream) == 1
                await gate.reached()
            gate.open()
            assert await anext(stream, "end") == "end"

        run(loop, main())


def test_discarded_errors_are_freed() -> None:
    """An error that nobody gets refers to a request, and is freed without the garbage collector."""
    errors: list[weakref.ref[Exception]] = []

    class FailureError(Exception):
        """Unlike a built-in exception it can be weakly referenced."""

    def fail(gate: Gate) -> None:
        gate()
        error = FailureError()
        errors.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    def source() -> Iterator[int]:
        yield 1
        fail(ahead)

    async def main() -> aio.Stream[int]:
        stream = aio.stream(source)
        await stream.__aenter__()
        await ahead.reached()
        ahead.open()
        await cancel(aio.call(fail, gate), gate)
        gate.open()
        stream.close()
        return stream

    gate, ahead = Gate(), Gate()
    gc.disable()
    try:
        held = asyncio.run(main())
        assert [error() for error in errors] == [None, None]
    finally:
        gc.enable()
    held.close()


def test_hung_providers_keep_nothing_from_ending() -> None:
    """`asyncio.run` and the interpreter end, whatever the threads are doing."""
    program = """
        import asyncio, threading
        from resilience import aio

        class Slow:
            def __iter__(self): return self
            def __next__(self): hang()

        def hang():
            entered.release()
            threading.Event().wait()

        entered = threading.Semaphore(0)
        unread, slow = aio.stream(range, 1000), aio.stream(Slow)
        async def main():
            tasks = [asyncio.create_task(coroutine) for coroutine in (
                aio.call(hang), aio.session(hang).__aenter__(), aio.stream(hang).__aenter__(),
                slow.__anext__(),
            )]
            await anext(unread)
            for _ in tasks:
                await asyncio.to_thread(entered.acquire)
            await slow.__aenter__()
        asyncio.run(main())
        print("ended")
    """

    source = str(Path(aio.__file__).parents[1])
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", dedent(program)],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
