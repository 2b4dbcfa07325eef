"""What the endpoints need, made once and handed to each of them: there are no globals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from stenograf.api.watch import Watcher
from stenograf.jobs.dispatch import Event
from stenograf.jobs.job import Job, Lane
from stenograf.jobs.post import posts
from stenograf.jobs.store import Outlook
from stenograf.metrics import Metrics
from stenograf.models import catalog
from stenograf.runtime import Runtime

if TYPE_CHECKING:
    from stenograf.jobs.hints import Hints


class Service:
    """The objects that the endpoints of one process share."""

    def __init__(self, runtime: Runtime) -> None:
        """Opens the database, which must be in today's shape. Raises `DatabaseError`, `OutputForbiddenError`."""
        self.runtime = runtime
        self.settings = runtime.settings
        self.database = runtime.database
        self.store = runtime.jobs
        self.leases = runtime.leases
        self.files = runtime.files
        self.models = runtime.store
        self.reader = runtime.reader
        self.keys = runtime.keys
        self.outbound = runtime.outbound
        self.metrics = Metrics(counts=self._counts)
        self.watcher = Watcher(self.store)
        self.wake: Callable[[], None] = lambda: None
        """Tells embedded workers that there may be work, from any thread; others look by themselves."""
        self.promised: Callable[[], None] = lambda: None
        """Tells the sender of webhooks that one was promised, from any thread; it looks by itself too."""
        self.workers: Callable[[], Mapping[str, int]] | None = None
        """Name -> pid of the embedded workers that live, from any thread; None where they run elsewhere."""
        self.hints: Hints | None = None
        """What tells workers on other machines of jobs; None where there is no broker."""
        self.devices: dict[str, str] = {}
        """Model -> the device that it was last loaded on."""
        self.loaded: dict[str, Mapping[str, int]] = {}
        """Worker -> the models that it holds in memory and the bytes that each takes, as it told last."""
        self.loads: Counter[str] = Counter()
        """Model -> how often it was loaded since the service was started."""
        self.evictions: Counter[str] = Counter()
        """Model -> how often it left the memory."""
        self.load_errors: dict[str, str] = {}
        """Model -> the code of the error that kept it from being loaded at the start of a worker."""
        self.in_flight: set[tuple[str, str]] = set()
        """Owner and idempotency key of the requests that are being received; for the event loop's thread only."""

    @property
    def default_model(self) -> str:
        """The default model by its own name: the catalog's, or its folder's."""
        name = self.settings.default_model
        entry = catalog.find(name)
        return entry.name if entry else PurePath(name).name

    @cached_property
    def gpu_models(self) -> frozenset[str]:
        """The models that only workers with a GPU read with, by their own names."""
        entries = {name: catalog.find(name) for name in self.settings.gpu_models}
        return frozenset(entry.name if entry else PurePath(name).name for name, entry in entries.items())

    def outlook(self, job: Job) -> Outlook:
        """`JobStore.outlook`, by the workers of this machine, or, where others read too, by what they do now."""
        is_alone = self.settings.transcribes and not self.database.is_shared
        return self.store.outlook(job, self.slots_of if is_alone else None)

    def slots_of(self, lane: Lane) -> int:
        """How many jobs of a lane the workers of this machine run at once."""
        workers = posts(self.settings, hinted=True)
        return max(1, sum(lane in post.lanes_of(slot) for post in workers for slot in range(post.slots)))

    def cancel(self, job_id: str, owner: str | None = None, *, stage: str = "cancelled") -> Job:
        """`JobStore.cancel`, and everyone who should know is told at once."""
        before = self.store.get(job_id, owner)
        job = self.store.cancel(job_id, owner, stage=stage)
        if not before.at_rest:
            self.watcher.changed(job.id)
            self.promised()
            gone = {"event": "job_finished", "state": "cancelled", "lane": job.lane, "model": job.model or "none"}
            self.metrics.observe(gone)
        return job

    def heard(self, event: Event) -> None:
        """Take in what workers tell; to be called from any thread."""
        if event["event"] == "job":
            self.watcher.changed(event["job"])
        elif event["event"] == "model_failed":
            entry = catalog.find(event["model"])
            self.load_errors[entry.name if entry else PurePath(event["model"]).name] = event["code"]
        else:
            if event["event"] == "model_loaded":
                self.devices[event["model"]] = event["device"]
                self.loads[event["model"]] += 1
                self.load_errors.pop(event["model"], None)
            elif event["event"] == "model_evicted":
                self.evictions[event["model"]] += 1
            elif event["event"] == "worker_memory":
                self.loaded[event["worker"]] = event.get("models", {})
            elif event["event"] == "worker_gone":
                self.loaded.pop(event["worker"], None)
            self.metrics.observe(event)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def _counts(self) -> dict[tuple[str, str], int]:
        return {(state, lane): count for (state, lane), count in self.store.counts().items()}


def service(connection: HTTPConnection) -> Service:
    """The service that a request or a WebSocket is for; a dependency of endpoints."""
    found: Service = connection.app.state.service
    return found


Served = Annotated[Service, Depends(service)]
"""The type of an endpoint's parameter that gets the `Service`."""
