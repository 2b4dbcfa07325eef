"""Who is at the other end of a connection, and headers for the answer that somebody further out writes."""

from __future__ import annotations

import functools
import ipaddress
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from starlette.requests import HTTPConnection
from starlette.types import Scope

from stenograf.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

T = TypeVar("T")

_MAKING = threading.Lock()

FORWARDING = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})
"""Headers that reverse proxies add."""


def client_address(scope: Scope, settings: Settings) -> str:
    """The address of the client: the peer's, or where that is a trusted proxy, the one that it forwards for.

    Of `X-Forwarded-For` the right-most address counts that is not a trusted proxy itself: what stands to its left, the
    client can have written. An IPv4 address in the clothes of an IPv6 one is unwrapped. What is no IP address, as in
    some tests, is given as it is.
    """
    peer = peer_address(scope)
    found = address_of(peer)
    if found is None:
        return peer
    proxies = networks(settings.trusted_proxies)
    for hop in _forwarded(scope):
        if not within(found, proxies):
            break
        before = address_of(hop)
        if before is None:  # somebody's scribble: the proxy that passed it on is all that is known
            break
        found = before
    return str(found)


def client_network(scope: Scope, settings: Settings) -> str:
    """What clients are counted by: the client's address, or of IPv6 its /64, as that is what one customer has."""
    text = client_address(scope, settings)
    address = address_of(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return text


def peer_address(scope: Scope) -> str:
    """The address at the other end of the socket; a local (Unix) socket counts as 127.0.0.1."""
    client = scope.get("client")
    return client[0] if client and client[0] else "127.0.0.1"


def is_forwarded(scope: Scope) -> bool:
    """Whether a reverse proxy has sent this on, as its headers tell."""
    return any(name in FORWARDING for name, _ in scope["headers"])


def over_tls(scope: Scope, settings: Settings) -> bool:
    """Whether the client's connection is encrypted: ours itself, or the one to a trusted proxy as that one says."""
    if scope.get("scheme") in ("https", "wss"):
        return True
    peer = address_of(peer_address(scope))
    if peer is None or not within(peer, networks(settings.trusted_proxies)):
        return False
    told = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
    return bool(told) and told[-1].rpartition(b",")[2].strip().lower() in (b"https", b"wss")


def add_header(connection: HTTPConnection, name: str, value: str) -> None:
    """Put a header on the answer to this request, whatever it will be; the last value of a name counts.

    `security.Headers` writes it: unlike what a dependency sets on its `Response`, it is on errors too.
    """
    connection.scope.setdefault("state", {}).setdefault("answer_headers", {})[name] = value


def kept(app: Any, name: str, make: Callable[[Any], T]) -> T:
    """What `app.state` keeps under a name, made at the first call by `make(app.state.service)`."""
    if not hasattr(app.state, name):
        with _MAKING:
            if not hasattr(app.state, name):
                setattr(app.state, name, make(app.state.service))
    found: T = getattr(app.state, name)
    return found


def address_of(text: str) -> Address | None:
    """The IP address in a text such as `10.0.0.1`, `10.0.0.1:80`, `[::1]:80` or `fe80::1%eth0`; None if it is none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@functools.lru_cache(maxsize=16)
def networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """The networks of a setting; a single address is a network of one."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def within(address: Address, those: tuple[Network, ...]) -> bool:
    """Whether the address is in one of the networks."""
    return any(address in network for network in those)  # another IP version is in none


def _forwarded(scope: Scope) -> Iterator[str]:
    """The hops of `X-Forwarded-For`, the nearest first."""
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return reversed(",".join(lines).split(",")) if lines else iter(())
