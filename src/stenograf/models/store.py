"""The models on this machine: found, downloaded, verified, removed.

    <models_dir>/<name>/                a model; stenograf.json in it says what it is made of, if it was pulled
    <models_dir>/.partial/<name>/       a download that is not finished: the next pull goes on with it
    <models_dir>/.partial/<name>.lock

A model may also be a folder that was put there by hand, a folder of a Hugging Face cache (in the models folder, or
where Hugging Face's own libraries keep theirs, which is read and never written), or a path.
"""

from __future__ import annotations

import errno
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stenograf.errors import (
    DiskFullError,
    ModelNotInstalledError,
    ModelsReadOnlyError,
    ModelUnknownError,
    StenografError,
)
from stenograf.models import catalog
from stenograf.models.download import Hub, OnBytes, Plan, digest_of
from stenograf.models.found import (
    Installed,
    ModelFiles,
    Source,
    damaged,
    describe,
    examine,
    hashes,
    holding_snapshot,
    holds,
    write_manifest,
)
from stenograf.models.layout import files_of, hub_cache, snapshot, snapshot_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stenograf.models.catalog import CatalogEntry

_SPARE = 50 * 10**6
"""Bytes that stay free on the disk after a download."""

_WAIT = 1.0
"""Seconds between two reports while another process downloads."""

_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class PullProgress:
    """How far a pull is, over all files of the model."""

    done: int
    """Bytes that are here, those of an earlier try included."""

    total: int
    """Bytes in all; 0 while that is not known yet."""

    file: str = ""
    phase: Literal["waiting", "downloading", "verifying"] = "downloading"
    """`waiting`: another process is pulling the same model."""


