"""Who may call the server, with what."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from audiocraft_mlx.server import security
from audiocraft_mlx.server.connections import TimedProtocol
from audiocraft_mlx.server.security import LOOPBACK_NAMES, SecuritySettings
from tests.fake_service import FakeService
from tests.live_server import eventually, running

pytestmark = pytest.mark.alone

TOKEN = "a-token-of-the-tests"
HTTP = httpx.Client(timeout=20)
JOB = {"prompt": "a piano", "duration": 1.0}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = SecuritySettings(LOOPBACK_NAMES | {"music.example"}, body_bytes=1_000_000, json_bytes=100_000)
    with running(FakeService(tmp_path_factory.mktemp("data")), settings) as url:
        yield url


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a network."""
    settings = SecuritySettings(LOOPBACK_NAMES, any_address=True, token=TOKEN)
    with running(FakeService(tmp_path_factory.mktemp("data")), settings) as url:
        yield url


@pytest.fixture(autouse=True)
def _no_cookies() -> None:
    HTTP.cookies.clear()


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


def refused(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and bool(answer.json()["error"]["message"])


# Names


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:{port}", "localhost.evil.example", "127.0.0.1.nip.example:{port}"),
        *("192.168.1.5:{port}", "[fe80::1]:{port}", "xn--localhost", "music.example.evil"),
    ],
)
def test_foreign_names_are_refused_as_after_rebinding(url: str, host: str) -> None:
    host = host.format(port=port_of(url))
    # A rebound page's origin equals its host.
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert refused(HTTP.get(f"{url}/api/jobs", headers=headers), 403)
    assert refused(HTTP.post(f"{url}/api/jobs", headers=headers, json=JOB), 403)
    assert refused(HTTP.get(f"{url}/", headers={"host": host}), 403)


@pytest.mark.parametrize("host", ["", "a b", "localhost:x", "[::1", "localhost@evil", "localhost:80:80"])
def test_invalid_names_are_refused(url: str, host: str) -> None:
    assert HTTP.get(f"{url}/health", headers={"host": host}).status_code in (400, 403)


@pytest.mark.parametrize(
    "host",
    ["localhost:{port}", "LOCALHOST:{port}", "127.0.0.1", "[::1]:{port}", "music.example", "localhost."],
)
def test_own_names_are_accepted(url: str, host: str) -> None:
    answer = HTTP.get(f"{url}/health", headers={"host": host.format(port=port_of(url))})
    assert answer.status_code == 200


def test_server_on_a_network_may_be_called_by_its_addresses(guarded: str) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert HTTP.get(f"{guarded}/health", headers=headers | {"host": "192.168.1.5"}).status_code == 200
    assert HTTP.get(f"{guarded}/health", headers=headers | {"host": "evil.example"}).status_code == 403


# Pages from elsewhere


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "file://"},
        {"origin": "http://{host}@evil.example"},
        {"origin": "http://["},
        {"origin": "http://[::1]x"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    ],
)
def test_pages_from_elsewhere_cant_change_anything(url: str, headers: dict[str, str]) -> None:
    host = url.removeprefix("http://")
    headers = {key: value.format(host=host) for key, value in headers.items()}
    for method, path in (("POST", "/api/jobs"), ("DELETE", "/api/jobs/x"), ("POST", "/v1/audio/speech")):
        answer = HTTP.request(method, url + path, headers=headers, json=JOB)
        assert refused(answer, 403), (method, path)


def test_pages_from_elsewhere_cant_read_or_hold_streams(url: str) -> None:
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert refused(HTTP.get(f"{url}/api/events", headers=headers), 403)


def test_link_from_elsewhere_leads_to_the_page(url: str) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert HTTP.get(f"{url}/", headers=headers).status_code != 403
    assert HTTP.get(f"{url}/", headers=headers | {"sec-fetch-dest": "iframe"}).status_code == 403


def test_own_page_may_do_all(url: str) -> None:
    headers = {"origin": url, "sec-fetch-site": "same-origin"}
    assert HTTP.post(f"{url}/api/jobs", headers=headers, json=JOB).status_code == 202
    # Behind a proxy that has the certificate.
    proxied = {"host": "music.example", "origin": "https://music.example"}
    assert HTTP.post(f"{url}/api/jobs", headers=proxied, json=JOB).status_code == 202


def test_other_origins_are_never_allowed_by_cors(url: str) -> None:
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = HTTP.options(f"{url}/api/jobs", headers=headers)
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)
    for path in ("/health", "/api/jobs", "/nothing"):
        answer = HTTP.get(url + path)
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/jsonx"],
)
def test_content_types_of_forms_are_refused(url: str, kind: str) -> None:
    body = b'{"prompt": "a piano"}'
    headers = {"content-type": kind} if kind else {}
    for path in ("/api/jobs", "/api/audio", "/v1/audio/speech", "/hf/demo"):
        assert refused(HTTP.post(url + path, content=body, headers=headers), 415), path


