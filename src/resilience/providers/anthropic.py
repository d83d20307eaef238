"""A language model with the client `anthropic`."""

import base64
import json
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, final

from typing_extensions import override

from resilience import llm
from resilience.exceptions import UnsupportedRequestError
from resilience.providers._shared import check_abilities, own_options, parse_arguments

_CAPABILITIES = llm.ModelCapabilities(
    context_window=200_000,
    supports_tools=True,
    supports_vision=True,
    supports_structured_output=True,
    supports_reasoning=True,
)
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_EFFORTS = {each: each for each in ("low", "medium", "high", "xhigh", "max")} | {"minimal": "low"}
_PICTURES = {"image/gif", "image/jpeg", "image/png", "image/webp"}
_DOCUMENTS = {"application/pdf", "text/plain"}
# There is no error code for it. Any other message is treated as an invalid request.
_TOO_LONG = ("prompt is too long", "exceed context limit", "exceeds the context window")


class _Client(Protocol):
    """The parts of `anthropic.Anthropic` that are used."""

    @property
    def messages(self) -> Any: ...


@final
class AnthropicLLM(llm.Provider):
    """A language model behind Anthropic's messages.

    An answer with signed or encrypted reasoning is kept in its `extra`, and sent back unchanged.
    All instructions are sent as the system prompt, in their order. A request with `temperature`,
    `top_p` or `seed`, or a message with a name, raises `UnsupportedRequestError`.

    Threads may share it.
    """

    def __init__(
        self,
        client: _Client,
        model: str,
        *,
        capabilities: llm.ModelCapabilities = _CAPABILITIES,
        max_tokens: int = 16_384,
    ) -> None:
        """Make a provider.

        Args:
            client: An `anthropic.Anthropic` with a timeout and `max_retries=0`.
            model: Name of the model, unless a request has one.
            capabilities: What the model can do; a request for more raises. The default is a window
                of 200 000 tokens and everything but recordings.
            max_tokens: Longest answer in tokens, reasoning included, unless a request has one; the
                vendor requires a number.
        """
        self._client = client
        self._model = model
        self._capabilities = capabilities
        self._max_tokens = max_tokens

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        with _errors_of_the_contract():
            message = self._client.messages.create(**self._arguments(request))
        if getattr(message, "stop_reason", None) is None:  # an HTML page is returned as a string
            msg = "the body is not a message"
            raise ConnectionError(msg)
        blocks = [block.to_dict() for block in message.content]
        return llm.CompletionResponse(
            content=_join(blocks, "text"),
            reasoning=_join(blocks, "thinking"),
            model=message.model,
            id=message.id,
            usage=_usage(message.usage),
            **_ending(blocks, message),
        )

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        blocks: dict[int, dict[str, Any]] = {}
        start = end = usage = None
        is_whole = False
        with (
            _errors_of_the_contract(),
            self._client.messages.create(**self._arguments(request), stream=True) as events,
        ):
            for event in events:
                if event.type == "message_start":
                    start = event.message
                elif event.type == "content_block_start":
                    block = blocks[event.index] = event.content_block.to_dict()
                    yield llm.Chunk(
                        content=_join([block], "text"), reasoning=_join([block], "thinking")
                    )
                elif event.type == "content_block_delta":
                    yield _apply(blocks[event.index], event.delta)
                elif event.type == "message_delta":
                    end, usage = event.delta, event.usage
                is_whole = is_whole or event.type == "message_stop"
        if not is_whole:
            msg = "the answer was cut off"
            raise ConnectionError(msg)
        yield llm.Chunk(
            model=getattr(start, "model", None),
            id=getattr(start, "id", None),
            usage=_usage(usage, getattr(start, "usage", None)),
            **_ending(list(blocks.values()), end),
        )

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        conversation = self._conversation(messages)
        answer = self._client.messages.count_tokens(model=self._model, **conversation)
        count: int | None = getattr(answer, "input_tokens", None)
        if count is None:
            msg = "the body is not a number of tokens"
            raise ConnectionError(msg)
        return count

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        return self._capabilities

    # ---- the request

    def _arguments(self, request: llm.CompletionRequest) -> dict[str, Any]:
        self._check(request)
        arguments: dict[str, Any] = {
            "model": request.model or self._model,
            "max_tokens": self._max_tokens if request.max_tokens is None else request.max_tokens,
            **self._conversation(request.messages),
        }
        output: dict[str, object] = {}
        if request.tools:
            arguments["tools"] = [_tool(tool) for tool in request.tools]
        if request.tool_choice is not None:
            kinds = {"auto": "auto", "none": "none", "required": "any"}
            named = {"type": "tool", "name": request.tool_choice}
            kind = kinds.get(request.tool_choice)
            arguments["tool_choice"] = {"type": kind} if kind else named
        if request.stop:
            arguments["stop_sequences"] = list(request.stop)
        if request.timeout is not None:
            arguments["timeout"] = request.timeout
        if request.reasoning_effort == "none":
            arguments["thinking"] = {"type": "disabled"}
        elif request.reasoning_effort is not None:
            arguments["thinking"] = {"type": "adaptive", "display": "summarized"}
            output["effort"] = _EFFORTS[request.reasoning_effort]
        if request.response_format is not None:
            output["format"] = {"type": "json_schema", "schema": dict(request.response_format)}
        if output:
            arguments["output_config"] = output
        return {**arguments, **own_options("anthropic", request.extra)}

    def _check(self, request: llm.CompletionRequest) -> None:
        """Raise if the vendor or the model does not support the request."""
        check_abilities(request, self._capabilities)
        reasons = request.reasoning_effort not in {None, "none"}
        unknown = {
            "temperature": request.temperature is not None,
            "top_p": request.top_p is not None,
            "seed": request.seed is not None,
            f"reasoning_effort={request.reasoning_effort!r}": reasons
            and request.reasoning_effort not in _EFFORTS,
            "a forced tool while reasoning": reasons
            and request.tool_choice not in {None, "auto", "none"},
        }
        for what, is_asked in unknown.items():
            if is_asked:
                raise UnsupportedRequestError(what)

    def _conversation(self, messages: Iterable[llm.Message]) -> dict[str, Any]:
        """Return the system prompt, and alternating turns of the user and the assistant."""
        system: list[dict[str, Any]] = []
        turns: list[dict[str, Any]] = []
        for message in messages:
            blocks = self._blocks(message)
            role = "assistant" if message.role == "assistant" else "user"
            if message.role in {"system", "developer"}:
                system += blocks
            elif turns and turns[-1]["role"] == role:
                turns[-1]["content"] += blocks
            elif blocks:
                turns.append({"role": role, "content": blocks})
        return {"messages": turns, **({"system": system} if system else {})}

    def _blocks(self, message: llm.Message) -> list[dict[str, Any]]:
        if message.name is not None and message.role != "tool":
            msg = "a message with a name"
            raise UnsupportedRequestError(msg)
        if message.attachments and message.role not in {"user", "tool"}:
            msg = f"a file in a message of role {message.role!r}"
            raise UnsupportedRequestError(msg)
        own = own_options("anthropic", message.extra)
        blocks: list[dict[str, Any]] = own.pop("content", None) or [
            {"type": "text", "text": message.content},
            *map(self._file, message.attachments),
            *map(_tool_use, message.tool_calls),
        ]
        # The vendor refuses blanks alone, which models write before a call, its own too.
        blocks = [each for each in blocks if each["type"] != "text" or each["text"].strip()]
        if message.role == "tool":
            result = {"type": "tool_result", "tool_use_id": _identity(message.tool_call_id or "")}
            blocks = [{**result, "content": blocks}]
        return [*blocks[:-1], {**blocks[-1], **own}] if blocks else []

    def _file(self, media: llm.Media) -> dict[str, Any]:
        is_picture = media.media_type in _PICTURES and self._capabilities.supports_vision
        is_text = media.media_type == "text/plain"
        scheme, colon, _ = (media.uri or "").partition(":")
        is_foreign = bool(colon) and (is_text or scheme not in {"http", "https"})
        if is_foreign or not (is_picture or media.media_type in _DOCUMENTS):
            msg = f"a file of type {media.media_type!r}"
            raise UnsupportedRequestError(msg)
        source = {"type": "base64", "media_type": media.media_type}
        if media.uri is not None:
            source = {"type": "file", "file_id": media.uri}
            if colon:
                source = {"type": "url", "url": media.uri}
        elif is_text:
            source |= {"type": "text", "data": _decode(media.data or b"")}
        else:
            source["data"] = base64.b64encode(media.data or b"").decode()
        title = {"title": media.name} if media.name and not is_picture else {}
        return {"type": "image" if is_picture else "document", "source": source, **title}


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        msg = f"a text that is not UTF-8: {error.reason}"
        raise UnsupportedRequestError(msg) from None


