"""Which model reads a recording, where it comes from, and that it is in memory: models in, transcripts out.

One for a process. Models are found or downloaded, loaded once, held by a pool within the memory that they may take,
and for `auto` chosen by the language of each recording.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from stenograf import allocation
from stenograf.engines import Capabilities, cuda, engine
from stenograf.errors import (
    CancelledError,
    DeviceUnavailableError,
    DiskFullError,
    DownloadFailedError,
    ModelDamagedError,
    ModelNotInstalledError,
    ModelsReadOnlyError,
    StenografError,
)
from stenograf.languages import language_name
from stenograf.models import ModelFiles, ModelStore, PullProgress, catalog
from stenograf.models.available import Available
from stenograf.models.catalog import CatalogEntry
from stenograf.models.choice import Choice, Want, is_auto
from stenograf.models.pool import Held, ModelPool
from stenograf.options import Options
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


_NOT_HAD = (ModelNotInstalledError, ModelDamagedError, DownloadFailedError, ModelsReadOnlyError, DiskFullError)
"""Why a model cannot be had."""


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
    seconds: float = 0.0
    """What the listening took."""


class Reader:
    """Reads recordings with the models of one process; to be used by many threads."""

    def __init__(self, settings: Settings, store: ModelStore, *, processes: int = 1) -> None:
        """`processes` share the memory that models may take; see `memory.budget`."""
        self._settings = settings
        self._store = store
        self.available = Available(settings, store, processes=processes)
        """What can be had here, and what `auto` takes of it."""
        self._lock = Lock()
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
        if is_auto(name):
            name = self.available.choose(self._settings.default_language).name
        try:
            files = self._store.resolve(name, allow_path=True)
        except ModelNotInstalledError:
            entry = catalog.find(name)
            if self._settings.offline or entry is None:
                raise
            self.available.check_size(entry.name, self.available.expected(entry))
            if before_pull is not None:
                before_pull(entry)
            files = self._store.pull(name, on_pull)
            self.available.changed()
        self.available.check_size(files.name, self.available.size(files))
        return files

    def find(self, name: str) -> ModelFiles:
        """The files of a model that is on this machine; raises as `ModelStore.resolve`."""
        return self._store.resolve(name, allow_path=True)

    def is_here(self, name: str) -> bool:
        """Whether a model is on this machine and whole."""
        try:
            self.find(name)
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
        compute_type, notes = _compute_type(settings.compute_type, files)
        load = partial(
            engine(files.engine).load,
            Path(files.path),
            compute_type=compute_type,
            variant=files.onnx_type,
            threads=settings.threads,
        )
        try:
            loaded = load(device=settings.device)
        except ModelDamagedError as error:
            raise ModelDamagedError(error.message, _mend(files)) from error
        except DeviceUnavailableError as error:
            if settings.device != "auto" or not cuda.present():
                raise
            log.warning("the GPU could not be used, so %s runs on the processor: %s", files.name, error)
            loaded = load(device="cpu")
        allocation.give_back()  # what loading took besides: ONNX Runtime holds 600 MB of it for a GigaAM
        seconds = time.monotonic() - started
        self.on_load(files.name, seconds, loaded.device)
        return Transcriber(
            loaded,
            model=files.name,
            engine=files.engine,
            capabilities=_known(loaded.capabilities, files.entry),
            load_seconds=seconds,
            notes=(*notes, *self._fallen_back(loaded.device)),
        )

    def transcriber(self, name: str | None = None) -> Transcriber:
        """`load` for a model by its name, downloaded if need be. Raises what `files` and `load` raise."""
        return self.load(self.files(name))

    @contextmanager
    def use(
        self, name: str | None, headway: Callable[[], None] = lambda: None, *, patience: float | None = None
    ) -> Iterator[Transcriber]:
        """A loaded model of the pool, kept at least until the end of the `with`; None: the default one.

        `headway` is called while it is downloaded and while it waits for room, `patience` seconds at most; what it
        raises ends that. Raises what `files` and `load` raise, and `NoRoomError`.
        """
        files = self.files(name, on_pull=_telling(headway, None))
        self._store.verify_once(files, lambda _progress: headway())  # several GB take their time
        with self._pool.use(_key(files), headway, patience=patience) as transcriber:
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
        headway: Callable[[], None] | None = None,
        patience: float | None = None,
        done: Sequence[ChunkResult] = (),
        **how: Any,
    ) -> Transcript:
        """Read a recording with a model, None for the default one, or with the one that suits it (`auto`).

        `earlier` is the model that read the chunks in `done`, and reads the rest unless another is named: the chunks
        are cut to its length. `on_model` is told of the model before it begins. `how` and `done` are as in
        `Transcriber.transcribe`; `headway` (by default it asks `cancelled`), `patience` and the errors as in `use`,
        and what `Transcriber.transcribe` raises.
        """
        name = model or self._settings.default_model
        headway = headway or partial(_ask, how.get("cancelled") or (lambda: False))
        use: dict[str, Any] = {"on_model": on_model, "headway": headway, "patience": patience}
        if done and earlier and (model is None or is_auto(name)):
            decision = Decision(earlier, options, notes=self._still_second_best(earlier, options))
            if is_auto(name):
                decision = replace(decision, reason="chosen when the recording was begun")
        elif is_auto(name):
            from stenograf.audio import rereadable  # here: the API's process never loads FFmpeg

            with rereadable(source) as (kept, rewind):
                listening = {name: how[name] for name in ("cancelled", "draining", "name") if name in how}
                decision = self.decide(kept, options, headway=headway, patience=patience, **listening)
                rewind()
                return self.read_as(decision, kept, **use, **how)
        else:
            decision = Decision(name, options)
        return self.read_as(decision, source, done=done, **use, **how)

    def read_as(
        self,
        decision: Decision,
        source: Source,
        *,
        on_model: Callable[[Transcriber], None] = lambda _transcriber: None,
        headway: Callable[[], None] = lambda: None,
        patience: float | None = None,
        **how: Any,
    ) -> Transcript:
        """Read a recording as it was decided; the rest is as in `read`."""
        with self.use(decision.model, headway, patience=patience) as transcriber:
            transcriber.check(decision.options)
            on_model(transcriber)
            transcript = transcriber.transcribe(source, decision.options, **how)
        probability = transcript.language_probability if decision.probability is None else decision.probability
        return replace(
            transcript,
            model_reason=decision.reason,
            language_probability=probability,
            timings={
                **transcript.timings,
                **({"language": decision.seconds} if decision.seconds else {}),
                "total": transcript.timings["total"] + decision.seconds,
            },
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
        patience: float | None = None,
        **listening: Any,
    ) -> Decision:
        """What `auto` takes for a recording, whose language is listened for where it is not given.

        Afterwards the model is in memory. `listening` is as in `Transcriber.detect_language`. Raises what `use`
        and `detect_language` raise, and `ModelNotInstalledError` where nothing that suits can be had.
        """
        want: Want = "translate" if options.task == "translate" else "read"
        get = partial(
            self._had,
            on_pull=_telling(headway, on_pull),
            before_pull=before_pull,
            headway=headway,
            patience=patience,
        )
        if options.language is not None or want == "translate" or self.available.one_reads_all():
            choice = get(options.language, want)  # Whisper finds out a language by itself
            return Decision(choice.name, options, choice.reason, notes=_notes(choice.second_best))
        try:
            detector = get(None, "detect")
        except _NOT_HAD as error:
            language = self._settings.default_language or "ru"
            try:
                choice = get(language, "read")
            except ModelNotInstalledError:
                raise error from None
            told = (
                f"No model that can be had here tells languages apart, so it was read as {language_name(language)}: "
                "name the language, or pull base."
            )
            assumed = TranscriptWarning("language_assumed", told)
            return Decision(choice.name, options, choice.reason, notes=(assumed, *_notes(choice.second_best)))
        with self.use(detector.name, headway, patience=patience) as transcriber:
            started = time.monotonic()
            found, probability = transcriber.detect_language(source, options, **listening)
            seconds = time.monotonic() - started
        if found is None:
            return Decision(detector.name, options, "chosen because nobody speaks in the recording", seconds=seconds)
        choice = get(found, "read")
        reason = f"{choice.reason}; {detector.name} heard {language_name(found)}"
        return Decision(
            choice.name, replace(options, language=found), reason, probability, _notes(choice.second_best), seconds
        )

    def _had(
        self,
        language: str | None,
        want: Want,
        *,
        on_pull: OnPull,
        before_pull: BeforePull | None,
        headway: Callable[[], None],
        patience: float | None,
    ) -> Choice:
        """What is chosen, in memory by now: where the best cannot be fetched or loaded, the best of the others."""
        trouble: StenografError | None = None
        while True:
            try:
                choice = self.available.choose(language, want)
            except ModelNotInstalledError as nothing:
                raise trouble or nothing from None
            try:
                self.files(choice.name, on_pull=on_pull, before_pull=before_pull)
                with self.use(choice.name, headway, patience=patience):
                    return choice
            except ModelDamagedError as error:
                log.warning("%s", error)
                self.available.broken(choice.name)
                trouble = error
            except (DownloadFailedError, ModelsReadOnlyError, DiskFullError) as error:
                self.available.hub_failed(error)
                trouble = error

    def _still_second_best(self, name: str, options: Options) -> tuple[TranscriptWarning, ...]:
        if not is_auto(self._settings.default_model):
            return ()
        with contextlib.suppress(ModelNotInstalledError):
            choice = self.available.choose(options.language, "translate" if options.task == "translate" else "read")
            return _notes(choice.second_best if choice.name == name else "")
        return ()

    @property
    def _pool(self) -> ModelPool[Transcriber]:
        with self._lock:  # there must be one only
            return self._the_pool

    @cached_property
    def _the_pool(self) -> ModelPool[Transcriber]:
        return ModelPool(
            lambda key: self.load(self._store.resolve(key, allow_path=True)),
            size_of=lambda key: self.available.size(self._store.resolve(key, allow_path=True)),
            # `auto` needs two at once: the one that listens, and the one that reads.
            max_models=max(self._settings.max_models, 2 if is_auto(self._settings.default_model) else 1),
            max_bytes=self.available.budget,
            on_evict=lambda name, reason: self.on_evict(name, reason),  # noqa: PLW0108 - it may be set later
        )

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


def _ask(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise CancelledError("The transcription was cancelled.", "Start it again when you want it.")


def _notes(*told: str) -> tuple[TranscriptWarning, ...]:
    return tuple(TranscriptWarning("second_best", text) for text in told if text)


def _key(files: ModelFiles) -> str:
    return files.name if files.entry else str(files.path)


def _mend(files: ModelFiles) -> str:
    if files.entry is None:
        return "It is a model of your own: copy it there again from where it came."
    name = files.entry.name
    return f"Remove it and pull it again: stenograf models remove {name}, stenograf models pull {name}."


def _compute_type(asked: str, files: ModelFiles) -> tuple[str, list[TranscriptWarning]]:
    """The number format to load: a model of onnx-asr in the catalog comes in one only, whatever is asked."""
    if files.engine != "onnx-asr":
        return asked, []
    comes_in = files.quantization or "float32"
    if asked in ("auto", "default", comes_in):
        return comes_in, []
    if files.entry is None and asked == "int8" and any(files.path.glob("**/*int8*.onnx")):
        return asked, []  # a folder that holds both
    told = f"The model {files.name} comes in {comes_in} only; the compute type {asked} was passed over."
    return comes_in, [TranscriptWarning("option_ignored", told)]


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
