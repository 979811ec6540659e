"""Requests that two readers could understand differently: refused, and nothing after them counts."""

from __future__ import annotations

import json

import pytest

from gateway.http.lanes import Serve
from modelyard.errors import BY_CODE

AFTER = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"

CORPUS: dict[str, tuple[bytes, int]] = {
    "length and chunked": (POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked and length": (POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n", 400),
    "two lengths, same": (POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc", 400),
    "two lengths, different": (POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
    "length as a list": (POST + b"content-length: 3, 3\r\n\r\nabc", 400),
    "coding gzip": (POST + b"transfer-encoding: gzip\r\n\r\n", 400),
    "coding gzip, chunked": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "coding chunked, identity": (POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "coding xchunked": (POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "coding twice": (
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "coding with vertical tab": (POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "coding in 1.0": (b"POST /echo HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "folded line": (POST + b"x: a\r\n b\r\n\r\n", 400),
    "bare LF in a header": (POST + b"x: a\ny: b\r\n\r\n", 400),
    "bare LF throughout": (b"GET / HTTP/1.1\nhost: a\n\n", 400),
    "bare CR": (POST + b"x: a\rb\r\n\r\n", 400),
    "space before colon": (POST + b"content-length : 3\r\n\r\nabc", 400),
    "space before name": (b"GET / HTTP/1.1\r\n host: a\r\n\r\n", 400),
    "NUL in a header": (POST + b"x: a\0b\r\n\r\n", 400),
    "empty name": (POST + b": x\r\n\r\n", 400),
    "no colon": (POST + b"x\r\n\r\n", 400),
    "negative length": (POST + b"content-length: -1\r\n\r\n", 400),
    "length with a plus": (POST + b"content-length: +3\r\n\r\nabc", 400),
    "length in hex": (POST + b"content-length: 0x3\r\n\r\nabc", 400),
    "empty length": (POST + b"content-length:\r\n\r\n", 400),
    "huge length": (POST + b"content-length: 99999999999999999999999\r\n\r\n", 400),
    "chunk size overflow": (CHUNKED + b"fffffffffffffffff\r\nabc", 400),
    "chunk size garbage": (CHUNKED + b"zz\r\nabc", 400),
    "chunk size signed": (CHUNKED + b"-3\r\nabc", 400),
    "chunk size 0x": (CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size then blank": (CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n", 400),
    "chunk size bare LF": (CHUNKED + b"3\nabc\r\n0\r\n\r\n", 400),
    "chunk longer than said": (CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", 400),
    "chunk extension with control": (CHUNKED + b"3;\x01\r\nabc\r\n0\r\n\r\n", 400),
    "chunk extension too long": (CHUNKED + b"3;" + b"a" * 70_000 + b"\r\nabc\r\n0\r\n\r\n", 400),
    "trailers too long": (CHUNKED + b"0\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 400),
    "trailer bare LF": (CHUNKED + b"0\r\nt: v\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
    "two hosts in 1.0": (b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    "host with a path": (b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
    "host with a user": (b"GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", 400),
    "empty host": (b"GET / HTTP/1.1\r\nhost:\r\n\r\n", 400),
    "absolute target": (b"GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "asterisk target": (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "fragment": (b"GET /#a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "raw byte in target": (b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "target not UTF-8": (b"GET /%ff HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "NUL in target": (b"GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "connect": (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 405),
    "websocket": (b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 400),
    "two blanks": (b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "blank after version": (b"GET / HTTP/1.1 \r\nhost: a\r\n\r\n", 400),
    "version 0.9": (b"GET / HTTP/0.9\r\nhost: a\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "version 1.2": (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another protocol": (b"GET / RTSP/1.0\r\nhost: a\r\n\r\n", 400),
    "lower-case method": (b"get / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01", 400),
    "unknown expectation": (POST + b"expect: a-miracle\r\ncontent-length: 3\r\n\r\nabc", 417),
    "long target": (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
    "endless target": (b"GET /" + b"a" * 30_000, 414),
    "large head": (POST + b"x: " + b"a" * 66_000 + b"\r\n\r\n", 431),
    "endless head": (POST + b"x: " + b"a" * 70_000, 431),
    "many headers": (POST + b"x: a\r\n" * 200 + b"\r\n", 431),
}


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("name", CORPUS)
async def test_refuses_and_closes(serve: Serve, name: str, pieces: int) -> None:
    raw, status = CORPUS[name]
    bench = await serve()
    async with bench.client() as client:
        raw += AFTER
        size = -(-len(raw) // pieces)
        for at in range(0, len(raw), size):
            client.send(raw[at : at + size])
            if pieces > 1:
                await client.writer.drain()
        answer = await client.answer()
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert BY_CODE[json.loads(answer.body)["error"]["code"]].status == status
        assert await client.rest() == b""
    assert "GET /smuggled" not in bench.lanes.seen


GOOD: dict[str, tuple[bytes, bytes]] = {
    "length": (POST + b"content-length: 3\r\n\r\nabc", b"abc"),
    "length with outer blanks": (POST + b"content-length:  3 \r\n\r\nabc", b"abc"),
    "chunked": (CHUNKED + b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", b"abcd"),
    "chunked, extension and trailer": (CHUNKED + b"3;a=b\r\nabc\r\n0\r\nt: v\r\n\r\n", b"abc"),
    "empty lines in a chunk": (CHUNKED + b"8\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n\r\n\r\n"),
    "empty lines before": (b"\r\n\r\n" + POST + b"content-length: 1\r\n\r\na", b"a"),
    "no body": (POST + b"content-length: 0\r\n\r\n", b""),
    "an offer of h2c": (
        POST
        + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: a\r\n"
        + b"content-length: 3\r\n\r\nabc",
        b"abc",
    ),
}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10_000])
@pytest.mark.parametrize("name", GOOD)
async def test_takes_however_it_is_cut(serve: Serve, name: str, size: int) -> None:
    raw, body = GOOD[name]
    bench = await serve()
    async with bench.client() as client:
        raw += b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n"
        for at in range(0, len(raw), size):
            client.send(raw[at : at + size])
            await client.writer.drain()
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, body)
        assert (await client.answer()).status == 404
    assert bench.lanes.seen == ["POST /echo", "GET /next"]
