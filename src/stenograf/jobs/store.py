"""The jobs as callers see them: handed in, looked at, cancelled, retried, removed."""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from stenograf.errors import IdempotencyError, OptionInvalidError, QueueFullError, TaskStateError, TaskUnknownError
from stenograf.jobs.database import Database
from stenograf.jobs.job import FINAL, UNATTENDED, Job, Lane, NewJob, State, guess_seconds
from stenograf.jobs.lease import at_rest
from stenograf.jobs.outbox import promise
from stenograf.jobs.rows import job_from
from stenograf.jobs.tables import chunks, idempotency, jobs, requests, transcripts

DEFAULT_SPEED = 0.3
"""Seconds of work for a second of sound, until this machine has shown its own."""

SPEED_JOBS = 50
"""So many of the latest jobs tell the speed."""

SPEED_SECONDS = 2.0
"""How long a speed is believed before it is reckoned again."""

COUNT_SECONDS = 1.0
"""How long the length of the queue is believed, at least."""

COUNT_SHARE = 0.02
"""The part of the time that may go into counting: a million that wait are counted every 20 s, not every second."""

COUNTED_AHEAD = 10_000
"""A job's place in the queue is counted up to here; what stands further back has at least so many before it."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    items: tuple[Job, ...]
    next: str | None
    """The cursor of the next page; None at the end."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a job may expect of the queue."""

    position: int
    """Jobs of its lane that will start before it; 0 where it is the next or has started."""
    seconds: float
    """Until it is done: an estimate from the speed that this machine has shown."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What changes while a job is worked on; two that are equal mean that there is nothing new."""

    state: State
    attempt: int
    progress: float
    stage: str
    chunks: int


