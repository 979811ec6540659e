"""A whole yard: made from a configuration, listening from `start` until `stop` or `close`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from modelyard.compose.additions import check_keys
from modelyard.compose.ahead import Ahead, spawn
from modelyard.compose.catalog import RegistryCatalog
from modelyard.compose.entries import check_placements, entries_of
from modelyard.compose.keeping import Keeping
from modelyard.compose.keys import RegistryKeys
from modelyard.compose.live import Live
from modelyard.compose.profiles import RegistryProfiles
from modelyard.compose.reading import Origin
from modelyard.compose.registered import Held
from modelyard.compose.upkeep import Upkeep
from modelyard.config import Config, ConfigErrors, Model, Problem
from modelyard.config.listen import cannot_listen, check_protected, is_loopback, is_open
from modelyard.core import invariants
from modelyard.core.actions import Note
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Address
from modelyard.gateway.api import render
from modelyard.gateway.app import build_app
from modelyard.gateway.auth import Gate
from modelyard.gateway.early import EarlyEnds
from modelyard.gateway.http.limits import Limits
from modelyard.gateway.http.server import Server
from modelyard.gateway.inference import Inference
from modelyard.gateway.names import Names
from modelyard.gateway.serve import Service
from modelyard.gateway.snapshot import Snapshot
from modelyard.gateway.translation.lane import Lanes
from modelyard.gateway.translation.pairs import Translators
from modelyard.gateway.translation.translating import Translating
from modelyard.launchers.attached import WithAttached
from modelyard.launchers.local import LocalLauncher
from modelyard.registry import Registry
from modelyard.runtime.devices import Devices
from modelyard.runtime.driver import Driver
from modelyard.runtime.files import StoreFiles
from modelyard.runtime.footprints import Footprints
from modelyard.runtime.journal import Journal
from modelyard.runtime.tasks import Tasks
from modelyard.store import Store, sources_of
from modelyard.store.verify import keep_verifying
from modelyard.telemetry.metrics import Metrics
from modelyard.telemetry.usage import Usage

LAST_WORDS = 1.0  # seconds in which an answer that was cut at the end is told why


class Yard:
    """A configured Modelyard: made by `build`, listens from `start` until `stop` or `close`."""

    def __init__(
        self,
        live: Live,
        driver: Driver,
        store: Store,
        names: Names,
        metrics: Metrics,
        ahead: Ahead,
        server: Server,
        catalog: RegistryCatalog,
        upkeep: Upkeep,
        keeping: Keeping,
        tasks: Tasks,
    ) -> None:
        self.live = live
        self.catalog = catalog
        self.metrics = metrics
        self.store = store
        self.driver = driver
        self.names = names
        self.ahead = ahead
        self.server = server
        self.reaped: list[str] = []
        self._upkeep = upkeep
        self.keeping = keeping
        self._tasks = tasks
        self._following: list[asyncio.Task[None]] = []

    @property
    def config(self) -> Config:
        """What is served now."""
        return self.live.config

    async def start(self) -> Address:
        """Reap leftovers, look at the devices, listen, and preload. Returns where it listens. Raises
        ConfigErrors for models that can never fit, and when it cannot listen."""
        self.reaped = await self.driver.open()
        entries = self.names.all()
        for entry in entries:
            await self.driver.examine(entry)
        devices = self.driver.scheduler.state.ledger.devices
        check_placements(self.config, entries, devices, {entry.spec.model for entry in entries})
        if key := await self._upkeep.open():
            self.live.use_key(key)
            await self.keeping.open()
        for entry in entries:
            self.driver.add(entry)
        await self._upkeep.read()
        check_keys(self.config, self.catalog.problem)
        await self._listen()
        self.ahead.start(self.config)
        self._following = [
            spawn("config", self.live.follow()),
            spawn("registry", self._upkeep.follow()),
            spawn("keeping", self.keeping.follow()),
        ]
        if every := self.config.store.verify_every:
            self._following.append(spawn("verify", keep_verifying(self.store, every)))
        return self.server.address

    async def _listen(self) -> None:
        setting = self.config.server
        try:
            if setting.unix:
                if await _answers(setting.unix):  # else what lies there was left behind, and is replaced
                    message = f"{setting.unix} is in use by another server: stop that, or name another path"
                    raise self.config.failure([("server.unix", message)])
                await self.server.start(Address(path=str(setting.unix)))
            else:
                await self.server.start(Address(host=setting.host, port=setting.port))
        except OSError as error:
            raise self.config.failure([cannot_listen(setting, error)]) from error

    async def add_model(self, config: Config, model: Model) -> None:
        """Serve one more model from now on, and load it if it is to be preloaded; `config` is the one it was
        read from. Raises ConfigErrors, also for a name that is taken and for a model that can never fit; then
        nothing has changed."""

        def with_it(now: Config) -> Config:
            taken = {name for one in now.models for name in (one.spec.model, *one.aliases)}
            clash = next((name for name in (model.spec.model, *model.aliases) if name in taken), None)
            if clash is not None:
                message = f"'{clash}' is a name of a model that is served; remove that first"
                raise ConfigErrors([Problem(model.path, message)])
            ahead = (model.spec.model,) if model.policy.preload else ()
            return replace(
                now,
                models=(*now.models, model),
                profiles={**now.profiles, **config.profiles},
                preload=(*now.preload, *ahead),
                positions={**now.positions, **config.positions},
                filled=now.filled | config.filled,
            )

        await self.live.change(with_it)

    async def remove_model(self, name: str) -> None:
        """Stop serving a model: who waits is refused, what runs finishes. Raises ModelNotFound."""

        def without_it(now: Config) -> Config:
            self.names.model(name)
            models = tuple(model for model in now.models if model.spec.model != name)
            return replace(now, models=models, preload=tuple(one for one in now.preload if one != name))

        await self.live.change(without_it)

    async def stop(self, grace: float) -> None:
        """Let what runs finish for `grace` seconds, then stop everything."""
        await self._stop_following()
        self.ahead.stop_loading()
        try:
            async with asyncio.TaskGroup() as both:
                # The driver's cut comes first: then whoever is cut off is told so, instead of losing the
                # connection.
                both.create_task(self.server.stop(grace + LAST_WORDS))
                both.create_task(self.driver.shut_down(grace))
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop everything now; whoever is cut off is told so first. Idempotent."""
        async with AsyncExitStack() as undo:  # what fails does not keep the others from it
            undo.push_async_callback(asyncio.to_thread, self.store.close)
            undo.push_async_callback(self._upkeep.close)
            undo.push_async_callback(self.keeping.close)
            undo.push_async_callback(self.driver.close)
            undo.push_async_callback(self.server.close_now)
            await self._stop_following()
            await self._tasks.close()
            self.driver.cut_off()
            if self.server.connections:
                await self.server.stop(LAST_WORDS)
            await self.ahead.close()

    async def _stop_following(self) -> None:
        """What is served changes no more by itself."""
        following, self._following = self._following, []
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def build(
    config: Config,
    origin: Origin | None = None,
    reload: asyncio.Event | None = None,
    *,
    check_invariants: bool = False,
) -> Yard:
    """Make a yard; `origin` is where its configuration can be read again, which is done when `reload` is set.
    Raises ConfigErrors for what cannot be run on this machine; nothing is started yet."""
    data, registry = config.server.data_dir, Registry(config.registry_url)
    if not registry.exists:  # else its keys are known only when it was read
        check_protected(config)
    with ExitStack() as undo:
        with _data_folder(config):
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            store = Store(data / "store", sources_of(config.store), quota=config.store.quota)
            undo.callback(store.close)
        devices = Devices.discover(config.all_devices, os.environ)
        undo.callback(devices.close)
        names = Names()
        entries = entries_of(config, config.models, devices, store)
        for model in config.models:
            names.add(entries[model.spec.model], model.aliases)
        driver = Driver(
            Scheduler(queue_bound=config.server.queue_bound),
            WithAttached(LocalLauncher(data)),
            devices,
            StoreFiles(store),
            Footprints(),
            recheck=config.recheck,
            journal=Journal(data / "journal", config.journal) if config.journal else None,
            check=invariants.check if check_invariants else None,
        )
        _join(store, driver)
        metrics, usage = Metrics(), Usage()
        driver.notes.count = _counting(driver, metrics, usage)
        driver.timing = metrics.scheduler
        held, tasks = Held(), Tasks()
        keeping = Keeping(registry, held, usage, driver)
        translators = Translators(driver, names, lambda: live.config.translation, held.pairs)
        ahead = Ahead(driver, names, keeping.demand, keeping.pairs, translators)
        gateway = Gateway(driver, names, metrics, usage, translators)
        live = Live(config, origin or Origin(), driver, names, store, ahead, gateway.take, reload)
        catalog = RegistryCatalog(registry, held, live, driver, names)
        upkeep = Upkeep(registry, held, live, names)
        keys, profiles = RegistryKeys(registry, held, live), RegistryProfiles(registry, held, live)
        server = gateway.open(live, catalog, tasks, store, registry, keys, profiles)
        yard = Yard(live, driver, store, names, metrics, ahead, server, catalog, upkeep, keeping, tasks)
        undo.pop_all()
    return yard


