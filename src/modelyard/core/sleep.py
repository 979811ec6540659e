"""Sleep: which rungs an instance has, what it holds on one, and what it takes to wake it.

Capacity chooses by it, the transitions book by it; nothing is changed here. A rung is offered on a device
only where it leaves little of what the instance holds there: as the engine says, until the first sleep
measured it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from modelyard.core.lifecycle import InstanceState
from modelyard.core.memory import Ledger
from modelyard.core.placement import devices_of
from modelyard.core.state import Instance
from modelyard.core.types import Charge, Need, Placement, Rung, Share

LEFT = 0.2  # of its own bytes on a device, at most, where a rung is offered
REST = 600.0  # seconds without sleep for a version whose instance failed to sleep or to wake


def on_devices(shares: Sequence[Share], placement: Placement) -> Placement:
    """`shares` of an instance that lies at `placement`."""
    sizes: dict[str, Charge] = {}
    for share, device in zip(shares, devices_of(shares, placement), strict=True):
        if device is not None:
            before = sizes.get(device, Charge(device, 0))
            mapped = {**before.mapped, **share.mapped}
            sizes[device] = Charge(device, before.bytes + share.bytes, mapped)
    return tuple(sizes.values())


def asleep(instance: Instance, rung: Rung) -> Placement:
    """What it holds on this rung."""
    return on_devices(rung.shares, instance.awake or instance.placement)


def awake(instance: Instance) -> Placement:
    """What an instance that sleeps will hold when it has woken: as is known by now, or as it held before."""
    need = instance.version.need
    return on_devices(need.shares, instance.awake) if need is not None and need.known else instance.awake


def both(before: Placement, after: Placement) -> Placement:
    """What is held on the way from one to the other."""
    held = {charge.device: charge for charge in before}
    for charge in after:
        old = held.get(charge.device, Charge(charge.device, 0))
        most = max(old.bytes, charge.bytes)
        held[charge.device] = Charge(charge.device, most, {**old.mapped, **charge.mapped})
    return tuple(held.values())


def to_wake(ledger: Ledger, instance: Instance) -> Need:
    """What has to be free, where it lies, beside what it holds already."""
    return Need(
        tuple(
            Share(
                charge.device,
                max(0, charge.bytes - ledger.devices[charge.device].own(instance.id)),
                charge.mapped,
            )
            for charge in awake(instance)
        )
    )


def gave_back(ledger: Ledger, instance: Instance) -> dict[str, int]:
    """What it held awake and holds no more, in bytes by device; nothing while it does not sleep."""
    if instance.state is not InstanceState.ASLEEP:
        return {}
    held = {charge.device: ledger.devices[charge.device].own(instance.id) for charge in instance.awake}
    given = {charge.device: charge.bytes - held[charge.device] for charge in instance.awake}
    return {device: size for device, size in given.items() if size > 0}


def frees(ledger: Ledger, instance: Instance, rung: Rung) -> set[str]:
    """The devices on which this rung is offered to an instance that is awake."""
    held = {charge.device: ledger.devices[charge.device].own(instance.id) for charge in instance.placement}
    return _freed(instance, rung, {device: own for device, own in held.items() if own})


def claimed(instance: Instance, rung: Rung) -> set[str]:
    """The devices on which this rung was offered to an instance that sleeps now."""
    return _freed(instance, rung, {charge.device: charge.bytes for charge in instance.awake})


def _freed(instance: Instance, rung: Rung, held: Mapping[str, int]) -> set[str]:
    """The devices where it leaves little of what was held."""
    left = {charge.device: charge.bytes for charge in asleep(instance, rung)}
    return {device for device, own in held.items() if left.get(device, 0) <= LEFT * own}


def rungs(ledger: Ledger, instance: Instance, now: float) -> list[Rung]:
    """Those that a ready instance may be put on, the soonest back first; none that takes as long as a
    load."""
    version = instance.version
    if (
        instance.state is not InstanceState.READY
        or instance.suspect
        or version.removed
        or version.need is None
        or not version.policy.sleep
        or now < version.sleep_after
    ):
        return []
    load = inf if version.load_seconds is None else version.load_seconds
    return sorted(
        (
            rung
            for rung in version.need.rungs
            if (rung.seconds is None or rung.seconds < load)
            and _open(ledger, asleep(instance, rung))
            and frees(ledger, instance, rung)
        ),
        key=lambda rung: inf if rung.seconds is None else rung.seconds,
    )


def lasts(instance: Instance, rung: Rung) -> float:
    """Seconds that a ready instance may take to fall asleep."""
    return max(instance.version.policy.release_cap, 0.0 if instance.woken else rung.first)


def before(instance: Instance, rung: Rung, measured: Mapping[str, int]) -> dict[str, int]:
    """What an instance that falls asleep held of its own awake: as was measured; on a rung that was measured
    before, no less than what is booked: one that woke may take its memory back by and by."""
    booked = {charge.device: charge.bytes for charge in instance.awake} if rung.known else {}
    return {device: max(size, booked.get(device, 0)) for device, size in measured.items()}


def fits(ledger: Ledger, instance: Instance, rung: Rung) -> bool:
    """Whether what it takes to host memory has room there now."""
    held = asleep(instance, rung)
    return _open(ledger, held) and ledger.fits(instance.id, both(instance.placement, held))


def _open(ledger: Ledger, placement: Placement) -> bool:
    """Whether all its devices are known, and none is lost or fenced."""
    accounts = ledger.devices
    return all(charge.device in accounts and not accounts[charge.device].closed for charge in placement)
