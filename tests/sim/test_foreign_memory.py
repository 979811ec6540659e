"""Memory that others take and give back: seen at re-checks every ten seconds, on virtual time."""

from __future__ import annotations

import pytest

from modelyard.core import events as ev
from modelyard.core.invariants import check
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Policy, WhenFull
from modelyard.sim.world import Job, World
from sim.scenes import gpu, key, need, spec

RECHECK = 10.0


def world(when_full: WhenFull, *, foreign: int, until: float) -> World:
    """A stranger holds `foreign` of 100 bytes until a moment between two re-checks; `small` (40) idles."""
    made = World(Scheduler(), load=lambda _: 3.0, after_each=check)
    made.post(ev.DeviceAdded(gpu("gpu0", 100)))
    made.post(ev.Added(spec("small"), Policy(min_residency=0.0), need(40)))
    made.post(ev.Added(spec("big"), Policy(when_full=when_full), need(60)))
    made.submit([Job(0.0, key("small"), 1.0), Job(6.0, key("big"), 1.0)])
    made.at(5.0, ev.DeviceSeen("gpu0", 100, 60 - foreign, {"small-1": 40}))
    for number in range(1, 20):
        at = number * RECHECK + 5.0
        made.at(at, ev.DeviceSeen("gpu0", 100, 60 - (foreign if at < until else 0), {"small-1": 40}))
    return made


def _resident(made: World) -> list[tuple[str, str]]:
    return [(i.version.spec.model, i.id) for i in made.scheduler.state.instances.values()]


def test_when_full_wait_starts_at_the_first_recheck_after_the_memory_is_free() -> None:
    made = world(WhenFull.WAIT, foreign=30, until=42.0)
    made.run(until=200.0)
    record = made.records["r1"]
    assert record.granted_at == pytest.approx(45.0 + 3.0), "seen free at 45, and three seconds to load"


def test_when_full_evict_starts_at_once_if_something_can_leave() -> None:
    made = world(WhenFull.EVICT, foreign=30, until=42.0)
    made.run(until=200.0)
    record = made.records["r1"]
    assert record.granted_at == pytest.approx(6.0 + 0.1 + 3.0), "small goes at 6, is gone 0.1 s later"


def test_when_full_evict_puts_nobody_out_in_vain() -> None:
    made = world(WhenFull.EVICT, foreign=50, until=42.0)
    made.run(until=44.0)
    assert ("small", "small-1") in _resident(made), "without small there would be 50, and big needs 60"
    made.run(until=200.0)
    assert made.records["r1"].granted_at == pytest.approx(45.0 + 3.0)
