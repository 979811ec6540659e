"""The bridge from an exchange to an ASGI 3 application: the control surface and its pages.

Called by the server for every path that is no lane. `http` scopes only: no WebSocket, no lifespan. The
application's events become calls on the exchange; it is told of a departed client by `http.disconnect`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelyardError
from modelyard.gateway.exchange import Disconnected, Exchange, Handler

if TYPE_CHECKING:
    from modelyard.gateway.http.server import Server

Message = MutableMapping[str, Any]
CALLER = "modelyard.caller"  # of a scope: who was admitted with the request
AsgiApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


def bridge(app: AsgiApp, server: Server) -> Handler:
    """A handler that runs `app` for an exchange."""

    async def handle(exchange: Exchange) -> None:
        call = _Call(exchange)
        await app(_scope(exchange, server), call.receive, call.send)

    return handle


def _scope(exchange: Exchange, server: Server) -> dict[str, Any]:
    address = server.address
    host, _, port = exchange.peer.rpartition(":")
    return {
        "type": "http",
        # 2.3: before it was left to the sending side to notice that the client is gone; an event stream
        # that has nothing to send must notice too.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": exchange.method,
        "scheme": "http",
        "path": exchange.path,
        "raw_path": exchange.raw_path,
        "query_string": exchange.query,
        "root_path": "",
        "headers": exchange.headers.raw,
        "client": (host, int(port)) if port else None,
        CALLER: exchange.caller,
        "server": (address.path, None) if address.path else (address.host, address.port),
    }


class _Call:
    """The two channels of one ASGI call."""

    __slots__ = ("_body_done", "_departure", "_exchange", "_fault", "_start")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._body_done = False
        self._departure: asyncio.Future[None] | None = None
        self._fault: ModelyardError | None = None  # of the request body
        self._start: Message | None = None  # held until the first body event, to send both at once

    async def receive(self) -> Message:
        """The next piece of the request's body; after its end, the client's departure."""
        if not self._body_done:
            try:
                piece = await self._exchange.read()
            except Disconnected:
                return {"type": "http.disconnect"}
            except ModelyardError as error:
                self._fault = error
                raise
            if piece:
                return {"type": "http.request", "body": piece, "more_body": True}
            self._body_done = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._departure is None:
            self._departure = asyncio.get_running_loop().create_future()
            self._exchange.on_close(self._depart)
        await asyncio.shield(self._departure)
        return {"type": "http.disconnect"}

    def _depart(self) -> None:
        if self._departure is not None and not self._departure.done():
            self._departure.set_result(None)

    async def send(self, message: Message) -> None:
        """Take an event of the answer; waits while too much of it is buffered."""
        exchange, kind = self._exchange, message["type"]
        if self._fault is not None and not exchange.started:
            # Frameworks turn whatever stops their body parser into a 400 of their own; ours says more.
            raise self._fault
        if kind == "http.response.start":
            if self._start is not None or exchange.started:
                raise RuntimeError("http.response.start was sent twice")
            self._start = message
            return
        if kind != "http.response.body":
            raise RuntimeError(f"{kind} is not an event of an answer")
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._start is not None:
            start, self._start = self._start, None
            headers = [(bytes(name).lower(), bytes(value)) for name, value in start.get("headers", ())]
            if not more and exchange.method != "HEAD":
                exchange.respond(start["status"], headers, body)
                self._depart()
                return
            exchange.start(start["status"], headers)
        if exchange.closed:
            return
        exchange.write(body)
        if more:
            await self._drain()
        else:
            exchange.end()
            self._depart()

    async def _drain(self) -> None:
        try:
            await self._exchange.drain()
        except Disconnected:
            return  # `receive` tells it
