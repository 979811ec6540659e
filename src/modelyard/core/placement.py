"""Placement: a need and the room on each device -> the devices an instance gets, or why it gets none.

Pure functions; capacity calls them with the room of now, of later, and of empty devices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from modelyard.core.memory import NOBODY, DeviceLedger
from modelyard.core.types import Charge, DeviceKind, Need, NoFit, Placement, Share, Spec
from modelyard.core.units import in_units

Room = Callable[[str], int]

SEARCH = 10_000  # steps: enough for a dozen models on any machine


def place(
    need: Need,
    spec: Spec,
    devices: Mapping[str, DeviceLedger],
    room: Room,
    gone: Collection[str] = NOBODY,
) -> Placement | NoFit:
    """Put each share of `need` on a device with room for it, once the instances `gone` have left.

    Accelerator shares go to different devices. The largest share takes the fullest device that still holds
    it: whatever can hold a larger share can hold a smaller one, so this finds a placement whenever there is
    one, and keeps the emptiest devices for the models that need them. A need that nobody measured takes all
    that is free on the emptiest device. The charges are in the order of the shares: an engine counts its
    devices in that order.
    """
    taken: dict[str, int] = {}
    chosen: dict[int, Charge] = {}
    for number, share in sorted(enumerate(need.shares), key=_fixed_first):
        spread = share.on == "accelerator"
        options: list[tuple[int, str, int]] = []
        for device in candidates(share, spec, devices):
            if spread and device in taken:
                continue
            left = room(device) - taken.get(device, 0)
            cost = devices[device].cost(share, gone)
            if cost <= left and (need.known or left > 0):
                options.append((left if need.known else -left, device, cost))
        if not options:
            return NoFit(f"no device has {in_units(share.bytes)} free for {share.on}", need.bytes)
        _, device, cost = min(options)
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
    usable = {device for share in need.shares for device in candidates(share, spec, devices)}
    budget = sum(devices[device].device.budget for device in usable)
    names = ", ".join(sorted(usable))
    reason = f"the budget of {names} is {in_units(budget)} in all"
    parts = [share for share in need.shares if share.on == "accelerator"]
    if len(parts) == 1:
        budgets = [devices[device].device.budget for device in candidates(parts[0], spec, devices)]
        if max(budgets) < parts[0].bytes <= sum(budgets):
            reason += (
                f", but {in_units(parts[0].bytes)} have to lie on one device, and none has more than "
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
    steps = 0

    def search(
        at: int, left: Mapping[str, int], mapped: frozenset[tuple[str, str]], used: frozenset[tuple[int, str]]
    ) -> bool:
        nonlocal steps
        steps += 1
        if at == len(parts) or steps > SEARCH:
            return True
        number, share, options = parts[at]
        for device in options:
            if share.on == "accelerator" and (number, device) in used:
                continue
            files = {(device, digest): size for digest, size in share.mapped.items()}
            cost = share.bytes + sum(size for key, size in files.items() if key not in mapped)
            rest = left[device] - cost
            if rest >= 0 and search(
                at + 1, {**left, device: rest}, mapped | files.keys(), used | {(number, device)}
            ):
                return True
        return False

    budgets = {device: account.device.budget for device, account in devices.items()}
    return search(0, budgets, frozenset(), frozenset())


def candidates(share: Share, spec: Spec, devices: Mapping[str, DeviceLedger]) -> list[str]:
    """The devices that may hold `share`, by id."""
    if share.on != "accelerator":
        return [share.on] if share.on in devices else []
    return [
        device
        for device, account in devices.items()
        if account.device.kind is not DeviceKind.RAM and (not spec.devices or device in spec.devices)
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
