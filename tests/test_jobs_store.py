"""The jobs as callers see them: handed in, looked at, cancelled, retried, removed."""

from __future__ import annotations

import base64
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from stenograf.errors import (
    EngineFailedError,
    IdempotencyError,
    OptionInvalidError,
    QueueFullError,
    TaskStateError,
    TaskUnknownError,
)
from stenograf.jobs import store as module
from stenograf.jobs.database import Database
from stenograf.jobs.job import UNATTENDED, Job, Lane, NewJob, guess_lane, guess_seconds, new_id
from stenograf.jobs.lease import Leases
from stenograf.jobs.store import JobStore, Signs
from stenograf.jobs.tables import chunks, jobs, transcripts, webhooks
from work import add, chunk, claim, everything, rows, transcript


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def leases(database: Database) -> Leases:
    return Leases(database)


def bring(store: JobStore, leases: Leases, state: str, **new: Any) -> Job:
    """A job in a state, the way that jobs get there."""
    job = add(store, **new)
    if state == "cancelled":
        return store.cancel(job.id)
    if state != "queued":
        held = claim(leases)
        assert held.id == job.id
        if state == "done":
            leases.finish(held, transcript(), [chunk(0)])
        elif state == "error":
            leases.append(held, [chunk(0)])
            leases.fail(held, EngineFailedError("It broke.", "Mend it."))
    return store.get(job.id)


# Handing in


def test_a_job_is_kept_as_it_was_handed_in(store: JobStore, database: Database) -> None:
    before = time.time()
    new = NewJob(
        owner="ann",
        options={"language": "ru", "temperature": 0.1 + 0.2, "trim": None},
        filename="Совещание — 1.ogg",
        file="f" * 32,
        size=12_000,
        digest="d" * 64,
        url="https://example.org/a.ogg",
        lane="long",
        priority=2,
        sync=True,
        retention=60.0,
        webhook_url="https://example.org/hook",
        webhook_secret="whsec_x",
        request_id="r1",
        fingerprint="f" * 64,
    )
    job, is_new = store.add(new)
    assert is_new
    for name in (
        "id", "owner", "options", "filename", "file", "size", "digest", "url", "lane", "priority", "sync", "retention",
        "webhook_url", "webhook_secret", "request_id", "fingerprint",
    ):  # fmt: skip
        assert getattr(job, name) == getattr(new, name), name
    assert (job.state, job.stage, job.attempt, job.failures, job.progress) == ("queued", "waiting", 0, 0, 0.0)
    assert not job.suspect
    assert not job.at_rest
    assert before - 0.1 < job.created_at == job.run_at < time.time() + 0.1
    assert job.audio_seconds == pytest.approx(1.3, abs=1)
    another = Database(database.url.render_as_string(hide_password=False))  # as another process would see it
    assert JobStore(another).get(job.id) == job
    another.close()


