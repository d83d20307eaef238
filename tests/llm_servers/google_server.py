"""A test server with Google's generateContent, of a model that validates signatures."""

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

BODY = ("contents", "systemInstruction", "generationConfig", "tools", "toolConfig", "serviceTier")
CONFIG = (
    *("temperature", "topP", "maxOutputTokens", "stopSequences", "seed", "responseMimeType"),
    *("responseJsonSchema", "thinkingConfig", "topK"),
)
FREE = {"args", "response", "parametersJsonSchema", "responseJsonSchema"}
USAGE = {
    "promptTokenCount": 28,
    "toolUsePromptTokenCount": 2,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 7,
    "cachedContentTokenCount": 20,
    "totalTokenCount": 42,
}
STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}
NO_SIGNATURE = b"skip_thought_signature_validator"
_numbers = count(1)


@contextmanager
def serve_google(fault: Fault = Fault.NONE, *, numbers_calls: bool = True) -> Iterator[Server]:
    """Run the server; older models return tool calls without ids."""

    def answer(path: str, body: Json, _: Mapping[str, str]) -> Reply:
        return _answer(path, body, numbers_calls=numbers_calls)

    with serve(answer, _error, fault) as server:
        yield server


def _error(status: int, message: str, is_event: bool) -> bytes:  # noqa: FBT001 - see `Error`
    if message == "too long":
        message = "The input token count (9) exceeds the maximum number of tokens allowed (8)."
    name = STATUSES.get(status, "UNAVAILABLE")
    body = json.dumps({"error": {"code": status, "message": message, "status": name}})
    return f"data: {body}\n\n".encode() if is_event else body.encode()


def _answer(path: str, body: Json, *, numbers_calls: bool) -> Reply:
    version, _, rest = path.removeprefix("/").partition("/models/")
    model, _, method = rest.partition(":")
    require(version in {"v1", "v1beta"}, f"no such path: {path}")
    if method == "countTokens":
        allow(body, "contents")
        _read(_in_camel_case(body))
        return Reply(kind="application/json", pieces=(b'{"totalTokens": ', b"23}"))
    body = _in_camel_case(body)
    allow(body, *BODY)
    idea = think(_read(body), model)
    head = {"modelVersion": f"{model}-1", "responseId": "answer-1"}
    parts = list(_parts_of(idea, numbers_calls=numbers_calls))
    if method == "generateContent":
        content = {"role": "model", "parts": parts}
        whole = {"content": content, "finishReason": "STOP", "index": 0}
        text = json.dumps({"candidates": [whole], "usageMetadata": USAGE, **head}).encode()
        return Reply(kind="application/json", pieces=(text[:20], text[20:]))
    require(method == "streamGenerateContent?alt=sse", f"no such method: {method}")
    answers: list[Json] = []
    for piece in [piece for part in parts for piece in _pieces(part)]:
        candidate: Json = {"content": {"role": "model", "parts": [piece]}, "index": 0}
        answers.append({"candidates": [candidate], **head})
    answers.append({"candidates": [{"finishReason": "STOP", "index": 0}], **head})
    answers[-1]["usageMetadata"] = USAGE
    return Reply(kind="text/event-stream", pieces=events(answers))


def _in_camel_case(value: Any) -> Any:
    """Return a value with names in camel case; the API also accepts names with underscores."""
    if isinstance(value, list):
        return [_in_camel_case(each) for each in value]
    if not isinstance(value, dict):
        return value
    named = {re.sub(r"_(.)", lambda m: m[1].upper(), key): each for key, each in value.items()}
    return {key: each if key in FREE else _in_camel_case(each) for key, each in named.items()}


def _parts_of(idea: Idea, *, numbers_calls: bool) -> Iterator[Json]:
    if idea.thought:
        yield {"text": idea.thought, "thought": True}
    if idea.text:
        signature = {"thoughtSignature": _sign("text")} if idea.thought else {}
        yield {"text": idea.text, **signature}
    for name, arguments in idea.calls:
        call: Json = {"name": name, "args": arguments}
        if numbers_calls:
            call["id"] = f"fc{next(_numbers)}"
        signature = {"thoughtSignature": _sign(arguments)} if idea.thought else {}
        yield {"functionCall": call, **signature}


def _sign(value: Any) -> str:
    return base64.b64encode(sign(json.dumps(value)).encode()).decode()


def _pieces(part: Json) -> Iterator[Json]:
    """Split a text; the signature is sent with an empty text at its end."""
    if "text" not in part:
        yield part
        return
    words = part["text"].split(" ")
    rest = {key: value for key, value in part.items() if key not in {"text", "thoughtSignature"}}
    for word in [*(f"{each} " for each in words[:-1]), words[-1]]:
        yield {"text": word, **rest}
    if "thoughtSignature" in part:
        yield {**part, "text": ""}


