"""The contracts: immutable values, and protocols that need no inheritance."""

import copy
import inspect
import pickle
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields, is_dataclass, replace
from itertools import pairwise
from types import MappingProxyType, ModuleType
from typing import Any

import pytest

from resilience import (
    AllFailedError,
    FallbackConfig,
    LLMFallback,
    STTFallback,
    TTSFallback,
    UnsupportedRequestError,
    llm,
    stt,
    tts,
)
from resilience.testing import FakeLLM, FakeSTT, FakeTTS

EXTRA = {"north": {"signature": ["c2ln"]}}
SCHEMA = {"type": "object", "required": ["city"]}
CALL = llm.ToolCall(id="call-1", name="weather", arguments='{"city": "Oslo"}', extra=EXTRA)
TOOL = llm.ToolDefinition(name="weather", description="Tells it.", parameters=SCHEMA, extra=EXTRA)
PICTURE = llm.Media(media_type="image/png", data=b"\x89PNG", name="sky.png")
MESSAGE = llm.Message(
    role="user", content="Is it raining?", attachments=(PICTURE,), reasoning="Clouds.", extra=EXTRA
)
WORD = stt.Word(text="rain", start=0.5, duration=0.25, confidence=0.9, speaker="A")
VOICE = tts.VoiceProfile(
    id="slt", name="Slt", language="en-US", encoding="mp3", speed=1.5, pitch=-2.0, extra=EXTRA
)

VALUES = [
    CALL,
    TOOL,
    PICTURE,
    MESSAGE,
    WORD,
    VOICE,
    llm.CompletionRequest(
        messages=(MESSAGE,),
        tools=(TOOL,),
        tool_choice="weather",
        response_format=SCHEMA,
        temperature=0.5,
        max_tokens=10,
        stop=("\n",),
        extra=EXTRA,
    ),
    llm.Usage(prompt_tokens=3, completion_tokens=4),
    llm.CompletionResponse(
        content="Yes.", tool_calls=(CALL,), reasoning="Clouds.", provider="north", extra=EXTRA
    ),
    llm.Chunk(content="Yes", usage=llm.Usage(prompt_tokens=3), model="large", extra=EXTRA),
    llm.ModelCapabilities(context_window=8192, max_output_tokens=1024, supports_tools=True),
    stt.Keyword(text="rain", boost=2.0),
    stt.StreamConfig(
        encoding="mulaw",
        language="en-US",
        keywords=(stt.Keyword(text="rain"),),
        interim_results=False,
        extra=EXTRA,
    ),
    stt.Transcript(
        text="rain", is_final=True, words=(WORD,), ends_utterance=True, channel=1, extra=EXTRA
    ),
]
PROTOCOLS = [llm.Provider, stt.Provider, stt.SessionHandle, tts.Provider]
MEMBERS = [
    pytest.param(protocol, name, id=f"{protocol.__module__}.{protocol.__name__}.{name}")
    for protocol in PROTOCOLS
    for name in sorted(protocol.__abstractmethods__)
]


def public_classes(module: ModuleType) -> set[type[object]]:
    """Return the public classes that a module defines."""
    return {
        item
        for name, item in vars(module).items()
        if inspect.isclass(item) and item.__module__ == module.__name__ and name[0] != "_"
    }


def name_of(item: object) -> str:
    """Name a class, or the class of a value, with its module."""
    class_ = item if isinstance(item, type) else type(item)
    return f"{class_.__module__}.{class_.__name__}"


def arguments(value: object) -> dict[str, object]:
    """Return the fields of a value by name."""
    assert is_dataclass(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}


@pytest.mark.parametrize("module", [llm, stt, tts], ids=lambda module: module.__name__)
def test_every_class_is_tested(module: ModuleType) -> None:
    """Each public class is a value, a protocol or the exception of this test."""
    known = {type(value) for value in VALUES} | set(PROTOCOLS) | {llm.ContextWindowExceededError}

    assert public_classes(module) <= known


