"""One job from its claim to its end, and what keeps the claim meanwhile; with a real model, in this process."""

from __future__ import annotations

import hashlib
import http.server
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import media
from conftest import ROOT
from stenograf.chunk import ChunkResult
from stenograf.errors import FileForbiddenError, NoRoomError, OutOfMemoryError
from stenograf.jobs import keeping as keeping_module
from stenograf.jobs import sqlite as database_module
from stenograf.jobs.dispatch import Event
from stenograf.jobs.job import LANES, Claim
from stenograf.jobs.keeping import Keeping
from stenograf.jobs.lease import Leases
from stenograf.jobs.outbound import Outbound
from stenograf.jobs.runner import Limits, Runner
from stenograf.jobs.tables import chunks, jobs, transcripts
from stenograf.options import Options
from stenograf.runtime import Runtime
from stenograf.settings import Settings
from stenograf.transcriber import Transcriber
from work import (
    LONG,
    SHORT,
    OneModel,
    chunk,
    claim,
    end_lease,
    everything,
    hand_in,
    let_rest_be_over,
    locked,
    place,
    rows,
    runtime,
    wait_for,
)

QUICK: dict[str, Any] = {"temperature": 0.0}
HALF: dict[str, Any] = {**QUICK, "trim": 30.0}
"""Options that read six chunks of the long recording."""


@dataclass
class Desk:
    """A runner with all that it needs."""

    service: Runtime
    models: OneModel
    events: list[Event] = field(default_factory=list)

    @property
    def watched(self) -> Any:
        return self.models.watched

    def runner(self, **more: Any) -> Runner:
        asked = {"worker": "w-1", "limits": Limits(), "tell": self.events.append, "outbound": Outbound(), **more}
        leases = asked.pop("leases", self.service.leases)
        return Runner(leases, self.service.files, self.models, **asked)

    def state(self, job_id: str) -> str:
        return self.service.jobs.get(job_id).state


@pytest.fixture(scope="module")
def whisper(models_dir: Path) -> Iterator[Transcriber]:
    """One thread: so no more than two chunks are begun before the first is handed out."""
    transcriber = Runtime(Settings(models_dir=models_dir, offline=True, threads=1)).reader.transcriber("whisper-test")
    yield transcriber
    transcriber.close()


@pytest.fixture
def desk(tmp_path: Path, whisper: Transcriber) -> Iterator[Desk]:
    with runtime(tmp_path) as service:
        yield Desk(service, OneModel(whisper))


@pytest.fixture(scope="module")
def half(whisper: Transcriber) -> list[ChunkResult]:
    """The chunks of the long recording's start, read without a disturbance."""
    read: list[ChunkResult] = []
    whisper.transcribe(LONG, Options(language="ru", beam_size=1, **HALF), on_chunk=read.append)
    assert len(read) == 6
    return read


def at(index: int, do: Callable[[], object]) -> Callable[[ChunkResult], None]:
    """Does something when the chunk of that index was read, before it is handed out."""

    def before(result: ChunkResult) -> None:
        if result.index == index:
            do()

    return before


def kept(desk: Desk, job_id: str) -> list[ChunkResult]:
    job = desk.service.jobs.get(job_id)
    return desk.service.leases.chunks(Claim(job, job.attempt))


# A job that meets no trouble


def test_a_job_is_done(desk: Desk, whisper: Transcriber) -> None:
    job = hand_in(desk.service, SHORT, options=QUICK)
    assert desk.runner().run_one(LANES)
    done = desk.service.jobs.get(job.id)
    assert (done.state, done.attempt, done.failures, done.progress) == ("done", 1, 0, 1.0)
    assert (done.model, done.engine, done.device, done.language) == ("whisper-test", "faster-whisper", "cpu", "ru")
    assert done.compute_type == whisper.compute_type
    assert done.audio_seconds == pytest.approx(1.88, abs=0.01)
    direct = whisper.transcribe(SHORT, Options(language="ru", beam_size=1, **QUICK)).to_dict()
    found = desk.service.jobs.transcript(job.id)
    assert direct["text"]
    assert {**found, "timings": {}} == {**direct, "timings": {}}
    assert place(desk.service.files, done.file).exists()
    assert len(rows(desk.service.database, chunks)) == 1


