"""The recipes for web frameworks, with real servers and a client that disconnects."""

import asyncio
import functools
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, final

import pytest
from typing_extensions import override

from resilience import Attempt, FallbackConfig, LLMFallback, Outcome, Stream, aio, llm
from resilience.testing import FakeLLM

django = pytest.importorskip("django")
django_conf = pytest.importorskip("django.conf")
django_asgi = pytest.importorskip("django.core.asgi")
django_wsgi = pytest.importorskip("django.core.wsgi")
pytest.importorskip("fastapi")
pytest.importorskip("flask")
uvicorn = pytest.importorskip("uvicorn")
waitress = pytest.importorskip("waitress")
serving = pytest.importorskip("werkzeug.serving")

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LIMIT = 20.0  # seconds

Serve: TypeAlias = Callable[[Any], AbstractContextManager[int]]
"""Runs a server of an application; the port."""


@functools.cache
def recipe(package: str) -> dict[str, Any]:
    """Run the block of the page that imports a package; its names."""
    blocks: list[str] = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    (code,) = (block for block in blocks if re.search(rf"\n(import|from) {package}\b", block))
    names: dict[str, Any] = {"__name__": package + "_recipe"}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102
    return names


def flask_application() -> Any:  # noqa: ANN401
    """Return the application of the page."""
    return recipe("flask")["app"]


def fastapi_application() -> Any:  # noqa: ANN401
    """Return the application of the page."""
    return recipe("fastapi")["app"]


@functools.cache
def set_django_up() -> None:
    """Configure Django with the view of the page as the only view."""
    django_conf.settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        LOGGING_CONFIG=None,
        ROOT_URLCONF=tuple(recipe("django")["urlpatterns"]),
    )
    django.setup()


def django_wsgi_application() -> Any:  # noqa: ANN401
    """Return the application for a WSGI server."""
    set_django_up()
    return django_wsgi.get_wsgi_application()


def django_asgi_application() -> Any:  # noqa: ANN401
    """Return the application for an ASGI server."""
    set_django_up()
    return django_asgi.get_asgi_application()


