"""The scheduler against an outside that is honest and unkind.

Answers come late, out of order, twice, stale, or as failures; clients leave; policies, devices and versions
change. After every step the invariants hold, and when everything is answered nobody waits any more. It begins
in every state that an instance or its files may be in, and every kind of event comes there.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.yard import STATES, every_event, gpu, ram, rung, spec, state_of
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.copying import copy_of
from modelyard.core.invariants import check
from modelyard.core.scheduler import Scheduler
from modelyard.core.state import Instance
from modelyard.core.types import (
    Cause,
    Need,
    OutcomeKind,
    Packing,
    Policy,
    Priority,
    RateLimit,
    Share,
    Spec,
    WhenFull,
)

MODELS = ("a", "b", "c", "d")
DEVICES = ("gpu0", "gpu1")

rungs = st.lists(
    st.builds(
        rung,
        st.sampled_from(["level 1", "level 2"]),
        st.sampled_from([10, 60]),
        st.sampled_from([0, 2, 30]),
        known=st.booleans(),
        seconds=st.sampled_from([None, 0.5, 90.0]),
    ),
    max_size=2,
).map(tuple)
needs = st.builds(
    lambda size, known, mapped, rungs: Need(
        (Share("accelerator", size, {"file": 20} if mapped else {}),), known, rungs
    ),
    st.sampled_from([0, 20, 60, 100, 130]),
    st.sampled_from([True, True, True, False]),
    st.booleans(),
    rungs,
)
policies = st.builds(
    Policy,
    priority=st.sampled_from(Priority),
    when_full=st.sampled_from([WhenFull.EVICT, WhenFull.EVICT, WhenFull.WAIT, WhenFull.FAIL]),
    keep_alive=st.sampled_from([0.0, 3.0, 600.0, inf]),
    sleep=st.sampled_from([True, True, False]),
    sleep_keep_alive=st.sampled_from([0.0, 5.0, 3600.0]),
    pin=st.sampled_from([False, False, False, True]),
    home=st.booleans(),
    min_replicas=st.sampled_from([0, 0, 0, 1]),
    max_replicas=st.integers(1, 3),
    patience=st.sampled_from([0.0, 5.0]),
    min_residency=st.sampled_from([0.0, 2.0]),
    drain_cap=st.sampled_from([None, 1.0]),
    load_cap=st.sampled_from([5.0, 120.0]),
    max_wait=st.sampled_from([1.0, 30.0, 300.0]),
    queue_bound=st.sampled_from([1, 4, 256]),
    overcommit=st.integers(0, 1),
    placement=st.sampled_from(Packing),
    rate_limit=st.sampled_from([None, None, RateLimit(2, 10.0)]),
)
models = st.sampled_from(MODELS)
spot = st.integers(0, 1000)
keys = st.sampled_from([spec(model).version for model in MODELS])
orders = st.one_of(
    st.builds(
        ev.Added, st.sampled_from([spec(model, slots=2) for model in MODELS]), policies, st.none() | needs
    ),
    st.builds(ev.PolicyChanged, keys, policies),
    st.builds(ev.KeepAliveAsked, keys, st.sampled_from([0.0, 5.0, inf])),
    st.builds(ev.LoadAsked, keys, st.booleans()),
    st.builds(ev.UnloadAsked, keys, now=st.booleans()),
    st.builds(ev.Learned, keys, needs, st.none() | st.just(3.0)),
    st.builds(
        ev.DeviceAdded, st.builds(gpu, st.sampled_from([*DEVICES, "gpu2"]), st.sampled_from([50, 100, 150]))
    ),
    st.builds(ev.DeviceLost, st.sampled_from([*DEVICES, "gpu9"]), st.just("as told")),
    st.builds(
        ev.FenceAsked, st.sampled_from(DEVICES), st.sampled_from(["", "", "as told"]), now=st.booleans()
    ),
)


Command = ac.Start | ac.Sleep | ac.Wake | ac.Stop | ac.Release | ac.Probe


def done(command: Command) -> ev.Event:
    """What answers a command when all is well."""
    name, generation = command.instance, command.generation
    match command:
        case ac.Start() | ac.Wake():
            return ev.Ready(name, generation)
        case ac.Sleep():
            return ev.Slept(name, generation)
        case ac.Probe():
            return ev.Probed(name, generation, alive=True)
        case _:
            return ev.Released(name, generation)


SETTINGS = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a long history takes minutes
    report_multiple_bugs=False,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Outside(RuleBasedStateMachine):
    start = "ready"  # the state that the first model begins in

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(queue_bound=12)
        self.now = 0.0
        self.count = 0
        self.commands: list[Command] = []  # not answered yet
        self.fetches: list[str] = []
        self.leases: dict[str, ac.Grant] = {}
        self.waiting: set[str] = set()
        self.failed: dict[str, set[str]] = {}  # the instances that failed a request
        self.said: list[ev.Event] = []  # what may be said again
        for device in (ram(100), *map(gpu, DEVICES)):
            self.post(ev.DeviceAdded(device))

    @initialize(policies=st.lists(policies, min_size=4, max_size=4), loaded=st.booleans())
    def begin(self, policies: list[Policy], loaded: bool) -> None:
        need = Need((Share("accelerator", 60),), rungs=(rung(),))
        known = None if self.start in ("absent", "fetching") else need
        for model, policy in zip(MODELS, policies, strict=True):
            key = spec(model).version
            self.post(ev.Added(spec(model, slots=2), policy, known))
            if model == MODELS[0]:
                self.bring(key, self.start)
                self.anything_may_come(0, 0)
            self.post(ev.LoadAsked(key))
            if loaded:
                self.all_is_well()

    def bring(self, key: str, state: str) -> None:
        """A version that is only added, into this state."""
        if state != "absent":
            self.post(ev.LoadAsked(key))
        if state in ("absent", "fetching", "starting"):
            return
        (instance,) = self.scheduler.state.versions[key].instances.values()
        if state == "warming":
            self.post(ev.Warming(instance.id, instance.generation))
            return
        self.all_is_well()
        if state == "draining":
            self.arrive(key, None, True, None, 1)
        if state == "suspect":
            self.post(ev.Doubted(instance.id, instance.generation))
        elif state == "releasing":
            self.post(ev.Exited(instance.id, instance.generation, Cause.CRASHED))
        elif state in ("sleeping", "asleep", "waking"):
            self.sleep(key, state)
        elif state != "ready":
            self.post(ev.UnloadAsked(key))
        assert state_of(instance) == state

    def sleep(self, key: str, state: str) -> None:
        """Its keep-alive ends."""
        version = self.scheduler.state.versions[key]
        policy = version.policy
        self.post(ev.PolicyChanged(key, Policy(keep_alive=0.0)))
        self.post(ev.Tick())
        if state != "sleeping":
            self.all_is_well()
        self.post(ev.PolicyChanged(key, replace(policy, sleep=True, min_replicas=0)))
        if state == "waking":
            self.arrive(key, None, True, None, 1)

    def post(self, event: ev.Event) -> None:
        for action in self.scheduler.handle(event, self.now):
            match action:
                case ac.Grant(request, instance):
                    assert request in self.waiting, f"{request} is granted and did not wait"
                    assert instance not in self.failed.get(request, ()), "granted what just failed it"
                    self.waiting.discard(request)
                    self.leases[request] = action
                case ac.Refuse(request):
                    assert request in self.waiting, f"{request} is refused and did not wait"
                    self.waiting.discard(request)
                case ac.Start() | ac.Sleep() | ac.Wake() | ac.Probe() | ac.Stop() | ac.Release():
                    self.commands.append(action)
                    self.not_too_many(action)
                case ac.Fetch(version):
                    self.fetches.append(version)
                case ac.Cut(request):
                    assert request in self.leases, f"{request} is cut and holds no lease"

    def not_too_many(self, command: ac.Action) -> None:
        if isinstance(command, ac.Start | ac.Wake) and command.instance in self.scheduler.state.instances:
            version = self.scheduler.state.instances[command.instance].version
            most = max(1, version.policy.min_replicas, version.policy.max_replicas)
            assert len(version.live()) <= most, f"{version.key} has more replicas than it may"
            for charge in command.placement:
                assert not self.scheduler.state.ledger.devices[charge.device].closed, (
                    "started where it may not"
                )

    def say(self, event: ev.Event) -> None:
        self.said.append(event)
        self.post(event)

    # -- requests

    @rule(
        key=keys,
        priority=st.sampled_from([None, *Priority]),
        load=st.booleans(),
        wait=st.none() | st.just(2.0),
        count=st.integers(1, 4),
    )
    def arrive(self, key: str, priority: Priority | None, load: bool, wait: float | None, count: int) -> None:
        for _ in range(count):
            self.count += 1
            request = f"r{self.count}"
            self.waiting.add(request)
            self.post(ev.Arrived(request, key, priority, wait, load=load))

    @precondition(lambda self: self.waiting or self.leases)
    @rule(at=spot)
    def cancel(self, at: int) -> None:
        everyone = sorted(self.waiting | set(self.leases))
        request = everyone[at % len(everyone)]
        self.waiting.discard(request)
        self.leases.pop(request, None)
        self.say(ev.Cancelled(request))

    @precondition(lambda self: self.leases)
    @rule(at=spot, outcome=st.sampled_from(OutcomeKind), retry=st.booleans())
    def finish(self, at: int, outcome: OutcomeKind, retry: bool) -> None:
        request = sorted(self.leases)[at % len(self.leases)]
        grant = self.leases.pop(request)
        lease = self.scheduler.state.leases[request]
        model = lease.instance.version.key
        self.say(ev.Finished(request, grant.instance, grant.generation, outcome))
        if retry and outcome.is_failure:
            self.waiting.add(request)
            self.failed.setdefault(request, set()).add(grant.instance)
            exclude = frozenset(self.failed[request])
            self.post(ev.Arrived(request, model, exclude=exclude, since=lease.granted_at))

    # -- answers

    @precondition(lambda self: self.commands)
    @rule(
        at=spot,
        answer=st.sampled_from(["warming", "warming", "ready", "failed", "exited"]),
        cause=st.sampled_from(Cause),
        own=st.sampled_from([{}, {"gpu0": 30}, {"gpu1": 10}, {"gpu9": 5}]),
    )
    def answer(self, at: int, answer: str, cause: Cause, own: dict[str, int]) -> None:
        command = self.commands[at % len(self.commands)]
        name, generation = command.instance, command.generation
        if isinstance(command, ac.Start) and answer == "warming":
            self.say(ev.Warming(name, generation))
            return
        if answer == "exited":
            self.say(ev.Exited(name, generation, cause))
            return
        self.commands.remove(command)
        if isinstance(command, ac.Start | ac.Wake) and answer == "ready":
            self.say(ev.Ready(name, generation, own))
        elif isinstance(command, ac.Sleep) and answer != "failed":
            self.say(ev.Slept(name, generation, dict.fromkeys(own, 40), own))
        elif isinstance(command, ac.Start | ac.Wake | ac.Sleep):
            self.say(ev.Failed(name, generation, cause, "as told"))
        elif isinstance(command, ac.Probe):
            self.say(ev.Probed(name, generation, alive=answer != "failed", reachable=cause is Cause.HUNG))
        else:
            self.say(ev.Released(name, generation, own if answer == "failed" else {}))

    @precondition(lambda self: self.scheduler.state.instances)
    @rule(at=spot, cause=st.none() | st.sampled_from(Cause))
    def trouble(self, at: int, cause: Cause | None) -> None:
        """It goes away by itself, or it is doubted."""
        everyone = sorted(self.scheduler.state.instances)
        instance = self.scheduler.state.instances[everyone[at % len(everyone)]]
        if cause is None:
            self.say(ev.Doubted(instance.id, instance.generation))
        else:
            self.say(ev.Exited(instance.id, instance.generation, cause))

    @precondition(lambda self: self.said)
    @rule(at=spot)
    def say_again(self, at: int) -> None:
        self.post(self.said[at % len(self.said)])

    @rule(
        name=st.sampled_from(["a-1", "b-2", "c-3", "x-9"]),
        kind=st.integers(0, 8),
        generation=st.integers(-1, 9),
    )
    def babble(self, name: str, kind: int, generation: int) -> None:
        """An answer to a command that nobody gave, or gave long ago."""
        instance = self.scheduler.state.instances.get(name)
        if instance is not None and instance.generation == generation:
            return
        lease = self.scheduler.state.leases.get("r1")  # of an instance that may be gone already
        if lease is not None and (lease.instance.id, lease.generation) == (name, generation):
            return
        makers: list[Any] = [ev.Warming, ev.Ready, ev.Slept, ev.Released, ev.Doubted]
        events: list[ev.Event] = [make(name, generation) for make in makers]
        events += [ev.Failed(name, generation, Cause.CRASHED), ev.Exited(name, generation, Cause.CRASHED)]
        events += [
            ev.Probed(name, generation, alive=False),
            ev.Finished("r1", name, generation, OutcomeKind.DONE),
        ]
        before = (len(self.scheduler.state.instances), len(self.scheduler.state.leases))
        assert self.scheduler.handle(events[kind], self.now) == [], "a stale event has consequences"
        assert before == (len(self.scheduler.state.instances), len(self.scheduler.state.leases))

    @rule()
    def all_is_well(self) -> None:
        """What was ordered so far is done."""
        for command in self.commands.copy():
            if not isinstance(command, ac.Probe):
                self.commands.remove(command)
                self.say(done(command))

    @rule(at=spot, which=spot)
    def anything_may_come(self, at: int, which: int) -> None:
        """Each kind of event, about one version and its instance, to a copy of its own."""
        found: dict[str, list[tuple[Spec, Instance | None]]] = {}
        for version in self.scheduler.state.versions.values():
            for each in version.instances.values():
                found.setdefault(state_of(each), []).append((version.spec, each))
            if not version.instances:
                found.setdefault(version.files.value, []).append((version.spec, None))
        if not found:
            return
        those = found[sorted(found)[at % len(found)]]
        model, instance = those[which % len(those)]
        name, generation = (instance.id, instance.generation) if instance else ("x-9", 1)
        request = next(iter(instance.leases if instance else ()), "r0")
        for event in every_event(model, name, generation, request).values():
            copied = copy_of(self.scheduler)
            copied.handle(event, self.now)
            check(copied)

    @precondition(lambda self: self.fetches)
    @rule(need=needs, fails=st.booleans())
    def fetched(self, need: Need, fails: bool) -> None:
        version = self.fetches.pop(0)
        self.say(ev.FetchFailed(version, "download_failed", "as told") if fails else ev.Cached(version, need))

    # -- the operator, devices, time

    @rule(order=orders)
    def operate(self, order: ev.Event) -> None:
        self.post(order)

    @precondition(lambda self: len(self.scheduler.state.versions) >= len(MODELS))
    @rule(old=keys, new=models, policy=policies, bound=st.none() | st.integers(1, 20))
    def replace(self, old: str, new: str, policy: Policy, bound: int | None) -> None:
        added = spec(new, slots=2)
        if bound is None:
            self.post(ev.Removed(old))
        else:
            removed = ev.Removed(old, replaced_by=added.version)
            changed = ev.PolicyChanged(added.version, policy)
            self.post(ev.Changed((ev.Added(added, policy), removed, changed, ev.QueueBounded(bound))))

    @rule(
        device=st.sampled_from([*DEVICES, "gpu9"]), free=st.integers(0, 100), ours=st.integers(0, 40), at=spot
    )
    def see(self, device: str, free: int, ours: int, at: int) -> None:
        everyone = sorted(self.scheduler.state.instances) or ["x-9"]
        self.post(ev.DeviceSeen(device, 100, free, {everyone[at % len(everyone)]: ours}))
        self.post(ev.Observed(everyone[at % len(everyone)], {device: ours}))

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 12.0, 700.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(500):
            due = self.scheduler.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.post(ev.Tick())
            check(self.scheduler)
        self.now = end

    @precondition(lambda self: self.count > 15)
    @rule(now=st.booleans())
    def shut_down(self, now: bool) -> None:
        self.post(ev.ShutdownAsked(now))
        assert not self.waiting

    # -- what holds

    @invariant()
    def invariants_hold(self) -> None:
        check(self.scheduler)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        assert self.waiting == set(self.scheduler.state.waiting)
        assert set(self.leases) == set(self.scheduler.state.leases)

    @invariant()
    def every_leaving_instance_has_a_command_under_way(self) -> None:
        under_way = {(command.instance, command.generation) for command in self.commands}
        for instance in self.scheduler.state.instances.values():
            if instance.state.value not in ("ready", "draining", "asleep"):
                assert (instance.id, instance.generation) in under_way, f"{instance.id} waits for nothing"

    def teardown(self) -> None:
        """Answer everything: whoever waits is served or refused, and what should go goes."""
        for _ in range(400):
            while self.commands:
                command = self.commands.pop()
                self.post(done(command))
            while self.fetches:
                self.post(ev.Cached(self.fetches.pop(), Need((Share("accelerator", 10),))))
            for request, grant in list(self.leases.items()):
                del self.leases[request]
                self.post(ev.Finished(request, grant.instance, grant.generation, OutcomeKind.DONE))
            check(self.scheduler)
            if not self.waiting and not self.commands:
                return
            due = self.scheduler.next_deadline()
            self.now = max(self.now, due if due is not None else self.now)
            self.post(ev.Tick())
        assert not self.waiting, f"{self.waiting} wait for ever"


@pytest.mark.parametrize("state", STATES)
def test_the_outside_from(state: str) -> None:
    class From(Outside):
        start = state

    run_state_machine_as_test(From, settings=SETTINGS)