def test_events_come_in_order_and_name_the_job(desk: Desk) -> None:
    job = hand_in(desk.service, LONG, options={**QUICK, "trim": 15.0})
    seen: list[tuple[str, str]] = []
    desk.runner(tell=lambda event: seen.append((event["event"], desk.state(job.id)))).run_one(LANES)
    assert seen[0] == ("job", "processing")
    assert seen[-1] == ("job", "done")
    assert seen[-2] == ("job_finished", "done")
    assert len([event for event, state in seen if (event, state) == ("job", "processing")]) >= 2
    assert [event for event, _ in seen].count("job_finished") == 1


def test_what_is_told_of_a_job_that_is_done(desk: Desk) -> None:
    job = hand_in(desk.service, SHORT, options=QUICK)
    desk.runner().run_one(LANES)
    assert {"event": "job", "job": job.id} in desk.events
    (finished,) = [event for event in desk.events if event["event"] == "job_finished"]
    assert (finished["state"], finished["lane"], finished["model"]) == ("done", "short", "whisper-test")
    assert finished["attempt"] == 1
    assert finished["audio"] == pytest.approx(1.88, abs=0.01)
    assert 0 <= finished["wait"] < 20
    assert 0 < finished["run"] < 20


def test_nothing_to_do(desk: Desk) -> None:
    assert not desk.runner().run_one(LANES)
    job = hand_in(desk.service, SHORT, options=QUICK, lane="long")
    assert not desk.runner().run_one(("short",))
    assert not desk.runner().run_one(LANES, suspects=True)
    stopped = desk.runner()
    stopped.stop()
    assert not stopped.run_one(LANES)
    assert desk.state(job.id) == "queued"
    assert desk.events == []


def test_what_is_seen_while_it_is_read(desk: Desk) -> None:
    job = hand_in(desk.service, LONG, options=HALF)
    seen: list[Any] = []

    def look() -> None:
        wait_for(lambda: desk.service.jobs.chunks(job.id), "the first chunks are written down")
        seen.append(desk.service.jobs.get(job.id))

    desk.watched.before = at(3, look)
    desk.runner().run_one(LANES)
    (then,) = seen
    assert (then.state, then.stage, then.model, then.lease_owner) == (
        "processing",
        "transcribing",
        "whisper-test",
        "w-1",
    )
    assert 0 < then.progress < 1
    assert then.audio_seconds == pytest.approx(30.0)


# Going on after the last chunk


def test_draining_keeps_what_was_read_and_a_retry_reads_only_the_rest(desk: Desk, half: list[ChunkResult]) -> None:
    job = hand_in(desk.service, LONG, options=HALF)
    stopping = desk.runner()
    handed_out: list[int] = []

    def before(result: ChunkResult) -> None:
        handed_out.append(result.index)
        if result.index == 1:
            stopping.stop()

    desk.watched.before = before
    assert stopping.run_one(LANES)
    queued = desk.service.jobs.get(job.id)
    assert (queued.state, queued.attempt, queued.failures, queued.suspect) == ("queued", 1, 0, False)
    assert (queued.lease_owner, queued.error) == (None, None)
    first = kept(desk, job.id)
    assert 2 <= len(first) < len(half)
    assert first == half[: len(first)]
    assert [result.index for result in first] == handed_out  # not one was lost
    assert 0 < queued.progress < 1

    desk.watched.read.clear()
    assert desk.runner(worker="w-2").run_one(LANES)
    assert desk.watched.read == [result.index for result in half[len(first) :]]
    assert kept(desk, job.id) == half
    attempts = [(row["index"], row["attempt"]) for row in rows(desk.service.database, chunks)]
    assert attempts == [(result.index, 1 if result.index < len(first) else 2) for result in half]
    segments = [segment.to_dict(n) for n, segment in enumerate(s for result in half for s in result.segments)]
    assert desk.service.jobs.transcript(job.id)["segments"] == segments
    assert desk.service.jobs.get(job.id).attempt == 2


