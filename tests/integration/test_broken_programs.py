"""Whole turns while the program of one primary is missing, killed or stopped."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from time import monotonic

import pytest
from typing_extensions import override

from integration.conversation import (
    CANCELLED,
    FAILED,
    SUCCEEDED,
    Assistant,
    check_failover,
    check_second_try,
    check_words,
)
from integration.programs import Fault, Flite, ModelServer, Pocketsphinx, PocketsphinxProcess
from integration.servers import serve
from integration.speech import answer_of, speak
from integration.vendors import OpenAIModel
from resilience import llm

PATIENCE = 30.0  # seconds, long enough never to be needed
ATTEMPT_TIMEOUT = 1.0

lazy_or_eager = pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])


@pytest.fixture(scope="module")
def backup_model() -> Iterator[OpenAIModel]:
    """A healthy model."""
    with (
        serve() as server,
        closing(OpenAIModel(server.address, "backup", timeout=PATIENCE)) as model,
    ):
        yield model


@pytest.mark.parametrize("fault", [Fault.MISSING, Fault.KILLED_AT_START])
@lazy_or_eager
def test_a_synthesiser_that_is_gone_loses_no_turn(
    parts: ExitStack, backup_model: OpenAIModel, fault: Fault, *, lazy: bool
) -> None:
    """If a program is missing or killed before its first audio, the backup speaks."""
    voice = parts.enter_context(closing(Flite(fault, lazy=lazy)))
    assistant = Assistant(model=(backup_model, backup_model), voice=(voice, Flite()))

    turn = assistant.take_turn()

    check_words(turn, "backup")
    assert turn.audio == speak(answer_of("backup"), "rms")
    check_failover(assistant, "tts", turn)


@lazy_or_eager
def test_a_synthesiser_killed_in_mid_sentence_is_told_once(
    parts: ExitStack, backup_model: OpenAIModel, *, lazy: bool
) -> None:
    """Speech that is cut off is not continued; on the second attempt the backup speaks it."""
    voice = parts.enter_context(closing(Flite(Fault.KILLED_IN_THE_MIDDLE, lazy=lazy)))
    assistant = Assistant(model=(backup_model, backup_model), voice=(voice, Flite()))

    turn = assistant.take_turn()

    check_words(turn, "backup")
    assert turn.audio == speak(answer_of("backup"), "rms")
    check_second_try(assistant, "tts", turn)
    assert isinstance(turn.errors[0], ChildProcessError)


@pytest.mark.parametrize("fault", [Fault.MISSING, Fault.KILLED_AT_START])
def test_a_recogniser_that_is_gone_loses_no_turn(
    parts: ExitStack, backup_model: OpenAIModel, fault: Fault
) -> None:
    """If a program is missing or killed before its session starts, the backup recognises."""
    ears = parts.enter_context(closing(PocketsphinxProcess(fault)))
    assistant = Assistant(ears=(ears, Pocketsphinx()), model=(backup_model, backup_model))

    turn = assistant.take_turn()

    check_words(turn, "backup")
    check_failover(assistant, "stt", turn)


def test_a_recogniser_killed_in_its_session_is_told_once(
    parts: ExitStack, backup_model: OpenAIModel
) -> None:
    """A session whose program is killed has failed, and the backup serves the next one."""
    ears = parts.enter_context(closing(PocketsphinxProcess(Fault.KILLED_IN_THE_MIDDLE)))
    assistant = Assistant(ears=(ears, Pocketsphinx()), model=(backup_model, backup_model))

    turn = assistant.take_turn()

    check_words(turn, "backup")
    check_second_try(assistant, "stt", turn)
    assert isinstance(turn.errors[0], BrokenPipeError)


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "whole"])
@lazy_or_eager
def test_a_model_whose_server_is_killed_loses_no_turn(
    parts: ExitStack, backup_model: OpenAIModel, *, lazy: bool, streaming: bool
) -> None:
    """If the server of a model is killed, the backup answers, without an error for the caller."""
    server = parts.enter_context(closing(ModelServer("primary")))
    model = parts.enter_context(
        closing(OpenAIModel(server.address, "primary", timeout=PATIENCE, lazy=lazy))
    )
    assistant = Assistant(model=(model, backup_model))
    before = assistant.take_turn(streaming=streaming)

    server.close()
    turn = assistant.take_turn(streaming=streaming)

    check_words(before, "primary")
    check_words(turn, "backup")
    assert before.errors == turn.errors == ()
    assert assistant.attempts["llm"] == [
        *[("primary", SUCCEEDED), ("primary", FAILED), ("backup", SUCCEEDED)]
    ]


class KilledModel(llm.Provider):
    """A model whose server is killed after the first chunk of a long answer."""

    def __init__(self, model: llm.Provider, server: ModelServer) -> None:
        """Wrap a model whose server is killed."""
        self._model = model
        self._server = server

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        twenty_seconds = replace(request, max_tokens=1_000)
        for chunk in self._model.stream_completion(twenty_seconds):
            self._server.close()
            yield chunk

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        raise NotImplementedError

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        raise NotImplementedError

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        raise NotImplementedError


def test_a_model_whose_server_is_killed_in_mid_sentence_is_told_once(
    parts: ExitStack, backup_model: OpenAIModel
) -> None:
    """A stream that is cut off is not continued, and no failure of a synthesiser is counted."""
    server = parts.enter_context(closing(ModelServer("primary")))
    model = parts.enter_context(closing(OpenAIModel(server.address, "primary", timeout=PATIENCE)))
    assistant = Assistant(model=(KilledModel(model, server), backup_model))

    turn = assistant.take_turn()

    check_words(turn, "backup")
    check_second_try(assistant, "llm", turn)
    assert assistant.attempts["tts"] == [("primary", CANCELLED), ("primary", SUCCEEDED)]


@lazy_or_eager
def test_a_stopped_synthesiser_costs_one_timeout(
    parts: ExitStack, backup_model: OpenAIModel, *, lazy: bool
) -> None:
    """A stopped child process is abandoned after the limit, and the backup speaks every word."""
    voice = parts.enter_context(closing(Flite(Fault.STOPPED, lazy=lazy)))
    assistant = Assistant(
        model=(backup_model, backup_model),
        voice=(voice, Flite()),
        attempt_timeout={"tts": ATTEMPT_TIMEOUT},
    )

    begin = monotonic()
    turn = assistant.take_turn()
    took = monotonic() - begin

    check_words(turn, "backup")
    assert turn.audio == speak(answer_of("backup"), "rms")
    check_failover(assistant, "tts", turn)
    assert ATTEMPT_TIMEOUT <= took < PATIENCE


def test_a_stopped_recogniser_costs_one_timeout(
    parts: ExitStack, backup_model: OpenAIModel
) -> None:
    """A child process that is stopped before its session starts is abandoned after the limit."""
    ears = parts.enter_context(closing(PocketsphinxProcess(Fault.STOPPED)))
    assistant = Assistant(
        ears=(ears, Pocketsphinx()),
        model=(backup_model, backup_model),
        attempt_timeout={"stt": ATTEMPT_TIMEOUT},
    )

    begin = monotonic()
    turn = assistant.take_turn()
    took = monotonic() - begin

    check_words(turn, "backup")
    check_failover(assistant, "stt", turn)
    assert ATTEMPT_TIMEOUT <= took < PATIENCE
