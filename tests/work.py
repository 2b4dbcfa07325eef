"""Jobs for the tests: a service's folder, recordings handed in, and a model that is watched while it reads."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from stenograf.chunk import Chunk, ChunkResult
from stenograf.jobs.database import Database
from stenograf.jobs.files import FileStore
from stenograf.jobs.folder import LocalFiles
from stenograf.jobs.job import Claim, Job, Lane, NewJob
from stenograf.jobs.lease import Leases
from stenograf.jobs.post import Post
from stenograf.jobs.store import JobStore
from stenograf.jobs.tables import jobs, metadata
from stenograf.models import ModelStore
from stenograf.options import Options
from stenograf.reader import Reader
from stenograf.runtime import Runtime
from stenograf.settings import Settings
from stenograf.transcript import Segment, Transcript, Word

if TYPE_CHECKING:  # fresh processes import this module too: they load no engine that they do not need
    from stenograf.engines import Capabilities, LoadedModel
    from stenograf.transcriber import Transcriber

TESTS = Path(__file__).parent
AUDIO = TESTS / "audio"
SHORT = AUDIO / "ru-01.flac"
LONG = AUDIO / "ru-long.ogg"


@cache
def _tables() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.db")
        database = Database(f"sqlite:///{path}")
        database.migrate()
        database.close()
        return path.read_bytes()


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """A new database with its tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_tables())  # to migrate each would take most of the time of the tests
    made = Database(f"sqlite:///{path}")
    try:
        yield made
    finally:
        made.close()


@contextmanager
def runtime(folder: Path, **settings: Any) -> Iterator[Runtime]:
    """What a service has, with its tables made."""
    chosen = Settings(
        data_dir=folder,
        models_dir=TESTS / "models",
        default_model="whisper-test",
        default_language="ru",
        beam_size=1,
        offline=True,
        **settings,
    )
    with opened(folder / "stenograf.db"):
        made = Runtime(chosen)
        try:
            yield made
        finally:
            made.database.close()


def hand_in(made: Runtime, recording: Path, **new: Any) -> Job:
    """A copy of a recording, handed in as a client would."""
    incoming = made.files.create()
    incoming.write(recording.read_bytes())
    asked = {
        "owner": "ann",
        "options": {},
        "filename": recording.name,
        "file": incoming.commit(),
        "size": incoming.size,
        "digest": incoming.digest,
    }
    return made.jobs.add(NewJob(**{**asked, **new}))[0]


def place(files: FileStore, name: str | None) -> Path:
    """Where a recording lies that is kept in a folder."""
    assert isinstance(files, LocalFiles)
    return files.path(name or "")


def add(store: JobStore, **new: Any) -> Job:
    """A job without a recording: for what happens in the database alone."""
    return store.add(NewJob(**{"owner": "ann", "options": {}, "filename": "a.ogg", "size": 1, **new}))[0]


def claim(leases: Leases, worker: str = "w", lanes: tuple[Lane, ...] = ("short", "long"), **more: Any) -> Claim:
    """A claim that must succeed."""
    found = leases.claim(worker, lanes, **more)
    assert found is not None
    return found


def chunk(index: int, text: str = "Раз.") -> ChunkResult:
    """A chunk of one second that was read; its numbers have all the digits that a float has."""
    start = index + 0.1 + 0.2
    word = Word(start, start + 1 / 3, text, 2 / 3)
    segment = Segment(start, start + 1 / 3, text, (word,), None, -1 / 7, 1e-9, 1 / 9)
    return ChunkResult(index, start, start + 1, (segment,), "ru", 0.7 + 1e-16)


def transcript(text: str = "Раз.") -> Transcript:
    return Transcript((Segment(0.0, 1.0, text),), "ru", None, 1.5, "m", "e", "cpu", "int8")


def end_lease(database: Database, job: Job | Claim) -> None:
    """As if the worker had given no sign for longer than its lease."""
    with database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(lease_until=database.now - 1))


def let_rest_be_over(database: Database) -> None:
    """As if jobs that failed had rested long enough."""
    with database.write() as connection:
        connection.execute(jobs.update().values(run_at=database.now))


def everything(database: Database, *, but: str = "") -> dict[str, list[Any]]:
    """All rows of all tables but one: two that are equal mean that nothing was written."""
    with database.read() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table)).mappings()))
            for table in metadata.sorted_tables
            if table.name != but
        }


def rows(database: Database, table: sa.Table) -> list[Mapping[str, Any]]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


