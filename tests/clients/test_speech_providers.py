"""Synthesis with the real clients of three vendors, against a server on this machine."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from clients.loopback import refuse
from clients.speech_servers import (
    PATIENCE,
    Reply,
    Request,
    SpeechServer,
    as_json,
    deepgram_client,
    http_client,
    serve,
)
from resilience import (
    AllFailedError,
    Attempt,
    AttemptTimeoutError,
    FallbackConfig,
    TTSFallback,
    UnsupportedRequestError,
    http,
    tts,
)
from resilience.providers import deepgram, elevenlabs, openai
from resilience.testing import FakeTTS

vendor_openai = pytest.importorskip("openai")
vendor_elevenlabs = pytest.importorskip("elevenlabs.client")

FIRST = "This sentence is long enough for a request. "
SECOND = "So is this one, which has to be twice as long as the first must be at least. "

Make = Callable[..., tts.Provider]


def make_deepgram(address: str, timeout: float = PATIENCE) -> tts.Provider:
    """Return a provider for Deepgram."""
    return deepgram.DeepgramTTS(deepgram_client(address, timeout=timeout))


def make_elevenlabs(
    address: str, timeout: float = PATIENCE, model: str = "eleven_flash_v2_5"
) -> tts.Provider:
    """Return a provider for ElevenLabs."""
    client = vendor_elevenlabs.ElevenLabs(
        api_key="-",
        base_url=f"http://{address}",
        timeout=timeout,
        httpx_client=http_client(timeout),
    )
    return elevenlabs.ElevenLabsTTS(client, model)


def make_openai(
    address: str, timeout: float = PATIENCE, model: str = "gpt-4o-mini-tts"
) -> tts.Provider:
    """Return a provider for OpenAI."""
    client = vendor_openai.OpenAI(
        api_key="-",
        base_url=f"http://{address}/v1",
        timeout=timeout,
        max_retries=0,
        http_client=vendor_openai.DefaultHttpxClient(trust_env=False),
    )
    return openai.OpenAITTS(client, model)


MAKE: dict[str, Make] = {
    "deepgram": make_deepgram,
    "elevenlabs": make_elevenlabs,
    "openai": make_openai,
}
VOICES = {
    "deepgram": tts.VoiceProfile(id="aura-2-thalia-en"),
    "elevenlabs": tts.VoiceProfile(id="JBFq"),
    "openai": tts.VoiceProfile(id="coral"),
}

with_each_vendor = pytest.mark.parametrize("vendor", MAKE)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect to this machine directly, whatever proxy the environment defines."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def text_of(request: Request) -> str:
    """Return the text that was to be spoken."""
    text = request.json.get("text", request.json.get("input"))
    assert isinstance(text, str)
    return text


def speak(server: SpeechServer, vendor: str, *text: str, **fields: object) -> bytes:
    """Return the audio of a text."""
    voice = replace(VOICES[vendor], **fields)  # type: ignore[arg-type]
    return b"".join(MAKE[vendor](server.address).synthesize_stream(text, voice))


# ---- the request


@pytest.mark.parametrize(
    ("fields", "query"),
    [
        ({}, {"encoding": "linear16", "container": "none", "sample_rate": "24000"}),
        (
            {"language": "en-GB", "sample_rate": 16_000, "encoding": "pcm_s16le", "speed": 1.25},
            {
                "encoding": "linear16",
                "container": "none",
                "sample_rate": "16000",
                "speed": "1.25",
            },
        ),
        (
            {"encoding": "mulaw"},
            {"encoding": "mulaw", "container": "none", "sample_rate": "8000"},
        ),
        ({"encoding": "wav"}, {"encoding": "linear16", "sample_rate": "24000"}),
        ({"encoding": "flac", "sample_rate": 8_000}, {"encoding": "flac", "sample_rate": "8000"}),
        ({"encoding": "opus", "sample_rate": 48_000}, {"encoding": "opus"}),
        (
            {"encoding": "mp3", "extra": {"deepgram": {"bit_rate": 48_000}, "openai": {"a": 1}}},
            {"encoding": "mp3", "bit_rate": "48000"},
        ),
    ],
)
def test_request_to_deepgram(fields: Mapping[str, object], query: Mapping[str, str]) -> None:
    """Every field of a voice is in the query, and the voice is the model."""
    with serve() as server:
        speak(server, "deepgram", "Rain.", **fields)

    (request,) = server.requests
    assert request.path == "/v1/speak"
    assert request.query == {"model": "aura-2-thalia-en", **query}
    assert request.json == {"text": "Rain."}


@pytest.mark.parametrize(
    ("fields", "output_format", "body"),
    [
        ({}, "pcm_24000", {}),
        (
            {"language": "de-CH", "sample_rate": 16_000, "speed": 1.125},
            "pcm_16000",
            {"language_code": "de", "voice_settings": {"speed": 1.125}},
        ),
        ({"encoding": "alaw"}, "alaw_8000", {}),
        ({"encoding": "mulaw", "sample_rate": 8_000}, "ulaw_8000", {}),
        ({"encoding": "mp3"}, "mp3_44100_128", {}),
        ({"encoding": "wav", "sample_rate": 48_000}, "wav_48000", {}),
        (
            {
                "encoding": "mp3",
                "speed": 0.875,
                "extra": {
                    "elevenlabs": {
                        "output_format": "mp3_44100_192",
                        "voice_settings": {"stability": 0.5},
                        "seed": 7,
                    },
                    "deepgram": {"seed": 8},
                },
            },
            "mp3_44100_192",
            {"voice_settings": {"speed": 0.875, "stability": 0.5}, "seed": 7},
        ),
    ],
)
def test_request_to_elevenlabs(
    fields: Mapping[str, object], output_format: str, body: Mapping[str, object]
) -> None:
    """Every field of a voice is in the query or in the body."""
    with serve() as server:
        speak(server, "elevenlabs", "Rain.", **fields)

    (request,) = server.requests
    assert request.path == "/v1/text-to-speech/JBFq/stream"
    assert request.query == {"output_format": output_format}
    assert request.json == {"text": "Rain.", "model_id": "eleven_flash_v2_5", **body}


def test_settings_of_elevenlabs_as_a_model() -> None:
    """The settings in `extra` may also be an object of the client."""
    settings = pytest.importorskip("elevenlabs").VoiceSettings(stability=0.5)
    with serve() as server:
        speak(
            server,
            "elevenlabs",
            "Rain.",
            speed=1.125,
            extra={"elevenlabs": {"voice_settings": settings}},
        )

    sent = server.requests[0].json["voice_settings"]
    assert {name: value for name, value in sent.items() if value is not None} == {
        "speed": 1.125,
        "stability": 0.5,
    }


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({}, {"response_format": "pcm"}),
        (
            {"sample_rate": 24_000, "speed": 2.0, "instructions": "Whisper."},
            {"response_format": "pcm", "speed": 2.0, "instructions": "Whisper."},
        ),
        ({"encoding": "opus", "sample_rate": 48_000}, {"response_format": "opus"}),
        (
            {"encoding": "mp3", "extra": {"openai": {"extra_body": {"lang": "en"}}}},
            {"response_format": "mp3", "lang": "en"},
        ),
    ],
)
def test_request_to_openai(fields: Mapping[str, object], body: Mapping[str, object]) -> None:
    """Every field of a voice is in the body."""
    with serve() as server:
        speak(server, "openai", "Rain.", **fields)

    (request,) = server.requests
    assert request.path == "/v1/audio/speech"
    assert request.json == {
        "input": "Rain.",
        "model": "gpt-4o-mini-tts",
        "voice": "coral",
        **body,
    }


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (make_deepgram, {"pitch": 2.0}, "deepgram does not support pitch=2.0"),
        (make_deepgram, {"speed": 1.75}, "deepgram does not support speed=1.75"),
        (make_deepgram, {"instructions": "Hiss."}, "deepgram .* instructions='Hiss.'"),
        (make_deepgram, {"language": "es"}, "aura-2-thalia-en does not support language='es'"),
        (make_deepgram, {"encoding": "mp4"}, "deepgram does not support encoding='mp4'"),
        (make_deepgram, {"sample_rate": 11_025}, "deepgram .* sample_rate=11025"),
        (make_deepgram, {"encoding": "mp3", "sample_rate": 8_000}, "deepgram .* sample_rate=8000"),
        (make_elevenlabs, {"pitch": -1.0}, "elevenlabs does not support pitch=-1.0"),
        (make_elevenlabs, {"speed": 0.5}, "elevenlabs does not support speed=0.5"),
        (make_elevenlabs, {"instructions": "Hiss."}, "elevenlabs .* instructions='Hiss.'"),
        (make_elevenlabs, {"encoding": "flac"}, "elevenlabs does not support encoding='flac'"),
        (make_elevenlabs, {"encoding": "mulaw", "sample_rate": 16_000}, "sample_rate=16000"),
        (
            lambda address: make_elevenlabs(address, model="eleven_multilingual_v2"),
            {"language": "en"},
            "eleven_multilingual_v2 does not support language='en'",
        ),
        (
            lambda address: make_elevenlabs(address, model="eleven_flash_v2"),
            {"language": "fr"},
            "eleven_flash_v2 does not support language='fr'",
        ),
        (make_openai, {"pitch": 1.0}, "openai does not support pitch=1.0"),
        (make_openai, {"speed": 4.5}, "openai does not support speed=4.5"),
        (make_openai, {"language": "en"}, "openai does not support language='en'"),
        (make_openai, {"encoding": "alaw"}, "openai does not support encoding='alaw'"),
        (make_openai, {"sample_rate": 16_000}, "openai does not support sample_rate=16000"),
        (
            lambda address: make_openai(address, model="tts-1-hd"),
            {"instructions": "Hiss."},
            "openai does not support instructions='Hiss.'",
        ),
    ],
)
def test_unsupported(make: Make, fields: Mapping[str, Any], message: str) -> None:
    """A value that a vendor does not support raises and is named; nothing is sent or read."""
    text = iter(["Rain."])
    with serve() as server:
        provider = make(server.address)
        vendor = next(name for name in MAKE if name in type(provider).__module__)
        with pytest.raises(UnsupportedRequestError, match=message):
            provider.synthesize_stream(text, replace(VOICES[vendor], **fields))

    assert server.requests == []
    assert list(text) == ["Rain."]


def test_an_english_model_speaks_english() -> None:
    """The language of a model with one language may be given."""
    with serve() as server:
        provider = make_elevenlabs(server.address, model="eleven_flash_v2")
        voice = tts.VoiceProfile(id="JBFq", language="en-US")

        assert list(provider.synthesize_stream(["Rain."], voice))

    assert server.requests[0].json["language_code"] == "en"


# ---- text and audio


@with_each_vendor
def test_sentences_are_sent_as_they_come(vendor: str) -> None:
    """The audio of the first sentence is returned before more text is read; none is lost."""
    read: list[str] = []

    def text() -> Iterator[str]:
        for word in (FIRST + SECOND).split():
            read.append(word)
            yield f"{word} "

    with serve(Reply(pieces=[b"first"]), Reply(pieces=[b"se", b"cond"])) as server:
        audio = iter(MAKE[vendor](server.address).synthesize_stream(text(), VOICES[vendor]))
        assert (next(audio), len(server.requests)) == (b"first", 1)
        assert read == FIRST.split()
        assert b"".join(audio) == b"second"

    assert [text_of(request) for request in server.requests] == [FIRST, SECOND]


@with_each_vendor
def test_a_file_is_asked_for_at_once(vendor: str) -> None:
    """With encodings whose files cannot be joined, the whole text is one request."""
    encoding = "opus" if vendor == "elevenlabs" else "flac"
    with serve() as server:
        assert speak(server, vendor, FIRST, SECOND, encoding=encoding) == b"\1\2\3\4"

    assert [text_of(request) for request in server.requests] == [FIRST + SECOND]


@with_each_vendor
@pytest.mark.parametrize("encoding", [None, "opus"])
def test_nothing_to_say(vendor: str, encoding: str | None) -> None:
    """For a text without a letter or a digit there is no request and no audio."""
    with serve() as server:
        assert speak(server, vendor, " ", "-- \n", "!? ", encoding=encoding) == b""

    assert server.requests == []


@with_each_vendor
def test_closing_early(vendor: str) -> None:
    """Closing the audio ends the vendor's response."""
    with serve(Reply(pieces=[b"\1" * 65_536], is_endless=True)) as server:
        audio = MAKE[vendor](server.address).synthesize_stream([FIRST], VOICES[vendor])
        assert next(iter(audio))
        audio.close()  # type: ignore[attr-defined]

        assert server.client_left.wait(PATIENCE)


