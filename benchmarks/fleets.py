"""Servers and programs for the capacity benchmark, and what they cost while they work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx2
import psutil
import sqlalchemy as sa

from stenograf.jobs.database import Database
from stenograf.jobs.hints import Hints
from stenograf.jobs.lease import Leases
from stenograf.runtime import Runtime
from stenograf.settings import Settings

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
sys.path.insert(0, str(TESTS))

from chaos.program import Program  # noqa: E402
from servers import Postgres, RabbitMQ, Redis, Server, free_port  # noqa: E402

if TYPE_CHECKING:
    from psycopg import Connection

SLEEPING = str(HERE / "sleeping.py")
NOTE = TESTS / "audio" / "ru-01.flac"
WARM_UP = "1 chunks of 0.2 s.flac"
PATIENCE = 120.0
"""Seconds until a benchmark gives up waiting."""

KINDS = ("sqlite", "postgres", "redis", "rabbitmq")
CALLED = {
    "sqlite": "SQLite",
    "postgres": "PostgreSQL, no broker",
    "redis": "PostgreSQL, Redis",
    "rabbitmq": "PostgreSQL, RabbitMQ",
}
"""What a kind of fleet is made of."""


@dataclass(frozen=True)
class Cost:
    """What was used up to a moment; the difference of two is what the time between them cost."""

    transactions: int = 0
    rows_written: int = 0
    wal_bytes: int = 0
    wal_syncs: int = 0
    database_cpu: float = 0.0
    """Seconds."""
    broker_cpu: float = 0.0
    worker_cpu: float = 0.0
    at: float = 0.0

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(Cost)))


class Fleet:
    """A database, a broker or none, and the programs of a fleet on it; for one `with`."""

    def __init__(self, folder: Path, kind: str) -> None:
        """`folder` must be empty; `kind` is one of `KINDS`."""
        self.folder = folder
        self.kind = kind
        self.postgres = Postgres() if kind != "sqlite" else None
        self.broker: Server | None = {"redis": Redis, "rabbitmq": RabbitMQ}[kind]() if kind in KINDS[2:] else None
        self.programs: list[Program] = []
        self._open = ExitStack()
        self._own = 0
        """Transactions of our own, which are no cost of the fleet's."""
        self._psycopg: Connection[Any] | None = None

    def __enter__(self) -> Self:
        try:
            for server in (self.postgres, self.broker):
                if server is not None:
                    self._open.enter_context(server)
            url = self.postgres.url if self.postgres else f"sqlite:///{self.folder / 'stenograf.db'}"
            self.told: dict[str, Any] = {
                "database_url": url,
                "broker_url": self.broker.url if self.broker else None,  # type: ignore[attr-defined]
                "upload_dir": self.folder / "files",
                "models_dir": TESTS / "models",
                "default_model": "whisper-test",
                "offline": True,
                "auth": False,
                "rate_uploads": 0,
                "rate_requests": 0,
                "max_queued": 0,
            }
            # Our own sessions have another name, so that those of the programs can be counted.
            self.database = Database(f"{url}?application_name=benchmark" if self.postgres else url)
            self._open.callback(self.database.close)
            self.database.migrate()
            runtime = Runtime(Settings(data_dir=self.folder, **self.told))
            assert runtime.files_are_ours(claim=True)
            runtime.database.close()
            incoming = runtime.files.create()
            incoming.write(NOTE.read_bytes())
            self._file = incoming.commit()
            if self.postgres:
                import psycopg

                self._psycopg = self._open.enter_context(psycopg.connect(url, autocommit=True))
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @contextmanager
    def program(self, name: str, *words: str, **settings: object) -> Iterator[Program]:
        """`stenograf <words>` with the sleeping engine; killed at the end of the `with`, if it has not ended before."""
        told = {key: value for key, value in (self.told | settings).items() if value is not None}
        made = Program(name, self.folder, [sys.executable, SLEEPING, *words], self.folder / name, told)
        self.programs.append(made)
        try:
            with made:
                yield made
        finally:
            self.programs.remove(made)

    @contextmanager
    def replica(self, name: str = "api", **settings: object) -> Iterator[tuple[Program, str]]:
        """A `stenograf serve` that answers, and its address."""
        url = f"http://127.0.0.1:{(port := free_port())}"
        with self.program(name, "serve", "--port", str(port), **settings) as program:
            program.until(lambda: _answers(url), PATIENCE, f"{name} answers")
            yield program, url

    @contextmanager
    def workers(self, count: int, name: str = "workers") -> Iterator[Program]:
        """A `stenograf worker` with so many processes of one slot each, all of which have done a job."""
        with self.program(name, "worker", workers=count) as program:
            deadline = time.monotonic() + PATIENCE
            seen: set[str] = set()
            with self.hinting() as hint:
                while len(seen) < count:
                    assert time.monotonic() < deadline, f"{len(seen)} of {count} processes work:\n{program.log_end()}"
                    self.fill(2 * count, WARM_UP)
                    hint()
                    self.until_done()
                    own = {f"pid {process.pid}" for process in program.processes()}
                    seen |= own & set(self.ask("SELECT DISTINCT device FROM jobs WHERE state = 'done'"))
            yield program

    @contextmanager
    def hinting(self) -> Iterator[Callable[[], None]]:
        """A function that says that there may be work, as a replica does when it has taken a job in."""
        if self.broker is None:
            yield lambda: None
            return
        hints = Hints(Settings(data_dir=self.folder, **self.told), Leases(self.database))
        hints.start()
        try:
            yield hints.wake
        finally:
            hints.stop()

    def fill(self, count: int, filename: str = "1 chunks of 0 s.flac", *, hold: float = 0.0) -> None:
        """So many jobs at once, nine of ten in the lane `short`; they may run after `hold` seconds."""
        fill(self.database, count, filename, self._file, hold=hold)

    def clear(self) -> None:
        """Remove all jobs."""
        with self.database.write() as connection:
            cascade = "TRUNCATE jobs CASCADE" if self.database.is_shared else "DELETE FROM jobs"
            connection.exec_driver_sql(cascade)

    def ask(self, query: str) -> list[Any]:
        """The first column."""
        if self._psycopg:
            self._own += 1
            return [row[0] for row in self._psycopg.execute(query.encode())]
        with self.database.read() as connection:
            return list(connection.scalars(sa.text(query)))

    def until_done(self, pause: float = 0.1) -> None:
        """Wait until no job waits or is worked on."""
        deadline = time.monotonic() + PATIENCE
        while self.ask("SELECT 1 FROM jobs WHERE state IN ('queued', 'processing') LIMIT 1"):
            assert time.monotonic() < deadline, "\n".join(program.log_end() for program in self.programs)
            time.sleep(pause)
        assert not self.ask("SELECT id FROM jobs WHERE state <> 'done'")

    def connections(self) -> int:
        """How many the programs hold to PostgreSQL."""
        return int(self._postgres("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stenograf'")[0])

    def cost(self) -> Cost:
        """So far. The server learns of a session's transactions when it ends, or within a second while it is busy."""
        transactions, rows, wal, syncs = (
            self._postgres(
                "SELECT xact_commit + xact_rollback, tup_inserted + tup_updated + tup_deleted, "
                "pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, (SELECT wal_sync FROM pg_stat_wal) "
                "FROM pg_stat_database WHERE datname = current_database()"
            )
            if self._psycopg
            else (0, 0, 0, 0)
        )
        programs = [process for program in self.programs for process in program.processes()]
        return Cost(
            transactions - self._own,
            rows,
            wal,
            syncs,
            database_cpu=cpu(*_of(self.postgres)),
            broker_cpu=cpu(*_of(self.broker)),
            worker_cpu=cpu(*programs),
            at=time.monotonic(),
        )

    def _postgres(self, query: str) -> tuple[Any, ...]:
        assert self._psycopg is not None
        self._own += 1
        found = self._psycopg.execute(query.encode()).fetchone()
        assert found is not None
        return tuple(found)