def test_ids_sort_by_time() -> None:
    ids = []
    for _ in range(5):
        ids.append(new_id())
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert {uuid.UUID(one).version for one in ids} == {7}
    assert {uuid.UUID(one).variant for one in ids} == {uuid.RFC_4122}
    assert len({new_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("name", "size", "lane"),
    [
        ("note.ogg", 300_000, "short"),
        ("note.OGG", 30_000_000, "long"),
        ("note.wav", 20_000_000, "short"),  # 192 kHz, perhaps
        ("note.wav", 25_000_000, "long"),
        ("clip.mp4", 20_000_000, "short"),  # may be all pictures
        ("clip.mp4", 2_000_000_000, "long"),
        ("no suffix", 1, "short"),
    ],
)
def test_the_lane_is_guessed_and_in_doubt_it_is_the_short_one(name: str, size: int, lane: Lane) -> None:
    assert guess_lane(name, size) == lane
    assert guess_seconds(name, size) > 0


def test_a_queue_that_is_full(database: Database, leases: Leases) -> None:
    store = JobStore(database, max_queued=2)
    first = add(store)
    add(store, lane="long", idempotency_key="k", fingerprint="f")
    before = everything(database)
    with pytest.raises(QueueFullError, match="2 tasks"):
        add(store)
    assert everything(database) == before
    add(store, lane="long", idempotency_key="k", fingerprint="f")  # nothing new: it is told what it has
    claim(leases)
    add(store)
    assert store.get(first.id).state == "processing"


# Idempotency


def test_the_same_key_gives_the_same_job(store: JobStore) -> None:
    new = NewJob(owner="ann", options={}, filename="a", idempotency_key="k", fingerprint="f1")
    job, is_new = store.add(new)
    again = store.add(NewJob(owner="ann", options={}, filename="b", idempotency_key="k", fingerprint="f1"))
    assert is_new
    assert again == (job, False)
    assert len(store.page().items) == 1
    other = store.add(NewJob(owner="bob", options={}, filename="a", idempotency_key="k", fingerprint="f2"))
    assert other[1]


def test_the_same_key_for_another_request(store: JobStore) -> None:
    add(store, idempotency_key="k", fingerprint="f1")
    with pytest.raises(IdempotencyError, match="'k'"):
        add(store, idempotency_key="k", fingerprint="f2")
    assert len(store.page().items) == 1


def test_a_key_is_free_again_once_its_job_is_gone(store: JobStore) -> None:
    first = add(store, idempotency_key="k", fingerprint="f1")
    store.remove(first.id)
    second = add(store, idempotency_key="k", fingerprint="f1")
    assert second.id != first.id
    assert add(store, idempotency_key="k", fingerprint="f1").id == second.id


def test_keys_are_forgotten_after_a_day(store: JobStore) -> None:
    first = add(store, idempotency_key="k", fingerprint="f1")
    assert store.forget_keys() == 0
    assert add(store, idempotency_key="k", fingerprint="f1").id == first.id
    assert store.forget_keys(-1) == 1
    assert add(store, idempotency_key="k", fingerprint="f2").id != first.id


def test_the_same_key_many_times_at_once(store: JobStore) -> None:
    answers: list[tuple[Job, bool]] = []
    barrier = threading.Barrier(8)

    def send() -> None:
        new = NewJob(owner="ann", options={}, filename="a", idempotency_key="k", fingerprint="f")
        barrier.wait()
        answers.append(store.add(new))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job, _ in answers}) == 1
    assert sorted(is_new for _, is_new in answers) == [False] * 7 + [True]


def test_services_that_share_a_database_never_find_it_locked(database: Database) -> None:
    # What reads before it writes must take the lock first: SQLite refuses to turn a reader into a writer.
    failures: list[Exception] = []
    barrier = threading.Barrier(3)

    def send(number: int) -> None:
        mine = Database(database.url.render_as_string(hide_password=False))  # as another process has it
        store = JobStore(mine, max_queued=1000)
        barrier.wait()
        try:
            for n in range(40):
                new = {"filename": str(number), "idempotency_key": f"k{n}", "fingerprint": "f"}
                add(store, **new)
        except Exception as error:
            failures.append(error)
        mine.close()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(JobStore(database).page(limit=1000).items) == 40


# Owners


def test_another_owners_job_is_as_unknown_as_one_that_never_was(store: JobStore) -> None:
    job = add(store, owner="ann")
    calls: list[Callable[[str, str], object]] = [store.get, store.cancel, store.retry, store.remove]
    for call in calls:
        said = []
        for job_id in (job.id, new_id()):
            with pytest.raises(TaskUnknownError) as caught:
                call(job_id, "bob")
            said.append(str(caught.value).replace(job_id, "ID"))
        assert said[0] == said[1]
    assert store.page("bob").items == ()
    assert store.page("ann").items == (job,)
    assert store.page().items == (job,)
    assert store.get(job.id) == job
    assert store.get(job.id, "ann") == job


def test_an_id_of_any_length_gives_a_short_message(store: JobStore) -> None:
    with pytest.raises(TaskUnknownError) as caught:
        store.get("x" * 10_000)
    assert len(str(caught.value)) < 300
    with pytest.raises(TaskUnknownError):
        store.transcript("none")


# Lists


