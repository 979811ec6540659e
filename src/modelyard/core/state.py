"""The scheduling state: versions, instances, waiting requests and leases.

Mutated by `scheduler.Scheduler` alone (through `requests`, `instances`, `files`, `orders`, `step` and
`admission`, which it calls); capacity, dispatch, placement and the invariants only read it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import exp2, inf, log
from typing import NamedTuple

from modelyard.core.lifecycle import FilesState, InstanceState
from modelyard.core.memory import Ledger
from modelyard.core.timers import Timers
from modelyard.core.types import Need, NoFit, Placement, Policy, Priority, Rung, Spec

CLASSES = len(Priority)
FLOOR = 8  # a lower class gets at least every FLOOR-th turn while it waits
SERVICES = 10  # answers that the usual service time is the mean of, about
HEAT_HALF_LIFE = 300.0  # seconds in which the memory of demand halves

STARTING = frozenset({InstanceState.STARTING, InstanceState.WARMING})
COMING = STARTING | {InstanceState.WAKING}
LIVE = COMING | {InstanceState.READY}
# Hold what they take.
SETTLED = frozenset({InstanceState.READY, InstanceState.DRAINING, InstanceState.ASLEEP})
# Memory of theirs comes back.
LEAVING = frozenset(
    {InstanceState.DRAINING, InstanceState.SLEEPING, InstanceState.STOPPING, InstanceState.RELEASING}
)


class Ahead(NamedTuple):
    """What stands before a newcomer, of one version or in all. Seconds: `estimate` of the whole, `turns` at
    the longest, `swaps` if they are interrupted. Counts: `versions`, those that are `cold`."""

    estimate: float = 0.0
    turns: float = 0.0
    swaps: float = 0.0
    versions: int = 0
    cold: int = 0

    def plus(self, other: Ahead) -> Ahead:
        a, b = self, other
        return Ahead(a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4])

    def less(self, other: Ahead) -> Ahead:
        a, b = self, other
        return Ahead(a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3], a[4] - b[4])


NOTHING = Ahead()


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in a queue. `since` is its age, and its place; `queued_at` is when this wait began, which is
    later for a retry. `bound` is the stated worst case from its arrival, in seconds."""

    request: str
    version: str
    priority: Priority
    since: float
    queued_at: float
    deadline: float
    exclude: frozenset[str]
    order: int = 0  # of its arrival, among those of the same moment
    retried: bool = False  # it was admitted before: no bound refuses it
    bound: float = inf
    estimate: float = 0.0  # of its wait, at its arrival
    prefix: int | None = None
    gone: bool = False  # cancelled, refused or granted; skipped when it surfaces


@dataclass(slots=True, eq=False)
class Lease:
    instance: Instance
    generation: int
    granted_at: float


@dataclass(slots=True, eq=False)
class Instance:
    """One loaded copy. `generation` is that of the latest command; a lease keeps the one it was granted with.

    `placement` is what it holds now, or may hold when what it was told is done; `awake` is what it held
    when it was last put to sleep, or will hold when it has woken. `rung`: where it goes or is, None where it
    stops; `woken`: it slept before; `asleep_by`: when it has to sleep, if nobody waits for memory before.

    Invariant: leases ≤ slots + overcommit; memory is reserved from Start to Released.
    """

    id: str
    version: Version
    placement: Placement
    started_at: float
    reason: str
    state: InstanceState = InstanceState.STARTING
    generation: int = 1
    ready_at: float = inf
    idle_since: float = inf
    leases: dict[str, Lease] = field(default_factory=dict)
    granted: int = 0  # requests; one that becomes ready counts as those beside it
    turn: int = 0  # the number of the last one, among those of its version
    pace: float = 0.0  # seconds that it works for a unit of work; 0: nobody knows
    worked: float = 0.0  # seconds that its pace was learned from, the older the fewer
    work: float = 0.0  # done in those
    working_since: float = 0.0  # it ended something, or had nothing to do before
    strikes: int = 0
    suspect: bool = False
    last_success: float = -inf
    leaving_for: str = ""
    beside: int = 0  # loads beside its own when it started
    asked_keep_alive: float | None = None  # by a client, in place of the policy's
    awake: Placement = ()
    rung: Rung | None = None
    woken: bool = False
    asleep_by: float = inf

    @property
    def keep_alive(self) -> float:
        """How long it stays when idle, in seconds."""
        return self.version.policy.keep_alive if self.asked_keep_alive is None else self.asked_keep_alive

    @property
    def bytes(self) -> int:
        return sum(charge.bytes for charge in self.placement)

    def free_slots(self) -> int:
        if self.state is not InstanceState.READY or self.suspect:
            return 0
        return self.version.capacity - len(self.leases)


