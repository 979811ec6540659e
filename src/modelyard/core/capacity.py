"""Capacity, the first level: which versions are resident, who leaves for whom, and when a swap is worth it.

`plan(state, now)` reads the state and returns moves; it changes nothing. The scheduler applies them all.

The rule, for each version in line, oldest first within its class:

1. An instance of its own that sleeps fits in free memory beside what it holds: wake it. Or a new one fits
   anywhere: start it.
2. Its files are not here, it is backing off, a device that it may use is learning a footprint (or, when its
   own is unknown, starts something), or its memory is in foreign or pinned hands: pass it over. It delays
   nobody, but one whose own footprint is unknown: after its patience nobody behind it starts there.
3. Memory that is on its way back will do: it owns that memory, and waits.
4. Else it owns the memory of the victims that cost least, idle ones first. An idle victim goes once it had
   its minimum residency. A busy one stays open to everyone until the head has waited its patience, and
   until whoever waits there since before the head was served, unless that one is closed (`rates`); then it
   drains.
5. But an idle victim that is likely to be asked for again before its reload would be done is spared for a
   while, when busy ones cost less: the swap is held until one of those is free, or until the rest of the
   head's patience is what its own load takes. With more in line than in memory, no swap is held.
6. Where loads slow each other down (`slowing`), nobody leaves for one that would be third to load on its
   devices: two who came before it load first. Whoever wakes loads nothing.
7. A victim sleeps instead of stopping where that leaves room enough, and host memory holds what it takes
   there: on the rung that is back soonest. Those that sleep are victims, too: they stop.

Whoever comes behind may start in what is left, as long as those before it can still have what they own.

The cost of a victim is what its loss would cost: usual load time x demand lately (`Version.heat`, and who
waits for it), for each byte that it frees; after whether it is busy and the class that it serves.
docs/design/victims.md says what each term is worth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import inf

from modelyard.core.admission import never_message
from modelyard.core.fencing import closed_to
from modelyard.core.lifecycle import FilesState, InstanceState
from modelyard.core.placement import candidates, place
from modelyard.core.slowing import AT_ONCE
from modelyard.core.state import FLOOR, Instance, LineKey, State, Version
from modelyard.core.types import NoFit, Placement, Priority, Rung, WhenFull
from modelyard.core.victims import IDLE, Choice, Cost, Room, Wish, choose, may_leave_at, ways_in, ways_out

LOOKAHEAD = 16  # versions in line that may own memory at a time; the others wait for their turn
SPARED = 3  # of those who stay, how many a swap names
HOME_AFTER = 5.0  # seconds without a line before home models come back


@dataclass(frozen=True, slots=True)
class Begin:
    version: Version
    placement: Placement
    reason: str


@dataclass(frozen=True, slots=True)
class Rouse:
    """Wake an instance that sleeps."""

    instance: Instance
    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """`cost` is what losing it costs, `spared` names who would have cost more; both are for people. With a
    `rung` it sleeps."""

    instance: Instance
    for_version: Version
    reason: str
    cost: Cost = (IDLE, 0.0)
    spared: str = ""
    rung: Rung | None = None


@dataclass(frozen=True, slots=True)
class Deny:
    """Refuse everyone who waits for this version."""

    version: Version
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Get:
    """Fetch the files of this version."""

    version: Version


@dataclass(frozen=True, slots=True)
class Blocked:
    """The version waits; `by` says what for. It owns memory from now on, unless there is none for it."""

    version: Version
    by: str
    owns: bool = True


@dataclass(frozen=True, slots=True)
class LookAgain:
    at: float


@dataclass(frozen=True, slots=True)
class Watch:
    """Look again when somebody in the queue of this version was served or left: it decides who may go."""

    version: Version


Move = Begin | Rouse | Leave | Deny | Get | Blocked | LookAgain | Watch


def plan(state: State, now: float) -> list[Move]:
    """The moves to make now, in order. Cost: O(line + LOOKAHEAD x residents)."""
    moves: list[Move] = []
    room = Room(state, now)
    considered = 0
    for key, version in _in_turn(state):
        if considered >= LOOKAHEAD:
            break
        if version.files is not FilesState.CACHED:
            if version.files is FilesState.ABSENT and now >= version.backoff_until:
                moves.append(Get(version))
            continue
        if now < version.backoff_until:
            continue
        serves = bool(version.ready) and len(version.live()) >= version.policy.min_replicas
        growing = serves or _gives_nothing(version)
        assert version.need is not None
        considered += _consider(room, Wish(version, key, growing, now, version.need), moves)
    if not len(state.line):
        _bring_home(state, room, now, moves)
    return moves


def _in_turn(state: State) -> Iterator[tuple[LineKey, Version]]:
    """Who is in line, with the place there; last those that can give nothing now."""
    last = []
    for key, name in state.line:
        version = state.versions[name]
        if _gives_nothing(version):
            last.append((key, version))
        else:
            yield key, version
    yield from last


def _gives_nothing(version: Version) -> bool:
    """It is closed, and nobody asked to load it: it may have what others leave, and what is idle."""
    return version.closed_until is not None and version.asked_since is None


def _consider(room: Room, wish: Wish, moves: list[Move]) -> bool:
    """Plan for one version in line; False when it is passed over through no doing of ours."""
    version, devices, need = wish.version, room.devices, wish.need
    spec, policy = version.spec, version.policy
    if version.never is not None:
        moves.append(Deny(version, "never_fits", never_message(version)))
        return False
    placement = _fit_now(room, wish, _why_start(version), moves)
    if not isinstance(placement, NoFit):
        return True
    if any(not room.closed(need).isdisjoint(candidates(share, spec, devices)) for share in need.shares):
        if not need.known and wish.now >= wish.key[1] + policy.patience:  # else others start for ever
            room.learning.update(
                device for share in need.shares for device in candidates(share, spec, devices)
            )
        return False
    puts_nobody_out = version.asked_since is not None and not version.ask_evicts and not version.queue.count
    ways = list(ways_in(room, wish))
    later = ((way, place(way.need, spec, devices, room.later.__getitem__, room.gone)) for way in ways)
    fits = [(way, found) for way, found in later if not isinstance(found, NoFit)]
    if puts_nobody_out and not fits:
        moves.append(Deny(version, "no_memory", f"{placement.reason} for {spec.model}"))
        return False
    if policy.when_full is WhenFull.FAIL and not wish.growing:
        moves.append(Deny(version, "no_memory", f"{placement.reason}, and {spec.model} has when_full: fail"))
    reach = (place(way.need, spec, devices, room.reach.__getitem__, room.all_gone) for way in ways)
    if policy.when_full is not WhenFull.EVICT or all(isinstance(found, NoFit) for found in reach):
        if closed := closed_to(devices, version):
            moves.append(Blocked(version, f"room: {'; '.join(closed)}", owns=False))
        return False
    if not fits:
        _make_room(room, wish, moves)
    elif not wish.growing:
        way, placement = fits[0]
        room.own(placement)
        if way.wakes is not None:
            room.roused.add(way.wakes.id)
        elif room.draining.isdisjoint(charge.device for charge in placement):
            room.loads(version, placement)
        moves.append(Blocked(version, "memory that is on its way back"))
    return True


def _fit_now(room: Room, wish: Wish, why: str, moves: list[Move]) -> Placement | NoFit:
    """Wake or start one in free memory, if it fits there."""
    for way in ways_in(room, wish):
        placement = room.place_now(way.need, wish.version.spec)
        if isinstance(placement, NoFit):
            continue
        room.take(wish.version, placement)
        if way.wakes is None:
            moves.append(Begin(wish.version, placement, why))
        else:
            room.roused.add(way.wakes.id)
            moves.append(Rouse(way.wakes, why))
        return placement
    return placement


def _make_room(room: Room, wish: Wish, moves: list[Move]) -> None:
    """Choose the victims that cost least; have them leave now, or say when to look again. One that sleeps is
    woken where room can be made as soon as for a new one."""
    found = [(way, chosen) for way in ways_in(room, wish) if (chosen := choose(room, way)) is not None]
    if not found:
        return
    wish, chosen = min(found, key=lambda each: _has_to_wait(*each))
    victims, placement, until = chosen
    first = room.first_to_load(wish, placement) if room.paced and wish.wakes is None else []
    rungs = ways_out(room, wish, victims, placement)
    room.own(placement, victims, rungs)
    if wish.wakes is not None:
        room.roused.add(wish.wakes.id)
    names = ", ".join(victim.id for victim in victims)
    if len(first) >= AT_ONCE:
        loads = ", ".join(dict.fromkeys(version.spec.model for version in first))
        moves.append(Blocked(wish.version, f"the loads of {loads}, then the memory of {names}"))
        moves.extend(Watch(version) for version in first)
        return
    moves.append(Blocked(wish.version, f"the memory of {names}"))
    at = max(may_leave_at(victim, wish) for victim in victims)
    if at <= wish.now:
        if wish.wakes is None:
            room.loads(wish.version, placement)
        costs = {instance.id: cost for cost, instance in room.ranked()}
        spared = _spared(room, wish, victims)
        moves.extend(
            Leave(
                victim, wish.version, _why_leave(victim, wish), costs[victim.id], spared, rungs.get(victim.id)
            )
            for victim in victims
        )
    elif at < inf:
        moves.append(LookAgain(at))
    else:
        moves.extend(Watch(victim.version) for victim in victims if may_leave_at(victim, wish) == inf)
    if wish.now < until:
        moves.append(LookAgain(until))


def _has_to_wait(wish: Wish, chosen: Choice) -> bool:
    return any(may_leave_at(victim, wish) > wish.now for victim in chosen.victims)


def _bring_home(state: State, room: Room, now: float, moves: list[Move]) -> None:
    """With nobody in line for a while, home models come into free memory; not those unloaded by order."""
    absent = [
        version
        for version in state.versions.values()
        if version.policy.home and not version.removed and not version.unloaded and not version.live()
    ]
    if not absent or state.shutting_down:
        return
    at = state.quiet_since + HOME_AFTER
    if now < at:
        moves.append(LookAgain(at))
        return
    for version in sorted(absent, key=lambda version: -version.heat_now(now)):
        if now < version.backoff_until:
            continue  # its end is a deadline of its own
        if version.files is FilesState.ABSENT:
            moves.append(Get(version))
        if version.files is not FilesState.CACHED:
            continue
        assert version.need is not None
        wish = Wish(version, (0, now, 0), False, now, version.need)
        _fit_now(room, wish, "a home model comes back", moves)


def _why_start(version: Version) -> str:
    count = version.queue.count
    if count:
        return f"{count} request{'s' if count > 1 else ''} waiting"
    return "asked to load"


def _why_leave(victim: Instance, wish: Wish) -> str:
    waited = wish.now - wish.blocked_since
    if victim.leases:
        state = f"{len(victim.leases)} running finish first"
    elif victim.state is InstanceState.READY:
        state = f"idle for {wish.now - victim.idle_since:.1f} s"
    elif victim.state is InstanceState.ASLEEP:
        state = f"asleep for {wish.now - victim.idle_since:.1f} s"
    else:
        state = "not ready yet, and nobody waits for it"
    return f"makes room for {wish.version.spec.model} (which waited {waited:.1f} s for it); {state}"


def _spared(room: Room, wish: Wish, victims: Collection[Instance]) -> str:
    """The next cheapest who stay, with what their loss would cost."""
    others = [
        (cost, instance.id)
        for cost, instance in room.ranked()
        if instance not in victims and instance.version is not wish.version
    ]
    return ", ".join(f"{name} ({standing(cost)}, {cost[1]:.2f})" for cost, name in others[:SPARED])


def standing(cost: Cost) -> str:
    """What comes first in a cost: whether it is busy, and for which class."""
    return "idle" if cost[0] == IDLE else f"busy for {Priority(cost[0]).name.lower()}"


def passed_over_too_often(version: Version) -> bool:
    """The floor: after FLOOR - 1 starts of higher classes the lower one goes first."""
    return version.passed >= FLOOR - 1
