"""The only place that builds real objects from a configuration, and the life of a whole yard.

Called by the command line and by `embed`. It wires; it decides nothing and serves nothing itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from modelyard.config import Config, ConfigErrors, Model, Problem
from modelyard.config.listen import cannot_listen, is_loopback
from modelyard.core import invariants
from modelyard.core.memory import DeviceLedger
from modelyard.core.placement import fit_together, in_units, never_fits
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Address, DeviceKind, Need, Spec
from modelyard.engines import registry
from modelyard.engines.base import Engine, Profile
from modelyard.errors import ModelyardError
from modelyard.gateway.api import render
from modelyard.gateway.app import build_app
from modelyard.gateway.auth import Gate
from modelyard.gateway.explain import with_ids
from modelyard.gateway.http.limits import Limits
from modelyard.gateway.http.server import Server
from modelyard.gateway.inference import Inference
from modelyard.gateway.names import Names
from modelyard.gateway.serve import Service
from modelyard.gateway.snapshot import Snapshot
from modelyard.launchers.local import LocalLauncher
from modelyard.runtime.devices import Devices
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.runtime.files import StoreFiles
from modelyard.runtime.footprints import FileFootprints
from modelyard.runtime.journal import Journal
from modelyard.store import Store
from modelyard.store.local import absent
from modelyard.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

LAST_WORDS = 1.0  # seconds in which an answer that was cut at the end is told why
DEMAND_EVERY = 60.0  # seconds between two records of what was asked for
TASKS_END = 5.0  # seconds in which preloading and recording have to end


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
        self._preloading: set[asyncio.Task[None]] = set()
        self._recording: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._counted: dict[str, int] = {}  # by model: the requests that were recorded as demand
        self._adding = asyncio.Lock()

    async def start(self) -> Address:
        """Reap leftovers, look at the devices, listen, and preload. Returns where it listens. Raises
        ConfigErrors for models that can never fit, and when it cannot listen."""
        self.reaped = await self.driver.open()
        for entry in self.names.all():
            await self.driver.examine(entry)
        self._check_placements(self.config, self.names.all())
        for entry in self.names.all():
            self.driver.add(entry)
        await self._listen()
        self._load_ahead()
        self._recording = _spawn("record_demand", self._record_demand())
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
        async with self._adding:
            taken = {
                name
                for entry in self.names.all()
                for name in (entry.spec.model, *self.names.aliases_of(entry))
            }
            clash = next((name for name in (model.spec.model, *model.aliases) if name in taken), None)
            if clash is not None:
                message = f"'{clash}' is a name of a model that is served; remove that first"
                raise ConfigErrors([Problem(model.path, message)])
            entry = _entry(config, model, self.driver.devices, self.store)
            await self.driver.examine(entry)
            self._check_placements(config, [entry])
            self.driver.add(entry)
            self.names.add(entry, model.aliases)
            if entry.policy.preload:
                self._load_ahead(entry)

    def remove_model(self, name: str) -> None:
        """Stop serving a model: who waits is refused, what runs finishes. Raises ModelNotFound."""
        entry = self.names.remove(name)
        self.driver.remove(entry.spec.version)

    def _check_placements(self, config: Config, entries: Iterable[Entry]) -> None:
        """Raise ConfigErrors for models that no device can ever hold, and for those that have to stay and do
        not fit together, as far as their files are on this machine."""
        devices = self.driver.scheduler.state.ledger.devices
        problems = []
        for entry in entries:
            never = never_fits(entry.estimate, entry.spec, devices) if entry.estimate is not None else None
            if never is not None:
                message = f"needs {in_units(never.need)} and can never fit: {never.reason}"
                problems.append((f"models.{entry.spec.model}", message))
        if not problems:
            problems = _kept_in_vain(self.names.all(), entries, devices)
        if problems:
            raise config.failure(problems)

    async def stop(self, grace: float) -> None:
        """Let what runs finish for `grace` seconds, then stop everything."""
        self._end_preloading()
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
            undo.push_async_callback(self.driver.close)
            undo.push_async_callback(self.server.close_now)
            self.driver.cut_off()
            if self.server.connections:
                await self.server.stop(LAST_WORDS)
            await self._end_tasks()

    async def _end_tasks(self) -> None:
        """End what runs beside the requests; the demand is recorded once more. What failed has been said."""
        if self._recording is None:
            return
        self._ending.set()
        self._end_preloading()
        _, late = await asyncio.wait({*self._preloading, self._recording}, timeout=TASKS_END)
        for task in late:
            log.error("task.late", task=task.get_name())

    def _end_preloading(self) -> None:
        for task in self._preloading:
            task.cancel()

    def _preloaded(self) -> list[Entry]:
        """What the configuration names, in order, and by past demand if it says so."""
        demand = self.driver.footprints.demand()
        wanted = [self.names.resolve(name) for name in self.config.preload]
        if self.config.preload_auto:
            known = [
                entry for entry in self.names.all() if demand.get(entry.spec.model) and entry not in wanted
            ]
            wanted += sorted(known, key=lambda entry: -demand[entry.spec.model])
        return wanted

    def _load_ahead(self, *wanted: Entry) -> None:
        """Load these, or what the configuration names, beside all else."""
        if self._ending.is_set():
            return
        task = _spawn("preload", self._preload(wanted))
        self._preloading.add(task)
        task.add_done_callback(self._preloading.discard)

    async def _preload(self, wanted: Sequence[Entry]) -> None:
        """Load these, in order, as long as they fit in free memory."""
        for entry in wanted or self._preloaded():
            try:
                await self.driver.load(entry.spec.version, evict=False)
            except ModelyardError as error:
                log.warning("preload.skipped", model=entry.spec.model, reason=error.message)

    async def _record_demand(self) -> None:
        """Keep what is asked for, so that the next start can preload it; for the last time at the end."""
        while not self._ending.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(DEMAND_EVERY):
                    await self._ending.wait()
            if asked := self._asked_since():
                await asyncio.to_thread(self.driver.footprints.record_demand, asked)

    def _asked_since(self) -> dict[str, int]:
        """Requests that ended since the last call, by model."""
        models = [entry.spec.model for entry in self.names.all()]
        totals = {model: sum(self.metrics.traffic(model).ended.values()) for model in models}
        more = {model: total - self._counted.get(model, 0) for model, total in totals.items()}
        self._counted.update(totals)
        return {model: count for model, count in more.items() if count}


def _spawn(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose failure is said when it happens."""

    def on_end(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task.failed", task=name, exc_info=error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(on_end)
    return task


async def build(config: Config, *, check_invariants: bool = False) -> Yard:
    """Make a yard. Raises ConfigErrors for what cannot be run on this machine; nothing is started yet."""
    data = config.server.data_dir
    with ExitStack() as undo:
        with _data_folder(config):
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            store = Store(data / "store")
            undo.callback(store.close)
            footprints = FileFootprints(data / "footprints.json")
        devices = Devices.discover(config.devices, os.environ)
        undo.callback(devices.close)
        names = _names(config, devices, store)
        driver = Driver(
            Scheduler(queue_bound=config.server.queue_bound),
            LocalLauncher(data),
            devices,
            StoreFiles(store),
            footprints,
            recheck=config.recheck,
            journal=Journal(data / "journal", config.journal) if config.journal else None,
            check=invariants.check if check_invariants else None,
        )
        metrics = Metrics()
        driver.on_note = metrics.count
        driver.timing = metrics.scheduler
        yard = Yard(config, driver, store, names, metrics, _server(config, driver, names, metrics))
        undo.pop_all()
    return yard


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


def _server(config: Config, driver: Driver, names: Names, metrics: Metrics) -> Server:
    """The gateway: inference lanes, control surface, and the checks in front of both."""
    gate = _gate(config)
    service = Service(driver, metrics, heartbeat_after=config.server.heartbeat_after)
    inference = Inference(service, names, gate, driver, Snapshot(driver, names))
    app = build_app(driver, names, config, metrics)
    render_error = with_ids(driver, render)
    return Server(
        inference.handler_for,
        app,
        Limits(**asdict(config.server.limits)),
        admit=gate.admit,
        render_error=render_error,
    )


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
    engine = registry.load()[profile.type]
    spec = _on_devices(model.spec, profile, devices)
    problems = [(f"{model.path}.{path}", message) for path, message in engine.problems(spec, profile)]
    problems += _misplaced(model, spec, devices)
    problems += _bad_sources(model, spec, engine, store)
    if problems:
        raise config.failure(problems)
    on_path = {program: shutil.which(program) for program in engine.programs}
    found = {program: path for program, path in on_path.items() if path is not None}
    return Entry(spec, model.policy, engine, replace(profile, found=found))


def _kept_in_vain(
    known: Iterable[Entry], new: Iterable[Entry], devices: Mapping[str, DeviceLedger]
) -> list[tuple[str, str]]:
    """Models that are always to be there, yet do not fit together: the fewest of them, with their sums."""
    kept: dict[str, tuple[int, Need, Spec]] = {}
    for entry in (*known, *new):
        copies = max(entry.policy.min_replicas, int(entry.policy.pin))
        if copies and entry.estimate is not None:
            kept[entry.spec.model] = (copies, entry.estimate, entry.spec)

    def fits(names: Iterable[str]) -> bool:
        return fit_together([kept[name][1:] for name in names for _ in range(kept[name][0])], devices)

    if fits(kept):
        return []
    clash = list(kept)
    for name in kept:
        if not fits(fewer := [other for other in clash if other != name]):
            clash = fewer
    if not any(entry.spec.model in clash for entry in new):
        return []  # known before, and not this one's doing
    sums = {name: kept[name][0] * kept[name][1].bytes for name in clash}
    parts = " + ".join(f"{name} {in_units(size)}" for name, size in sums.items())
    budgets = ", ".join(f"{name} {in_units(account.device.budget)}" for name, account in devices.items())
    message = (
        "has to stay loaded (pin, min_replicas), and what has to does not fit together: "
        f"{parts} = {in_units(sum(sums.values()))}; the budgets are {budgets}"
    )
    return [(f"models.{name}", message) for name in clash]


def _on_devices(spec: Spec, profile: Profile, devices: Devices) -> Spec:
    """A spec that names no device may use any accelerator, or host RAM where there is none."""
    chosen = spec.devices or profile.devices
    if not chosen and all(device.kind is DeviceKind.RAM for device in devices.all):
        chosen = ("ram",)
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
