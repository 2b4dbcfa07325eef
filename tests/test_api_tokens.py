"""Tokens: what is signed here is taken, and nothing else."""

from __future__ import annotations

import base64
import json
import multiprocessing
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest

from stenograf.api.tokens import Tokens, is_token, signing_secret
from stenograf.errors import SettingInvalidError, UnauthorizedError
from stenograf.keys import Key
from stenograf.settings import Settings

SECRET = "0123456789abcdef0123456789abcdef"
KEY = Key("key_1", "a", "team", "stg_abcdefgh", ("read",), None, 1.0, None, None, None)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(Settings(jwt_secret=SECRET, token_lifetime=600))


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {
        "iss": "stenograf",
        "aud": "stenograf",
        "sub": "key_1",
        "scope": "read",
        "iat": now,
        "exp": now + 600,
        "jti": "1",
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_what_was_issued_is_read(tokens: Tokens) -> None:
    token = tokens.issue(KEY, ["read", "transcribe"])
    assert is_token(token)
    read = tokens.read(token)
    assert (read.key_id, read.scopes) == ("key_1", frozenset({"read", "transcribe"}))
    said = jwt.decode(token, SECRET, algorithms=["HS256"], audience="stenograf")
    assert said["exp"] - said["iat"] == 600
    assert said["owner"] == "team"
    assert tokens.issue(KEY, []) != tokens.issue(KEY, [])


def test_a_token_made_right_by_hand_is_taken(tokens: Tokens) -> None:
    """The other tests change one thing of this one."""
    assert tokens.read(jwt.encode(claims(), SECRET, "HS256")).key_id == "key_1"


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"iat": None},
        {"iat": 4_000_000_000},
        {"nbf": 4_000_000_000},
        {"sub": None},
        {"sub": 5},
        {"jti": None},
        {"iss": None},
        {"iss": "another"},
        {"aud": None},
        {"aud": "another"},
    ],
    ids=str,
)
def test_claims_that_are_wrong_or_lacking(tokens: Tokens, changes: dict[str, Any]) -> None:
    with pytest.raises(UnauthorizedError):
        tokens.read(jwt.encode(claims(**changes), SECRET, "HS256"))


def test_an_expired_token_is_told_so(tokens: Tokens) -> None:
    with pytest.raises(UnauthorizedError, match="expired"):
        tokens.read(jwt.encode(claims(exp=int(time.time()) - 60), SECRET, "HS256"))


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_other_algorithms_with_the_right_secret(tokens: Tokens, algorithm: str) -> None:
    with pytest.raises(UnauthorizedError):
        tokens.read(jwt.encode(claims(), SECRET * 2, algorithm))
    with_our_secret = Tokens(Settings(jwt_secret=SECRET * 2))
    with pytest.raises(UnauthorizedError):
        with_our_secret.read(jwt.encode(claims(), SECRET * 2, algorithm))


def test_a_wrong_secret(tokens: Tokens) -> None:
    with pytest.raises(UnauthorizedError):
        tokens.read(jwt.encode(claims(), SECRET[::-1], "HS256"))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE"])
@pytest.mark.parametrize("signature", ["", "AAAA"])
def test_no_algorithm(tokens: Tokens, alg: str, signature: str) -> None:
    with pytest.raises(UnauthorizedError):
        tokens.read(f"{part({'alg': alg, 'typ': 'JWT'})}.{part(claims())}.{signature}")


def test_a_changed_payload(tokens: Tokens) -> None:
    head, _, signature = tokens.issue(KEY, ["read"]).split(".")
    with pytest.raises(UnauthorizedError):
        tokens.read(f"{head}.{part(claims(scope='admin'))}.{signature}")


@pytest.mark.parametrize(
    "junk",
    [
        "..",
        "eyJ..",
        "eyJhbGciOiJIUzI1NiJ9.e30.",
        "eyJ\udcff.x.y",
        "eyJ" + "A" * 100_000 + "..",
        f"{base64.urlsafe_b64encode(b'[' * 30_000).decode()}..",
        f"{part([1])}.{part(claims())}.AAAA",
    ],
    ids=lambda junk: repr(junk[:12]),
)
def test_junk(tokens: Tokens, junk: str) -> None:
    with pytest.raises(UnauthorizedError):
        tokens.read(junk)


def test_keys_do_not_look_like_tokens() -> None:
    assert not is_token("stg_" + "x" * 43)
    assert not is_token("my.own.key-with-dots")


@pytest.mark.parametrize("length", [1, 31])
def test_a_short_secret_is_refused_without_being_told(length: int) -> None:
    secret = "q" * length
    with pytest.raises(SettingInvalidError, match="32") as caught:
        Tokens(Settings(jwt_secret=secret))
    assert length == 1 or secret not in caught.value.message + caught.value.hint


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "new")
    secret = signing_secret(settings)
    assert len(secret) >= 32
    assert signing_secret(settings) == secret
    file = tmp_path / "new" / "jwt.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir() if not p.name.endswith(".lock")] == ["jwt.key"]
    assert signing_secret(Settings(data_dir=tmp_path / "other")) != secret
    assert signing_secret(replace(settings, jwt_secret=SECRET)) == SECRET.encode()


def _make(folder: Path, results: Any, together: Any) -> None:
    together.wait(60)
    results.put(signing_secret(Settings(data_dir=folder)))


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    together = context.Barrier(4)
    started = [context.Process(target=_make, args=(tmp_path / "data", results, together)) for _ in range(4)]
    for process in started:
        process.start()
    secrets = {results.get(timeout=60) for _ in started}
    for process in started:
        process.join(60)
    assert len(secrets) == 1


def test_a_secret_that_is_cut_off_is_told(tmp_path: Path) -> None:
    (tmp_path / "jwt.key").write_text("short")
    with pytest.raises(SettingInvalidError, match=r"jwt\.key"):
        signing_secret(Settings(data_dir=tmp_path))


@pytest.mark.usefixtures("unprivileged")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SettingInvalidError, match="Permission"):
            signing_secret(Settings(data_dir=tmp_path))
    finally:
        tmp_path.chmod(0o700)
