"""Where models are made and unmade: `.partial` in the models folder, one process at a time for each model."""

from __future__ import annotations

import errno
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from stenograf.errors import DiskFullError, ModelNotInstalledError, ModelsReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SPARE = 50 * 10**6
"""Bytes that stay free on the disk after a download."""

_WAIT = 1.0
"""Seconds between two calls of `on_wait`."""

_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class Workplace:
    """The part of a models folder that is no model yet, or no more."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._folder = models_dir / ".partial"

    def partial(self, name: str) -> Path:
        """Where the files of a download lie until all are there."""
        return self._folder / name

    @contextmanager
    def working_on(self, name: str, on_wait: Callable[[], None] | None) -> Iterator[None]:
        """Hold a model, and say in plain words why nothing can be written, if so.

        While another process holds it, `on_wait` is called each second; without it that is an error.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock(name, on_wait):
                yield
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise self._disk_full(f"{error.strerror}") from error
            if error.errno in _READ_ONLY:
                raise self._read_only(f"{error.strerror}") from error
            raise

    def expect_space(self, size: int) -> None:
        """Raise `DiskFullError` if `size` more bytes do not fit."""
        needed, free = max(size, 0) + _SPARE, shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._disk_full(f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")

    def delete(self, folder: Path) -> None:
        """Out of sight in one step and then gone: nobody meets half a model. Of a link only the link goes."""
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
            return
        aside = self._folder / f"{folder.name}.removing"
        if aside.is_dir():
            shutil.rmtree(aside)
        folder.rename(aside)
        shutil.rmtree(aside)

    @contextmanager
    def _lock(self, name: str, on_wait: Callable[[], None] | None) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self._folder / f"{name}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
        while not lock.is_locked:
            if on_wait is None:
                raise ModelNotInstalledError(
                    f"Another process is downloading {name} just now.", "Wait until it is done, or stop it."
                )
            on_wait()
            with suppress(Timeout):
                lock.acquire(timeout=_WAIT)
        try:
            yield
        finally:
            lock.release()

    def _disk_full(self, what: str) -> DiskFullError:
        return DiskFullError(
            f"There is no room for the model in {self._models_dir}: {what}.",
            "Free some, remove a model with `stenograf models remove`, or name another folder in "
            "STENOGRAF_MODELS_DIR; what has come is kept.",
        )

    def _read_only(self, why: str) -> ModelsReadOnlyError:
        return ModelsReadOnlyError(
            f"The models folder {self._models_dir} may not be written: {why}.",
            "Run this as its owner, or name another folder in STENOGRAF_MODELS_DIR.",
        )
