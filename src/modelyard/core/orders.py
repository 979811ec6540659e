"""What people and configurations order: versions come, change and go, are loaded and unloaded, and all is
shut down. Part of the scheduler; called by it alone."""

from __future__ import annotations

from modelyard.core import events as ev
from modelyard.core import instances, rates
from modelyard.core.actions import Loaded
from modelyard.core.admission import never_message
from modelyard.core.lifecycle import FilesSignal, FilesState, next_files
from modelyard.core.state import Version
from modelyard.core.step import Step
from modelyard.core.types import Policy


def added(step: Step, event: ev.Added) -> None:
    key = event.spec.version
    version = step.state.versions.get(key)
    if version is None:
        version = step.state.versions[key] = Version(event.spec, event.policy, key)
    version.removed = False
    _set_policy(step, version, event.policy)
    if event.cached is not None and version.files is not FilesState.CACHED:
        version.files = next_files(version.files, FilesSignal.CACHED)
        instances.set_need(step, version, event.cached)


def policy_changed(step: Step, event: ev.PolicyChanged) -> None:
    version = step.state.versions.get(event.version)
    if version is not None:
        _set_policy(step, version, event.policy)
        instances.look_at_expiry(step, version)


def keep_alive_asked(step: Step, event: ev.KeepAliveAsked) -> None:
    version = step.state.versions.get(event.version)
    if version is not None:
        for instance in version.ready:
            instance.asked_keep_alive = event.seconds
        instances.look_at_expiry(step, version)


def _set_policy(step: Step, version: Version, policy: Policy) -> None:
    version.policy = policy
    version.policy_at = step.now
    version.capacity = version.spec.slots + policy.overcommit
    version.closed_until = None
    rates.renew(step.state, version, step.now)
    step.sums.stale = True
    step.look_at(version)
    step.state.replan = True


def removed(step: Step, event: ev.Removed) -> None:
    version = step.state.versions.get(event.version)
    if version is None:
        return
    version.removed = True
    fate = "removed"
    successor = step.state.versions.get(event.replaced_by)
    if successor is not None:
        fate = f"replaced by {successor.key}"
        successor.inherit(version)
        if version.live() and successor.asked_since is None and not step.state.shutting_down:
            step.ask(successor, evict=False)
            step.look_at(successor)
    step.deny(version, "model_removed", f"{version.spec.model} was {fate}")
    for instance in list(version.instances.values()):
        instances.leave(step, instance, fate)
    step.look_at(version)


def queue_bounded(step: Step, event: ev.QueueBounded) -> None:
    step.state.queue_bound = event.bound


def load_asked(step: Step, event: ev.LoadAsked) -> None:
    version = step.state.versions.get(event.version)
    if version is None or version.removed:
        step.out.append(Loaded(event.version, None, "model_removed", f"{event.version} was removed"))
        return
    if version.asked_since is None:
        step.ask(version, evict=event.evict)
    version.ask_evicts |= event.evict
    # All who ask get one answer: the last of them is promised its whole wait.
    key, deadline = ("ask", version.key), step.now + version.policy.max_wait
    step.state.timers.set(key, max(deadline, step.state.timers.when(key) or deadline))
    if version.ready:
        step.answer_ask(version, version.ready[0].id)
    elif version.never is not None:
        step.deny(version, "never_fits", never_message(version))
    elif step.state.shutting_down:
        step.deny(version, "shutting_down", "the server is shutting down")
    elif (error := version.error_now(step.now)) is not None:
        step.answer_ask(version, None, *error)
    step.look_at(version)


def unload_asked(step: Step, event: ev.UnloadAsked) -> None:
    version = step.state.versions.get(event.version)
    if version is None:
        return
    if event.instance is None:
        version.unloaded = True
        step.answer_ask(version, None, "model_not_running", f"{version.spec.model} was unloaded")
    for instance in list(version.instances.values()):
        if event.instance in (None, instance.id):
            instances.leave(step, instance, "unload was asked for", now=event.now, cut="unloaded")


def shutdown_asked(step: Step, event: ev.ShutdownAsked) -> None:
    step.state.shutting_down = True
    for version in step.state.versions.values():
        step.deny(version, "shutting_down", "the server is shutting down")
    for instance in list(step.state.instances.values()):
        instances.leave(step, instance, "shutting down", now=event.now, cut="shutting_down")
