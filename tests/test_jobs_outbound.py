"""Requests to addresses that a user named, against real servers on this machine."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stenograf import __version__
from stenograf.errors import (
    AddressRefusedError,
    CancelledError,
    FetchFailedError,
    FetchRefusedError,
    StenografError,
    UploadTooLargeError,
)
from stenograf.jobs.outbound import MAX_REDIRECTS, Outbound

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
NAMES = {
    "hook.test": ["127.0.0.1"],
    "other.test": ["127.0.0.1"],
    "inner.test": ["10.0.0.1"],
    "xn--e1afmkfd.test": ["127.0.0.1"],
}

Send = Callable[[bytes], None]


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: bytes
    server_name: str | None


@dataclass
class Site:
    """A server whose answers are written down byte by byte: what a path answers, or what sends it."""

    port: int = 0
    answers: dict[str, bytes | Callable[[Send], None]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/", host: str = "hook.test", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def drip(self, start: bytes, drop: bytes) -> Callable[[Send], None]:
        """`start`, and then a drop each hundredth of a second until the client goes or the test ends."""

        def send_slowly(send: Send) -> None:
            send(start)
            while not self.closing.wait(0.01):
                send(drop)

        return send_slowly

    def hang(self, start: bytes) -> Callable[[Send], None]:
        def send_and_wait(send: Send) -> None:
            send(start)
            self.closing.wait(30)

        return send_and_wait


def answer(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Some", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if "Content_Length" not in headers and "Transfer_Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        site = self.server.site
        line = self.rfile.readline().decode("latin-1").strip()
        headers: dict[str, str] = {}
        while text := self.rfile.readline().decode("latin-1").strip():
            name, _, value = text.partition(": ")
            headers[name.lower()] = value
        body = self.rfile.read(int(headers.get("content-length", "0")))
        site.requests.append(Request(line, headers, body, self.server.server_name))
        reply = site.answers[line.split()[1]]
        if callable(reply):
            reply(self.connection.sendall)
        else:
            self.connection.sendall(reply)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, site: Site, family: socket.AddressFamily, tls: ssl.SSLContext | None) -> None:
        self.address_family = family
        self.site = site
        self.tls = tls
        self.server_name: str | None = None
        super().__init__(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), Handler)
        site.port = self.server_address[1]

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = self.socket.accept()
        connection.settimeout(30)
        if self.tls is not None:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                raise
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested here."""


Open = Callable[..., Site]


@pytest.fixture
def open_site() -> Iterator[Open]:
    servers: list[Server] = []

    def start(family: socket.AddressFamily = socket.AF_INET, tls: ssl.SSLContext | None = None) -> Site:
        server = Server(Site(), family, tls)
        if tls is not None:
            tls.sni_callback = lambda _, name, __: setattr(server, "server_name", name)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server.site

    yield start
    for server in servers:
        server.site.closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(open_site: Open) -> Site:
    return open_site()


@pytest.fixture
def outbound() -> Outbound:
    return Outbound(LOOPBACK, resolve=NAMES.__getitem__)


def fetch(outbound: Outbound, url: str, max_bytes: int = 1_000_000) -> bytes:
    parts: list[bytes] = []
    done = outbound.download(url, parts.append, max_bytes=max_bytes, timeout_seconds=20)
    assert done.size == len(b"".join(parts))
    return b"".join(parts)


