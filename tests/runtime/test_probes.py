"""What a probe makes of an engine that answers, is silent, refuses or hangs up."""

from __future__ import annotations

import asyncio

import pytest

from gateway.live_yard import short_folder
from modelyard.core.types import Address
from modelyard.engines.base import Call
from modelyard.runtime import probes
from modelyard.wire.errors import ProtocolError
from modelyard.wire.pool import Pool
from wire.raw_engines import OK, Answering, Peer, always, engine

ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + bytes((1 << 20) + 1)


async def found(address: Address) -> probes.Health:
    pool = Pool(address)
    try:
        return await probes.look(pool, "/health")
    finally:
        pool.close()


async def hang_up(peer: Peer) -> None:
    await peer.request()


async def be_silent(peer: Peer) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answering", "timeout", "health"),
    [
        (always(OK), 5.0, probes.Health.ANSWERS),
        (always(OK.replace(b"200", b"503")), 5.0, probes.Health.ANSWERS),
        (always(ENDLESS), 5.0, probes.Health.ANSWERS),
        (hang_up, 5.0, probes.Health.UNREACHABLE),
        (be_silent, 0.1, probes.Health.SILENT),
    ],
    ids=["ok", "busy", "long", "hangs-up", "silent"],
)
async def test_an_engine_that_takes_connections(
    answering: Answering, timeout: float, health: probes.Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "PROBE_TIMEOUT", timeout)
    async with engine(answering) as seen:
        assert await found(seen.address) is health


async def test_a_list_of_models_may_be_long() -> None:
    async with engine(always(ENDLESS)) as seen:
        pool = Pool(seen.address)
        await probes.ask(pool, (Call("GET", "/v1/models"),), "a look", 0.0)
        with pytest.raises(ProtocolError, match="a short answer was due"):
            await probes.ask(pool, (Call("POST", "/v1/completions"),), "a token", 0.0)
        pool.close()


async def test_an_engine_that_is_not_there() -> None:
    with short_folder() as folder:
        assert await found(Address(path=str(folder / "engine.sock"))) is probes.Health.UNREACHABLE
