"""News of openings between processes, through Redis.

The client is made by the application; nothing is imported of its library.
"""

import json
import logging
import math
import os
import secrets
import socket
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from contextvars import Context
from dataclasses import replace
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Protocol, Self, final

from typing_extensions import override

from resilience import _settings
from resilience._breaker.breaker import CircuitBreaker
from resilience._fork import restart_after_fork
from resilience._log import log_suppressed, logger
from resilience._news import Kind, News, Watch, is_plain, read_news

_TICK = 1.0  # seconds between two looks at all breakers, and at what has been closed
_SILENCE = 5.0  # seconds without a message after which Redis is asked for one, and then given up
_LARGEST_NAME = 256  # bytes, so that each message is shorter than what is read
_KEPT = (Kind.OPENED, Kind.ISOLATED)
_SHORTEST_DELAY, _LONGEST_DELAY = 0.1, 10.0  # seconds before Redis is tried again


class Subscription(Protocol):
    """What `RedisNews` uses of a `redis.client.PubSub`."""

    @abstractmethod
    def subscribe(self, channel: str, /) -> object:
        """Subscribe to a channel."""
        ...

    @abstractmethod
    def get_message(self, *, timeout: float) -> Mapping[str, object] | None:
        """Wait for a message for some seconds."""
        ...

    @abstractmethod
    def ping(self) -> object:
        """Ask for a message."""
        ...

    @abstractmethod
    def close(self) -> None:
        """Give the connection back."""
        ...


class Pipeline(Protocol):
    """What `RedisNews` uses of a `redis.client.Pipeline`."""

    @abstractmethod
    def get(self, name: str, /) -> object:
        """Queue GET."""
        ...

    @abstractmethod
    def pttl(self, name: str, /) -> object:
        """Queue PTTL."""
        ...

    @abstractmethod
    def set(self, name: str, value: str, /, *, px: int) -> object:
        """Queue SET with an expiry in milliseconds."""
        ...

    @abstractmethod
    def delete(self, name: str, /) -> object:
        """Queue DEL."""
        ...

    @abstractmethod
    def publish(self, channel: str, message: str, /) -> object:
        """Queue PUBLISH."""
        ...

    @abstractmethod
    def execute(self, *, raise_on_error: bool) -> Sequence[object]:
        """Send what is queued, and return the replies, with exceptions for those that failed."""
        ...


class Client(Protocol):
    """What `RedisNews` uses of a `redis.Redis`."""

    @abstractmethod
    def pubsub(self) -> Subscription:
        """Return a subscription to no channel yet."""
        ...

    @abstractmethod
    def pipeline(self, *, transaction: bool) -> Pipeline:
        """Return an empty pipeline."""
        ...