class ModelStore:
    """The models of one folder, and the hub that they come from.

    `models_dir` need not exist: the first pull makes it. It may be read-only if nothing is to be pulled. `endpoint` is
    a mirror of the hub, `token` is for private and gated models. If `offline`, no hub is ever asked. Proxies are
    taken from the environment (HTTPS_PROXY, NO_PROXY).
    """

    def __init__(
        self,
        models_dir: Path,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> None:
        self.models_dir = models_dir.expanduser().absolute()
        self._hub = Hub(endpoint, token)
        self._offline = offline

    def resolve(self, name: str, *, allow_path: bool) -> ModelFiles:
        """The model of that name: of the catalog and here, a folder of the models folder or, if allowed, a path.

        A path is what has a separator or begins with `.` or `~`, and any folder where no model is called so. Nothing
        is downloaded. Raises `ModelUnknownError`, `ModelNotInstalledError` or `ModelDamagedError`.
        """
        name = name.strip()
        entry = catalog.find(name)
        if entry is None and _looks_like_path(name):
            if not allow_path:
                raise self._unknown(name)
            return self._at_path(name)
        if found := self._locate(name, entry):
            folder, source = found
            return examine(entry.name if entry else name, folder, entry, source)
        if entry is not None:
            raise self._not_installed(entry)
        if allow_path and _is_folder(Path(name)):
            return self._at_path(name)
        raise self._unknown(name)

    def path(self, name: str) -> Path:
        """The folder of a model that is here."""
        return self.resolve(name, allow_path=False).path

    def installed(self) -> list[Installed]:
        """All models that are here, by name, those that cannot be used and those in the hub's cache included."""
        here = [line for folder in self._folders() if (line := _line(folder))]
        names = {line.name for line in here}
        cached = [
            describe(entry.name, folder, entry, "hub cache")
            for entry in catalog.ENTRIES
            if entry.name not in names and (folder := holding_snapshot(hub_cache(), entry))
        ]
        return sorted(here + cached, key=lambda line: line.name)

    def verify(self, name: str, progress: Callable[[PullProgress], None] | None = None) -> int:
        """Compare the contents of a model's files with what the hub said of them; raises `ModelDamagedError`.

        Returns how many files were compared: 0 for a model that came another way, of which no hashes are known.
        """
        model = self.resolve(name, allow_path=False)
        expected = hashes(model.path)
        report = _Report(progress, "verifying", sum((model.path / path).stat().st_size for path in expected))
        wrong = [
            path
            for path, digest in expected.items()
            if digest_of(model.path / path, digest, report.of(path)) != digest
        ]
        if wrong:
            what = f"{', '.join(wrong)} changed since the download"
            raise damaged(model.name, model.path, model.entry, what)
        return len(expected)

    def pull(self, name: str, progress: Callable[[PullProgress], None] | None = None) -> ModelFiles:
        """Download a model of the catalog, or go on with it; if it is in the models folder already, return it.

        `progress` is called often, in this thread; what it raises stops the download, and a later pull goes on with
        it. Of a damaged model only what is wrong comes again. While another process pulls the same model, this waits.
        """
        entry = catalog.find(name)
        if entry is None or self._offline:
            return self.resolve(name, allow_path=False)
        if whole := self._whole(entry):
            return whole
        report = _Report(progress, "downloading")
        with self._writing(), self._lock(entry.name, report):
            # Another process may have brought it meanwhile.
            return self._whole(entry) or self._download(entry, report)

    def repair(self, name: str, progress: Callable[[PullProgress], None] | None = None) -> ModelFiles:
        """Fetch anew those files of a model whose contents are not what the hub has now; all are read for that."""
        entry = catalog.find(name)
        if entry is None or self._offline:
            return self.resolve(name, allow_path=False)
        report = _Report(progress, "downloading")
        with self._writing(), self._lock(entry.name, report):
            return self._download(entry, report)

    def remove(self, name: str) -> Path:
        """Delete a model from the models folder, or a download that is not finished; returns where it was."""
        name = name.strip()
        entry = catalog.find(name)
        folder = self._own_folder(name, entry) or self._cache_folder(entry)
        partial = self._partial(entry.name if entry else name)
        if folder is None and (_looks_like_path(partial.name) or not partial.is_dir()):
            raise self._not_removable(name, entry)
        with self._writing(), self._lock(partial.name, None):
            for path in (folder, partial):
                if path is not None and path.is_dir():
                    self._delete(path)
        return folder or partial

    # Finding

    def _locate(self, name: str, entry: CatalogEntry | None) -> tuple[Path, Source] | None:
        if folder := self._own_folder(name, entry):
            return _inside(folder) or folder, "models folder"
        if entry is None:
            return None
        if folder := holding_snapshot(self.models_dir, entry):
            return folder, "models folder"
        if folder := holding_snapshot(hub_cache(), entry):
            return folder, "hub cache"
        return None

    def _own_folder(self, name: str, entry: CatalogEntry | None) -> Path | None:
        """The model's own folder: called as the catalog calls it, or as the caller does, or by an alias."""
        names = dict.fromkeys((entry.name, name, *entry.aliases) if entry else (name,))
        folders = (self.models_dir / each for each in names if not _looks_like_path(each))
        return next((folder for folder in folders if _is_folder(folder)), None)

    def _cache_folder(self, entry: CatalogEntry | None) -> Path | None:
        """The folder of the model's repository, if the models folder is used as a Hugging Face cache."""
        if entry is None or (inside := holding_snapshot(self.models_dir, entry)) is None:
            return None
        others = [e.name for e in catalog.ENTRIES if e.repo == entry.repo and e != entry and holds(inside, e)]
        folder = inside.parent.parent
        if others:
            raise ModelUnknownError(
                f"{folder} holds {entry.name} together with {', '.join(others)}.",
                f"Remove them all with `stenograf models remove {folder.name}`.",
            )
        return folder

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.models_dir.iterdir() if path.is_dir() and path.name[0] != "."]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelsReadOnlyError(
                f"The models folder {self.models_dir} may not be read: {error.strerror}.",
                "Check its owner and permissions, or name another folder in STENOGRAF_MODELS_DIR.",
            ) from error

    def _at_path(self, path: str) -> ModelFiles:
        folder = Path(path).expanduser().absolute()
        if not _is_folder(folder):
            raise ModelUnknownError(
                f"There is no folder {_shown(path)} to take a model from.",
                "Name the folder that holds the model's files, or a model of `stenograf models list`.",
            )
        return examine(folder.name, _inside(folder) or folder, None, "path")

    def _whole(self, entry: CatalogEntry) -> ModelFiles | None:
        own = self._own_folder(entry.name, entry)
        folder = own if own and holds(own, entry) else holding_snapshot(self.models_dir, entry)
        return examine(entry.name, folder, entry, "models folder") if folder else None

    # Writing

    def _download(self, entry: CatalogEntry, report: _Report) -> ModelFiles:
        plan = self._hub.plan(entry)
        report.total = plan.size
        target, partial = self.models_dir / entry.name, self._partial(entry.name)
        if target.is_dir() and not partial.exists():
            target.rename(partial)  # what is whole in it need not come again
        partial.mkdir(exist_ok=True)
        _take_from_cache(plan, partial)
        self._expect_space(plan, partial)
        for file in plan.files:
            self._hub.fetch(plan, file, partial, report.of(file.path))
        for left_over in partial.rglob("*.part"):
            left_over.unlink()
        write_manifest(partial, entry, plan)
        if target.is_dir():
            self._delete(target)
        partial.rename(target)
        return examine(entry.name, target, entry, "models folder")

    def _expect_space(self, plan: Plan, partial: Path) -> None:
        here = sum(files_of(partial).values())
        needed, free = max(plan.size - here, 0) + _SPARE, shutil.disk_usage(partial).free
        if free < needed:
            raise self._disk_full(f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")

    def _partial(self, name: str) -> Path:
        return self.models_dir / ".partial" / name

    def _delete(self, path: Path) -> None:
        """Out of sight in one step and then gone, so that nobody meets half a model; of a link only the link."""
        if path.is_symlink():
            path.unlink()
            return
        aside = self._partial(f"{path.name}.removing")
        if aside.is_dir():
            shutil.rmtree(aside)
        path.rename(aside)
        shutil.rmtree(aside)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Make the folders, and say in plain words why nothing can be written."""
        try:
            self._partial("").mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise self._disk_full(f"{error.strerror}") from error
            if error.errno not in _READ_ONLY:
                raise
            raise ModelsReadOnlyError(
                f"The models folder {self.models_dir} may not be written: {error.strerror}.",
                "Run this as its owner, or name another folder in STENOGRAF_MODELS_DIR.",
            ) from error

    @contextmanager
    def _lock(self, name: str, report: _Report | None) -> Iterator[None]:
        """One process at a time works on a model; without a `report` nobody waits."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._partial(f"{name}.lock"))
        while not lock.is_locked:
            with suppress(Timeout):
                lock.acquire(timeout=0)
                break
            if report is None:
                raise ModelNotInstalledError(
                    f"Another process is downloading {name} just now.", "Wait until it is done, or stop it."
                )
            report.waiting()
            with suppress(Timeout):
                lock.acquire(timeout=_WAIT)
        try:
            yield
        finally:
            lock.release()

    # Errors

    def _unknown(self, name: str) -> ModelUnknownError:
        near = catalog.nearest(name[:100], (folder.name for folder in self._folders()))
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        return ModelUnknownError(
            f"There is no model {_shown(name)}.", f"{meant}`stenograf models list` shows all."
        )

    def _not_installed(self, entry: CatalogEntry) -> ModelNotInstalledError:
        folder = self.models_dir / entry.name
        if not self._offline:
            return ModelNotInstalledError(
                f"The model {entry.name} is not in {self.models_dir}.",
                f"`stenograf models pull {entry.name}` downloads it ({entry.size / 1e6:.0f} MB).",
            )
        return ModelNotInstalledError(
            f"The model {entry.name} is not in {self.models_dir} and nothing may be downloaded (offline): wanted are "
            f"{', '.join(entry.files)} of {entry.repo} in {folder}.",
            f"On a machine with a network run `STENOGRAF_MODELS_DIR=./models stenograf models pull {entry.name}` and "
            f"copy ./models/{entry.name} to {folder}.",
        )

    def _not_removable(self, name: str, entry: CatalogEntry | None) -> StenografError:
        if entry is None:
            return self._unknown(name)
        if cached := snapshot(hub_cache(), entry.repo):
            return ModelNotInstalledError(
                f"{entry.name} is not in {self.models_dir} but in {cached.parent.parent}, the cache of Hugging Face "
                "that other programs share.",
                f"Remove it there with `hf cache rm model/{entry.repo}`.",
            )
        return ModelNotInstalledError(
            f"The model {entry.name} is not in {self.models_dir}.", "`stenograf models list` shows what is."
        )

    def _disk_full(self, what: str) -> DiskFullError:
        return DiskFullError(
            f"There is no room for the model in {self.models_dir}: {what}.",
            "Free some, remove a model with `stenograf models remove`, or name another folder in "
            "STENOGRAF_MODELS_DIR; what has come is kept.",
        )


class _Report:
    """Adds up the bytes of all files and passes them on."""

    def __init__(
        self,
        progress: Callable[[PullProgress], None] | None,
        phase: Literal["downloading", "verifying"],
        total: int = 0,
    ) -> None:
        self._progress, self._phase, self.total, self._done = progress, phase, total, 0

    def of(self, file: str) -> OnBytes:
        def on_bytes(count: int) -> None:
            self._done += count
            if self._progress:
                self._progress(PullProgress(self._done, self.total, file, self._phase))

        return on_bytes

    def waiting(self) -> None:
        if self._progress:
            self._progress(PullProgress(0, 0, phase="waiting"))


def _line(folder: Path) -> Installed | None:
    """What `installed` says of a folder in the models folder."""
    if not folder.name.startswith("models--"):
        return describe(folder.name, folder, catalog.find(folder.name), "models folder")
    if (inside := snapshot_in(folder)) is None:
        return None
    ours = (e for e in catalog.ENTRIES if snapshot(folder.parent, e.repo) == inside and holds(inside, e))
    entry = next(ours, None)
    return describe(entry.name if entry else folder.name, inside, entry, "models folder")


def _inside(folder: Path) -> Path | None:
    return snapshot_in(folder) if folder.name.startswith("models--") else None


def _take_from_cache(plan: Plan, partial: Path) -> None:
    """Copy what other programs have downloaded; it is verified like what comes from the hub."""
    folder = snapshot(hub_cache(), plan.repo)
    for file in plan.files if folder else ():
        cached, target = (folder or partial) / file.path, partial / file.path
        if not target.exists() and cached.is_file() and cached.stat().st_size == file.size:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cached, target)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long for a file
        return False


def _looks_like_path(name: str) -> bool:
    return not name or name.startswith((".", "~")) or any(mark in name for mark in "/\\:\0")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
