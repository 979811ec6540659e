"""Replicas that are not equally fast: who is given how much."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Policy
from modelyard.sim.world import Job, World
from sim.scenes import gpu, need, spec

SLOWER = 3.0
SERVICE, SLOTS = 0.1, 4


@dataclass
class Unequal(World):
    """The instance `slow` takes SLOWER times as long for each request."""

    slow: str = ""
    shares: Counter[str] = field(default_factory=Counter)

    def _execute(self, action: ac.Action) -> None:
        if isinstance(action, ac.Grant):
            self.shares[action.instance] += 1
            record = self.records[action.request]
            factor = SLOWER if action.instance == self.slow else 1.0
            record.job = replace(record.job, service=SERVICE * factor)
        World._execute(self, action)


def test_under_load_shares_follow_speed() -> None:
    world = Unequal(Scheduler(), load=lambda _: 1.0)
    for name in ("g0", "g1"):
        world.post(ev.DeviceAdded(gpu(name, 100)))
    model = spec("m", SLOTS)
    world.post(ev.Added(model, Policy(min_replicas=2, max_replicas=2), need(80)))
    world.run(5.0)
    first, second = world.scheduler.state.versions[model.version].ready
    world.slow = first.id
    dice, at, jobs = Random(1), 5.0, []
    while (at := at + dice.expovariate(50.0)) < 65.0:  # of 53 a second that both can do
        jobs.append(Job(at, model.version, SERVICE))
    world.submit(jobs)
    world.run()
    assert all(record.finished_at is not None for record in world.records.values())
    share = world.shares[second.id] / world.shares[first.id]
    assert 0.85 * SLOWER <= share <= 1.15 * SLOWER
