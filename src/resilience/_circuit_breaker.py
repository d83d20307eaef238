"""Calling a function under the protection of a circuit."""

import inspect
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from functools import wraps
from types import CoroutineType, TracebackType
from typing import Any, ParamSpec, TypeVar, cast, final, overload

from typing_extensions import override

from resilience import _settings
from resilience._circuit import Circuit
from resilience._periods import Closed, Permit

P = ParamSpec("P")
R = TypeVar("R")


@final
class CircuitBreaker(Circuit):
    """A circuit breaker around the calls of one provider.

    Closed, it admits every call, until `max_failures` calls in a row have failed. Open, it refuses
    them with `CircuitOpenError` until `reset_timeout` has passed. Half-open, it admits
    `half_open_max` calls as probes: it closes when all of them have succeeded and opens again when
    one fails. If that takes too long, since some of them hang, one more is admitted after each
    further `reset_timeout`.

    A call that ends with an exception that does not count, or that is interrupted, is neither a
    success nor a failure. A call that ends after the breaker has moved on changes nothing.

    May be used by any number of threads. A healthy call takes no lock, and no lock is held while
    the protected function, a hook, a listener or a log handler runs.
    """

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self.state}>"

    @overload
    def execute(self, fn: Callable[[], R], /) -> R: ...
    @overload
    def execute(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def execute(self, fn: Callable[..., R], /, *args: object, **kwargs: object) -> R:
        """Call a function if the breaker admits it.

        Args:
            fn: Synchronous function to protect.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What the function returned.

        Raises:
            CircuitOpenError: The breaker did not admit the call; the function was not called.
            TypeError: The function returned a coroutine.
        """
        period = self._period  # without the lock, as in try_acquire, and one call cheaper
        permit = period if type(period) is Closed else self.acquire()
        try:
            # The commonest call has no arguments, and unpacking none costs as much as calling.
            result = fn(*args, **kwargs) if args or kwargs else fn()
        except BaseException as error:
            self.failed(permit, error)
            raise
        if CoroutineType is type(result):
            self.released(permit)
            _settings.refuse_coroutine(fn, cast("Coroutine[Any, Any, Any]", result))
        if permit.failures:  # without the lock, as in succeeded, and one call cheaper
            self.succeeded(permit)
        return result

    def guard(self) -> AbstractContextManager[None]:
        """Guard the body of a `with` statement as one call, admitted on entry.

        Returns:
            A context manager for one `with` statement. Its entry raises `CircuitOpenError` if the
            breaker does not admit the call.
        """
        return _Guard(self)

    def __call__(self, fn: Callable[P, R], /) -> Callable[P, R]:
        """Decorate a function, so that each call of it goes through the breaker.

        The whole iteration of a generator function is one call, admitted at the first `next()`.

        Args:
            fn: Synchronous function to protect.

        Returns:
            A function with the same parameters and the same result.

        Raises:
            TypeError: The function is asynchronous, or cannot be called.
        """
        _settings.function("fn", fn)
        if _settings.is_kind(inspect.isgeneratorfunction, fn):
            return cast("Callable[P, R]", self._guard_generator(cast("Callable[P, Any]", fn)))

        @wraps(fn)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.execute(fn, *args, **kwargs)

        return guarded

    def _guard_generator(
        self, fn: Callable[P, Generator[Any, Any, Any]]
    ) -> Callable[P, Generator[Any, Any, Any]]:
        @wraps(fn)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, Any, Any]:
            with self.guard():
                return (yield from fn(*args, **kwargs))

        return guarded


@final
class _Guard(AbstractContextManager[None]):
    """One call, whose function is the body of a `with` statement."""

    __slots__ = ("_circuit", "_permit")

    def __init__(self, circuit: Circuit) -> None:
        self._circuit = circuit
        self._permit: Permit | None = None

    @override
    def __enter__(self) -> None:
        self._permit = self._circuit.acquire()

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        permit, self._permit = self._permit, None
        if permit is None:  # entered and left by another `with` statement
            return
        if exc is None:
            self._circuit.succeeded(permit)
        else:
            self._circuit.failed(permit, exc)
