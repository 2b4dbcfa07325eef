"""A host's addresses, and which of them belong to other machines on the internet."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TypeVar

from stenograf.errors import FetchFailedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Resolve = Callable[[str], Sequence[str]]
"""A host name -> all of its addresses. Raises `OSError` or `UnicodeError` where there are none."""

T = TypeVar("T")

_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), what)
    for what, networks in {
        "the server itself": ("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128"),
        "a private address": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
        "a link-local address": ("169.254.0.0/16", "fe80::/10"),
        "a provider's inner address": ("100.64.0.0/10",),
        "a cloud's own address": ("168.63.129.16/32",),  # Azure's platform, at an address that looks public
        "a multicast address": ("224.0.0.0/4", "ff00::/8"),
        "a translated address": ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "192.88.99.0/24"),
        "an address for documents and tests": (
            "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20",
        ),
        "a reserved address": ("192.0.0.0/24", "240.0.0.0/4", "::/8", "2001::/23"),
    }.items()
    for network in networks
)  # fmt: skip
"""What is not public, by IANA's registries of special-purpose addresses (RFC 6890 and its updates), written out since
`is_global` differs between versions of Python. 192.0.0.0/24, 192.88.99.0/24 and 2001::/23 hold a few anycast services
that are public, none of which is a web server. `::/8` holds the IPv4-compatible addresses."""

_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that IANA has given out for use on the internet (RFC 4291, section 2.4)."""


def look_up(host: str) -> list[str]:
    """All addresses of a host, asked of the system. Raises `OSError` or `UnicodeError` where there are none."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def addresses_of(host: str, resolve: Resolve, seconds: float) -> list[Address]:
    """All addresses of a host, at least one, in the order to try them. Raises `FetchFailedError`."""
    try:
        found = _within(seconds, partial(resolve, host))
        if not found:
            raise OSError("no address")
    except TimeoutError as error:
        raise FetchFailedError(f"{host} does not resolve in time.", "Try again later.") from error
    except (OSError, UnicodeError) as error:
        raise FetchFailedError(f"{host} does not resolve to an address.", "Try again later.") from error
    return [_unwrapped(ipaddress.ip_address(text)) for text in dict.fromkeys(found)]


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for: a socket takes ::ffff:127.0.0.1 for 127.0.0.1."""
    return getattr(address, "ipv4_mapped", None) or address


def why_refused(address: Address) -> str | None:
    """What an address is, where it is not a public one of another machine."""
    for network, what in _REFUSED:
        if address in network:
            return what
    if not address.is_global or (address.version == 6 and address not in _PUBLIC_IPV6):
        return "a reserved address"
    return "the server itself" if is_this_machine(address) else None


def is_this_machine(address: Address) -> bool:
    """Whether an address is one of this machine's own: the system then sends from that very address.

    Connecting a UDP socket chooses the way and sends nothing.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        return ipaddress.ip_address(probe.getsockname()[0]) == address
    return False


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`; raises `TimeoutError` where it takes longer. The system's look-up has no limit of its own.

    The thread that is left behind ends when the system gives up; it keeps nobody waiting, the end of the process
    included.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # it is raised where the result is asked for
            future.set_exception(error)

    Thread(target=run, name="resolve", daemon=True).start()
    return future.result(seconds)
