"""The database: how it is opened, read, written, and brought to today's shape.

Which one it is, the URL tells: SQLite for one machine (`sqlite.py`), PostgreSQL for several (`postgres.py`). What they
differ in is behind `Kind`; the statements of `store.py`, `lease.py` and the others are the same for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from stenograf.errors import DatabaseError, DatabaseNewerError

FORBIDDEN = "42501"
"""SQLSTATE of PostgreSQL: the user lacks a right."""


class Kind(Protocol):
    """What kinds of databases differ in."""

    shown: str
    """Its address for people, without credentials."""
    is_shared: bool
    """Whether processes of several machines can use it."""
    now: sa.ColumnElement[float]
    engine: Engine

    def writing(self) -> AbstractContextManager[Connection]:
        """A connection in a transaction that has begun; whoever takes it ends it."""
        ...

    def migrating(self) -> AbstractContextManager[Connection]:
        """The same, while no other process migrates. Raises `DatabaseError` where one does for long."""
        ...

    def told(self, error: sa.exc.DBAPIError) -> DatabaseError:
        """What a person reads of an error."""
        ...


class Database:
    """A database, by its URL (`sqlite:////path/to/file.db`, `postgresql://...`); to be used by many threads."""

    def __init__(self, url: str) -> None:
        """Connects to nothing yet. Raises `DatabaseError` for a URL that makes no sense."""
        self._kind = _kind(url)
        self.engine = self._kind.engine
        self.url = self.engine.url
        self.shown = self._kind.shown
        """Its address for people, without credentials."""
        self.is_shared = self._kind.is_shared
        """Whether processes of several machines can use it."""

    @property
    def now(self) -> sa.ColumnElement[float]:
        """Seconds since 1970 by the database's clock, as SQL: the only clock that leases know."""
        return self._kind.now

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to read with; never waits for writers. Raises `DatabaseError`."""
        with self._errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed at the end, rolled back on an error. Raises `DatabaseError`."""
        with self._errors(), self._kind.writing() as connection, _transaction(connection):
            yield connection

    def migrate(self) -> None:
        """Bring the tables to today's shape; raises `DatabaseNewerError` for what a newer version made."""
        from alembic import command
        from alembic.util.exc import CommandError

        try:
            # Several may start at once.
            with self._errors(), self._kind.migrating() as connection, _transaction(connection):
                command.upgrade(_alembic(connection), "head")
        except CommandError as error:
            raise DatabaseNewerError(
                f"The database {self.shown} was made by a newer version of Stenograf ({error}).",
                "Update Stenograf, or use another database: STENOGRAF_DATA_DIR or STENOGRAF_DATABASE_URL.",
            ) from error

    def is_new(self) -> bool:
        """Whether it has no tables yet. Raises `DatabaseError`."""
        with self.read() as connection:
            return not sa.inspect(connection).has_table("jobs")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            is_ours = isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError)
            if is_ours and getattr(error.orig, "sqlstate", None) != FORBIDDEN:
                raise
            raise self._kind.told(error) from error
        except sa.exc.TimeoutError as error:
            raise DatabaseError(
                f"All connections to the database {self.shown} are in use.", "Send it again in a moment."
            ) from error


def insert_new(connection: Connection, table: sa.Table, *rows: Mapping[str, Any]) -> int:
    """Insert rows, but those whose key is there already, also where another process inserts it just now.

    Returns how many are new.
    """
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return connection.execute(make(table).values(rows).on_conflict_do_nothing()).rowcount


def _kind(url: str) -> Kind:
    from stenograf.jobs.postgres import Postgres, unreadable
    from stenograf.jobs.sqlite import Sqlite

    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise _unusable("The URL of the database cannot be read.") from None
    match parsed.get_backend_name():
        case "sqlite":
            return Sqlite(parsed)
        case "postgresql" | "postgres":
            if url.count("@") > 1:  # the second may stand in a password, of which a part would be shown as the host
                raise unreadable()
            return Postgres(parsed)
        case other:
            raise _unusable(f"Databases of the kind {other} cannot be used.")


def _unusable(message: str) -> DatabaseError:
    return DatabaseError(
        message,
        "Write STENOGRAF_DATABASE_URL as sqlite:////full/path/to/stenograf.db or postgresql://user:password@host/name "
        "(with %40 for an @ in the password, and so on), or leave it out.",
    )


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        # A full disk has SQLite roll back by itself; a server that is gone has nothing left to roll back.
        with contextlib.suppress(sa.exc.DBAPIError, sa.exc.InvalidRequestError):
            connection.exec_driver_sql("ROLLBACK")
        raise


def _alembic(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "stenograf.jobs:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
