"""Exceptions of real HTTP clients are classified correctly.

Each client talks to a server on this machine. Those that are not installed are skipped.
"""

import asyncio
import contextlib
import json
import threading
import urllib.request
from collections.abc import Callable
from concurrent import futures
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch
from urllib.error import HTTPError

import pytest

from clients.loopback import Answer, Fault, refuse, serve
from http_answers import (
    GRPC_CODES,
    PROVIDER_FAULT,
    WRONG_PROVIDER,
    WRONG_REQUEST,
    Answers,
    answers,
)
from resilience import http

PATIENCE = 60.0  # seconds, long enough never to be needed
IMPATIENCE = 0.2  # seconds, for a server that never answers
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MESSAGES = [{"role": "user", "content": "Hello?"}]
EVENT_STREAM = {"Content-Type": "text/event-stream"}
CLIENTS = {
    *("aiohttp", "anthropic", "botocore", "elevenlabs", "google", "httpx", "httpx2", "ollama"),
    *("openai", "requests", "urllib", "websocket"),
}

Ask = Callable[[str, float], None]
"""Sends a request to a URL, with a timeout in seconds, and reads the answer."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect to this machine directly, whatever proxy the environment defines."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def ask_urllib(url: str, timeout: float) -> None:
    """Send a request with the standard library."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310
            response.read()
    except HTTPError as error:
        error.close()
        raise


def ask_httpx(url: str, timeout: float) -> None:
    """Send a request with httpx."""
    httpx = pytest.importorskip("httpx")
    with httpx.Client(timeout=timeout) as client:
        client.get(url).raise_for_status()


def ask_requests(url: str, timeout: float) -> None:
    """Send a request with requests."""
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        session.get(url, timeout=timeout).raise_for_status()


def ask_openai(url: str, timeout: float) -> None:
    """Request a whole answer with openai."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client:
        client.chat.completions.create(model="-", messages=MESSAGES)


def stream_openai(url: str, timeout: float) -> None:
    """Request a stream with openai."""
    openai = pytest.importorskip("openai")
    with (
        openai.OpenAI(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client,
        client.chat.completions.create(model="-", messages=MESSAGES, stream=True) as stream,
    ):
        list(stream)


def ask_anthropic(url: str, timeout: float) -> None:
    """Request a whole answer with anthropic."""
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client:
        client.messages.create(model="-", max_tokens=9, messages=MESSAGES)


def stream_anthropic(url: str, timeout: float) -> None:
    """Request a stream with anthropic."""
    anthropic = pytest.importorskip("anthropic")
    with (
        anthropic.Anthropic(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client,
        client.messages.create(model="-", max_tokens=9, messages=MESSAGES, stream=True) as stream,
    ):
        list(stream)


def stream_anthropic_lazily(url: str, timeout: float) -> None:
    """Request a stream with anthropic's helper, which sends it in the `with` statement."""
    anthropic = pytest.importorskip("anthropic")
    with (
        anthropic.Anthropic(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client,
        client.messages.stream(model="-", max_tokens=9, messages=MESSAGES) as stream,
    ):
        list(stream)


def ask_aiohttp(url: str, timeout: float) -> None:
    """Send a request with aiohttp."""
    aiohttp = pytest.importorskip("aiohttp")

    async def ask() -> None:
        limit = aiohttp.ClientTimeout(total=timeout)
        async with (
            aiohttp.ClientSession(timeout=limit, raise_for_status=True) as session,
            session.get(url) as response,
        ):
            await response.read()

    asyncio.run(ask())


def ask_botocore(url: str, timeout: float) -> None:
    """Request a whole answer with botocore."""
    sessions = pytest.importorskip("botocore.session")
    config = pytest.importorskip("botocore.config").Config(
        read_timeout=timeout, retries={"total_max_attempts": 1}
    )
    client = sessions.Session().create_client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id="-",
        aws_secret_access_key="-",  # noqa: S106
        config=config,
    )
    with contextlib.closing(client):
        client.converse(modelId="-", messages=[{"role": "user", "content": [{"text": "Hello?"}]}])


def ask_genai(url: str, timeout: float) -> None:
    """Request a whole answer with google-genai."""
    genai = pytest.importorskip("google.genai")
    options = {"base_url": url, "timeout": round(timeout * 1000)}
    with genai.Client(api_key="-", http_options=options) as client:
        client.models.generate_content(model="-", contents="Hello?")