def _counting(driver: Driver, metrics: Metrics, usage: Usage) -> Callable[[Note], None]:
    """What notes tell, as metrics and as usage."""

    def count(note: Note) -> None:
        metrics.count(note)
        if note.kind == "ready":
            version = driver.scheduler.state.instances[note.subject].version.key
            entry = driver.entries[version]
            usage.loaded(entry.spec.model, version, entry.price)

    return count


def _join(store: Store, driver: Driver) -> None:
    """The store keeps what the driver's models need, and tells the driver what it removed."""
    loop = asyncio.get_running_loop()

    def on_removed(path: Path) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(driver.lose, path)

    store.shelf.kept = driver.kept_files
    store.shelf.on_removed = on_removed


async def _answers(path: Path) -> bool:
    """Whether somebody listens on a Unix socket."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


@contextmanager
def _data_folder(config: Config) -> Iterator[None]:
    """Turns what the data folder refuses into ConfigErrors that name it."""
    try:
        yield
    except OSError as error:
        data = config.server.data_dir
        where = f"{error.filename}: " if error.filename not in (None, str(data)) else ""
        message = (
            f"the folder {data} cannot be used ({where}{error.strerror or error}); "
            "name one that this user can write, or make it so"
        )
        raise config.failure([("server.data_dir", message)]) from error


class Gateway:
    """Inference lanes, control surface, and the checks in front of both; `take` sets what may change."""

    def __init__(
        self, driver: Driver, names: Names, metrics: Metrics, usage: Usage, translators: Translators
    ) -> None:
        self._driver = driver
        self._names = names
        self._translators = translators
        self._metrics = metrics
        self._gate = Gate()
        self._service = Service(driver, metrics, usage, heartbeat_after=0.0)
        self._server: Server | None = None

    def open(
        self,
        live: Live,
        catalog: RegistryCatalog,
        tasks: Tasks,
        store: Store,
        registry: Registry,
        keys: RegistryKeys,
        profiles: RegistryProfiles,
    ) -> Server:
        """The server of all this, not listening yet."""
        snapshot = Snapshot(self._driver, self._names, live, catalog)
        translating = Translating(self._service, self._names, catalog.bring, self._translators)
        lanes = Lanes(translating, self._gate, lambda: live.config.translation)
        inference = Inference(self._service, self._names, self._driver, snapshot, catalog.bring, lanes)
        app = build_app(
            self._driver,
            self._names,
            live,
            self._metrics,
            store=store,
            catalog=catalog,
            tasks=tasks,
            usage=registry.usage,
            keys=keys,
            engines=profiles,
        )
        self._server = Server(
            inference.handler_for,
            app,
            admit=self._gate.admit,
            render_error=render,
            on_failed=EarlyEnds(self._driver, self._metrics),
        )
        self.take(live.config)
        return self._server

    def take(self, config: Config) -> None:
        """Have these keys, hosts and limits from now on; connections that are open keep their limits."""
        setting = config.server
        local = setting.unix is not None or is_loopback(setting.host)
        hosts = (*setting.allowed_hosts, setting.host) if local else setting.allowed_hosts
        self._gate.take(
            config.keys,
            hosts=hosts,
            origins=setting.allowed_origins,
            local=local,
            is_open=is_open(setting),
        )
        self._service.heartbeat_after = setting.heartbeat_after
        if self._server is not None:
            self._server.limits = Limits(**asdict(setting.limits))
