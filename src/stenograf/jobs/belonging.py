"""Whether the recordings and the database belong together, where each can be reached without the other.

One variable that is missing, and a program has the bucket of a fleet and an empty database of its own: to it, nobody
names any of the recordings. Or a worker has the database, and in the place of the shared folder an empty one: every
recording seems to be gone. So the files carry a mark of their database.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from stenograf.jobs.database import Database, insert_new
from stenograf.jobs.files import FileStore
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
        """Whether they belong together. With `claim`, files that are nobody's yet become this database's.

        Raises `DatabaseError`, and what the store of files raises where it cannot be reached.
        """
        self._mark = self._mark or self._made()
        return self._files.belongs_to(self._mark, claim=claim)

    def _made(self) -> str:
        value = sa.select(secrets.c.value).where(secrets.c.name == NAME)
        with self._db.read() as connection:
            found = connection.scalar(value)
        if found is None:
            with self._db.write() as connection:
                insert_new(connection, secrets, {"name": NAME, "value": uuid.uuid4().hex, "created_at": self._db.now})
                found = connection.scalar(value)
        return str(found)
