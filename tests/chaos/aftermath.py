"""What is left after the storm: looked for in the database, the folder of recordings and the log."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from chaos.client import Sent
from chaos.program import Entry
from chaos.receiver import Receiver
from chaos.recordings import without_timings
from stenograf.jobs.files import FileStore

FORESEEN = (
    "crashed",  # the supervisor says so of a worker that was killed
    "resource_tracker: There appear to be",  # Python's own, which clears away after processes that were killed
    "EOFError: Ran out of input",  # a worker was just being started when the API was killed
)
"""What may be said at the level ERROR."""


class Subject(Protocol):
    """Whom it happened to: a service, or a fleet."""

    @property
    def starts(self) -> int: ...
    @property
    def files(self) -> FileStore: ...
    def stored(self) -> dict[str, str]: ...
    def ask(self, query: str, *values: object) -> Sequence[Any]: ...
    def entries(self) -> Iterator[Entry]: ...


def check_jobs(subject: Subject, sent: Sequence[Sent]) -> None:
    """Each job that was asked for is done once, with the text of an undisturbed run, and there is no other."""
    rows = {row["id"]: row for row in subject.ask("SELECT * FROM jobs")}
    assert set(rows) == {one.task for one in sent}, "a job is missing, or nobody asked for it"
    assert len(rows) == len(sent), "two requests were given one job"
    assert Counter(row["state"] for row in rows.values()) == {"done": len(sent)}
    results = subject.ask("SELECT job_id, transcript FROM transcripts")
    assert len(results) == len(sent)
    transcripts = {row["job_id"]: _json(row["transcript"]) for row in results}
    for one in sent:
        assert rows[one.task]["filename"] == one.filename
        assert rows[one.task]["lease_owner"] is None
        assert rows[one.task]["lease_until"] is None
        assert without_timings(transcripts[one.task]) == one.recording.transcript, one.filename
    assert len(subject.ask("SELECT key FROM idempotency")) == len(sent)


def check_chunks(subject: Subject, sent: Sequence[Sent]) -> None:
    """Each chunk was kept once, in order, and none by an attempt older than that of the chunk before."""
    kept: dict[str, list[Any]] = {one.task: [] for one in sent}
    for row in subject.ask('SELECT job_id, "index", attempt FROM chunks ORDER BY job_id, "index"'):
        kept[row["job_id"]].append(row)
    attempts = {row["id"]: row["attempt"] for row in subject.ask("SELECT id, attempt FROM jobs")}
    for one in sent:
        rows = kept[one.task]
        assert [row["index"] for row in rows] == list(range(one.recording.chunks)), one.filename
        wrote = [row["attempt"] for row in rows]
        assert wrote == sorted(wrote), one.filename
        # Another attempt may have had nothing left to read.
        assert all(1 <= attempt <= attempts[one.task] for attempt in wrote), one.filename


def check_words(subject: Subject) -> None:
    """Only the last attempt has finished a job, and no job was finished twice, as the workers tell it themselves.

    A worker that was killed right after its word is missing: that is none of its faults.
    """
    attempts = {row["id"]: row["attempt"] for row in subject.ask("SELECT id, attempt FROM jobs")}
    done = [(entry["task_id"], entry["attempt"]) for entry in subject.entries() if entry["message"] == "done"]
    assert len(done) == len(dict(done)), "a job was finished twice"
    assert [(task, attempt, attempts[task]) for task, attempt in done if attempt != attempts[task]] == []


def check_webhooks(subject: Subject, sent: Sequence[Sent], receiver: Receiver) -> None:
    """One message a job, of the type `task.done`, that has arrived under one id, be it once or several times."""
    assert receiver.faults == []
    rows = subject.ask("SELECT id, job_id, state FROM webhooks")
    assert Counter(row["state"] for row in rows) == {"delivered": len(sent)}
    assert {row["job_id"]: {row["id"]} for row in rows} == {one.task: receiver.ids[one.task] for one in sent}
    assert len(rows) == len(sent)
    assert len(receiver.ids) == len(sent)
    assert set(receiver.types.values()) == {"task.done"}


def sweep(subject: Subject) -> int:
    """Remove what no job names, whatever its age; returns how many files that were."""
    return subject.files.sweep(lambda: [row["file"] for row in subject.ask("SELECT file FROM jobs")], age=-60.0)


def check_files(subject: Subject, sent: Sequence[Sent]) -> None:
    """After a sweep every recording is there, byte by byte, and nothing else."""
    named = {row["id"]: row["file"] for row in subject.ask("SELECT id, file FROM jobs")}
    left = subject.stored()
    lost, more = set(named.values()) - set(left), set(left) - set(named.values())
    assert (lost, more) == (set(), set()), f"recordings that are gone: {lost}; files that nobody names: {more}"
    assert len(left) == len(sent), "two jobs share a file"
    for one in sent:
        assert left[named[one.task]] == hashlib.sha256(one.recording.path.read_bytes()).hexdigest()


def surprises(subject: Subject, foreseen: Sequence[str] = FORESEEN) -> list[Entry]:
    """Lines of the log that nobody foresaw: errors, tracebacks, and what an engine prints when it crashes."""
    return [
        entry
        for entry in subject.entries()
        if ("exception" in entry or entry["level"] in ("ERROR", "CRITICAL"))
        and not any(words in entry["message"] for words in foreseen)
    ]


def figures(subject: Subject, sent: Sequence[Sent], receiver: Receiver) -> Mapping[str, Any]:
    """What came of it, in numbers."""
    entries = list(subject.entries())
    said = Counter(entry["message"] for entry in entries)
    expired = [entry["message"].split()[0] for entry in entries if entry["message"].endswith("leases ran out")]
    row = subject.ask("SELECT sum(attempt) AS a, sum(failures) AS f, max(attempt) AS m FROM jobs")[0]
    suspects = subject.ask("SELECT count(*) AS n FROM jobs WHERE suspect")[0]
    resumed = subject.ask(
        "SELECT count(*) AS n FROM (SELECT job_id FROM chunks GROUP BY job_id HAVING count(DISTINCT attempt) > 1) AS x"
    )
    return {
        "starts of programs": subject.starts,
        "workers seen to crash": sum("crashed" in entry["message"] for entry in entries),
        "leases reaped by the clock": sum(map(int, expired)),
        "attempts": row["a"],
        "most for one job": row["m"],
        "failures": row["f"],
        "suspects": suspects["n"],
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


def _json(value: Any) -> Any:
    """What SQLite gives as text, and psycopg as what it means."""
    return json.loads(value) if isinstance(value, str) else value
