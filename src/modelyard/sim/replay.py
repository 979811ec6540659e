"""One strategy over all jobs of a trace: the real scheduler on a virtual clock, and what came of it.

Called by `modelyard replay` and `advise`. `Run` holds what happened; the numbers are read from it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.sim.bound import lower_bound
from modelyard.sim.scene import Scene
from modelyard.sim.strategies import Strategy
from modelyard.sim.world import Job, Record, World

POINTS = 1000  # of a series in JSON
ROUNDING = 1e-6  # seconds

Progress = Callable[[float], None]


@dataclass(slots=True)
class Stay:
    """An instance from its start until its memory was free again, in seconds; None for what never came.
    `charges`: bytes by device."""

    instance: str
    model: str
    version: str
    charges: dict[str, int]
    start: float
    ready: float | None = None
    drain: float | None = None
    stop: float | None = None
    gone: float | None = None

    def until(self, end: float) -> float:
        return end if self.gone is None else min(self.gone, end)


@dataclass(slots=True)
class Run:
    """What one strategy did. `memory`: reserved bytes by device, from a moment on; `end`: the last answer."""

    strategy: str
    scene: Scene
    records: list[Record]
    loads: int = 0
    bytes_loaded: int = 0
    cuts: int = 0
    end: float = 0.0
    stays: list[Stay] = field(default_factory=list)
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)  # of those served, ascending

    @property
    def refused(self) -> Counter[str]:
        return Counter(record.refused for record in self.records if record.refused)

    def wait(self, share: float) -> float:
        """A percentile of the waits (nearest rank), 0 when nobody was served."""
        return percentile(self.waits, share)

    def within(self, target: float) -> float:
        """The share of all requests that were served after waiting for `target` seconds at most."""
        return bisect_right(self.waits, target) / max(1, len(self.records))

    def held(self, device: str) -> float:
        """Seconds in which somebody had memory of the device."""
        spans = sorted((stay.start, stay.until(self.end)) for stay in self.stays if device in stay.charges)
        total, reached = 0.0, 0.0
        for start, end in spans:
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total

    def mean_memory(self, device: str) -> float:
        """Bytes reserved on the device, on average over the time of the run."""
        steps = self.memory[device]
        total = 0.0
        for number, (at, size) in enumerate(steps):
            until = steps[number + 1][0] if number + 1 < len(steps) else self.end
            total += size * max(0.0, min(until, self.end) - at)
        return total / self.end if self.end else 0.0

    def peak_memory(self, device: str) -> int:
        return max((size for _, size in self.memory[device]), default=0)

    def fewest_loads(self) -> int:
        """The lower bound for the requests that were served, had each waited as long as the longest did."""
        jobs = [record.job for record in self.records if record.finished_at is not None]
        longest = self.waits[-1] if self.waits else 0.0
        return fewest_loads(self.scene, jobs, longest + ROUNDING)


def fewest_loads(scene: Scene, jobs: Sequence[Job], max_wait: float) -> int:
    """The lower bound of loads on a scene, the largest over its pools of memory."""
    bounds = [
        lower_bound(jobs, scene.shares(pool), [device.budget for device in pool], max_wait)
        for pool in scene.pools
    ]
    return max([len({job.version for job in jobs}), *bounds])


def replay(scene: Scene, jobs: Sequence[Job], strategy: Strategy, progress: Progress | None = None) -> Run:
    """Serve all jobs, from empty memory. `progress` is told the time that was reached now and then."""
    loads = {model.spec.version: model.load for model in scene.models}
    reads = {model.spec.version: scene.rules.read(model.need) for model in scene.models}
    world = World(
        strategy.scheduler(scene.queue_bound),
        load=loads.__getitem__,
        stop=lambda _: scene.rules.stop,
        read=reads.__getitem__,
    )
    watcher = _Watcher(world, {device.id: [(0.0, 0)] for device in scene.devices}, progress)
    world.watch = watcher.see
    for device in scene.devices:
        world.post(ev.DeviceAdded(device))
    for model in scene.models:
        world.post(ev.Added(model.spec, strategy.policy(model.policy), model.need))
    for version in scene.preload:
        world.post(ev.LoadAsked(version, evict=False))
    world.submit(jobs)
    world.run()
    records = list(world.records.values())
    ended = [record.finished_at or record.granted_at or record.job.at for record in records]
    run = Run(
        strategy.name, scene, records, world.loads, world.bytes_loaded, world.cuts, max(ended, default=0.0)
    )
    run.stays, run.memory = list(watcher.stays.values()), watcher.memory
    run.waits = sorted(record.wait for record in records if record.wait is not None)
    return run


class _Watcher:
    """Notes who is resident when, and how much memory is reserved."""

    def __init__(
        self, world: World, memory: dict[str, list[tuple[float, int]]], progress: Progress | None
    ) -> None:
        self.stays: dict[str, Stay] = {}
        self.memory = memory
        self._world = world
        self._progress = progress
        self._told = 0

    def see(self, now: float, event: ev.Event, actions: list[ac.Action]) -> None:
        match event:
            case ev.Ready(instance) if (stay := self.stays[instance]).stop is None:
                stay.ready = now
            case ev.Released(instance):
                self.stays[instance].gone = now
                self._look(now)
            case ev.Arrived() if self._progress is not None:
                self._told += 1
                if self._told % 1000 == 0:
                    self._progress(now)
            case _:
                pass
        for action in actions:
            self._take(now, action)

    def _take(self, now: float, action: ac.Action) -> None:
        match action:
            case ac.Start(instance, _, version, placement):
                model = self._world.scheduler.state.versions[version].spec.model
                charges = {charge.device: charge.whole for charge in placement}
                self.stays[instance] = Stay(instance, model, version, charges, now)
                self._look(now)
            case ac.Stop(instance) | ac.Release(instance):
                self.stays[instance].stop = now
            case ac.Note("leave", instance):
                self.stays[instance].drain = now
            case _:
                pass

    def _look(self, now: float) -> None:
        for device, account in self._world.scheduler.state.ledger.devices.items():
            steps = self.memory[device]
            if account.reserved != steps[-1][1]:
                steps.append((now, account.reserved))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of a sorted list, 0 for an empty one."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0


def thinned(steps: Sequence[tuple[float, int]], points: int = POINTS) -> list[tuple[float, int]]:
    """A series of steps with about so many points at most: of each stretch the largest is kept."""
    if len(steps) <= points:
        return list(steps)
    width = -(-len(steps) // points)
    return [max(steps[at : at + width], key=lambda step: step[1]) for at in range(0, len(steps), width)]


def as_json(run: Run, target: float, fewest: int | None) -> dict[str, Any]:
    """What one run came to, for programs. Bytes, seconds; shares from 0 to 1."""
    return {
        "strategy": run.strategy,
        "requests": len(run.records),
        "loads": run.loads,
        "fewest_loads": fewest,
        "bytes_loaded": run.bytes_loaded,
        "wait_p50": run.wait(0.5),
        "wait_p95": run.wait(0.95),
        "wait_p99": run.wait(0.99),
        "wait_max": run.wait(1.0),
        "target": target,
        "within_target": run.within(target),
        "refused": dict(run.refused),
        "cut": run.cuts,
        "seconds": run.end,
        "devices": {
            device.id: {
                "budget": device.budget,
                "held_seconds": run.held(device.id),
                "memory_mean": run.mean_memory(device.id),
                "memory_peak": run.peak_memory(device.id),
                "memory": [[round(at, 3), size] for at, size in thinned(run.memory[device.id])],
            }
            for device in run.scene.devices
        },
    }
