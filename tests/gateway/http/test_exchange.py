"""Answers, bodies and their order, as a client on a socket sees them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.http.lanes import Serve
from gateway.http.raw_client import RawClient


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "host: a", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def test_whole_answer(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/hello?a=%20b"))
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"/hello?a=%20b")
        assert answer.headers["server"] == "modelyard"
        assert answer.headers["date"].endswith(" GMT")
        assert "connection" not in answer.headers


async def test_decodes_the_path(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/%68ello"))
        assert (await client.answer()).body == b"/hello?"


async def test_streamed_answer_is_chunked_and_head_is_not_late(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/stream"))
        assert (await client.head()).headers["transfer-encoding"] == "chunked"
        assert [await client.chunk() for _ in range(3)] == [b"one", b"two", b""]


@pytest.mark.parametrize("path", ["/hello", "/stream"])
async def test_head_has_no_body(serve: Serve, path: str) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get(path, method="HEAD") + get("/hello"))
        assert (await client.head()).status == 200
        assert (await client.answer()).body == b"/hello?"


@pytest.mark.parametrize(
    ("version", "header", "kept"),
    [
        ("1.1", "x: y", True),
        ("1.1", "connection: close", False),
        ("1.1", "connection: x, Close", False),
        ("1.0", "x: y", False),
        ("1.0", "connection: keep-alive", True),
    ],
)
async def test_persistence(serve: Serve, version: str, header: str, kept: bool) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/hello", header, version=version))
        answer = await client.answer()
        if kept:
            assert answer.headers.get("connection", "keep-alive") == "keep-alive"
            client.send(get("/hello", header, version=version))
            assert (await client.answer()).status == 200
        else:
            assert answer.headers["connection"] == "close"
            assert await client.rest() == b""


async def test_stream_to_http_10_ends_with_the_connection(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/stream", "connection: keep-alive", version="1.0"))
        assert (await client.head()).headers["connection"] == "close"
        assert await client.rest() == b"onetwo"


async def test_pipelined_answers_keep_their_order(serve: Serve) -> None:
    bench = await serve(pipeline=4)
    async with bench.client() as client:
        client.send(get("/wait") + b"".join(get(f"/hello?{i}") for i in range(2000)))
        await asyncio.wait_for(bench.lanes.entered.wait(), 5)
        assert bench.lanes.seen == ["GET /wait"]
        bench.lanes.go.set()
        assert (await client.answer()).body == b"waited"
        for i in range(2000):
            assert (await client.answer()).body == b"/hello?%d" % i


async def test_framing_error_behind_a_running_request_waits_its_turn(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/wait") + get("/hello") + b"nonsense\r\n\r\n" + get("/hello"))
        await asyncio.wait_for(bench.lanes.entered.wait(), 5)
        bench.lanes.go.set()
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 400]
        assert await client.rest() == b""
    assert bench.lanes.seen == ["GET /wait", "GET /hello"]


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/echo", "authorization: wrong", 401),
        ("/missing", "x: y", 404),
        ("/refused", "x: y", 404),
        ("/echo", "content-length: 99999999999", 413),
    ],
)
async def test_refusal_comes_without_100(serve: Serve, path: str, header: str, status: int) -> None:
    bench = await serve()
    async with bench.client() as client:
        length = () if header.startswith("content-length") else ("content-length: 5",)
        client.send(get(path, header, "expect: 100-continue", *length, method="POST"))
        answer = await client.answer()
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert json.loads(answer.body)["error"]["message"]
        assert await client.rest() == b""


async def test_100_comes_when_the_body_is_asked_for(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/echo", "expect: 100-continue", "content-length: 3", method="POST"))
        assert (await client.head()).status == 100
        client.send(b"abc")
        assert (await client.answer()).body == b"abc"
        client.send(get("/hello"))
        assert (await client.answer()).status == 200


async def test_short_body_of_a_refused_request_is_read_away(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/missing", "content-length: 5", method="POST"))
        assert (await client.answer()).status == 404
        client.send(b"GET /" + get("/hello"))
        assert (await client.answer()).body == b"/hello?"
    assert bench.lanes.seen == ["POST /missing", "GET /hello"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_body_is_413(serve: Serve, chunked: bool) -> None:
    bench = await serve(body=1000)
    async with bench.client() as client:
        body = b"a" * 1001
        if chunked:
            client.send(get("/echo", "transfer-encoding: chunked", method="POST"))
            client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            client.send(get("/echo", f"content-length: {len(body)}", method="POST") + body)
        assert (await client.answer()).status == 413
    assert bench.server.buffered == 0


async def test_body_at_the_limit_is_taken(serve: Serve) -> None:
    bench = await serve(body=1000)
    async with bench.client() as client:
        client.send(get("/echo", "content-length: 1000", method="POST") + b"a" * 1000)
        assert (await client.answer()).body == b"a" * 1000
    assert bench.server.buffered == 0


@pytest.mark.parametrize("path", ["/broken", "/silent", "/split"])
async def test_failed_handler_is_500_and_the_connection_lives(serve: Serve, path: str) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get(path) + get("/hello"))
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (500, "internal_error")
        assert "set-cookie" not in answer.headers
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(("path", "sent"), [("/broken_stream", b"3\r\none\r\n"), ("/short", b"four")])
async def test_answer_that_cannot_be_finished_is_cut(serve: Serve, path: str, sent: bytes) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get(path))
        rest = await client.rest()
        assert rest == b"" or rest.endswith(sent)
        assert not rest.endswith(b"0\r\n\r\n")


async def test_handler_is_told_of_departure_and_not_cancelled(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as client:
        client.send(get("/wait"))
        await asyncio.wait_for(bench.lanes.entered.wait(), 5)
    await asyncio.wait_for(bench.lanes.left.wait(), 5)
    (handler,) = bench.server._tasks
    assert not handler.done()
    bench.lanes.go.set()
    await asyncio.wait_for(handler, 5)
    assert bench.server.connections == 0


async def test_serves_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "gate.sock"
    bench = await serve(unix=str(path))
    async with bench.client() as client:
        client.send(get("/hello"))
        assert (await client.answer()).status == 200
    await bench.server.stop(1)
    assert not path.exists()


async def test_two_hundred_clients_at_once(serve: Serve) -> None:
    bench = await serve()

    async def visit(number: int) -> None:
        async with bench.client() as client:
            for turn in range(5):
                client.send(get(f"/hello?{number}-{turn}"))
                assert (await client.answer()).body == b"/hello?%d-%d" % (number, turn)

    await asyncio.gather(*(visit(number) for number in range(200)))


async def test_stop_lets_running_requests_finish(serve: Serve) -> None:
    bench = await serve(linger=0.1)
    async with bench.client() as idle, bench.client() as busy:
        idle.send(get("/hello"))
        await idle.answer()
        busy.send(get("/wait") + get("/hello"))
        await asyncio.wait_for(bench.lanes.entered.wait(), 5)
        stopping = asyncio.create_task(bench.server.stop(5))
        assert await idle.rest() == b""
        with pytest.raises(OSError):
            async with RawClient(bench.server.address):
                pass
        bench.lanes.go.set()
        answer = await busy.answer()
        assert (answer.body, answer.headers["connection"]) == (b"waited", "close")
        assert await busy.rest() == b""
        await asyncio.wait_for(stopping, 5)


async def test_stop_cuts_what_outlives_the_grace(serve: Serve) -> None:
    bench = await serve()
    async with bench.client() as busy:
        busy.send(get("/wait"))
        await asyncio.wait_for(bench.lanes.entered.wait(), 5)
        await asyncio.wait_for(bench.server.stop(0.05), 5)
        assert await busy.rest() == b""
    assert bench.lanes.left.is_set()
    assert bench.server.connections == 0
