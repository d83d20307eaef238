"""Messages between processes about breakers that open or close, sent through Redis.

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
from resilience._news import BreakerSync, Change, Kind, is_safe_text, parse_change

_CHECK_INTERVAL = 1.0  # seconds between two checks of all breakers; `close()` is noticed as often
_PING_AFTER = 5.0  # seconds without a message until a ping; after twice as many, reconnect
_MAX_NAME_BYTES = 256  # so that each message is shorter than `MAX_MESSAGE_BYTES`
_STORED_KINDS = (Kind.OPENED, Kind.ISOLATED)
_MIN_RETRY_DELAY, _MAX_RETRY_DELAY = 0.1, 10.0  # seconds


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
        "_connection_log",
        "_control",
        "_namespace",
        "_operators",
        "_origin",
        "_syncs",
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
            client: A `redis.Redis`, or an object with the same methods. Two of its connections are
                used, for a moment three. Set its `socket_timeout`, so that a lost connection is
                detected.
            namespace: Prefix of the names of the channel and of all keys. Only breakers of the same
                namespace exchange messages.
            breakers: Breakers by name, such as the `breakers` of a group. A breaker must have the
                same name in all processes. Providers added to the group later are not included.
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
        self._syncs: dict[str, BreakerSync] = {}
        for name, breaker in breakers.items():
            _check_name("name", name)
            _settings.check_type(f"breakers[{name!r}]", breaker, CircuitBreaker)
            self._syncs[name] = BreakerSync(
                name, breaker, self._enqueue, max_seconds=seconds, operators=operators
            )
        self._control = _ThreadControl()
        for sync in self._syncs.values():
            sync.attach()
        self._start_threads()
        restart_after_fork(self)

    @override
    def __repr__(self) -> str:
        return f"<RedisNews {self._namespace!r} of {', '.join(map(repr, self._syncs))}>"

    def __enter__(self) -> Self:
        """Return this object; it is closed at the end of the `with` statement."""
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

        Does not wait for the threads: they end, and return their connections, within a second, or
        when the present operation of the client ends. Closing again does nothing.
        """
        for sync in self._syncs.values():
            sync.detach()
        self._control.stop()

    def _enqueue(self, sync: BreakerSync) -> None:
        """Make the sender check a breaker; does not block."""
        self._control.changed.put(sync)

    def _start_threads(self) -> None:
        """Start the two threads."""
        self._origin = _make_process_name()
        self._connection_log = _ConnectionLog(self._namespace)
        try:
            for name, loop in (("send", self._run_sender), ("receive", self._run_receiver)):
                thread = Thread(target=loop, args=(self._control,), name=f"resilience-redis-{name}")
                thread.daemon = True
                # In an empty context: in some versions of Python a thread inherits and keeps the
                # context.
                Context().run(thread.start)
        except BaseException:
            self.close()
            raise

    def _restart_after_fork(self) -> None:
        if self._control.is_stopped:
            return
        self._control.is_stopped = True  # ends the thread that has forked, if it is one of the two
        self._control = _ThreadControl()
        for sync in self._syncs.values():
            sync.has_changed = False  # the new queue is empty
        try:
            self._start_threads()
        except Exception as raised:  # no thread can be started; a fork hook has no caller
            log_suppressed("RedisNews", raised)

    # ---- sending

    def _run_sender(self, control: "_ThreadControl") -> None:
        """Send each change at once, and check all breakers once per `_CHECK_INTERVAL`."""
        delay, due = _CHECK_INTERVAL, 0.0
        while not control.is_stopped:
            left = due - time.monotonic()
            if left <= 0:
                is_complete = self._send_changes(self._syncs.values())
                if is_complete:
                    self._connection_log.report_success("send")
                delay = _CHECK_INTERVAL if is_complete else min(2 * delay, _MAX_RETRY_DELAY)
                due = time.monotonic() + delay
                continue
            with suppress(Empty):
                if sync := control.changed.get(timeout=left):
                    sync.has_changed = False
                    self._send_changes((sync,))
                else:
                    due = 0.0

    def _send_changes(self, syncs: Iterable[BreakerSync]) -> bool:
        """Send the changes of some breakers; return False if that fails."""
        try:
            for sync in syncs:
                while change := sync.take_change(self._origin):
                    self._publish(sync, change)
        except Exception as error:
            self._connection_log.report_failure("send", error)
            return False
        return True

    def _publish(self, sync: BreakerSync, change: Change) -> None:
        try:
            _raise_first(self._make_commands(change).execute(raise_on_error=False))
        except BaseException:
            sync.mark_unsent(change)
            raise

    def _make_commands(self, change: Change) -> Pipeline:
        """Return the commands that store and publish a change, not yet sent."""
        pipeline = self._client.pipeline(transaction=False)
        # First the key, then the message: a process that starts subscribes first and then reads.
        if change.kind in _STORED_KINDS:
            milliseconds = max(1, round(change.seconds * 1000))
            pipeline.set(self._key(change.kind, change.name), change.to_json(), px=milliseconds)
        else:
            for kind in (Kind.OPENED,) if change.kind is Kind.CLOSED else _STORED_KINDS:
                pipeline.delete(self._key(kind, change.name))
        pipeline.publish(self._channel, change.to_json())
        return pipeline

    # ---- receiving

    def _run_receiver(self, control: "_ThreadControl") -> None:
        """Subscribe to the channel and read it; subscribe again after each failure."""
        delay = _MIN_RETRY_DELAY
        while not control.is_stopped:
            began = time.monotonic()
            try:
                with closing(self._client.pubsub()) as subscription:
                    subscription.subscribe(self._channel)
                    self._read_channel(subscription, control)
            except Exception as error:
                if not control.is_stopped:
                    self._connection_log.report_failure("receive", error)
            if time.monotonic() - began > _MAX_RETRY_DELAY:
                delay = _MIN_RETRY_DELAY
            control.pause(delay)
            delay = min(2 * delay, _MAX_RETRY_DELAY)

    def _read_channel(self, subscription: Subscription, control: "_ThreadControl") -> None:
        last_received, is_pinged, exchange_at = time.monotonic(), False, math.inf
        while not control.is_stopped:
            message = subscription.get_message(timeout=_CHECK_INTERVAL)
            now = time.monotonic()
            if message is not None:
                last_received, is_pinged = now, False
                if message["type"] == "message":
                    self._apply(parse_change(message["data"]))
                elif message["type"] == "subscribe":  # also after the client has connected again
                    self._connection_log.report_success("receive")
                    exchange_at = now
            elif now - last_received > 2 * _PING_AFTER:
                msg = f"no message from Redis for {now - last_received:.0f} s"
                raise TimeoutError(msg)
            elif now - last_received > _PING_AFTER and not is_pinged:
                subscription.ping()
                is_pinged = True
            if now >= exchange_at:
                exchange_at = math.inf if self._exchange_open(control) else now + _CHECK_INTERVAL

    def _exchange_open(self, control: "_ThreadControl") -> bool:
        """Apply the stored open periods; mark those of this process as unsent; False on failure."""
        try:
            self._apply_stored()
        except Exception as error:
            self._connection_log.report_failure("read", error)
            return False
        self._connection_log.report_success("read")
        for sync in self._syncs.values():
            sync.mark_opening_unsent()
        control.changed.put(None)
        return True

    def _apply_stored(self) -> None:
        """Apply the open periods that Redis has stored."""
        pipeline = self._client.pipeline(transaction=False)
        stored = [(kind, name) for name in self._syncs for kind in _STORED_KINDS]
        for kind, name in stored:
            pipeline.get(self._key(kind, name))
            pipeline.pttl(self._key(kind, name))
        replies = pipeline.execute(raise_on_error=False) if stored else ()
        for (kind, name), message, left in zip(stored, replies[::2], replies[1::2], strict=True):
            if not isinstance(left, int) or left <= 0:  # our keys always expire
                continue
            change = parse_change(message)
            if change and (change.kind, change.name) == (kind, name):
                self._apply(replace(change, seconds=min(change.seconds, left / 1000)))
        _raise_first(replies)

    def _apply(self, change: Change | None) -> None:
        """Apply a change, unless it is invalid, of this process or of an unknown breaker."""
        if change is None or change.origin == self._origin or change.name not in self._syncs:
            return
        try:
            self._syncs[change.name].apply(change)
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
class _ThreadControl:
    """Stops the two threads of one process, and wakes them from waiting."""

    __slots__ = ("_pauses", "changed", "is_stopped")

    def __init__(self) -> None:
        self.is_stopped = False
        # A breaker that has changed, or None to check all. A breaker is added again only after its
        # entry was removed, so the queue does not grow with the number of changes.
        self.changed: SimpleQueue[BreakerSync | None] = SimpleQueue()
        self._pauses: SimpleQueue[None] = SimpleQueue()

    def pause(self, seconds: float) -> None:
        """Wait for some seconds, or until `stop` is called."""
        with suppress(Empty):
            self._pauses.get(timeout=seconds)

    def stop(self) -> None:
        """End the threads."""
        self.is_stopped = True
        self.changed.put(None)
        self._pauses.put(None)