def ask_ollama(url: str, timeout: float) -> None:
    """Request a whole answer with ollama."""
    ollama = pytest.importorskip("ollama")
    with ollama.Client(host=url, timeout=timeout) as client:
        client.chat(model="-", messages=MESSAGES)


def ask_elevenlabs(url: str, timeout: float) -> None:
    """Request a voice with elevenlabs."""
    httpx = pytest.importorskip("httpx")
    vendor = pytest.importorskip("elevenlabs.client")
    options = {"max_retries": 0, "timeout_in_seconds": timeout}
    with httpx.Client() as connections:
        client = vendor.ElevenLabs(api_key="-", base_url=url, httpx_client=connections)
        list(client.text_to_speech.convert("-", text="Hello?", request_options=options))


def connect_websocket_client(url: str, timeout: float) -> None:
    """Open a websocket with websocket-client."""
    websocket = pytest.importorskip("websocket")
    websocket.create_connection(url.replace("http", "ws"), timeout=timeout).close()


EVERY_CLIENT = [
    *[ask_urllib, ask_httpx, ask_requests, ask_openai, stream_openai],
    *[ask_anthropic, stream_anthropic, stream_anthropic_lazily],
    *[ask_aiohttp, ask_botocore, ask_genai, ask_ollama, ask_elevenlabs, connect_websocket_client],
]


def with_clients(*clients: Ask) -> pytest.MarkDecorator:
    """Run a test with each of some clients."""
    return pytest.mark.parametrize("ask", clients, ids=lambda ask: ask.__name__)


with_every_client = with_clients(*EVERY_CLIENT)
with_every_client_that_has_headers = with_clients(
    *(client for client in EVERY_CLIENT if client is not ask_ollama)
)

with_some_statuses = pytest.mark.parametrize(
    ("status", "expected"),
    [(400, WRONG_REQUEST), (404, WRONG_PROVIDER), (401, PROVIDER_FAULT), (429, PROVIDER_FAULT)],
)


def error_of(ask: Ask, url: str, timeout: float = PATIENCE) -> Exception:
    """Return the exception of a client, which must be about HTTP and not a mistake of the test."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ask(url, timeout)
    package = type(caught.value).__module__.partition(".")[0]
    assert isinstance(caught.value, OSError) or package in CLIENTS, caught.value
    return caught.value


@with_every_client
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *[(status, WRONG_REQUEST) for status in (400, 405, 411, 415, 422, 424, 451, 499)],
        *[(status, WRONG_PROVIDER) for status in (403, 404, 413)],
        *[(status, PROVIDER_FAULT) for status in (401, 402, 408, 409, 425, 429)],
        *[(status, PROVIDER_FAULT) for status in (500, 501, 502, 503, 504, 529)],
    ],
)
def test_the_status_of_a_response_decides(ask: Ask, status: int, expected: Answers) -> None:
    """A response counts and fails over according to its status."""
    with serve(Answer(status=status)) as url:
        error = error_of(ask, url)

    assert answers(error) == expected
    assert http.retry_after(error) is None


@with_every_client_that_has_headers
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "30"}, 30.0),
        ({"Retry-After": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90.0),
        ({"Retry-After": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0.0),
        ({"Retry-After": "2", "Retry-After-Ms": "1500"}, 1.5),
    ],
    ids=["number", "date", "past", "milliseconds"],
)
def test_the_provider_says_when_to_come_back(
    ask: Ask, status: int, headers: dict[str, str], seconds: float
) -> None:
    """The delay that a response requests is found, in each of its forms."""
    with serve(Answer(status=status, headers=headers)) as url:
        error = error_of(ask, url)

    with patch.object(http, "time", SimpleNamespace(time=NOW.timestamp)):
        assert http.retry_after(error) == seconds


@with_every_client_that_has_headers
def test_the_clock_of_this_machine_does_not_matter(ask: Ask) -> None:
    """A date in `Retry-After` is measured from the date of the response."""
    date, later = (format_datetime(NOW + timedelta(seconds=wait), usegmt=True) for wait in (0, 60))
    with serve(Answer(status=429, headers={"Date": date, "Retry-After": later})) as url:
        error = error_of(ask, url)

    assert http.retry_after(error) == 60.0


@with_every_client
@pytest.mark.parametrize(
    ("server", "timeout"),
    [
        (refuse, PATIENCE),
        (partial(serve, Fault.RESET), PATIENCE),
        (partial(serve, Fault.SILENCE), IMPATIENCE),
    ],
    ids=["refused", "reset", "silent"],
)
def test_no_response_is_the_providers_fault(
    ask: Ask, server: Callable[[], AbstractContextManager[str]], timeout: float
) -> None:
    """A connection that is refused or reset, and a client's own timeout, count and fail over."""
    with server() as url:
        error = error_of(ask, url, timeout)

    assert answers(error) == PROVIDER_FAULT
    assert http.retry_after(error) is None


