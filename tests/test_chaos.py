"""Real jobs while the service is killed and frozen: each is done once, and reads as if nothing had happened.

`CHAOS_JOBS` (200) and `CHAOS_SEED` (1) choose how many and which storm; `make chaos N=1000 SEED=7` sets them.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from chaos import aftermath
from chaos.client import Client, Clients
from chaos.receiver import SECRET, Receiver
from chaos.recordings import Recording, clip, joined, undisturbed
from chaos.service import Service
from chaos.trouble import TWO_HUNDRED, Trouble
from stenograf.runtime import Runtime
from stenograf.settings import Settings

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="there is no SIGSTOP here")

JOBS = int(os.environ.get("CHAOS_JOBS", "200"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))

LEASE = 2.0
SETTINGS = {
    "lease": LEASE,
    # Who is killed at random is not to blame. That three deaths end a recording is tested in test_jobs_lease.py.
    "max_attempts": 50,
    "slots": 3,
    "max_models": 2,
    "private_networks": "127.0.0.0/8",
    "webhook_secret": SECRET,
    "auth": False,
}


@pytest.fixture(scope="module")
def runtime(models_dir: Path) -> Runtime:
    """What reads the recordings undisturbed."""
    return Runtime(Settings(models_dir=models_dir, default_model="whisper-test", offline=True, max_models=2))


@pytest.fixture(scope="module")
def meeting(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A recording for the lane `long`: two minutes and a half."""
    names = ("ru-long.ogg", "ru-12.flac", "ru-long.ogg", "ru-05.flac", "ru-09.flac", "ru-01.flac", "ru-02.flac")
    path = joined(tmp_path_factory.mktemp("chaos") / "meeting.ogg", [clip(name) for name in names])
    return undisturbed(path, runtime, language="ru")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, **SETTINGS) as service:
        yield service


@pytest.mark.timeout(240 + 2 * JOBS)
def test_every_job_is_done_once_through_kills_and_freezes(
    tmp_path: Path, runtime: Runtime, meeting: Recording, record_property: Callable[[str, object], None]
) -> None:
    pile = _pile(runtime, meeting)
    with Receiver(SEED) as receiver, Service(tmp_path, **SETTINGS) as service:
        began = time.monotonic()
        trouble = Trouble(service, SEED, {name: -(-n * JOBS // 200) for name, n in TWO_HUNDRED.items()}, lease=LEASE)
        clients = Clients(service.url, pile, pause=0.8 * trouble.seconds / JOBS, webhook_url=receiver.url)
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
            "orphans swept": aftermath.check_files(service, clients.sent),
        }
        print("\n" + "\n".join(f"{name:>32}: {value}" for name, value in found.items()))
        record_property("chaos", found)
        assert len(clients.sent) == len(pile)
        aftermath.check_jobs(service, clients.sent)
        aftermath.check_chunks(service, clients.sent)
        aftermath.check_webhooks(service, clients.sent, receiver)
        aftermath.check_database(service)
        assert aftermath.surprises(service) == []


def _pile(runtime: Runtime, meeting: Recording) -> list[Recording]:
    """So many as there are jobs, in a random order: most of 2 to 4 s, some of a minute, some for the lane `long`."""
    names = sorted(path.name for path in clip("").glob("*.flac"))
    notes = [undisturbed(clip(name), runtime) for name in names]
    notes += [undisturbed(clip(name), runtime, model="gigaam-test") for name in names if name.startswith("ru")]
    minutes = [undisturbed(clip(name), runtime) for name in ("ru-long.ogg", "en-long.ogg")]
    long = [*minutes * max(JOBS // 100, 1), *[meeting] * max(JOBS // 100, 1)][:JOBS]
    pile = [*long, *itertools.islice(itertools.cycle(notes), JOBS - len(long))]
    random.Random(SEED).shuffle(pile)
    return pile


def _all_done(service: Service, count: int) -> bool:
    service.hurry()
    done = service.ask("SELECT count(*) AS n FROM jobs WHERE state = 'done'")[0]["n"]
    arrived = service.ask("SELECT count(*) AS n FROM webhooks WHERE state = 'delivered'")[0]["n"]
    time.sleep(0.5)
    return bool(done == arrived == count)
