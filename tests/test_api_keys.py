"""The keys over HTTP, and tokens as OAuth's clients get them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx2
import pytest

from small_app import SmallApp
from stenograf.api.auth import FAILURES
from stenograf.keys import Key

TOKEN = "/api/v1/token"
KEYS = "/api/v1/keys"
LISTED = "a listed+key of 50% letters"
GRANT = {"grant_type": "client_credentials"}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[SmallApp]:
    app = SmallApp(tmp_path, host="0.0.0.0", rate_requests=200, api_keys=(LISTED,))
    yield app
    app.close()


@pytest.fixture
def key(app: SmallApp) -> tuple[Key, str]:
    return app.keys.create("a")


@pytest.fixture
def admin(app: SmallApp) -> str:
    return app.keys.create("boss", scopes=["admin"])[1]


def basic(name: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()}


def ask(app: SmallApp, **form: str) -> httpx2.Response:
    return app.post(TOKEN, data=GRANT | form)


def test_a_token_for_a_key(app: SmallApp, key: tuple[Key, str]) -> None:
    made, secret = key
    answer = ask(app, client_id=made.id, client_secret=secret)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("bearer", 3600, "read transcribe")
    who = app.get("/api/v1/who", headers={"Authorization": f"Bearer {body['access_token']}"})
    assert who.json()["owner"] == made.owner


def test_the_ways_to_show_a_key(app: SmallApp, key: tuple[Key, str]) -> None:
    made, secret = key
    assert ask(app, client_id=made.prefix, client_secret=secret).status_code == 200
    assert app.post(TOKEN, data=GRANT, headers=basic(made.id, secret)).status_code == 200
    assert app.post(TOKEN, data=GRANT, headers=basic(made.prefix, secret)).status_code == 200
    # Swagger UI and others name the client in the form as well
    assert app.post(TOKEN, data=GRANT | {"client_id": made.id}, headers=basic(made.id, secret)).status_code == 200
    listed = app.keys.list()[0].id
    assert app.post(TOKEN, data=GRANT, headers=basic(listed, LISTED)).status_code == 200
    assert app.post(TOKEN, data=GRANT, headers=basic(listed, quote_plus(LISTED))).status_code == 200


def test_fewer_scopes(app: SmallApp, key: tuple[Key, str], admin: str) -> None:
    made, secret = key
    assert ask(app, client_id=made.id, client_secret=secret, scope="read").json()["scope"] == "read"
    assert (
        ask(app, client_id=made.id, client_secret=secret, scope="transcribe  read").json()["scope"] == "read transcribe"
    )
    boss = app.keys.find("boss")
    answer = ask(app, client_id=boss.id, client_secret=admin, scope="models")
    assert answer.json()["scope"] == "models"
    token = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert app.get(KEYS, headers=token).status_code == 403


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({"grant_type": ""}, 400, "invalid_request"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"scope": "admin"}, 400, "invalid_scope"),
        ({"scope": "read everything"}, 400, "invalid_scope"),
        ({"client_id": "key_0"}, 401, "invalid_client"),
        ({"client_id": ""}, 401, "invalid_client"),
        ({"client_secret": "stg_wrong"}, 401, "invalid_client"),
        ({"client_secret": ""}, 401, "invalid_client"),
    ],
    ids=str,
)
def test_errors_in_oauths_own_words(
    app: SmallApp, key: tuple[Key, str], form: dict[str, str], status: int, error: str
) -> None:
    answer = ask(app, **({"client_id": key[0].id, "client_secret": key[1]} | form))
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["error_description"]
    assert set(answer.json()) == {"error", "error_description"}
    assert answer.headers["cache-control"] == "no-store"
    assert ("www-authenticate" in answer.headers) is (status == 401)


def test_requests_that_are_no_form(app: SmallApp, key: tuple[Key, str]) -> None:
    made, secret = key
    whole = {"client_id": made.id, "client_secret": secret, **GRANT}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    wrong: list[dict[str, Any]] = [
        {"json": whole},
        {"files": {name: (None, value) for name, value in whole.items()}},
        {"content": b"grant_type=client_credentials", "headers": {}},
        {"content": b"grant_type=%ff", "headers": form},
        {"content": b"grant_type=\xff", "headers": form},
        {"content": b"grant_type=client_credentials&grant_type=client_credentials", "headers": form},
        {"content": b"a=b&" * 100, "headers": form},
        {"content": b"grant_type=" + b"x" * 100_000, "headers": form},
        {"data": whole, "headers": basic(made.id, secret)},
    ]
    for options in wrong:
        answer = app.post(TOKEN, **options)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), options


@pytest.mark.parametrize(
    "header", ["Basic", "Basic !!!", "Basic " + base64.b64encode(b"no colon").decode(), "Bearer x"]
)
def test_a_header_that_is_no_basic(app: SmallApp, header: str) -> None:
    answer = app.post(TOKEN, data=GRANT, headers={"Authorization": header})
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert answer.headers["www-authenticate"].startswith("Basic")


def test_ended_keys_get_no_token(app: SmallApp, key: tuple[Key, str]) -> None:
    app.keys.revoke(key[0].id)
    assert ask(app, client_id=key[0].id, client_secret=key[1]).status_code == 401


def test_guesses_are_counted_here_too(app: SmallApp, key: tuple[Key, str]) -> None:
    for number in range(FAILURES):
        assert ask(app, client_id=key[0].id, client_secret=f"stg_{number:043}").status_code == 401
    assert ask(app, client_id=key[0].id, client_secret=key[1]).status_code == 200
    answer = ask(app, client_id=key[0].id, client_secret="stg_one-more")
    assert answer.status_code == 429
    assert answer.json()["error"] == "temporarily_unavailable"
    assert int(answer.headers["retry-after"]) >= 1


def test_keys_over_http(app: SmallApp, admin: str) -> None:
    wanted = {"name": "bot", "scopes": ["read"], "owner": "team", "rate": 2, "expires_in": 3600}
    made = app.post(KEYS, admin, json=wanted)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    body = made.json()
    assert body["secret"].startswith(body["prefix"])
    assert (body["owner"], body["rate"], body["scopes"], body["state"]) == ("team", 2, ["read"], "good")
    assert body["created_at"].endswith("Z")
    assert app.get("/api/v1/who", body["secret"]).json()["owner"] == "team"

    listed = app.get(KEYS, admin)
    assert listed.json()["next"] is None
    assert [item["name"] for item in listed.json()["items"]] == ["listed 1", "boss", "bot"]
    assert "secret" not in listed.text
    assert body["secret"] not in listed.text
    assert listed.json()["items"][2]["used_at"] is not None

    assert app.call("DELETE", f"{KEYS}/{body['id']}", headers={"X-API-Key": admin}).status_code == 204
    assert app.get("/api/v1/who", body["secret"]).status_code == 401
    assert app.get(KEYS, admin).json()["items"][2]["state"] == "revoked"


def test_deleting_what_cannot_be_deleted(app: SmallApp, admin: str) -> None:
    for key_id, status, code in (
        ("key_0", 404, "key_unknown"),
        ("boss", 404, "key_unknown"),  # a name is no id
        (app.keys.list()[0].id, 422, "option_invalid"),
    ):
        answer = app.call("DELETE", f"{KEYS}/{key_id}", headers={"X-API-Key": admin})
        assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "a", "scopes": ["all"]}, {"name": "a", "scopes": []}, {"name": "a", "rate": -1},
     {"name": "a", "expires_in": 0}, {"name": "a", "scope": ["read"]}],
    ids=str,
)  # fmt: skip
def test_keys_that_make_no_sense(app: SmallApp, admin: str, body: dict[str, Any]) -> None:
    answer = app.post(KEYS, admin, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "option_invalid")


def test_only_administrators(app: SmallApp, key: tuple[Key, str]) -> None:
    for secret, status in ((key[1], 403), (LISTED, 403), (None, 401)):
        assert app.get(KEYS, secret).status_code == status
        assert app.post(KEYS, secret, json={"name": "a"}).status_code == status
        headers = {"X-API-Key": secret} if secret else {}
        assert app.call("DELETE", f"{KEYS}/{key[0].id}", headers=headers).status_code == status
    assert app.get("/api/v1/who", key[1]).status_code == 200


def test_the_first_key_can_be_made_from_the_machine_itself(tmp_path: Path) -> None:
    app = SmallApp(tmp_path / "open")
    try:
        made = app.post(KEYS, json={"name": "a", "scopes": ["admin"]})
        assert made.status_code == 201
        assert app.post(KEYS, json={"name": "b"}).status_code == 401
        assert app.post(KEYS, made.json()["secret"], json={"name": "b"}).status_code == 201
    finally:
        app.close()
