"""All that works on the jobs of a database: the worker processes, maintenance, the sending of webhooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stenograf.jobs.database import Database
from stenograf.jobs.dispatch import Event
from stenograf.jobs.files import FileStore
from stenograf.jobs.lease import Leases
from stenograf.jobs.maintenance import Maintenance
from stenograf.jobs.nudges import Listener
from stenograf.jobs.post import posts
from stenograf.jobs.store import JobStore
from stenograf.jobs.supervisor import Supervisor, Work
from stenograf.jobs.uploads import Uploads
from stenograf.jobs.webhooks import Webhooks
from stenograf.settings import Settings

if TYPE_CHECKING:
    from stenograf.jobs.hints import Hints


class Crew:
    """What `stenograf serve` runs beside the API, and `stenograf worker` alone."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: JobStore,
        leases: Leases,
        files: FileStore,
        uploads: Uploads,
        webhooks: Webhooks,
        hints: Hints | None,
        *,
        work: Work | None,
        hinted: bool,
        on_event: Callable[[Event], None],
        files_are_ours: Callable[[], bool],
    ) -> None:
        """`hinted` tells whether this process takes jobs in, and calls `wake`; for `work` see `Supervisor`.

        With `work=None` there are no worker processes here; `hints` tells those of other machines. `on_event` is
        called by any thread.
        """
        self._hints = hints
        self._on_event = on_event
        self._webhooks = webhooks
        self._listener = Listener(database, self._heard_elsewhere) if hinted and database.is_shared else None
        self._maintenance = Maintenance(store, leases, files, uploads, on_event=on_event, files_are_ours=files_are_ours)
        self._supervisor = (
            Supervisor(leases, posts(settings, hinted=hinted), work=work, on_event=self._heard) if work else None
        )

    def start(self) -> None:
        """Begin."""
        if self._supervisor:
            self._supervisor.start()
        if self._hints:
            self._hints.start()
        if self._listener:
            self._listener.start()
        self._maintenance.start()
        self._webhooks.start()

    def wake(self) -> None:
        """There may be work."""
        if self._supervisor:
            self._supervisor.wake()
        if self._hints:
            self._hints.wake()

    def promised(self) -> None:
        """A webhook was promised: send it at once."""
        self._webhooks.nudge()

    def processes(self) -> dict[str, int]:
        """Name -> pid of the workers that live."""
        return self._supervisor.processes() if self._supervisor else {}

    def stop(self) -> None:
        """Let running chunks finish, send the rest back to the queue, and end."""
        if self._supervisor:
            self._supervisor.stop()
        if self._hints:
            self._hints.stop()
        if self._listener:
            self._listener.stop()
        self._webhooks.stop()
        self._maintenance.stop()

    def _heard_elsewhere(self, event: Event) -> None:
        if event.get("promised"):
            self._webhooks.nudge()
        if event["event"] == "job":  # the rest is counted where it happened
            self._on_event(event)

    def _heard(self, event: Event) -> None:
        if event["event"] == "job_finished" and event.get("promised"):
            self._webhooks.nudge()
        self._on_event(event)
