"""Messages between processes about breakers that open or close, through Redis.

The application makes the client; this module does not import the client's library.
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

_TICK = 1.0  # seconds between two checks of all breakers, and of whether this was closed
_SILENCE = 5.0  # seconds without a message until a ping, and then until the connection is dropped
_LARGEST_NAME = 256  # bytes, so that each message is shorter than the limit of the reader
_KEPT = (Kind.OPENED, Kind.ISOLATED)
_SHORTEST_DELAY, _LONGEST_DELAY = 0.1, 10.0  # seconds before Redis is tried again


class Subscription(Protocol):
    """The methods of a `redis.client.PubSub` that `RedisNews` uses."""

    @abstractmethod
    def subscribe(self, channel: str, /) -> object:
        """Subscribe to a channel."""
        ...

    @abstractmethod
    def get_message(self, *, timeout: float) -> Mapping[str, object] | None:
        """Wait for a message, at most for a number of seconds."""
        ...

    @abstractmethod
    def ping(self) -> object:
        """Request a reply."""
        ...

    @abstractmethod
    def close(self) -> None:
        """Return the connection."""
        ...


class Pipeline(Protocol):
    """The methods of a `redis.client.Pipeline` that `RedisNews` uses."""

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
        """Send the queued commands; return the replies, with an exception for each that failed."""
        ...


class Client(Protocol):
    """The methods of a `redis.Redis` that `RedisNews` uses."""

    @abstractmethod
    def pubsub(self) -> Subscription:
        """Return a subscription without a channel."""
        ...

    @abstractmethod
    def pipeline(self, *, transaction: bool) -> Pipeline:
        """Return an empty pipeline."""
        ...


@final
class RedisNews(_settings.Uncopyable):
    """Sends messages when a breaker opens or closes, and applies those of other processes.

    When a breaker opens in this process, the breakers of the same name and namespace in other
    processes open for the same time, with the same effect as if they had opened by themselves. When
    it closes, those that are open become half-open, so that their next calls are probes. Changes
    that a message has caused are not sent again. A process that starts, or that had no connection
    to Redis for a while, reads which breakers are still open.

    Redis is optional at run time: calls never wait for it, since two daemon threads exchange the
    messages. If Redis is not available, each breaker works on its own; the loss of the connection
    is logged once, as a WARNING, and its return once, as INFO.

    Processes of the same namespace are trusted. The format of each message is checked, and a
    message keeps a breaker open for at most `max_seconds`.

    Works until `close()` or the end of a `with` statement; dropping the object does not end it. May
    be used by any number of threads. A forked child starts threads of its own. Cannot be copied.
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
            client: A `redis.Redis`, or an object with the same methods. It needs two connections.
                Set its `socket_timeout`, so that a lost connection is detected.
            namespace: Prefix of the names of the channel and of all keys. Only breakers of the same
                namespace exchange messages.
            breakers: Breakers by names that are the same in all processes, such as the `breakers`
                of a group. Providers that are added to the group later are not included.
            max_seconds: Longest time for which a message keeps a breaker open, in seconds or as a
                `timedelta`; 0 for 300 seconds.
            operators: Whether `isolate()` and `reset()` in one process have the same effect in the
                others. Then an isolation without a time limit lasts in the other processes as long
                as this process runs, and for `max_seconds` after that.

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
        """Return this object; the end of the `with` statement closes it."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close this object."""
        self.close()

    def close(self) -> None:
        """Stop sending messages, and ignore those of other processes.

        Returns at once. The threads end, and return their connections, within a second, or as soon
        as the operation for which they are waiting has ended.
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
                # In an empty context: some Pythons let a thread inherit the context and keep it.
                Context().run(thread.start)
        except BaseException:
            self.close()
            raise

    def _restart_after_fork(self) -> None:
        if self._run.is_over:
            return
        self._run.is_over = True  # if one of the two threads has forked, it ends in the child
        self._run = _Run()
        try:
            self._start()
        except Exception as raised:  # no thread can be started; a fork hook has no caller
            log_suppressed("RedisNews", raised)

    # ---- sending

    def _send(self, run: "_Run") -> None:
        """Send each change at once, and check all breakers from time to time."""
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
        """Send what has changed; False if that is not possible now."""
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
        """Return the commands that send a message."""
        pipeline = self._client.pipeline(transaction=False)
        # First the key, then the message: a process that starts subscribes first and then reads.
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
        """Read the channel, and try again whenever that fails."""
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
                elif message["type"] == "subscribe":  # also after the client has connected again
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
        """Read what is open in other processes, and send what is open here; False on failure."""
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
            if not isinstance(left, int) or left <= 0:  # a key of ours always expires
                continue
            news = read_news(message)
            if news and (news.kind, news.name) == (kind, name):
                self._hear(replace(news, seconds=min(news.seconds, left / 1000)))
        _raise_first(replies)

    def _hear(self, news: News | None) -> None:
        if news is None or news.origin == self._origin or news.name not in self._watches:
            return
        try:
            self._watches[news.name].hear(news)
        except Exception as raised:  # raised by the breaker's clock or a log handler
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
    """The queues for which the threads of one process wait."""

    __slots__ = ("_pauses", "changes", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        # A breaker that has changed, or None to check all. A breaker is added again only after it
        # was checked, so each has two entries at most.
        self.changes: SimpleQueue[Watch | None] = SimpleQueue()
        self._pauses: SimpleQueue[None] = SimpleQueue()

    def pause(self, seconds: float) -> None:
        """Wait for some seconds, or until the end of the run."""
        with suppress(Empty):
            self._pauses.get(timeout=seconds)

    def end(self) -> None:
        """Make the threads end."""
        self.is_over = True
        self.changes.put(None)
        self._pauses.put(None)


@final
class _Link:
    """Logs once when the first part fails, and once when all parts work again."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._lock = Lock()
        self._failing: set[str] = set()  # guarded by the lock

    def fails(self, part: str, error: Exception) -> None:
        """Record that a part fails."""
        with self._lock:
            is_first = not self._failing
            self._failing.add(part)
        if is_first:
            self._log(logging.WARNING, "Redis news of %s stopped: %s", type(error).__name__)

    def works(self, part: str) -> None:
        """Record that a part works."""
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
        with suppress(Exception):  # a log handler that raises must not end the thread
            logger.log(level, text, self._namespace, *error, extra=extra)


def _check_name(setting: str, value: object) -> str:
    name = _settings.check_name(setting, value)
    if not name or len(json.dumps(name)) > _LARGEST_NAME:
        msg = f"{setting} must have 1 to {_LARGEST_NAME} bytes as JSON, got {value!r}"
        raise ValueError(msg)
    return name


def _name_process() -> str:
    """Return a unique name of this process that people can read."""
    host = socket.gethostname()[:50]
    return f"{host if is_plain(host) else 'host'}:{os.getpid()}:{secrets.token_hex(4)}"


def _raise_first(replies: Iterable[object]) -> None:
    """Raise the first exception among the replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
