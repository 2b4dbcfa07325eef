"""The composition root: settings -> the objects that do the work.

What only the service needs is imported when it is asked for: a command that transcribes a file opens no database.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from stenograf.errors import SettingInvalidError
from stenograf.models import ModelStore
from stenograf.options import Options
from stenograf.reader import Reader
from stenograf.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from stenograf.jobs.belonging import Belonging
    from stenograf.jobs.crew import Crew
    from stenograf.jobs.database import Database
    from stenograf.jobs.dispatch import Event
    from stenograf.jobs.files import FileStore
    from stenograf.jobs.hints import Hints
    from stenograf.jobs.lease import Leases
    from stenograf.jobs.outbound import Outbound
    from stenograf.jobs.post import Post
    from stenograf.jobs.store import JobStore
    from stenograf.jobs.uploads import Uploads
    from stenograf.keys import KeyStore

log = logging.getLogger(__name__)


class Runtime:
    """Everything that one process needs, made from its settings."""

    def __init__(self, settings: Settings, *, processes: int = 1) -> None:
        """`processes` that load models share this machine's memory."""
        self.settings = settings
        self.store = ModelStore(
            settings.models_path,
            endpoint=settings.hub_endpoint,
            token=settings.hub_token,
            offline=settings.offline,
        )
        self.reader = Reader(settings, self.store, processes=processes)
        """What reads recordings, with the models of this process."""

    def options_of(self, asked: Mapping[str, object]) -> Options:
        """The options of a job; what was not asked is as the settings say."""
        return self.options(**{name: value for name, value in asked.items() if name != "model"})  # type: ignore[arg-type]

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
        from stenograf.jobs.files import files_for

        return files_for(self.settings)

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

    @cached_property
    def hints(self) -> Hints | None:
        """What tells workers on other machines of jobs; None where there is no broker. Raises `SettingInvalidError`."""
        settings = self.settings
        if settings.broker is None:
            return None
        if not self.database.is_shared:
            log.warning(
                "a message broker is set, and the database is a file of this machine: other machines cannot share the "
                "work without STENOGRAF_DATABASE_URL"
            )
            if settings.broker_url is None and importlib.util.find_spec("celery") is None:
                return None  # REDIS_HOST may be another program's
        require_cluster()
        from stenograf.jobs.hints import Hints

        return Hints(self.settings, self.leases)

    def expect_service(self) -> None:
        """Raises `SettingInvalidError` where workers of a broker have a database that no service can have filled."""
        if not self.database.is_shared and not Path(self.database.url.database or "").is_file():
            raise SettingInvalidError(
                f"The database {self.database.shown} is a file of this machine that is not there yet, so no service "
                "has work in it.",
                "Set STENOGRAF_DATABASE_URL to the database of the service; where both are on this machine and share "
                "STENOGRAF_DATA_DIR, start stenograf serve first.",
            )

    def files_are_ours(self, *, claim: bool = False) -> bool:
        """Whether the recordings belong to the database; see `Belonging.holds`. On one machine there is no doubt."""
        return not (self.is_fleet or self.settings.storage_url) or self._belonging.holds(claim=claim)

    def check_files(self, *, claim: bool = False) -> None:
        """Raises `SettingInvalidError` where the recordings are not those of the database; see `files_are_ours`."""
        if not self.files_are_ours(claim=claim):
            raise SettingInvalidError(
                f"{self.files.shown} does not hold the recordings of the database {self.database.shown}.",
                self._belonging.hint,
            )

    @cached_property
    def _belonging(self) -> Belonging:
        from stenograf.jobs.belonging import Belonging

        return Belonging(self.database, self.files)

    @property
    def is_fleet(self) -> bool:
        """Whether other machines may work on the same jobs."""
        return self.database.is_shared

    def tell_others(self, event: Event) -> None:
        """Tell the services of other machines what changed, where there can be any."""
        if self.is_fleet:
            from stenograf.jobs.nudges import tell

            tell(self.database, event)

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
            self.database,
            self.jobs,
            self.leases,
            self.files,
            self.uploads,
            webhooks,
            self.hints if hinted else None,
            work=partial(work, self.settings) if self.settings.transcribes or not hinted else None,
            hinted=hinted,
            on_event=on_event,
            files_are_ours=partial(self.files_are_ours, claim=hinted),
        )

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


def require_cluster() -> None:
    """Raises `SettingInvalidError` where Celery is not installed."""
    if importlib.util.find_spec("celery") is None:
        raise SettingInvalidError(
            "A message broker is set (STENOGRAF_BROKER_URL or REDIS_HOST), and Celery is not installed.",
            "Run: pip install 'stenograf[cluster]'. Or unset them: then workers look into the database by themselves.",
        )


def work(settings: Settings, pipe: Connection, post: Post) -> None:
    """What a worker process runs; `Supervisor` starts it with the method spawn."""
    from stenograf.jobs.post import posts
    from stenograf.jobs.worker import main

    main(pipe, post, Runtime(settings, processes=len(posts(settings, hinted=True))))