# ---- values


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_cannot_change(value: object) -> None:
    """No field of a value can be set or deleted."""
    for name, content in arguments(value).items():
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, content)
        with pytest.raises(FrozenInstanceError):
            delattr(value, name)


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_has_slots(value: object) -> None:
    """A value has no dictionary, so no attribute can be added."""
    assert not hasattr(value, "__dict__")
    assert "__slots__" in vars(type(value))


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_takes_keywords_only(value: object) -> None:
    """The fields of a value are given by name, and never by position."""
    content = arguments(value)

    assert type(value)(**content) == value
    with pytest.raises(TypeError, match="positional"):
        type(value)(*content.values())


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_may_be_subclassed(value: object) -> None:
    """A frozen dataclass that derives from a value has its fields and its behaviour."""
    class_ = type(value)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Own(class_):  # type: ignore[misc, valid-type]
        trace: str = ""

    own: Any = Own(**arguments(value), trace="t-1")

    assert not getattr(class_, "__final__", False)
    assert issubclass(type(own), class_)
    assert arguments(own) == {**arguments(value), "trace": "t-1"}
    assert replace(own, trace="t-2") != own
    assert {own: 1}[copy.deepcopy(own)] == 1
    with pytest.raises(FrozenInstanceError):
        own.trace = "t-2"


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_survives_copying(value: object) -> None:
    """A value that was pickled or copied equals the first, and has the same `repr`."""
    for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301
        assert twin == value
        assert repr(twin) == repr(value)


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_can_be_a_key(value: object) -> None:
    """A value is hashable, even with a JSON schema or `extra`."""
    assert {value: 1}[copy.deepcopy(value)] == 1


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_needs_what_has_no_default(value: object) -> None:
    """A value cannot be made without its required fields."""
    class_: type[object] = type(value)
    assert is_dataclass(value)
    needed = [
        field.name
        for field in fields(value)
        if field.default is MISSING and field.default_factory is MISSING
    ]

    for name in needed:
        content = arguments(value)
        del content[name]
        with pytest.raises(TypeError, match=name):
            class_(**content)


def test_tools_share_no_schema() -> None:
    """Two tools without parameters do not share an empty mapping."""
    one, other = llm.ToolDefinition(name="one"), llm.ToolDefinition(name="other")

    assert one.parameters is not other.parameters


def test_total_tokens_are_those_of_request_and_answer() -> None:
    """Cached tokens and reasoning are included in the two, and not counted again."""
    usage = llm.Usage(
        prompt_tokens=3,
        completion_tokens=4,
        cache_read_tokens=2,
        cache_write_tokens=1,
        reasoning_tokens=3,
    )

    assert usage.total_tokens == 7


def test_roles() -> None:
    """The roles of a message are system, developer, user, assistant and tool."""
    assert typing.get_args(llm.Role) == ("system", "developer", "user", "assistant", "tool")


@pytest.mark.parametrize(
    "value",
    [value for value in VALUES if "extra" in arguments(value)],
    ids=name_of,
)
def test_extra_is_compared_but_neither_hashed_nor_shown(value: Any) -> None:  # noqa: ANN401
    """Values with other `extra` are not equal, but have the same hash and `repr`."""
    other = replace(value, extra=MappingProxyType({"south": [object()]}))

    assert other != value
    assert hash(other) == hash(value)
    assert repr(other) == repr(value)
    assert "extra" not in repr(value)


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (llm.ToolDefinition(name="f", parameters=SCHEMA), "parameters"),
        (llm.CompletionRequest(messages=(), response_format=SCHEMA), "response_format"),
    ],
    ids=name_of,
)
def test_a_schema_is_compared_and_shown(value: Any, schema: str) -> None:  # noqa: ANN401
    """A JSON schema takes part in comparisons and in the `repr`, but not in the hash."""
    other = replace(value, **{schema: {}})

    assert other != value
    assert hash(other) == hash(value)
    assert repr(SCHEMA) in repr(value)


@pytest.mark.parametrize(
    ("data", "uri", "found"), [(None, None, "neither"), (b"", "https://pictures.test/sky", "both")]
)
def test_media_has_one_source(data: bytes | None, uri: str | None, found: str) -> None:
    """A file has either data, which may be empty, or a URI."""
    with pytest.raises(ValueError, match=rf"^media must have either data or uri, got {found}$"):
        llm.Media(media_type="image/png", data=data, uri=uri)

    assert llm.Media(media_type="text/plain", data=b"").uri is None
    assert llm.Media(media_type="text/plain", uri="file-1").data is None


