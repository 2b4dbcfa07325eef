"""The database: opened, written, brought to today's shape; and what is said where it cannot be."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import filelock
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from stenograf.errors import DatabaseError
from stenograf.jobs import sqlite as module
from stenograf.jobs.database import Database
from stenograf.jobs.lease import Leases
from stenograf.jobs.store import JobStore
from stenograf.jobs.tables import chunks, jobs, metadata
from work import add, chunk, claim, everything, migrate, quick_spawning

assert alembic.command  # loaded now: a test takes rights away that it would need
assert alembic.config


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'data' / 'stenograf.db'}")
    made.migrate()
    yield made
    made.close()


def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_again_changes_nothing(database: Database) -> None:
    add(JobStore(database))
    before = everything(database)
    database.migrate()
    assert everything(database) == before


def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'x.db'}"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=migrate, args=(url, barrier)) for _ in range(3)]
    with quick_spawning():
        for process in processes:
            process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    database = Database(url)
    add(JobStore(database))
    database.close()


def test_a_commit_is_safe_from_a_power_cut(database: Database) -> None:
    with database.read() as connection:
        modes = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert modes == ["wal", 2, 1]


# Transactions


def test_a_transaction_that_fails_leaves_nothing_behind(database: Database) -> None:
    store = JobStore(database)
    job = add(store)
    before = everything(database)

    def write() -> None:
        with database.write() as connection:
            connection.execute(jobs.delete())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert everything(database) == before
    assert store.cancel(job.id).state == "cancelled"  # and nothing is locked


def test_a_commit_that_fails_leaves_nothing_behind(database: Database) -> None:
    before = everything(database)

    def write() -> None:
        with database.write() as connection:
            connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")  # so that it is the commit that fails
            connection.execute(chunks.insert().values(job_id="none", index=0, attempt=1, result={}))

    with pytest.raises(sa.exc.IntegrityError):
        write()
    assert everything(database) == before
    add(JobStore(database))
    assert everything(database) != before


def test_what_is_not_committed_is_seen_by_nobody(database: Database) -> None:
    store = JobStore(database)
    seen: list[int] = []
    with database.write() as connection:
        connection.execute(
            jobs.insert().values(
                id="x", owner="o", state="queued", lane="short", priority=5, options={}, filename="f", search="f",
                size=0, sync=False, created_at=database.now, run_at=database.now, stage="waiting",
            )
        )  # fmt: skip
        reader = threading.Thread(target=lambda: seen.append(len(store.page().items)))
        reader.start()
        reader.join(20)  # readers never wait for a writer
    assert seen == [0]
    assert len(store.page().items) == 1


def test_a_full_disk_is_told_and_the_database_stays_usable(database: Database) -> None:
    def set_limit(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA max_page_count=80")

    store, leases = JobStore(database), Leases(database)
    first = add(store)
    held = claim(leases)
    database.close()  # its connections; the next ones have the limit
    sa.event.listen(database.engine, "connect", set_limit)

    def fill() -> None:
        for number in range(1000):
            leases.append(held, [chunk(number, "x" * 3000)])

    with pytest.raises(DatabaseError, match="disk is full"):
        fill()
    assert len(store.chunks(first.id)) == len(leases.chunks(held)) > 0
    count = len(store.page(limit=1000).items)
    with pytest.raises(DatabaseError, match="disk is full"):
        add(store, filename="x" * 100_000)
    assert len(store.page(limit=1000).items) == count
    sa.event.remove(database.engine, "connect", set_limit)
    sa.event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=9999"))
    database.close()
    assert store.cancel(first.id).state == "cancelled"


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


def test_a_write_waits_for_another_process(database: Database) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(database.url.database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    store = JobStore(database)
    added: list[str] = []
    writer = threading.Thread(target=lambda: added.append(add(store).id))
    writer.start()
    writer.join(0.2)
    assert store.page().items == ()  # who reads need not wait
    assert not added
    other.communicate(b"\n", timeout=20)
    writer.join(20)
    assert [job.id for job in store.page().items] == added


def test_a_database_that_stays_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    database.migrate()
    store = JobStore(database)
    holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match=r"x\.db.*locked"):
        add(store)
    holder.execute("ROLLBACK")
    holder.close()
    add(store)
    database.close()


def test_many_threads_write_at_once(database: Database) -> None:
    store = JobStore(database)
    failures: list[Exception] = []

    def write() -> None:
        try:
            for _ in range(10):
                store.cancel(add(store).id)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.counts() == {("cancelled", "short"): 120}


# What cannot be opened


def problem(url: str) -> DatabaseError:
    with pytest.raises(DatabaseError) as caught:
        Database(url).migrate()
    assert caught.value.hint
    return caught.value


def test_a_newer_database(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    before = everything(database)
    with pytest.raises(DatabaseError, match=r"stenograf\.db was made by a newer version") as caught:
        database.migrate()
    assert "Update" in caught.value.hint
    assert everything(database) == before


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"Dear diary, " * 1000)
    assert "x.db cannot be used: file is not a database" in problem(f"sqlite:///{tmp_path / 'x.db'}").message


def test_a_damaged_database(database: Database, tmp_path: Path) -> None:
    store, leases = JobStore(database), Leases(database)
    for _ in range(50):
        add(store, filename="a" * 1000)
    held = claim(leases)
    leases.append(held, [chunk(n, "а" * 5000) for n in range(5)])
    with database.write() as connection:
        connection.exec_driver_sql("SELECT 1")
    database.close()
    path = tmp_path / "data" / "stenograf.db"
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    with pytest.raises(DatabaseError, match=r"malformed|not a database"):
        store.page(limit=100)
    with pytest.raises(DatabaseError):
        add(store)


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.db").mkdir()
    assert "x.db cannot be used" in problem(f"sqlite:///{tmp_path / 'x.db'}").message


def test_a_folder_that_may_not_be_written(tmp_path: Path, unprivileged: None) -> None:
    (tmp_path / "locked").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'locked' / 'x.db'}")
    (tmp_path / "locked").chmod(0o500)
    with pytest.raises(DatabaseError, match="locked cannot be written"):
        database.migrate()
    with pytest.raises(DatabaseError, match=r"locked/deeper, cannot be made"):
        Database(f"sqlite:///{tmp_path / 'locked' / 'deeper' / 'x.db'}")


def test_a_migration_that_another_process_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    with filelock.FileLock(f"{tmp_path / 'x.db'}.migrate"):
        assert "Another process" in problem(f"sqlite:///{tmp_path / 'x.db'}").message


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite://", "stenograf.db", "postgres//host"])
def test_other_kinds_of_database(url: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        Database(url)
    assert "sqlite:////" in caught.value.hint
