"""SQLite, for one machine: no server, one file.

WAL, so that readers never wait for a writer; synchronous=FULL, so that a commit survives a power cut; every write
begins with BEGIN IMMEDIATE, so that it never fails in its middle for want of the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection

from stenograf.errors import DatabaseError

BUSY_SECONDS = 30
"""How long a write waits for another process's."""


class Sqlite:
    """A `database.Kind`."""

    is_shared = False
    # unixepoch('subsec') would need SQLite 3.42.
    now: sa.ColumnElement[float] = sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)

    def __init__(self, url: sa.URL) -> None:
        """Makes the folder of the file. Raises `DatabaseError`."""
        if not url.database:
            raise DatabaseError("The database has no file.", "Write sqlite:////full/path/to/stenograf.db.")
        self._path = Path(url.database)
        self._writing = threading.Lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(
                f"The folder of the database, {self._path.parent}, cannot be made: {error.strerror}.",
                "Set STENOGRAF_DATA_DIR to a folder that this user may write.",
            ) from error
        self.shown = str(self._path)
        self.engine = sa.create_engine(
            url,
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
            pool_size=40,  # as many as the API has threads
            max_overflow=20,
            isolation_level="AUTOCOMMIT",
        )
        event.listen(self.engine, "connect", _prepare)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """See `database.Kind`."""
        # The lock spares this process's threads SQLite's own waiting, which sleeps in growing steps.
        with self._writing, self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """See `database.Kind`."""
        from filelock import FileLock, Timeout

        lock = FileLock(f"{self._path}.migrate", timeout=BUSY_SECONDS)
        try:
            lock.acquire()
        except Timeout as error:
            raise DatabaseError(
                f"Another process has been bringing the database {self._path} up to date for {BUSY_SECONDS} s.",
                "Wait until it has, or end it, and start again.",
            ) from error
        except OSError as error:
            raise DatabaseError(
                f"The folder {self._path.parent} cannot be written: {error.strerror}.",
                "Set STENOGRAF_DATA_DIR to a folder that this user may write.",
            ) from error
        try:
            with self.writing() as connection:
                yield connection
        finally:
            lock.release()

    def told(self, error: sa.exc.DBAPIError) -> DatabaseError:
        """See `database.Kind`."""
        return DatabaseError(
            f"The database {self._path} cannot be used: {error.orig}.",
            "See that its folder may be written, that the disk has space, and that the file is whole.",
        )


def _prepare(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA cache_size=-4000")  # KiB; there are many connections