# ---- faults


@with_each_vendor
@pytest.mark.parametrize(
    ("status", "is_fault", "may_succeed"),
    [
        (400, False, False),
        (401, True, True),
        (403, False, True),
        (429, True, True),
        (503, True, True),
    ],
)
def test_a_status(vendor: str, status: int, *, is_fault: bool, may_succeed: bool) -> None:
    """A status is raised, after one request, with the requested delay."""
    reply = Reply(
        status=status,
        headers={"Content-Type": "application/json", "Retry-After": "30"},
        pieces=[b'{"detail": "As told."}'],
    )
    with serve(reply) as server, pytest.raises(Exception, match=str(status)) as caught:
        speak(server, vendor, FIRST)

    assert http.is_provider_fault(caught.value) is is_fault
    assert http.may_succeed_elsewhere(caught.value) is may_succeed
    assert http.retry_after(caught.value) == 30.0
    assert len(server.requests) == 1


@with_each_vendor
@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(pieces=[]), "without audio"),
        (Reply(pieces=[b""], headers={"Content-Type": ""}), "without audio"),
        (Reply(headers={"Content-Type": "text/html; charset=utf-8"}), "answered with text/html"),
        (Reply(headers={"Content-Type": "application/json"}), "answered with application/json"),
    ],
)
def test_an_answer_that_is_no_audio(vendor: str, reply: Reply, message: str) -> None:
    """An empty answer, and the login page of a network, raise."""
    with serve(reply) as server, pytest.raises(ConnectionError, match=f"{vendor} .*{message}"):
        speak(server, vendor, FIRST)


