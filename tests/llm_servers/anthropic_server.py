"""A test server with Anthropic's messages API."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count, pairwise
from typing import Any

from llm_servers.server import (
    Fault,
    Idea,
    Json,
    Question,
    Reply,
    Server,
    allow,
    check_schema,
    events,
    require,
    serve,
    sign,
    think,
)

BODY = (
    *("model", "max_tokens", "messages", "system", "stream", "tools", "tool_choice", "thinking"),
    *("output_config", "stop_sequences", "service_tier", "metadata"),
)
USAGE = {
    "input_tokens": 6,
    "cache_read_input_tokens": 20,
    "cache_creation_input_tokens": 4,
    "output_tokens": 1,
}
END = {"output_tokens": 12, "output_tokens_details": {"thinking_tokens": 7}}
ERRORS = {401: "authentication_error", 429: "rate_limit_error", 503: "overloaded_error"}
PICTURES = {"image/png", "image/jpeg", "image/gif", "image/webp"}
_numbers = count(1)


@contextmanager
def serve_anthropic(fault: Fault = Fault.NONE) -> Iterator[Server]:
    """Run the server."""
    with serve(_answer, _error, fault) as server:
        yield server


def _error(status: int, message: str, is_event: bool) -> bytes:  # noqa: FBT001 - see `Error`
    kind = ERRORS.get(status, "invalid_request_error")
    text = "prompt is too long: 9 tokens > 8 maximum" if message == "too long" else message
    error = {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req-1"}
    body = json.dumps(error)
    return f"event: error\ndata: {body}\n\n".encode() if is_event else body.encode()


def _answer(path: str, body: Json, headers: Mapping[str, str]) -> Reply:
    require("anthropic-version" in {name.lower() for name in headers}, "no version")
    if path == "/v1/messages/count_tokens":
        allow(body, "model", "messages", "system")
        _read(body)
        return Reply(kind="application/json", pieces=(b'{"input_tokens": ', b"23}"))
    require(path == "/v1/messages", f"no such path: {path}")
    allow(body, *BODY)
    require(isinstance(body.get("max_tokens"), int), "max_tokens is missing")
    idea = think(_read(body), body["model"])
    blocks = list(_blocks(idea))
    head = {"id": "msg-1", "type": "message", "role": "assistant", "model": f"{body['model']}-1"}
    end = {"stop_reason": "tool_use" if idea.calls else "end_turn", "stop_sequence": None}
    if body.get("stream"):
        start: Json = {**head, "content": [], "stop_reason": None, "usage": USAGE}
        pieces: list[Json] = [{"type": "message_start", "message": start}, {"type": "ping"}]
        for index, block in enumerate(blocks):
            pieces += _block_events(index, block)
        pieces += [{"type": "message_delta", "delta": end, "usage": END}, {"type": "message_stop"}]
        return Reply(kind="text/event-stream", pieces=events(pieces, named=True))
    text = json.dumps({**head, "content": blocks, **end, "usage": {**USAGE, **END}}).encode()
    return Reply(kind="application/json", pieces=(text[:20], text[20:]))


def _blocks(idea: Idea) -> Iterator[Json]:
    if idea.thought:
        yield {"type": "thinking", "thinking": idea.thought, "signature": sign(idea.thought)}
        yield {"type": "redacted_thinking", "data": sign("hidden")}
    if idea.text:
        yield {"type": "text", "text": idea.text, "citations": None}
    for name, arguments in idea.calls:
        mark = sign(idea.thought)[:8] if idea.thought else "plain"
        identity = f"toolu_{mark}_{next(_numbers)}"
        yield {"type": "tool_use", "id": identity, "name": name, "input": arguments}


def _block_events(index: int, block: Json) -> Iterator[Json]:
    empty: dict[str, Any] = {"text": "", "thinking": "", "signature": "", "input": {}}
    start = {key: empty.get(key, value) for key, value in block.items()}
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for delta in _deltas(block):
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def _deltas(block: Json) -> Iterator[Json]:
    if block["type"] == "text":
        words = block["text"].split(" ")
        for word in [*(f"{each} " for each in words[:-1]), words[-1]]:
            yield {"type": "text_delta", "text": word}
    elif block["type"] == "thinking":
        half = len(block["thinking"]) // 2
        for part in (block["thinking"][:half], block["thinking"][half:]):
            yield {"type": "thinking_delta", "thinking": part}
        yield {"type": "signature_delta", "signature": block["signature"]}
    elif block["type"] == "tool_use":
        text = json.dumps(block["input"])
        for part in ("", text[:5], text[5:]):
            yield {"type": "input_json_delta", "partial_json": part}


def _read(body: Json) -> Question:
    """Check a request, and return its question."""
    messages = body["messages"]
    require(messages and messages[0]["role"] == "user", "the first message is not the user's")
    for message in messages:
        allow(message, "role", "content")
        require(message["role"] in {"user", "assistant"}, f"no such role: {message['role']}")
        require(message["content"], "content is empty")
    for one, two in pairwise(messages):
        require(one["role"] != two["role"], "two messages of the same role")
    for block in body.get("system", ()):
        allow(block, "type", "text", "cache_control")
    thinking = body.get("thinking", {"type": "disabled"})
    allow(thinking, "type", "display", "budget_tokens")
    require(thinking["type"] in {"adaptive", "enabled", "disabled"}, "no such thinking")
    waiting = list[str]()
    text, media, results = "", list[str](), list[str]()
    for message in messages:
        if message["role"] == "assistant":
            waiting = _check_assistant(message["content"])
            continue
        said = [block for block in message["content"] if block["type"] != "tool_result"]
        answered = [block for block in message["content"] if block["type"] == "tool_result"]
        require(message["content"] == [*answered, *said], "results must come first")
        require(
            {block["tool_use_id"] for block in answered} <= set(waiting),
            "a result without its call",
        )
        require(len(answered) == len(waiting), f"calls without a result: {waiting}")
        waiting = []
        results = [] if said else results
        for block in answered:
            allow(block, "type", "tool_use_id", "content", "is_error", "cache_control")
            results.append("".join(_part(each) for each in block["content"]))
        if said:
            text = "".join(block.get("text", "") for block in said if block["type"] == "text")
            media = [_part(block) for block in said if block["type"] != "text"]
    require(not waiting, f"calls without a result: {waiting}")
    tool, is_forced = _tools(body)
    reasons = thinking["type"] != "disabled"
    require(not (reasons and is_forced), "thinking may not be enabled when a tool is forced")
    return Question(
        text=text,
        results=tuple(results),
        tool=tool,
        is_forced=is_forced,
        media=tuple(media),
        schema=_format(body.get("output_config", {})),
        thinks=reasons,
    )


def _check_assistant(content: list[Json]) -> list[str]:
    kinds = [block["type"] for block in content]
    thoughts = [block for block in content if block["type"] == "thinking"]
    for block in content:
        kind = block["type"]
        if kind == "thinking":
            allow(block, "type", "thinking", "signature")
            require(block.get("signature") == sign(block["thinking"]), "invalid signature")
        elif kind == "redacted_thinking":
            allow(block, "type", "data")
            require(block["data"] == sign("hidden"), "invalid data")
        elif kind == "text":
            allow(block, "type", "text", "citations", "cache_control")
            require(block["text"].strip(), "text is empty")
        else:
            require(kind == "tool_use", f"no such block: {kind}")
            allow(block, "type", "id", "name", "input", "cache_control", "caller")
            require(isinstance(block["input"], dict), "input is not an object")
            require(re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"]), f"not an id: {block['id']}")
            mark = block["id"].split("_")[1] if block["id"].startswith("toolu_") else "plain"
            signed = [sign(thought["thinking"])[:8] for thought in thoughts]
            require(mark == "plain" or mark in signed, "the thinking before a call is missing")
            require(mark == "plain" or kinds[1] == "redacted_thinking", "thinking was changed")
    return [block["id"] for block in content if block["type"] == "tool_use"]


def _part(block: Json) -> str:
    """Return the content of a file, or a text."""
    if block["type"] == "text":
        allow(block, "type", "text", "cache_control")
        require(block["text"].strip(), "text is empty")
        return str(block["text"])
    allow(block, "type", "source", "title", "cache_control")
    source = block["source"]
    kinds = PICTURES if block["type"] == "image" else {"application/pdf", "text/plain"}
    require(block["type"] in {"image", "document"}, f"no such block: {block['type']}")
    if source["type"] == "base64":
        allow(source, "type", "media_type", "data")
        require(source["media_type"] in kinds, "wrong media type")
        return base64.b64decode(source["data"], validate=True).decode()
    if source["type"] == "text":
        allow(source, "type", "media_type", "data")
        return str(source["data"])
    allow(source, "type", "url", "file_id")
    require(source["type"] in {"url", "file"}, f"no such source: {source['type']}")
    return str(source["url"] if source["type"] == "url" else source["file_id"])


def _tools(body: Json) -> tuple[str | None, bool]:
    names = list[str]()
    for tool in body.get("tools", ()):
        allow(tool, "name", "description", "input_schema", "cache_control", "strict")
        check_schema(tool["input_schema"])
        names.append(tool["name"])
    choice = body.get("tool_choice", {"type": "auto"})
    require("tool_choice" not in body or names, "tool_choice without tools")
    allow(choice, "type", "name", "disable_parallel_tool_use")
    require(choice["type"] in {"auto", "any", "none", "tool"}, "no such choice")
    if choice["type"] == "tool":
        require(choice["name"] in names, "no such tool")
        return choice["name"], True
    return names[0] if names and choice["type"] != "none" else None, choice["type"] == "any"


def _format(config: Json) -> Json | None:
    allow(config, "effort", "format")
    efforts = {None, "low", "medium", "high", "xhigh", "max"}
    require(config.get("effort") in efforts, f"no such effort: {config.get('effort')}")
    if "format" not in config:
        return None
    allow(config["format"], "type", "schema")
    schema: Json = config["format"]["schema"]
    require(config["format"]["type"] == "json_schema", "no such format")
    check_schema(schema)
    require(schema.get("additionalProperties") is False, "additionalProperties must be false")
    return schema
