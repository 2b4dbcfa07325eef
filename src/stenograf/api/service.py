"""What the endpoints need, made once and handed to each of them: there are no globals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from stenograf.api.watch import Watcher
from stenograf.jobs.dispatch import Event
from stenograf.jobs.job import Lane
from stenograf.metrics import Metrics
from stenograf.runtime import Runtime


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
        self.keys = runtime.keys
        self.outbound = runtime.outbound
        self.metrics = Metrics(counts=self._counts)
        self.watcher = Watcher(self.store)
        self.wake: Callable[[], None] = lambda: None
        """Tells embedded workers that there may be work, from any thread; others look by themselves."""
        self.in_flight: set[tuple[str, str]] = set()
        """Owner and idempotency key of the requests that are being received; for the event loop's thread only."""

    def slots_of(self, lane: Lane) -> int:
        """How many jobs of a lane run at once, for estimates."""
        slots = self.settings.slots
        return slots if lane == "short" else max(1, slots - 1)

    def heard(self, event: Event) -> None:
        """Take in what workers tell; to be called from any thread."""
        if event["event"] == "job":
            self.watcher.changed(event["job"])
        else:
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
