"""The contracts: immutable values, and protocols that need no inheritance."""

import copy
import inspect
import pickle
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from resilience import CircuitBreaker, LLMFallback, STTFallback, TTSFallback, llm, stt, tts
from resilience.testing import FakeLLM, FakeSTT, FakeTTS

CALL = llm.ToolCall(id="call-1", name="weather", arguments='{"city": "Oslo"}')
MESSAGE = llm.Message(role="user", content="Is it raining?")
WORD = stt.Word(text="rain", start=0.5, duration=0.25, confidence=0.9)
VOICE = tts.VoiceProfile(id="slt", name="Slt", language="en-US", sample_rate=16_000)

VALUES = [
    CALL,
    MESSAGE,
    WORD,
    VOICE,
    llm.ToolDefinition(name="weather", description="Tells it.", parameters={"type": "object"}),
    llm.CompletionRequest(messages=(MESSAGE,), temperature=0.5, max_tokens=10, stop=("\n",)),
    llm.Usage(prompt_tokens=3, completion_tokens=4),
    llm.CompletionResponse(content="Yes.", tool_calls=(CALL,), finish_reason="stop"),
    llm.Chunk(content="Yes", usage=llm.Usage(prompt_tokens=3)),
    llm.ModelCapabilities(context_window=8192, max_output_tokens=1024, supports_tools=True),
    stt.Keyword(text="rain", boost=2.0),
    stt.StreamConfig(language="en-US", keywords=(stt.Keyword(text="rain"),)),
    stt.Transcript(text="rain", is_final=True, words=(WORD,)),
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
    """Each public class is one of the values or one of the protocols of this test."""
    known = {type(value) for value in VALUES} | set(PROTOCOLS)

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
def test_a_value_is_final(value: object) -> None:
    """The class of a value is final."""
    assert getattr(type(value), "__final__", False)


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_survives_copying(value: object) -> None:
    """A value that was pickled or copied equals the first, and has the same `repr`."""
    for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301
        assert twin == value
        assert repr(twin) == repr(value)


@pytest.mark.parametrize(
    "value",
    [value for value in VALUES if not isinstance(value, llm.ToolDefinition)],
    ids=name_of,
)
def test_a_value_can_be_a_key(value: object) -> None:
    """A value is hashable, except for one with a JSON schema."""
    assert {value: 1}[copy.deepcopy(value)] == 1


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (llm.ToolDefinition(name="f"), {"name": "f", "description": "", "parameters": {}}),
        (
            llm.Message(role="user"),
            {"role": "user", "content": "", "name": None, "tool_calls": (), "tool_call_id": None},
        ),
        (
            llm.CompletionRequest(messages=()),
            {"messages": (), "tools": (), "temperature": None, "max_tokens": None, "stop": ()},
        ),
        (llm.Usage(), {"prompt_tokens": 0, "completion_tokens": 0}),
        (
            llm.CompletionResponse(),
            {"content": "", "tool_calls": (), "finish_reason": None, "usage": None},
        ),
        (llm.Chunk(), {"content": "", "tool_calls": (), "finish_reason": None, "usage": None}),
        (
            llm.ModelCapabilities(context_window=1),
            {
                "context_window": 1,
                "max_output_tokens": None,
                "supports_tools": False,
                "supports_vision": False,
                "supports_streaming": True,
            },
        ),
        (stt.Keyword(text="t"), {"text": "t", "boost": 1.0}),
        (
            stt.StreamConfig(),
            {"sample_rate": 16_000, "channels": 1, "language": None, "keywords": ()},
        ),
        (
            stt.Word(text="t", start=1.0, duration=2.0),
            {"text": "t", "start": 1.0, "duration": 2.0, "confidence": None},
        ),
        (
            stt.Transcript(text="t"),
            {
                "text": "t",
                "is_final": False,
                "confidence": None,
                "start": 0.0,
                "duration": 0.0,
                "words": (),
            },
        ),
        (
            tts.VoiceProfile(id="v"),
            {"id": "v", "name": "", "language": None, "sample_rate": None},
        ),
    ],
    ids=name_of,
)
def test_a_value_has_defaults(value: object, content: dict[str, object]) -> None:
    """Optional fields have these defaults."""
    assert arguments(value) == content


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_a_value_needs_what_has_no_default(value: object) -> None:
    """A value cannot be made without a field that has no default."""
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
    """The total of a usage is the sum of its parts."""
    assert llm.Usage(prompt_tokens=3, completion_tokens=4).total_tokens == 7


def test_roles() -> None:
    """The roles of a message are system, user, assistant and tool."""
    assert typing.get_args(llm.Role) == ("system", "user", "assistant", "tool")


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
    """A provider without the methods that serve is refused, and named with them."""
    with pytest.raises(TypeError, match=rf"primary must have {methods}, got Client\(\)"):
        adapter(Client(), "client")

    group = adapter(provider(), "0")
    with pytest.raises(TypeError, match=rf"provider must have {methods}, got Client\(\)"):
        group.add_fallback("client", Client())
    assert list(group.breakers) == ["0"]


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
    """Its `repr` says in which state each provider is."""
    assert repr(adapter) == text