def walk(store: JobStore, limit: int, **filters: Any) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = store.page(cursor=cursor, limit=limit, **filters)
        assert len(page.items) <= limit
        found += [job.id for job in page.items]
        cursor = page.next
        if cursor is None:
            return found
        assert len(found) < 100


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_pages_hold_each_job_once_even_those_of_the_same_moment(
    store: JobStore, database: Database, limit: int
) -> None:
    made = [add(store).id for _ in range(7)]
    with database.write() as connection:
        same = jobs.update().where(jobs.c.id.in_(made[:5]))
        connection.execute(same.values(created_at=database.now - 1000.123456789))
    assert walk(store, limit) == sorted(made[5:], reverse=True) + sorted(made[:5], reverse=True)


def test_a_page_is_not_shifted_by_what_comes_in(store: JobStore) -> None:
    old = [add(store).id for _ in range(4)]
    page = store.page(limit=2)
    add(store)
    store.remove(page.items[-1].id)  # not even where the cursor's own job goes
    rest = store.page(limit=2, cursor=page.next)
    assert {job.id for job in (*page.items, *rest.items)} == set(old)
    assert rest.next is None


@pytest.mark.parametrize(
    "cursor", ["x", "!", "я", "a" * 10_000, base64.b64encode(b"when id").decode(), base64.b64encode(b"\xff").decode()]
)
def test_a_cursor_that_no_page_gave(store: JobStore, cursor: str) -> None:
    with pytest.raises(OptionInvalidError, match="cursor"):
        store.page(cursor=cursor)


def test_lists_by_state(store: JobStore, leases: Leases) -> None:
    by_state = {
        state: bring(store, leases, state).id for state in ("done", "error", "cancelled", "processing", "queued")
    }
    for state, job_id in by_state.items():
        assert walk(store, 2, states=(state,)) == [job_id]
    assert set(walk(store, 2, states=("done", "queued"))) == {by_state["done"], by_state["queued"]}


def test_looking_for_text_in_names_and_transcripts(store: JobStore, leases: Leases) -> None:
    named = add(store, filename="Совещание Ёлка 100%_а.ogg", priority=9).id
    said = add(store, filename="b.ogg", priority=1).id
    held = claim(leases)
    leases.finish(held, transcript("Привет, СТРАНА! Straße \\ x/y"))
    found = {
        "совещание": [named], "СОВЕЩАНИЕ": [named], "ёлка": [named], "ЁЛКА": [named], "ogg": [said, named],
        "привет, страна": [said], "ПРИВЕТ": [said], "STRASSE": [said], "x/y": [said], "\\": [said],
        "100%_": [named], "100%а": [], "0_%": [], "%": [named], "_": [named], "прощай": [],
    }  # fmt: skip
    for text, expected in found.items():
        assert walk(store, 1, text=text) == expected, text
        assert walk(store, 1, text=text, owner="bob") == []


# Cancelling


@pytest.mark.parametrize("state", ["queued", "processing"])
def test_cancelling(store: JobStore, leases: Leases, state: str) -> None:
    job = bring(store, leases, state)
    cancelled = store.cancel(job.id, "ann")
    assert (cancelled.state, cancelled.stage) == ("cancelled", "cancelled")
    assert cancelled.at_rest
    assert cancelled.finished_at is not None
    assert (cancelled.lease_owner, cancelled.lease_until) == (None, None)
    assert store.get(job.id) == cancelled
    assert leases.claim("w", ("short", "long")) is None


def test_cancelling_twice_is_fine_and_is_told_once(store: JobStore, database: Database) -> None:
    job = add(store, webhook_url="https://example.org/hook")
    first = store.cancel(job.id)
    assert store.cancel(job.id) == first
    assert [row["job_id"] for row in rows(database, webhooks)] == [job.id]
    assert '"task.cancelled"' in rows(database, webhooks)[0]["body"]


@pytest.mark.parametrize("state", ["done", "error"])
def test_what_is_over_cannot_be_cancelled(store: JobStore, leases: Leases, database: Database, state: str) -> None:
    job = bring(store, leases, state)
    before = everything(database)
    with pytest.raises(TaskStateError, match=f"is {state} already"):
        store.cancel(job.id)
    assert everything(database) == before


# Retrying


