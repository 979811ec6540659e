"""Failures of instances: to start, to sleep, to wake, or while they serve; and when to try again. Part of the
scheduler; called by it alone."""

from __future__ import annotations

from dataclasses import replace

from modelyard.core import sleep
from modelyard.core.actions import Release
from modelyard.core.instances import cancel_timers, cut_all, set_need, stop
from modelyard.core.lifecycle import InstanceSignal, InstanceState, next_instance
from modelyard.core.state import STARTING, Instance, Version
from modelyard.core.step import Step
from modelyard.core.types import Cause
from modelyard.core.units import in_units

PERMANENT = frozenset({Cause.BAD_MODEL, Cause.BAD_ARGUMENTS, Cause.NOT_INSTALLED})
FOREIGN = frozenset({Cause.KILLED, Cause.LAUNCH})
BACKOFF_FIRST = 0.5
BACKOFF_MOST = 60.0
OOM_GROWTH = 1.25  # of what it was thought to need
OOM_BEYOND = 1.1  # of what it was seen to hold before it died
TRIES = 2  # starts that may fail in a row before whoever waits is told
TRIES_IF_FOREIGN = 3  # the same when it was not the model's own doing

Signal, Is = InstanceSignal, InstanceState


def fail(step: Step, instance: Instance, cause: Cause, detail: str) -> None:
    """It failed to start, crashed, or was condemned: release what it holds, back off, tell who waits."""
    version = instance.version
    before, starting = instance.state, instance.state in STARTING
    instance.state = next_instance(before, Signal.FAILED)
    instance.generation += 1
    instance.rung = None
    cancel_timers(step, instance)
    if instance in version.ready:
        version.ready.remove(instance)
    if cause is Cause.DEVICE_LOST:
        cut_all(step, instance, "device_lost", f"{instance.id} is gone: {detail}")
    else:
        cut_all(step, instance, "engine_died", f"{instance.id} failed: {cause.value}")
    reason = f"{cause.value}: {detail}" if detail else cause.value
    cap = version.policy.release_cap
    step.out.append(Release(instance.id, instance.generation, cap, reason))
    took = {"seconds": step.now - instance.started_at} if starting else {}
    step.note("failed", instance.id, reason, model=version.spec.model, cause=cause.value, **took)
    step.refresh(version)
    step.look_at(version)
    if cause is Cause.DEVICE_LOST:
        return  # it says nothing of the model
    if before in (Is.SLEEPING, Is.WAKING) or (instance.woken and instance.last_success < instance.ready_at):
        version.sleep_after = step.now + sleep.REST
    if before in (Is.SLEEPING, Is.ASLEEP, Is.WAKING):
        return  # it says nothing of a start: whoever waits gets one
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


def sleep_due(step: Step, instance: Instance) -> None:
    """Its release cap passed while it falls asleep: one that may take longer goes on until somebody waits."""
    cap = instance.version.policy.release_cap
    if step.now >= instance.asleep_by:
        sleep_failed(step, instance, f"not asleep in time (release_cap {cap:g} s)")
    elif step.state.line:
        stop(step, instance, "others wait for its memory, and it does not sleep yet")
    else:
        step.state.timers.set(("sleep", instance.id), min(step.now + cap, instance.asleep_by))


def sleep_failed(step: Step, instance: Instance, detail: str) -> None:
    """It does not sleep, or gave too little back: it stops, as do its like for a while."""
    version = instance.version
    version.sleep_after = step.now + sleep.REST
    step.note("no_sleep", instance.id, detail, model=version.spec.model)
    stop(step, instance, f"it could not sleep: {detail}")


def exited(step: Step, instance: Instance, cause: Cause, detail: str) -> None:
    """The process went away: expected while stopping, a failure otherwise."""
    if instance.state is Is.STOPPING:
        instance.state = next_instance(instance.state, Signal.EXITED)
    elif instance.state is not Is.RELEASING:
        fail(step, instance, cause, detail)
