"""Bytes to requests: where each message of a connection begins and ends, and whether it comes in time.

Owned by one connection, which feeds it and is told of whole heads, of the end of bodies, and of what is
refused (RequestError, or the parser's own error). It never writes and never begins a handler.

Where a message ends is never left to the parser alone. A head ends at an empty line, a counted body after
its length, a chunked one always at an empty line too; so the parser is fed exactly up to such a place, and
what follows stays the connection's to hold back, to count or to drop. A counted body needs no parser.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import httptools

from modelyard.errors import (
    HeaderTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    RequestError,
    TooManyConnections,
    UriTooLong,
)
from modelyard.gateway.exchange import Headers
from modelyard.gateway.http.head import FRAMING_FIELDS, Head, Repeated, read_framing, read_target
from modelyard.gateway.http.served import ServedExchange

if TYPE_CHECKING:
    from modelyard.gateway.http.connection import Connection

# What the next byte that arrives belongs to.
HEAD, COUNTED, CHUNKED = range(3)

_EMPTY_LINE = b"\r\n\r\n"
_CHUNK_OVERHEAD = 64 * 1024  # sizes, extensions and trailers, beyond eight times the data itself


class RequestReader:
    """Reads the requests of one connection. `phase` is HEAD, COUNTED or CHUNKED; `receiving` is the exchange
    whose body is due in the latter two."""

    __slots__ = (
        "_body_bytes",
        "_body_fed",
        "_body_moved",
        "_body_noted",
        "_body_since",
        "_chunks_done",
        "_connection",
        "_framing",
        "_headers",
        "_parser",
        "_repeated",
        "_tail",
        "_url",
        "body_left",
        "deadline",
        "head",
        "limits",
        "phase",
        "receiving",
    )

    receiving: ServedExchange

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.limits = connection.limits
        self._parser: httptools.HttpRequestParser | None = None  # of a chunked body; it refers to us
        self._repeated: Repeated | None = None
        self.phase = HEAD
        self.deadline = inf  # when the next head must be whole, or begun
        self.head = bytearray()  # a head that is not whole yet
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._framing: list[tuple[bytes, bytes]] = []
        self._tail = b""  # the last bytes of a chunked body so far, where an empty line may have begun
        self._chunks_done = False
        self.body_left = self._body_bytes = self._body_fed = self._body_noted = 0
        self._body_since = self._body_moved = 0.0

    def close(self) -> None:
        """Let go of the parser and of what is not whole."""
        self._parser = None
        self.head.clear()

    def take(self, data: bytes, at: int) -> int:
        """Take bytes from `data[at:]`, at most to the end of a head or of a body; returns where it stopped.

        Raises RequestError and HttpParserError; nothing may be taken after either.
        """
        if self.phase == HEAD:
            return self._take_head(data, at)
        if self.phase == COUNTED:
            return self._take_counted(data, at)
        return self._take_chunked(data, at)

    def _take_head(self, data: bytes, at: int) -> int:
        """Take bytes of a head from `data[at:]`; returns where they ended."""
        before = len(self.head)
        if not before:
            while data.startswith(b"\r\n", at):  # some clients end a body with an empty line
                at += 2
            if at == len(data):
                return at
            if not 0x41 <= data[at] <= 0x5A:  # e.g. a TLS hello: no need to wait for an empty line
                raise InvalidRequest("A request begins with a method in capital letters; is this TLS?")
            end = data.find(_EMPTY_LINE, at)
            if end >= 0:
                end += 4
                self._parse_head(data[at:end])
                return end
            self.deadline = self._connection.now() + self.limits.header_timeout
        self.head += data[at:] if at else data
        end = self.head.find(_EMPTY_LINE, max(0, before - 3))
        if end >= 0:
            end += 4
            head = bytes(self.head[:end])
            self.head.clear()
            self._parse_head(head)
            return at + end - before
        self._check_partial_head(before)
        return len(data)

    def _check_partial_head(self, before: int) -> None:
        head, limits = self.head, self.limits
        if len(head) > limits.header:
            raise _head_too_large(limits.header)
        if len(head) > limits.request_line and head.find(b"\r\n", 0, limits.request_line + 2) < 0:
            raise _line_too_long(limits.request_line)
        # A bare LF would keep us waiting for an empty line that is there already.
        begin = max(0, before - 1)
        if head.count(b"\n", begin + 1) != head.count(b"\r\n", begin):
            raise InvalidRequest("A line ends in a bare LF.")

    def _parse_head(self, head: bytes) -> None:
        limits = self.limits
        if len(head) > limits.header:
            raise _head_too_large(limits.header)
        repeated = self._repeated
        found = repeated.read(head) if repeated is not None else None
        exchange = ServedExchange(self._connection, found or self._read_head(head))
        self.deadline = inf
        if not exchange.complete:
            self._expect_body(exchange)
        self._connection.queue(exchange)

    def _read_head(self, raw: bytes) -> Head:
        limits = self.limits
        line = raw[: raw.index(b"\r\n")]
        if len(line) > limits.request_line:
            raise _line_too_long(limits.request_line)
        parser = self._feed_head(raw)
        if len(self._headers) > limits.header_count:
            raise HeaderTooLarge(f"More than {limits.header_count} header fields.")
        method, url = parser.get_method(), self._url
        http_11 = line.endswith(b"1")
        if line != b"%b %b HTTP/1.%d" % (method, url, http_11):
            raise InvalidRequest("The request line must be 'METHOD /path HTTP/1.1' (or 1.0).")
        framing = read_framing(self._framing, http_11)
        self._parser = parser if framing.length is None else None
        head = Head(method.decode("ascii"), read_target(url), Headers(self._headers), framing, http_11)
        self._repeated = Repeated.of(raw, head)
        return head

    def _feed_head(self, head: bytes) -> httptools.HttpRequestParser:
        parser = self._new_parser()
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            if head.startswith(b"CONNECT "):
                raise MethodNotAllowed("This server is no proxy.") from None
            # An offer of another protocol may be ignored, and Java's client makes one (h2c) with every
            # first request; but llhttp then takes the body for that protocol. So the offer is struck out.
            lines = head.split(b"\r\n")
            kept = [line for line in lines if line[:8].lower() != b"upgrade:"]
            offers = [line[8:].strip().lower() for line in lines if line[:8].lower() == b"upgrade:"]
            if offers != [b"h2c"]:
                raise InvalidRequest("No other protocol is spoken here; send plain HTTP/1.1.") from None
            parser = self._new_parser()
            parser.feed_data(b"\r\n".join(kept))
        return parser

    def _new_parser(self) -> httptools.HttpRequestParser:
        self._headers, self._framing = [], []
        return httptools.HttpRequestParser(self)

    def _expect_body(self, exchange: ServedExchange) -> None:
        self.receiving = exchange
        self._body_bytes = self._body_fed = self._body_noted = 0
        self._body_since = 0.0  # the next sweep sets it
        limit = self.limits.body
        if exchange.length is None:
            self.phase = CHUNKED
            self._tail = b""
            self._chunks_done = False
        else:
            self.phase = COUNTED
            self.body_left = exchange.length
            if exchange.length > limit:
                exchange.refuse_body(exchange.too_large(limit))

    def _take_counted(self, data: bytes, at: int) -> int:
        end = min(at + self.body_left, len(data))
        self.body_left -= end - at
        self.on_body(data[at:end])
        if not self.body_left:
            self._body_done()
        return end

    def _take_chunked(self, data: bytes, at: int) -> int:
        # A chunked body ends at an empty line, whatever its trailers: never feed past one.
        tail = self._tail
        found = (tail + data[at : at + 3]).find(_EMPTY_LINE) if tail else -1
        if found >= 0:
            end = at + found + 4 - len(tail)
        else:
            found = data.find(_EMPTY_LINE, at)
            end = found + 4 if found >= 0 else len(data)
        piece = data[at:end]
        self._tail = (tail + piece[-3:])[-3:]
        self._body_fed += len(piece)
        assert self._parser is not None
        self._parser.feed_data(piece)
        if self._body_fed - self._body_bytes > _CHUNK_OVERHEAD + 8 * self._body_bytes:
            raise InvalidRequest("Chunk sizes, extensions and trailers outweigh the data.")
        if self._chunks_done:
            self._body_done()
        return end

    def _body_done(self) -> None:
        self.phase = HEAD
        self._parser = None
        self.receiving.complete_body()
        self._connection.body_done(self.receiving)

    # The parser's calls, all from within feed_data.

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase == CHUNKED:
            return  # a trailer: nobody asks for those
        name = name.lower()
        field = (name, value.rstrip(b" \t"))
        self._headers.append(field)
        if name in FRAMING_FIELDS:
            self._framing.append(field)

    def on_body(self, piece: bytes) -> None:
        exchange, size = self.receiving, len(piece)
        self._body_bytes += size
        if not exchange.wants_body:
            return
        limits, server = self.limits, self._connection.server
        if exchange.received + size > limits.body:
            exchange.refuse_body(exchange.too_large(limits.body))
        elif server.buffered + size > limits.buffered:
            exchange.refuse_body(
                TooManyConnections("The server's buffers are full; try again.", retry_after=1.0)
            )
        else:
            server.buffered += size
            exchange.take(piece)

    def on_message_complete(self) -> None:
        self._chunks_done = True

    # -- the pace of a body ----------------------------------------------------------------------------

    def restart_clock(self) -> None:
        """The client is only now asked for the body: its time begins here."""
        self._body_since = 0.0

    def body_is_late(self, now: float) -> bool:
        """Whether the body that is due breaks a limit of pace; `now` is the loop's time in seconds."""
        limits = self.limits
        if self.receiving.expecting:
            return False  # the client waits for us
        if not self._body_since:
            self._body_since = self._body_moved = now
            self._body_noted = self._body_bytes
            return False
        if self._body_bytes != self._body_noted:
            self._body_noted, self._body_moved = self._body_bytes, now
        age = now - self._body_since
        if now - self._body_moved >= limits.body_timeout or age >= limits.body_total:
            return True
        return age >= limits.body_timeout and self._body_bytes < limits.body_rate * age


def _head_too_large(limit: int) -> RequestError:
    return HeaderTooLarge(f"The request's head is larger than {limit:,} bytes.")


def _line_too_long(limit: int) -> RequestError:
    return UriTooLong(f"The request line is longer than {limit:,} bytes.")
