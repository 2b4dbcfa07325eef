"""A form as it streams in: text fields into memory, the file's bytes straight on to where they are kept.

Starlette's own reader spools each file to a temporary one first, which then has to be copied. Here nothing stands
between the socket and the sink but one batch of bytes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState
from starlette.requests import Request

from stenograf.api.disposition import content_disposition as content_disposition
from stenograf.api.disposition import content_type, field_name, parameters, sent_filename
from stenograf.api.disposition import safe_name as safe_name
from stenograf.api.file_threads import run_with_files
from stenograf.errors import (
    BadRequestError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
    UploadTooLargeError,
)

BATCH_BYTES = 512 * 1024
"""The least that goes to the sink at once, but for the rest at the end: so that hops to a thread are few."""

IDLE_TIMEOUT_SECONDS = 60.0
"""How long to wait for the next byte; nginx's `client_body_timeout` has the same default."""

MAX_BOUNDARY_LENGTH = 70
"""Bytes; RFC 2046, 5.1.1."""

MAX_PREAMBLE_BYTES = 8 * 1024
"""Before the first boundary. Nothing useful stands there."""

MAX_PART_HEADERS = 16
"""Three are usual."""

MAX_PART_HEADER_BYTES = 8 * 1024
"""Of one header line. A file name of 255 letters, in both spellings that .NET sends, takes up to 4 kB."""

MAX_FRAMING_BYTES = 256 * 1024
"""All that is neither file nor field: boundaries, part headers, what stands before the first and after the last."""

FIELDS_IN_ALL = 8
"""All text fields together may take so many times what one may take."""

_CHARSET = re.compile(r"utf-?8|(?:us-)?ascii|iso-8859-\d{1,2}|latin-?1|(?:windows|cp)-?125\d|koi8-[ru]", re.IGNORECASE)
"""Charsets that a text field may declare. Python knows more, of which some take quadratic time."""

_COMPRESS = "Send the sound alone, compressed, such as Opus or MP3, or cut it into parts."
_LEAVE_CONTENT_TYPE = "Do not set Content-Type yourself: the library that writes the form adds the boundary."


class Sink(Protocol):
    """Receives a file."""

    def write(self, data: bytes) -> None:
        """Take the next bytes; it may block. Called in threads of a pool, never twice at a time."""


@dataclass
class FilePart:
    """The file of a form."""

    field: str
    filename: str
    """Safe to show and to store, see `safe_name`; `recording` where none was sent."""

    content_type: str
    """As the client says, without parameters; `application/octet-stream` where it says nothing sensible."""

    size: int = 0
    """Bytes received so far; 0 at the end is an empty file."""


@dataclass
class Form:
    """A form that was read to its end."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    """Name and value in the order in which they came; a name may come again."""

    file: FilePart | None = None

    def get(self, name: str) -> str | None:
        """The last value of the field `name`, as Starlette's forms have it; None where there is none."""
        return next((value for key, value in reversed(self.fields) if key == name), None)

    def all(self, name: str) -> list[str]:
        """All values of the field `name`, in order."""
        return [value for key, value in self.fields if key == name]


async def read_form(
    request: Request,
    open_sink: Callable[[FilePart], Sink],
    *,
    file_fields: tuple[str, ...] = ("file",),
    max_file_bytes: int,
    max_field_bytes: int = 1024 * 1024,
    max_fields: int = 100,
    idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS,
) -> Form:
    """Read a `multipart/form-data` body; the file goes to the sink that `open_sink` makes once its headers are known.

    `open_sink` and `Sink.write` run in a thread pool. Nothing is written after an error; to undo what was written
    is the caller's part. All text fields together may have `FIELDS_IN_ALL` times `max_field_bytes`.

    Raises `UnsupportedMediaTypeError` for another kind of body, `UploadTooLargeError` for a file or a field over its
    limit (before anything is read, where Content-Length says so), `BadRequestError` for a broken body, too many
    fields, two files or a file under another name than one of `file_fields`, `RequestTimeoutError` after
    `idle_timeout_seconds` without a byte, and Starlette's `ClientDisconnect` when the client hangs up.
    """
    line = f"curl -F {file_fields[0]}=@recording.wav {request.scope['scheme']}://HOST{request.scope['path']}"
    options = _require(request, "multipart/form-data", f"Send a form with the recording in it, such as: {line}")
    limits = _Limits(file_fields, max_file_bytes, max_field_bytes, max_fields)
    body = _Body(_boundary(options), limits)
    sink: Sink | None = None
    _refuse_early(request, max_file_bytes, FIELDS_IN_ALL * max_field_bytes + MAX_FRAMING_BYTES)
    async with aclosing(_received(request, idle_timeout_seconds)) as stream:
        async for data in stream:
            body.feed(data)
            if sink is None and body.form.file is not None:
                sink = await run_with_files(open_sink, body.form.file)
            if sink is not None and len(body.pending) >= BATCH_BYTES:
                await run_with_files(sink.write, body.take())
    body.finish()
    if sink is not None and body.pending:
        await run_with_files(sink.write, body.take())
    return body.form


