"""Where recordings are kept between their arrival and their end: the one seam to storage.

    <folder>/incoming/<id>     being written
    <folder>/uploads/<id>      coming in pieces, over hours maybe; named by an upload
    <folder>/audio/ab/<id>     whole, synced, and (soon) named by a job

A file is moved into its place only once it is whole and on the disk, and its job is written after it. So a crash leaves
at most a file that nobody names, and `sweep` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from stenograf.errors import DiskFullError, FileMissingError, OutputForbiddenError, QueueFullError, UploadTooLargeError

ORPHAN_SECONDS = 3600.0
"""A file that nobody names is removed at this age: its job may be on its way until then."""

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


class Piece:
    """A stretch of a file that comes in pieces, while it is written; `end`, `break_off` or `close` ends it.

    The size of the file tells how much of it is here, whatever happens. Only a piece that is to be held against a
    checksum does not count before it has passed: until then, a note beside the file tells where it begins.
    """

    def __init__(self, path: Path, offset: int, most: int, algorithm: str | None) -> None:
        self._path = path
        self._offset = self._at = offset
        self._most = most
        self._hash = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None
        self._note = _note(path)
        self._lock = threading.Lock()  # a request that is broken off may leave a thread behind that still writes
        with _errors(path.parent):
            is_new = not path.exists()
            path.touch()
            self._file = path.open("r+b", buffering=0)
            self._file.truncate(offset)  # what an unchecked piece left
            self._note.unlink(missing_ok=True)
            if self._hash is not None:
                self._note.write_text(str(offset), "ascii")
                _sync(self._note)
            if self._hash is not None or is_new:
                _sync_folder(path.parent)
            self._file.seek(offset)

    def write(self, data: bytes) -> None:
        """Add bytes. Raises `UploadTooLargeError` where they go beyond the end of the file, `DiskFullError`."""
        if self._at + len(data) > self._most:
            raise UploadTooLargeError(
                f"There are more bytes than the {self._most} that were announced.", "Begin a new upload."
            )
        with self._lock, _errors(self._path.parent):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        if self._hash is not None:
            self._hash.update(data)
        self._at += len(data)

    def end(self, digest: bytes | None = None) -> int | None:
        """The piece is whole: once this returns, it is on the disk. Returns how much of the file is here now.

        None, and nothing of the piece is kept, where its checksum is not `digest`.
        """
        if self._hash is not None and not hmac.compare_digest(self._hash.digest(), digest or b""):
            self.close()
            return None
        with _errors(self._path.parent):
            os.fsync(self._file.fileno())
            self._file.close()
            if self._hash is not None:
                self._note.unlink(missing_ok=True)
                _sync_folder(self._path.parent)
        return self._at

    def break_off(self) -> None:
        """No more of it comes: what is here is kept, unless it was to be checked."""
        if self._hash is None:
            self.end()
        self.close()

    def close(self) -> None:
        """Let go of the file, at whatever point; a piece that was to be checked is dropped. Nothing after an `end`."""
        with self._lock, contextlib.suppress(OSError):
            if self._hash is not None and not self._file.closed:
                self._file.truncate(self._offset)
                self._note.unlink(missing_ok=True)
            self._file.close()


class FileStore:
    """Recordings in a folder of this machine."""

    def __init__(self, folder: Path, *, max_bytes: int = 0) -> None:
        """`max_bytes` bounds each file, 0: no bound."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._incoming = folder / "incoming"
        self._uploads = folder / "uploads"
        with _errors(folder):
            for below in (self._incoming, self._uploads):
                below.mkdir(parents=True, exist_ok=True)

    def create(self) -> Incoming:
        """A new file to write into. Raises `DiskFullError` where the disk is nearly full."""
        self.expect_room()
        name = uuid.uuid4().hex
        return Incoming(self._incoming / name, self._place(name), self.max_bytes)

    def expect_room(self, size: int = 0) -> None:
        """Raises `DiskFullError` where the disk has no room for so many bytes, and a reserve beside them."""
        if shutil.disk_usage(self.folder).free < RESERVE + size:
            raise _full(self.folder)

    def piece(self, name: str, offset: int, most: int, algorithm: str | None = None) -> Piece:
        """The next piece of a file that comes in pieces, from `offset`, which is what `received` gives.

        `name` is any that is free. The file may have `most` bytes in the end. With an `algorithm` of hashlib the piece
        is checked at its end. One piece of a file at a time. Raises `DiskFullError` where the disk is nearly full.
        """
        self.expect_room()
        return Piece(self._uploads / name, offset, most, algorithm)

    def received(self, name: str) -> int:
        """How many bytes are here of a file that comes in pieces, or came in pieces and is in its place now."""
        part = self._uploads / name
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(_note(part).read_text("ascii"))
        for path in (part, self._place(name)):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    def admit(self, name: str) -> bool:
        """Put a file that came in pieces, and is whole, into its place, durably; False where there is none.

        One that is there already is fine.
        """
        part, place = self._uploads / name, self._place(name)
        with _errors(self.folder), contextlib.suppress(FileNotFoundError):
            _bring(part, place)
        return place.is_file()

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
        """Remove a file, however much of it is here; one that is gone already is fine."""
        if name:
            part = self._uploads / name
            for path in (part, _note(part), self._place(name)):
                path.unlink(missing_ok=True)

    def sweep(self, named: Callable[[], Iterable[str]], *, age: float = ORPHAN_SECONDS) -> int:
        """Remove what nobody names and is older than `age` seconds; returns how many files went.

        `named` is asked after the files were listed: a job that is written meanwhile keeps its file.
        """
        limit = time.time() - age
        old = [path for path in self._all() if _modified(path) < limit]
        kept = set(named()) if old else set()
        gone = [path for path in old if path.parent == self._incoming or path.stem not in kept]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def _all(self) -> Iterable[Path]:
        for folder in (self._incoming, self._uploads):
            yield from (path for path in folder.iterdir() if path.is_file())
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


def _note(part: Path) -> Path:
    """Where it is noted how much of a file counts, while more of it is on the disk."""
    return part.with_name(f"{part.name}.note")


def _bring(path: Path, target: Path) -> None:
    """Move a whole file to its place, durably."""
    _sync(path)
    os.utime(path)  # it counts as new: `sweep` must not take it before its job is written
    _settle(path, target)


def _settle(path: Path, target: Path) -> None:
    """Move a file to its place; once this returns its name is on the disk, and that of its folder."""
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync_folder(target.parent.parent)
    path.rename(target)
    _sync_folder(target.parent)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


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
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise QueueFullError(
                "The service has as many files open as it may.",
                "Send it again in a moment; the operator can raise the limit of open files (ulimit -n).",
            ) from error
        raise OutputForbiddenError(
            f"{folder} cannot be written: {error.strerror}.", "Set STENOGRAF_DATA_DIR to a folder that can."
        ) from error
