"""Victims: whose memory a version in line may own, from when, and what losing it would cost.

Part of capacity, which calls it during a pass; reads the state, writes only its own view of the room.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import NamedTuple

from modelyard.core import sleep
from modelyard.core.lifecycle import InstanceState
from modelyard.core.placement import Prefer, candidates, place
from modelyard.core.slowing import MATTERS
from modelyard.core.state import COMING, LEAVING, Instance, LineKey, State, Version, time_back
from modelyard.core.types import Need, NoFit, Placement, Priority, Rung, Spec

Cost = tuple[int, float]
Rungs = Mapping[str, Rung]  # of victims that sleep, by instance
IDLE = -1  # before every class
NONE: Rungs = MappingProxyType({})
RETURNS = 0.05  # requests expected while it is loaded again, from which on an idle victim is spared


@dataclass(frozen=True, slots=True)
class Wish:
    """A version that wants one more instance, with its place in line. `growing`: it has some already, so it
    may only have what is free or idle. `wakes`: it is one of its own that sleeps, and `need` what that takes
    beside what it holds; else `need` is the version's."""

    version: Version
    key: LineKey
    growing: bool
    now: float
    need: Need
    wakes: Instance | None = None

    @property
    def priority(self) -> Priority:
        """The class that its place stands for: a version that was passed over too often is promoted."""
        return Priority(-self.key[0])

    @property
    def blocked_since(self) -> float:
        return self.now if self.version.blocked_since is None else self.version.blocked_since

    @property
    def seconds(self) -> float:
        """How long it usually takes, once there is room."""
        return self.version.usual_load(self.wakes.rung if self.wakes is not None else None)


class Room:
    """Bytes per device, as the pass goes on. free: now. later: when all that leaves (`gone`) has left and
    those before had theirs. reach: when all that may be asked to leave had left, too."""

    def __init__(self, state: State, now: float) -> None:
        self.ledger, self.devices = state.ledger, state.ledger.devices
        self.free = {device: account.free for device, account in self.devices.items()}
        self.gone: set[str] = set()  # leaving, or owned by somebody in line
        self.roused: set[str] = set()  # sleep, and will be woken for somebody in line
        self.movable: list[Instance] = []
        self.starting: set[str] = set()  # devices on which something starts
        self.learning: set[str] = set()  # of these, where a footprint is learned
        self.draining: set[str] = set()  # devices on which somebody who leaves still serves
        self.loading: list[tuple[Version, Placement]] = []  # and those who load, or will before the next
        leaving: list[Instance] = []
        for instance in state.instances.values():
            if instance.state in LEAVING:
                leaving.append(instance)
                if instance.leases:
                    self.draining.update(charge.device for charge in instance.placement)
                continue
            if instance.state in COMING:
                self._starts(instance.version, instance.placement)
            if not is_fixed(instance):
                self.movable.append(instance)
        self.later = dict(self.free)
        self.later = self.without(leaving)
        self.gone.update(instance.id for instance in leaving)
        self.reach = self.without(self.movable)
        self.all_gone = self.gone.union(instance.id for instance in self.movable)
        self.line, self.holds = len(state.line), state.holds
        self.paced = state.paced and state.slowing >= MATTERS
        self._state, self._now = state, now
        self._ranked: list[tuple[Cost, Instance]] | None = None

    def now(self, device: str) -> int:
        return min(self.free[device], self.later[device])

    def without(self, victims: Collection[Instance]) -> dict[str, int]:
        """Room later if `victims` left, too; what those that leave already keep asleep is not back."""
        room = dict(self.later)
        for victim in victims:
            for charge in victim.placement:
                room[charge.device] += self.devices[charge.device].own(victim.id)
            if victim.rung is not None and victim.state in LEAVING:
                keep(room, victim, victim.rung)
        gone = self.gone.union(victim.id for victim in victims)
        for device, account in self.devices.items():
            room[device] += account.files_back(gone) - account.files_back(self.gone)
        return room

    def own(self, placement: Placement, victims: Collection[Instance] = (), rungs: Rungs = NONE) -> None:
        """Give `placement` to whoever is considered now, out of what is there later. Victims that have one
        sleep on their rung: what that takes beside what they hold is taken before they give anything back."""
        self.later = self.without(victims)
        for victim in victims:
            if victim.id in rungs:
                keep(self.later, victim, rungs[victim.id])
                for charge in sleep.asleep(victim, rungs[victim.id]):
                    own = self.devices[charge.device].own(victim.id)
                    self.free[charge.device] -= max(0, charge.bytes - own)
        self.gone.update(victim.id for victim in victims)
        for charge in placement:
            self.later[charge.device] -= self.devices[charge.device].cost(charge, self.gone)

    def take(self, version: Version, placement: Placement) -> None:
        """Give `placement` to `version` now."""
        self._starts(version, placement)
        for charge in placement:
            cost = self.devices[charge.device].cost(charge, self.gone)
            self.free[charge.device] -= cost
            self.later[charge.device] -= cost

    def loads(self, version: Version, placement: Placement) -> None:
        """`version` loads there, or will as soon as memory is back that nobody uses any more."""
        self.loading.append((version, placement))

    def first_to_load(self, wish: Wish, placement: Placement) -> list[Version]:
        """Those who came before the wish and are loading on its devices, or will. To wait for them is a part
        of every stated bound."""
        devices = {charge.device for charge in placement}
        return [
            version
            for version, where in self.loading
            if any(charge.device in devices for charge in where) and came_before(version, wish)
        ]

    def closed(self, need: Need) -> set[str]:
        """Where `need` may not start now: a footprint is learned while nothing else starts on its devices."""
        return self.learning if need.known else self.starting

    def place_now(self, need: Need, spec: Spec) -> Placement | NoFit:
        """Where an instance may start at once."""
        closed = self.closed(need)
        devices = {device: account for device, account in self.devices.items() if device not in closed}
        return place(need, spec, devices, self.now, self.gone, self._preferred(spec))

    def _preferred(self, spec: Spec) -> Prefer:
        """Replicas keep apart: a device that is lost takes one of them along."""
        version = self._state.versions.get(spec.version)
        if version is None:
            return Prefer()
        others = (each for each in version.instances.values() if each.id not in self.gone)
        apart = frozenset(charge.device for each in others for charge in each.placement)
        return Prefer(version.policy.placement, apart)

    def _starts(self, version: Version, placement: Placement) -> None:
        devices = {charge.device for charge in placement}
        self.loads(version, placement)
        self.starting |= devices
        if version.need is not None and not version.need.known:
            self.learning |= devices

    def ranked(self) -> list[tuple[Cost, Instance]]:
        """Whoever may be put out at all, cheapest first."""
        if self._ranked is None:
            # Names are unique: instances themselves are never compared.
            entries = [
                (_cost(self._state, instance, self._now), instance.id, instance) for instance in self.movable
            ]
            self._ranked = [(cost, instance) for cost, _, instance in sorted(entries)]
        return self._ranked


