"""Recordings in a folder of this machine.

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
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from stenograf.errors import OutputForbiddenError
from stenograf.jobs.files import (
    BLOCK,
    MARK,
    ORPHAN_SECONDS,
    Stored,
    beyond,
    disk_errors,
    expect_room,
    missing,
    too_large,
)

WITHOUT_LINKS = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""How file systems say that a file has one name: shares of Windows, exFAT, folders of a virtual machine's host."""


class LocalIncoming:
    """An `Incoming`."""

    def __init__(self, path: Path, target: Path, max_bytes: int) -> None:
        self._path = path
        self._target = target
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self.size = 0
        with disk_errors(path.parent):
            self._file = path.open("xb")

    def write(self, data: bytes) -> None:
        if self._max_bytes and self.size + len(data) > self._max_bytes:
            raise too_large(self._max_bytes)
        with disk_errors(self._path.parent):
            self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def commit(self) -> str:
        with disk_errors(self._path.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            _settle(self._path, self._target)
        return self._target.name

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)
        self._target.unlink(missing_ok=True)


class LocalPiece:
    """A `Piece`.

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
        with disk_errors(path.parent):
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
        if self._at + len(data) > self._most:
            raise beyond(self._most)
        with self._lock, disk_errors(self._path.parent):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        if self._hash is not None:
            self._hash.update(data)
        self._at += len(data)

    def end(self, digest: bytes | None = None) -> int | None:
        if self._hash is not None and not hmac.compare_digest(self._hash.digest(), digest or b""):
            self.close()
            return None
        with disk_errors(self._path.parent):
            os.fsync(self._file.fileno())
            self._file.close()
            if self._hash is not None:
                self._note.unlink(missing_ok=True)
                _sync_folder(self._path.parent)
        return self._at

    def break_off(self) -> None:
        if self._hash is None:
            self.end()
        self.close()

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._hash is not None and not self._file.closed:
                self._file.truncate(self._offset)
                self._note.unlink(missing_ok=True)
            self._file.close()


class LocalFiles:
    """A `FileStore` in a folder of this machine."""

    def __init__(self, folder: Path, *, max_bytes: int = 0) -> None:
        """`max_bytes` bounds each file, 0: no bound. Raises `OutputForbiddenError`, `DiskFullError`."""
        self.folder = folder
        self.max_bytes = max_bytes
        self.shown = str(folder)
        self._incoming = folder / "incoming"
        self._uploads = folder / "uploads"
        with disk_errors(folder):
            for below in (self._incoming, self._uploads):
                below.mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        if not (self._incoming.is_dir() and self._uploads.is_dir() and os.access(self._incoming, os.W_OK)):
            raise OutputForbiddenError(f"{self.folder} cannot be written.", "Set STENOGRAF_UPLOAD_DIR to one that can.")

    def create(self) -> LocalIncoming:
        self.expect_room()
        name = uuid.uuid4().hex
        return LocalIncoming(self._incoming / name, self._place(name), self.max_bytes)

    def expect_room(self, size: int = 0) -> None:
        expect_room(self.folder, size)

    def belongs_to(self, mark: str, *, claim: bool = False) -> bool:
        path = self.folder / MARK
        with disk_errors(self.folder), contextlib.suppress(FileNotFoundError):
            return path.read_text("ascii") == mark
        if not claim:
            return False
        with disk_errors(self.folder), contextlib.suppress(FileExistsError):
            new = self.folder / "incoming" / uuid.uuid4().hex
            new.write_text(mark, "ascii")
            try:
                _name_first(new, path)
            finally:
                new.unlink(missing_ok=True)
        return path.read_text("ascii") == mark

    def expect_room_to_read(self) -> None:
        """It is read where it lies."""

    def piece(self, name: str, offset: int, most: int, algorithm: str | None = None) -> LocalPiece:
        self.expect_room()
        return LocalPiece(self._uploads / name, offset, most, algorithm)

    def received(self, name: str) -> int:
        part = self._uploads / name
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(_note(part).read_text("ascii"))
        for path in (part, self._place(name)):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    def admit(self, name: str) -> bool:
        part, place = self._uploads / name, self._place(name)
        with disk_errors(self.folder), contextlib.suppress(FileNotFoundError):
            _bring(part, place)
        return place.is_file()

    def look(self, name: str) -> Stored:
        try:
            found = self._place(name).stat()
        except FileNotFoundError:
            raise missing() from None
        return Stored(found.st_size, found.st_mtime, f"{found.st_mtime_ns:x}-{found.st_size:x}")

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        try:
            file = self._place(name).open("rb")
        except FileNotFoundError:
            raise missing() from None
        with file:
            file.seek(start)
            left = end - start if end is not None else None
            while left != 0 and (block := file.read(BLOCK if left is None else min(BLOCK, left))):
                left = None if left is None else left - len(block)
                yield block

    @contextlib.contextmanager
    def local(self, name: str, headway: Callable[[], None] = lambda: None) -> Iterator[Path]:
        path = self._place(name)
        if not path.is_file():
            raise missing()
        yield path

    def link(self, name: str, disposition: str, media_type: str, seconds: float) -> str | None:
        return None

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self._place(name)

    def remove(self, name: str | None) -> None:
        if name:
            part = self._uploads / name
            for path in (part, _note(part), self._place(name)):
                path.unlink(missing_ok=True)

    def sweep(self, named: Callable[[], Iterable[str]], *, age: float = ORPHAN_SECONDS) -> int:
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


def _name_first(path: Path, target: Path) -> None:
    """Give a whole file its name, if no other has it yet. Raises `FileExistsError`."""
    try:
        target.hardlink_to(path)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        if target.exists():
            raise FileExistsError(target) from None
        path.replace(target)  # of two that come in the same moment the later one has it, and both read it afterwards


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