@pytest.mark.parametrize("ask", [stream_anthropic, stream_anthropic_lazily])
@pytest.mark.parametrize("kind", ["overloaded_error", "api_error", "rate_limit_error"])
def test_an_error_in_anthropics_stream_is_the_providers_fault(ask: Ask, kind: str) -> None:
    """An error event has the status of the stream, 200, and is the provider's fault."""
    event = {"type": "error", "error": {"type": kind, "message": "Sorry."}}
    body = f"event: error\ndata: {json.dumps(event)}\n\n".encode()

    with serve(Answer(headers=EVENT_STREAM, body=body)) as url:
        error = error_of(ask, url)

    assert getattr(error, "status_code", None) == 200
    assert answers(error) == PROVIDER_FAULT
    assert http.retry_after(error) is None


def test_an_error_in_openais_stream_is_the_providers_fault() -> None:
    """An error event has no status, and is the provider's fault."""
    event = {"error": {"type": "server_error", "code": 500, "message": "Sorry."}}
    body = f"data: {json.dumps(event)}\n\n".encode()

    with serve(Answer(headers=EVENT_STREAM, body=body)) as url:
        error = error_of(stream_openai, url)

    assert not hasattr(error, "status_code")
    assert answers(error) == PROVIDER_FAULT
    assert http.retry_after(error) is None


# ---- delays that are not in a header

RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
GOOGLES_ERROR = {
    "error": {
        "code": 429,
        "message": "Quota exceeded.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}, RETRY_INFO],
    }
}


@pytest.mark.parametrize(
    ("ask", "body"), [(ask_genai, GOOGLES_ERROR), (ask_openai, [GOOGLES_ERROR])]
)
def test_googles_retry_info_is_a_wait(ask: Ask, body: object) -> None:
    """The delay in the body of Google's 429 is found, with their client and with openai's."""
    headers = {"Content-Type": "application/json"}
    with serve(Answer(status=429, headers=headers, body=json.dumps(body).encode())) as url:
        error = error_of(ask, url)

    assert answers(error) == PROVIDER_FAULT
    assert http.retry_after(error) == 34.5


# ---- errors of AWS


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "ValidationException", WRONG_REQUEST),
        (400, "ThrottlingException", PROVIDER_FAULT),
        (400, "ServiceQuotaExceededException", PROVIDER_FAULT),
        (424, "ModelErrorException", PROVIDER_FAULT),
        (403, "AccessDeniedException", WRONG_PROVIDER),
        (404, "ResourceNotFoundException", WRONG_PROVIDER),
    ],
)
def test_the_error_codes_of_aws_are_read(status: int, code: str, expected: Answers) -> None:
    """Throttling is the provider's fault also if AWS sends it with a status of 400."""
    with serve(Answer(status=status, headers={"x-amzn-ErrorType": code})) as url:
        error = error_of(ask_botocore, url)

    assert answers(error) == expected


# ---- gRPC