async def read_fields(
    request: Request, max_bytes: int, *, max_fields: int = 100, idle_timeout_seconds: float = IDLE_TIMEOUT_SECONDS
) -> Form:
    """Read an `application/x-www-form-urlencoded` body of at most `max_bytes`; raises as `read_form` does."""
    _require(request, "application/x-www-form-urlencoded", "Send the fields as curl -d name=value sends them.")
    _refuse_early(request, max_bytes, 0)
    body = bytearray()
    async with aclosing(_received(request, idle_timeout_seconds)) as stream:
        async for data in stream:
            body += data
            if len(body) > max_bytes:
                raise _too_large("The form", max_bytes)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=max_fields)
    except UnicodeDecodeError as error:
        raise BadRequestError("The form is not UTF-8.", "Encode it as UTF-8, then in percents.") from error
    except ValueError as error:
        raise _too_many(max_fields) from error
    return Form(pairs)


@dataclass(frozen=True)
class _Limits:
    file_fields: tuple[str, ...]
    file_bytes: int
    field_bytes: int
    fields: int


class _Body:
    """What was received so far, as the parser's callbacks sort it."""

    def __init__(self, boundary: bytes, limits: _Limits) -> None:
        self.form = Form()
        self.pending = bytearray()
        self._limits = limits
        self._delimiter = b"\r\n--" + boundary
        self._preamble: bytearray | None = bytearray(b"\r\n")  # so that each boundary has a line end before it
        self._received = 0
        self._fields_bytes = 0
        self._headers: dict[bytes, str] = {}
        self._header = (bytearray(), bytearray())
        self._name = ""
        self._charset = "utf-8"
        self._value: bytearray | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
            },
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER_BYTES,
        )

    def feed(self, data: bytes) -> None:
        self._received += len(data)
        if self._preamble is not None:
            # The parser takes no preamble but line ends, and that only if it is not split at a wrong place.
            data = self._past_preamble(self._preamble, data)
        try:
            self._parser.write(data)
        except FormParserError as error:
            message = f"The body of the request cannot be read as a form ({error})."
            raise BadRequestError(message, "Let a library or curl -F write the form.") from error
        file_bytes = self.form.file.size if self.form.file else 0
        if self._received - file_bytes - self._fields_bytes > MAX_FRAMING_BYTES:
            raise BadRequestError("The form has too much beside its fields and its file.", "Send nothing else in it.")

    def take(self) -> bytes:
        """The bytes of the file that were not handed over yet."""
        data = bytes(self.pending)
        self.pending.clear()
        return data

    def finish(self) -> None:
        if self._parser.state == MultipartState.END:
            return
        if self._received == 0:
            raise BadRequestError("The body of the request is empty.", "Send a form with the recording in it.")
        if self._preamble is not None:
            raise _no_boundary()
        raise BadRequestError(
            "The upload was cut off: its body ends before the closing boundary.",
            "Send it again; if there is a proxy in between, look at its limits.",
        )

    def _past_preamble(self, seen: bytearray, data: bytes) -> bytes:
        seen += data
        most = MAX_PREAMBLE_BYTES + len(self._delimiter)
        at = seen.find(self._delimiter, 0, most)
        if at >= 0:
            self._preamble = None
            return bytes(seen[at:])
        if len(seen) >= most:
            raise _no_boundary()
        return b""

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = value.decode("latin-1").strip()
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        _, options = parameters(self._headers.get(b"content-disposition", ""))
        kind, type_options = parameters(self._headers.get(b"content-type", ""))
        self._name = field_name(options)
        if not self._name:
            raise BadRequestError("A part of the form has no name.", 'Give it one: form-data; name="language".')
        encoding = self._headers.get(b"content-transfer-encoding", "binary").lower()
        if encoding not in ("binary", "8bit", "7bit"):
            message = f"The field {_shown(self._name)} is encoded as {_shown(encoding)}."
            raise BadRequestError(message, "Send it as it is (RFC 7578, 4.7).")
        named = "filename" in options or "filename*" in options
        if named or (self._name in self._limits.file_fields and kind and not kind.startswith("text/")):
            self._begin_file(options, kind)
        else:
            self._begin_text(type_options)

    def _begin_file(self, options: dict[str, str], kind: str) -> None:
        wanted = self._limits.file_fields
        if self._name not in wanted:
            raise BadRequestError(
                f"The file came in the field {_shown(self._name)}, which takes none.",
                f"Send it in the field {' or '.join(wanted)}.",
            )
        if self.form.file is not None:
            raise BadRequestError("The form has more than one file.", "Send one file in a request.")
        self.form.file = FilePart(self._name, sent_filename(options), content_type(kind))
        self._value = None

    def _begin_text(self, type_options: dict[str, str]) -> None:
        if self._name in self._limits.file_fields:
            raise BadRequestError(
                f"The field {_shown(self._name)} holds text, not a file.",
                f"Give it a file name; with curl write -F {self._name}=@recording.wav, with the @.",
            )
        if len(self.form.fields) >= self._limits.fields:
            raise _too_many(self._limits.fields)
        self._charset = type_options.get("charset", "utf-8")
        if not _CHARSET.fullmatch(self._charset):
            message = f"The field {_shown(self._name)} is in the charset {_shown(self._charset)}."
            raise BadRequestError(message, "Send it as UTF-8.")
        self._value = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        count = end - start
        if self._value is None:
            assert self.form.file is not None
            if self.form.file.size + count > self._limits.file_bytes:
                raise _too_large("The file", self._limits.file_bytes, _COMPRESS)
            self.form.file.size += count
            self.pending += memoryview(data)[start:end]
            return
        limit = self._limits.field_bytes
        if len(self._value) + count > limit:
            raise _too_large(f"The field {_shown(self._name)}", limit)
        if self._fields_bytes + count > FIELDS_IN_ALL * limit:
            raise _too_large("All text in the form", FIELDS_IN_ALL * limit)
        self._fields_bytes += count
        self._value += memoryview(data)[start:end]

    def _on_part_end(self) -> None:
        if self._value is None:
            return
        try:
            self.form.fields.append((self._name, self._value.decode(self._charset)))
        except (UnicodeDecodeError, LookupError) as error:
            message = f"The field {_shown(self._name)} is no text in {self._charset}."
            raise BadRequestError(message, "Send it as UTF-8.") from error


