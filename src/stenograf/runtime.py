"""The composition root: settings -> the objects that do the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stenograf.engines import Capabilities, engine
from stenograf.errors import ModelNotInstalledError
from stenograf.models import ModelFiles, ModelStore, PullProgress, catalog
from stenograf.models.catalog import CatalogEntry
from stenograf.options import Options
from stenograf.settings import Settings
from stenograf.transcriber import Transcriber

OnPull = Callable[[PullProgress], None]


class Runtime:
    """Everything that one process needs, made from its settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = ModelStore(
            settings.models_path,
            endpoint=settings.hub_endpoint,
            token=settings.hub_token,
            offline=settings.offline,
        )

    def model_files(
        self,
        name: str | None = None,
        *,
        on_pull: OnPull | None = None,
        before_pull: Callable[[CatalogEntry], None] | None = None,
    ) -> ModelFiles:
        """The files of a model, by catalog name, folder name or path; downloaded where they lack and may be.

        None stands for the default model. `before_pull` may raise to prevent the download. Raises
        `ModelUnknownError`, `ModelNotInstalledError`, `ModelDamagedError`, `DownloadFailedError`.
        """
        name = name or self.settings.default_model
        try:
            return self.store.resolve(name, allow_path=True)
        except ModelNotInstalledError:
            entry = catalog.find(name)
            if self.settings.offline or entry is None:
                raise
            if before_pull is not None:
                before_pull(entry)
            return self.store.pull(name, on_pull)

    def transcriber(
        self,
        model: str | ModelFiles | None = None,
        *,
        device: str | None = None,
        compute_type: str | None = None,
        on_pull: OnPull | None = None,
    ) -> Transcriber:
        """Load a model, ready to transcribe; None stands for what the settings say.

        Raises what `model_files` raises, and `EngineMissingError`, `DeviceUnavailableError`, `OutOfMemoryError`.
        """
        files = model if isinstance(model, ModelFiles) else self.model_files(model, on_pull=on_pull)
        started = time.monotonic()
        loaded = engine(files.engine).load(
            Path(files.path),
            device=device or self.settings.device,
            compute_type=self._compute_type(compute_type or self.settings.compute_type, files),
            variant=files.onnx_type,
            threads=self.settings.threads,
        )
        return Transcriber(
            loaded,
            model=files.name,
            engine=files.engine,
            capabilities=_known(loaded.capabilities, files.entry),
            load_seconds=time.monotonic() - started,
        )

    @staticmethod
    def _compute_type(asked: str, files: ModelFiles) -> str:
        # A model that comes in one number format only is loaded in that one.
        return files.quantization if asked == "auto" and files.quantization else asked

    def options(
        self,
        *,
        language: str | None = None,
        beam_size: int | None = None,
        vad: bool | None = None,
        trim: float | None = None,
        **others: object,
    ) -> Options:
        """The options of a transcription; None stands for what the settings say."""
        settings = self.settings
        return Options(
            language=settings.default_language if language is None else language,
            beam_size=settings.beam_size if beam_size is None else beam_size,
            vad=settings.vad if vad is None else vad,
            trim=settings.default_trim if trim is None else trim,
            **others,  # type: ignore[arg-type]
        )


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
