"""The one loop of the gateway: acquire a lease, attempt, release with the outcome, answer or retry.

An inference handler parses its request into a `Demand` and calls `Service.serve`; everything after that is
the same for every API. A request is retried as long as no byte of an answer has reached the client, never on
an instance that failed it, and at most ATTEMPTS times; all its waits together last `max_wait` at most, all
its attempts together `request_timeout`.
Whatever happens, its lease is released exactly once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson

from modelyard.core.events import Arrived
from modelyard.core.types import OutcomeKind, Priority
from modelyard.errors import (
    BrokenPromise,
    ContextOverflow,
    EngineFailed,
    EngineProtocol,
    InternalError,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    ModelRemoved,
    ModelyardError,
    NoAlternative,
)
from modelyard.gateway.api import OPENAI, Api
from modelyard.gateway.exchange import Disconnected, Exchange
from modelyard.gateway.http.answers import JSON
from modelyard.gateway.interrupt import Interrupt, Interrupted
from modelyard.gateway.progress import Progress
from modelyard.gateway.relay import Attempt, HeaderPairs, Reshape, Result, Watch
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.runtime.journal_records import Ended
from modelyard.runtime.lease import Lease, Ticket
from modelyard.telemetry.metrics import Metrics, Traffic
from modelyard.wire.errors import WireError
from modelyard.wire.sse import last_usage

ATTEMPTS = 3
HEARTBEAT_EVERY = 10.0
# Refusals of a retry: no instance is left, none can be started, or none was free in time.
_NOWHERE = (NoAlternative, LoadFailed, BrokenPromise)
INPUTS = {  # by the engine's path: the field that holds what may be too long
    b"/v1/chat/completions": "messages",
    b"/v1/completions": "prompt",
    b"/v1/embeddings": "input",
    b"/v1/responses": "input",
}
REQUEST_HEADER = b"x-modelyard-request"
AT_ONCE = [(b"x-modelyard-queue-ms", b"0"), (b"x-modelyard-load-ms", b"0")]


@dataclass(slots=True)
class Demand:
    """What one request wants of one version. `kind` names it in metrics; `path` is the engine's. `reshape`
    turns the engine's whole 2xx body into the API's; `reshape_events` makes what does so with whole events,
    one for each attempt. None: leave them. `progress`: the client asks for events while it waits."""

    entry: Entry
    kind: str
    path: bytes
    body: bytes
    stream: bool
    priority: Priority | None = None
    load: bool = True
    exclude: frozenset[str] = frozenset()
    reshape: Reshape | None = None
    reshape_events: Callable[[], Reshape] | None = None
    api: Api = OPENAI
    progress: bool = False

    def move_to(self, other: Demand) -> None:
        """Have it be what `other` is: the same request to another version."""
        self.entry, self.path, self.body = other.entry, other.path, other.body
        self.reshape, self.reshape_events = other.reshape, other.reshape_events


class Service:
    """Serves demands with the driver's leases. `heartbeat_after` seconds of waiting, a streaming client gets
    its 200 and comments, so that nobody on the way takes the connection for dead. `demand_again` makes the
    demand of a request anew, when the version that it waited for is gone."""

    demand_again: Callable[[Exchange], Awaitable[Demand]] | None = None

    def __init__(self, driver: Driver, metrics: Metrics, *, heartbeat_after: float) -> None:
        self._driver = driver
        self._metrics = metrics
        self.heartbeat_after = heartbeat_after
        self._watch = Watch()
        self._progress = Progress(driver)

    async def serve(self, exchange: Exchange, demand: Demand) -> None:
        """Answer the request; every outcome ends as an answer, an error event, or a client that left."""
        interrupt = Interrupt()
        exchange.on_close(interrupt.depart)
        traffic = self._metrics.traffic(demand.entry.spec.model)
        outcome = InternalError.code  # of whatever else is raised
        request = self._driver.new_request()
        exchange.also += request_line(request)
        course = Ended(request, demand.entry.spec.version, demand.kind, asyncio.get_running_loop().time())
        try:
            outcome = await self._serve(exchange, demand, interrupt, traffic, course)
        except ModelyardError as error:
            outcome = error.code
            self._tell(exchange, demand, error)
        except Disconnected:
            outcome = "cancelled"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            traffic.end(demand.kind, outcome)
            course.outcome = outcome
            if self._driver.journal is not None:
                self._driver.journal.ended(course)

    async def _serve(
        self, exchange: Exchange, demand: Demand, interrupt: Interrupt, traffic: Traffic, course: Ended
    ) -> str:
        """The loop. Returns the outcome for the metrics; raises the error that the client is to be told."""
        loop = asyncio.get_running_loop()
        since: float | None = None
        waited = ran = 0.0  # seconds in queues and in attempts
        last: Result | None = None
        if interrupt.departed:
            raise Disconnected
        for _ in range(ATTEMPTS):
            try:
                try:
                    lease = await self._acquire(exchange, demand, course.request, interrupt, since, waited)
                except ModelRemoved as gone:
                    lease = await self._acquire_anew(exchange, demand, course, interrupt, gone, since, ran)
                    waited = loop.time() - course.started - ran - lease.waited
            except ModelyardError as error:
                if last is None:
                    self._count_refusal(demand, error)
                elif isinstance(error, _NOWHERE):
                    break  # how its attempt failed says more than that there is nobody else to ask
                raise
            waited += lease.waited
            if last is None:
                traffic.wait.observe(waited)
            else:
                self._metrics.retries.add(demand.entry.spec.model)
            course.attempts += 1
            course.instance = lease.instance
            granted = loop.time()
            heads = _headers_of(lease, waited)
            last = await self._attempt(exchange, demand, lease, interrupt, heads, ran)
            ran += loop.time() - granted
            self._count(traffic, last, course)
            if last.outcome is OutcomeKind.CANCELLED and last.error is not None:
                return last.error.code  # the client was told already
            if interrupt.departed:
                raise Disconnected
            if last.started or not _worth_a_retry(last):
                break
            if last.outcome is OutcomeKind.CUT:
                # Behind whoever it was cut for: before them, it would take their memory and be cut again.
                since = loop.time()
            else:
                demand.exclude |= {lease.instance}
                since = course.started
        assert last is not None
        if last.error is not None:
            raise last.error
        return self._answer(exchange, demand, last)

    # -- a lease ------------------------------------------------------------------------------------------

    async def _acquire(
        self,
        exchange: Exchange,
        demand: Demand,
        request: str,
        interrupt: Interrupt,
        since: float | None,
        waited: float,
    ) -> Lease:
        """A slot for this request, which waited for `waited` seconds before. Raises what it was refused
        with, or Disconnected."""
        ticket = self._driver.arrive(
            Arrived(
                request,
                demand.entry.spec.version,
                demand.priority,
                None if since is None else max(0.0, demand.entry.policy.max_wait - waited),
                demand.exclude,
                since,
                demand.load,
            ),
            demand.kind,
        )
        if ticket.lease is not None:
            return ticket.lease
        if ticket.error is not None:
            raise ticket.error
        return await self._wait(exchange, demand, ticket, interrupt)

    async def _acquire_anew(
        self,
        exchange: Exchange,
        demand: Demand,
        course: Ended,
        interrupt: Interrupt,
        gone: ModelRemoved,
        since: float | None,
        ran: float,
    ) -> Lease:
        """A slot of the version that the model has now, for a request that keeps its place; its attempts took
        `ran` seconds. Raises `gone` when the model went as well, and as `_acquire` does."""
        while True:
            if self.demand_again is None:
                raise gone
            try:
                fresh = await self.demand_again(exchange)
            except ModelNotFound:
                raise gone from None
            if fresh.entry is demand.entry:
                raise gone
            demand.move_to(fresh)
            course.version = demand.entry.spec.version
            place = course.started if since is None else since
            waited = asyncio.get_running_loop().time() - course.started - ran
            try:
                return await self._acquire(exchange, demand, course.request, interrupt, place, waited)
            except ModelRemoved as error:
                gone = error

    async def _wait(self, exchange: Exchange, demand: Demand, ticket: Ticket, interrupt: Interrupt) -> Lease:
        """Wait for the lease; keep a streaming client's connection alive, give up when the client leaves."""
        if demand.progress:
            with self._progress.follow(exchange, demand.api, ticket.request, demand.entry.spec):
                return await self._lease_of(ticket, interrupt)
        loop = asyncio.get_running_loop()
        beat: asyncio.TimerHandle | None = None

        def heartbeat() -> None:
            nonlocal beat
            if not exchange.started:
                exchange.start(200, [(b"content-type", demand.api.media), (b"cache-control", b"no-cache")])
            exchange.write(demand.api.heartbeat)
            beat = loop.call_later(HEARTBEAT_EVERY, heartbeat)

        if demand.stream:
            beat = loop.call_later(self.heartbeat_after, heartbeat)
        try:
            return await self._lease_of(ticket, interrupt)
        finally:
            if beat is not None:
                beat.cancel()

    async def _lease_of(self, ticket: Ticket, interrupt: Interrupt) -> Lease:
        """What a ticket is answered with. Raises Disconnected when the client leaves before."""
        try:
            with interrupt:
                return await self._driver.wait(ticket)
        except Interrupted:
            raise Disconnected from None

    # -- an attempt ---------------------------------------------------------------------------------------

    async def _attempt(
        self,
        exchange: Exchange,
        demand: Demand,
        lease: Lease,
        interrupt: Interrupt,
        heads: HeaderPairs,
        ran: float,
    ) -> Result:
        """One attempt, with its lease released whatever happens; those before it took `ran` seconds."""
        policy = demand.entry.policy
        attempt = Attempt(
            exchange,
            lease,
            policy,
            interrupt,
            self._watch,
            timeout=policy.request_timeout - ran,
            stream=demand.stream,
            heads=heads,
            reshape=demand.reshape,
            reshape_events=demand.reshape_events and demand.reshape_events(),
            media=demand.api.media,
        )
        exchange.on_pause(attempt.pause)
        exchange.on_resume(attempt.resume)
        outcome = OutcomeKind.CANCELLED
        try:
            result = await attempt.run(b"POST", demand.path, demand.body)
            outcome = result.outcome
            if outcome is OutcomeKind.CANCELLED:
                if result.error is not None:  # its time is over: it need not wait for the engine to notice
                    self._tell(exchange, demand, result.error)
                stopped = await self._quiesce(lease)
                if result.error is not None and not result.first_byte_at and not stopped:
                    outcome = OutcomeKind.UNREACHABLE  # slow or hung: a probe tells
        finally:
            lease.release(outcome)
        return result

    async def _quiesce(self, lease: Lease) -> bool:
        """The slot counts until the engine has noticed that nobody listens any more. Whether it said so."""
        lease.endpoint.active -= 1
        try:
            return await lease.endpoint.quiesce()
        except (WireError, TimeoutError):
            lease.doubt()  # while it still holds the slot: nobody is given it before a probe has answered
            return False
        finally:
            lease.endpoint.active += 1

    # -- the answer ---------------------------------------------------------------------------------------

    def _answer(self, exchange: Exchange, demand: Demand, result: Result) -> str:
        """Finish with the engine's own answer, whatever its status."""
        if result.started:
            exchange.end()
            return "ok"
        if result.status == 400 and b"exceed_context_size" in result.body:
            raise ContextOverflow(_engine_message(result.body), param=INPUTS.get(demand.path))
        if exchange.started:  # a stream was promised
            refusal = _refusal(result)
            raise type(refusal)(f"the engine answered with {result.status}: {refusal.message}")
        if result.status < 400:
            exchange.respond(result.status, result.headers, result.body)
            return "ok"
        refusal = _refusal(result)
        headers = [pair for pair in result.headers if pair[0] != b"content-type"]
        exchange.respond(result.status, [*headers, JSON], demand.api.refusal(result.status, refusal))
        return refusal.code

    def _tell(self, exchange: Exchange, demand: Demand, error: ModelyardError) -> None:
        """The request failed: as an answer, or as the last event of a stream that has begun."""
        if not exchange.started:
            exchange.respond(*demand.api.error(error))
        elif exchange.closed:
            return
        elif demand.stream:
            exchange.write(demand.api.error_event(error))
            exchange.end()
        else:
            exchange.abort()

    def _count(self, traffic: Traffic, result: Result, course: Ended) -> None:
        course.first_byte = result.first_byte_at
        if result.first_byte_at:
            traffic.first_token.observe(result.first_byte_at - course.started)
        traffic.chunks += result.chunks
        traffic.bytes += result.bytes
        usage = last_usage(result.tail or result.body)
        if usage is not None:
            course.tokens_in = usage.get("prompt_tokens", 0)
            course.tokens_out = usage.get("completion_tokens", 0)
            traffic.tokens_in += course.tokens_in
            traffic.tokens_out += course.tokens_out

    def _count_refusal(self, demand: Demand, error: ModelyardError) -> None:
        model = demand.entry.spec.model
        if isinstance(error, BrokenPromise):
            self._metrics.broken_promises.add(model)
        else:
            self._metrics.rejections.add(model, error.code)


def request_line(request: str) -> bytes:
    """The header line that names a request in its answer, whatever that will be."""
    return b"%b: %b\r\n" % (REQUEST_HEADER, request.encode())


def _headers_of(lease: Lease, waited: float) -> HeaderPairs:
    """What an answer says of how it came about; `waited`: seconds in queues, before all attempts."""
    if not waited:
        return [*lease.endpoint.headers, *AT_ONCE]
    return [
        *lease.endpoint.headers,
        (b"x-modelyard-queue-ms", b"%d" % (waited * 1000.0)),
        (b"x-modelyard-load-ms", b"%d" % (lease.loading * 1000.0)),
    ]


def _worth_a_retry(result: Result) -> bool:
    """Whether another instance may do better: not when it answered, nor when the request's time is over."""
    if result.error is None:
        return result.status >= 500
    return result.error.retryable


def _refusal(result: Result) -> ModelyardError:
    """What an engine's own answer is in our terms, with its message."""
    said = _engine_message(result.body)
    if result.status >= 500:
        return EngineFailed(said)
    return InvalidRequest(said) if result.status >= 400 else EngineProtocol(said)


def _engine_message(body: bytes) -> str:
    """The message of an engine's error body, or its beginning."""
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
