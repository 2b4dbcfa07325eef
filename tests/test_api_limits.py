"""How much a minute: refused, told, and let in again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from small_app import SmallApp
from stenograf.api.counters import InMemory
from stenograf.api.limits import WINDOW_SECONDS, Limits

Make = Callable[..., SmallApp]
UPLOAD = "/api/v1/transcribe"
LIST = "/api/v1/tasks"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SmallApp] = []

    def make(**values: Any) -> SmallApp:
        app = SmallApp(tmp_path, **{"host": "0.0.0.0", "rate_uploads": 3, "rate_requests": 5} | values)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


def told(answer: httpx2.Response) -> tuple[str, int, int, int, int]:
    """Policy, quota, window, remaining and seconds from the two headers."""
    policy = re.fullmatch(r'"(\w+)";q=(\d+);w=(\d+)', answer.headers["ratelimit-policy"])
    state = re.fullmatch(r'"(\w+)";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
    assert policy is not None
    assert state is not None
    assert policy[1] == state[1]
    return policy[1], int(policy[2]), int(policy[3]), int(state[2]), int(state[3])


def test_the_headers_count_down_and_then_it_is_refused(make: Make) -> None:
    app = make()
    _, secret = app.keys.create("a")
    answers = [app.post(UPLOAD, secret) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert [told(answer)[:4] for answer in answers] == [
        ("uploads", 3, WINDOW_SECONDS, remaining) for remaining in (2, 1, 0, 0, 0)
    ]
    for answer in answers:
        assert 1 <= told(answer)[4] <= WINDOW_SECONDS
    refused = answers[-1]
    assert refused.headers["retry-after"] == str(told(refused)[4])
    assert refused.json()["code"] == "rate_limited"
    assert "3 recordings a minute" in refused.json()["detail"]
    assert "retry-after" not in answers[0].headers


def test_there_is_room_again_when_the_window_has_passed(make: Make) -> None:
    app = make()
    app.app.state.limits = Limits(app.settings, InMemory(), window=1)
    _, secret = app.keys.create("a")
    assert [app.post(UPLOAD, secret).status_code for _ in range(4)] == [200, 200, 200, 429]
    time.sleep(1.05)
    answer = app.post(UPLOAD, secret)
    assert answer.status_code == 200
    assert told(answer)[:4] == ("uploads", 3, 1, 2)


def test_refused_requests_do_not_prolong_the_wait(make: Make) -> None:
    app = make()
    app.app.state.limits = Limits(app.settings, InMemory(), window=1)
    _, secret = app.keys.create("a")
    started = time.monotonic()
    while app.post(UPLOAD, secret).status_code == 200:
        pass
    # A client that hammers on gets in all the same.
    while app.post(UPLOAD, secret).status_code == 429:
        assert time.monotonic() - started < 30
        time.sleep(0.02)


def test_keys_and_policies_are_counted_apart(make: Make) -> None:
    app = make()
    _, one = app.keys.create("a", owner="team")
    _, two = app.keys.create("b", owner="team")
    assert [app.post(UPLOAD, one).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert app.post(UPLOAD, two).status_code == 200
    assert [app.get(LIST, one).status_code for _ in range(6)] == [200, 200, 200, 200, 200, 429]
    assert told(app.get(LIST, two))[:4] == ("requests", 5, 60, 4)


def test_a_key_with_a_rate_of_its_own(make: Make) -> None:
    app = make()
    _, slow = app.keys.create("a", rate=1)
    _, free = app.keys.create("b", rate=0)
    assert [app.post(UPLOAD, slow).status_code for _ in range(2)] == [200, 429]
    answers = [app.post(UPLOAD, free) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {200}
    assert "ratelimit" not in answers[0].headers
    assert app.get(LIST, free).headers["ratelimit-policy"] == '"requests";q=5;w=60'  # the rate is for uploads


def test_no_rate_no_limit(make: Make) -> None:
    app = make(rate_uploads=0, rate_requests=0)
    _, secret = app.keys.create("a")
    assert {app.post(UPLOAD, secret).status_code for _ in range(20)} == {200}
    assert {app.get(LIST, secret).status_code for _ in range(20)} == {200}


def test_the_headers_are_on_errors_too(make: Make) -> None:
    app = make()
    _, secret = app.keys.create("a")
    answer = app.get(f"{LIST}/nothing", secret)
    assert answer.status_code == 404
    assert told(answer)[:4] == ("requests", 5, 60, 4)


def test_a_token_is_counted_with_its_key(make: Make) -> None:
    app = make()
    key, secret = app.keys.create("a")
    form = {"grant_type": "client_credentials", "client_id": key.id, "client_secret": secret}
    token = app.post("/api/v1/token", data=form)
    assert told(token)[:4] == ("requests", 5, 60, 4)
    sent = {"Authorization": f"Bearer {token.json()['access_token']}"}
    assert told(app.get(LIST, headers=sent))[3] == 3
    assert told(app.get(LIST, secret))[3] == 2
    assert [app.post("/api/v1/token", data=form).status_code for _ in range(3)] == [200, 200, 429]


def test_who_is_not_let_in_is_not_counted(make: Make) -> None:
    app = make()
    _, reader = app.keys.create("a", scopes=["read"])
    assert "ratelimit" not in app.get(LIST).headers
    assert {app.post(UPLOAD, reader).status_code for _ in range(5)} == {403}


def test_one_without_keys_is_not_limited_on_its_own_machine(make: Make) -> None:
    for values in ({"host": "127.0.0.1"}, {"host": "0.0.0.0", "auth": False}):
        app = make(**values)
        answers = [app.post(UPLOAD) for _ in range(6)]
        assert {answer.status_code for answer in answers} == {200}
        assert "ratelimit" not in answers[0].headers


def test_without_keys_addresses_are_counted(make: Make) -> None:
    app = make(auth=False, trusted_proxies=("10.0.0.1",))
    assert [app.post(UPLOAD, client="203.0.113.1").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert app.post(UPLOAD, client="203.0.113.2").status_code == 200
    # another address out of the same network of one customer is no way around it
    assert [app.post(UPLOAD, client=f"2a00:1:2:3::{n}").status_code for n in range(1, 5)] == [200, 200, 200, 429]
    # and a made-up hop is none either
    statuses = [
        app.post(UPLOAD, client="10.0.0.1", headers={"X-Forwarded-For": f"10.9.8.{n}, 203.0.113.3"}).status_code
        for n in range(4)
    ]
    assert statuses == [200, 200, 200, 429]


def test_what_watches_the_service_is_not_limited(make: Make) -> None:
    app = make(rate_requests=1)
    assert {app.get("/health").status_code for _ in range(5)} == {200}
