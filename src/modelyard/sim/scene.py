"""What a trace is replayed on: devices, models with sizes and times, and the jobs that a trace becomes.

Made by `cli/replay.py` from a configuration, or here from nothing (`synthetic`). Everything that is assumed
is kept as text beside the numbers, to be printed with every result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import median

from modelyard.core.types import Device, DeviceKind, Need, Policy, Share, Spec
from modelyard.sim.inputs import Trace, TraceError
from modelyard.sim.lines import RecordedServer, Request
from modelyard.sim.world import Job

GB = 10**9
RAM = "ram"
SIZES = (2 * GB, 4 * GB, 8 * GB, 16 * GB)
NAMED = 5  # names in a text


@dataclass(frozen=True, slots=True)
class Rules:
    """Durations that nobody recorded, in seconds (and bytes per second). `one_drive`: loads read one after
    the other, at `load_rate`."""

    per_token_in: float = 0.0002
    per_token_out: float = 0.010
    load_fixed: float = 1.0
    load_rate: float = 2.0 * GB
    stop: float = 0.3
    one_drive: bool = False

    def read(self, need: Need) -> float:
        """Seconds of the drive that a load has for itself."""
        return need.bytes / self.load_rate if self.one_drive else 0.0

    def service(self, request: Request) -> float:
        return self.per_token_in * request.tokens_in + self.per_token_out * request.tokens_out

    def load(self, need: Need) -> float:
        return self.load_fixed + need.bytes / self.load_rate

    def __str__(self) -> str:
        service = (
            f"{1000 * self.per_token_in:g} ms per token in + {1000 * self.per_token_out:g} ms per token out"
        )
        load = f"{self.load_fixed:g} s + bytes at {self.load_rate / GB:g} GB/s"
        load += ", one after the other" if self.one_drive else ""
        return f"what was not recorded: service {service}; load {load}; stop {self.stop:g} s"


@dataclass(frozen=True, slots=True)
class Loadable:
    """A model of a scene. `load` is in seconds."""

    spec: Spec
    policy: Policy
    need: Need
    load: float
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """Devices, models, the versions to preload in order, and the bound of what may wait in all; `assumed`
    says what is not known of them."""

    devices: tuple[Device, ...]
    models: tuple[Loadable, ...]
    rules: Rules = field(default_factory=Rules)
    preload: tuple[str, ...] = ()
    queue_bound: int = 1024
    assumed: tuple[str, ...] = ()

    def shares(self, devices: Sequence[Device]) -> dict[str, tuple[int, ...]]:
        """Bytes by version of what each model has of its own on some of these devices."""
        return {
            model.spec.version: tuple(share.bytes for share in model.need.shares if _on(share, devices))
            for model in self.models
        }

    @property
    def pools(self) -> list[list[Device]]:
        """Devices that take each other's place: accelerators, and host memory; those that models lie on."""
        ram = [device for device in self.devices if device.kind is DeviceKind.RAM]
        others = [device for device in self.devices if device.kind is not DeviceKind.RAM]
        return [pool for pool in (others, ram) if any(any(of) for of in self.shares(pool).values())]


def _on(share: Share, devices: Sequence[Device]) -> bool:
    if share.on == "accelerator":
        return any(device.kind is not DeviceKind.RAM for device in devices)
    return any(device.id == share.on for device in devices)


def synthetic(
    names: Sequence[str],
    memory: int,
    *,
    sizes: Sequence[int] = SIZES,
    slots: int = 8,
    rules: Rules | None = None,
) -> Scene:
    """Models of some sizes by turns on one device, with default policies."""
    rules = rules or Rules()
    models = []
    for number, name in enumerate(names):
        need = Need((Share("accelerator", sizes[number % len(sizes)]),))
        models.append(Loadable(Spec(name, "0" * 12, "fake", slots=slots), Policy(), need, rules.load(need)))
    by_turns = ", ".join(f"{size / GB:g}" for size in sizes)
    text = f"{len(models)} models of {by_turns} GB by turns, {slots} slots each, in {memory / GB:g} GB"
    device = Device("gpu0", DeviceKind.DECLARED, memory, memory)
    return Scene((device,), tuple(models), rules, assumed=(f"no configuration: {text}",))


