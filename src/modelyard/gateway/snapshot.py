"""The scheduling state as the control surface and metrics show it: read between two events, never changed.

Called by `gateway/admin.py`, `gateway/listing.py` and each scrape of the metrics. All of it is quick and
synchronous; what has to look into /proc or a file is done by the caller in a thread and handed in.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from math import isfinite

from modelyard import __version__
from modelyard.config.secrets import shown
from modelyard.core import sleep
from modelyard.core.actions import Note
from modelyard.core.lifecycle import FilesState, InstanceState
from modelyard.core.state import COMING, Instance, State, Version
from modelyard.core.types import Priority
from modelyard.errors import InstanceNotFound, ModelNotFound
from modelyard.gateway import holdings, views
from modelyard.gateway.capabilities import capabilities_of, known_of
from modelyard.gateway.catalog import Catalog
from modelyard.gateway.live import LiveConfig
from modelyard.gateway.names import Names
from modelyard.registry.records import Capabilities
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.runtime.timing import Timing
from modelyard.store.quantize import requantized_from
from modelyard.telemetry.metrics import Snapshot as Gauges

STATUS_EVENTS = 20


class Snapshot:
    """Views of one driver. Moments in the state are loop times; what leaves here is wall-clock time."""

    def __init__(self, driver: Driver, names: Names, live: LiveConfig, catalog: Catalog) -> None:
        self._driver = driver
        self._names = names
        self._live = live
        self._catalog = catalog
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self.created = int(time.time())

    @property
    def _state(self) -> State:
        return self._driver.scheduler.state

    def _wall(self, moment: float) -> float:
        return time.time() + moment - self._loop.time()

    def _ago(self, moment: float | None) -> float | None:
        """Seconds since a loop time; None for one that never was."""
        return None if moment is None or not isfinite(moment) else max(0.0, self._loop.time() - moment)

    # -- the whole ----------------------------------------------------------------------------------------

    def health(self) -> views.Health:
        """The process is up; whether its configuration was refused, what its disk did not take, and whether
        its registry is away."""
        journal, lost = self._driver.journal, None
        if journal is not None and (journal.lost or journal.problem):
            lost = views.JournalHealth(lost=journal.lost, problem=journal.problem)
        found = views.Health(
            config="refused" if self._live.standing.problem else None,
            journal=lost,
            devices=self._closed() or None,
            state_file=self._driver.launcher.problem or None,
            registry=self._catalog.problem or self._catalog.unkept or None,
        )
        return found.model_copy(update={"status": "degraded"}) if found != views.Health() else found

    def _closed(self) -> dict[str, str]:
        accounts = self._state.ledger.devices
        return {device: account.closed for device, account in accounts.items() if account.closed}

    def readiness(self) -> views.Readiness:
        """Whether a request for at least one model could be served, with the reason when not."""
        state = self._state
        if state.shutting_down:
            return views.Readiness(ready=False, reason="the server is shutting down")
        if not state.ledger.devices:
            return views.Readiness(ready=False, reason="no device was seen yet")
        known = [version for version in state.versions.values() if not version.removed]
        if not known:
            return views.Readiness(ready=False, reason="no model is configured")
        if any(self._can_serve(version) for version in known):
            return views.Readiness(ready=True)
        return views.Readiness(ready=False, reason=f"no model can be served; {self._error(known[0])}")

    def status(self) -> views.Status:
        readiness = self.readiness()
        state = self._state
        return views.Status(
            version=__version__,
            uptime=self._loop.time() - self._started,
            ready=readiness.ready,
            reason=readiness.reason,
            shutting_down=state.shutting_down,
            config=self._config(),
            waiting=len(state.waiting),
            running=len(state.leases),
            devices=self.devices({}),
            models=self.models(),
            instances=self.instances(),
            fetches=self.fetches(),
            events=self.events(STATUS_EVENTS),
        )

    def _config(self) -> views.ConfigView:
        standing = self._live.standing
        return views.ConfigView(
            source=str(standing.source) if standing.source is not None else None,
            watched=standing.watched,
            since=standing.since,
            problem=standing.problem,
            refused_at=standing.refused_at or None,
        )

    def gauges(self) -> Gauges:
        """The same as numbers, for metrics."""
        states: Counter[tuple[str, str]] = Counter()
        leases: Counter[str] = Counter()
        for instance in self.instances():
            states[instance.model, instance.state.value] += 1
            leases[instance.model] += len(instance.leases)
        queued = {queue.model: sum(queue.waiting.values()) for queue in self.queues()}
        sizes = {
            (device.id, kind): getattr(device, kind)
            for device in self.devices({})
            for kind in ("budget", "reserved", "observed", "foreign", "free")
        }
        refused = bool(self._live.standing.problem)
        closed = {name: bool(account.closed) for name, account in self._state.ledger.devices.items()}
        work = self._driver.work.by_version()
        return Gauges(states, queued, leases, sizes, refused, closed=closed, **work)

    # -- models -------------------------------------------------------------------------------------------

    def listed_for_anthropic(self, entry: Entry) -> views.AnthropicModel:
        created = datetime.fromtimestamp(self.created, UTC).isoformat().replace("+00:00", "Z")
        return views.AnthropicModel(id=entry.spec.model, display_name=entry.spec.model, created_at=created)

    def ready(self, entry: Entry) -> list[Instance]:
        """The instances of a model that serve."""
        version = self._state.versions.get(entry.spec.version)
        return list(version.ready) if version is not None else []

    def idle_for(self, instance: Instance) -> float:
        """Seconds without a request; 0 for one that has some."""
        return 0.0 if instance.leases else self._ago(instance.idle_since) or 0.0

    def models(self) -> list[views.ModelView]:
        return [self.model(entry) for entry in self._names.all()]

    def model(self, entry: Entry) -> views.ModelView:
        spec, policy = entry.spec, entry.policy
        version = self._state.versions.get(spec.version)
        need = version.need if version is not None else None
        load_time, first_token_time = self._driver.observer.timings(entry)
        return views.ModelView(
            id=spec.model,
            details=self.model_details(entry, self.capabilities(entry)),
            source=shown(spec.source),
            quantize=_quantized(entry),
            need=need.bytes if need is not None else None,
            measured=need is not None and need.known,
            keep_alive=policy.keep_alive if isfinite(policy.keep_alive) else None,
            pin=policy.pin,
            last_used=self._ago(version.last_used) if version is not None else None,
            load_time=_timing(load_time),
            first_token_time=_timing(first_token_time),
            queue=self.queue(entry),
            instance_ids=list(version.instances) if version is not None else [],
            error=self._error(version) if version is not None else "",
            retry_in=self._retry_in(version) if version is not None else None,
        )

    def capabilities(self, entry: Entry) -> Capabilities:
        """What it can do: by its files, while these are not here as the registry kept it."""
        if entry.files is None:
            with suppress(ModelNotFound):
                return known_of(self._catalog.get(entry.spec.version))
        return capabilities_of(entry)

    def model_state(self, entry: Entry) -> views.ModelState:
        return _model_state(self._state.versions.get(entry.spec.version), entry)

    def broken(self, entry: Entry) -> bool:
        """Whether nothing says that it could serve: its files cannot be used, it fits nowhere, or starts of
        it failed time and again and none went well since. Only another start would tell."""
        version = self._state.versions.get(entry.spec.version)
        if version is None:
            return bool(_unusable(entry))
        return not version.ready and _has_failed(version, entry)

    def model_details(self, entry: Entry, can: Capabilities) -> views.ModelDetails:
        spec = entry.spec
        version = self._state.versions.get(spec.version)
        return views.ModelDetails(
            version=spec.version,
            state=_model_state(version, entry),
            engine=entry.engine.type,
            capabilities=sorted(can.features),
            context=can.context,
            slots=spec.slots,
            instances=len(version.ready) if version is not None else 0,
            aliases=list(self._names.aliases_of(entry)),
        )

    def error(self, entry: Entry) -> str:
        """What went wrong with it last, or why it cannot be served here; empty when it can."""
        version = self._state.versions.get(entry.spec.version)
        return _unusable(entry) if version is None else self._error(version)

    def _error(self, version: Version) -> str:
        if version.never is not None:
            return version.never.reason
        return version.last_error[1] or _unusable(self._driver.entries.get(version.key))

    def _retry_in(self, version: Version) -> float | None:
        left = version.backoff_until - self._loop.time()
        return left if left > 0 else None

    def _can_serve(self, version: Version) -> bool:
        if version.never is not None:
            return False
        failing = bool(version.last_error[0]) and self._retry_in(version) is not None
        return bool(version.live()) or not failing

    def queue(self, entry: Entry) -> views.QueueView:
        version = self._state.versions.get(entry.spec.version)
        counts = version.queue.counts if version is not None else [0] * len(Priority)
        waiting = {priority.name.lower(): counts[priority] for priority in Priority}
        since = min((waits.since for waits in version.queue), default=None) if version is not None else None
        blocked = version.blocked_since if version is not None else None
        return views.QueueView(
            model=entry.spec.model,
            waiting=waiting,
            oldest=self._ago(since),
            line=self._place_in_line(entry.spec.version),
            blocked_by=version.blocked_by if version is not None else "",
            blocked_for=self._ago(blocked),
        )

    def _place_in_line(self, version: str) -> int | None:
        for place, (_, name) in enumerate(self._state.line, 1):
            if name == version:
                return place
        return None

    def queues(self) -> list[views.QueueView]:
        return [self.queue(entry) for entry in self._names.all()]

    def fetches(self) -> list[views.FetchView]:
        """The fetches that are under way."""
        fetching = {
            key: version.spec.model
            for key, version in self._state.versions.items()
            if version.files is FilesState.FETCHING
        }
        found = []
        for key, model in fetching.items():
            progress = self._driver.progress.get(key)
            done, total = (progress.done, progress.total) if progress is not None else (0, None)
            found.append(views.FetchView(model=model, done=done, total=total))
        return found

    # -- instances and devices ----------------------------------------------------------------------------

    def find(self, name: str) -> Instance:
        """The instance of this name. Raises InstanceNotFound."""
        instance = self._state.instances.get(name)
        if instance is None:
            raise InstanceNotFound(f"There is no instance {name}; `modelyard ps` lists those that are.")
        return instance

    def instances(self) -> list[views.InstanceView]:
        return [self.instance(instance) for instance in self._state.instances.values()]

    def instance(self, instance: Instance) -> views.InstanceView:
        ready = isfinite(instance.ready_at)
        idle = ready and not instance.leases
        work = self._driver.work.of.get(instance.id)
        rung, gave_back = instance.rung, sleep.gave_back(self._state.ledger, instance)
        return views.InstanceView(
            id=instance.id,
            model=instance.version.spec.model,
            version=instance.version.key,
            state=instance.state,
            generation=instance.generation,
            slots=instance.version.capacity,
            leases=[
                views.LeaseView(request=request, held=self._ago(lease.granted_at) or 0.0)
                for request, lease in instance.leases.items()
            ],
            memory=holdings.of(self._state, instance),
            started_at=self._wall(instance.started_at),
            load_seconds=instance.ready_at - instance.started_at if ready else None,
            idle_for=self._ago(instance.idle_since) if idle else None,
            reason=instance.reason,
            leaving_for=instance.leaving_for,
            suspect=instance.suspect,
            sleep=views.SleepView(rung=rung.name, gave_back=gave_back) if rung is not None else None,
            work=views.WorkView(**asdict(work)) if work is not None else None,
        )

    def details(self, instance: Instance, pids: list[int], log: str) -> views.InstanceDetails:
        return views.InstanceDetails(**dict(self.instance(instance)), pids=pids, log=log)

    def devices(self, pids: Mapping[str, list[int]]) -> list[views.DeviceView]:
        """Every device with who holds what on it; `pids` are the processes by instance."""
        return holdings.devices(self._state, pids)

    # -- events -------------------------------------------------------------------------------------------

    def events(self, last: int) -> list[views.EventView]:
        """The last events, the oldest first."""
        notes = list(self._driver.notes.kept)
        return [self.event(note, at) for at, note in notes[max(0, len(notes) - last) :]]

    def event(self, note: Note, at: float | None = None) -> views.EventView:
        moment = self._loop.time() if at is None else at
        return views.EventView(
            at=self._wall(moment),
            kind=note.kind,
            subject=note.subject,
            message=note.message,
            fields=dict(note.fields),
        )


def _quantized(entry: Entry) -> str:
    """`q4_0`, or `q4_0, requantized from q8_0` once the file is here."""
    file = (entry.files or {}).get("model") if entry.spec.quantize else None
    was = requantized_from(file.header) if file is not None else ""
    return f"{entry.spec.quantize}, requantized from {was}" if was else entry.spec.quantize


def _timing(timing: Timing | None) -> views.TimingView | None:
    return None if timing is None else views.TimingView(**asdict(timing))


def _unusable(entry: Entry | None) -> str:
    """Why the files in the cache cannot be used, until a fetch has found them well."""
    return entry.problem if entry is not None and entry.files is None else ""


def _has_failed(version: Version, entry: Entry) -> bool:
    return version.never is not None or bool(version.last_error[0]) or bool(_unusable(entry))


def _model_state(version: Version | None, entry: Entry) -> views.ModelState:
    if version is None:
        return views.ModelState.FAILED if _unusable(entry) else views.ModelState.IDLE
    states = {instance.state for instance in version.instances.values()}
    if InstanceState.READY in states:
        return views.ModelState.LOADED
    if states & COMING:
        return views.ModelState.LOADING
    if version.files is FilesState.FETCHING:
        return views.ModelState.FETCHING
    if _has_failed(version, entry):
        return views.ModelState.FAILED
    if InstanceState.ASLEEP in states:
        return views.ModelState.ASLEEP
    return views.ModelState.IDLE
