"""Which model reads a recording, where it comes from, and that it is in memory: models in, transcripts out.

One for a process. Models are found or downloaded, loaded once, held by a pool within the memory that they may take,
and for `auto` chosen by the language of each recording.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stenograf.engines import Capabilities, cuda, engine
from stenograf.errors import (
    DeviceUnavailableError,
    DiskFullError,
    DownloadFailedError,
    ModelNotInstalledError,
    ModelsReadOnlyError,
    StenografError,
)
from stenograf.languages import language_name
from stenograf.models import ModelFiles, ModelStore, PullProgress, catalog, memory
from stenograf.models.catalog import CatalogEntry
from stenograf.models.choice import AUTO, OWN_WHISPER, SPECIAL, Candidate, Choice, Want, choose
from stenograf.models.pool import Held, ModelPool, too_large
from stenograf.options import Options, Task
from stenograf.settings import Settings
from stenograf.transcript import Transcript, TranscriptWarning

if TYPE_CHECKING:
    from stenograf.audio import Source
    from stenograf.chunk import ChunkResult
    from stenograf.transcriber import Transcriber

log = logging.getLogger(__name__)

OnPull = Callable[[PullProgress], None]
BeforePull = Callable[[CatalogEntry], None]
"""May raise to prevent a download."""

LOOK_SECONDS = 5.0
"""How long a list of what is on the disk is believed; a look takes some milliseconds."""

HUB_REST_SECONDS = 600.0
"""After a download that failed, models that are here are taken for so long."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How a recording will be read."""

    model: str
    options: Options
    reason: str | None = None
    """Why it was chosen; None where it was named."""
    probability: float | None = None
    """Of the language, where it was listened for."""
    notes: tuple[TranscriptWarning, ...] = ()


