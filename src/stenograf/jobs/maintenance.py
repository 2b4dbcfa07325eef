"""What must happen by itself: leases that run out, recordings whose time is over, files that nobody names, uploads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from stenograf.errors import StenografError
from stenograf.jobs.dispatch import Event
from stenograf.jobs.files import FileStore
from stenograf.jobs.lease import Leases
from stenograf.jobs.store import JobStore
from stenograf.jobs.uploads import Uploads

log = logging.getLogger(__name__)

REAP_SECONDS = 1.0
RETENTION_SECONDS = 15.0
SWEEP_SECONDS = 900.0


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
    ) -> None:
        self._store = store
        self._leases = leases
        self._files = files
        self._uploads = uploads
        self._on_event = on_event
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until it has."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def reap(self) -> None:
        """Take jobs whose lease ran out back."""
        if jump := self._leases.follow_clock():
            log.warning("the database's clock has jumped by %+.0f s", jump)
        if count := self._leases.reap():
            log.warning("%d leases ran out", count)
            self._on_event({"event": "lease_expired", "count": count})

    def expire(self) -> int:
        """Remove jobs whose time is over, with their files; returns how many."""
        count = 0
        while found := self._store.expired():
            for job in found:
                if self._store.remove_expired(job.id):
                    self._files.remove(job.file)
                    count += 1
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
        gone = self._files.sweep(self._named)
        if gone:
            log.info("%d files that no task names were removed", gone)
        return gone

    def _named(self) -> set[str]:
        # Uploads first: one that becomes a job between the two questions is named by both.
        named = self._uploads.files()
        return named | self._store.files()

    def _run(self) -> None:
        every = {
            self.reap: REAP_SECONDS,
            self.expire: RETENTION_SECONDS,
            self.tend_uploads: RETENTION_SECONDS,
            self.sweep: SWEEP_SECONDS,
        }
        due = dict.fromkeys(every, 0.0)
        while not self._stopping.wait(REAP_SECONDS):
            for task, at in due.items():
                if time.monotonic() >= at:
                    due[task] = time.monotonic() + every[task]
                    try:
                        task()
                    except StenografError as error:
                        log.error("%s", error)
                    except Exception:
                        log.exception("maintenance could not %s", task.__name__)
