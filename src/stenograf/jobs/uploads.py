"""Recordings that come in pieces, over hours and broken connections, until each is whole and becomes a job.

An upload is a row that holds all that its job will be made of, checked already, and a file that grows. The id of the
upload becomes the id of the job: so the job is made once, however often somebody tries, and whatever dies in between.

    row written ──▶ pieces, each synced ──▶ whole ──▶ file in its place ──▶ job written ──▶ `job_id` in the row

At any point a crash leaves a row and a file of which `finish` can make the rest: when the client asks again, or when
`tend` finds it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from stenograf.errors import FileMissingError, StenografError, TaskUnknownError
from stenograf.jobs.database import Database
from stenograf.jobs.files import FileStore
from stenograf.jobs.job import Job, NewJob
from stenograf.jobs.store import JobStore
from stenograf.jobs.tables import uploads

LIFETIME = 86_400.0
"""Seconds after which an upload that is not whole is removed; a piece that comes in its second half begins it anew."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Upload:
    """A row of the table `uploads`. Times are seconds since 1970 by the database's clock."""

    id: str
    """Also the id of the job that it becomes."""
    owner: str
    file: str
    """Its name in the `FileStore`, while it grows and after."""
    size: int
    """Bytes that it will have."""
    metadata: str
    """What the client sent along, as it is to be sent back."""
    options: Mapping[str, Any]
    """The fields of its `NewJob`."""
    job_id: str | None
    """None until there is a job."""
    created_at: float
    expires_at: float


