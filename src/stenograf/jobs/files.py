"""Where recordings are kept between their arrival and their end: the one seam to storage.

`folder.py` keeps them in a folder of this machine, `bucket.py` in an object store that all machines of a fleet reach.
Both give a file its name only once it is whole and durable, and its job is written after it. So a crash leaves at most
a file that nobody names, and `sweep` removes it.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stenograf.errors import DiskFullError, FileMissingError, OutputForbiddenError, QueueFullError, UploadTooLargeError
from stenograf.settings import Settings

ORPHAN_SECONDS = 3600.0
"""A file that nobody names is removed at this age: its job may be on its way until then."""

MARK = ".stenograf"
"""The name of the mark that tells whose files these are."""

RESERVE = 256 * 1024 * 1024
"""Bytes that are left free on the disk: the database must be able to write down what happens."""

BLOCK = 256 * 1024
"""Bytes of a file that are read from the disk at once."""


class Incoming(Protocol):
    """A file that is being written; hashed on the way. `commit` or `abort` ends it. All of it may take its time."""

    size: int
    """Bytes so far."""

    def write(self, data: bytes) -> None:
        """Add bytes. Raises `UploadTooLargeError`, `DiskFullError`, `StorageError`."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, in hexadecimal."""
        ...

    def commit(self) -> str:
        """Put the file in its place, durably; returns its name in the store."""
        ...

    def abort(self) -> None:
        """Remove what was written; after a commit it removes the file from its place. Never raises `StorageError`."""
        ...


class Piece(Protocol):
    """A stretch of a file that comes in pieces, while it is written; `end`, `break_off` or `close` ends it."""

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises `UploadTooLargeError` where they go beyond the end of the file, `DiskFullError`, `StorageError`.
        """
        ...

    def end(self, digest: bytes | None = None) -> int | None:
        """The piece is whole: once this returns, it is durable. Returns how much of the file is here now.

        None, and nothing of the piece is kept, where its checksum is not `digest`.
        """
        ...

    def break_off(self) -> None:
        """No more of it comes: what is here is kept, unless it was to be checked."""
        ...

    def close(self) -> None:
        """Let go of it, at whatever point and at once; a piece that was to be checked is dropped.

        Nothing after an `end`. Without one, an object store may have less of the piece than was written.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in its place."""

    size: int
    modified: float
    """Seconds since 1970."""
    tag: str
    """Another one for other bytes: for the header ETag, without the quotes."""


class FileStore(Protocol):
    """Keeps recordings; to be used by many threads. All of it may raise `StorageError` where a network is between."""

    @property
    def max_bytes(self) -> int:
        """The largest file; 0: no bound."""
        ...

    @property
    def shown(self) -> str:
        """The place, for the operator; without credentials."""
        ...

    @property
    def folder(self) -> Path:
        """The folder of this machine that it needs room in."""
        ...

    def check(self) -> None:
        """Raises a `StenografError` where nothing can be read or written now."""
        ...

    def create(self) -> Incoming:
        """A new file to write into. Raises `DiskFullError` where the disk is nearly full."""
        ...

    def expect_room(self, size: int = 0) -> None:
        """Raises `DiskFullError` where there is no room for so many bytes, and a reserve beside them."""
        ...

    def expect_room_to_read(self) -> None:
        """Raises `DiskFullError` where this machine has no room for copies that are to be read."""
        ...

    def piece(self, name: str, offset: int, most: int, algorithm: str | None = None) -> Piece:
        """The next piece of a file that comes in pieces, from `offset`, which is what `received` gives.

        `name` is any that is free. The file may have `most` bytes in the end. With an `algorithm` of hashlib the piece
        is checked at its end. One piece of a file at a time. Raises `DiskFullError` where the disk is nearly full.
        """
        ...

    def received(self, name: str) -> int:
        """How many bytes are here of a file that comes in pieces, or came in pieces and is in its place now."""
        ...

    def admit(self, name: str) -> bool:
        """Put a file that came in pieces, and is whole, into its place, durably; False where there is none.

        One that is there already is fine.
        """
        ...

    def look(self, name: str) -> Stored:
        """What there is to know of a file in its place. Raises `FileMissingError`."""
        ...

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `end`, block by block. Raises `FileMissingError` at the first."""
        ...

    def local(self, name: str, headway: Callable[[], None] = ...) -> AbstractContextManager[Path]:
        """A path at which the file can be read until the end of the `with`. Raises `FileMissingError`, `DiskFullError`.

        While it is being brought to this machine, `headway` is called, which may raise.
        """
        ...

    def link(self, name: str, disposition: str, media_type: str, seconds: float) -> str | None:
        """An address at which anyone can GET the file for so long; None where it can be had from here only.

        It comes from there with these headers Content-Disposition and Content-Type.
        """
        ...

    def belongs_to(self, mark: str, *, claim: bool = False) -> bool:
        """Whether these are the files of the database with this mark; with `claim`, nobody's become its own."""
        ...

    def remove(self, name: str | None) -> None:
        """Remove a file, however much of it is here; one that is gone already is fine."""
        ...

    def sweep(self, named: Callable[[], Iterable[str]], *, age: float = ORPHAN_SECONDS) -> int:
        """Remove what nobody names and is older than `age` seconds; returns how many files went.

        `named` is asked after the files were listed: a job that is written meanwhile keeps its file.
        """
        ...


def files_for(settings: Settings) -> FileStore:
    """The store that the settings name; it is not asked for anything yet. Raises `SettingInvalidError`."""
    max_bytes = settings.max_upload * 1_000_000
    if settings.storage_url:
        from stenograf.jobs.bucket import BucketFiles

        return BucketFiles(settings, max_bytes=max_bytes)
    from stenograf.jobs.folder import LocalFiles

    return LocalFiles(settings.files_path, max_bytes=max_bytes)


def too_large(max_bytes: int) -> UploadTooLargeError:
    """The error for a file of more than `max_bytes`."""
    return UploadTooLargeError(
        f"The file is larger than this service takes ({max_bytes / 1e6:,.0f} MB).",
        "Send the sound without the pictures, compress it (opus, mp3), or send it in parts.",
    )


def beyond(most: int) -> UploadTooLargeError:
    """The error for pieces of more than the `most` bytes that their file was to have."""
    return UploadTooLargeError(f"There are more bytes than the {most} that were announced.", "Begin a new upload.")


def missing() -> FileMissingError:
    """The error for a file that is not there."""
    return FileMissingError("The recording is not kept any more.", "Send it again.")


def expect_room(folder: Path, size: int = 0) -> None:
    """Raises `DiskFullError` where the disk has no room for so many bytes, and `RESERVE` beside them."""
    if shutil.disk_usage(folder).free < RESERVE + size:
        raise _full(folder)


def _full(folder: Path) -> DiskFullError:
    return DiskFullError(f"The disk that holds {folder} is full.", "The operator must free some space.")


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What goes wrong with files in `folder`, as errors that a person can read."""
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
            f"{folder} cannot be written: {error.strerror}.",
            "Let this user write there, or choose another: STENOGRAF_UPLOAD_DIR for recordings, STENOGRAF_DATA_DIR for "
            "all that has no setting of its own.",
        ) from error
