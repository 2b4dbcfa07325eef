"""Copies of recordings on this machine, for as long as they are read: decoders jump about in files."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from stenograf.jobs.files import disk_errors, expect_room

YOUNG_SECONDS = 60.0
"""A lock that is younger may be about to be held."""


class Copies:
    """A folder of copies that nobody keeps; processes may share it.

    Beside each copy lies a lock that its process holds. So what a process left behind when it died can be told from
    what is in use, whatever its age.
    """

    def __init__(self, folder: Path) -> None:
        """Raises `OutputForbiddenError`, `DiskFullError`."""
        self.folder = folder
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def of(self, blocks: Iterable[bytes], size: int, headway: Callable[[], None]) -> Iterator[Path]:
        """A copy of `size` bytes, until the end of the `with`. Raises `DiskFullError` before there is no room."""
        from filelock import FileLock

        self.sweep()
        expect_room(self.folder, size)
        path = self.folder / uuid.uuid4().hex
        with disk_errors(self.folder):
            lock = FileLock(_lock_of(path))
            lock.acquire()
        try:
            with disk_errors(self.folder), path.open("xb") as file:
                for block in blocks:
                    file.write(block)
                    headway()
            yield path
        finally:
            _unlink(path)
            lock.release()
            _unlink(_lock_of(path))

    def nameless(self) -> IO[bytes]:
        """A file without a name, which is gone with its last holder. Raises `DiskFullError`."""
        expect_room(self.folder)
        with disk_errors(self.folder):
            return TemporaryFile(dir=self.folder)

    def sweep(self, *, young: float = YOUNG_SECONDS) -> int:
        """Remove what processes that died left behind; returns how many copies."""
        from filelock import FileLock, Timeout

        count = 0
        for held in list(self.folder.glob("*.lock")):
            with suppress(Timeout, OSError):
                if time.time() - held.stat().st_mtime < young:
                    continue
                with FileLock(held, timeout=0):
                    path = held.with_suffix("")
                    count += path.exists()
                    path.unlink(missing_ok=True)
                held.unlink(missing_ok=True)
        return count


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _unlink(path: Path) -> None:
    with suppress(OSError):  # `sweep` tries again
        path.unlink()
