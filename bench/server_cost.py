"""CPU of the HTTP server alone: microseconds per request, on a lane and through the bridge, and per chunk.

The client is a child process that sends raw bytes over 16 kept connections; only this process's CPU is
counted (user and system). Rounds of all kinds alternate; medians and spreads are printed.

    python bench/server_cost.py [--rounds 5] [--requests 20000] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import socket
import statistics
import sys
import time
from typing import Any

import uvloop

from modelyard.core.types import Address
from modelyard.gateway.exchange import Exchange
from modelyard.gateway.http import Server

CLIENTS = 16
CHUNKS = 200
BODY = b'{"model":"demo","messages":[{"role":"user","content":"' + b"word " * 80 + b'"}]}'
CHUNK = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream")]


def request(path: bytes) -> bytes:
    return (
        b"POST %b HTTP/1.1\r\nhost: 127.0.0.1:8000\r\nuser-agent: bench\r\naccept: */*\r\n"
        b"authorization: Bearer abc\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (path, len(BODY), BODY)
    )


async def whole(exchange: Exchange) -> None:
    exchange.respond(200, JSON, await exchange.body())


async def stream(exchange: Exchange) -> None:
    await exchange.body()
    exchange.start(200, EVENTS)
    for _ in range(CHUNKS):
        exchange.write(CHUNK)
        await asyncio.sleep(0)  # a chunk per turn of the loop, as from an engine
    exchange.end()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """What `whole` does, as an ASGI application behind the bridge: the control surface's way."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": JSON})
    await send({"type": "http.response.body", "body": body})


def visit(port: int, path: bytes, end: bytes, count: int) -> None:
    """The child: `count` requests in all, one at a time on each of the connections."""
    import selectors

    selector, data, left = selectors.DefaultSelector(), request(path), count
    tails: dict[object, bytes] = {}  # an answer's end may come in two reads
    for _ in range(CLIENTS):
        connection = socket.create_connection(("127.0.0.1", port))
        selector.register(connection, selectors.EVENT_READ)
        connection.sendall(data)
    while left > 0:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            got = key.fileobj.recv(1 << 16)
            if not got:
                sys.exit("the server closed a connection")
            tails[key.fileobj] = tail = (tails.get(key.fileobj, b"") + got)[-len(end) :]
            if tail == end:
                left -= 1
                tails[key.fileobj] = b""
                key.fileobj.sendall(data)


async def measure(port: int, path: bytes, end: bytes, count: int) -> float:
    """CPU seconds of this process for `count` requests."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--visit", str(port), path.decode(), end.hex(), str(count)
    )
    begin = time.process_time()
    code = await asyncio.wait_for(child.wait(), 300)
    if code:
        raise SystemExit(code)
    return time.process_time() - begin


async def run(rounds: int, requests: int) -> None:
    lanes = {"/whole": whole, "/stream": stream}
    server = Server(lambda method, path: lanes.get(path), app)
    await server.start(Address())
    per_request, per_bridged, per_chunk = [], [], []
    streams = max(1, requests // 50)
    for _ in range(rounds):
        cost = await measure(server.address.port, b"/whole", BODY[-8:], requests)
        per_request.append(cost / requests * 1e6)
        cost = await measure(server.address.port, b"/app", BODY[-8:], requests)
        per_bridged.append(cost / requests * 1e6)
        cost = await measure(server.address.port, b"/stream", b"\r\n0\r\n\r\n", streams)
        per_chunk.append((cost / streams * 1e6 - per_request[-1]) / CHUNKS)
    await server.close_now()
    for name, values in (("request", per_request), ("bridged", per_bridged), ("chunk", per_chunk)):
        print(f"{name:8} {statistics.median(values):6.2f} µs CPU  ({min(values):.2f}-{max(values):.2f})")


def main() -> None:
    if sys.argv[1:2] == ["--visit"]:
        visit(int(sys.argv[2]), sys.argv[3].encode(), bytes.fromhex(sys.argv[4]), int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    profile = cProfile.Profile() if options.profile else None
    if profile:
        profile.enable()
    uvloop.run(run(options.rounds, options.requests))
    if profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
