"""Where recordings are kept between their arrival and their end: the one seam to storage.

    <folder>/incoming/<id>     being written
    <folder>/audio/ab/<id>     whole, synced, and (soon) named by a job

A file is moved into its place only once it is whole and on the disk, and its job is written after it. So a crash leaves
at most a file that no job names, and `sweep` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from stenograf.errors import DiskFullError, FileMissingError, OutputForbiddenError, UploadTooLargeError

ORPHAN_SECONDS = 3600.0
"""A file that no job names is removed at this age: its job may be on its way until then."""

RESERVE = 256 * 1024 * 1024
"""Bytes that are left free on the disk: the database must be able to write down what happens."""


class Incoming:
    """A file that is being written; hashed on the way. `commit` or `abort` ends it."""

    def __init__(self, path: Path, target: Path, max_bytes: int) -> None:
        self._path = path
        self._target = target
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes so far."""
        with _errors(path.parent):
            self._file = path.open("xb")

    def write(self, data: bytes) -> None:
        """Add bytes. Raises `UploadTooLargeError`, `DiskFullError`."""
        if self._max_bytes and self.size + len(data) > self._max_bytes:
            raise too_large(self._max_bytes)
        with _errors(self._path.parent):
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, in hexadecimal."""
        return self._hash.hexdigest()

    def commit(self) -> str:
        """Put the file in its place, durably; returns its name in the store."""
        with _errors(self._path.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            _settle(self._path, self._target)
        return self._target.name

    def abort(self) -> None:
        """Remove what was written; after a commit it removes the file from its place."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)
        self._target.unlink(missing_ok=True)


class FileStore:
    """Recordings in a folder of this machine."""

    def __init__(self, folder: Path, *, max_bytes: int = 0) -> None:
        """`max_bytes` bounds each file, 0: no bound."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._incoming = folder / "incoming"
        with _errors(folder):
            self._incoming.mkdir(parents=True, exist_ok=True)

    def create(self) -> Incoming:
        """A new file to write into. Raises `DiskFullError` where the disk is nearly full."""
        if shutil.disk_usage(self.folder).free < RESERVE:
            raise _full(self.folder)
        name = uuid.uuid4().hex
        return Incoming(self._incoming / name, self._place(name), self.max_bytes)

    def adopt(self, path: Path) -> str:
        """Take a whole file of the same disk in (it is moved); returns its name in the store."""
        name = uuid.uuid4().hex
        target = self._place(name)
        with _errors(self.folder):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.utime(path)  # it counts as new: `sweep` must not take it before its job is written
            _settle(path, target)
        return name

    def open(self, name: str) -> BinaryIO:
        """The file, to be read. Raises `FileMissingError`."""
        try:
            return self.path(name).open("rb")
        except FileNotFoundError:
            raise FileMissingError("The recording is not kept any more.", "Send it again.") from None

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self._place(name)

    def remove(self, name: str | None) -> None:
        """Remove a file; one that is gone already is fine."""
        if name:
            self._place(name).unlink(missing_ok=True)

    def sweep(self, named: Callable[[], Iterable[str]], *, age: float = ORPHAN_SECONDS) -> int:
        """Remove what no job names and is older than `age` seconds; returns how many files went.

        `named` is asked after the files were listed: a job that is written meanwhile keeps its file.
        """
        limit = time.time() - age
        old = [path for path in self._all() if _modified(path) < limit]
        kept = set(named()) if old else set()
        gone = [path for path in old if path.parent == self._incoming or path.name not in kept]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def _all(self) -> Iterable[Path]:
        yield from (path for path in self._incoming.iterdir() if path.is_file())
        yield from (path for path in (self.folder / "audio").glob("*/*") if path.is_file())

    def _place(self, name: str) -> Path:
        return self.folder / "audio" / name[:2] / name


def too_large(max_bytes: int) -> UploadTooLargeError:
    """The error for a file of more than `max_bytes`."""
    return UploadTooLargeError(
        f"The file is larger than this service takes ({max_bytes / 1e6:,.0f} MB).",
        "Send the sound without the pictures, compress it (opus, mp3), or send it in parts.",
    )


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _settle(path: Path, target: Path) -> None:
    """Move a file to its place; once this returns its name is on the disk, and that of its folder."""
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync_folder(target.parent.parent)
    path.rename(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _full(folder: Path) -> DiskFullError:
    return DiskFullError(f"The disk that holds {folder} is full.", "The operator must free some space.")


@contextlib.contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder) from error
        raise OutputForbiddenError(
            f"{folder} cannot be written: {error.strerror}.", "Set STENOGRAF_DATA_DIR to a folder that can."
        ) from error
