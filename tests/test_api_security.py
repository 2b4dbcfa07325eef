"""The doors: request ids, headers, addresses, other origins, and web pages that use somebody's browser."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from small_app import SmallApp
from stenograf import logs

Make = Callable[..., SmallApp]
UPLOAD = "/api/v1/transcribe"
PAGE = "https://app.example.org"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SmallApp] = []

    def make(**values: Any) -> SmallApp:
        app = SmallApp(tmp_path, **{"rate_requests": 0, "rate_uploads": 0} | values)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@contextmanager
def served(app: SmallApp) -> Iterator[int]:
    """The application behind a real server; gives its port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app.app, proxy_headers=False, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


# Request ids


def test_every_answer_has_an_id(make: Make) -> None:
    app = make()
    _, secret = app.keys.create("a")
    for path, status in (("/health", 200), ("/api/v1/tasks/1", 404), ("/nowhere", 404), ("/broken", 500)):
        answer = app.get(path, secret)
        assert answer.status_code == status
        assert len(answer.headers["x-request-id"]) == 32
        told = answer.json().get("request_id")
        assert told == answer.headers["x-request-id"]
    assert app.get("/health").headers["x-request-id"] != app.get("/health").headers["x-request-id"]


def test_a_good_id_is_taken_over_and_a_bad_one_is_not(make: Make) -> None:
    app = make()
    assert app.get("/health", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("", "x" * 129, "a\tb", "ключ".encode()):
        answer = app.get("/health", headers={"X-Request-ID": bad})
        assert len(answer.headers["x-request-id"]) == 32


def test_the_id_is_on_the_lines_of_the_log(make: Make) -> None:
    app = make()
    seen: list[str | None] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(logs.request_id.get())

    handler = Watch()
    logging.getLogger("stenograf").addHandler(handler)
    try:
        app.get("/broken", headers={"X-Request-ID": "abc-2"})
    finally:
        logging.getLogger("stenograf").removeHandler(handler)
    assert "abc-2" in seen
    assert logs.request_id.get() is None


# Headers


def test_headers_on_every_answer(make: Make) -> None:
    app = make(allowed_ips=("127.0.0.1",))
    answers = [app.get("/health"), app.get("/nowhere"), app.get("/broken"), app.get("/docs")]
    answers += [app.get("/health", client="203.0.113.1"), app.get("/docs", base="http://evil.example")]
    assert [answer.status_code for answer in answers] == [200, 404, 500, 200, 403, 403]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "microphone=(self)" in answer.headers["permissions-policy"]
        assert "content-security-policy" in answer.headers


def directives(answer: httpx2.Response) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in answer.headers["content-security-policy"].split(";"))
    return {name: rest for name, _, rest in parts}


def test_what_is_no_page_may_load_nothing(make: Make) -> None:
    app = make()
    for path in ("/health", "/api/v1/tasks", "/api/v1/page", "/nowhere"):
        assert directives(app.get(path))["default-src"] == "'none'"
        assert "script-src" not in directives(app.get(path))