class Queue:
    """Waiting requests of one version: first come first served within a class, the higher class first, except
    that a lower class gets every FLOOR-th turn."""

    __slots__ = ("_lanes", "_turn", "count", "counts")

    def __init__(self) -> None:
        self._lanes: tuple[deque[Waiting], ...] = tuple(deque() for _ in range(CLASSES))
        self.counts = [0] * CLASSES  # by class
        self.count = 0
        self._turn = 0

    def copy(self, copies: Mapping[str, Waiting]) -> Queue:
        """The same queue of the `copies` of its requests, by name."""
        copied = Queue()
        copied._lanes = tuple(
            deque(copies[waiting.request] for waiting in lane if not waiting.gone) for lane in self._lanes
        )
        copied.counts, copied.count, copied._turn = self.counts.copy(), self.count, self._turn
        return copied

    def put(self, waiting: Waiting) -> None:
        """Append; a retry that is older than what waits goes before it."""
        lane = self._lanes[waiting.priority]
        if lane and waiting.since < lane[-1].since:
            position = next(i for i, other in enumerate(lane) if other.since > waiting.since)
            lane.insert(position, waiting)
        else:
            lane.append(waiting)
        self.counts[waiting.priority] += 1
        self.count += 1

    def forget(self, waiting: Waiting) -> None:
        """It left the queue: it is skipped from now on, and dropped when it surfaces."""
        waiting.gone = True
        self.counts[waiting.priority] -= 1
        self.count -= 1
        lane = self._lanes[waiting.priority]
        while lane and lane[0].gone:
            lane.popleft()
        if len(lane) > 32 + 4 * self.counts[waiting.priority]:
            kept = [other for other in lane if not other.gone]
            lane.clear()
            lane.extend(kept)

    def head(self) -> Waiting | None:
        """The oldest request of the highest class."""
        for lane in reversed(self._lanes):
            if lane:
                return lane[0]
        return None

    def next(self) -> Waiting | None:
        """Who is served next: the head, or at every FLOOR-th turn the oldest of the lowest class."""
        head = self.head()
        if head is None:
            return None
        low = next(lane[0] for lane in self._lanes if lane)
        if low.priority == head.priority:
            return head
        return low if self._turn >= FLOOR - 1 else head

    def served(self, waiting: Waiting) -> None:
        """`waiting` got its slot: count the turns that lower classes were passed over."""
        lower_waits = any(self.counts[: waiting.priority])
        self._turn = self._turn + 1 if lower_waits else 0
        self.forget(waiting)

    def __iter__(self) -> Iterator[Waiting]:
        for lane in reversed(self._lanes):
            for waiting in lane:
                if not waiting.gone:
                    yield waiting


LineKey = tuple[int, float, int]  # (-class, since, order of arrival): smaller goes first


class Line:
    """The versions that want an instance, in order of class and of age of their oldest request."""

    __slots__ = ("_keys", "_order")

    def __init__(self) -> None:
        self._order: list[tuple[LineKey, str]] = []
        self._keys: dict[str, LineKey] = {}

    def __len__(self) -> int:
        return len(self._order)

    def copy(self) -> Line:
        copied = Line()
        copied._order, copied._keys = self._order.copy(), self._keys.copy()
        return copied

    def __contains__(self, version: str) -> bool:
        return version in self._keys

    def key(self, version: str) -> LineKey:
        return self._keys[version]

    def put(self, version: str, key: LineKey) -> None:
        """Have `version` in line at this place, and only there."""
        self.drop(version)
        self._keys[version] = key
        insort(self._order, (key, version))

    def drop(self, version: str) -> None:
        key = self._keys.pop(version, None)
        if key is not None:
            del self._order[bisect_left(self._order, (key, version))]

    def __iter__(self) -> Iterator[tuple[LineKey, str]]:
        return iter(self._order)

    def first_below(self, priority: int) -> str | None:
        """The first version in line whose class is lower than `priority`."""
        position = bisect_left(self._order, 1 - priority, key=lambda entry: entry[0][0])
        return self._order[position][1] if position < len(self._order) else None


