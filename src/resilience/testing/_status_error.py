"""An exception like those of HTTP clients."""

from types import SimpleNamespace
from typing import final

from typing_extensions import override


@final
class StatusError(Exception):
    """A provider's response with an error status, with the attributes of a client's exception.

    `resilience.http` reads these: `StatusError(429, retry_after=20)` counts, the next provider is
    tried, and the breaker stays open for at least 20 seconds.

    Attributes:
        status_code: The status.
        response: Has the same `status_code`, and `headers`, a dictionary.
    """

    def __init__(self, status: int, retry_after: float | None = None) -> None:
        """Make the exception for a status.

        Args:
            status: The status, such as 429 or 503.
            retry_after: Seconds that the provider asks its clients to wait, in the header
                `retry-after`; None for a response without this header.
        """
        super().__init__(*((status,) if retry_after is None else (status, retry_after)))
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        self.status_code: int = status
        self.response: SimpleNamespace = SimpleNamespace(status_code=status, headers=headers)

    @override
    def __str__(self) -> str:
        wait = self.response.headers.get("retry-after")
        return f"HTTP {self.status_code}" + (f", retry after {wait} s" if wait else "")
