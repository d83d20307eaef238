"""What the library raises, as one tree.

    ResilienceError
    ├── CircuitOpenError       the breaker did not admit the call
    ├── AllFailedError         no provider of the group succeeded
    ├── AttemptTimeoutError    one attempt took too long (also a TimeoutError)
    └── EmptyStreamError       a stream ended before it began

All of them survive `pickle` and `copy`.
"""

import pickle
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self, final

from typing_extensions import override


class ResilienceError(Exception):
    """Base of all errors that this library raises by itself."""


@final
class CircuitOpenError(ResilienceError):
    """The breaker did not admit the call: the protected function was not even tried.

    Attributes:
        name: Name of the breaker.
        retry_after: Seconds until a call may be admitted again, as known when the error was
            made; at most so many if probes are under way. None when nobody can say: the breaker
            is isolated until it is reset.
    """

    # Without a dictionary for each error, and with arguments that are in `args` already: a
    # rejected call should cost little.
    __slots__ = ("name", "retry_after")

    def __init__(self, name: str, retry_after: float | None = None) -> None:
        """Make an error from the breaker's name and the seconds to wait."""
        self.name: str = name
        self.retry_after: float | None = retry_after

    @override
    def __str__(self) -> str:
        if self.retry_after is None:
            return f"circuit {self.name!r} is open until it is reset"
        return f"circuit {self.name!r} is open, retry in {round(self.retry_after, 2):.12g} s"

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[str, float | None], dict[str, object]]:
        return type(self), (self.name, self.retry_after), vars(self)


@final
class AllFailedError(ResilienceError):
    """No provider of the group succeeded.

    `__cause__` is the last of the failures.

    Attributes:
        failures: Read-only mapping from the name of each provider to its exception, in the
            order of the group. A provider that was skipped has a `CircuitOpenError` of its name.
        retry_after: Shortest wait in seconds among the skipped providers, None if no provider
            was skipped or none of the skipped can say.
    """

    def __init__(self, failures: Mapping[str, Exception]) -> None:
        """Make an error from the failures of all providers, which are copied in."""
        failures = dict(failures)
        reasons = "; ".join(f"{name}: {_describe(error)}" for name, error in failures.items())
        super().__init__(f"all providers failed: {reasons}")
        self.__cause__: BaseException | None = next(reversed(failures.values()), None)
        self.failures: Mapping[str, Exception] = MappingProxyType(failures)
        self.retry_after: float | None = min(
            (
                error.retry_after
                for error in failures.values()
                if isinstance(error, CircuitOpenError)
                and error.__traceback__ is None  # else the provider itself has raised it
                and error.retry_after is not None
            ),
            default=None,
        )

    @override
    def __reduce__(
        self,
    ) -> tuple[type[Self], tuple[dict[str, Exception]], dict[str, object]]:
        failures = {name: _portable(error) for name, error in self.failures.items()}
        state = {key: value for key, value in vars(self).items() if key != "failures"}
        return type(self), (failures,), state

    def __copy__(self) -> Self:
        """Return an error that shares this one's failures."""
        copied = type(self)(self.failures)
        vars(copied).update(vars(self))
        return copied


@final
class AttemptTimeoutError(ResilienceError, TimeoutError):
    """One attempt did not answer in time and was abandoned.

    Attributes:
        provider: Name of the provider.
        timeout: Seconds that the attempt was given.
    """

    def __init__(self, provider: str, timeout: float) -> None:
        """Make an error from the provider's name and the seconds it was given."""
        super().__init__(f"{provider!r} did not answer within {timeout:g} s")
        self.provider = provider
        self.timeout = timeout

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[str, float], dict[str, object]]:
        return type(self), (self.provider, self.timeout), vars(self)


@final
class EmptyStreamError(ResilienceError):
    """A stream ended before its first item."""

    def __init__(self, message: str = "the stream ended before its first item") -> None:
        """Make an error with a message of its own, or the usual one."""
        super().__init__(message)


def _describe(error: BaseException) -> str:
    """Return type and text of an error, also of one whose own `str` raises."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__} (its message cannot be read)"


def _portable(error: Exception) -> Exception:
    """Return the error, or where it cannot be pickled a stand-in with its type and text."""
    try:
        survives = isinstance(pickle.loads(pickle.dumps(error)), Exception)
    except Exception:
        survives = False
    return error if survives else ResilienceError(_describe(error))
