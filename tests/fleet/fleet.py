"""A fleet on this machine: private servers, replicas of `stenograf serve`, and nodes of Celery workers.

Each program has a session and a data folder of its own, as if it were on another machine, and is started again whenever
it dies.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
from psycopg.rows import dict_row

from chaos.program import STOP_SECONDS, Entry, Program
from chaos.service import READS, digests, holder, until_answered
from servers import S3, Postgres, RabbitMQ, Redis, free_port
from stenograf.jobs.bucket import BucketFiles
from stenograf.jobs.files import FileStore, files_for
from stenograf.settings import Settings

START_SECONDS = 90.0
"""How long all programs may take to be ready on a busy machine."""

QUIET = ("--loglevel", "info", "--without-gossip", "--without-mingle")
"""What else `docs/jobs.md` gives Celery."""

NOW = "extract(epoch FROM clock_timestamp())::double precision"
"""The database's clock."""


class Fleet:
    """The servers, the programs, their logs and the database; for one `with`.

    `api` and `workers` are the programs; one can be taken hold of for a test, as `fleet.api[0].kill()`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker: type[Redis] | type[RabbitMQ] = Redis,
        storage: type[S3] | None = None,
        postgres: Callable[[], Postgres] = Postgres,
        replicas: int = 2,
        nodes: int = 2,
        serve: tuple[str, ...] = ("-m", "stenograf"),
        environments: Mapping[str, Mapping[str, str]] | None = None,
        **settings: object,
    ) -> None:
        """Data and logs go to `folder`; without `storage` the recordings are in a folder that all share.

        `serve` is the program of the replicas, before its command `serve`. `environments` are variables for some
        programs, by their names (`api-1`, `node-2`). `settings` by their names in `stenograf.settings`; `workers` are
        the processes of a node.
        """
        self.folder = folder
        self.postgres = postgres()
        self.broker = broker()
        self.s3 = storage() if storage else None
        self._replicas, self._nodes = replicas, nodes
        self._serve = serve
        self._environments = environments or {}
        self._asked = {"auth": False, "workers": 1, "private_networks": "127.0.0.0/8"} | settings
        self._open = ExitStack()
        self.api: list[Program] = []
        self.workers: list[Program] = []
        self.urls: list[str] = []
        """Of the replicas."""

    def __enter__(self) -> Self:
        try:
            for server in (self.postgres, self.broker, self.s3):
                if server is not None:
                    self._open.enter_context(server)
            self._start()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def programs(self) -> list[Program]:
        """All of ours, the servers not among them."""
        return [*self.api, *self.workers]

    @property
    def settings(self) -> dict[str, object]:
        """What all programs are told, by the names of `stenograf.settings`."""
        own: dict[str, object] = {"database_url": self.postgres.url, "broker_url": self.broker.url}
        place: Mapping[str, object] = self.s3.settings if self.s3 else {"upload_dir": self.folder / "files"}
        return {**READS, **own, **place, **self._asked}

    @property
    def cli(self) -> dict[str, str]:
        """The environment of another program of this fleet, such as `stenograf keys create`."""
        told = {f"STENOGRAF_{name.upper()}": str(value) for name, value in self.settings.items()}
        return {**os.environ, **told, "STENOGRAF_DATA_DIR": str(self._data("cli"))}

    @property
    def secrets(self) -> list[str]:
        """What no log may tell."""
        found = [self.postgres.password, self.broker.password, *([self.s3.secret_key] if self.s3 else [])]
        escaped = [server.url.split("://")[1].split("@")[0].split(":")[1] for server in (self.postgres, self.broker)]
        return [*found, *escaped, *[str(self._asked[n]) for n in ("webhook_secret", "jwt_secret") if n in self._asked]]

    def replica(self, name: str, port: int) -> Program:
        """A replica of the API; to be started by the caller, who also ends it."""
        command = [sys.executable, *self._serve, "serve", "--port", str(port)]
        return self._program(name, command)

    def node(self, name: str, *, by_celery: bool) -> Program:
        """A node of workers: by Celery's own command, or by ours; to be started by the caller, who also ends it."""
        celery = ["-m", "celery", "-A", "stenograf.celery_app", "worker", "-n", f"{name}@fleet", *QUIET]
        ours = ["-m", "stenograf", "worker"]
        return self._program(name, [sys.executable, *(celery if by_celery else ours)])

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until all replicas answer and all nodes listen."""
        for program, url in zip(self.api, self.urls, strict=True):
            until_answered(program, url, seconds)
        for program in self.workers:
            program.until(lambda listens=program: _listens(listens), seconds, f"{program.name} listens")  # type: ignore[misc]

    def stop(self) -> dict[str, int]:
        """SIGTERM to all programs, as an operator ends them; their exit statuses."""
        for program in self.programs:
            program.terminate()
        return {program.name: program.wait(STOP_SECONDS) for program in self.programs}

    def processes(self) -> list[psutil.Process]:
        """All that live of our programs, of every start."""
        return [process for program in self.programs for process in program.processes()]

    def parents(self) -> list[psutil.Process]:
        """Celery's parent processes that live, one a node."""
        leaders = {program.pid for program in self.workers}
        return [process for program in self.workers for process in program.processes() if process.pid in leaders]

    def children(self) -> list[psutil.Process]:
        """The processes of Celery's pools: they read the recordings."""
        return [process for program in self.workers for process in program.children()]

    def ask(self, query: str, *values: object, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Ask the database, or tell it something; `?` stands for each of the values."""
        if values:
            query = query.replace("%", "%%").replace("?", "%s")
        with self._connected(seconds) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def done(self, *, seconds: float = 10.0) -> int:
        """How many jobs are done."""
        return int(self.ask("SELECT count(*) AS n FROM jobs WHERE state = 'done'", seconds=seconds)[0]["n"])

    def hurry(self, *, seconds: float = 10.0) -> None:
        """Shorten what the fleet waits for, and change nothing else; see `Service.hurry`."""
        soon = f"{NOW} + 1.0"
        for statement in (
            f"UPDATE jobs SET run_at = {soon} WHERE state = 'queued' AND run_at > {soon}",
            f"UPDATE webhooks SET next_at = {soon} WHERE state = 'pending' AND next_at > {soon}",
            f"UPDATE webhooks SET lease_until = NULL WHERE lease_until < {soon} + 50.0",
        ):
            self.ask(statement, seconds=seconds)

    def chunks(self, task: str) -> list[tuple[int, int, Any]]:
        """What is kept of a task: the index of each chunk, the attempt that read it, and what it read, in order."""
        query = 'SELECT "index", attempt, result FROM chunks WHERE job_id = ? ORDER BY "index"'
        return [(row["index"], row["attempt"], row["result"]) for row in self.ask(query, task)]

    def at_work(self, task: str) -> tuple[psutil.Process, int]:
        """The process of a pool that has a task in its hands, and the number of its attempt."""
        return holder(self.ask("SELECT lease_owner, attempt FROM jobs WHERE id = ? AND state = 'processing'", task)[0])

    def check_database(self) -> None:
        """No row is left without the job that it belongs to, and every index tells what its table has."""
        for table in ("chunks", "transcripts", "idempotency", "webhooks"):
            lonely = f"SELECT * FROM {table} WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = {table}.job_id)"
            assert self.ask(lonely) == []
        self.ask("CREATE EXTENSION IF NOT EXISTS amcheck")
        checked = self.ask(
            "SELECT bt_index_check(c.oid, true)::text AS fault FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE a.amname = 'btree' AND n.nspname = 'public'"
        )
        assert len(checked) > 10

    @property
    def starts(self) -> int:
        """How often programs were started."""
        return sum(program.starts for program in self.programs)

    @property
    def files(self) -> FileStore:
        """Where the recordings are, as the product sees it."""
        return files_for(Settings(data_dir=self._data("here"), **self._stored_by()))

    def stored(self) -> dict[str, str]:
        """The files that are kept: each one's name and SHA-256, and `unfinished` for what came in parts."""
        if self.s3 is None:
            return digests(self.folder / "files")
        bucket, files = self.s3.client(), self.files
        assert isinstance(files, BucketFiles)
        import httpx2
        import obstore

        folders = "audio", "uploads"  # beside these lies what a check writes
        found = {entry["path"] for folder in folders for page in obstore.list(bucket, folder) for entry in page}
        kept = {
            path.rpartition("/")[2]: hashlib.sha256(bytes(obstore.get(bucket, path).bytes())).hexdigest()
            for path in found
        }
        with httpx2.Client(trust_env=False) as web:
            unfinished = files._client.unfinished(web, "audio")
        return kept | {f"unfinished {key}": "" for key, *_ in unfinished}

    def entries(self) -> Iterator[Entry]:
        """The lines of all logs, one program after the other."""
        for program in self.programs:
            for entry in program.entries():
                yield {"program": program.name, **entry}

    def log_end(self, lines: int = 12) -> str:
        """The end of each log, for a failure's message."""
        return "\n\n".join(f"{program.name}:\n{program.log_end(lines)}" for program in self.programs)

    def until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `true()` is."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}\n{self.log_end()}"
            time.sleep(0.05)

    def _start(self) -> None:
        ports = [free_port() for _ in range(self._replicas)]
        self.urls += [f"http://127.0.0.1:{port}" for port in ports]
        self.api += [self.replica(f"api-{number}", port) for number, port in enumerate(ports, 1)]
        # Ours takes its name from the machine, of which there is one here: so there is one of it.
        self.workers += [self.node(f"node-{number}", by_celery=number > 1) for number in range(1, self._nodes + 1)]
        for program in self.programs:
            self._open.enter_context(program)
        self.wait_until_ready()

    def _program(self, name: str, command: list[str]) -> Program:
        program = Program(name, self.folder, command, self._data(name), self.settings)
        program.environment["PYTHONPATH"] = str(Path(__file__).parent.parent)  # launchers are there
        program.environment.update(self._environments.get(name, {}))
        return program

    def _data(self, name: str) -> Path:
        return self.folder / name

    def _stored_by(self) -> dict[str, Any]:
        names = ("storage_url", "s3_endpoint", "s3_region", "s3_access_key", "s3_secret_key", "upload_dir")
        return {name: value for name, value in self.settings.items() if name in names}

    def _connected(self, seconds: float) -> psycopg.Connection[dict[str, Any]]:
        # libpq knows whole seconds, and two at least; a server that is frozen must not freeze the test.
        limits = f"-c statement_timeout={max(1, int(seconds * 1000))}"
        return psycopg.connect(
            self.postgres.url,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=max(2, int(seconds)),
            tcp_user_timeout=5000,
            options=limits,
        )


def _listens(program: Program) -> bool:
    return any(entry["message"].endswith(" ready.") for entry in program.entries())
