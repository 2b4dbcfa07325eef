"""Schemathesis reads our OpenAPI description, and holds the service to it."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api_server import MODELS, Server, serve, settings_for
from clients import client
from stenograf.api import auth
from stenograf.errors import StenografError
from stenograf.jobs.job import LANES
from stenograf.jobs.outbound import Outbound
from transcripts import GOLDEN

CONFIG = """\
hooks = "hooks.py"
request-timeout = 30

[generation]
database = "none"

# A value can have the right form and mean nothing here: a language, a model, an address, a cursor.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "409", "412", "415", "422", "429", "5xx"]

# The status that tus 1.0 demands where Tus-Resumable is missing.
[checks.missing_required_header]
expected-statuses = ["400", "401", "403", "406", "412", "415", "422"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "412", "413", "415", "422", "428", "429", "5xx"]

# A form has nothing but texts: `0` is also false there, one value is also a list, and an empty one counts as not given.
[[operations]]
include-path-regex = "^(/v1/audio/.*|/transcribe/?|/api/v1/transcribe)$"
checks.negative_data_rejection.enabled = false
"""

HOOKS = """\
import schemathesis


@schemathesis.serializer("application/offset+octet-stream")
def piece(context, value):
    return {"data": value if isinstance(value, bytes) else str(value).encode()}
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Models that may be removed."""
    shutil.copytree(MODELS, tmp_path / "models")
    return tmp_path / "models"


def test_an_open_service_does_what_it_says(tmp_path: Path, models: Path) -> None:
    with serve(settings_for(tmp_path / "data", models_dir=models)) as server, worker(server):
        server.service.outbound = Outbound(resolve=lambda _name: ["1.1.1.1"])  # nothing is asked of the internet
        server.sent()
        run(
            tmp_path, server, "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "3",
            "--exclude-checks", "ignored_auth",
        )  # fmt: skip


def test_a_service_with_keys_lets_nobody_in_without_one(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FAILURES", 1_000_000)  # wrong keys are to be refused as such, however many
    settings = settings_for(tmp_path / "data", models_dir=models, auth=True, rate_uploads=0, rate_requests=0)
    with serve(settings) as server, worker(server):
        _, secret = server.service.keys.create("schemathesis", scopes=["admin"])
        run(
            tmp_path, server, "--phases", "coverage,stateful", "--max-examples", "1", "--mode", "positive",
            "--checks", "ignored_auth", "--header", f"X-API-Key: {secret}",
            "--exclude-operation-id", "keys_revoke_key",  # it would find its own
        )  # fmt: skip


def run(folder: Path, server: Server, *arguments: str) -> None:
    """Run Schemathesis against a service; what it finds is in the test's error."""
    (folder / "schemathesis.toml").write_text(CONFIG, "utf-8")
    (folder / "hooks.py").write_text(HOOKS, "utf-8")
    command = [str(client("schemathesis").with_name("st")), "run", f"{server.url}/openapi.json", *arguments]
    done = subprocess.run(
        [*command, "--seed", "1", "--no-color", "--no-shrink", "--continue-on-failure"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C.UTF-8", "NO_PROXY": "127.0.0.1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-60_000:]}\n{done.stderr[-2000:]}"


@contextmanager
def worker(server: Server) -> Iterator[None]:
    """Something that finishes each task soon after it came, whatever is in it."""
    service = server.service
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            claim: Any = service.leases.claim("test", LANES)
            if claim is None:
                ended.wait(0.02)
                continue
            try:
                service.leases.finish(claim, GOLDEN)
            except StenografError:  # it was cancelled or removed meanwhile
                continue
            service.watcher.changed(claim.id)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