@with_each_vendor
def test_a_later_sentence_without_audio(vendor: str) -> None:
    """A sentence without audio raises, also if it is not the first."""
    with serve(Reply(), Reply(pieces=[])) as server:
        audio = iter(
            MAKE[vendor](server.address).synthesize_stream([FIRST, SECOND], VOICES[vendor])
        )
        assert next(audio)

        with pytest.raises(ConnectionError, match="without audio"):
            b"".join(audio)


@with_each_vendor
@pytest.mark.parametrize("fault", ["cut", "silent"])
def test_audio_that_breaks_off(vendor: str, fault: str) -> None:
    """Audio that is cut off, or stops for longer than the timeout, raises after what arrived."""
    start = b"\1\2" * 512  # the client of ElevenLabs returns whole kilobytes
    reply = Reply(pieces=[start], is_cut=fault == "cut", is_silent=fault == "silent")
    with serve(reply) as server:
        provider = MAKE[vendor](server.address, timeout=PATIENCE if fault == "cut" else 0.2)
        audio = iter(provider.synthesize_stream([FIRST], VOICES[vendor]))
        assert next(audio) == start

        with pytest.raises(Exception, match=r"closed|timed out") as caught:
            next(audio)

    assert http.is_provider_fault(caught.value)


@with_each_vendor
def test_nobody_listens(vendor: str) -> None:
    """A refused connection fails over, with the whole text."""
    backup = FakeTTS()
    with refuse() as url:
        group = TTSFallback(MAKE[vendor](url.removeprefix("http://")), "primary")
        group.add_fallback("backup", backup)

        audio = b"".join(group.synthesize_stream(iter([FIRST, SECOND]), VOICES[vendor]))

    assert audio == (FIRST + SECOND).encode()
    assert backup.texts == [[FIRST, SECOND]]


