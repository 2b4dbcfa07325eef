"""Files of which clients may ask for a part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from itertools import chain
from pathlib import PurePath

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from stenograf.api.file_threads import streamed
from stenograf.jobs.files import FileStore

_MEDIA_TYPES = {
    ".aac": "audio/aac", ".aif": "audio/aiff", ".aiff": "audio/aiff", ".amr": "audio/amr", ".avi": "video/x-msvideo",
    ".flac": "audio/flac", ".m4a": "audio/mp4", ".mka": "audio/x-matroska", ".mkv": "video/x-matroska",
    ".mov": "video/quicktime", ".mp3": "audio/mpeg", ".mp4": "video/mp4", ".mpeg": "video/mpeg", ".mpg": "video/mpeg",
    ".mpga": "audio/mpeg", ".oga": "audio/ogg", ".ogg": "audio/ogg", ".ogv": "video/ogg", ".opus": "audio/ogg",
    ".wav": "audio/wav", ".weba": "audio/webm", ".webm": "video/webm", ".wma": "audio/x-ms-wma",
}  # fmt: skip
"""Of the suffixes of recordings, by IANA's registry and the web's usage; nothing here runs as a page or a script."""


def media_type_of(filename: str) -> str:
    """What a browser is told that a recording is, by its suffix."""
    return _MEDIA_TYPES.get(PurePath(filename).suffix.lower(), "application/octet-stream")


def stored_file(
    request: Request, files: FileStore, name: str, *, headers: Mapping[str, str], media_type: str
) -> Response:
    """A file of the store, or the one part of it that Range asks for; several parts count as all of it.

    What goes wrong with the store shows before the answer begins. Raises `FileMissingError`, `StorageError`, and the
    416 of RFC 9110.
    """
    found = files.look(name)
    told = {
        **headers,
        "Accept-Ranges": "bytes",
        "ETag": f'"{found.tag}"',
        "Last-Modified": formatdate(found.modified, usegmt=True),
    }
    start, end, status = 0, found.size, 200
    if request.headers.get("if-range", told["ETag"]) in (told["ETag"], told["Last-Modified"]):
        part = _part(request.headers.get("range", ""), found.size)
        if part is not None:
            start, end = part
            status = 206
            told["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
    told["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(None, status, told, media_type)
    blocks = files.read(name, start, end)
    first = next(blocks, b"")
    return StreamingResponse(streamed(chain((first,), blocks)), status, told, media_type)


def _part(asked: str, size: int) -> tuple[int, int] | None:
    """Where the part begins and ends; None where all is asked for, and where the header cannot be read (14.2)."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", asked, re.IGNORECASE | re.ASCII)
    if found is None or not (found[1] or found[2]):
        return None
    if found[1]:
        start, end = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None
    else:
        start, end = max(size - int(found[2]), 0), size
    if start >= end:
        raise HTTPException(416, headers={"Content-Range": f"bytes */{size}"})
    return start, end
