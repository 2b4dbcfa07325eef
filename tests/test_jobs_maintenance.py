"""What must happen by itself: leases run out, recordings expire, orphans are swept."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stenograf.errors import DatabaseError, TaskUnknownError
from stenograf.jobs import maintenance as module
from stenograf.jobs import sqlite as database_module
from stenograf.jobs.maintenance import Maintenance
from stenograf.jobs.tables import chunks, idempotency, jobs, requests, transcripts
from stenograf.runtime import Runtime
from work import SHORT, add, chunk, claim, end_lease, hand_in, locked, place, rows, runtime, transcript, wait_for


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Runtime]:
    with runtime(tmp_path) as made:
        yield made


def maintenance(service: Runtime, events: list[Any] | None = None) -> Maintenance:
    told = [] if events is None else events
    return Maintenance(service.jobs, service.leases, service.files, service.uploads, on_event=told.append)


def expire(service: Runtime) -> None:
    with service.database.write() as connection:
        connection.execute(jobs.update().values(expires_at=service.database.now - 1))


def make_old(path: Path) -> None:
    old = time.time() - 7200
    os.utime(path, (old, old))


def test_what_expired_is_removed_with_its_file_and_its_text(service: Runtime) -> None:
    over, waits = hand_in(service, SHORT), hand_in(service, SHORT)
    held = claim(service.leases)
    service.leases.finish(held, transcript(), [chunk(0)])
    expire(service)
    assert maintenance(service).expire() == 1
    with pytest.raises(TaskUnknownError):
        service.jobs.get(over.id)
    assert not place(service.files, over.file).exists()
    assert place(service.files, waits.file).exists()
    assert rows(service.database, transcripts) == rows(service.database, chunks) == []
    assert maintenance(service).expire() == 0


def test_many_expire_at_once(service: Runtime) -> None:
    for _ in range(120):
        service.jobs.cancel(add(service.jobs).id)
    expire(service)
    assert maintenance(service).expire() == 120
    assert service.jobs.page().items == ()


def test_a_job_that_is_retried_just_then_keeps_its_file(service: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    job = hand_in(service, SHORT)
    service.jobs.cancel(job.id)
    expire(service)
    found = service.jobs.expired()
    service.jobs.retry(job.id)
    answers = iter([found, []])
    monkeypatch.setattr(service.jobs, "expired", lambda: next(answers))
    assert maintenance(service).expire() == 0
    assert place(service.files, job.file).exists()
    assert service.jobs.get(job.id).state == "queued"


def test_two_that_look_after_the_same_database_remove_each_job_once(service: Runtime) -> None:
    for _ in range(40):
        service.jobs.cancel(add(service.jobs).id)
    expire(service)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(maintenance(service).expire())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 40


def test_orphans_are_swept_and_old_keys_forgotten(service: Runtime) -> None:
    kept = hand_in(service, SHORT, idempotency_key="k", fingerprint="f")
    incoming = service.files.create()
    incoming.write(b"abc")
    orphan = incoming.commit()
    for name in (kept.file or "", orphan):
        make_old(place(service.files, name))
    with service.database.write() as connection:
        connection.execute(idempotency.update().values(created_at=service.database.now - 90_000))
    assert maintenance(service).sweep() == 1
    assert place(service.files, kept.file).exists()
    assert not place(service.files, orphan).exists()
    assert rows(service.database, idempotency) == []


def test_leases_that_ran_out_are_told(service: Runtime) -> None:
    events: list[Any] = []
    job = add(service.jobs)
    maintenance(service, events).reap()
    assert events == []
    end_lease(service.database, claim(service.leases))
    maintenance(service, events).reap()
    assert events == [{"event": "lease_expired", "count": 1}]
    assert service.jobs.get(job.id).state == "queued"


def test_it_does_all_that_by_itself_and_goes_on_after_an_error(
    service: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("REAP_SECONDS", "RETENTION_SECONDS", "SWEEP_SECONDS"):
        monkeypatch.setattr(module, name, 0.01)
    events: list[Any] = []
    dead = add(service.jobs)
    end_lease(service.database, claim(service.leases))
    over = hand_in(service, SHORT)
    service.jobs.cancel(over.id)
    with service.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == over.id).values(expires_at=service.database.now - 1))
    incoming = service.files.create()
    incoming.write(b"abc")
    orphan = place(service.files, incoming.commit())
    make_old(orphan)
    with service.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs RENAME TO elsewhere")
    looks_after = maintenance(service, events)
    looks_after.start()
    wait_for(lambda: len([r for r in caplog.records if "no such table" in r.getMessage()]) >= 3, "errors in the log")
    with service.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO jobs")
    wait_for(lambda: not orphan.exists(), "the orphan was swept")
    wait_for(lambda: [job.id for job in service.jobs.page().items] == [dead.id], "what expired was removed")
    wait_for(lambda: events, "the lease was taken back")
    looks_after.stop()
    looks_after.stop()
    assert service.jobs.get(dead.id).state == "queued"


def test_stopping_what_never_began(service: Runtime) -> None:
    maintenance(service).stop()


def test_old_requests_are_counted_no_more_and_forgotten(service: Runtime) -> None:
    now = service.database.now
    with service.database.write() as connection:
        for name, at in (("old", now - 601), ("new", now - 59)):
            connection.execute(requests.insert().values(counted=name, at=at))
    maintenance(service).sweep()
    assert [row["counted"] for row in rows(service.database, requests)] == ["new"]


def test_an_outage_of_the_database_ends_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.05)
    with runtime(tmp_path, lease=1.0) as service:
        reaper = maintenance(service)
        hand_in(service, SHORT)
        held = claim(service.leases)
        reaper.reap()
        with locked(service):
            time.sleep(1.5)
            with pytest.raises(DatabaseError):
                reaper.reap()
            time.sleep(0.5)
        reaper.reap()
        assert service.jobs.get(held.id).state == "processing", "nobody could renew it"
        service.leases.renew(held)
        time.sleep(1.5)
        reaper.reap()
        found = service.jobs.get(held.id)
        assert (found.state, found.failures) == ("queued", 1), "now its worker is silent, and the database is there"
