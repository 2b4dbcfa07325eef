"""Waiting for jobs, with a real database and threads that change it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from api_server import SECONDS
from stenograf.api import watch
from stenograf.api.watch import Watcher
from stenograf.errors import DatabaseError, ServiceStoppingError
from stenograf.jobs.database import Database
from stenograf.jobs.job import LANES, NewJob
from stenograf.jobs.lease import Leases
from stenograf.jobs.store import JobStore, Signs
from transcripts import GOLDEN


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def leases(database: Database) -> Leases:
    return Leases(database)


def added(store: JobStore) -> str:
    return store.add(NewJob(owner="me", options={}, filename="a.ogg"))[0].id


def running(store: JobStore, test: Callable[[Watcher], Coroutine[Any, Any, None]], seconds: float = 0.05) -> None:
    """Run `test` with a watcher, that is stopped after it."""

    async def main() -> None:
        watcher = Watcher(store, seconds=seconds)
        watcher.start()
        try:
            async with asyncio.timeout(SECONDS):
                await test(watcher)
        finally:
            await watcher.stop()

    asyncio.run(main())


def test_the_first_look_is_at_once_and_the_next_waits_for_news(store: JobStore, leases: Leases) -> None:
    job = added(store)

    async def test(watcher: Watcher) -> None:
        first = await watcher.wait(job)
        assert first is not None
        assert first.state == "queued"
        assert await watcher.wait(job, first, timeout=0.2) == first
        waiting = asyncio.create_task(watcher.wait(job, first))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        claim = await asyncio.to_thread(leases.claim, "w", LANES)
        second = await waiting
        assert second is not None
        assert second.state == "processing"
        assert claim is not None
        leases.renew(claim, progress=0.5, stage="transcribing")
        third = await watcher.wait(job, second)
        assert third is not None
        assert (third.progress, third.stage) == (0.5, "transcribing")

    running(store, test)


def test_a_nudge_from_a_thread_is_quicker_than_the_next_look(store: JobStore) -> None:
    job = added(store)

    async def test(watcher: Watcher) -> None:
        signs = await watcher.wait(job)
        waiting = asyncio.create_task(watcher.wait(job, signs))
        await asyncio.sleep(0.1)

        def change() -> None:
            store.cancel(job)
            watcher.changed(job)

        threading.Thread(target=change).start()
        found = await waiting
        assert found is not None
        assert found.state == "cancelled"

    running(store, test, seconds=3600)


def test_until_rest(store: JobStore, leases: Leases) -> None:
    job = added(store)

    async def test(watcher: Watcher) -> None:
        waiting = asyncio.create_task(watcher.until_rest(job))
        claim = leases.claim("w", LANES)
        assert claim is not None
        await asyncio.sleep(0.1)
        assert not waiting.done()
        leases.finish(claim, GOLDEN)
        found = await waiting
        assert found is not None
        assert found.state == "done"

    running(store, test)


def test_a_job_that_is_gone(store: JobStore) -> None:
    job = added(store)

    async def test(watcher: Watcher) -> None:
        assert await watcher.wait("no-such-job") is None
        waiting = asyncio.create_task(watcher.until_rest(job))
        await watcher.wait(job)
        store.remove(job)
        assert await waiting is None

    running(store, test)


def test_many_wait_for_the_price_of_one_question(store: JobStore) -> None:
    jobs = [added(store) for _ in range(20)]
    asked: list[int] = []

    class Counted(JobStore):
        def signs(self, ids: Any) -> dict[str, Signs]:
            asked.append(len(ids))
            return store.signs(ids)

    async def test(watcher: Watcher) -> None:
        waiting = [asyncio.create_task(watcher.until_rest(job)) for job in jobs for _ in range(5)]
        await asyncio.sleep(0.3)
        for job in jobs:
            store.cancel(job)
        assert {signs.state for signs in await asyncio.gather(*waiting) if signs} == {"cancelled"}
        assert max(asked) == 20
        assert len(asked) < 40
        count = len(asked)
        await asyncio.sleep(0.2)
        assert len(asked) <= count + 1  # nobody waits, nobody looks

    running(Counted(store._db), test)


def test_stopping_lets_go_of_all_who_wait(store: JobStore) -> None:
    job = added(store)

    async def test(watcher: Watcher) -> None:
        waiting = asyncio.create_task(watcher.until_rest(job))
        await watcher.wait(job)
        threading.Thread(target=watcher.stopping).start()
        with pytest.raises(ServiceStoppingError):
            await waiting
        with pytest.raises(ServiceStoppingError):
            await watcher.wait(job)

    running(store, test)


def test_who_stops_waiting_is_forgotten(store: JobStore) -> None:
    job = added(store)

    async def test(watcher: Watcher) -> None:
        waiting = asyncio.create_task(watcher.until_rest(job))
        await watcher.wait(job)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not watcher._waiters

    running(store, test)


def test_a_database_that_fails_for_a_moment_and_one_that_fails_for_long(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = added(store)
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.5)

    class Failing(JobStore):
        failures = 3

        def signs(self, ids: Any) -> dict[str, Signs]:
            self.failures -= 1
            if self.failures >= 0:
                raise DatabaseError("It is away.")
            return store.signs(ids)

    failing = Failing(store._db)

    async def test(watcher: Watcher) -> None:
        assert await watcher.wait(job) is not None
        failing.failures = 1_000_000
        with pytest.raises(DatabaseError):
            await watcher.wait(job)

    running(failing, test)


def test_a_nudge_without_a_loop_is_nothing(store: JobStore) -> None:
    watcher = Watcher(store)
    watcher.changed("a")

    async def main() -> None:
        watcher.start()
        await watcher.stop()

    asyncio.run(main())
    watcher.changed("a")
    watcher.stopping()
