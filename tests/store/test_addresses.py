"""Where a source may lead: public addresses, and what the operator names."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from modelyard.errors import DownloadFailed, SourceForbidden
from modelyard.store.addresses import Guard, why_not

SOURCE = "https://models.test/file"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("169.254.169.254", "link-local"),
        ("100.100.100.200", "cloud"),
        ("168.63.129.16", "cloud"),
        ("192.0.0.192", "cloud"),
        ("0.0.0.0", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("240.0.0.1", "private"),
        ("255.255.255.255", "private"),
        ("198.18.0.1", "private"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "private"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "private"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::10.0.0.1", "private"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b:1::1", "private"),
        ("2002:7f00:1::1", "loopback"),
        ("2001:0:4136:e378:8000:63bf:3f57:fdf2", "private"),  # Teredo of 192.168.2.13
        ("93.184.215.14", ""),
        ("8.8.8.8", ""),
        ("2606:4700::6810:84e5", ""),
        ("::ffff:8.8.8.8", ""),
        ("64:ff9b::8.8.8.8", ""),
    ],
)
def test_what_is_no_public_address(address: str, said: str) -> None:
    found = why_not(ip_address(address))
    assert said in found
    assert bool(found) is bool(said)


def answers(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """What DNS says from now on."""

    def getaddrinfo(host: object, port: object, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr("modelyard.store.addresses.socket.getaddrinfo", getaddrinfo)


def test_a_name_is_what_it_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "10.0.0.7")
    with pytest.raises(SourceForbidden, match=r"models\.test leads to 10\.0\.0\.7, which is a private"):
        Guard().addresses(SOURCE, "models.test", 443, encrypted=True)
    answers(monkeypatch, "10.0.0.7", "8.8.8.8", "fe80::1%eth0")
    usable = Guard().addresses(SOURCE, "models.test", 443, encrypted=True)
    assert usable == [ip_address("8.8.8.8")], "what is not public is not connected to"


@pytest.mark.parametrize("entry", ["models.test", "Models.Test.", "10.0.0.7", "10.0.0.0/8"])
def test_what_the_operator_names_is_allowed(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    answers(monkeypatch, "10.0.0.7")
    guard = Guard([entry])
    for encrypted in (True, False):
        assert guard.addresses(SOURCE, "models.test", 443, encrypted=encrypted) == [ip_address("10.0.0.7")]


def test_a_network_holds_for_what_stands_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "::ffff:10.0.0.7")
    assert Guard(["10.0.0.0/8"]).addresses(SOURCE, "models.test", 443, encrypted=True)
    with pytest.raises(SourceForbidden):
        Guard(["192.168.0.0/16", "other.test"]).addresses(SOURCE, "models.test", 443, encrypted=True)


def test_without_encryption_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "8.8.8.8")
    with pytest.raises(SourceForbidden, match="http:// is not encrypted"):
        Guard(["10.0.0.0/8"]).addresses(SOURCE, "models.test", 80, encrypted=False)


def test_a_name_that_is_none() -> None:
    with pytest.raises(DownloadFailed, match=r"models\.invalid cannot be found"):
        Guard().addresses(SOURCE, "models.invalid", 443, encrypted=True)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "localhost"])
def test_other_ways_to_write_an_address(host: str) -> None:
    with pytest.raises(SourceForbidden, match="loopback"):
        Guard().addresses(SOURCE, host, 443, encrypted=True)
