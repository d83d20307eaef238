"""Contract tests of a speech recogniser."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Event
from typing import final

from resilience import stt
from resilience.testing._contract_base import FOREIGN, UNREACHABLE, ProviderContract, skip
from resilience.testing._contract_calls import UNSUPPORTED, ProviderCall, fail, read_all
from resilience.testing._contract_values import check_value, fail_kind

_METHODS = ("send_audio", "partials", "finals", "set_keywords", "close")
_END = "transcripts must end after finish(), and when the session is closed or breaks off"


class STTProviderContract(ProviderContract[stt.Provider]):
    """Tests of a speech recogniser and its sessions: what `stt.Provider` promises.

    Derive a class from it, and override at least `make_provider` and `make_broken_provider`, and
    `audio` if the recogniser returns no words for silence.

    Attributes:
        config: A configuration that the provider of `make_provider()` supports.
        audio: Speech in that format, in pieces, for which it returns a final transcript; by default
            a second of silence, for a test server that returns a transcript for any audio.
        unsupported_configs: Configurations that it does not support.
    """

    __test__ = False

    config: stt.StreamConfig = stt.StreamConfig()
    audio: Sequence[bytes] = (bytes(3_200),) * 10
    unsupported_configs: Sequence[stt.StreamConfig] = ()

    def test_final_transcripts(self) -> None:
        """A session accepts audio, and its final transcripts end after `finish()`."""
        with self._working() as provider, self._session(provider) as session:
            (finals,) = self._transcribe(session, "finals")
            _check_finals(finals)

    def test_partial_transcripts(self) -> None:
        """Two threads can read partial and final transcripts while another one sends audio."""
        with self._working() as provider, self._session(provider) as session:
            partials, finals = self._transcribe(session, "partials", "finals")
            _check_transcripts(partials, "partials()", are_final=False)
            _check_finals(finals)

    def test_start_of_broken_provider_raises(self) -> None:
        """`start_stream()` raises if the provider cannot be reached."""
        with self._broken() as provider:
            call = self._start("start_stream()", lambda: provider.start_stream(self.config))
            call.check_failed(UNREACHABLE)

    def test_interrupted_session_raises(self) -> None:
        """Transcripts of a session that breaks off raise, and do not end as if complete."""
        with self._interrupted() as provider, self._session(provider) as session:
            partials, finals = self._read(session, "partials", "finals")
            self._start("send_audio()", lambda: self._send(session)).error()
            finals.call.check_failed("the session broke off")
            if partials.call.error() is not None or partials.call.result():
                partials.call.check_failed("the session broke off")  # unless it has none at all

    def test_close_ends_transcripts(self) -> None:
        """Any thread can close a session, and the transcripts end in the threads that wait."""
        with self._working() as provider, self._session(provider) as session:
            readings = self._read(session, "partials", "finals")
            self._call("close() while others wait for transcripts", session.close)
            for reading in readings:
                reading.call.result()

    def test_close_twice(self) -> None:
        """Closing a session again does nothing, and the provider still works afterwards."""
        with self._working() as provider:
            with self._session(provider) as session:
                self._call("close()", session.close)
                self._call("the second close()", session.close)
            operation = "a session after another one was closed"
            _check_finals(self._call(operation, lambda: self._converse(provider)))

    def test_sessions_are_independent(self) -> None:
        """A session works while another one is open."""
        with self._working() as provider, self._session(provider):
            operation = "a session while another one is open"
            _check_finals(self._call(operation, lambda: self._converse(provider)))

    def test_sessions_in_several_threads(self) -> None:
        """Several threads can have sessions at the same time."""
        with self._working() as provider:
            for finals in self._call_in_threads("a session", lambda: self._converse(provider)):
                _check_finals(finals)

    def test_set_keywords(self) -> None:
        """`set_keywords()` works, or raises that it is not supported."""
        keywords = (stt.Keyword(text="hello"),)
        with self._working() as provider, self._session(provider) as session:
            call = self._start("set_keywords()", lambda: session.set_keywords(keywords))
            if not isinstance(call.error(), UNSUPPORTED):
                call.result()

    def test_unsupported_configs(self) -> None:
        """A configuration that is not supported raises `UnsupportedRequestError`."""
        with self._working() as provider:
            for config in self.unsupported_configs or skip("unsupported_configs"):
                call = self._start("start_stream()", partial(provider.start_stream, config))
                call.check_unsupported("one of `unsupported_configs`")

    def test_extra_of_other_vendors_is_ignored(self) -> None:
        """Data of another vendor in `extra` is ignored."""
        config = replace(self.config, extra=FOREIGN)
        with self._working() as provider:
            session = self._call(
                "start_stream() with `extra` of another vendor",
                lambda: provider.start_stream(config),
            )
            self._call("close()", session.close)

    def test_finished_sessions_leave_nothing(self) -> None:
        """A session that was read to its end and closed leaves no thread and no connection."""
        with self._working() as provider:
            self._check_leftovers("a session to its end", lambda: self._converse(provider))

    def test_closed_sessions_leave_nothing(self) -> None:
        """A session that is closed early leaves no thread and no connection."""
        with self._working() as provider:
            self._check_leftovers(
                "a session closed early", lambda: provider.start_stream(self.config).close()
            )

    def test_failed_sessions_leave_nothing(self) -> None:
        """A session that cannot be started leaves no thread and no connection."""
        with self._broken() as provider:
            self._check_leftovers(
                "start_stream() that failed", lambda: provider.start_stream(self.config)
            )

    def test_interrupted_sessions_leave_nothing(self) -> None:
        """A session that broke off and was closed leaves no thread and no connection."""
        with self._interrupted() as provider:
            self._check_leftovers("a session that broke off", lambda: self._converse(provider))

    @contextmanager
    def _session(self, provider: stt.Provider) -> Generator[stt.SessionHandle, None, None]:
        session = self._call("start_stream()", lambda: provider.start_stream(self.config))
        missing = [name for name in _METHODS if not callable(getattr(session, name, None))]
        if missing:
            fail_kind(session, f"a session with {', '.join(missing)}", "start_stream()")
        with self._finally("close()", session.close):
            yield session

    def _read(self, session: stt.SessionHandle, *names: str) -> list["_Reading"]:
        return [_Reading(session, name, self.time_limit) for name in names]

    def _transcribe(self, session: stt.SessionHandle, *names: str) -> list[list[stt.Transcript]]:
        """Send all audio, and return all transcripts of each of these methods."""
        readings = self._read(session, *names)
        self._call("send_audio()", lambda: self._send(session))
        finish = getattr(session, "finish", None)
        if finish is not None:
            self._call("finish()", finish)
        elif readings[-1].has_text.wait(self.time_limit):
            self._call("close()", session.close)
        else:
            fail(
                f"finals() has given no text after {self.time_limit:g} s: set `audio` to speech of"
                " which the recogniser makes a transcript, or give its sessions a finish()"
            )
        return [reading.call.result() for reading in readings]

    def _send(self, session: stt.SessionHandle) -> None:
        for piece in self.audio:
            session.send_audio(piece)

    def _converse(self, provider: stt.Provider) -> list[stt.Transcript]:
        """Use a session in one thread, and return its finals; without `finish()`, the first."""
        session = provider.start_stream(self.config)
        try:
            self._send(session)
            finish = getattr(session, "finish", None)
            if finish is None:
                return read_all(_until_text(session.finals()), "finals()")
            finish()
            return read_all(session.finals(), "finals()")
        finally:
            session.close()


@final
class _Reading:
    """Transcripts of a session, which are read in a thread of their own."""

    def __init__(self, session: stt.SessionHandle, name: str, limit: float) -> None:
        self._open: Callable[[], Iterable[stt.Transcript]] = getattr(session, name)
        self._operation = f"{name}()"
        self.has_text = Event()  # or has ended
        self.call = ProviderCall(self._operation, self._read, limit, _END)

    def _read(self) -> list[stt.Transcript]:
        try:
            return read_all(self._watch(self._open()), self._operation)
        finally:
            self.has_text.set()

    def _watch(self, transcripts: Iterable[stt.Transcript]) -> Iterator[stt.Transcript]:
        for transcript in transcripts:
            if _has_text(transcript):
                self.has_text.set()
            yield transcript


def _until_text(transcripts: Iterable[stt.Transcript]) -> Iterator[stt.Transcript]:
    for transcript in transcripts:
        yield transcript
        if _has_text(transcript):
            return


def _has_text(transcript: object) -> bool:
    return bool(getattr(transcript, "text", ""))


def _check_finals(values: Sequence[object]) -> None:
    _check_transcripts(values, "finals()", are_final=True)
    if not any(_has_text(value) for value in values):
        fail(
            "finals() ended without a transcript that has text: if the session is broken, raise"
            " instead; else set `audio` to speech of which the recogniser makes a transcript"
        )


def _check_transcripts(values: Sequence[object], operation: str, *, are_final: bool) -> None:
    for value in values:
        transcript = check_value(value, stt.Transcript, operation)
        if transcript.is_final is not are_final:
            fail(f"{operation} gave is_final={transcript.is_final}: set it to {are_final}")
        confidences = [transcript.confidence, *(word.confidence for word in transcript.words)]
        if not all(0 <= confidence <= 1 for confidence in confidences if confidence is not None):
            fail(f"{operation} gave the confidences {confidences}: they are from 0 to 1, or None")
