"""The exceptions of the library.

    ResilienceError
    ├── CircuitOpenError       the breaker did not admit the call
    ├── AllFailedError         no provider of the group succeeded
    ├── AttemptTimeoutError    one attempt took too long (also a TimeoutError)
    └── EmptyStreamError       a stream ended before its first item
    UnsupportedRequestError    raised by providers: another provider may serve this request
    └── llm.ContextWindowExceededError    the request is too long for this model

All of them can be pickled and copied, and can be rebuilt from `args` that were stored as JSON, as
the result backends of task queues do.
"""

import pickle
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self, final

from typing_extensions import override


class UnsupportedRequestError(Exception):
    """A healthy provider cannot serve this request; another provider may.

    Raised by providers, for instance for a picture if the model accepts only text. The next
    provider is tried, and the exception never counts: `failure_on` and `fallback_on` do not apply.
    """


class ResilienceError(Exception):
    """Base of all errors that this library raises by itself."""


@final
class CircuitOpenError(ResilienceError):
    """The breaker did not admit the call: the protected function was not called.

    Attributes:
        name: Name of the breaker.
        retry_after: Seconds until a call may be admitted again, as known when the error was
            made; an upper bound if probes are under way. None if that is not known: the breaker
            is isolated until it is reset, or the provider asked for an infinite delay.
        reason: Type and message of the failure that opened the breaker, as text; None if it was
            not opened by a failure.
    """

    # The error has no dictionary, and `args` are set by `__new__`: a rejected call should be cheap.
    __slots__ = ("name", "reason", "retry_after")

    def __init__(
        self, name: str, retry_after: float | None = None, reason: str | None = None
    ) -> None:
        """Make an error from the breaker's name, the seconds to wait and the reason."""
        self.name: str = name
        self.retry_after: float | None = retry_after
        self.reason: str | None = reason

    @override
    def __str__(self) -> str:
        circuit = f"circuit {self.name!r}" if self.name else "circuit (unnamed)"
        if self.retry_after is None:
            wait = "is open until it is reset"
        else:
            wait = f"is open, retry in {round(self.retry_after, 2):.12g} s"
        return f"{circuit} {wait}" + (f" (last failure: {self.reason})" if self.reason else "")

    @override
    def __reduce__(
        self,
    ) -> tuple[type[Self], tuple[str, float | None, str | None], dict[str, object]]:
        return type(self), (self.name, self.retry_after, self.reason), vars(self)


@final
class AllFailedError(ResilienceError):
    """No provider of the group succeeded.

    `__cause__` is the last of the failures.

    Attributes:
        failures: Read-only mapping from the name of each provider to its exception, in the
            order of the group; a `CircuitOpenError` for a provider that was skipped.
        retry_after: Shortest wait in seconds after which a call may succeed: 0 if a provider
            failed in this call and its breaker is still closed, otherwise the shortest wait among
            the open breakers; None if that is not known.
    """

    def __init__(
        self, failures: Mapping[str, BaseException] | str, retry_after: float | None = None
    ) -> None:
        """Make an error from the failures of all providers.

        Args:
            failures: Failure of each provider; the mapping is copied. Or the message of an error
                that is rebuilt from its `args`, whose failures are not known.
            retry_after: Shortest wait in seconds, None if that is not known.
        """
        known = {} if isinstance(failures, str) else dict(failures)
        super().__init__(failures if isinstance(failures, str) else _list_failures(known))
        self.__cause__: BaseException | None = next(reversed(known.values()), None)
        self.failures: Mapping[str, BaseException] = MappingProxyType(known)
        self.retry_after: float | None = retry_after
        # Whether each provider was skipped or cannot serve the request. Set by the group, since it
        # depends on the providers.
        self._is_unsupported: bool = False

    @override
    def __reduce__(
        self,
    ) -> tuple[type[Self], tuple[dict[str, BaseException] | str], dict[str, object]]:
        failures = {name: _portable(error) for name, error in self.failures.items()}
        state = {key: value for key, value in vars(self).items() if key != "failures"}
        return type(self), (failures or str(self),), state

    def __copy__(self) -> Self:
        """Return an error that shares this one's failures."""
        copied = type(self)(self.failures or str(self))
        vars(copied).update(vars(self))
        return copied


@final
class AttemptTimeoutError(ResilienceError, TimeoutError):
    """One attempt did not answer in time and was abandoned.

    Attributes:
        provider: Name of the provider.
        timeout: Time limit of the attempt in seconds.
        hanging: Number of abandoned calls that still hang, if the attempt was not started because
            of them; otherwise None.
    """

    def __init__(self, provider: str, timeout: float, hanging: int | None = None) -> None:
        """Make an error from the provider's name, the time limit and the number that hang."""
        super().__init__()
        # Set here, because `OSError` would read two arguments as an error number and a text.
        data = (provider, timeout)
        self.args: tuple[object, ...] = data if hanging is None else (*data, hanging)
        self.provider: str = provider
        self.timeout: float = timeout
        self.hanging: int | None = hanging

    @override
    def __str__(self) -> str:
        if self.hanging is not None:
            return f"{self.provider!r} was not called: {self.hanging} abandoned calls still hang"
        return f"{self.provider!r} did not answer within {self.timeout:g} s"

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[str, float, int | None], dict[str, object]]:
        return type(self), (self.provider, self.timeout, self.hanging), vars(self)


@final
class EmptyStreamError(ResilienceError):
    """A stream ended before its first item."""

    def __init__(self, message: str = "the stream ended before its first item") -> None:
        """Make an error with a message, or the default one."""
        super().__init__(message)


def _was_skipped(error: BaseException) -> bool:
    """Return whether an error means that a provider was not tried.

    It is either a `CircuitOpenError` made for a skipped provider, which has no traceback, unlike
    one that a provider has raised; or the `AllFailedError` of a group that tried no provider.
    """
    if isinstance(error, AllFailedError):
        return bool(error.failures) and all(map(_was_skipped, error.failures.values()))
    return isinstance(error, CircuitOpenError) and error.__traceback__ is None


def _describe(error: BaseException) -> str:
    """Return type and text of an error, even if its `__str__` raises."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        return f"{name} (its message cannot be read)"
    return f"{name}: {text}" if text else name


def _list_failures(failures: Mapping[str, BaseException]) -> str:
    reasons = "; ".join(f"{name}: {_describe(error)}" for name, error in failures.items())
    return f"all providers failed: {reasons}"


def _portable(error: BaseException) -> BaseException:
    """Return the error; if it cannot be pickled, a `ResilienceError` with its type and text."""
    try:
        survives = isinstance(pickle.loads(pickle.dumps(error)), BaseException)
    except Exception:
        survives = False
    return error if survives else ResilienceError(_describe(error))
