"""Addresses, passwords and names that are wrong, and servers that come later: what `serve` and `worker` say and do."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from api_server import until
from fleet.disk import small_disk
from live_server import MODELS, LiveServer, live
from servers import S3, Postgres, RabbitMQ, Redis, free_port, require
from stenograf.cli import patience
from stenograf.errors import DatabaseError, DatabaseUnreachableError, SettingInvalidError
from stenograf.jobs.broker import check_url
from stenograf.jobs.database import Database
from stenograf.runtime import Runtime
from stenograf.settings import Settings
from work import LONG, SHORT

pytestmark = [
    pytest.mark.by_hand,
    pytest.mark.timeout(150),
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Celery's workers are a matter of Unix"),
]

COMMANDS = {"serve": ("serve", "--port", "0"), "worker": ("worker",)}
WRONG = "wr@ng/s3cret?of:us"
"""A password that is none, with characters that an address must have escaped."""

QUOTED = quote(WRONG, safe="")


class Running:
    """A command that runs, and what it says."""

    def __init__(self, folder: Path, command: tuple[str, ...], **settings: str) -> None:
        told = {
            "data_dir": str(folder / "data"),
            "models_dir": str(MODELS),
            "default_model": "whisper-test",
            "offline": "true",
            "auth": "false",
            "workers": "1",
            "log_level": "debug",
            **settings,
        }
        self._log = folder / f"{command[0]}.log"
        folder.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stenograf", *command],
                env=os.environ | {f"STENOGRAF_{name.upper()}": value for name, value in told.items()},
                cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    @property
    def told(self) -> str:
        """The last words, an error and its hint."""
        return self.log[self.log.rindex("Error: ") :]

    def until_logged(self, *texts: str, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while not all(text in self.log for text in texts):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"{texts} was not said:\n{self.log}"
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(45)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def both(folder: Path, **settings: str) -> Iterator[tuple[Running, Running]]:
    """`serve` and `worker`, at once, with data of their own."""
    running = [Running(folder / name, command, **settings) for name, command in COMMANDS.items()]
    try:
        yield running[0], running[1]
    finally:
        for one in running:
            one.end()


def refused(folder: Path, **settings: str) -> list[str]:
    """The last words of `serve` and `worker`, which cannot begin; the status of both is that of an error."""
    with both(folder, **settings) as running:
        for one in running:
            assert one.process.wait(60) in (1, 2), one.log
            assert "Traceback" not in one.log
            expect_no_secret(one.log)
        return [one.told for one in running]


def make_database(folder: Path) -> None:
    """The database that `worker` of `both` finds: without one it would not begin."""
    runtime = Runtime(Settings(data_dir=folder / "worker" / "data"))
    runtime.database.migrate()
    runtime.database.close()


def expect_no_secret(text: str, *others: str) -> None:
    pieces = ["wr@ng", "s3cret", QUOTED, "wr%40ng", *others]
    assert [piece for piece in pieces if piece in text] == [], text


def loud_tracebacks(log: str) -> list[str]:
    """The lines, above the level debug, that a traceback follows."""
    lines = [line for line in log.splitlines() if re.match(r"\d{4}-|    Traceback", line)]
    followed = [line for line, after in itertools.pairwise(lines) if after.startswith("    ")]
    return [line for line in followed if not line.startswith("    ") and " DEBUG " not in line]


def ready(url: str) -> tuple[int, dict[str, Any]]:
    answer = httpx2.get(f"{url}/ready", trust_env=False, timeout=20)
    expect_no_secret(answer.text)
    return answer.status_code, dict(answer.json()["checks"])


def until_ready(url: str, check: str, is_ok: bool, log: Running | LiveServer) -> dict[str, Any]:
    """Wait until a check says so; all checks."""
    deadline = time.monotonic() + 40
    while True:
        status, checks = ready(url)
        if checks.get(check, {"ok": False})["ok"] == is_ok:
            assert status == (200 if all(one["ok"] for one in checks.values()) else 503)
            return checks
        assert time.monotonic() < deadline, f"{check} is not {is_ok}: {checks}\n{log.log}"
        time.sleep(0.2)


def send(url: str, path: Path = SHORT) -> httpx2.Response:
    return httpx2.post(
        f"{url}/api/v1/transcribe", files={"file": (path.name, path.read_bytes())}, trust_env=False, timeout=30
    )


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def address_of(running: Running) -> str:
    running.until_logged("listens on")
    found = re.search(r"listens on (http://[^\s,]+)", running.log)
    assert found
    running.until_logged("startup complete")
    return found[1]


@pytest.mark.parametrize(
    ("wrong", "words", "hint"),
    [
        ("password", "password authentication failed for user", "Check the user, the password"),
        ("name", 'database "nonesuch" does not exist', "the name of the database"),
        ("right", "may not do that (permission denied for schema public)", "the owner of the database"),
    ],
)
def test_a_database_that_does_not_take_us(
    tmp_path: Path, postgres: Postgres, wrong: str, words: str, hint: str
) -> None:
    with postgres.database() as url:
        where = url.rpartition("@")[2]
        urls = {
            "password": f"postgresql://stenograf:{QUOTED}@{where}",
            "name": url.rpartition("/")[0] + "/nonesuch",
            "right": f"postgresql://guest:{QUOTED}@{where}",
        }
        if wrong == "right":
            postgres._do(f"CREATE ROLE guest LOGIN PASSWORD '{WRONG}'")
        try:
            told = refused(tmp_path, database_url=urls[wrong])
        finally:
            if wrong == "right":
                postgres._do("DROP ROLE guest")
    for words_of_one in told:
        shown = f"postgresql://{urls[wrong].rpartition('@')[2]}"
        assert shown in words_of_one
        assert words in words_of_one
        assert hint in words_of_one
        expect_no_secret(words_of_one, postgres.password)


def test_a_database_that_a_newer_version_made(tmp_path: Path, postgres: Postgres) -> None:
    with postgres.database() as url:
        runtime = Runtime(Settings(data_dir=tmp_path, database_url=url))
        runtime.database.migrate()
        with runtime.database.write() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        runtime.database.close()
        for told in refused(tmp_path, database_url=url):
            assert "was made by a newer version of Stenograf" in told
            assert "Update Stenograf" in told
            expect_no_secret(told, postgres.password)


def test_workers_of_a_broker_without_the_database_of_a_service(tmp_path: Path, redis_server: Redis) -> None:
    environment = os.environ | {"STENOGRAF_BROKER_URL": redis_server.url, "STENOGRAF_DATA_DIR": str(tmp_path / "data")}
    for command in (["stenograf", "worker"], ["celery", "-A", "stenograf.celery_app", "worker"]):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 2), done.stderr
        assert "no service has work in it" in done.stderr
        assert "Set STENOGRAF_DATABASE_URL" in done.stderr
        assert not (tmp_path / "data" / "stenograf.db").exists()


def test_celery_does_not_begin_with_a_database_that_refuses_it(
    tmp_path: Path, postgres: Postgres, redis_server: Redis
) -> None:
    wrong = postgres.url.replace(postgres.url.split("://")[1].split("@")[0].split(":")[1], QUOTED)
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "stenograf.celery_app", "worker"],
        env=os.environ | {"STENOGRAF_BROKER_URL": redis_server.url, "STENOGRAF_DATABASE_URL": wrong},
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "takes no connection from us" in done.stderr
    assert "Check the user, the password" in done.stderr
    expect_no_secret(done.stderr + done.stdout)


def test_the_doctor_before_the_first_start(tmp_path: Path, postgres: Postgres) -> None:
    with postgres.database() as url:
        done = subprocess.run(
            [sys.executable, "-m", "stenograf", "doctor", "--json"],
            env=os.environ | {"STENOGRAF_DATABASE_URL": url, "STENOGRAF_UPLOAD_DIR": str(tmp_path / "files")},
            cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
    told = {found["topic"]: found for found in json.loads(done.stdout)}
    assert told["database"]["ok"]
    assert "the first stenograf serve makes its tables" in told["database"]["text"]
    assert told["storage"]["ok"]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"database_url": f"postgresql://u:{WRONG}@127.0.0.1:1/name"}, id="database"),
        pytest.param({"broker_url": f"redis://:{WRONG}@127.0.0.1:1/0"}, id="broker"),
    ],
)
def test_a_password_that_is_not_escaped(tmp_path: Path, settings: dict[str, str]) -> None:
    for told in refused(tmp_path, **settings):
        assert "%40 for @, %2F for /" in told


@pytest.mark.parametrize("password", [WRONG, "wr@ng", "wr@ng/s3cret", "wr@ng?s3cret", "wr@ng/1?s3cret"])
def test_a_database_whose_password_is_not_escaped(password: str) -> None:
    with pytest.raises(DatabaseError, match="%40 for @") as caught:
        Database(f"postgresql://u:{password}@127.0.0.1:1/name")
    expect_no_secret(str(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret/1@127.0.0.1:1/0",
        "redis://:1?s3cret@127.0.0.1:1/0",
        "amqp://s3cret:12?3@127.0.0.1:1//",
        "amqp://s3cret:12#3@127.0.0.1:1//",
        "amqp://s3cret:12/3@127.0.0.1:1//",
        f"amqp://u:{WRONG}@127.0.0.1:1//",
    ],
)
def test_a_broker_whose_password_is_not_escaped(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingInvalidError, match="%40 for @") as caught:
        check_url(Settings(data_dir=tmp_path, broker_url=url))
    expect_no_secret(str(caught.value))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/0", "redis://", "redis://127.0.0.1:99999/0", "redis://127.0.0.1:1/name", "127.0.0.1:6379"],
)
def test_what_is_no_address_of_a_broker(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingInvalidError, match=r"STENOGRAF_BROKER_URL.*redis://:password@host:6379/0"):
        check_url(Settings(data_dir=tmp_path, broker_url=url))


def test_there_is_no_broker(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalidError, match="No message broker is set"):
        check_url(Settings(data_dir=tmp_path))


@pytest.mark.parametrize("url", ["redis://:p%40ss@host", "rediss://:p@ss@host/3", "amqp://u:p@host:5672/place"])
def test_addresses_of_brokers(tmp_path: Path, url: str) -> None:
    assert check_url(Settings(data_dir=tmp_path, broker_url=url)) == url


def test_a_database_that_stays_away_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "START_SECONDS", 0.0)
    url = f"postgresql://u:{QUOTED}@127.0.0.1:{free_port()}/name"
    with pytest.raises(DatabaseUnreachableError, match="cannot be reached: Connection refused") as caught:
        patience.opened(Runtime(Settings(data_dir=tmp_path, database_url=url)))
    expect_no_secret(str(caught.value))


def test_servers_that_come_later_and_go_away_for_a_while(tmp_path: Path) -> None:
    for kind in (Postgres, Redis):
        require(kind)
    postgres, redis = Postgres(fsync=False), Redis()
    hidden = postgres.password, redis.password, quote(postgres.password, safe=""), quote(redis.password, safe="")
    with both(tmp_path, database_url=postgres.url, broker_url=redis.url, upload_dir=str(tmp_path / "files")) as running:
        serve, worker = running
        try:
            for one in running:
                one.until_logged("try 1: The database postgresql://127.0.0.1:", "cannot be reached", "tried again in")
            postgres.start()
            url = address_of(serve)
            checks = until_ready(url, "database", True, serve)
            assert not checks["broker"]["ok"]
            assert send(url).status_code == 202
            worker.until_logged("Cannot connect to redis://", "Trying again")
            redis.start()
            until_ready(url, "broker", True, serve)
            worker.until_logged(" done ")

            postgres.kill()
            checks = until_ready(url, "database", False, serve)
            assert checks["broker"]["ok"]
            answer = send(url)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unreachable")
            assert answer.headers["retry-after"]
            for secret in hidden:
                assert secret not in answer.text
            postgres.start()
            assert until_ready(url, "database", True, serve)["database"]["ok"]

            redis.kill()
            checks = until_ready(url, "broker", False, serve)
            assert "begin when it can" in checks["broker"]["detail"]
            assert checks["database"]["ok"]
            redis.start()
            until_ready(url, "broker", True, serve)
            assert send(url).status_code == 202
            one_more = re.compile(r" done .*\n(?:.*\n)* *.* done ")
            deadline = time.monotonic() + 40
            while not one_more.search(worker.log):
                assert time.monotonic() < deadline, worker.log
                time.sleep(0.1)
            assert {one.stop() for one in running} == {0}
        finally:
            redis.__exit__()
            postgres.__exit__()
        for one in running:
            expect_no_secret(one.log, *hidden)
            assert loud_tracebacks(one.log) == []


def test_the_disk_of_the_database_is_full_for_longer_than_a_lease(tmp_path: Path, postgres: Postgres) -> None:
    with small_disk(postgres.folder / "small", 48) as disk:
        if disk is None:
            pytest.skip("no disk can be mounted here")
        shutil.chown(disk, "postgres", "postgres")
        postgres._do(f"CREATE TABLESPACE small LOCATION '{disk}'")
        postgres._do("CREATE DATABASE small TABLESPACE small")
        settings = {"database_url": postgres._address("small"), "workers": "1", "lease": "5"}
        try:
            with live(tmp_path, **settings) as server, server.client() as web:
                tasks = [send(server.url, LONG).json()["task_id"]]
                path = f"/api/v1/tasks/{tasks[0]}"
                until(lambda: web.get(path).json()["progress"] > 0.1, 40, every=0.2)
                with pytest.raises(OSError, match="No space"):
                    fill(disk / "filler")
                while (answer := send(server.url)).status_code == 202:  # a little fits still
                    tasks.append(answer.json()["task_id"])
                assert (answer.status_code, answer.json()["code"]) == (503, "database_failed")
                time.sleep(3 * 5)
                (disk / "filler").unlink()
                until(lambda: not web.get("/api/v1/tasks", params={"status": ["queued", "processing"]}).json()["items"],
                      40, every=0.5)  # fmt: skip
                found = web.get("/api/v1/tasks", params={"limit": 100}).json()["items"]
                assert {task["task_id"] for task in found} == set(tasks)
                assert {(task["status"], task["attempt"]) for task in found} == {("done", 1)}
                assert "its disk is full" in server.log
                assert "Traceback" not in server.log
        finally:
            postgres._do("DROP DATABASE small WITH (FORCE)")
            postgres._do("DROP TABLESPACE small")


@pytest.mark.parametrize("kind", ["Redis", "RabbitMQ"])
def test_a_broker_that_does_not_take_us(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    server: Redis | RabbitMQ = request.getfixturevalue("redis_server" if kind == "Redis" else "rabbitmq")
    right = quote(server.password, safe="")
    wrong = server.url.replace(right, QUOTED)
    make_database(tmp_path)
    with both(tmp_path, broker_url=wrong) as (serve, worker):
        url = address_of(serve)
        serve.until_logged(f"//127.0.0.1:{server.port}/", "refuses us", "Check the user and the password")
        until_ready(url, "broker", False, serve)
        assert send(url).status_code == 202
        worker.until_logged("Cannot connect to", "Trying again")
        time.sleep(4)  # several tries
        assert serve.log.count("refuses us") == 1, "it is told once"
        assert [one.stop() for one in (serve, worker)] == [0, 0]
        for one in (serve, worker):
            expect_no_secret(one.log)
            assert "Traceback" not in one.log


@pytest.mark.parametrize("what", ["queue", "exchange"])
def test_what_is_of_another_kind_ends_a_worker_with_an_error(tmp_path: Path, rabbitmq: RabbitMQ, what: str) -> None:
    from kombu import Connection, Exchange, Queue

    name = f"odd-{secrets.token_hex(4)}"
    with Connection(rabbitmq.url) as connection:
        exchange = Exchange(name, type="topic" if what == "queue" else "direct", durable=True)(connection)
        exchange.declare()
        if what == "queue":
            Queue(f"{name}.short.cpu", exchange, routing_key=f"{name}.short.cpu", durable=True)(connection).declare()
    make_database(tmp_path)
    with both(tmp_path, broker_url=rabbitmq.url, queue_name=name) as (serve, worker):
        assert worker.process.wait(60) == 1, "who runs it is to start it again"
        for one in (worker, serve):
            one.until_logged("PRECONDITION_FAILED", f"{what} '{name}", "of another kind", "Remove it")
        assert "Traceback" not in worker.log
        assert not ready(address_of(serve))[1]["broker"]["ok"]
        assert serve.stop() == 0
        expect_no_secret(worker.log, rabbitmq.password)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"storage_url": "s3://no-such-bucket"}, ("There is no bucket no-such-bucket",), id="bucket"),
        pytest.param({"s3_secret_key": WRONG}, ("refuses", "SignatureDoesNotMatch"), id="secret"),
        pytest.param({"s3_access_key": "nobody"}, ("refuses",), id="key"),
        pytest.param({"s3_endpoint": "http://127.0.0.1:1"}, ("does not answer", "127.0.0.1:1"), id="endpoint"),
    ],
)
def test_an_object_store_that_does_not_take_us(
    tmp_path: Path, s3: S3, settings: dict[str, str], words: tuple[str, ...]
) -> None:
    told = {**s3.settings, **settings}
    with live(tmp_path, log="listens on", log_level="debug", workers="1", **told) as server:
        until_ready(server.url, "storage", False, server)
        if "s3_endpoint" not in settings:  # else it is tried again for long: test_jobs_bucket.py
            answer = send(server.url)
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
            expect_no_secret(answer.text, s3.secret_key)
        expect_no_secret(server.log, s3.secret_key)
        for word in words:
            assert word in server.log
        assert "Traceback" not in server.log


def test_a_bucket_that_is_made_later(tmp_path: Path, s3: S3) -> None:
    from datetime import timedelta

    import obstore
    from obstore.store import S3Store

    bucket = f"later-{secrets.token_hex(4)}"
    with live(tmp_path, log="listens on", workers="1", **{**s3.settings, "storage_url": f"s3://{bucket}"}) as server:
        until_ready(server.url, "storage", False, server)
        store = S3Store(
            bucket,
            endpoint=s3.endpoint,
            region=s3.region,
            access_key_id=s3.access_key,
            secret_access_key=s3.secret_key,
            client_options={"allow_http": True},
        )
        made = httpx2.put(obstore.sign(store, "PUT", "", timedelta(minutes=1)), trust_env=False)
        assert made.status_code == 200, made.text
        until_ready(server.url, "storage", True, server)
        assert send(server.url).status_code == 202
