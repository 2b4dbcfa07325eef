"""Those who wait for a file keep nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from api_server import Server, serve, settings_for, until
from stenograf.api.file_threads import THREADS
from stenograf.jobs.files import FileStore, Incoming, Stored

MANY = 50
"""More than there are threads."""


class Slow:
    """Files that do not come until it is over."""

    def __init__(self, files: FileStore) -> None:
        self._look, self._create = files.look, files.create
        self.over = threading.Event()
        self.waiting = 0

    def look(self, name: str) -> Stored:
        self.waiting += 1
        assert self.over.wait(60)
        return self._look(name)

    def create(self) -> Incoming:
        self.waiting += 1
        assert self.over.wait(60)
        return self._create()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve(settings_for(tmp_path)) as running:
        yield running


@pytest.mark.parametrize("way", ["look", "create"])
def test_a_store_that_does_not_answer(server: Server, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    task = f"/api/v1/tasks/{server.sent(b'sound')}"
    slow = Slow(server.service.files)
    monkeypatch.setattr(server.service.files, way, getattr(slow, way))

    def one(_number: int) -> int:
        with httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            if way == "look":
                return client.get(f"{task}/audio").status_code
            return client.post("/api/v1/transcribe", files={"file": ("a.ogg", b"sound")}).status_code

    assert THREADS.total_tokens < MANY
    with ThreadPoolExecutor(MANY) as pool:
        asked = [pool.submit(one, number) for number in range(MANY)]
        try:
            until(lambda: slow.waiting == THREADS.total_tokens)
            assert server.client.get(task, timeout=10).json()["status"] == "queued"
            assert server.client.post(f"{task}/cancel", timeout=10).status_code == 200
        finally:
            slow.over.set()
        assert {answer.result() for answer in asked} == {200 if way == "look" else 202}
