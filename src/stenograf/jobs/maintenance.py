"""What must happen by itself: leases that run out, recordings whose time is over, files that nobody names, uploads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from stenograf.errors import DatabaseError, StenografError, StorageError
from stenograf.jobs.dispatch import Event
from stenograf.jobs.files import FileStore
from stenograf.jobs.lease import Leases
from stenograf.jobs.store import JobStore
from stenograf.jobs.uploads import Uploads

log = logging.getLogger(__name__)

REAP_SECONDS = 1.0
RETENTION_SECONDS = 15.0
SWEEP_SECONDS = 900.0

STOP_SECONDS = 10.0
"""How long a stop waits for what is under way."""


class Maintenance:
    """A thread that looks after a database and its files; several may do so at once."""

    def __init__(
        self,
        store: JobStore,
        leases: Leases,
        files: FileStore,
        uploads: Uploads,
        *,
        on_event: Callable[[Event], None],
        files_are_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        """`files_are_ours` tells whether the files belong to this database: else nothing is swept."""
        self._store = store
        self._leases = leases
        self._files = files
        self._uploads = uploads
        self._on_event = on_event
        self._files_are_ours = files_are_ours
        self._is_away = False
        """Whether the database failed when the reaper last asked it."""
        self._reached = time.monotonic()
        """When it last did not."""
        self._stopping = threading.Event()
        # What waits for files must not keep the reaper, by whom jobs of dead workers go on.
        slow = {self.sweep: SWEEP_SECONDS, self.expire: RETENTION_SECONDS, self.tend_uploads: RETENTION_SECONDS}
        self._threads = [
            threading.Thread(target=self._run, args=({self.reap: REAP_SECONDS},), name="reaper", daemon=True),
            threading.Thread(target=self._run, args=(slow,), name="maintenance", daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait until it has; not for long, as what is cut off is done again."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(STOP_SECONDS)

    def reap(self) -> None:
        """Take jobs whose lease ran out back."""
        try:
            if jump := self._leases.follow_clock():
                log.warning("the database's clock has jumped by %+.0f s", jump)
            if self._is_away:  # no lease could be renewed: they ran out without anybody's fault
                self._leases.mend(time.monotonic() - self._reached)
            count = self._leases.reap()
        except DatabaseError:
            self._is_away = True
            raise
        self._is_away, self._reached = False, time.monotonic()
        if count:
            log.warning("%d leases ran out", count)
            self._on_event({"event": "lease_expired", "count": count})

    def expire(self) -> int:
        """Remove jobs whose time is over, with their files; returns how many."""
        count = 0
        while found := self._store.expired():
            for job in found:
                if self._stopping.is_set():
                    return count
                if self._store.remove_expired(job.id):
                    count += 1
                    try:
                        self._files.remove(job.file)
                    except StorageError as error:
                        log.warning("the sweep will remove a recording that cannot be removed now: %s", error)
        if count:
            log.info("%d tasks were removed: their time was over", count)
        return count

    def tend_uploads(self) -> None:
        """Make tasks of uploads that are whole, and remove those that nobody goes on with."""
        finished, removed = self._uploads.tend()
        if finished:
            log.info("%d uploads that were whole became tasks", finished)
        if removed:
            log.info("%d uploads were removed: their time was over", removed)

    def sweep(self) -> int:
        """Remove files that nobody names, old idempotency keys and counted requests; returns how many files."""
        self._store.forget_keys()
        self._store.forget_requests()
        if not self._files_are_ours():
            log.error(
                "%s holds the recordings of another database: nothing there is swept. Check STENOGRAF_DATABASE_URL and "
                "STENOGRAF_STORAGE_URL; each installation needs a folder of its own",
                self._files.shown,
            )
            return 0
        gone = self._files.sweep(self._named)
        if gone:
            log.info("%d files that no task names were removed", gone)
        return gone

    def _named(self) -> set[str]:
        # Uploads first: one that becomes a job between the two questions is named by both.
        named = self._uploads.files()
        return named | self._store.files()

    def _run(self, every: Mapping[Callable[[], object], float]) -> None:
        due = dict.fromkeys(every, 0.0)
        told: dict[Callable[[], object], str] = {}
        while not self._stopping.wait(REAP_SECONDS):
            for task, at in due.items():
                if time.monotonic() >= at:
                    due[task] = time.monotonic() + every[task]
                    try:
                        task()
                        told.pop(task, None)
                    except StenografError as error:
                        if told.get(task) != str(error):  # once, however long it lasts
                            log.error("%s", error)
                        told[task] = str(error)
                    except Exception:
                        log.exception("maintenance could not %s", getattr(task, "__name__", task))