def _identity(call: str) -> str:
    """Return the id of a tool call, with the characters replaced that the vendor rejects."""
    return re.sub(r"[^\w-]", "_", call, flags=re.ASCII)


def _tool(tool: llm.ToolDefinition) -> dict[str, Any]:
    schema = dict(tool.parameters) or {"type": "object", "properties": {}}
    described = {"description": tool.description} if tool.description else {}
    return {
        "name": tool.name,
        **described,
        "input_schema": schema,
        **own_options("anthropic", tool.extra),
    }


def _tool_use(call: llm.ToolCall) -> dict[str, Any]:
    use = {"type": "tool_use", "id": _identity(call.id), "name": call.name}
    return {**use, "input": parse_arguments(call), **own_options("anthropic", call.extra)}


# ---- the answer


def _apply(block: dict[str, Any], delta: Any) -> llm.Chunk:
    """Add a delta to its block, and return the chunk for it."""
    if delta.type == "text_delta":
        block["text"] += delta.text
        return llm.Chunk(content=delta.text)
    if delta.type == "thinking_delta":
        block["thinking"] += delta.thinking
        return llm.Chunk(reasoning=delta.thinking)
    if delta.type == "input_json_delta":
        block["input_text"] = block.get("input_text", "") + delta.partial_json
    elif delta.type == "signature_delta":
        block["signature"] = delta.signature
    elif delta.type == "citations_delta":
        block["citations"] = [*(block.get("citations") or ()), delta.citation.to_dict()]
    return llm.Chunk()


