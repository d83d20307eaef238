"""The ready-made speech providers, with the vendors' clients for a server on this machine.

The clients do not retry, and have a timeout for each read.
"""

import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias, final

import httpx
import openai
from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment
from elevenlabs.client import ElevenLabs

from integration.speech import SAMPLE_RATE
from resilience import stt, tts
from resilience.providers.deepgram import DeepgramSTT, DeepgramTTS
from resilience.providers.elevenlabs import ElevenLabsTTS
from resilience.providers.openai import OpenAITTS

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading them is slow


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A synthesiser, and its own voice that corresponds to the voice "slt"."""

    provider: tts.Provider
    voice: tts.VoiceProfile


MakeSpeaker: TypeAlias = Callable[[str, float], AbstractContextManager[Speaker]]
"""Makes a speaker for an address, with a timeout in seconds."""


@contextmanager
def deepgram_recogniser(address: str, timeout: float) -> Iterator[stt.Provider]:
    """Yield a recogniser; the timeout applies to the transcripts after `finish()`."""
    with _http(timeout) as client:
        yield DeepgramSTT(_deepgram(address, client), "nova-3", timeout=timeout)


@contextmanager
def deepgram_speaker(address: str, timeout: float) -> Iterator[Speaker]:
    """Yield a speaker."""
    voice = tts.VoiceProfile(id="flite-slt-en", language="en-US", sample_rate=SAMPLE_RATE)
    with _http(timeout) as client:
        yield Speaker(provider=DeepgramTTS(_deepgram(address, client)), voice=voice)


@contextmanager
def elevenlabs_speaker(address: str, timeout: float) -> Iterator[Speaker]:
    """Yield a speaker."""
    voice = tts.VoiceProfile(id="slt", language="en-US", sample_rate=SAMPLE_RATE)
    with _http(timeout) as client:
        vendor = ElevenLabs(
            api_key="-", base_url=f"http://{address}", timeout=timeout, httpx_client=client
        )
        yield Speaker(provider=ElevenLabsTTS(vendor, "eleven_flash_v2_5"), voice=voice)


@contextmanager
def openai_speaker(address: str, timeout: float) -> Iterator[Speaker]:
    """Yield a speaker, whose client does not report the sample rate."""
    with openai.OpenAI(
        api_key="-", base_url=f"http://{address}/v1", timeout=timeout, max_retries=0
    ) as client:
        provider = OpenAITTS(client, "gpt-4o-mini-tts")
        yield Speaker(provider=provider, voice=tts.VoiceProfile(id="slt"))


SPEAKERS = (deepgram_speaker, elevenlabs_speaker, openai_speaker)


def _http(timeout: float) -> httpx.Client:
    return httpx.Client(timeout=timeout, verify=NO_CERTIFICATES)


def _deepgram(address: str, client: httpx.Client) -> DeepgramClient:
    url = f"ws://{address}"
    environment = DeepgramClientEnvironment(
        base=f"http://{address}", production=url, agent=url, agent_rest=url
    )
    return DeepgramClient(api_key="-", environment=environment, httpx_client=client, max_retries=0)
