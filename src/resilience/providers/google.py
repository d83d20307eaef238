"""A language model with the client `google-genai`."""

import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Protocol, final
from uuid import uuid4

from typing_extensions import override

from resilience import llm
from resilience.exceptions import UnsupportedRequestError
from resilience.providers._shared import (
    check_abilities,
    join_chunks,
    own_options,
    parse_arguments,
)

_CAPABILITIES = llm.ModelCapabilities(
    context_window=1_048_576,
    supports_tools=True,
    supports_vision=True,
    supports_structured_output=True,
    supports_reasoning=True,
    supports_audio=True,
)
_FINISH_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"} | dict.fromkeys(
    (
        *("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
    ),
    "content_filter",
)
_EFFORTS = {"minimal", "low", "medium", "high"}
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
# The vendor accepts this placeholder instead of a signature, for tool calls of other models.
_NO_SIGNATURE = b"skip_thought_signature_validator"
# There is no error code for it. Any other message is treated as an invalid request.
_TOO_LONG = "exceeds the maximum number of tokens"


class _Client(Protocol):
    """The parts of `google.genai.Client` that are used."""

    @property
    def models(self) -> Any: ...


@final
class GoogleLLM(llm.Provider):
    """A language model behind Google's `generate_content`.

    An answer with signatures is kept in its `extra`, with bytes in base64, and sent back unchanged.
    All instructions are sent as the system instruction, in their order. A message with a name
    raises `UnsupportedRequestError`.

    Threads may share it.
    """

    def __init__(
        self,
        client: _Client,
        model: str,
        *,
        capabilities: llm.ModelCapabilities = _CAPABILITIES,
    ) -> None:
        """Make a provider.

        Args:
            client: A `google.genai.Client` whose `http_options` have a timeout, which is in
                milliseconds, and no `retry_options`.
            model: Name of the model, unless a request has one.
            capabilities: What the model can do; a request for more raises. The default is a window
                of 1 048 576 tokens and everything.
        """
        self._client = client
        self._model = model
        self._capabilities = capabilities

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        with _errors_of_the_contract():
            answer = self._client.models.generate_content(**self._arguments(request))
        return join_chunks(_chunks([answer]))

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        arguments = self._arguments(request)
        with (
            _errors_of_the_contract(),
            closing(self._client.models.generate_content_stream(**arguments)) as answers,
        ):
            yield from _chunks(answers)

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        # Not every endpoint counts a system instruction.
        is_system = {"system", "developer"}
        said = [replace(each, role="user") if each.role in is_system else each for each in messages]
        _, contents = self._conversation(said)
        answer = self._client.models.count_tokens(model=self._model, contents=contents)
        count: int | None = answer.total_tokens
        if count is None:
            msg = "the body is not a number of tokens"
            raise ConnectionError(msg)
        return count

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return self._capabilities

    # ---- the request

    def _arguments(self, request: llm.CompletionRequest) -> dict[str, Any]:
        check_abilities(request, self._capabilities)
        system, contents = self._conversation(request.messages)
        config: dict[str, Any] = {
            "system_instruction": {"parts": system} if system else None,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_output_tokens": request.max_tokens,
            "stop_sequences": list(request.stop) or None,
            "seed": request.seed,
            "automatic_function_calling": {"disable": True},
        }
        if request.tools:
            config["tools"] = [{"function_declarations": [_tool(tool) for tool in request.tools]}]
        if request.tool_choice is not None:
            named = {"mode": "ANY", "allowed_function_names": [request.tool_choice]}
            mode = _MODES.get(request.tool_choice)
            config["tool_config"] = {"function_calling_config": {"mode": mode} if mode else named}
        if request.response_format is not None:
            config["response_mime_type"] = "application/json"
            config["response_json_schema"] = dict(request.response_format)
        if request.reasoning_effort is not None and self._capabilities.supports_reasoning:
            config["thinking_config"] = _thinking(request.reasoning_effort)
        if request.timeout is not None:
            config["http_options"] = {"timeout": math.ceil(request.timeout * 1000)}
        return {
            "model": request.model or self._model,
            "contents": contents,
            "config": {**config, **own_options("google", request.extra)},
        }

    def _conversation(
        self, messages: Iterable[llm.Message]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the parts of the instructions, and alternating turns of the user and the model."""
        system: list[dict[str, Any]] = []
        turns: list[dict[str, Any]] = []
        names: dict[str | None, str] = {}  # of the functions, which results must have
        for message in messages:
            names.update({call.id: call.name for call in message.tool_calls})
            parts = self._parts(message, names)
            role = "model" if message.role == "assistant" else "user"
            if message.role in {"system", "developer"}:
                system += parts
            elif turns and turns[-1]["role"] == role:
                turns[-1]["parts"] += parts
            elif parts:
                turns.append({"role": role, "parts": parts})
        return system, turns

    def _parts(self, message: llm.Message, names: Mapping[str | None, str]) -> list[dict[str, Any]]:
        if message.name is not None and message.role != "tool":
            msg = "a message with a name"
            raise UnsupportedRequestError(msg)
        if message.attachments and message.role not in {"user", "tool"}:
            msg = f"a file in a message of role {message.role!r}"
            raise UnsupportedRequestError(msg)
        own = own_options("google", message.extra)
        parts: list[dict[str, Any]]
        files = [self._file(media) for media in message.attachments]
        if message.role == "tool":
            result = {
                "id": message.tool_call_id,
                "name": names.get(message.tool_call_id, message.name or ""),
                "response": {"output": message.content},
            }
            parts = [{"function_response": {**result, **({"parts": files} if files else {})}}]
        elif "parts" in own:
            parts = [dict(part) for part in own.pop("parts")]  # the client decodes base64
        else:
            text = [{"text": message.content}] if message.content else []
            parts = [*text, *files, *map(_call, message.tool_calls)]
        _sign(parts)
        return [*parts[:-1], {**parts[-1], **own}] if parts else []

    def _file(self, media: llm.Media) -> dict[str, Any]:
        kind = media.media_type.partition("/")[0]
        seen = self._capabilities.supports_vision
        abilities = {"image": seen, "video": seen, "audio": self._capabilities.supports_audio}
        is_embedded = media.uri is not None and media.uri.startswith("data:")
        if is_embedded or not abilities.get(kind, True):
            msg = f"a file of type {media.media_type!r}"
            raise UnsupportedRequestError(msg)
        if media.uri is not None:
            return {"file_data": {"file_uri": media.uri, "mime_type": media.media_type}}
        return {"inline_data": {"data": media.data, "mime_type": media.media_type}}


def _thinking(effort: str) -> dict[str, object]:
    if effort == "none":
        return {"thinking_budget": 0}
    if effort not in _EFFORTS:
        msg = f"reasoning_effort={effort!r}"
        raise UnsupportedRequestError(msg)
    return {"include_thoughts": True, "thinking_level": effort.upper()}


def _tool(tool: llm.ToolDefinition) -> dict[str, Any]:
    declared: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.parameters:
        declared["parameters_json_schema"] = dict(tool.parameters)
    return {**declared, **own_options("google", tool.extra)}


def _call(call: llm.ToolCall) -> dict[str, Any]:
    function = {"id": call.id, "name": call.name, "args": parse_arguments(call)}
    return {"function_call": function, **own_options("google", call.extra)}


def _sign(parts: list[dict[str, Any]]) -> None:
    """Add the placeholder to the first of several tool calls if none of them has a signature."""
    calls = [part for part in parts if "function_call" in part]
    if calls and not any("thought_signature" in part for part in calls):
        calls[0]["thought_signature"] = _NO_SIGNATURE


# ---- the answer


def _chunks(answers: Iterable[Any]) -> Iterator[llm.Chunk]:
    """Translate a stream, or a whole answer as a stream of one piece."""
    calls: list[llm.ToolCall] = []
    parts: list[dict[str, Any]] = []
    reason = usage = model = identity = None
    refusal = ""
    for answer in answers:
        usage = answer.usage_metadata or usage
        model, identity = answer.model_version or model, answer.response_id or identity
        if getattr(answer.prompt_feedback, "block_reason", None):
            reason, refusal = "SAFETY", answer.prompt_feedback.block_reason_message or ""
        for candidate in answer.candidates or ():
            reason = getattr(candidate.finish_reason, "value", reason)
            for part in getattr(candidate.content, "parts", None) or ():
                kept = part.model_dump(mode="json", exclude_none=True)
                if part.function_call is not None:
                    call = kept["function_call"]
                    call.setdefault("id", f"call_{uuid4().hex}")
                    text = json.dumps(call.get("args", {}), ensure_ascii=False)
                    calls.append(llm.ToolCall(id=call["id"], name=call["name"], arguments=text))
                _keep(parts, kept)
                text = part.text or ""
                yield llm.Chunk(reasoning=text) if part.thought else llm.Chunk(content=text)
    finish_reason = _FINISH_REASONS.get(reason or "", reason)
    is_known = finish_reason in {"length", "content_filter"}
    has_text = any(part.get("text", "").strip() and not part.get("thought") for part in parts)
    if finish_reason is None or not (is_known or calls or has_text):
        msg = f"the answer is empty: {reason}" if reason else "the answer was cut off"
        raise ConnectionError(msg)
    is_plain = all(set(part) <= {"text", "thought", "function_call"} for part in parts)
    yield llm.Chunk(
        tool_calls=tuple(calls),
        refusal=refusal,
        finish_reason="tool_calls" if calls and finish_reason == "stop" else finish_reason,
        usage=_usage(usage),
        model=model,
        id=identity,
        extra=None if is_plain else {"google": {"parts": parts}},
    )


def _keep(parts: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """Join the pieces of a text; parts with a signature are kept unchanged."""
    names = {"text", "thought"} & set(part)
    if parts and set(part) == set(parts[-1]) == names:
        parts[-1]["text"] += part["text"]
    elif part:
        parts.append(part)


def _usage(usage: Any) -> llm.Usage | None:
    if usage is None:
        return None
    thoughts = usage.thoughts_token_count or 0
    tools = usage.tool_use_prompt_token_count or 0
    return llm.Usage(
        prompt_tokens=(usage.prompt_token_count or 0) + tools,
        completion_tokens=(usage.candidates_token_count or 0) + thoughts,
        cache_read_tokens=usage.cached_content_token_count or 0,
        reasoning_tokens=thoughts,
    )


@contextmanager
def _errors_of_the_contract() -> Generator[None]:
    """Raise the contract's exception if the vendor reports that the request is too long."""
    try:
        yield
    except Exception as error:
        if getattr(error, "code", None) == HTTPStatus.BAD_REQUEST and _TOO_LONG in str(error):
            raise llm.ContextWindowExceededError(str(error)) from error
        raise
