"""Sessions in asyncio applications: opened, used and closed on threads."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
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
    """`session` keeps an object open."""

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
        """One thread opens and closes the object; it is not the thread of the loop."""
        source = Source()

        async def main() -> None:
            async with aio.session(source.open):
                assert source.closed == 0

        run(loop, main())

        assert source.closed == 1
        assert len(set(source.threads)) == 1
        assert threading.get_ident() not in source.threads

    def test_not_open(self, loop: str) -> None:
        """Before and after its block, using a session raises."""

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
        """Errors of opening, of a call and of closing are unchanged; a call leaves it open."""
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
        """Closing closes the streams, also one that is not read; ended streams are not kept."""
        source = Source()

        async def main() -> aio.Stream[int]:
            async with aio.session(object) as session:
                stream = session.stream(lambda _: source.open())
                assert await anext(stream) == 1
                for _ in range(3):
                    async with session.stream(lambda _: range(0)) as ended:
                        assert [item async for item in ended] == []
                assert len(session._readers) == 2
                return stream

        held = run(loop, main())

        assert source.is_closed.wait(LIMIT)
        held.close()

    def test_cancelled_at_each_await(self, loop: str) -> None:
        """Wherever the task is cancelled, the opened object is closed once."""
        sources: list[Source] = []

        def opened() -> Source:
            sources.append(Source())
            return sources[-1]

        async def scenario() -> None:
            async with aio.session(opened) as session:
                assert await session.call(Source.__next__) == 1
                assert [item async for item in session.stream(lambda _: range(2))] == [0, 1]

        places = 0
        for places in cancelled_at_each_await(loop, scenario):  # noqa: B007
            assert {source.closed for source in sources} <= {1}

        assert places >= 5
        assert sources

    @pytest.mark.parametrize("use", [aio.stream, aio.session])
    def test_cancelled_while_it_is_opened(self, loop: str, use: Callable[..., Any]) -> None:
        """The task ends at once; an object that is opened later is closed, and not read."""
        gate = Gate()
        source = Source()

        run(loop, cancel(use(lambda: gate() or source).__aenter__(), gate))
        assert source.closed == 0
        gate.open()

        assert source.closed == 1
        assert source.returned == 0

    @pytest.mark.parametrize("use", [aio.stream, aio.session])
    def test_closed_while_it_is_opened(self, loop: str, use: Callable[..., Any]) -> None:
        """Closing does not wait for the opening; an object that is opened later is closed."""
        gate = Gate()
        source = Source()

        async def main() -> None:
            used = use(lambda: gate() or source)
            task = start(used.__aenter__())
            await gate.reached()
            async with asyncio.timeout(LIMIT / 2):
                await used.aclose()
            await asyncio.wait([task], timeout=LIMIT)
            assert (task.exception() is None) is (use is aio.stream)

        run(loop, main())
        assert source.closed == 0
        gate.open()

        assert source.closed == 1

    @pytest.mark.parametrize("use", [aio.stream, aio.session])
    def test_a_slow_opening(self, loop: str, use: Callable[..., Any]) -> None:
        """Entering waits until the object is open; a stream need not have an item by then."""
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
        """The call continues in its thread; the session can be used."""
        gate = Gate()
        source = Source()

        async def main() -> None:
            async with aio.session(source.open) as session:
                await cancel(session.call(lambda _: gate()), gate)
                assert await session.call(Source.__next__) == 1

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