def test_the_data_of_media_are_not_shown() -> None:
    """The `repr` of a request is readable, however large its pictures are."""
    assert repr(PICTURE) == "Media(media_type='image/png', uri=None, name='sky.png')"


def test_an_answer_can_be_appended_to_the_next_request() -> None:
    """The message of an answer has all data that its vendor must get back."""
    answer = llm.CompletionResponse(
        content="Let me look.",
        tool_calls=(CALL,),
        reasoning="I need the weather.",
        finish_reason="tool_calls",
        extra=EXTRA,
    )

    assert answer.message == llm.Message(
        role="assistant",
        content="Let me look.",
        tool_calls=(CALL,),
        reasoning="I need the weather.",
        extra=EXTRA,
    )


def test_a_refusal_is_the_content_of_its_message() -> None:
    """The refusal is the content of the message, unless the answer has content."""
    refused = llm.CompletionResponse(refusal="I cannot help.")

    assert refused.message == llm.Message(role="assistant", content="I cannot help.")
    assert replace(refused, content="Sorry.").message.content == "Sorry."


def test_a_request_that_is_too_long_fails_over() -> None:
    """`ContextWindowExceededError` never counts and always fails over, whatever the settings."""
    large = FakeLLM("All of it.")
    config = FallbackConfig(fallback_on=lambda _: False)
    model = LLMFallback(FakeLLM(llm.ContextWindowExceededError("9000 tokens")), "small", config)
    model.add_fallback("large", large)

    answers = [model.complete(llm.CompletionRequest(messages=(MESSAGE,))) for _ in range(9)]

    assert {answer.content for answer in answers} == {"All of it."}
    assert model.breakers["small"].state.value == "closed"


def test_the_window_error_survives() -> None:
    """`ContextWindowExceededError` is rebuilt by `pickle` and `copy`, with its message."""
    error = llm.ContextWindowExceededError("9000 tokens")

    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert type(twin) is llm.ContextWindowExceededError
        assert isinstance(twin, UnsupportedRequestError)
        assert twin.args == ("9000 tokens",)


# ---- which chunks are empty


@pytest.mark.parametrize(
    "chunk",
    [
        llm.Chunk(content="Rain."),
        llm.Chunk(tool_calls=(CALL,)),
        llm.Chunk(reasoning="Clouds."),
        llm.Chunk(refusal="No."),
        llm.Chunk(finish_reason="stop"),
        llm.Chunk(usage=llm.Usage()),
    ],
    ids=["content", "tool_calls", "reasoning", "refusal", "finish_reason", "usage"],
)
def test_a_chunk_with_something_in_it_commits(chunk: llm.Chunk) -> None:
    """A chunk with any of these fields commits to its provider."""
    model = LLMFallback(FakeLLM([llm.Chunk(), chunk, llm.Chunk()]), "north")

    stream = model.stream_completion(llm.CompletionRequest(messages=()))

    assert list(stream) == [chunk, llm.Chunk()]


def test_a_chunk_with_nothing_in_it_is_empty() -> None:
    """Model, id and `extra` alone do not make a chunk: the stream fails over."""
    model = LLMFallback(FakeLLM([llm.Chunk(model="large", id="1", extra=EXTRA)]), "north")

    with pytest.raises(AllFailedError, match="EmptyStreamError"):
        model.stream_completion(llm.CompletionRequest(messages=()))


# ---- protocols


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        (llm.Provider, {"complete", "stream_completion", "count_tokens", "capabilities"}),
        (stt.Provider, {"start_stream"}),
        (stt.SessionHandle, {"send_audio", "partials", "finals", "set_keywords", "close"}),
        (tts.Provider, {"synthesize_stream", "list_voices", "clone_voice"}),
    ],
    ids=name_of,
)
def test_a_protocol_has_its_methods(protocol: type[object], names: set[str]) -> None:
    """Every public member of a protocol is abstract."""
    public = {name for name in vars(protocol) if not name.startswith("_")}

    assert inspect.isabstract(protocol)
    assert getattr(protocol, "__abstractmethods__", None) == public == names


