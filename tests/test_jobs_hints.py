"""The sending of hints, to a real broker: each job is told of once, again where a hint was lost, and never too many."""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from servers import Redis, require
from stenograf.jobs import hints as hints_module
from stenograf.jobs.database import Database
from stenograf.jobs.hints import Hints
from stenograf.jobs.lease import Leases
from stenograf.jobs.store import JobStore
from stenograf.jobs.tables import jobs
from stenograf.settings import Settings
from work import add, opened, wait_for


class Place:
    """A database, a broker, and the queues of a name of our own."""

    def __init__(self, folder: Path, database: Database, url: str) -> None:
        from redis import Redis as Client

        self.database = database
        self.store = JobStore(database)
        self.leases = Leases(database)
        self.name = f"hints-{secrets.token_hex(4)}"
        self.settings = Settings(data_dir=folder, broker_url=url, queue_name=self.name, gpu_models=("large-v3",))
        self.redis = Client.from_url(url)

    def hints(self) -> Hints:
        return Hints(self.settings, self.leases)

    def sent(self, queue: str = "short.cpu") -> list[dict[str, Any]]:
        """What the hints that wait in a queue say, the oldest first."""
        found = self.redis.lrange(f"{self.name}.{queue}", 0, -1)
        assert isinstance(found, list)
        bodies = [json.loads(base64.b64decode(json.loads(raw)["body"])) for raw in reversed(found)]
        return [body[1] for body in bodies]

    def take(self, queue: str = "short.cpu") -> None:
        """A worker takes one; or it is lost."""
        self.redis.rpop(f"{self.name}.{queue}")


@contextmanager
def started(*hints: Hints) -> Iterator[None]:
    for one in hints:
        one.start()
    try:
        yield
    finally:
        for one in hints:
            one.stop()
            assert not one._thread.is_alive()


@pytest.fixture
def place(database: Database, tmp_path: Path, redis_server: Redis) -> Iterator[Place]:
    made = Place(tmp_path, database, redis_server.url)
    try:
        yield made
    finally:
        made.redis.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(hints_module, "STALE_SECONDS", 0.5)


def told(lane: str, need: str) -> dict[str, Any]:
    return {"lane": lane, "need": need}


def test_each_queue_hears_of_its_own(place: Place) -> None:
    add(place.store)
    add(place.store, lane="long")
    add(place.store, need="gpu")
    suspect = add(place.store)
    with place.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == suspect.id).values(suspect=True))
    with started(place.hints()):
        wait_for(lambda: len(place.sent()) == 2, "two hints for short recordings", 20)
        wait_for(lambda: place.sent("short.gpu"), "one for a GPU", 20)
    assert place.sent() == [told("short", "cpu"), told("short", "cpu")]
    assert place.sent("long.cpu") == [told("long", "cpu")]
    assert place.sent("short.gpu") == [told("short", "gpu")]
    assert place.sent("long.gpu") == []


def test_a_new_job_is_told_of_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 600.0)
    hints = place.hints()
    with started(hints):
        wait_for(lambda: hints.failure is None, "the broker is reached", 20)
        for count in range(1, 4):
            add(place.store)
            hints.wake()
            wait_for(lambda count=count: len(place.sent()) == count, "its hint", 20)  # type: ignore[misc]


def test_what_rests_or_is_worked_on_is_not_told_of(place: Place, quick: None) -> None:
    resting, working = add(place.store), add(place.store)
    assert place.leases.claim("w", ("short",)) is not None
    with place.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.state == "queued").values(run_at=place.database.now + 600))
    due = add(place.store)
    with started(place.hints()):
        wait_for(place.sent, "a hint", 20)
    assert len(place.sent()) == 1
    assert {resting.id, working.id, due.id} == {job.id for job in place.store.page().items}


def test_a_hint_that_is_lost_is_sent_again_and_one_that_waits_too(place: Place, quick: None) -> None:
    add(place.store)
    with started(place.hints()):
        wait_for(place.sent, "a hint", 20)
        place.take()
        wait_for(place.sent, "another", 20)
    assert set(map(str, place.sent())) == {str(told("short", "cpu"))}


def test_several_processes_send_one_hint_for_each_job(place: Place) -> None:
    for _ in range(60):
        add(place.store)
    with started(place.hints(), place.hints(), place.hints()):
        wait_for(lambda: len(place.sent()) >= 60, "a hint for each", 20)
    assert len(place.sent()) == 60


def test_a_long_queue_gets_no_more_hints_than_are_wanted(
    place: Place, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints_module, "MOST", 3)
    for _ in range(7):
        add(place.store)
    with started(place.hints()):
        wait_for(lambda: len(place.sent()) == 3, "three hints", 20)
        for _ in range(7):
            assert place.leases.claim("w", ("short",)) is not None
            assert len(place.sent()) <= 3
            place.take()
            waiting = place.leases.waiting(("short",))
            wait_for(lambda waiting=waiting: place.sent() or not waiting, "the next hints", 20)  # type: ignore[misc]
    assert place.leases.claim("w", ("short",)) is None


def test_a_broker_that_is_away_is_told_once_and_hears_of_all_when_it_is_back(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    require(Redis)
    monkeypatch.setattr(hints_module, "RECONNECT_SECONDS", 0.1)
    caplog.set_level(logging.INFO, "stenograf")
    server = Redis()
    with opened(tmp_path / "x.db") as database:
        place = Place(tmp_path, database, server.url)
        hints = place.hints()
        add(place.store)
        try:
            with started(hints):
                wait_for(lambda: "Connection refused" in (hints.failure or ""), "it is noticed", 20)
                server.start()
                wait_for(place.sent, "the hint", 20)
                assert hints.failure is None
                server.freeze()
                wait_for(lambda: hints.failure is not None, "it is noticed", 20)
                add(place.store)
                server.wake()
                wait_for(lambda: len(place.sent()) >= 2, "both hints", 20)
                assert hints.failure is None
        finally:
            place.redis.close()
            server.__exit__()
    said = [entry.getMessage() for entry in caplog.records if entry.name == hints_module.__name__]
    assert len(said) == 4, "away, back, away, back"
    assert "See that it runs" in said[0]
    assert "is reached" in said[1]
    assert server.password not in caplog.text


def test_a_database_that_fails_is_told_once(
    tmp_path: Path, redis_server: Redis, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path / "x.db") as database:
        place = Place(tmp_path, database, redis_server.url)

        def rename(old: str, new: str) -> None:
            with database.write() as connection:
                connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

        add(place.store)
        rename("jobs", "gone")
        with started(place.hints()):
            wait_for(lambda: "no such table" in caplog.text, "it is noticed", 20)
            time.sleep(0.5)  # ten looks
            rename("gone", "jobs")
            wait_for(place.sent, "the hint", 20)
        place.redis.close()
    assert sum("no such table" in entry.getMessage() for entry in caplog.records) == 1
