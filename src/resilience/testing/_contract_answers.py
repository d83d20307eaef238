"""Checks of a language model's answers, and requests that it may not be able to serve."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from resilience import llm
from resilience.testing._contract_calls import fail
from resilience.testing._contract_values import check_value

_FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
_TOOL = llm.ToolDefinition(name="weather", description="The weather.", parameters=_SCHEMA)
_PICTURE = llm.Media(media_type="image/png", data=b"\x89PNG\r\n\x1a\n")
_RECORDING = llm.Media(media_type="audio/wav", data=b"RIFF\x00\x00\x00\x00WAVE")


def check_response(value: object, operation: str) -> llm.CompletionResponse:
    """Fail unless a value is an answer that is not empty, with a standard finish reason.

    Args:
        value: What the provider returned.
        operation: Where the value comes from.

    Returns:
        The answer.
    """
    response = check_value(value, llm.CompletionResponse, operation)
    if not (response.content.strip() or response.tool_calls or response.refusal):
        fail(
            f"{operation} returned an empty answer: raise instead, so that the group can fail over"
        )
    if response.finish_reason not in _FINISH_REASONS:
        fail(
            f"{operation} gave the finish reason {response.finish_reason!r}: translate the vendor's"
            f" word into one of {', '.join(_FINISH_REASONS)}"
        )
    usage = response.usage or llm.Usage()
    if min(usage.prompt_tokens, usage.completion_tokens) < 0:
        fail(f"{operation} gave {usage}: numbers of tokens are 0 or more")
    return response


def join_chunks(values: Sequence[object], operation: str) -> llm.CompletionResponse:
    """Fail unless values are the chunks of one answer.

    Args:
        values: What a stream has yielded.
        operation: Where the values come from.

    Returns:
        The answer.
    """
    chunks = [check_value(value, llm.Chunk, f"an item of {operation}") for value in values]
    if not chunks:
        fail(f"{operation} ended without a chunk: raise instead, so that the group can fail over")
    reasons = [chunk.finish_reason for chunk in chunks]
    ended = next(
        (number for number, reason in enumerate(reasons) if reason is not None), len(chunks)
    )
    if any(_has_content(chunk) for chunk in chunks[ended + 1 :]):
        fail(
            f"{operation} went on after its finish reason: many readers stop there, so yield the"
            " finish reason with the last part of the answer, or after it"
        )
    return llm.CompletionResponse(
        content="".join(chunk.content for chunk in chunks),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        refusal="".join(chunk.refusal for chunk in chunks),
        finish_reason=[*reasons, None][ended],
        usage=next((chunk.usage for chunk in chunks if chunk.usage is not None), None),
    )


def check_tool_calls(
    response: llm.CompletionResponse, request: llm.CompletionRequest, operation: str
) -> None:
    """Fail unless an answer has tool calls, each of them whole.

    Args:
        response: The answer.
        request: The request that was answered.
        operation: Where the answer comes from.
    """
    calls, names = response.tool_calls, [tool.name for tool in request.tools]
    if not calls:
        fail(
            f"{operation} returned no tool call for `tool_request`: hand on the vendor's tool"
            " calls, and set a request that provokes one"
        )
    if response.finish_reason != "tool_calls":
        fail(
            f"{operation} gave the finish reason {response.finish_reason!r} with a tool call:"
            " translate the vendor's word into 'tool_calls'"
        )
    if not all(call.id for call in calls) or len({call.id for call in calls}) < len(calls):
        fail(
            f"{operation} returned tool calls whose ids are empty or not unique: results need them"
        )
    for call in calls:
        if call.name not in names:
            fail(f"{operation} called the tool {call.name!r}, which is not among {names}")
        if not _is_json_object(call.arguments):
            fail(
                f"{operation} returned the arguments {call.arguments!r}, which are no JSON object:"
                " collect the parts of a tool call, and hand it on when it is whole"
            )


def excluded_requests(
    capabilities: llm.ModelCapabilities, request: llm.CompletionRequest
) -> Iterator[tuple[str, llm.CompletionRequest]]:
    """Yield requests that a model does not support, each with a description.

    Args:
        capabilities: The capabilities that the model reports.
        request: A request that it supports.
    """
    if not capabilities.supports_vision:
        yield "a picture", _attach(request, _PICTURE)
    if not capabilities.supports_audio:
        yield "a recording", _attach(request, _RECORDING)
    if not capabilities.supports_tools:
        yield "tools", replace(request, tools=(_TOOL,))
    if not capabilities.supports_structured_output:
        yield "a response format", replace(request, response_format=_SCHEMA)
    if not capabilities.supports_reasoning:
        yield "a reasoning effort", replace(request, reasoning_effort="low")


def _has_content(chunk: llm.Chunk) -> bool:
    return bool(chunk.content or chunk.tool_calls or chunk.reasoning or chunk.refusal)


def _attach(request: llm.CompletionRequest, media: llm.Media) -> llm.CompletionRequest:
    message = llm.Message(role="user", content="What is this?", attachments=(media,))
    return replace(request, messages=(*request.messages, message))


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