@final
class RedisNews(_settings.Uncopyable):
    """Tells other processes when a breaker opens or closes, and does what they tell.

    When a breaker opens here, those of the same name and namespace in other processes open for as
    long as it stays open, with the same effect as if they had opened themselves. When it closes,
    those that are open become half-open, so that their next calls are probes. A breaker does not
    tell what it was told. A process that starts, or that has lost Redis for a while, reads what is
    still open.

    Redis is never needed. Calls do nothing with it and never wait for it: two daemon threads do.
    Without Redis each breaker works by itself; the loss is logged once, as a WARNING, and the
    return once, as INFO.

    A process of the same namespace is trusted to tell the truth about a provider. Whatever comes
    from Redis is checked, and keeps a breaker open for `max_seconds` at most.

    Works until `close()` or the end of a `with` statement; dropping it does not end it. May be used
    by any number of threads. A forked child goes on with threads of its own. Cannot be copied.
    """

    __slots__ = (
        "__weakref__",
        "_client",
        "_link",
        "_namespace",
        "_operators",
        "_origin",
        "_run",
        "_watches",
    )

    def __init__(
        self,
        client: Client,
        namespace: str,
        breakers: Mapping[str, CircuitBreaker],
        *,
        max_seconds: float | timedelta = 300.0,
        operators: bool = False,
    ) -> None:
        """Start the threads.

        Args:
            client: A `redis.Redis`, or what behaves like one. It needs two connections. Set its
                `socket_timeout`, so that a connection that was lost without a word is given up.
            namespace: Beginning of the names of the channel and of all keys. Breakers follow those
                of the same namespace only.
            breakers: Breakers by the names under which they are known in all processes, such as the
                `breakers` of a group. Providers that are added to the group later are not included.
            max_seconds: Seconds, or a `timedelta`, for which news keep a breaker open at most; 300
                for 0.
            operators: Whether `isolate()` and `reset()` here have the same effect in the other
                processes, and theirs here. Then an isolation without end holds in the others for as
                long as this process lives, and for `max_seconds` after that.

        Raises:
            TypeError: An argument has the wrong type, or the client is asynchronous.
            ValueError: The namespace or a name is empty or has more than 256 bytes as JSON, or
                `max_seconds` is negative, not finite or more than 1e9.
            RuntimeError: No thread can be started.
        """
        for method in ("pubsub", "pipeline"):
            _settings.check_callable(f"client.{method}", getattr(client, method, None))
        _settings.check_callable("client.pubsub().subscribe", client.pubsub().subscribe)
        self._client = client
        self._namespace = _check_name("namespace", namespace)
        self._operators = operators
        seconds = _settings.check_seconds("max_seconds", max_seconds, 300.0)
        _settings.check_type("breakers", breakers, Mapping)
        self._watches: dict[str, Watch] = {}
        for name, breaker in breakers.items():
            _check_name("name", name)
            _settings.check_type(f"breakers[{name!r}]", breaker, CircuitBreaker)
            self._watches[name] = Watch(
                name, breaker, self._put, max_seconds=seconds, operators=operators
            )
        self._run = _Run()
        for watch in self._watches.values():
            watch.attach()
        self._start()
        restart_after_fork(self)

    @override
    def __repr__(self) -> str:
        return f"<RedisNews {self._namespace!r} of {', '.join(map(repr, self._watches))}>"

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Tell nothing more, and do nothing more of what is told.

        Returns at once. The threads end, and return their connections, within a second, or when
        what they are waiting for has ended.
        """
        for watch in self._watches.values():
            watch.detach()
        self._run.end()

    def _put(self, watch: Watch) -> None:
        self._run.changes.put(watch)

    def _start(self) -> None:
        """Start the threads of this process."""
        self._origin = _name_process()
        self._link = _Link(self._namespace)
        try:
            for name, loop in (("send", self._send), ("receive", self._receive)):
                thread = Thread(target=loop, args=(self._run,), name=f"resilience-redis-{name}")
                thread.daemon = True
                Context().run(thread.start)  # where threads inherit a context, it outlives this
        except BaseException:
            self.close()
            raise

    def _restart_after_fork(self) -> None:
        if self._run.is_over:
            return
        self._run.is_over = True  # for a thread that forks in a listener, and goes on in the child
        self._run = _Run()
        for watch in self._watches.values():
            watch.has_changed = False
        try:
            self._start()
        except Exception as raised:  # no thread can be started, and nobody is there to raise it to
            log_suppressed("RedisNews", raised)

    # ---- sending

    def _send(self, run: "_Run") -> None:
        """Tell each change at once, and look at all breakers from time to time."""
        delay, due = _TICK, 0.0
        while not run.is_over:
            left = due - time.monotonic()
            if left <= 0:
                is_complete = self._tell(self._watches.values())
                if is_complete:
                    self._link.works("send")
                delay = _TICK if is_complete else min(2 * delay, _LONGEST_DELAY)
                due = time.monotonic() + delay
                continue
            with suppress(Empty):
                if watch := run.changes.get(timeout=left):
                    self._tell((watch,))
                else:
                    due = 0.0

    def _tell(self, watches: Iterable[Watch]) -> bool:
        """Tell what has changed; False if that is not possible now."""
        try:
            for watch in watches:
                if news := watch.look(self._origin):
                    self._publish(watch, news)
        except Exception as error:
            self._link.fails("send", error)
            return False
        return True

    def _publish(self, watch: Watch, news: News) -> None:
        try:
            _raise_first(self._prepare(news).execute(raise_on_error=False))
        except BaseException:
            watch.forget()
            raise

    def _prepare(self, news: News) -> Pipeline:
        """Return the commands that tell something."""
        pipeline = self._client.pipeline(transaction=False)
        # First what is kept: a process that starts subscribes first and then reads.
        if news.kind in _KEPT:
            milliseconds = max(1, round(news.seconds * 1000))
            pipeline.set(self._key(news.kind, news.name), news.to_json(), px=milliseconds)
        else:
            for kind in (Kind.OPENED,) if news.kind is Kind.CLOSED else _KEPT:
                pipeline.delete(self._key(kind, news.name))
        pipeline.publish(self._channel, news.to_json())
        return pipeline

    # ---- receiving

    def _receive(self, run: "_Run") -> None:
        """Follow the channel, and try again whenever that is not possible."""
        delay = _SHORTEST_DELAY
        while not run.is_over:
            began = time.monotonic()
            try:
                with closing(self._client.pubsub()) as subscription:
                    subscription.subscribe(self._channel)
                    self._follow(subscription, run)
            except Exception as error:
                if not run.is_over:
                    self._link.fails("receive", error)
            if time.monotonic() - began > _LONGEST_DELAY:
                delay = _SHORTEST_DELAY
            run.pause(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _follow(self, subscription: Subscription, run: "_Run") -> None:
        heard, is_asked, catch_up_at = time.monotonic(), False, math.inf
        while not run.is_over:
            message = subscription.get_message(timeout=_TICK)
            now = time.monotonic()
            if message is not None:
                heard, is_asked = now, False
                if message["type"] == "message":
                    self._hear(read_news(message["data"]))
                elif message["type"] == "subscribe":  # also when the client has connected again
                    self._link.works("receive")
                    catch_up_at = now
            elif now - heard > 2 * _SILENCE:
                msg = f"Redis has been silent for {now - heard:.0f} s"
                raise TimeoutError(msg)
            elif now - heard > _SILENCE and not is_asked:
                subscription.ping()
                is_asked = True
            if now >= catch_up_at:
                catch_up_at = math.inf if self._catch_up(run) else now + _TICK

    def _catch_up(self, run: "_Run") -> bool:
        """Read what is still open elsewhere, and tell what is open here; False if that fails."""
        try:
            self._read_kept()
        except Exception as error:
            self._link.fails("read", error)
            return False
        self._link.works("read")
        for watch in self._watches.values():
            watch.forget_opening()
        run.changes.put(None)
        return True

    def _read_kept(self) -> None:
        pipeline = self._client.pipeline(transaction=False)
        kept = [(kind, name) for name in self._watches for kind in _KEPT]
        for kind, name in kept:
            pipeline.get(self._key(kind, name))
            pipeline.pttl(self._key(kind, name))
        replies = pipeline.execute(raise_on_error=False) if kept else ()
        for (kind, name), message, left in zip(kept, replies[::2], replies[1::2], strict=True):
            news = read_news(message)
            if news and (news.kind, news.name) == (kind, name) and isinstance(left, int):
                self._hear(replace(news, seconds=min(news.seconds, max(left, 0) / 1000)))
        _raise_first(replies)

    def _hear(self, news: News | None) -> None:
        if news is None or news.origin == self._origin or news.name not in self._watches:
            return
        try:
            self._watches[news.name].hear(news)
        except Exception as raised:  # of the breaker's clock, or of a log handler
            with suppress(Exception):
                log_suppressed("RedisNews", raised)

    # ---- names

    @property
    def _channel(self) -> str:
        return f"{self._namespace}:news"

    def _key(self, kind: Kind, name: str) -> str:
        return f"{self._namespace}:{kind.value}:{name}"


@final
class _Run:
    """What the threads of one process wait for."""

    __slots__ = ("_pauses", "changes", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        # A breaker that has changed, or None to look at all of them. Never more than the breakers.
        self.changes: SimpleQueue[Watch | None] = SimpleQueue()
        self._pauses: SimpleQueue[None] = SimpleQueue()

    def pause(self, seconds: float) -> None:
        """Wait, until the end at most."""
        with suppress(Empty):
            self._pauses.get(timeout=seconds)

    def end(self) -> None:
        """Have the threads end."""
        self.is_over = True
        self.changes.put(None)
        self._pauses.put(None)


@final
class _Link:
    """Logs once that something does not work, and once that everything works again."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._lock = Lock()
        self._failing: set[str] = set()  # guarded by the lock

    def fails(self, part: str, error: Exception) -> None:
        """Tell that a part does not work."""
        with self._lock:
            is_first = not self._failing
            self._failing.add(part)
        if is_first:
            self._log(logging.WARNING, "Redis news of %s stopped: %s", type(error).__name__)

    def works(self, part: str) -> None:
        """Tell that a part works."""
        with self._lock:
            was_failing = bool(self._failing)
            self._failing.discard(part)
            is_last = was_failing and not self._failing
        if is_last:
            self._log(logging.INFO, "Redis news of %s resumed")

    def _log(self, level: int, text: str, *error: str) -> None:
        extra = {
            "resilience_namespace": self._namespace,
            "resilience_error": error[0] if error else None,
        }
        with suppress(Exception):  # of a log handler, which must not end the thread
            logger.log(level, text, self._namespace, *error, extra=extra)


def _check_name(setting: str, value: object) -> str:
    name = _settings.check_name(setting, value)
    if not name or len(json.dumps(name)) > _LARGEST_NAME:
        msg = f"{setting} must have 1 to {_LARGEST_NAME} bytes as JSON, got {value!r}"
        raise ValueError(msg)
    return name


def _name_process() -> str:
    """Return what distinguishes this process from all others, and names it to people."""
    host = socket.gethostname()[:50]
    return f"{host if is_plain(host) else 'host'}:{os.getpid()}:{secrets.token_hex(4)}"


def _raise_first(replies: Iterable[object]) -> None:
    """Raise the first exception among the replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