@pytest.mark.parametrize("state", ["error", "cancelled"])
def test_retrying(store: JobStore, leases: Leases, state: str) -> None:
    job = bring(store, leases, state)
    kept = store.chunks(job.id)
    queued = store.retry(job.id, "ann")
    assert (queued.state, queued.stage, queued.failures, queued.error) == ("queued", "waiting", 0, None)
    assert (queued.finished_at, queued.expires_at) == (None, None)
    assert queued.attempt == job.attempt  # the fence is never set back
    assert store.chunks(job.id) == kept
    assert claim(leases).attempt == job.attempt + 1


@pytest.mark.parametrize("state", ["queued", "processing", "done"])
def test_what_cannot_be_retried(store: JobStore, leases: Leases, database: Database, state: str) -> None:
    job = bring(store, leases, state)
    before = everything(database)
    with pytest.raises(TaskStateError, match=f"is {state} and cannot be retried") as caught:
        store.retry(job.id)
    assert caught.value.hint
    assert everything(database) == before


# Removing, and retention


@pytest.mark.parametrize("state", ["queued", "processing", "done", "error", "cancelled"])
def test_removing(store: JobStore, leases: Leases, database: Database, state: str) -> None:
    job = bring(store, leases, state)
    assert store.remove(job.id, "ann") == job
    assert [rows(database, table) for table in (jobs, chunks, transcripts)] == [[], [], []]
    with pytest.raises(TaskUnknownError):
        store.remove(job.id)


@pytest.mark.parametrize(
    ("default", "own", "kept"),
    [(60.0, None, 60.0), (60.0, 5.0, 5.0), (60.0, 0.0, None), (None, None, None), (0.0, None, None), (None, 5.0, 5.0)],
)
def test_how_long_a_job_is_kept(
    database: Database, default: float | None, own: float | None, kept: float | None
) -> None:
    store, leases = JobStore(database, retention=default), Leases(database, retention=default)
    ends = [bring(store, leases, state, retention=own) for state in ("done", "error", "cancelled")]
    for job in ends:
        assert job.finished_at is not None
        if kept is None:
            assert job.expires_at is None
        else:
            assert job.expires_at == pytest.approx(job.finished_at + kept)


def test_what_has_expired(store: JobStore, leases: Leases, database: Database) -> None:
    made = {
        state: bring(store, leases, state, retention=100.0)
        for state in ("done", "error", "cancelled", "processing", "queued")
    }
    assert store.expired() == []
    with database.write() as connection:
        connection.execute(jobs.update().values(expires_at=database.now - 1))  # even where it makes no sense
    over = {made[state].id for state in ("done", "error", "cancelled")}
    assert {job.id for job in store.expired()} == over
    assert len(store.expired(limit=2)) == 2
    assert not store.remove_expired(made["queued"].id)
    assert not store.remove_expired(made["processing"].id)
    store.retry(made["error"].id)  # between the list and the removal
    assert not store.remove_expired(made["error"].id)
    assert store.remove_expired(made["done"].id)
    assert not store.remove_expired(made["done"].id)
    assert {job.id for job in store.page().items} == {made[s].id for s in made if s != "done"}
    assert rows(database, transcripts) == []


# What can be seen


def test_a_request_that_is_sent_again_finds_its_job(store: JobStore, leases: Leases) -> None:
    assert store.same_request("ann", "f") is None
    done = bring(store, leases, "done", sync=True, fingerprint="f")
    add(store, sync=False, fingerprint="f")
    assert store.same_request("ann", "f") is None
    by_hand = bring(store, leases, "cancelled", sync=True, fingerprint="f")
    assert store.same_request("ann", "f") is None, "who cancelled it meant it"
    cancelled = bring(store, leases, "queued", sync=True, fingerprint="f")
    store.cancel(cancelled.id, stage=UNATTENDED)
    found = store.same_request("ann", "f")
    assert found is not None
    assert found.id == cancelled.id
    assert found.id not in (done.id, by_hand.id)
    assert store.same_request("bob", "f") is None
    assert store.same_request("ann", "g") is None