@contextmanager
def locked(service: Runtime) -> Iterator[None]:
    """Within it nothing can be written: the database fails, as soon as it has been waited for (`BUSY_SECONDS`)."""
    connection = service.database.engine.raw_connection()
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        cursor.execute("ROLLBACK")
        connection.close()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until a condition holds; the limit is far beyond what any machine needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.01)


@contextmanager
def quick_spawning() -> Iterator[None]:
    """Processes that are started within do not import the main module, pytest, anew: they have no use for it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def migrate(url: str, barrier: Barrier) -> None:
    """What a process of a test runs."""
    barrier.wait(60)
    Database(url).migrate()


def claim_all(url: str, barrier: Barrier, out: Path) -> None:
    """What a process of a test runs: it does jobs until there are none, and writes down which."""
    database = Database(url)
    leases = Leases(database)
    leases.waiting(("short", "long"))  # opened before the start
    barrier.wait(60)
    found = []
    while held := leases.claim("w", ("short", "long")):
        found.append(held.id)
        leases.finish(held, transcript())
    out.write_text("\n".join(found))
    database.close()


def work_with_a_failpoint(settings: Settings, pipe: Connection, post: Post) -> None:
    """A worker that dies over poison.flac and hangs over hang.flac, as an engine's own code may."""
    from stenograf.audio import AudioReader
    from stenograf.jobs import runner, worker

    class Reader(AudioReader):
        def __init__(self, source: Any, **more: Any) -> None:
            if more.get("name") == "poison.flac":
                os.kill(os.getpid(), signal.SIGKILL)
            if more.get("name") == "hang.flac":
                time.sleep(600)
            super().__init__(source, **more)

    setattr(runner, "AudioReader", Reader)  # noqa: B010
    worker.main(pipe, post, Runtime(settings))


def work_without_patience(settings: Settings, pipe: Connection, post: Post) -> None:
    """A worker that ends as soon as it has nothing to do, if it is one on demand."""
    from stenograf.jobs import worker

    worker.IDLE_SECONDS = worker.QUARANTINE_SECONDS = 0.0
    worker.main(pipe, post, Runtime(settings))


def work_that_keeps_memory(settings: Settings, pipe: Connection, post: Post) -> None:
    """A worker whose libraries give no memory back."""
    from stenograf.jobs import worker

    worker.KEPT_BYTES = 0
    worker.main(pipe, post, Runtime(settings))


def die_at_once(settings: Settings, pipe: Connection, post: Post) -> None:
    """A worker that cannot even begin."""
    os._exit(1)


class Watched:
    """A loaded model that writes down what it reads, and does what a test wants before it hands a result out."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.read: list[int] = []
        """The indexes of the chunks that were drawn."""
        self.before: Callable[[ChunkResult], None] = lambda _result: None

    @property
    def capabilities(self) -> Capabilities:
        return self._loaded.capabilities

    @property
    def device(self) -> str:
        return self._loaded.device

    @property
    def compute_type(self) -> str:
        return self._loaded.compute_type

    def detect_language(self, chunk: Chunk) -> tuple[str, float]:
        return self._loaded.detect_language(chunk)

    def transcribe(self, chunks: Iterable[Chunk]) -> Generator[ChunkResult]:
        def drawn() -> Iterator[Chunk]:
            for chunk in chunks:
                self.read.append(chunk.index)
                yield chunk

        for result in self._loaded.transcribe(drawn()):
            self.before(result)
            yield result

    def close(self) -> None:
        pass


class _OneReader(Reader):
    def __init__(self, models: OneModel) -> None:
        super().__init__(Settings(default_model="one", offline=True), ModelStore(Path("none"), offline=True))
        self._models = models

    @contextmanager
    def use(
        self, name: str | None, headway: Callable[[], None] = lambda: None, *, patience: float | None = None
    ) -> Iterator[Transcriber]:
        self._models.headway = headway
        self._models.patience.append(patience)
        headway()
        yield self._models._transcriber


class OneModel:
    """What a runner gets its models from: here always the same one, watched."""

    def __init__(self, transcriber: Transcriber) -> None:
        from stenograf.transcriber import Transcriber

        self.watched = Watched(transcriber._loaded)
        self.headway: Callable[[], None] = lambda: None
        """Of the job that asked last."""
        self.patience: list[float | None] = []
        """Of all jobs that asked."""
        self._transcriber = Transcriber(self.watched, model=transcriber.model, engine=transcriber.engine)

        self.reader = _OneReader(self)

    def options_of(self, asked: Mapping[str, Any]) -> Options:
        return Options(**{"language": "ru", "beam_size": 1, **asked})
