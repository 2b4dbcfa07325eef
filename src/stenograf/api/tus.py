"""The headers of tus 1.0 (https://tus.io/protocols/resumable-upload), read and written."""

from __future__ import annotations

import base64
import binascii
from email.utils import formatdate

from fastapi import HTTPException, Request
from starlette.responses import JSONResponse, Response

from stenograf.api.connection import add_header
from stenograf.api.errors import PROBLEM, title_of, type_of
from stenograf.api.intake import request_id
from stenograf.api.schemas import TASKS
from stenograf.errors import BadRequestError, FileEmptyError, UploadTooLargeError
from stenograf.jobs.files import too_large
from stenograf.jobs.uploads import Upload

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,termination,checksum"
ALGORITHMS = {"sha1": 20, "sha256": 32}
"""Name of a checksum, as hashlib has it -> its bytes. The protocol demands SHA-1."""

MEDIA_TYPE = "application/offset+octet-stream"

CHECKSUM_MISMATCH = 460
"""The protocol's own status."""


def version(request: Request) -> None:
    """A dependency of all endpoints: the version on every answer. Raises a 412 for requests of another one."""
    add_header(request, "Tus-Resumable", VERSION)
    if request.method in ("OPTIONS", "GET") or request.headers.get("tus-resumable") == VERSION:
        return
    if request.method == "POST" and request.path_params and "x-http-method-override" not in request.headers:
        return  # no call of the protocol at all
    add_header(request, "Tus-Version", VERSION)
    raise HTTPException(412, f"This is tus {VERSION}: the header Tus-Resumable must say so.")


def state(upload: Upload, offset: int) -> dict[str, str]:
    """The headers that tell how far an upload is: where to go on until when, or which task it became."""
    told = {"Upload-Offset": str(offset)}
    if upload.job_id:
        return told | {"Stenograf-Task-Id": upload.job_id, "Content-Location": f"{TASKS}/{upload.job_id}"}
    return told | {"Upload-Expires": formatdate(upload.expires_at, usegmt=True)}


def length(request: Request, most: int) -> int:
    """How many bytes a new upload will have. Raises `UploadTooLargeError` for more than `most`."""
    if "upload-defer-length" in request.headers or "upload-concat" in request.headers:
        raise BadRequestError(
            "Uploads of unknown length, and parts to be joined, are not taken here.", "Send Upload-Length."
        )
    size = number(request, "Upload-Length")
    if size == 0:
        raise FileEmptyError("The recording has no bytes.", "Record it or copy it again.")
    if size > most:
        raise too_large(most)
    return size


def number(request: Request, name: str) -> int:
    """A header that counts bytes; raises `BadRequestError`."""
    text = request.headers.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise BadRequestError(f"The header {name} is no number of bytes.", "A client for tus 1.0 writes it.")
    return int(text)


def refuse_early(request: Request, left: int) -> None:
    """Raises `UploadTooLargeError` before more than `left` bytes are sent."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > left):
        raise UploadTooLargeError(f"Only {left} bytes of the recording are still to come.", "Begin a new upload.")


def is_piece(request: Request) -> bool:
    """Whether the body is a part of the recording."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == MEDIA_TYPE


def metadata(text: str) -> dict[str, str]:
    """The names and values of Upload-Metadata; raises `BadRequestError`."""
    found: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, encoded = pair.partition(" ")
        try:
            value = base64.b64decode(encoded.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise BadRequestError(
                f"The value of {name[:40]!r} in Upload-Metadata is no base64 of UTF-8.", "A client for tus writes it."
            ) from None
        if name in found:
            raise BadRequestError(f"Upload-Metadata names {name[:40]!r} twice.", "Name it once.")
        found[name] = value
    return found


def without_secret(text: str) -> str:
    """Upload-Metadata as it is sent back: secrets go in, never out."""
    return ",".join(pair for pair in text.split(",") if pair.split()[:1] != ["webhook_secret"])


def checksum(request: Request) -> tuple[str | None, bytes | None]:
    """The algorithm and the checksum of the body, where there is one; raises `BadRequestError`."""
    sent = request.headers.get("upload-checksum")
    if sent is None:
        return None, None
    algorithm, _, encoded = sent.strip().partition(" ")
    try:
        digest = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != ALGORITHMS.get(algorithm):
        raise BadRequestError(
            "The header Upload-Checksum holds no checksum that is known here.",
            f"Write {' or '.join(ALGORITHMS)}, a space, and the checksum in base64.",
        )
    return algorithm, digest


def mismatch(request: Request) -> Response:
    """The answer to a piece that has another checksum; `errors.py` knows no status 460."""
    code = "checksum_mismatch"
    body = {
        "type": type_of(code),
        "title": title_of(code),
        "status": CHECKSUM_MISMATCH,
        "detail": "The piece came in with another checksum than its header says.",
        "code": code,
        "hint": "Send it again: nothing of it was kept.",
        "instance": request.scope["path"],
        "request_id": request_id(request),
    }
    return JSONResponse(body, CHECKSUM_MISMATCH, media_type=PROBLEM)
