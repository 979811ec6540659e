"""Scenes for the simulated world: devices, versions and loads, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from modelyard.core import events as ev
from modelyard.core.invariants import check
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Device, DeviceKind, Need, Policy, Rung, Share, Spec
from modelyard.sim.world import Job, Record, World


def gpu(name: str, size: int) -> Device:
    return Device(name, DeviceKind.DECLARED, total=size, budget=size)


def spec(name: str, slots: int = 1) -> Spec:
    return Spec(name, "0" * 12, "fake", slots=slots)


def key(name: str) -> str:
    return spec(name).version


def need(size: int) -> Need:
    return Need((Share("accelerator", size),))


@dataclass(frozen=True)
class Setting:
    """What one run of the wait-bound test is made of; printed when it fails. Seconds."""

    seed: int
    models: int
    devices: int
    slots: int
    replicas: int
    patience: float
    residency: float
    timeout: float
    load: float
    release: float
    drain_cap: float | None
    worst: bool  # every load, answer and release takes as long as it may

    @classmethod
    def draw(cls, seed: int, *, lower_drain_cap: bool = False) -> Setting:
        dice = Random(seed)
        timeout = dice.choice([2.0, 20.0, 60.0])
        return cls(
            seed=seed,
            models=dice.randint(2, 7),
            devices=dice.choice([1, 1, 2, 3]),
            slots=dice.choice([1, 1, 2, 4]),
            replicas=dice.choice([1, 1, 2]),
            patience=dice.choice([0.5, 5.0, 15.0]),
            residency=dice.choice([0.0, 2.0, 8.0]),
            timeout=timeout,
            load=dice.choice([1.0, 10.0, 40.0]),
            release=dice.choice([0.1, 3.0]),
            drain_cap=timeout / 4 if lower_drain_cap else None,
            worst=dice.random() < 0.5,
        )

    def policy(self, **changes: object) -> Policy:
        values: dict[str, object] = {
            "patience": self.patience,
            "min_residency": self.residency,
            "request_timeout": self.timeout,
            "drain_cap": self.drain_cap,
            "release_cap": self.release,
            "load_cap": self.load,
            "max_wait": float("inf"),
            "max_replicas": self.replicas,
            "queue_bound": 10_000,
        }
        return Policy(**(values | changes))  # type: ignore[arg-type]

    def world(self, *, rungs: tuple[Rung, ...] = (), **changes: object) -> World:
        """`models` versions m0, m1, … that each fill one device; everything is cached, nothing is loaded.
        They can sleep on `rungs`."""
        dice = Random(self.seed + 1)
        scheduler = Scheduler(queue_bound=100_000)
        load = self.load if self.worst else self.load * 0.5
        world = World(
            scheduler,
            load=lambda _: load if self.worst else dice.uniform(0.1, 1.0) * load,
            stop=lambda _: self.release if self.worst else dice.uniform(0.1, 1.0) * self.release,
            after_each=check,
        )
        for number in range(self.devices):
            world.post(ev.DeviceAdded(gpu(f"gpu{number}", 100)))
        for number in range(self.models):
            size = 60 if number % 3 else 100
            name = f"m{number}"
            wanted = replace(need(size), rungs=rungs)
            world.post(ev.Added(spec(name, self.slots), self.policy(**changes), wanted))
        return world

    def jobs(self, *, length: float, hot: bool = True) -> list[Job]:
        """A hot m0 with more work than it has slots, and bursts for the others."""
        dice = Random(self.seed + 2)

        def service() -> float:
            return self.timeout if self.worst else dice.uniform(0.05, 1.0) * self.timeout

        jobs: list[Job] = []
        at = 0.0
        while hot and at < length:
            jobs.append(Job(at, key("m0"), service()))
            at += self.timeout / self.slots * dice.uniform(0.5, 1.1)
        for number in range(1, self.models):
            at = dice.uniform(0.0, length / 4)
            while at < length:
                burst = dice.randint(1, 2 * self.slots)
                jobs.extend(Job(at, key(f"m{number}"), service()) for _ in range(burst))
                at += dice.uniform(0.1, 1.0) * length / 3
        return sorted(jobs, key=lambda job: job.at)


def served(world: World) -> list[Record]:
    return [record for record in world.records.values() if record.granted_at is not None]
