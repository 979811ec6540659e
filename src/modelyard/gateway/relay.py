"""One attempt of one request on one lease: bytes to the engine, bytes back to the client. It never retries.

Called by the serve loop, which decides what to make of a Result. On the way back nothing is parsed: an
answer that is not a stream is held until it is whole (then a broken engine can still be replaced), a stream
passes in whole SSE events. Everything runs in the event loop's read callbacks; there is one timer for all
attempts and no task per chunk. What ends an attempt from outside comes through its request's `Interrupt`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from modelyard.core.types import OutcomeKind, Policy
from modelyard.errors import (
    EngineDied,
    EngineProtocol,
    EngineUnreachable,
    FirstByteTimeout,
    ModelyardError,
    RequestDeadline,
    TokenTimeout,
)
from modelyard.gateway.api import SSE
from modelyard.gateway.exchange import HIGH_WATER, Exchange
from modelyard.gateway.interrupt import Interrupt, Interrupted, cut_outcome
from modelyard.runtime.lease import Lease
from modelyard.wire.connection import Call
from modelyard.wire.errors import Broken, ConnectFailed, ProtocolError, WireError
from modelyard.wire.sse import TAIL, Framer

HeaderPairs = list[tuple[bytes, bytes]]
REQUEST_HEADERS = ((b"content-type", b"application/json"), (b"accept", b"*/*"))
HELD_BACK = frozenset({b"server", b"date", b"content-length", b"access-control-allow-origin"})
# Of a server that we did not start; what else it says is between it and us: cookies, limits, its account.
FROM_ELSEWHERE = frozenset(
    {
        b"content-type",
        b"content-encoding",
        b"retry-after",
        b"retry-after-ms",
        b"x-should-retry",
        b"x-request-id",
        b"request-id",
    }
)
SLICE = 1.0  # seconds between two looks at the deadlines of all attempts
_SAYS_ITS_END = frozenset({b"/v1/chat/completions", b"/v1/completions"})
_ERROR_EVENT = b'data: {"error"'
_END = re.compile(rb'\[DONE\]|"finish_reason"\s*:\s*"|"error"')
RESHAPED_MOST = 64 * 1024 * 1024
"""Bytes of one answer that are held where its whole is to be reshaped; a larger one is an error."""

Reshape = Callable[[bytes], bytes]
"""From the engine's form to the API's; one of events is called with nothing at their end. Raises wire's
ProtocolError for what it cannot read, an EngineError for an answer that the API cannot say."""


@dataclass(slots=True)
class Result:
    """How an attempt ended. `error` is None when the engine's answer is whole: it was passed on already when
    `started`, else it is held here as status, headers and (reshaped) body. `tail` is the end of what was
    passed on."""

    outcome: OutcomeKind
    error: ModelyardError | None = None
    started: bool = False
    status: int = 0
    headers: HeaderPairs = field(default_factory=list)
    body: bytes = b""
    tail: bytes = b""
    chunks: int = 0
    bytes: int = 0
    first_byte_at: float = 0.0


class Watch:
    """Has every attempt under way look at its deadlines, SLICE apart: one timer for all of them."""

    def __init__(self) -> None:
        self._attempts: set[Attempt] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, attempt: Attempt) -> None:
        self._attempts.add(attempt)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SLICE, self._look)

    def discard(self, attempt: Attempt) -> None:
        self._attempts.discard(attempt)

    def _look(self) -> None:
        self._timer = None
        for attempt in tuple(self._attempts):
            attempt.look()
        if self._attempts:
            self._timer = asyncio.get_running_loop().call_later(SLICE, self._look)


class Attempt:
    """Sink of one call. `stream` says that the client asked for one; whether the answer is one, its content
    type says. `timeout` is what is left of the request's time, in seconds. `heads` are our headers, added to
    the engine's; `reshape` is applied to a whole 2xx body, `reshape_events` to whole events, which then have
    the content type `media`."""

    __slots__ = (
        "_call",
        "_clock",
        "_exchange",
        "_first_byte_at",
        "_framer",
        "_headers",
        "_heads",
        "_held",
        "_interrupt",
        "_lease",
        "_media",
        "_passing",
        "_paused",
        "_policy",
        "_progress_at",
        "_reshape",
        "_reshape_events",
        "_size",
        "_started_at",
        "_status",
        "_stream",
        "_tail",
        "_timeout",
        "_timer",
        "_watch",
        "bytes",
        "chunks",
    )

    def __init__(
        self,
        exchange: Exchange,
        lease: Lease,
        policy: Policy,
        interrupt: Interrupt,
        watch: Watch,
        *,
        timeout: float,
        stream: bool,
        heads: HeaderPairs,
        reshape: Reshape | None = None,
        reshape_events: Reshape | None = None,
        media: bytes = SSE,
    ) -> None:
        self._exchange = exchange
        self._lease = lease
        self._policy = policy
        self._interrupt = interrupt
        self._watch = watch
        self._timeout = timeout
        self._stream = stream
        self._heads = heads
        self._reshape = reshape
        self._reshape_events = reshape_events
        self._media = media
        self._call: Call | None = None
        self._status = 0
        self._headers: HeaderPairs = []
        self._held: list[bytes] = []
        self._size = 0
        self._passing = False  # what was held was too large to hold, and the rest is passed on as it comes
        self._tail = b""  # of that
        self._framer: Framer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._first_byte_at = 0.0
        self._paused = False
        self.chunks = 0
        self.bytes = 0

    async def run(self, method: bytes, target: bytes, body: bytes) -> Result:
        """Send the request and pass the answer on. Never raises but for a cancelled task of the caller."""
        if self._lease.cut is not None:
            return self._result(cut_outcome(self._lease.cut), self._lease.cut)
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._started_at = self._progress_at = loop.time()
        pool = self._lease.endpoint.pool
        self._call = Call(method, target, REQUEST_HEADERS, body, self, pool.target)
        if self._paused:
            self._call.pause()
        self._watch.add(self)
        first = min(self._timeout, self._policy.first_byte_timeout)
        if first < SLICE:
            self._timer = loop.call_later(first, self.look)
        self._lease.on_cut(self._interrupt.cut)
        try:
            with self._interrupt:
                await pool.run(self._call)
            whole = self._whole(target)
        except WireError as error:
            return self._result(*_explain(error, self._lease.instance))
        except ModelyardError as error:  # whole and in order, and yet nothing that the API can say
            return self._result(OutcomeKind.DONE, error)
        except Interrupted as end:
            return self._result(end.outcome, end.error)
        finally:
            self._watch.discard(self)
            if self._timer is not None:
                self._timer.cancel()
            self._call = None  # it refers to us: bodies would stay until a garbage collection
        return self._result(OutcomeKind.DONE, body=whole)

    def pause(self) -> None:
        """The client reads too slowly: stop reading from the engine."""
        self._paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        self._paused = False
        self._progress_at = asyncio.get_running_loop().time()
        if self._call is not None:
            self._call.resume()

    # -- the engine's answer --------------------------------------------------------------------------------

    def on_head(self, status: int, headers: HeaderPairs) -> None:
        self._status = status
        self._headers = headers
        if status < 300:
            for name, value in headers:
                if name == b"content-type" and value.startswith(SSE):
                    self._framer = Framer()

    def on_body(self, data: bytes) -> None:
        self._progress_at = self._clock()
        framer = self._framer
        if framer is None:
            self._hold(data)
            return
        events = framer.feed(data)
        if events and framer.events_seen:
            if _ERROR_EVENT in events:
                self._look_for_death(events)
            if self._reshape_events is not None:
                events = self._reshape_events(events)
            self.chunks += 1
            self.bytes += len(events)
            if not self._first_byte_at:
                self._first_byte_at = self._progress_at
                if not self._exchange.started:
                    self._exchange.start(self._status, self.answer_headers())
            self._exchange.write(events)

    def _look_for_death(self, error: bytes) -> None:
        """Raise Broken for an error by which a server says that the engine behind it has ended."""
        endpoint = self._lease.endpoint
        if endpoint.engine.dead and endpoint.engine.dead in error:
            endpoint.dead = True
            raise Broken("its engine has ended, as its server says", answered=True)

    def _hold(self, data: bytes) -> None:
        """Keep an answer until it is whole; one that is too large to keep is passed on as it comes."""
        if not self._first_byte_at:
            self._first_byte_at = self._progress_at
        if self._passing:
            self._tail = (data if len(data) >= TAIL else self._tail + data)[-TAIL:]
            self._exchange.write(data)
            return
        self._held.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER:
            self._outgrow()

    def _outgrow(self) -> None:
        """What is held is large: hold on only if it has to be reshaped."""
        if self._reshape is not None and self._status < 300:
            if self._size > RESHAPED_MOST:
                raise ProtocolError(f"its answer is longer than {RESHAPED_MOST} bytes")
            return
        if self._exchange.started:  # with heartbeats: what was promised is a stream of events
            raise ProtocolError("it answered a stream with something else")
        self._exchange.start(self._status, self.answer_headers())
        whole = b"".join(self._held)
        self._held.clear()
        self._passing, self._tail = True, whole[-TAIL:]
        self._exchange.write(whole)

    def answer_headers(self) -> HeaderPairs:
        if self._lease.endpoint.address.scheme:
            headers = [pair for pair in self._headers if pair[0] in FROM_ELSEWHERE] + self._heads
        else:
            headers = [pair for pair in self._headers if pair[0] not in HELD_BACK] + self._heads
        if self._framer is None or self._media == SSE:
            return headers
        return [(name, self._media if name == b"content-type" else value) for name, value in headers]

    # -- its end --------------------------------------------------------------------------------------------

    def _whole(self, target: bytes) -> bytes:
        """What is held of an answer that has ended, reshaped. Raises ProtocolError, and Broken for a stream
        that ends in good order before the generation did, as of a server behind which an engine died."""
        if self._framer is not None and self._framer.pending:
            raise ProtocolError("it ended its answer in the middle of an event")
        if self._framer is not None and target in _SAYS_ITS_END and not _END.search(self._framer.tail):
            raise Broken("it ended its stream before its answer was whole", answered=True)
        if (
            self._framer is not None
            and self._reshape_events is not None
            and (last := self._reshape_events(b""))
        ):
            self._exchange.write(last)
        body = b"".join(self._held)
        if self._status >= 500:
            self._look_for_death(body)
        if self._reshape is None or self._framer is not None or self._status >= 300:
            return body
        self._tail = body[-TAIL:]  # the counts are read from what the engine said
        return self._reshape(body)

    def _result(
        self, outcome: OutcomeKind, error: ModelyardError | None = None, *, body: bytes = b""
    ) -> Result:
        framer = self._framer
        return Result(
            outcome,
            error,
            started=self.chunks > 0 or self._passing,
            status=self._status,
            headers=self.answer_headers(),
            body=body,
            tail=self._tail if framer is None else framer.tail,
            chunks=self.chunks,
            bytes=self.bytes,
            first_byte_at=self._first_byte_at,
        )

    def look(self) -> None:
        """Is a deadline over? One that comes before the watch looks again has a timer of its own."""
        loop = asyncio.get_running_loop()
        now, policy, instance = loop.time(), self._policy, self._lease.instance
        left = self._timeout - (now - self._started_at)
        if left <= 0:
            message = f"{instance} did not finish within request_timeout {policy.request_timeout:g} s"
            self._interrupt.end(OutcomeKind.CANCELLED, RequestDeadline(message))
            return
        quiet = now - self._progress_at
        if self._stream and not self._paused:
            if not self._first_byte_at and quiet >= policy.first_byte_timeout:
                message = f"{instance} sent nothing for first_byte_timeout {policy.first_byte_timeout:g} s"
                self._interrupt.end(OutcomeKind.HUNG, FirstByteTimeout(message))
                return
            if self._first_byte_at and quiet >= policy.token_timeout:
                message = f"{instance} sent no token for token_timeout {policy.token_timeout:g} s"
                self._interrupt.end(OutcomeKind.HUNG, TokenTimeout(message))
                return
            allowed = policy.token_timeout if self._first_byte_at else policy.first_byte_timeout
            left = min(left, allowed - quiet)
        elif not self._paused:  # it may well be at work: a probe tells, and again after as long a silence
            if quiet >= policy.first_byte_timeout:
                self._lease.doubt()
                self._progress_at, quiet = now, 0.0
            left = min(left, policy.first_byte_timeout - quiet)
        if left < SLICE:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(max(0.001, left), self.look)


def _explain(error: WireError, instance: str) -> tuple[OutcomeKind, ModelyardError]:
    """A wire failure in the terms of scheduling and of the taxonomy."""
    if isinstance(error, ConnectFailed):
        return OutcomeKind.UNREACHABLE, EngineUnreachable(f"{instance} could not be reached: {error}")
    if isinstance(error, ProtocolError):
        return OutcomeKind.PROTOCOL, EngineProtocol(f"{instance} broke the protocol: {error}")
    assert isinstance(error, Broken)
    return OutcomeKind.DIED, EngineDied(f"{instance} closed its connection before its answer was whole")
