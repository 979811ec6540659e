"""One client connection: bytes in, exchanges out, answers strictly in order, every wait with an end.

Made by the server for each accepted socket; owns the reader, the line of pipelined requests, and the write
buffer's account. It decides nothing about what is answered: that is the server's router, its `admit` and the
handlers. It creates no task and no timer: the server's sweep looks at its deadlines.
"""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from typing import TYPE_CHECKING, cast

import httptools

from modelyard.errors import InvalidRequest, RequestError, RequestTimeout, TooManyConnections
from modelyard.gateway.exchange import HIGH_WATER
from modelyard.gateway.http.answers import last_words
from modelyard.gateway.http.reader import HEAD, RequestReader
from modelyard.gateway.http.served import ServedExchange

if TYPE_CHECKING:
    from modelyard.gateway.http.server import Server

_COUNTED_FROM = 16 * 1024  # write buffers under this are not worth an entry in the global account
_READ_AWAY = 64 * 1024  # a refused body this short is read to its end and the connection kept


class Connection(asyncio.Protocol):
    """The server side of one HTTP/1.1 connection."""

    __slots__ = (
        "_advancing",
        "_behind",
        "_closing",
        "_counted",
        "_current",
        "_deadline",
        "_full",
        "_held",
        "_loop",
        "_moved",
        "_parting",
        "_pressed",
        "_reader",
        "_reading_paused",
        "_sent",
        "_taken",
        "_transport",
        "_waiting",
        "limits",
        "peer",
        "server",
    )

    _transport: asyncio.Transport

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.limits = server.limits
        self.peer = ""
        self._loop = loop
        self._reader = RequestReader(self)
        self._held = b""  # what arrived after reading was paused
        self._reading_paused = False
        self._closing = False  # nothing that arrives counts any more
        self._deadline = inf  # when a closing connection is cut
        # Answering. Whatever waits is whole, except for the last one's body.
        self._current: ServedExchange | None = None
        self._waiting: deque[ServedExchange] = deque()
        self._advancing = False
        self._parting = b""  # the answer to a framing error, sent after those to the requests before it
        # Writing.
        self._sent = self._taken = self._counted = 0
        self._moved = 0.0
        self._behind = self._full = self._pressed = False

    # -- the transport's calls -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = f"{name[0]}:{name[1]}"
        self._transport.set_write_buffer_limits(HIGH_WATER, HIGH_WATER // 4)
        self._reader.deadline = self._loop.time() + self.limits.header_timeout
        if not self.server.enter(self):
            self._parting = last_words(TooManyConnections("Too many connections; try again later."))
            self._part()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave(stalled=False)
        self._account(0)
        self._reader.close()
        self._held = b""
        self.server.leave(self)

    def eof_received(self) -> bool | None:
        # A client that shuts its side has left: HTTP clients have no reason to, and those that merely
        # half-close cannot be told from those that are gone until writing fails.
        self._leave(stalled=False)
        return None

    def pause_writing(self) -> None:
        self._full = True
        self._tell_pause()

    def resume_writing(self) -> None:
        self._full = False
        self._account(self.buffered)
        self._tell_pause()
        self._advance()

    def data_received(self, data: bytes) -> None:
        if self._reading_paused:
            self._held += data
        else:
            self._consume(data)

    # -- reading ---------------------------------------------------------------------------------------

    def _consume(self, data: bytes) -> None:
        at, size, reader = 0, len(data), self._reader
        try:
            while at < size and not self._closing:
                if reader.phase == HEAD and len(self._waiting) >= self.limits.pipeline:
                    self._held = data[at:]
                    self._reading_paused = True
                    self._transport.pause_reading()
                    return
                at = reader.take(data, at)
        except RequestError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            self._refuse(InvalidRequest(f"Not a valid HTTP/1.1 message: {error}."))

    def now(self) -> float:
        """The loop's time in seconds."""
        return self._loop.time()

    def queue(self, exchange: ServedExchange) -> None:
        """A head is whole: its request joins the line."""
        self._waiting.append(exchange)
        if self._current is None:
            self._advance()

    def body_done(self, exchange: ServedExchange) -> None:
        """A request has wholly arrived; one that was answered before made the next one wait for that."""
        if exchange.finished and self._current is None:
            self._advance()

    # -- answering, in order ---------------------------------------------------------------------------

    def _advance(self) -> None:
        """Begin the next request when the one before it is answered and wholly read, and the client reads."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._current is None:
                if self._full or self._pressed:
                    return
                if self._waiting:
                    self._begin(self._waiting.popleft())
                elif self._held and not self._closing:
                    held, self._held = self._held, b""
                    self._reading_paused = False
                    self._consume(held)
                    if not self._reading_paused:
                        self._transport.resume_reading()
                else:
                    break
        finally:
            self._advancing = False
        if self._current is None:
            if self._parting:
                self._part()
            elif not self._closing and self._reader.phase == HEAD and not self._reader.head:
                if self.server.stopping:
                    self._close(unread=False)
                else:
                    self._reader.deadline = self._loop.time() + self.limits.keep_alive

    def _begin(self, exchange: ServedExchange) -> None:
        self._current = exchange
        self.server.handle(exchange)

    def may_persist(self, exchange: ServedExchange) -> bool:
        """Whether the connection can be kept after the answer that is now being started."""
        if not exchange.keep_alive or self.server.stopping:
            return False
        if exchange.complete:  # of a closing connection, only what is owed already goes on
            return not self._closing or bool(self._waiting or self._parting)
        if self._closing:
            return False
        short = exchange.length is not None and self._reader.body_left <= _READ_AWAY
        return short and exchange.wants_body and not exchange.expecting

    def answered(self, exchange: ServedExchange) -> None:
        """The exchange has handed over the last byte of its answer."""
        self._release(exchange)
        if exchange is not self._current:
            return  # the client left before
        self._current = None
        if not exchange.keep_alive:
            self._parting = b""
            unread = not exchange.complete or bool(self._waiting or self._held or self._closing)
            self._waiting.clear()
            self._close(unread)
        elif exchange.complete:
            self._advance()

    def ask_for_body(self, word: bytes) -> None:
        """Send the interim answer that a client waits for before it sends its body."""
        self._reader.restart_clock()
        self.send(word)

    def _refuse(self, error: RequestError) -> None:
        """Broken framing: what came before is answered, then this, then the connection closes."""
        self._closing, self._deadline = True, inf
        if self._reader.phase != HEAD:
            exchange = self._reader.receiving
            if exchange.finished:
                self._close(unread=True)
            else:
                exchange.refuse_body(InvalidRequest(error.message))
            return
        self._parting = last_words(error)
        if self._current is None and not self._advancing:
            self._advance()

    def _part(self) -> None:
        parting, self._parting = self._parting, b""
        self.send(parting)
        self._close(unread=True)

    def _close(self, unread: bool) -> None:
        """Close once everything is written. With `unread` input the client first gets to see the end of
        its answer: closing a socket with unread bytes resets it, and the answer would be lost."""
        self._closing = True
        self._held = b""
        if not unread:
            self._transport.close()
            return
        self._deadline = self._loop.time() + self.limits.linger
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self._transport.write_eof()

    # -- writing ---------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Bytes that the socket has not taken."""
        return self._transport.get_write_buffer_size()

    def send(self, data: bytes) -> None:
        transport = self._transport
        transport.write(data)
        self._sent += len(data)
        size = transport.get_write_buffer_size()
        if size > _COUNTED_FROM or self._counted:
            self._account(size)

    def _account(self, size: int) -> None:
        """Put the size of our write buffer into the server's account, and hold back when that is full."""
        server = self.server
        server.buffered += size - self._counted
        self._counted = size
        if size > _COUNTED_FROM and not self._pressed and server.buffered > self.limits.buffered:
            self._pressed = True
            self._tell_pause()

    def relieve(self) -> None:
        """The server's buffers have room again."""
        if self._pressed:
            self._pressed = False
            self._tell_pause()
            self._advance()

    def _tell_pause(self) -> None:
        if self._current is not None:
            self._current.set_paused(self._full or self._pressed)

    def cut(self, stalled: bool = False) -> None:
        """Drop the connection with whatever it still held."""
        self._leave(stalled)
        self._transport.abort()

    def _leave(self, stalled: bool) -> None:
        """Tell the exchange that its client is gone; those behind it were never begun."""
        self._closing = True
        self._parting = b""
        current, self._current = self._current, None
        if current is not None:
            self._release(current)
            current.depart(stalled)
        while self._waiting:
            self._release(self._waiting.popleft())

    def _release(self, exchange: ServedExchange) -> None:
        self.server.buffered -= exchange.received
        exchange.received = 0

    # -- deadlines -------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True when no request is being answered or read."""
        return (
            self._current is None and not self._waiting and not self._closing and self._reader.phase == HEAD
        )

    @property
    def idle_since(self) -> float:
        """When its last answer was out (plus a constant); infinite while anything is under way or unsent, and
        before its first request."""
        if not self._sent or not self.idle or self._reader.head or self.buffered:
            return inf
        return self._reader.deadline

    def close_idle(self) -> None:
        """Close unless a request is being answered. Called when the server stops, or needs the place."""
        if self.idle:
            self._close(unread=False)

    def sweep(self, now: float) -> None:
        """Look at every deadline of this connection; `now` is the loop's time in seconds."""
        size = self._transport.get_write_buffer_size()
        if size or self._behind or self._counted:
            self._sweep_writing(now, size)
        reader = self._reader
        if self._closing:
            if now >= self._deadline and not size:
                self._transport.abort()
        elif reader.phase == HEAD:
            if now >= reader.deadline:
                self._head_is_late()
        elif reader.body_is_late(now):
            self._body_is_late(reader.receiving)

    def _sweep_writing(self, now: float, size: int) -> None:
        self._account(size)
        taken = self._sent - size
        if not size:
            self._behind = False
        elif not self._behind or taken != self._taken:
            self._behind, self._taken, self._moved = True, taken, now
        elif now - self._moved >= self.limits.write_timeout:
            self.cut(stalled=True)
            return

    def _head_is_late(self) -> None:
        if self._reader.head:
            self._refuse(RequestTimeout("The request's head did not arrive in time."))
        else:
            self._close(unread=False)

    def _body_is_late(self, exchange: ServedExchange) -> None:
        if exchange.started:
            self.cut()
            return
        self._closing, self._deadline = True, inf
        exchange.refuse_body(RequestTimeout("The request's body did not arrive in time; send it faster."))
