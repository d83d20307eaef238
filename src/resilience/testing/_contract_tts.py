"""Contract tests of a speech synthesiser."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from threading import Event
from typing import final

from typing_extensions import override

from resilience import tts
from resilience.testing._contract_base import FOREIGN, UNREACHABLE, skip
from resilience.testing._contract_calls import UNSUPPORTED, fail, read_all
from resilience.testing._contract_streams import StreamContract
from resilience.testing._contract_values import check_iterable, check_value

_PAUSE = 0.05  # seconds


class TTSProviderContract(StreamContract[tts.Provider, bytes]):
    """Tests of a speech synthesiser: what `tts.Provider` promises.

    Derive a class from it, and override at least `make_provider` and `make_broken_provider`, and
    `voice` if the provider does not have the voice "default".

    Attributes:
        voice: A voice that the provider of `make_provider()` has.
        text: The text to speak, in fragments.
        unsupported_voices: Voices with settings that the provider does not support.
        samples: Recordings for `clone_voice()`; if empty, the test of this method is skipped. The
            test makes a voice, and does not delete it.
    """

    __test__ = False
    _method = "synthesize_stream()"
    _items = "bytes"

    voice: tts.VoiceProfile = tts.VoiceProfile(id="default")
    text: Sequence[str] = ("Good ", "morning ", "to you.")
    unsupported_voices: Sequence[tts.VoiceProfile] = ()
    samples: Sequence[bytes] = ()

    @override
    def _open(self, provider: tts.Provider) -> Iterable[bytes]:
        return provider.synthesize_stream(iter(self.text), self.voice)

    def _speak(
        self, provider: tts.Provider, text: Iterator[str], voice: tts.VoiceProfile
    ) -> list[bytes]:
        return read_all(provider.synthesize_stream(text, voice), self._method)

    @override
    def _check_items(self, items: Sequence[object]) -> None:
        pieces = [check_value(item, bytes, f"an item of {self._method}") for item in items]
        if not any(pieces):
            fail(
                f"{self._method} ended without audio: raise instead, so that the group can fail"
                " over"
            )

    def test_text_that_comes_slowly(self) -> None:
        """A text is read to its end, once, even if fragments arrive slowly or are empty."""
        text = _SlowText(self.text)
        with self._working() as provider:
            audio = self._call(
                f"{self._method} of a text that comes slowly",
                lambda: text.end_after(self._speak(provider, text, self.voice)),
            )
        self._check_items(audio)
        if not text.was_read:
            fail(
                f"{self._method} ended before it had read the whole text: wait for the next"
                " fragment, however long it takes, and do not take an empty one for the end"
            )

    def test_text_that_fails(self) -> None:
        """If reading the text raises, the audio does not end as if it were complete."""
        with self._working() as provider:
            call = self._start(
                f"{self._method} of a text that raises",
                lambda: self._speak(provider, _failing(self.text), self.voice),
                "hand the exception of the text on, also if another thread reads it",
            )
            if call.error() is None:
                fail(
                    f"{self._method} ended as if it were whole, although reading the text raised:"
                    " raise the exception of the text"
                )

    def test_unsupported_voices(self) -> None:
        """A voice that the synthesiser does not support raises `UnsupportedRequestError`."""
        with self._working() as provider:
            for voice in self.unsupported_voices or skip("unsupported_voices"):
                call = self._start(
                    self._method, partial(self._speak, provider, iter(self.text), voice)
                )
                call.check_unsupported("one of `unsupported_voices`")

    def test_extra_of_other_vendors_is_ignored(self) -> None:
        """Data of another vendor in `extra` is ignored."""
        voice = replace(self.voice, extra=FOREIGN)
        with self._working() as provider:
            audio = self._call(
                f"{self._method} with `extra` of another vendor",
                lambda: self._speak(provider, iter(self.text), voice),
            )
        self._check_items(audio)

    def test_list_voices(self) -> None:
        """`list_voices()` returns voices, or raises that it is not supported."""
        with self._working() as provider:
            call = self._start("list_voices()", lambda: _list_voices(provider))
            if not isinstance(call.error(), UNSUPPORTED):
                _check_voices(call.result())

    def test_list_voices_of_broken_provider(self) -> None:
        """`list_voices()` returns no empty list if the provider cannot be reached."""
        with self._broken() as provider:
            call = self._start("list_voices()", lambda: _list_voices(provider))
            error = call.error()
            if error is None:
                _check_voices(call.result())
            elif not isinstance(error, UNSUPPORTED):
                call.check_failed(UNREACHABLE)

    def test_clone_voice(self) -> None:
        """`clone_voice()` returns a voice."""
        samples = self.samples or skip("samples")
        with self._working() as provider:
            voice = self._call("clone_voice()", lambda: provider.clone_voice(samples))
            check_value(voice, tts.VoiceProfile, "clone_voice()")


@final
class _SlowText(Iterator[str]):
    """A text whose fragments come slowly, each followed by an empty one."""

    def __init__(self, fragments: Iterable[str]) -> None:
        self._fragments = iter([part for fragment in fragments for part in (fragment, "")])
        self._audio_has_ended = Event()
        self._has_ended = False
        self.was_read = False

    @override
    def __next__(self) -> str:
        self._audio_has_ended.wait(_PAUSE)
        try:
            return next(self._fragments)
        except StopIteration:
            self._has_ended = True
            raise

    def end_after(self, audio: list[bytes]) -> list[bytes]:
        """Record whether the text was read when its audio had ended; return the audio."""
        self.was_read = self._has_ended
        self._audio_has_ended.set()
        return audio


def _failing(fragments: Iterable[str]) -> Iterator[str]:
    yield from fragments
    msg = "the text broke off"
    raise ConnectionError(msg)


def _list_voices(provider: tts.Provider) -> list[tts.VoiceProfile]:
    voices = provider.list_voices()
    check_iterable(voices, "VoiceProfile", "list_voices()")
    return read_all(voices, "list_voices()")


def _check_voices(voices: Sequence[tts.VoiceProfile]) -> None:
    for voice in voices:
        check_value(voice, tts.VoiceProfile, "list_voices()")
    if not voices:
        fail("list_voices() returned no voice: raise instead, so that the group can fail over")
