"""The configuration that is served, and the one way in which it changes.

It is what the file says and what was registered, together. A change is prepared while requests go on: read,
checked like a start, compared with what is served. Then it is made in one turn of the event loop, or not at
all. Changes are made one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from modelyard.compose.additions import Additions, check_keys
from modelyard.compose.ahead import Ahead
from modelyard.compose.entries import check_placements, entries_of
from modelyard.compose.reading import NotRead, Origin, as_problem, read
from modelyard.compose.registered import warn_of_shadows
from modelyard.config import Config, ConfigErrors, Key, Model
from modelyard.config.difference import Difference, Kind, compare
from modelyard.config.reading import FilesRead
from modelyard.config.together import together
from modelyard.config.versions import keyed
from modelyard.core import events as ev
from modelyard.core.memory import DeviceLedger
from modelyard.core.types import Device
from modelyard.core.units import in_units
from modelyard.errors import ConfigError, ConfigRefused, ModelyardError, RestartNeeded, ShuttingDown
from modelyard.gateway.live import Applied, Before, Standing
from modelyard.gateway.names import Names
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.store import Store

log = structlog.get_logger(__name__)

NO_FILE = "What is served was not read from a file; name one."


@dataclass(frozen=True, slots=True)
class Prepared:
    """A change that can be made: `fresh` are the versions that come, by model; `devices` those with another
    budget; `event` is all that the scheduler is told."""

    config: Config
    difference: Difference
    fresh: Mapping[str, Entry]
    devices: tuple[Device, ...]
    event: ev.Changed


Registered = Callable[[Config], tuple[Model, ...]]
"""The registered models, made with the engine profiles of a configuration. Raises ConfigErrors."""


class Live:
    """`take` is called with each new configuration for what is not a model's: keys, limits and the like.
    `reload` is set by whoever wants the file that is served read again, soon."""

    def __init__(
        self,
        config: Config,
        origin: Origin,
        driver: Driver,
        names: Names,
        store: Store,
        ahead: Ahead,
        take: Callable[[Config], None],
        reload: asyncio.Event | None = None,
    ) -> None:
        self.config = config  # all that is served
        self.base = config  # the part of it that was not registered
        self.additions = Additions()  # of the registry
        self.registered: Registered = lambda base: ()  # set by whoever keeps them
        self.unknown_keys: Callable[[], str] = lambda: ""  # likewise: why not all of its keys are in force
        self._key = ""
        self.standing = Standing(origin.path, origin.watch and origin.path is not None, time.time())
        self._origin = origin
        self._driver = driver
        self._names = names
        self._store = store
        self._ahead = ahead
        self._take = take
        self._lock = asyncio.Lock()
        self._ordered = reload or asyncio.Event()
        self._reading = origin.reading  # the last of the file that is served

    @property
    def keys(self) -> tuple[Key, ...]:
        """See LiveConfig.keys."""
        now = time.time()
        return tuple(key for key in self.config.keys if key.expires is None or key.expires > now)

    # -- orders -------------------------------------------------------------------------------------------

    async def change(self, make: Callable[[Config], Config]) -> None:
        """Serve what `make` makes of the part that was not registered. Raises ConfigErrors, and what `make`
        raises; then nothing has changed."""
        async with self._lock:
            base = make(self.base)
            prepared = await self._prepare(self._whole(base))
            self._make(prepared)
            self.base = base

    async def register(
        self,
        registered: Registered | None,
        commit: Callable[[], Awaitable[None]],
        additions: Additions | None = None,
    ) -> None:
        """Serve these registered models, and these keys and profiles (None: those of before), unless `commit`
        raises. It is awaited when all that can be checked was found good, and after it `self.registered`
        makes the same. Raises ConfigErrors, and what `commit` raises; then nothing has changed."""
        async with self._lock:
            prepared = await self._prepare(self._whole(self.base, registered, additions))
            self._check_open()
            await commit()
            if additions is not None:
                self.additions = additions
            if not self._driver.scheduler.state.shutting_down:  # else it is kept, for the next start
                self._make(prepared)

    def use_key(self, key: str) -> None:
        """Make digests that may hold a secret with this key from now on. Before anything is served."""
        self._key = key
        self.config = keyed(self.config, key)
        for model in self.config.models:
            entry = self._names.model(model.spec.model)
            entry.spec = replace(entry.spec, digest=model.spec.digest)

    async def check(self, model: Model) -> Entry:
        """A version as it would be run here, without serving it. Raises ConfigErrors."""
        config = together(replace(self.config, models=()), [model])
        entry = (await self._entries(config, [model]))[model.spec.model]
        check_placements(config, [entry], self._with(()), {model.spec.model})
        return entry

    async def bring(self, model: Model) -> Entry:
        """Serve a version beside the one that its model has; it is loaded when it is asked for, and stays no
        longer than others. Raises ConfigErrors."""
        policy = replace(model.policy, pin=False, home=False, preload=False, min_replicas=0)
        model = replace(model, policy=policy)
        async with self._lock:
            entry = await self.check(model)
            if self._names.version(model.spec.version) is None:
                self._check_open()
                self._driver.change(ev.Changed((entry.added(),)), [entry])
                self._names.add_other(entry)
            return entry

    async def drop(self, version: str) -> None:
        """Serve a version no more that was brought; who waits for it is refused."""
        async with self._lock:
            if self._names.drop_other(version) is not None:
                self._driver.post(ev.Removed(version))

    def _whole(
        self, base: Config, registered: Registered | None = None, additions: Additions | None = None
    ) -> Config:
        """Raises ConfigErrors."""
        base = (additions or self.additions).to(keyed(base, self._key) if self._key else base)
        return together(base, (registered or self.registered)(base))

    async def apply(self, path: Path | None, *, dry_run: bool, before: Before | None = None) -> Applied:
        """See LiveConfig.apply."""
        async with self._lock:
            own = path is None or path == self.standing.source
            source = path or self.standing.source
            if source is None:
                raise ConfigRefused(NO_FILE, param="path")
            if not source.is_absolute():
                raise ConfigRefused(f"{source} is no absolute path on the server's machine.", param="path")
            try:
                foreign = source != self._origin.path  # the start did not name it
                reading, config = await read(source, self._origin, foreign=foreign)
                whole = self._whole(config)
                check_keys(whole, self.unknown_keys())
                prepared = await self._prepare(whole)
                running = self._running_on(prepared.difference)
                if before is not None:
                    await before(source, config, prepared.event)
                if not dry_run:
                    self._make(prepared)
                    if not prepared.difference:
                        log.info("config.unchanged")
            except NotRead as error:
                raise self._refused(error.error, error.reading, own=own, dry_run=dry_run) from error
            except ConfigError as error:
                raise self._refused(error, reading, own=own, dry_run=dry_run) from error
            except ModelyardError:  # nothing is wrong with the file
                raise
            except Exception as bug:
                self._refused(as_problem(bug), reading, own=own, dry_run=dry_run)
                raise
            if not dry_run:
                self._reading, self.base = reading, config
                self.standing = replace(self.standing, source=source, problem="", refused_at=0.0)
            return Applied(source, not dry_run, prepared.difference, running)

    async def follow(self) -> None:
        """Read the file again when it was ordered or, if it is watched, has changed; until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._origin.poll):
                    await self._ordered.wait()
            ordered = self._ordered.is_set()
            self._ordered.clear()
            try:
                if ordered and self.standing.source is None:
                    log.warning("config.not_reloaded", problem=NO_FILE)
                elif ordered or await self._has_changed():
                    await self.apply(None, dry_run=False)
            except (ConfigRefused, ShuttingDown):
                pass  # it was said
            except Exception:
                log.exception("config.failed")

    async def _has_changed(self) -> bool:
        if not self.standing.watched or self._reading is None:
            return False
        return not await asyncio.to_thread(self._reading.unchanged)

    def _refused(
        self, error: ConfigError, reading: FilesRead | None, *, own: bool, dry_run: bool
    ) -> ConfigRefused:
        """What a caller is told; if it was to be served, it is said to all."""
        if not dry_run:
            log.error("config.refused", problem=str(error))
            if own:
                self._reading = reading  # it is tried again when it has changed
                self.standing = replace(self.standing, problem=str(error), refused_at=time.time())
        kind = RestartNeeded if isinstance(error, NotLive) else ConfigRefused
        return kind(str(error), param=error.path or None)

    # -- a change -----------------------------------------------------------------------------------------

    async def _prepare(self, config: Config) -> Prepared:
        """Everything that may fail or take time. Raises ConfigErrors (a NotLive for what is fixed)."""
        difference = compare(self.config, config)
        if difference.fixed:
            raise NotLive(self.config, config, difference)
        try:
            devices = self._driver.devices.changed(config.all_devices)
        except ConfigError as error:
            raise config.failure([(error.path, str(error).removeprefix(f"{error.path}: "))]) from error
        new = [one.after for one in difference.of(Kind.ADDED, Kind.REPLACED) if one.after is not None]
        fresh = await self._entries(config, new)
        ledgers = self._with(devices)
        everyone = {model.spec.model for model in config.models}
        suspects = everyone if devices else {one.name for one in difference.models}
        check_placements(config, list(self._after(config, fresh)), ledgers, suspects)
        return Prepared(config, difference, fresh, devices, self._event(config, difference, fresh, devices))

    async def _entries(self, config: Config, models: Sequence[Model]) -> dict[str, Entry]:
        """These models as they are run here, by name; a version that is served already is taken as it is."""
        known = {one.spec.model: self._names.version(one.spec.version) for one in models}
        new = [one for one in models if known[one.spec.model] is None]
        fresh = await asyncio.to_thread(entries_of, config, new, self._driver.devices, self._store)
        for entry in fresh.values():
            await self._driver.examine(entry)
        return fresh | {name: entry for name, entry in known.items() if entry is not None}

    def _with(self, devices: Iterable[Device]) -> Mapping[str, DeviceLedger]:
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
        self, config: Config, difference: Difference, fresh: Mapping[str, Entry], devices: Iterable[Device]
    ) -> ev.Changed:
        parts: list[ev.Part] = [ev.DeviceAdded(device) for device in devices]
        if config.server.queue_bound != self.config.server.queue_bound:
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
        parts += [ev.Removed(entry.spec.version) for entry in self._left_behind(config)]
        for one in difference.of(Kind.POLICY):
            if one.after is not None and one.before is not None and one.after.policy != one.before.policy:
                version = self._names.resolve(one.name).spec.version
                parts.append(ev.PolicyChanged(version, one.after.policy))
        return ev.Changed(tuple(parts))

    def _left_behind(self, config: Config) -> list[Entry]:
        """Versions that are served beside those of their models, and whose model or engine changes."""
        models = {model.spec.model: model for model in config.models}
        return [
            entry
            for entry in self._names.others()
            if (model := models.get(entry.spec.model)) is None
            or (
                model.spec.version != entry.spec.version
                and config.profiles.get(entry.spec.engine) != self.config.profiles.get(entry.spec.engine)
            )
        ]

    def _check_open(self) -> None:
        if self._driver.scheduler.state.shutting_down:
            raise ShuttingDown("the server is shutting down")

    def _make(self, prepared: Prepared) -> None:
        """The change itself, in one turn of the event loop: who is woken by it finds all of it made. Raises
        ConfigErrors, ShuttingDown and what `Driver.change` does before anything has changed."""
        config, difference = prepared.config, prepared.difference
        self._check_open()
        self._check_held(prepared)
        left_behind = self._left_behind(config)
        self._driver.change(prepared.event, prepared.fresh.values())  # first: nothing behind it can fail
        self._driver.devices.take(prepared.devices)
        for one in difference.of(Kind.REPLACED):
            self._names.model(one.name).successor = prepared.fresh[one.name]
        for one in difference.of(Kind.REPLACED, Kind.POLICY):
            if one.after is not None:
                entry = prepared.fresh.get(one.name) or self._names.model(one.name)
                entry.policy, entry.price, entry.successor = one.after.policy, one.after.price, None
                for beside in self._names.others():
                    if beside.spec.model == one.name:
                        beside.price = one.after.price
        for entry in (*left_behind, *prepared.fresh.values()):
            self._names.drop_other(entry.spec.version)
        known = {entry.spec.model: entry for entry in self._names.all()} | dict(prepared.fresh)
        self._names.replace((known[model.spec.model], model.aliases) for model in config.models)
        self._driver.recheck = config.recheck
        self._take(config)
        before, self.config = self.config, config
        if difference:
            self.standing = replace(self.standing, since=time.time())
        self._preload(before)
        _tell(difference)
        warn_of_shadows(before, config, self._names)

    def _check_held(self, prepared: Prepared) -> None:
        """A budget cannot be less than what instances hold by now."""
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

    def _preload(self, before: Config) -> None:
        """Who is to be preloaded from now on comes."""
        known = {model.spec.model for model in before.models if model.policy.preload}
        wanted = [self._names.resolve(name) for name in self.config.preload if name not in known]
        if wanted:
            self._ahead.load(wanted)
        self._ahead.ask()

    def _running_on(self, difference: Difference) -> dict[str, int]:
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


def _tell(difference: Difference) -> None:
    """One line in the log: names, no values."""
    if not difference:
        return
    models = {kind.value: [one.name for one in difference.of(kind)] for kind in Kind}
    told = {kind: names for kind, names in models.items() if names}
    settings = [one.path for one in difference.settings]
    log.info("config.changed", **told, **({"settings": settings} if settings else {}))
