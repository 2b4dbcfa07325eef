"""A real service on a free port of this machine, for tests: uvicorn in a thread, a database in a file, no workers.

Where a test needs a worker, it plays one: `finish_next`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from stenograf.api.app import create_app
from stenograf.api.service import Service
from stenograf.jobs.job import LANES, Job
from stenograf.runtime import Runtime
from stenograf.settings import Settings
from stenograf.transcript import Transcript
from transcripts import GOLDEN

MODELS = Path(__file__).parent / "models"
SECONDS = 20
"""How long anything may take before a test gives up on it."""


@dataclass(frozen=True)
class Server:
    """A service that runs."""

    url: str
    port: int
    service: Service
    app: FastAPI
    client: httpx2.Client
    """Has `url` as its base."""

    def files(self) -> list[Path]:
        """All that lies in the folder of recordings."""
        return sorted(path for path in self.service.files.folder.rglob("*") if path.is_file())

    def send(self, data: bytes = b"sound", name: str = "a.ogg", **options: Any) -> httpx2.Response:
        """POST /api/v1/transcribe with a small file."""
        return self.client.post("/api/v1/transcribe", files={"file": (name, data)}, data=options)

    def sent(self, data: bytes = b"sound", name: str = "a.ogg", **options: Any) -> str:
        """As `send`, for one that must be taken; the id of the task."""
        answer = self.send(data, name, **options)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def finish_next(self, transcript: Transcript = GOLDEN) -> Job:
        """Do as a worker does with the next job."""
        claim = self.service.leases.claim("test", LANES)
        assert claim is not None
        self.service.leases.finish(claim, transcript)
        return claim.job

    def connect(self) -> socket.socket:
        """A bare connection, for requests that no library would send."""
        return socket.create_connection(("127.0.0.1", self.port), SECONDS)


def settings_for(folder: Path, **changes: Any) -> Settings:
    """Settings for a service with its data in `folder`, that asks for no key and no network."""
    return replace(
        Settings(data_dir=folder, models_dir=MODELS, default_model="whisper-test", offline=True, auth=False, port=0),
        **changes,
    )


@contextmanager
def serve(settings: Settings) -> Iterator[Server]:
    """Run a service until the end of the `with`."""
    runtime = Runtime(settings)
    runtime.database.migrate()
    service = Service(runtime)
    app = create_app(service)
    config = uvicorn.Config(
        app,
        log_config=None,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "the service did not start"
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, timeout=SECONDS, trust_env=False) as client:
            yield Server(url, port, service, app, client)
    finally:
        service.watcher.stopping()
        server.should_exit = True
        thread.join(SECONDS)
        listening.close()
        service.close()
    assert not thread.is_alive()


def until(true: Any, seconds: float = SECONDS, every: float = 0.01) -> None:
    """Wait until `true()` is; it is asked every so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(every)
