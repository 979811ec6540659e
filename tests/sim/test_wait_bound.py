"""The promise: whoever is admitted waits no longer than the bound that was stated at arrival.

Virtual time, memory for one model per device, a hot model under constant load, cold ones in bursts.
"""

from __future__ import annotations

from math import inf

import pytest

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.admission import waits
from modelyard.core.invariants import check
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Device, DeviceKind, Policy, Rung, Share, Spec
from modelyard.sim.world import Job, World
from sim.scenes import Setting, gpu, key, need, served, spec

SEEDS = 24


@pytest.mark.parametrize("lower_drain_cap", [False, True], ids=["nothing-cut", "cut-at-drain-cap"])
@pytest.mark.parametrize("block", range(4))
def test_every_admitted_request_is_granted_within_its_stated_bound(block: int, lower_drain_cap: bool) -> None:
    cuts = waits = 0
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        setting = Setting.draw(seed, lower_drain_cap=lower_drain_cap)
        world = setting.world()
        world.submit(setting.jobs(length=12 * (setting.timeout + setting.load)))
        world.run()
        for name, record in world.records.items():
            assert record.wait is not None, f"{name} was never served ({record.refused}): {setting}"
            assert record.wait <= record.bound + 1e-6, f"{name} waited {record.wait}, {record}: {setting}"
            waits += record.wait > 0.0
        cuts += world.cuts
    assert waits > 100, "nobody had to wait: this load proves nothing"
    assert bool(cuts) == lower_drain_cap, "by default nothing is cut; a lowered drain cap cuts"


@pytest.mark.parametrize("left", [0, 8])
def test_it_holds_where_models_sleep(left: int) -> None:
    """Sleeps as long as stops, wakes as long as loads, and not enough host memory for all."""
    rung = Rung("asleep", (Share("accelerator", left), Share("ram", 50)))
    slept = woken = 0
    for seed in range(SEEDS):
        setting = Setting.draw(seed)
        world = setting.world(rungs=(rung,))
        world.post(ev.DeviceAdded(Device("ram", DeviceKind.RAM, 120, 120)))
        orders: list[ac.Action] = []
        world.watch = lambda _now, _event, actions, orders=orders: orders.extend(actions)
        world.submit(setting.jobs(length=6 * (setting.timeout + setting.load)))
        world.run()
        for name, record in world.records.items():
            assert record.wait is not None, f"{name} was never served ({record.refused}): {setting}"
            assert record.wait <= record.bound + 1e-6, f"{name} waited {record.wait}, {record}: {setting}"
        slept += sum(isinstance(order, ac.Sleep) for order in orders)
        woken += sum(isinstance(order, ac.Wake) for order in orders)
    assert slept > woken > 50


def test_nobody_whose_estimate_is_within_max_wait_is_refused() -> None:
    for seed in range(20):
        setting = Setting.draw(seed)
        world = setting.world(max_wait=300.0)
        world.submit(setting.jobs(length=6 * (setting.timeout + setting.load)))
        estimates: list[tuple[float, str]] = []

        def note(
            event: ev.Arrived, world: World = world, estimates: list[tuple[float, str]] = estimates
        ) -> None:
            state, version = world.scheduler.state, world.scheduler.state.versions[event.version]
            estimate, _ = waits(state, world.scheduler.sums, version, version.policy.priority, world.now)
            estimates.append((estimate, event.request))

        world.before_arrival = note
        world.run()
        for estimate, request in estimates:
            refused = world.records[request].refused == "wait_too_long"
            assert refused <= (estimate > 300.0), f"{request}: {estimate} s: {setting}"


def longest_cold_wait(length: float, patience: float) -> float:
    """The longest wait for a cold model, beside a hot one that is asked for without a pause."""
    world = World(Scheduler(queue_bound=100_000), load=lambda _: 5.0, after_each=check)
    world.post(ev.DeviceAdded(gpu("gpu0", 100)))
    policy = Policy(patience=patience, request_timeout=10.0, load_cap=5.0, max_wait=inf, queue_bound=10_000)
    for name in ("hot", "cold"):
        world.post(ev.Added(spec(name, slots=2), policy, need(80)))
    hot = [Job(0.7 * n, key("hot"), 1.3) for n in range(int(length / 0.7))]
    world.submit([*hot, Job(20.1, key("cold"), 1.0)])
    world.run()
    (wait,) = [record.wait for record in served(world) if record.job.version == key("cold")]
    assert wait is not None
    return wait


def test_without_a_bound_a_cold_model_starves_as_long_as_the_load_lasts() -> None:
    assert [round(longest_cold_wait(length, inf) / length, 1) for length in (200.0, 400.0, 800.0)] == [
        0.9,
        1.0,
        1.0,
    ]
    ours = {longest_cold_wait(length, 5.0) for length in (200.0, 400.0, 800.0)}
    assert len(ours) == 1, "with patience the length of the load does not matter"
    assert ours.pop() < 5.0 + 1.3 + 0.1 + 5.0 + 1e-6


@pytest.mark.parametrize("stuck", ["fetching", "foreign memory"])
def test_a_stuck_head_delays_nobody_else(stuck: str) -> None:
    def waits_of(*, with_stuck: bool) -> list[float | None]:
        setting = Setting.draw(7)
        world = setting.world()
        if stuck == "foreign memory":
            world.post(ev.DeviceAdded(gpu("gpu9", 100)))
            world.post(ev.DeviceSeen("gpu9", 100, 0))
        wanted = None if stuck == "fetching" else need(100)
        blocked = Spec("stuck", "0" * 12, "fake", devices=("gpu9",))
        if with_stuck:
            world.post(ev.Added(blocked, setting.policy(max_wait=1e6), wanted))
        jobs = setting.jobs(length=12 * (setting.timeout + setting.load))
        jobs = [Job(job.at, job.version, job.service) for job in jobs if job.version != key("m0")]
        world.submit([Job(job.at + 1.0, job.version, job.service) for job in jobs])
        if with_stuck:
            world.submit([Job(0.5, blocked.version, 1.0)])
        world.run(until=1e5)
        assert not with_stuck or world.records[f"r{len(jobs)}"].granted_at is None, "it is stuck"
        return [world.records[f"r{number}"].wait for number in range(len(jobs))]

    assert waits_of(with_stuck=True) == waits_of(with_stuck=False)
