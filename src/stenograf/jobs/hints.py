"""The sending of hints to a broker: workers on other machines hear that there may be work.

A thread asks the database which jobs may run and were not told of, marks them, and sends a hint for each: as soon as a
job was taken in, and once a second for those whose hint was lost. So a request never waits for the broker, and what was
taken in while the broker was away is told of when it is back. No more than `MOST` hints wait in a queue: where a
million jobs wait, workers that are busy need no million messages.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

from celery import Celery
from kombu import Connection
from kombu.exceptions import KombuError

from stenograf.errors import DatabaseError
from stenograf.jobs.broker import ANSWER_SECONDS, RECONNECT_SECONDS, TASK, broker_app, queue_name, shown, why
from stenograf.jobs.job import LANES, NEEDS, Lane, Need
from stenograf.jobs.lease import Leases
from stenograf.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often is looked for jobs whose hint was lost."""

STALE_SECONDS = 5.0
"""A job that still waits so long after its hint gets another."""

MOST = 500
"""Hints that may wait in a queue: more than all workers take in a second."""

STOP_SECONDS = 2.0

UNASKED = "it was not asked yet"
"""The failure of a broker that was not reached so far, and not tried either."""

Target = tuple[Lane, Need]
"""Where a hint goes: the queue."""


class Hints:
    """A thread that sends hints; several processes may do so at once."""

    def __init__(self, settings: Settings, leases: Leases) -> None:
        """Raises `SettingInvalidError` for an address that is none of a broker."""
        self._settings = settings
        self._leases = leases
        self._app: Celery = broker_app(settings)
        self.shown = shown(settings.broker or "")
        """The broker's address for people."""
        self.failure: str | None = UNASKED
        """Why the broker cannot be reached; None while it can."""
        self._owed: Counter[Target] = Counter()
        """Hints that were promised to the database and could not be sent."""
        self._room: Counter[Target] = Counter()
        """How many may be sent to each queue before it is looked at again."""
        self._connection: Connection | None = None
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hints", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """A job may be waiting. From any thread; never waits."""
        self._woken.set()

    def stop(self) -> None:
        """End; a hint that was not sent is sent by another process, or after the next start."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        look_at, is_told = 0.0, False
        while not self._stopping.is_set():
            self._woken.wait(max(0.0, look_at - time.monotonic()))
            self._woken.clear()
            is_full = time.monotonic() >= look_at
            if is_full:
                look_at = time.monotonic() + LOOK_SECONDS
            elif self.failure is not None:
                continue  # the next full look tries again
            try:
                self._look(is_full)
                is_told = False
            except DatabaseError as error:
                if not is_told:
                    log.warning("no hints can be sent: %s", error)
                is_told = True
            except Exception as error:
                self._failed(error)
                look_at = time.monotonic() + RECONNECT_SECONDS / 2
        self._close()

    def _look(self, is_full: bool) -> None:
        """Tell of what may run: of everything, or of what was just taken in."""
        connection = self._connected()
        for lane in LANES:
            for need in NEEDS:
                if need == "gpu" and not self._settings.gpu_models and not is_full:
                    continue
                if is_full:
                    self._room[lane, need] = MOST - self._size(connection, lane, need)
                self._tell(connection, (lane, need))

    def _tell(self, connection: Connection, target: Target) -> None:
        if (room := self._room[target] - self._owed[target]) > 0:
            self._owed[target] += self._leases.unhinted(*target, seconds=STALE_SECONDS, limit=room)
        while self._owed[target] > 0:
            self._send(connection, target)
            self._owed[target] -= 1
            self._room[target] -= 1

    def _send(self, connection: Connection, target: Target) -> None:
        lane, need = target
        with self._app.amqp.Producer(connection.default_channel, auto_declare=False) as producer:
            self._app.send_task(
                TASK,
                kwargs={"lane": lane, "need": need},
                # To the queue itself. A Redis that was emptied knows of no exchange any more, and tells nobody so.
                exchange="",
                routing_key=queue_name(self._settings, lane, need),
                producer=producer,
                ignore_result=True,
                retry=False,
            )

    def _size(self, connection: Connection, lane: Lane, need: Need) -> int:
        """How many hints wait in a queue."""
        queue = self._app.amqp.queues[queue_name(self._settings, lane, need)].bind(connection.default_channel)
        return int(queue.queue_declare().message_count)  # not `passive`: an empty one is unknown to Redis

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = self._app.connection_for_write(connect_timeout=ANSWER_SECONDS)
            if connection.transport_cls.startswith("amqp"):
                # A broker that is frozen must not hold the thread for ever.
                connection.transport_options = {"read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS}
            connection.connect()
            for lane in LANES:
                for need in NEEDS:
                    self._app.amqp.queues[queue_name(self._settings, lane, need)].bind(
                        connection.default_channel
                    ).declare()
            self._connection = connection
        if self.failure is not None:
            log.info("the broker %s is reached", self.shown)
            self.failure = None
        return self._connection

    def _failed(self, error: Exception) -> None:
        self._close()
        known = isinstance(error, OSError | KombuError) or type(error).__module__.startswith(("redis", "amqp", "kombu"))
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(text.split()).rstrip(".") or type(error).__name__
        if self.failure in (None, UNASKED) or (not known and self.failure != reason):
            told, hint = why(error)
            log.error(
                "The broker %s %s: %s. %s Tasks are taken in all the same, and begin when it is back; it is tried "
                "again every few seconds.",
                self.shown,
                told,
                reason,
                hint,
                exc_info=None if known else error,
            )
        self.failure = reason

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception as error:  # it is gone all the same
                log.debug("closing the connection to the broker: %s", error)
