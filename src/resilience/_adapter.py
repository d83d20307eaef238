"""What the adapters have in common: a group of providers, and how to add to it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Generic, TypeVar

from resilience._circuit_breaker import CircuitBreaker
from resilience._fallback import FallbackGroup
from resilience._fallback_config import FallbackConfig

T = TypeVar("T")


class Adapter(Generic[T]):
    """A group of providers of type T."""

    def __init__(
        self,
        primary: T,
        primary_name: str,
        config: FallbackConfig | None = None,
        *,
        attempt_timeout: float | timedelta | None = None,
    ) -> None:
        """Make a group of one provider.

        Args:
            primary: Provider that is tried first.
            primary_name: Its name, and its breaker's.
            config: Settings, the defaults if omitted.
            attempt_timeout: Seconds that an attempt with the primary may take; overrides the
                setting of the group. 0 for no limit.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is empty, or the timeout negative or not finite.
        """
        self._group = FallbackGroup(primary, primary_name, config, attempt_timeout=attempt_timeout)

    def add_fallback(
        self, name: str, provider: T, *, attempt_timeout: float | timedelta | None = None
    ) -> None:
        """Add a provider, to be tried after those that are there. Allowed during traffic.

        Args:
            name: Its name, and its breaker's.
            provider: The provider.
            attempt_timeout: Seconds that an attempt with it may take; overrides the setting of
                the group. 0 for no limit.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is empty or taken, or the timeout negative or not finite.
        """
        self._group.add_fallback(name, provider, attempt_timeout=attempt_timeout)

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers by the names of their providers, in order; a read-only snapshot."""
        return self._group.breakers
