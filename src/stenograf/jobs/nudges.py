"""Nudges between machines, by PostgreSQL's NOTIFY: "this job changed".

Whoever waits for a job looks into the database twice a second anyway (`api/watch.py`). A nudge lets it look at once;
one that is lost costs half a second. SQLite has none: there, workers tell their service by a pipe (`dispatch.py`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from stenograf.errors import DatabaseError
from stenograf.jobs.database import Database
from stenograf.jobs.dispatch import Event

log = logging.getLogger(__name__)

CHANNEL = "stenograf_jobs"

LISTEN_SECONDS = 5.0
"""How long is listened before it is looked whether to stop, and whether the server is still there."""

PAUSE_SECONDS = 2.0
"""Between two tries to reach the server again."""


def tell(database: Database, event: Event) -> None:
    """Tell all replicas that a job changed, or came to rest; other events are passed over. A failure is none."""
    if event["event"] not in ("job", "job_finished"):
        return
    told = {name: event[name] for name in ("event", "job", "promised") if name in event}
    try:
        with database.read() as connection:
            connection.execute(sa.select(sa.func.pg_notify(CHANNEL, json.dumps(told))))
    except DatabaseError as error:
        log.debug("no nudge was sent: %s", error)


class Listener:
    """A thread that hears what other machines tell."""

    def __init__(self, database: Database, on_event: Callable[[Event], None]) -> None:
        """`on_event` is called in the listener's thread, with what `tell` was given."""
        self._db = database
        self._on_event = on_event
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nudges", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; it is not waited for."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except DatabaseError as error:
                log.debug("no nudges are heard: %s", error)
            except Exception:
                log.exception("no nudges are heard")
            self._stopping.wait(PAUSE_SECONDS)

    def _listen(self) -> None:
        import psycopg

        with self._db.read() as connection:
            driver: Any = connection.connection.driver_connection
            connection.detach()  # it is not given back to the pool: nobody else is to listen by accident
            try:
                driver.execute(f"LISTEN {CHANNEL}")
                while not self._stopping.is_set():
                    for notify in driver.notifies(timeout=LISTEN_SECONDS):
                        self._on_event(json.loads(notify.payload))
                        if self._stopping.is_set():
                            return
                    driver.execute("SELECT 1")
            except psycopg.Error as error:  # the driver's own, which SQLAlchemy has not seen
                log.debug("no nudges are heard: %s", error)
            finally:
                driver.close()
                connection.invalidate()