def _ending(blocks: list[dict[str, Any]], end: Any) -> dict[str, Any]:
    """Return the last chunk, with what is known only at the end of an answer."""
    reason = getattr(end, "stop_reason", None)
    finish_reason = _FINISH_REASONS.get(reason or "", reason)
    calls: list[llm.ToolCall] = []
    for block in blocks:
        text = block.pop("input_text", "")
        with suppress(ValueError):  # of an answer that was too long
            block.update({"input": json.loads(text)} if text else {})
        if block["type"] == "tool_use":
            arguments = text or json.dumps(block["input"], ensure_ascii=False)
            calls.append(llm.ToolCall(id=block["id"], name=block["name"], arguments=arguments))
    is_empty = not (calls or _join(blocks, "text").strip())
    if finish_reason is None or (finish_reason in {"stop", "tool_calls"} and is_empty):
        msg = "the answer is empty" if finish_reason else "the answer was cut off"
        raise ConnectionError(msg)
    details = end.stop_details if reason == "refusal" else None
    is_plain = all(block["type"] in {"text", "tool_use"} for block in blocks)
    return {
        "tool_calls": tuple(calls),
        "refusal": getattr(details, "explanation", None) or "",
        "finish_reason": finish_reason,
        "extra": None if is_plain else {"anthropic": {"content": blocks}},
    }


def _join(blocks: list[dict[str, Any]], kind: str) -> str:
    return "".join(block[kind] for block in blocks if block["type"] == kind)


def _usage(usage: Any, start: Any = None) -> llm.Usage | None:
    """Translate the usage; what the end of a stream does not repeat is taken from its start."""
    if usage is None:
        return None

    def count(name: str) -> int:
        return getattr(usage, name, None) or getattr(start, name, None) or 0

    read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    details = getattr(usage, "output_tokens_details", None)
    return llm.Usage(
        prompt_tokens=count("input_tokens") + read + written,
        completion_tokens=count("output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=getattr(details, "thinking_tokens", None) or 0,
    )


@contextmanager
def _errors_of_the_contract() -> Generator[None]:
    """Raise the contract's exception if the vendor reports that the request is too long."""
    try:
        yield
    except Exception as error:
        status, text = getattr(error, "status_code", None), str(error)
        if status in {400, 413} and any(each in text for each in _TOO_LONG):
            raise llm.ContextWindowExceededError(text) from error
        raise
