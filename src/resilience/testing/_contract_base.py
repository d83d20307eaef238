"""The base of the contract tests of all providers."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Barrier
from threading import enumerate as running_threads
from typing import ClassVar, Generic, NoReturn, TypeVar
from unittest import SkipTest

from typing_extensions import override

from resilience.testing._contract_calls import ProviderCall, becomes_true, fail

P = TypeVar("P")
R = TypeVar("R")

THREADS = 4
"""How many threads use a provider at the same time."""

FOREIGN = {"another-vendor": {"option": 1}}
"""`extra` of a vendor that does not exist."""

UNREACHABLE = "the provider cannot be reached"
CUT = "the connection was closed in the middle"

_ROUNDS = 3
_SLOW = (
    "give the client a time limit of its own, or raise `time_limit` of the test class if the"
    " provider needs longer"
)


class ProviderContract(Generic[P]):
    """Tests of a contract's provider P; a subclass defines how to make a provider.

    Pytest collects a subclass whatever its name is; `unittest` collects it too, if its last base
    class is `unittest.TestCase`. Each test makes its own providers. If a test needs a hook that the
    subclass does not define, it is skipped, and the reason names the hook.

    Attributes:
        time_limit: Seconds after which a call is considered to hang, and the test fails.
    """

    __test__: ClassVar[bool] = False  # pytest does not collect this class

    time_limit: float = 10.0

    @override
    def __init_subclass__(cls, **arguments: object) -> None:
        """Let pytest collect a subclass that does not set `__test__ = False` itself."""
        super().__init_subclass__(**arguments)
        if "__test__" not in vars(cls):
            cls.__test__ = True

    def make_provider(self) -> P:
        """Make a provider that works. To be overridden.

        Returns:
            A new provider, with a new client.
        """
        raise NotImplementedError(_override("make_provider", "return a provider that works"))

    def make_broken_provider(self) -> P:
        """Make a provider whose server cannot be reached. To be overridden.

        Returns:
            A new provider, for instance for a port of this machine on which nothing listens. It is
            made without an exception; its calls raise.
        """
        raise NotImplementedError(
            _override("make_broken_provider", "return a provider for a port that refuses")
        )

    def make_interrupted_provider(self) -> P | None:
        """Make a provider whose server closes the connection in the middle of each answer.

        Returns:
            A new provider; with None, the default, these tests are skipped.
        """
        return None

    def close_provider(self, provider: P) -> None:
        """Close the client of a provider, at the end of each test; does nothing by default.

        Args:
            provider: A provider that one of the methods above has made.
        """

    def count_connections(self) -> int:
        """Count the connections to the provider's server that are open.

        Returns:
            Their number, with or without those that are kept for the next call. With 0, the
            default, only threads are counted.
        """
        return 0

    def _start(self, operation: str, fn: Callable[[], R], advice: str = _SLOW) -> ProviderCall[R]:
        return ProviderCall(operation, fn, self.time_limit, advice)

    def _call(self, operation: str, fn: Callable[[], R], advice: str = _SLOW) -> R:
        return self._start(operation, fn, advice).result()

    def _call_in_threads(self, operation: str, fn: Callable[[], R]) -> list[R]:
        """Call a function in several threads at the same time."""
        barrier = Barrier(THREADS)

        def meet_and_call() -> R:
            barrier.wait(self.time_limit)
            return fn()

        name = f"{operation} in {THREADS} threads at a time"
        calls = [self._start(name, meet_and_call) for _ in range(THREADS)]
        return [call.result() for call in calls]

    @contextmanager
    def _working(self) -> Generator[P, None, None]:
        with self._use(self.make_provider()) as provider:
            yield provider

    @contextmanager
    def _broken(self) -> Generator[P, None, None]:
        with self._use(self.make_broken_provider()) as provider:
            yield provider

    @contextmanager
    def _interrupted(self) -> Generator[P, None, None]:
        with self._use(
            self.make_interrupted_provider() or skip("make_interrupted_provider")
        ) as provider:
            yield provider

    @contextmanager
    def _use(self, provider: P) -> Generator[P, None, None]:
        with self._finally("close_provider()", lambda: self.close_provider(provider)):
            yield provider

    @contextmanager
    def _finally(self, operation: str, fn: Callable[[], object]) -> Generator[None, None, None]:
        """Call a function at the end; its exception does not hide the failure of a test."""
        try:
            yield
        finally:
            call = self._start(operation, fn)
            call.wait()
        call.result()

    def _check_leftovers(self, use: str, fn: Callable[[], object]) -> None:
        """Fail if each use of a provider leaves a thread or a connection.

        Threads and connections that the first use makes, and later ones reuse, are not counted. So
        fewer than one for each use are allowed.
        """
        self._start(use, fn).error()
        threads, connections = set(running_threads()), self.count_connections()
        for _ in range(_ROUNDS):
            self._start(use, fn).error()

        def new_threads() -> list[str]:
            return [thread.name for thread in running_threads() if thread not in threads]

        if not becomes_true(lambda: len(new_threads()) < _ROUNDS, self.time_limit):
            fail(
                f"{_ROUNDS} times {use} left threads running after {self.time_limit:g} s:"
                f" {', '.join(new_threads())}; each must end with the call for which it was started"
            )
        if not becomes_true(
            lambda: self.count_connections() - connections < _ROUNDS, self.time_limit
        ):
            fail(
                f"{_ROUNDS} times {use} left {self.count_connections() - connections} connections"
                f" open after {self.time_limit:g} s: release each with the call for which it was"
                " opened"
            )


def skip(hook: str) -> NoReturn:
    """Skip the running test, because the test class lacks a hook.

    Args:
        hook: Name of the missing hook.
    """
    msg = f"set or override `{hook}` to run this test"
    raise SkipTest(msg)


def _override(method: str, work: str) -> str:
    return f"override {method}() in the test class: {work}"
