"""Transitions of requests: arrive, wait, be granted, finish. Part of the scheduler; called by it alone."""

from __future__ import annotations

from math import inf

from modelyard.core import failures, fencing, instances, rates
from modelyard.core.actions import Grant, Probe, Refuse
from modelyard.core.admission import admit
from modelyard.core.dispatch import count_turn, has_alternative, learn_pace, next_pair, pick
from modelyard.core.events import Arrived, Cancelled, Finished
from modelyard.core.lifecycle import InstanceState
from modelyard.core.state import Instance, Lease, Version, Waiting
from modelyard.core.step import Step
from modelyard.core.types import Cause, OutcomeKind, WhenFull

STRIKES = 3  # failed attempts in a row, without a success between them, that condemn an instance

ADMITTED_BEFORE = ("queue_full", "wait_too_long")  # what a retry is not refused for: it was admitted once


def arrive(step: Step, event: Arrived) -> None:
    """Grant at once when a slot is free and nobody is before it; else queue it, or refuse it."""
    state, now = step.state, step.now
    version = state.versions.get(event.version)
    if version is None or version.removed:
        step.out.append(Refuse(event.request, "model_removed", f"{event.version} was removed"))
        return
    if state.shutting_down:
        step.out.append(Refuse(event.request, "shutting_down", "the server is shutting down"))
        return
    if event.since is None:
        version.touch(now)
    if version.closed_until is not None:
        rates.look(version, step.now)
    if not version.queue.count:
        instance = pick(version, event.exclude, event.prefix)
        if instance is not None:
            _grant(step, event.request, instance, now)
            return
    _queue(step, version, event)


def _queue(step: Step, version: Version, event: Arrived) -> None:
    state, now, policy = step.state, step.now, version.policy
    model = version.spec.model
    if not event.load and not version.live():
        step.out.append(
            Refuse(event.request, "model_not_running", f"{model} is not running, and load is false")
        )
        return
    if not has_alternative(version, event.exclude):
        step.out.append(Refuse(event.request, "no_alternative", f"{model} has no other instance to try"))
        return
    priority = policy.priority if event.priority is None else event.priority
    max_wait = policy.max_wait if event.max_wait is None else event.max_wait
    since = now if event.since is None else event.since
    waiting = Waiting(event.request, version.key, priority, since, now, now + max_wait, event.exclude)
    waiting.retried = event.since is not None
    waiting.prefix = event.prefix
    state.arrivals += 1
    waiting.order = state.arrivals
    verdict = admit(state, step.sums, waiting, now)
    if verdict.code and (not waiting.retried or verdict.code not in ADMITTED_BEFORE):
        step.out.append(Refuse(event.request, verdict.code, verdict.message, verdict.retry_after))
        return
    waiting.bound, waiting.estimate = verdict.bound, verdict.estimate
    state.waiting[event.request] = waiting
    version.queue.put(waiting)
    state.timers.set(("request", event.request), waiting.deadline)
    step.refresh(version)
    step.look_at(version)


def cancel(step: Step, event: Cancelled) -> None:
    """The client left: forget the request, or free the slot that it was given in the same moment."""
    waiting = step.state.waiting.get(event.request)
    if waiting is not None:
        step.unqueue(waiting)
        return
    lease = step.state.leases.get(event.request)
    if lease is not None:
        finish(step, Finished(event.request, lease.instance.id, lease.generation, OutcomeKind.CANCELLED))


def expire(step: Step, request: str) -> None:
    """Admitted, and late all the same."""
    waiting = step.state.waiting.get(request)
    if waiting is None:
        return
    version = step.state.versions[waiting.version]
    blocked = f"; it waits for {version.blocked_by}" if version.blocked_by else ""
    message = f"{version.spec.model} was not ready within {waiting.deadline - waiting.queued_at:g} s{blocked}"
    closed = fencing.closed_to(step.state.ledger.devices, version)
    message += "".join(f"; {each}" for each in closed if each not in blocked)
    # Who waits until others leave by themselves, or a device is back, was promised nothing.
    stuck = (version.policy.when_full is WhenFull.WAIT or bool(closed)) and not version.live()
    code = "no_memory" if stuck else "broken_promise"
    step.refuse(waiting, code, message, max(1.0, version.usual_load()))


def serve(step: Step, version: Version) -> None:
    """Grant free slots of this version to those who wait, in order."""
    state = step.state
    if version.closed_until is not None:
        rates.look(version, step.now)
    while version.queue.count and (pair := next_pair(version)) is not None:
        waiting, instance = pair
        del state.waiting[waiting.request]
        state.timers.cancel(("request", waiting.request))
        version.queue.served(waiting)
        _grant(step, waiting.request, instance, waiting.queued_at)
        state.replan |= version.key in state.watched
        step.refresh(version)


def _grant(step: Step, request: str, instance: Instance, queued_at: float) -> None:
    now, version = step.now, instance.version
    count_turn(version, instance, now)
    lease = Lease(instance, instance.generation, now)
    instance.leases[request] = lease
    instance.idle_since = inf
    step.state.leases[request] = lease
    if version.policy.rate_limit is not None:
        rates.granted(step.state, version, now)
    waited = now - queued_at
    loading = max(0.0, instance.ready_at - max(queued_at, instance.started_at))
    step.out.append(Grant(request, instance.id, instance.generation, waited, loading))


def finish(step: Step, event: Finished) -> None:
    """Free the slot, judge the instance by the outcome, and let the next one have it."""
    state, now = step.state, step.now
    lease = state.leases.get(event.request)
    if lease is None or lease.generation != event.generation or lease.instance.id != event.instance:
        return
    instance = lease.instance
    version = instance.version
    del state.leases[event.request]
    del instance.leases[event.request]
    if event.outcome is OutcomeKind.DONE:
        instance.strikes = 0
        first, instance.last_success = instance.last_success == -inf, now
        version.failures = 0
        if event.rest:
            rates.pause(state, version, now + event.rest, now)
        else:
            seconds = now - lease.granted_at
            version.learn_service(seconds)
            if event.work:
                learn_pace(instance, 0.0 if first else event.work, seconds, now)
    elif event.outcome.is_failure:
        _strike(step, lease, event.outcome)
    if instance.state is InstanceState.READY:
        if version.queue.count:
            step.look_at(version)
        if not instance.leases and next_pair(version) is None:
            instances.rest(step, instance)
    elif instance.state is InstanceState.DRAINING and not instance.leases:
        instances.part(step, instance, "drained")


def _strike(step: Step, lease: Lease, outcome: OutcomeKind) -> None:
    """An attempt failed: no new leases until a probe answers; after too many, or a hang without any success
    since that lease was granted, the instance goes."""
    instance = lease.instance
    if instance.state is not InstanceState.READY:
        return
    instance.strikes += 1
    hung = outcome is OutcomeKind.HUNG and instance.last_success <= lease.granted_at
    if hung or instance.strikes >= STRIKES:
        detail = f"{instance.strikes} failed attempts in a row, the last one {outcome.value}"
        failures.fail(step, instance, Cause.HUNG if hung else Cause.CRASHED, detail)
    else:
        doubt(step, instance)


def doubt(step: Step, instance: Instance) -> None:
    """It may be broken: no new leases until a probe answers. What runs on it goes on."""
    if instance.state is InstanceState.READY and not instance.suspect:
        instance.suspect = True
        step.out.append(Probe(instance.id, instance.generation))


def clear(step: Step, instance: Instance) -> None:
    """The probe answered: serve on, and refuse who has nobody else to turn to."""
    instance.suspect = False
    instances.refuse_stranded(step, instance.version)
    step.look_at(instance.version)
