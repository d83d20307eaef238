"""The base of the adapters: a group of providers, and the method that adds one."""

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar, Generic, TypeVar

from typing_extensions import override

from resilience import _settings
from resilience._breaker.breaker import CircuitBreaker
from resilience._breaker.config import CircuitBreakerConfig
from resilience._failover.config import FallbackConfig
from resilience._failover.group import FallbackGroup

T = TypeVar("T")


class Adapter(_settings.Uncopyable, Generic[T]):
    """A group of providers of type T."""

    _required: ClassVar[tuple[str, ...]]
    """Methods that every provider must have."""

    def __init__(
        self,
        primary: T,
        primary_name: str,
        config: FallbackConfig | None = None,
        *,
        attempt_timeout: float | timedelta | None = None,
        circuit_breaker: CircuitBreakerConfig | None = None,
    ) -> None:
        """Make a group of one provider.

        Args:
            primary: Provider that is tried first.
            primary_name: Its name, also the name of its breaker.
            config: Settings; the defaults if omitted.
            attempt_timeout: Time limit in seconds of an attempt with the primary; overrides the
                setting of the group. 0 for no limit.
            circuit_breaker: Settings of the primary's breaker, instead of the group's.

        Raises:
            TypeError: An argument has the wrong type, or the provider lacks a main method of its
                contract.
            ValueError: The name is empty, or the timeout is negative or not finite.
        """
        self._check_provider("primary", primary)
        self._group = FallbackGroup(
            primary,
            primary_name,
            config,
            attempt_timeout=attempt_timeout,
            circuit_breaker=circuit_breaker,
        )

    # For errors about arguments, which would name this class instead of the adapter.
    __init__.__qualname__ = "__init__"

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._group._describe()}>"

    def add_fallback(
        self,
        name: str,
        provider: T,
        *,
        attempt_timeout: float | timedelta | None = None,
        circuit_breaker: CircuitBreakerConfig | None = None,
    ) -> None:
        """Add a provider, which is tried after the present ones.

        May be called at any time. Calls already under way do not use the new provider.

        Args:
            name: Its name, also the name of its breaker.
            provider: The provider.
            attempt_timeout: Time limit in seconds of an attempt with this provider; overrides the
                setting of the group. 0 for no limit.
            circuit_breaker: Settings of its breaker, instead of the group's.

        Raises:
            TypeError: An argument has the wrong type, or the provider lacks a main method of its
                contract.
            ValueError: The name is empty or already used, or the timeout is negative or not finite.
        """
        self._add(name, provider, attempt_timeout, circuit_breaker)

    add_fallback.__qualname__ = "add_fallback"  # as for the constructor

    def _add(
        self,
        name: str,
        provider: T,
        attempt_timeout: float | timedelta | None,
        circuit_breaker: CircuitBreakerConfig | None,
        notes: object = None,
    ) -> None:
        self._check_provider("provider", provider)
        self._group._add(name, provider, attempt_timeout, circuit_breaker, notes)

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers by the names of their providers, in order; a read-only snapshot."""
        return self._group.breakers

    def _check_provider(self, setting: str, provider: object) -> None:
        missing = [name for name in self._required if not hasattr(provider, name)]
        if missing:
            msg = f"{setting} must have {' and '.join(missing)}(), got {provider!r}"
            raise TypeError(msg)