def of_journal(server: RecordedServer, rules: Rules | None = None) -> Scene:
    """The devices of a journal's server and the models that it started, with default policies. Raises
    TraceError where it tells of none."""
    rules = rules or Rules()
    if not server.devices or not server.models:
        what = "devices" if not server.devices else "sizes of models"
        raise TraceError(f"The journal has no {what} to replay on: name a configuration with -c")
    models = []
    for name, placement in server.models.items():
        need = Need(
            tuple(Share("ram" if on == RAM else "accelerator", size) for on, size in placement.items())
        )
        spec = Spec(name, "0" * 12, "fake", slots=server.slots.get(name, 1))
        models.append(Loadable(spec, Policy(), need, server.loads.get(name, rules.load(need))))
    devices = tuple(
        Device(name, DeviceKind.RAM if name == RAM else DeviceKind.DECLARED, budget, budget)
        for name, budget in server.devices.items()
    )
    text = "devices, and the models that were started with their sizes, slots and loads, as in the journal"
    assumed = f"no configuration: {text}; default policies; what was never started has no size there"
    return Scene(devices, tuple(models), rules, assumed=(assumed,))


@dataclass(frozen=True, slots=True)
class Load:
    """The jobs of a trace on a scene, and what was assumed to make them."""

    jobs: tuple[Job, ...]
    assumed: tuple[str, ...]
    skipped: int = 0


def load(trace: Trace, scene: Scene, *, seed: int, skew: float, stretch: float) -> Load:
    """Each request as a job for a version. A request that names no model gets one by Zipf's law: the model at
    place n of the scene is asked for with weight 1 / n^skew. Times are multiplied by `stretch`."""
    versions = {
        name: model.spec.version for model in scene.models for name in (model.spec.model, *model.aliases)
    }
    usual = _usual_service(trace.requests)
    ranked = [model.spec.version for model in scene.models]
    weights = [1.0 / place**skew for place in range(1, len(ranked) + 1)]
    dice = Random(seed)
    counts: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    jobs = []
    for request in trace.requests:
        if not request.model:
            version: str | None = dice.choices(ranked, weights)[0]
            counts["no model"] += 1
        else:
            version = versions.get(request.model) or versions.get(request.model.partition("@")[0])
        if version is None:
            unknown[request.model] += 1
            continue
        service, how = _service(request, usual, scene.rules)
        counts[how] += 1
        jobs.append(Job(request.at * stretch, version, service))
    if jobs and jobs[0].at:
        first = jobs[0].at
        jobs = [replace(job, at=job.at - first) for job in jobs]
    return Load(tuple(jobs), tuple(_told(counts, unknown, seed, skew, stretch)), unknown.total())


def _service(request: Request, usual: Mapping[str, float], rules: Rules) -> tuple[float, str]:
    if request.service is not None:
        return request.service, "recorded"
    if request.tokens_in or request.tokens_out:
        return rules.service(request), "rule"
    if request.model in usual:
        return usual[request.model], "median"
    return usual.get("", 1.0), "median"


def _usual_service(requests: Iterable[Request]) -> dict[str, float]:
    """The median of what was recorded, by model and in all (``)."""
    recorded: dict[str, list[float]] = {}
    for request in requests:
        if request.service is not None:
            recorded.setdefault("", []).append(request.service)
            if request.model:
                recorded.setdefault(request.model, []).append(request.service)
    return {model: median(values) for model, values in recorded.items()}


def _told(
    counts: Counter[str], unknown: Counter[str], seed: int, skew: float, stretch: float
) -> Iterable[str]:
    if counts["no model"]:
        many = f"{counts['no model']:,} requests"
        yield f"models are given to {many} by Zipf's law: exponent {skew:g}, seed {seed}"
    if counts["recorded"]:
        yield f"service times of {counts['recorded']:,} requests as recorded"
    if counts["median"]:
        many = f"{counts['median']:,} requests"
        yield f"service times of {many} are unknown: the median of their model's, or of all, or 1 s"
    yield f"times are stretched by {stretch:g}" if stretch != 1.0 else "times as recorded"
    if unknown:
        names = ", ".join(name[:60] for name, _ in unknown.most_common(NAMED))
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        why = "models that are not configured, or without a size"
        yield f"{unknown.total():,} requests left out for {why}: {names}{more}"