def test_a_failure_that_may_pass_goes_on_after_the_last_chunk(desk: Desk, half: list[ChunkResult]) -> None:
    job = hand_in(desk.service, LONG, options=HALF)

    def fail() -> None:
        raise OutOfMemoryError("No room.", "Make some.")

    desk.watched.before = at(2, fail)
    assert desk.runner().run_one(LANES)
    queued = desk.service.jobs.get(job.id)
    assert (queued.state, queued.failures, queued.suspect) == ("queued", 1, False)
    assert queued.error is not None
    assert queued.error.code == "out_of_memory"
    assert kept(desk, job.id) == half[:2]
    assert not desk.runner().run_one(LANES)  # it rests
    let_rest_be_over(desk.service.database)
    desk.watched.before = lambda _result: None
    desk.watched.read.clear()
    desk.runner().run_one(LANES)
    assert desk.watched.read[0] == 2
    assert kept(desk, job.id) == half
    assert desk.service.jobs.get(job.id).error is None


def test_the_language_that_was_detected_is_kept(desk: Desk, whisper: Transcriber) -> None:
    asked = {**HALF, "language": None, "trim": 15.0}
    undisturbed = whisper.transcribe(LONG, Options(beam_size=1, **asked))
    job = hand_in(desk.service, LONG, options=asked)
    stopping = desk.runner()
    desk.watched.before = at(0, stopping.stop)
    stopping.run_one(LANES)
    assert desk.service.jobs.get(job.id).language == "ru"
    desk.runner().run_one(LANES)
    found = desk.service.jobs.transcript(job.id)
    assert {**found, "timings": {}} == {**undisturbed.to_dict(), "timings": {}}
    assert found["language_probability"] > 0


def test_an_attempt_that_lost_its_lease_after_its_last_chunk(desk: Desk) -> None:
    job = hand_in(desk.service, SHORT, options=QUICK)
    desk.runner().run_one(LANES)
    whole = desk.service.jobs.transcript(job.id)
    with desk.service.database.write() as connection:  # as it was before its finish
        connection.execute(transcripts.delete())
        connection.execute(
            jobs.update().values(state="processing", lease_until=desk.service.database.now - 1, lease_owner="dead")
        )
    desk.service.leases.reap()
    let_rest_be_over(desk.service.database)
    desk.watched.read.clear()
    assert desk.runner().run_one(LANES, suspects=True)
    assert desk.watched.read == []
    assert {**desk.service.jobs.transcript(job.id), "timings": {}} == {**whole, "timings": {}}


# Cancelled, removed, taken over


def test_a_cancel_is_seen_and_the_result_is_refused(desk: Desk, half: list[ChunkResult]) -> None:
    job = hand_in(desk.service, LONG, options=HALF)
    cancelled_at: list[float] = []
    yielded: list[int] = []

    def before(result: ChunkResult) -> None:
        yielded.append(result.index)
        if result.index == 1:
            desk.service.jobs.cancel(job.id)
            cancelled_at.append(time.monotonic())
        if result.index > 1:
            time.sleep(0.4)  # a large model takes its time

    desk.watched.before = before
    assert desk.runner().run_one(LANES)
    assert time.monotonic() - cancelled_at[0] < 2 + 0.4
    assert yielded[-1] < half[-1].index  # it stopped before the end
    assert desk.state(job.id) == "cancelled"
    assert rows(desk.service.database, transcripts) == []
    assert not any(event["event"] == "job_finished" for event in desk.events)
    first = kept(desk, job.id)
    assert first == half[: len(first)]

    desk.watched.before = lambda _result: None
    desk.watched.read.clear()
    desk.service.jobs.retry(job.id)
    desk.runner().run_one(LANES)
    assert desk.watched.read == [result.index for result in half[len(first) :]]
    assert desk.state(job.id) == "done"
    assert kept(desk, job.id) == half