@with_each_vendor
def test_silence(vendor: str) -> None:
    """A server that sends headers and no audio takes one `attempt_timeout`."""
    attempts: list[Attempt] = []
    config = FallbackConfig(attempt_timeout=0.2, on_attempt=attempts.append)
    with serve(Reply(pieces=[], is_silent=True)) as server:
        group = TTSFallback(MAKE[vendor](server.address), "primary", config)
        group.add_fallback("backup", FakeTTS([b"\5"]), attempt_timeout=PATIENCE)

        with group.synthesize_stream([FIRST], VOICES[vendor]) as audio:
            assert next(audio) == b"\5"

    assert isinstance(attempts[0].error, AttemptTimeoutError)


@with_each_vendor
def test_unsupported_moves_on(vendor: str) -> None:
    """A voice that one vendor does not support fails over, and does not count."""
    voice = replace(VOICES[vendor], pitch=2.0)
    with serve() as server:
        group = TTSFallback(MAKE[vendor](server.address), "primary")
        with pytest.raises(AllFailedError, match=f"{vendor} does not support pitch=2.0"):
            list(group.synthesize_stream([FIRST], voice))
        group.add_fallback("backup", FakeTTS([b"\5"]))

        assert list(group.synthesize_stream([FIRST], voice)) == [b"\5"]

    assert group.breakers["primary"].snapshot().consecutive_failures == 0


