"""Lanes that show one behaviour each, and the server that they are tested on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.http.raw_client import RawClient
from modelyard.errors import ModelNotFound, Unauthorized
from modelyard.gateway.exchange import Disconnected, Exchange, Handler
from modelyard.gateway.http import Server

TEXT = [(b"content-type", b"text/plain")]


@dataclass
class Lanes:
    """The handlers under test, and what they saw."""

    seen: list[str] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    ended_by: BaseException | None = None

    def handler_for(self, method: str, path: str) -> Handler | None:
        self.seen.append(f"{method} {path}")
        if path == "/missing":
            raise ModelNotFound("There is no such model.")
        return getattr(self, path.strip("/").replace("/", "_") or "hello", None)

    async def hello(self, exchange: Exchange) -> None:
        exchange.respond(200, TEXT, exchange.path.encode() + b"?" + exchange.query)

    async def echo(self, exchange: Exchange) -> None:
        exchange.respond(200, TEXT, await exchange.body())

    async def stream(self, exchange: Exchange) -> None:
        exchange.start(200, TEXT)
        for piece in (b"one", b"two"):
            exchange.write(piece)
            await asyncio.sleep(0)
        exchange.end()

    async def wait(self, exchange: Exchange) -> None:
        exchange.on_close(self.left.set)
        self.entered.set()
        await self.go.wait()
        exchange.respond(200, TEXT, b"waited")

    async def late_echo(self, exchange: Exchange) -> None:
        self.entered.set()
        await self.go.wait()
        exchange.respond(200, TEXT, await exchange.body())

    async def flood(self, exchange: Exchange) -> None:
        exchange.on_pause(self.paused.set)
        exchange.on_resume(self.resumed.set)
        exchange.on_close(self.left.set)
        exchange.start(200, [(b"content-length", b"%d" % (64 << 20))])
        try:
            for _ in range(64):
                exchange.write(bytes(1 << 20))
                await exchange.drain()
            exchange.end()
        except Disconnected as error:
            self.ended_by = error
            raise

    async def large(self, exchange: Exchange) -> None:
        exchange.respond(200, TEXT, bytes(200_000))

    async def refused(self, exchange: Exchange) -> None:
        raise ModelNotFound("There is no such model.")

    async def broken(self, exchange: Exchange) -> None:
        raise ZeroDivisionError

    async def silent(self, exchange: Exchange) -> None:
        return

    async def broken_stream(self, exchange: Exchange) -> None:
        exchange.start(200, TEXT)
        exchange.write(b"one")
        raise ModelNotFound("too late to say")

    async def split(self, exchange: Exchange) -> None:
        exchange.respond(200, [(b"x", b"a\r\nset-cookie: b")], b"")

    async def short(self, exchange: Exchange) -> None:
        exchange.start(200, [(b"content-length", b"10")])
        exchange.write(b"four")
        exchange.end()


def admit(exchange: Exchange) -> None:
    if exchange.headers.get(b"authorization") == b"wrong":
        raise Unauthorized("The key is not known.")


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"no page"})


@dataclass
class Served:
    server: Server
    lanes: Lanes

    def client(self) -> RawClient:
        return RawClient(self.server.address)


Serve = Callable[..., Awaitable[Served]]
