"""Real jobs while the service is killed and frozen: each is done once, and reads as if nothing had happened.

`CHAOS_JOBS` (200) and `CHAOS_SEED` (1) choose how many and which storm; `make chaos N=1000 SEED=7` sets them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos import aftermath
from chaos.client import Client, Clients
from chaos.receiver import SECRET, Receiver
from chaos.recordings import Recording, meeting_in, notes_of, pile_of
from chaos.service import Service
from chaos.trouble import TWO_HUNDRED, ServiceTrouble
from stenograf.runtime import Runtime
from stenograf.settings import Settings

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="there is no SIGSTOP here")

JOBS = int(os.environ.get("CHAOS_JOBS", "200"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))

LEASE = 1.5
READING: dict[str, Any] = {"max_models": 2, "beam_size": 1, "threads": 1}
"""Quick: it is not about what is read, only that it is the same."""

SETTINGS = {
    "lease": LEASE,
    # Who is killed at random is not to blame. That three deaths end a recording is tested in test_jobs_lease.py.
    "max_attempts": 50,
    "slots": 3,
    **READING,
    "private_networks": "127.0.0.0/8",
    "webhook_secret": SECRET,
    "auth": False,
}


@pytest.fixture(scope="module")
def runtime(models_dir: Path) -> Runtime:
    """What reads the recordings undisturbed."""
    return Runtime(Settings(models_dir=models_dir, default_model="whisper-test", offline=True, **READING))


@pytest.fixture(scope="module")
def meeting(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A recording for the lane `long`: a little more than two minutes."""
    return meeting_in(tmp_path_factory.mktemp("chaos"), runtime)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for tests of a single blow; a longer lease, since a frozen worker is killed after three."""
    with Service(tmp_path_factory.mktemp("service"), **SETTINGS | {"lease": 8.0}) as service:
        yield service
        assert service.stop() == 0
        assert aftermath.surprises(service) == []


@pytest.mark.timeout(240 + 2 * JOBS)
def test_every_job_is_done_once_through_kills_and_freezes(
    tmp_path: Path, runtime: Runtime, meeting: Recording, record_property: Callable[[str, object], None]
) -> None:
    pile = pile_of(JOBS, SEED, notes_of(runtime), meeting)
    with Receiver(SEED) as receiver, Service(tmp_path, **SETTINGS) as service:
        began = time.monotonic()
        deck = {name: -(-count * JOBS // 200) for name, count in TWO_HUNDRED.items()}
        trouble = ServiceTrouble(service, SEED, deck, jobs=JOBS, lease=LEASE)
        clients = Clients([service.url], pile, done=service.done, webhook_url=receiver.url)
        clients.start()
        trouble.run()
        clients.join()
        storm = time.monotonic() - began
        service.wait_until_ready()
        service.until(lambda: _all_done(service, len(pile)), 120 + JOBS, "every job is done, its webhook delivered")
        took = time.monotonic() - began
        with Client(service.url) as client:
            for one in clients.sent:
                assert client.look(one.task)["status"] == "done"
                assert client.result(one.task) == one.recording.transcript, one.filename
                assert clients.seen.get(one.task, one.recording.transcript) == one.recording.transcript
        assert service.stop() == 0
        psutil.wait_procs(service.processes(), timeout=5)
        assert service.processes() == []
        found = {
            "seed": SEED,
            "jobs": len(pile),
            "seconds of storm": round(storm, 1),
            "seconds in all": round(took, 1),
            **trouble.counts,
            **aftermath.figures(service, clients.sent, receiver),
            "orphans swept": aftermath.sweep(service),
        }
        print("\n" + "\n".join(f"{name:>32}: {value}" for name, value in found.items()))
        record_property("chaos", found)
        assert len(clients.sent) == len(pile)
        aftermath.check_jobs(service, clients.sent)
        aftermath.check_chunks(service, clients.sent)
        aftermath.check_words(service)
        aftermath.check_webhooks(service, clients.sent, receiver)
        aftermath.check_files(service, clients.sent)
        service.check_database()
        assert aftermath.surprises(service) == []


@pytest.mark.parametrize("whom", ["worker", "API", "all"])
def test_a_long_job_that_is_killed_goes_on_after_its_last_chunk(
    service: Service, meeting: Recording, whom: str
) -> None:
    with Client(service.url) as client:
        task = client.submit(meeting, f"{whom}.ogg").task
        service.until(lambda: len(service.chunks(task)) >= 5, 60, "five chunks are read")
        worker, attempt = service.at_work(task)
        if whom == "worker":
            worker.kill()
        elif whom == "API":
            service.kill()
        else:
            service.kill_all()
        psutil.wait_procs([worker], timeout=30)
        before = service.chunks(task)
        assert 5 <= len(before) < meeting.chunks
        assert {found for _, found, _ in before} == {attempt}
        service.until(lambda: client.look(task)["status"] == "done", 90, "the job is done")
        after = service.chunks(task)
        assert after[: len(before)] == before  # not one of them was read again
        assert [index for index, _, _ in after] == list(range(meeting.chunks))
        assert {found for _, found, _ in after[len(before) :]} == {attempt + 1}
        assert client.result(task) == meeting.transcript
        # Workers that see their service die put their jobs back: nobody is to blame.
        failures = service.ask("SELECT failures FROM jobs WHERE id = ?", task)[0]["failures"]
        assert failures == (0 if whom == "API" else 1)


def test_the_words_of_a_worker_that_wakes_after_its_lease_are_refused(service: Service, meeting: Recording) -> None:
    with Client(service.url) as client:
        task = client.submit(meeting, "frozen.ogg").task
        service.until(lambda: len(service.chunks(task)) >= 3, 60, "three chunks are read")
        worker, attempt = service.at_work(task)
        worker.suspend()
        try:
            before = service.chunks(task)
            service.until(lambda: len(service.chunks(task)) > len(before), 60, "another worker goes on")
        finally:
            worker.resume()
        service.until(lambda: (task, attempt) in _lost(service), 30, "the first worker is refused")
        service.until(lambda: client.look(task)["status"] == "done", 90, "the job is done")
        after = service.chunks(task)
        assert after[: len(before)] == before
        assert [index for index, _, _ in after] == list(range(meeting.chunks))
        assert {found for _, found, _ in after[len(before) :]} == {attempt + 1}
        assert client.result(task) == meeting.transcript
        assert worker in service.workers(), "it was refused, and lives"


def _lost(service: Service) -> set[tuple[str, int]]:
    """Task and attempt of each worker that learnt that its job is another's."""
    return {(entry["task_id"], entry["attempt"]) for entry in service.entries() if entry["message"] == "lost"}


def _all_done(service: Service, count: int) -> bool:
    service.hurry()
    arrived = service.ask("SELECT count(*) AS n FROM webhooks WHERE state = 'delivered'")[0]["n"]
    time.sleep(0.5)
    return bool(service.done() == arrived == count)
