"""What a configuration would do on this machine, without a server: all of its models are asked for."""

from __future__ import annotations

from modelyard.compose.entries import check_placements
from modelyard.compose.yard import build
from modelyard.config import Config
from modelyard.core import events as ev
from modelyard.core.plan import Plan, plan
from modelyard.core.scheduler import Scheduler


async def plan_of(config: Config) -> Plan:
    """The start of its models on empty devices, preloaded ones first. A server that runs on the same data
    folder is not touched: nothing is started, files are only looked at. Raises ConfigErrors, also for models
    that can never fit."""
    yard = await build(config)
    try:
        entries = yard.names.all()
        for entry in entries:
            await yard.driver.examine(entry)
        scheduler = Scheduler(queue_bound=config.server.queue_bound)
        for device in yard.driver.devices.all:
            scheduler.handle(ev.DeviceAdded(device), 0.0)
        devices = scheduler.state.ledger.devices
        check_placements(config, entries, devices, {entry.spec.model for entry in entries})
        versions = {entry.spec.model: entry.spec.version for entry in entries}
        order = dict.fromkeys((*config.preload, *versions))
        asked = [ev.LoadAsked(versions[name]) for name in order]
        # What nobody read whole yet is taken to be what its header says.
        added = tuple(ev.Added(entry.spec, entry.policy, entry.estimate) for entry in entries)
        return plan(scheduler, [ev.Changed(added), *asked], 0.0)
    finally:
        await yard.close()
