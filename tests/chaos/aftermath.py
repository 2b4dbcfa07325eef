"""What is left after the storm: looked for in the database, the folder of recordings and the log."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chaos.client import Sent
from chaos.receiver import Receiver
from chaos.recordings import without_timings
from chaos.service import Entry, Service
from stenograf.jobs.folder import LocalFiles

FORESEEN = (
    "crashed",  # the supervisor says so of a worker that was killed
    "resource_tracker: There appear to be",  # Python's own, which clears away after processes that were killed
    "EOFError: Ran out of input",  # a worker was just being started when the API was killed
)
"""What may be said at the level ERROR."""


def check_jobs(service: Service, sent: Sequence[Sent]) -> None:
    """Each job that was asked for is done once, with the text of an undisturbed run, and there is no other."""
    rows = {row["id"]: row for row in service.ask("SELECT * FROM jobs")}
    assert set(rows) == {one.task for one in sent}, "a job is missing, or nobody asked for it"
    assert len(rows) == len(sent), "two requests were given one job"
    assert Counter(row["state"] for row in rows.values()) == {"done": len(sent)}
    results = service.ask("SELECT job_id, transcript FROM transcripts")
    assert len(results) == len(sent)
    transcripts = {row["job_id"]: json.loads(row["transcript"]) for row in results}
    for one in sent:
        assert rows[one.task]["filename"] == one.filename
        assert rows[one.task]["lease_owner"] is None
        assert rows[one.task]["lease_until"] is None
        assert without_timings(transcripts[one.task]) == one.recording.transcript, one.filename
    assert len(service.ask("SELECT key FROM idempotency")) == len(sent)


def check_chunks(service: Service, sent: Sequence[Sent]) -> None:
    """Each chunk was kept once, in order, and none by an attempt older than that of the chunk before."""
    kept: dict[str, list[sqlite3.Row]] = {one.task: [] for one in sent}
    for row in service.ask('SELECT job_id, "index", attempt FROM chunks ORDER BY job_id, "index"'):
        kept[row["job_id"]].append(row)
    attempts = {row["id"]: row["attempt"] for row in service.ask("SELECT id, attempt FROM jobs")}
    for one in sent:
        rows = kept[one.task]
        assert [row["index"] for row in rows] == list(range(one.recording.chunks)), one.filename
        wrote = [row["attempt"] for row in rows]
        assert wrote == sorted(wrote), one.filename
        # Another attempt may have had nothing left to read.
        assert all(1 <= attempt <= attempts[one.task] for attempt in wrote), one.filename


def check_words(service: Service) -> None:
    """Only the last attempt has finished a job, and no job was finished twice, as the workers tell it themselves.

    A worker that was killed right after its word is missing: that is none of its faults.
    """
    attempts = {row["id"]: row["attempt"] for row in service.ask("SELECT id, attempt FROM jobs")}
    done = [(entry["task_id"], entry["attempt"]) for entry in service.entries() if entry["message"] == "done"]
    assert len(done) == len(dict(done)), "a job was finished twice"
    assert [(task, attempt, attempts[task]) for task, attempt in done if attempt != attempts[task]] == []


def check_webhooks(service: Service, sent: Sequence[Sent], receiver: Receiver) -> None:
    """One message a job, of the type `task.done`, that has arrived under one id, be it once or several times."""
    assert receiver.faults == []
    rows = service.ask("SELECT id, job_id, state FROM webhooks")
    assert Counter(row["state"] for row in rows) == {"delivered": len(sent)}
    assert {row["job_id"]: {row["id"]} for row in rows} == {one.task: receiver.ids[one.task] for one in sent}
    assert len(rows) == len(sent)
    assert len(receiver.ids) == len(sent)
    assert set(receiver.types.values()) == {"task.done"}


def sweep(service: Service) -> int:
    """Remove what no job names, whatever its age; returns how many files that were."""
    return _files(service).sweep(lambda: [row["file"] for row in service.ask("SELECT file FROM jobs")], age=-60.0)


def check_files(service: Service, sent: Sequence[Sent]) -> None:
    """After a sweep every recording is there, byte by byte, and nothing else."""
    named = {row["id"]: row["file"] for row in service.ask("SELECT id, file FROM jobs")}
    left = {path.name: path for path in _files(service).folder.rglob("*") if path.is_file()}
    assert set(left) == set(named.values())
    assert len(left) == len(sent), "two jobs share a file"
    for one in sent:
        assert _digest(left[named[one.task]].read_bytes()) == _digest(one.recording.path.read_bytes())


def check_database(service: Service) -> None:
    """The file is whole."""
    assert [tuple(row) for row in service.ask("PRAGMA integrity_check")] == [("ok",)]
    assert service.ask("PRAGMA foreign_key_check") == []


def surprises(service: Service) -> list[Entry]:
    """Lines of the log that nobody foresaw: errors, tracebacks, and what an engine prints when it crashes."""
    return [
        entry
        for entry in service.entries()
        if "exception" in entry
        or (entry["level"] in ("ERROR", "CRITICAL") and not any(words in entry["message"] for words in FORESEEN))
    ]


def figures(service: Service, sent: Sequence[Sent], receiver: Receiver) -> Mapping[str, Any]:
    """What came of it, in numbers."""
    entries = list(service.entries())
    said = Counter(entry["message"] for entry in entries)
    expired = [entry["message"].split()[0] for entry in entries if entry["message"].endswith("leases ran out")]
    row = service.ask("SELECT sum(attempt) AS a, sum(failures) AS f, max(attempt) AS m, sum(suspect) AS s FROM jobs")[0]
    resumed = service.ask(
        "SELECT count(*) AS n FROM (SELECT job_id FROM chunks GROUP BY job_id HAVING count(DISTINCT attempt) > 1)"
    )
    return {
        "starts of the service": service.starts,
        "workers seen to crash": sum("crashed" in entry["message"] for entry in entries),
        "leases reaped by the clock": sum(map(int, expired)),
        "attempts": row["a"],
        "most for one job": row["m"],
        "failures": row["f"],
        "suspects": row["s"],
        "released": said["released"],
        "moved to the lane long": said["moved"],
        "refused words (lost)": said["lost"],
        "jobs read by several attempts": resumed[0]["n"],
        "requests repeated": sum(one.tries > 1 for one in sent),
        "lost answers given again": sum(one.replayed for one in sent),
        "webhooks": len(receiver.types),
        "their deliveries": receiver.deliveries,
        "hung up on": receiver.hung_up,
    }


def _files(service: Service) -> LocalFiles:
    return LocalFiles(service.folder / "data" / "files")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