def keep(room: dict[str, int], victim: Instance, rung: Rung) -> None:
    """It left `room`, but for what it holds asleep."""
    for charge in sleep.asleep(victim, rung):
        room[charge.device] -= charge.bytes


class Choice(NamedTuple):
    """Victims, and the placement that they make room for. `until`: they are waited for until then (absolute
    seconds), when others would do at once; -inf when nothing else was in question."""

    victims: list[Instance]
    placement: Placement
    until: float = -inf


def choose(room: Room, wish: Wish) -> Choice | None:
    """The victims whose leaving makes room: those that cost least, idle ones before busy ones; while the swap
    is held, those that cost least however busy they are."""
    entries = [
        entry
        for entry in room.ranked()
        if entry[1].id not in room.gone | room.roused and _may_be_victim(entry[1], wish)
    ]
    chosen = _cheapest(room, wish, entries)
    if chosen is None or not _is_held(room, wish, chosen.victims):
        return chosen
    by_loss = sorted((cost[1], victim.id, victim) for cost, victim in entries)
    cheaper = _cheapest(room, wish, [((IDLE, loss), victim) for loss, _, victim in by_loss])
    if cheaper is None or all(may_leave_at(victim, wish) <= wish.now for victim in cheaper.victims):
        return chosen
    return cheaper._replace(until=held_until(wish))


def ways_in(room: Room, wish: Wish) -> Iterator[Wish]:
    """How a wish may be met, the better way first: by an instance that sleeps, by a new one."""
    head = wish.version.queue.head()
    for instance in wish.version.instances.values():
        failed = head is not None and instance.id in head.exclude
        if instance.state is InstanceState.ASLEEP and instance.id not in room.gone and not failed:
            yield replace(wish, wakes=instance, need=sleep.to_wake(room.ledger, instance))
    yield wish


def ways_out(room: Room, wish: Wish, victims: list[Instance], placement: Placement) -> Rungs:
    """Which of the victims sleep, and on which rung: the soonest back that leaves room enough for the wish,
    and that host memory holds now. The others stop."""
    chosen: dict[str, Rung] = {}
    gone = room.gone.union(victim.id for victim in victims)
    left, now = room.without(victims), {device: room.now(device) for device in room.devices}
    for charge in placement:
        left[charge.device] -= room.devices[charge.device].cost(charge, gone)
    for victim in victims:
        for rung in sleep.rungs(room.ledger, victim, wish.now):
            if sleep.lasts(victim, rung) > victim.version.policy.release_cap:
                continue  # whoever waits for its memory has it sooner when it stops
            freed, takes = sleep.frees(room.ledger, victim, rung), []
            for charge in sleep.asleep(victim, rung):
                own = room.devices[charge.device].own(victim.id)
                takes.append(
                    (
                        charge.device,
                        charge.bytes if charge.device in freed else max(charge.bytes, own),
                        max(0, charge.bytes - own),
                    )
                )
            if all(
                size <= max(0, left[device]) and more <= max(0, now[device]) for device, size, more in takes
            ):
                chosen[victim.id] = rung
                for device, size, more in takes:
                    left[device] -= size
                    now[device] -= more
                break
    return chosen