@contextmanager
def under_werkzeug(application: Any) -> Iterator[int]:  # noqa: ANN401
    """Run the server that `flask run` starts."""
    server = serving.make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def under_waitress(application: Any) -> Iterator[int]:  # noqa: ANN401
    """Run a WSGI server that is made for production."""
    server = waitress.create_server(application, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.trigger.pull_trigger(server.close)
        thread.join()


@contextmanager
def under_uvicorn(application: Any) -> Iterator[int]:  # noqa: ANN401
    """Run an ASGI server."""
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


wsgi = [
    pytest.param(flask_application, under_werkzeug, "flask", id="flask-werkzeug"),
    pytest.param(flask_application, under_waitress, "flask", id="flask-waitress"),
    pytest.param(django_wsgi_application, under_waitress, "django", id="django-waitress"),
]
asgi = [
    pytest.param(django_asgi_application, under_uvicorn, "django", id="django-uvicorn"),
    pytest.param(fastapi_application, under_uvicorn, "fastapi", id="fastapi-uvicorn"),
]
on_all = pytest.mark.parametrize(("application", "serve", "package"), [*wsgi, *asgi])
on_asgi = pytest.mark.parametrize(("application", "serve", "package"), asgi)


@final
class Writer(llm.Provider):
    """A model that writes one word, waits for an event, and then writes 128 MB."""

    def __init__(self) -> None:
        """Make a model that waits."""
        self.is_waiting = threading.Event()
        self.may_go_on = threading.Event()
        self.is_closed = threading.Event()
        self.written = 0
        self.reached_the_end = False

    @override
    def stream_completion(self, request: llm.CompletionRequest) -> Iterator[llm.Chunk]:
        try:
            yield llm.Chunk(content="Water")
            self.is_waiting.set()
            self.may_go_on.wait(LIMIT)
            for self.written in range(1, 2049):
                yield llm.Chunk(content="." * 65536)
            self.reached_the_end = True
        finally:
            self.is_closed.set()

    @override
    def complete(self, request: llm.CompletionRequest) -> llm.CompletionResponse:
        raise NotImplementedError

    @override
    def count_tokens(self, messages: Sequence[llm.Message]) -> int:
        raise NotImplementedError

    @override
    def capabilities(self) -> llm.ModelCapabilities:
        raise NotImplementedError


@final
class Keeper:
    """A model whose streams are kept, so that none is closed because it was dropped."""

    def __init__(self, provider: llm.Provider) -> None:
        """Keep the streams of a provider, and the outcomes of its attempts."""
        self.streams: list[Stream[llm.Chunk]] = []
        self.outcomes: list[Outcome] = []
        self.is_settled = threading.Event()
        self._model = LLMFallback(provider, "writer", FallbackConfig(on_attempt=self._record))

    def stream_completion(self, request: llm.CompletionRequest) -> Stream[llm.Chunk]:
        """Open a stream and keep it."""
        stream = self._model.stream_completion(request)
        self.streams.append(stream)
        return stream

    def _record(self, attempt: Attempt) -> None:
        self.outcomes.append(attempt.outcome)
        self.is_settled.set()


@contextmanager
def asking(port: int) -> Iterator[socket.socket]:
    """Send a request; the connection, which is closed at the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        connection.sendall(b"GET /answer?question=Rain HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        yield connection


def read_until(connection: socket.socket, word: bytes) -> bytes:
    """Read until a word has arrived; return everything that was received."""
    received = b""
    while word not in received:
        some = connection.recv(4096)
        assert some, received
        received += some
    return received


@on_all
def test_a_client_that_leaves_closes_the_stream(
    application: Callable[[], Any], serve: Serve, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a client disconnects, the provider's stream is closed, and the call has succeeded."""
    writer = Writer()
    writer.may_go_on.set()
    keeper = Keeper(writer)
    monkeypatch.setitem(recipe(package), "model", keeper)

    with serve(application()) as port:
        with asking(port) as connection:
            read_until(connection, b"Water")
        assert writer.is_closed.wait(LIMIT)

    assert not writer.reached_the_end
    assert keeper.outcomes == [Outcome.SUCCEEDED]


@on_all
def test_a_client_that_leaves_while_the_model_is_silent(
    application: Callable[[], Any], serve: Serve, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider's stream is closed when the model writes again."""
    writer = Writer()
    keeper = Keeper(writer)
    monkeypatch.setitem(recipe(package), "model", keeper)

    with serve(application()) as port:
        with asking(port) as connection:
            read_until(connection, b"Water")
            assert writer.is_waiting.wait(LIMIT)
        writer.may_go_on.set()
        assert writer.is_closed.wait(LIMIT)

    assert not writer.reached_the_end
    assert keeper.outcomes == [Outcome.SUCCEEDED]


@on_asgi
def test_a_silent_model_delays_nothing(
    application: Callable[[], Any], serve: Serve, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ASGI server settles the call while a thread is in `next()`, and reads no further item."""
    writer = Writer()
    keeper = Keeper(writer)
    monkeypatch.setitem(recipe(package), "model", keeper)

    with serve(application()) as port:
        with asking(port) as connection:
            read_until(connection, b"Water")
            assert writer.is_waiting.wait(LIMIT)
        assert keeper.is_settled.wait(LIMIT / 2)
        was_closed = writer.is_closed.is_set()
        writer.may_go_on.set()
        assert writer.is_closed.wait(LIMIT)

    assert not was_closed
    assert writer.written == 1
    assert keeper.outcomes == [Outcome.SUCCEEDED]


def test_no_provider_can_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI's response is a 503, since the stream is opened before the response begins."""
    model = LLMFallback(FakeLLM(ConnectionError()), "down")
    monkeypatch.setitem(recipe("fastapi"), "model", model)

    with under_uvicorn(fastapi_application()) as port, asking(port) as connection:
        received = read_until(connection, b"just now")

    assert received.startswith(b"HTTP/1.1 503")


def test_a_server_whose_send_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI's response closes the stream before it raises the exception of the server."""
    monkeypatch.delattr(aio.Stream, "__del__")  # so that dropping the stream does not close it
    writer = Writer()
    writer.may_go_on.set()
    events = aio.stream(Keeper(writer).stream_completion, llm.CompletionRequest(messages=()))

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    async def respond() -> bool:
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        with pytest.raises(Exception):  # noqa: B017, PT011 -- the type depends on the version
            await recipe("fastapi")["EventResponse"](events)(scope, asyncio.Event().wait, send)
        return writer.is_closed.is_set()

    assert asyncio.run(respond())


def test_a_response_that_is_never_sent() -> None:
    """If Django sends no response, as for HEAD, it closes it; the model's stream is closed."""
    fake = FakeLLM("Water from clouds.")
    stream = LLMFallback(fake, "north").stream_completion(llm.CompletionRequest(messages=()))

    recipe("django")["AsyncEvents"](stream).close()

    assert fake.streams[0].closed == 1


@on_all
def test_a_client_that_stays_receives_everything(
    application: Callable[[], Any], serve: Serve, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk is one event."""
    keeper = Keeper(FakeLLM("Water from clouds."))
    monkeypatch.setitem(recipe(package), "model", keeper)

    with serve(application()) as port, asking(port) as connection:
        received = read_until(connection, b'data: ""\n\n')

    assert b"content-type: text/event-stream" in received.lower()
    assert re.findall(rb'data: "(.*)"', received) == [b"Water ", b"from ", b"clouds.", b""]
    assert keeper.outcomes == [Outcome.SUCCEEDED]
