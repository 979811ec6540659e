"""A small HTTP/1.1 server for our own engine processes: asyncio, httptools, nothing else.

Called by the servers of this package with one handler per request. It knows framing, kept connections and
back-pressure; it must never know what an API means. A client that closes its connection is reported by
`Exchange.gone`, at once, so that a handler can stop what nobody waits for.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

import httptools

BODY_BOUND = 64 << 20
_PIPELINE_BOUND = 64
_REASONS = {status.value: status.phrase for status in HTTPStatus}

T = TypeVar("T")


class Gone(Exception):
    """The client left: nobody waits for the answer any more."""


class Request:
    """One whole request: `method`, `path` (without the query) and `body`."""

    __slots__ = ("body", "keep_alive", "method", "path")

    def __init__(self, method: str, path: str, body: bytes, keep_alive: bool) -> None:
        self.method = method
        self.path = path
        self.body = body
        self.keep_alive = keep_alive


class Exchange:
    """One request and the writing of its answer: `answer` whole, or `begin`, `write` … and `end`."""

    def __init__(self, connection: Connection, request: Request, last: bool) -> None:
        self.request = request
        self.last = last
        self._connection = connection

    @property
    def gone(self) -> bool:
        """Whether the client has closed its connection."""
        return self._connection.lost

    def when_gone(self, call: Callable[[], None]) -> None:
        """Call this, once, when the client closes its connection before this answer has ended."""
        if self.gone:
            call()
        else:
            self._connection.departure = call

    async def awaited(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of `work`, which is cancelled when the client leaves; Gone is raised when it has ended
        then."""
        task = asyncio.ensure_future(work)

        def left() -> None:
            task.cancel()

        self.when_gone(left)
        try:
            return await task
        except asyncio.CancelledError:
            if self.gone:
                raise Gone from None
            raise

    def answer(self, status: int, body: object, content_type: str = "application/json") -> None:
        """Send the whole answer; an object that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        self._connection.send(self._head(status, content_type, f"Content-Length: {len(data)}") + data)

    def begin(self, status: int, content_type: str) -> None:
        """Send the head of a streamed answer."""
        self._connection.send(self._head(status, content_type, "Transfer-Encoding: chunked"))

    async def write(self, data: bytes) -> None:
        """Send a piece of a streamed answer; waits while the client is slow to read."""
        self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))
        await self._connection.drained()

    def write_half(self, data: bytes) -> None:
        """Announce `data` as a piece and send only half of it."""
        self._connection.send(b"%x\r\n%b" % (len(data), data[: len(data) // 2]))

    def end(self) -> None:
        """End a streamed answer."""
        self._connection.send(b"0\r\n\r\n")

    def _head(self, status: int, content_type: str, length: str) -> bytes:
        connection = "close" if self.last else "keep-alive"
        return (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\nContent-Type: {content_type}\r\n"
            f"{length}\r\nConnection: {connection}\r\n\r\n"
        ).encode()


Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client connection: its requests are answered in order, one at a time.

    Reading never pauses, or the client's departure would go unseen; what is read ahead is bounded instead.
    """

    def __init__(
        self, handler: Handler, keep_alive: float, requests: int, tasks: set[asyncio.Task[None]]
    ) -> None:
        self.lost = False
        self.departure: Callable[[], None] | None = None
        self._handler = handler
        self._keep_alive = keep_alive
        self._left = requests
        self._tasks = tasks
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._url = b""
        self._body = bytearray()

    # -- asyncio ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._rest()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "no protocol upgrade here")
        except httptools.HttpParserError as error:
            self._refuse(400, f"not HTTP/1.1: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._waiting.clear()
        self._writable.set()
        if self.departure is not None:
            self.departure()
        if self._idle is not None:
            self._idle.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- httptools --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > BODY_BOUND:
            self._refuse(413, f"the body is larger than {BODY_BOUND} bytes")

    def on_message_complete(self) -> None:
        if self.lost:
            return
        path = self._url.decode("ascii", "replace").partition("?")[0]
        method = self._parser.get_method().decode()
        self._waiting.append(Request(method, path, bytes(self._body), bool(self._parser.should_keep_alive())))
        if len(self._waiting) > _PIPELINE_BOUND:
            self._refuse(400, "too many pipelined requests")
        elif self._task is None:
            self._next()

    # -- answers ----------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Write bytes; nothing happens when the client is gone."""
        if not self.lost and self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has read enough, or is gone."""
        await self._writable.wait()

    def _next(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        request = self._waiting.popleft()
        self._left -= 1
        exchange = Exchange(self, request, last=not request.keep_alive or self._left <= 0)
        self._task = asyncio.get_running_loop().create_task(self._serve(exchange))
        # A handler may outlive its connection, and the loop holds tasks only weakly.
        self._tasks.add(self._task)
        self._task.add_done_callback(self._tasks.discard)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except Exception as error:  # whatever was sent is no answer: who waits for the rest shall know
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "a request failed", "exception": error})
            self._close()
            return
        self._task = self.departure = None
        if exchange.last:
            self._close()
        elif self._waiting:
            self._next()
        else:
            self._rest()

    def _rest(self) -> None:
        if not self.lost:
            self._idle = asyncio.get_running_loop().call_later(self._keep_alive, self._close)

    def _refuse(self, status: int, message: str) -> None:
        if not self.lost:
            Exchange(self, Request("", "", b"", False), last=True).answer(status, {"error": message})
        self._close()

    def _close(self) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.close()


async def listen(address: str, handler: Handler, keep_alive: float, requests: int) -> asyncio.Server:
    """Listen at `unix:/path` (a socket left there is removed) or `host:port`. Raises OSError, ValueError.

    A kept connection is closed after `keep_alive` idle seconds, or after this many requests.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def connection() -> Connection:
        return Connection(handler, keep_alive, requests, tasks)

    if address.startswith("unix:"):
        # asyncio removes a stale socket itself, and refuses to remove anything else.
        return await loop.create_unix_server(connection, address.removeprefix("unix:"), backlog=1024)
    host, _, port = address.rpartition(":")
    return await loop.create_server(connection, host or "127.0.0.1", int(port), backlog=1024)