class Uploads:
    """The uploads of a database; to be used by many threads and processes.

    `owner` narrows each question to the uploads of one owner; None asks for everyone's. An upload of another owner is
    as unknown as one that never was, or one whose time is over: `TaskUnknownError`.
    """

    def __init__(self, database: Database, jobs: JobStore, files: FileStore, *, lifetime: float = LIFETIME) -> None:
        self._db = database
        self._jobs = jobs
        self._files = files
        self._lifetime = lifetime

    def create(self, new: NewJob, metadata: str) -> Upload:
        """Begin an upload that becomes this job. Raises `DiskFullError` where it would not fit."""
        self._files.expect_room(new.size)
        insert = uploads.insert().values(
            id=new.id,
            owner=new.owner,
            file=new.id.replace("-", ""),
            size=new.size,
            metadata=metadata,
            options=asdict(new),
            created_at=self._db.now,
            expires_at=self._db.now + self._lifetime,
        )
        with self._db.write() as connection:
            return _upload(connection.execute(insert.returning(uploads)).mappings().one())

    def get(self, upload_id: str, owner: str | None = None) -> Upload:
        """The upload; raises `TaskUnknownError`."""
        alive = sa.or_(uploads.c.job_id.is_not(None), uploads.c.expires_at > self._db.now)
        query = sa.select(uploads).where(uploads.c.id == upload_id.replace("\0", ""), alive)
        if owner is not None:
            query = query.where(uploads.c.owner == owner)
        with self._db.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise _unknown(upload_id)
        return _upload(row)

    def offset(self, upload: Upload) -> int:
        """How many bytes of it are here."""
        return upload.size if upload.job_id else self._files.received(upload.file)

    def extend(self, upload: Upload) -> Upload:
        """A piece has come: let it live longer, if it is time to write that down."""
        if upload.expires_at - time.time() > self._lifetime / 2:
            return upload
        update = uploads.update().where(uploads.c.id == upload.id).values(expires_at=self._db.now + self._lifetime)
        with self._db.write() as connection:
            row = connection.execute(update.returning(uploads)).mappings().first()
        if row is None:
            raise _unknown(upload.id)
        return _upload(row)

    def finish(self, upload: Upload) -> Upload:
        """All bytes are here: make the job, unless there is one. Once this returns, the job is durable.

        Raises `TaskUnknownError` where the upload was removed meanwhile, and what `JobStore.add` raises; then the file
        stays, and another try may do better.
        """
        if upload.job_id:
            return upload
        try:
            job, is_new = self._jobs.get(upload.id), False
        except TaskUnknownError:
            job, is_new = self._job_of(upload)
        with self._db.write() as connection:
            # The row stays for a while: the client may not have heard yet.
            values = {"job_id": job.id, "expires_at": self._db.now + self._lifetime}
            update = uploads.update().where(uploads.c.id == upload.id).values(**values)
            row = connection.execute(update.returning(uploads)).mappings().first()
        if row is None:
            if is_new:  # it was removed between two of these steps, and with it the file that the job would read
                self._jobs.remove(job.id)
                self._files.remove(upload.file)
            raise _unknown(upload.id)
        return _upload(row)

    def remove(self, upload_id: str, owner: str | None = None) -> None:
        """Forget an upload, with its file unless that is a job's by now. Raises `TaskUnknownError`."""
        upload = self.get(upload_id, owner)
        with self._db.write() as connection:
            connection.execute(uploads.delete().where(uploads.c.id == upload.id))
        self._remove_file(upload)

    def files(self) -> set[str]:
        """The names of all files that uploads hold."""
        with self._db.read() as connection:
            return set(connection.scalars(sa.select(uploads.c.file)))

    def tend(self) -> tuple[int, int]:
        """Finish what is whole, and remove what expired; returns how many of each."""
        finished = removed = 0
        with self._db.read() as connection:
            rows = connection.execute(sa.select(uploads).where(uploads.c.job_id.is_(None))).mappings().all()
        for upload in map(_upload, rows):
            if self._files.received(upload.file) >= upload.size:
                finished += self._tried(upload)  # even one that is expired: its client has done its part
            elif self._delete(uploads.c.id == upload.id, uploads.c.job_id.is_(None)):
                self._remove_file(upload)
                removed += 1
        self._delete(uploads.c.job_id.is_not(None))
        return finished, removed

    def _tried(self, upload: Upload) -> bool:
        try:
            self.finish(upload)
        except TaskUnknownError:  # removed meanwhile
            return False
        except StenografError as error:  # such as a queue that is full: the next time, then
            log.warning("the upload %s is whole, but no task can be made of it now: %s", upload.id, error)
            return False
        return True

    def _delete(self, *which: sa.ColumnElement[bool]) -> int:
        """Delete those of them that expired."""
        with self._db.write() as connection:
            return connection.execute(uploads.delete().where(uploads.c.expires_at < self._db.now, *which)).rowcount

    def _job_of(self, upload: Upload) -> tuple[Job, bool]:
        if not self._files.admit(upload.file):
            raise _unknown(upload.id)
        try:
            new = NewJob(**{**upload.options, "file": upload.file, "digest": self._digest(upload)})
        except FileMissingError:
            raise _unknown(upload.id) from None
        try:
            return self._jobs.add(new)
        except sa.exc.IntegrityError:  # another process was faster
            return self._jobs.get(upload.id), False

    def _digest(self, upload: Upload) -> str:
        """SHA-256 of the whole file; written down, as it takes seconds, and the queue may be full for long."""
        if not upload.options["digest"]:
            read = hashlib.sha256()
            for block in self._files.read(upload.file):
                read.update(block)
            digest = read.hexdigest()
            options = {**upload.options, "digest": digest}
            with self._db.write() as connection:
                connection.execute(uploads.update().where(uploads.c.id == upload.id).values(options=options))
            return digest
        return str(upload.options["digest"])

    def _remove_file(self, upload: Upload) -> None:
        try:
            self._jobs.get(upload.id)
        except TaskUnknownError:
            self._files.remove(upload.file)


_FIELDS = tuple(item.name for item in fields(Upload))


def _upload(row: RowMapping) -> Upload:
    return Upload(**{name: row[name] for name in _FIELDS})


def _unknown(upload_id: str) -> TaskUnknownError:
    return TaskUnknownError(
        f"There is no upload {upload_id[:64]!r}.", "Begin a new one: those that are not gone on with are removed."
    )
