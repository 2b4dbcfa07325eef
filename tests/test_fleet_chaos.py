"""A fleet while its processes and its servers are killed, frozen, emptied and set: each job is done exactly once.

`CHAOS_JOBS` (200) and `CHAOS_SEED` (1) choose how many and which storm; `make chaos N=1000 SEED=7` sets them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos import aftermath
from chaos.client import Client, Clients
from chaos.receiver import SECRET, Receiver
from chaos.recordings import Recording, meeting_in, notes_of, pile_of
from chaos.trouble import Deck
from fleet.clocks import SetPostgres, off_by
from fleet.disk import small_disk
from fleet.fleet import Fleet
from fleet.trouble import FOR_ALL, FOR_RABBITMQ, FleetTrouble
from servers import S3, Postgres, RabbitMQ, Redis, require
from stenograf.runtime import Runtime
from stenograf.settings import Settings

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="there is no SIGSTOP here")

JOBS = int(os.environ.get("CHAOS_JOBS", "200"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))

LEASE = 1.5
READING: dict[str, Any] = {"max_models": 2, "beam_size": 1, "threads": 1}
"""Quick: it is not about what is read, only that it is the same."""

SETTINGS: dict[str, Any] = {
    "lease": LEASE,
    # Who is killed at random is not to blame. That three deaths end a recording is tested in test_jobs_lease.py.
    "max_attempts": 50,
    "webhook_secret": SECRET,
    **READING,
}

FORESEEN = (
    *aftermath.FORESEEN,
    # A server is away.
    "cannot be reached",
    "does not answer",
    "nothing is read here: The disk",
    "nothing is read here for 10 s: The disk",
    "Cannot connect to",
    "Couldn't ack",
    # The database's clock was set on, which ends its waits: for a lock, and for a word in the middle of a write.
    "a row stayed locked by another process",
    "this process was silent for too long in the middle of a write",
    # A process of a pool was killed.
    "exited with 'signal 9 (SIGKILL)'",
    "Worker exited prematurely: signal 9 (SIGKILL)",
    "Could not start worker processes",  # before it had begun: Celery ends itself
    # Celery's own words, which it does not log.
    "Warm shutdown (MainProcess)",
    "-------------- [queues]",
)
"""What may be said at the level ERROR."""


@pytest.fixture(scope="module")
def runtime(models_dir: Path) -> Runtime:
    """What reads the recordings undisturbed."""
    return Runtime(Settings(models_dir=models_dir, default_model="whisper-test", offline=True, **READING))


@pytest.fixture(scope="module")
def meeting(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A recording for the lane `long`."""
    return meeting_in(tmp_path_factory.mktemp("chaos"), runtime)


@pytest.fixture(scope="module")
def notes(runtime: Runtime) -> list[Recording]:
    """Recordings for the lane `short`."""
    return notes_of(runtime)


@pytest.mark.timeout(300 + 2 * JOBS)
def test_every_job_is_done_once_whatever_breaks(
    tmp_path: Path, notes: list[Recording], meeting: Recording, record_property: Callable[[str, object], None]
) -> None:
    for kind in (SetPostgres, Redis, S3):
        require(kind)
    with small_disk(tmp_path / "node-3" / "work") as disk:
        fleet = Fleet(
            tmp_path,
            storage=S3,
            postgres=SetPostgres,
            nodes=3,
            serve=("-m", "fleet.doubled"),
            # Their clocks do not matter, up to the 5 minutes that receivers of webhooks allow, and the 15 of S3.
            environments={"api-2": off_by(-240), "node-2": off_by(600)},
            **SETTINGS,
        )
        pile = pile_of(JOBS, SEED, notes, meeting)
        found = _storm(fleet, pile, {name: -(-count * JOBS // 200) for name, count in FOR_ALL.items()}, disk)
    record_property("chaos", found)


@pytest.mark.timeout(300 + JOBS)
def test_every_job_is_done_once_over_rabbitmq_and_a_shared_folder(
    tmp_path: Path, notes: list[Recording], meeting: Recording, record_property: Callable[[str, object], None]
) -> None:
    for kind in (Postgres, RabbitMQ):
        require(kind)
    jobs = -(-JOBS // 5)
    fleet = Fleet(tmp_path, broker=RabbitMQ, **SETTINGS)
    pile = pile_of(jobs, SEED, notes, meeting)
    deck = {name: -(-count * jobs // 40) for name, count in FOR_RABBITMQ.items()}
    record_property("chaos", _storm(fleet, pile, deck))


def _storm(fleet: Fleet, pile: list[Recording], deck: Deck, disk: Path | None = None) -> dict[str, Any]:
    with Receiver(SEED) as receiver, fleet:
        began = time.monotonic()
        trouble = FleetTrouble(fleet, SEED, deck, jobs=len(pile), lease=LEASE, disk=disk)
        clients = Clients(fleet.urls, pile, done=lambda: _done(fleet), webhook_url=receiver.url)
        clients.start()
        trouble.run()
        clients.join()
        storm = time.monotonic() - began
        fleet.wait_until_ready()
        fleet.until(lambda: _all_done(fleet, len(pile)), 120 + JOBS, "every job is done, its webhook delivered")
        took = time.monotonic() - began
        with Client(*fleet.urls) as client:
            for one in clients.sent:
                assert client.result(one.task) == one.recording.transcript, one.filename
                assert clients.seen.get(one.task, one.recording.transcript) == one.recording.transcript
        assert set(fleet.stop().values()) == {0}
        psutil.wait_procs(fleet.processes(), timeout=5)
        assert fleet.processes() == []
        found = {
            "seed": SEED,
            "jobs": len(pile),
            "seconds of storm": round(storm, 1),
            "seconds in all": round(took, 1),
            **trouble.counts,
            **aftermath.figures(fleet, clients.sent, receiver),
            "orphans swept": aftermath.sweep(fleet),
        }
        print("\n" + "\n".join(f"{name:>32}: {value}" for name, value in found.items()))
        assert len(clients.sent) == len(pile)
        aftermath.check_jobs(fleet, clients.sent)
        aftermath.check_chunks(fleet, clients.sent)
        aftermath.check_words(fleet)
        aftermath.check_webhooks(fleet, clients.sent, receiver)
        aftermath.check_files(fleet, clients.sent)
        fleet.check_database()
        assert aftermath.surprises(fleet, FORESEEN) == []
        for program in fleet.programs:
            assert [secret for secret in fleet.secrets if secret in program.log] == [], program.name
    return found


def _done(fleet: Fleet) -> int:
    while True:
        try:
            return fleet.done(seconds=2.0)
        except FleetTrouble.AWAY:
            time.sleep(0.2)


def _all_done(fleet: Fleet, count: int) -> bool:
    fleet.hurry()
    arrived = fleet.ask("SELECT count(*) AS n FROM webhooks WHERE state = 'delivered'")[0]["n"]
    time.sleep(0.5)
    return bool(fleet.done() == arrived == count)
