"""Whether a media file has its end, where FFmpeg corrects the claimed length in silence when a part is missing."""

from __future__ import annotations

import os
from typing import BinaryIO

OGG_PAGE_LIMIT = 65_307
"""Bytes: the largest page there can be (RFC 3533: 27 + 255 + 255 * 255)."""

RIFF_PLACEHOLDER = 0x7FFF_0000
"""From here on a RIFF length is no length: programs that write to a pipe leave a huge number there."""


def has_its_end(file: BinaryIO, format_name: str) -> bool | None:
    """Whether a seekable file is whole; None where its format does not tell. `format_name` is FFmpeg's."""
    check = _CHECKS.get(format_name)
    return None if check is None else check(file, file.seek(0, os.SEEK_END))


def _ogg(file: BinaryIO, size: int) -> bool | None:
    """It closes with a whole page that is marked as the last (RFC 3533, section 6)."""
    file.seek(max(0, size - OGG_PAGE_LIMIT))
    tail = file.read(OGG_PAGE_LIMIT)
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27:
        return False
    is_last = bool(tail[page + 5] & 4)
    table = tail[page + 27 : page + 27 + tail[page + 26]]
    return is_last and page + 27 + len(table) + sum(table) == len(tail)


def _wav(file: BinaryIO, size: int) -> bool | None:
    """It is as long as its RIFF header says."""
    file.seek(4)
    claimed = int.from_bytes(file.read(4), "little") + 8
    return claimed <= size or claimed > RIFF_PLACEHOLDER


def _mp3(file: BinaryIO, size: int) -> bool | None:
    """It is as long as the Xing or Info header in its first frame says; None without such a header."""
    file.seek(0)
    head = file.read(10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:
        seven_bits = [byte & 0x7F for byte in head[6:10]]
        start = 10 + (seven_bits[0] << 21 | seven_bits[1] << 14 | seven_bits[2] << 7 | seven_bits[3])
    file.seek(start)
    frame = file.read(400)
    tag = max(frame.find(b"Xing"), frame.find(b"Info"))
    if tag < 0 or len(frame) < tag + 16:
        return None
    flags = int.from_bytes(frame[tag + 4 : tag + 8], "big")
    if not flags & 2:
        return None
    field = tag + 8 + (4 if flags & 1 else 0)
    claimed = int.from_bytes(frame[field : field + 4], "big")
    return start + claimed <= size


_CHECKS = {"ogg": _ogg, "wav": _wav, "mp3": _mp3}
