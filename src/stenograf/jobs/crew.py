"""All that works on the jobs of a database: the worker processes, maintenance, the sending of webhooks."""

from __future__ import annotations

from collections.abc import Callable

from stenograf.jobs.dispatch import Event
from stenograf.jobs.files import FileStore
from stenograf.jobs.lease import Leases
from stenograf.jobs.maintenance import Maintenance
from stenograf.jobs.post import posts
from stenograf.jobs.store import JobStore
from stenograf.jobs.supervisor import Supervisor, Work
from stenograf.jobs.uploads import Uploads
from stenograf.jobs.webhooks import Webhooks
from stenograf.settings import Settings


class Crew:
    """What `stenograf serve` runs beside the API, and `stenograf worker` alone."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        leases: Leases,
        files: FileStore,
        uploads: Uploads,
        webhooks: Webhooks,
        *,
        work: Work,
        hinted: bool,
        on_event: Callable[[Event], None],
    ) -> None:
        """`hinted` tells whether this process takes jobs in, and calls `wake`; for `work` see `Supervisor`.

        `on_event` is called by any thread.
        """
        self._on_event = on_event
        self._webhooks = webhooks
        self._maintenance = Maintenance(store, leases, files, uploads, on_event=on_event)
        self._supervisor = Supervisor(leases, posts(settings, hinted=hinted), work=work, on_event=self._heard)

    def start(self) -> None:
        """Begin."""
        self._supervisor.start()
        self._maintenance.start()
        self._webhooks.start()

    def wake(self) -> None:
        """There may be work."""
        self._supervisor.wake()

    def promised(self) -> None:
        """A webhook was promised: send it at once."""
        self._webhooks.nudge()

    def processes(self) -> dict[str, int]:
        """Name -> pid of the workers that live."""
        return self._supervisor.processes()

    def stop(self) -> None:
        """Let running chunks finish, send the rest back to the queue, and end."""
        self._supervisor.stop()
        self._webhooks.stop()
        self._maintenance.stop()

    def _heard(self, event: Event) -> None:
        if event["event"] == "job_finished" and event.get("promised"):
            self._webhooks.nudge()
        self._on_event(event)