# ---- voices


def test_voices_of_deepgram() -> None:
    """The voices are the models for speech."""
    models = [
        {"name": "thalia", "canonical_name": "aura-2-thalia-en", "languages": ["en", "en-US"]},
        {"canonical_name": "aura-x"},
    ]
    with serve(as_json({"stt": [], "tts": models})) as server:
        voices = make_deepgram(server.address).list_voices()

    assert voices == (
        tts.VoiceProfile(id="aura-2-thalia-en", name="thalia", language="en"),
        tts.VoiceProfile(id="aura-x"),
    )


def test_no_voices_of_deepgram() -> None:
    """A list without models for speech raises."""
    with (
        serve(as_json({"stt": []})) as server,
        pytest.raises(ConnectionError, match="without voices"),
    ):
        make_deepgram(server.address).list_voices()


def test_voices_of_elevenlabs() -> None:
    """The voices of all pages are listed."""
    pages = [
        {"voices": [{"voice_id": "a", "name": "Anna"}], "has_more": True, "next_page_token": "t"},
        {"voices": [{"voice_id": "b"}], "has_more": False},
    ]
    with serve(*map(as_json, pages)) as server:
        voices = make_elevenlabs(server.address).list_voices()

    assert voices == (tts.VoiceProfile(id="a", name="Anna"), tts.VoiceProfile(id="b"))
    tokens = [request.query.get("next_page_token") for request in server.requests]
    assert tokens == [None, "t"]


def test_no_voices_of_elevenlabs() -> None:
    """A list without voices raises; a list whose next page has no token ends."""
    with (
        serve(as_json({"voices": [], "has_more": True})) as server,
        pytest.raises(ConnectionError, match="without voices"),
    ):
        make_elevenlabs(server.address).list_voices()

    assert len(server.requests) == 1


def test_a_list_of_voices_is_not_retried() -> None:
    """A failed list is one request: the client's own retries are disabled."""
    with serve(Reply(status=503)) as server, pytest.raises(Exception, match="503"):
        make_elevenlabs(server.address).list_voices()

    assert len(server.requests) == 1


def test_a_cloned_voice() -> None:
    """ElevenLabs makes a voice from recordings."""
    with serve(as_json({"voice_id": "c", "requires_verification": False})) as server:
        voice = make_elevenlabs(server.address).clone_voice([b"first", b"second"])

    assert voice.id == "c"
    (request,) = server.requests
    assert request.path == "/v1/voices/add"
    assert b"first" in request.body
    assert b"second" in request.body
    assert voice.name.encode() in request.body


def test_what_has_no_interface() -> None:
    """OpenAI cannot list voices, and OpenAI and Deepgram cannot clone voices."""
    with serve() as server:
        speaker = make_openai(server.address)
        calls: list[Callable[[], object]] = [
            speaker.list_voices,
            lambda: speaker.clone_voice([b"first"]),
            lambda: make_deepgram(server.address).clone_voice([b"first"]),
        ]
        for call in calls:
            with pytest.raises(UnsupportedRequestError):
                call()

    assert server.requests == []
