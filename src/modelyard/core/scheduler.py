"""The one decider. `Scheduler.handle(event, now) -> actions` is the only code that changes scheduling state.

An event changes what it says and marks what it made dirty; then one settle pass decides, whatever the event
was: ready slots go to who waits (dispatch), versions that want an instance stand in line, and capacity plans
who may start and who leaves for it. To see why a model was swapped, read `capacity` (its rule stands at its
top); to see what happens to an instance then, read `instances` and `failures`; to a request, `requests`; to
files, `files`; what operators order, `orders`.

Called by the driver, and by simulations with a virtual clock. It never reads a clock: `now` (seconds) only
has to grow. A Tick must come no later than `next_deadline()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelyard.core import capacity, failures, fencing, files, instances, orders, requests
from modelyard.core import events as ev
from modelyard.core.actions import Action, Fetch
from modelyard.core.admission import Sums, recap
from modelyard.core.capacity import Begin, Blocked, Deny, Get, Leave, LookAgain, Move, Rouse, Watch
from modelyard.core.lifecycle import (
    FilesSignal,
    InstanceSignal,
    InstanceState,
    next_files,
    next_instance,
)
from modelyard.core.placement import never_fits
from modelyard.core.state import COMING, SETTLED, Instance, LineKey, Rank, State, Version, loss
from modelyard.core.step import Step
from modelyard.core.types import Cause, Priority

SETTLE_LIMIT = 1000  # passes of one settle; a decision that undoes itself is a bug, not a loop
ASK_AGAIN = 5.0  # seconds from a denial until minimum replicas are tried again


class Scheduler:
    """Versions, instances, queues and memory of one yard. `queue_bound` bounds what waits in all. For
    comparisons: `rank` is the order of victims, `holds` and `paced` whether a swap may wait for a cheaper
    one, and for loads that would slow its own."""

    def __init__(
        self, queue_bound: int = 1024, rank: Rank = loss, *, holds: bool = True, paced: bool = True
    ) -> None:
        self.state = State(queue_bound=queue_bound, rank=rank, holds=holds, paced=paced)
        self.sums = Sums()
        self.decided: list[Action] = []
        self._handlers: dict[type[Any], Callable[[Step, Any], None]] = {
            ev.Arrived: requests.arrive,
            ev.Cancelled: requests.cancel,
            ev.Finished: requests.finish,
            ev.Warming: self._handle_warming,
            ev.Ready: self._handle_ready,
            ev.Failed: self._handle_failed,
            ev.Slept: self._handle_slept,
            ev.Exited: self._handle_exited,
            ev.Released: self._handle_released,
            ev.Doubted: self._handle_doubted,
            ev.Probed: self._handle_probed,
            ev.Observed: self._handle_observed,
            ev.Cached: files.cached,
            ev.FetchFailed: files.fetch_failed,
            ev.FilesLost: files.lost,
            ev.Learned: self._handle_learned,
            ev.DeviceSeen: self._handle_device_seen,
            ev.DeviceLost: fencing.lost,
            ev.DeviceAdded: self._handle_device_added,
            ev.FenceAsked: fencing.fence_asked,
            ev.Added: orders.added,
            ev.PolicyChanged: orders.policy_changed,
            ev.KeepAliveAsked: orders.keep_alive_asked,
            ev.Removed: orders.removed,
            ev.QueueBounded: orders.queue_bounded,
            ev.Changed: self._handle_changed,
            ev.LoadAsked: orders.load_asked,
            ev.UnloadAsked: orders.unload_asked,
            ev.ShutdownAsked: orders.shutdown_asked,
            ev.Tick: self._handle_tick,
        }

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Take one event; return what is to be done, in order. A stale event changes nothing. When a bug
        raises, what was decided before it is in `decided`, and is to be done as well."""
        step = Step(self.state, self.sums, now)
        self.decided = step.out
        self._handlers[type(event)](step, event)
        if self.sums.stale:
            recap(self.state, self.sums)
        if self.state.dirty or self.state.replan:
            self._settle(step)
        if self.sums.stale:  # somebody was forgotten
            recap(self.state, self.sums)
        self.decided = []
        return step.out

    def next_deadline(self) -> float | None:
        """When the next Tick is due at the latest (absolute seconds), None when nothing is pending."""
        return self.state.timers.next()

    # -- settle -----------------------------------------------------------------------------------------

    def _settle(self, step: Step) -> None:
        """Decide until nothing is dirty: slots first, then places in line, then capacity."""
        state = self.state
        for _ in range(SETTLE_LIMIT):
            while state.dirty:
                key = next(iter(state.dirty))
                del state.dirty[key]
                version = state.versions.get(key)
                if version is not None:
                    requests.serve(step, version)
                    self._stand_in_line(step, version)
            if not state.replan:
                return
            state.replan = False
            state.watched.clear()
            for move in capacity.plan(state, step.now):
                self._apply(step, move)
        raise AssertionError("the scheduler does not settle")

    def _stand_in_line(self, step: Step, version: Version) -> None:
        """Put the version where it belongs in line, or take it out."""
        state = self.state
        if version.removed and not version.instances:
            self._forget(step, version)
            return
        want = self._wants(step, version)
        if want is None:
            if version.key in state.line:
                self._leave_line(step, version)
        elif version.key not in state.line or state.line.key(version.key) != want:
            state.line.put(version.key, want)
            state.replan = True

    def _leave_line(self, step: Step, version: Version) -> None:
        """What it owned goes to whoever is behind it."""
        self.state.line.drop(version.key)
        version.blocked_since, version.blocked_by, version.passed = None, "", 0
        self.state.replan = True
        if not len(self.state.line):
            self.state.quiet_since = step.now

    def _wants(self, step: Step, version: Version) -> LineKey | None:
        """The place in line of the version's wish for one more instance; None when it has no such wish."""
        if version.removed or self.state.shutting_down:
            return None
        policy, live, head = version.policy, version.live(), version.queue.head()
        if (
            len(live) < policy.min_replicas
            and version.asked_since is None
            and version.never is None
            and step.now >= max(version.backoff_until, version.ask_after)
        ):
            step.ask(version, evict=True)
        wish: LineKey | None = None
        if head is not None and (not live or self._grows(step, version, live)):
            wish = (-head.priority, head.since, head.order)
        elif version.asked_since is not None and len(live) < max(1, policy.min_replicas):
            wish = (-policy.priority, version.asked_since, version.asked_order)
        if wish is not None and capacity.passed_over_too_often(version):
            return -Priority.HIGH, float("-inf"), 0
        return wish

    def _grows(self, step: Step, version: Version, live: list[Instance]) -> bool:
        """One more replica: every slot is taken, the head has waited its patience, none is on its way."""
        if len(live) >= version.policy.max_replicas or len(version.ready) < len(live):
            return False
        if version.closed_until is not None:
            return False
        head = version.queue.head()
        assert head is not None
        if all(instance.id in head.exclude for instance in live):
            return True
        at = head.since + version.policy.patience
        if step.now < at:
            self.state.timers.set(("grow", version.key), at)
            return False
        return True

    def _apply(self, step: Step, move: Move) -> None:
        match move:
            case Begin(version, placement, reason):
                instances.begin(step, version, placement, reason)
                step.state.replan |= len(version.live()) < version.policy.min_replicas
            case Rouse(instance, reason):
                instances.wake(step, instance, reason)
            case Leave(instance, version, reason, cost, spared, rung):
                score: dict[str, str | float] = {
                    "cost": round(cost[1], 3),
                    "standing": capacity.standing(cost),
                }
                if spared:
                    score["spared"] = spared
                instances.leave(step, instance, reason, leaving_for=version.key, rung=rung, score=score)
            case Deny(version, code, message):
                step.deny(version, code, message)
                version.ask_after = step.now + ASK_AGAIN
                self.state.timers.set(("keep", version.key), version.ask_after)
            case Get(version):
                version.files = next_files(version.files, FilesSignal.FETCH)
                step.out.append(Fetch(version.key))
            case Blocked(version, by, owns):
                if owns and version.blocked_since is None:
                    version.blocked_since = step.now
                if version.blocked_by != by:
                    step.note("blocked", version.key, by, model=version.spec.model)
                version.blocked_by = by
            case Watch(version):
                self.state.watched.add(version.key)
            case LookAgain(at):
                pending = self.state.timers.when(("plan", ""))
                if pending is None or at < pending:
                    self.state.timers.set(("plan", ""), at)

    # -- instances --------------------------------------------------------------------------------------

    def _current(self, event: Any) -> Instance | None:
        """The instance that the event is about, if its generation is the current one."""
        instance = self.state.instances.get(event.instance)
        return instance if instance is not None and instance.generation == event.generation else None

    def _handle_warming(self, step: Step, event: ev.Warming) -> None:
        instance = self._current(event)
        if instance is not None and instance.state is InstanceState.STARTING:
            instance.state = next_instance(instance.state, InstanceSignal.ANSWERED)

    def _handle_ready(self, step: Step, event: ev.Ready) -> None:
        instance = self._current(event)
        if instance is not None and instance.state in COMING:
            instances.ready(step, instance, event.observed)

    def _handle_failed(self, step: Step, event: ev.Failed) -> None:
        instance = self._current(event)
        if instance is not None and instance.state in COMING:
            failures.fail(step, instance, event.cause, event.detail)
        elif instance is not None and instance.state is InstanceState.SLEEPING:
            failures.sleep_failed(step, instance, event.detail or event.cause.value)

    def _handle_slept(self, step: Step, event: ev.Slept) -> None:
        instance = self._current(event)
        if instance is not None and instance.state is InstanceState.SLEEPING:
            kept = instances.slept(step, instance, event.before, event.after)
            if kept:
                failures.sleep_failed(step, instance, kept)

    def _handle_exited(self, step: Step, event: ev.Exited) -> None:
        instance = self._current(event)
        if instance is not None:
            failures.exited(step, instance, event.cause, event.detail)

    def _handle_released(self, step: Step, event: ev.Released) -> None:
        instance = self._current(event)
        if instance is not None and instance.state in (InstanceState.STOPPING, InstanceState.RELEASING):
            instances.released(step, instance, event.missing)

    def _handle_doubted(self, step: Step, event: ev.Doubted) -> None:
        instance = self._current(event)
        if instance is not None:
            requests.doubt(step, instance)

    def _handle_probed(self, step: Step, event: ev.Probed) -> None:
        instance = self._current(event)
        if instance is None or instance.state is not InstanceState.READY or not instance.suspect:
            return
        if event.alive:
            requests.clear(step, instance)
        elif event.reachable:
            failures.fail(step, instance, Cause.HUNG, "its health check does not answer")
        else:
            failures.fail(step, instance, Cause.CRASHED, "it takes no connections any more")

    def _handle_observed(self, step: Step, event: ev.Observed) -> None:
        self.state.ledger.observe(event.instance, event.bytes)

    # -- needs and devices ------------------------------------------------------------------------------

    def _handle_learned(self, step: Step, event: ev.Learned) -> None:
        version = self.state.versions.get(event.version)
        if version is not None:
            if event.load_seconds is not None:
                version.load_seconds = event.load_seconds
            instances.set_need(step, version, event.need)

    def _handle_device_seen(self, step: Step, event: ev.DeviceSeen) -> None:
        account = self.state.ledger.devices.get(event.device)
        if account is not None:
            holders = account.holders()
            settled = [name for name in holders if self.state.instances[name].state in SETTLED]
            account.seen(event.total, event.free, event.ours, settled)
            if account.lost:
                fencing.back(step, account)
            self.state.replan = True

    def _handle_device_added(self, step: Step, event: ev.DeviceAdded) -> None:
        self.state.ledger.add(event.device)
        for version in self.state.versions.values():
            if version.need is not None:
                version.never = never_fits(version.need, version.spec, self.state.ledger.devices)
        self.state.replan = True

    # -- versions ---------------------------------------------------------------------------------------

    def _handle_changed(self, step: Step, event: ev.Changed) -> None:
        for part in event.parts:
            self._handlers[type(part)](step, part)

    def _forget(self, step: Step, version: Version) -> None:
        if version.key in self.state.line:
            self._leave_line(step, version)
        for kind in ("backoff", "grow", "keep", "rate"):
            self.state.timers.cancel((kind, version.key))
        del self.state.versions[version.key]
        self.sums.stale = True

    # -- time -------------------------------------------------------------------------------------------

    def _handle_tick(self, step: Step, event: ev.Tick) -> None:
        for kind, name in self.state.timers.pop_due(step.now):
            if kind == "request":
                requests.expire(step, name)
            elif kind in ("idle", "drain", "start", "sleep"):
                instance = self.state.instances.get(name)
                if instance is not None:
                    self._instance_due(step, kind, instance)
            elif kind == "ask":
                version = self.state.versions[name]
                message = f"{version.spec.model} was not ready within {version.policy.max_wait:g} s"
                step.answer_ask(version, None, "broken_promise", message)
            else:
                self.state.replan = True
                if name:
                    step.look_at(self.state.versions[name])

    def _instance_due(self, step: Step, kind: str, instance: Instance) -> None:
        if kind == "idle":
            instances.idle_out(step, instance)
        elif kind == "drain":
            instances.leave(step, instance, "the drain cap passed", now=True)
        elif kind == "sleep":
            failures.sleep_due(step, instance)
        else:
            cap = instance.version.policy.load_cap
            failures.fail(step, instance, Cause.START_DEADLINE, f"not ready within load_cap {cap:g} s")