def test_pages_load_from_here_only_and_run_nothing_of_their_own(make: Make) -> None:
    policy = directives(make().get("/docs"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe-eval" not in str(policy)
    for name, sources in policy.items():
        assert "http" not in sources, name
        assert "*" not in sources, name


def test_answers_with_somebodys_words_are_not_cached(make: Make) -> None:
    app = make()
    for path in ("/api/v1/tasks", "/api/v1/tasks/1", "/v1/models"):
        assert app.get(path).headers["cache-control"] == "no-store"
    assert "cache-control" not in app.get("/docs").headers


def test_hsts_over_tls_only(make: Make) -> None:
    app = make(host="0.0.0.0", trusted_proxies=("10.0.0.1",))
    https = {"X-Forwarded-Proto": "https"}
    assert "strict-transport-security" not in app.get("/health").headers
    assert "strict-transport-security" not in app.get("/health", headers=https, client="203.0.113.1").headers
    assert app.get("/health", headers=https, client="10.0.0.1").headers["strict-transport-security"]
    assert app.get("/health", base="https://127.0.0.1").headers["strict-transport-security"]


# Addresses


def test_only_listed_addresses_come_in(make: Make) -> None:
    app = make(host="0.0.0.0", allowed_ips=("203.0.113.0/24", "2001:db8::1"), trusted_proxies=("10.0.0.1",))
    for client, status in (
        ("203.0.113.1", 200),
        ("203.0.113.255", 200),
        ("::ffff:203.0.113.1", 200),
        ("203.0.114.1", 403),
        ("2001:db8::1", 200),
        ("2001:db8::2", 403),
        ("127.0.0.1", 403),
        ("10.0.0.1", 403),
        ("nonsense", 403),
    ):
        answer = app.get("/health", client=client)
        assert answer.status_code == status, client
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "forbidden"


def test_a_forwarded_address_counts_from_a_trusted_proxy_only(make: Make) -> None:
    app = make(host="0.0.0.0", allowed_ips=("203.0.113.1",), trusted_proxies=("10.0.0.1",))
    good = {"X-Forwarded-For": "203.0.113.1"}
    assert app.get("/health", client="10.0.0.1", headers=good).status_code == 200
    assert app.get("/health", client="198.51.100.1", headers=good).status_code == 403
    spoofed = {"X-Forwarded-For": "203.0.113.1, 198.51.100.1"}
    assert app.get("/health", client="10.0.0.1", headers=spoofed).status_code == 403


# Other origins


def test_listed_origins_may_read_answers_and_errors(make: Make) -> None:
    app = make(host="0.0.0.0", cors_origins=(PAGE,))
    for path in ("/health", "/api/v1/tasks", "/broken"):
        headers = app.get(path, headers={"Origin": PAGE}).headers
        assert headers["access-control-allow-origin"] == PAGE
        exposed = headers["access-control-expose-headers"].lower()
        for name in ("location", "retry-after", "ratelimit", "ratelimit-policy", "x-request-id", "upload-offset"):
            assert name in exposed.split(", ")
        assert "access-control-allow-credentials" not in headers
    other = app.get("/health", headers={"Origin": "https://evil.example"}).headers
    assert "access-control-allow-origin" not in other


def test_preflights(make: Make) -> None:
    app = make(host="0.0.0.0", cors_origins=(PAGE,))
    ask = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "x-api-key, tus-resumable"}
    good = app.call("OPTIONS", "/api/v1/tasks", headers={"Origin": PAGE, **ask})
    assert good.status_code == 200
    assert "PATCH" in good.headers["access-control-allow-methods"]
    assert "x-api-key" in good.headers["access-control-allow-headers"]
    bad = app.call("OPTIONS", "/api/v1/tasks", headers={"Origin": "https://evil.example", **ask})
    assert bad.status_code == 400
    assert "access-control-allow-origin" not in bad.headers


def test_no_origins_no_cors(make: Make) -> None:
    headers = make(host="0.0.0.0").get("/health", headers={"Origin": PAGE}).headers
    assert not [name for name in headers if name.startswith("access-control")]


# Pages that use the browser of somebody who can reach an open service


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "a.localhost", "127.1.2.3"]
)
def test_names_of_this_machine(make: Make, host: str) -> None:
    assert make().get("/api/v1/who", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::1"],
)
def test_a_name_that_was_made_to_point_here(make: Make, host: str) -> None:
    app = make()
    answer = app.get("/api/v1/who", headers={"Host": host})
    assert answer.status_code == 403
    assert "STENOGRAF_PUBLIC_URL" in answer.json()["hint"]
    # With a key there is nothing to be had that way.
    _, secret = app.keys.create("a")
    app.get("/health")
    assert app.get("/api/v1/who", secret, headers={"Host": host}).status_code == 200
    assert app.get("/api/v1/who", headers={"Host": host}).status_code == 401


