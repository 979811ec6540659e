"""What must hold after every event. `check(scheduler state)` raises AssertionError naming what does not.

Called by tests after every step, and by a server that was started with `debug.check_invariants`. Reads only.
"""

from __future__ import annotations

from math import inf, isclose

from modelyard.core.admission import Sums, refresh, swap_bound
from modelyard.core.dispatch import next_pair
from modelyard.core.lifecycle import InstanceState
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import COMING, State

_DEADLINES = {**dict.fromkeys(COMING, "start"), InstanceState.SLEEPING: "sleep"}


def check(scheduler: Scheduler) -> None:
    """Raise AssertionError when an invariant of the settled state is broken."""
    state = scheduler.state
    assert not state.dirty, f"not settled: {list(state.dirty)}"
    assert not state.replan, "not settled: a capacity pass is due"
    _check_memory(state)
    _check_requests(state)
    _check_instances(state)
    _check_line(state)
    _check_sums(state, scheduler.sums)


def _check_memory(state: State) -> None:
    for device, account in state.ledger.devices.items():
        assert account.reserved <= account.device.budget, f"{device}: reserved {account.reserved} over budget"
        charges = [
            (instance.id, charge)
            for instance in state.instances.values()
            for charge in instance.placement
            if charge.device == device
        ]
        assert sorted(account.holders()) == sorted(name for name, _ in charges), f"{device}: wrong holders"
        mapped = {digest: size for _, charge in charges for digest, size in charge.mapped.items()}
        own = sum(account.holds(name)[0] for name, _ in charges)
        assert account.reserved == own + sum(mapped.values()), f"{device}: reserved does not add up"
        excess = sum(max(0, account.holds(name)[1] - account.holds(name)[0]) for name, _ in charges)
        assert account.excess == excess, f"{device}: excess does not add up"
        assert account.foreign >= 0, f"{device}: foreign is negative"


def _check_requests(state: State) -> None:
    queued = [waiting for version in state.versions.values() for waiting in version.queue]
    assert len(queued) == len(state.waiting), "waiting requests and queues disagree"
    for waiting in queued:
        assert state.waiting.get(waiting.request) is waiting, f"{waiting.request} is in a queue only"
        assert waiting.request not in state.leases, f"{waiting.request} waits and holds a lease"
        assert state.timers.when(("request", waiting.request)) == waiting.deadline, (
            f"{waiting.request}: no deadline"
        )
    for version in state.versions.values():
        assert version.queue.count == sum(version.queue.counts) == sum(1 for _ in version.queue), version.key
        assert next_pair(version) is None, f"{version.key}: a slot is free and somebody waits for it"
        due = state.timers.when(("rate", version.key))
        assert version.closed_until is None or due is not None, f"{version.key} is closed for ever"
        new = [waiting.since for waiting in version.queue if not waiting.retried]
        over = len(new) > version.policy.queue_bound
        assert not over or max(new) <= version.policy_at, f"{version.key}: its queue passed its bound"
    for request, lease in state.leases.items():
        assert lease.instance.leases.get(request) is lease, f"{request}: lease without its instance"


def _check_instances(state: State) -> None:
    seen: set[str] = set()
    for version in state.versions.values():
        ready = [i for i in version.instances.values() if i.state is InstanceState.READY]
        assert sorted(i.id for i in ready) == sorted(i.id for i in version.ready), (
            f"{version.key}: ready list"
        )
        seen.update(version.instances)
        for instance in version.instances.values():
            assert state.instances.get(instance.id) is instance, f"{instance.id} is not listed"
            assert instance.state is not InstanceState.GONE, f"{instance.id} is gone and listed"
            over = len(instance.leases) > version.capacity
            youngest = max((lease.granted_at for lease in instance.leases.values()), default=0.0)
            assert not over or youngest <= version.policy_at, f"{instance.id}: too many leases"
            for request in instance.leases:
                assert state.leases[request].instance is instance, f"{request}: two instances"
            asleep = instance.state in (InstanceState.SLEEPING, InstanceState.ASLEEP, InstanceState.WAKING)
            assert not asleep or (instance.rung and not instance.leases), f"{instance.id} sleeps and serves"
            kind = _DEADLINES.get(instance.state)
            due = state.timers.when((kind, instance.id)) if kind is not None else 0.0
            assert due is not None, f"{instance.id} has no deadline"
            idle = instance.state is InstanceState.READY and not instance.leases
            assert not idle or instance.idle_since < inf, f"{instance.id} is idle since nobody knows when"
            draining = instance.state is InstanceState.DRAINING
            assert not draining or instance.leases, f"{instance.id} drains with nothing to wait for"
    assert seen == set(state.instances), "instances and versions disagree"


def _check_line(state: State) -> None:
    for version in state.versions.values():
        starved = version.queue.count and not version.live() and not state.shutting_down
        assert not starved or version.key in state.line, (
            f"{version.key}: somebody waits, and it is not in line"
        )
    for _, key in state.line:
        version = state.versions[key]
        wanted = version.queue.count or version.asked_since is not None
        assert wanted, f"{key} is in line and nobody wants it"


def _check_sums(state: State, sums: Sums) -> None:
    for version in state.versions.values():
        before = list(version.contribution)
        refresh(state, sums, version)
        for old, new in zip(before, version.contribution, strict=True):
            same = isclose(old.turns, new.turns) and isclose(old.swaps, new.swaps) and old.cold == new.cold
            assert same, f"{version.key}: stale bound"
        assert swap_bound(sums, version) >= 0.0
    for priority, total in enumerate(sums.ahead):
        parts = [version.contribution[priority] for version in state.versions.values()]
        assert total.versions == sum(part.versions for part in parts), "the count of who is ahead is wrong"
        assert total.cold == sum(part.cold for part in parts), "the count of who is cold is wrong"
        for name in ("turns", "swaps"):
            expected = sum(getattr(part, name) for part in parts)
            assert isclose(getattr(total, name), expected, rel_tol=1e-6, abs_tol=1e-3), "the sums drifted"