# What may be asked


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.1", "0", "localhost", "localhost.",
        "LOCALHOST", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]",
        "127.0.0.1\N{IDEOGRAPHIC FULL STOP}", "\N{FULLWIDTH DIGIT ONE}27.0.0.1", "[fe80::1%25lo]", "[::1%25lo]",
        "example.com@127.0.0.1", "user:secret@127.0.0.1", "127.0.0.1\\@example.com", "127.0.0.1%2f@example.com",
        "127.0.0.1#@example.com", "127.0.0.1?@example.com", "127%2e0.0.1", "169.254.169.254", "10.0.0.1",
    ],
)  # fmt: skip
def test_no_spelling_of_this_machine_or_its_network_is_let_through(site: Site, host: str) -> None:
    """With the system's own look-up, and for each of the three calls."""
    site.answers["/"] = answer(b"inside")
    outbound = Outbound()
    url = f"http://{host}:{site.port}/" if "#" not in host and "?" not in host else f"http://{host}/"
    with pytest.raises(AddressRefusedError) as refused:
        outbound.check(url)
    assert "secret" not in str(refused.value)
    with pytest.raises(AddressRefusedError):
        outbound.post(url, b"{}", {}, 5)
    with pytest.raises(AddressRefusedError):
        fetch(outbound, url)
    assert site.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "", "hook.test", "/path", "//hook.test/", "http:", "http://", "http:///path", "http:hook.test", "http://.",
        "ftp://hook.test/", "file:///etc/passwd", "gopher://hook.test/", "javascript:1", "unix:///run/some.sock",
        "http://user@hook.test/", "http://user:secret@hook.test/", "http://:secret@hook.test/",
        "http://hook.test:0/", "http://hook.test:65536/", "http://hook.test:-1/", "http://hook.test:x/",
        "http://[::1", "http://hook .test/", "http://hook.test\r\nX: 1/", "http://hook.test/\r\nX: 1", "http://\ud800/",
        "http://hook.test/" + "a" * 70_000,
    ],
)  # fmt: skip
def test_what_is_no_address_of_the_web_is_refused(outbound: Outbound, url: str) -> None:
    with pytest.raises(AddressRefusedError) as refused:
        outbound.check(url)
    assert "secret" not in str(refused.value)
    assert refused.value.hint


def test_one_inner_address_among_many_refuses_the_name_and_is_not_told() -> None:
    outbound = Outbound(resolve=lambda _: ["8.8.8.8", "2606:4700:4700::1111", "10.1.2.3"])
    with pytest.raises(AddressRefusedError, match=r"mixed\.test leads to a private address") as refused:
        outbound.check("https://mixed.test/hook")
    assert "10.1.2.3" not in str(refused.value)
    Outbound(resolve=lambda _: ["8.8.8.8", "2606:4700:4700::1111"]).check("https://mixed.test/hook")


