"""PostgreSQL's own ways: connections that outlive their server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from servers import Postgres
from stenograf.jobs import postgres as module
from stenograf.jobs.database import Database
from work import wait_for

OTHERS = "datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    with postgres.database() as url:
        made = Database(url)
        yield made
        made.close()


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked to see whether a connection lives."""
    asked: list[str] = []
    execute = psycopg.Connection.execute

    def counted(self: Any, query: Any, *more: Any, **options: Any) -> Any:
        if query == "SELECT 1":
            asked.append(query)
        return execute(self, query, *more, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", counted)
    return asked


def test_a_connection_in_use_is_not_tried_each_time(database: Database, tries: list[str]) -> None:
    for _ in range(5):
        assert ask(database) == 1
    assert tries == []


def test_one_that_rested_for_long_is_tried(
    database: Database, tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(database)
    monkeypatch.setattr(module, "REST_SECONDS", 0.0)
    ask(database)
    assert len(tries) == 1


def test_nobody_is_given_a_connection_that_the_server_has_closed(database: Database, postgres: Postgres) -> None:
    with ExitStack() as held:  # several, so that several are in the pool
        for _ in range(4):
            held.enter_context(database.read())
    other = Database(database.url.render_as_string(hide_password=False))
    with other.read() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")
        left = sa.text(f"SELECT count(*) FROM pg_stat_activity WHERE {OTHERS}")
        wait_for(lambda: connection.scalar(left) == 0, "the server has ended them", 20)
    other.close()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(database))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [1] * 8


def ask(database: Database) -> int:
    with database.read() as connection:
        return int(connection.scalar(sa.text("SELECT 1 AS asked")))
