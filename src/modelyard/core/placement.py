"""Placement: a need and the room on each device -> the devices an instance gets, or why it gets none.

Pure functions; capacity calls them with the room of now, of later, and of empty devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from modelyard.core.memory import NOBODY, DeviceLedger
from modelyard.core.types import Charge, DeviceKind, Need, NoFit, Packing, Placement, Share, Spec
from modelyard.core.units import in_units

Room = Callable[[str], int]

SEARCH = 10_000  # steps: enough for a dozen models on any machine
# How many parts have a place, what is left of each device, which files are mapped where, and where a need has
# parts already that others of it must not lie beside.
_Tried = tuple[int, tuple[int, ...], frozenset[tuple[str, str]], frozenset[tuple[int, str]]]


@dataclass(frozen=True, slots=True)
class Prefer:
    """What decides between places that would do. `packing`: the fullest device, or the emptiest; `apart`:
    devices that are taken only if no others will do."""

    packing: Packing = Packing.PACK
    apart: Collection[str] = NOBODY


def place(
    need: Need,
    spec: Spec,
    devices: Mapping[str, DeviceLedger],
    room: Room,
    gone: Collection[str] = NOBODY,
    prefer: Prefer = Prefer(),
) -> Placement | NoFit:
    """Put each share of `need` on a device with room for it, once the instances `gone` have left.

    Accelerator shares go to different devices, of as few groups as possible. The largest share is placed
    first: whatever holds it holds a smaller one, so this finds a placement whenever there is one. A need that
    nobody measured takes all that is free on the emptiest device. The charges are in the order of the shares:
    an engine counts its devices in that order.
    """
    found = _place(need, spec, devices, room, gone, prefer)
    spread = [share for share in need.shares if share.on == "accelerator"]
    if len(spread) < 2 or isinstance(found, NoFit):
        return found
    usable = candidates(spread[0], spec, devices)
    if not any(devices[device].device.group for device in usable):
        return found
    group = {device: _group(devices[device]) for device in usable}
    groups = Counter(group.values())
    for count in range(1, min(len(groups), len(spread))):
        inside = [
            placed
            for some in combinations(groups, count)
            if sum(groups[each] for each in some) >= len(spread)
            and not isinstance(
                placed := _place(need, spec, _within(devices, group, some), room, gone, prefer), NoFit
            )
        ]
        if inside:
            found = min(inside, key=lambda placed: _rank(placed, room, prefer))
            break
    alike = len({share.bytes for share in spread}) == 1
    return _beside(found, devices) if alike else found


def devices_of(shares: Sequence[Share], placement: Placement) -> list[str | None]:
    """The device that each of the shares has at `placement`: accelerator shares have those that no share
    names, in their order. None where there is none left."""
    named = {share.on for share in shares} | {"ram"}
    others = iter([charge.device for charge in placement if charge.device not in named])
    return [next(others, None) if share.on == "accelerator" else share.on for share in shares]


def _group(account: DeviceLedger) -> str:
    """A device of which nobody knows a link is a group of its own."""
    return account.device.group or account.device.id


def _within(
    devices: Mapping[str, DeviceLedger], group: Mapping[str, str], some: Collection[str]
) -> dict[str, DeviceLedger]:
    """Without the accelerators of other groups."""
    return {name: account for name, account in devices.items() if name not in group or group[name] in some}


def _beside(placed: Placement, devices: Mapping[str, DeviceLedger]) -> Placement:
    """Equal parts in such an order that those of one group follow each other."""
    groups = dict.fromkeys(_group(devices[charge.device]) for charge in placed)
    order = {group: number for number, group in enumerate(groups)}
    return tuple(sorted(placed, key=lambda charge: order[_group(devices[charge.device])]))


def _rank(placed: Placement, room: Room, prefer: Prefer) -> tuple[int, int]:
    left = sum(room(charge.device) for charge in placed)
    apart = sum(charge.device in prefer.apart for charge in placed)
    return apart, left if prefer.packing is Packing.PACK else -left


def _place(
    need: Need,
    spec: Spec,
    devices: Mapping[str, DeviceLedger],
    room: Room,
    gone: Collection[str],
    prefer: Prefer,
) -> Placement | NoFit:
    """As `place`, whatever the groups."""
    taken: dict[str, int] = {}
    chosen: dict[int, Charge] = {}
    fullest = need.known and prefer.packing is Packing.PACK
    for number, share in sorted(enumerate(need.shares), key=_fixed_first):
        spread = share.on == "accelerator"
        options: list[tuple[bool, int, str, int]] = []
        for device in candidates(share, spec, devices):
            if devices[device].closed or (spread and device in taken):
                continue
            left = room(device) - taken.get(device, 0)
            cost = devices[device].cost(share, gone)
            if cost <= left and (need.known or left > 0):
                options.append((device in prefer.apart, left if fullest else -left, device, cost))
        if not options:
            return NoFit(f"no device has {in_units(share.bytes)} free for {share.on}", need.bytes)
        *_, device, cost = min(options)
        taken[device] = taken.get(device, 0) + cost
        chosen[number] = Charge(device, share.bytes, dict(share.mapped))
    charges = [chosen[number] for number in range(len(need.shares))]
    if not need.known:
        charges += [Charge(device, room(device) - used) for device, used in taken.items()]
    return _merge(charges, devices)


def never_fits(need: Need, spec: Spec, devices: Mapping[str, DeviceLedger]) -> NoFit | None:
    """Why `need` would not fit even if every device were empty; None when it would."""
    missing = [share.on for share in need.shares if not candidates(share, spec, devices)]
    if missing:
        wanted = "accelerator (a GPU)" if missing[0] == "accelerator" else f"device {missing[0]}"
        return NoFit(f"there is no {wanted} that it may use", need.bytes)
    spread = [share for share in need.shares if share.on == "accelerator"]
    usable = candidates(spread[0], spec, devices) if spread else []
    if len(spread) > len(usable):
        return NoFit(
            f"it takes {len(spread)} accelerators at once, and may use {', '.join(usable)}", need.bytes
        )
    empty = {device: DeviceLedger(account.device) for device, account in devices.items()}
    placement = place(need, spec, empty, lambda device: devices[device].device.budget)
    if not isinstance(placement, NoFit):
        return None
    for share in need.shares:
        options = candidates(share, spec, devices)
        budgets = [devices[device].device.budget for device in options]
        if sum(budgets) < share.bytes < need.bytes:
            part = f"{in_units(share.bytes)} of that have to lie on {' or '.join(options)}"
            return NoFit(f"{part}, with a budget of {in_units(sum(budgets))}", need.bytes)
    every = {device for share in need.shares for device in candidates(share, spec, devices)}
    budget = sum(devices[device].device.budget for device in every)
    names = ", ".join(sorted(every))
    reason = f"the budget of {names} is {in_units(budget)} in all"
    if len(spread) == 1:
        budgets = [devices[device].device.budget for device in usable]
        if max(budgets) < spread[0].bytes <= sum(budgets):
            reason += (
                f", but {in_units(spread[0].bytes)} have to lie on one device, and none has more than "
                f"{in_units(max(budgets))}: name several in `devices` to split the model, where its engine "
                "can"
            )
    return NoFit(reason, need.bytes)


def fit_together(wanted: Sequence[tuple[Need, Spec]], devices: Mapping[str, DeviceLedger]) -> bool:
    """Whether there are places for all of these at once on empty devices. A need that nobody measured counts
    as nothing; a search that would take more than SEARCH steps is given up, as if there were."""
    parts = [
        (number, share, candidates(share, spec, devices))
        for number, (need, spec) in enumerate(wanted)
        if need.known
        for share in need.shares
    ]
    parts.sort(key=lambda part: (len(part[2]), -part[1].bytes))
    budgets = {device: account.device.budget for device, account in devices.items()}
    if sum(share.bytes for _, share, _ in parts) > sum(budgets.values()):
        return False
    apart = {number for number, (need, _) in enumerate(wanted) if len(need.shares) > 1}
    first: _Tried = (0, tuple(budgets.values()), frozenset(), frozenset())
    tried: set[_Tried] = set()  # alike parts come to the same again and again
    left_to_try = [first]
    while left_to_try:
        state = left_to_try.pop()
        if state in tried:
            continue
        at, rests, mapped, used = state
        if at == len(parts) or len(tried) == SEARCH:
            return True
        tried.add(state)
        number, share, options = parts[at]
        left = dict(zip(budgets, rests, strict=True))
        for device in reversed(options):
            if share.on == "accelerator" and (number, device) in used:
                continue
            files = {(device, digest): size for digest, size in share.mapped.items()}
            cost = share.bytes + sum(size for key, size in files.items() if key not in mapped)
            if left[device] >= cost:
                rest = {**left, device: left[device] - cost}
                taken = used | {(number, device)} if number in apart else used
                left_to_try.append((at + 1, tuple(rest.values()), mapped.union(files), taken))
    return False


def candidates(share: Share, spec: Spec, devices: Mapping[str, DeviceLedger]) -> list[str]:
    """The devices that may hold `share`, by id."""
    if share.on != "accelerator":
        return [share.on] if share.on in devices else []
    return [
        device
        for device, account in devices.items()
        if account.device.kind is not DeviceKind.RAM
        and (not spec.devices or device in spec.devices)
        and account.device.exclusive in ("", spec.engine)
    ]


def _fixed_first(entry: tuple[int, Share]) -> tuple[bool, int]:
    _, share = entry
    return (share.on == "accelerator", -share.bytes)


def _merge(charges: list[Charge], devices: Mapping[str, DeviceLedger]) -> Placement:
    """One charge per device, in order of first use."""
    merged: dict[str, Charge] = {}
    for charge in charges:
        before = merged.get(charge.device, Charge(charge.device, 0))
        mapped = {**before.mapped, **charge.mapped}
        total = devices[charge.device].device.total
        merged[charge.device] = Charge(charge.device, before.bytes + charge.bytes, mapped, total)
    return tuple(merged.values())
