"""What workers say to the database: each arrow of the state machine, and the fence at each."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from stenograf.chunk import ChunkResult
from stenograf.errors import EngineFailedError, LeaseLostError, OutOfMemoryError
from stenograf.jobs import lease as module
from stenograf.jobs.database import Database
from stenograf.jobs.job import LANES, Claim
from stenograf.jobs.lease import Leases
from stenograf.jobs.store import JobStore
from stenograf.jobs.tables import chunks, jobs, transcripts, webhooks
from work import (
    add,
    chunk,
    claim,
    claim_all,
    end_lease,
    everything,
    let_rest_be_over,
    quick_spawning,
    rows,
    transcript,
)

HOOK = "https://example.org/hook"


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def leases(database: Database) -> Leases:
    return Leases(database)


BROKEN = EngineFailedError("It broke.", "Mend it.")
FULL = OutOfMemoryError("No room.", "Make some.")


# queued -> processing


def test_a_claim(store: JobStore, leases: Leases) -> None:
    job = add(store)
    held = claim(leases, "w1")
    assert held.id == job.id
    assert held.attempt == 1
    assert held.job == store.get(job.id)
    assert (held.job.state, held.job.attempt, held.job.lease_owner) == ("processing", 1, "w1")
    assert held.job.started_at is not None
    assert held.job.lease_until == pytest.approx(held.job.started_at + 30, abs=0.01)
    assert leases.claim("w2", LANES) is None


def test_the_most_urgent_comes_first_and_then_the_oldest(store: JobStore, leases: Leases) -> None:
    made = [add(store, priority=priority).id for priority in (5, 9, 5, 1, 0, 1)]
    claimed = [claim(leases).id for _ in made]
    assert claimed == [made[i] for i in (4, 3, 5, 0, 2, 1)]


def test_each_lane_has_its_own_queue(store: JobStore, leases: Leases) -> None:
    long, short = add(store, lane="long", priority=1).id, add(store).id
    assert leases.waiting(("short",))
    assert claim(leases, lanes=("short",)).id == short
    assert leases.claim("w", ("short",)) is None
    assert not leases.waiting(("short",))
    assert leases.waiting(LANES)
    assert claim(leases, lanes=("long",)).id == long


def test_a_job_that_rests_is_not_claimed(store: JobStore, leases: Leases, database: Database) -> None:
    job = add(store)
    leases.fail(claim(leases), FULL)
    assert leases.claim("w", LANES) is None
    assert not leases.waiting(LANES)
    let_rest_be_over(database)
    assert claim(leases).id == job.id


def test_threads_never_claim_the_same_job(store: JobStore, database: Database) -> None:
    made = {add(store).id for _ in range(60)}
    claimed: list[str] = []
    barrier = threading.Barrier(6)

    def work() -> None:
        leases = Leases(database)
        barrier.wait()
        while held := leases.claim("w", LANES):
            claimed.append(held.id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(made)


def test_processes_never_claim_the_same_job(store: JobStore, database: Database, tmp_path: Path) -> None:
    made = {add(store).id for _ in range(150)}
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    files = [tmp_path / f"claimed{n}" for n in range(3)]
    processes = [
        context.Process(target=claim_all, args=(database.url.render_as_string(hide_password=False), barrier, file))
        for file in files
    ]
    with quick_spawning():
        for process in processes:
            process.start()
    for process in processes:
        process.join(60)
    claimed = [file.read_text().split() for file in files]
    assert sorted(one for found in claimed for one in found) == sorted(made)
    assert sum(1 for found in claimed if found) > 1  # else it tested nothing
    assert store.counts() == {("done", "short"): 150}


# processing -> done


def test_finishing(store: JobStore, leases: Leases, database: Database) -> None:
    job = add(store, webhook_url=HOOK)
    held = claim(leases)
    leases.append(held, [chunk(0)], progress=0.4)
    leases.finish(held, transcript("Раз. Два."), [chunk(1)], model="m", device="cpu")
    done = store.get(job.id)
    assert (done.state, done.stage, done.progress, done.error) == ("done", "done", 1.0, None)
    assert (done.model, done.device, done.language, done.audio_seconds) == ("m", "cpu", "ru", 1.5)
    assert (done.lease_owner, done.lease_until) == (None, None)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert done.created_at <= done.started_at <= done.finished_at
    assert store.transcript(job.id) == transcript("Раз. Два.").to_dict()
    assert [index for _, index, _ in store.chunks(job.id)] == [0, 1]
    assert [(row["job_id"], row["state"], row["url"]) for row in rows(database, webhooks)] == [
        (job.id, "pending", HOOK)
    ]


@pytest.mark.parametrize("broken", ["transcript", "webhook"])
def test_a_finish_is_all_or_nothing(
    store: JobStore, leases: Leases, database: Database, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    add(store, webhook_url=HOOK)
    held = claim(leases)
    leases.append(held, [chunk(0)])
    if broken == "transcript":  # each is something that the database refuses
        with database.write() as connection:
            connection.execute(transcripts.insert().values(job_id=held.id, transcript={}, text=""))
    elif broken == "webhook":
        with database.write() as connection:
            connection.execute(sa.text("ALTER TABLE webhooks RENAME TO away"))
    before = everything(database, but=webhooks.name)
    with pytest.raises(Exception, match=r"UNIQUE|unique|webhooks"):
        leases.finish(held, transcript(), [chunk(1)])
    assert everything(database, but=webhooks.name) == before
    if broken == "webhook":
        with database.write() as connection:
            connection.execute(sa.text("ALTER TABLE away RENAME TO webhooks"))
    assert store.get(held.id).state == "processing"


def test_a_chunk_whose_commit_was_in_doubt_may_be_said_again(store: JobStore, leases: Leases) -> None:
    job = add(store)
    held = claim(leases)
    leases.append(held, [chunk(0)])
    leases.append(held, [chunk(0), chunk(1)])
    leases.finish(held, transcript(), [chunk(1), chunk(2)])
    assert [index for _, index, _ in store.chunks(job.id)] == [0, 1, 2]


def test_a_webhook_is_promised_only_where_one_was_asked_for(
    store: JobStore, leases: Leases, database: Database
) -> None:
    add(store)
    leases.finish(claim(leases), transcript())
    assert rows(database, webhooks) == []


# processing -> error, or queued again


def test_an_error_that_would_come_again_ends_the_job(store: JobStore, leases: Leases, database: Database) -> None:
    job = add(store, webhook_url=HOOK)
    held = claim(leases)
    leases.append(held, [chunk(0)])
    assert leases.fail(held, BROKEN) == "error"
    ended = store.get(job.id)
    assert (ended.state, ended.stage, ended.failures, ended.attempt) == ("error", "error", 1, 1)
    assert ended.error is not None
    assert ended.error.to_dict() == {"code": "engine_failed", "message": "It broke.", "hint": "Mend it."}
    assert ended.finished_at is not None
    assert len(store.chunks(job.id)) == 1
    (promised,) = rows(database, webhooks)
    assert '"task.error"' in promised["body"]
    assert "engine_failed" in promised["body"]


def test_an_error_that_may_pass_is_tried_three_times_with_growing_rests(
    store: JobStore, leases: Leases, database: Database
) -> None:
    job = add(store, webhook_url=HOOK)
    rests = []
    for attempt in (1, 2):
        assert leases.fail(claim(leases), FULL) == "queued"
        queued = store.get(job.id)
        assert (queued.state, queued.stage, queued.failures, queued.attempt) == ("queued", "waiting", attempt, attempt)
        assert (queued.lease_owner, queued.lease_until, queued.finished_at) == (None, None, None)
        assert queued.error is not None
        assert queued.error.code == "out_of_memory"
        assert not queued.suspect
        assert queued.started_at is not None
        rests.append(queued.run_at - queued.started_at)
        assert rows(database, webhooks) == []
        let_rest_be_over(database)
    assert rests == pytest.approx(list(module.RETRY_SECONDS[:2]), abs=0.5)
    assert leases.fail(claim(leases), FULL) == "error"
    assert store.get(job.id).failures == 3
    assert len(rows(database, webhooks)) == 1


def test_as_many_attempts_as_the_settings_say(store: JobStore, database: Database) -> None:
    once = Leases(database, max_attempts=1)
    add(store)
    assert once.fail(claim(once), FULL) == "error"


def test_a_success_after_a_failure_clears_the_error(store: JobStore, leases: Leases, database: Database) -> None:
    job = add(store)
    leases.fail(claim(leases), FULL)
    let_rest_be_over(database)
    leases.finish(claim(leases), transcript())
    assert store.get(job.id).error is None


# processing -> queued, without blame


def test_releasing(store: JobStore, leases: Leases) -> None:
    job = add(store)
    held = claim(leases)
    leases.append(held, [chunk(0)])
    leases.release(held, [chunk(1)], progress=0.5, stage="transcribing", lane="long")
    queued = store.get(job.id)
    assert (queued.state, queued.stage, queued.lane, queued.progress) == ("queued", "waiting", "long", 0.5)
    assert (queued.attempt, queued.failures, queued.suspect, queued.error) == (1, 0, False, None)
    assert (queued.lease_owner, queued.lease_until) == (None, None)
    assert queued.run_at == job.run_at  # it keeps its place in the queue
    again = claim(leases)
    assert again.attempt == 2
    assert leases.chunks(again) == [chunk(0), chunk(1)]


def test_a_release_does_not_count_however_often(store: JobStore, leases: Leases) -> None:
    job = add(store)
    for _ in range(5):
        leases.release(claim(leases))
    leases.fail(claim(leases), FULL)
    assert (store.get(job.id).failures, store.get(job.id).state) == (1, "queued")


# The lease


def test_a_heartbeat(store: JobStore, leases: Leases) -> None:
    add(store)
    held = claim(leases)
    assert held.job.lease_until is not None
    time.sleep(0.01)
    leases.renew(held, progress=0.25, stage="transcribing", model="m", audio_seconds=4.0)
    job = store.get(held.id)
    assert job.lease_until is not None
    assert job.lease_until > held.job.lease_until
    assert (job.progress, job.stage, job.model, job.audio_seconds) == (0.25, "transcribing", "m", 4.0)
    time.sleep(0.01)
    leases.append(held, [chunk(0)], progress=0.5)
    later = store.get(held.id)
    assert later.lease_until is not None
    assert later.lease_until > job.lease_until
    assert later.progress == 0.5


def test_a_heartbeat_that_comes_too_late_is_refused(store: JobStore, leases: Leases, database: Database) -> None:
    add(store)
    held = claim(leases)
    end_lease(database, held)  # nobody has taken it over yet
    before = everything(database)
    with pytest.raises(LeaseLostError):
        leases.renew(held)
    assert everything(database) == before


def test_what_still_is_mine(store: JobStore, leases: Leases, database: Database) -> None:
    for _ in range(4):
        add(store)
    held = [claim(leases) for _ in range(4)]
    assert leases.still_mine(held) == {one.id for one in held}
    store.cancel(held[0].id)
    store.remove(held[1].id)
    leases.release(held[2])
    claim(leases)
    assert leases.still_mine(held) == {held[3].id}
    assert leases.still_mine([]) == set()


# Reaping


def test_a_lease_that_holds_is_left_alone(store: JobStore, leases: Leases, database: Database) -> None:
    add(store)
    claim(leases)
    before = everything(database)
    assert leases.reap() == 0
    assert everything(database) == before


def test_a_lease_that_ran_out(store: JobStore, leases: Leases, database: Database) -> None:
    job, other = add(store), add(store)
    held = claim(leases)
    leases.append(held, [chunk(0)])
    end_lease(database, held)
    assert leases.reap() == 1
    assert leases.reap() == 0
    queued = store.get(job.id)
    assert (queued.state, queued.stage, queued.attempt, queued.failures) == ("queued", "waiting", 1, 1)
    assert queued.suspect
    assert queued.error is not None
    assert queued.error.code == "worker_lost"
    assert (queued.lease_owner, queued.lease_until) == (None, None)
    assert queued.started_at is not None
    assert queued.run_at > queued.started_at + 0.9
    assert store.get(other.id).state == "queued"
    assert store.get(other.id).failures == 0


def test_a_recording_over_which_workers_die_is_read_alone(store: JobStore, leases: Leases, database: Database) -> None:
    job = add(store)
    end_lease(database, claim(leases))
    leases.reap()
    let_rest_be_over(database)
    assert leases.claim("w", LANES) is None
    assert not leases.waiting(LANES)
    assert leases.waiting(LANES, suspects=True)
    innocent = add(store)
    assert claim(leases, suspects=True).id == job.id
    assert leases.claim("w", LANES, suspects=True) is None
    assert claim(leases).id == innocent.id


def test_after_three_deaths_it_ends_in_error(store: JobStore, leases: Leases, database: Database) -> None:
    job = add(store, filename="злой.ogg", webhook_url=HOOK)
    for death in (1, 2, 3):
        held = claim(leases, suspects=death > 1)
        assert held.attempt == death
        end_lease(database, held)
        assert leases.reap() == 1
        let_rest_be_over(database)
    ended = store.get(job.id)
    assert (ended.state, ended.attempt, ended.failures) == ("error", 3, 3)
    assert ended.error is not None
    assert ended.error.code == "worker_lost"
    assert "злой.ogg" in ended.error.message
    assert ended.error.hint
    assert len(rows(database, webhooks)) == 1
    retried = store.retry(job.id)
    assert (retried.failures, retried.suspect) == (0, True)


def test_deaths_and_failures_count_together(store: JobStore, leases: Leases, database: Database) -> None:
    job = add(store)
    leases.fail(claim(leases), FULL)
    let_rest_be_over(database)
    end_lease(database, claim(leases))
    leases.reap()
    let_rest_be_over(database)
    assert leases.fail(claim(leases, suspects=True), FULL) == "error"
    assert store.get(job.id).failures == 3


def test_two_reapers_count_a_death_once(store: JobStore, leases: Leases, database: Database) -> None:
    jobs = [add(store) for _ in range(20)]
    for _ in jobs:
        end_lease(database, claim(leases))
    barrier = threading.Barrier(4)
    counts: list[int] = []

    def reap() -> None:
        barrier.wait()
        counts.append(Leases(database).reap())

    threads = [threading.Thread(target=reap) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 20
    assert {store.get(job.id).failures for job in jobs} == {1}


def test_a_worker_that_its_supervisor_saw_die(store: JobStore, leases: Leases) -> None:
    dead, alive = add(store), add(store)
    claim(leases, "w1")
    claim(leases, "w2")
    assert leases.abandon("w1") == 1
    assert leases.reap() == 1
    assert (store.get(dead.id).state, store.get(dead.id).failures) == ("queued", 1)
    assert store.get(alive.id).state == "processing"
    assert leases.abandon("w1") == 0


def test_a_worker_that_was_stopped_is_not_blamed(store: JobStore, leases: Leases) -> None:
    stopped, alive = add(store), add(store)
    first = claim(leases, "w1")
    claim(leases, "w2")
    assert leases.abandon("w1", blame=False) == 1
    assert leases.reap() == 0
    queued = store.get(stopped.id)
    assert (queued.state, queued.stage, queued.failures, queued.suspect) == ("queued", "waiting", 0, False)
    assert (queued.lease_owner, queued.lease_until) == (None, None)
    assert store.get(alive.id).state == "processing"
    with pytest.raises(LeaseLostError):
        leases.renew(first)


# The fence: whatever a stale worker says is refused, and nothing is changed


def taken_over(store: JobStore, leases: Leases, database: Database, held: Claim) -> None:
    end_lease(database, held)
    leases.reap()
    let_rest_be_over(database)
    claim(leases, "another", suspects=True)


def taken_over_and_done(store: JobStore, leases: Leases, database: Database, held: Claim) -> None:
    leases.release(held)
    leases.finish(claim(leases, "another"), transcript("Другое."), [chunk(0)])


def reaped(store: JobStore, leases: Leases, database: Database, held: Claim) -> None:
    end_lease(database, held)
    leases.reap()


def cancelled(store: JobStore, leases: Leases, database: Database, held: Claim) -> None:
    store.cancel(held.id)


def cancelled_and_retried(store: JobStore, leases: Leases, database: Database, held: Claim) -> None:
    store.cancel(held.id)
    store.retry(held.id)
    claim(leases, held.job.lease_owner or "")  # even by the same worker


def removed(store: JobStore, leases: Leases, database: Database, held: Claim) -> None:
    store.remove(held.id)


def finished(store: JobStore, leases: Leases, database: Database, held: Claim) -> None:
    leases.finish(held, transcript(), [chunk(0)])


WORDS: dict[str, Callable[[Leases, Claim], object]] = {
    "renew": lambda leases, held: leases.renew(held, progress=0.9),
    "append": lambda leases, held: leases.append(held, [chunk(1)], progress=0.9),
    "finish": lambda leases, held: leases.finish(held, transcript(), [chunk(1)]),
    "fail": lambda leases, held: leases.fail(held, BROKEN),
    "fail for now": lambda leases, held: leases.fail(held, FULL),
    "release": lambda leases, held: leases.release(held, [chunk(1)], lane="long"),
}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "lose", [taken_over, taken_over_and_done, reaped, cancelled, cancelled_and_retried, removed, finished]
)
def test_a_stale_word_is_refused(
    store: JobStore,
    leases: Leases,
    database: Database,
    lose: Callable[[JobStore, Leases, Database, Claim], None],
    word: str,
) -> None:
    add(store, webhook_url=HOOK)
    held = claim(leases)
    lose(store, leases, database, held)
    before = everything(database)
    assert leases.still_mine([held]) == set()
    with pytest.raises(LeaseLostError, match=held.id):
        WORDS[word](leases, held)
    assert everything(database) == before


# Chunks


def test_chunks_come_back_exactly(store: JobStore, leases: Leases) -> None:
    read = [
        chunk(0, 'Кавычки "и" \\ \u2028 😀'),
        ChunkResult(1, 1e-9, 1 / 3, (), None, None),
        ChunkResult(2, 1.0, 2.0, (*chunk(0).segments, *chunk(1).segments), "en", 0.0),
    ]
    add(store)
    held = claim(leases)
    leases.append(held, read[:2])
    leases.append(held, read[2:])
    assert leases.chunks(held) == read


def test_chunks_of_several_attempts_are_one_row(store: JobStore, leases: Leases, database: Database) -> None:
    add(store)
    held = claim(leases)
    leases.append(held, [chunk(0), chunk(1)])
    leases.release(held)
    held = claim(leases)
    leases.append(held, [chunk(2)])
    leases.finish(held, transcript(), [chunk(3)])
    found = sorted((row["index"], row["attempt"]) for row in rows(database, chunks))
    assert found == [(0, 1), (1, 1), (2, 2), (3, 2)]


def test_after_a_hole_chunks_are_not_believed(store: JobStore, leases: Leases) -> None:
    add(store)
    held = claim(leases)
    leases.append(held, [chunk(0), chunk(1), chunk(3)])
    assert leases.chunks(held) == [chunk(0), chunk(1)]


# The database's clock


def test_a_clock_that_jumps_forward_ends_no_lease(store: JobStore, leases: Leases, database: Database) -> None:
    add(store)
    held = claim(leases)
    shift(database, lease_until=-3600.0)  # as if an hour had passed at once
    assert leases.mend(3600.0) == 1
    assert leases.reap() == 0
    leases.renew(held)


def test_a_lease_that_had_run_out_before_the_jump_stays_so(store: JobStore, leases: Leases, database: Database) -> None:
    add(store)
    claim(leases)
    shift(database, lease_until=-3600.0 - 100.0)
    assert leases.mend(3600.0) == 0
    assert leases.reap() == 1


def test_a_clock_that_is_set_back_lets_nothing_rest_for_long(
    store: JobStore, leases: Leases, database: Database
) -> None:
    waiting, working = add(store), add(store, priority=1)
    claim(leases, "dead")
    shift(database, lease_until=7200.0, run_at=7200.0)
    assert leases.claim("w", LANES) is None
    assert leases.mend(-7200.0) == 2
    assert leases.mend(-7200.0) == 0
    assert claim(leases).id == waiting.id
    until = store.get(working.id).lease_until
    assert until is not None
    assert until <= time.time() + leases.seconds + 1


def test_a_rest_after_a_failure_is_left_alone(store: JobStore, leases: Leases) -> None:
    job = add(store)
    leases.fail(claim(leases), FULL)
    before = store.get(job.id).run_at
    assert leases.mend(-5.0) == 0
    assert store.get(job.id).run_at == before


def test_a_jump_is_noticed(store: JobStore, leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store)
    claim(leases)
    assert leases.follow_clock() == 0
    assert leases.follow_clock() == 0
    monkeypatch.setattr(Database, "now", property(lambda self: self._kind.now + 86_400.0))
    assert leases.follow_clock() == pytest.approx(86_400, abs=2)
    assert leases.reap() == 0
    monkeypatch.undo()
    assert leases.follow_clock() == pytest.approx(-86_400, abs=2)
    until = store.page().items[0].lease_until
    assert until is not None
    assert until <= time.time() + leases.seconds + 1


def shift(database: Database, **columns: float) -> None:
    """Move moments of all jobs, as a jump of the clock does in the eyes of the database."""
    with database.write() as connection:
        connection.execute(jobs.update().values({name: jobs.c[name] + by for name, by in columns.items()}))
