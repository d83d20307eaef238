"""Functions that the ready-made providers share: read options, check a request, join an answer."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from resilience import llm
from resilience.exceptions import UnsupportedRequestError


def own_options(vendor: str, extra: Mapping[str, object] | None) -> dict[str, Any]:
    """Return the options of one vendor in `extra`."""
    return dict(cast("Mapping[str, object]", (extra or {}).get(vendor) or {}))


def check_abilities(request: llm.CompletionRequest, capabilities: llm.ModelCapabilities) -> None:
    """Raise `UnsupportedRequestError` if a request needs more than a model can do."""
    needed = {
        "supports_tools": request.tools,
        "supports_structured_output": request.response_format is not None,
        "supports_reasoning": request.reasoning_effort not in {None, "none"},
    }
    for name, is_needed in needed.items():
        if is_needed and not getattr(capabilities, name):
            msg = f"the request needs a model with {name}"
            raise UnsupportedRequestError(msg)


def parse_arguments(call: llm.ToolCall) -> dict[str, Any]:
    """Return the arguments of a tool call; raise `UnsupportedRequestError` if it has no object."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = None
    if type(arguments) is not dict:
        msg = f"a call of {call.name!r} whose arguments are not a JSON object"
        raise UnsupportedRequestError(msg)
    return cast("dict[str, Any]", arguments)


def join_chunks(chunks: Iterable[llm.Chunk]) -> llm.CompletionResponse:
    """Return the whole answer of some chunks, of which only the last one is more than text."""
    received = list(chunks)
    last = received[-1]
    return llm.CompletionResponse(
        content="".join(chunk.content for chunk in received),
        tool_calls=last.tool_calls,
        reasoning="".join(chunk.reasoning for chunk in received),
        refusal="".join(chunk.refusal for chunk in received),
        finish_reason=last.finish_reason,
        usage=last.usage,
        model=last.model,
        id=last.id,
        extra=last.extra,
    )
