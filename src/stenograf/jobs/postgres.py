"""PostgreSQL, for a service on several machines.

A write is a transaction at READ COMMITTED: each statement of the job system decides by the rows that it locks itself.
Whoever is frozen within one holds its locks; the server ends such a session after `IDLE_SECONDS`, else the jobs behind
these locks could be neither claimed nor cancelled.
"""

from __future__ import annotations

import importlib.util
import re
import selectors
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from stenograf.errors import DatabaseError, DatabaseUnreachableError

CONNECT_SECONDS = 5
"""How long the server may take to take a connection."""

IDLE_SECONDS = 10
"""A session that says nothing for so long in the middle of a transaction is ended by the server: it is frozen."""

LOCK_SECONDS = 20
"""How long a statement waits for a lock: longer than a session that is frozen can hold one."""

MIGRATION_LOCK = 0x5354454E4F475246
"""The advisory lock of whoever migrates: "STENOGRF" as a number."""

MIGRATION_SECONDS = 120
"""How long another process may take to migrate."""

REST_SECONDS = 30.0
"""A connection that rested for so long is tried before it is used: what is between us may have forgotten it."""

POOL, OVERFLOW = 10, 10
"""Connections that a process keeps, and more that it opens when it is busy. A server takes 100 by default."""

_STATES = {
    "53100": "its disk is full",
    "53300": "it has no connection left for us",
    "55P03": "a row stayed locked by another process",
    "57P01": "it is being shut down",
    "57P02": "it has crashed and starts again",
    "57P03": "it is starting or stopping",
    "25P03": "this process was silent for too long in the middle of a write",
    "42501": "this user may not do that",
    "25006": "it takes no writes: it is a replica, or set to read only",
}
"""SQLSTATE -> what it means for whoever runs the service; PostgreSQL 15, appendix A."""


_REFUSAL = re.compile(r"failed: \w+:  (.+)$")
"""What a server says, such as `FATAL:  password authentication failed`; the first word is in the server's language."""

_PASSING = re.compile(r"starting up|shutting down|recovery|accepting|too many|reserved for", re.IGNORECASE)
"""Refusals that pass. Before a login libpq gives no SQLSTATE, so that the words must do."""


class Postgres:
    """A `database.Kind`."""

    is_shared = True
    # Of the statement: within one it stands still, so that an index can be asked for what is earlier.
    now: sa.ColumnElement[float] = sa.literal_column(
        "CAST(extract(epoch FROM statement_timestamp()) AS double precision)", sa.Double
    )

    def __init__(self, url: sa.URL) -> None:
        """Raises `DatabaseError` where the driver is missing, or the URL makes no sense."""
        if importlib.util.find_spec("psycopg") is None:
            raise DatabaseError(
                "PostgreSQL needs its driver, psycopg, which is not installed.",
                "Run: pip install 'stenograf[cluster]'.",
            )
        _check(url)
        where = f"{url.host or 'localhost'}{f':{url.port}' if url.port else ''}"
        self.shown = f"postgresql://{where}/{url.database or ''}"
        self._host = where
        ours: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "stenograf",
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,  # milliseconds until a connection whose peer is gone is given up
        }
        self.engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={name: value for name, value in ours.items() if name not in url.query},
            pool_size=POOL,
            max_overflow=OVERFLOW,
            pool_timeout=10,
            isolation_level="AUTOCOMMIT",
        )
        sa.event.listen(self.engine, "connect", _guard)
        sa.event.listen(self.engine, "checkin", _rest)
        sa.event.listen(self.engine, "checkout", _check_alive)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """See `database.Kind`."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """See `database.Kind`."""
        with self.writing() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{MIGRATION_SECONDS}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            yield connection

    def told(self, error: sa.exc.DBAPIError) -> DatabaseError:
        """See `database.Kind`."""
        state = getattr(error.orig, "sqlstate", None)
        reason = _STATES.get(state or "") or _last_line(error.orig)
        if (refusal := _REFUSAL.search(reason)) and state is None and not _PASSING.search(reason):
            return DatabaseError(
                f"The database {self.shown} takes no connection from us: {refusal[1]}.",
                "Check the user, the password and the name of the database in STENOGRAF_DATABASE_URL; "
                "the server's log may tell more.",
            )
        if isinstance(error, sa.exc.DataError):
            return DatabaseError(
                f"The database {self.shown} cannot keep this: {_last_line(error.orig)}.", "Leave it out."
            )
        if error.connection_invalidated or state in (None, "57P01", "57P02", "57P03"):
            reason = refusal[1] if refusal else reason.rpartition("failed: ")[2]
            return DatabaseUnreachableError(
                f"The database {self.shown} cannot be reached: {reason}.",
                "See that the server runs and takes connections from here, and that STENOGRAF_DATABASE_URL is right.",
            )
        hint = "Look into the server's log."
        if state == "42501":
            reason = f"{reason} ({_primary(error.orig)})"
            hint = (
                "Make the user of STENOGRAF_DATABASE_URL the owner of the database: from PostgreSQL 15 on nobody else "
                "may make tables in its schema public."
            )
        elif state == "53100":
            hint = "The operator must free some space."
        elif state == "53300":
            hint = "Raise max_connections, or run fewer processes: docs/capacity.md."
        return DatabaseError(f"The database {self.shown} cannot be used: {reason}.", hint)


def _guard(connection: Any, _record: Any) -> None:
    # Not as options of the connection: a URL may have its own, and PgBouncer takes none.
    connection.autocommit = True
    connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
    connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")


def _rest(_connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
    record.info["resting since"] = time.monotonic()


def _check_alive(connection: Any, record: sa.pool.ConnectionPoolEntry, _fairy: object) -> None:
    """After a restart of the server nobody is given a dead connection.

    A server that ends says so, or its system closes the connection: either way there is something to read. To ask each
    time, as SQLAlchemy's `pool_pre_ping` does, was half of all that we said to the server.
    """
    since = record.info.pop("resting since", None)
    if since is None:  # it is new
        return
    import psycopg

    try:
        if time.monotonic() - since >= REST_SECONDS or _has_something(connection):
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise sa.exc.InvalidatePoolError(str(error)) from error


def _has_something(connection: Any) -> bool:
    with selectors.DefaultSelector() as selector:  # select() itself takes no number above 1023
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(0))


def _check(url: sa.URL) -> None:
    # A password with an @ or a / in it is read as a part of the address, which is shown.
    address = f"{url.host or ''}{url.database or ''}"
    if "@" in address or "/" in address.lstrip("/") or not url.database:
        raise unreadable()


def unreadable() -> DatabaseError:
    """The error for an address that a password may have cut in two."""
    return DatabaseError(
        "The URL of the database does not read as postgresql://user:password@host:port/name.",
        "In a password write %40 for @, %2F for /, %3A for :, %23 for # and %3F for ?.",
    )


def _primary(error: object) -> str:
    """What the server says in one line, in its own language; it names tables and schemas, and no passwords."""
    return str(getattr(getattr(error, "diag", None), "message_primary", None) or "no reason was given")


def _last_line(error: object) -> str:
    """The end of what the driver says, where the reason stands: it tells addresses and users, and no passwords."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if "failed" in line), lines[-1] if lines else "no reason was given")
    return text.rstrip(".")