class Reader:
    """Reads recordings with the models of one process; to be used by many threads."""

    def __init__(self, settings: Settings, store: ModelStore, *, processes: int = 1) -> None:
        """`processes` share the memory that models may take; see `memory.budget`."""
        self._settings = settings
        self._store = store
        self._processes = processes
        self._listed: tuple[float, list[Candidate]] = (float("-inf"), [])
        self._hub_failed = float("-inf")
        self.on_load: Callable[[str, float, str], None] = lambda _name, _seconds, _device: None
        """Told of each model that was loaded: its name, the seconds that it took, and where it runs."""
        self.on_evict: Callable[[str, str], None] = lambda _name, _reason: None
        """Told of each model that left the memory, and why: `room`, `idle` or `closed`."""

    # Finding

    def files(
        self,
        name: str | None = None,
        *,
        on_pull: OnPull | None = None,
        before_pull: BeforePull | None = None,
    ) -> ModelFiles:
        """The files of a model, by catalog name, folder name or path; downloaded where they lack and may be.

        None stands for the default model, `auto` for what suits the language of the settings. Raises
        `ModelUnknownError`, `ModelNotInstalledError`, `ModelDamagedError`, `DownloadFailedError`, `ModelTooLargeError`.
        """
        name = name or self._settings.default_model
        if name == AUTO:
            name = self.choose(self._settings.default_language).name
        try:
            files = self._store.resolve(name, allow_path=True)
        except ModelNotInstalledError:
            entry = catalog.find(name)
            if self._settings.offline or entry is None:
                raise
            self.check_size(entry.name, entry.memory)
            if before_pull is not None:
                before_pull(entry)
            files = self._store.pull(name, on_pull)
            self._listed = (float("-inf"), [])
        self.check_size(files.name, self.size(files))
        return files

    def check_size(self, name: str, size: int) -> None:
        """Raises `ModelTooLargeError` for a model that takes more than models may take here."""
        if self._budget is not None and size > self._budget:
            raise too_large(name, size, self._budget)

    def choose(self, language: str | None, task: Task = "transcribe") -> Choice:
        """What `auto` takes for a language, None for one that is not known. Raises `ModelNotInstalledError`."""
        return self._choose(language, "translate" if task == "translate" else "read")

    def needed_first(self) -> list[str]:
        """The models to load before anybody asks: those of the settings, else what the default one needs."""
        if self._settings.preload_models:
            return list(self._settings.preload_models)
        if self._settings.default_model != AUTO:
            return [self._settings.default_model]
        wanted: list[tuple[str | None, Want]] = [(self._settings.default_language or "ru", "read")]
        if self._settings.default_language is None:
            wanted.insert(0, (None, "detect"))
        names = []
        for language, want in wanted:
            with contextlib.suppress(ModelNotInstalledError):
                names.append(self._choose(language, want).name)
        return list(dict.fromkeys(names))

    def is_here(self, name: str) -> bool:
        """Whether a model is on this machine and whole."""
        try:
            self._store.resolve(name, allow_path=True)
        except StenografError:
            return False
        return True

    # Loading

    def load(self, files: ModelFiles) -> Transcriber:
        """A model loaded for the caller alone, who closes it.

        Raises `EngineMissingError`, `DeviceUnavailableError`, `ModelDamagedError`, `OutOfMemoryError`.
        """
        from stenograf.transcriber import Transcriber  # here: the API's process never loads FFmpeg

        settings = self._settings
        self._store.verify_once(files)
        started = time.monotonic()
        load = partial(
            engine(files.engine).load,
            Path(files.path),
            compute_type=_compute_type(settings.compute_type, files),
            variant=files.onnx_type,
            threads=settings.threads,
        )
        try:
            loaded = load(device=settings.device)
        except DeviceUnavailableError as error:
            if settings.device != "auto":
                raise
            log.warning("the GPU could not be used, so %s runs on the processor: %s", files.name, error)
            loaded = load(device="cpu")
        seconds = time.monotonic() - started
        self.on_load(files.name, seconds, loaded.device)
        return Transcriber(
            loaded,
            model=files.name,
            engine=files.engine,
            capabilities=_known(loaded.capabilities, files.entry),
            load_seconds=seconds,
            notes=self._fallen_back(loaded.device),
        )

    def transcriber(self, name: str | None = None) -> Transcriber:
        """`load` for a model by its name, downloaded if need be. Raises what `files` and `load` raise."""
        return self.load(self.files(name))

    @contextmanager
    def use(self, name: str | None, headway: Callable[[], None] = lambda: None) -> Iterator[Transcriber]:
        """A loaded model of the pool, kept at least until the end of the `with`; None: the default one, not `auto`.

        `headway` is called while it is downloaded and while it waits for room; what it raises ends that. Raises what
        `files` and `load` raise.
        """
        files = self.files(name, on_pull=_telling(headway, None))
        self._store.verify_once(files, lambda _progress: headway())  # several GB take their time
        with self._pool.use(_key(files), headway) as transcriber:
            headway()
            yield transcriber

    def loaded(self) -> list[Held]:
        """The models that are in memory."""
        return self._pool.loaded()

    def close_idle(self) -> list[str]:
        """Close models that nobody has used for the time of the settings; returns their names."""
        seconds = self._settings.model_idle
        return self._pool.close_idle(seconds) if seconds else []

    def close(self) -> None:
        """Close the models that nobody uses."""
        self._pool.close()

    # Reading

    def read(
        self,
        source: Source,
        options: Options,
        *,
        model: str | None = None,
        earlier: str | None = None,
        on_model: Callable[[Transcriber], None] = lambda _transcriber: None,
        headway: Callable[[], None] = lambda: None,
        done: Sequence[ChunkResult] = (),
        **how: Any,
    ) -> Transcript:
        """Read a recording with a model, None for the default one, or with the one that suits it (`auto`).

        `earlier` is the model that read the chunks in `done`: `auto` keeps to it. `on_model` is told of the model
        before it begins. `how` and `done` are as in `Transcriber.transcribe`; `headway` and the errors as in `use`,
        and what `Transcriber.transcribe` raises.
        """
        name = model or self._settings.default_model
        if name == AUTO and done and earlier:
            decision = Decision(earlier, options, "chosen when the recording was begun")
        elif name == AUTO:
            with rereadable(source) as (kept, rewind):
                listening = {name: how[name] for name in ("cancelled", "draining", "name") if name in how}
                decision = self.decide(kept, options, headway=headway, **listening)
                rewind()
                return self.read_as(decision, kept, on_model=on_model, headway=headway, **how)
        else:
            decision = Decision(name, options)
        return self.read_as(decision, source, on_model=on_model, headway=headway, done=done, **how)

    def read_as(
        self,
        decision: Decision,
        source: Source,
        *,
        on_model: Callable[[Transcriber], None] = lambda _transcriber: None,
        headway: Callable[[], None] = lambda: None,
        **how: Any,
    ) -> Transcript:
        """Read a recording as it was decided; the rest is as in `read`."""
        with self.use(decision.model, headway) as transcriber:
            transcriber.check(decision.options)
            on_model(transcriber)
            transcript = transcriber.transcribe(source, decision.options, **how)
        probability = transcript.language_probability if decision.probability is None else decision.probability
        return replace(
            transcript,
            model_reason=decision.reason,
            language_probability=probability,
            warnings=(*decision.notes, *transcript.warnings),
        )

    def decide(
        self,
        source: Source,
        options: Options,
        *,
        on_pull: OnPull | None = None,
        before_pull: BeforePull | None = None,
        headway: Callable[[], None] = lambda: None,
        **listening: Any,
    ) -> Decision:
        """What `auto` takes for a recording, whose language is listened for where it is not given.

        Afterwards the model is on this machine. `listening` is as in `Transcriber.detect_language`. Raises what `use`
        and `detect_language` raise, and `ModelNotInstalledError` where nothing that suits can be had.
        """
        want: Want = "translate" if options.task == "translate" else "read"
        get = partial(self._had, on_pull=_telling(headway, on_pull), before_pull=before_pull)
        if options.language is not None or want == "translate" or self._reads_all():
            choice = get(options.language, want)  # Whisper finds out a language by itself
            return Decision(choice.name, options, choice.reason, notes=_notes(choice.second_best))
        try:
            detector = get(None, "detect")
        except ModelNotInstalledError:
            language = self._settings.default_language or "ru"
            choice = get(language, "read")
            told = (
                f"No model that can be had here tells languages apart, so it was read as {language_name(language)}: "
                "name the language, or pull base."
            )
            return Decision(choice.name, options, choice.reason, notes=_notes(told, choice.second_best))
        with self.use(detector.name, headway) as transcriber:
            found, probability = transcriber.detect_language(source, options, **listening)
        if found is None:
            return Decision(detector.name, options, "chosen because nobody speaks in the recording")
        choice = get(found, "read")
        reason = f"{choice.reason}; {detector.name} heard {language_name(found)}"
        return Decision(choice.name, replace(options, language=found), reason, probability, _notes(choice.second_best))

    def _had(
        self, language: str | None, want: Want, *, on_pull: OnPull, before_pull: BeforePull | None = None
    ) -> Choice:
        """What is chosen, and on this machine by now: where the best cannot be fetched, the best of what is here."""
        choice = self._choose(language, want)
        try:
            self.files(choice.name, on_pull=on_pull, before_pull=before_pull)
        except (DownloadFailedError, ModelsReadOnlyError, DiskFullError) as error:
            self._hub_failed = time.monotonic()
            self._listed = (float("-inf"), [])
            try:
                return self._choose(language, want)
            except ModelNotInstalledError:
                raise error from None
        return choice

    def _reads_all(self) -> bool:
        """Whether all languages are read by the same model, so that none need be chosen."""
        try:
            names = {self._choose(language, "read").name for language in (None, *SPECIAL)}
        except ModelNotInstalledError:
            return False
        return len(names) == 1

    # Choosing

    def _choose(self, language: str | None, want: Want) -> Choice:
        cores = self._settings.threads or os.cpu_count() or 1
        return choose(self._candidates(), language=language, want=want, gpu=self._gpu, cores=cores)

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
            is_here = item is not None and not item.problem
            why_not = self._why_not(entry, is_here=is_here)
            yield Candidate(entry.name, entry.name, frozenset(entry.languages), frozenset(entry.tasks),
                            is_here and not why_not, why_not)  # fmt: skip
        for name, item in here.items():
            if item.problem:
                continue
            files = self._store.resolve(name, allow_path=False)
            if self._budget is not None and self.size(files) > self._budget:
                continue
            if files.engine == "onnx-asr":
                if (like := kinds.get(files.onnx_type or "")) is not None:
                    yield Candidate(name, like.name, frozenset(like.languages), frozenset(like.tasks), True)
            elif files.engine == "faster-whisper":
                yield Candidate(name, OWN_WHISPER, None, frozenset({"transcribe", "translate"}), True)

    def _why_not(self, entry: CatalogEntry, *, is_here: bool) -> str:
        size = entry.size if self._gpu else entry.memory
        if self._budget is not None and size > self._budget:
            return f"it takes {size / 1e6:,.0f} MB of memory, and models may take {self._budget / 1e6:,.0f} MB here"
        if is_here:
            return ""
        if self._settings.offline:
            return f"it is not on this machine, and offline nothing is downloaded (stenograf models pull {entry.name})"
        if time.monotonic() - self._hub_failed < HUB_REST_SECONDS:
            return "it could not be downloaded a moment ago"
        return ""

    # Memory

    @cached_property
    def _pool(self) -> ModelPool[Transcriber]:
        return ModelPool(
            lambda key: self.load(self._store.resolve(key, allow_path=True)),
            size_of=lambda key: self.size(self._store.resolve(key, allow_path=True)),
            max_models=self._settings.max_models,
            max_bytes=self._budget,
            on_evict=lambda name, reason: self.on_evict(name, reason),  # noqa: PLW0108 - it may be set later
        )

    @cached_property
    def _gpu(self) -> bool:
        """Whether models will run on a GPU, as far as that can be told without loading an engine."""
        device = self._settings.device
        return cuda.present() if device == "auto" else device.startswith("cuda")

    @cached_property
    def _budget(self) -> int | None:
        if self._gpu:
            index = self._settings.device.partition(":")[2]
            return memory.gpu_budget(self._settings.gpu_memory, int(index or 0))
        return memory.budget(self._settings.model_memory, processes=self._processes)

    def size(self, files: ModelFiles) -> int:
        """Bytes of memory that a model takes where models run here, approximately."""
        return memory.needed(files, gpu=self._gpu)

    def _fallen_back(self, device: str) -> list[TranscriptWarning]:
        if device != "cpu" or self._settings.device != "auto" or not cuda.present():
            return []
        told = "There is a GPU, but the model runs on the processor: stenograf doctor tells why."
        return [TranscriptWarning("device_fallback", told)]


