"""What is counted once over all replicas: quotas, wrong keys; and which secret they share."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from api_server import Server, serve, settings_for, until
from servers import Postgres, Redis, free_port, require
from servers import postgres as postgres
from servers import redis_server as redis_server
from stenograf.api import counters as module
from stenograf.api.auth import FAILURES, access_of
from stenograf.api.counters import AwayError, Backed, Counter, InDatabase, InMemory, InRedis, counter_for
from stenograf.api.tokens import signing_secret
from stenograf.errors import SettingInvalidError
from stenograf.jobs.database import Database
from stenograf.jobs.tables import requests, secrets
from stenograf.settings import Settings

LIST = "/api/v1/tasks"
MOST_SECONDS = 3.0
"""What a request may take while Redis is away."""

Make = Callable[[], Counter]


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    """The address of a fresh database with its tables."""
    with postgres.database() as address:
        database = Database(address)
        database.migrate()
        database.close()
        yield address


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture(params=["memory", "PostgreSQL", "Redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes counters of one kind that share their server, as those of replicas do."""
    with ExitStack() as stack:
        if kind == "memory":
            yield InMemory
        elif kind == "Redis":
            redis: Redis = request.getfixturevalue("redis_server")
            yield lambda: InRedis(redis.url, tmp_path.name)
        else:
            address = request.getfixturevalue("url")

            def connect() -> Counter:
                database = Database(address)
                stack.callback(database.close)
                return InDatabase(database)

            yield connect


# Each kind of counter


def test_a_quota_is_counted_down_and_then_refused(make: Make) -> None:
    counter = make()
    empty = counter.look("a", 3, 60)
    assert (empty.room, empty.left) == (True, 3)
    tallies = [counter.take("a", 3, 60) for _ in range(5)]
    assert [(tally.room, tally.left) for tally in tallies] == [
        (True, 2),
        (True, 1),
        (True, 0),
        (False, 0),
        (False, 0),
    ]
    assert all(30 < tally.seconds <= 60 for tally in (empty, *tallies))
    looked = counter.look("a", 3, 60)
    assert (looked.room, looked.left) == (False, 0)
    assert counter.take("b", 3, 60).left == 2


def test_the_window_moves(make: Make) -> None:
    counter = make()
    counter.take("a", 2, 1)
    time.sleep(0.5)
    counter.take("a", 2, 1)
    full = counter.take("a", 2, 1)
    assert not full.room
    assert full.seconds <= 0.5  # the older one falls out then
    time.sleep(full.seconds + 0.02)
    last = counter.take("a", 2, 1)
    assert (last.room, last.left) == (True, 0)
    assert counter.look("a", 2, 1).seconds <= 0.5


def test_what_is_refused_does_not_count(make: Make) -> None:
    counter = make()
    began = time.monotonic()
    counter.take("a", 1, 1)
    while not counter.take("a", 1, 1).room:
        assert time.monotonic() - began < 20
        time.sleep(0.01)
    assert time.monotonic() - began >= 0.95


def test_no_more_than_the_quota_however_many_ask_at_once(make: Make, kind: str) -> None:
    replicas = [make()] if kind == "memory" else [make(), make()]
    taken: Count[bool] = Count()
    together = threading.Barrier(12)

    def ask(number: int) -> None:
        counter = replicas[number % len(replicas)]
        together.wait(20)
        rooms = [counter.take("a", 30, 60).room for _ in range(5)]
        with lock:
            taken.update(rooms)

    lock = threading.Lock()
    run_at_once(ask, 12)
    assert taken == {True: 30, False: 30}


@pytest.mark.parametrize("kind", ["PostgreSQL", "Redis"])
def test_replicas_count_together_though_their_clocks_differ(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, clock = make(), time.time
    assert ours.take("a", 2, 60).left == 1
    for wrong in (-3600.0, 3600.0):
        theirs = make()
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda off=wrong: clock() + off)
            assert theirs.take("a", 3, 60).seconds <= 60
            theirs.take("a", 3, 60)
            told = theirs.take("a", 3, 60)
        assert (told.room, told.left) == (False, 0)
        assert 30 < told.seconds <= 60


def test_a_quota_that_grows_lets_more_in(make: Make, kind: str) -> None:
    counter = make()
    assert [counter.take("a", 2, 60).room for _ in range(3)] == [True, True, False]
    more = counter.take("a", 4, 60)
    assert more.room
    assert kind == "memory" or more.left == 1