def test_signs_change_whenever_something_happened(store: JobStore, leases: Leases) -> None:
    job = add(store)
    seen = [store.signs([job.id, "none"])]
    held = claim(leases)
    seen.append(store.signs([job.id]))
    leases.renew(held, progress=0.2)
    seen.append(store.signs([job.id]))
    leases.renew(held, stage="transcribing")
    seen.append(store.signs([job.id]))
    leases.append(held, [chunk(0)])
    seen.append(store.signs([job.id]))
    leases.finish(held, transcript(), [chunk(1)])
    seen.append(store.signs([job.id]))
    assert all(list(signs) == [job.id] for signs in seen)
    assert len({signs[job.id] for signs in seen}) == len(seen)
    assert seen[-1][job.id] == Signs("done", 1, 1.0, "done", 2)
    assert store.signs([]) == {}


def test_chunks_from_one_on(store: JobStore, leases: Leases) -> None:
    job = add(store)
    held = claim(leases)
    leases.append(held, [chunk(0), chunk(1)])
    leases.append(held, [chunk(2)])
    assert [(attempt, index) for attempt, index, _ in store.chunks(job.id)] == [(1, 0), (1, 1), (1, 2)]
    assert [index for _, index, _ in store.chunks(job.id, after=0)] == [1, 2]
    assert store.chunks(job.id, after=2) == []


def test_the_place_in_the_queue(store: JobStore, leases: Leases) -> None:
    urgent = add(store, priority=1)
    first, second = add(store), add(store)
    add(store, lane="long", priority=0)
    later = add(store, priority=9)
    assert [store.outlook(job).position for job in (urgent, first, second, later)] == [0, 1, 2, 3]
    waits = [store.outlook(job).seconds for job in (urgent, first, second, later)]
    assert waits == sorted(waits)
    assert len(set(waits)) == 4
    assert store.outlook(later, lambda _lane: 2).seconds < waits[3]
    held = claim(leases, lanes=("short",))
    leases.renew(held, progress=0.75)
    half = store.outlook(store.get(urgent.id))
    assert half.position == 0
    assert 0 < half.seconds < waits[0]
    assert store.outlook(first).position == 0
    store.cancel(first.id)
    gone = store.outlook(store.get(first.id))
    assert (gone.position, gone.seconds) == (0, 0.0)


def test_the_speed_that_this_machine_has_shown(
    store: JobStore, leases: Leases, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPEED_SECONDS", -1.0)
    guess = store.speed()
    bring(store, leases, "done")
    with database.write() as connection:
        connection.execute(jobs.update().values(started_at=100.0, finished_at=130.0, audio_seconds=10.0))
    assert store.speed() == pytest.approx(3.0)
    bring(store, leases, "error")
    assert store.speed() == pytest.approx(3.0)
    assert guess > 0


def test_counts_and_files(store: JobStore, leases: Leases) -> None:
    bring(store, leases, "done", file="f1")
    bring(store, leases, "cancelled", file="f2", lane="long")
    add(store, file=None)
    add(store, file="f3")
    assert store.counts() == {("done", "short"): 1, ("cancelled", "long"): 1, ("queued", "short"): 2}
    assert store.files() == {"f1", "f2", "f3"}


@pytest.mark.parametrize("database", ["SQLite"], indirect=True)
def test_the_queue_is_read_by_its_index(database: Database, store: JobStore, leases: Leases) -> None:
    # A million may wait: a claim must not look at them all. PostgreSQL plans by the size of a table:
    # benchmarks/capacity.py.
    asked: list[tuple[str, Any]] = []

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def listen(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        asked.append((statement, parameters))

    add(store)
    asked.clear()
    claim(leases)
    leases.waiting(("short", "long"), suspects=True)
    sa.event.remove(database.engine, "before_cursor_execute", listen)
    queries = [(s, p) for s, p in asked if "jobs" in s]
    assert len(queries) == 3
    for statement, parameters in queries:
        with database.read() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        steps = [row[-1] for row in plan]
        # In its order too: nothing that waits is sorted.
        assert any("ix_jobs_queue (state=? AND suspect=? AND lane=? AND need=?" in step for step in steps), steps
        assert not any(step.startswith("SCAN jobs") for step in steps), steps
