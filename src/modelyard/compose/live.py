"""The configuration that is served, and the one way in which it changes.

It is what the file says and what was registered, together. A change is prepared while requests go on: read,
checked like a start, compared with what is served. Then it is made in one turn of the event loop, or not at
all. Changes are made one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from modelyard.compose.additions import Additions, check_keys
from modelyard.compose.ahead import Ahead
from modelyard.compose.entries import check_placements
from modelyard.compose.preparing import NotLive, Prepared, Preparing
from modelyard.compose.reading import NotRead, Origin, as_problem, read
from modelyard.compose.registered import warn_of_shadows
from modelyard.config import Config, Key, Model
from modelyard.config.difference import Difference, Kind
from modelyard.config.reading import FilesRead
from modelyard.config.together import together
from modelyard.config.versions import keyed
from modelyard.core import events as ev
from modelyard.errors import ConfigError, ConfigRefused, ModelyardError, RestartNeeded, ShuttingDown
from modelyard.gateway.live import Applied, Before, Standing
from modelyard.gateway.names import Names
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.store import Store

log = structlog.get_logger(__name__)

NO_FILE = "What is served was not read from a file; name one."


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
        self._preparing = Preparing(driver, names, store)
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
            prepared = await self._preparing.change(self.config, self._whole(base))
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
            prepared = await self._preparing.change(
                self.config, self._whole(self.base, registered, additions)
            )
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
        entry = (await self._preparing.entries(config, [model]))[model.spec.model]
        check_placements(config, [entry], self._preparing.ledgers(), {model.spec.model})
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
                prepared = await self._preparing.change(self.config, whole)
                running = self._preparing.running_on(prepared.difference)
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

    def _check_open(self) -> None:
        if self._driver.scheduler.state.shutting_down:
            raise ShuttingDown("the server is shutting down")

    def _make(self, prepared: Prepared) -> None:
        """The change itself, in one turn of the event loop: who is woken by it finds all of it made. Raises
        ConfigErrors, ShuttingDown and what `Driver.change` does before anything has changed."""
        config, difference = prepared.config, prepared.difference
        self._check_open()
        self._preparing.check_held(prepared)
        left_behind = self._preparing.left_behind(self.config, config)
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

    def _preload(self, before: Config) -> None:
        """Who is to be preloaded from now on comes."""
        known = {model.spec.model for model in before.models if model.policy.preload}
        wanted = [self._names.resolve(name) for name in self.config.preload if name not in known]
        if wanted:
            self._ahead.load(wanted)
        self._ahead.ask()


def _tell(difference: Difference) -> None:
    """One line in the log: names, no values."""
    if not difference:
        return
    models = {kind.value: [one.name for one in difference.of(kind)] for kind in Kind}
    told = {kind: names for kind, names in models.items() if names}
    settings = [one.path for one in difference.settings]
    log.info("config.changed", **told, **({"settings": settings} if settings else {}))