@final
class _ConnectionLog:
    """Logs once when the first operation fails, and once when all of them work again."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._lock = Lock()
        self._failing: set[str] = set()  # guarded by the lock

    def report_failure(self, operation: str, error: Exception) -> None:
        """Record that an operation has failed."""
        with self._lock:
            is_first = not self._failing
            self._failing.add(operation)
        if is_first:
            self._log(
                logging.WARNING, "Redis messages of namespace %s stopped: %s", type(error).__name__
            )

    def report_success(self, operation: str) -> None:
        """Record that an operation works."""
        with self._lock:
            was_failing = bool(self._failing)
            self._failing.discard(operation)
            is_last = was_failing and not self._failing
        if is_last:
            self._log(logging.INFO, "Redis messages of namespace %s resumed")

    def _log(self, level: int, text: str, *error: str) -> None:
        extra = {
            "resilience_namespace": self._namespace,
            "resilience_error": error[0] if error else None,
        }
        with suppress(Exception):  # a log handler that raises must not end the thread
            logger.log(level, text, self._namespace, *error, extra=extra)


def _check_name(setting: str, value: object) -> str:
    name = _settings.check_name(setting, value)
    if not name or len(json.dumps(name)) > _MAX_NAME_BYTES:
        msg = f"{setting} must have 1 to {_MAX_NAME_BYTES} bytes as JSON, got {value!r}"
        raise ValueError(msg)
    return name


def _make_process_name() -> str:
    """Return a unique and readable name of this process."""
    host = socket.gethostname()[:50]
    return f"{host if is_safe_text(host) else 'host'}:{os.getpid()}:{secrets.token_hex(4)}"


def _raise_first(replies: Iterable[object]) -> None:
    """Raise the first exception among the replies."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
