"""A language model and speech with the client `openai`, at OpenAI or at a compatible server.

The model uses chat completions, which Azure, Groq, Mistral, Ollama, OpenRouter, vLLM and others
offer too.
"""

import base64
import hashlib
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, final
from uuid import uuid4

from typing_extensions import override

from resilience import llm
from resilience.exceptions import UnsupportedRequestError
from resilience.providers._openai_speech import OpenAITTS
from resilience.providers._shared import check_abilities, join_chunks, own_options

__all__ = ["OpenAILLM", "OpenAITTS"]

_CAPABILITIES = llm.ModelCapabilities(
    context_window=128_000,
    supports_tools=True,
    supports_vision=True,
    supports_structured_output=True,
    supports_reasoning=True,
)
_AUDIO = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}
_UNSUPPORTED = {"unsupported_parameter", "unsupported_value"}  # by this model
# Messages of vLLM and llama.cpp, which have no error code for it.
_TOO_LONG = ("maximum context length", "exceeds the available context size")
# Finish reasons of compatible servers.
_FINISH_REASONS = {
    "function_call": "tool_calls",
    "model_length": "length",
    **dict.fromkeys(("eos", "eos_token", "stop_sequence"), "stop"),
}
_LONGEST_ID = 40  # characters of a tool call's id that OpenAI accepts
_FAILURES = {"abort", "error", "insufficient_system_resource"}


class _Client(Protocol):
    """The parts of `openai.OpenAI` that are used."""

    @property
    def chat(self) -> Any: ...


