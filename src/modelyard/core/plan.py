"""A dry run with its conditions: what a scheduler would do about some events, and what that rests on.

`plan` tries the events on a copy and lets a virtual clock run until nothing follows from them; the scheduler
itself decides, so a plan knows every rule that there is. `changed` says which precondition of a plan holds no
more. Both only read the scheduler that they are given.

Cost: a copy (see `copying`), and at most `dryrun.EVENTS` events on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelyard.core import events as ev
from modelyard.core.dryrun import Does, DryRun, PlannedStep, flat, only_asks
from modelyard.core.outlook import USUAL_STOP
from modelyard.core.readings import Fact, Precondition, Query, may_use, order, read, wanted
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import State
from modelyard.core.types import Priority
from modelyard.core.units import in_units

COURSE = "what follows"
STARTED = frozenset({Does.FETCH, Does.START, Does.REFUSE, Does.LOADED})


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """`before`: reserved and free bytes now; `after`: when the plan has been carried out."""

    device: str
    name: str
    budget: int
    reserved_before: int
    reserved_after: int
    free_before: int
    free_after: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`events` are what to post to carry it out; the first `at_once` steps are done in that moment. `stop` is
    the seconds that a stop was taken to last. `open` says, for people, what the dry run could not know."""

    events: tuple[ev.Event, ...]
    stop: float
    steps: tuple[PlannedStep, ...]
    preconditions: tuple[Precondition, ...]
    memory: tuple[DeviceBytes, ...]
    at_once: int = 0
    open: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Until its last step, as expected."""
        return self.steps[-1].at if self.steps else 0.0


@dataclass(frozen=True, slots=True)
class Broken:
    """A precondition that holds no more."""

    name: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.name}: was {self.was}, is {self.now}"


def plan(scheduler: Scheduler, events: Sequence[ev.Event], now: float, *, stop: float = USUAL_STOP) -> Plan:
    """What would follow if these events were posted at `now`, in this order. `stop`: the usual seconds from
    Stop to Released. Nothing is changed."""
    run = DryRun(scheduler, events, now, stop)
    queries = dict.fromkeys(_queries(scheduler.state, events, run, now))
    return Plan(
        tuple(events),
        stop,
        tuple(run.steps),
        tuple(read(scheduler, query, now) for query in queries),
        tuple(_memory(scheduler, run.after)),
        run.at_once,
        tuple(run.open),
    )


def changed(plan_: Plan, scheduler: Scheduler, now: float, *, later: bool = True) -> list[Broken]:
    """What the plan rests on and is different now; empty: posting its events at `now` does what it says.

    The last of its preconditions is the plan itself: made anew, it has the same steps. Without `later` only
    those are made anew that are decided at once, which costs little more than a copy.
    """
    pairs = ((each, read(scheduler, each.query, now)) for each in plan_.preconditions)
    changes = [Broken(was.name, was.value, found.value) for was, found in pairs if was.value != found.value]
    if not changes:
        anew = DryRun(scheduler, plan_.events, now, plan_.stop, later=later).steps
        changes = list(_other_course(plan_.steps if later else plan_.steps[: plan_.at_once], anew))
    return changes


def _other_course(planned: Sequence[PlannedStep], anew: Sequence[PlannedStep]) -> Iterator[Broken]:
    for number in range(max(len(planned), len(anew))):
        was = planned[number] if number < len(planned) else None
        found = anew[number] if number < len(anew) else None
        if was is None or found is None or was.key != found.key:
            yield Broken(f"{COURSE}, step {number + 1}", _in_words(was), _in_words(found))
            return


def _in_words(step: PlannedStep | None) -> str:
    if step is None:
        return "nothing"
    where = ", ".join(f"{device} ({in_units(size)})" for device, size in step.bytes)
    parts = (
        f"{step.does} {step.instance or step.version}",
        f"on {where}" if where else "",
        f"for {step.winner}" if step.winner else "",
        step.code,
    )
    return " ".join(part for part in parts if part)


# -- what a plan rests on -------------------------------------------------------------------------------


def _queries(state: State, events: Sequence[ev.Event], run: DryRun, now: float) -> Iterator[Query]:
    """What was read for these steps, in the order that people want to know it."""
    yield Query(Fact.SERVER)
    added = {event.spec.version: event for event in flat(events) if isinstance(event, ev.Added)}
    arrivals = [event for event in flat(events) if isinstance(event, ev.Arrived)]
    policies = {event.version: event.policy for event in flat(events) if isinstance(event, ev.PolicyChanged)}
    classes = {event.version: event.priority for event in arrivals}
    at_once = _served_at_once(run)
    for event in flat(events):
        if isinstance(event, ev.DeviceAdded):
            yield Query(Fact.DEVICE, event.device.id)
            yield Query(Fact.LINED_UP)
    for event in arrivals:
        yield from _of_arrival(event, at_once=at_once)
    served = {event.version for event in arrivals} if at_once else set()
    still = policies.keys() - {step.version for step in run.steps} - {step.winner for step in run.steps}
    for key in run.about:
        if key in still:  # nothing follows: that nothing does is the plan itself
            yield Query(Fact.VERSION, key)
        elif key not in served:
            priority = classes.get(key)
            yield from _of_version(state, key, added.get(key), priority, starts=_may_start(run, key))
    for key, policy in policies.items():
        if policy.max_replicas > 1:
            yield Query(Fact.PATIENCE, key, max_wait=policy.patience)
    if not only_asks(events):
        yield from (Query(Fact.CONTENDERS, key) for key in run.named if key not in still)
    yield from _of_victims(state, run, added, now)
    for key in run.waits:
        yield from _of_all_around(state, key, added.get(key), now)


def _served_at_once(run: DryRun) -> bool:
    return 0 < len(run.steps) == run.at_once and all(step.does is Does.GRANT for step in run.steps)


def _of_arrival(event: ev.Arrived, *, at_once: bool) -> Iterator[Query]:
    yield Query(Fact.VERSION, event.version)
    yield Query(Fact.SLOT, event.version)
    if at_once:
        return
    yield Query(Fact.ADMISSION, event.version, priority=event.priority, max_wait=event.max_wait)


def _may_start(run: DryRun, key: str) -> bool:
    """Whether it was decided to start the version, or not to. What only leaves, or is there, reads less."""
    does = {step.does for step in run.steps if step.version == key and (not step.instance or step.code)}
    return key in run.waits or key not in run.named or not does.isdisjoint(STARTED)


def _of_version(
    state: State, key: str, added: ev.Added | None, priority: Priority | None, *, starts: bool
) -> Iterator[Query]:
    yield Query(Fact.VERSION, key)
    version = state.versions.get(key)
    if version is None:
        if added is not None:
            yield Query(Fact.ROOM, key, added=added)
            yield Query(Fact.ROOM_MADE, key, added=added)
            yield Query(Fact.LINE, key, added=added)
        return
    if starts:
        for fact in (Fact.POLICY, Fact.FILES, Fact.FOOTPRINT, Fact.TRIES, Fact.ROOM, Fact.ROOM_MADE):
            yield Query(fact, key)
        yield Query(Fact.LINE, key, priority=priority)
    for fact in (Fact.INSTANCES, Fact.ASKED, Fact.WAITING):
        yield Query(fact, key)
    for name in version.instances:
        yield Query(Fact.INSTANCE, name)


def _of_victims(state: State, run: DryRun, added: Mapping[str, ev.Added], now: float) -> Iterator[Query]:
    """Those who leave: what they do, who waits for them, and that nobody else comes before them."""
    last: dict[str, int] = {}
    victims: dict[str, dict[str, None]] = {}
    for step in run.steps:
        if step.instance and step.does in (Does.LEAVE, Does.STOP, Does.GONE):
            yield Query(Fact.INSTANCE, step.instance)
            winner = wanted(state, step.winner, added.get(step.winner))
            if winner is not None:
                yield Query(Fact.WAITING, step.version)
                yield Query(Fact.ASKED, step.version)
                names = order(state, winner, now)
                place = names.index(step.instance) + 1 if step.instance in names else 0
                victims.setdefault(step.winner, {})[step.instance] = None
                last[step.winner] = max(place, last.get(step.winner, 0))
    for key, place in last.items():
        yield Query(Fact.ORDER, key, most=place, added=added.get(key))
        yield Query(Fact.ROOM_MADE, key, without=tuple(victims[key]), added=added.get(key))


def _of_all_around(state: State, key: str, added: ev.Added | None, now: float) -> Iterator[Query]:
    """A version that has to wait is helped by whatever happens first on the devices that it may use."""
    version = wanted(state, key, added)
    if version is None:
        return
    devices = may_use(state, version)
    for instance in state.instances.values():
        if any(charge.device in devices for charge in instance.placement):
            yield Query(Fact.INSTANCE, instance.id)
            yield Query(Fact.WAITING, instance.version.key)
    yield Query(Fact.ORDER, key, most=len(order(state, version, now)), added=added)


def _memory(before: Scheduler, after: Scheduler) -> Iterator[DeviceBytes]:
    for device, account in after.state.ledger.devices.items():
        earlier = before.state.ledger.devices.get(device)
        yield DeviceBytes(
            device,
            account.device.name,
            account.device.budget,
            earlier.reserved if earlier is not None else 0,
            account.reserved,
            earlier.free if earlier is not None else 0,
            account.free,
        )
