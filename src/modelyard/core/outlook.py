"""What is likely to happen to a scheduler that is left alone: a virtual clock, and an outside that answers
each command when experience says that it will.

Used by `plan`, on a copy. What is under way already is expected to end, too: loads after their usual time,
running requests after the usual service time of their version, stops and sleeps after the seconds that the
caller says.
Nobody knows when a fetch ends: nothing is told of what comes after one.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.lifecycle import InstanceState
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import COMING, Instance
from modelyard.core.types import OutcomeKind

USUAL_STOP = 0.5  # seconds from Stop to Released, where nobody knows better


def usual(instance: Instance) -> float:
    """Seconds that one which is coming up usually takes."""
    return instance.version.usual_load(instance.rung)


Expected = tuple[float, int, ev.Event]


class Outlook:
    """`scheduler` is changed as time passes: give it a copy. Times are absolute seconds, as in `handle`;
    `stop` is the seconds from Stop to Released."""

    def __init__(self, scheduler: Scheduler, now: float, stop: float) -> None:
        self.scheduler = scheduler
        self.now = now
        self._stop = stop
        self._expected: list[Expected] = []
        self._order = count()
        for instance in scheduler.state.instances.values():
            self._under_way(instance)

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
        if state in COMING:
            self._expect(instance.started_at + usual(instance), ev.Ready(name, generation))
        elif state is InstanceState.SLEEPING:
            self._expect(self.now + self._stop, ev.Slept(name, generation))
        elif state in (InstanceState.STOPPING, InstanceState.RELEASING):
            self._expect(self.now + self._stop, ev.Released(name, generation))
        elif instance.suspect:
            self._expect(self.now, ev.Probed(name, generation, alive=True))
        service = instance.version.service_seconds
        for request, lease in instance.leases.items():
            done = ev.Finished(request, name, lease.generation, OutcomeKind.DONE)
            self._expect(lease.granted_at + service, done)

    def _order_given(self, action: ac.Action) -> None:
        state, now = self.scheduler.state, self.now
        match action:
            case ac.Start(name, generation) | ac.Wake(name, generation):
                self._expect(now + usual(state.instances[name]), ev.Ready(name, generation))
            case ac.Sleep(name, generation):
                self._expect(now + self._stop, ev.Slept(name, generation))
            case ac.Stop(name, generation) | ac.Release(name, generation):
                self._expect(now + self._stop, ev.Released(name, generation))
            case ac.Grant(request, name, generation):
                service = state.instances[name].version.service_seconds
                done = ev.Finished(request, name, generation, OutcomeKind.DONE)
                self._expect(now + service, done)
