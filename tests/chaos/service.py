"""`stenograf serve` as a program of its own, with its database and files on this machine."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

import httpx2
import psutil

from chaos.program import Entry as Entry
from chaos.program import Program
from servers import free_port
from stenograf.jobs.folder import LocalFiles

MODELS = Path(__file__).parent.parent / "models"

READS: dict[str, object] = {"models_dir": MODELS, "default_model": "whisper-test", "offline": True, "threads": 1}
"""Settings: what the recordings are read with."""


class Service(Program):
    """The service, its processes, its log and its database."""

    def __init__(self, folder: Path, **settings: object) -> None:
        """Data and log go to `folder`; `settings` by their names in `stenograf.settings`."""
        self.database = folder / "data" / "stenograf.db"
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, "-m", "stenograf", "serve", "--port", str(port)]
        super().__init__("service", folder, command, folder / "data", READS | settings)

    def __enter__(self) -> Self:
        self.start()
        self.wait_until_ready()
        return self

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Wait until it answers."""
        until_answered(self, self.url, seconds)

    def workers(self) -> list[psutil.Process]:
        """The workers among its processes."""
        return [process for process in self.processes() if _is_worker(process)]

    @property
    def files(self) -> LocalFiles:
        """Where its recordings are."""
        return LocalFiles(self.folder / "data" / "files")

    def stored(self) -> dict[str, str]:
        """The files that are kept: each one's name and SHA-256."""
        return digests(self.files.folder)

    def ask(self, query: str, *values: object, seconds: float = 30.0) -> list[sqlite3.Row]:
        """Ask the database; a process that is frozen may hold its lock for some seconds.

        The connection is closed again, else a start after a crash would find the journal in use and not mend it.
        """
        with closing(sqlite3.connect(self.database, timeout=seconds)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query, values).fetchall()

    def done(self, *, seconds: float = 30.0) -> int:
        """How many jobs are done."""
        return int(self.ask("SELECT count(*) AS n FROM jobs WHERE state = 'done'", seconds=seconds)[0]["n"])

    def hurry(self, *, seconds: float = 30.0) -> None:
        """Shorten what the service waits for, and change nothing else.

        A job that has failed rests for another second and not for up to a minute; a webhook whose sender was killed
        can be sent by another now and not when its lease of a minute is over.
        """
        with closing(sqlite3.connect(self.database, timeout=seconds)) as connection, connection:
            soon = time.time() + 1.0
            connection.execute("UPDATE jobs SET run_at = ? WHERE state = 'queued' AND run_at > ?", (soon, soon))
            connection.execute("UPDATE webhooks SET next_at = ? WHERE state = 'pending' AND next_at > ?", (soon, soon))
            connection.execute("UPDATE webhooks SET lease_until = NULL WHERE lease_until < ?", (soon + 50.0,))

    def check_database(self) -> None:
        """The file is whole."""
        assert [tuple(row) for row in self.ask("PRAGMA integrity_check")] == [("ok",)]
        assert self.ask("PRAGMA foreign_key_check") == []

    def chunks(self, task: str) -> list[tuple[int, int, str]]:
        """What is kept of a task: the index of each chunk, the attempt that read it, and what it read, in order."""
        query = 'SELECT "index", attempt, result FROM chunks WHERE job_id = ? ORDER BY "index"'
        return [tuple(row) for row in self.ask(query, task)]

    def at_work(self, task: str) -> tuple[psutil.Process, int]:
        """The worker that has a task in its hands, and the number of its attempt."""
        return holder(self.ask("SELECT lease_owner, attempt FROM jobs WHERE id = ? AND state = 'processing'", task)[0])


def holder(row: Any) -> tuple[psutil.Process, int]:
    """The worker that a row names, and the number of its attempt."""
    return psutil.Process(int(row["lease_owner"].rpartition("-")[2])), row["attempt"]


def digests(folder: Path) -> dict[str, str]:
    """The recordings below a folder: each one's name and SHA-256. What begins with a dot is none."""
    found = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def until_answered(program: Program, url: str, seconds: float = 60.0) -> None:
    """Wait until a service answers."""
    deadline = time.monotonic() + seconds
    with httpx2.Client(trust_env=False, timeout=2.0) as client:
        while True:
            with suppress(httpx2.TransportError):
                if client.get(f"{url}/api/v1/tasks?limit=1").status_code == 200:
                    return
            assert time.monotonic() < deadline, f"{program.name} does not answer:\n{program.log_end()}"
            time.sleep(0.05)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "--multiprocessing-fork" in process.cmdline()
    except psutil.Error:
        return False