@final
class OpenAILLM(llm.Provider):
    """A language model behind chat completions.

    What a compatible server adds to a message or a tool call, such as reasoning, is kept in its
    `extra` and sent back with it. `count_tokens` raises `NotImplementedError`, since OpenAI has no
    endpoint that counts.

    Threads may share it.
    """

    def __init__(
        self,
        client: _Client,
        model: str,
        *,
        capabilities: llm.ModelCapabilities = _CAPABILITIES,
        vendor: str = "openai",
        max_tokens_field: str = "max_completion_tokens",
        developer_role: str = "developer",
    ) -> None:
        """Make a provider.

        Args:
            client: An `openai.OpenAI` or `openai.AzureOpenAI` with a timeout and `max_retries=0`.
            model: Name of the model, unless a request has one.
            capabilities: What the model can do; a request for more raises. The default is a window
                of 128 000 tokens and everything but recordings.
            vendor: Key of this server in `extra`. Each compatible server needs one of its own if a
                conversation may move from one to another.
            max_tokens_field: Field for `max_tokens`; "max_tokens" for servers that support no
                other.
            developer_role: Role of a developer's message; "system" for servers that support no
                other.
        """
        self._client = client
        self._model = model
        self._capabilities = capabilities
        self._vendor = vendor
        self._max_tokens_field = max_tokens_field
        self._developer_role = developer_role

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        with _errors_of_the_contract():
            answer = self._client.chat.completions.create(**self._arguments(request))
        if not getattr(answer, "choices", None):  # an HTML page is returned as a string
            msg = "the body is not a completion"
            raise ConnectionError(msg)
        return join_chunks(self._chunks([answer]))

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        arguments = {"stream_options": {"include_usage": True}, **self._arguments(request)}
        with (
            _errors_of_the_contract(),
            self._client.chat.completions.create(**arguments, stream=True) as events,
        ):
            yield from self._chunks(events)

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        raise NotImplementedError

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return self._capabilities

    # ---- the request

    def _arguments(self, request: llm.CompletionRequest) -> dict[str, Any]:
        check_abilities(request, self._capabilities)
        reasons = self._capabilities.supports_reasoning  # else nothing is to be turned off
        calls = [call for message in request.messages for call in message.tool_calls]
        ids: dict[str | None, str] = {
            call.id: self._own(call.extra).get("id", _identity(call.id)) for call in calls
        }
        messages = [self._message(message, ids) for message in request.messages]
        arguments: dict[str, Any] = {
            "model": request.model or self._model,
            "messages": [each for each in messages if not _is_empty(each)],
            "tools": [self._tool(tool) for tool in request.tools] or None,
            "tool_choice": request.tool_choice,
            "temperature": request.temperature,
            "top_p": request.top_p,
            self._max_tokens_field: request.max_tokens,
            "stop": list(request.stop) or None,
            "seed": request.seed,
            "reasoning_effort": request.reasoning_effort if reasons else None,
            "timeout": request.timeout,
        }
        if request.tool_choice not in {None, "auto", "none", "required"}:
            arguments["tool_choice"] = {
                "type": "function",
                "function": {"name": request.tool_choice},
            }
        if (schema := request.response_format) is not None:
            name = re.sub(r"[^\w-]+", "_", str(schema.get("title", "answer")), flags=re.ASCII)[:64]
            described = {"name": name, "schema": dict(schema), "strict": True}
            arguments["response_format"] = {"type": "json_schema", "json_schema": described}
        given = {name: value for name, value in arguments.items() if value is not None}
        return {**given, **self._own(request.extra)}

    def _message(self, message: llm.Message, ids: Mapping[str | None, str]) -> dict[str, Any]:
        is_developer = message.role == "developer"
        translated: dict[str, Any] = {
            "role": self._developer_role if is_developer else message.role,
            "content": message.content,
        }
        if message.attachments:
            if message.role != "user":
                msg = f"a file in a message of role {message.role!r}"
                raise UnsupportedRequestError(msg)
            text = [{"type": "text", "text": message.content}] if message.content else []
            translated["content"] = [*text, *map(self._part, message.attachments)]
        if message.tool_calls:
            translated["tool_calls"] = [self._call(call, ids) for call in message.tool_calls]
            translated["content"] = message.content or None
        if message.role == "tool":
            translated["tool_call_id"] = ids.get(message.tool_call_id, message.tool_call_id)
        elif message.name is not None:
            translated["name"] = message.name
        return {**translated, **self._own(message.extra)}

    def _part(self, media: llm.Media) -> dict[str, Any]:
        kind = media.media_type.partition("/")[0]
        abilities = {"image": self._capabilities.supports_vision}
        abilities["audio"] = self._capabilities.supports_audio
        scheme, colon, _ = (media.uri or "").partition(":")
        encoded = base64.b64encode(media.data or b"").decode()
        url = media.uri or f"data:{media.media_type};base64,{encoded}"
        if abilities.get(kind, True):
            if kind == "image" and (media.uri is None or scheme in {"http", "https", "data"}):
                return {"type": "image_url", "image_url": {"url": url}}
            if media.media_type in _AUDIO and media.uri is None:
                audio = {"data": encoded, "format": _AUDIO[media.media_type]}
                return {"type": "input_audio", "input_audio": audio}
            is_sent = media.media_type == "application/pdf" if media.uri is None else not colon
            if kind not in abilities and is_sent:
                data = {"filename": media.name or "file", "file_data": url}
                return {"type": "file", "file": {"file_id": media.uri} if media.uri else data}
        msg = f"a file of type {media.media_type!r}"
        raise UnsupportedRequestError(msg)

    def _call(self, call: llm.ToolCall, ids: Mapping[str | None, str]) -> dict[str, Any]:
        function = {"name": call.name, "arguments": call.arguments}
        named = {"id": ids[call.id], "type": "function", "function": function}
        return {**named, **self._own(call.extra)}

    def _tool(self, tool: llm.ToolDefinition) -> dict[str, Any]:
        function: dict[str, Any] = {"name": tool.name, "description": tool.description}
        if tool.parameters:
            function["parameters"] = dict(tool.parameters)
        return {"type": "function", "function": {**function, **self._own(tool.extra)}}

    def _own(self, extra: Mapping[str, object] | None) -> dict[str, Any]:
        return own_options(self._vendor, extra)

    # ---- the answer

    def _chunks(self, events: Iterable[Any]) -> Iterator[llm.Chunk]:
        """Translate a stream, or a whole answer as a stream of one event."""
        calls: list[_PartialCall] = []
        added: dict[str, Any] = {}
        finish_reason = usage = model = identity = None
        is_empty = True
        for event in events:
            model, identity = event.model or model, event.id or identity
            usage = event.usage or usage  # in a stream, it is in an event after the last choice
            for choice in event.choices or ():
                finish_reason = choice.finish_reason or finish_reason
                delta = getattr(choice, "delta", None) or getattr(choice, "message", None)
                if delta is None:  # an event of Azure's content filter
                    continue
                _join(added, _unknown_fields(delta))
                for position, piece in enumerate(delta.tool_calls or ()):
                    _assemble(calls, piece, position)
                chunk = _translate_text(delta)
                is_empty = is_empty and not (chunk.content.strip() or chunk.refusal)
                yield chunk
        finish_reason = _finish_reason(finish_reason, is_empty=is_empty, has_calls=bool(calls))
        yield llm.Chunk(
            tool_calls=tuple(
                llm.ToolCall(
                    id=call.id or f"call_{uuid4().hex[:24]}",
                    name=call.name,
                    arguments=call.arguments or ("" if finish_reason == "length" else "{}"),
                    extra={self._vendor: call.added} if call.added else None,
                )
                for call in calls
            ),
            finish_reason=finish_reason,
            usage=_usage(usage),
            model=model,
            id=identity,
            extra={self._vendor: added} if added else None,
        )