# PostgreSQL


def test_who_hammers_on_costs_the_database_nothing(database: Database) -> None:
    counter = InDatabase(database)
    counter.take("a", 1, 60)
    assert not counter.take("a", 1, 60).room
    database.close()
    said: list[str] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    assert not counter.take("a", 1, 60).room
    assert said == []
    assert counter.take("a", 2, 60).room
    assert any("INSERT INTO requests" in statement for statement in said)


def test_old_requests_in_the_table_count_no_more(database: Database) -> None:
    counter = InDatabase(database)
    assert counter.take("a", 1, 60).room
    with database.write() as connection:
        connection.execute(requests.update().values(at=requests.c.at - 61))
    assert counter.take("a", 1, 60).left == 0
    assert not counter.look("a", 1, 60).room


def test_one_that_is_frozen_while_it_counts_does_not_hold_the_others_for_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_MILLISECONDS", 100)
    counter = InDatabase(database)
    with database.write() as frozen:
        frozen.execute(counter._locking, {"name": "a"})
        with pytest.raises(AwayError):
            counter.take("a", 1, 60)
        assert counter.take("b", 1, 60).room
    assert counter.take("a", 1, 60).room


# Redis


def test_nothing_is_left_in_redis_when_the_window_has_passed(redis_server: Redis, tmp_path: Path) -> None:
    counter = InRedis(redis_server.url, tmp_path.name)
    counter.take("a", 5, 1)
    counter.look("b", 5, 1)
    client = module._client(redis_server.url)
    assert list(client.scan_iter(f"{tmp_path.name}:*")) == [f"{tmp_path.name}:counted:a".encode()]
    until(lambda: not list(client.scan_iter(f"{tmp_path.name}:*")))
    client.close()


def test_options_that_are_for_the_brokers_client_are_left_out(redis_server: Redis, tmp_path: Path) -> None:
    counter = InRedis(f"{redis_server.url}?visibility_timeout=3600&socket_timeout=1000", tmp_path.name)
    assert counter.take("a", 1, 60).room
    given = module._client("rediss://host:1/2?ssl_cert_reqs=CERT_NONE&health_check_interval=9").connection_pool
    assert given.connection_kwargs["ssl_cert_reqs"] == "none"
    assert given.connection_kwargs["db"] == 2
    assert given.connection_kwargs["socket_timeout"] == module.REDIS_SECONDS
    assert "health_check_interval" not in given.connection_kwargs


def test_a_url_that_does_not_read_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalidError, match="broker") as caught:
        InRedis("redis://:hid/den@host:6379/0", "x")
    assert "hid" not in caught.value.message + caught.value.hint
    assert caught.value.__suppress_context__


def test_a_wrong_password_is_told_without_it(redis_server: Redis) -> None:
    counter = InRedis(f"redis://:another@127.0.0.1:{redis_server.port}/0", "x")
    with pytest.raises(AwayError) as caught:
        counter.take("a", 1, 60)
    assert "another" not in str(caught.value)
    assert "password" in str(caught.value)


# Which one, and what where it is away


@pytest.mark.parametrize(
    ("broker", "database", "kinds"),
    [
        (None, "sqlite:///{}/x.db", [InMemory]),
        ("amqp://host//", "sqlite:///{}/x.db", [InMemory]),
        ("redis://host", "sqlite:///{}/x.db", [InRedis, InMemory]),
        (None, "postgresql://host/x", [InDatabase, InMemory]),
        ("amqp://host//", "postgresql://host/x", [InDatabase, InMemory]),
        ("rediss://host", "postgresql://host/x", [InRedis, InDatabase, InMemory]),
    ],
)
def test_who_counts(broker: str | None, database: str, kinds: list[type], tmp_path: Path) -> None:
    opened = Database(database.format(tmp_path))
    counter: Any = counter_for(Settings(broker_url=broker), opened)
    found = []
    while isinstance(counter, Backed):
        assert counter.waits
        found.append(type(counter._first))
        counter = counter._second
    opened.close()
    assert [*found, type(counter)] == kinds


def test_without_a_fleet_no_client_of_redis_is_loaded(run_python: Callable[[str], str]) -> None:
    code = (
        "import sys; from stenograf.api import limits, auth, counters; from stenograf.settings import Settings; "
        "from stenograf.jobs.database import Database; "
        "counters.counter_for(Settings(), Database('sqlite:///x.db')); "
        "print([name for name in ('redis', 'psycopg', 'kombu', 'celery') if name in sys.modules])"
    )
    assert run_python(code) == "[]"


