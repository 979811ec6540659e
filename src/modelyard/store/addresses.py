"""Which addresses a source may lead to: public ones, and those that the operator allows.

Used by `http_client`. A name is judged by the addresses that are then connected to, so that neither an answer
of DNS nor a redirect leads into the operator's own network.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from modelyard.config.store import is_network
from modelyard.errors import DownloadFailed, SourceForbidden

Address = IPv4Address | IPv6Address

# Services of clouds that lie at addresses which look public.
_METADATA = (ip_network("168.63.129.16/32"), ip_network("192.0.0.0/24"), ip_network("100.100.100.200/32"))
# Prefixes of IPv6 that stand for an IPv4 address, and how far right that is.
_EMBEDDED = (
    (ip_network("::ffff:0:0/96"), 0),
    (ip_network("::/96"), 0),
    (ip_network("64:ff9b::/96"), 0),
    (ip_network("2002::/16"), 80),
)
_PUBLIC_V6 = ip_network("2000::/3")


class Guard:
    """`allow` are hosts, addresses and networks that may be connected to though they are not public."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        entries = [entry.lower() for entry in allow]
        self._hosts = {entry.rstrip(".") for entry in entries if not is_network(entry)}
        self._networks = [ip_network(entry, strict=False) for entry in entries if is_network(entry)]

    @property
    def allows_any(self) -> bool:
        """Whether there is anything that is not public and allowed all the same."""
        return bool(self._hosts or self._networks)

    def addresses(self, source: str, host: str, port: int, *, encrypted: bool) -> list[Address]:
        """The addresses of a host that may be connected to, at least one; without encryption those alone that
        are allowed by name. Asks DNS. Raises SourceForbidden, DownloadFailed."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise DownloadFailed(
                f"{source}: the host {host} cannot be found ({error}); check its name and this machine's DNS"
            ) from error
        addresses = list(dict.fromkeys(ip_address(str(one[4][0]).partition("%")[0]) for one in found))
        allowed = [one for one in addresses if self._is_allowed(host, one)]
        if not encrypted and not allowed:
            if host.lower() not in source.lower():  # a redirect
                why = f", and {reason}" if (reason := why_not(addresses[0])) else ""
                raise SourceForbidden(f"{source}: leads on to http://{host}, which is not encrypted{why}")
            raise SourceForbidden(
                f"{source}: http:// is not encrypted; write https://, or name {host} in `store.allow_private`"
            )
        usable = (
            allowed if not encrypted else [one for one in addresses if one in allowed or not why_not(one)]
        )
        if not usable:
            raise SourceForbidden(
                f"{source}: {host} leads to {addresses[0]}, which is {why_not(addresses[0])}; if it may be "
                "asked for files, name the host or its network in `store.allow_private`"
            )
        return usable

    def _is_allowed(self, host: str, address: Address) -> bool:
        if host.lower().rstrip(".") in self._hosts:
            return True
        meant = {address, embedded(address) or address}
        return any(one in network for one in meant for network in self._networks)


def why_not(address: Address) -> str:
    """Why an address is not a public one, in a few words; empty where it is."""
    if inner := embedded(address):
        return why_not(inner)
    for name in ("unspecified", "loopback", "link_local", "multicast"):
        if getattr(address, f"is_{name}"):
            return f"a {name.replace('_', '-')} address" if name[0] != "u" else "the unspecified address"
    if any(address in network for network in _METADATA):
        return "an address of a cloud's own services"
    if isinstance(address, IPv6Address) and address not in _PUBLIC_V6:
        return "a private address"
    return "" if address.is_global and not address.is_reserved else "a private address"


def embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for (mapped, compatible, NAT64, 6to4, Teredo)."""
    if isinstance(address, IPv4Address):
        return None
    if address.teredo is not None:
        return address.teredo[1]
    for network, shift in _EMBEDDED:
        # `::` and `::1` are addresses of their own.
        if address in network and int(address) > 1:
            return IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    return None
