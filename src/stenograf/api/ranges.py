"""Files of which clients may ask for a part."""

from __future__ import annotations

from pathlib import PurePath

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable

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


class RangedFile(FileResponse):
    """A file, or the part of it that Range asks for; errors come as all others, not as Starlette's plain text."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []  # RFC 9110, 14.2: one that cannot be read counts as none
        except RangeNotSatisfiable:
            raise HTTPException(416, headers={"Content-Range": f"bytes */{file_size}"}) from None