@pytest.mark.parametrize("lose", ["cancel", "remove", "take over"])
def test_a_result_that_comes_too_late_changes_nothing(desk: Desk, lose: str) -> None:
    job = hand_in(desk.service, SHORT, options=QUICK)
    before: list[Any] = []

    def lose_it() -> None:
        if lose == "cancel":
            desk.service.jobs.cancel(job.id)
        elif lose == "remove":
            desk.service.files.remove(desk.service.jobs.remove(job.id).file)
        else:
            end_lease(desk.service.database, job)
            desk.service.leases.reap()
            let_rest_be_over(desk.service.database)
            claim(desk.service.leases, "another", suspects=True)
        before.append(everything(desk.service.database))

    desk.watched.before = at(0, lose_it)
    assert desk.runner().run_one(LANES)
    assert everything(desk.service.database) == before[0]
    assert not any(event["event"] == "job_finished" for event in desk.events)


def test_a_failure_that_comes_too_late_changes_nothing(desk: Desk) -> None:
    job = hand_in(desk.service, SHORT, options=QUICK)

    def cancel_and_fail() -> None:
        desk.service.jobs.cancel(job.id)
        raise OutOfMemoryError("No room.", "Make some.")

    desk.watched.before = at(0, cancel_and_fail)
    assert desk.runner().run_one(LANES)
    assert desk.state(job.id) == "cancelled"
    assert desk.service.jobs.get(job.id).failures == 0


def test_hours_of_silence_can_be_cancelled(desk: Desk, tmp_path: Path) -> None:
    path = media.write(tmp_path / "silence.wav", np.zeros(16_000 * 1200, np.float32))
    job = hand_in(desk.service, path, options=QUICK, lane="long")
    runner = desk.runner()

    def cancel() -> None:
        wait_for(lambda: desk.state(job.id) == "processing", "it began")
        desk.service.jobs.cancel(job.id)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    assert runner.run_one(LANES)
    canceller.join()
    assert desk.state(job.id) == "cancelled"
    assert rows(desk.service.database, transcripts) == []


# The lease is kept while the model works


def test_heartbeats_do_not_wait_for_the_model(desk: Desk) -> None:
    leases = Leases(desk.service.database, seconds=1.0)
    job = hand_in(desk.service, SHORT, options=QUICK)
    reaped: list[int] = []

    def take_long() -> None:
        until = time.monotonic() + 1.6
        while time.monotonic() < until:
            reaped.append(leases.reap())
            time.sleep(0.05)

    desk.watched.before = at(0, take_long)
    desk.runner(leases=leases).run_one(LANES)
    assert sum(reaped) == 0
    done = desk.service.jobs.get(job.id)
    assert (done.state, done.attempt, done.failures) == ("done", 1, 0)


# Lanes


def test_a_long_recording_that_came_in_as_a_short_one_changes_its_lane(desk: Desk, tmp_path: Path) -> None:
    path = media.write(tmp_path / "silence.flac", np.zeros(16_000 * 125, np.float32))
    job = hand_in(desk.service, path, options=QUICK)
    assert desk.runner().run_one(("short",))
    moved = desk.service.jobs.get(job.id)
    assert (moved.state, moved.lane, moved.failures, moved.suspect) == ("queued", "long", 0, False)
    assert moved.audio_seconds == pytest.approx(125, abs=0.5)
    assert moved.run_at == job.run_at
    assert desk.watched.read == []
    assert not desk.runner().run_one(("short",))
    assert desk.runner().run_one(("long",))
    assert desk.state(job.id) == "done"
    assert [warning["code"] for warning in desk.service.jobs.transcript(job.id)["warnings"]] == ["no_speech"]


