"""What can be had on this machine and fits into its memory, and which of it `auto` takes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from stenograf.engines import cuda
from stenograf.errors import ModelNotInstalledError, StenografError
from stenograf.languages import WHISPER_LANGUAGES
from stenograf.models import catalog, memory
from stenograf.models.choice import OWN_WHISPER, SPECIAL, Candidate, Choice, Want, choose, is_auto
from stenograf.models.pool import too_large
from stenograf.settings import Settings

if TYPE_CHECKING:
    from stenograf.models.catalog import CatalogEntry
    from stenograf.models.found import ModelFiles
    from stenograf.models.store import ModelStore

LOOK_SECONDS = 5.0
"""How long a list of what is on the disk is believed; a look takes some milliseconds."""

_LISTENER = 400_000_000
"""Bytes that `base` takes, which listens for languages."""

BROKEN_SECONDS = 60.0
"""A model that could not be loaded is tried again after so long."""

HUB_REST_SECONDS = 600.0
"""After a download that failed, models that are here are taken for so long."""


class Available:
    """The models that one process could read with; to be used by many threads."""

    def __init__(self, settings: Settings, store: ModelStore, *, processes: int = 1) -> None:
        """`processes` share the memory that models may take; see `memory.budget`."""
        self._settings = settings
        self._store = store
        self._processes = processes
        self._listed: tuple[float, list[Candidate]] = (float("-inf"), [])
        self._hub_failed = float("-inf")
        self._hub_trouble = ""
        self._broken: dict[str, float] = {}

    def choose(self, language: str | None, want: Want = "read") -> Choice:
        """What `auto` takes for a language, None for one that is not known. Raises `ModelNotInstalledError`."""
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = self._settings.threads or affinity
        return choose(self._candidates(), language=language, want=want, gpu=self.on_gpu, cores=cores)

    def one_reads_all(self) -> bool:
        """Whether all languages are read by the same model, so that none need be chosen."""
        names = set()
        for language in (None, *SPECIAL):
            with contextlib.suppress(ModelNotInstalledError):
                names.add(self.choose(language, "read").name)
        return len(names) == 1 and self._tells_languages_apart(names.pop())

    def _tells_languages_apart(self, name: str) -> bool:
        return any(
            item.name == name and (item.languages is None or len(item.languages) > 1) for item in self._candidates()
        )

    def needed_first(self) -> list[str]:
        """The models to load before anybody asks: those of the settings, else what the default one needs."""
        named = self._settings.preload_models or (self._settings.default_model,)
        found = [each for name in named for each in (self._needed_for_auto() if is_auto(name) else [name])]
        return list(dict.fromkeys(found))

    def needed_by_default(self) -> list[str]:
        """The models that recordings need for which none is named."""
        name = self._settings.default_model
        return self._needed_for_auto() if is_auto(name) else [name]

    def broken(self, name: str) -> None:
        """A model could not be loaded though its files are all there: for a while take others."""
        self._broken[name] = time.monotonic()
        self.changed()

    def _needed_for_auto(self) -> list[str]:
        wanted: list[tuple[str | None, Want]] = [(self._settings.default_language or "ru", "read")]
        if self._settings.default_language is None:
            wanted.insert(0, (None, "detect"))
        names = []
        for language, want in wanted:
            with contextlib.suppress(ModelNotInstalledError):
                names.append(self.choose(language, want).name)
        return names

    def check_size(self, name: str, size: int) -> None:
        """Raises `ModelTooLargeError` for a model that takes more than models may take here."""
        if size > self.budget:
            raise too_large(name, size, self.budget)

    def changed(self) -> None:
        """Something came or went: look again."""
        self._listed = (float("-inf"), [])

    def hub_failed(self, error: StenografError) -> None:
        """A download failed: for a while take what is here."""
        self._hub_failed = time.monotonic()
        self._hub_trouble = error.message.rstrip(".")
        self.changed()

    def expected(self, entry: CatalogEntry) -> int:
        """Bytes of memory that a model of the catalog takes where models run here, approximately."""
        return memory.expected(entry, gpu=self.on_gpu)

    def _beside(self, entry: CatalogEntry) -> int:
        """Room to leave for the model that listens for languages: else each recording would load both anew."""
        listens = self._settings.default_language is None and is_auto(self._settings.default_model)
        return _LISTENER if listens and entry.engine == "onnx-asr" else 0

    @cached_property
    def on_gpu(self) -> bool:
        """Whether models will run on a GPU, as far as that can be told without loading an engine."""
        device = self._settings.device
        return cuda.present() if device == "auto" else device.startswith("cuda")

    @cached_property
    def budget(self) -> int:
        """Bytes that the models of this process may take."""
        if self.on_gpu:
            index = self._settings.device.partition(":")[2]
            found = memory.gpu_budget(self._settings.gpu_memory, int(index or 0), processes=self._processes)
            if found is not None:
                return found
        return memory.budget(self._settings.model_memory, processes=self._processes)

    def size(self, files: ModelFiles) -> int:
        """Bytes of memory that a model takes where models run here, approximately."""
        return memory.needed(files, gpu=self.on_gpu)

    def _candidates(self) -> list[Candidate]:
        listed_at, candidates = self._listed
        if not 0 <= time.monotonic() - listed_at < LOOK_SECONDS:
            candidates = list(self._look())
            self._listed = (time.monotonic(), candidates)
        return candidates

    def _look(self) -> Iterator[Candidate]:
        here = {item.entry.name if item.entry else item.name: item for item in self._store.installed()}
        kinds = {entry.onnx_type: entry for entry in catalog.ENTRIES if entry.onnx_type and not entry.quantization}
        for entry in catalog.ENTRIES:
            item = here.pop(entry.name, None)
            damaged = item is not None and (bool(item.problem) or self._is_broken(entry.name))
            is_here = item is not None and not damaged
            why_not = self._why_not(entry, is_here=is_here)
            if damaged:
                why_not = f"it is damaged here (stenograf models pull {entry.name} mends it)"
            yield Candidate(entry.name, entry.name, frozenset(entry.languages), frozenset(entry.tasks),
                            is_here and not why_not, why_not)  # fmt: skip
        for name, item in here.items():
            if item.problem or self._is_broken(name):
                continue
            try:
                files = self._store.resolve(name, allow_path=False)
            except StenografError:  # it went a moment ago, or has a name that no model can have
                continue
            if self.size(files) > self.budget:
                continue
            if files.engine == "onnx-asr":
                if (like := kinds.get(files.onnx_type or "")) is not None:
                    yield Candidate(name, like.name, frozenset(like.languages), frozenset(like.tasks), True)
            elif files.engine == "faster-whisper":
                languages = frozenset(WHISPER_LANGUAGES)
                yield Candidate(name, OWN_WHISPER, languages, frozenset({"transcribe", "translate"}), True)

    def _is_broken(self, name: str) -> bool:
        return time.monotonic() - self._broken.get(name, float("-inf")) < BROKEN_SECONDS

    def _why_not(self, entry: CatalogEntry, *, is_here: bool) -> str:
        size = self.expected(entry)
        if size > self.budget - (0 if is_here else self._beside(entry)):
            return (
                f"it takes {size / 1e6:,.0f} MB of memory, and models may take {self.budget / 1e6:,.0f} MB here "
                "(STENOGRAF_MODEL_MEMORY)"
            )
        if is_here:
            return ""
        if self._settings.offline:
            return (
                "it is not on this machine, and offline nothing is downloaded "
                f"(STENOGRAF_OFFLINE=0 stenograf models pull {entry.name})"
            )
        if time.monotonic() - self._hub_failed < HUB_REST_SECONDS:
            return f"it could not be downloaded a moment ago ({self._hub_trouble})"
        return ""
