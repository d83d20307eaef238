"""Whole turns while the server of one primary has each of the faults."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing

import pytest

from integration.conversation import (
    CANCELLED,
    SUCCEEDED,
    Assistant,
    check_failover,
    check_second_try,
    check_words,
)
from integration.programs import Flite, Pocketsphinx
from integration.servers import IN_THE_MIDDLE, SILENCES, Fault, Server, serve
from integration.speech import answer_of, speak
from integration.speech_vendors import SPEAKERS, MakeSpeaker, deepgram_recogniser
from integration.vendors import AnthropicModel, OpenAIModel

PATIENCE = 30.0  # seconds, long enough never to be needed
IMPATIENCE = 0.4  # seconds, for a server that never sends anything
SOME_PATIENCE = 1.5  # seconds, for a server that stops sending after its first output

FAULTS = [fault for fault in Fault if fault is not Fault.NONE]
EARLY = [fault for fault in FAULTS if fault not in IN_THE_MIDDLE]
LATE = [fault for fault in FAULTS if fault in IN_THE_MIDDLE]
HANDSHAKE = [fault for fault in FAULTS if fault.value <= Fault.SERVER_ERROR.value]
# An empty session is no fault after `finish()`.
SESSION = [fault for fault in FAULTS if fault not in {*HANDSHAKE, Fault.HTML, Fault.EMPTY}]

with_each_model = pytest.mark.parametrize("models", [OpenAIModel, AnthropicModel])
with_each_speaker = pytest.mark.parametrize("make_speaker", SPEAKERS)
lazy_or_eager = pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])


def with_each(faults: Sequence[Fault]) -> pytest.MarkDecorator:
    """Run a test for each of some faults."""
    return pytest.mark.parametrize("fault", faults, ids=lambda fault: fault.name.lower())


def patience(fault: Fault) -> float:
    """Return the timeout that a client needs."""
    if fault not in SILENCES:
        return PATIENCE
    return SOME_PATIENCE if fault in IN_THE_MIDDLE else IMPATIENCE


def check_requests(server: Server) -> None:
    """The client has sent at most one request, since there are no retries."""
    if server.fault in {Fault.REFUSED, *SILENCES}:
        assert server.requests <= (server.fault is not Fault.REFUSED)
    else:
        assert server.requests == 1


@pytest.fixture(scope="module")
def primary_model() -> Iterator[OpenAIModel]:
    """A healthy model."""
    with (
        serve() as server,
        closing(OpenAIModel(server.address, "primary", timeout=PATIENCE)) as model,
    ):
        yield model


@pytest.fixture(scope="module")
def backup_model() -> Iterator[AnthropicModel]:
    """Another healthy model."""
    with (
        serve() as server,
        closing(AnthropicModel(server.address, "backup", timeout=PATIENCE)) as model,
    ):
        yield model


@with_each(EARLY)
@lazy_or_eager
@with_each_model
def test_a_model_that_says_nothing_loses_no_turn(
    parts: ExitStack,
    backup_model: AnthropicModel,
    models: type[OpenAIModel | AnthropicModel],
    fault: Fault,
    *,
    lazy: bool,
) -> None:
    """If a stream breaks before its first chunk, the backup answers, without an error."""
    server = parts.enter_context(serve(fault))
    model = parts.enter_context(
        closing(models(server.address, "primary", timeout=patience(fault), lazy=lazy))
    )
    assistant = Assistant(model=(model, backup_model))

    turn = assistant.take_turn()

    check_words(turn, "backup")
    check_failover(assistant, "llm", turn)
    check_requests(server)


@with_each(FAULTS)
@with_each_model
def test_a_model_without_a_whole_answer_loses_no_turn(
    parts: ExitStack,
    backup_model: AnthropicModel,
    models: type[OpenAIModel | AnthropicModel],
    fault: Fault,
) -> None:
    """If an answer in one piece breaks anywhere, the backup answers, without an error."""
    server = parts.enter_context(serve(fault))
    model = parts.enter_context(closing(models(server.address, "primary", timeout=patience(fault))))
    assistant = Assistant(model=(model, backup_model))

    turn = assistant.take_turn(streaming=False)

    check_words(turn, "backup")
    check_failover(assistant, "llm", turn)
    check_requests(server)


@with_each(LATE)
@lazy_or_eager
@with_each_model
def test_a_model_that_breaks_off_is_told_once(
    parts: ExitStack,
    backup_model: AnthropicModel,
    models: type[OpenAIModel | AnthropicModel],
    fault: Fault,
    *,
    lazy: bool,
) -> None:
    """A stream that breaks after its first chunk is not continued; no synthesiser has failed."""
    address = parts.enter_context(serve(fault)).address
    model = parts.enter_context(
        closing(models(address, "primary", timeout=patience(fault), lazy=lazy))
    )
    assistant = Assistant(model=(model, backup_model))

    turn = assistant.take_turn()

    check_words(turn, "backup")
    check_second_try(assistant, "llm", turn)
    assert assistant.attempts["tts"] == [("primary", CANCELLED), ("primary", SUCCEEDED)]


@with_each(EARLY)
@with_each_speaker
def test_a_synthesiser_without_audio_loses_no_turn(
    parts: ExitStack,
    primary_model: OpenAIModel,
    make_speaker: MakeSpeaker,
    fault: Fault,
) -> None:
    """If speech breaks before its first audio, the backup speaks it from the beginning."""
    server = parts.enter_context(serve(fault))
    speaker = parts.enter_context(make_speaker(server.address, patience(fault)))
    assistant = Assistant(
        model=(primary_model, primary_model),
        voice=(speaker.provider, Flite()),
        own_voice=speaker.voice,
    )

    turn = assistant.take_turn()

    check_words(turn, "primary")
    assert turn.audio == speak(answer_of("primary"), "rms")
    check_failover(assistant, "tts", turn)
    check_requests(server)


@with_each(LATE)
@with_each_speaker
def test_a_synthesiser_that_breaks_off_is_told_once(
    parts: ExitStack,
    primary_model: OpenAIModel,
    make_speaker: MakeSpeaker,
    fault: Fault,
) -> None:
    """Speech that breaks after its first audio is not continued; the backup speaks it again."""
    address = parts.enter_context(serve(fault)).address
    speaker = parts.enter_context(make_speaker(address, patience(fault)))
    assistant = Assistant(
        model=(primary_model, primary_model),
        voice=(speaker.provider, Flite()),
        own_voice=speaker.voice,
    )

    turn = assistant.take_turn()

    check_words(turn, "primary")
    assert turn.audio == speak(answer_of("primary"), "rms")
    check_second_try(assistant, "tts", turn)
    assert assistant.attempts["llm"] == [("primary", SUCCEEDED), ("primary", SUCCEEDED)]


@with_each(HANDSHAKE)
def test_a_recogniser_that_starts_no_session_loses_no_turn(
    parts: ExitStack, primary_model: OpenAIModel, fault: Fault
) -> None:
    """If a session cannot be started, the backup starts it, without an error."""
    server = parts.enter_context(serve(fault))
    ears = parts.enter_context(deepgram_recogniser(server.address, PATIENCE))
    assistant = Assistant(
        ears=(ears, Pocketsphinx()),
        model=(primary_model, primary_model),
        # Its client has a time limit of ten seconds for a handshake, which cannot be changed.
        attempt_timeout={"stt": IMPATIENCE} if fault in SILENCES else {},
    )

    turn = assistant.take_turn()

    check_words(turn, "primary")
    check_failover(assistant, "stt", turn)
    check_requests(server)


@with_each(SESSION)
def test_a_recogniser_whose_session_dies_is_told_once(
    parts: ExitStack, primary_model: OpenAIModel, fault: Fault
) -> None:
    """A session that breaks after its start has failed; the backup serves the next one."""
    address = parts.enter_context(serve(fault)).address
    ears = parts.enter_context(deepgram_recogniser(address, patience(fault)))
    assistant = Assistant(ears=(ears, Pocketsphinx()), model=(primary_model, primary_model))

    turn = assistant.take_turn()

    check_words(turn, "primary")
    check_second_try(assistant, "stt", turn)