@pytest.mark.parametrize("path", ["/health", "/", "/nothing", "/openapi.json"])
@pytest.mark.parametrize("host", [None, "evil.example"])
def test_headers_for_browsers_are_on_every_answer(url: str, path: str, host: str | None) -> None:
    headers = HTTP.get(url + path, headers={} if host is None else {"host": host}).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers or "uvicorn" in headers["server"]


# The token


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer {TOKEN}"},
        {"xi-api-key": TOKEN},
    ],
)
def test_right_token_opens_every_way(guarded: str, headers: dict[str, str]) -> None:
    assert HTTP.get(f"{guarded}/health", headers=headers).status_code == 200
    assert HTTP.post(f"{guarded}/api/jobs", headers=headers, json=JOB).status_code == 202


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"xi-api-key": TOKEN[:-1]},
        {"cookie": f"token={TOKEN}"},
        {"cookie": "=; ;;"},
        {"x-forwarded-for": "127.0.0.1"},
    ],
)
@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/api/jobs", "/api/events", "/openapi.json", "/v1/models", "/nothing", "/page/main.js"],
)
def test_nothing_opens_without_the_token(guarded: str, path: str, headers: dict[str, str]) -> None:
    answer = HTTP.get(guarded + path, headers=headers)
    assert refused(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_printed_address_becomes_a_cookie(guarded: str) -> None:
    answer = HTTP.get(f"{guarded}/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    pair = cookie.partition(";")[0]
    assert HTTP.get(f"{guarded}/health", headers={"cookie": f"other=1; {pair}"}).status_code == 200
    assert HTTP.get(f"{guarded}/health", headers={"cookie": pair[:-1]}).status_code == 401
    # Again: it must not stay in the address bar.
    again = HTTP.get(f"{guarded}/?token={TOKEN}", headers={"cookie": pair})
    assert (again.status_code, again.headers["location"]) == (303, "/")
    wrong = HTTP.get(f"{guarded}/?token=wrong", headers={"cookie": pair})
    assert (wrong.status_code, wrong.headers["location"]) == (303, "/")
    assert HTTP.get(f"{guarded}/", headers={"cookie": pair}).status_code == 200
    # Not even with the cookie from elsewhere.
    foreign = {"cookie": pair, "origin": "http://evil.example"}
    assert HTTP.post(f"{guarded}/api/jobs", headers=foreign, json=JOB).status_code == 403


def test_cookie_is_asked_for_once_more_after_a_link_from_elsewhere(guarded: str) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    # Browsers keep a SameSite=Strict cookie back here, and send it from the page that leads on.
    answer = HTTP.get(f"{guarded}/", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert 'content="0; url=/?token="' in answer.text
    assert refused(HTTP.get(f"{guarded}/?token=", headers={"sec-fetch-site": "same-origin"}), 401)
    assert refused(HTTP.get(f"{guarded}/?token=", headers=headers), 401)  # not for ever


def test_wrong_or_misplaced_token_in_an_address_opens_nothing(guarded: str) -> None:
    for path in (f"/?token={TOKEN}x", "/?token=", f"/health?token={TOKEN}", f"//evil.example/?token={TOKEN}"):
        answer = HTTP.get(guarded + path)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
    assert HTTP.post(f"{guarded}/?token={TOKEN}").status_code == 401


def test_cookie_is_secure_behind_a_proxy_with_a_certificate(guarded: str) -> None:
    answer = HTTP.get(f"{guarded}/?token={TOKEN}", headers={"x-forwarded-proto": "https"})
    assert "Secure" in answer.headers["set-cookie"]


# Bodies


def test_body_that_says_it_is_too_large_isnt_read(url: str) -> None:
    with socket.create_connection(("127.0.0.1", int(port_of(url)))) as connection:
        connection.sendall(
            b"POST /api/audio HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\n"
            b"Content-Length: 1000000000\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def send_endless_body(url: str, line: str, kind: str, host: str = "localhost") -> tuple[bytes, int]:
    """The answer, empty if the kernel dropped it with the rest of the body; bytes that were taken of 1 GB."""
    sent = 0
    chunk = bytes(1 << 16)
    head = f"{line} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(port_of(url)))) as connection:
        connection.settimeout(10)
        connection.sendall(head.encode())
        try:
            while sent < 1 << 30:
                connection.sendall(b"10000\r\n" + chunk + b"\r\n")
                sent += len(chunk)
        except OSError:
            pass
        try:
            return connection.recv(100), sent
        except ConnectionResetError:
            return b"", sent


@pytest.mark.parametrize(("path", "kind"), [("/api/audio", "audio/wav"), ("/api/jobs", "application/json")])
def test_endless_body_is_cut_off_without_memory(url: str, path: str, kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer, sent = send_endless_body(url, f"POST {path}", kind)
    assert (answer or b"HTTP/1.1 413").startswith(b"HTTP/1.1 413")
    assert sent < 50_000_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, f"{grown} KB"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("DELETE /api/jobs/AAAAAAAAAAAAAAAAAAAAAA", 404),
        ("POST /api/jobs/AAAAAAAAAAAAAAAAAAAAAA/restore", 404),
        ("POST /nothing", 404),
        ("POST /", 405),
        ("GET /health", 200),
        ("POST /api/audio", 403),
    ],
)
def test_endless_body_that_nobody_reads_is_cut_off(url: str, line: str, status: int) -> None:
    host = "evil.example" if status == 403 else "localhost"
    answer, sent = send_endless_body(url, line, "audio/wav", host)
    assert (answer or f"HTTP/1.1 {status}".encode()).startswith(f"HTTP/1.1 {status}".encode())
    assert sent < 50_000_000


def test_small_body_that_nobody_reads_leaves_the_connection_open(url: str) -> None:
    answer = HTTP.request("DELETE", f"{url}/api/jobs/AAAAAAAAAAAAAAAAAAAAAA", json={})
    assert refused(answer, 404)
    assert "connection" not in answer.headers


@pytest.mark.parametrize("path", ["/api/jobs", "/v1/audio/speech", "/v1/music", "/hf/demo"])
def test_only_uploads_may_be_large_whatever_their_type(url: str, path: str) -> None:
    # They would be kept in memory.
    for kind in ("audio/wav", "application/octet-stream", "application/json"):
        answer = HTTP.post(url + path, content=bytes(200_000), headers={"content-type": kind})
        assert refused(answer, 413), kind


def test_answer_to_a_body_just_above_the_limit_says_so(url: str) -> None:
    answer = HTTP.post(f"{url}/api/audio", content=bytes(1_000_001), headers={"content-type": "audio/wav"})
    assert refused(answer, 413)
    body = iter([b'{"prompt": "', b"x" * 100_001, b'"}'])
    answer = HTTP.post(f"{url}/api/jobs", content=body, headers={"content-type": "application/json"})
    assert refused(answer, 413)


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/api/jobs", "application/json", 413),
        ("/api/audio", "audio/wav", 413),
        ("/api/audio", "text/plain", 415),
    ],
)
def test_a_body_that_is_refused_is_taken_for_a_moment_so_that_the_answer_arrives(
    url: str, path: str, kind: str, status: int
) -> None:
    """A connection that is closed with something unread is reset."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1500000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(port_of(url))), timeout=10) as connection:
        connection.sendall(head.encode())
        for _ in range(15):
            time.sleep(0.02)
            connection.sendall(bytes(100_000))
        assert _until_closed(connection).startswith(f"HTTP/1.1 {status}".encode())


def test_a_body_that_is_refused_and_stops_is_not_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "_DRAIN_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", int(port_of(url))), timeout=10) as connection:
        head = "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 10000000\r\n\r\n{{".encode())
        assert _until_closed(connection).startswith(b"HTTP/1.1 413")


def _stalled(url: str, path: str, kind: str) -> socket.socket:
    """A connection whose body stops after its first bytes."""
    connection = socket.create_connection(("127.0.0.1", int(port_of(url))), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n"
    connection.sendall(head.encode() + b"RIFF")
    return connection


def _until_closed(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(1000), b""))


def test_bodies_that_stop_hold_no_place_for_ever(tmp_path: Path) -> None:
    settings = SecuritySettings(connections=12, body_seconds=0.5)
    audio = {"content": b"RIFF", "headers": {"content-type": "audio/wav"}}
    with running(FakeService(tmp_path), settings) as url:
        stalled = [_stalled(url, "/api/audio", "audio/wav") for _ in range(8)]
        stalled += [_stalled(url, "/api/jobs", "application/json") for _ in range(4)]
        assert eventually(lambda: HTTP.get(f"{url}/api/jobs").status_code == 503)
        answers = [_until_closed(connection) for connection in stalled]
        assert HTTP.get(f"{url}/health").status_code == 200
        assert HTTP.post(f"{url}/api/audio", **audio).status_code == 422  # no audio, but not "try again"
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in head.lower()
        assert b"x-content-type-options" in head.lower()
        assert "0.5 seconds" in json.loads(body)["error"]["message"]


def test_headers_that_stop_hold_no_connection_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimedProtocol, "header_seconds", 0.5)
    line = b"GET /health HTTP/1.1\r\n"
    for whole, part in ((b"", b""), (b"", b"GET /"), (b"", line), (line + b"Host: localhost\r\n\r\n", line)):
        connection = socket.create_connection(("127.0.0.1", int(port_of(url))), timeout=10)
        if whole:
            connection.sendall(whole)
            with HTTPResponse(connection) as answer:  # all of it, in however many pieces it comes
                answer.begin()
                assert answer.status == 200
                answer.read()
        begin = time.monotonic()
        connection.sendall(part)
        assert _until_closed(connection) == b""
        assert 0.3 < time.monotonic() - begin < 4  # uvicorn's own limit between two requests is 5


def test_idle_connections_keep_nobody_out(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimedProtocol, "most", 20)
    address = ("127.0.0.1", int(port_of(url)))
    with socket.create_connection(address, timeout=10) as busy:
        busy.sendall(b"POST /api/audio HTTP/1.0\r\nHost: localhost\r\nContent-Type: audio/wav\r\n")
        busy.sendall(b"Content-Length: 4\r\n\r\nRI")
        idle = [socket.create_connection(address, timeout=10) for _ in range(5)]
        for connection in idle:
            connection.sendall(b"GET /health HTTP/1.1\r\n")  # the beginning of a request is none
        assert HTTP.get(f"{url}/health").status_code == 200
        idle += [socket.create_connection(address, timeout=10) for _ in range(55)]
        for _ in range(5):
            with httpx.Client() as client:
                assert client.get(f"{url}/health").status_code == 200
        # The oldest ones were closed, but none with a request.
        assert all(_until_closed(connection) == b"" for connection in idle[:40])
        idle[-1].sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert _until_closed(idle[-1]).startswith(b"HTTP/1.1 200")
        busy.sendall(b"FF")
        assert _until_closed(busy).startswith(b"HTTP/1.1 422")
    for connection in idle:
        connection.close()


def test_headers_that_drip_are_cut_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimedProtocol, "header_seconds", 0.5)
    with socket.create_connection(("127.0.0.1", int(port_of(url))), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")

        def drip() -> bool:
            try:
                connection.sendall(b"X")
            except OSError:
                return True
            time.sleep(0.05)
            return False

        assert eventually(drip)


def test_a_connection_is_kept_while_an_answer_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TimedProtocol, "header_seconds", 0.2)
    with running(FakeService(tmp_path, speed=1.0)) as url, httpx.Client(base_url=url, timeout=20) as client:
        for _ in range(2):
            clip = client.post("/api/jobs", json=JOB).json()["clips"][0]["id"]
            assert len(client.get(f"/api/clips/{clip}/stream?format=pcm").content) == 2 * 32_000
            time.sleep(0.4)


def test_health_says_whether_calls_need_a_token(url: str, guarded: str) -> None:
    assert HTTP.get(f"{url}/health").json()["token"] is False
    answer = HTTP.get(f"{guarded}/health", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.json()["token"] is True


def test_body_that_comes_slowly_but_steadily_is_taken(tmp_path: Path) -> None:
    def slowly() -> Iterator[bytes]:
        for piece in (b'{"prompt": ', b'"a piano"', b', "duration": 1', b"}"):
            yield piece
            time.sleep(0.3)

    with running(FakeService(tmp_path), SecuritySettings(body_seconds=0.7)) as url:
        answer = HTTP.post(f"{url}/api/jobs", content=slowly(), headers={"content-type": "application/json"})
        assert answer.status_code == 202


def test_stream_isnt_cut_off_for_want_of_a_body(tmp_path: Path) -> None:
    with running(FakeService(tmp_path, speed=1.0), SecuritySettings(body_seconds=0.1)) as url:
        clip = HTTP.post(f"{url}/api/jobs", json=JOB).json()["clips"][0]["id"]
        assert len(HTTP.get(f"{url}/api/clips/{clip}/stream?format=pcm").content) == 2 * 32_000


def test_jobs_beyond_the_limit_are_told_when_to_try_again(tmp_path: Path) -> None:
    service = FakeService(tmp_path, speed=0.001)
    with running(service) as url, httpx.Client(base_url=url) as client:
        answers = [client.post("/api/jobs", json=JOB) for _ in range(300)]
    codes = [answer.status_code for answer in answers]
    assert codes == [202] * 200 + [429] * 100
    assert answers[-1].headers["retry-after"] == "7"
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"


def test_html_in_a_prompt_is_text_in_json(url: str) -> None:
    prompt = "<script>alert(1)</script>"
    answer = HTTP.post(f"{url}/api/jobs", json=JOB | {"prompt": prompt})
    assert answer.json()["recipe"]["prompt"] == prompt
    assert answer.headers["content-type"] == "application/json"
    error = HTTP.get(f"{url}/<script>alert(1)</script>")
    assert error.headers["content-type"] == "application/json"