def _read(body: Json) -> Question:
    """Check a request, and return its question."""
    contents = body["contents"]
    require(contents and contents[0]["role"] == "user", "the first content is not the user's")
    for one, two in pairwise(contents):
        require(one["role"] != two["role"], "two contents of the same role")
    if "systemInstruction" in body:
        allow(body["systemInstruction"], "parts", "role")
        for part in body["systemInstruction"]["parts"]:
            allow(part, "text")
    config = body.get("generationConfig", {})
    allow(config, *CONFIG)
    waiting: list[Json] = []
    text, media, results = "", list[str](), list[str]()
    said_by_user = [_is_said(each) and each["role"] == "user" for each in contents]
    last = max((index for index, is_said in enumerate(said_by_user) if is_said), default=-1)
    for index, content in enumerate(contents):
        allow(content, "role", "parts")
        require(content["role"] in {"user", "model"}, "please use a valid role: user, model")
        require(content["parts"], "parts are empty")
        if content["role"] == "model":
            waiting = _check_model(content["parts"], is_present=index > last)
            continue
        answers = [p["functionResponse"] for p in content["parts"] if "functionResponse" in p]
        require(len(answers) >= len(waiting), "calls without a result")
        require(len(answers) == len(waiting), "a result without its call")
        for call, response in zip(waiting, answers, strict=True):
            allow(response, "id", "name", "response", "parts")
            require(response["name"] == call["name"], "a result without its call")
            require(response.get("id") == call.get("id"), "a result without its call")
            results.append(str(response["response"]["output"]))
            results += [_part(each) for each in response.get("parts", ())]
        waiting = []
        if _is_said(content):
            said = [part for part in content["parts"] if "functionResponse" not in part]
            text = "".join(part.get("text", "") for part in said)
            media = [_part(part) for part in said if "text" not in part]
            results = []
    require(not waiting, "calls without a result")
    tool, is_forced = _tools(body)
    thinking = config.get("thinkingConfig", {})
    allow(thinking, "thinkingBudget", "thinkingLevel", "includeThoughts")
    levels = {None, "MINIMAL", "LOW", "MEDIUM", "HIGH"}
    require(thinking.get("thinkingLevel") in levels, "no such level")
    return Question(
        text=text,
        results=tuple(results),
        tool=tool,
        is_forced=is_forced,
        media=tuple(media),
        schema=_format(config),
        thinks=thinking.get("thinkingLevel") is not None,
    )


def _is_said(content: Json) -> bool:
    return any("functionResponse" not in part for part in content["parts"])


def _check_model(parts: list[Json], *, is_present: bool) -> list[Json]:
    """Check the content of a model; in the present turn the first call must be signed."""
    calls = [part for part in parts if "functionCall" in part]
    for part in parts:
        allow(part, "text", "thought", "thoughtSignature", "functionCall")
        if "functionCall" in part:
            allow(part["functionCall"], "id", "name", "args")
            require(isinstance(part["functionCall"]["args"], dict), "args are not an object")
        if "thoughtSignature" in part:
            found = base64.urlsafe_b64decode(part["thoughtSignature"])
            signed = part["functionCall"]["args"] if "functionCall" in part else "text"
            require(found in {NO_SIGNATURE, base64.b64decode(_sign(signed))}, "corrupted signature")
    if calls and is_present:
        require("thoughtSignature" in calls[0], "function call is missing a thought_signature")
    return [part["functionCall"] for part in calls]


def _part(part: Json) -> str:
    if "inlineData" in part:
        allow(part["inlineData"], "data", "mimeType")
        require("/" in part["inlineData"]["mimeType"], "no media type")
        return base64.urlsafe_b64decode(part["inlineData"]["data"]).decode()
    require("fileData" in part, f"no such part: {part}")
    allow(part["fileData"], "fileUri", "mimeType")
    return str(part["fileData"]["fileUri"])


def _tools(body: Json) -> tuple[str | None, bool]:
    names = list[str]()
    for tool in body.get("tools", ()):
        allow(tool, "functionDeclarations")
        for declared in tool["functionDeclarations"]:
            allow(declared, "name", "description", "parametersJsonSchema")
            if "parametersJsonSchema" in declared:
                check_schema(declared["parametersJsonSchema"])
            names.append(declared["name"])
    config = body.get("toolConfig", {}).get("functionCallingConfig", {"mode": "AUTO"})
    require("toolConfig" not in body or names, "a tool config without tools")
    allow(config, "mode", "allowedFunctionNames")
    require(config["mode"] in {"AUTO", "ANY", "NONE"}, "no such mode")
    allowed = config.get("allowedFunctionNames", names)
    require(set(allowed) <= set(names), "no such function")
    return allowed[0] if names and config["mode"] != "NONE" else None, config["mode"] == "ANY"


def _format(config: Json) -> Json | None:
    schema: Json | None = config.get("responseJsonSchema")
    if schema is not None:
        require(config.get("responseMimeType") == "application/json", "no media type")
        check_schema(schema)
    return schema