@dataclass(slots=True, eq=False)
class Version:
    """A version and all that scheduling knows of it. `need` is None until its files were read."""

    spec: Spec
    policy: Policy
    key: str
    files: FilesState = FilesState.ABSENT
    need: Need | None = None
    never: NoFit | None = None
    capacity: int = 1  # requests at a time per instance: slots + overcommit
    queue: Queue = field(default_factory=Queue)
    instances: dict[str, Instance] = field(default_factory=dict)
    ready: list[Instance] = field(default_factory=list)
    policy_at: float = -inf  # what came before may exceed its bounds
    removed: bool = False
    unloaded: bool = False  # by order, and not started since: it does not come home by itself
    asked_since: float | None = None  # a LoadAsked waits since then
    asked_order: int = 0
    ask_evicts: bool = True
    ask_after: float = -inf  # minimum replicas are not asked for before
    blocked_since: float | None = None  # first found without room while it could have been made
    blocked_by: str = ""
    passed: int = 0  # starts of higher classes while it waited in line
    failures: int = 0  # since the last answer: starts, and instances that crashed or hung
    failed_starts: int = 0  # since the last instance that became ready
    foreign_starts: int = 0  # likewise, of starts that failed from outside: killed, not launched
    backoff_until: float = -inf
    sleep_after: float = -inf  # its instances stop before that, rather than sleep
    last_error: tuple[str, str] = ("", "")
    oom_retried: bool = False
    heat: float = 0.0
    heat_at: float = 0.0
    last_used: float = -inf
    load_seconds: float | None = None
    alone: float | None = None  # seconds that a load takes with none beside it
    service_seconds: float = 1.0  # usual; an assumption until the first answer
    timed: int = 0  # answers that it was learned from, SERVICES at most
    grants: deque[float] = field(default_factory=deque)  # times of the last ones, as many as its limit needs
    paused_until: float = -inf  # its server said so
    given: int = 0  # requests that its instances were granted
    closed_until: float | None = None  # nobody is granted a slot before: its limit, or its server, said so
    contribution: list[Ahead] = field(default_factory=lambda: [NOTHING] * CLASSES)

    def live(self) -> list[Instance]:
        """Instances that serve or will: starting, warming, ready, waking."""
        return [instance for instance in self.instances.values() if instance.state in LIVE]

    def error_now(self, now: float) -> tuple[str, str] | None:
        """Why it cannot be had (code, message): it backs off after a failure that was told."""
        backs_off = now < self.backoff_until and not self.live()
        return self.last_error if backs_off and self.last_error[0] else None

    def usual_load(self, rung: Rung | None = None) -> float:
        """Expected seconds of a wake from this rung, where they are known; else of a load: learned, or one
        second and one more per GB."""
        if rung is not None and rung.seconds is not None:
            return rung.seconds
        if self.load_seconds is not None:
            return self.load_seconds
        return 1.0 + (self.need.bytes / 1e9 if self.need else 0.0)

    def heat_now(self, now: float) -> float:
        """Requests lately, halved every HEAT_HALF_LIFE seconds."""
        return self.heat * exp2((self.heat_at - now) / HEAT_HALF_LIFE)

    def rate(self, now: float) -> float:
        """Requests per second, lately."""
        return self.heat_now(now) * log(2.0) / HEAT_HALF_LIFE

    def learn_service(self, seconds: float) -> None:
        """An answer took so long."""
        self.timed = min(self.timed + 1, SERVICES)
        self.service_seconds += (seconds - self.service_seconds) / self.timed

    def touch(self, now: float) -> None:
        self.heat = self.heat_now(now) + 1.0
        self.heat_at = self.last_used = now

    def inherit(self, other: Version) -> None:
        """It takes the place of another version: who asked for that one will ask for this one."""
        self.heat, self.heat_at, self.last_used = other.heat, other.heat_at, other.last_used

    def turns(self, ahead: int) -> int:
        """Turns of service that `ahead` requests before one more take, at worst: ⌈ahead / slots⌉."""
        return -(-ahead // self.capacity)

    def class_in_use(self) -> Priority:
        """The class that its residents serve: the policy's, or that of who waits, whichever is higher."""
        head = self.queue.head()
        return max(self.policy.priority, head.priority) if head else self.policy.priority


def loss(instance: Instance, now: float) -> float:
    """What losing it would cost: seconds until it is back x demand, for each GB that it frees."""
    version = instance.version
    demand = version.heat_now(now) + version.queue.count
    return time_back(instance) * demand / (max(1, instance.bytes) / 1e9)


def time_back(instance: Instance) -> float:
    """Expected seconds that its leaving adds until it is ready again: a load, or a wake where it can sleep;
    of one that sleeps, what a load takes longer."""
    version, load = instance.version, instance.version.usual_load()
    if instance.rung is not None and instance.state is InstanceState.ASLEEP:
        return max(0.0, load - (instance.rung.seconds or 0.0))
    rungs = version.need.rungs if version.need is not None and version.policy.sleep else ()
    return min([load, *(rung.seconds for rung in rungs if rung.seconds is not None)])


Rank = Callable[[Instance, float], float]  # victims go in its order, the smallest first, busy ones last


@dataclass(slots=True, eq=False)
class State:
    """Everything. `dirty`: versions to look at; `replan`: a capacity pass is due. Settle empties both."""

    queue_bound: int = 1024
    rank: Rank = loss
    holds: bool = True  # whether a swap may wait for a cheaper victim
    paced: bool = True  # whether a swap may wait for loads that would slow its own
    ledger: Ledger = field(default_factory=Ledger)
    versions: dict[str, Version] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    line: Line = field(default_factory=Line)
    timers: Timers = field(default_factory=Timers)
    dirty: dict[str, None] = field(default_factory=dict)
    watched: set[str] = field(default_factory=set)  # versions whose queue decides when somebody may leave
    replan: bool = False
    shutting_down: bool = False
    sequence: int = 0  # of instances
    arrivals: int = 0
    quiet_since: float = 0.0  # the line is empty since then
    slowing: float = 0.0  # what a load beside another adds to its time, in shares of that; 0: nothing
    room_seconds: float = 0.0  # how long a head usually waits for room to be made
