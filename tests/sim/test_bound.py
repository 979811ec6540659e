"""The lower bound of loads, against the fewest loads that an exhaustive search finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

import pytest

from modelyard.core import events as ev
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Policy
from modelyard.sim.bound import lower_bound
from modelyard.sim.world import Job, World
from sim.scenes import gpu, key, need, served, spec

INSTANCES = 200
BLOCKS = 10
PARTS = 2

Resident = tuple[tuple[int, float] | None, ...]  # by version: on which device, and since when
States = dict[tuple[Resident, frozenset[int]], int]  # with the jobs that are done: the fewest loads so far


@dataclass(frozen=True)
class Tiny:
    """An instance small enough to try everything. Loads and stops take no time, and what is resident may
    change PARTS times within one instant."""

    jobs: tuple[Job, ...]
    shares: dict[str, tuple[int, ...]]
    budgets: tuple[int, ...]
    max_wait: float

    @classmethod
    def draw(cls, seed: int) -> Tiny:
        dice = Random(seed)
        names = "abcd"[: dice.choice([2, 3, 3, 4])]
        uniform, waits, services = dice.random() < 0.4, dice.choice([0, 1, 2]), dice.choice([0, 1, 1, 2])
        shares: dict[str, tuple[int, ...]]
        shares = {name: (2 if uniform else dice.randint(1, 3),) for name in names}
        two = len(names) < 4 and dice.random() < 0.3
        budgets = (3, dice.randint(1, 2)) if two else (dice.randint(3, 4),)
        count, span = dice.randint(4, 7), dice.randint(5, 9)
        jobs = tuple(
            Job(
                float(at),
                dice.choice(names),
                float(dice.randint(0, services)),
                max_wait=float(dice.randint(0, waits)) if dice.random() < 0.3 else None,
            )
            for at in sorted(dice.choices(range(span), k=count))
        )
        return cls(jobs, shares, budgets, float(dice.choice([0, 0, 1, 2])))

    def deadline(self, job: Job) -> float:
        return job.at + (self.max_wait if job.max_wait is None else job.max_wait)

    def bound(self) -> int:
        return lower_bound(self.jobs, self.shares, self.budgets, self.max_wait)

    def fewest(self) -> int | None:
        """The fewest loads of any schedule, None when there is no schedule."""
        names = sorted({job.version for job in self.jobs})
        placements = list(self._placements(names))
        end = max(self.deadline(job) + job.service for job in self.jobs)
        states: States = {((None,) * len(names), frozenset()): 0}
        for moment in range(int(end) + 1):
            for _ in range(PARTS):
                after: States = {}
                for (resident, done), loads in states.items():
                    for chosen in placements:
                        now, more = _moved(resident, chosen, float(moment))
                        state = (now, self._done(names, now, done, float(moment)))
                        after[state] = min(loads + more, after.get(state, loads + more))
                states = _undominated(after)
        everything = frozenset(range(len(self.jobs)))
        return min((loads for (_, done), loads in states.items() if done == everything), default=None)

    def _placements(self, names: list[str]) -> Iterator[tuple[int | None, ...]]:
        options: list[int | None] = [None, *range(len(self.budgets))]
        for chosen in product(options, repeat=len(names)):
            by_device = [0] * len(self.budgets)
            for name, device in zip(names, chosen, strict=True):
                if device is not None:
                    by_device[device] += self.shares[name][0]
            if all(used <= budget for used, budget in zip(by_device, self.budgets, strict=True)):
                yield chosen

    def _done(
        self,
        names: list[str],
        resident: Resident,
        done: frozenset[int],
        moment: float,
    ) -> frozenset[int]:
        """A job is done when its version has been resident from its start, within the wait, to its end."""
        fresh = set()
        for number, job in enumerate(self.jobs):
            held = resident[names.index(job.version)]
            if number not in done and held is not None:
                start = max(job.at, held[1])
                if start <= self.deadline(job) and start + job.service <= moment:
                    fresh.add(number)
        return done | fresh if fresh else done


def _moved(before: Resident, chosen: tuple[int | None, ...], moment: float) -> tuple[Resident, int]:
    """What is on its device already stays there, everything else is loaded now."""
    now = tuple(
        None if device is None else held if held is not None and held[0] == device else (device, moment)
        for held, device in zip(before, chosen, strict=True)
    )
    return now, sum(1 for old, new in zip(before, now, strict=True) if new is not None and new != old)


def _undominated(states: States) -> States:
    best: dict[Resident, list[tuple[frozenset[int], int]]] = {}
    for (resident, done), loads in states.items():
        best.setdefault(resident, []).append((done, loads))
    return {
        (resident, done): loads
        for resident, options in best.items()
        for done, loads in options
        if not any(other > done and less <= loads for other, less in options)
    }


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_schedule_needs_fewer_loads(block: int) -> None:
    tried = exact = 0
    for seed in range(block, INSTANCES, BLOCKS):
        tiny = Tiny.draw(seed)
        fewest = tiny.fewest()
        if fewest is not None:
            bound = tiny.bound()
            assert bound <= fewest, (seed, tiny)
            tried, exact = tried + 1, exact + (bound == fewest)
    assert tried > INSTANCES / BLOCKS / 2
    assert exact / tried > 0.7


def test_two_that_take_turns_in_memory_for_one() -> None:
    jobs = [Job(100.0 * number, "ab"[number % 2], 1.0) for number in range(10)]
    sizes = {"a": (8,), "b": (8,)}
    assert lower_bound(jobs, sizes, (8,), 10.0) == 10
    assert lower_bound(jobs, sizes, (16,), 10.0) == 2
    # a b|b a|a b|b a|a b: who may wait for longer than a turn lets the next but one be served with it.
    assert lower_bound(jobs, sizes, (8,), 250.0) in (3, 4, 5, 6)
    assert lower_bound(jobs, sizes, (8,), 1000.0) == 2


def test_halves_on_two_devices_make_no_whole() -> None:
    jobs = [Job(100.0 * number, "abc"[number % 3], 1.0) for number in range(9)]
    sizes = dict.fromkeys("abc", (6,))
    assert lower_bound(jobs, sizes, (9, 9), 1.0) > lower_bound(jobs, sizes, (18,), 1.0) == 3


def test_what_never_fits_or_nothing_at_all() -> None:
    assert lower_bound([], {}, (8,), 1.0) == 0
    assert lower_bound([Job(0.0, "a", 1.0)], {"a": (9,)}, (8,), 1.0) == 1
    assert lower_bound([Job(0.0, "a", 1.0)], {"a": (0,)}, (), 1.0) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_scheduler_never_does_with_fewer(seed: int) -> None:
    dice = Random(seed)
    world = World(Scheduler(100_000), load=lambda _: dice.uniform(0.1, 3.0), stop=lambda _: 0.1)
    budgets = tuple(dice.choice([60, 100]) for _ in range(dice.randint(1, 3)))
    for number, budget in enumerate(budgets):
        world.post(ev.DeviceAdded(gpu(f"gpu{number}", budget)))
    sizes = {f"m{number}": dice.choice([20, 30, 45, 60]) for number in range(8)}
    for name, size in sizes.items():
        policy = Policy(patience=dice.choice([0.0, 2.0]), max_replicas=dice.choice([1, 2]), keep_alive=60.0)
        world.post(ev.Added(spec(name, 2), policy, need(size)))
    at = 0.0
    for _ in range(400):
        at += dice.expovariate(0.3)
        world.submit([Job(at, key(dice.choice([*sizes, "m0", "m1"])), dice.uniform(0.1, 5.0))])
    world.run()
    records = served(world)
    longest = max(record.wait or 0.0 for record in records)
    shares = {key(name): (size,) for name, size in sizes.items()}
    bound = lower_bound([record.job for record in records], shares, budgets, longest)
    assert len(records) == 400
    assert len(sizes) <= bound <= world.loads