def _is_empty(message: dict[str, Any]) -> bool:
    """Return whether it is an answer without content, which compatible servers reject."""
    rest = message.keys() - {"role", "content", "name"}
    return message["role"] == "assistant" and not (message["content"] or rest)


@dataclass(slots=True)
class _PartialCall:
    """A tool call that may be incomplete."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    added: dict[str, Any] = field(default_factory=dict[str, Any])


def _identity(call: str) -> str:
    """Return the id of a tool call, or a short one for it, the same each time."""
    is_short = len(call) <= _LONGEST_ID
    return call if is_short else hashlib.sha256(call.encode()).hexdigest()[:_LONGEST_ID]


def _assemble(calls: list[_PartialCall], piece: Any, position: int) -> None:
    """Add a piece to its tool call; some servers give all calls the same index, or none."""
    index = getattr(piece, "index", None)
    index = position if index is None else index
    call = next((call for call in reversed(calls) if call.index == index), None)
    if call is None or (piece.id and call.id and piece.id != call.id):
        call = _PartialCall(index)
        calls.append(call)
    call.id = piece.id or call.id
    if len(call.id) > _LONGEST_ID:
        call.added["id"] = call.id  # only this server gets it back unchanged
    if piece.function is not None:
        call.name = piece.function.name or call.name
        call.arguments += piece.function.arguments or ""
    _join(call.added, _unknown_fields(piece))


def _finish_reason(reason: str | None, *, is_empty: bool, has_calls: bool) -> str:
    """Translate a finish reason; raise if it shows that there is no complete answer."""
    translated = _FINISH_REASONS.get(reason or "", reason)
    if translated is None or translated in _FAILURES:
        msg = f"the answer was cut off: {translated or 'no finish reason'}"
        raise ConnectionError(msg)
    if is_empty and not has_calls and translated in {"stop", "tool_calls"}:
        msg = "the answer is empty"
        raise ConnectionError(msg)
    # With a forced function, OpenAI reports "stop" for a call; some servers always do.
    return "tool_calls" if has_calls and translated == "stop" else translated


def _translate_text(delta: Any) -> llm.Chunk:
    """Return the text and reasoning of a delta; Mistral sends both as a list of parts."""
    parts: list[Any] = [] if type(delta.content) in {str, type(None)} else delta.content
    thoughts = [part for each in parts for part in each.get("thinking") or ()]
    reasoning = getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None)
    return llm.Chunk(
        content="".join(part.get("text", "") for part in parts) if parts else delta.content or "",
        reasoning="".join(part.get("text", "") for part in thoughts) or reasoning or "",
        refusal=delta.refusal or "",
    )


def _unknown_fields(value: Any) -> dict[str, Any]:
    """Return the fields of an object that the client does not define."""
    fields: dict[str, Any] = value.model_extra or {}
    return {name: field for name, field in fields.items() if field is not None}


def _join(known: dict[str, Any], fields: dict[str, Any]) -> None:
    """Join two texts or two lists; of other values, return the later one."""
    for name, value in fields.items():
        before = known.get(name)
        is_continued = type(before) is type(value) and type(value) in {str, list}
        known[name] = before + value if is_continued else value


def _usage(usage: Any) -> llm.Usage | None:
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return llm.Usage(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        cache_read_tokens=getattr(prompt, "cached_tokens", None) or 0,
        cache_write_tokens=getattr(prompt, "cache_write_tokens", None) or 0,
        reasoning_tokens=getattr(completion, "reasoning_tokens", None) or 0,
    )


@contextmanager
def _errors_of_the_contract() -> Generator[None]:
    """Raise the contract's exception if the vendor reports that the model does not support it."""
    try:
        yield
    except Exception as error:
        code, status = getattr(error, "code", None), getattr(error, "status_code", None)
        text = str(error)
        is_too_long = status in {400, 413} and any(each in text for each in _TOO_LONG)
        if code == "context_length_exceeded" or is_too_long:
            raise llm.ContextWindowExceededError(text) from error
        if code in _UNSUPPORTED:
            raise UnsupportedRequestError(text) from error
        raise