def test_the_trimmed_start_of_a_long_recording_is_a_short_one(desk: Desk, tmp_path: Path) -> None:
    path = media.write(tmp_path / "silence.flac", np.zeros(16_000 * 125, np.float32))
    job = hand_in(desk.service, path, options={**QUICK, "trim": 5.0})
    assert desk.runner().run_one(("short",))
    assert desk.state(job.id) == "done"


def test_short_recordings_are_let_in_between_two_chunks_of_a_long_one(desk: Desk, half: list[ChunkResult]) -> None:
    long = hand_in(desk.service, LONG, options=HALF, lane="long", priority=1)
    short = [hand_in(desk.service, SHORT, options=QUICK).id for _ in range(2)]
    broken = hand_in(desk.service, ROOT / "pyproject.toml", options=QUICK)
    late: list[str] = []
    desk.watched.before = at(4, lambda: late.insert(0, hand_in(desk.service, SHORT, options=QUICK).id))
    assert desk.runner(lets_short_in=True).run_one(LANES)
    ends = {job.id: job.finished_at or 0.0 for job in desk.service.jobs.page().items}
    assert [desk.state(job_id) for job_id in (long.id, *short, *late, broken.id)] == ["done"] * 4 + ["error"]
    assert max(ends, key=lambda job_id: ends[job_id]) == long.id
    assert kept(desk, long.id) == half
    job = desk.service.jobs.get(long.id)
    assert (job.attempt, job.failures) == (1, 0)


def test_a_worker_with_places_for_both_lets_nothing_in(desk: Desk) -> None:
    hand_in(desk.service, LONG, options={**QUICK, "trim": 10.0}, lane="long", priority=1)
    short = hand_in(desk.service, SHORT, options=QUICK)
    desk.runner().run_one(LANES)
    assert desk.state(short.id) == "queued"


