"""Who gets in, and as whom: keys, tokens, scopes, owners, and the service without keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from small_app import SmallApp
from stenograf.api.auth import FAILURES, Principal, access_of, require
from stenograf.errors import SettingInvalidError
from stenograf.keys import CACHE_SECONDS, SCOPES, Key

SECRET = "0123456789abcdef0123456789abcdef"
WHO = "/api/v1/who"
STREAM = {"Accept": "text/event-stream"}
Make = Callable[..., SmallApp]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SmallApp] = []

    def make(**values: Any) -> SmallApp:
        app = SmallApp(tmp_path, **{"jwt_secret": SECRET, "rate_requests": 0} | values)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make: Make) -> SmallApp:
    """A service that asks for keys, wherever it listens."""
    return make(host="0.0.0.0")


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def token_for(app: SmallApp, key: Key, *scopes: str) -> str:
    return access_of(app.app).tokens.issue(key, scopes or key.scopes)


def test_a_key_in_either_header(app: SmallApp) -> None:
    key, secret = app.keys.create("a")
    expected = {"owner": key.owner, "scopes": ["read", "transcribe"], "view": key.owner}
    headers = (
        {"X-API-Key": secret},
        {"x-api-key": f" {secret} "},
        bearer(secret),
        {"authorization": f"bearer  {secret}"},
        {"X-API-Key": "", **bearer(secret)},
    )
    for sent in headers:
        answer = app.get(WHO, headers=sent)
        assert (answer.status_code, answer.json()) == (200, expected), sent


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": "stg_" + "x" * 43},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer stg_wrong"},
        {"Authorization": "Basic YTpi"},
        {"X-API-Key": "' OR 1=1 --"},
        {"X-API-Key": "ключ".encode()},
    ],
    ids=str,
)
def test_without_a_good_key(app: SmallApp, headers: dict[str, Any]) -> None:
    app.keys.create("a")
    answer = app.get(WHO, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthorized"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    wrong = bool(headers) and headers != {"Authorization": "Bearer"} and "Basic" not in str(headers)
    assert ("invalid_token" in answer.headers["www-authenticate"]) is wrong


def test_each_interface_has_its_own_words(app: SmallApp) -> None:
    assert app.get("/v1/models").json()["error"]["code"] == "invalid_api_key"


def test_a_key_in_the_address_is_never_taken(app: SmallApp) -> None:
    _, secret = app.keys.create("a")
    for name in ("access_token", "token", "api_key", "key"):
        for headers in ({}, STREAM):
            assert app.get(f"{WHO}?{name}={secret}", headers=headers).status_code == 401


def test_a_token_in_the_address_is_taken_for_an_event_stream_only(app: SmallApp) -> None:
    key, _ = app.keys.create("a")
    token = token_for(app, key)
    assert app.get(f"{WHO}?access_token={token}", headers=STREAM).status_code == 200
    assert app.get(f"{WHO}?access_token={token}").status_code == 401
    assert app.get(f"{WHO}?token={token}", headers=STREAM).status_code == 401
    assert app.post(f"/api/v1/transcribe?access_token={token}", headers=STREAM).status_code == 401


def test_scopes(app: SmallApp) -> None:
    _, reader = app.keys.create("a", scopes=["read"])
    _, sender = app.keys.create("b", scopes=["transcribe"])
    _, both = app.keys.create("c", scopes=["read", "transcribe"])
    _, admin = app.keys.create("d", scopes=["admin"])

    def allowed(secret: str) -> list[int]:
        return [
            app.get("/api/v1/tasks", secret).status_code,
            app.post("/api/v1/transcribe", secret).status_code,
            app.get("/api/v1/both", secret).status_code,
            app.get("/api/v1/keys", secret).status_code,
        ]

    assert allowed(reader) == [200, 403, 403, 403]
    assert allowed(sender) == [403, 200, 403, 403]
    assert allowed(both) == [200, 200, 200, 403]
    assert allowed(admin) == [200, 200, 200, 200]


def test_a_missing_scope_is_named(app: SmallApp) -> None:
    _, reader = app.keys.create("a", scopes=["read"])
    answer = app.post("/api/v1/transcribe", reader)
    assert answer.json()["code"] == "forbidden"
    assert "transcribe" in answer.json()["detail"]
    assert 'error="insufficient_scope", scope="transcribe"' in answer.headers["www-authenticate"]


def test_a_scope_that_does_not_exist_is_the_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="reed"):
        require("reed")


def test_whose_tasks_are_seen(app: SmallApp) -> None:
    first, one = app.keys.create("a")
    second, two = app.keys.create("b")
    _, team = app.keys.create("c", owner="team", scopes=["read"])
    _, admin = app.keys.create("d", owner="team", scopes=["admin"])
    assert app.get(WHO, one).json()["view"] == first.owner != second.owner
    assert app.get(WHO, two).json()["view"] == second.owner
    assert app.get(WHO, team).json()["view"] == "team"
    assert app.get(WHO, admin).json() == {"owner": "team", "scopes": ["admin"], "view": None}


def test_a_principal_that_may_administer_may_do_all() -> None:
    admin = Principal("a", frozenset({"admin"}))
    assert all(admin.may(scope) for scope in SCOPES)
    assert not Principal("a", frozenset({"read"})).may("models")


def test_a_token_stands_for_its_key(app: SmallApp) -> None:
    key, _ = app.keys.create("a", owner="team")
    answer = app.get(WHO, headers=bearer(token_for(app, key)))
    assert answer.json() == {"owner": "team", "scopes": ["read", "transcribe"], "view": "team"}
    answer = app.get(WHO, headers=bearer(token_for(app, key, "read")))
    assert answer.json()["scopes"] == ["read"]


def test_a_token_has_no_scope_that_its_key_has_not(app: SmallApp) -> None:
    key, _ = app.keys.create("a", scopes=["read"])
    token = token_for(app, key, "read", "admin")
    assert app.get(WHO, headers=bearer(token)).json()["scopes"] == ["read"]
    admin, _ = app.keys.create("b", scopes=["admin"])
    token = token_for(app, admin, "read")
    assert app.get(WHO, headers=bearer(token)).json() == {"owner": admin.id, "scopes": ["read"], "view": admin.id}


def test_a_token_dies_with_its_key(app: SmallApp) -> None:
    key, _ = app.keys.create("a")
    token = token_for(app, key)
    assert app.get(WHO, headers=bearer(token)).status_code == 200
    app.keys.revoke(key.id)
    assert app.get(WHO, headers=bearer(token)).status_code == 401


def test_a_token_is_no_key(app: SmallApp) -> None:
    key, _ = app.keys.create("a")
    expired = jwt.encode({"sub": key.id, "exp": 1}, SECRET, "HS256")
    forged = jwt.encode({"sub": key.id, "exp": int(time.time()) + 60}, SECRET[::-1], "HS256")
    unsigned = jwt.encode({"sub": key.id, "exp": int(time.time()) + 60}, None, "none")
    for token in (expired, forged, unsigned):
        assert app.get(WHO, headers=bearer(token)).status_code == 401


def test_listed_keys(make: Make) -> None:
    app = make(host="0.0.0.0", api_keys=("a-key-from-an-env-file",))
    answer = app.get(WHO, "a-key-from-an-env-file")
    assert answer.json()["scopes"] == ["metrics", "models", "read", "transcribe"]
    token = token_for(app, app.keys.list()[0])
    assert app.get(WHO, headers=bearer(token)).json() == answer.json()


def test_settings_that_make_no_sense_end_the_start(make: Make) -> None:
    with pytest.raises(SettingInvalidError):
        access_of(make(jwt_secret="short").app)


# Without keys


def test_on_its_own_machine_no_key_is_asked_for_until_there_is_one(make: Make) -> None:
    app = make(host="127.0.0.1")
    assert app.get(WHO).json() == {"owner": "local", "scopes": sorted(SCOPES), "view": None}
    assert app.get(WHO, "any-key-an-openai-client-sends").json()["owner"] == "local"
    _, secret = app.keys.create("a")
    assert app.get(WHO).status_code == 401
    assert app.get(WHO, secret).status_code == 200


def test_a_first_key_of_another_process_closes_the_door_within_seconds(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CACHE_SECONDS < 5
    monkeypatch.setattr("stenograf.keys.CACHE_SECONDS", 0.05)
    app = make(host="127.0.0.1")
    assert app.get(WHO).status_code == 200
    key, _ = app.other_process().create("a")
    time.sleep(0.1)
    assert app.get(WHO).status_code == 401
    app.other_process().revoke(key.id)
    time.sleep(0.1)
    assert app.get(WHO).status_code == 401  # closed it stays


def test_what_comes_from_elsewhere_needs_a_key_whatever_the_settings_say(make: Make) -> None:
    """Another server may run the application on another address; a proxy may stand before it."""
    app = make(host="127.0.0.1")
    assert app.get(WHO, client="192.168.1.7").status_code == 401
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Host"):
        assert app.get(WHO, headers={header: "127.0.0.1"}).status_code == 401


def test_on_the_network_a_key_is_asked_for_even_if_there_is_none(app: SmallApp) -> None:
    assert app.get(WHO).status_code == 401


def test_no_auth(make: Make) -> None:
    app = make(host="0.0.0.0", auth=False)
    app.keys.create("a")
    assert app.get(WHO, client="192.168.1.7").json()["owner"] == "local"


# Wrong keys, many of them


def test_an_address_that_guesses_is_not_listened_to(make: Make) -> None:
    weak, known = "a-password-of-the-settings", "another-one-that-is-in-use"
    app = make(api_keys=(weak, known))
    _, secret = app.keys.create("a")
    assert app.get(WHO, known, client="203.0.113.1").status_code == 200
    answers = [app.get(WHO, f"stg_{number:043}", client="203.0.113.1") for number in range(FAILURES + 2)]
    assert [answer.status_code for answer in answers] == [401] * FAILURES + [429, 429]
    assert answers[-1].json()["code"] == "rate_limited"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    # The guess that would have been right is not told so.
    assert app.get(WHO, weak, client="203.0.113.1").status_code == 429
    # Who was good before, behind the same address, goes on; so do unguessable keys and other addresses.
    assert app.get(WHO, known, client="203.0.113.1").status_code == 200
    assert app.get(WHO, secret, client="203.0.113.1").status_code == 200
    assert app.get(WHO, weak, client="203.0.113.2").status_code == 200


def test_guessed_tokens_are_counted_too_but_good_ones_go_on(app: SmallApp) -> None:
    key, _ = app.keys.create("a")
    forged = jwt.encode({"sub": key.id}, SECRET[::-1], "HS256")
    statuses = [app.get(WHO, headers=bearer(forged)).status_code for _ in range(FAILURES + 1)]
    assert statuses == [401] * FAILURES + [429]
    assert app.get(WHO, headers=bearer(token_for(app, key))).status_code == 200


def test_no_key_at_all_is_no_guess(app: SmallApp) -> None:
    assert {app.get(WHO).status_code for _ in range(FAILURES + 5)} == {401}


def test_guesses_over_a_proxy_are_its_clients(make: Make) -> None:
    app = make(host="0.0.0.0", trusted_proxies=("10.0.0.1",))
    _, secret = app.keys.create("a")
    for number in range(FAILURES + 1):
        sent = {"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.1", "X-API-Key": f"stg_{number:043}"}
        last = app.get(WHO, client="10.0.0.1", headers=sent)
    assert last.status_code == 429
    assert app.get(WHO, secret, client="10.0.0.1", headers={"X-Forwarded-For": "203.0.113.2"}).status_code == 200


def test_the_description_of_the_interface(app: SmallApp) -> None:
    described = app.app.openapi()
    schemes = described["components"]["securitySchemes"]
    assert schemes["Key"] == {**schemes["Key"], "type": "apiKey", "in": "header", "name": "X-API-Key"}
    assert schemes["Bearer"]["scheme"] == "bearer"
    flow = schemes["Token"]["flows"]["clientCredentials"]
    assert flow["tokenUrl"] == "/api/v1/token"
    assert set(flow["scopes"]) == set(SCOPES)
    needed = described["paths"]["/api/v1/both"]["get"]["security"]
    assert needed == [{name: ["read", "transcribe"]} for name in ("Key", "Bearer", "Token")]
    assert "security" not in described["paths"]["/api/v1/token"]["post"]
