"""Engines asked directly, beside the gateway: where the processes of an instance answer."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator

import httpx
import psutil

from modelyard.core.types import Address


def client(address: Address) -> httpx.Client:
    """A client of the server at this address."""
    transport = httpx.HTTPTransport(uds=address.path or None)
    base = "http://localhost" if address.path else f"http://{address}"
    return httpx.Client(base_url=base, transport=transport, timeout=120.0)


def answering(pids: Iterable[int]) -> Address:
    """Where the server among these processes is that speaks OpenAI's API."""
    for address in (address for pid in pids for address in _listening(pid)):
        with client(address) as asked:
            try:
                if asked.get("/v1/models", timeout=5.0).status_code == 200:
                    return address
            except httpx.TransportError:
                pass  # a door of another kind
    raise AssertionError(f"none of the processes {pids} answers /v1/models")


def _listening(pid: int) -> Iterator[Address]:
    for one in psutil.Process(pid).net_connections("all"):
        if one.family is socket.AF_UNIX:
            if str(one.laddr).startswith("/"):
                yield Address(path=str(one.laddr))
        elif one.status == psutil.CONN_LISTEN:
            yield Address(host=one.laddr.ip, port=one.laddr.port)
