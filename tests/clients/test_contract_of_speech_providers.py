"""The ready-made speech providers pass the contract tests, with their vendors' clients."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

import pytest
from typing_extensions import override

from clients.loopback import refuse
from clients.speech_servers import (
    PATIENCE,
    Recogniser,
    Reply,
    as_json,
    deepgram_client,
    http_client,
    run,
    serve,
)
from resilience import stt, tts
from resilience.providers.deepgram import DeepgramSTT, DeepgramTTS
from resilience.providers.elevenlabs import ElevenLabsTTS
from resilience.providers.openai import OpenAITTS
from resilience.testing import STTProviderContract, TTSProviderContract

AUDIO = Reply(pieces=[b"\1\2" * 65_536] * 4)  # more than a client reads at once
VOICES = {
    "/v1/models": as_json({"stt": [], "tts": [{"name": "a", "canonical_name": "aura-a-en"}]}),
    "/v2/voices": as_json({"voices": [{"voice_id": "a", "name": "Anna"}], "has_more": False}),
    "/v1/voices/add": as_json({"voice_id": "c", "requires_verification": False}),
}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect to this machine directly, whatever proxy the environment defines."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class SynthesiserContract(TTSProviderContract):
    """The contract of one vendor's synthesiser."""

    __test__ = False

    text = (
        "This sentence is long enough for a request. ",
        "So is this one, which has to be twice as long as the first must be at least. ",
        "And ",
        "this.",
    )

    @pytest.fixture(autouse=True)
    def _run_servers(self) -> Iterator[None]:
        cut = replace(AUDIO, is_cut=True)
        self.clients: dict[tts.Provider, ExitStack] = {}
        with serve(AUDIO, by_path=VOICES) as working, serve(cut) as interrupted, refuse() as off:
            self.working, self.interrupted, self.off = working, interrupted, off
            yield
        assert self.clients == {}

    def make(self, address: str) -> AbstractContextManager[tts.Provider]:
        """Make a client for a server on this machine, and a provider for it."""
        raise NotImplementedError

    def _make(self, address: str) -> tts.Provider:
        with ExitStack() as stack:
            provider = stack.enter_context(self.make(address))
            self.clients[provider] = stack.pop_all()
        return provider

    @override
    def make_provider(self) -> tts.Provider:
        return self._make(self.working.address)

    @override
    def make_broken_provider(self) -> tts.Provider:
        return self._make(self.off.removeprefix("http://"))

    @override
    def make_interrupted_provider(self) -> tts.Provider:
        return self._make(self.interrupted.address)

    @override
    def close_provider(self, provider: tts.Provider) -> None:
        self.clients.pop(provider).close()

    @override
    def count_connections(self) -> int:
        return self.working.count_connections() + self.interrupted.count_connections()


class TestDeepgramTTS(SynthesiserContract):
    """The contract of Deepgram's synthesiser."""

    voice = tts.VoiceProfile(id="aura-2-thalia-en", language="en-US", speed=1.2)
    unsupported_voices = (
        replace(voice, pitch=1.0),
        replace(voice, speed=2.0),
        replace(voice, instructions="Hiss."),
        replace(voice, language="de"),
        replace(voice, encoding="mp4"),
        replace(voice, sample_rate=11_025),
    )

    @override
    @contextmanager
    def make(self, address: str) -> Iterator[tts.Provider]:
        with http_client(PATIENCE) as transport:
            yield DeepgramTTS(deepgram_client(address, transport=transport))


class TestDeepgramTTSFiles(TestDeepgramTTS):
    """The contract of Deepgram's synthesiser, with files that cannot be joined."""

    voice = replace(TestDeepgramTTS.voice, encoding="flac")


class TestElevenLabsTTS(SynthesiserContract):
    """The contract of the synthesiser of ElevenLabs."""

    voice = tts.VoiceProfile(id="a", language="de-CH", speed=1.1)
    unsupported_voices = (
        replace(voice, pitch=1.0),
        replace(voice, speed=2.0),
        replace(voice, instructions="Hiss."),
        replace(voice, encoding="flac"),
        replace(voice, sample_rate=11_025),
    )
    samples = (b"first", b"second")

    @override
    @contextmanager
    def make(self, address: str) -> Iterator[tts.Provider]:
        vendor = pytest.importorskip("elevenlabs.client")
        with http_client(PATIENCE) as transport:
            client = vendor.ElevenLabs(
                api_key="-", base_url=f"http://{address}", timeout=PATIENCE, httpx_client=transport
            )
            yield ElevenLabsTTS(client, "eleven_flash_v2_5")


class TestOpenAITTS(SynthesiserContract):
    """The contract of OpenAI's synthesiser."""

    voice = tts.VoiceProfile(id="coral", instructions="Speak kindly.", speed=2.0)
    unsupported_voices = (
        replace(voice, pitch=1.0),
        replace(voice, speed=5.0),
        replace(voice, language="en"),
        replace(voice, encoding="alaw"),
        replace(voice, sample_rate=16_000),
    )

    @override
    @contextmanager
    def make(self, address: str) -> Iterator[tts.Provider]:
        vendor = pytest.importorskip("openai")
        with (
            vendor.DefaultHttpxClient(trust_env=False) as transport,
            vendor.OpenAI(
                api_key="-",
                base_url=f"http://{address}/v1",
                timeout=PATIENCE,
                max_retries=0,
                http_client=transport,
            ) as client,
        ):
            yield OpenAITTS(client, "gpt-4o-mini-tts")


class TestDeepgramSTT(STTProviderContract):
    """The contract of Deepgram's recogniser."""

    config = stt.StreamConfig(language="en", keywords=(stt.Keyword(text="hello"),))
    unsupported_configs = (
        replace(config, encoding="wav"),
        replace(config, keywords=(stt.Keyword(text="hello", boost=2.0),)),
    )

    @pytest.fixture(autouse=True)
    def _run_servers(self) -> Iterator[None]:
        self.clients: dict[stt.Provider, ExitStack] = {}
        with run(Recogniser()) as working, run(Recogniser(is_cut=True)) as cut, refuse() as off:
            self.working, self.cut, self.off = working, cut, off
            yield
        assert self.clients == {}

    def _make(self, address: str) -> stt.Provider:
        stack = ExitStack()
        transport = stack.enter_context(http_client(PATIENCE))
        provider = DeepgramSTT(deepgram_client(address, transport=transport), "nova-3")
        self.clients[provider] = stack
        return provider

    @override
    def make_provider(self) -> stt.Provider:
        return self._make(self.working.address)

    @override
    def make_broken_provider(self) -> stt.Provider:
        return self._make(self.off.removeprefix("http://"))

    @override
    def make_interrupted_provider(self) -> stt.Provider:
        return self._make(self.cut.address)

    @override
    def close_provider(self, provider: stt.Provider) -> None:
        self.clients.pop(provider).close()

    @override
    def count_connections(self) -> int:
        return len(self.working.connections) + len(self.cut.connections)


class TestDeepgramSTTChannels(TestDeepgramSTT):
    """The contract of Deepgram's recogniser, with two channels and a detected language."""

    config = stt.StreamConfig(sample_rate=8_000, channels=2, encoding="mulaw", language=None)
