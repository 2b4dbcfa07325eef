"""`stenograf serve` as a program of its own, started again whenever it dies, as systemd or Docker would do."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import psutil

MODELS = Path(__file__).parent.parent / "models"
STOP_SECONDS = 45.0
"""Longer than the service takes at most: 10 s for open requests, 30 s for running chunks."""

Entry = dict[str, Any]
"""A line of the log."""


class Service:
    """The service, its processes, its log and its database."""

    def __init__(self, folder: Path, **settings: object) -> None:
        """Data and log go to `folder`; `settings` by their names in `stenograf.settings`."""
        self.folder = folder
        self.database = folder / "data" / "stenograf.db"
        self.starts = 0
        """How often the program was started."""
        self._log = folder / "service.log"
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        values = {
            "data_dir": folder / "data",
            "models_dir": MODELS,
            "default_model": "whisper-test",
            "offline": True,
            "log_format": "json",
            **settings,
        }
        self._environment = {**os.environ, **{f"STENOGRAF_{k.upper()}": str(v) for k, v in values.items()}}
        self._sessions: set[int] = set()
        """Every start leads a session of its own: that is how its processes are found once it is dead."""
        self._ending = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        self._start()
        self._keeper.start()
        self.wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ending = True
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._keeper.join(STOP_SECONDS)

    @property
    def pid(self) -> int:
        """Of the API's process."""
        assert self._process is not None
        return self._process.pid

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + seconds
        with httpx2.Client(trust_env=False, timeout=2.0) as client:
            while True:
                with suppress(httpx2.TransportError):
                    if client.get(f"{self.url}/api/v1/tasks?limit=1").status_code == 200:
                        return
                assert time.monotonic() < deadline, f"the service does not answer:\n{self.log_end()}"
                time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM, as an operator ends it; returns the exit status."""
        with self._lock:
            self._ending = True
            assert self._process is not None
            self._process.terminate()
        return self._process.wait(STOP_SECONDS)

    def restart(self) -> None:
        """SIGTERM, as an update does it; it is started again when it has ended."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the API's process alone."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_all(self) -> int:
        """SIGKILL to the API and its workers at once, as a power cut does it; returns to how many."""
        killed = 0
        for process in sorted(self.processes(), key=lambda process: process.pid != self.pid):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
        return killed

    def processes(self) -> list[psutil.Process]:
        """All that live, of every start."""
        return [process for pid in psutil.pids() if (process := self._own(pid)) is not None]

    def workers(self) -> list[psutil.Process]:
        """The workers among them."""
        return [process for process in self.processes() if _is_worker(process)]

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

    def entries(self) -> Iterator[Entry]:
        """The lines of the log, in order; lines that are no JSON come together as one ERROR."""
        stray: list[str] = []
        for line in [*self._log.read_text("utf-8", "replace").splitlines(), "{}"]:
            try:
                entry = json.loads(line)
            except ValueError:
                stray.append(line)
                continue
            if stray:
                yield {"level": "ERROR", "message": "\n".join(stray)}
                stray = []
            if entry:
                yield entry

    def log_end(self, lines: int = 30) -> str:
        """The end of the log, for a failure's message."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])

    def chunks(self, task: str) -> list[tuple[int, int, str]]:
        """What is kept of a task: the index of each chunk, the attempt that read it, and what it read, in order."""
        query = 'SELECT "index", attempt, result FROM chunks WHERE job_id = ? ORDER BY "index"'
        return [tuple(row) for row in self.ask(query, task)]

    def at_work(self, task: str) -> tuple[psutil.Process, int]:
        """The worker that has a task in its hands, and the number of its attempt."""
        row = self.ask("SELECT lease_owner, attempt FROM jobs WHERE id = ? AND state = 'processing'", task)[0]
        return psutil.Process(int(row["lease_owner"].rpartition("-")[2])), row["attempt"]

    def until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `true()` is."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}\n{self.log_end()}"
            time.sleep(0.02)

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stenograf", "serve", "--port", str(self.port)],
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.add(self._process.pid)
        self.starts += 1

    def _keep(self) -> None:
        while True:
            assert self._process is not None
            self._process.wait()
            with self._lock:
                if self._ending:
                    return
                self._start()

    def _own(self, pid: int) -> psutil.Process | None:
        try:
            if os.getsid(pid) not in self._sessions:
                return None
            process = psutil.Process(pid)
            # One that nobody waited for, as in a container whose first process does not care, is gone all the same.
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            # Numbers come back: whoever has that of a dead leader now must not be killed.
            ours = process.environ().get("STENOGRAF_DATA_DIR") == self._environment["STENOGRAF_DATA_DIR"]
            return process if ours else None
        except (ProcessLookupError, PermissionError, psutil.Error):
            return None


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "--multiprocessing-fork" in process.cmdline()
    except psutil.Error:
        return False
