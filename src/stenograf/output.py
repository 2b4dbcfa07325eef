"""A transcript -> a file on disk, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

from stenograf import formats
from stenograf.errors import DiskFullError, FormatUnknownError, OutputError, OutputExistsError, OutputForbiddenError
from stenograf.transcript import Transcript

MAX_NAME_BYTES = 255
"""The longest file name that the usual file systems take."""


def save(
    transcript: Transcript,
    path: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002
    *,
    overwrite: bool = False,
) -> Path:
    """Write a transcript to `path`, in `format` or else in the one that the name's suffix tells.

    Written beside and renamed: a file that is there is whole. Folders that lack are made. Raises
    `FormatUnknownError`, `OutputExistsError`, `OutputForbiddenError`, `DiskFullError`.
    """
    target = Path(path)
    name = format or target.suffix.removeprefix(".")
    if not name:
        raise FormatUnknownError(
            f"The name {target.name} does not tell a format.", f"Add one of: {', '.join(formats.FORMATS)}."
        )
    content = formats.render(transcript, formats.check(name))
    if target.is_dir():
        raise OutputForbiddenError(f"{target} cannot be written: a folder is in the way.", "Choose another --output.")
    if not overwrite and target.exists():
        raise exists(target)
    with errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # A short name of its own: the target's may already be as long as the file system allows.
        beside = target.parent / f".stenograf-{secrets.token_hex(6)}.tmp"
        try:
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _move(beside, target, overwrite=overwrite)
        finally:
            beside.unlink(missing_ok=True)
    return target


def _move(beside: Path, target: Path, *, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(beside, target)  # unlike a rename, it fails where something came into being meanwhile
        except FileExistsError:
            raise exists(target) from None
        except OSError:
            if target.exists():
                raise exists(target) from None
        else:
            return
    beside.replace(target)


def check_writable(folder: Path) -> None:
    """Make the folder and try whether a file can be made in it: better now than after an hour's work.

    Raises `OutputForbiddenError`, `DiskFullError`.
    """
    with errors(folder.absolute()):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".stenograf-{secrets.token_hex(6)}.tmp"
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)


def file_name(stem: str, suffix: str) -> str:
    """`stem` + `suffix`, cut short where the whole would pass `MAX_NAME_BYTES` in UTF-8.

    What was cut is told apart by a checksum, so that two long names do not become one.
    """
    room = MAX_NAME_BYTES - len(os.fsencode(suffix))
    encoded = os.fsencode(stem)
    if len(encoded) > room:
        mark = f"~{zlib.crc32(encoded):08x}"
        stem = encoded[: room - len(mark)].decode("utf-8", errors="ignore") + mark
    return stem + suffix


def exists(path: Path) -> OutputExistsError:
    """The error for a result that is there already."""
    return OutputExistsError(f"{path} exists already.", "Use --force (overwrite=True) to replace it.")


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn what the system says about writing to `path` into our errors."""
    try:
        yield
    except PermissionError as error:
        raise OutputForbiddenError(
            f"{path} may not be written by this user.", "Choose another folder with --output."
        ) from error
    except (NotADirectoryError, FileExistsError) as error:
        raise OutputForbiddenError(
            f"{path} cannot be made: a file is in the way.", "Choose another folder with --output."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"There is no space left to write {path}.", "Free some space, or choose another folder with --output."
            ) from error
        if error.errno == errno.EROFS:
            raise OutputForbiddenError(
                f"{path} is on a read-only file system.", "Choose another folder with --output."
            ) from error
        raise OutputError(f"{path} cannot be written: {error.strerror}.", "Choose another folder.") from error
