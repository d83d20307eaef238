"""Uses of `aio` that type checkers must accept or reject; this is never run."""

from collections.abc import Iterator
from typing import assert_type

from resilience import LLMFallback, STTFallback, aio, llm, stt
from resilience.testing import FakeLLM, FakeSTT

model = LLMFallback(FakeLLM(), "model")
ears = STTFallback(FakeSTT(), "ears")
request = llm.CompletionRequest(messages=())


def numbers(count: int) -> Iterator[int]:
    """Yield some numbers."""
    yield from range(count)


async def calls() -> None:
    """Call with the arguments of the function."""
    assert_type(await aio.call(model.complete, request), llm.CompletionResponse)
    assert_type(await aio.call(lambda: 3), int)
    await aio.call(model.complete)  # type: ignore[call-arg]
    await aio.call(model.complete, 3)  # type: ignore[arg-type]
    await aio.call(3)  # type: ignore[arg-type]


async def streams() -> None:
    """Read streams."""
    stream = aio.stream(numbers, 3)
    assert_type(stream, aio.Stream[int])
    assert_type(stream.provider, str | None)
    async with stream as opened:
        assert_type(opened, aio.Stream[int])
        async for number in opened:
            assert_type(number, int)
    _wider: aio.Stream[object] = stream
    _chunks: aio.Stream[llm.Chunk] = aio.stream(model.stream_completion, request)
    aio.stream(numbers, "3")  # type: ignore[arg-type]
    aio.stream(model.stream_completion, 3)  # type: ignore[arg-type]
    aio.stream(lambda: 3)  # type: ignore[arg-type, return-value]


async def sessions() -> None:
    """Use sessions."""
    async with aio.session(ears.start_stream, stt.StreamConfig()) as session:
        _wider: aio.Session[stt.SessionHandle] = session
        await session.call(lambda line: line.send_audio(b""))
        await session.call(stt.SessionHandle.send_audio, b"")
        assert_type(session.stream(stt.SessionHandle.finals), aio.Stream[stt.Transcript])
        await session.call(stt.SessionHandle.send_audio, "")  # type: ignore[arg-type]
        await session.call(str.upper)  # type: ignore[arg-type]
        session.stream(stt.SessionHandle.close)  # type: ignore[arg-type]
