"""`stenograf serve` as people start it: a process of its own, with its workers, on a free port of this machine.

A test that can do with the one server that all tests share takes the fixture `live_server`; one that needs other
settings runs `live` itself.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

MODELS = Path(__file__).parent / "models"
START_SECONDS = 60
STOP_SECONDS = 60


@dataclass(frozen=True)
class LiveServer:
    """A service that runs."""

    url: str
    """Such as `http://127.0.0.1:54321`, without a slash at the end."""
    folder: Path
    """Its working directory; the data is in `data` below."""
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """All that it has logged so far."""
        return (self.folder / "serve.log").read_text("utf-8")

    def client(self, **options: Any) -> httpx2.Client:
        """A client of this server, to be closed by the caller."""
        return httpx2.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def until_logged(self, text: str, seconds: float = START_SECONDS) -> None:
        """Wait until the log has this text."""
        _until(lambda: text in self.log, self, seconds)


@contextmanager
def live(folder: Path, *arguments: str, log: str = "is loaded", **settings: str) -> Iterator[LiveServer]:
    """Run a service with its data in `folder` until the end of the `with`; it must then end well.

    It begins once it has logged `log`. `settings` are those of `stenograf.settings`, as text, by their names there. It
    asks for no key, unless told to, and reads with the small Whisper of the tests, which is loaded once this begins.
    """
    chosen = {
        "data_dir": str(folder / "data"),
        "models_dir": str(MODELS),
        "default_model": "whisper-test",
        "offline": "true",
        "auth": "false",
        "threads": "1",  # other tests run beside it
        "max_models": "2",  # nobody is to wait for one model to make way for the other
        "log_level": "info",  # whatever LOG_LEVEL says here: the log tells the port
        **settings,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("STENOGRAF_", "HF_"))}
    environment |= {f"STENOGRAF_{name.upper()}": value for name, value in chosen.items()}
    environment |= {"XDG_CONFIG_HOME": str(folder / "config"), "PYTHONIOENCODING": "utf-8"}
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "stenograf", "serve", "--port", "0", *arguments]
    with (folder / "serve.log").open("wb") as written:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT
        )
    server = LiveServer("", folder, process)
    try:
        _until(lambda: re.search(r"listens on \S", server.log), server)
        found = re.search(r"listens on (http://[^\s,]+)", server.log)
        assert found, server.log
        server = LiveServer(found[1], folder, process)
        _until(lambda: _answers(server.port), server)
        server.until_logged(log)
        yield server
        if process.poll() is None:  # else the test has ended it
            process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0, server.log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live(tmp_path_factory.mktemp("live")) as server:
        yield server


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _until(true: Callable[[], object], server: LiveServer, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert server.process.poll() is None, f"it ended:\n{server.log}"
        assert time.monotonic() < deadline, f"it did not come to that:\n{server.log}"
        time.sleep(0.02)
