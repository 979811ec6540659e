"""What to change in a configuration: single changes, each simulated, and what each would have gained.

Called by `modelyard advise`. A change is named only if it gains over the whole trace and loses in neither
half of it: what helped by chance on a few requests does not return.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from modelyard.core.units import short
from modelyard.sim.replay import Run, percentile, replay
from modelyard.sim.scene import Loadable, Scene
from modelyard.sim.strategies import Strategy
from modelyard.sim.world import Job

TOP = 3  # models for which changes of one model are tried
SHARE_NOISE = 0.0005  # of the requests: a smaller change of the share within the target counts as none
LOADS_NOISE = 0.01  # of the loads
LOADS_PER_POINT = 0.10  # of the loads are worth as much as one point of the share, for the order

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do otherwise, as people write it."""

    text: str
    apply: Callable[[Scene], Scene]


@dataclass(frozen=True, slots=True)
class Result:
    """The numbers by which changes are compared. Seconds and bytes; `within` from 0 to 1."""

    loads: int
    bytes_loaded: int
    within: float
    p99: float
    refused: int

    @classmethod
    def of(cls, run: Run, target: float, start: float = 0.0, end: float = float("inf")) -> Result:
        """Of the requests that arrived, and the loads that began, from `start` to before `end`."""
        records = [record for record in run.records if start <= record.job.at < end]
        waits = sorted(record.wait for record in records if record.wait is not None)
        stays = [stay for stay in run.stays if start <= stay.start < end]
        return cls(
            len(stays),
            sum(sum(stay.charges.values()) for stay in stays),
            sum(wait <= target for wait in waits) / max(1, len(records)),
            percentile(waits, 0.99),
            sum(1 for record in records if record.refused),
        )

    def gain(self, base: Result) -> float:
        """How much better than `base`, in points of the share within the target; 0 when nothing is."""
        share, loads = self.within - base.within, 1 - self.loads / max(1, base.loads)
        share = 0.0 if abs(share) < SHARE_NOISE else share
        loads = 0.0 if abs(loads) < LOADS_NOISE else loads
        return 100 * share + loads / LOADS_PER_POINT

    def harms(self, base: Result) -> bool:
        """Whether fewer are served in time, more refused, or the p99 of waits is clearly longer."""
        slower = self.p99 > 1.05 * base.p99 + 0.1
        return self.within < base.within - SHARE_NOISE or self.refused > base.refused or slower


@dataclass(frozen=True, slots=True)
class Tried:
    change: Change
    result: Result
    gain: float
    helps: bool


@dataclass(slots=True)
class Advice:
    """`helpful`: the best first. `left`: changes that there was no simulation left for."""

    base: Result
    tried: list[Tried] = field(default_factory=list)
    left: int = 0

    @property
    def helpful(self) -> list[Tried]:
        return sorted((one for one in self.tried if one.helps), key=lambda one: -one.gain)

    def as_json(self) -> dict[str, Any]:
        return {
            "as_configured": asdict(self.base),
            "changes": [
                {"change": one.change.text, "gain": one.gain, "helps": one.helps, **asdict(one.result)}
                for one in sorted(self.tried, key=lambda one: (-one.helps, -one.gain))
            ],
            "not_tried": self.left,
        }


def advise(
    scene: Scene, jobs: Sequence[Job], strategy: Strategy, target: float, simulations: int, tell: Tell
) -> Advice:
    """Try changes of the scene, `simulations` at most. `tell` is called before each, with what is tried."""
    trial = _Trial(scene, jobs, strategy, target, tell)
    advice = Advice(trial.before[0])
    changes = list(candidates(scene, trial.base))
    advice.tried.extend(trial.of(change) for change in changes[:simulations])
    advice.left = max(0, len(changes) - simulations)
    return advice


