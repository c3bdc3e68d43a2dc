import email.utils
import pickle
import socket
import time

import pytest

from deepfabric_trainer.callbacks._sinks.deepfabric_endpoint import Endpoint, Verdict, check_url, seconds_to_wait
from deepfabric_trainer.errors import ConfigError
from tests.fixtures.failing_server import break_off, break_off_body, failing_server, hang, hang_up, status

KEY = "df-secret-0123456789"


def test_posts_json_with_the_key_as_a_bearer() -> None:
    with failing_server() as server:
        outcome = Endpoint(server.url + "/", KEY).post("metrics", {"metrics": [{"city": "Köln"}]}, 5)
    assert outcome.verdict is Verdict.SENT
    ((path, headers, body),) = server.requests
    assert path == "/v1/training/metrics"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert body == {"metrics": [{"city": "Köln"}]}


def test_files_runs_under_a_pipeline() -> None:
    with failing_server() as server:
        Endpoint(server.url, KEY, pipeline_id="a/b c").post("runs", {}, 5)
    assert server.requests[0][0] == "/api/v1/training/runs?pipeline_id=a%2Fb+c"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (status(201), Verdict.SENT),
        (break_off_body, Verdict.SENT),
        (status(500), Verdict.RETRY),
        (status(503), Verdict.RETRY),
        (status(429), Verdict.RETRY),
        (status(408), Verdict.RETRY),
        (hang(1.0), Verdict.RETRY),
        (hang_up, Verdict.RETRY),
        (break_off, Verdict.RETRY),
        (status(400), Verdict.REFUSED),
        (status(413), Verdict.REFUSED),
        (status(422), Verdict.REFUSED),
        (status(401), Verdict.CLOSED),
        (status(403), Verdict.CLOSED),
        (status(404), Verdict.CLOSED),
    ],
)
def test_knows_what_to_do_next(answer, verdict) -> None:
    with failing_server(answer) as server:
        outcome = Endpoint(server.url, KEY).post("metrics", {"metrics": []}, 0.3)
    assert outcome.verdict is verdict
    assert KEY not in repr(outcome)


def test_tries_again_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outcome = Endpoint(f"http://127.0.0.1:{port}", KEY).post("runs", {}, 1)
    assert outcome.verdict is Verdict.RETRY
    assert "ConnectionRefusedError" in outcome.reason


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_follows_no_redirect_so_that_the_key_stays_with_its_host(code: int) -> None:
    with failing_server() as other, failing_server(status(code, Location=other.url + "/stolen")) as server:
        outcome = Endpoint(server.url, KEY).post("runs", {}, 5)
    assert outcome.verdict is Verdict.CLOSED
    assert other.requests == []


def test_sends_nothing_for_this_machine_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with failing_server() as proxy, failing_server() as server:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        Endpoint(server.url, KEY).post("runs", {}, 5)
    assert len(server.requests) == 1
    assert proxy.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "http://10.0.0.1:80",
        "ftp://localhost",
        "localhost:80",
        "https://",
        "https://host:nothing",
        "https://[::1",
        f"https://me:{KEY}@example.com",
        f"https://example.com?key={KEY}",
        "http://localhost.example.com",
    ],
)
def test_refuses_an_address_where_the_key_would_be_read(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint(url, KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("https://api.deepfabric.ai", False),
        ("http://localhost:8888", True),
        ("http://127.0.0.1", True),
        ("http://[::1]:80/base", True),
    ],
)
def test_takes_https_and_this_machine(url: str, local: bool) -> None:
    assert check_url(url, allow_http=False) is local


def test_takes_plain_http_when_asked() -> None:
    assert check_url("http://example.com", allow_http=True) is False


@pytest.mark.parametrize("key", ["", " ", "a\nb: c", "ключ", "two words"])
def test_refuses_a_key_that_no_header_holds_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint("https://example.com", key)
    assert not key.strip() or key not in str(caught.value)


def test_shows_the_key_nowhere() -> None:
    endpoint = Endpoint("https://example.com", KEY)
    assert KEY not in repr(endpoint) + repr(endpoint.post) + endpoint.url("runs")
    with pytest.raises(TypeError, match="key"):
        pickle.dumps(endpoint)


def test_reads_retry_after_as_seconds_and_as_a_date() -> None:
    assert seconds_to_wait(None) is None
    assert seconds_to_wait("7") == 7
    assert seconds_to_wait("-1") == 0
    assert seconds_to_wait("nan") is None
    assert seconds_to_wait("1e9") == 3600
    assert seconds_to_wait("soon") is None
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert seconds_to_wait(date) == pytest.approx(30, abs=2)
    with failing_server(status(429, Retry_After="3")) as server:
        assert Endpoint(server.url, KEY).post("runs", {}, 5).retry_after == 3
