"""A host's addresses, and which of them belong to other machines on the internet."""

from __future__ import annotations

import ipaddress
import threading

import pytest

from stenograf.errors import FetchFailedError
from stenograf.jobs.addresses import addresses_of, is_this_machine, look_up, why_refused

REFUSED = {
    "the server itself": ("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "::", "::1"),
    "a private address": (
        "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1", "fec0::1",
    ),
    "a link-local address": ("169.254.169.254", "fe80::1", "febf::1"),
    "a provider's inner address": ("100.64.0.1", "100.127.255.255"),
    "a cloud's own address": ("168.63.129.16",),
    "a multicast address": ("224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"),
    "a translated address": (
        "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:7f00:1::", "192.88.99.1",
    ),
    "an address for documents and tests": (
        "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1",
    ),
    "a reserved address": (
        "192.0.0.8", "192.0.0.9", "192.0.0.170", "192.0.0.192", "240.0.0.1", "255.255.255.255", "::127.0.0.1",
        "::ffff:0:127.0.0.1", "100::1", "2001:2::1", "2001:20::1", "4000::1", "5f00::1",
    ),
}  # fmt: skip

PUBLIC = (
    "1.1.1.1", "8.8.8.8", "11.0.0.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "192.0.1.1",
    "192.169.0.1", "198.20.0.1", "223.255.255.254", "2001:200::1", "2001:4860:4860::8888", "2606:4700:4700::1111",
    "2a00:1450:4001::1",
)  # fmt: skip


@pytest.mark.parametrize(("address", "what"), [(a, what) for what, some in REFUSED.items() for a in some])
def test_addresses_that_are_not_public_are_refused_by_name(address: str, what: str) -> None:
    assert why_refused(ipaddress.ip_address(address)) == what


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not_refused(address: str) -> None:
    assert why_refused(ipaddress.ip_address(address)) is None


def test_this_machine_knows_its_own_addresses() -> None:
    assert is_this_machine(ipaddress.ip_address("127.0.0.1"))
    assert not is_this_machine(ipaddress.ip_address("8.8.8.8"))


def test_a_mapped_address_is_taken_for_what_it_stands_for_and_repeats_are_left_out() -> None:
    found = addresses_of("a.test", lambda _: ["::ffff:10.0.0.1", "8.8.8.8", "8.8.8.8", "::1"], 5)
    assert [str(address) for address in found] == ["10.0.0.1", "8.8.8.8", "::1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost"])
def test_the_system_reads_odd_spellings_as_the_connection_will(host: str) -> None:
    assert "127.0.0.1" in look_up(host)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".test"])
def test_a_name_without_addresses_is_an_error_that_names_it(host: str) -> None:
    with pytest.raises(FetchFailedError, match="does not resolve"):
        addresses_of(host, look_up, 10)
    with pytest.raises(FetchFailedError, match="does not resolve to an address"):
        addresses_of(host, lambda _: [], 10)


def test_a_look_up_that_hangs_is_left() -> None:
    answered = threading.Event()

    def resolve(host: str) -> list[str]:
        answered.wait(30)
        return ["8.8.8.8"]

    try:
        with pytest.raises(FetchFailedError, match="in time"):
            addresses_of("slow.test", resolve, 0.05)
    finally:
        answered.set()
