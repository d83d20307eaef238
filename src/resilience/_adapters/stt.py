"""A group of speech recognisers with the interface of one."""

from datetime import timedelta
from typing import final

from typing_extensions import override

from resilience import stt
from resilience._adapters.base import Adapter
from resilience._adapters.session import Session, close_in_context
from resilience._failover.attempts import Call, no_error, refuse_result
from resilience._failover.config import FallbackConfig

_SESSION = ("send_audio", "partials", "finals", "set_keywords", "close")


@final
class STTFallback(Adapter[stt.Provider], stt.Provider):
    """Speech recognisers behind one `stt.Provider`: the first healthy one recognises.

    May be used by any number of threads, if the providers may.
    """

    _required = ("start_stream",)

    def __init__(
        self,
        primary: stt.Provider,
        primary_name: str,
        config: FallbackConfig | None = None,
        *,
        attempt_timeout: float | timedelta | None = None,
    ) -> None:
        """Make a group of one recogniser; the arguments are those of `FallbackGroup`."""
        super().__init__(primary, primary_name, config, attempt_timeout=attempt_timeout)

    @override
    def start_stream(self, config: stt.StreamConfig) -> Session:
        """Start a session with the first provider that can.

        The life of the session is one call to the provider's breaker. It failed if sending audio
        or reading transcripts raised, and succeeded if it was closed otherwise; so close it.

        Args:
            config: Audio format, language and keywords.

        Returns:
            A session that passes everything on to the provider's own.

        Raises:
            AllFailedError: No provider started a session.
        """
        attempts = self._group._attempts("start_stream", no_error)
        session = attempts.first_success(lambda call: _start(call, config))
        attempts.clear_failures()
        return session


def _start(call: Call[stt.Provider], config: stt.StreamConfig) -> Session:
    context = call.context  # that of this thread; what follows may run on a worker

    def start(provider: stt.Provider) -> stt.SessionHandle:
        handle = context.run(provider.start_stream, config)
        if not all(hasattr(handle, name) for name in _SESSION):
            context.run(refuse_result, call.member, call.operation, handle)
        return handle

    return Session(call, call.run(start, lambda handle: close_in_context(call, handle)))
