"""A change of what is served, as far as it can be made without making it. Used by `live`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from modelyard.compose.entries import check_placements, entries_of
from modelyard.config import Config, ConfigErrors, Model
from modelyard.config.difference import Difference, Kind, compare
from modelyard.core import events as ev
from modelyard.core.memory import DeviceLedger
from modelyard.core.types import Device
from modelyard.core.units import in_units
from modelyard.errors import ConfigError
from modelyard.gateway.names import Names
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.store import Store


@dataclass(frozen=True, slots=True)
class Prepared:
    """A change that can be made: `fresh` are the versions that come, by model; `devices` those with another
    budget; `event` is all that the scheduler is told."""

    config: Config
    difference: Difference
    fresh: Mapping[str, Entry]
    devices: tuple[Device, ...]
    event: ev.Changed


class Preparing:
    def __init__(self, driver: Driver, names: Names, store: Store) -> None:
        self._driver = driver
        self._names = names
        self._store = store

    async def change(self, before: Config, config: Config) -> Prepared:
        """Everything of a change that may fail or take time. Raises ConfigErrors (a NotLive for what is
        fixed)."""
        difference = compare(before, config)
        if difference.fixed:
            raise NotLive(before, config, difference)
        try:
            devices = self._driver.devices.changed(config.all_devices)
        except ConfigError as error:
            raise config.failure([(error.path, str(error).removeprefix(f"{error.path}: "))]) from error
        new = [one.after for one in difference.of(Kind.ADDED, Kind.REPLACED) if one.after is not None]
        fresh = await self.entries(config, new)
        ledgers = self.ledgers(devices)
        everyone = {model.spec.model for model in config.models}
        suspects = everyone if devices else {one.name for one in difference.models}
        check_placements(config, list(self._after(config, fresh)), ledgers, suspects)
        event = self._event(before, config, difference, fresh, devices)
        return Prepared(config, difference, fresh, devices, event)

    async def entries(self, config: Config, models: Sequence[Model]) -> dict[str, Entry]:
        """These models as they are run here, by name; a version that is served already is taken as it is."""
        known = {one.spec.model: self._names.version(one.spec.version) for one in models}
        new = [one for one in models if known[one.spec.model] is None]
        fresh = await asyncio.to_thread(entries_of, config, new, self._driver.devices, self._store)
        for entry in fresh.values():
            await self._driver.examine(entry)
        return fresh | {name: entry for name, entry in known.items() if entry is not None}

    def ledgers(self, devices: Iterable[Device] = ()) -> Mapping[str, DeviceLedger]:
        ledgers = dict(self._driver.scheduler.state.ledger.devices)
        return {**ledgers, **{device.id: DeviceLedger(device) for device in devices}}

    def _after(self, config: Config, fresh: Mapping[str, Entry]) -> Iterable[Entry]:
        """All entries as they would be."""
        versions = self._driver.scheduler.state.versions
        for model in config.models:
            entry = fresh.get(model.spec.model)
            if entry is None:
                known = self._names.resolve(model.spec.model)
                version = versions.get(known.spec.version)
                estimate = known.estimate or (version.need if version is not None else None)
                entry = replace(known, policy=model.policy, estimate=estimate)
            yield entry

    def _event(
        self,
        before: Config,
        config: Config,
        difference: Difference,
        fresh: Mapping[str, Entry],
        devices: Iterable[Device],
    ) -> ev.Changed:
        parts: list[ev.Part] = [ev.DeviceAdded(device) for device in devices]
        if config.server.queue_bound != before.server.queue_bound:
            parts.append(ev.QueueBounded(config.server.queue_bound))
        for model in (one.after for one in difference.of(Kind.ADDED, Kind.REPLACED)):
            assert model is not None
            entry = fresh[model.spec.model]
            if self._names.version(entry.spec.version) is None:
                parts.append(entry.added())
            elif entry.policy != model.policy:
                parts.append(ev.PolicyChanged(entry.spec.version, model.policy))
        for one in difference.of(Kind.REMOVED, Kind.REPLACED):
            successor = fresh[one.name].spec.version if one.name in fresh else ""
            parts.append(ev.Removed(self._names.model(one.name).spec.version, successor))
        parts += [ev.Removed(entry.spec.version) for entry in self.left_behind(before, config)]
        for one in difference.of(Kind.POLICY):
            if one.after is not None and one.before is not None and one.after.policy != one.before.policy:
                version = self._names.resolve(one.name).spec.version
                parts.append(ev.PolicyChanged(version, one.after.policy))
        return ev.Changed(tuple(parts))

    def left_behind(self, before: Config, config: Config) -> list[Entry]:
        """Versions that are served beside those of their models, and whose model or engine changes."""
        models = {model.spec.model: model for model in config.models}
        return [
            entry
            for entry in self._names.others()
            if (model := models.get(entry.spec.model)) is None
            or (
                model.spec.version != entry.spec.version
                and config.profiles.get(entry.spec.engine) != before.profiles.get(entry.spec.engine)
            )
        ]

    def check_held(self, prepared: Prepared) -> None:
        """A budget cannot be less than what instances hold by now. Raises ConfigErrors."""
        accounts = self._driver.scheduler.state.ledger.devices
        problems = [
            (
                f"devices.{device.id}.memory",
                f"would be {in_units(device.budget)}, less than the {in_units(accounts[device.id].reserved)} "
                "that instances hold now; unload some first",
            )
            for device in prepared.devices
            if device.budget < accounts[device.id].reserved
        ]
        if problems:
            raise prepared.config.failure(problems)

    def running_on(self, difference: Difference) -> dict[str, int]:
        """Requests that run on what goes, by model."""
        versions, running = self._driver.scheduler.state.versions, {}
        for one in difference.of(Kind.REMOVED, Kind.REPLACED):
            version = versions.get(self._names.resolve(one.name).spec.version)
            instances = version.instances.values() if version is not None else ()
            running[one.name] = sum(len(instance.leases) for instance in instances)
        return running


class NotLive(ConfigErrors):
    """Values that cannot change while the server runs."""

    def __init__(self, before: Config, after: Config, difference: Difference) -> None:
        problems = [
            (
                one.path,
                f"cannot change while the server runs: it is {_said(one.before)}, and this says "
                f"{_said(one.after)}; restart the server, or leave it as it is",
            )
            for one in difference.fixed
        ]
        super().__init__(after.failure(problems).problems)


def _said(value: object) -> str:
    return "not set" if value is None else str(value)
