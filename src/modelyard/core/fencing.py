"""Devices that are closed: lost by themselves, or fenced by an operator. Part of the scheduler; called by it
alone.

Nothing is placed on a closed device. Who was on a lost one failed with it, whole; who is on a fenced one
leaves. A device that was lost is open again as soon as it is seen, a fenced one when the fence is taken away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelyard.core import failures, instances
from modelyard.core.events import DeviceLost, FenceAsked
from modelyard.core.lifecycle import INSTANCE, InstanceSignal
from modelyard.core.memory import DeviceLedger
from modelyard.core.placement import candidates
from modelyard.core.state import Instance, State, Version
from modelyard.core.step import Step
from modelyard.core.types import Cause


def lost(step: Step, event: DeviceLost) -> None:
    account = step.state.ledger.devices.get(event.device)
    if account is None or account.lost:
        return
    account.lost = event.reason or "it does not answer"
    step.note("device_closed", event.device, account.closed)
    for instance in _on(step.state, event.device):
        if (instance.state, InstanceSignal.FAILED) in INSTANCE:
            failures.fail(step, instance, Cause.DEVICE_LOST, f"{event.device} is {account.closed}")
    step.state.replan = True


def back(step: Step, account: DeviceLedger) -> None:
    """A lost device was seen again."""
    account.lost = ""
    kind = "device_closed" if account.closed else "device_opened"
    step.note(kind, account.device.id, account.closed or "it is back")
    step.state.replan = True


def fence_asked(step: Step, event: FenceAsked) -> None:
    account = step.state.ledger.devices.get(event.device)
    if account is None or (not event.reason and not account.fenced):
        return
    account.fenced = event.reason
    kind = "device_closed" if account.closed else "device_opened"
    step.note(kind, event.device, account.closed or "the fence was taken away")
    if event.reason:
        for instance in _on(step.state, event.device):
            instances.leave(
                step, instance, f"{event.device} is {account.closed}", now=event.now, cut="fenced"
            )
    step.state.replan = True


def closed_to(devices: Mapping[str, DeviceLedger], version: Version) -> list[str]:
    """The closed devices among those that a version may use, each in words with the reason."""
    need = version.need
    shares = need.shares if need is not None else ()
    usable = {device for share in shares for device in candidates(share, version.spec, devices)}
    return [f"{device} is {why}" for device in sorted(usable) if (why := devices[device].closed)]


def _on(state: State, device: str) -> Iterator[Instance]:
    for instance in list(state.instances.values()):
        if any(charge.device == device for charge in (*instance.placement, *instance.awake)):
            yield instance