def _telling(headway: Callable[[], None], on_pull: OnPull | None) -> OnPull:
    def pulled(progress: PullProgress) -> None:
        headway()
        if on_pull is not None:
            on_pull(progress)

    return pulled


@contextmanager
def rereadable(source: Source) -> Iterator[tuple[Source, Callable[[], object]]]:
    """A recording that can be read twice, and what brings it back to its beginning: a pipe is copied to a file."""
    if isinstance(source, str | os.PathLike):
        yield source, lambda: None
    elif source.seekable():
        yield source, partial(source.seek, source.tell())
    else:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(source, copy)
            copy.seek(0)
            yield copy, partial(copy.seek, 0)


def _notes(*told: str) -> tuple[TranscriptWarning, ...]:
    return tuple(TranscriptWarning("second_best", text) for text in told if text)


def _key(files: ModelFiles) -> str:
    return files.name if files.entry else str(files.path)


def _compute_type(asked: str, files: ModelFiles) -> str:
    # A model that comes in one number format only is loaded in that one.
    return files.quantization if asked == "auto" and files.quantization else asked


def _known(can: Capabilities, entry: CatalogEntry | None) -> Capabilities:
    """What a model can do, by its weights and by the catalog: turbo's weights do not tell that it cannot translate."""
    if entry is None:
        return can
    languages = frozenset(entry.languages)
    return replace(
        can,
        tasks=can.tasks & frozenset(entry.tasks),
        languages=languages if can.languages is None else can.languages & languages,
    )