async def _received(request: Request, idle_timeout_seconds: float) -> AsyncGenerator[bytes, None]:
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                async with asyncio.timeout(idle_timeout_seconds):
                    data = await anext(stream, b"")
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"Nothing more of the request came for {idle_timeout_seconds:g} seconds.",
                    "Send it again over a better connection.",
                ) from error
            if not data:  # Starlette ends the stream with an empty piece, and sends none before
                return
            yield data


def _require(request: Request, kind: str, hint: str) -> dict[str, str]:
    """The parameters of Content-Type, which must be `kind`."""
    sent, options = parameters(request.headers.get("content-type", ""))
    if sent != kind:
        what = f"is {_shown(sent)}" if sent else "has no Content-Type"
        raise UnsupportedMediaTypeError(f"The body of the request {what}, where {kind} is due.", hint)
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"The body of the request is packed with {_shown(encoding)}.", hint)
    return options


def _boundary(options: dict[str, str]) -> bytes:
    boundary = options.get("boundary", "").encode("latin-1")
    if 0 < len(boundary) <= MAX_BOUNDARY_LENGTH:
        return boundary
    trouble = f"a boundary of more than {MAX_BOUNDARY_LENGTH} bytes" if boundary else "no boundary"
    raise BadRequestError(f"The Content-Type of the request names {trouble}.", _LEAVE_CONTENT_TYPE)


def _refuse_early(request: Request, limit: int, slack: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit + slack):
        raise _too_large("The upload", limit, _COMPRESS)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def _amount(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def _too_large(what: str, limit: int, hint: str = "Send less text.") -> UploadTooLargeError:
    return UploadTooLargeError(f"{what} has more than {_amount(limit)}.", hint)


def _too_many(limit: int) -> BadRequestError:
    return BadRequestError(f"The form has more than {limit} fields.", "Send only the options of one request.")


def _no_boundary() -> BadRequestError:
    return BadRequestError(
        "The body of the request does not begin with the boundary that its Content-Type names.", _LEAVE_CONTENT_TYPE
    )