def test_a_name_that_does_not_resolve_is_refused_when_it_is_named() -> None:
    def resolve(host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for outbound, url in ((Outbound(resolve=resolve), "https://gone.test/"), (Outbound(), "https://two..dots/")):
        with pytest.raises(AddressRefusedError, match=r"(gone\.test|two\.\.dots) does not resolve"):
            outbound.check(url)
        with pytest.raises(FetchFailedError, match="does not resolve") as failed:
            outbound.post(url, b"", {}, 20)
        assert failed.value.retryable


def test_only_the_networks_that_the_operator_names_are_allowed(site: Site) -> None:
    site.answers["/"] = answer(b"inside")
    exact = Outbound([ipaddress.ip_network("127.0.0.1/32")], resolve=NAMES.__getitem__)
    exact.check(site.url())
    assert fetch(exact, site.url()) == b"inside"
    with pytest.raises(AddressRefusedError):
        exact.check(site.url(host="inner.test"))
    with pytest.raises(AddressRefusedError):
        Outbound([ipaddress.ip_network("10.0.0.0/8")], resolve=NAMES.__getitem__).check(site.url())


# A name that changes its address


def test_a_name_that_turns_inward_after_the_check_is_refused(site: Site) -> None:
    site.answers["/"] = answer(b"inside")
    replies = iter([["8.8.8.8"], ["127.0.0.1"], ["127.0.0.1"]])
    outbound = Outbound(resolve=lambda _: next(replies))
    outbound.check(site.url())
    with pytest.raises(AddressRefusedError):
        outbound.post(site.url(), b"", {}, 5)
    with pytest.raises(AddressRefusedError):
        fetch(outbound, site.url())
    assert site.requests == []


def test_the_connection_goes_to_the_address_that_was_judged(site: Site) -> None:
    """One look-up a connection: a second one would bring an address that nobody looked at."""
    site.answers["/"] = answer(b"judged")
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    assert fetch(Outbound(LOOPBACK, resolve=resolve), site.url()) == b"judged"
    assert asked == ["hook.test"]
    assert site.requests[0].headers["host"] == f"hook.test:{site.port}"


def test_an_address_that_does_not_answer_is_followed_by_the_next_one(site: Site) -> None:
    site.answers["/"] = answer(b"second")
    assert fetch(Outbound(LOOPBACK, resolve=lambda _: ["127.0.0.2", "127.0.0.1"]), site.url()) == b"second"


def test_no_proxy_is_asked(open_site: Open, outbound: Outbound, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, site = open_site(), open_site()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    site.answers["/"] = answer(b"straight")
    assert fetch(outbound, site.url()) == b"straight"
    assert proxy.requests == []


# post


def test_a_post_sends_body_and_headers_and_returns_the_answer(site: Site, outbound: Outbound) -> None:
    site.answers["/hook?a=%D1%8F"] = answer(b"thanks", 201, Retry_After="5")
    reply = outbound.post(site.url("/hook?a=я#part"), b'{"a":1}', {"webhook-id": "7"}, 10)
    assert (reply.status, reply.headers["retry-after"]) == (201, "5")
    (request,) = site.requests
    assert (request.line, request.body) == ("POST /hook?a=%D1%8F HTTP/1.1", b'{"a":1}')
    assert request.headers["webhook-id"] == "7"
    assert request.headers["user-agent"] == f"stenograf/{__version__}"
    assert request.headers["host"] == f"hook.test:{site.port}"


def test_names_beyond_ascii_and_dots_at_the_end_are_sent_as_servers_know_them(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = answer()
    outbound.post(site.url(host="пример.test."), b"", {}, 10)
    assert site.requests[0].headers["host"] == f"xn--e1afmkfd.test:{site.port}"


def test_an_ipv6_address_keeps_its_brackets(open_site: Open) -> None:
    try:
        site = open_site(socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    site.answers["/"] = answer()
    assert Outbound(LOOPBACK).post(site.url(host="[::1]"), b"", {}, 10).status == 200
    assert site.requests[0].headers["host"] == f"[::1]:{site.port}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_post_follows_no_redirect(site: Site, outbound: Outbound, status: int) -> None:
    site.answers["/"] = answer(status=status, Location="/elsewhere")
    reply = outbound.post(site.url(), b"", {}, 10)
    assert (reply.status, reply.headers["location"]) == (status, "/elsewhere")
    assert len(site.requests) == 1


def test_errors_that_a_server_answers_are_returned(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = answer(b"no", 410)
    assert outbound.post(site.url(), b"", {}, 10).status == 410


def test_a_post_that_is_answered_drop_by_drop_ends_at_its_deadline(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = site.drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a")
    started = time.monotonic()
    with pytest.raises(FetchFailedError, match="too long"):
        outbound.post(site.url(), b"", {}, 0.3)
    assert time.monotonic() - started < 10


def test_an_endless_answer_to_a_post_is_left_and_its_status_counts(site: Site, outbound: Outbound) -> None:
    site.answers["/slow"] = site.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"a")
    site.answers["/fast"] = site.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 8192)
    assert outbound.post(site.url("/slow"), b"", {}, 0.3).status == 200
    started = time.monotonic()
    assert outbound.post(site.url("/fast"), b"", {}, 60).status == 200
    assert time.monotonic() - started < 30


def test_a_look_up_counts_into_the_deadline() -> None:
    answered = threading.Event()

    def resolve(host: str) -> list[str]:
        answered.wait(30)
        return ["127.0.0.1"]

    try:
        with pytest.raises(FetchFailedError, match="in time"):
            Outbound(LOOPBACK, resolve=resolve).post("http://slow.test/", b"", {}, 0.1)
    finally:
        answered.set()


def test_a_server_that_is_not_there_or_hangs_up_may_be_asked_again(site: Site, outbound: Outbound) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    site.answers["/"] = b""
    site.answers["/other"] = b"SSH-2.0-Some\r\n\r\n"
    for url in (f"http://hook.test:{port}/", site.url(), site.url("/other")):
        with pytest.raises(FetchFailedError, match=r"hook\.test") as failed:
            outbound.post(url, b"", {}, 10)
        assert failed.value.retryable


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "hook.pem"
    public = path.with_name("public.pem")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=hook.test", "-addext", "subjectAltName=DNS:hook.test",
            "-keyout", path, "-out", public,
        ],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + public.read_bytes())
    return path


@pytest.fixture
def secure(open_site: Open, certificate: Path) -> Site:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return open_site(tls=context)


def test_tls_keeps_the_name_while_the_connection_goes_to_the_address(
    secure: Site, outbound: Outbound, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure.answers["/"] = answer(b"sealed")
    assert fetch(outbound, secure.url(scheme="https")) == b"sealed"
    assert secure.requests[0].server_name == "hook.test"
    with pytest.raises(FetchRefusedError, match=r"certificate of other\.test is not valid.*mismatch"):
        fetch(outbound, secure.url(host="other.test", scheme="https"))
    assert len(secure.requests) == 1


def test_an_unknown_authority_is_refused(secure: Site, outbound: Outbound) -> None:
    with pytest.raises(FetchRefusedError, match=r"certificate of hook\.test is not valid"):
        outbound.post(secure.url(scheme="https"), b"", {}, 10)
    assert secure.requests == []


# download


def test_a_download_brings_the_bytes_and_what_they_are(site: Site, outbound: Outbound) -> None:
    body = bytes(range(256)) * 2000
    site.answers["/a/voice.ogg"] = answer(body, Content_Type="Audio/OGG; codecs=opus")
    parts: list[bytes] = []
    seen: list[tuple[int, int | None]] = []
    done = outbound.download(
        site.url("/a/voice.ogg"), parts.append, max_bytes=len(body), timeout_seconds=20,
        on_progress=lambda come, total: seen.append((come, total)),
    )  # fmt: skip
    assert b"".join(parts) == body
    assert (done.filename, done.media_type, done.size) == ("voice.ogg", "audio/ogg", len(body))
    assert seen[-1] == (len(body), len(body))
    assert [come for come, _ in seen] == sorted(come for come, _ in seen)
    assert site.requests[0].headers["accept-encoding"] == "identity"


def test_a_redirect_is_followed_to_a_place_that_may_be_asked(site: Site, outbound: Outbound) -> None:
    site.answers["/old"] = answer(status=301, Location="new/?a=1")
    site.answers["/new/?a=1"] = answer(status=302, Location=site.url("/last.mp3", host="other.test"))
    site.answers["/last.mp3"] = answer(b"there")
    assert fetch(outbound, site.url("/old")) == b"there"
    assert [r.headers["host"].split(":")[0] for r in site.requests] == ["hook.test", "hook.test", "other.test"]


@pytest.mark.parametrize(
    "place",
    [
        "http://inner.test/",
        "http://10.0.0.1/",
        "//inner.test/",
        "file:///etc/passwd",
        "http://a:b@hook.test/",
        "http://[",
    ],
)
def test_a_redirect_to_a_place_that_may_not_be_asked_is_refused(site: Site, place: str) -> None:
    site.answers["/"] = answer(status=302, Location=place)
    outbound = Outbound(LOOPBACK, resolve=lambda host: NAMES.get(host, [host]))
    with pytest.raises(AddressRefusedError):
        fetch(outbound, site.url())
    assert len(site.requests) == 1


def test_redirects_come_to_an_end(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = answer(status=302, Location="/")
    with pytest.raises(FetchRefusedError, match="redirects more than"):
        fetch(outbound, site.url())
    assert len(site.requests) == MAX_REDIRECTS + 1


def test_a_file_that_says_it_is_too_large_is_not_begun(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = site.hang(answer(b"x" * 50, Content_Length="101"))
    parts: list[bytes] = []
    with pytest.raises(UploadTooLargeError, match="more than 100 bytes"):
        outbound.download(site.url(), parts.append, max_bytes=100, timeout_seconds=10)
    assert parts == []


@pytest.mark.parametrize("chunked", [True, False])
def test_a_file_that_does_not_say_its_size_is_stopped_at_the_limit(
    site: Site, outbound: Outbound, chunked: bool
) -> None:
    if chunked:
        head, piece = answer(Transfer_Encoding="chunked"), b"400\r\n" + b"x" * 1024 + b"\r\n"
    else:
        head, piece = b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1024
    site.answers["/"] = site.drip(head, piece)
    site.answers["/fits"] = head + (b"64\r\n" + b"x" * 100 + b"\r\n0\r\n\r\n" if chunked else b"x" * 100)
    parts: list[bytes] = []
    with pytest.raises(UploadTooLargeError):
        outbound.download(site.url(), parts.append, max_bytes=5000, timeout_seconds=20)
    assert 0 < len(b"".join(parts)) <= 5000
    assert fetch(outbound, site.url("/fits"), max_bytes=100) == b"x" * 100


def test_a_download_drop_by_drop_ends_at_its_deadline(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = site.drip(answer(Content_Length="1000000"), b"x")
    with pytest.raises(FetchFailedError, match="too long"):
        outbound.download(site.url(), lambda _: None, max_bytes=1_000_000, timeout_seconds=0.3)


def test_a_silent_server_is_left(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = site.hang(answer(Content_Length="10"))
    started = time.monotonic()
    with pytest.raises(FetchFailedError, match="too long"):
        outbound.download(site.url(), lambda _: None, max_bytes=10, timeout_seconds=60, idle_seconds=0.1)
    assert time.monotonic() - started < 30


def test_a_server_that_is_slow_but_not_silent_is_waited_for(site: Site, outbound: Outbound) -> None:
    """Each pause is longer than the wait between two looks at whether the caller has cancelled."""

    def send_with_pauses(send: Send) -> None:
        send(answer(Content_Length="2"))
        for _ in range(2):
            site.closing.wait(0.6)
            send(b"x")

    site.answers["/"] = send_with_pauses
    assert fetch(outbound, site.url()) == b"xx"


def test_a_cancelled_download_stops_while_the_server_is_silent(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = site.hang(answer(b"some", Content_Length="10"))
    cancelled = threading.Event()
    started = time.monotonic()
    with pytest.raises(CancelledError):
        outbound.download(
            site.url(), lambda _: cancelled.set(), max_bytes=10, timeout_seconds=60, cancelled=cancelled.is_set
        )
    assert time.monotonic() - started < 20


def test_a_file_that_breaks_off_is_not_taken_for_whole(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = answer(b"half", Content_Length="8")
    with pytest.raises(FetchFailedError, match="broke off"):
        fetch(outbound, site.url())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (204, FetchRefusedError), (206, FetchRefusedError), (304, FetchRefusedError), (401, FetchRefusedError),
        (403, FetchRefusedError), (404, FetchRefusedError), (408, FetchFailedError), (429, FetchFailedError),
        (500, FetchFailedError), (503, FetchFailedError),
    ],
)  # fmt: skip
def test_a_status_tells_whether_to_ask_again(
    site: Site, outbound: Outbound, status: int, kind: type[StenografError]
) -> None:
    site.answers["/"] = answer(status=status)
    with pytest.raises(kind, match=f"status {status}") as failed:
        fetch(outbound, site.url())
    assert failed.value.retryable == (kind is FetchFailedError)


def test_a_packed_file_is_refused(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = answer(b"\x1f\x8b", Content_Encoding="gzip")
    with pytest.raises(FetchRefusedError, match="packed"):
        fetch(outbound, site.url())


def test_what_write_raises_comes_through(site: Site, outbound: Outbound) -> None:
    site.answers["/"] = answer(b"some")

    def write(data: bytes) -> None:
        raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"):
        outbound.download(site.url(), write, max_bytes=10, timeout_seconds=10)


@pytest.mark.parametrize(
    ("disposition", "path", "name"),
    [
        (None, "/a/voice.ogg", "voice.ogg"),
        (None, "/a/%D0%B3%D0%BE%D0%BB%D0%BE%D1%81.ogg?b=/c.mp3", "голос.ogg"),
        (None, "/", "download"),
        ("attachment", "/a.ogg", "a.ogg"),
        ('attachment; filename="a b;c.ogg"', "/", "a b;c.ogg"),
        ("attachment;filename=plain.ogg", "/", "plain.ogg"),
        (r'attachment; filename="say \"hi\".ogg"', "/", 'say "hi".ogg'),
        ("attachment; filename=\"x.ogg\"; filename*=UTF-8''%D0%B3%D0%BE%D0%BB%D0%BE%D1%81.ogg", "/", "голос.ogg"),
        ("attachment; filename*=utf-8'ru'%D1%8F.ogg; filename=x.ogg", "/", "я.ogg"),
        ("attachment; filename*=iso-8859-1''%E9.ogg", "/", "é.ogg"),
        ("attachment; filename*=utf-7''+AC8-x; filename=safe.ogg", "/", "safe.ogg"),
        ('attachment; name="a; filename=b.ogg"; FileName="c.ogg"', "/", "c.ogg"),
        ('attachment; filename="голос.ogg"', "/", "голос.ogg"),
        ('attachment; filename="../../etc/passwd"', "/", "passwd"),
        ("attachment; filename*=UTF-8''..%2F..%5Cevil.ogg", "/", "evil.ogg"),
        ('attachment; filename=".."', "/b.ogg", "b.ogg"),
        ("attachment; filename*=UTF-8''a%00%0A%E2%80%AEb.ogg", "/", "ab.ogg"),
        ('attachment; filename="' + "a" * 300 + '.ogg"', "/", "a" * 196 + ".ogg"),
    ],
)
def test_the_name_of_a_file(site: Site, outbound: Outbound, disposition: str | None, path: str, name: str) -> None:
    site.answers[path] = answer() if disposition is None else answer(Content_Disposition=disposition)
    assert outbound.download(site.url(path), lambda _: None, max_bytes=1, timeout_seconds=10).filename == name