def fill(database: Database, count: int, filename: str, file: str | None = None, *, hold: float = 0.0) -> None:
    """So many jobs at once, nine of ten in the lane `short`."""
    if database.is_shared:
        identity, numbers, no = "gen_random_uuid()::text", f"FROM generate_series(1, {count}) AS s(n)", "false"
        now = f"extract(epoch FROM clock_timestamp()) + {hold}"
    else:
        identity, no = "lower(hex(randomblob(16)))", "0"
        numbers = (
            f"FROM (WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s)"
        )
        now = f"(julianday('now') - 2440587.5) * 86400.0 + {hold}"
    with database.write() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO jobs (id, owner, state, stage, lane, priority, options, filename, search, file, size, "
                f"sync, created_at, run_at) SELECT {identity}, 'ann', 'queued', 'waiting', "
                f"CASE WHEN n % 10 = 0 THEN 'long' ELSE 'short' END, 5, '{{}}', :name, :name, :file, 60000, {no}, "
                f"{now}, {now} + n * 1e-6 {numbers}"
            ),
            {"name": filename, "file": file},
        )


def cpu(*processes: psutil.Process) -> float:
    """Seconds of processor time that they have used, with those of their children that have ended."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def percentile(values: list[float], share: float) -> float:
    """The value below which so much of them lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def _of(server: Server | None) -> list[psutil.Process]:
    if server is None:
        return []
    leaders = [psutil.Process(process.pid) for process in server._processes]
    return [member for leader in leaders for member in (leader, *leader.children(recursive=True))]


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
