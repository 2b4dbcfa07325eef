"""Real worker processes: they work, die, freeze, hang and are stopped, and no job is lost with them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from stenograf.jobs import lease as lease_module
from stenograf.jobs import supervisor as module
from stenograf.jobs.dispatch import Event
from stenograf.jobs.job import LANES, Job
from stenograf.jobs.post import Post, posts
from stenograf.jobs.supervisor import QUARANTINE, Supervisor
from stenograf.jobs.tables import chunks
from stenograf.options import Options
from stenograf.runtime import Runtime, work
from stenograf.settings import Settings
from work import (
    LONG,
    SHORT,
    TESTS,
    claim,
    die_at_once,
    hand_in,
    quick_spawning,
    rows,
    runtime,
    wait_for,
    work_that_keeps_memory,
    work_with_a_failpoint,
    work_without_patience,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="stops and kills processes by signals")

QUICK: dict[str, Any] = {"temperature": 0.0}
HALF: dict[str, Any] = {**QUICK, "trim": 30.0}
ONE = Post("worker-1", 1)


@dataclass
class Crew:
    """A supervisor at work, and what it told."""

    service: Runtime
    supervisor: Supervisor
    events: list[Event] = field(default_factory=list)

    def hand_in(self, recording: Path, **new: Any) -> Job:
        job = hand_in(self.service, recording, **{"options": QUICK, **new})
        self.supervisor.wake()
        return job

    def job(self, job_id: str) -> Job:
        return self.service.jobs.get(job_id)

    def wait(self, *jobs: Job, state: str = "done") -> None:
        for job in jobs:
            wait_for(lambda job=job: self.job(job.id).state == state, f"{job.filename} is {state}")  # type: ignore[misc]

    def wait_for_chunks(self, job: Job, count: int = 1) -> None:
        wait_for(lambda: len(self.service.jobs.chunks(job.id)) >= count, "chunks were kept")

    def gone(self) -> list[tuple[str, str]]:
        return [(event["worker"], event["reason"]) for event in self.events if event["event"] == "worker_gone"]

    def read_once(self, job: Job) -> list[int]:
        """The attempts that read each chunk, in order; fails where one is missing."""
        found = sorted(
            (row["index"], row["attempt"]) for row in rows(self.service.database, chunks) if row["job_id"] == job.id
        )
        assert [index for index, _ in found] == list(range(len(found)))
        return [attempt for _, attempt in found]


@contextlib.contextmanager
def at_work(service: Runtime, *crew: Post, work: Callable[[Settings, Connection, Post], None] = work) -> Iterator[Crew]:
    events: list[Event] = []
    at = partial(work, service.settings)
    supervisor = Supervisor(service.leases, list(crew), work=at, on_event=events.append)
    with quick_spawning():
        supervisor.start()
        try:
            yield Crew(service, supervisor, events)
        finally:
            supervisor.stop()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Runtime]:
    with runtime(tmp_path, lease=600.0, threads=1) as made:  # no test waits for a lease to run out
        yield made


@pytest.fixture(scope="module")
def half(models_dir: Path) -> dict[str, Any]:
    """The result of the long recording's start, read without a disturbance."""
    transcriber = Runtime(Settings(models_dir=models_dir, offline=True, threads=1)).reader.transcriber("whisper-test")
    with contextlib.closing(transcriber):
        return transcriber.transcribe(LONG, Options(language="ru", beam_size=1, **HALF)).to_dict()


