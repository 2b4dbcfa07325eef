"""Whose address counts, behind proxies that are trusted and before those that are not."""

from __future__ import annotations

from typing import Any

import pytest

from stenograf.api.connection import client_address, client_network, is_forwarded, over_tls
from stenograf.settings import Settings

PROXIED = Settings(trusted_proxies=("10.0.0.0/8", "2001:db8::/32"))
CLIENT = "203.0.113.9"


def scope(peer: str | None, *forwarded: str, **more: Any) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    headers += [(name.encode(), value.encode()) for name, value in more.pop("headers", {}).items()]
    return {"type": "http", "scheme": "http", "client": (peer, 5) if peer else None, "headers": headers, **more}


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        (CLIENT, [], CLIENT),
        # not from a proxy: whatever it claims is a claim
        (CLIENT, ["127.0.0.1"], CLIENT),
        ("127.0.0.1", ["8.8.8.8"], "127.0.0.1"),
        # from a proxy
        ("10.0.0.1", [CLIENT], CLIENT),
        ("10.0.0.1", [], "10.0.0.1"),
        # a client that writes the header itself: the proxy adds to it
        ("10.0.0.1", [f"127.0.0.1, 8.8.8.8, {CLIENT}"], CLIENT),
        ("10.0.0.1", ["127.0.0.1, 8.8.8.8", CLIENT], CLIENT),
        # two proxies, one after the other
        ("10.0.0.1", [f"8.8.8.8, {CLIENT}, 10.0.0.2"], CLIENT),
        # a client within the proxies' network
        ("10.0.0.1", ["10.0.0.77"], "10.0.0.77"),
        ("10.0.0.1", ["10.0.0.77, 10.0.0.2"], "10.0.0.77"),
        # not an address: the proxy that sent it is all that is known
        ("10.0.0.1", ["somebody"], "10.0.0.1"),
        ("10.0.0.1", ["unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [f"{CLIENT}, "], "10.0.0.1"),
        # other ways to write one
        ("10.0.0.1", [f"{CLIENT}:4711"], CLIENT),
        ("10.0.0.1", ['"[2a00:1::5]:4711"'], "2a00:1::5"),
        ("10.0.0.1", ["2A00:1:0::5"], "2a00:1::5"),
        ("::ffff:10.0.0.1", [f"::ffff:{CLIENT}"], CLIENT),
        ("2001:db8::1", [CLIENT], CLIENT),
        ("fe80::1%eth0", [], "fe80::1"),
        # a local socket, and a test's client
        (None, [], "127.0.0.1"),
        ("testclient", [CLIENT], "testclient"),
    ],
)
def test_the_clients_address(peer: str | None, forwarded: list[str], expected: str) -> None:
    assert client_address(scope(peer, *forwarded), PROXIED) == expected


def test_without_trusted_proxies_nothing_is_believed() -> None:
    assert client_address(scope("127.0.0.1", CLIENT), Settings()) == "127.0.0.1"


def test_clients_are_counted_by_what_one_customer_has() -> None:
    assert client_network(scope(CLIENT), Settings()) == CLIENT
    same = {client_network(scope(f"2a00:1:2:3::{n}"), Settings()) for n in (1, 2)}
    assert len(same) == 1
    assert client_network(scope("2a00:1:2:4::1"), Settings()) not in same
    assert client_network(scope(f"::ffff:{CLIENT}"), Settings()) == CLIENT


@pytest.mark.parametrize(
    ("peer", "scheme", "told", "expected"),
    [
        (CLIENT, "https", None, True),
        (CLIENT, "wss", None, True),
        (CLIENT, "http", None, False),
        (CLIENT, "http", "https", False),
        ("10.0.0.1", "http", "https", True),
        ("10.0.0.1", "http", "HTTPS", True),
        ("10.0.0.1", "http", "http", False),
        ("10.0.0.1", "http", "https, http", False),
        ("10.0.0.1", "http", None, False),
    ],
)
def test_whether_the_client_is_encrypted(peer: str, scheme: str, told: str | None, expected: bool) -> None:
    headers = {"x-forwarded-proto": told} if told else {}
    assert over_tls(scope(peer, scheme=scheme, headers=headers), PROXIED) is expected


def test_whether_a_proxy_was_in_between() -> None:
    assert not is_forwarded(scope("127.0.0.1"))
    assert is_forwarded(scope("127.0.0.1", CLIENT))
    for name in ("forwarded", "x-real-ip", "x-forwarded-host"):
        assert is_forwarded(scope("127.0.0.1", headers={name: "x"}))
