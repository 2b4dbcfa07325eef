"""Whether the recordings and the database belong together, where each can be reached without the other.

One variable that is missing, and a program has the bucket of a fleet and an empty database of its own: to it, nobody
names any of the recordings. Or a worker has the database, and in the place of the shared folder an empty one: every
recording seems to be gone. So the files carry a mark of their database.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from stenograf.jobs.database import Database, insert_new
from stenograf.jobs.files import MARK, FileStore
from stenograf.jobs.tables import secrets

NAME = "files"
"""Of the mark among the `secrets`."""


class Belonging:
    """The mark of a database, held against that of the files; to be used by many threads."""

    def __init__(self, database: Database, files: FileStore) -> None:
        self._db = database
        self._files = files
        self._mark: str | None = None

    def holds(self, *, claim: bool = False) -> bool:
        """Whether they belong together. With `claim`, the files become a new database's, if they are nobody's yet.

        Only the first of several replicas can claim: another one's folder is then found to be another. Raises
        `DatabaseError`, and what the store of files raises where it cannot be reached.
        """
        self._mark = self._mark or self._read()
        if self._mark is None and claim:
            self._begin()
            self._mark = self._read()
        return self._mark is not None and self._files.belongs_to(self._mark)

    @property
    def hint(self) -> str:
        """What to do where they do not."""
        return (
            "All machines must have the same STENOGRAF_STORAGE_URL, or share the folder STENOGRAF_UPLOAD_DIR, and each "
            f"installation needs its own. If this one is right, write {self._mark or 'its mark'} into its file {MARK}."
        )

    def _read(self) -> str | None:
        with self._db.read() as connection:
            return connection.scalar(sa.select(secrets.c.value).where(secrets.c.name == NAME))

    def _begin(self) -> None:
        mark = uuid.uuid4().hex
        with self._db.write() as connection:  # held until the files have the mark: else the row is not written
            if insert_new(connection, secrets, {"name": NAME, "value": mark, "created_at": self._db.now}):
                self._files.belongs_to(mark, claim=True)