def replaced(crew: Crew, pid: int) -> bool:
    return crew.supervisor.processes().get("worker-1", pid) != pid


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def no_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed or died is tried again at once."""
    monkeypatch.setattr(lease_module, "RETRY_SECONDS", (0.0,))
    monkeypatch.setattr(module, "YOUNG_SECONDS", 0.0)


# At work


def test_a_crew_works(service: Runtime) -> None:
    short, long = Post("short-1", 2, ("short",), preload=True), Post("long-1", 1, ("long",))
    with at_work(service, short, long) as crew:
        pids = crew.supervisor.processes()
        assert set(pids) == {"short-1", "long-1"}
        made = [crew.hand_in(SHORT) for _ in range(3)] + [crew.hand_in(SHORT, lane="long", priority=1)]
        crew.wait(*made)
        for job in made:
            assert crew.service.jobs.transcript(job.id)["text"] == "Код шесть четыре ноль восемь."
            assert (crew.job(job.id).attempt, crew.job(job.id).failures) == (1, 0)
        assert crew.supervisor.processes() == pids
        wait_for(lambda: len([e for e in crew.events if e["event"] == "job_finished"]) == 4, "all was told")
        told = {event["event"] for event in crew.events}
        assert {"model_loaded", "job", "job_finished", "worker_memory"} <= told
        assert {event["worker"] for event in crew.events if event["event"] == "worker_memory"} == set(pids)
    assert crew.supervisor.processes() == {}
    assert all(is_gone(pid) for pid in pids.values())
    assert crew.gone() == []


def test_who_is_hired() -> None:
    def crew(device: str = "cpu", **settings: int) -> list[tuple[str, int, tuple[str, ...]]]:
        made = posts(Settings(device=device, **settings), hinted=True)  # type: ignore[arg-type]
        assert [post.on_demand for post in made] == ["short" not in post.lanes for post in made]
        assert [post.preload for post in made] == ["short" in post.lanes for post in made]
        return [(post.name, post.slots, post.lanes) for post in made]

    assert crew() == [("short-1", 2, ("short",)), ("long-1", 1, ("long",))]
    assert crew("cuda:0") == [("worker-1", 3, LANES)]
    assert crew(slots=1) == [("worker-1", 1, LANES)]
    assert crew(workers=1, slots=4) == [("worker-1", 4, LANES)]
    assert crew(workers=2, slots=1) == [("short-1", 1, ("short",)), ("long-1", 1, ("long",))]
    assert crew(workers=4, slots=9) == [
        ("short-1", 3, ("short",)),
        ("short-2", 3, ("short",)),
        ("long-1", 2, ("long",)),
        ("long-2", 1, ("long",)),
    ]
    (gpu,) = posts(Settings(device="cuda"), hinted=True)
    assert [gpu.lanes_of(slot) for slot in range(3)] == [("short",), LANES, LANES]
    assert ONE.lanes_of(0) == LANES


# Death


def test_a_worker_that_is_killed_is_replaced_and_its_job_goes_on(service: Runtime, half: dict[str, Any]) -> None:
    with at_work(service, ONE) as crew:
        job = crew.hand_in(LONG, options=HALF)
        crew.wait_for_chunks(job, 2)
        pid = crew.supervisor.processes()["worker-1"]
        os.kill(pid, signal.SIGKILL)
        crew.wait(job)
        done = crew.job(job.id)
        assert (done.attempt, done.failures, done.suspect, done.error) == (2, 1, True, None)
        attempts = crew.read_once(job)
        assert attempts == sorted(attempts)
        assert set(attempts) == {1, 2}  # it went on where the first had stopped
        assert {**service.jobs.transcript(job.id), "timings": {}} == {**half, "timings": {}}
        assert crew.gone()[0] == ("worker-1", "crashed")
        wait_for(partial(replaced, crew, pid), "another took its place")
        assert "worker-1" in crew.supervisor.processes()


def test_a_recording_that_kills_every_worker_ends_in_error_and_the_others_are_read(
    service: Runtime, no_rests: None
) -> None:
    owners: dict[str, set[str]] = {}
    with at_work(service, Post("worker-1", 2), work=work_with_a_failpoint) as crew:
        neighbours = [hand_in(service, SHORT, options=QUICK, priority=priority) for priority in (1, 9, 9)]
        poison = hand_in(service, SHORT, options=QUICK, filename="poison.flac")
        crew.supervisor.wake()

        def over() -> bool:
            job = crew.job(poison.id)
            if job.lease_owner:
                owners.setdefault(
                    job.lease_owner.removeprefix(f"{socket.gethostname()}-").partition("-")[2].rpartition("-")[0], set()
                ).add(job.lease_owner)
            return job.state == "error"

        wait_for(over, "the poison was found out")
        crew.wait(*neighbours)
        ended = crew.job(poison.id)
        assert (ended.attempt, ended.failures) == (3, 3)
        assert ended.error is not None
        assert ended.error.code == "worker_lost"
        assert "poison.flac" in ended.error.message
        assert [name for name, reason in crew.gone() if reason == "crashed"] == ["worker-1", QUARANTINE, QUARANTINE]
        assert set(owners) <= {"worker-1", QUARANTINE}
        assert all(crew.job(job.id).failures <= 1 for job in neighbours)
        assert not any(event.get("job") == poison.id and event["event"] == "job_finished" for event in crew.events)


def test_a_worker_that_hangs_is_replaced(tmp_path: Path, no_rests: None) -> None:
    with (
        runtime(tmp_path, lease=600.0, threads=1, stall=1.0, max_attempts=1) as service,
        at_work(service, ONE, work=work_with_a_failpoint) as crew,
    ):
        hanging = crew.hand_in(SHORT, filename="hang.flac")
        crew.wait(hanging, state="error")
        error = crew.job(hanging.id).error
        assert error is not None
        assert error.code == "worker_lost"
        assert crew.gone() == [("worker-1", "hung")]
        crew.wait(crew.hand_in(SHORT))


def test_a_worker_that_freezes_and_wakes_is_refused(tmp_path: Path, half: dict[str, Any]) -> None:
    with runtime(tmp_path, lease=3.0, threads=1) as service, at_work(service, ONE) as crew:
        job = crew.hand_in(LONG, options=HALF)
        crew.wait_for_chunks(job, 1)
        frozen = crew.supervisor.processes()["worker-1"]
        os.kill(frozen, signal.SIGSTOP)
        wait_for(service.leases.reap, "its lease ran out")
        wait_for(lambda: f"-{QUARANTINE}-" in (crew.job(job.id).lease_owner or ""), "another took it over")
        os.kill(frozen, signal.SIGCONT)
        crew.wait(job)
        crew.wait(crew.hand_in(SHORT))  # by the one that was frozen: it has given up the other
        assert crew.supervisor.processes()["worker-1"] == frozen
        done = crew.job(job.id)
        assert (done.attempt, done.failures) == (2, 1)
        attempts = crew.read_once(job)
        assert attempts == sorted(attempts)
        assert attempts[-1] == 2
        assert {**service.jobs.transcript(job.id), "timings": {}} == {**half, "timings": {}}
        assert len([e for e in crew.events if e["event"] == "job_finished" and e["attempt"] == 2]) == 1


def test_in_quarantine_nobody_else_is_let_in(service: Runtime, no_rests: None) -> None:
    suspect = hand_in(service, LONG, options={**QUICK, "trim": 15.0}, lane="long")
    claim(service.leases, "dead")
    service.leases.abandon("dead")
    service.leases.reap()
    innocent = hand_in(service, SHORT, options=QUICK)
    with at_work(service, work=work_without_patience) as crew:  # nobody but the quarantine, which comes by itself
        crew.wait(suspect)
        wait_for(crew.gone, "it ended when it had nothing to do")
    assert crew.gone() == [(QUARANTINE, "stopped")]
    assert crew.job(innocent.id).state == "queued"
    assert crew.job(innocent.id).attempt == 0


def test_a_worker_that_grew_too_large_is_replaced_when_its_job_is_done(tmp_path: Path) -> None:
    with runtime(tmp_path, worker_memory=1, threads=1) as service, at_work(service, ONE) as crew:
        first = crew.hand_in(SHORT)
        crew.wait(first)
        wait_for(lambda: crew.gone() == [("worker-1", "recycled")], "it made way")
        second = crew.hand_in(SHORT)
        crew.wait(second)
        for job in (first, second):
            assert (crew.job(job.id).attempt, crew.job(job.id).failures) == (1, 0)


def test_a_worker_that_keeps_memory_after_its_models_went_is_replaced(tmp_path: Path) -> None:
    post = replace(ONE, preload=True)
    with (
        runtime(tmp_path, model_idle=0.5, threads=1) as service,
        at_work(service, post, work=work_that_keeps_memory) as crew,
    ):
        wait_for(lambda: crew.gone() == [("worker-1", "recycled")], "it made way")
        loads = [event for event in crew.events if event["event"] == "model_loaded"]
        assert len(loads) == 1  # at its start; the fresh one waits until it is asked
        wait_for(crew.supervisor.processes, "another took over")
        job = crew.hand_in(SHORT)
        crew.wait(job)
        assert (crew.job(job.id).attempt, crew.job(job.id).failures) == (1, 0)
        loads = [event for event in crew.events if event["event"] == "model_loaded"]
        assert len(loads) == 2


def test_a_worker_on_demand_comes_and_goes(service: Runtime) -> None:
    with at_work(service, Post("long-1", 1, ("long",), on_demand=True), work=work_without_patience) as crew:
        assert crew.supervisor.processes() == {}
        for time_of_need in (1, 2):
            job = crew.hand_in(SHORT, lane="long")
            crew.wait(job)
            wait_for(lambda: crew.gone() == [("long-1", "stopped")] * time_of_need, "it ended")  # noqa: B023
            assert (crew.job(job.id).attempt, crew.job(job.id).failures) == (1, 0)
        assert crew.supervisor.processes() == {}


# Stopping


def test_stopping_keeps_what_was_read_and_blames_nobody(service: Runtime, half: dict[str, Any]) -> None:
    with at_work(service, ONE) as crew:
        job = crew.hand_in(LONG, options=HALF)
        waiting = crew.hand_in(SHORT, lane="long")
        crew.wait_for_chunks(job, 1)
        crew.supervisor.stop()
        crew.supervisor.stop()  # twice is fine
        assert crew.supervisor.processes() == {}
        stopped = crew.job(job.id)
        assert (stopped.state, stopped.attempt, stopped.failures, stopped.suspect) == ("queued", 1, 0, False)
        assert stopped.lease_owner is None
        first = len(service.jobs.chunks(job.id))
        assert 1 <= first < 6
        assert crew.job(waiting.id).state == "queued"
    with at_work(service, ONE) as crew:
        crew.wait(job, waiting)
        assert crew.read_once(job) == [1] * first + [2] * (6 - first)
        assert {**service.jobs.transcript(job.id), "timings": {}} == {**half, "timings": {}}


def test_a_worker_that_does_not_stop_in_time_is_killed_without_blame(service: Runtime) -> None:
    with at_work(service, ONE, work=work_with_a_failpoint) as crew:
        job = crew.hand_in(SHORT, filename="hang.flac")
        crew.wait(job, state="processing")
        pid = crew.supervisor.processes()["worker-1"]
        crew.supervisor.stop(0.3)
        assert is_gone(pid)
        stopped = crew.job(job.id)
        assert (stopped.state, stopped.attempt, stopped.failures, stopped.suspect) == ("queued", 1, 0, False)


def test_stopping_at_any_time(service: Runtime) -> None:
    never = Supervisor(service.leases, [ONE], work=partial(work, service.settings), on_event=lambda _event: None)
    never.stop()
    with at_work(service, ONE) as crew:
        pid = crew.supervisor.processes()["worker-1"]  # it has hardly begun to start
    assert is_gone(pid)


def test_nothing_is_leaked(service: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "YOUNG_SECONDS", 0.0)
    resource_tracker.ensure_running()  # it stays, for all
    service.database.close()
    before = psutil.Process().num_fds(), threading.active_count()
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    with at_work(service, ONE) as crew:
        pid = crew.supervisor.processes()["worker-1"]
        os.kill(pid, signal.SIGKILL)
        wait_for(partial(replaced, crew, pid), "another took its place")
    service.database.close()
    after = psutil.Process().num_fds(), threading.active_count()
    assert after[0] <= before[0] + 2  # the supervisor's own bell
    assert after[1] == before[1]
    assert {child.pid for child in psutil.Process().children(recursive=True)} == children


# The service itself dies, or is interrupted

SERVICE = """
import json, os, signal, sys, threading, time
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
from stenograf.runtime import work
from stenograf.jobs.post import Post
from stenograf.jobs.supervisor import Supervisor
from work import LONG, hand_in, runtime