class Breakable:
    """A counter that is away when it is told to be."""

    waits = True

    def __init__(self) -> None:
        self.away = False
        self.asked = 0
        self.counter = InMemory()

    def take(self, name: str, quota: int, seconds: int) -> Any:
        self.asked += 1
        if self.away:
            raise AwayError("it is broken")
        return self.counter.take(name, quota, seconds)

    look = take


def test_the_next_best_counts_and_is_left_when_the_first_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, module.__name__)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.2)
    first = Breakable()
    counter = Backed(first, InMemory(), called="Redis")
    assert counter.take("a", 5, 60).left == 4
    first.away = True
    assert [counter.take("a", 5, 60).left for _ in range(3)] == [4, 3, 2]
    assert first.asked == 2  # once while it was away
    assert counter.look("a", 5, 60).left == 2
    time.sleep(0.25)
    assert counter.take("a", 5, 60).left == 1
    assert first.asked == 3
    first.away = False
    time.sleep(0.25)
    assert counter.take("a", 5, 60).left == 3
    assert [(record.levelname, "broken" in record.message) for record in caplog.records] == [
        ("WARNING", True),
        ("INFO", False),
    ]


def test_where_the_database_is_away_too_each_replica_counts_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(f"postgresql://user:hidden@127.0.0.1:{free_port()}/x")
    settings = Settings(broker_url=f"redis://:hidden@127.0.0.1:{free_port()}/0")
    counter = counter_for(settings, database)
    assert [counter.take("a", 2, 60).room for _ in range(3)] == [True, True, False]
    database.close()
    assert [record.message.split()[0] for record in caplog.records] == ["Redis", "PostgreSQL"]
    assert "hidden" not in caplog.text


# Replicas of the service


@contextmanager
def replicas(folder: Path, url: str, **values: Any) -> Iterator[tuple[Server, Server, str]]:
    """Two services on one database, and a key for them."""
    values = {"auth": True, "database_url": url, "upload_dir": folder / "files"} | values
    with (
        serve(settings_for(folder / "one", **values)) as one,
        serve(settings_for(folder / "two", **values)) as two,
    ):
        _, secret = access_of(one.app).keys.create("a", scopes=["read", "transcribe"])
        until(lambda: two.client.get(LIST).status_code == 401)  # it knows of the key, and asks for one
        yield one, two, secret


def get(server: Server, secret: str) -> httpx2.Response:
    return server.client.get(LIST, headers={"X-API-Key": secret})


def left(answer: httpx2.Response) -> int:
    return int(answer.headers["ratelimit"].partition("r=")[2].partition(";")[0])


