"""Leases and the tickets that wait for them: what the gateway holds of the scheduler.

A ticket is made by `Requests.arrive`; it holds a lease, an error, or nothing yet. A lease is released exactly
once, whatever happens to its request.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable

from modelyard.core.types import OutcomeKind
from modelyard.errors import ModelyardError
from modelyard.runtime.endpoint import Endpoint


class Lease:
    """The use of one slot by one request. `waited` and `loading` are seconds before the grant."""

    __slots__ = (
        "_doubt",
        "_on_cut",
        "_release",
        "cut",
        "endpoint",
        "generation",
        "instance",
        "loading",
        "request",
        "waited",
    )

    def __init__(
        self,
        request: str,
        endpoint: Endpoint,
        generation: int,
        waited: float,
        loading: float,
        release: Callable[[Lease, OutcomeKind, float, float], None],
        doubt: Callable[[Lease], None],
    ) -> None:
        self.request = request
        self.endpoint = endpoint
        self.instance = endpoint.instance
        self.generation = generation
        self.waited = waited
        self.loading = loading
        self.cut: ModelyardError | None = None
        self._release: Callable[[Lease, OutcomeKind, float, float], None] | None = release
        self._doubt = doubt
        self._on_cut: Callable[[ModelyardError], None] | None = None

    def release(self, outcome: OutcomeKind, rest: float = 0.0, work: float = 0.0) -> None:
        """Give the slot back and say how the attempt ended; `rest` is for how many seconds its server asked
        to be left alone, `work` how much was done. Only the first call counts."""
        release, self._release, self._on_cut = self._release, None, None
        if release is not None:
            release(self, outcome, rest, work)

    def doubt(self) -> None:
        """The instance is silent: have it probed. It gets no new leases meanwhile; this one goes on, and is
        cut if the instance is condemned."""
        if self._release is not None:
            self._doubt(self)

    def on_cut(self, callback: Callable[[ModelyardError], None]) -> None:
        """Call back when the scheduler ends this attempt; at once if it has."""
        if self.cut is not None:
            callback(self.cut)
        else:
            self._on_cut = callback

    def cut_by(self, error: ModelyardError) -> None:
        """The scheduler ends this attempt. Called by `Requests`."""
        if self._release is not None and self.cut is None:
            self.cut = error
            if self._on_cut is not None:
                self._on_cut(error)


class Ticket:
    """A request's place with the scheduler: `lease` or `error` once it was answered; `future` while somebody
    awaits it. `api` is the kind of API path it came by, for the journal."""

    __slots__ = ("api", "error", "future", "lease", "request")

    def __init__(self, request: str, api: str = "") -> None:
        self.request = request
        self.api = api
        self.lease: Lease | None = None
        self.error: ModelyardError | None = None
        self.future: Future[None] | None = None

    @property
    def answered(self) -> bool:
        return self.lease is not None or self.error is not None

    def settle(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)
