"""Readings of the scheduling state for metrics. Called between events; reads only."""

from __future__ import annotations

from modelyard.runtime.driver import Driver
from modelyard.telemetry.metrics import Snapshot


def snapshot(driver: Driver) -> Snapshot:
    """The gauges of now."""
    state = driver.scheduler.state
    instances: dict[tuple[str, str], int] = {}
    leases: dict[str, int] = {}
    for instance in state.instances.values():
        model = instance.version.spec.model
        key = (model, instance.state.value)
        instances[key] = instances.get(key, 0) + 1
        leases[model] = leases.get(model, 0) + len(instance.leases)
    devices: dict[tuple[str, str], int] = {}
    for name, account in state.ledger.devices.items():
        devices[name, "budget"] = account.device.budget
        devices[name, "reserved"] = account.reserved
        devices[name, "observed"] = account.observed
        devices[name, "foreign"] = account.foreign
        devices[name, "free"] = account.free
    queued = {version.spec.model: version.queue.count for version in state.versions.values()}
    return Snapshot(instances, queued, leases, devices)
