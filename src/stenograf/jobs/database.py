"""The database: how it is opened, read, written, and brought to today's shape.

SQLite serves one machine: WAL, so that readers never wait for a writer; synchronous=FULL, so that a commit survives
a power cut; every write begins with BEGIN IMMEDIATE, so that it never fails in its middle for want of the lock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from stenograf.errors import DatabaseError

BUSY_SECONDS = 30
"""How long a write waits for another process's."""


class Database:
    """A database, by its URL (`sqlite:////path/to/file.db`); to be used by many threads."""

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        self._writing = threading.Lock()
        if self.url.get_backend_name() != "sqlite":
            raise DatabaseError(
                f"Databases of the kind {self.url.get_backend_name()} cannot be used yet.",
                "Leave STENOGRAF_DATABASE_URL out, or write sqlite:////full/path/to/stenograf.db.",
            )
        if not self.url.database:
            raise DatabaseError("The database has no file.", "Write sqlite:////full/path/to/stenograf.db.")
        self._path = Path(self.url.database)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(
                f"The folder of the database, {self._path.parent}, cannot be made: {error.strerror}.",
                "Set STENOGRAF_DATA_DIR to a folder that this user may write.",
            ) from error
        self.engine = _sqlite_engine(self.url)

    @property
    def now(self) -> sa.ColumnElement[float]:
        """Seconds since 1970 by the database's clock, as SQL: the only clock that leases know."""
        # unixepoch('subsec') would need SQLite 3.42.
        return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to read with; never waits for writers."""
        with _errors(self._path), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed at the end, rolled back on an error."""
        # The lock spares this process's threads SQLite's own waiting, which sleeps in growing steps.
        with _errors(self._path), self._writing, self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                with contextlib.suppress(sa.exc.OperationalError):  # a full disk has SQLite roll back by itself
                    connection.exec_driver_sql("ROLLBACK")
                raise

    def migrate(self) -> None:
        """Bring the tables to today's shape; raises `DatabaseError` for a database that a newer version made."""
        from alembic import command
        from alembic.util.exc import CommandError
        from filelock import FileLock, Timeout

        try:
            # Several may start at once.
            with FileLock(f"{self._path}.migrate", timeout=BUSY_SECONDS), self.write() as connection:
                command.upgrade(_alembic(connection), "head")
        except CommandError as error:
            raise DatabaseError(
                f"The database {self._path} was made by a newer version of Stenograf ({error}).",
                "Update Stenograf, or set STENOGRAF_DATA_DIR to another folder.",
            ) from error
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

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _alembic(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "stenograf.jobs:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _sqlite_engine(url: sa.URL) -> Engine:
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=40,  # as many as the API has threads
        max_overflow=20,
        isolation_level="AUTOCOMMIT",
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-4000")  # KiB; there are many connections

    return engine


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.DatabaseError) as error:
        if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError):
            raise
        raise DatabaseError(
            f"The database {path} cannot be used: {error.orig}.",
            "See that its folder may be written, that the disk has space, and that the file is whole.",
        ) from error