@pytest.mark.parametrize(("protocol", "missing"), MEMBERS)
def test_a_provider_without_a_method_cannot_be_made(protocol: type[object], missing: str) -> None:
    """A class that inherits a protocol and lacks one of its methods has no instances."""
    names = getattr(protocol, "__abstractmethods__", frozenset[str]())
    whole = type("Whole", (protocol,), dict.fromkeys(names, lambda _: None))
    partial = type("Partial", (protocol,), dict.fromkeys(names - {missing}, lambda _: None))

    assert isinstance(whole(), whole)
    with pytest.raises(TypeError, match=missing):
        partial()


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=name_of)
def test_a_protocol_is_for_type_checkers(protocol: type[object]) -> None:
    """`isinstance` with a protocol raises `TypeError`."""
    with pytest.raises(TypeError, match="runtime_checkable"):
        isinstance(object(), protocol)


class Duck:
    """A model, recogniser and synthesiser in one, which inherits from nothing."""

    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        """Repeat the last message."""
        return llm.CompletionResponse(content=request.messages[-1].content)

    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        """Repeat the last message."""
        yield llm.Chunk(content=request.messages[-1].content, finish_reason="stop")

    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        """Count messages."""
        return len(messages)

    def capabilities(self) -> llm.ModelCapabilities:
        """Return small capabilities."""
        return llm.ModelCapabilities(context_window=1)

    def start_stream(self, config: stt.StreamConfig) -> stt.SessionHandle:
        """Start a session in the language of the configuration."""
        return DuckSession(config.language or "")

    def synthesize_stream(self, text: Iterable[str], voice: tts.VoiceProfile) -> list[bytes]:
        """Return the text as audio."""
        return [voice.id.encode(), *(fragment.encode() for fragment in text)]

    def list_voices(self) -> list[tts.VoiceProfile]:
        """Return one voice."""
        return [VOICE]

    def clone_voice(self, samples: Sequence[bytes]) -> tts.VoiceProfile:
        """Name the new voice after the first sample."""
        return tts.VoiceProfile(id=samples[0].decode())


class DuckSession:
    """A session, which inherits from nothing."""

    def __init__(self, text: str) -> None:
        """Return the same text for any audio."""
        self._text = text

    def send_audio(self, audio: bytes) -> None:
        """Ignore the audio."""

    def partials(self) -> list[stt.Transcript]:
        """Return no transcript."""
        return []

    def finals(self) -> tuple[stt.Transcript, ...]:
        """Return one transcript."""
        return (stt.Transcript(text=self._text, is_final=True),)

    def set_keywords(self, keywords: Sequence[stt.Keyword]) -> None:
        """Ignore the keywords."""

    def close(self) -> None:
        """Do nothing."""


def test_a_model_need_not_inherit() -> None:
    """A class that has a language model's methods is one."""
    provider: llm.Provider = Duck()
    model = LLMFallback(provider, "duck")
    request = llm.CompletionRequest(messages=(MESSAGE,))

    assert model.complete(request).content == MESSAGE.content
    assert [chunk.content for chunk in model.stream_completion(request)] == [MESSAGE.content]
    assert model.count_tokens([MESSAGE]) == 1
    assert model.capabilities().context_window == 1


def test_a_recogniser_need_not_inherit() -> None:
    """A class that has a recogniser's methods is one, and so is its session."""
    provider: stt.Provider = Duck()
    session = STTFallback(provider, "duck").start_stream(stt.StreamConfig(language="en"))

    session.send_audio(b"\0\0")
    session.set_keywords([stt.Keyword(text="rain")])
    heard = list(session.partials()), [transcript.text for transcript in session.finals()]
    session.close()

    assert heard == ([], ["en"])


def test_a_synthesiser_need_not_inherit() -> None:
    """A class that has a synthesiser's methods is one."""
    provider: tts.Provider = Duck()
    synthesiser = TTSFallback(provider, "duck")

    assert list(synthesiser.synthesize_stream(["Hello", "."], VOICE)) == [b"slt", b"Hello", b"."]
    assert list(synthesiser.list_voices()) == [VOICE]
    assert synthesiser.clone_voice([b"new"]).id == "new"


class Client:
    """A client of a vendor, which a user passes by mistake instead of a provider."""

    def __repr__(self) -> str:
        """Return a short text."""
        return "Client()"


