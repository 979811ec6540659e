"""One HTTP/1.1 connection to an engine.

Owns the bytes in both directions: a request is written once, its answer goes to a `Sink` synchronously, from
the event loop's read callback. Used by the pool, which decides about reuse; the relay sees only `Call` and
`Sink`. Never opens a connection, never retries, never keeps a byte of a body.

This is the hot path: per streamed chunk there is one parser call and one call of the sink, and no task,
future or timer. The parser's body callback is a list's `append`, so all that one read brought reaches the
sink as one piece and no Python frame runs inside the parser.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from modelyard.wire.call import HOP_BY_HOP, PLAIN_CONNECTION, Call, Headers, Sink, tokens
from modelyard.wire.errors import Broken, ProtocolError

__all__ = ["Call", "Connection", "Headers", "Sink"]

_LOOKED_AT = HOP_BY_HOP | {b"content-length"}  # in an answer

# What the connection waits for.
_NOTHING, _HEAD, _HEADED, _BODY, _DONE = range(5)


def _ignore(data: bytes) -> None:
    return None


class Connection(asyncio.Protocol):
    """One connection: idle, or busy with one call.

    The pool gets `on_idle` when an answer is whole and the connection can serve again, `on_gone` once when
    it cannot; both run before the caller of the exchange wakes. `released` is the pool's;
    `gone` is True from the moment it can serve nobody any more.
    """

    # Invariant: `_call`, `_done` and the call's `transport` are set and cleared together.

    def __init__(
        self,
        peer: str,
        max_head: int,
        on_idle: Callable[[Connection], None],
        on_gone: Callable[[Connection], None],
    ) -> None:
        self.peer = peer
        self.transport: asyncio.Transport
        self.released = 0.0
        self._max_head = max_head
        self._on_idle = on_idle
        self._on_gone = on_gone
        self.gone = False
        self._loop = asyncio.get_running_loop()
        self._call: Call | None = None
        self._done: asyncio.Future[None] | None = None
        self._on_body: Callable[[bytes], None] = _ignore
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # looked up by the parser
        self._parser: HttpResponseParser
        self._feed: Callable[[bytes], None]
        self._renew_parser()
        self._phase = _NOTHING
        self._reset()

    def _renew_parser(self) -> None:
        self._parser = HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def _reset(self) -> None:
        self._status = 0
        self._head: Headers = []
        self._headers: Headers = []
        self._named: list[bytes] = []
        self._length = self._chunked = self._keep = self._interim = False
        self._quiet = 0  # bytes read since the sink was last served; bounds heads, trailers and extensions

    # -- one exchange ------------------------------------------------------------------------------------

    def start(self, call: Call) -> asyncio.Future[None]:
        """Write the request now; the future ends with the answer: None, WireError or what the sink raised."""
        done = self._done = self._loop.create_future()
        if self.gone:
            self._done = None
            done.set_exception(Broken(f"{self.peer} closed the connection at once", answered=False))
            return done
        self._call = call
        call.transport = self.transport
        self._on_body = call.sink.on_body
        self._phase = _HEAD
        transport = self.transport
        if call.paused:
            transport.pause_reading()
        call.written = True
        if len(call.request) == 1:
            transport.write(call.request[0])
        else:
            transport.writelines(call.request)
        return done

    def abandon(self, call: Call) -> None:
        """Close the connection if it still serves this call, so that the engine sees the departure."""
        if self._call is call:
            self._detach()
            self.close()

    def close(self) -> None:
        """Close at once; a running call fails with Broken."""
        if self._call is not None:
            self._fail(Broken(f"the connection to {self.peer} was closed here", answered=self._answered))
        else:
            self._leave()
            self.transport.abort()

    @property
    def _answered(self) -> bool:
        return self._phase > _HEAD or self._quiet > 0

    def _detach(self) -> asyncio.Future[None] | None:
        """Part from the call; returns its future when somebody still waits for it."""
        call, done = self._call, self._done
        self._call = self._done = None
        self._on_body = _ignore  # an idle connection keeps no sink alive
        self._phase = _NOTHING
        if call is not None:
            call.transport = None
        return None if done is None or done.done() else done

    def _leave(self) -> None:
        if not self.gone:
            self.gone = True
            # The parser holds our methods: a cycle that only the garbage collector would end.
            del self._parser, self._feed
            self._on_gone(self)

    def _fail(self, error: Exception) -> None:
        done = self._detach()
        self._leave()
        self.transport.abort()
        if done is not None:
            done.set_exception(error)

    def _finish(self, *, reusable: bool) -> None:
        call = cast(Call, self._call)
        paused = call.paused
        done = self._detach()
        if not reusable or self.transport.get_write_buffer_size():
            self.close()
        else:
            if paused:
                self.transport.resume_reading()
            if call.bodiless:
                self._renew_parser()  # this one still waits for the body that the head promised
            self._reset()
            self._on_idle(self)
        if done is not None:
            done.set_result(None)

    # -- callbacks of the transport ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._call is None:
            self.close()  # unsolicited: whatever it is, it would be taken for the next answer
            return
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._advance(len(data), error)
            return
        if self._phase != _BODY or len(self._parts) != 1:
            self._advance(len(data), None)
            return
        self._quiet = 0
        try:
            self._on_body(self._parts.pop())
        except Exception as error:
            self._fail(error)

    def _advance(self, size: int, error: Exception | None) -> None:
        """Serve the sink what one read of `size` bytes brought, then end the call if it is over."""
        call = cast(Call, self._call)
        parts = self._parts
        self._quiet += size
        try:
            if self._phase >= _HEADED and not call.head_received:
                self._serve_head(call)
            if parts:
                body = b"".join(parts)
                parts.clear()
                if call.bodiless:
                    error = ProtocolError("body after an answer to HEAD")
                elif self._call is call:
                    self._quiet = 0
                    self._on_body(body)
            if self._call is not call:
                return  # the sink closed the pool
            if self._phase == _DONE:
                # Bytes behind a whole answer spoil the connection, not the answer.
                self._finish(reusable=self._keep and error is None)
            elif error is not None:
                raise self._explain(error)
            elif self._quiet > self._max_head:
                what = "trailers or chunk extensions" if call.head_received else "a head"
                raise ProtocolError(f"{self.peer} sent {what} of more than {self._max_head} bytes")
        except Exception as failure:
            self._fail(failure)

    def _serve_head(self, call: Call) -> None:
        # A read may hold the head and much body, so only what is surely too long was seen by its size.
        if self._quiet > self._max_head:
            length = sum(len(name) + len(value) + 4 for name, value in self._head)
            if length > self._max_head:
                raise ProtocolError(f"{self.peer} sent a head of more than {self._max_head} bytes")
        if self._phase == _HEADED:
            self._phase = _BODY
        call.head_received = True
        call.sink.on_head(self._status, self._head)

    def _explain(self, error: Exception) -> ProtocolError:
        cause = error.__context__ if isinstance(error, HttpParserCallbackError) else None
        if isinstance(cause, ProtocolError):
            return cause
        reason = "an upgrade nobody asked for" if isinstance(error, HttpParserUpgrade) else str(error)
        return ProtocolError(f"{self.peer} broke HTTP framing: {reason}")

    def eof_received(self) -> None:
        if self._call is None:
            self.close()
        elif self._phase == _BODY and not self._length and not self._chunked:
            self._finish(reusable=False)
        else:
            self._fail(
                Broken(
                    f"{self.peer} closed the connection before its answer was whole", answered=self._answered
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        if self._call is not None:
            self._fail(Broken(f"the connection to {self.peer} died: {exc}", answered=self._answered))
        else:
            self._leave()

    # -- callbacks of the parser, inside feed_data -------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._phase == _DONE:
            raise ProtocolError("a second answer")  # stops the parser before its bytes join ours

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _LOOKED_AT:
            self._look_at(name, value)
        else:
            self._headers.append((name, value))

    def _look_at(self, name: bytes, value: bytes) -> None:
        if self._phase != _HEAD:
            return  # a trailer
        if name == b"content-length":
            if self._length:
                raise ProtocolError(f"{self.peer} sent Content-Length twice")
            self._length = True
            self._headers.append((name, value))
        elif name == b"transfer-encoding":
            if self._chunked or value.strip().lower() != b"chunked":
                raise ProtocolError(
                    f"{self.peer} sent Transfer-Encoding {value!r}; only one `chunked` is known"
                )
            self._chunked = True
        elif name == b"connection" and value not in PLAIN_CONNECTION:
            self._named += tokens(value)
        if self._length and self._chunked:
            raise ProtocolError(f"{self.peer} sent Content-Length and Transfer-Encoding in one answer")

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101:
                raise ProtocolError(f"{self.peer} answered with status {status}, which nobody asked for")
            self._reset_interim()
            return
        self._status = status
        self._head = self._headers
        if self._named:
            self._head = [pair for pair in self._head if pair[0] not in self._named]
        self._headers = []  # trailers go here, and are never looked at
        self._phase = _HEADED
        if cast(Call, self._call).bodiless:
            self._phase = _DONE
            self._keep = parser.should_keep_alive()

    def _reset_interim(self) -> None:
        quiet = self._quiet
        self._reset()
        self._quiet = quiet
        self._interim = True

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self._phase = _DONE
            # Not before: a trailer can end the connection too, and the parser minds it.
            self._keep = self._parser.should_keep_alive()