class _Trial:
    """Replays of one scene with changes, against the scene as it is."""

    def __init__(
        self, scene: Scene, jobs: Sequence[Job], strategy: Strategy, target: float, tell: Tell
    ) -> None:
        self._scene = scene
        self._jobs = jobs
        self._strategy = strategy
        self._target = target
        self._tell = tell
        self._middle = jobs[len(jobs) // 2].at
        self.base = replay(scene, jobs, strategy)
        self.before = self._parts(self.base)

    def of(self, change: Change) -> Tried:
        self._tell(change.text)
        after = self._parts(replay(change.apply(self._scene), self._jobs, self._strategy))
        gains = [new.gain(old) for new, old in zip(after, self.before, strict=True)]
        harmless = not any(new.harms(old) for new, old in zip(after, self.before, strict=True))
        return Tried(change, after[0], round(gains[0], 3), gains[0] > 0 and min(gains) >= 0 and harmless)

    def _parts(self, run: Run) -> list[Result]:
        """Of the whole, of the first half, of the second half."""
        halves = ((0.0, float("inf")), (0.0, self._middle), (self._middle, float("inf")))
        return [Result.of(run, self._target, start, end) for start, end in halves]


# -- what may be changed ----------------------------------------------------------------------------------


def candidates(scene: Scene, base: Run) -> Iterator[Change]:
    """Changes worth a simulation, the more promising first: by turns those of policy, of one model, of
    memory."""
    kinds = [iter(_memory(scene, base)), iter(_of_models(scene, base)), iter(_policies(scene))]
    while kinds:
        for kind in list(kinds):
            change = next(kind, None)
            if change is None:
                kinds.remove(kind)
            else:
                yield change


def _policies(scene: Scene) -> Iterator[Change]:
    for value in (float("inf"), 3600.0, 60.0):
        if any(model.policy.keep_alive != value for model in scene.models):
            said = "forever" if value == float("inf") else f"{value:g}s"
            yield Change(f"all models: keep_alive: {said}", partial(_with_keep_alive, value=value))


def _of_models(scene: Scene, base: Run) -> Iterator[Change]:
    """Pins for those that are loaded most, copies for those that are waited for most though they are
    there."""
    loads = Counter(stay.version for stay in base.stays)
    crowds = _crowds(base)
    by_version = {model.spec.version: model for model in scene.models}
    loaded = [by_version[version] for version, count in loads.most_common() if count > 1][:TOP]
    crowded = [by_version[version] for version, count in crowds.most_common(TOP) if count]
    for number in range(TOP):
        if number < len(loaded) and not loaded[number].policy.pin:
            yield _one(loaded[number], "pin", True)
        if number < len(crowded):
            model = crowded[number]
            yield _one(model, "max_replicas", model.policy.max_replicas + 1)


def _crowds(base: Run) -> Counter[str]:
    """Requests by version that waited while an instance of theirs was ready, all its slots taken."""
    ready: dict[str, list[tuple[float, float]]] = {}
    for stay in base.stays:
        if stay.ready is not None:
            ready.setdefault(stay.version, []).append((stay.ready, stay.drain or stay.stop or base.end))
    crowds: Counter[str] = Counter()
    for record in base.records:
        if record.wait:
            spans = ready.get(record.job.version, [])
            crowds[record.job.version] += any(start <= record.job.at < end for start, end in spans)
    return crowds


def _memory(scene: Scene, base: Run) -> Iterator[Change]:
    """More memory on each device that was filled: room for one more model of the middle size, then twice
    that much."""
    sizes = sorted(model.need.bytes for model in scene.models)
    step = sizes[len(sizes) // 2]
    for factor in (1, 2):
        for device in scene.devices:
            if step and base.peak_memory(device.id) + sizes[0] > device.budget:
                text = f"devices.{device.id}: {short(factor * step)} more memory"
                more = partial(_with_memory, device=device.id, size=factor * step)
                yield Change(text, more)


def _with_memory(scene: Scene, device: str, size: int) -> Scene:
    devices = (
        replace(one, total=one.total + size, budget=one.budget + size) if one.id == device else one
        for one in scene.devices
    )
    return replace(scene, devices=tuple(devices))


def _one(model: Loadable, name: str, value: bool | int) -> Change:
    text = f"models.{model.spec.model}: {name}: {str(value).lower()}"

    def change(found: Loadable) -> Loadable:
        return replace(found, policy=replace(found.policy, **{name: value}))  # type: ignore[arg-type]

    return Change(text, partial(_with, version=model.spec.version, change=change))


def _with(scene: Scene, version: str, change: Callable[[Loadable], Loadable]) -> Scene:
    """The scene with one model changed."""
    models = (change(one) if one.spec.version == version else one for one in scene.models)
    return replace(scene, models=tuple(models))


def _with_keep_alive(scene: Scene, value: float) -> Scene:
    models = (replace(one, policy=replace(one.policy, keep_alive=value)) for one in scene.models)
    return replace(scene, models=tuple(models))
