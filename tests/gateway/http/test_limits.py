"""Clients that are slow, greedy or many: each meets its bound, and the server keeps nothing of theirs."""

from __future__ import annotations

import asyncio

import pytest

from gateway.http.lanes import Serve
from modelyard.gateway.exchange import Stalled

HELLO = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n"
FLOOD = b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\n"


async def test_unfinished_head_is_408(serve: Serve) -> None:
    bench = await serve(header_timeout=0.2)
    async with bench.client() as client:
        client.send(HELLO[:20])
        assert (await client.answer()).status == 408
        assert await client.rest() == b""


async def test_head_that_trickles_is_408(serve: Serve) -> None:
    bench = await serve(header_timeout=0.2)
    async with bench.client() as client:

        async def trickle() -> None:
            for byte in HELLO * 100:
                client.send(bytes([byte]))
                await asyncio.sleep(0.02)

        sending = asyncio.create_task(trickle())
        assert (await client.answer()).status == 408
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_silent_connection_is_closed(serve: Serve) -> None:
    bench = await serve(header_timeout=0.2)
    async with bench.client() as client:
        assert await client.rest() == b""


async def test_idle_connection_is_closed(serve: Serve) -> None:
    bench = await serve(keep_alive=0.2)
    async with bench.client() as client:
        client.send(HELLO)
        assert (await client.answer()).status == 200
        assert await client.rest() == b""


async def test_a_connection_that_cannot_be_looked_at_is_cut_and_the_others_go_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = await serve(header_timeout=0.2)
    async with bench.client() as bad:
        bad.send(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
        await asyncio.wait_for(bench.lanes.entered.wait(), 5)
        (connection,) = bench.server._connections

        def fail(now: float) -> None:
            raise OSError("no such transport")

        monkeypatch.setattr(type(connection), "sweep", lambda self, now: fail(now))
        assert await bad.rest() == b""
        monkeypatch.undo()
        async with bench.client() as late:
            late.send(HELLO[:20])
            assert (await late.answer()).status == 408


@pytest.mark.parametrize(
    "framing", [b"content-length: 99999\r\n\r\na", b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n"]
)
async def test_body_without_progress_is_408(serve: Serve, framing: bytes) -> None:
    bench = await serve(body_timeout=0.2)
    async with bench.client() as client:
        client.send(POST + framing)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await client.rest() == b""
    assert bench.server.buffered == 0


@pytest.mark.parametrize(
    "limits", [{"body_total": 0.4, "body_rate": 0}, {"body_total": 60, "body_rate": 1000}]
)
async def test_body_that_trickles_is_408(serve: Serve, limits: dict[str, float]) -> None:
    bench = await serve(body_timeout=0.2, **limits)
    async with bench.client() as client:
        client.send(POST + b"content-length: 99999\r\n\r\n")

        async def trickle() -> None:
            while True:
                client.send(b"a")
                await asyncio.sleep(0.02)

        sending = asyncio.create_task(trickle())
        assert (await client.answer()).status == 408
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_client_that_waits_for_100_is_not_hurried(serve: Serve) -> None:
    bench = await serve(body_timeout=0.05)
    async with bench.client() as client:
        head = b"POST /late_echo HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
        client.send(head)
        await asyncio.wait_for(bench.lanes.entered.wait(), 5)
        async with bench.client() as later:  # its turn to be hurried comes after that of the first
            later.send(POST + b"content-length: 3\r\n\r\n")
            assert (await later.answer()).status == 408
        bench.lanes.go.set()
        assert (await client.answer()).status == 100
        client.send(b"now")
        assert (await client.answer()).body == b"now"


async def test_full_buffers_refuse_a_body(serve: Serve) -> None:
    bench = await serve(buffered=1000)
    async with bench.client() as client:
        client.send(POST + b"content-length: 1001\r\n\r\n" + b"a" * 1001)
        answer = await client.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert bench.server.buffered == 0


async def test_connection_over_the_limit_is_told_so(serve: Serve) -> None:
    bench = await serve(connections=2)
    async with bench.client() as first, bench.client() as second:
        first.send(HELLO)
        assert (await first.answer()).status == 200
        first.send(b"GET /hel")  # begun
        second.send(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
        await asyncio.wait_for(bench.lanes.entered.wait(), 5)
        async with bench.client() as third:
            third.send(HELLO)
            assert (await third.answer()).status == 503
            assert await third.rest() == b""
        first.send(HELLO[len(b"GET /hel") :])
        assert (await first.answer()).status == 200
        bench.lanes.go.set()
        assert (await second.answer()).status == 200


async def test_idle_connections_make_room_the_oldest_first(serve: Serve) -> None:
    bench = await serve(connections=3)
    async with bench.client() as first, bench.client() as second, bench.client() as third:
        for client in (first, second, third, first):  # which makes the second the oldest
            client.send(HELLO)
            assert (await client.answer()).status == 200
            await asyncio.sleep(0.002)  # uvloop's clock counts milliseconds
        async with bench.client() as fourth, bench.client() as fifth:
            for client, gone in ((fourth, second), (fifth, third)):
                client.send(HELLO)
                assert (await client.answer()).status == 200
                assert await gone.rest() == b""
            first.send(HELLO)
            assert (await first.answer()).status == 200
        assert bench.server.connections <= 3


async def test_connections_that_asked_nothing_yet_keep_their_places(serve: Serve) -> None:
    bench = await serve(connections=2)
    async with bench.client() as first, bench.client() as second:
        async with bench.client() as third:
            third.send(HELLO)
            assert (await third.answer()).status == 503
        for client in (first, second):
            client.send(HELLO)
            assert (await client.answer()).status == 200


async def test_client_that_never_reads_is_cut(serve: Serve) -> None:
    bench = await serve(write_timeout=0.3)
    async with bench.client() as client:
        client.read_nothing()
        client.send(FLOOD)
        await asyncio.wait_for(bench.lanes.paused.wait(), 5)
        assert bench.server.buffered < 4 << 20
        await asyncio.wait_for(bench.lanes.left.wait(), 5)
    assert isinstance(bench.lanes.ended_by, Stalled)
    assert bench.server.buffered == 0


async def test_requests_of_a_client_that_does_not_read_wait_until_it_does(serve: Serve) -> None:
    bench = await serve(write_timeout=60.0)
    async with bench.client() as client, bench.client() as other:
        client.read_nothing()
        client.send(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n" * 500)
        for _ in range(50):
            other.send(HELLO)
            assert (await other.answer()).status == 200
        assert bench.lanes.seen.count("GET /large") < 100
        assert bench.server.buffered < 4 << 20
        client.read_on()
        for _ in range(500):
            assert len((await client.answer()).body) == 200_000


@pytest.mark.parametrize("cap", [256 << 20, 100_000])
async def test_slow_reader_gets_everything(serve: Serve, cap: int) -> None:
    bench = await serve(buffered=cap, linger=0.1)
    async with bench.client() as client:
        client.read_nothing()
        client.send(FLOOD)
        await asyncio.wait_for(bench.lanes.paused.wait(), 5)
        client.read_on()
        assert len((await client.answer()).body) == 64 << 20
        assert bench.lanes.resumed.is_set()
