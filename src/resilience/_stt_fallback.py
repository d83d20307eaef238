"""Speech recognisers, served by a group behind the interface of one."""

from typing import final

from typing_extensions import override

from resilience import stt
from resilience._adapter import Adapter
from resilience._session import Session


@final
class STTFallback(Adapter[stt.Provider], stt.Provider):
    """Speech recognisers behind one `stt.Provider`: the first healthy one listens.

    May be used by any number of threads, if the providers may.
    """

    @override
    def start_stream(self, config: stt.StreamConfig) -> Session:
        """Start a session with the first provider that can.

        The life of the session is one call to the provider's breaker. It failed if sending audio
        or reading transcripts raised, and succeeded if it was closed otherwise; so close it.

        Args:
            config: Audio format, language and keywords.

        Returns:
            A session that hands everything through to the provider's own.

        Raises:
            AllFailedError: No provider started a session.
        """
        run = self._group.run()
        session = run.begin(
            lambda call: Session(
                call,
                call.bounded(
                    lambda provider: provider.start_stream(config), lambda session: session.close()
                ),
            )
        )
        run.forget()
        return session
