"""API keys: made, listed, checked, revoked; in a real database, and on the command line."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from stenograf.errors import DatabaseError, KeyUnknownError, OptionInvalidError, SettingInvalidError, UnauthorizedError
from stenograf.jobs.database import Database
from stenograf.keys import CACHE_KEYS, CACHE_SECONDS, KeyStore, check_exposure, is_loopback
from stenograf.setting_sources import load
from stenograf.settings import Settings

LISTED = "a-key-from-an-env-file"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'stenograf.db'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def store(database: Database, clock: Clock) -> KeyStore:
    return KeyStore(database, clock=clock)


def row(tmp_path: Path, key_id: str) -> dict[str, object]:
    connection = sqlite3.connect(tmp_path / "stenograf.db")
    connection.row_factory = sqlite3.Row
    try:
        return dict(connection.execute("SELECT * FROM keys WHERE id = ?", (key_id,)).fetchone())
    finally:
        connection.close()


def test_a_key_is_known_by_its_secret_and_only_by_that(store: KeyStore) -> None:
    key, secret = store.create("newsroom", scopes=["transcribe", "read"], rate=3)
    assert re.fullmatch(r"stg_[A-Za-z0-9_-]{32,}", secret)
    assert secret.startswith(key.prefix)
    assert len(key.prefix) == 12
    found = store.check(secret)
    assert (found.id, found.name, found.scopes, found.rate) == (key.id, "newsroom", ("read", "transcribe"), 3)
    for wrong in (secret[:-1], secret + "x", secret.swapcase(), key.id, key.prefix, "", "Ключ", "\udcff"):
        with pytest.raises(UnauthorizedError):
            store.check(wrong)


def test_the_secret_is_nowhere_in_the_database(store: KeyStore, database: Database, tmp_path: Path) -> None:
    _, secret = store.create("a")
    database.close()
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()
        assert secret[12:].encode() not in file.read_bytes()


def test_keys_see_each_others_tasks_only_if_they_share_an_owner(store: KeyStore) -> None:
    first, _ = store.create("same name")
    second, _ = store.create("same name")
    shared = [store.create(name, owner="team")[0].owner for name in ("a", "b")]
    assert first.owner == first.id != second.owner
    assert shared == ["team", "team"]


def test_a_revoked_key_is_refused_at_once_here_and_within_seconds_elsewhere(
    store: KeyStore, database: Database, clock: Clock
) -> None:
    key, secret = store.create("a")
    elsewhere = KeyStore(database, clock=clock)
    assert elsewhere.check(secret).id == key.id
    assert store.check(secret).id == key.id
    revoked_at = store.revoke(key.id).revoked_at
    assert revoked_at == clock.now
    with pytest.raises(UnauthorizedError):
        store.check(secret)
    assert CACHE_SECONDS < 5
    clock.now += CACHE_SECONDS
    with pytest.raises(UnauthorizedError):
        elsewhere.check(secret)
    with pytest.raises(UnauthorizedError):
        elsewhere.check_id(key.id)
    clock.now += 100
    assert store.revoke(key.id).revoked_at == revoked_at  # it has ended when it ended
    with pytest.raises(KeyUnknownError):
        store.revoke("key_0000000000000000")


def test_the_messages_for_unknown_and_revoked_keys_are_the_same(store: KeyStore) -> None:
    key, secret = store.create("a")
    store.revoke(key.id)
    messages = set()
    for tried in (secret, "stg_" + "x" * 43):
        with pytest.raises(UnauthorizedError) as caught:
            store.check(tried)
        messages.add((caught.value.message, caught.value.hint))
    assert len(messages) == 1


def test_a_key_expires_even_while_it_is_remembered(store: KeyStore, clock: Clock) -> None:
    key, secret = store.create("a", expires_in=1.0)
    assert store.check(secret).state(clock.now) == "good"
    clock.now += 1.0
    with pytest.raises(UnauthorizedError, match="expired"):
        store.check(secret)
    assert store.list()[0].state(clock.now) == "expired"
    assert key.expires_at == clock.now


def test_a_remembered_key_costs_no_question(store: KeyStore, database: Database, clock: Clock) -> None:
    key, secret = store.create("a")
    store.check(secret)
    store.check_id(key.id)
    asked: list[str] = []

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("SELECT"):
            asked.append(statement)

    for _ in range(5):
        store.check(secret)
        store.check_id(key.id)
        store.exists()
    assert asked == []
    clock.now += CACHE_SECONDS
    store.check(secret)
    assert len(asked) == 1
    clock.now -= 3600  # a clock that is set back does not make a key live for an hour
    store.check(secret)
    assert len(asked) == 2


def test_use_is_written_down_once_a_minute(store: KeyStore, clock: Clock, tmp_path: Path) -> None:
    key, secret = store.create("a")
    assert row(tmp_path, key.id)["used_at"] is None
    start = clock.now
    seen = []
    for seconds in (0, 10, 50, 60, 110):
        clock.now = start + seconds
        store.check(secret)
        seen.append(row(tmp_path, key.id)["used_at"])
    assert seen == [start, start, start, start + 60, start + 60]


def test_a_database_that_cannot_be_written_keeps_no_reader_out(store: KeyStore, database: Database) -> None:
    _, secret = store.create("a")
    database.close()

    @sa.event.listens_for(database.engine, "connect")
    def forbid_writing(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    with pytest.raises(DatabaseError):
        store.create("b")
    assert store.check(secret).name == "a"


def test_the_memory_is_bounded(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CACHE_KEYS < 100_000
    monkeypatch.setattr("stenograf.keys.CACHE_KEYS", 2)
    secrets = [store.create(str(number))[1] for number in range(5)]
    for secret in secrets:
        store.check(secret)
    assert len(store._cache) <= 2


def test_a_listed_key_that_was_not_used_lately_may_be_a_guess(database: Database) -> None:
    store = KeyStore(database, [LISTED])
    _, secret = store.create("a")
    assert store.guessable(LISTED)
    assert not store.guessable(secret)
    assert not store.guessable("stg_no-key-at-all")
    store.check(LISTED)
    assert not store.guessable(LISTED)


def test_listed_keys_are_good_without_the_database_and_keep_their_owner(database: Database) -> None:
    store = KeyStore(database, [LISTED, LISTED + "2"])
    key = store.check(LISTED)
    assert key.scopes == ("read", "transcribe", "models", "metrics")
    assert key.owner == KeyStore(database, ["another-one-" + "x" * 20, LISTED]).check(LISTED).owner
    assert key.owner != store.check(LISTED + "2").owner
    assert LISTED not in repr(key)
    assert [k.listed for k in store.list()] == [True, True]
    assert store.check_id(key.id) == key
    with pytest.raises(OptionInvalidError, match="STENOGRAF_API_KEYS"):
        store.revoke(key.id)
    with pytest.raises(UnauthorizedError):
        KeyStore(database).check(LISTED)


def test_listed_keys_come_from_the_old_name_too(database: Database, tmp_path: Path) -> None:
    settings = load({"API_KEYS": f"{LISTED}, {LISTED}2"}, directory=tmp_path).settings
    assert KeyStore(database, settings.api_keys).check(LISTED + "2").listed


def test_a_short_listed_key_is_taken_with_a_warning(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    store = KeyStore(database, [LISTED, "fifteen-letters", "sixteen--letters"])
    assert store.check("fifteen-letters").listed
    [warning] = caplog.messages
    assert "API key 2" in warning
    assert "15 characters" in warning
    assert "fifteen-letters" not in warning


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("", {}),
        ("  ", {}),
        ("a\nb", {}),
        ("x" * 101, {}),
        ("a", {"owner": ""}),
        ("a", {"owner": "x" * 201}),
        ("a", {"scopes": []}),
        ("a", {"scopes": ["read", "everything"]}),
        ("a", {"rate": -1}),
        ("a", {"expires_in": 0}),
        ("a", {"expires_in": float("nan")}),
        ("a", {"expires_in": float("inf")}),
    ],
)
def test_values_that_make_no_sense(store: KeyStore, name: str, values: dict[str, object]) -> None:
    with pytest.raises(OptionInvalidError):
        store.create(name, **values)  # type: ignore[arg-type]
    assert store.list() == ()


def test_find_by_id_prefix_and_name(store: KeyStore) -> None:
    first, _ = store.create("bot")
    other, _ = store.create("site")
    assert store.find(first.id) == store.find(first.prefix) == store.find("bot") == first
    second, _ = store.create("bot")
    with pytest.raises(OptionInvalidError, match=second.id):
        store.find("bot")
    store.revoke(first.id)
    assert store.find("bot") == second  # the one that is good
    assert store.find(first.id).id == first.id
    with pytest.raises(KeyUnknownError):
        store.find(other.id[:8])


def test_whether_there_are_keys(store: KeyStore, database: Database, clock: Clock) -> None:
    elsewhere = KeyStore(database, clock=clock)
    assert not store.exists()
    assert not elsewhere.exists()
    key, _ = store.create("a")
    assert store.exists()
    assert not elsewhere.exists()  # still remembers
    clock.now += CACHE_SECONDS
    assert elsewhere.exists()
    store.revoke(key.id)
    # A service that asked for keys does not fall open when its last one ends.
    assert KeyStore(database, clock=clock).exists()
    assert KeyStore(database, [LISTED]).exists()


def test_nothing_goes_to_the_network_without_a_key(store: KeyStore, database: Database) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(SettingInvalidError, match="API key") as caught:
            check_exposure(Settings(host=host), store)
        assert "stenograf keys create" in caught.value.hint
        assert "--no-auth" in caught.value.hint
        check_exposure(Settings(host=host, auth=False), store)
        check_exposure(Settings(host=host), KeyStore(database, [LISTED]))
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(Settings(host=host), store)
    store.create("a")
    check_exposure(Settings(host="0.0.0.0"), store)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LocalHost", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "128.0.0.1", "::ffff:10.0.0.1", "localhost.example.org", "127.0.0.1.nip.io"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `stenograf keys` in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
    environment |= {"HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "STENOGRAF_DATA_DIR": str(tmp_path)}
    start = "import stenograf.cli as cli; cli.COMMANDS['keys'] = ''; cli.main()"

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", start, "keys", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment | more,
            encoding="utf-8",
        )

    return run


def test_create_list_and_revoke_on_the_command_line(run: Run, tmp_path: Path) -> None:
    made = run("create", "бот", "--scopes", "read, metrics", "--owner", "team", "--rate", "5", "--expires", "30d")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert made.stdout == secret + "\n"
    assert secret.startswith("stg_")
    assert secret not in made.stderr
    assert "read, metrics" in made.stderr
    database = Database(f"sqlite:///{tmp_path / 'stenograf.db'}")
    try:
        key = KeyStore(database).check(secret)
        assert (key.name, key.owner, key.rate, key.scopes) == ("бот", "team", 5, ("read", "metrics"))
        assert key.expires_at is not None
        assert key.created_at is not None
        assert key.expires_at - key.created_at == 30 * 86_400
        listed = run("list")
        assert key.id in listed.stdout
        assert "бот" in listed.stdout
        assert "good until" in listed.stdout
        assert secret not in listed.stdout + listed.stderr
        revoked = run("revoke", key.prefix)
        assert revoked.returncode == 0
        assert key.id in revoked.stderr
        with pytest.raises(UnauthorizedError):
            KeyStore(database).check(secret)
    finally:
        database.close()
    assert json.loads(run("list", "--json").stdout)[0]["state"] == "revoked"


def test_json_on_the_command_line(run: Run) -> None:
    made = json.loads(run("create", "a", "--json").stdout)
    assert made["secret"].startswith(made["prefix"])
    assert made["scopes"] == ["read", "transcribe"]
    rows = json.loads(run("list", "--json", STENOGRAF_API_KEYS=LISTED).stdout)
    assert [(r["listed"], r["name"]) for r in rows] == [(True, "listed 1"), (False, "a")]
    assert "secret" not in rows[1]
    assert LISTED not in json.dumps(rows)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["create", "a", "--scopes", "all"], "There is no scope 'all'"),
        (["create", "a", "--scopes", ""], "without a scope"),
        (["create", "a", "--expires", "soon"], "30d"),
        (["create", "a", "--expires", "30"], "30d"),
        (["create", "a", "--rate", "-1"], "rate"),
        (["create", ""], "name"),
        (["revoke", "nobody"], "There is no API key 'nobody'"),
    ],
)
def test_wrong_usage_on_the_command_line(run: Run, arguments: list[str], part: str) -> None:
    done = run(*arguments)
    assert done.returncode in (1, 2)
    assert part in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
