"""The composition root: settings -> the objects that do the work.

What only the service needs is imported when it is asked for: a command that transcribes a file opens no database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from stenograf.engines import Capabilities, engine
from stenograf.errors import ModelNotInstalledError, StenografError
from stenograf.models import ModelFiles, ModelStore, PullProgress, catalog
from stenograf.models.catalog import CatalogEntry
from stenograf.models.pool import ModelPool
from stenograf.options import Options
from stenograf.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from stenograf.jobs.crew import Crew
    from stenograf.jobs.database import Database
    from stenograf.jobs.dispatch import Event
    from stenograf.jobs.files import FileStore
    from stenograf.jobs.lease import Leases
    from stenograf.jobs.outbound import Outbound
    from stenograf.jobs.post import Post
    from stenograf.jobs.store import JobStore
    from stenograf.jobs.uploads import Uploads
    from stenograf.keys import KeyStore
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
        self.on_load: Callable[[str, float, str], None] = lambda _name, _seconds, _device: None
        """Told of each model that was loaded: its name, the seconds that it took, and where it runs."""

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
        from stenograf.transcriber import Transcriber  # here: the API's process never loads FFmpeg

        files = model if isinstance(model, ModelFiles) else self.model_files(model, on_pull=on_pull)
        started = time.monotonic()
        loaded = engine(files.engine).load(
            Path(files.path),
            device=device or self.settings.device,
            compute_type=self._compute_type(compute_type or self.settings.compute_type, files),
            variant=files.onnx_type,
            threads=self.settings.threads,
        )
        self.on_load(files.name, time.monotonic() - started, loaded.device)
        return Transcriber(
            loaded,
            model=files.name,
            engine=files.engine,
            capabilities=_known(loaded.capabilities, files.entry),
            load_seconds=time.monotonic() - started,
        )

    @contextmanager
    def use(self, name: str | None, headway: Callable[[], None]) -> Iterator[Transcriber]:
        """A loaded model of the pool, kept at least until the end of the `with`; None: the default one.

        `headway` is called while it is downloaded. Raises what `transcriber` raises.
        """
        files = self.model_files(name, on_pull=lambda _progress: headway())
        with self._pool.use(files.name if files.entry else str(files.path)) as transcriber:
            headway()
            yield transcriber

    def loaded(self) -> list[str]:
        """The models that are in memory."""
        return self._pool.loaded()

    def is_here(self, name: str | None) -> bool:
        """Whether a model, or the default one, is on this machine and whole."""
        try:
            self.store.resolve(name or self.settings.default_model, allow_path=True)
        except StenografError:
            return False
        return True

    def options_of(self, asked: Mapping[str, object]) -> Options:
        """The options of a job; what was not asked is as the settings say."""
        return self.options(**{name: value for name, value in asked.items() if name != "model"})  # type: ignore[arg-type]

    @cached_property
    def _pool(self) -> ModelPool[Transcriber]:
        return ModelPool(self.transcriber, max_models=self.settings.max_models)

    @cached_property
    def database(self) -> Database:
        """The database of the jobs; nothing is migrated by opening it."""
        from stenograf.jobs.database import Database

        return Database(self.settings.database)

    @cached_property
    def jobs(self) -> JobStore:
        """The jobs as callers see them."""
        from stenograf.jobs.store import JobStore

        settings = self.settings
        return JobStore(self.database, retention=settings.retention, max_queued=settings.max_queued)

    @cached_property
    def leases(self) -> Leases:
        """The jobs as workers see them."""
        from stenograf.jobs.lease import Leases

        settings = self.settings
        return Leases(
            self.database, seconds=settings.lease, max_attempts=settings.max_attempts, retention=settings.retention
        )

    @cached_property
    def files(self) -> FileStore:
        """The recordings that jobs hold."""
        from stenograf.jobs.files import FileStore

        return FileStore(self.settings.files_path, max_bytes=self.settings.max_upload * 1_000_000)

    @cached_property
    def uploads(self) -> Uploads:
        """Uploads that are under way."""
        from stenograf.jobs.uploads import Uploads

        return Uploads(self.database, self.jobs, self.files)

    @cached_property
    def keys(self) -> KeyStore:
        """The API keys."""
        from stenograf.keys import KeyStore

        return KeyStore(self.database, self.settings.api_keys)

    @cached_property
    def outbound(self) -> Outbound:
        """The guarded way to addresses that users name."""
        from stenograf.jobs.outbound import Outbound

        return Outbound([ip_network(text, strict=False) for text in self.settings.private_networks])

    def crew(self, *, hinted: bool, on_event: Callable[[Event], None]) -> Crew:
        """Workers, maintenance and webhooks; see `Crew`."""
        from stenograf.jobs.crew import Crew
        from stenograf.jobs.webhooks import Webhooks

        webhooks = Webhooks(
            self.database,
            self.outbound,
            secret=self.settings.webhook_secret,
            on_event=on_event,
            public_url=self.settings.public_url,
        )
        return Crew(
            self.settings,
            self.jobs,
            self.leases,
            self.files,
            self.uploads,
            webhooks,
            work=partial(work, self.settings),
            hinted=hinted,
            on_event=on_event,
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


def work(settings: Settings, pipe: Connection, post: Post) -> None:
    """What a worker process runs; `Supervisor` starts it with the method spawn."""
    from stenograf.jobs.worker import main

    main(pipe, post, Runtime(settings))


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
