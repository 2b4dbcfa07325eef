"""On one machine nothing of a fleet is wanted: its libraries are neither imported nor needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from api_server import until
from live_server import MODELS, live

FLEETS = ("billiard", "celery", "kombu", "obstore", "psycopg", "redis")
"""What `stenograf[cluster]` installs."""

ABSENT = f"""
import json, os, sys
from importlib.machinery import PathFinder

FLEETS = {FLEETS!r}

def note(**what):
    with open(os.environ["IMPORTS"], "a") as notes:
        notes.write(json.dumps({{"pid": os.getpid(), **what}}) + "\\n")

class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in FLEETS:
            return super().find_spec(name, path, target)
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        note(wanted=name, by=frame.f_globals.get("__name__"))
        return None

sys.meta_path[sys.meta_path.index(PathFinder)] = Absent
note(began=getattr(sys, "orig_argv", []))
"""
"""A `sitecustomize`, which every Python begins with: the fleet's libraries are not here, and who asks is noted."""


class Machine:
    """One without the fleet's libraries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(ABSENT)
        self._notes = folder / "imports"
        self.environment = {
            "PYTHONPATH": str(folder / "site"),
            "IMPORTS": str(self._notes),
            "STENOGRAF_DATA_DIR": str(folder / "data"),
            "STENOGRAF_MODELS_DIR": str(MODELS),
            "STENOGRAF_DEFAULT_MODEL": "whisper-test",
            "STENOGRAF_OFFLINE": "true",
        }

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stenograf", *arguments],
            env={**os.environ, **self.environment, **settings},
            cwd=self.folder, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    @property
    def wanted(self) -> list[dict[str, Any]]:
        return [note for note in self._noted() if "wanted" in note]

    @property
    def processes(self) -> list[str]:
        """What each process that has begun was started with."""
        return [" ".join(note["began"]) for note in self._noted() if "began" in note]

    def _noted(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._notes.read_text().splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.timeout(120)
def test_a_service_on_one_machine_wants_nothing_of_a_fleet(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in machine.environment.items():
        if not name.startswith("STENOGRAF_"):
            monkeypatch.setenv(name, value)
    recording = Path(__file__).parent / "audio" / "ru-01.flac"
    # With keys, so that what counts requests and wrong keys is at work too.
    with live(machine.folder, auth="true", api_keys="a-key-of-the-tests-0123") as server:
        with server.client(headers={"Authorization": "Bearer a-key-of-the-tests-0123"}) as client:
            assert client.get("/ready").json()["checks"].keys() >= {"database", "storage", "workers"}
            answer = client.post("/api/v1/transcribe", files={"file": ("a.flac", recording.read_bytes())})
            assert answer.status_code == 202, answer.text
            task = f"/api/v1/tasks/{answer.json()['task_id']}"
            # Asked seldom enough for the limit on requests, which is on here.
            until(lambda: client.get(task).raise_for_status().json()["status"] == "done", 60, 0.5)
            assert client.get(f"{task}/result").json()["text"]
        with server.client(headers={"Authorization": "Bearer a-wrong-key-of-somebody"}) as client:
            assert client.get(task).status_code == 401
    listed = machine.run("jobs", "list")
    assert listed.returncode == 0, listed.stderr
    assert "a.flac" in listed.stdout
    read = machine.run("transcribe", str(recording), "--format", "txt", "-o", "-")
    assert read.returncode == 0, read.stderr
    assert read.stdout.strip()
    assert sum("multiprocessing" in began for began in machine.processes) >= 2, "the workers were watched too"
    assert sum("stenograf" in began for began in machine.processes) >= 3
    assert machine.wanted == []


@pytest.mark.parametrize(
    ("setting", "value", "library"),
    [
        ("STENOGRAF_DATABASE_URL", "postgresql://stenograf:secret@127.0.0.1:1/stenograf", "psycopg"),
        ("STENOGRAF_BROKER_URL", "redis://:secret@127.0.0.1:1/0", "Celery"),
        ("STENOGRAF_STORAGE_URL", "s3://bucket", "obstore"),
    ],
)
def test_what_a_fleet_needs_and_is_not_installed(machine: Machine, setting: str, value: str, library: str) -> None:
    for command in (("serve", "--port", "0"), ("worker",)):
        done = machine.run(*command, **{setting: value})
        assert done.returncode in (1, 2), done.stderr
        told = done.stderr + done.stdout
        assert library in told
        assert "not installed" in told
        assert "pip install 'stenograf[cluster]'" in told
        assert "Traceback" not in told
        assert "secret" not in told
