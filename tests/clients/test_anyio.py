"""`resilience.aio` under anyio, whose cancelled scopes cancel every await until they are left."""

from collections.abc import Awaitable, Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from bridges import LIMIT, REQUEST, Gate, Source, join_threads
from resilience import Attempt, FallbackConfig, LLMFallback, Outcome, aio
from resilience.testing import FakeLLM

anyio = pytest.importorskip("anyio")
pytest.importorskip("uvloop")

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the coroutines of this file in each of the event loops."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    join_threads()


async def cancel(use: Callable[[], Awaitable[object]], gate: Gate) -> None:
    """Cancel the scope of a task whose thread is at a gate, and leave the scope."""
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use)
            await gate.reached()
            tasks.cancel_scope.cancel()


async def test_a_silent_provider() -> None:
    """The scope ends, and the call is settled; the provider is closed when it returns."""
    gate = Gate()
    fake = FakeLLM(["first", gate, "late"])
    attempts: SimpleQueue[Attempt] = SimpleQueue()
    model = LLMFallback(fake, "model", FallbackConfig(on_attempt=attempts.put))
    contents: list[str] = []

    async def read() -> None:
        async with aio.stream(model.stream_completion, REQUEST) as stream:
            contents.extend([chunk.content async for chunk in stream])

    await cancel(read, gate)
    assert attempts.get(timeout=LIMIT).outcome is Outcome.SUCCEEDED
    assert fake.streams[0].closed == 0
    gate.open()

    assert contents == []
    assert fake.streams[0].closed == 1


@pytest.mark.parametrize("use", [aio.call, aio.stream, aio.session])
async def test_a_hung_opening(use: Callable[[Gate], Any]) -> None:
    """The scope ends, whichever opening hangs."""
    gate = Gate()
    used = use(gate)

    await cancel(used.__aenter__ if hasattr(used, "__aenter__") else lambda: used, gate)

    gate.open()


async def test_a_session() -> None:
    """Everything is closed, although nothing can be awaited in a cancelled scope."""
    line, transcripts = Source(), Source()

    with anyio.CancelScope() as scope:
        async with aio.session(line.open) as session:
            finals = session.stream(lambda _: transcripts.open())
            assert await anext(finals) == 1
            assert await session.call(Source.__next__) == 1
            scope.cancel()

    assert scope.cancelled_caught
    assert line.is_closed.wait(LIMIT)
    assert transcripts.is_closed.wait(LIMIT)