@pytest.mark.parametrize(
    ("adapter", "provider", "methods"),
    [
        (LLMFallback, FakeLLM, r"complete and stream_completion\(\)"),
        (STTFallback, FakeSTT, r"start_stream\(\)"),
        (TTSFallback, FakeTTS, r"synthesize_stream\(\)"),
    ],
)
def test_an_adapter_checks_its_providers(
    adapter: Callable[[object, str], Any], provider: Callable[[], object], methods: str
) -> None:
    """A provider without the main methods is refused; the error names its class and the methods."""
    with pytest.raises(TypeError, match=rf"primary must have {methods}, got Client\(\)"):
        adapter(Client(), "client")

    group = adapter(provider(), "0")
    with pytest.raises(TypeError, match=rf"provider must have {methods}, got Client\(\)"):
        group.add_fallback("client", Client())
    assert list(group.breakers) == ["0"]


@pytest.mark.parametrize(
    ("adapter", "provider"),
    [(LLMFallback, FakeLLM()), (STTFallback, FakeSTT()), (TTSFallback, FakeTTS())],
)
def test_errors_about_arguments(adapter: type[Any], provider: object) -> None:
    """An error about a missing argument does not name the base of the adapters."""
    with pytest.raises(TypeError, match=r"__init__\(\) missing") as made:
        adapter(provider)
    with pytest.raises(TypeError, match=r"add_fallback\(\) missing") as added:
        adapter(provider, "0").add_fallback("1")

    assert "Adapter" not in f"{made.value} {added.value}"


def test_an_adapter_names_only_what_is_missing() -> None:
    """The error does not name the methods that the provider has."""

    class HalfModel:
        complete = Duck.complete

    with pytest.raises(TypeError, match=r"primary must have stream_completion\(\), got"):
        LLMFallback(HalfModel(), "half")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("adapter", "methods"),
    [(LLMFallback, ("complete", "stream_completion")), (TTSFallback, ("synthesize_stream",))],
)
def test_other_methods_are_optional(
    adapter: Callable[[object, str], Any], methods: tuple[str, ...]
) -> None:
    """A provider without the other methods of its contract is accepted."""
    provider = type("Partial", (), {name: getattr(Duck, name) for name in methods})()

    assert list(adapter(provider, "partial").breakers) == ["partial"]


# ---- type hints and docstrings


@pytest.mark.parametrize("class_", [*map(type, VALUES), *PROTOCOLS], ids=name_of)
def test_types_can_be_read_at_run_time(class_: type[object]) -> None:
    """The annotations of every class and of its methods can be evaluated."""
    hints = typing.get_type_hints(class_, include_extras=True)

    assert set(hints) == (
        {field.name for field in fields(class_)} if is_dataclass(class_) else set()
    )
    for name in getattr(class_, "__abstractmethods__", ()):
        method = getattr(class_, name)
        expected = set(inspect.signature(method).parameters) - {"self"} | {"return"}
        assert set(typing.get_type_hints(method)) == expected


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_every_field_is_described(value: object) -> None:
    """The docstring of a value describes each field, in the order of the fields."""
    doc = inspect.getdoc(type(value)) or ""

    places = [doc.find(f"\n    {name}: ") for name in arguments(value)]

    assert "\nAttributes:\n" in doc
    assert places[0] > 0
    assert all(before < after for before, after in pairwise(places))


@pytest.mark.parametrize(("protocol", "name"), MEMBERS)
def test_every_method_is_described(protocol: type[object], name: str) -> None:
    """The docstring of a method describes each parameter, and the result if there is one."""
    method = getattr(protocol, name)
    doc = inspect.getdoc(method) or ""
    signature = inspect.signature(method)

    for parameter in list(signature.parameters)[1:]:
        assert f"\n    {parameter}: " in doc
    assert ("\nReturns:\n" in doc) is (signature.return_annotation is not None)


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (LLMFallback(FakeLLM(), "a"), "<LLMFallback 'a' closed>"),
        (STTFallback(FakeSTT(), "b"), "<STTFallback 'b' closed>"),
        (TTSFallback(FakeTTS(), "c"), "<TTSFallback 'c' closed>"),
    ],
    ids=["LLM", "STT", "TTS"],
)
def test_an_adapter_shows_its_breakers(adapter: object, text: str) -> None:
    """The `repr` of an adapter has the state of each provider."""
    assert repr(adapter) == text
