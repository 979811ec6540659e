"""What a plan reads of a scheduler, as named facts that can be read again later.

A fact is what a decision compares (who goes before whom, whether there is room), not the number behind it:
heat cools down, bytes of others come and go, and the plan holds as long as the same follows. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import islice

from modelyard.core.admission import admit, waits
from modelyard.core.capacity import LOOKAHEAD
from modelyard.core.dispatch import NOBODY, pick
from modelyard.core.events import Added
from modelyard.core.lifecycle import InstanceState
from modelyard.core.placement import candidates, place
from modelyard.core.scheduler import Scheduler
from modelyard.core.slowing import MATTERS
from modelyard.core.state import LEAVING, STARTING, State, Version, Waiting
from modelyard.core.types import NoFit, Placement, Policy, Priority
from modelyard.core.units import in_units
from modelyard.core.victims import Room, Wish, ways_in, ways_out

UNREAD = frozenset({"first_byte_timeout", "token_timeout", "preload"})  # of a policy: not the scheduler's


class Fact(StrEnum):
    """What is read, of the subject that is named with it."""

    SERVER = "server"
    VERSION = "version"
    POLICY = "policy"
    FILES = "files"
    FOOTPRINT = "footprint"
    TRIES = "tries"
    INSTANCES = "instances"
    ASKED = "asked"
    WAITING = "waiting"
    PATIENCE = "patience"
    LINE = "line"
    CONTENDERS = "contenders"
    LINED_UP = "lined_up"
    SLOT = "slot"
    ADMISSION = "admission"
    ROOM = "room"
    ROOM_MADE = "room_made"
    ORDER = "order"
    INSTANCE = "instance"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Query:
    """Which fact to read. `subject` is a version, an instance or a device; `most` bounds a list; `priority`
    and `max_wait` are those of a request, None where it has its version's; `without` names
    instances that leave; `added` is what makes the subject known where it is not yet."""

    fact: Fact
    subject: str = ""
    most: int = 0
    priority: Priority | None = None
    max_wait: float | None = None
    without: tuple[str, ...] = ()
    added: Added | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True)
class Precondition:
    """What was read. `value` has to be the same for the plan to hold; `note` has numbers for people."""

    query: Query
    name: str
    value: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.value}" + (f" ({self.note})" if self.note else "")


def read(scheduler: Scheduler, query: Query, now: float) -> Precondition:
    """The fact as it is now."""
    state, subject, note = scheduler.state, query.subject, ""
    match query.fact:
        case Fact.SERVER:
            name, value = "the server", "shutting down" if state.shutting_down else "open"
        case Fact.LINED_UP:
            name, value = "in line for memory", _claims(state, [key for _, key in state.line])
        case Fact.DEVICE:
            name, value = f"device {subject}", _device(state, subject)
        case Fact.INSTANCE:
            name, (value, note) = subject, _instance(state, subject)
        case _:
            version = wanted(state, subject, query.added)
            name = _NAMES[query.fact].format(subject.rpartition("@")[0])
            if version is None:
                value = "unknown"
            else:
                value, note = _of_version(scheduler, version, query, now)
    return Precondition(query, name, value, note)


_NAMES = {
    Fact.VERSION: "version of {}",
    Fact.POLICY: "policy of {}",
    Fact.FILES: "files of {}",
    Fact.FOOTPRINT: "footprint of {}",
    Fact.TRIES: "starts of {}",
    Fact.INSTANCES: "instances of {}",
    Fact.ASKED: "a load of {}",
    Fact.WAITING: "waiting for {}",
    Fact.PATIENCE: "patience of who waits for {}",
    Fact.LINE: "in line before {}",
    Fact.CONTENDERS: "in line for memory that {} may use",
    Fact.SLOT: "free slot of {}",
    Fact.ADMISSION: "a request for {}",
    Fact.ROOM: "room for {}",
    Fact.ROOM_MADE: "room for {} then",
    Fact.ORDER: "who leaves first for {}",
}


def _of_version(scheduler: Scheduler, version: Version, query: Query, now: float) -> tuple[str, str]:
    """The value, and a note."""
    state, note = scheduler.state, ""
    match query.fact:
        case Fact.VERSION:
            value = "being removed" if version.removed else version.key
        case Fact.POLICY:
            value = _policy(version.policy) or "as by default"
        case Fact.FILES:
            value = version.files.value
        case Fact.FOOTPRINT:
            value = _footprint(version)
        case Fact.TRIES:
            backs_off = now < version.backoff_until
            value = f"backing off: {version.last_error[1] or 'a start failed'}" if backs_off else "possible"
        case Fact.INSTANCES:
            value = ", ".join(f"{each.id} {_phase(each.state)}" for each in version.instances.values())
        case Fact.ASKED:
            value = "not asked for" if version.asked_since is None else "asked for"
        case Fact.WAITING:
            value = "somebody" if version.queue.count else "nobody"
            note = f"{version.queue.count} in its queue" if version.queue.count else ""
        case Fact.PATIENCE:
            head, patience = version.queue.head(), query.max_wait or 0.0
            over = head is not None and now >= head.since + patience
            value, note = "over" if over else "not over", f"of {patience:g} s"
        case Fact.LINE:
            value = ", ".join(_before(state, version, query.priority))
        case Fact.CONTENDERS:
            value = _claims(state, contenders(state, [version.key]))
        case Fact.SLOT:
            instance = pick(version)
            value = instance.id if instance is not None and not version.queue.count else "none"
        case Fact.ADMISSION:
            value, note = _admission(scheduler, version, query, now)
        case Fact.ROOM:
            value, note = _room(state, version, now)
        case Fact.ROOM_MADE:
            value = _room_made(state, version, query.without, now)
            who = ", ".join(query.without)
            note = f"without {who}" if who else "without those that leave already"
        case _:
            value = ", then ".join(order(state, version, now)[: query.most])
    return value or "none", note


def _policy(policy: Policy) -> str:
    """What differs from the defaults, of what the scheduler reads."""
    usual = Policy()
    return ", ".join(
        f"{each.name} {getattr(policy, each.name)}"
        for each in fields(Policy)
        if each.name not in UNREAD and getattr(policy, each.name) != getattr(usual, each.name)
    )


def _footprint(version: Version) -> str:
    need = version.need
    if need is None:
        return "not known before its files are here"
    parts = ", ".join(f"{in_units(share.whole)} on {share.on}" for share in need.shares)
    for rung in need.rungs:
        kept = ", ".join(f"{in_units(share.bytes)} on {share.on}" for share in rung.shares)
        parts += f"; asleep on {rung.name} {kept or 'nothing'}"
    return (parts if need.known else f"{parts}, never measured") + (", fits nowhere" if version.never else "")


def _phase(state: InstanceState) -> str:
    """A state, without the steps that follow by themselves."""
    if state in STARTING:
        return "starting"
    if state is InstanceState.SLEEPING:
        return InstanceState.ASLEEP.value
    return "leaving" if state in LEAVING else state.value


def _instance(state: State, name: str) -> tuple[str, str]:
    instance = state.instances.get(name)
    if instance is None:
        return "gone", ""
    phase = _phase(instance.state)
    if instance.state is InstanceState.READY:
        phase = "busy" if instance.leases else "idle"
    elif instance.leases:
        phase += ", busy"
    runs = f"runs {', '.join(instance.leases)}" if instance.leases else ""
    return f"{phase}, suspect" if instance.suspect else phase, runs


def _device(state: State, name: str) -> str:
    account = state.ledger.devices.get(name)
    if account is None:
        return "unknown"
    pace = ", loads slow each other down" if state.slowing >= MATTERS else ""
    closed = f", {account.closed}" if account.closed else ""
    return f"budget {in_units(account.device.budget)}{pace}{closed}"


def wanted(state: State, key: str, added: Added | None) -> Version | None:
    """The version, or one as it will be when it was added."""
    if key in state.versions or added is None:
        return state.versions.get(key)
    return Version(added.spec, added.policy, key, need=added.cached)


def may_use(state: State, version: Version) -> set[str]:
    """The devices that the version may be placed on; all of them while its need is not known."""
    devices = state.ledger.devices
    if version.need is None:
        return set(devices)
    return {device for share in version.need.shares for device in candidates(share, version.spec, devices)}


def contenders(state: State, versions: Iterable[str]) -> list[str]:
    """Versions in line that may use memory of these, or that these may use: the first LOOKAHEAD."""
    devices: set[str] = set()
    for key in versions:
        if key in state.versions:
            devices |= _touched(state, state.versions[key])
    found = (key for _, key in state.line if not devices.isdisjoint(may_use(state, state.versions[key])))
    return list(islice(found, LOOKAHEAD))


def away_from_home(state: State) -> list[str]:
    """Home models that come back when there is room and nobody in line."""
    return [
        key
        for key, version in state.versions.items()
        if version.policy.home and not version.live() and not version.unloaded
    ]


def _claims(state: State, lined_up: list[str]) -> str:
    homes = [f"{key} (home)" for key in away_from_home(state) if key not in lined_up]
    return ", ".join([*lined_up, *homes]) or "none"


def _touched(state: State, version: Version) -> set[str]:
    """The devices that it may use, or uses."""
    used = {charge.device for instance in version.instances.values() for charge in instance.placement}
    return may_use(state, version) | used


def _before(state: State, version: Version, priority: Priority | None) -> list[str]:
    """Who is in line before a wish of this class, and may want the same memory."""
    first = -(version.policy.priority if priority is None else priority)
    own = state.line.key(version.key) if version.key in state.line else (first, float("inf"), 0)
    devices = may_use(state, version)
    return [
        key
        for place, key in state.line
        if key != version.key and place < own and not devices.isdisjoint(may_use(state, state.versions[key]))
    ]


def _admission(scheduler: Scheduler, version: Version, query: Query, now: float) -> tuple[str, str]:
    policy, state, sums = version.policy, scheduler.state, scheduler.sums
    priority = policy.priority if query.priority is None else query.priority
    longest = policy.max_wait if query.max_wait is None else query.max_wait
    asked = Waiting("", version.key, priority, now, now, now + longest, NOBODY)
    verdict = admit(state, sums, asked, now)
    estimate, _ = waits(state, sums, version, priority, now)
    value = f"refused: {verdict.code}" if verdict.code else "may wait"
    return value, f"expected wait {estimate:.1f} s, at most {longest:g} s"


def _room(state: State, version: Version, now: float) -> tuple[str, str]:
    if version.need is None:
        return "not known", ""
    room = Room(state, now)
    found = [(way, room.place_now(way.need, version.spec)) for way in ways_in(room, _wish(version, now))]
    accounts = state.ledger.devices
    note = ", ".join(
        f"{device} has {in_units(max(0, accounts[device].free))} free"
        for device in sorted(may_use(state, version))
    )
    for way, placement in found:
        if not isinstance(placement, NoFit):
            return _where(way, placement), note
    return "none while everybody stays", note


def _wish(version: Version, now: float) -> Wish:
    assert version.need is not None
    return Wish(version, (0, now, 0), growing=False, now=now, need=version.need)


def _where(way: Wish, placement: Placement) -> str:
    woken = f" for {way.wakes.id}" if way.wakes is not None else ""
    return "on " + ", ".join(charge.device for charge in placement) + woken


def _room_made(state: State, version: Version, without: tuple[str, ...], now: float) -> str:
    """Where the version may start or wake when these have left, and those who leave already; and who of them
    sleeps then."""
    if version.need is None:
        return "not known"
    room = Room(state, now)
    victims = [state.instances[name] for name in without if name in state.instances]
    left, gone = room.without(victims), room.gone.union(without)
    closed = room.closed(version.need)
    devices = {name: account for name, account in room.devices.items() if name not in closed}
    for way in ways_in(room, _wish(version, now)):
        found = place(way.need, version.spec, devices, left.__getitem__, gone)
        if not isinstance(found, NoFit):
            rungs = ways_out(room, way, victims, found)
            slept = (f"; {name} sleeps on {rung.name}" for name, rung in rungs.items())
            return _where(way, found) + "".join(slept)
    return "none"


def order(state: State, version: Version, now: float) -> list[str]:
    """Who may be put out at all on devices that the version may use, cheapest first."""
    devices = may_use(state, version)
    return [
        instance.id
        for _, instance in Room(state, now).ranked()
        if instance.version is not version and any(charge.device in devices for charge in instance.placement)
    ]
