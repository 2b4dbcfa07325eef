"""Forms that stream in: over a real server, and piece by piece as no client would send them."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import itertools
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
import uvicorn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stenograf.api.forms import (
    BATCH_BYTES,
    FIELDS_IN_ALL,
    MAX_FRAMING_BYTES,
    MAX_PART_HEADER_BYTES,
    MAX_PART_HEADERS,
    MAX_PREAMBLE_BYTES,
    FilePart,
    Form,
    read_fields,
    read_form,
)
from stenograf.errors import StenografError

BOUNDARY = "----Bound7"
MEBI = 1 << 20


class Kept:
    """A sink that remembers what it was given, and how."""

    def __init__(self, part: FilePart) -> None:
        self.part = part
        self.writes: list[bytes] = []
        self.threads: set[int] = set()

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.threads.add(threading.get_ident())

    @property
    def content(self) -> bytes:
        return b"".join(self.writes)


class Opener:
    def __init__(self) -> None:
        self.sinks: list[Kept] = []

    def __call__(self, part: FilePart) -> Kept:
        self.sinks.append(Kept(part))
        return self.sinks[-1]

    @property
    def content(self) -> bytes:
        return b"".join(sink.content for sink in self.sinks)


def part(disposition: str | bytes, content: bytes = b"", *headers: str) -> bytes:
    raw = disposition if isinstance(disposition, bytes) else disposition.encode()
    lines = [b"Content-Disposition: form-data" + raw, *(line.encode() for line in headers)]
    return b"--" + BOUNDARY.encode() + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n"


def text(name: str, value: str | bytes, *headers: str) -> bytes:
    return part(f'; name="{name}"', value if isinstance(value, bytes) else value.encode(), *headers)


def recording(content: bytes, name: str = "a.wav", field: str = "file") -> bytes:
    return part(f'; name="{field}"; filename="{name}"', content, "Content-Type: audio/wav")


END = f"--{BOUNDARY}--\r\n".encode()
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def request_of(pieces: Iterable[bytes | None], content_type: str | None = FORM_TYPE, **headers: str) -> Request:
    """A request whose body comes in these pieces; at None the client falls silent."""
    fed = iter(pieces)

    async def receive() -> dict[str, Any]:
        for piece in fed:
            if piece is None:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": piece, "more_body": True}
        return {"type": "http.request", "body": b"", "more_body": False}

    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type is not None:
        sent["content-type"] = content_type
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/api/v1/transcribe",
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
    }
    return Request(scope, receive)


def read(pieces: Iterable[bytes | None], opener: Opener | None = None, **options: Any) -> Form:
    arguments: dict[str, Any] = {"max_file_bytes": MEBI} | options
    given_type = arguments.pop("content_type", FORM_TYPE)
    headers = arguments.pop("headers", {})
    request = request_of(pieces, given_type, **headers)
    return asyncio.run(read_form(request, opener or Opener(), **arguments))


def refused(pieces: Iterable[bytes | None], opener: Opener | None = None, **options: Any) -> StenografError:
    with pytest.raises(StenografError) as caught:
        read(pieces, opener, **options)
    return caught.value


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [0, *sorted({place % (len(body) + 1) for place in places}), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(ends) if end > start]


# What a form holds


def test_fields_and_file_in_any_order() -> None:
    opener = Opener()
    body = text("language", "ru") + recording(b"RIFF1234", "Встреча.wav") + text("prompt", "") + text("язык", "да")
    form = read([body + text("language", "en") + END], opener)
    assert form.fields == [("language", "ru"), ("prompt", ""), ("язык", "да"), ("language", "en")]
    assert (form.get("language"), form.all("language"), form.get("none")) == ("en", ["ru", "en"], None)
    assert form.file == FilePart("file", "Встреча.wav", "audio/wav", 8)
    assert opener.content == b"RIFF1234"
    assert opener.sinks[0].part is form.file


def test_a_form_without_a_file() -> None:
    assert read([text("url", "https://a.example/b.mp3") + END]) == Form([("url", "https://a.example/b.mp3")], None)
    assert read([END]) == Form([], None)


def test_a_quote_in_the_name_of_a_field() -> None:
    assert read([text("a%22b%41", "1") + END]).fields == [('a"b%41', "1")]


@pytest.mark.parametrize("name", ["a.wav", ""])
def test_an_empty_file_is_there_with_size_0(name: str) -> None:
    opener = Opener()
    form = read([recording(b"", name) + END], opener)
    assert form.file == FilePart("file", name or "recording", "audio/wav", 0)
    assert len(opener.sinks) == 1
    assert opener.sinks[0].writes == []


def test_a_file_without_a_name_is_known_by_its_type() -> None:
    form = read([part("; name=file", b"OggS", "Content-Type: audio/ogg; codecs=opus") + END])
    assert form.file == FilePart("file", "recording", "audio/ogg", 4)


def test_a_content_type_that_is_none_is_not_passed_on() -> None:
    form = read([part('; name="file"; filename="a"', b"x", "Content-Type: <script>") + END])
    assert form.file is not None
    assert form.file.content_type == "application/octet-stream"


def test_other_file_fields() -> None:
    form = read([recording(b"x", field="audio_file") + END], file_fields=("file", "audio_file"))
    assert form.file is not None
    assert form.file.field == "audio_file"


def test_what_stands_before_and_after_the_parts_is_passed_over() -> None:
    body = b"This is a form.\r\n\r\n" + text("a", "1") + END + b"and that was it"
    for size in (1, 7, len(body)):
        assert read([body[i : i + size] for i in range(0, len(body), size)]).fields == [("a", "1")]


def test_text_in_another_charset() -> None:
    body = text("prompt", "Привет".encode("cp1251"), 'Content-Type: text/plain; charset="windows-1251"')
    assert read([body + END]).fields == [("prompt", "Привет")]


# Splits: TCP cuts where it likes


NASTY = b"\r\n--\r\n" + b"\r\n--" + BOUNDARY[:-1].encode() + b"\r\r\n-" + BOUNDARY.encode() + b"--\r\n\r\n--" + b"\r"
PIECES = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"-",
        b"--",
        b"x",
        b"\r\n",
        b"\r\n--",
        b"\r\n--" + BOUNDARY[:-1].encode(),
        BOUNDARY.encode(),
        b"\0\xff",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=40), st.lists(PIECES, max_size=40).map(b"".join))
def test_the_same_form_however_it_is_cut(places: list[int], content: bytes) -> None:
    delimiter = b"\r\n--" + BOUNDARY.encode()
    content = NASTY + content
    assume((content + delimiter).find(delimiter) == len(content))
    prompt = "Ёж\r\n--" + BOUNDARY[:-2]
    body = b"before\r\n" + text("prompt", prompt) + recording(content, "ё.wav") + text("task", "translate") + END
    opener = Opener()
    form = read(cut(body, places), opener)
    assert form.fields == [("prompt", prompt), ("task", "translate")]
    assert form.file == FilePart("file", "ё.wav", "audio/wav", len(content))
    assert opener.content == content


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=20), st.binary(max_size=200), st.integers(0, 10_000))
def test_a_damaged_form_is_refused_however_it_is_cut(places: list[int], junk: bytes, at: int) -> None:
    """Whatever comes, there is a form or one of our errors, the same for each way of cutting."""
    body = text("a", "1") + recording(b"123") + text("b", "2") + END
    at %= len(body)
    damaged = body[:at] + junk + body[at + len(junk) :]

    def outcome(pieces: Iterable[bytes]) -> object:
        try:
            return read(pieces)
        except StenografError as error:
            return error.code

    assert outcome(cut(damaged, places)) == outcome([damaged])


# Streaming


def test_the_sink_gets_large_batches_in_threads() -> None:
    opener = Opener()
    content = bytes(range(256)) * 8192  # 2 MiB
    body = recording(content) + END
    read([body[i : i + 1000] for i in range(0, len(body), 1000)], opener, max_file_bytes=len(content))
    sink = opener.sinks[0]
    assert sink.content == content
    assert all(len(data) >= BATCH_BYTES for data in sink.writes[:-1])
    assert 2 <= len(sink.writes) <= 4
    assert threading.get_ident() not in sink.threads


def test_memory_does_not_grow_with_the_file() -> None:
    count, piece = 3200, 64 * 1024
    digest = hashlib.sha256()
    expected = hashlib.sha256()

    class Hashing:
        size = 0

        def write(self, data: bytes) -> None:
            self.size += len(data)
            digest.update(data)

    sink = Hashing()

    def pieces() -> Iterator[bytes]:
        yield text("language", "ru") + recording(b"")[:-2]
        for index in range(count):
            block = index.to_bytes(4, "big") * (piece // 4)
            expected.update(block)
            yield block
        yield b"\r\n" + END

    total = count * piece
    assert total > 200e6
    tracemalloc.start()
    try:
        form = asyncio.run(read_form(request_of(pieces()), lambda _: sink, max_file_bytes=total))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert form.file is not None
    assert form.file.size == sink.size == total
    assert digest.digest() == expected.digest()
    assert peak < 8e6


def test_a_slow_disk_is_no_idle_client() -> None:
    class Slow(Kept):
        def write(self, data: bytes) -> None:
            time.sleep(0.3)
            super().write(data)

    body = [recording(bytes(BATCH_BYTES)), END]
    form = asyncio.run(read_form(request_of(body), Slow, max_file_bytes=MEBI, idle_timeout_seconds=0.1))
    assert form.file is not None
    assert form.file.size == BATCH_BYTES


def test_what_a_sink_raises_goes_through() -> None:
    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(read_form(request_of([recording(b"x") + END]), lambda _: Full(), max_file_bytes=MEBI))


# Refusals


@pytest.mark.parametrize(
    ("content_type", "named"),
    [
        ("application/json", "application/json"),
        ("application/x-www-form-urlencoded", "urlencoded"),
        ("audio/wav", "audio/wav"),
        ("multipart/mixed; boundary=a", "multipart/mixed"),
        (None, "no Content-Type"),
    ],
)
def test_another_kind_of_body(content_type: str | None, named: str) -> None:
    error = refused([b"{}"], content_type=content_type)
    assert error.code == "unsupported_media_type"
    assert named in error.message
    assert "curl -F file=@recording.wav http://HOST/api/v1/transcribe" in error.hint


def test_a_packed_body() -> None:
    error = refused([text("a", "1") + END], headers={"content_encoding": "gzip"})
    assert error.code == "unsupported_media_type"
    assert "gzip" in error.message


@pytest.mark.parametrize(
    ("content_type", "named"),
    [
        ("multipart/form-data", "no boundary"),
        ("multipart/form-data; boundary=", "no boundary"),
        ('multipart/form-data; boundary=""', "no boundary"),
        ("multipart/form-data; boundary=" + "b" * 71, "more than 70 bytes"),
        ("multipart/form-data; boundary=other", "does not begin with the boundary"),
        ("multipart/form-data; boundary=" + BOUNDARY[:-1], "cannot be read"),
    ],
)
def test_a_boundary_that_cannot_be(content_type: str, named: str) -> None:
    error = refused([recording(b"x") + END], content_type=content_type)
    assert error.code == "bad_request"
    assert named in error.message


@pytest.mark.parametrize(
    "content_type",
    [f'Multipart/Form-Data; charset=utf-8; Boundary="{BOUNDARY}"', f"multipart/form-data;boundary={BOUNDARY} ; x=y"],
)
def test_a_boundary_in_other_spellings(content_type: str) -> None:
    assert read([text("a", "1") + END], content_type=content_type).fields == [("a", "1")]


def test_every_body_that_is_cut_off_is_refused() -> None:
    body = text("a", "1") + recording(b"RIFF") + END.rstrip()
    for length in range(1, len(body)):
        assert refused([body[:length]]).code == "bad_request", body[:length]
    assert "cut off" in refused([body[:-1]]).message
    assert "empty" in refused([]).message


def test_the_whole_is_too_large_by_what_it_says() -> None:
    unread = iter([b"x"])
    error = refused(unread, headers={"content_length": str(10**10)}, max_file_bytes=2 * 10**9)
    assert error.code == "upload_too_large"
    assert "2 GB" in error.message
    assert refused(unread, headers={"content_length": "9" * 4400}).code == "upload_too_large"
    assert next(unread) == b"x"


def test_a_file_may_have_its_limit_and_no_more() -> None:
    full = recording(bytes(1000)) + END
    form = read([full], max_file_bytes=1000, headers={"content_length": str(len(full))})
    assert form.file is not None
    assert form.file.size == 1000
    error = refused([full], max_file_bytes=999)
    assert error.code == "upload_too_large"
    assert "999 bytes" in error.message


def test_a_file_without_end_is_stopped() -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield recording(b"")
        while True:
            sent += 100_000
            yield bytes(100_000)

    opener = Opener()
    assert refused(endless(), opener, max_file_bytes=3 * MEBI).code == "upload_too_large"
    assert len(opener.content) <= 3 * MEBI
    assert sent <= 3 * MEBI + 200_000


@pytest.mark.parametrize(
    ("begin", "again", "most"),
    [
        (b"", b"\r\n", MAX_PREAMBLE_BYTES),
        (b"", b"x" * 100, MAX_PREAMBLE_BYTES),
        (text("a", "1") + END, b"\0" * 1000, MAX_FRAMING_BYTES),
        (f"--{BOUNDARY}\r\n".encode(), b"A" * 100, MAX_PART_HEADER_BYTES),
        (f"--{BOUNDARY}\r\nContent-Disposition: ".encode(), b"a" * 100, MAX_PART_HEADER_BYTES),
        (f"--{BOUNDARY}\r\n".encode(), b"X-A: b\r\n", MAX_PART_HEADERS * 8),
        (b"", part("; name=a" + " " * 4000), MAX_FRAMING_BYTES),
    ],
    ids=["line ends", "preamble", "epilogue", "header name", "header value", "headers", "wide parts"],
)
def test_nothing_else_goes_on_without_end(begin: bytes, again: bytes, most: int) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield begin
        while True:
            sent += len(again)
            yield again

    assert refused(endless(), max_fields=1000).code == "bad_request"
    assert most / 2 < sent <= most + 5000


def test_the_limit_of_a_preamble_is_the_same_however_it_is_cut() -> None:
    body = b"\r\n" + text("a", "1") + END
    for length, good in ((MAX_PREAMBLE_BYTES - 2, True), (MAX_PREAMBLE_BYTES - 1, False)):
        whole = b"x" * length + body
        for pieces in ([whole], cut(whole, [length, length + 1, length + 9]), cut(whole, [len(whole) - 3])):
            if good:
                assert read(pieces).fields == [("a", "1")]
            else:
                assert refused(pieces).code == "bad_request"


def test_too_many_fields() -> None:
    fields = b"".join(text(f"f{i}", "1") for i in range(500))
    error = refused([fields + END])
    assert error.code == "bad_request"
    assert "100 fields" in error.message
    assert len(read([fields + END], max_fields=500).fields) == 500
    assert refused([fields + END], max_fields=499).code == "bad_request"


def test_a_text_field_over_its_limit() -> None:
    assert read([text("prompt", "a" * 50) + END], max_field_bytes=50).fields == [("prompt", "a" * 50)]
    error = refused([text("prompt", "a" * 51) + END], max_field_bytes=50)
    assert error.code == "upload_too_large"
    assert "'prompt'" in error.message
    assert "50 bytes" in error.message


def test_all_text_together_has_a_limit() -> None:
    whole = text("a", "a" * 50) * FIELDS_IN_ALL
    assert len(read([whole + END], max_field_bytes=50).fields) == FIELDS_IN_ALL
    assert refused([whole + text("b", "b") + END], max_field_bytes=50).code == "upload_too_large"


@pytest.mark.parametrize("pieces", [1, 2])
def test_two_files(pieces: int) -> None:
    opener = Opener()
    body = [recording(b"one"), recording(b"two") + END]
    error = refused(body if pieces == 2 else [b"".join(body)], opener)
    assert error.code == "bad_request"
    assert "one file" in error.hint
    assert b"two" not in opener.content
    assert len(opener.sinks) == pieces - 1


def test_a_file_in_an_unknown_field() -> None:
    error = refused([recording(b"x", field="audio") + END], file_fields=("file", "upload"))
    assert error.code == "bad_request"
    assert "'audio'" in error.message
    assert "file or upload" in error.hint


def test_a_file_that_came_as_text() -> None:
    error = refused([text("file", "recording.wav") + END])  # curl -F file=recording.wav
    assert error.code == "bad_request"
    assert "-F file=@recording.wav" in error.hint


@pytest.mark.parametrize("disposition", ["", "; name=", '; name=""', '; filename="a.wav"', "; title=a"])
def test_a_part_without_a_name(disposition: str) -> None:
    error = refused([part(disposition, b"x") + END])
    assert error.code == "bad_request"
    assert "no name" in error.message


def test_a_part_without_headers() -> None:
    assert refused([f"--{BOUNDARY}\r\n\r\nx\r\n".encode() + END]).code == "bad_request"


def test_headers_of_a_part_are_not_those_of_the_next() -> None:
    body = recording(b"x") + f"--{BOUNDARY}\r\nX-A: b\r\n\r\nx\r\n".encode() + END
    assert "no name" in refused([body]).message


def test_a_part_in_base64() -> None:
    error = refused([part('; name="file"; filename="a"', b"UklGRg==", "Content-Transfer-Encoding: base64") + END])
    assert error.code == "bad_request"
    assert "base64" in error.message
    assert read([text("a", "1", "Content-Transfer-Encoding: 8bit") + END]).fields == [("a", "1")]


@pytest.mark.parametrize("charset", ["", "; charset=us-ascii", "; charset=iso-8859-12"])
def test_text_that_is_none(charset: str) -> None:
    error = refused([text("prompt", b"\xff\xfe\xfa", "Content-Type: text/plain" + charset) + END])
    assert error.code == "bad_request"
    assert "'prompt'" in error.message


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "rot13", "zlib", "klingon"])
def test_charsets_that_are_not_read(charset: str) -> None:
    assert charset in refused([text("a", "1", f"Content-Type: text/plain; charset={charset}") + END]).message


def test_names_from_outside_are_shown_short() -> None:
    assert len(refused([recording(b"x", field="a\x1b[31m" * 500) + END]).message) < 200
    assert "\x1b" not in refused([recording(b"x", field="a\x1b[31m") + END]).message


def test_an_idle_client() -> None:
    opener = Opener()
    silent: list[Any] = [recording(bytes(BATCH_BYTES)), None]
    error = refused(silent, opener, idle_timeout_seconds=0.05)
    assert (error.code, error.retryable) == ("request_timeout", True)
    assert "0.05 seconds" in error.message


# Names of files


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b'; filename="a;b.wav"', "a;b.wav"),
        (b"; filename=a.wav ; x=y", "a.wav"),
        (b'; filename="a\\"b\\\\c.wav"', "c.wav"),
        (b'; filename="a\\"b.wav"', 'a"b.wav'),
        (b'; filename="a"b".wav"', 'a"b".wav'),
        (b'; FileName="A.WAV"', "A.WAV"),
        (b'; filename="C:\\dir\\a.wav"', "a.wav"),
        (b'; filename="dir\\"', "dir"),
        ("; filename=Встреча.wav".encode(), "Встреча.wav"),
        (b'; filename="na\xefve.wav"', "naïve.wav"),
        (b"; filename*=UTF-8''%D0%B9.wav", "й.wav"),
        (b"; filename*=utf-8'en'..%2F..%2Fa%00%0A.wav", "a.wav"),
        (b"; filename*=iso-8859-1''na%EFve.wav", "naïve.wav"),
        (b"; filename=\"=?utf-8?B?0LkK?=\"; filename*=utf-8''%D0%B9.wav", "й.wav"),
        (b"; filename=\"a.wav\"; filename*=UTF-8''%FF", "a.wav"),
        (b"; filename*=rot13''nop", "recording"),
        (b'; filename="a.wav"; filename*=junk', "a.wav"),
        (b"; filename=\"x; filename*=UTF-8''evil\"", "x; filename*=UTF-8''evil"),
    ],
)
def test_names_as_clients_send_them(sent: bytes, name: str) -> None:
    form = read([part(b"; name=file" + sent, b"x") + END])
    assert form.file is not None
    assert form.file.filename == name


# Fields in a URL's encoding


def fields(pieces: Iterable[bytes | None], max_bytes: int = 1000, **options: Any) -> Form:
    content_type = options.pop("content_type", "application/x-www-form-urlencoded; charset=UTF-8")
    request = request_of(pieces, content_type, **options.pop("headers", {}))
    return asyncio.run(read_fields(request, max_bytes, **options))


def test_urlencoded_fields() -> None:
    body = urlencode([("grant_type", "client_credentials"), ("scope", "чтение & +"), ("scope", "")]).encode()
    form = fields([body[:9], body[9:]])
    assert form.fields == [("grant_type", "client_credentials"), ("scope", "чтение & +"), ("scope", "")]
    assert fields([]) == Form()


@pytest.mark.parametrize(
    ("pieces", "options", "code"),
    [
        ([b"a=1"], {"content_type": "application/json"}, "unsupported_media_type"),
        ([b"a=1"], {"content_type": None}, "unsupported_media_type"),
        ([b"a=1"], {"headers": {"content_length": "1001"}}, "upload_too_large"),
        ([b"a=" + b"1" * 600, b"1" * 600], {}, "upload_too_large"),
        ([b"a=%FF"], {}, "bad_request"),
        ([b"a=\xff"], {}, "bad_request"),
        ([b"a=1&" * 101], {}, "bad_request"),
        ([b"a=1", None], {"idle_timeout_seconds": 0.05}, "request_timeout"),
    ],
)
def test_urlencoded_fields_refused(pieces: list[bytes | None], options: dict[str, Any], code: str) -> None:
    with pytest.raises(StenografError) as caught:
        fields(pieces, **options)
    assert caught.value.code == code


# Over a real server


STATUS = {"upload_too_large": 413, "unsupported_media_type": 415, "request_timeout": 408}


class Server:
    """An application with one endpoint that reads forms, on loopback."""

    def __init__(self) -> None:
        self.opener = Opener()
        self.ended: list[BaseException | None] = []
        self.done = threading.Event()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        app = Starlette(routes=[Route("/form", self._endpoint, methods=["POST"])])
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    async def _endpoint(self, request: Request) -> Response:
        raised: BaseException | None = None
        try:
            form = await read_form(request, self.opener, max_file_bytes=4 * MEBI, idle_timeout_seconds=0.5)
        except StenografError as error:
            raised = error
            return JSONResponse(
                {"code": error.code, "message": error.message, "hint": error.hint}, STATUS.get(error.code, 400)
            )
        except BaseException as error:
            raised = error
            raise
        else:
            named = form.file and [form.file.filename, form.file.content_type, form.file.size]
            return JSONResponse({"fields": form.fields, "file": named})
        finally:
            self.ended.append(raised)
            self.done.set()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def post(server: Server, body: Any, headers: dict[str, str] | None = None, **options: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", "/form", body, {"Content-Type": FORM_TYPE} | (headers or {}), **options)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_a_client_of_today(server: Server) -> None:
    content = bytes(range(256)) * 4 * 3000  # 3 MB
    answer = httpx2.post(
        f"http://127.0.0.1:{server.port}/form",
        files={"file": ('Запись "1".wav', content, "audio/wav")},
        data={"language": "ru", "timestamp_granularities[]": ["word", "segment"]},
        trust_env=False,
    )
    assert answer.status_code == 200
    assert answer.json()["file"] == ['Запись "1".wav', "audio/wav", len(content)]
    expected = [["language", "ru"], ["timestamp_granularities[]", "word"], ["timestamp_granularities[]", "segment"]]
    assert answer.json()["fields"] == expected
    assert server.opener.content == content


def test_chunked_encoding(server: Server) -> None:
    content = bytes(range(256)) * 4000
    body = text("language", "ru") + recording(content) + END
    pieces = (body[i : i + 10_007] for i in range(0, len(body), 10_007))
    status, answer = post(server, pieces, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert (status, answer["file"][2]) == (200, len(content))
    assert server.opener.content == content


def test_too_large_before_a_byte_is_sent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        head = f"POST /form HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM_TYPE}\r\nExpect: 100-continue\r\n"
        client.sendall(f"{head}Content-Length: 5000000000\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_too_large_without_a_length(server: Server) -> None:
    body = recording(bytes(5 * MEBI)) + END
    pieces = (body[i : i + 65536] for i in range(0, len(body), 65536))
    status, answer = post(server, pieces, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert (status, answer["code"]) == (413, "upload_too_large")
    assert len(server.opener.content) <= 4 * MEBI


def test_cut_off_but_ended(server: Server) -> None:
    status, answer = post(server, recording(bytes(1000)))
    assert (status, answer["code"]) == (400, "bad_request")
    assert "cut off" in answer["message"]


@pytest.mark.parametrize("framing", ["Content-Length: 100000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n2000\r\n"])
def test_a_client_that_hangs_up(server: Server, framing: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(f"POST /form HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM_TYPE}\r\n{framing}".encode())
        client.sendall(recording(bytes(5000)))
    assert server.done.wait(20)
    assert [type(error) for error in server.ended] == [ClientDisconnect]


def test_a_client_that_falls_silent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        head = f"POST /form HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM_TYPE}\r\nContent-Length: 100000\r\n\r\n"
        client.sendall(head.encode() + recording(b"x"))
        assert client.recv(100).startswith(b"HTTP/1.1 408")
