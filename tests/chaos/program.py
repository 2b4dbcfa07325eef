"""A program that is started again whenever it dies, as systemd or Docker would do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

STOP_SECONDS = 45.0
"""Longer than the service takes at most: 10 s for open requests, 30 s for running chunks."""

RESTART_SECONDS = 0.1
"""As systemd has it; a program that dies at once must not take the machine with it."""

Entry = dict[str, Any]
"""A line of the log."""


class Program:
    """The program, its processes and its log."""

    def __init__(
        self, name: str, folder: Path, command: Sequence[str], data: Path, settings: Mapping[str, object]
    ) -> None:
        """The log goes to `folder`/`name`.log; `data` is its own, so that its processes can be told from others'.

        `settings` by their names in `stenograf.settings`.
        """
        self.name = name
        self.folder = folder
        self.starts = 0
        """How often the program was started."""
        self.environment = {
            **os.environ,
            "STENOGRAF_DATA_DIR": str(data),
            "STENOGRAF_LOG_FORMAT": "json",
            **{f"STENOGRAF_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._command = list(command)
        self._log = folder / f"{name}.log"
        self._sessions: set[int] = set()
        """Every start leads a session of its own: that is how its processes are found once it is dead."""
        self._ending = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread(target=self._keep, name=f"keeper of {name}", daemon=True)

    def start(self) -> None:
        """Begin, and keep it running."""
        self._start()
        self._keeper.start()

    def end(self) -> None:
        """Kill whatever lives of it, and keep it no longer."""
        with self._lock:
            self._ending = True
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._keeper.is_alive():
            self._keeper.join(STOP_SECONDS)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Of the program itself, as it was started last."""
        assert self._process is not None
        return self._process.pid

    def terminate(self) -> None:
        """SIGTERM, as an operator ends it; it is not started again."""
        with self._lock:
            self._ending = True
            assert self._process is not None
            self._process.terminate()

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.terminate()
        return self.wait()

    def restart(self) -> None:
        """SIGTERM, as an update does it; it is started again when it has ended."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the program's own process alone."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_all(self) -> int:
        """SIGKILL to it and its workers at once, as a power cut does it; returns to how many."""
        killed = 0
        for process in sorted(self.processes(), key=lambda process: process.pid != self.pid):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
        return killed

    def processes(self) -> list[psutil.Process]:
        """All that live, of every start."""
        return [process for pid in psutil.pids() if (process := self._own(pid)) is not None]

    def children(self) -> list[psutil.Process]:
        """Those among them that it has started itself, be they of a start that is over."""
        return [process for process in self.processes() if process.pid not in self._sessions]

    def entries(self) -> Iterator[Entry]:
        """The lines of the log, in order; lines that are no JSON come together as one ERROR."""
        stray: list[str] = []
        for line in [*self.log.splitlines(), "{}"]:
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

    @property
    def log(self) -> str:
        """All that it has logged so far."""
        return self._log.read_text("utf-8", "replace")

    def log_end(self, lines: int = 30) -> str:
        """The end of the log, for a failure's message."""
        return "\n".join(self.log.splitlines()[-lines:])

    def until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `true()` is."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}\n{self.log_end()}"
            time.sleep(0.02)

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self.environment,
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
            time.sleep(RESTART_SECONDS)
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
            ours = process.environ().get("STENOGRAF_DATA_DIR") == self.environment["STENOGRAF_DATA_DIR"]
            return process if ours else None
        except (ProcessLookupError, PermissionError, psutil.Error):
            return None
