"""Several replicas and workers as one service: what is sent to one is seen, heard and stopped at any other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from amqp.exceptions import NotFound  # type: ignore[import-untyped]

from chaos.client import Client
from chaos.program import Program
from chaos.recordings import Recording, clip, joined, undisturbed
from chaos.service import until_answered
from fleet.fleet import Fleet
from servers import HastyRabbitMQ, Postgres, RabbitMQ, Redis, free_port, require
from stenograf.jobs.broker import broker_app
from stenograf.runtime import Runtime
from stenograf.settings import Settings

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Celery's workers are a matter of Unix"),
]

STOP_SECONDS = 2.0
"""How long a worker may go on after a cancel."""

BEGIN_SECONDS = 10.0
"""How long after the return of the broker work may begin."""

INSPECTED = ("ping", "registered", "active_queues")

SLACK_SECONDS = 3.0
"""What a busy machine may take on top of what is promised."""


@pytest.fixture(scope="module")
def runtime(models_dir: Path) -> Runtime:
    return Runtime(Settings(models_dir=models_dir, default_model="whisper-test", offline=True, max_models=2))


@pytest.fixture(scope="module")
def note(runtime: Runtime) -> Recording:
    return undisturbed(clip("ru-01.flac"), runtime)


@pytest.fixture(scope="module")
def lecture(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Three minutes: long enough for something to happen while it is read."""
    path = joined(tmp_path_factory.mktemp("lecture") / "lecture.ogg", [clip("ru-long.ogg")] * 3)
    return undisturbed(path, runtime, language="ru")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Over Redis; each hint is sent twice."""
    for server in (Postgres, Redis):
        require(server)
    with Fleet(
        tmp_path_factory.mktemp("fleet"),
        serve=("-m", "fleet.doubled"),
        environments={"node-gpu": {"STENOGRAF_NEEDS": "gpu"}},
        gpu_models="gigaam-test",
        lease=10,
        max_models=2,
        log_level="debug",
    ) as running:
        yield running
        assert set(running.stop().values()) == {0}, running.log_end()
        expect_quiet(running)


@pytest.fixture(scope="module")
def over_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    for server in (Postgres, RabbitMQ):
        require(server)
    with Fleet(tmp_path_factory.mktemp("rabbit"), broker=RabbitMQ, lease=10, log_level="debug") as running:
        yield running
        assert set(running.stop().values()) == {0}, running.log_end()
        expect_quiet(running)


@pytest.fixture(params=["Redis", pytest.param("RabbitMQ", marks=pytest.mark.by_hand)])
def either(request: pytest.FixtureRequest) -> Fleet:
    found: Fleet = request.getfixturevalue("fleet" if request.param == "Redis" else "over_rabbitmq")
    return found


def expect_quiet(fleet: Fleet) -> None:
    """No secret in any log, and no exception that nobody foresaw."""
    for program in fleet.programs:
        assert [secret for secret in fleet.secrets if secret in program.log] == [], program.name
        loud = [entry for entry in program.entries() if entry["level"] != "DEBUG"]
        assert [entry for entry in loud if "exception" in entry] == [], program.name


def row(fleet: Fleet, task: str) -> dict[str, Any]:
    return fleet.ask("SELECT * FROM jobs WHERE id = ?", task)[0]


def until_state(fleet: Fleet, task: str, *states: str, seconds: float = 40) -> dict[str, Any]:
    fleet.until(lambda: row(fleet, task)["state"] in states, seconds, f"the task is {' or '.join(states)}")
    return row(fleet, task)


def said(fleet: Fleet, task: str, message: str) -> int:
    """How often the workers said something of a task."""
    return sum(
        entry["message"] == message and entry.get("task_id") == task
        for program in fleet.workers
        for entry in program.entries()
    )


def test_tasks_of_all_replicas_are_done_once_though_hints_come_twice(fleet: Fleet, note: Recording) -> None:
    with Client(fleet.urls[0]) as one, Client(fleet.urls[1]) as other:
        tasks = [(one, other)[n % 2].submit(note, f"note-{n}.flac").task for n in range(12)]
        for number, task in enumerate(tasks):
            found = until_state(fleet, task, "done", "error")
            assert (found["state"], found["attempt"], found["failures"]) == ("done", 1, 0)
            assert said(fleet, task, "begun") == 1
            assert (other, one)[number % 2].result(task) == note.transcript


def test_what_is_heard_at_another_replica(fleet: Fleet, lecture: Recording) -> None:
    with Client(fleet.urls[0]) as client:
        sent = client.submit(lecture, "heard.ogg")
        events = list(listen(fleet.urls[1], sent.task))
        assert client.result(sent.task) == lecture.transcript
    names = [name for name, _ in events]
    assert names[-1] == "done"
    assert names.count("done") == 1
    told = [data["progress"] for name, data in events if name == "progress"]
    assert told == sorted(told)
    assert len({progress for progress in told if 0 < progress < 1}) > 3, "it is seen while it is read"
    segments = [data for name, data in events if name == "segment"]
    assert [segment["id"] for segment in segments] == list(range(len(lecture.transcript["segments"])))
    assert [segment["text"] for segment in segments] == [one["text"] for one in lecture.transcript["segments"]]


def test_a_task_is_cancelled_through_another_replica(fleet: Fleet, lecture: Recording) -> None:
    with Client(fleet.urls[0]) as client, httpx2.Client(base_url=fleet.urls[1], trust_env=False, timeout=20) as other:
        sent = client.submit(lecture, "cancelled.ogg")
        fleet.until(lambda: bool(fleet.chunks(sent.task)), 40, "it is being read")
        answer = other.post(f"/api/v1/tasks/{sent.task}/cancel")
        told = time.monotonic()
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "cancelled"
        assert client.look(sent.task)["status"] == "cancelled"
        fleet.until(lambda: said(fleet, sent.task, "cancelled") == 1, 20, "the worker stops")
        assert time.monotonic() - told < STOP_SECONDS + SLACK_SECONDS
    assert 0 < len(fleet.chunks(sent.task)) < lecture.chunks
    assert said(fleet, sent.task, "done") == 0


def test_one_key_at_two_replicas_at_once_is_one_task(fleet: Fleet, note: Recording) -> None:
    before = fleet.ask("SELECT count(*) AS n FROM jobs")[0]["n"]

    def send(number: int) -> tuple[str, bool]:
        with Client(fleet.urls[number % 2]) as client:
            sent = client.submit(note, f"same-{number // 2}.flac")
            return sent.task, sent.replayed

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, range(8)))
    for (one, one_replayed), (other, other_replayed) in zip(answers[::2], answers[1::2], strict=True):
        assert one == other
        assert one_replayed != other_replayed
        until_state(fleet, one, "done")
    assert fleet.ask("SELECT count(*) AS n FROM jobs")[0]["n"] == before + 4
    assert len(fleet.stored()) == before + 4, "what was sent in vain is gone"


def test_celery_knows_its_workers(either: Fleet) -> None:
    asked = {about: celery(either, "inspect", about, "--timeout", "5", "--json") for about in INSPECTED}
    answers = {about: json.loads(process.communicate(timeout=60)[0]) for about, process in asked.items()}
    for answer in answers.values():
        assert len(answer) == 2
        assert "node-2@fleet" in answer
        assert any(name.startswith("stenograf-") for name in answer)
    assert all(one == {"ok": "pong"} for one in answers["ping"].values())
    assert all(one == ["stenograf.run_one"] for one in answers["registered"].values())
    for queues in answers["active_queues"].values():
        assert {queue["name"] for queue in queues} == {"stenograf.short.cpu", "stenograf.long.cpu"}
    if isinstance(either.broker, RabbitMQ):
        broker = broker_app(Settings(broker_url=either.broker.url))
        with broker.connection_for_read() as connection, pytest.raises(NotFound):
            connection.default_channel.queue_declare("celery_delayed_0", passive=True)  # for tasks that begin later


@pytest.mark.by_hand
def test_tasks_that_need_a_gpu_wait_for_one_and_their_hints_are_sent_again(fleet: Fleet, runtime: Runtime) -> None:
    recording = undisturbed(clip("ru-01.flac"), runtime, model="gigaam-test")
    queue = "stenograf.short.gpu"
    with Client(fleet.urls[0]) as client, connected(fleet) as redis:
        sent = client.submit(recording, "gpu.flac")
        fleet.until(lambda: redis.llen(queue) > 0, 20, "a hint waits where workers with a GPU listen")
        redis.delete(queue)  # it is lost
        lost = time.monotonic()
        fleet.until(lambda: redis.llen(queue) > 0, 30, "another is sent")
        assert time.monotonic() - lost < BEGIN_SECONDS
        assert row(fleet, sent.task)["attempt"] == 0, "a worker without a GPU took it"
        with fleet.node("node-gpu", by_celery=True) as node:
            found = until_state(fleet, sent.task, "done", "error")
            assert (found["state"], found["attempt"]) == ("done", 1)
            assert client.result(sent.task) == recording.transcript
            assert [entry["message"] for entry in node.entries() if entry.get("task_id") == sent.task][-1:] == ["done"]
            assert node.stop() == 0
        fleet.until(lambda: redis.llen(queue) <= 1, 5, "no hints are sent for what is done")


@pytest.mark.by_hand
def test_a_node_that_cannot_read_keeps_no_hint_from_others(fleet: Fleet, note: Recording, tmp_path: Path) -> None:
    queue = "stenograf.short.cpu"
    node = fleet.node("node-wrong", by_celery=False)
    node.environment |= {"STENOGRAF_UPLOAD_DIR": str(tmp_path / "another")}
    others = [process for program in fleet.workers for process in program.processes()]
    for process in others:
        process.suspend()
    try:
        with node, Client(fleet.urls[0]) as client, connected(fleet) as redis:
            task = client.submit(note, "passed.flac").task
            fleet.until(lambda: redis.llen(queue) >= 2, 30, "hints wait")
            node.until(lambda: "does not hold the recordings" in node.log, 60, "it took one")
            for _ in range(30):  # for as long as it would take to eat them all
                assert redis.llen(queue) > 0, "hints are lost"
                time.sleep(0.1)
            for process in others:
                process.resume()
            assert until_state(fleet, task, "done", "error")["state"] == "done"
            assert not [entry for entry in node.entries() if "Traceback" in entry["message"]]
            assert node.stop() == 0
    finally:
        for process in others:
            process.resume()


def test_the_broker_goes_away_and_comes_back(either: Fleet, note: Recording) -> None:
    fleet = either
    with httpx2.Client(trust_env=False, timeout=20) as web:
        fleet.broker.kill()
        tasks = []
        for number, url in enumerate(fleet.urls * 2):
            began = time.monotonic()
            answer = web.post(
                f"{url}/api/v1/transcribe", files={"file": (f"away-{number}.flac", note.path.read_bytes())}
            )
            assert answer.status_code == 202, answer.text
            assert time.monotonic() - began < SLACK_SECONDS, "it did not wait for the broker"
            tasks.append(answer.json()["task_id"])
        for url in fleet.urls:
            fleet.until(lambda where=url: not broker_check(web, where)["ok"], 20, "/ready tells it")  # type: ignore[misc]
            shown = broker_check(web, url)["detail"]
            assert "begin when it can" in shown
        assert {row(fleet, task)["state"] for task in tasks} == {"queued"}
        fleet.broker.start()
        back = time.monotonic()
        fleet.until(lambda: any(row(fleet, task)["attempt"] for task in tasks), 60, "work begins")
        assert time.monotonic() - back < BEGIN_SECONDS + SLACK_SECONDS
        for task in tasks:
            assert until_state(fleet, task, "done", "error")["state"] == "done"
        for url in fleet.urls:
            fleet.until(lambda where=url: broker_check(web, where)["ok"], 20, "/ready tells it")  # type: ignore[misc]


def test_four_replicas_make_one_new_database(fleet: Fleet) -> None:
    with fleet.postgres.database() as url:
        ports = [free_port() for _ in range(4)]
        programs = [other(fleet, f"new-{port}", port, url) for port in ports]
        try:
            for program in programs:
                program.start()
            for program, port in zip(programs, ports, strict=True):
                until_answered(program, f"http://127.0.0.1:{port}", 90)
                assert program.starts == 1, program.log
                assert [entry for entry in program.entries() if entry["level"] in ("ERROR", "CRITICAL")] == []
            assert len(ask_at(url, "SELECT version_num FROM alembic_version")) == 1
            assert {program.stop() for program in programs} == {0}
        finally:
            for program in programs:
                program.end()


@pytest.mark.by_hand
def test_a_worker_is_stopped_in_the_middle_of_a_lecture(fleet: Fleet, lecture: Recording) -> None:
    """The last test of this fleet: it leaves one node."""
    with Client(fleet.urls[0]) as client:
        sent = client.submit(lecture, "stopped.ogg")
        fleet.until(lambda: len(fleet.chunks(sent.task)) >= 3, 40, "three chunks are read")
        child, attempt = fleet.at_work(sent.task)
        node = next(program for program in fleet.workers if child in program.processes())
        began = time.monotonic()
        assert node.stop() == 0, node.log_end()
        assert time.monotonic() - began < 30
        assert not psutil.pid_exists(child.pid)
        assert said(fleet, sent.task, "released") == 1
        found = row(fleet, sent.task)
        assert (found["failures"], found["suspect"], found["error"]) == (0, False, None)
        kept = [chunk for chunk in fleet.chunks(sent.task) if chunk[1] <= attempt]
        assert 3 <= len(kept) < lecture.chunks
        found = until_state(fleet, sent.task, "done", "error", seconds=60)
        assert (found["state"], found["attempt"], found["failures"]) == ("done", attempt + 1, 0)
        after = fleet.chunks(sent.task)
        assert after[: len(kept)] == kept
        assert {who for _, who, _ in after[len(kept) :]} == {attempt + 1}
        assert client.result(sent.task) == lecture.transcript


@pytest.mark.by_hand
def test_work_takes_longer_than_rabbitmq_waits(tmp_path: Path, lecture: Recording, note: Recording) -> None:
    for server in (Postgres, HastyRabbitMQ):
        require(server)
    with (
        Fleet(tmp_path, broker=HastyRabbitMQ, replicas=1, lease=10, max_models=2) as fleet,
        Client(fleet.urls[0]) as client,
    ):
        long = client.submit(lecture, "long.ogg").task
        assert until_state(fleet, long, "done", "error", seconds=90)["state"] == "done"
        assert client.result(long) == lecture.transcript
        closed = [node for node in fleet.workers if "PRECONDITION_FAILED" in node.log]
        assert closed, "RabbitMQ was to close a channel"
        short = client.submit(note, "short.flac").task
        assert until_state(fleet, short, "done", "error")["state"] == "done"
        assert [row(fleet, task)["failures"] for task in (long, short)] == [0, 0]
        assert [node.starts for node in fleet.workers] == [1, 1], "a worker died of it"
        assert set(fleet.stop().values()) == {0}


def listen(url: str, task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of a task, up to the end of the stream."""
    with (
        httpx2.Client(trust_env=False, timeout=60) as client,
        client.stream("GET", f"{url}/api/v1/tasks/{task}/events") as answer,
    ):
        assert answer.status_code == 200
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def celery(fleet: Fleet, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "stenograf.celery_app", *arguments]
    return subprocess.Popen(command, env=fleet.cli, stdout=subprocess.PIPE, cwd=fleet.folder)


def connected(fleet: Fleet) -> Any:
    from redis import Redis as Client

    return Client.from_url(fleet.broker.url)


def broker_check(web: httpx2.Client, url: str) -> dict[str, Any]:
    return dict(web.get(f"{url}/ready").json()["checks"]["broker"])


def other(fleet: Fleet, name: str, port: int, database: str) -> Program:
    """A replica on another database."""
    program = fleet.replica(name, port)
    # Its own folder too: that of the fleet belongs to the fleet's database.
    place = program.environment["STENOGRAF_UPLOAD_DIR"] + "-other"
    program.environment |= {"STENOGRAF_DATABASE_URL": database, "STENOGRAF_UPLOAD_DIR": place}
    return program


def ask_at(url: str, query: str) -> list[Any]:
    import psycopg

    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()