def test_the_public_name_is_good(make: Make) -> None:
    app = make(public_url="https://stt.example.org", auth=False)
    assert app.get("/api/v1/who", headers={"Host": "stt.example.org"}).status_code == 200
    assert app.get("/api/v1/who", headers={"Host": "evil.example"}).status_code == 403
    own = {"Host": "stt.example.org", "Origin": "https://stt.example.org"}
    assert app.post(UPLOAD, headers=own).status_code == 200


def test_without_keys_on_the_network_any_name_will_do(make: Make) -> None:
    app = make(host="0.0.0.0", auth=False)
    assert app.get("/api/v1/who", headers={"Host": "stt.example.org"}).status_code == 200


@pytest.mark.parametrize("values", [{}, {"host": "0.0.0.0", "auth": False}], ids=["own machine", "no auth"])
def test_pages_of_other_origins_change_nothing(make: Make, values: dict[str, Any]) -> None:
    app = make(cors_origins=(PAGE,), **values)
    for headers, status in (
        ({}, 200),  # no browser
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:8000.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "nonsense"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
    ):
        answer = app.post(UPLOAD, headers=headers)
        assert answer.status_code == status, headers
        assert app.get("/api/v1/tasks", headers=headers).status_code == 200, headers
    assert "STENOGRAF_CORS_ORIGINS" in app.post(UPLOAD, headers={"Origin": "null"}).json()["hint"]


def test_with_keys_origins_do_not_matter(make: Make) -> None:
    app = make()
    _, secret = app.keys.create("a")
    assert app.post(UPLOAD, secret, headers={"Origin": "https://evil.example"}).status_code == 200


def test_a_database_that_fails_does_not_open_the_door(make: Make, tmp_path: Path) -> None:
    app = make()
    app.database.close()
    for file in tmp_path.glob("stenograf.db*"):
        file.unlink()
    (tmp_path / "stenograf.db").write_bytes(b"no database" * 1000)
    answer = app.get("/api/v1/who")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_failed")


# WebSockets, over a real server


def test_websockets_need_a_key_or_a_token(make: Make) -> None:
    app = make(host="0.0.0.0", jwt_secret="x" * 32)
    key, secret = app.keys.create("a")
    form = {"grant_type": "client_credentials", "client_id": key.id, "client_secret": secret}
    token = app.post("/api/v1/token", data=form).json()["access_token"]
    with served(app) as port:
        url = f"ws://127.0.0.1:{port}/api/v1/tasks/1/ws"
        for options in (
            {"uri": url, "additional_headers": {"X-API-Key": secret}},
            {"uri": url, "additional_headers": {"Authorization": f"Bearer {token}"}},
            {"uri": f"{url}?access_token={token}"},
        ):
            with connect(**options) as websocket:
                assert websocket.recv(10) == key.owner
                assert websocket.response is not None
                assert len(websocket.response.headers["x-request-id"]) == 32
        for uri in (url, f"{url}?access_token={secret}", f"{url}?access_token={token[:-3]}xyz"):
            with pytest.raises(InvalidStatus) as refused:
                connect(uri)
            answer = refused.value.response
            assert answer.status_code == 401
            assert json.loads(answer.body or b"")["code"] == "unauthorized"
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_websockets_of_other_origins_and_names(make: Make) -> None:
    app = make()
    with served(app) as port:
        url = f"ws://127.0.0.1:{port}/api/v1/tasks/1/ws"
        with connect(url, additional_headers={"Origin": f"http://127.0.0.1:{port}"}) as websocket:
            assert websocket.recv(10) == "local"
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            with pytest.raises(InvalidStatus) as refused:
                connect(url, additional_headers=headers)
            assert refused.value.response.status_code == 403
            assert json.loads(refused.value.response.body or b"")["code"] == "forbidden"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
            raw.sendall(b"GET /api/v1/who HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            assert raw.makefile("rb").readline().split()[1] == b"403"


def test_websockets_of_addresses_that_may_not_come_in(make: Make) -> None:
    app = make(allowed_ips=("203.0.113.1",))
    with served(app) as port, pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{port}/api/v1/tasks/1/ws")
    assert refused.value.response.status_code == 403
