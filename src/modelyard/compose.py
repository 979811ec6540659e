"""The only place that builds real objects from a configuration, and the life of a whole yard.

Called by the command line and by `embed`. It wires; it decides nothing and serves nothing itself.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import structlog
import uvloop

from modelyard.config import Config, ConfigErrors, Model, Problem
from modelyard.config.listen import is_loopback
from modelyard.core import invariants
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Address, DeviceKind, Spec
from modelyard.engines import registry
from modelyard.engines.base import Engine, Profile
from modelyard.errors import ModelyardError
from modelyard.gateway.app import build_app
from modelyard.gateway.auth import Gate
from modelyard.gateway.http.limits import Limits
from modelyard.gateway.http.server import Server
from modelyard.gateway.inference import Inference
from modelyard.gateway.names import Names
from modelyard.gateway.openai import render
from modelyard.gateway.serve import Service
from modelyard.launchers.local import LocalLauncher
from modelyard.runtime.devices import Devices
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.runtime.files import StoreFiles
from modelyard.runtime.footprints import FileFootprints
from modelyard.runtime.views import snapshot
from modelyard.store import Store
from modelyard.store.local import absent
from modelyard.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

GC_THRESHOLDS = (10_000, 20, 50)  # requests leave no cycles behind, so there is little to find
LAST_WORDS = 1.0  # seconds in which an answer that was cut at the end of the grace is told why
DEMAND_EVERY = 60.0  # seconds between two records of what was asked for


class Yard:
    """A configured Modelyard: made by `build`, listens from `start` until `stop` or `close`."""

    def __init__(
        self, config: Config, driver: Driver, store: Store, names: Names, metrics: Metrics, server: Server
    ) -> None:
        self.config = config
        self.store = store
        self.driver = driver
        self.names = names
        self.metrics = metrics
        self.server = server
        self.reaped: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Address:
        """Reap leftovers, look at the devices, listen, and preload. Returns where it listens. Raises
        ConfigErrors for a model that can never fit, OSError when it cannot listen."""
        self.reaped = await self.driver.open()
        for entry in self.names.all():
            await self.driver.add(entry)
        self._check_placements()
        setting = self.config.server
        where = (
            Address(path=str(setting.unix)) if setting.unix else Address(host=setting.host, port=setting.port)
        )
        await self.server.start(where)
        self._tasks = [
            asyncio.create_task(self._preload()),
            asyncio.create_task(self._record_demand()),
        ]
        return self.server.address

    async def add_model(self, config: Config, model: Model) -> None:
        """Serve one more model from now on; `config` is the one it was read from. Raises ConfigErrors."""
        entry = _entry(config, model, self.driver.devices, self.store)
        await self.driver.add(entry)
        self.names.add(entry, model.aliases)

    def remove_model(self, name: str) -> None:
        """Stop serving a model: who waits is refused, what runs finishes. Raises ModelNotFound."""
        entry = self.names.remove(name)
        self.driver.remove(entry.spec.version)

    def _check_placements(self) -> None:
        """Raise ConfigErrors for models that no device can ever hold, as far as their files are here."""
        problems = [
            (
                f"models.{version.spec.model}",
                f"needs {version.never.need} bytes and can never fit: {version.never.reason}",
            )
            for version in self.driver.scheduler.state.versions.values()
            if version.never is not None
        ]
        if problems:
            raise self.config.failure(problems)

    async def stop(self, grace: float) -> None:
        """Let what runs finish for `grace` seconds, then stop everything."""
        await self._cancel_tasks()
        # The driver's cut comes first: then whoever is cut off is told so, instead of losing the connection.
        await asyncio.gather(self.server.stop(grace + LAST_WORDS), self.driver.shut_down(grace))
        await self.close()

    async def close(self) -> None:
        """Stop everything now. Idempotent."""
        await self._cancel_tasks()
        await self.server.close_now()
        await self.driver.close()
        await asyncio.to_thread(self.store.close)

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _preload(self) -> None:
        """Load what the configuration names, in order, as long as it fits in free memory."""
        demand = self.driver.footprints.demand()
        wanted = [self.names.resolve(name) for name in self.config.preload]
        wanted += [entry for entry in self.names.all() if entry.policy.preload and entry not in wanted]
        if self.config.preload_auto:
            known = [
                entry for entry in self.names.all() if demand.get(entry.spec.model) and entry not in wanted
            ]
            wanted += sorted(known, key=lambda entry: -demand[entry.spec.model])
        for entry in wanted:
            try:
                await self.driver.load(entry.spec.version, evict=False)
            except ModelyardError as error:
                log.warning("preload.skipped", model=entry.spec.model, reason=error.message)

    async def _record_demand(self) -> None:
        """Keep what is asked for, so that the next start can preload it."""
        counted: dict[str, int] = {}
        try:
            while True:
                await asyncio.sleep(DEMAND_EVERY)
                await asyncio.to_thread(self._add_demand, self._asked(), counted)
        finally:
            self._add_demand(self._asked(), counted)

    def _asked(self) -> dict[str, int]:
        models = [entry.spec.model for entry in self.names.all()]
        return {model: sum(self.metrics.traffic(model).ended.values()) for model in models}

    def _add_demand(self, asked: Mapping[str, int], counted: dict[str, int]) -> None:
        for model, total in asked.items():
            more = total - counted.get(model, 0)
            if more > 0:
                self.driver.footprints.record_demand(model, more)
                counted[model] = total


async def build(config: Config, *, check_invariants: bool = False) -> Yard:
    """Make a yard. Raises ConfigErrors for what cannot be run on this machine; nothing is started yet."""
    data = config.server.data_dir
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as undo:
        devices = Devices.discover(config.devices, os.environ)
        undo.callback(devices.close)
        store = Store(data / "store")
        undo.callback(store.close)
        names = _names(config, devices, store)
        driver = Driver(
            Scheduler(queue_bound=config.server.queue_bound),
            LocalLauncher(data),
            devices,
            StoreFiles(store),
            FileFootprints(data / "footprints.json"),
            recheck=config.recheck,
            check=invariants.check if check_invariants else None,
        )
        metrics = Metrics()
        metrics.snapshot = lambda: snapshot(driver)
        driver.on_note = metrics.count
        driver.timing = metrics.scheduler
        yard = Yard(config, driver, store, names, metrics, _server(config, driver, names, metrics))
        undo.pop_all()
    return yard


def _server(config: Config, driver: Driver, names: Names, metrics: Metrics) -> Server:
    """The gateway: inference lanes, control surface, and the checks in front of both."""
    gate = _gate(config)
    service = Service(driver, metrics, heartbeat_after=config.server.heartbeat_after)
    inference = Inference(service, names, gate)
    app = build_app(driver, names, config, metrics)
    return Server(inference.handler_for, app, _limits(config), admit=gate.admit, render_error=render)


def _names(config: Config, devices: Devices, store: Store) -> Names:
    """All models as they are run here. Raises ConfigErrors with what is wrong with any of them."""
    names = Names()
    problems: list[Problem] = []
    for model in config.models:
        try:
            names.add(_entry(config, model, devices, store), model.aliases)
        except ConfigErrors as error:
            problems += error.problems
    if problems:
        raise ConfigErrors(problems)
    return names


def _entry(config: Config, model: Model, devices: Devices, store: Store) -> Entry:
    """The model as it is run here. Raises ConfigErrors with the path of what cannot be."""
    profile = config.profiles[model.spec.engine]
    engines = registry.load()
    engine = engines.get(profile.type)
    if engine is None:
        known = ", ".join(sorted(engines))
        path = f"engines.{profile.name}.type" if profile.name in config.profiles else f"{model.path}.engine"
        raise config.failure([(path, f"there is no engine {profile.type!r}; there are {known}")])
    spec = _on_devices(model.spec, profile, devices)
    problems = [(f"{model.path}.{path}", message) for path, message in engine.problems(spec, profile)]
    problems += _misplaced(model, spec, devices)
    problems += _bad_sources(model, spec, engine, store)
    if problems:
        raise config.failure(problems)
    on_path = {program: shutil.which(program) for program in engine.programs}
    found = {program: path for program, path in on_path.items() if path is not None}
    return Entry(spec, model.policy, engine, replace(profile, found=found))


def _on_devices(spec: Spec, profile: Profile, devices: Devices) -> Spec:
    """A spec that names no device may use every accelerator there is, and host RAM where there is none."""
    chosen = spec.devices or profile.devices
    if not chosen:
        accelerators = tuple(d.id for d in devices.all if d.kind is not DeviceKind.RAM)
        chosen = accelerators or ("ram",)
    return replace(spec, devices=chosen)


def _misplaced(model: Model, spec: Spec, devices: Devices) -> list[tuple[str, str]]:
    known = {device.id for device in devices.all}
    return [
        (f"{model.path}.devices", f"there is no device {name!r}; there are {', '.join(sorted(known))}")
        for name in spec.devices
        if name not in known
    ]


def _bad_sources(model: Model, spec: Spec, engine: Engine, store: Store) -> list[tuple[str, str]]:
    """Sources that cannot work: a local file that is not there, a scheme that nobody knows."""
    problems = []
    for role, source in engine.sources(spec).items():
        problem = store.problem(source) or absent(source)
        if problem is not None:
            where = "source" if role == "model" else f"parameters.{role}"
            problems.append((f"{model.path}.{where}", problem))
    return problems


def _gate(config: Config) -> Gate:
    setting = config.server
    local = setting.unix is not None or is_loopback(setting.host)
    hosts = (*setting.allowed_hosts, setting.host) if local else setting.allowed_hosts
    return Gate(config.keys, hosts=hosts, origins=setting.allowed_origins, local=local)


def _limits(config: Config) -> Limits:
    limits = config.server.limits
    return Limits(
        header_bytes=limits.header,
        header_timeout=limits.header_timeout,
        body_bytes=limits.body,
        body_progress=limits.body_timeout,
        buffered_bytes=limits.buffered,
        connections=limits.connections,
        write_stall=limits.write_timeout,
    )


def serve(
    config: Config, *, on_ready: Callable[[Yard], None] | None = None, check_invariants: bool = False
) -> int:
    """Run until SIGINT or SIGTERM: the first drains for `server.drain_grace`, the second stops at once.

    Returns the exit code. Raises ConfigErrors before anything is started.
    """
    return uvloop.run(_serve(config, on_ready, check_invariants))


async def _serve(config: Config, on_ready: Callable[[Yard], None] | None, check_invariants: bool) -> int:
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    yard = await build(config, check_invariants=check_invariants)
    try:
        address = await yard.start()
        _settle_garbage_collector()
        log.info("listening", address=str(address), models=len(yard.names.all()), reaped=len(yard.reaped))
        if on_ready is not None:
            on_ready(yard)
        await first.wait()
        await _drain(yard, second)
    finally:
        await yard.close()
    return 0


def _settle_garbage_collector() -> None:
    """What was made until now stays: have no collection look at it again. A full one over all imported
    modules would hold every stream up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _drain(yard: Yard, enough: asyncio.Event) -> None:
    """Stop in order, until `enough` is said."""
    draining = asyncio.ensure_future(yard.stop(yard.config.server.drain_grace))
    cut = asyncio.ensure_future(enough.wait())
    try:
        await asyncio.wait({draining, cut}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        draining.cancel()
        cut.cancel()
        await asyncio.gather(draining, cut, return_exceptions=True)
