"""A test server with OpenAI's chat completions, or those of a compatible server that reasons."""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
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
    *("model", "messages", "stream", "stream_options", "tools", "tool_choice", "response_format"),
    *("temperature", "top_p", "max_completion_tokens", "stop", "seed", "reasoning_effort"),
    *("service_tier", "parallel_tool_calls", "user"),
)
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 7},
}
_numbers = count(1)


@contextmanager
def serve_openai(
    fault: Fault = Fault.NONE, *, reasons_aloud: bool = False, max_tokens: str | None = None
) -> Iterator[Server]:
    """Run the server, or a compatible one that sends its reasoning and requires it in a loop."""

    def answer(path: str, body: Json, _: Mapping[str, str]) -> Reply:
        require(path == "/v1/chat/completions", f"no such path: {path}")
        return _answer(body, reasons_aloud=reasons_aloud, max_tokens=max_tokens)

    with serve(answer, _error, fault) as server:
        yield server


def _error(status: int, message: str, is_event: bool) -> bytes:  # noqa: FBT001 - see `Error`
    code = "context_length_exceeded" if message == "too long" else None
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = json.dumps({"error": error | {"status": status}})
    return f"data: {body}\n\n".encode() if is_event else body.encode()


def _answer(body: Json, *, reasons_aloud: bool, max_tokens: str | None) -> Reply:
    allow(body, *BODY, *([max_tokens] if max_tokens else []))
    question = _read(body, reasons_aloud=reasons_aloud)
    idea = think(question, body["model"])
    if not reasons_aloud:
        idea = replace(idea, thought="")
    if body.get("stream"):
        require(body["stream_options"] == {"include_usage": True}, "no usage was asked for")
        return _stream(body, idea)
    message: Json = {"role": "assistant", "content": idea.text or None, "refusal": None}
    if idea.calls:
        message["tool_calls"] = _calls(idea)
    if idea.thought:
        message |= {"reasoning_content": idea.thought, "reasoning_id": sign(idea.thought)}
    choice = {"index": 0, "message": message, "finish_reason": _finish(body, idea)}
    completion = {"choices": [choice], "usage": USAGE, "object": "chat.completion", "created": 0}
    text = json.dumps({"id": "chat-1", "model": f"{body['model']}-1", **completion}).encode()
    return Reply(kind="application/json", pieces=(text[:20], text[20:]))