def test_trouble_with_those_that_are_let_in_is_not_the_long_ones(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    long = hand_in(desk.service, LONG, options={**QUICK, "trim": 10.0}, lane="long", priority=1)
    hand_in(desk.service, SHORT, options=QUICK)
    with desk.service.database.write() as connection:  # any claim of a short one fails
        connection.exec_driver_sql(
            "CREATE TRIGGER no BEFORE UPDATE ON jobs WHEN OLD.lane = 'short' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    desk.runner(lets_short_in=True).run_one(LANES)
    done = desk.service.jobs.get(long.id)
    assert (done.state, done.failures) == ("done", 0)
    assert "no short recording could be let in" in caplog.text


def test_a_long_recording_is_not_hung_while_short_ones_are_let_in(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping_module, "LOOK_SECONDS", 0.05)
    hung: list[int] = []
    hand_in(desk.service, LONG, options={**QUICK, "trim": 10.0}, lane="long", priority=1)
    short = hand_in(desk.service, SHORT, options=QUICK)

    def before(_result: ChunkResult) -> None:
        if desk.state(short.id) == "processing":
            for _ in range(12):  # this one makes headway, the long one waits for it
                time.sleep(0.3)
                desk.models.headway()

    desk.watched.before = before
    runner = desk.runner(lets_short_in=True, limits=Limits(stall=3.0), on_stall=lambda: hung.append(1))
    runner.run_one(LANES)
    assert desk.state(short.id) == "done"
    assert hung == []


# What cannot be read


def ended(desk: Desk, recording: Path, code: str, **new: Any) -> None:
    job = hand_in(desk.service, recording, **{"options": QUICK, **new})
    desk.runner().run_one(LANES)
    over = desk.service.jobs.get(job.id)
    assert (over.state, over.attempt, over.failures) == ("error", 1, 1)
    assert over.error is not None
    assert over.error.code == code
    assert over.error.hint
    assert str(desk.service.files.folder) not in over.error.message
    (finished,) = [event for event in desk.events if event["event"] == "job_finished"]
    assert finished["state"] == "error"


def test_what_is_no_recording(desk: Desk) -> None:
    ended(desk, ROOT / "pyproject.toml", "not_media")


def test_a_model_that_cannot(desk: Desk) -> None:
    ended(desk, SHORT, "language_unknown", options={"language": "xx"})


def test_a_recording_that_is_too_long(desk: Desk) -> None:
    job = hand_in(desk.service, LONG, options=QUICK)
    desk.runner(limits=Limits(duration=20.0)).run_one(LANES)
    over = desk.service.jobs.get(job.id)
    assert over.error is not None
    assert (over.state, over.error.code) == ("error", "recording_too_long")
    assert "ru-long.ogg" in over.error.message
    assert desk.watched.read == []


def test_a_file_that_is_gone(desk: Desk) -> None:
    job = hand_in(desk.service, SHORT, options=QUICK)
    desk.service.files.remove(job.file)
    desk.runner().run_one(LANES)
    over = desk.service.jobs.get(job.id)
    assert over.error is not None
    assert (over.state, over.error.code) == ("error", "file_missing")


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (ZeroDivisionError("7/0"), "internal", "error"),
        (MemoryError(), "out_of_memory", "queued"),
        (FileForbiddenError("No.", "Yes."), "file_forbidden", "error"),
    ],
)
def test_an_engine_that_breaks(desk: Desk, error: Exception, code: str, state: str) -> None:
    job = hand_in(desk.service, SHORT, options=QUICK, filename="заметка.flac")

    def fail() -> None:
        raise error

    desk.watched.before = at(0, fail)
    assert desk.runner().run_one(LANES)
    over = desk.service.jobs.get(job.id)
    assert (over.state, over.failures) == (state, 1)
    assert over.error is not None
    assert over.error.code == code
    if code != "file_forbidden":
        assert "заметка.flac" in over.error.message


# Recordings that are fetched


