"""A world on a virtual clock around the real scheduler: engines that load, serve and stop in stated times.

Used by `sim/replay.py` and by the tests of the bounds. It executes actions exactly once and
answers each command with its terminal event, as the driver does; nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import OutcomeKind


@dataclass(frozen=True, slots=True)
class Job:
    """A request of a trace: it arrives at `at` and holds its slot for `service` seconds."""

    at: float
    version: str
    service: float
    max_wait: float | None = None


@dataclass(slots=True)
class Record:
    """What became of a job. `bound` is what was stated at arrival, infinite when it was served at once."""

    job: Job
    granted_at: float | None = None
    finished_at: float | None = None
    refused: str = ""
    bound: float = 0.0

    @property
    def wait(self) -> float | None:
        return None if self.granted_at is None else self.granted_at - self.job.at


@dataclass(slots=True)
class World:
    """`load(version)` and `stop(version)` are the seconds that a start and a stop take; `read(version)` those
    of a load in which it has the drive for itself: others wait for it."""

    scheduler: Scheduler
    load: Callable[[str], float]
    stop: Callable[[str], float] = lambda _: 0.1
    read: Callable[[str], float] = lambda _: 0.0
    after_each: Callable[[Scheduler], None] | None = None
    before_arrival: Callable[[ev.Arrived], None] | None = None
    watch: Callable[[float, ev.Event, list[ac.Action]], None] | None = None
    now: float = 0.0
    records: dict[str, Record] = field(default_factory=dict)
    loads: int = 0
    bytes_loaded: int = 0
    cuts: int = 0
    _events: list[tuple[float, int, ev.Event]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)
    _drive_free: float = 0.0
    _slots: dict[str, int] = field(default_factory=dict)  # request -> order of its pending Finished
    _versions: dict[str, str] = field(default_factory=dict)  # instance -> version

    def at(self, when: float, event: ev.Event) -> int:
        """Have `event` happen at `when`; returns its number."""
        number = next(self._order)
        heappush(self._events, (when, number, event))
        return number

    def submit(self, jobs: Iterable[Job]) -> None:
        for number, job in enumerate(jobs, len(self.records)):
            request = f"r{number}"
            self.records[request] = Record(job)
            self.at(job.at, ev.Arrived(request, job.version, max_wait=job.max_wait))

    def post(self, event: ev.Event) -> None:
        """Hand one event to the scheduler now and carry out what it answers."""
        if self.before_arrival is not None and isinstance(event, ev.Arrived):
            self.before_arrival(event)
        actions = self.scheduler.handle(event, self.now)
        for action in actions:
            self._execute(action)
        if isinstance(event, ev.Arrived) and event.request in self.scheduler.state.waiting:
            self.records[event.request].bound = self.scheduler.state.waiting[event.request].bound
        if self.watch is not None:
            self.watch(self.now, event, actions)
        if self.after_each is not None:
            self.after_each(self.scheduler)

    def run(self, until: float = float("inf")) -> None:
        """Let time pass until `until`, or until nothing is left to happen."""
        while True:
            deadline = self.scheduler.next_deadline()
            event_at = self._events[0][0] if self._events else None
            if event_at is None and deadline is None:
                return
            tick = event_at is None or (deadline is not None and deadline < event_at)
            when = deadline if tick else event_at
            assert when is not None
            if when > until:
                self.now = until
                return
            self.now = max(self.now, when)
            if tick:
                self.post(ev.Tick())
            else:
                _, number, event = heappop(self._events)
                if not isinstance(event, ev.Finished) or self._is_current(event, number):
                    self.post(event)

    def _is_current(self, event: ev.Finished, number: int) -> bool:
        if self._slots.get(event.request) != number:
            return False
        del self._slots[event.request]
        record = self.records.get(event.request)
        if record is not None and event.outcome is OutcomeKind.DONE:
            record.finished_at = self.now
        return True

    def _execute(self, action: ac.Action) -> None:
        match action:
            case ac.Grant(request, instance, generation):
                record = self.records[request]
                record.granted_at = self.now
                done = ev.Finished(request, instance, generation, OutcomeKind.DONE)
                self._slots[request] = self.at(self.now + record.job.service, done)
            case ac.Refuse(request, code):
                self.records[request].refused = code
            case ac.Cut(request, instance):
                self.cuts += 1
                lease = self.scheduler.state.leases[request]
                cut = ev.Finished(request, instance, lease.generation, OutcomeKind.CUT)
                self._slots[request] = self.at(self.now, cut)
            case ac.Start(instance, generation, version, placement):
                self.loads += 1
                self.bytes_loaded += sum(charge.bytes for charge in placement)
                self._versions[instance] = version
                begins = max(self.now, self._drive_free)
                self._drive_free = begins + self.read(version)
                self.at(begins + self.load(version), ev.Ready(instance, generation))
            case ac.Wake(instance, generation):
                self.at(self.now + self.load(self._versions[instance]), ev.Ready(instance, generation))
            case ac.Sleep(instance, generation):
                self.at(self.now + self.stop(self._versions[instance]), ev.Slept(instance, generation))
            case ac.Stop(instance, generation) | ac.Release(instance, generation):
                gone = ev.Released(instance, generation)
                self.at(self.now + self.stop(self._versions[instance]), gone)
            case _:
                pass
