"""A group of providers of one kind; calls go to the first healthy one."""

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from threading import RLock
from types import MappingProxyType
from typing import Generic, TypeVar, final

from typing_extensions import override

from resilience import _settings
from resilience._breaker.breaker import CircuitBreaker
from resilience._breaker.config import CircuitBreakerConfig
from resilience._failover.attempts import Attempts, Member
from resilience._failover.config import FallbackConfig
from resilience._failover.execute import execute, execute_unrecorded
from resilience._failover.session import Session
from resilience._failover.session import open_session as open_handle
from resilience._failover.stream import PlainRequest, Stream, open_request
from resilience._fork import renew_after_fork

T = TypeVar("T")
H = TypeVar("H")
R = TypeVar("R")


@final
class FallbackGroup(_settings.Uncopyable, Generic[T]):
    """Providers of type T in order of preference, each with its own circuit breaker.

    A call goes to the first provider whose breaker admits it; if it fails, the next one is tried.

    May be used by any number of threads; providers may be added at any time. Cannot be copied.
    """

    __slots__ = ("__weakref__", "_config", "_lock", "_members")

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
            TypeError: An argument has the wrong type.
            ValueError: The name is empty, or the timeout is negative or not finite.
        """
        self._config = FallbackConfig() if config is None else config
        _settings.check_type("config", self._config, FallbackConfig)
        # Guards additions; readers read the whole tuple at once, without the lock. Reentrant,
        # because a signal handler or a finalizer may interrupt an addition, and add a provider.
        self._lock = RLock()
        self._members: tuple[Member[T], ...] = ()
        self.add_fallback(
            primary_name,
            primary,
            attempt_timeout=attempt_timeout,
            circuit_breaker=circuit_breaker,
        )
        renew_after_fork(self)

    @override
    def __repr__(self) -> str:
        return f"<FallbackGroup {self._describe()}>"

    def _describe(self) -> str:
        return ", ".join(f"{name!r} {breaker.state}" for name, breaker in self.breakers.items())

    def add_fallback(
        self,
        name: str,
        fallback: T,
        *,
        attempt_timeout: float | timedelta | None = None,
        circuit_breaker: CircuitBreakerConfig | None = None,
    ) -> None:
        """Add a provider, which is tried after the present ones.

        Calls already under way do not use it.

        Args:
            name: Its name, also the name of its breaker.
            fallback: The provider.
            attempt_timeout: Time limit in seconds of an attempt with this provider; overrides the
                setting of the group. 0 for no limit.
            circuit_breaker: Settings of its breaker, instead of the group's.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is empty or already used, or the timeout is negative or not finite.
        """
        self._add(name, fallback, attempt_timeout, circuit_breaker)

    def _add(
        self,
        name: str,
        fallback: T,
        attempt_timeout: float | timedelta | None,
        circuit_breaker: CircuitBreakerConfig | None,
        notes: object = None,
    ) -> None:
        if not _settings.check_name("name", name):
            msg = f"name must not be empty, got {name!r}"
            raise ValueError(msg)
        member = Member(name, fallback, self._config, attempt_timeout, circuit_breaker, notes)
        with self._lock:
            while not self._add_locked(member):
                pass

    def _add_locked(self, member: Member[T]) -> bool:
        """Add a member; False if code that has interrupted this method has added another."""
        members = self._members
        if any(member.name == other.name for other in members):
            msg = f"name {member.name!r} is already used in this group"
            raise ValueError(msg)
        added = (*members, member)
        if self._members is not members:
            return False
        self._members = added
        return True

    @property
    def primary(self) -> T:
        """The first provider."""
        return self._members[0].provider

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers by the names of their providers, in order; a read-only snapshot."""
        return MappingProxyType({member.name: member.breaker for member in self._members})

    def execute(self, fn: Callable[[T], R], *, record: bool = True) -> R:
        """Call a function with one provider after the other, until it succeeds.

        Args:
            fn: Synchronous function of a provider.
            record: False for calls whose outcome does not show whether a provider is healthy: they
                skip open breakers, but are not admitted as probes, and no outcome is recorded.

        Returns:
            The result of the function.

        Raises:
            AllFailedError: The function succeeded with no provider.
            Exception: An exception that `fallback_on` does not include is raised unchanged.
        """
        if record:
            return execute(self._members, fn, "execute")
        return execute_unrecorded(self._members, fn, "execute")

    def stream(self, open_stream: Callable[[T], Iterable[R]], *, lazy: bool = False) -> Stream[R]:
        """Open a stream with one provider after the other, until one returns a first item.

        Args:
            open_stream: Function of a provider that returns an iterable of items R. The function
                may do the work itself, or leave it to the first `next()`.
            lazy: When to wait for the first item. False: before this method returns. True: in the
                first `next()`, if the caller produces the input later in the same thread. In both
                cases the provider's function is called at once.

        Returns:
            An iterator with `close()`, `with` support and the provider's name.

        Raises:
            AllFailedError: No provider opened a stream. If lazy, the first `next()` may raise it
                too.
        """
        attempts = Attempts(self._members, "stream")
        return open_request(attempts, PlainRequest(open_stream), Stream, lazy=lazy)

    def session(self, open_session: Callable[[T], H]) -> Session[H]:
        """Open a long-lived object with one provider after the other, until one succeeds.

        Args:
            open_session: Function of a provider that returns a handle H, such as a connection, when
                the handle is ready for use. If the handle has a `close()`, it is called at the end.

        Returns:
            The session. Its life is one call to the provider's breaker, so close it.

        Raises:
            AllFailedError: No provider opened a session.
            Exception: An exception that `fallback_on` does not include is raised unchanged.
        """
        return open_handle(Attempts(self._members, "session"), open_session, Session)

    def _renew_after_fork(self) -> None:
        self._lock = RLock()


def execute_with_result(group: FallbackGroup[T], fn: Callable[[T], R]) -> R:
    """Call a function with one provider of a group after the other, until it succeeds.

    The same as `group.execute(fn)`.

    Args:
        group: Providers of type T.
        fn: Synchronous function of a provider.

    Returns:
        The result of the function.

    Raises:
        AllFailedError: The function succeeded with no provider.
    """
    return group.execute(fn)