class JobStore:
    """The jobs of a database; to be used by many threads and processes.

    `owner` narrows each question to the jobs of one owner; None asks for everyone's. A job of another owner is as
    unknown as one that never was: `TaskUnknownError`.
    """

    def __init__(self, database: Database, *, retention: float | None = 86_400.0, max_queued: int = 0) -> None:
        """`retention` in seconds is for jobs that name none; `max_queued` bounds those that wait, 0: no bound."""
        self._db = database
        self._retention = retention
        self._max_queued = max_queued
        self._queued = self._added = 0
        """How many waited when they were last counted, and how many this process has added since."""
        self._count_at = float("-inf")
        self._speed: tuple[float, float] = (DEFAULT_SPEED, float("-inf"))
        """Seconds of work for a second of sound, and when that was reckoned."""

    def add(self, new: NewJob) -> tuple[Job, bool]:
        """Take a job in; returns it, and whether it is new or the one that its idempotency key stands for already.

        Once this returns, the job is durable. Raises `IdempotencyError`, `QueueFullError`.
        """
        try:
            return self._add(new)
        except sa.exc.IntegrityError:
            if new.idempotency_key is None:
                raise
            return self._add(new)  # another process was faster with this key: now its job is found

    def _add(self, new: NewJob) -> tuple[Job, bool]:
        with self._db.write() as connection:
            if known := self._by_key(connection, new):
                return known, False
            self._expect_room(connection)
            row = connection.execute(
                jobs.insert()
                .values(
                    id=new.id,
                    owner=new.owner,
                    state="queued",
                    stage="waiting",
                    lane=new.lane,
                    need=new.need,
                    priority=new.priority,
                    options=dict(new.options),
                    filename=new.filename,
                    search=new.filename.casefold(),
                    file=new.file,
                    size=new.size,
                    digest=new.digest,
                    url=new.url,
                    sync=new.sync,
                    created_at=self._db.now,
                    run_at=self._db.now,
                    retention=new.retention,
                    audio_seconds=guess_seconds(new.filename, new.size) if new.size else None,
                    webhook_url=new.webhook_url,
                    webhook_secret=new.webhook_secret,
                    request_id=new.request_id,
                    fingerprint=new.fingerprint,
                )
                .returning(jobs)
            )
            job = job_from(row.mappings().one())
            if new.idempotency_key is not None:
                connection.execute(
                    idempotency.insert().values(
                        owner=new.owner,
                        key=new.idempotency_key,
                        fingerprint=new.fingerprint or "",
                        job_id=new.id,
                        created_at=self._db.now,
                    )
                )
        return job, True

    def get(self, job_id: str, owner: str | None = None) -> Job:
        """The job as it is now; raises `TaskUnknownError`."""
        with self._db.read() as connection:
            row = connection.execute(sa.select(jobs).where(*_whose(job_id, owner))).mappings().first()
        if row is None:
            raise _unknown(job_id)
        return job_from(row)

    def transcript(self, job_id: str) -> dict[str, Any]:
        """The result of a job that is done, in the JSON of the wire; raises `TaskUnknownError`."""
        with self._db.read() as connection:
            found = connection.scalar(sa.select(transcripts.c.transcript).where(transcripts.c.job_id == job_id))
        if found is None:
            raise _unknown(job_id)
        return dict(found)

    def chunks(self, job_id: str, after: int = -1) -> list[tuple[int, int, dict[str, Any]]]:
        """The chunks read so far, from the one after `after` on: their attempt, index and result (`chunk_to`)."""
        query = (
            sa.select(chunks.c.attempt, chunks.c.index, chunks.c.result)
            .where(chunks.c.job_id == job_id, chunks.c.index > after)
            .order_by(chunks.c.index)
        )
        with self._db.read() as connection:
            return [(attempt, index, result) for attempt, index, result in connection.execute(query)]

    def page(
        self,
        owner: str | None = None,
        *,
        states: Sequence[State] = (),
        text: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Jobs, newest first. `text` is looked for in names and transcripts, in any case of letters.

        Raises `OptionInvalidError` for a cursor that no page gave.
        """
        query = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if text := (text or "").replace("\0", ""):
            said = sa.select(transcripts.c.job_id).where(transcripts.c.text.contains(text.casefold(), autoescape=True))
            query = query.where(sa.or_(jobs.c.search.contains(text.casefold(), autoescape=True), jobs.c.id.in_(said)))
        if cursor:
            created, last = _read_cursor(cursor)
            query = query.where(sa.tuple_(jobs.c.created_at, jobs.c.id) < sa.tuple_(created, last))
        with self._db.read() as connection:
            found = [job_from(row) for row in connection.execute(query).mappings()]
        more = len(found) > limit
        return Page(tuple(found[:limit]), _write_cursor(found[limit - 1]) if more else None)

    def cancel(self, job_id: str, owner: str | None = None, *, stage: str = "cancelled") -> Job:
        """Cancel a job that waits or is worked on; its chunks are kept. One that is cancelled already stays so.

        It is at rest at once: the worker's next word is refused, and it stops. Raises `TaskUnknownError`, and
        `TaskStateError` for one that is done or in error.
        """
        with self._db.write() as connection:
            update = jobs.update().where(*_whose(job_id, owner), jobs.c.state.in_(("queued", "processing")))
            values = at_rest(self._db, "cancelled", self._retention) | {"stage": stage}
            row = connection.execute(update.values(**values).returning(jobs)).mappings().first()
            if row is not None:
                promise(connection, row["finished_at"], row, "cancelled")
                return job_from(row)
        job = self.get(job_id, owner)
        if job.state != "cancelled":
            raise TaskStateError(
                f"The task {job_id} is {job.state} already and cannot be cancelled.", "Delete it to remove its files."
            )
        return job

    def retry(self, job_id: str, owner: str | None = None) -> Job:
        """Queue a job in `error` or `cancelled` again; it goes on after the last chunk that was read.

        Raises `TaskUnknownError`, and `TaskStateError` for one in another state.
        """
        with self._db.write() as connection:
            update = jobs.update().where(*_whose(job_id, owner), jobs.c.state.in_(("error", "cancelled")))
            values = {
                "state": "queued",
                "stage": "waiting",
                "run_at": self._db.now,
                "dispatched_at": None,
                "failures": 0,
                "error": None,
                "finished_at": None,
                "expires_at": None,
            }
            row = connection.execute(update.values(**values).returning(jobs)).mappings().first()
        if row is not None:
            return job_from(row)
        job = self.get(job_id, owner)
        raise TaskStateError(
            f"The task {job_id} is {job.state} and cannot be retried.",
            "It has its result already." if job.state == "done" else "Wait for it, or cancel it first.",
        )

    def remove(self, job_id: str, owner: str | None = None) -> Job:
        """Forget a job, whatever its state; returns what it was. Its file is the caller's to remove.

        Raises `TaskUnknownError`.
        """
        with self._db.write() as connection:
            row = connection.execute(jobs.delete().where(*_whose(job_id, owner)).returning(jobs)).mappings().first()
        if row is None:
            raise _unknown(job_id)
        return job_from(row)

    def remove_expired(self, job_id: str) -> bool:
        """Forget a job whose time is over; False where it was retried meanwhile, or another process was faster."""
        gone = jobs.delete().where(jobs.c.id == job_id, jobs.c.state.in_(FINAL), jobs.c.expires_at < self._db.now)
        with self._db.write() as connection:
            return connection.execute(gone).rowcount == 1

    def same_request(self, owner: str, fingerprint: str) -> Job | None:
        """A job for the same bytes and options that a client waits for, or whose client hung up; the latest."""
        query = (
            sa.select(jobs)
            .where(
                jobs.c.fingerprint == fingerprint,
                jobs.c.owner == owner,
                jobs.c.sync,
                sa.or_(jobs.c.state.in_(("queued", "processing")), jobs.c.stage == UNATTENDED),
            )
            .order_by(jobs.c.created_at.desc())
            .limit(1)
        )
        with self._db.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else job_from(row)

    def signs(self, ids: Iterable[str]) -> dict[str, Signs]:
        """What can be seen of each job, in one cheap question; those that are gone are left out."""
        counted = (
            sa.select(sa.func.count())
            .where(chunks.c.job_id == jobs.c.id)
            .correlate(jobs)
            .scalar_subquery()
            .label("chunks")
        )
        columns = (jobs.c.id, jobs.c.state, jobs.c.attempt, jobs.c.progress, jobs.c.stage, counted)
        with self._db.read() as connection:
            rows = connection.execute(sa.select(*columns).where(jobs.c.id.in_(list(ids)))).all()
        return {row.id: Signs(row.state, row.attempt, row.progress, row.stage, row.chunks) for row in rows}

    def outlook(self, job: Job, slots: Callable[[Lane], int] | None = None) -> Outlook:
        """Place in the queue and time to the end; `slots` tells how many jobs of a lane run at once.

        Without it, where workers of other machines read, these are as many as run now.
        """
        if job.at_rest:
            return Outlook(0, 0.0)
        speed = self.speed()
        own = (job.audio_seconds or 60.0) * (1 - job.progress) * speed
        if job.state == "processing":
            return Outlook(0, own)
        left = (sa.func.coalesce(jobs.c.audio_seconds, 60.0) * (1 - jobs.c.progress)).label("left")
        sooner = sa.tuple_(jobs.c.priority, jobs.c.run_at, jobs.c.id) < sa.tuple_(job.priority, job.run_at, job.id)
        same = jobs.c.lane == job.lane, jobs.c.need == job.need
        order = (jobs.c.priority, jobs.c.run_at, jobs.c.id)  # that of the index, else PostgreSQL reads the whole table
        ahead = sa.select(left).where(jobs.c.state == "queued", jobs.c.suspect == job.suspect, *same, sooner)
        before = ahead.order_by(*order).limit(COUNTED_AHEAD).subquery()
        under_way = jobs.c.state == "processing", *same
        query = sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(before.c.left), 0.0),
            sa.func.coalesce(sa.select(sa.func.sum(left)).where(*under_way).scalar_subquery(), 0.0),
            sa.select(sa.func.count()).where(*under_way).scalar_subquery(),
        ).select_from(before)
        with self._db.read() as connection:
            position, audio, begun, running = connection.execute(query).one()
        at_once = slots(job.lane) if slots is not None else running
        return Outlook(int(position), (audio + begun) * speed / max(at_once, 1) + own)

    def speed(self) -> float:
        """Seconds of work for a second of sound, as the latest jobs have shown."""
        speed, at = self._speed
        if time.monotonic() - at > SPEED_SECONDS:
            speed = self._reckoned_speed()
            self._speed = speed, time.monotonic()
        return speed

    def _reckoned_speed(self) -> float:
        latest = (
            sa.select(jobs.c.started_at, jobs.c.finished_at, jobs.c.audio_seconds)
            .where(jobs.c.state == "done", jobs.c.failures == 0, jobs.c.audio_seconds > 0)
            .order_by(jobs.c.finished_at.desc())
            .limit(SPEED_JOBS)
            .subquery()
        )
        query = sa.select(sa.func.sum(latest.c.finished_at - latest.c.started_at) / sa.func.sum(latest.c.audio_seconds))
        with self._db.read() as connection:
            return connection.scalar(query) or DEFAULT_SPEED

    def counts(self) -> dict[tuple[State, Lane], int]:
        """How many jobs there are of each state and lane."""
        query = sa.select(jobs.c.state, jobs.c.lane, sa.func.count()).group_by(jobs.c.state, jobs.c.lane)
        with self._db.read() as connection:
            return {(state, lane): count for state, lane, count in connection.execute(query)}

    def files(self) -> set[str]:
        """The names of all files that jobs hold."""
        with self._db.read() as connection:
            return set(connection.scalars(sa.select(jobs.c.file).where(jobs.c.file.is_not(None))))

    def expired(self, limit: int = 100) -> list[Job]:
        """Jobs at rest whose time is over."""
        query = sa.select(jobs).where(jobs.c.expires_at < self._db.now, jobs.c.state.in_(FINAL)).limit(limit)
        with self._db.read() as connection:
            return [job_from(row) for row in connection.execute(query).mappings()]

    def forget_keys(self, seconds: float = 86_400.0) -> int:
        """Forget idempotency keys older than so many seconds; returns how many."""
        old = idempotency.delete().where(idempotency.c.created_at < self._db.now - seconds)
        with self._db.write() as connection:
            return connection.execute(old).rowcount

    def forget_requests(self, seconds: float = 600.0) -> int:
        """Forget who asked what longer ago than so many seconds, which is long over for any limit; returns how many."""
        old = requests.delete().where(requests.c.at < self._db.now - seconds)
        with self._db.write() as connection:
            return connection.execute(old).rowcount

    def _by_key(self, connection: Connection, new: NewJob) -> Job | None:
        if new.idempotency_key is None:
            return None
        used = connection.execute(
            sa.select(idempotency).where(idempotency.c.owner == new.owner, idempotency.c.key == new.idempotency_key)
        ).first()
        if used is None:
            return None
        row = connection.execute(sa.select(jobs).where(jobs.c.id == used.job_id)).mappings().first()
        if row is None:  # removed meanwhile: the key is free again
            connection.execute(
                idempotency.delete().where(idempotency.c.owner == new.owner, idempotency.c.key == new.idempotency_key)
            )
            return None
        if used.fingerprint != (new.fingerprint or ""):
            raise IdempotencyError(
                f"The Idempotency-Key {new.idempotency_key!r} was used for another file or other options.",
                "Take a new key for a new request.",
            )
        return job_from(row)

    def _expect_room(self, connection: Connection) -> None:
        """Raises `QueueFullError`. To count a long queue takes long: it is counted again after a second or more, see
        `COUNT_SHARE`, or sooner where this process alone could have filled a hundredth of it.
        """
        if not self._max_queued:
            return
        began = time.monotonic()
        if began >= self._count_at or self._queued >= self._max_queued or self._added >= self._max_queued // 100:
            query = sa.select(sa.func.count()).where(jobs.c.state == "queued")
            self._queued, self._added = int(connection.scalar(query) or 0), 0
            took = time.monotonic() - began
            self._count_at = began + took + max(COUNT_SECONDS, took / COUNT_SHARE)
        if self._queued + self._added >= self._max_queued:
            raise QueueFullError(
                f"{self._max_queued} tasks wait already, and no more are taken now.", "Send it again later."
            )
        self._added += 1


def _whose(job_id: str, owner: str | None) -> list[sa.ColumnElement[bool]]:
    job_id = job_id.replace("\0", "")  # PostgreSQL takes none in a text; such a task is unknown all the same
    return [jobs.c.id == job_id] if owner is None else [jobs.c.id == job_id, jobs.c.owner == owner]


def _unknown(job_id: str) -> TaskUnknownError:
    return TaskUnknownError(
        f"There is no task {job_id[:64]!r}.", "Check the id; a task is removed with its files after its retention time."
    )


def _write_cursor(job: Job) -> str:
    return base64.urlsafe_b64encode(f"{job.created_at!r} {job.id}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode("ascii")
        created, _, last = text.partition(" ")
        if not math.isfinite(float(created)) or not last or "\0" in last:
            raise ValueError
        return float(created), last
    except (binascii.Error, UnicodeError, ValueError):
        raise OptionInvalidError("The cursor is none that a list gave.", "Take `next` of the page before.") from None
