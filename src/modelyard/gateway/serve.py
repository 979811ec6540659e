"""The one loop of the gateway: ask for a lease, attempt, release with the outcome, answer or retry.

An inference handler parses its request into a `Demand` and calls `Service.serve`; everything after that is
the same for every API. A request is retried as long as no byte of an answer has reached the client, never on
an instance that failed it, and at most ATTEMPTS times; all its waits together last `max_wait` at most, all
its attempts together `request_timeout`.
Whatever happens, its lease is released exactly once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from modelyard.core.events import Arrived
from modelyard.core.types import Affinity, OutcomeKind
from modelyard.errors import (
    BrokenPromise,
    EngineError,
    InternalError,
    LoadFailed,
    ModelNotFound,
    ModelRemoved,
    ModelyardError,
    NoAlternative,
)
from modelyard.gateway.affinity import prefix_of
from modelyard.gateway.answered import work_in
from modelyard.gateway.demand import Demand
from modelyard.gateway.engine_errors import overflow, pause, refusal
from modelyard.gateway.exchange import Disconnected, Exchange
from modelyard.gateway.http.answers import JSON
from modelyard.gateway.interrupt import Interrupt, Interrupted
from modelyard.gateway.progress import Progress
from modelyard.gateway.relay import Attempt, HeaderPairs, Result, Watch
from modelyard.runtime.driver import Driver
from modelyard.runtime.journal_records import Ended
from modelyard.runtime.lease import Lease, Ticket
from modelyard.telemetry.metrics import Metrics
from modelyard.telemetry.usage import Usage
from modelyard.wire.errors import WireError
from modelyard.wire.sse import last_usage

ATTEMPTS = 3
ENDED_WELL = ("ok", "cancelled")  # a client that left is no failure
HEARTBEAT_EVERY = 10.0
# Refusals of a retry: no instance is left, none can be started, or none was free in time.
_NOWHERE = (NoAlternative, LoadFailed, BrokenPromise)
REQUEST_HEADER = b"x-modelyard-request"
AT_ONCE = [(b"x-modelyard-queue-ms", b"0"), (b"x-modelyard-load-ms", b"0")]


Again = Callable[[Exchange], Awaitable[Demand]]
"""Makes the demand of a request anew, when the version that it waited for is gone. Raises ModelNotFound."""


class Service:
    """Serves demands with the driver's leases. `heartbeat_after` seconds of waiting, a streaming client gets
    its 200 and comments, so that nobody on the way takes the connection for dead."""

    def __init__(self, driver: Driver, metrics: Metrics, usage: Usage, *, heartbeat_after: float) -> None:
        self.driver = driver
        self.metrics = metrics
        self.usage = usage
        self.heartbeat_after = heartbeat_after
        self.watch = Watch()
        self.progress = Progress(driver)

    async def serve(self, exchange: Exchange, demand: Demand, again: Again) -> None:
        """Answer the request; every outcome ends as an answer, an error event, or a client that left."""
        await _Serving(self, exchange, demand, again).run()


class _Serving:
    """One request from its arrival to its end. `since` is the place that it keeps when it asks again, as the
    time of an arrival; `waited` and `ran` are the seconds that it spent in queues and in attempts so far; it
    was `asked` for its slot at that time."""

    __slots__ = (
        "_again",
        "_asked",
        "_course",
        "_demand",
        "_exchange",
        "_interrupt",
        "_loop",
        "_ran",
        "_service",
        "_since",
        "_traffic",
        "_waited",
    )

    def __init__(self, service: Service, exchange: Exchange, demand: Demand, again: Again) -> None:
        self._service = service
        self._again = again
        self._exchange = exchange
        self._demand = demand
        self._loop = asyncio.get_running_loop()
        self._interrupt = Interrupt()
        self._traffic = service.metrics.traffic(demand.entry.spec.model)
        self._since: float | None = None
        self._waited, self._ran = demand.waited, 0.0
        request = service.driver.requests.new()
        self._course = Ended(request, demand.entry.spec.version, demand.kind, self._loop.time())
        exchange.on_close(self._interrupt.depart)
        exchange.also += request_line(request)

    async def run(self) -> None:
        outcome = InternalError.code  # of whatever else is raised
        try:
            outcome = await self._serve()
        except ModelyardError as error:
            outcome = error.code
            self._tell(error)
        except Disconnected:
            outcome = "cancelled"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._demand.waited = self._waited
            self._count_end(outcome)

    async def _serve(self) -> str:
        """The loop. Returns the outcome for the metrics; raises the error that the client is to be told."""
        if self._interrupt.departed:
            raise Disconnected
        last: Result | None = None
        for _ in range(ATTEMPTS):
            try:
                try:
                    ticket = self._ask()
                    lease = ticket.lease or await self._wait(ticket)
                except ModelRemoved as gone:
                    lease = await self._ask_anew(gone)
            except ModelyardError as error:
                self._waited += self._loop.time() - self._asked
                if last is None:
                    self._count_refusal(error)
                elif isinstance(error, _NOWHERE):
                    break  # how its attempt failed says more than that there is nobody else to ask
                raise
            self._waited += lease.waited
            if last is None:
                self._traffic.wait.observe(self._waited - self._demand.waited)
            else:
                self._service.metrics.retries.add(self._demand.entry.spec.model)
            last = await self._attempt(lease)
            if last.outcome is OutcomeKind.CANCELLED and last.error is not None:
                return last.error.code  # the client was told already
            if self._interrupt.departed:
                raise Disconnected
            if last.started or not self._worth_a_retry(last):
                break
            if pause(last):
                self._since = self._course.started
            elif last.outcome is OutcomeKind.CUT:
                # Behind whoever it was cut for: before them, it would take their memory and be cut again.
                self._since = self._loop.time()
            else:
                self._demand.exclude |= {lease.instance}
                self._since = self._course.started
        assert last is not None
        if last.error is not None:
            raise last.error
        return self._answer(last)

    # -- a lease ------------------------------------------------------------------------------------------

    def _ask(self) -> Ticket:
        """Ask for a slot. Raises what the request is refused with, when that is decided at once."""
        demand, self._asked = self._demand, self._loop.time()
        policy, again = demand.entry.policy, self._since is not None or demand.waited
        ticket = self._service.driver.requests.arrive(
            Arrived(
                self._course.request,
                demand.entry.spec.version,
                demand.priority,
                max(0.0, policy.max_wait - self._waited) if again else None,
                demand.exclude,
                self._since,
                demand.load,
                prefix_of(demand.body) if policy.affinity is Affinity.PREFIX else None,
            ),
            demand.kind,
        )
        if ticket.error is not None:
            raise ticket.error
        return ticket

    async def _ask_anew(self, gone: ModelRemoved) -> Lease:
        """A slot of the version that the model has now; the request keeps its place. Raises `gone` when the
        model went as well, and as `_ask` and `_wait` do."""
        while True:
            try:
                fresh = await self._again(self._exchange)
            except ModelNotFound:
                break
            if fresh.entry is self._demand.entry:
                break
            self._demand.move_to(fresh)
            started = self._course.started
            self._course.version = fresh.entry.spec.version
            self._since = started if self._since is None else self._since
            self._waited = self._demand.waited + self._loop.time() - started - self._ran
            try:
                ticket = self._ask()
                return ticket.lease or await self._wait(ticket)
            except ModelRemoved as error:
                gone = error
        raise gone

    async def _wait(self, ticket: Ticket) -> Lease:
        """Wait for the lease; keep a streaming client's connection alive. Raises what the request is refused
        with, and Disconnected when the client leaves before."""
        exchange, demand, service, loop = self._exchange, self._demand, self._service, self._loop
        if demand.progress:
            with service.progress.follow(exchange, demand.api, ticket.request, demand.entry.spec):
                return await self._lease_of(ticket)
        beat: asyncio.TimerHandle | None = None

        def heartbeat() -> None:
            nonlocal beat
            if not exchange.started:
                exchange.start(200, [(b"content-type", demand.api.media), (b"cache-control", b"no-cache")])
            exchange.write(demand.api.heartbeat)
            beat = loop.call_later(HEARTBEAT_EVERY, heartbeat)

        if demand.stream:
            beat = loop.call_later(service.heartbeat_after, heartbeat)
        try:
            return await self._lease_of(ticket)
        finally:
            if beat is not None:
                beat.cancel()

    async def _lease_of(self, ticket: Ticket) -> Lease:
        try:
            with self._interrupt:
                return await self._service.driver.requests.wait(ticket)
        except Interrupted:
            raise Disconnected from None

    # -- an attempt ---------------------------------------------------------------------------------------

    async def _attempt(self, lease: Lease) -> Result:
        """One attempt, with its lease released whatever happens."""
        exchange, demand, course = self._exchange, self._demand, self._course
        granted = self._loop.time()
        course.attempts += 1
        course.instance = lease.instance
        policy = demand.entry.policy
        attempt = Attempt(
            exchange,
            lease,
            policy,
            self._interrupt,
            self._service.watch,
            timeout=policy.request_timeout - self._ran,
            stream=demand.stream,
            heads=_headers_of(lease, self._waited),
            reshape=demand.reshape,
            reshape_events=demand.reshape_events and demand.reshape_events(),
            media=demand.api.media,
        )
        exchange.on_pause(attempt.pause)
        exchange.on_resume(attempt.resume)
        outcome, rest, work = OutcomeKind.CANCELLED, 0.0, 0.0
        try:
            result = await attempt.run(b"POST", demand.path, demand.body)
            outcome = result.outcome
            if outcome is OutcomeKind.CANCELLED:
                if result.error is not None:  # its time is over: it need not wait for the engine to notice
                    self._tell(result.error)
                stopped = await _quiesce(lease)
                if result.error is not None and not result.first_byte_at and not stopped:
                    # Slow or hung: a probe tells, unless the engine itself says that it goes on for nobody.
                    outcome = OutcomeKind.HUNG if stopped is False else OutcomeKind.UNREACHABLE
            rest, work = pause(result), self._count(result)
        finally:
            lease.release(outcome, rest, work)
            self._ran += self._loop.time() - granted
        if demand.stream and result.first_byte_at:
            lease.endpoint.began(result.first_byte_at - granted)
        return result

    def _worth_a_retry(self, result: Result) -> bool:
        """Whether another instance may do better, or the same one after the pause that it asks for: not when
        it answered, nor when the request's time is over."""
        if rest := pause(result):
            return self._waited + rest < self._demand.entry.policy.max_wait
        if result.error is None:
            return result.status >= 500
        return result.error.retryable

    # -- the answer ---------------------------------------------------------------------------------------

    def _answer(self, result: Result) -> str:
        """Finish with the engine's own answer, whatever its status."""
        exchange, api = self._exchange, self._demand.api
        if result.started:
            exchange.end()
            return "ok"
        if (too_long := overflow(self._demand.path, result)) is not None:
            raise too_long
        if exchange.started:  # a stream was promised
            refused = refusal(self._demand, result)
            raise type(refused)(f"the engine answered with {result.status}: {refused.message}")
        if result.status < 300:
            exchange.respond(result.status, result.headers, result.body)
            return "ok"
        refused = refusal(self._demand, result)
        if isinstance(refused, EngineError) and result.status < 500:
            raise refused
        status = result.status if result.status < 500 else refused.status
        headers = [pair for pair in result.headers if pair[0] != b"content-type"]
        exchange.respond(status, [*headers, JSON], api.refusal(status, refused))
        return refused.code

    def _tell(self, error: ModelyardError) -> None:
        """The request failed: as an answer, or as the last event of a stream that has begun."""
        exchange, api = self._exchange, self._demand.api
        if not exchange.started:
            exchange.respond(*api.error(error))
        elif exchange.closed:
            return
        elif self._demand.stream:
            exchange.write(api.error_event(error))
            exchange.end()
        else:
            exchange.abort()

    def _count(self, result: Result) -> float:
        """Returns how much work it was."""
        traffic, course = self._traffic, self._course
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
        return work_in(result, usage, self._demand.body)

    def _count_end(self, outcome: str) -> None:
        service, demand, course = self._service, self._demand, self._course
        self._traffic.end(demand.kind, outcome)
        service.usage.ended(
            demand.key,
            demand.entry.spec.model,
            course.version,
            demand.entry.price,
            failed=outcome not in ENDED_WELL,
            input_tokens=course.tokens_in,
            output_tokens=course.tokens_out,
            seconds=self._ran,
        )
        course.outcome = outcome
        if service.driver.journal is not None:
            service.driver.journal.ended(course)

    def _count_refusal(self, error: ModelyardError) -> None:
        model, metrics = self._demand.entry.spec.model, self._service.metrics
        if isinstance(error, BrokenPromise):
            metrics.broken_promises.add(model)
        else:
            metrics.rejections.add(model, error.code)


async def _quiesce(lease: Lease) -> bool | None:
    """The slot counts until the engine has noticed that nobody listens any more; see Endpoint.quiesce."""
    lease.endpoint.active -= 1
    try:
        return await lease.endpoint.quiesce()
    except (WireError, TimeoutError):
        lease.doubt()  # while it still holds the slot: nobody is given it before a probe has answered
        return None
    finally:
        lease.endpoint.active += 1


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
