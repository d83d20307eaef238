"""A group of providers of one kind, of which the first healthy one serves."""

from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from threading import Lock
from types import CoroutineType, MappingProxyType
from typing import Any, Generic, Literal, TypeVar, cast, final

from resilience import _settings
from resilience._circuit_breaker import CircuitBreaker
from resilience._fallback_config import FallbackConfig
from resilience._run import Call, Entry, Run, no_error
from resilience._stream import PlainRequest, Stream, serve

T = TypeVar("T")
R = TypeVar("R")


def _drop(_result: object) -> None:
    """Let go of a result that came too late."""


@final
class FallbackGroup(Generic[T]):
    """Providers of type T in order of preference, each behind its own circuit breaker.

    A call goes to the first provider whose breaker admits it; when it fails, the next is tried.

    May be used by any number of threads; providers may be added at any time.
    """

    __slots__ = ("__weakref__", "_config", "_entries", "_lock")

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
        self._config = FallbackConfig() if config is None else config
        _settings.kind("config", self._config, FallbackConfig)
        self._lock = Lock()  # guards additions; readers take the whole tuple by one read
        self._entries: tuple[Entry[T], ...] = ()
        self.add_fallback(primary_name, primary, attempt_timeout=attempt_timeout)

    def add_fallback(
        self, name: str, fallback: T, *, attempt_timeout: float | timedelta | None = None
    ) -> None:
        """Add a provider, to be tried after those that are there.

        Calls that are under way do not see it.

        Args:
            name: Its name, and its breaker's.
            fallback: The provider.
            attempt_timeout: Seconds that an attempt with it may take; overrides the setting of
                the group. 0 for no limit.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: The name is empty or taken, or the timeout negative or not finite.
        """
        if not _settings.text("name", name):
            msg = f"name must not be empty, not {name!r}"
            raise ValueError(msg)
        entry = Entry(name, fallback, self._config, attempt_timeout)
        with self._lock:
            if any(name == other.name for other in self._entries):
                msg = f"name must not be taken by another provider of the group, not {name!r}"
                raise ValueError(msg)
            self._entries += (entry,)

    @property
    def primary(self) -> T:
        """The first provider."""
        return self._entries[0].provider

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """The breakers by the names of their providers, in order; a read-only snapshot."""
        return MappingProxyType({entry.name: entry.breaker for entry in self._entries})

    def execute(self, fn: Callable[[T], R], *, evidence: bool = True) -> R:
        """Call a function with one provider after the other, until it succeeds.

        Args:
            fn: Synchronous function of a provider.
            evidence: False for calls whose outcome says nothing of a provider's health: they
                skip open breakers, but no breaker learns from them or admits them as probes.

        Returns:
            What the function returned.

        Raises:
            AllFailedError: The function succeeded with no provider.
            Exception: What `fallback_on` refuses is raised as it is.
            TypeError: The function returned a coroutine.
        """
        # A loop of its own, without what only streams and sessions need: this is the healthy path.
        entries = self._entries
        run: Run[T] | None = None
        try:
            for entry in entries:
                started = 0.0 if entry.is_plain else entry.clock()
                breaker = entry.breaker
                permit = breaker.try_acquire() if evidence else breaker.try_observe()
                if permit is None:
                    entry.skipped()
                    continue
                call: Call[T] | None = None
                try:
                    if entry.is_plain:
                        result = fn(entry.provider)
                    else:
                        call = Call(entry, permit, started)
                        result = call.bounded(fn, _drop)
                except BaseException as error:
                    (call or Call(entry, permit, started)).failed(error)
                    run = run or Run(entries)
                    if not run.moves_on(entry, error):
                        raise
                    continue
                if CoroutineType is type(result):
                    (call or Call(entry, permit, started)).cancelled()
                    _settings.refuse_coroutine(fn, cast("Coroutine[Any, Any, Any]", result))
                if call is not None:
                    call.succeeded()
                elif permit.failures:
                    breaker.succeeded(permit)
                return result
            raise (run or Run(entries)).all_failed()
        finally:
            if run is not None:
                run.forget()

    def stream(
        self,
        open_stream: Callable[[T], Iterable[R]],
        *,
        commit: Literal["call", "first-next"] = "call",
    ) -> Stream[R]:
        """Open a stream with one provider after the other, until there is a first item.

        Args:
            open_stream: Function of a provider that returns an iterable of items R. Whether the
                function does the work or the first `next()` makes no difference.
            commit: When to wait for the first item. `"call"`: before this method returns.
                `"first-next"`: in the first `next()`, for input that the caller has still to
                produce in the same thread; the provider's function is called at once all the
                same.

        Returns:
            An iterator with `close()`, `with` support and the provider's name.

        Raises:
            AllFailedError: No provider opened a stream. With `"first-next"` the first `next()`
                may raise it too.
            ValueError: `commit` is something else.
        """
        if commit not in {"call", "first-next"}:
            msg = f"commit must be 'call' or 'first-next', not {commit!r}"
            raise ValueError(msg)
        return serve(self.run(), PlainRequest(open_stream), lazily=commit == "first-next")

    def run(self, input_error: Callable[[], Exception | None] = no_error) -> Run[T]:
        """Stand before the first provider, with a call that will outlive a function."""
        return Run(self._entries, input_error)


def execute_with_result(group: FallbackGroup[T], fn: Callable[[T], R]) -> R:
    """Call a function with one provider of a group after the other, until it succeeds.

    The same as `group.execute(fn)`.

    Args:
        group: Providers of type T.
        fn: Synchronous function of a provider.

    Returns:
        What the function returned.

    Raises:
        AllFailedError: The function succeeded with no provider.
    """
    return group.execute(fn)
