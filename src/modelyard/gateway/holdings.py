"""Who holds what of the memory of which device, as the control surface shows it. Used by `snapshot`."""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.core.memory import DeviceLedger
from modelyard.core.state import Instance, State
from modelyard.gateway import views


def of(state: State, instance: Instance) -> list[views.Holding]:
    """What an instance holds, by device."""
    found = []
    for charge in instance.placement:
        reserved, observed = state.ledger.devices[charge.device].holds(instance.id)
        mapped = sum(charge.mapped.values())
        found.append(
            views.Holding(device=charge.device, reserved=reserved, observed=observed or None, mapped=mapped)
        )
    return found


def devices(state: State, pids: Mapping[str, list[int]]) -> list[views.DeviceView]:
    """Every device with who holds what on it; `pids` are the processes by instance."""
    return [_device(state, account, pids) for account in state.ledger.devices.values()]


def _device(state: State, account: DeviceLedger, pids: Mapping[str, list[int]]) -> views.DeviceView:
    device = account.device
    uses = []
    for name in account.holders():
        reserved, observed = account.holds(name)
        instance = state.instances.get(name)
        uses.append(
            views.DeviceUse(
                instance=name,
                model=instance.version.spec.model if instance is not None else "",
                reserved=reserved,
                observed=observed or None,
                pids=pids.get(name, []),
            )
        )
    return views.DeviceView(
        id=device.id,
        kind=device.kind,
        name=device.name,
        total=device.total,
        budget=device.budget,
        reserve=device.reserve,
        reserved=account.reserved,
        observed=account.observed,
        foreign=account.foreign,
        free=account.free,
        closed=account.closed,
        group=device.group,
        exclusive=device.exclusive,
        instances=uses,
    )