def fail_by_grpc(code: str, wait: float | None = None) -> tuple[Exception, Exception]:
    """Let a real server abort a call; return the exceptions of grpc and google-api-core."""
    grpc = pytest.importorskip("grpc")
    rpc_status = pytest.importorskip("grpc_status.rpc_status")
    wrap_errors = pytest.importorskip("google.api_core.grpc_helpers").wrap_errors
    details = pytest.importorskip("google.rpc.error_details_pb2")
    status = pytest.importorskip("google.rpc.status_pb2").Status(
        code=grpc.StatusCode[code].value[0], message="Sorry."
    )
    if wait is not None:
        info = details.RetryInfo()
        info.retry_delay.FromMilliseconds(round(wait * 1000))
        status.details.add().Pack(info)

    def abort(_: bytes, context: Any) -> NoReturn:  # noqa: ANN401
        context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError

    handler = grpc.unary_unary_rpc_method_handler(abort)
    with futures.ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("speech", {"hear": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/speech/hear")
                with pytest.raises(grpc.RpcError) as raw:
                    call(b"", timeout=PATIENCE)
                with pytest.raises(Exception, match="Sorry") as wrapped:
                    wrap_errors(call)(b"", timeout=PATIENCE)
        finally:
            server.stop(None).wait()
    return raw.value, wrapped.value


@pytest.mark.parametrize(("code", "expected"), GRPC_CODES.items())
def test_the_code_of_grpc_decides(code: str, expected: Answers) -> None:
    """Exceptions of grpc and google-api-core count and fail over according to their codes."""
    for error in fail_by_grpc(code):
        assert answers(error) == expected
        assert http.retry_after(error) is None


def test_the_retry_info_of_google_api_core_is_a_wait() -> None:
    """The delay that a gRPC server sends is found in the exception of google-api-core."""
    _, error = fail_by_grpc("RESOURCE_EXHAUSTED", 34.5)

    assert http.retry_after(error) == 34.5


@with_some_statuses
def test_google_api_core_is_read_over_http(status: int, expected: Answers) -> None:
    """An exception of google-api-core for an HTTP response is read like one for gRPC."""
    from_response = pytest.importorskip("google.api_core.exceptions").from_http_response
    with serve(Answer(status=status, headers={"Retry-After": "30"})) as url:
        error = error_of(ask_requests, url)

    error = from_response(error.response)  # type: ignore[attr-defined]

    assert answers(error) == expected
    assert http.retry_after(error) == 30.0


# ---- websockets


def fail_by_websocket(process_request: object = None, close_code: int = 1000) -> Exception:
    """Let a real server refuse or close a websocket; return the exception of websockets."""
    server_side = pytest.importorskip("websockets.sync.server")
    client_side = pytest.importorskip("websockets.sync.client")

    def hang_up(connection: Any) -> None:  # noqa: ANN401
        connection.close(close_code, "Sorry.")

    with server_side.serve(hang_up, "127.0.0.1", 0, process_request=process_request) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        try:
            with (
                pytest.raises(pytest.importorskip("websockets").WebSocketException) as caught,
                client_side.connect(f"ws://127.0.0.1:{port}", proxy=None) as connection,
            ):
                connection.recv(PATIENCE)
        finally:
            server.shutdown()
            thread.join()
    error: Exception = caught.value
    return error


@with_some_statuses
def test_a_refused_handshake_is_read(status: int, expected: Answers) -> None:
    """The status and the headers of a refused handshake are found."""

    def refuse_it(connection: Any, _: object) -> object:  # noqa: ANN401
        response = connection.respond(status, "Sorry.")
        response.headers["Retry-After"] = "30"
        return response

    error = fail_by_websocket(refuse_it)

    assert answers(error) == expected
    assert http.retry_after(error) == 30.0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1008, WRONG_PROVIDER),
        (1009, WRONG_PROVIDER),
        (4400, WRONG_REQUEST),
        (4404, WRONG_PROVIDER),
        (4429, WRONG_PROVIDER),
        (1000, PROVIDER_FAULT),
        (1011, PROVIDER_FAULT),
        (4001, PROVIDER_FAULT),
    ],
)
def test_a_close_code_is_read(code: int, expected: Answers) -> None:
    """A websocket's close code decides, and reading it causes no deprecation warning."""
    error = fail_by_websocket(close_code=code)

    assert answers(error) == expected
    assert http.retry_after(error) is None


# ---- exceptions that wrap others


def retry(ask: Ask, url: str) -> None:
    """Make one request with tenacity, which raises its own error after the last attempt."""
    tenacity = pytest.importorskip("tenacity")
    tenacity.Retrying(stop=tenacity.stop_after_attempt(1))(ask, url, PATIENCE)


def ask_in_task_group(ask: Ask, url: str) -> None:
    """Send two requests at the same time, in a group of tasks."""

    async def ask_both() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(asyncio.to_thread(ask, url, PATIENCE))

    asyncio.run(ask_both())


@pytest.mark.parametrize("wrap", [retry, ask_in_task_group])
@with_some_statuses
def test_a_wrapped_error_is_read(
    wrap: Callable[[Ask, str], None], status: int, expected: Answers
) -> None:
    """Exceptions of tenacity and of task groups are classified like the client's own error."""
    with (
        serve(Answer(status=status, headers={"Retry-After": "30"})) as url,
        pytest.raises(Exception) as caught,  # noqa: PT011
    ):
        wrap(ask_httpx, url)

    assert type(caught.value).__name__ in {"RetryError", "ExceptionGroup"}
    assert answers(caught.value) == expected
    assert http.retry_after(caught.value) == 30.0
