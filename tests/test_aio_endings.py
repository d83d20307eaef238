"""Streams, blocks, loops and interpreters that end, in asyncio applications."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import aclosing
from contextvars import Context
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from bridges import AHEAD, LIMIT, LOOPS, Gate, Source, cancel, join_threads, run, start
from builds import IS_EXPERIMENTAL
from resilience import aio


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    join_threads()


@LOOPS
class TestEndOfStream:
    """A stream is closed however reading it ends."""

    @pytest.mark.parametrize("leave", ["break", "aclosing", "aclose"])
    def test_left_early(self, loop: str, leave: str) -> None:
        """A stream that is not read to its end is closed, with or without `close()`."""
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

    def test_closed_before_its_thread_runs(
        self, loop: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is opened, so closing need not wait."""
        source = Source()
        late: list[Callable[[], None]] = []

        def start_late(context: Context, work: Callable[[], None]) -> None:
            late.append(lambda: context.run(work))

        async def main() -> None:
            stream = aio.stream(source.open)
            task = start(anext(stream, "end"))
            await asyncio.sleep(0)
            stream.close()
            assert await task == "end"
            await asyncio.gather(stream.aclose(), asyncio.to_thread(late[0]))

        monkeypatch.setattr(aio, "_run_in_thread", start_late)
        run(loop, main())

        assert source.threads == []

    @pytest.mark.parametrize("is_silent", [False, True])
    def test_dropped_without_a_loop(self, loop: str, *, is_silent: bool) -> None:
        """A dropped stream is closed, whether its thread waits for application or provider."""
        gate = Gate()
        source = Source(gate=gate if is_silent else int)

        async def main() -> list[object]:
            stream = aio.stream(source.open)
            assert await anext(stream) == 1
            while not is_silent and len(stream._reader.items) < AHEAD:  # noqa: ASYNC110 - a thread
                await asyncio.sleep(0)
            held: list[object] = [stream]
            held.append(held)  # so that only the garbage collector finds it
            return held

        held = run(loop, main())
        if is_silent:
            asyncio.run(gate.reached())
            assert source.closed == 0
        del held
        gc.collect()

        assert source.is_closed.wait(LIMIT)
        gate.open()

    def test_the_loop_is_closed(self, loop: str) -> None:
        """A thread that waits for its provider closes the stream when the provider returns."""
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
        """`aclose` raises an error of `close()`, once; later errors are discarded."""

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
        """Exceptions that a busy provider raises because it is closed are discarded."""
        gate = Gate()

        def fail() -> bool:
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

    @pytest.mark.parametrize("is_finalizing", [False, True])
    def test_without_a_thread(
        self, loop: str, monkeypatch: pytest.MonkeyPatch, *, is_finalizing: bool
    ) -> None:
        """If no thread can be started, everything raises, and nothing hangs."""

        def fail(_: threading.Thread) -> None:
            msg = "no thread can be started"
            raise RuntimeError(msg)

        async def main() -> None:
            gate = Gate()
            source = Source(gate=gate)
            busy = aio.stream(source.open)
            assert await anext(busy) == 1
            await gate.reached()
            with monkeypatch.context() as patch:
                if is_finalizing:
                    patch.setattr(sys, "is_finalizing", lambda: True)
                else:
                    patch.setattr(threading.Thread, "start", fail)
                await busy.aclose()
                assert source.closed == 0
                stream = aio.stream(Source().open)
                for failing in (aio.call(int), anext(stream), aio.session(int).__aenter__()):
                    with pytest.raises(RuntimeError, match="no thread can"):
                        await failing
                assert await anext(stream, "end") == "end"
                await stream.aclose()
            gate.open()

        run(loop, main())


def test_discarded_errors_are_freed() -> None:
    """A discarded error refers to a request; it is freed without the garbage collector."""
    errors: list[weakref.ref[Exception]] = []

    class FailureError(Exception):
        """An error that can be weakly referenced, unlike a built-in exception."""

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


@pytest.mark.skipif(IS_EXPERIMENTAL, reason="no finalizer works at the end of this interpreter")
def test_hung_providers_keep_nothing_from_ending() -> None:
    """`asyncio.run` and the interpreter end, whatever state the threads are in."""
    program = """
        import asyncio, threading
        from resilience import aio

        barrier = threading.Barrier(5)  # nothing here is in a frame of the threads that hang
        unread, silent = aio.stream(range, 1000), aio.stream(iter, barrier.wait, None)
        async def main():
            tasks = [
                asyncio.create_task(aio.call(barrier.wait)),
                asyncio.create_task(aio.stream(barrier.wait).__aenter__()),
                asyncio.create_task(aio.session(barrier.wait).__aenter__()),
            ]
            await anext(unread)
            await silent.__aenter__()
            while barrier.n_waiting < 4:
                await asyncio.sleep(0)
        asyncio.run(main())
        print("ended")
    """

    source = str(Path(aio.__file__).parents[1])
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", dedent(program)],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
