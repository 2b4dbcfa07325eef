"""What the tests share: the small real models, the clips, and a user without root's rights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stenograf.jobs.database import Database
from stenograf.jobs.tables import metadata
from stenograf.runtime import Runtime
from stenograf.settings import Settings
from stenograf.transcriber import Transcriber
from work import opened

pytest.register_assert_rewrite("live_server", "servers", "chaos.aftermath", "fleet.fleet")
from live_server import live_server as live_server  # noqa: E402 - a fixture
from servers import Postgres, rabbitmq, redis_server, s3  # noqa: E402, F401 - fixtures
from servers import postgres as postgres  # noqa: E402 - a fixture

TESTS = Path(__file__).parent
ROOT = TESTS.parent
NOBODY = 65534


@dataclass(frozen=True)
class Clip:
    """A recording of `tests/audio/clips.json`."""

    path: Path
    text: str
    language: str
    duration: float
    exact: tuple[str, ...]
    """The models that read it without a mistake, as was checked when it was made."""
    data: dict[str, Any]


def clips() -> list[Clip]:
    listed = json.loads((TESTS / "audio" / "clips.json").read_text("utf-8"))
    return [
        Clip(TESTS / "audio" / c["file"], c["text"], c["language"], c["duration"], tuple(c.get("exact", ())), c)
        for c in listed
    ]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of this machine's user reaches a test, and no test reaches a hub."""
    for name in list(os.environ):
        if name.startswith(("STENOGRAF_", "HF_")) or name in ("DEFAULT_MODEL", "DEFAULT_LANGUAGE", "LOG_LEVEL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports go from process to process as UTF-8, whatever odd characters a test has logged."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def models_dir() -> Path:
    return TESTS / "models"


@pytest.fixture(scope="session")
def load_model(models_dir: Path) -> Iterator[Callable[[str], Transcriber]]:
    """Loads a model of `tests/models` by name, once for all tests."""
    loaded: dict[str, Transcriber] = {}
    # A thread each: several tests run at once, and threads that spin for a core that is busy take many times as long.
    runtime = Runtime(Settings(models_dir=models_dir, offline=True, threads=1))

    def load(name: str) -> Transcriber:
        if name not in loaded:
            loaded[name] = runtime.reader.transcriber(name)
        return loaded[name]

    yield load
    for transcriber in loaded.values():
        transcriber.close()


@pytest.fixture(scope="session")
def whisper(load_model: Callable[[str], Transcriber]) -> Transcriber:
    return load_model("whisper-test")


@pytest.fixture(scope="session")
def gigaam(load_model: Callable[[str], Transcriber]) -> Transcriber:
    return load_model("gigaam-test")


@pytest.fixture(scope="session")
def _migrated(postgres: Postgres) -> Iterator[Database]:
    with postgres.database() as url:
        made = Database(url)
        made.migrate()
        yield made
        made.close()


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database with its tables, of each kind: what is said of one holds for the other."""
    if request.param == "SQLite":
        with opened(tmp_path / "x.db") as made:
            yield made
        return
    made = request.getfixturevalue("_migrated")
    with made.write() as connection:
        connection.exec_driver_sql(f"TRUNCATE {', '.join(table.name for table in metadata.sorted_tables)}")
    yield made
    made.close()


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Root may read and write everything: give its rights up for the length of a test."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == 0 and folder != Path("/") and "pytest" in str(folder):
            os.chmod(folder, 0o755)
    os.chown(tmp_path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[[str], str]:
    """Runs code in a fresh interpreter; gives what it printed."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