def main():
    with runtime(Path(sys.argv[1]), lease=600.0, threads=1) as service:
        at = partial(work, service.settings)
        supervisor = Supervisor(service.leases, [Post("worker-1", 1)], work=at, on_event=lambda event: None)
        supervisor.start()
        {then}

if __name__ == "__main__":
    main()
"""


def run_service(folder: Path, then: str) -> subprocess.Popen[str]:
    program = folder / "service.py"
    program.write_text(SERVICE.format(tests=str(TESTS), then=then))
    return subprocess.Popen(
        [sys.executable, str(program), str(folder / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_workers_end_when_their_service_is_killed(tmp_path: Path) -> None:
    then = """
        job = hand_in(service, LONG, options={"temperature": 0.0, "trim": 30.0})
        while not service.jobs.chunks(job.id):
            time.sleep(0.01)
        print(json.dumps([job.id, *supervisor.processes().values()]), flush=True)
        time.sleep(60)
    """.strip()
    process = run_service(tmp_path, then)
    assert process.stdout is not None
    job_id, pid = json.loads(process.stdout.readline())
    assert not is_gone(pid)
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: is_gone(pid), "the orphan ended")
    again = Runtime(Settings(data_dir=tmp_path / "data"))
    job = again.jobs.get(job_id)
    assert (job.state, job.attempt, job.failures) == ("queued", 1, 0)
    assert again.jobs.chunks(job_id)
    again.database.close()


def test_ctrl_c_is_for_the_service_alone(tmp_path: Path) -> None:
    then = """
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who tests in the background has it ignored
        try:
            print("up", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            supervisor.stop()
            print("stopped", flush=True)
    """.strip()
    process = run_service(tmp_path, then)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(0.3)  # its worker is being started
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == "stopped\n"
    assert err == ""


def test_a_service_that_fails_does_not_wait_for_its_workers(tmp_path: Path) -> None:
    process = run_service(tmp_path, 'raise OSError("the port is taken")')
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "OSError: the port is taken" in err


# What must not trouble the supervisor


def test_neither_an_idle_crew_nor_a_frozen_one_is_any_trouble(service: Runtime) -> None:
    with at_work(service, ONE) as crew:
        crew.wait(crew.hand_in(SHORT))
        wait_for(lambda: any(e["event"] == "job_finished" for e in crew.events), "all was told")
        path = Path(service.settings.data_dir, "stenograf.db-wal")
        before = path.stat()
        time.sleep(0.6)  # who has nothing to do writes nothing
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        pid = crew.supervisor.processes()["worker-1"]
        os.kill(pid, signal.SIGSTOP)

        def hint() -> None:
            for _ in range(2000):
                crew.supervisor.wake()

        hints = threading.Thread(target=hint, daemon=True)
        hints.start()
        hints.join(20)
        stuck = hints.is_alive()
        os.kill(pid, signal.SIGCONT)
        hints.join(20)
        assert not stuck
        crew.wait(crew.hand_in(SHORT))


def test_a_listener_that_fails_and_a_process_that_cannot_be_started(
    service: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "YOUNG_SECONDS", 0.0)

    def fail(event: Event) -> None:
        raise ZeroDivisionError

    supervisor = Supervisor(service.leases, [ONE], work=partial(work, service.settings), on_event=fail)
    with quick_spawning():
        supervisor.start()
    try:
        pid = supervisor.processes()["worker-1"]
        tries: list[int] = []
        pipe: Callable[..., Any] = supervisor._context.Pipe

        def no_pipe(*args: Any, **more: Any) -> Any:
            tries.append(1)
            if len(tries) == 1:
                raise OSError(24, "Too many open files")
            return pipe(*args, **more)

        monkeypatch.setattr(supervisor._context, "Pipe", no_pipe)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: supervisor.processes().get("worker-1", pid) != pid, "another took its place")
        assert len(tries) == 2
        assert "Too many open files" in caplog.text
        assert "an event was not understood" in caplog.text
        job = hand_in(service, SHORT, options=QUICK)
        supervisor.wake()
        wait_for(lambda: service.jobs.get(job.id).state == "done", "the job was done")
    finally:
        supervisor.stop()


def test_a_crew_whose_members_die_at_birth_is_not_restarted_in_a_loop(service: Runtime) -> None:
    with at_work(service, ONE, work=die_at_once) as crew:
        wait_for(lambda: len(crew.gone()) >= 2, "it was tried again")
        time.sleep(1.0)
        assert len(crew.gone()) <= 4
    assert {reason for _, reason in crew.gone()} == {"crashed"}
