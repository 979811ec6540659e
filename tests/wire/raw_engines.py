"""Engines made of raw sockets: each test says byte for byte what they answer and when they leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from modelyard.core.types import Address
from modelyard.wire.connection import Call, Headers

Answering = Callable[["Peer"], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """One connection as the engine sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """The next request as (head, body); raises IncompleteReadError when the client leaves instead."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return head, await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


class Engine:
    """Where a raw engine listens and what it has seen."""

    def __init__(self) -> None:
        self.address = Address()
        self.accepted = 0
        self.left = asyncio.Event()  # some connection has ended


@asynccontextmanager
async def engine(answering: Answering, path: Path | None = None) -> AsyncIterator[Engine]:
    """An engine that runs `answering` on each connection, on a Unix socket when `path` is given."""
    seen = Engine()
    open_now: set[asyncio.Task[None]] = set()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        seen.accepted += 1
        try:
            await answering(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            open_now.discard(task)
            seen.left.set()
            writer.close()

    if path is None:
        server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
        seen.address = Address(port=server.sockets[0].getsockname()[1])
    else:
        server = await asyncio.start_unix_server(on_connection, str(path))
        seen.address = Address(path=str(path))
    try:
        yield seen
    finally:
        server.close()
        for task in tuple(open_now):
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)


def always(answer: bytes) -> Answering:
    """Answers every request with the same bytes and keeps the connection."""

    async def answering(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer)

    return answering


def once(answer: bytes) -> Answering:
    """Answers one request and closes."""

    async def answering(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    return answering


class Collect:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self.heads = 0
        self.first = asyncio.Event()

    def on_head(self, status: int, headers: Headers) -> None:
        self.heads += 1
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        self.body += data
        self.first.set()


def post(sink: Collect, body: bytes = b"{}", method: bytes = b"POST") -> Call:
    return Call(method, b"/v1/completions", [(b"content-type", b"application/json")], body, sink)
