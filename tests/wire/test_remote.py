"""The pool towards servers elsewhere: names, base paths, headers, TLS."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelyard.core.types import Address
from modelyard.wire.call import Target
from modelyard.wire.errors import ConnectFailed, NotTrusted
from modelyard.wire.pool import Pool
from wire.certificates import certificate, front
from wire.raw_engines import OK, Peer, always, engine


async def test_a_server_is_asked_by_its_name_below_its_base_with_its_headers() -> None:
    heads: list[bytes] = []

    async def answering(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            heads.append(head)
            await peer.send(OK)

    async with engine(answering) as peer:
        key = ("authorization", "Bearer secret-1")
        address = Address("", "localhost", peer.address.port, "http", "/deep/er", (key,))
        pool = Pool(address)
        assert await pool.fetch("GET", "/v1/models", timeout=5) == (200, b"ok")
        pool.close()
    assert heads == [
        b"GET /deep/er/v1/models HTTP/1.1\r\nhost: localhost:%d\r\nauthorization: Bearer secret-1\r\n\r\n"
        % peer.address.port
    ]
    assert "secret" not in repr(address) + str(address)


def test_an_address_is_written_as_an_address() -> None:
    assert str(Address(host="h", port=443, scheme="https", base="/b")) == "https://h/b"
    assert str(Address(host="h", port=80, scheme="https")) == "https://h:80"
    assert str(Address(host="::1", port=80, scheme="http")) == "http://[::1]"


@pytest.mark.parametrize(
    "wrong",
    [
        Address(host="h", scheme="http", base="/a b"),
        Address(host="h\r\nx: y", scheme="http"),
        Address(host="h", scheme="http", headers=(("a", "b\r\nx: y"),)),
    ],
)
def test_an_address_that_would_break_framing_is_refused(wrong: Address) -> None:
    with pytest.raises(ValueError, match="holds a space or the end of a line"):
        Target(wrong)


def has_addresses(monkeypatch: pytest.MonkeyPatch, *places: tuple[str, int]) -> None:
    """Every name has these."""

    async def found(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)


async def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one takes no connection and says nothing: another one is tried before the time is over."""
    monkeypatch.setattr("modelyard.wire.pool.CONNECT_TIMEOUT", 1.0)
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(8):  # more than its backlog holds
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        async with engine(always(OK)) as peer:
            has_addresses(monkeypatch, full.getsockname(), ("127.0.0.1", peer.address.port))
            pool = Pool(Address(host="two.example", port=80, scheme="http"))
            assert await pool.fetch("GET", "/", timeout=5) == (200, b"ok")
            pool.close()


async def test_a_name_that_does_not_resolve_is_said() -> None:
    pool = Pool(Address(host="no-such-host.invalid", port=80, scheme="http"))
    with pytest.raises(ConnectFailed, match=r"cannot connect to http://no-such-host.invalid: .*") as failed:
        await pool.fetch("GET", "/", timeout=10)
    assert not isinstance(failed.value, NotTrusted)
    pool.close()


async def test_tls_with_a_certificate_that_is_told(tmp_path: Path) -> None:
    made, context = certificate(tmp_path)
    async with engine(always(OK), tmp_path / "e") as peer, front(context, tmp_path / "e") as port:
        pool = Pool(Address(host="localhost", port=port, scheme="https", ca=str(made)))
        for _ in range(3):
            assert await pool.fetch("GET", "/", timeout=5) == (200, b"ok")
        assert peer.accepted == pool.open == 1
        pool.close()


@pytest.mark.parametrize(("scheme", "connections"), [("http", 2), ("https", 1)])
async def test_a_connection_with_tls_is_kept_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, connections: int
) -> None:
    monkeypatch.setattr("modelyard.wire.pool.IDLE", 0.0)
    made, context = certificate(tmp_path)
    tls = context if scheme == "https" else None
    async with engine(always(OK), tmp_path / "e") as peer, front(tls, tmp_path / "e") as port:
        pool = Pool(Address(host="localhost", port=port, scheme=scheme, ca=str(made)))
        for _ in range(2):
            assert await pool.fetch("GET", "/", timeout=5) == (200, b"ok")
        assert peer.accepted == connections
        pool.close()


@pytest.mark.parametrize("case", ["unknown", "other name", "no file", "no certificate", "empty"])
async def test_a_server_that_is_not_trusted_gets_no_request(tmp_path: Path, case: str) -> None:
    made, context = certificate(tmp_path, "elsewhere" if case == "other name" else "localhost")
    if case in ("no certificate", "empty"):
        made = tmp_path / "text"
        made.write_text("no" if case == "no certificate" else "")
    ca = {"unknown": "", "no file": str(tmp_path / "none")}.get(case, str(made))
    async with engine(always(OK), tmp_path / "e") as peer, front(context, tmp_path / "e") as port:
        pool = Pool(Address(host="localhost", port=port, scheme="https", ca=ca))
        what = (
            "is not trusted: " if case in ("unknown", "other name") else "cannot be read as PEM certificates"
        )
        with pytest.raises(NotTrusted, match=what):
            await pool.fetch("GET", "/", timeout=5)
        assert peer.accepted == pool.open == 0
        pool.close()


async def test_an_address_that_is_not_there_does_not_hide_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, context = certificate(tmp_path)
    async with engine(always(OK), tmp_path / "e"), front(context, tmp_path / "e") as port:
        has_addresses(monkeypatch, ("127.0.0.1", port), ("127.0.0.1", 1))
        pool = Pool(Address(host="two.example", port=port, scheme="https"))
        with pytest.raises(NotTrusted, match="self-signed certificate"):
            await pool.fetch("GET", "/", timeout=5)
        pool.close()
