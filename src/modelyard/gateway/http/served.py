"""The exchange that this server hands to handlers: the state of one request and of its answer.

Made by the connection when a head is whole. It never reads a clock and never parses; it asks its connection
to send, and is told of arriving body bytes, of faults, of pauses and of the client's departure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelyard.errors import BodyTooLarge, ModelyardError
from modelyard.gateway.exchange import NOBODY, Disconnected, HeaderList, Stalled
from modelyard.gateway.http.answers import CONTINUE, has_body, header_block, status_and_date
from modelyard.gateway.http.head import Head

if TYPE_CHECKING:
    from modelyard.gateway.http.connection import Connection

# How the end of an answer is told to the client.
_CHUNKED, _COUNTED, _UNTIL_CLOSE, _EMPTY = range(4)


class ServedExchange:
    """Implements `modelyard.gateway.exchange.Exchange`."""

    __slots__ = (
        "_close_callback",
        "_connection",
        "_drain_waiter",
        "_ending",
        "_fault",
        "_left",
        "_parts",
        "_pause_callback",
        "_pending_head",
        "_read_waiter",
        "_resume_callback",
        "also",
        "caller",
        "closed",
        "complete",
        "expecting",
        "finished",
        "headers",
        "http_11",
        "keep_alive",
        "length",
        "method",
        "path",
        "paused",
        "peer",
        "query",
        "raw_path",
        "received",
        "stalled",
        "started",
        "task",
    )

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self.method, target, self.headers, framing, self.http_11 = head
        self.path, self.raw_path, self.query = target
        self.peer = connection.peer
        self.length, self.keep_alive, self.expecting = framing
        self.complete = self.length == 0
        self.received = 0  # body bytes held for this exchange, counted in the server's total
        self.task: asyncio.Task[None] | None = None
        self.started = self.finished = self.closed = self.paused = self.stalled = False
        self._parts: list[bytes] = []
        self._fault: ModelyardError | None = None
        self._read_waiter: asyncio.Future[None] | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._close_callback: Callable[[], None] | None = None
        self._pause_callback: Callable[[], None] | None = None
        self._resume_callback: Callable[[], None] | None = None
        self.also = b""
        self.caller = NOBODY
        self._pending_head = b""
        self._ending = _EMPTY
        self._left = 0  # bytes that a counted answer still owes

    # -- the request body ------------------------------------------------------------------------------

    async def body(self) -> bytes:
        """See Exchange.body."""
        while not self.complete or self._fault is not None:
            await self._more()
        if self.closed:
            raise self._departure()
        parts = self._parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read(self) -> bytes:
        """See Exchange.read."""
        while not self._parts:
            if self.complete and self._fault is None and not self.closed:
                return b""
            await self._more()
        piece = b"".join(self._parts)
        self._parts.clear()
        return piece

    async def _more(self) -> None:
        if self._fault is not None:
            raise self._fault
        if self.closed:
            raise self._departure()
        if self.expecting:
            self.expecting = False
            self._connection.ask_for_body(CONTINUE)
        self._read_waiter = asyncio.get_running_loop().create_future()
        try:
            await self._read_waiter
        finally:
            self._read_waiter = None

    def too_large(self, most: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"The request body is larger than the {most:,} bytes taken here; send a smaller one."
        )

    @property
    def wants_body(self) -> bool:
        """False once the body was refused: its bytes are read away."""
        return self._fault is None and not self.finished

    def take(self, piece: bytes) -> None:
        """A piece of the body has arrived."""
        self.received += len(piece)
        self._parts.append(piece)
        if self._read_waiter is not None:
            _wake(self._read_waiter)

    def complete_body(self) -> None:
        self.complete = True
        if self._read_waiter is not None:
            _wake(self._read_waiter)

    def refuse_body(self, error: ModelyardError) -> None:
        """Nothing of the body is kept from now on; whoever asks for it gets `error`."""
        if self._fault is None:
            self._fault = error
            self._parts.clear()
            if self._read_waiter is not None:
                _wake(self._read_waiter)

    # -- the answer ------------------------------------------------------------------------------------

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """See Exchange.respond."""
        head = self._claim(status, headers)[0]
        if has_body(status):
            closing = b"" if self.keep_alive and self.http_11 else self._connection_line()
            head = b"%b%bcontent-length: %d\r\n\r\n" % (head, closing, len(body))
            data = head + body if self.method != "HEAD" else head
        else:
            data = b"%b%b\r\n" % (head, self._connection_line())
        if not self.closed:
            self._connection.send(data)
        self._finish()

    def start(self, status: int, headers: HeaderList) -> None:
        """See Exchange.start."""
        head, length = self._claim(status, headers)
        framing = b""
        if not has_body(status):
            self._ending = _EMPTY
        elif length is not None:
            self._ending, self._left = _COUNTED, length
            framing = b"content-length: %d\r\n" % length
        elif self.http_11:
            self._ending = _CHUNKED
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self._ending = _UNTIL_CLOSE
            self.keep_alive = False
        if self.method == "HEAD":
            self._ending = _EMPTY
        self._pending_head = b"%b%b%b\r\n" % (head, self._connection_line(), framing)
        # The first write of the same turn takes the head along; a later one finds it gone.
        asyncio.get_running_loop().call_soon(self._flush_head)

    def _claim(self, status: int, headers: HeaderList) -> tuple[bytes, int | None]:
        """The answer begins: its first lines, and the content-length that was given."""
        if self.started:
            raise RuntimeError("the answer has been started")
        block, length = header_block(headers)
        lines = status_and_date(status) + block + self.also
        self.keep_alive = self._connection.may_persist(self)
        self.started = True
        return lines, length

    def _connection_line(self) -> bytes:
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"" if self.http_11 else b"connection: keep-alive\r\n"

    def _flush_head(self) -> None:
        if self._pending_head and not self.closed:
            head, self._pending_head = self._pending_head, b""
            self._connection.send(head)

    def write(self, data: bytes) -> None:
        """See Exchange.write."""
        if not self.started or self.finished:
            raise RuntimeError("write outside of start and end")
        if self.closed or not data:
            return
        ending = self._ending
        if ending == _CHUNKED:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif ending == _COUNTED:
            if len(data) > self._left:
                raise RuntimeError("more bytes written than the content-length that was given")
            self._left -= len(data)
        elif ending == _EMPTY:
            return
        if self._pending_head:
            data = self._pending_head + data
            self._pending_head = b""
        self._connection.send(data)

    def end(self) -> None:
        """See Exchange.end."""
        if not self.started or self.finished:
            raise RuntimeError("end outside of a started answer")
        if self._ending == _COUNTED and self._left:
            self.abort()
            return
        last = self._pending_head
        if self._ending == _CHUNKED:
            last += b"0\r\n\r\n"
        self._pending_head = b""
        if last and not self.closed:
            self._connection.send(last)
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._parts.clear()
        self._close_callback = self._pause_callback = self._resume_callback = None
        if self._drain_waiter is not None:
            _wake(self._drain_waiter)
        self._connection.answered(self)

    def abort(self) -> None:
        """See Exchange.abort."""
        if not self.finished and not self.closed:
            self._connection.cut()

    # -- pace and departure ----------------------------------------------------------------------------

    def on_close(self, callback: Callable[[], None]) -> None:
        """See Exchange.on_close."""
        if self.closed:
            callback()
        elif not self.finished:
            self._close_callback = callback

    def on_pause(self, callback: Callable[[], None]) -> None:
        """See Exchange.on_pause."""
        self._pause_callback = callback
        if self.paused:
            callback()

    def on_resume(self, callback: Callable[[], None]) -> None:
        """See Exchange.on_resume."""
        self._resume_callback = callback

    async def drain(self) -> None:
        """See Exchange.drain."""
        while not self.closed and not self.finished and self.paused:
            self._drain_waiter = asyncio.get_running_loop().create_future()
            try:
                await self._drain_waiter
            finally:
                self._drain_waiter = None
        if self.closed:
            raise self._departure()

    def set_paused(self, paused: bool) -> None:
        """The connection's word on whether the answer should hold back."""
        if paused == self.paused:
            return
        self.paused = paused
        callback = self._pause_callback if paused else self._resume_callback
        if callback is not None:
            callback()
        if self._drain_waiter is not None:
            _wake(self._drain_waiter)

    def depart(self, stalled: bool) -> None:
        """The connection is gone. Called once, before or after the answer was finished."""
        if self.finished:
            return
        self.closed, self.stalled = True, stalled
        self._parts.clear()
        for waiter in (self._read_waiter, self._drain_waiter):
            if waiter is not None:
                _wake(waiter)
        callback, self._close_callback = self._close_callback, None
        self._pause_callback = self._resume_callback = None
        if callback is not None:
            callback()

    def _departure(self) -> Disconnected:
        if self.stalled:
            return Stalled("the client did not read its answer")
        return Disconnected("the client left before its answer was finished")


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
