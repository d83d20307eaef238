"""What type checkers must accept, and must refuse, about providers; this is never run."""

from collections.abc import Iterator
from typing import assert_type

import anthropic
import openai
from google import genai

from resilience import LLMFallback, llm
from resilience.providers.anthropic import AnthropicLLM
from resilience.providers.google import GoogleLLM
from resilience.providers.openai import OpenAILLM

# the clients as they are

first = OpenAILLM(openai.OpenAI(), "gpt", vendor="openai", max_tokens_field="max_tokens")
azure = OpenAILLM(openai.AzureOpenAI(), "gpt", developer_role="system")
second = AnthropicLLM(anthropic.Anthropic(), "claude", max_tokens=1000)
third = GoogleLLM(genai.Client(), "gemini", capabilities=llm.ModelCapabilities(context_window=8192))

# providers as any other

provider: llm.Provider = first
model = LLMFallback(first, "first")
model.add_fallback("second", second)
model.add_fallback("third", third)
request = llm.CompletionRequest(messages=())
assert_type(first.complete(request), llm.CompletionResponse)
assert_type(second.stream_completion(request), Iterator[llm.Chunk])
assert_type(third.count_tokens(()), int)

# the client of another vendor

OpenAILLM(anthropic.Anthropic(), "claude")  # type: ignore[arg-type]
AnthropicLLM(genai.Client(), "gemini")  # type: ignore[arg-type]
OpenAILLM(openai.OpenAI(), model=1)  # type: ignore[arg-type]
AnthropicLLM(anthropic.Anthropic(), "claude", llm.ModelCapabilities(context_window=1))  # type: ignore[call-arg]
