"""A whole turn of a spoken conversation without faults: every word of question and answer."""

from contextlib import ExitStack, closing

import pytest

from integration.conversation import SUCCEEDED, Assistant, check_words
from integration.programs import Flite, Pocketsphinx, PocketsphinxProcess
from integration.servers import serve
from integration.speech import answer_of, speak
from integration.speech_vendors import SPEAKERS, MakeSpeaker, deepgram_recogniser
from integration.vendors import AnthropicModel, OpenAIModel

PATIENCE = 30.0


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])
@pytest.mark.parametrize("make_speaker", SPEAKERS)
@pytest.mark.parametrize("models", [OpenAIModel, AnthropicModel])
def test_healthy_primaries_serve(
    parts: ExitStack,
    models: type[OpenAIModel | AnthropicModel],
    make_speaker: MakeSpeaker,
    *,
    lazy: bool,
    streaming: bool,
) -> None:
    """With the clients of three vendors, a turn loses no word and no byte."""
    address = parts.enter_context(serve()).address
    ears = parts.enter_context(deepgram_recogniser(address, PATIENCE))
    model = parts.enter_context(closing(models(address, "primary", timeout=PATIENCE, lazy=lazy)))
    speaker = parts.enter_context(make_speaker(address, PATIENCE))
    assistant = Assistant(
        ears=(ears, Pocketsphinx()),
        model=(model, model),
        voice=(speaker.provider, Flite()),
        own_voice=speaker.voice,
    )

    turn = assistant.take_turn(streaming=streaming)

    check_words(turn, "primary")
    assert turn.errors == ()
    assert turn.audio == speak(answer_of("primary"))
    served = [("primary", SUCCEEDED)]
    assert assistant.attempts == {"stt": served, "llm": served, "tts": served}


def test_healthy_programs_serve(parts: ExitStack) -> None:
    """With a recogniser and a synthesiser in child processes, a turn loses no word."""
    address = parts.enter_context(serve()).address
    model = parts.enter_context(closing(OpenAIModel(address, "primary", timeout=PATIENCE)))
    ears = parts.enter_context(closing(PocketsphinxProcess()))
    voice = parts.enter_context(closing(Flite()))
    assistant = Assistant(ears=(ears, Pocketsphinx()), model=(model, model), voice=(voice, Flite()))

    turn = assistant.take_turn()

    check_words(turn, "primary")
    assert turn.errors == ()
    served = [("primary", SUCCEEDED)]
    assert assistant.attempts == {"stt": served, "llm": served, "tts": served}
