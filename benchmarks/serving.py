"""A `stenograf serve` of its own for a benchmark, and a client of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

MODEL = "base-shape"
"""The folder of the weights that the service takes."""

DECODING = {"language": "ru"}
"""What every request asks for: the same that the bare engine does."""


class Service:
    """A `stenograf serve` of its own, and a client."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], url: str) -> None:
        self.process = psutil.Process(process.pid)
        self.folder = folder
        self.client = httpx2.Client(base_url=url, timeout=600, limits=httpx2.Limits(max_connections=64))

    def processes(self) -> list[psutil.Process]:
        """The service and all that it started."""
        return [self.process, *self.process.children(recursive=True)]

    def memory(self) -> float:
        """Proportional set size of all processes together, MB: memory that they share counts once."""
        total = 0
        for process in self.processes():
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total / 1e6

    def send(self, file: Path, **fields: str) -> str:
        """Submit a recording; its task id."""
        with file.open("rb") as data:
            answer = self.client.post(
                "/api/v1/transcribe", files={"file": (file.name, data)}, data={**DECODING, **fields}
            )
        answer.raise_for_status()
        return str(answer.json()["task_id"])

    def transcribe(self, file: Path) -> float:
        """A synchronous call by OpenAI's API; seconds."""
        started = time.perf_counter()
        with file.open("rb") as data:
            answer = self.client.post(
                "/v1/audio/transcriptions", files={"file": (file.name, data)}, data={"model": "whisper-1", **DECODING}
            )
        answer.raise_for_status()
        return time.perf_counter() - started

    def task(self, task_id: str) -> dict[str, object]:
        """The task as it is now."""
        return dict(self.client.get(f"/api/v1/tasks/{task_id}").json())

    def until(self, task_id: str, *states: str) -> dict[str, object]:
        """The task once it is in one of these states."""
        while (task := self.task(task_id))["status"] not in states:
            time.sleep(0.05)
        return task


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Service]:
    """A service with the shape's weights; ended by SIGTERM."""
    models = folder / "models"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STENOGRAF_")}
    environ |= {
        "STENOGRAF_DATA_DIR": str(folder / "data"),
        "STENOGRAF_MODELS_DIR": str(models),
        "STENOGRAF_DEFAULT_MODEL": MODEL,
        "STENOGRAF_OFFLINE": "1",
        "STENOGRAF_MAX_UPLOAD": "3000",
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "stenograf", "serve", "--port", "0"],
        cwd=folder, env=environ, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    log: list[str] = []
    url = ""
    loaded = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if "is loaded" in line:
                loaded.set()

    for line in process.stdout:
        log.append(line)
        if found := re.search(r"listens on (http://\S+?),", line):
            url = found[1]
            break
    threading.Thread(target=read, daemon=True).start()
    try:
        loaded.wait(60)
        yield Service(folder, process, url)
    finally:
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            print("".join(log[-20:]), file=sys.stderr)