def held_until(wish: Wish) -> float:
    """How long a swap may be held at the longest, in absolute seconds: its load, too, is part of the
    patience."""
    return wish.key[1] + wish.version.policy.patience - wish.seconds


def _is_held(room: Room, wish: Wish, victims: list[Instance]) -> bool:
    """Whether to wait for cheaper victims: these are idle, but one is likely to be asked for again before its
    reload would be done. When many are in line memory is short, and nobody is spared."""
    return (
        room.holds
        and wish.now < held_until(wish)
        and room.line <= len(room.movable)
        and any(_returns(victim, wish.now) for victim in victims)
    )


def _returns(instance: Instance, now: float) -> bool:
    version = instance.version
    idle = not instance.leases and not version.queue.count
    return idle and version.rate(now) * time_back(instance) >= RETURNS


def _cheapest(room: Room, wish: Wish, ranked: list[tuple[Cost, Instance]]) -> Choice | None:
    """The first of `ranked` whose leaving makes room.

    A need of one accelerator share looks at each device by itself, so that victims on two devices are never
    added up for an instance that lives on one; other needs look at all devices together.
    """
    need, spec = wish.need, wish.version.spec
    spread = [share for share in need.shares if share.on == "accelerator"]
    groups: list[set[str]] = [set(room.devices)]
    if len(spread) == 1:
        named = {share.on for share in need.shares}
        groups = [{device, *named} for device in candidates(spread[0], spec, room.devices)]
    best: tuple[list[Cost], list[Instance], Placement] | None = None
    for devices in groups:
        found = _choose_on(room, need, spec, devices, ranked)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return None if best is None else Choice(best[1], best[2])


def _choose_on(
    room: Room, need: Need, spec: Spec, devices: set[str], ranked: list[tuple[Cost, Instance]]
) -> tuple[list[Cost], list[Instance], Placement] | None:
    """Add victims, cheapest first, until it fits; then spare those that were not needed, dearest first."""

    def fit(chosen: list[tuple[Cost, Instance]]) -> Placement | NoFit:
        victims = [victim for _, victim in chosen]
        left, gone = room.without(victims), room.gone.union(victim.id for victim in victims)
        return place(need, spec, room.devices, left.__getitem__, gone)

    chosen: list[tuple[Cost, Instance]] = []
    for entry in ranked:
        if not any(charge.device in devices for charge in entry[1].placement):
            continue
        chosen.append(entry)
        placement = fit(chosen)
        if not isinstance(placement, NoFit):
            break
    else:
        return None
    for entry in reversed(chosen[:-1]):
        rest = [other for other in chosen if other is not entry]
        smaller = fit(rest)
        if not isinstance(smaller, NoFit):
            chosen, placement = rest, smaller
    return sorted((cost for cost, _ in chosen), reverse=True), [victim for _, victim in chosen], placement


def _may_be_victim(instance: Instance, wish: Wish) -> bool:
    """Whether the wish may own this instance's memory at all (when, is said by `may_leave_at`)."""
    other = instance.version
    if instance.state is InstanceState.ASLEEP:
        return instance is not wish.wakes
    if other is wish.version:
        return False
    if wish.growing:
        resident = instance.ready_at + other.policy.min_residency
        return not instance.leases and not other.queue.count and wish.now >= resident
    return not instance.leases or other.class_in_use() <= wish.priority


def is_fixed(instance: Instance) -> bool:
    """Pinned, or one of the version's minimum replicas: never a victim, but when it sleeps."""
    policy = instance.version.policy
    if instance.state is InstanceState.ASLEEP:
        return False
    return policy.pin or len(instance.version.live()) <= policy.min_replicas


def may_leave_at(instance: Instance, wish: Wish) -> float:
    """The moment from which this victim may leave for the wish, in absolute seconds; infinite while that
    depends on something else than time: a load that others wait for, requests there that came first and are
    served when a slot is free."""
    other = instance.version
    if instance.state is InstanceState.ASLEEP:
        return -inf  # whoever waits for it came later, or it would be woken
    if instance.state is not InstanceState.READY:
        return inf if other.queue.count or other.asked_since is not None else -inf
    head = other.queue.head()
    served = head is not None and other.closed_until is None and instance.id not in head.exclude
    if served and came_before(other, wish):
        return inf
    resident = instance.ready_at + other.policy.min_residency
    if not instance.leases and head is None:
        return resident
    if other.class_in_use() < wish.priority:
        return resident
    patience = wish.version.policy.patience
    return max(resident, wish.blocked_since + patience, instance.ready_at + patience)


def came_before(version: Version, wish: Wish) -> bool:
    """Whether somebody waits for it since before the wish's head did, or in a higher class."""
    head = version.queue.head()
    return head is not None and (-head.priority, head.since, head.order) < wish.key


def _cost(state: State, instance: Instance, now: float) -> Cost:
    """To be compared: first the class that it is busy for, then its rank."""
    version = instance.version
    busy = instance.leases or version.queue.count or version.asked_since is not None
    return int(version.class_in_use()) if busy else IDLE, state.rank(instance, now)
