"""The models on this machine: found, downloaded, verified, removed.

    <models_dir>/<name>/            a model; if it was pulled, stenograf.json says what it is made of
    <models_dir>/<name>.pt          a model of openai-whisper that was put there by hand
    <models_dir>/.partial/<name>/   a download that is not finished: the next pull goes on with it
    <models_dir>/.hashes.json       the hashes of files that other programs brought

A model may also be a folder that was put there by hand, a folder of a Hugging Face cache (in the models
folder, or where Hugging Face's own libraries keep theirs, which is read and never written), a file in a cache of
openai-whisper (the same), or a path.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stenograf.errors import ModelNotInstalledError, ModelsReadOnlyError, ModelUnknownError, StenografError
from stenograf.models import catalog, found
from stenograf.models.digests import Digests
from stenograf.models.download import Hub, OnBytes, Plan, digest_of
from stenograf.models.found import Installed, ModelFiles, Source, examine, holding_snapshot, holds
from stenograf.models.layout import (
    file_in,
    files_of,
    hub_cache,
    is_place,
    is_weights,
    snapshot,
    snapshot_in,
    whisper_caches,
)
from stenograf.models.workplace import Workplace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stenograf.models.catalog import CatalogEntry


@dataclass(frozen=True)
class PullProgress:
    """How far a pull or a verification is, over all files of the model."""

    done: int
    """Bytes that are here or were read, those of an earlier try included. May go back when a server
    cannot go on in the middle of a file."""

    total: int
    """Bytes in all; 0 while that is not known yet."""

    file: str = ""
    phase: Literal["waiting", "downloading", "verifying"] = "downloading"
    """`waiting`: another process is pulling the same model."""


class ModelStore:
    """The models of one folder, and the hub that they come from.

    `models_dir` need not exist: the first pull makes it. It may be read-only if nothing is to be pulled.
    `endpoint` is a mirror of the hub, `token` is for private and gated models. If `offline`, no hub is ever
    asked. Proxies are taken from the environment (HTTPS_PROXY, NO_PROXY).
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
        self._workplace = Workplace(self.models_dir)
        self._digests = Digests(self.models_dir)

    def resolve(self, name: str, *, allow_path: bool) -> ModelFiles:
        """The model of that name: in the catalog and here, in a folder called so or, if allowed, at a path.

        A path is what has a separator or begins with `.` or `~`, and any folder or `.pt` file where no model is called
        so.
        Nothing is downloaded. Raises `ModelUnknownError`, `ModelNotInstalledError` or `ModelDamagedError`.
        """
        name = name.strip()
        entry = catalog.find(name)
        if entry is None and _looks_like_path(name):
            if not allow_path:
                raise self._unknown(name)
            return _at_path(name)
        if place := self._locate(name, entry):
            folder, source = place
            return examine(entry.name if entry else name, folder, entry, source)
        if entry is not None:
            raise self._not_installed(entry)
        if allow_path and is_place(Path(name)):
            return _at_path(name)
        raise self._unknown(name)

    def path(self, name: str) -> Path:
        """The folder of a model that is here, or its `.pt` file."""
        return self.resolve(name, allow_path=False).path

    def verify_once(self, model: ModelFiles, progress: Callable[[PullProgress], None] | None = None) -> None:
        """Compare a `.pt` file that another program brought with OpenAI's hash; to be called before it is loaded.

        Each file is read once, and again only when it was changed. Nothing is done for other models: those that were
        pulled were verified when they came; of the others nobody knows a hash. Raises `ModelDamagedError`.
        """
        if not _is_brought(model):
            return
        for name, expected in found.hashes(model.path).items():
            file = file_in(model.path, name)
            try:
                report = _Report(progress, "verifying", file.stat().st_size)
                sha256 = self._digests.sha256(file, report.of(name))
            except OSError as error:
                raise found.damaged(model.name, file, None, f"it cannot be read ({error.strerror})") from error
            if sha256 != expected:
                raise found.not_as_published(file, sha256)

    def installed(self) -> list[Installed]:
        """All models that are here, by name; those that cannot be used and those in the hub's cache too."""
        here = [line for folder in self._folders() if (line := _describe(folder))]
        names = {line.entry.name if line.entry else line.name for line in here}
        cached = [
            found.describe(entry.name, place, entry, source)
            for entry in catalog.ENTRIES
            if entry.name not in names
            for place, source in islice(_cached(entry), 1)
        ]
        return sorted(here + cached, key=lambda line: line.name)

    def verify(self, name: str, progress: Callable[[PullProgress], None] | None = None) -> int:
        """Compare the contents of a model's files with what the hub said; raises `ModelDamagedError`.

        Returns how many files were compared: 0 for a model that came another way, whose hashes nobody knows.
        """
        model = self.resolve(name, allow_path=False)
        if changed := _changed(model, progress):
            if _is_brought(model):
                raise found.not_as_published(file_in(model.path, changed[0]))
            what = f"{', '.join(changed)} changed since the download"
            raise found.damaged(model.name, model.path, model.entry, what)
        return len(found.hashes(model.path))

    def pull(self, name: str, progress: Callable[[PullProgress], None] | None = None) -> ModelFiles:
        """Download a model of the catalog, or go on with it; one that is here is verified and returned.

        `progress` is called often, in this thread; what it raises stops the download, and a later pull goes
        on with it. Of a damaged model only what is wrong comes again. While another process pulls the same
        model, this one waits for it.
        """
        entry = catalog.find(name)
        if entry is None or self._offline:
            self.verify(name, progress)
            return self.resolve(name, allow_path=False)
        here = self._whole(entry)
        if here and not _changed(here, progress):
            return here
        report = _Report(progress, "downloading")
        with self._workplace.working_on(entry.name, report.waiting):
            if not here and (brought := self._whole(entry)):  # by another process, meanwhile
                return brought
            return self._download(entry, report)

    def remove(self, name: str) -> Path:
        """Delete a model from the models folder, or a download that is not finished; returns where it was."""
        name = name.strip()
        entry = catalog.find(name)
        if entry is None and _looks_like_path(name):
            raise self._unknown(name)
        partial = self._workplace.partial(entry.name if entry else name)
        folder = self._own_folder(name, entry) or self._cache_folder(entry)
        if folder is None and not partial.is_dir():
            raise self._not_removable(name, entry)
        with self._workplace.working_on(partial.name, on_wait=None):
            for each in (folder, partial):
                if each is not None and is_place(each):
                    self._workplace.delete(each)
        return folder or partial

    def _locate(self, name: str, entry: CatalogEntry | None) -> tuple[Path, Source] | None:
        if folder := self._own_folder(name, entry):
            return _inside(folder), "models folder"
        if entry is None:
            return None
        if folder := holding_snapshot(self.models_dir, entry):
            return folder, "models folder"
        return next(_cached(entry), None)

    def _own_folder(self, name: str, entry: CatalogEntry | None) -> Path | None:
        """The model's own folder, or `.pt` file: called as in the catalog, or as the caller says, or by an alias."""
        names = dict.fromkeys((entry.name, name, *entry.aliases) if entry else (name,))
        places = (self.models_dir / each for each in names if not _looks_like_path(each))
        return next((place for place in places if is_place(place)), None)

    def _cache_folder(self, entry: CatalogEntry | None) -> Path | None:
        """The folder of the model's repository, if the models folder is used as a Hugging Face cache."""
        if entry is None or (inside := holding_snapshot(self.models_dir, entry)) is None:
            return None
        folder = inside.parent.parent
        others = [e.name for e in catalog.ENTRIES if e.repo == entry.repo and e != entry and holds(inside, e)]
        if others:
            raise ModelUnknownError(
                f"{folder} holds {entry.name} together with {', '.join(others)}.",
                f"Remove them all with `stenograf models remove {folder.name}`.",
            )
        return folder

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.models_dir.iterdir() if is_place(path) and path.name[0] != "."]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelsReadOnlyError(
                f"The models folder {self.models_dir} may not be read: {error.strerror}.",
                "Check its owner and permissions, or name another folder in STENOGRAF_MODELS_DIR.",
            ) from error

    def _whole(self, entry: CatalogEntry) -> ModelFiles | None:
        own = self._own_folder(entry.name, entry)
        folder = own if own and holds(own, entry) else holding_snapshot(self.models_dir, entry)
        return examine(entry.name, folder, entry, "models folder") if folder else None

    def _download(self, entry: CatalogEntry, report: _Report) -> ModelFiles:
        plan = self._hub.plan(entry)
        report.total = plan.size
        target, partial = self.models_dir / entry.name, self._workplace.partial(entry.name)
        if target.is_dir() and not partial.exists():
            target.rename(partial)  # damaged: what is whole in it need not come again
        partial.mkdir(exist_ok=True)
        self._workplace.expect_space(plan.size - sum(files_of(partial).values()))
        _take_from_cache(plan, partial)
        for file in plan.files:
            self._hub.fetch(plan, file, partial, report.of(file.path))
        for left_over in partial.rglob("*.part"):
            left_over.unlink()
        found.write_manifest(partial, entry, plan)
        if is_place(target):
            self._workplace.delete(target)
        partial.rename(target)
        return examine(entry.name, target, entry, "models folder")

    def _unknown(self, name: str) -> ModelUnknownError:
        near = catalog.nearest(name[:80], (folder.name for folder in self._folders()))
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        return ModelUnknownError(f"There is no model {shown!r}.", f"{meant}`stenograf models list` shows all.")

    def _not_installed(self, entry: CatalogEntry) -> ModelNotInstalledError:
        folder = self.models_dir / entry.name
        if not self._offline:
            return ModelNotInstalledError(
                f"The model {entry.name} is not in {self.models_dir}.",
                f"`stenograf models pull {entry.name}` downloads it ({entry.size / 1e6:.0f} MB).",
            )
        return ModelNotInstalledError(
            f"The model {entry.name} is not in {self.models_dir}, and offline nothing is downloaded: "
            f"wanted are {', '.join(entry.files)} of {entry.repo or 'OpenAI'} in {folder}.",
            "On a machine with a network run "
            f"`STENOGRAF_MODELS_DIR=./models stenograf models pull {entry.name}` "
            f"and copy ./models/{entry.name} to {folder}.",
        )

    def _not_removable(self, name: str, entry: CatalogEntry | None) -> StenografError:
        if entry is None:
            return self._unknown(name)
        for file, _ in _cached(entry) if entry.url else ():
            return ModelNotInstalledError(
                f"{entry.name} is not in {self.models_dir} but in {file.parent}, which other programs use too.",
                "Delete the file there by hand, if none of them needs it.",
            )
        if entry.repo and (cached := snapshot(hub_cache(), entry.repo)):
            return ModelNotInstalledError(
                f"{entry.name} is not in {self.models_dir} but in {cached.parent.parent}, "
                "the cache of Hugging Face that other programs share.",
                f"Remove it there with `hf cache rm model/{entry.repo}`.",
            )
        return ModelNotInstalledError(
            f"The model {entry.name} is not in {self.models_dir}.", "`stenograf models list` shows what is."
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


def _describe(folder: Path) -> Installed | None:
    """What `installed` says of a folder in the models folder; nothing of a cache folder without files."""
    inside, is_cache = _inside(folder), folder.name.startswith("models--")
    if is_cache and inside == folder:
        return None
    entry = _first_held(folder, inside) if is_cache else catalog.find(folder.name)
    return found.describe(entry.name if entry and is_cache else folder.name, inside, entry, "models folder")


def _first_held(folder: Path, inside: Path) -> CatalogEntry | None:
    repo = folder.name.removeprefix("models--").lower()
    held = (e for e in catalog.ENTRIES if e.repo.replace("/", "--").lower() == repo and holds(inside, e))
    return next(held, None)


def _is_brought(model: ModelFiles) -> bool:
    """Whether it is a `.pt` file that came another way than by `pull`."""
    return model.engine == "openai-whisper" and not found.was_pulled(model.path)


def _changed(model: ModelFiles, progress: Callable[[PullProgress], None] | None) -> list[str]:
    """The files whose contents are not what they were when they were downloaded."""
    expected = found.hashes(model.path)
    files = {path: file_in(model.path, path) for path in expected}
    report = _Report(progress, "verifying", sum(file.stat().st_size for file in files.values()))
    return [path for path, digest in expected.items() if digest_of(files[path], digest, report.of(path)) != digest]


def _at_path(path: str) -> ModelFiles:
    folder = Path(path).expanduser().absolute()
    if not is_place(folder):
        raise ModelUnknownError(
            f"There is no folder or .pt file {folder} to take a model from.",
            "Name the folder that holds the model's files, a .pt file, or a model of `stenograf models list`.",
        )
    return examine(folder.name, _inside(folder), None, "path")


def _inside(folder: Path) -> Path:
    """Where the files are: in a folder of a Hugging Face cache they are some levels down."""
    return (snapshot_in(folder) if folder.name.startswith("models--") else None) or folder


def _take_from_cache(plan: Plan, partial: Path) -> None:
    """Copy what other programs have downloaded; it is verified like what comes from the hub."""
    folders = [folder for folder in (snapshot(hub_cache(), plan.repo), *whisper_caches()) if folder]
    for file in plan.files:
        target = partial / file.path
        for cached in (folder / file.path for folder in folders):
            if not target.exists() and cached.is_file() and cached.stat().st_size == file.size:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(cached, target)


def _cached(entry: CatalogEntry) -> Iterator[tuple[Path, Source]]:
    """Where other programs have this model, best first."""
    if folder := holding_snapshot(hub_cache(), entry):
        yield folder, "hub cache"
    if entry.url:
        places = (cache / entry.name for cache in whisper_caches())
        yield from ((place, "whisper cache") for place in places if is_weights(place))


def _looks_like_path(name: str) -> bool:
    return not name or name.startswith((".", "~")) or any(mark in name for mark in "/\\:\0")
