"""The private servers of the tests: they start, check passwords, and break as they are told to."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar
from urllib.parse import quote

import httpx2
import obstore
import psycopg
import pytest
import redis
from amqp import AccessRefused  # type: ignore[import-untyped]
from kombu import Connection
from obstore.exceptions import BaseError, PermissionDeniedError

from servers import S3, Postgres, RabbitMQ, Redis, Server, require

Kind = TypeVar("Kind", bound=Server)


@contextmanager
def running(kind: type[Kind]) -> Iterator[Kind]:
    require(kind)
    with kind() as server:
        yield server


pytestmark = pytest.mark.by_hand


def check_freeze(server: Server) -> None:
    server.answers()
    server.freeze()
    try:
        with pytest.raises(Exception, match=r"(?i)time|refused|reset|closed"):
            server.answers()
    finally:
        server.wake()
    server._until_answers()


def kill(server: Server) -> None:
    server.kill()
    with pytest.raises(Exception, match=r"."):
        server.answers()


def test_postgres() -> None:
    with running(Postgres) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
        with server.database() as url, psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'kept'").fetchone() == (0,)
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(url)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url, password="wrong")
        check_freeze(server)
        kill(server)
        server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_redis() -> None:
    with running(Redis) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("lost", "42")
            assert client.get("lost") == b"42"
        with redis.Redis(port=server.port, password="wrong") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        check_freeze(server)
        kill(server)
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("lost") is None


def test_rabbitmq() -> None:
    with running(RabbitMQ) as server:
        with Connection(server.url) as connection, connection.SimpleQueue("kept") as queue:
            queue.put({"answer": 42})
        wrong = server.url.replace(quote(server.password, safe=""), "wrong")
        with Connection(wrong) as connection, pytest.raises(AccessRefused):
            connection.connect()
        check_freeze(server)
        kill(server)
        server.start()
        with Connection(server.url) as connection, connection.SimpleQueue("kept") as queue:
            assert queue.get(timeout=10).payload == {"answer": 42}


def test_s3() -> None:
    with running(S3) as server:
        bucket, minute = server.client(), timedelta(minutes=1)
        content = secrets.token_bytes(9_000_000)
        obstore.put(bucket, "kept", content, chunk_size=5 << 20)  # in parts
        link = obstore.sign(bucket, "GET", "kept", minute)
        part = httpx2.get(link, headers={"Range": "bytes=5242878-5242881"}, trust_env=False)
        assert (part.status_code, part.content) == (206, content[5242878:5242882])
        assert httpx2.get(link + "0", trust_env=False).status_code == 403
        with pytest.raises(PermissionDeniedError):
            obstore.get(server.client(secret_access_key="wrong"), "kept")
        with pytest.raises((BaseError, OSError)):
            obstore.get(server.client(access_key_id="nobody"), "kept")

        check_freeze(server)
        kill(server)
        server.start()
        assert bytes(obstore.get(bucket, "kept").bytes()) == content
