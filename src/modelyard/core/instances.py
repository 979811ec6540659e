"""Transitions of instances: begin, become ready, rest, drain, stop, fail, be gone. Part of the scheduler;
called by it alone. Every state change goes through the table in `lifecycle`."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from modelyard.core import sleep, slowing
from modelyard.core.actions import Cut, Sleep, Start, Stop, Wake
from modelyard.core.dispatch import has_alternative
from modelyard.core.lifecycle import InstanceSignal, InstanceState, next_instance
from modelyard.core.placement import never_fits
from modelyard.core.state import COMING, Instance, Version
from modelyard.core.step import Step
from modelyard.core.types import Charge, Need, Placement, Rung
from modelyard.core.units import in_units

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
    deadline, waited = _comes_up(step, instance)
    step.out.append(Start(instance.id, 1, version.key, placement, deadline, reason))
    step.note("start", instance.id, reason, model=version.spec.model, bytes=instance.bytes, waited=waited)
    for other in list(version.instances.values()):
        if other.state is Is.ASLEEP and len(version.live()) >= version.policy.max_replicas:
            leave(step, other, f"{instance.id} starts in its place")
    return instance


def wake(step: Step, instance: Instance, reason: str) -> None:
    """Reserve what it holds awake, and have it wake."""
    rung, version = instance.rung, instance.version
    assert rung is not None
    instance.state = next_instance(instance.state, Signal.WAKE)
    instance.generation += 1
    instance.awake = placement = sleep.awake(instance)
    _hold(step, instance, sleep.both(instance.placement, placement))
    instance.started_at, instance.idle_since, instance.reason = step.now, inf, reason
    instance.leaving_for, instance.asked_keep_alive = "", None
    cancel_timers(step, instance)
    deadline, waited = _comes_up(step, instance)
    step.out.append(Wake(instance.id, instance.generation, rung, placement, deadline, reason))
    model = version.spec.model
    step.note("wake", instance.id, reason, model=model, rung=rung.name, bytes=instance.bytes, waited=waited)


def _comes_up(step: Step, instance: Instance) -> tuple[float, float]:
    """The version waits for this one alone from now on: by when it has to be ready, and how long the version
    waited for room."""
    state, version = step.state, instance.version
    deadline = step.now + version.policy.load_cap
    state.timers.set(("start", instance.id), deadline)
    waited = step.now - version.blocked_since if version.blocked_since is not None else 0.0
    state.room_seconds += 0.2 * (waited - state.room_seconds)
    version.blocked_since, version.blocked_by, version.passed = None, "", 0
    version.unloaded = False
    _count_passed(step, version)
    step.look_at(version)
    return deadline, waited


def _hold(step: Step, instance: Instance, placement: Placement) -> None:
    step.state.ledger.rebook(instance.id, placement)
    instance.placement = placement


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
    state, now, version, rung = step.state, step.now, instance.version, instance.rung
    instance.state = next_instance(instance.state, Signal.READIED)
    state.timers.cancel(("start", instance.id))
    instance.ready_at = now
    instance.idle_since = now
    instance.turn = version.given
    instance.granted = max((each.granted for each in version.ready), default=0)
    version.ready.append(instance)
    took = now - instance.started_at
    if rung is not None:
        _hold(step, instance, instance.awake)
        instance.rung, instance.awake, instance.woken = None, (), True
        refuse_stranded(step, version)
    else:
        slowing.learn(state, instance, took)
        usual = version.load_seconds
        version.load_seconds = took if usual is None else 0.7 * usual + 0.3 * took
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
    slept = {"rung": rung.name} if rung is not None else {}
    said = f"{'awake' if slept else 'ready'} after {took:.2f} s"
    step.note("ready", instance.id, said, model=version.spec.model, seconds=took, **slept)


def refuse_stranded(step: Step, version: Version) -> None:
    """Refuse who has nobody else to turn to."""
    for waiting in list(version.queue):
        if not has_alternative(version, waiting.exclude):
            step.refuse(waiting, "no_alternative", f"{version.spec.model} has no other instance to try")


def rest(step: Step, instance: Instance) -> None:
    """Its last lease ended and nobody waits: its keep-alive begins, and whoever is in line may want it."""
    instance.idle_since = step.now
    if len(step.state.line):
        step.state.replan = True
    _set_expiry(step, instance)


def look_at_expiry(step: Step, version: Version) -> None:
    """How long its idle instances stay has changed."""
    for instance in version.instances.values():
        if instance.state in (Is.READY, Is.ASLEEP) and not instance.leases:
            step.state.timers.set(("idle", instance.id), step.now)


def _set_expiry(step: Step, instance: Instance) -> None:
    expiry = _expiry(instance)
    if expiry < inf:
        step.state.timers.set(("idle", instance.id), expiry)


def _expiry(instance: Instance) -> float:
    """When it leaves if it stays idle; one that never served stays for its minimum residency at least."""
    policy = instance.version.policy
    if instance.state is Is.ASLEEP:
        return instance.idle_since + (policy.sleep_keep_alive if policy.sleep else 0.0)
    if policy.pin or policy.home:
        return inf
    unused = instance.idle_since == instance.ready_at
    return instance.idle_since + max(instance.keep_alive, policy.min_residency if unused else 0.0)


def idle_out(step: Step, instance: Instance) -> None:
    """Its keep-alive may be over: leave, unless it was used since, is one of the minimum replicas, or is to
    serve those who wait until the version opens. Where it can, it sleeps first."""
    version, ledger = instance.version, step.state.ledger
    if _expiry(instance) > step.now:
        _set_expiry(step, instance)
    elif instance.state is Is.ASLEEP and not version.policy.sleep:
        leave(step, instance, "asleep, and its policy does not let it sleep any more")
    elif instance.state is Is.ASLEEP:
        leave(step, instance, f"asleep for its sleep_keep_alive of {version.policy.sleep_keep_alive:g} s")
    elif version.closed_until is not None and version.queue.count:
        step.state.timers.set(("idle", instance.id), version.closed_until)
    elif len(version.live()) > version.policy.min_replicas:
        offered = sleep.rungs(ledger, instance, step.now)
        rung = next((each for each in offered if sleep.fits(ledger, instance, each)), None)
        leave(step, instance, f"idle for its keep-alive of {instance.keep_alive:g} s", rung=rung)


def leave(
    step: Step,
    instance: Instance,
    reason: str,
    *,
    now: bool = False,
    leaving_for: str = "",
    cut: str = "cut_at_drain",
    rung: Rung | None = None,
    score: Mapping[str, str | float] = NO_SCORE,
) -> None:
    """Let it go: no new leases; what runs finishes within the drain cap, or is cut when `now`, with the error
    code `cut`. Then it sleeps on `rung`, or stops. `score` is told with it: why this one and no other."""
    version = instance.version
    instance.rung = rung if instance.state in (Is.READY, Is.DRAINING) else instance.rung
    if instance.state is Is.READY:
        instance.state = next_instance(instance.state, Signal.DRAIN)
        instance.leaving_for = leaving_for
        version.ready.remove(instance)
        step.refresh(version)
        step.look_at(version)
        winner = step.state.versions.get(leaving_for)
        who = {"for": winner.spec.model} if winner is not None else {}
        running = len(instance.leases)
        slept = {"rung": rung.name} if rung is not None else {}
        model = version.spec.model
        step.note("leave", instance.id, reason, model=model, running=running, **slept, **who, **score)
        if instance.leases and not now:
            step.state.timers.set(("drain", instance.id), step.now + version.policy.drain)
            return
        if rung is not None:
            part(step, instance, reason)
            return
    elif instance.state in COMING or instance.state in (Is.SLEEPING, Is.ASLEEP):
        instance.leaving_for = leaving_for
    elif instance.state is not Is.DRAINING or not now:
        return
    cut_all(step, instance, cut, f"{instance.id} had to leave: {reason}")
    stop(step, instance, reason, now=now)


def part(step: Step, instance: Instance, reason: str) -> None:
    """Nothing runs on it any more: it sleeps, if that was meant and host memory has room now, or stops."""
    rung, state = instance.rung, step.state
    if rung is None or instance.suspect or not sleep.fits(state.ledger, instance, rung):
        stop(step, instance, reason)
        return
    instance.state = next_instance(instance.state, Signal.SLEEP)
    instance.generation += 1
    cancel_timers(step, instance)
    instance.asleep_by = step.now + sleep.lasts(instance, rung)
    instance.awake, instance.ready_at, instance.woken = instance.placement, inf, False
    _hold(step, instance, sleep.both(instance.placement, sleep.asleep(instance, rung)))
    state.timers.set(("sleep", instance.id), step.now + instance.version.policy.release_cap)
    step.out.append(Sleep(instance.id, instance.generation, rung, instance.asleep_by, reason))
    step.look_at(instance.version)


def slept(step: Step, instance: Instance, before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """It sleeps: what it gave back is free. Else: what it kept too much of, and nothing has changed."""
    state, version, rung = step.state, instance.version, instance.rung
    assert rung is not None
    held = {charge.device: charge for charge in sleep.asleep(instance, rung)}
    claimed = sleep.claimed(instance, rung)
    kept = [
        f"{in_units(after.get(charge.device, 0))} of {in_units(before[charge.device])} on {charge.device}"
        for charge in instance.awake
        if charge.device in claimed
        and before.get(charge.device)
        and after.get(charge.device, 0) > sleep.LEFT * before[charge.device]
    ]
    if kept:
        return f"it kept {', '.join(kept)} when it was put on {rung.name}"
    instance.state = next_instance(instance.state, Signal.SLEPT)
    state.timers.cancel(("sleep", instance.id))
    if after and not rung.known:  # the engine's estimate: booked is what it was seen to hold
        most = {charge.device: charge.bytes for charge in instance.placement}
        held |= {
            device: Charge(device, min(own, most[device])) for device, own in after.items() if device in most
        }
    _hold(step, instance, tuple(held.values()))
    # What was not measured is as it should be: what it held awake says nothing any more.
    state.ledger.observe(
        instance.id, {charge.device: after.get(charge.device, 0) for charge in instance.placement}
    )
    instance.idle_since = step.now
    _set_expiry(step, instance)
    where = ", ".join(f"{in_units(charge.bytes)} on {charge.device}" for charge in instance.placement)
    said = f"asleep on {rung.name}, holds {where or 'nothing'}"
    model = version.spec.model
    step.note("asleep", instance.id, said, model=model, rung=rung.name, bytes=instance.bytes)
    step.refresh(version)
    step.look_at(version)
    state.replan = True
    return ""


def stop(step: Step, instance: Instance, reason: str, *, now: bool = False) -> None:
    """Stop the process, on which nothing runs any more."""
    instance.state = next_instance(instance.state, Signal.STOP)
    instance.generation += 1
    instance.rung = None
    cancel_timers(step, instance)
    cap = instance.version.policy.release_cap
    step.out.append(Stop(instance.id, instance.generation, cap, reason, now))
    step.refresh(instance.version)
    step.look_at(instance.version)


def set_need(step: Step, version: Version, need: Need) -> None:
    version.need = need
    version.never = never_fits(need, version.spec, step.state.ledger.devices)
    step.refresh(version)
    step.look_at(version)
    step.state.replan = True


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


def cut_all(step: Step, instance: Instance, code: str, message: str) -> None:
    for request in instance.leases:
        step.out.append(Cut(request, instance.id, code, message))


def cancel_timers(step: Step, instance: Instance) -> None:
    for kind in ("start", "idle", "drain", "sleep"):
        step.state.timers.cancel((kind, instance.id))
