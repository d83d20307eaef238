"""What real HTTP clients raise is read as it is meant.

Each client talks to a server on this machine. Those that are not installed are skipped.
"""

import json
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from unittest.mock import patch
from urllib.error import HTTPError

import pytest

from clients.loopback import Answer, Fault, refuse, serve
from resilience import http

PATIENCE = 60.0  # seconds, long enough never to be needed
IMPATIENCE = 0.2  # seconds, for a server that never answers
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MESSAGES = [{"role": "user", "content": "Hello?"}]
EVENT_STREAM = {"Content-Type": "text/event-stream"}
CLIENTS = {"anthropic", "httpx", "openai", "requests", "urllib"}

Ask = Callable[[str, float], None]
"""Sends a request to a URL, waits no longer than some seconds, and reads the answer."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach this machine directly, whatever the environment says."""
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
    """Ask for a whole answer with openai."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client:
        client.chat.completions.create(model="-", messages=MESSAGES)


def stream_openai(url: str, timeout: float) -> None:
    """Ask for a stream with openai."""
    openai = pytest.importorskip("openai")
    with (
        openai.OpenAI(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client,
        client.chat.completions.create(model="-", messages=MESSAGES, stream=True) as stream,
    ):
        list(stream)


def ask_anthropic(url: str, timeout: float) -> None:
    """Ask for a whole answer with anthropic."""
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client:
        client.messages.create(model="-", max_tokens=9, messages=MESSAGES)


def stream_anthropic(url: str, timeout: float) -> None:
    """Ask for a stream with anthropic."""
    anthropic = pytest.importorskip("anthropic")
    with (
        anthropic.Anthropic(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client,
        client.messages.create(model="-", max_tokens=9, messages=MESSAGES, stream=True) as stream,
    ):
        list(stream)


def stream_anthropic_lazily(url: str, timeout: float) -> None:
    """Ask for a stream with anthropic's helper, which begins in the `with` statement."""
    anthropic = pytest.importorskip("anthropic")
    with (
        anthropic.Anthropic(api_key="-", base_url=url, timeout=timeout, max_retries=0) as client,
        client.messages.stream(model="-", max_tokens=9, messages=MESSAGES) as stream,
    ):
        list(stream)


with_every_client = pytest.mark.parametrize(
    "ask",
    [
        *[ask_urllib, ask_httpx, ask_requests, ask_openai, stream_openai],
        *[ask_anthropic, stream_anthropic, stream_anthropic_lazily],
    ],
    ids=lambda ask: ask.__name__,
)


def error_of(ask: Ask, url: str, timeout: float = PATIENCE) -> Exception:
    """Return what a client raises, and make sure that it is about HTTP and no mistake in here."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ask(url, timeout)
    package = type(caught.value).__module__.partition(".")[0]
    assert isinstance(caught.value, OSError) or package in CLIENTS, caught.value
    return caught.value


@with_every_client
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_client_error_is_not_the_providers_fault(ask: Ask, status: int) -> None:
    """A response that finds fault with the request is not the provider's fault."""
    with serve(Answer(status=status)) as url:
        error = error_of(ask, url)

    assert not http.is_provider_fault(error)
    assert http.retry_after(error) is None


@with_every_client
@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 529])
def test_every_other_status_is_the_providers_fault(ask: Ask, status: int) -> None:
    """A response that says nothing against the request is the provider's fault."""
    with serve(Answer(status=status)) as url:
        error = error_of(ask, url)

    assert http.is_provider_fault(error)
    assert http.retry_after(error) is None


@with_every_client
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
    """A wait that the response asks for is found, in each form that it may have."""
    with serve(Answer(status=status, headers=headers)) as url:
        error = error_of(ask, url)

    with patch.object(http, "time", SimpleNamespace(time=NOW.timestamp)):
        assert http.retry_after(error) == seconds


@with_every_client
def test_a_refused_connection_is_the_providers_fault(ask: Ask) -> None:
    """A port at which nobody listens is the provider's fault, and says no wait."""
    with refuse() as url:
        error = error_of(ask, url)

    assert http.is_provider_fault(error)
    assert http.retry_after(error) is None


@with_every_client
def test_a_reset_connection_is_the_providers_fault(ask: Ask) -> None:
    """A connection that is reset instead of answered is the provider's fault."""
    with serve(Fault.RESET) as url:
        error = error_of(ask, url)

    assert http.is_provider_fault(error)
    assert http.retry_after(error) is None


@with_every_client
def test_silence_is_the_providers_fault(ask: Ask) -> None:
    """A client's own timeout is the provider's fault."""
    with serve(Fault.SILENCE) as url:
        error = error_of(ask, url, IMPATIENCE)

    assert http.is_provider_fault(error)
    assert http.retry_after(error) is None


@pytest.mark.parametrize("ask", [stream_anthropic, stream_anthropic_lazily])
@pytest.mark.parametrize("kind", ["overloaded_error", "api_error", "rate_limit_error"])
def test_an_error_in_anthropics_stream_is_the_providers_fault(ask: Ask, kind: str) -> None:
    """An error event carries the status of the stream, 200, and is the provider's fault."""
    event = {"type": "error", "error": {"type": kind, "message": "Sorry."}}
    body = f"event: error\ndata: {json.dumps(event)}\n\n".encode()

    with serve(Answer(headers=EVENT_STREAM, body=body)) as url:
        error = error_of(ask, url)

    assert getattr(error, "status_code", None) == 200
    assert http.is_provider_fault(error)
    assert http.retry_after(error) is None


def test_an_error_in_openais_stream_is_the_providers_fault() -> None:
    """An error event carries no status, and is the provider's fault."""
    event = {"error": {"type": "server_error", "code": 500, "message": "Sorry."}}
    body = f"data: {json.dumps(event)}\n\n".encode()

    with serve(Answer(headers=EVENT_STREAM, body=body)) as url:
        error = error_of(stream_openai, url)

    assert not hasattr(error, "status_code")
    assert http.is_provider_fault(error)
    assert http.retry_after(error) is None
