"""Requests between the gateway and the scheduler: those that wait have a ticket, those that run a lease.

Owned by the driver, which carries out grants, refusals and cuts here.
"""

from __future__ import annotations

from asyncio import CancelledError, get_running_loop
from collections.abc import Callable, Container, Mapping
from itertools import count
from secrets import token_hex

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.types import OutcomeKind
from modelyard.errors import InternalError, ModelyardError, by_code
from modelyard.runtime.lease import Lease, Ticket
from modelyard.runtime.resident import Resident


class Requests:
    """`tickets` and `leases` are by request."""

    def __init__(self, post: Callable[[ev.Event], None], residents: Mapping[str, Resident]) -> None:
        self.tickets: dict[str, Ticket] = {}
        self.leases: dict[str, Lease] = {}
        self._post = post
        self._residents = residents
        self._run = f"r{token_hex(4)}-"
        self._numbers = count(1)

    # -- what the gateway calls ---------------------------------------------------------------------------

    def new(self) -> str:
        """An id that no request had before, here or in an earlier run."""
        return f"{self._run}{next(self._numbers)}"

    def arrive(self, event: ev.Arrived, api: str = "") -> Ticket:
        """Ask for a slot. The ticket holds the lease or the error already when that was decided at once;
        else `wait` for it. Every ticket must be waited for, or abandoned."""
        ticket = self.tickets[event.request] = Ticket(event.request, api)
        self._post(event)
        return ticket

    async def wait(self, ticket: Ticket) -> Lease:
        """The lease of a ticket. Raises the error it was refused with. A caller that is cancelled leaves
        nothing behind: neither a place in the queue nor a slot."""
        if not ticket.answered:
            ticket.future = get_running_loop().create_future()
            try:
                await ticket.future
            except CancelledError:
                self.abandon(ticket)
                raise
        if ticket.error is not None:
            raise ticket.error
        assert ticket.lease is not None
        return ticket.lease

    def abandon(self, ticket: Ticket) -> None:
        """The client left: give back what the ticket holds, or its place in the queue."""
        if ticket.lease is not None:
            ticket.lease.release(OutcomeKind.CANCELLED)
        elif ticket.error is None:
            self.tickets.pop(ticket.request, None)
            self._post(ev.Cancelled(ticket.request))

    # -- what the driver carries out ----------------------------------------------------------------------

    def grant(self, action: ac.Grant) -> None:
        ticket = self.tickets.pop(action.request, None)
        resident = self._residents.get(action.instance)
        endpoint = resident.endpoint if resident is not None else None
        if ticket is None or endpoint is None:
            outcome = OutcomeKind.CANCELLED if ticket is None else OutcomeKind.UNREACHABLE
            self._post(ev.Finished(action.request, action.instance, action.generation, outcome))
            if ticket is not None:
                ticket.error = InternalError(f"{action.instance} has no endpoint")
                ticket.settle()
            return
        endpoint.active += 1
        lease = Lease(
            action.request,
            endpoint,
            action.generation,
            action.waited,
            action.loading,
            self._release,
            self._doubt,
        )
        self.leases[action.request] = lease
        ticket.lease = lease
        ticket.settle()

    def refuse(self, action: ac.Refuse) -> None:
        self._answer(action.request, by_code(action.code, action.message, retry_after=action.retry_after))

    def cut(self, action: ac.Cut) -> None:
        lease = self.leases.get(action.request)
        if lease is not None:
            lease.cut_by(by_code(action.code, action.message))

    def fail(self, event: ev.Event, waiting: Container[str]) -> None:
        """A bug struck at this event: a request that arrived with it, and does not wait, is told."""
        if isinstance(event, ev.Arrived) and event.request not in waiting:
            self._answer(event.request, InternalError("the scheduler failed; see the log"))

    def _answer(self, request: str, error: ModelyardError) -> None:
        ticket = self.tickets.pop(request, None)
        if ticket is not None:
            ticket.error = error
            ticket.settle()

    def _release(self, lease: Lease, outcome: OutcomeKind, rest: float, work: float) -> None:
        self.leases.pop(lease.request, None)
        lease.endpoint.active -= 1
        self._post(ev.Finished(lease.request, lease.instance, lease.generation, outcome, rest, work))

    def _doubt(self, lease: Lease) -> None:
        self._post(ev.Doubted(lease.instance, lease.generation))
