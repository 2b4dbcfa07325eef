"""What a worker says to the database: claim, renew, append, finish. Every write is fenced.

A worker may write to a job while the row says `processing` under the number of its own attempt. One that was frozen and
wakes after its lease ran out meets another number, and every word of it is refused: `LeaseLostError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from stenograf.errors import LeaseLostError, StenografError, WorkerLostError
from stenograf.jobs.clock import Clock
from stenograf.jobs.database import Database, insert_new
from stenograf.jobs.job import NEEDS, Claim, JobError, Lane, Need, State
from stenograf.jobs.outbox import mend as mend_outbox
from stenograf.jobs.outbox import promise
from stenograf.jobs.rows import chunk_from, chunk_to, job_from
from stenograf.jobs.tables import chunks, jobs, transcripts
from stenograf.transcript import Transcript

if TYPE_CHECKING:
    from stenograf.chunk import ChunkResult

RETRY_SECONDS = (1.0, 10.0, 60.0)
"""How long a job rests after its first failure, its second, and each later one."""

Described = Mapping[str, Any]
"""Columns that a worker learns on the way: `progress`, `stage`, `file`, `size`, `digest`, `filename`,
`search`, `audio_seconds`, `model`, `engine`, `device`, `compute_type`, `language`."""

LONGEST_LEASE = 3600.0
"""Seconds; the most that the setting `lease` may be."""

LONGEST_REST = 15.0
"""Seconds that a job rests at most which has not failed: it was released, as for want of memory."""

CLAIM_TRIES = 5
"""So often a claim looks for another job where others were faster; then it waits for the next hint."""

REAPED_AT_ONCE = 100

_WAITING: Described = {
    "state": "queued",
    "stage": "waiting",
    "lease_owner": None,
    "lease_until": None,
    "dispatched_at": None,
}


class Leases:
    """The jobs as workers see them; to be used by many threads and processes."""

    def __init__(
        self, database: Database, *, seconds: float = 30.0, max_attempts: int = 3, retention: float | None = 86_400.0
    ) -> None:
        """`seconds` is how long a claim holds without a heartbeat; `retention` is for jobs that name none."""
        self.seconds = seconds
        self._db = database
        self._max_attempts = max_attempts
        self._retention = retention
        self._clock: Clock | None = None

    def claim(
        self, worker: str, lanes: Sequence[Lane], *, needs: Sequence[Need] = NEEDS, suspects: bool | None = False
    ) -> Claim | None:
        """The most urgent job of these lanes and needs that may run now, now this worker's; None where there is none.

        With `suspects` it is one over which a worker died, without it is none of these; None takes either, those first.
        """
        for _ in range(CLAIM_TRIES):
            # A look first: no lock is taken where there is nothing to do.
            where = self._best_queue(lanes, needs, suspects)
            if where is None:
                return None
            with self._db.write() as connection:
                row = connection.execute(self._claiming(worker, *where)).mappings().first()
            if row is not None:
                return Claim(job_from(row), row["attempt"])
        return None

    def _best_queue(
        self, lanes: Sequence[Lane], needs: Sequence[Need], suspects: bool | None
    ) -> tuple[Lane, Need, bool] | None:
        """Where the most urgent job is that may run now: its lane, its need, and whether it is a suspect."""
        # The first of each queue, and the best of these: to sort over several would read every job that waits.
        firsts = [
            sa.select(sa.select(jobs.c.lane, jobs.c.need, jobs.c.suspect, jobs.c.priority, jobs.c.run_at, jobs.c.id)
            .where(*self._due(lane, need, suspect)).order_by(*_ORDER).limit(1).subquery())
            for lane in lanes for need in needs
            for suspect in ((True, False) if suspects is None else (suspects,))
        ]  # fmt: skip
        best = sa.union_all(*firsts).order_by(sa.desc("suspect"), "priority", "run_at", "id").limit(1)
        with self._db.read() as connection:
            row = connection.execute(best).first()
        return None if row is None else (row.lane, row.need, row.suspect)

    def _due(self, lane: Lane, need: Need, suspect: bool | None) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            jobs.c.state == "queued",
            jobs.c.suspect.in_((True, False)) if suspect is None else jobs.c.suspect == suspect,  # for the index
            jobs.c.lane == lane,
            jobs.c.need == need,
            jobs.c.run_at <= self._db.now,
        )

    def _claiming(self, worker: str, lane: Lane, need: Need, suspect: bool) -> sa.sql.dml.ReturningUpdate[Any]:
        best = (
            sa.select(jobs.c.id)
            .where(*self._due(lane, need, suspect))
            .order_by(*_ORDER)
            .limit(1)
            .with_for_update(skip_locked=True)  # nothing to SQLite, where one process writes at a time
            .cte("best")
            .prefix_with("MATERIALIZED")  # else a planner may run it once for each row
        )
        return (
            jobs.update()
            .where(jobs.c.id.in_(sa.select(best.c.id)))  # the state again would have SQLite read all that wait
            .values(
                state="processing",
                stage="loading",
                attempt=jobs.c.attempt + 1,
                started_at=self._db.now,
                lease_owner=worker,
                lease_until=self._db.now + self.seconds,
            )
            .returning(jobs)
        )

    def waiting(self, lanes: Sequence[Lane], *, needs: Sequence[Need] = NEEDS, suspects: bool = False) -> bool:
        """Whether a claim would find something."""
        return self._best_queue(lanes, needs, suspects) is not None

    def unhinted(self, lane: Lane, need: Need, *, seconds: float, limit: int) -> int:
        """How many jobs may run now of which no worker was told in the last `seconds`, up to `limit`.

        They count as told from now on: the caller sends the hints.
        """
        told = jobs.c.dispatched_at
        # One that lies ahead was written before the clock was set back.
        stale = sa.or_(told.is_(None), told < self._db.now - seconds, told > self._db.now)
        # In no order: a hint names no job, and whoever follows it claims the most urgent one.
        due = sa.select(jobs.c.id).where(*self._due(lane, need, None), stale).limit(limit)
        with self._db.read() as connection:
            if connection.execute(due.limit(1)).first() is None:
                return 0
        chosen = due.with_for_update(skip_locked=True).cte("due").prefix_with("MATERIALIZED")
        update = jobs.update().where(jobs.c.id.in_(sa.select(chosen.c.id))).values(dispatched_at=self._db.now)
        with self._db.write() as connection:
            return len(connection.execute(update.returning(jobs.c.id)).all())  # SQLite's rowcount knows no WITH

    def still_mine(self, claims: Sequence[Claim]) -> set[str]:
        """The ids of those claims that still hold: the cheap question, asked often, that makes a cancel quick."""
        if not claims:
            return set()
        fences = [sa.and_(jobs.c.id == c.id, jobs.c.attempt == c.attempt, jobs.c.state == "processing") for c in claims]
        with self._db.read() as connection:
            return set(connection.scalars(sa.select(jobs.c.id).where(sa.or_(*fences))))

    def renew(self, claim: Claim, **columns: Any) -> None:
        """The heartbeat; `columns` are what was learnt meanwhile, see `Described`.

        Raises `LeaseLostError` where the lease ran out, or the job was cancelled or removed.
        """
        with self._db.write() as connection:
            self._fenced(
                connection,
                claim,
                jobs.c.lease_until > self._db.now,
                lease_until=self._db.now + self.seconds,
                **columns,
            )

    def fate(self, claim: Claim) -> str:
        """Why a lease is lost, in a word for the log: `cancelled`, `removed`, or `lost` to another attempt."""
        with self._db.read() as connection:
            state = connection.scalar(sa.select(jobs.c.state).where(jobs.c.id == claim.id))
        return "removed" if state is None else "cancelled" if state == "cancelled" else "lost"

    def chunks(self, claim: Claim) -> list[ChunkResult]:
        """The chunks of earlier attempts, from the first on without a hole."""
        with self._db.read() as connection:
            query = sa.select(chunks.c.result).where(chunks.c.job_id == claim.id).order_by(chunks.c.index)
            found = [chunk_from(result) for result in connection.scalars(query)]
        return [chunk for place, chunk in enumerate(found) if chunk.index == place]

    def append(self, claim: Claim, read: Sequence[ChunkResult], **columns: Any) -> None:
        """Keep chunks that were read, and renew the lease; `columns` as for `renew`."""
        with self._db.write() as connection:
            self._fenced(connection, claim, lease_until=self._db.now + self.seconds, **columns)
            self._keep(connection, claim, read)

    def finish(self, claim: Claim, transcript: Transcript, read: Sequence[ChunkResult] = (), **columns: Any) -> None:
        """Done: the last chunks, the result, the state and the webhook's promise, all or nothing."""
        learnt = {**columns, "progress": 1.0, "audio_seconds": transcript.duration, "language": transcript.language}
        with self._db.write() as connection:
            row = self._to_rest(connection, claim, "done", **learnt, error=None)
            self._keep(connection, claim, read)
            connection.execute(
                transcripts.insert().values(
                    job_id=claim.id, transcript=transcript.to_dict(), text=transcript.text.casefold().replace("\0", "")
                )
            )
            promise(connection, row["finished_at"], row, "done")

    def fail(self, claim: Claim, error: StenografError) -> State:
        """The attempt failed: back to the queue with a rest, if it may succeed later, else `error`."""
        with self._db.write() as connection:
            return self._failed(connection, claim, error, again=error.retryable, suspect=False)

    def release(self, claim: Claim, read: Sequence[ChunkResult] = (), *, rest: float = 0.0, **columns: Any) -> None:
        """Back to the queue without blame: the worker is stopping, or the job belongs to another lane (`lane=`).

        It is not claimed again for `rest` seconds.
        """
        if rest:
            columns["run_at"] = self._db.now + rest
        with self._db.write() as connection:
            self._fenced(connection, claim, **{**columns, **_WAITING})
            self._keep(connection, claim, read)

    def abandon(self, worker: str, *, blame: bool = True) -> int:
        """A worker is gone, as its supervisor saw: its leases end now. Returns how many there were.

        Without `blame` its jobs are queued again as if it had released them.
        """
        held = jobs.update().where(jobs.c.state == "processing", jobs.c.lease_owner == worker)
        columns = {"lease_until": self._db.now - 1.0} if blame else _WAITING
        with self._db.write() as connection:
            return connection.execute(held.values(**columns)).rowcount

    def reap(self) -> int:
        """Take jobs whose lease ran out back to the queue, or to `error` after too many. Returns how many."""
        expired = sa.select(jobs).where(jobs.c.state == "processing", jobs.c.lease_until < self._db.now)
        with self._db.read() as connection:
            if connection.execute(expired.limit(1)).first() is None:
                return 0
        some = expired.limit(REAPED_AT_ONCE).with_for_update(skip_locked=True)  # others reap too
        with self._db.write() as connection:
            rows = connection.execute(some).mappings().all()
            for row in rows:
                times = f", {row['failures'] + 1} times" if row["failures"] else ""
                error = WorkerLostError(
                    f"The process that read {row['filename']} died or hung{times}.",
                    "Check the recording on its own, and the memory of the machine; then retry the task.",
                )
                self._failed(connection, Claim(job_from(row), row["attempt"]), error, again=True, suspect=True)
        return len(rows)

    def follow_clock(self) -> float:
        """Notice a jump of the database's clock since the last call, and mend what it did; returns the jump in seconds.

        To be called before each `reap`. The first call mends what a clock that was set back earlier may have done.
        """
        is_first = self._clock is None
        self._clock = self._clock or Clock(self._db)
        jump = self._clock.jump()
        if jump or is_first:
            self.mend(jump)
        return jump

    def mend(self, jump: float) -> int:
        """The database's clock has jumped by so many seconds, back if negative. Returns how many jobs were mended.

        Forward: leases that the jump alone has ended hold again; an outage is like it, for nobody could renew them.
        Back: no job rests and no lease holds for longer than it may. To mend twice changes nothing more.
        """
        now, until = self._db.now, self._db.now + self.seconds
        held = jobs.c.state == "processing"
        if jump > 0:
            by_the_jump = jobs.c.lease_until.between(now - jump - self.seconds, now)
            updates = [jobs.update().where(held, by_the_jump).values(lease_until=until)]
        else:
            # Without a jump nothing is known, and other machines may have longer leases.
            longest_lease = self.seconds if jump else LONGEST_LEASE
            longest = sa.case((jobs.c.failures > 0, RETRY_SECONDS[-1]), else_=LONGEST_REST)
            updates = [
                jobs.update().where(jobs.c.state == "queued", jobs.c.run_at > now + longest).values(run_at=now),
                jobs.update()
                .where(held, jobs.c.lease_until > now + longest_lease)
                .values(lease_until=now + self.seconds),
            ]
        with self._db.write() as connection:
            count = sum(connection.execute(update).rowcount for update in updates)
            mend_outbox(connection, now)
        return count

    def _failed(
        self, connection: Connection, claim: Claim, error: StenografError, *, again: bool, suspect: bool
    ) -> State:
        failures = claim.job.failures
        told = JobError(error.code, error.message, error.hint).to_dict()
        if again and failures + 1 < self._max_attempts:
            self._fenced(
                connection,
                claim,
                run_at=self._db.now + RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)],
                failures=failures + 1,
                suspect=sa.or_(jobs.c.suspect, sa.literal(suspect)),
                error=told,
                **_WAITING,
            )
            return "queued"
        row = self._to_rest(connection, claim, "error", failures=failures + 1, error=told)
        promise(connection, row["finished_at"], row, "error")
        return "error"

    @staticmethod
    def _keep(connection: Connection, claim: Claim, read: Sequence[ChunkResult]) -> None:
        if read:
            rows = [
                {"job_id": claim.id, "index": c.index, "attempt": claim.attempt, "result": chunk_to(c)} for c in read
            ]
            # A commit whose answer was lost is repeated; by the fence nobody else has written meanwhile.
            insert_new(connection, chunks, *rows)

    def _to_rest(self, connection: Connection, claim: Claim, state: State, **columns: Any) -> RowMapping:
        return self._fenced(connection, claim, **{**columns, **at_rest(self._db, state, self._retention)})

    def _fenced(
        self, connection: Connection, claim: Claim, *also: sa.ColumnElement[bool], **columns: Any
    ) -> RowMapping:
        update = (
            jobs.update()
            .where(jobs.c.id == claim.id, jobs.c.attempt == claim.attempt, jobs.c.state == "processing", *also)
            .values(**columns)
            .returning(jobs)
        )
        row = connection.execute(update).mappings().first()
        if row is None:
            raise LeaseLostError(
                f"The task {claim.id} is not this worker's any more.", "It was cancelled, removed, or taken over."
            )
        return row


_ORDER = (jobs.c.priority, jobs.c.run_at, jobs.c.id)


def at_rest(database: Database, state: State, retention: float | None) -> dict[str, Any]:
    """The columns of a job that comes to rest; `retention` is for jobs that name none, None or 0 keeps for ever."""
    kept = sa.func.coalesce(jobs.c.retention, retention or 0.0)
    return {
        "state": state,
        "stage": state,
        "finished_at": database.now,
        "expires_at": sa.case((kept > 0, database.now + kept), else_=sa.null()),
        "lease_owner": None,
        "lease_until": None,
    }
