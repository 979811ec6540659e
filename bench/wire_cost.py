"""CPU time of the wire: microseconds per request and per streamed piece, of this process alone.

Run as `python bench/wire_cost.py [--profile]`. The engine is a mock in a child process that answers from
prepared bytes over a Unix socket; a streamed event is written when the one before it must have been read.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import uvloop

from modelyard.core.types import Address
from modelyard.wire.connection import Call, Headers
from modelyard.wire.pool import Pool
from modelyard.wire.sse import Framer

ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: application/json; charset=utf-8\r\n"
    b"Access-Control-Allow-Origin: *\r\nContent-Length: 600\r\nConnection: keep-alive\r\n\r\n" + b"x" * 600
)
STREAM = (
    b"HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: text/event-stream\r\n"
    b"Access-Control-Allow-Origin: *\r\nTransfer-Encoding: chunked\r\n\r\n"
)
EVENT = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" word"}}]}' + b" " * 150 + b"\n\n"
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"OpenAI/Python 2.0"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"authorization", b"Bearer sk-xxxxxxxxxxxxxxxxxxxxxxxx"),
    (b"content-type", b"application/json"),
    (b"content-length", b"600"),
]
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"y" * 540 + b'"}]}'
EVENTS = 500
PAUSE = 0.0002  # seconds between events, so that each is a read of its own


class Mock(asyncio.Protocol):
    """Answers any request; paths that start with /s are streamed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.left = 0

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST /s"):
            self.left = EVENTS
            self.transport.write(STREAM)
            self.more()
        else:
            self.transport.write(ANSWER)

    def more(self) -> None:
        if self.left == 0:
            self.transport.write(b"0\r\n\r\n")
            return
        self.left -= 1
        self.transport.write(CHUNK)
        asyncio.get_running_loop().call_later(PAUSE, self.more)


def serve(path: str) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_unix_server(Mock, path)
        await server.serve_forever()

    uvloop.run(main())


class Count:
    """A sink that frames and counts, like a relay without a client."""

    def __init__(self) -> None:
        self.reads = 0
        self.feed = Framer().feed

    def on_head(self, status: int, headers: Headers) -> None:
        assert status == 200

    def on_body(self, data: bytes) -> None:
        self.reads += 1
        self.feed(data)


async def answers(pool: Pool, count: int) -> int:
    for _ in range(count):
        await pool.run(Call(b"POST", b"/v1/chat/completions", HEADERS, BODY, Count()))
    return count


async def streams(pool: Pool, count: int) -> int:
    reads = 0
    for _ in range(count):
        sink = Count()
        await pool.run(Call(b"POST", b"/s", HEADERS, BODY, sink))
        reads += sink.reads
    return reads


async def writing_alone(path: str, count: int) -> int:
    """What an empty protocol costs per request and answer, with the same bytes and one future."""
    loop = asyncio.get_running_loop()
    end = loop.create_future()

    class Floor(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            end.set_result(None)

    transport, _ = await loop.create_unix_connection(Floor, path)
    request = b"POST /v1/chat/completions HTTP/1.1\r\n" + b"h" * 200 + BODY
    for _ in range(count):
        end = loop.create_future()
        transport.write(request)
        await end
    transport.close()
    return count


async def reading_alone(path: str, count: int) -> int:
    """What an empty protocol costs per read: the floor that the event loop sets."""
    reads = 0
    loop = asyncio.get_running_loop()
    end = loop.create_future()

    class Floor(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            nonlocal reads
            reads += 1
            if data.endswith(b"0\r\n\r\n"):
                end.set_result(None)

    transport, _ = await loop.create_unix_connection(Floor, path)
    for _ in range(count):
        end = loop.create_future()
        transport.write(b"POST /s")
        await end
    transport.close()
    return reads


async def measure(what: Callable[[], Awaitable[int]]) -> float:
    before = time.process_time()
    count = await what()
    return (time.process_time() - before) / count * 1e6


async def main(path: str, profile: bool) -> None:
    pool = Pool(Address(path=path))
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    await answers(pool, 500)
    if profile:
        with cProfile.Profile() as profiler:
            await answers(pool, 5000)
            await streams(pool, 2)
        profiler.print_stats("tottime")
    else:
        rounds: list[tuple[float, float, float, float]] = []
        for _ in range(5):
            request = await measure(lambda: answers(pool, 4000))
            bare = await measure(lambda: writing_alone(path, 4000))
            chunk = await measure(lambda: streams(pool, 4))
            floor = await measure(lambda: reading_alone(path, 4))
            rounds.append((request, bare, chunk, floor))
        names = ("request", "request, empty protocol", "streamed event", "streamed event, empty protocol")
        for name, values in zip(names, zip(*rounds, strict=True), strict=True):
            middle, low, high = statistics.median(values), min(values), max(values)
            print(f"{name:32} {middle:7.2f} µs CPU (median of 5; {low:.2f} to {high:.2f})")
    pool.close()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--profile", action="store_true", help="print where the time goes")
    wanted = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        socket_path = f"{folder}/engine.sock"
        child = multiprocessing.get_context("spawn").Process(target=serve, args=(socket_path,), daemon=True)
        child.start()
        try:
            uvloop.run(main(socket_path, wanted.profile))
        finally:
            child.terminate()
            child.join()