def _stream(body: Json, idea: Idea) -> Reply:
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    if idea.thought:
        half = len(idea.thought) // 2
        deltas += [{"reasoning_content": idea.thought[:half]}]
        deltas += [{"reasoning_content": idea.thought[half:], "reasoning_id": sign(idea.thought)}]
    for index, call in enumerate(_calls(idea)):
        function = call["function"]
        text = function["arguments"]
        first = {"name": function["name"], "arguments": ""}
        deltas += [{"tool_calls": [{"index": index, **call, "function": first}]}]
        for piece in (text[:5], text[5:]):
            deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]}]
    deltas += [{"content": word} for word in _words(idea.text)]
    choices: list[Json] = [{"index": 0, "delta": each, "finish_reason": None} for each in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": _finish(body, idea)})
    head = {"id": "chat-1", "model": f"{body['model']}-1", "object": "chat.completion.chunk"}
    head["created"] = "0"
    chunks: list[Json] = [{**head, "choices": [choice], "usage": None} for choice in choices]
    chunks += [{**head, "choices": [], "usage": USAGE}]
    return Reply(kind="text/event-stream", pieces=events(chunks, "[DONE]"))


def _words(text: str) -> list[str]:
    return [f"{word} " for word in text.split(" ")[:-1]] + text.split(" ")[-1:] if text else []


def _finish(body: Json, idea: Idea) -> str:
    is_named = isinstance(body.get("tool_choice"), dict)  # the finish reason of a forced call
    return "tool_calls" if idea.calls and not is_named else "stop"


def _calls(idea: Idea) -> list[Json]:
    mark = f"{sign(idea.thought)[:8]}" if idea.thought else "plain"
    return [
        {
            "id": f"call_{mark}_{next(_numbers)}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for name, arguments in idea.calls
    ]


def _read(body: Json, *, reasons_aloud: bool) -> Question:
    """Check a request, and return its question."""
    waiting: list[str] = []
    text, media, results = "", list[str](), list[str]()
    require(body["messages"], "no messages")
    for message in body["messages"]:
        role = message.get("role")
        require(not waiting or role == "tool", f"calls without a result: {waiting}")
        if role == "tool":
            allow(message, "role", "content", "tool_call_id")
            require(message["tool_call_id"] in waiting, "a result without its call")
            waiting.remove(message["tool_call_id"])
            results.append(message["content"])
        elif role == "assistant":
            waiting = _check_assistant(message, reasons_aloud=reasons_aloud)
        elif role == "user":
            allow(message, "role", "content", "name")
            text, media = _parts(message["content"])
            results = []
        else:
            require(role in {"system", "developer"}, f"no such role: {role}")
            require(isinstance(message["content"], str), "instructions are not a text")
    require(not waiting, f"calls without a result: {waiting}")
    tool, is_forced = _tools(body)
    return Question(
        text=text,
        results=tuple(results),
        tool=tool,
        is_forced=is_forced,
        media=tuple(media),
        schema=_format(body.get("response_format")),
        thinks=body.get("reasoning_effort") not in {None, "none"},
    )


def _check_assistant(message: Json, *, reasons_aloud: bool) -> list[str]:
    added = ("reasoning_content", "reasoning_id") if reasons_aloud else ()
    allow(message, "role", "content", "tool_calls", "name", "refusal", *added)
    require(message.get("content") or message.get("tool_calls"), "an empty message")
    for call in message.get("tool_calls", ()):
        allow(call, "id", "type", "function")
        allow(call["function"], "name", "arguments")
        require(len(call["id"]) <= 40, "the id of a call is too long")
        mark = call["id"].split("_")[1] if call["id"].startswith("call_") else "plain"
        if reasons_aloud and mark != "plain":
            thought = message.get("reasoning_content", "")
            require(sign(thought).startswith(mark), "the reasoning before a call is missing")
            require(message.get("reasoning_id") == sign(thought), "wrong id of the reasoning")
    return [call["id"] for call in message.get("tool_calls", ())]


def _parts(content: Any) -> tuple[str, list[str]]:
    if isinstance(content, str):
        return content, []
    text, media = "", list[str]()
    for part in content:
        kind = part.get("type")
        if kind == "text":
            allow(part, "type", "text")
            text += part["text"]
        elif kind == "image_url":
            allow(part, "type", "image_url")
            allow(part["image_url"], "url", "detail")
            media.append(_link(part["image_url"]["url"], "image/"))
        elif kind == "input_audio":
            allow(part["input_audio"], "data", "format")
            require(part["input_audio"]["format"] in {"wav", "mp3"}, "unknown audio")
            media.append(base64.b64decode(part["input_audio"]["data"], validate=True).decode())
        else:
            require(kind == "file", f"no such part: {kind}")
            allow(part["file"], "file_id", "file_data", "filename")
            if "file_id" in part["file"]:
                media.append(part["file"]["file_id"])
            else:
                require(part["file"].get("filename"), "a file without a name")
                media.append(_link(part["file"]["file_data"], "application/pdf"))
    return text, media


def _link(url: str, kind: str) -> str:
    if url.startswith("https://"):
        return url
    require(url.startswith(f"data:{kind}") and ";base64," in url, f"not a picture: {url[:30]}")
    return base64.b64decode(url.partition(",")[2], validate=True).decode()


def _tools(body: Json) -> tuple[str | None, bool]:
    names = list[str]()
    for tool in body.get("tools", ()):
        allow(tool, "type", "function")
        allow(tool["function"], "name", "description", "parameters", "strict")
        if "parameters" in tool["function"]:
            check_schema(tool["function"]["parameters"])
        names.append(tool["function"]["name"])
    choice = body.get("tool_choice", "auto")
    require("tool_choice" not in body or names, "tool_choice without tools")
    if isinstance(choice, dict):
        allow(choice, "type", "function")
        require(choice["function"]["name"] in names, "no such tool")
        return choice["function"]["name"], True
    require(choice in {"auto", "none", "required"}, f"no such choice: {choice}")
    return names[0] if names and choice != "none" else None, choice == "required"


def _format(value: Any) -> Json | None:
    if value is None:
        return None
    allow(value, "type", "json_schema")
    allow(value["json_schema"], "name", "schema", "strict", "description")
    require(value["type"] == "json_schema" and value["json_schema"]["strict"] is True, "not strict")
    schema: Json = value["json_schema"]["schema"]
    check_schema(schema)
    require(schema.get("additionalProperties") is False, "additionalProperties must be false")
    return schema
