"""Each point where something may crash, hit on purpose, once: what `docs/jobs.md` promises of it holds.

One replica and one worker on PostgreSQL, Redis and S3 run through all tests; who is killed is started again.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chaos.client import Client, Sent
from chaos.program import Program
from chaos.receiver import SECRET, Receiver
from chaos.recordings import Recording, clip, joined, undisturbed
from chaos.service import until_answered
from fleet import failpoints
from fleet.fleet import Fleet
from servers import S3, Postgres, Redis, require
from stenograf.runtime import Runtime
from stenograf.settings import Settings

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Celery's workers and SIGKILL are matters of Unix"),
]

LEASE = 2.0
TUS = {"Tus-Resumable": "1.0.0"}


class Place:
    """The fleet, what it reads, and who hears of it."""

    def __init__(self, fleet: Fleet, receiver: Receiver, points: Path) -> None:
        self.fleet = fleet
        self.receiver = receiver
        self._points = points

    @property
    def api(self) -> Program:
        return self.fleet.api[0]

    @property
    def url(self) -> str:
        return self.fleet.urls[0]

    def arm(self, point: str, *, after: int = 0, node: bool = False) -> None:
        failpoints.arm(self._points, point, after=after, node=node)

    def until_hit(self, point: str, seconds: float = 30) -> None:
        self.fleet.until(lambda: not failpoints.is_armed(self._points, point), seconds, f"{point} is reached")

    def until_back(self, starts: int) -> None:
        """The replica was killed after so many starts, and answers again."""
        self.fleet.until(lambda: self.api.starts > starts, 30, "the replica is started again")
        until_answered(self.api, self.url)

    def send(self, recording: Recording, name: str) -> Sent:
        """As a careful client: again and again under one key, until it is answered with 202."""
        with Client(self.url) as client:
            return client.submit(recording, name, webhook_url=self.receiver.url)

    def row(self, task: str) -> dict[str, Any]:
        return self.fleet.ask("SELECT * FROM jobs WHERE id = ?", task)[0]

    def until_done(self, sent: Sent, *, attempts: int = 1) -> dict[str, Any]:
        """It is done, once, at this attempt, and reads as if nothing had happened; its row."""

        def is_done() -> bool:
            found = self.row(sent.task)
            assert found["state"] in ("queued", "processing", "done"), found
            return bool(found["state"] == "done")

        self.fleet.until(is_done, 40, f"{sent.filename} is done")
        row = self.row(sent.task)
        assert row["attempt"] == attempts
        with Client(self.url) as client:
            assert client.result(sent.task) == sent.recording.transcript
        assert [index for index, _, _ in self.fleet.chunks(sent.task)] == list(range(sent.recording.chunks))
        same = self.fleet.ask("SELECT id FROM jobs WHERE filename = ?", sent.filename)
        assert same == [{"id": sent.task}], "it was taken in twice"
        said = [entry for entry in self.fleet.workers[0].entries() if entry.get("task_id") == sent.task]
        assert sum(entry["message"] == "done" for entry in said) <= 1
        return row

    def until_told(self, task: str) -> None:
        """The webhook has arrived, under one id."""
        self.fleet.until(lambda: self._webhook(task)["state"] == "delivered", 20, "the webhook is delivered")
        assert self.receiver.ids[task] == {self._webhook(task)["id"]}
        assert self.receiver.faults == []

    def expect_no_orphans(self) -> None:
        """After a sweep there is an object for each task that has one, and nothing else."""

        def named() -> list[str]:
            rows = self.fleet.ask("SELECT file FROM jobs UNION SELECT file FROM uploads WHERE job_id IS NULL")
            return [row["file"] for row in rows if row["file"]]

        self.fleet.files.sweep(named, age=-60)
        assert set(self.fleet.stored()) == set(named())

    def _webhook(self, task: str) -> dict[str, Any]:
        rows = self.fleet.ask("SELECT id, state FROM webhooks WHERE job_id = ?", task)
        assert len(rows) == 1, rows
        return rows[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    for server in (Postgres, Redis, S3):
        require(server)
    folder, points = tmp_path_factory.mktemp("crash"), tmp_path_factory.mktemp("points")
    settings = {"lease": LEASE, "max_attempts": 50, "webhook_secret": SECRET, "queue_name": "crash"}
    own = {"FAILPOINTS": str(points), "PYTHONPATH": str(Path(__file__).parent)}
    fleet = Fleet(
        folder,
        storage=S3,
        replicas=1,
        nodes=0,
        serve=("-m", "fleet.failpoints"),
        environments={"api-1": own},
        **settings,  # type: ignore[arg-type]
    )
    command = [sys.executable, "-m", "fleet.failpoints", "worker"]
    with Receiver(1, hang_ups=0) as receiver, fleet:
        node = Program("node-1", folder, command, folder / "node-1", fleet.settings)
        node.environment.update(own)
        fleet.workers.append(node)
        with node:
            fleet.wait_until_ready()
            yield Place(fleet, receiver, points)
            assert set(fleet.stop().values()) == {0}, fleet.log_end()
            told = [entry for entry in fleet.entries() if any(secret in str(entry) for secret in fleet.secrets)]
            assert told == []
            thrown = [entry for entry in fleet.entries() if "exception" in entry]
            assert [entry for entry in thrown if "WorkerLostError" not in entry["message"]] == []


@pytest.fixture(scope="module")
def runtime(models_dir: Path) -> Runtime:
    return Runtime(Settings(models_dir=models_dir, default_model="whisper-test", offline=True))


@pytest.fixture(scope="module")
def note(runtime: Runtime) -> Recording:
    return undisturbed(clip("ru-01.flac"), runtime)


@pytest.fixture(scope="module")
def meeting(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """For the lane `long`."""
    path = joined(tmp_path_factory.mktemp("meeting") / "meeting.ogg", [clip("ru-long.ogg"), clip("ru-long.ogg")])
    return undisturbed(path, runtime, language="ru")


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("JobStore.add:commit", id="its recording is in place and its row is not"),
        pytest.param("JobStore.add:committed", id="its row is written, nobody told of it, and nothing answered"),
        pytest.param("Hints._send:begin", id="its hint is written down and was not sent"),
        pytest.param("Hints._send:end", id="its hint was sent, and may be once more"),
    ],
)
def test_a_replica_dies_over_a_new_task(place: Place, note: Recording, point: str) -> None:
    starts = place.api.starts
    place.arm(point)
    sent = place.send(note, f"{point}.flac")
    place.until_hit(point)
    place.until_done(sent)
    place.until_back(starts)
    if point.startswith("JobStore"):  # the others may come before the answer or after it
        assert sent.replayed == (point == "JobStore.add:committed")
    place.until_told(sent.task)
    place.expect_no_orphans()


def test_who_got_no_answer_and_does_not_ask_again_left_nothing(place: Place, note: Recording) -> None:
    starts, before = place.api.starts, place.fleet.ask("SELECT count(*) FROM jobs")
    place.arm("JobStore.add:commit")
    with httpx2.Client(trust_env=False, timeout=20) as client, pytest.raises(httpx2.TransportError):
        client.post(f"{place.url}/api/v1/transcribe", files={"file": ("a.flac", note.path.read_bytes())})
    place.until_back(starts)
    assert place.fleet.ask("SELECT count(*) FROM jobs") == before
    named = {row["file"] for row in place.fleet.ask("SELECT file FROM jobs")}
    assert len(set(place.fleet.stored()) - named) == 1
    place.expect_no_orphans()


def test_a_replica_dies_in_the_middle_of_a_large_recording(place: Place) -> None:
    starts, before = place.api.starts, place.fleet.ask("SELECT count(*) FROM jobs")
    place.arm("Client.put_stream:part", after=3)  # two may be on their way at once: one has arrived
    with httpx2.Client(trust_env=False, timeout=60) as client, pytest.raises(httpx2.TransportError):
        client.post(f"{place.url}/api/v1/transcribe", files={"file": ("a.wav", bytes(60_000_000))})
    place.until_back(starts)
    assert place.fleet.ask("SELECT count(*) FROM jobs") == before
    assert any(name.startswith("unfinished") for name in place.fleet.stored())
    place.expect_no_orphans()


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("Uploads.finish:begin", id="all its pieces are here"),
        pytest.param("BucketFiles._joined:end", id="its pieces are being joined"),
        pytest.param("Client.delete:begin", id="it is joined and its pieces are there too"),
        pytest.param("JobStore.add:commit", id="it is in its place and has no task"),
        pytest.param("JobStore.add:committed", id="its task does not know it"),
    ],
)
def test_a_replica_dies_over_an_upload_in_pieces(place: Place, note: Recording, point: str) -> None:
    starts, data = place.api.starts, note.path.read_bytes()
    half = len(data) // 2
    with httpx2.Client(base_url=place.url, trust_env=False, timeout=20) as client:
        begun = client.post("/api/v1/uploads", headers={**TUS, "Upload-Length": str(len(data))})
        assert begun.status_code == 201, begun.text
        path = begun.headers["location"]
        piece = {**TUS, "Content-Type": "application/offset+octet-stream"}
        first = client.patch(path, content=data[:half], headers={**piece, "Upload-Offset": "0"})
        assert first.status_code == 204, first.text
        place.arm(point)
        with pytest.raises(httpx2.TransportError):
            client.patch(path, content=data[half:], headers={**piece, "Upload-Offset": str(half)})
        place.until_back(starts)
        # Nobody asks for it: the replica finds it by itself.
        upload = path.rpartition("/")[2]

        def there() -> object:
            return place.fleet.ask("SELECT job_id FROM uploads WHERE id = ?", upload)[0]["job_id"]

        place.fleet.until(lambda: bool(there()), 20, "the upload became a task")
        told = client.head(path, headers=TUS)
        assert (told.status_code, told.headers["upload-offset"]) == (200, str(len(data)))
    task = told.headers["stenograf-task-id"]
    assert task == there() == upload
    name = place.row(task)["filename"]
    place.fleet.ask("UPDATE jobs SET filename = ? WHERE id = ?", f"{point} {task}", task)  # each was called alike
    place.until_done(Sent(note, f"{point} {task}", task, 1, False))
    assert name
    place.expect_no_orphans()


def test_a_replica_dies_before_the_file_of_a_task_that_was_removed(place: Place, note: Recording) -> None:
    sent = place.send(note, "removed.flac")
    place.until_done(sent)
    file, starts = place.row(sent.task)["file"], place.api.starts
    place.arm("JobStore.remove:committed")
    with httpx2.Client(base_url=place.url, trust_env=False, timeout=20) as client:
        with pytest.raises(httpx2.TransportError):
            client.delete(f"/api/v1/tasks/{sent.task}")
        place.until_back(starts)
        assert client.get(f"/api/v1/tasks/{sent.task}").status_code == 404
    assert file in place.fleet.stored()
    place.expect_no_orphans()
    assert file not in place.fleet.stored()


def test_a_replica_dies_before_the_file_of_a_task_whose_time_is_over(place: Place, note: Recording) -> None:
    sent = place.send(note, "expired.flac")
    place.until_done(sent)
    place.until_told(sent.task)
    file, starts = place.row(sent.task)["file"], place.api.starts
    place.arm("JobStore.remove_expired:committed")
    place.fleet.ask("UPDATE jobs SET expires_at = 1 WHERE id = ?", sent.task)
    place.api.kill()  # who starts looks at once
    place.until_hit("JobStore.remove_expired:committed")
    place.until_back(starts + 1)
    assert place.fleet.ask("SELECT id FROM jobs WHERE id = ?", sent.task) == []
    assert file in place.fleet.stored()
    place.expect_no_orphans()


def test_a_replica_dies_before_it_tells_that_a_task_is_cancelled(place: Place, meeting: Recording) -> None:
    sent, starts = place.send(meeting, "cancelled.ogg"), place.api.starts
    place.fleet.until(lambda: place.row(sent.task)["state"] == "processing", 20, "it is begun")
    place.arm("JobStore.cancel:committed")
    with (
        httpx2.Client(base_url=place.url, trust_env=False, timeout=20) as client,
        suppress(httpx2.TransportError),
    ):
        client.post(f"/api/v1/tasks/{sent.task}/cancel")
    place.until_hit("JobStore.cancel:committed", 1)
    place.until_back(starts)
    assert place.row(sent.task)["state"] == "cancelled"
    place.until_told(sent.task)


@pytest.mark.parametrize(
    ("point", "node"),
    [
        pytest.param("Leases.claim:committed", False, id="after the claim"),
        pytest.param("Leases.claim:committed", True, id="after the claim, with its node"),
        pytest.param("Leases.finish:commit", False, id="before the end is written"),
        pytest.param("Leases.finish:committed", False, id="after the end"),
        pytest.param("Leases.finish:committed", True, id="before the hint is acknowledged, with its node"),
    ],
)
def test_a_worker_dies(place: Place, note: Recording, point: str, node: bool) -> None:
    place.arm(point, node=node)
    sent = place.send(note, f"{point} {node}.flac")
    place.until_hit(point)
    is_done = point == "Leases.finish:committed"
    row = place.until_done(sent, attempts=1 if is_done else 2)
    assert (row["failures"], row["suspect"]) == ((0, False) if is_done else (1, True))
    place.until_told(sent.task)
    place.expect_no_orphans()


@pytest.mark.parametrize("point", ["Leases.append:commit", "Leases.append:committed"])
def test_a_worker_dies_over_its_second_checkpoint(place: Place, meeting: Recording, point: str) -> None:
    place.arm(point, after=1)
    sent = place.send(meeting, f"{point}.ogg")
    place.until_hit(point)
    attempt, before = place.row(sent.task)["attempt"], place.fleet.chunks(sent.task)
    assert 1 <= len(before) < meeting.chunks
    row = place.until_done(sent, attempts=attempt + 1)
    assert (row["failures"], row["suspect"]) == (1, True)
    after = place.fleet.chunks(sent.task)
    assert after[: len(before)] == before, "a chunk was read again that was kept"
    assert {found for _, found, _ in after[len(before) :]} == {attempt + 1}
    place.until_told(sent.task)


def test_a_replica_dies_while_it_takes_a_lease_back(place: Place, note: Recording) -> None:
    place.arm("Leases.reap:commit")
    place.arm("Leases.claim:committed")
    starts = place.api.starts
    sent = place.send(note, "reaped.flac")
    place.until_hit("Leases.reap:commit")
    place.until_back(starts)
    row = place.until_done(sent, attempts=2)
    assert row["failures"] == 1, "the death of one worker counted twice"


def test_a_replica_dies_after_a_webhook_and_before_its_mark(place: Place, note: Recording) -> None:
    starts, before = place.api.starts, place.receiver.deliveries
    place.arm("Webhooks._mark:commit")
    sent = place.send(note, "webhook.flac")
    place.until_hit("Webhooks._mark:commit")
    place.until_done(sent)
    place.until_back(starts)
    assert place.receiver.deliveries == before + 1
    place.fleet.ask("UPDATE webhooks SET lease_until = NULL WHERE job_id = ?", sent.task)  # it is a minute long
    place.until_told(sent.task)
    assert place.receiver.deliveries == before + 2
