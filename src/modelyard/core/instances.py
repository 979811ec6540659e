"""Transitions of instances: begin, become ready, rest, drain, stop, fail, be gone. Part of the scheduler;
called by it alone. Every state change goes through the table in `lifecycle`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from modelyard.core import slowing
from modelyard.core.actions import Cut, Release, Start, Stop
from modelyard.core.lifecycle import InstanceSignal, InstanceState, next_instance
from modelyard.core.placement import never_fits
from modelyard.core.state import Instance, Version
from modelyard.core.step import Step
from modelyard.core.types import Cause, Need, Placement
from modelyard.core.units import in_units

PERMANENT = frozenset({Cause.BAD_MODEL, Cause.BAD_ARGUMENTS, Cause.NOT_INSTALLED})
FOREIGN = frozenset({Cause.KILLED, Cause.LAUNCH})
BACKOFF_FIRST = 0.5
BACKOFF_MOST = 60.0
OOM_GROWTH = 1.25  # of what it was thought to need
OOM_BEYOND = 1.1  # of what it was seen to hold before it died
TRIES = 2  # starts that may fail in a row before whoever waits is told
TRIES_IF_FOREIGN = 3  # the same when it was not the model's own doing

NO_SCORE: Mapping[str, str | float] = {}

Signal, Is = InstanceSignal, InstanceState


def begin(step: Step, version: Version, placement: Placement, reason: str) -> Instance:
    """Reserve the memory and start one more instance."""
    state, now = step.state, step.now
    state.sequence += 1
    slug = "".join(c if c.isalnum() or c in "._-" else "-" for c in version.spec.model)[:40]
    instance = Instance(f"{slug}-{state.sequence}", version, placement, now, reason)
    state.ledger.reserve(instance.id, placement)
    state.instances[instance.id] = version.instances[instance.id] = instance
    instance.beside = slowing.beside(state, instance)
    deadline = now + version.policy.load_cap
    state.timers.set(("start", instance.id), deadline)
    waited = now - version.blocked_since if version.blocked_since is not None else 0.0
    state.room_seconds += 0.2 * (waited - state.room_seconds)
    version.blocked_since, version.blocked_by, version.passed = None, "", 0
    version.unloaded = False
    _count_passed(step, version)
    step.out.append(Start(instance.id, 1, version.key, placement, deadline, reason))
    step.note("start", instance.id, reason, model=version.spec.model, bytes=instance.bytes, waited=waited)
    step.look_at(version)
    return instance


def _count_passed(step: Step, version: Version) -> None:
    """A lower class that waits in line saw a higher one go first."""
    head = version.queue.head()
    low = step.state.line.first_below(head.priority if head else version.policy.priority)
    if low is not None and low != version.key:
        passed = step.state.versions[low]
        passed.passed += 1
        step.look_at(passed)


def ready(step: Step, instance: Instance, observed: Mapping[str, int]) -> None:
    """It generated a token: it serves from now on."""
    state, now, version = step.state, step.now, instance.version
    instance.state = next_instance(instance.state, Signal.READIED)
    state.timers.cancel(("start", instance.id))
    instance.ready_at = now
    instance.idle_since = now
    version.ready.append(instance)
    took = now - instance.started_at
    slowing.learn(state, instance, took)
    version.load_seconds = took if version.load_seconds is None else 0.7 * version.load_seconds + 0.3 * took
    version.last_error = ("", "")
    version.failed_starts = version.foreign_starts = 0
    version.oom_retried = False
    state.ledger.observe(instance.id, observed)
    if version.need is not None and not version.need.known:
        for device, own in observed.items():
            if device in state.ledger.devices:
                state.ledger.devices[device].shrink(instance.id, own)
    step.answer_ask(version, instance.id)
    step.refresh(version)
    step.look_at(version)
    state.replan = True
    _set_expiry(step, instance)
    step.note("ready", instance.id, f"ready after {took:.2f} s", model=version.spec.model, seconds=took)


def rest(step: Step, instance: Instance) -> None:
    """Its last lease ended and nobody waits: its keep-alive begins, and whoever is in line may want it."""
    instance.idle_since = step.now
    if len(step.state.line):
        step.state.replan = True
    _set_expiry(step, instance)


def look_at_expiry(step: Step, version: Version) -> None:
    """How long its idle instances stay has changed."""
    for instance in version.ready:
        if not instance.leases:
            step.state.timers.set(("idle", instance.id), step.now)


def _set_expiry(step: Step, instance: Instance) -> None:
    expiry = _expiry(instance)
    if expiry < inf:
        step.state.timers.set(("idle", instance.id), expiry)


def _expiry(instance: Instance) -> float:
    """When it leaves if it stays idle; one that never served stays for its minimum residency at least."""
    policy = instance.version.policy
    if policy.pin or policy.home:
        return inf
    unused = instance.idle_since == instance.ready_at
    return instance.idle_since + max(instance.keep_alive, policy.min_residency if unused else 0.0)


def idle_out(step: Step, instance: Instance) -> None:
    """Its keep-alive may be over: leave, unless it was used since or is one of the minimum replicas."""
    version = instance.version
    if _expiry(instance) > step.now:
        _set_expiry(step, instance)
    elif len(version.live()) > version.policy.min_replicas:
        leave(step, instance, f"idle for its keep-alive of {instance.keep_alive:g} s")


def leave(
    step: Step,
    instance: Instance,
    reason: str,
    *,
    now: bool = False,
    leaving_for: str = "",
    cut: str = "cut_at_drain",
    score: Mapping[str, str | float] = NO_SCORE,
) -> None:
    """Let it go: no new leases; what runs finishes within the drain cap, or is cut when `now`, with the error
    code `cut`. `score` is told with it: why this one and no other."""
    version = instance.version
    if instance.state is Is.READY:
        instance.state = next_instance(instance.state, Signal.DRAIN)
        instance.leaving_for = leaving_for
        version.ready.remove(instance)
        step.refresh(version)
        step.look_at(version)
        winner = step.state.versions.get(leaving_for)
        who = {"for": winner.spec.model} if winner is not None else {}
        running = len(instance.leases)
        step.note("leave", instance.id, reason, model=version.spec.model, running=running, **who, **score)
        if instance.leases and not now:
            step.state.timers.set(("drain", instance.id), step.now + version.policy.drain)
            return
    elif instance.state in (Is.STARTING, Is.WARMING):
        instance.leaving_for = leaving_for
    elif instance.state is not Is.DRAINING or not now:
        return
    _cut(step, instance, cut, f"{instance.id} had to leave: {reason}")
    stop(step, instance, reason, now=now)


def stop(step: Step, instance: Instance, reason: str, *, now: bool = False) -> None:
    """Stop the process, on which nothing runs any more."""
    instance.state = next_instance(instance.state, Signal.STOP)
    instance.generation += 1
    _cancel_timers(step, instance)
    cap = instance.version.policy.release_cap
    step.out.append(Stop(instance.id, instance.generation, cap, reason, now))
    step.look_at(instance.version)


def fail(step: Step, instance: Instance, cause: Cause, detail: str) -> None:
    """It failed to start, crashed, or was condemned: release what it holds, back off, tell who waits."""
    version = instance.version
    starting = instance.state in (Is.STARTING, Is.WARMING)
    instance.state = next_instance(instance.state, Signal.FAILED)
    instance.generation += 1
    _cancel_timers(step, instance)
    if instance in version.ready:
        version.ready.remove(instance)
    _cut(step, instance, "engine_died", f"{instance.id} failed: {cause.value}")
    reason = f"{cause.value}: {detail}" if detail else cause.value
    cap = version.policy.release_cap
    step.out.append(Release(instance.id, instance.generation, cap, reason))
    took = {"seconds": step.now - instance.started_at} if starting else {}
    step.note("failed", instance.id, reason, model=version.spec.model, cause=cause.value, **took)
    step.refresh(version)
    step.look_at(version)
    if starting and cause is Cause.OUT_OF_MEMORY and _crowded_out(step, instance):
        version.foreign_starts += 1
        return  # it says nothing of what the model needs; as soon as there is room, it is started again
    if starting and cause is Cause.OUT_OF_MEMORY and not version.oom_retried:
        version.oom_retried = True
        version.failures += 1
        version.failed_starts += 1
        _raise_need(step, instance)
        return
    back_off(
        step,
        version,
        "cannot_load" if starting and cause in PERMANENT else "load_failed",
        f"{version.spec.model} {'did not start' if starting else 'failed'}: {reason}",
        permanent=cause in PERMANENT,
        starting=starting,
        foreign=cause in FOREIGN,
    )


def back_off(
    step: Step,
    version: Version,
    code: str,
    message: str,
    *,
    permanent: bool,
    starting: bool,
    foreign: bool,
) -> None:
    """Do not try again for a while: at once after a first crash, soon after a first failed start, later and
    later after more. Whoever waits keeps waiting; once TRIES starts in a row have failed, it is told. Starts
    that failed from outside (`foreign`) are counted apart: they say nothing of the model."""
    version.failures += 1
    version.failed_starts += starting and not foreign
    version.foreign_starts += starting and foreign
    again = (
        0.0
        if version.failures == 1 and not starting
        else BACKOFF_FIRST * 2.0 ** min(version.failures - 1, 10)
    )
    # One that starts and then crashes can be a request's fault: the others wait for the next start.
    too_often = version.failed_starts >= TRIES or version.foreign_starts >= TRIES_IF_FOREIGN
    tell = permanent or (starting and too_often)
    delay = min(BACKOFF_MOST, max(again, 5.0) if permanent else again)
    version.backoff_until = step.now + delay
    step.state.timers.set(("backoff", version.key), version.backoff_until)
    if tell:
        version.last_error = (code, message)
        step.deny(version, code, message, delay)


def _crowded_out(step: Step, instance: Instance) -> bool:
    """Whether somebody else took memory that was promised to it. Not believed for ever: where memory comes
    back late, its own looks like that of others."""
    accounts = step.state.ledger.devices
    believed = instance.version.foreign_starts < TRIES_IF_FOREIGN
    return believed and any(accounts[charge.device].crowded for charge in instance.placement)


def _raise_need(step: Step, instance: Instance) -> None:
    """It ran out of memory: it needs more than was thought, and than it was seen to hold; the next start is
    made with that."""
    version, accounts = instance.version, step.state.ledger.devices
    assert version.need is not None
    held = sum(accounts[charge.device].holds(instance.id)[1] for charge in instance.placement)
    thought = sum(share.bytes for share in version.need.shares)
    factor = max(OOM_GROWTH, OOM_BEYOND * held / (thought or 1))
    shares = tuple(replace(share, bytes=int(share.bytes * factor)) for share in version.need.shares)
    need = replace(version.need, shares=shares)
    set_need(step, version, need)
    step.note("need", version.key, f"ran out of memory: needs {in_units(need.bytes)}", bytes=need.bytes)


def set_need(step: Step, version: Version, need: Need) -> None:
    version.need = need
    version.never = never_fits(need, version.spec, step.state.ledger.devices)
    step.refresh(version)
    step.look_at(version)
    step.state.replan = True


def exited(step: Step, instance: Instance, cause: Cause, detail: str) -> None:
    """The process went away: expected while stopping, a failure otherwise."""
    if instance.state is Is.STOPPING:
        instance.state = next_instance(instance.state, Signal.EXITED)
    elif instance.state is not Is.RELEASING:
        fail(step, instance, cause, detail)


def released(step: Step, instance: Instance, missing: Mapping[str, int]) -> None:
    """The memory is back, or its gap is foreign from now on."""
    state, version = step.state, instance.version
    instance.state = next_instance(instance.state, Signal.RELEASED)
    state.ledger.free_up(instance.id)
    for device, size in missing.items():
        account = state.ledger.devices.get(device)
        if account is not None and size > 0:
            account.foreign += size
            step.note(
                "gap", device, f"{in_units(size)} of {instance.id} did not come back: foreign now", bytes=size
            )
    del state.instances[instance.id]
    del version.instances[instance.id]
    step.note("gone", instance.id, "gone", model=version.spec.model)
    state.replan = True
    step.look_at(version)


def _cut(step: Step, instance: Instance, code: str, message: str) -> None:
    for request in instance.leases:
        step.out.append(Cut(request, instance.id, code, message))


def _cancel_timers(step: Step, instance: Instance) -> None:
    for kind in ("start", "idle", "drain"):
        step.state.timers.cancel((kind, instance.id))