class Shelf(http.server.BaseHTTPRequestHandler):
    """Gives the short recording at /ru-01.flac, and 404 elsewhere."""

    def do_GET(self) -> None:
        data = SHORT.read_bytes() if self.path == "/ru-01.flac" else b""
        self.send_response(200 if data else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(desk: Desk, url: str, **more: Any) -> str:
    from stenograf.jobs.job import NewJob

    job, _ = desk.service.jobs.add(NewJob(owner="ann", options=QUICK, filename="", url=url))
    desk.runner(outbound=Outbound([ip_network("127.0.0.0/8")]), **more).run_one(LANES)
    return job.id


def stored(desk: Desk) -> list[Path]:
    return [path for path in desk.service.files.folder.rglob("*") if path.is_file()]


def test_a_recording_is_fetched_and_kept(desk: Desk, site: str) -> None:
    done = desk.service.jobs.get(fetch(desk, f"{site}/ru-01.flac"))
    assert (done.state, done.filename, done.size) == ("done", "ru-01.flac", SHORT.stat().st_size)
    assert done.digest == hashlib.sha256(SHORT.read_bytes()).hexdigest()
    assert stored(desk) == [place(desk.service.files, done.file)]
    assert desk.service.jobs.page(text="RU-01").items == (done,)


def test_a_recording_that_cannot_be_fetched_leaves_nothing(desk: Desk, site: str) -> None:
    over = desk.service.jobs.get(fetch(desk, f"{site}/none"))
    assert over.error is not None
    assert (over.state, over.error.code) == ("error", "fetch_refused")
    assert stored(desk) == []


def test_a_lease_that_was_lost_during_a_fetch_is_no_failure(
    desk: Desk, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = Outbound.download

    def sleep_through(self: Outbound, *args: Any, **more: Any) -> Any:
        fetched = download(self, *args, **more)
        (job,) = desk.service.jobs.page().items
        wait_for(lambda: desk.service.jobs.get(job.id).stage == "fetching", "the stage was written down")
        end_lease(desk.service.database, job)  # the machine slept: nobody has taken it over yet
        return fetched

    monkeypatch.setattr(Outbound, "download", sleep_through)
    job = desk.service.jobs.get(fetch(desk, f"{site}/ru-01.flac"))
    assert (job.state, job.error) == ("processing", None)
    assert stored(desk) == []
    desk.service.leases.reap()
    assert desk.state(job.id) == "queued"


# Keeping


def keeping(desk: Desk, leases: Leases | None = None, **more: Any) -> tuple[Keeping, Claim]:
    hand_in(desk.service, SHORT)
    held = claim(leases or desk.service.leases)
    asked = {"stall": 900.0, "on_stall": lambda: None, "notify": lambda: None, **more}
    return Keeping(leases or desk.service.leases, held, **asked), held


def test_what_is_learnt_is_written_down_while_the_work_goes_on(desk: Desk) -> None:
    told: list[int] = []
    holds, held = keeping(desk, notify=lambda: told.append(1))
    with holds:
        holds.keep(chunk(0), progress=0.1)
        wait_for(lambda: len(desk.service.jobs.chunks(held.id)) == 1, "the first chunk was kept")
        assert desk.service.jobs.get(held.id).progress == 0.1
        holds.learn(stage="transcribing")
        wait_for(lambda: desk.service.jobs.get(held.id).stage == "transcribing", "the stage was written down")
        wait_for(lambda: len(told) == 2, "both were told")
        assert not holds.lost
    assert holds.rest() == ([], {})


def test_what_was_not_written_down_is_for_the_last_word(desk: Desk) -> None:
    holds, held = keeping(desk)
    with holds:
        holds.keep(chunk(0), progress=0.1)
        wait_for(lambda: desk.service.jobs.chunks(held.id), "the first chunk was kept")
        holds.keep(chunk(1), progress=0.2)
        holds.learn(stage="transcribing")
        read, learnt = holds.rest()
        assert holds.rest() == ([], {})
    written = [index for _, index, _ in desk.service.jobs.chunks(held.id)]
    assert [*written, *(result.index for result in read)] == [0, 1]  # each once, whoever was faster
    if read:
        assert learnt["progress"] == 0.2


def test_no_chunk_is_lost_or_doubled_however_the_end_falls(desk: Desk) -> None:
    for delay in (0.0, 0.005, 0.015, 0.02, 0.021, 0.022, 0.025, 0.03):
        holds, held = keeping(desk)
        with holds:
            for index in range(4):
                holds.keep(chunk(index), progress=index / 4)
                time.sleep(delay / 4)
            time.sleep(delay)
            read, learnt = holds.rest()
        desk.service.leases.release(held, read, **learnt)
        assert kept(desk, held.id) == [chunk(index) for index in range(4)]
        assert desk.service.jobs.get(held.id).progress == 0.75
        desk.service.jobs.cancel(held.id)


def test_the_end_waits_for_what_is_being_written_down(desk: Desk) -> None:
    holds, held = keeping(desk)
    other = sqlite3.connect(desk.service.database.url.database or "", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with holds:
        holds.keep(chunk(0))
        time.sleep(0.2)  # by now it is being written, and waits for the lock
        threading.Timer(0.2, other.execute, ["COMMIT"]).start()
        read, _ = holds.rest()
        assert [*kept(desk, held.id), *read] == [chunk(0)]
    assert kept(desk, held.id) == [chunk(0)]
    other.close()


def test_a_cancel_is_seen_without_any_news(desk: Desk) -> None:
    holds, held = keeping(desk)
    with holds:
        desk.service.jobs.cancel(held.id)
        wait_for(lambda: holds.lost, "the cancel was seen", seconds=2 + 3)
        holds.keep(chunk(0))
    assert desk.service.jobs.chunks(held.id) == []


def test_a_worker_that_makes_no_headway_is_hung(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping_module, "LOOK_SECONDS", 0.05)
    hung = threading.Event()
    holds, _ = keeping(desk, stall=0.3, on_stall=hung.set)
    with holds:
        assert hung.wait(20)


def test_headway_of_any_kind_is_none(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping_module, "LOOK_SECONDS", 0.05)
    hung = threading.Event()
    holds, _ = keeping(desk, stall=0.5, on_stall=hung.set)
    with holds:
        for n in range(10):
            (holds.headway, lambda: holds.learn(progress=0.5))[n % 2]()
            assert not hung.wait(0.1)
        with holds.aside():
            assert not hung.wait(0.8)
        assert hung.wait(20)


def test_a_database_that_stays_away_for_longer_than_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whisper: Transcriber, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    with runtime(tmp_path) as service:
        leases = Leases(service.database, seconds=0.9)
        holds, held = keeping(Desk(service, OneModel(whisper)), leases)
        with holds:
            with locked(service):
                holds.keep(chunk(0))
                time.sleep(2.0)
                assert not holds.lost, "it reads on"
            wait_for(lambda: service.jobs.chunks(held.id), "the chunk was written down after all")
            assert caplog.text.count("could not be written") == 1
            assert not holds.lost
            assert leases.reap() == 0


def test_a_database_that_is_away_when_a_recording_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whisper: Transcriber
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    with runtime(tmp_path, lease=0.9) as service:
        desk = Desk(service, OneModel(whisper))
        job = hand_in(service, SHORT, options=QUICK)
        finish, tried = service.leases.finish, []

        def in_an_outage(*told: Any, **more: Any) -> None:
            tried.append(told)
            if len(tried) > 1:
                return finish(*told, **more)
            with locked(service):
                time.sleep(1.5)
                return finish(*told, **more)

        monkeypatch.setattr(service.leases, "finish", in_an_outage)
        desk.runner().run_one(LANES)
        assert len(tried) == 2
        assert desk.state(job.id) == "done"


def test_a_database_that_comes_back_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whisper: Transcriber, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    with runtime(tmp_path) as service:
        holds, held = keeping(Desk(service, OneModel(whisper)))
        with holds:
            with locked(service):
                holds.keep(chunk(0))
                wait_for(lambda: "could not be written" in caplog.text, "it was tried")
            wait_for(lambda: service.jobs.chunks(held.id), "the chunk was written down after all")
        assert not holds.lost


def test_a_claim_that_cannot_be_kept_for_any_other_reason_is_given_up(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    holds, _ = keeping(desk)
    with holds:
        holds.keep(replace(chunk(0), language=object()))  # type: ignore[arg-type]
        wait_for(lambda: holds.lost, "the claim was given up")
    assert "the claim cannot be kept" in caplog.text


def test_a_job_whose_model_finds_no_room_goes_back_without_blame(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise NoRoomError("There was no room for the model.", "Try again later.")

    job = hand_in(desk.service, SHORT, options=QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(desk.models.reader, "use", full)
        assert desk.runner().run_one(LANES)
    found = desk.service.jobs.get(job.id)
    assert (found.state, found.failures, found.error) == ("queued", 0, None)
    assert found.run_at - time.time() > 5
    assert not desk.runner().run_one(LANES)  # not before its rest is over


def test_short_jobs_that_are_let_in_do_not_wait_for_the_model_of_the_long_one(desk: Desk) -> None:
    long = hand_in(desk.service, LONG, options={**QUICK, **HALF}, lane="long")
    runner = desk.runner(lets_short_in=True)
    once = [partial(hand_in, desk.service, SHORT, options=QUICK)]
    desk.watched.before = lambda _result: once.pop()() if once else None
    assert runner.run_one(("long",))
    assert desk.state(long.id) == "done"
    assert desk.models.patience == [None, 0.0]
