"""What is likely to happen to a scheduler that is left alone: a virtual clock, and an outside that answers
each command when experience says that it will.

Used by `plan`, on a copy. What is under way already is expected to end, too: loads after their usual time,
running requests after the usual service time of their version, stops after `Estimates.stop`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.lifecycle import FilesState, InstanceState
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import STARTING, Instance
from modelyard.core.types import Need, OutcomeKind


class Fetched(NamedTuple):
    """An expected end of a fetch: `seconds` from its start, and what its files will say that they need."""

    seconds: float
    need: Need


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the scheduler's own history does not say. `stop`: seconds from Stop to Released. `fetch`: by
    version; a fetch that is not in it is expected never to end: nothing is told of what comes after."""

    stop: float = 0.5
    fetch: Mapping[str, Fetched] = field(default_factory=dict)


Expected = tuple[float, int, ev.Event]


class Outlook:
    """`scheduler` is changed as time passes: give it a copy. Times are absolute seconds, as in `handle`."""

    def __init__(self, scheduler: Scheduler, now: float, estimates: Estimates) -> None:
        self.scheduler = scheduler
        self.now = now
        self._estimates = estimates
        self._expected: list[Expected] = []
        self._order = count()
        for instance in scheduler.state.instances.values():
            self._under_way(instance)
        for key, version in scheduler.state.versions.items():
            if version.files is FilesState.FETCHING:
                self._fetch(key)

    def post(self, event: ev.Event) -> list[ac.Action]:
        """Hand one event to the scheduler now; what it orders is expected to be done."""
        actions = self.scheduler.handle(event, self.now)
        for action in actions:
            self._order_given(action)
        return actions

    def coming(self) -> Iterator[ev.Event]:
        """Each next event that is expected, after the clock was set to its time; the caller posts it. Ends
        when nothing is expected any more."""
        while True:
            due = self.scheduler.next_deadline()
            first = self._expected[0][0] if self._expected else None
            if due is not None and (first is None or due < first):
                self.now = max(self.now, due)
                yield ev.Tick()
            elif first is not None:
                self.now = max(self.now, first)
                yield heappop(self._expected)[2]
            else:
                return

    def _expect(self, when: float, event: ev.Event) -> None:
        heappush(self._expected, (when, next(self._order), event))

    def _under_way(self, instance: Instance) -> None:
        name, generation, state = instance.id, instance.generation, instance.state
        if state in STARTING:
            self._expect(instance.started_at + instance.version.usual_load(), ev.Ready(name, generation))
        elif state in (InstanceState.STOPPING, InstanceState.RELEASING):
            self._expect(self.now + self._estimates.stop, ev.Released(name, generation))
        elif instance.suspect:
            self._expect(self.now, ev.Probed(name, generation, alive=True))
        service = instance.version.service_seconds
        for request, lease in instance.leases.items():
            done = ev.Finished(request, name, lease.generation, OutcomeKind.DONE)
            self._expect(lease.granted_at + service, done)

    def _fetch(self, version: str) -> None:
        fetched = self._estimates.fetch.get(version)
        if fetched is not None:
            self._expect(self.now + fetched.seconds, ev.Cached(version, fetched.need))

    def _order_given(self, action: ac.Action) -> None:
        state, now = self.scheduler.state, self.now
        match action:
            case ac.Start(name, generation, version):
                self._expect(now + state.versions[version].usual_load(), ev.Ready(name, generation))
            case ac.Stop(name, generation) | ac.Release(name, generation):
                self._expect(now + self._estimates.stop, ev.Released(name, generation))
            case ac.Grant(request, name, generation):
                service = state.instances[name].version.service_seconds
                done = ev.Finished(request, name, generation, OutcomeKind.DONE)
                self._expect(now + service, done)
            case ac.Fetch(version):
                self._fetch(version)
