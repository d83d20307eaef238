"""Uses of providers that type checkers must accept or reject; this is never run."""

from collections.abc import Iterator
from typing import assert_type

import anthropic
import openai
from deepgram import DeepgramClient
from elevenlabs import ElevenLabs
from google import genai

from resilience import LLMFallback, STTFallback, TTSFallback, llm, stt, tts
from resilience.providers.anthropic import AnthropicLLM
from resilience.providers.deepgram import DeepgramSession, DeepgramSTT, DeepgramTTS
from resilience.providers.elevenlabs import ElevenLabsTTS
from resilience.providers.google import GoogleLLM
from resilience.providers.openai import OpenAILLM, OpenAITTS

# the clients as they are

first = OpenAILLM(openai.OpenAI(), "gpt", vendor="openai", max_tokens_field="max_tokens")
azure = OpenAILLM(openai.AzureOpenAI(), "gpt", developer_role="system")
second = AnthropicLLM(anthropic.Anthropic(), "claude", max_tokens=1000)
third = GoogleLLM(genai.Client(), "gemini", capabilities=llm.ModelCapabilities(context_window=8192))
recogniser = DeepgramSTT(DeepgramClient(api_key="-"), "nova-3", timeout=5)
speaker = DeepgramTTS(DeepgramClient(api_key="-"))
voice = ElevenLabsTTS(ElevenLabs(api_key="-"), "eleven_flash_v2_5")
last = OpenAITTS(openai.OpenAI(), "gpt-4o-mini-tts")

# providers as any other

provider: llm.Provider = first
model = LLMFallback(first, "first")
model.add_fallback("second", second)
model.add_fallback("third", third)
request = llm.CompletionRequest(messages=())
assert_type(first.complete(request), llm.CompletionResponse)
assert_type(second.stream_completion(request), Iterator[llm.Chunk])
assert_type(third.count_tokens(()), int)
ears = STTFallback(recogniser, "deepgram")
speech = TTSFallback(speaker, "deepgram")
speech.add_fallback("elevenlabs", voice)
speech.add_fallback("openai", last)
heard: stt.Provider = recogniser
said: tts.Provider = last
assert_type(recogniser.start_stream(stt.StreamConfig()), DeepgramSession)
assert_type(last.synthesize_stream((), tts.VoiceProfile(id="coral")), Iterator[bytes])

# the client of another vendor

OpenAILLM(anthropic.Anthropic(), "claude")  # type: ignore[arg-type]
AnthropicLLM(genai.Client(), "gemini")  # type: ignore[arg-type]
OpenAILLM(openai.OpenAI(), model=1)  # type: ignore[arg-type]
AnthropicLLM(anthropic.Anthropic(), "claude", llm.ModelCapabilities(context_window=1))  # type: ignore[call-arg]
DeepgramSTT(ElevenLabs(api_key="-"), "nova-3")  # type: ignore[arg-type]
DeepgramTTS(openai.OpenAI())  # type: ignore[arg-type]
ElevenLabsTTS(DeepgramClient(api_key="-"), "eleven_flash_v2_5")  # type: ignore[arg-type]
OpenAITTS(anthropic.Anthropic(), "gpt-4o-mini-tts")  # type: ignore[arg-type]