def run_at_once(work: Callable[[int], None], count: int) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.fixture(params=["PostgreSQL", "Redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Settings under which replicas count there."""
    if request.param == "PostgreSQL":
        return {}
    redis: Redis = request.getfixturevalue("redis_server")
    return {"broker_url": redis.url, "queue_name": tmp_path.name}


def test_the_quota_holds_over_both_replicas(tmp_path: Path, url: str, broker: dict[str, Any]) -> None:
    with replicas(tmp_path, url, rate_requests=6, **broker) as (one, two, secret):
        answers = [get(server, secret) for server in (one, two) * 4]
        assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 2
        assert [left(answer) for answer in answers] == [5, 4, 3, 2, 1, 0, 0, 0]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


def test_the_quota_is_exact_when_all_come_at_once(tmp_path: Path, url: str, broker: dict[str, Any]) -> None:
    statuses: Count[int] = Count()
    lock = threading.Lock()
    with replicas(tmp_path, url, rate_requests=25, **broker) as (one, two, secret):
        together = threading.Barrier(10)

        def ask(number: int) -> None:
            together.wait(20)
            found = [get((one, two)[number % 2], secret).status_code for _ in range(5)]
            with lock:
                statuses.update(found)

        run_at_once(ask, 10)
    assert statuses == {200: 25, 429: 25}


def test_wrong_keys_are_counted_over_both_replicas(tmp_path: Path, url: str, broker: dict[str, Any]) -> None:
    weak = "a-password-of-the-settings"
    with replicas(tmp_path, url, api_keys=(weak,), **broker) as (one, two, secret):
        statuses = [get(server, f"stg_{number:043}").status_code for number in range(FAILURES) for server in (one, two)]
        assert statuses == [401] * FAILURES + [429] * FAILURES
        # At neither of them is the guess that would have been right told so.
        assert [get(server, weak).status_code for server in (one, two)] == [429, 429]
        assert [get(server, secret).status_code for server in (one, two)] == [200, 200]


def test_a_token_of_one_is_good_at_the_other(tmp_path: Path, url: str) -> None:
    with replicas(tmp_path, url) as (one, two, secret):
        key = access_of(one.app).keys.check(secret)
        form = {"grant_type": "client_credentials", "client_id": key.id, "client_secret": secret}
        token = one.client.post("/api/v1/token", data=form).json()["access_token"]
        assert two.client.get(LIST, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert not (tmp_path / "one" / "jwt.key").exists()


def test_replicas_that_start_at_once_agree_on_the_secret(url: str, tmp_path: Path) -> None:
    databases = [Database(url) for _ in range(6)]
    together = threading.Barrier(len(databases))
    made: set[bytes] = set()

    def start(number: int) -> None:
        together.wait(20)
        made.add(signing_secret(Settings(data_dir=tmp_path / str(number)), databases[number]))

    run_at_once(start, len(databases))
    assert len(made) == 1
    with databases[0].write() as connection:
        connection.execute(secrets.update().values(value="short"))
    with pytest.raises(SettingInvalidError, match="jwt"):
        signing_secret(Settings(data_dir=tmp_path), databases[0])
    assert signing_secret(Settings(jwt_secret="x" * 32), databases[0]) == b"x" * 32
    for database in databases:
        database.close()


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_when_redis_goes_the_database_counts_until_it_is_back(
    how: str, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    require(Redis)
    monkeypatch.setattr(module, "RETRY_SECONDS", 2.0)
    monkeypatch.setattr(module, "REDIS_SECONDS", 0.5)
    with (
        Redis() as redis,
        replicas(tmp_path, url, rate_requests=30, broker_url=redis.url) as (one, two, secret),
    ):
        key = access_of(one.app).keys.check(secret)
        took: list[float] = []

        def ask(server: Server) -> httpx2.Response:
            began = time.monotonic()
            answer = get(server, secret)
            took.append(time.monotonic() - began)
            return answer

        assert [left(ask(server)) for server in (one, two, one)] == [29, 28, 27]
        redis.kill() if how == "killed" else redis.freeze()
        answers = [ask(server) for server in (one, two) * 16]
        assert [answer.status_code for answer in answers] == [200] * 30 + [429] * 2
        assert [left(answer) for answer in answers] == [*range(29, -1, -1), 0, 0]
        redis.start() if how == "killed" else redis.wake()
        for server in (one, two):
            until(lambda server=server: ask(server).status_code == 200)
        client = module._client(redis.url)
        counted = client.llen(f"stenograf:counted:requests:{key.id}")
        client.close()
        assert counted == 30 - left(ask(two)) - 1  # those of both replicas
        print(f"the slowest of {len(took)} requests took {max(took):.2f} s")
        assert max(took) < MOST_SECONDS
    told = [record for record in caplog.records if record.name == module.__name__ and record.levelname == "WARNING"]
    assert len(told) == 2  # one a replica


def test_nobody_else_waits_while_one_is_counted(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(Redis)
    monkeypatch.setattr(module, "REDIS_SECONDS", 5.0)
    with Redis() as redis, replicas(tmp_path, url, broker_url=redis.url) as (one, _, secret):
        assert get(one, secret).status_code == 200
        redis.freeze()
        answers: list[httpx2.Response] = []
        counted = threading.Thread(target=lambda: answers.append(get(one, secret)))
        counted.start()
        time.sleep(0.5)  # by then it waits for Redis
        began = time.monotonic()
        assert one.client.get("/health").status_code == 200
        assert time.monotonic() - began < 2.5
        assert answers == []
        counted.join()
        assert answers[0].status_code == 200


def test_where_the_database_goes_a_request_meets_its_own_error(tmp_path: Path) -> None:
    require(Postgres)
    with (
        Postgres(fsync=False) as postgres,
        replicas(tmp_path, postgres.url, rate_requests=30) as (one, _, secret),
    ):
        assert get(one, secret).status_code == 200
        postgres.kill()
        answers = [get(one, secret) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["code"] for answer in answers} == {"database_unreachable"}
