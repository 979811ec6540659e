"""The scheduler against an outside that is honest and unkind.

Answers come late, out of order, twice, stale, or as failures; clients leave; policies, devices and versions
change. After every step the invariants hold, and when everything is answered nobody waits any more.
"""

from __future__ import annotations

from math import inf
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.yard import gpu, spec
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.invariants import check
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Cause, Need, OutcomeKind, Policy, Priority, Share, WhenFull

MODELS = ("a", "b", "c", "d")
DEVICES = ("gpu0", "gpu1")

needs = st.builds(
    lambda size, known, mapped: Need((Share("accelerator", size, {"file": 20} if mapped else {}),), known),
    st.sampled_from([0, 20, 60, 100, 130]),
    st.sampled_from([True, True, True, False]),
    st.booleans(),
)
policies = st.builds(
    Policy,
    priority=st.sampled_from(Priority),
    when_full=st.sampled_from([WhenFull.EVICT, WhenFull.EVICT, WhenFull.WAIT, WhenFull.FAIL]),
    keep_alive=st.sampled_from([0.0, 3.0, 600.0, inf]),
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
)
models = st.sampled_from(MODELS)
spot = st.integers(0, 1000)


class Outside(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(queue_bound=12)
        self.now = 0.0
        self.count = 0
        self.commands: list[ac.Start | ac.Stop | ac.Release | ac.Probe] = []  # not answered yet
        self.fetches: list[str] = []
        self.leases: dict[str, ac.Grant] = {}
        self.waiting: set[str] = set()
        self.said: list[ev.Event] = []  # what may be said again
        self.shut = False
        for name in DEVICES:
            self.post(ev.DeviceAdded(gpu(name)))

    def post(self, event: ev.Event) -> None:
        for action in self.scheduler.handle(event, self.now):
            match action:
                case ac.Grant(request):
                    assert request in self.waiting, f"{request} is granted and did not wait"
                    self.waiting.discard(request)
                    self.leases[request] = action
                case ac.Refuse(request):
                    assert request in self.waiting, f"{request} is refused and did not wait"
                    self.waiting.discard(request)
                case ac.Start() | ac.Probe():
                    self.commands.append(action)
                case ac.Stop() | ac.Release():
                    self.commands.append(action)
                case ac.Fetch(version):
                    assert version not in self.fetches or self.readded, f"{version} is fetched twice"
                    self.fetches.append(version)
                case ac.Cut(request):
                    assert request in self.leases, f"{request} is cut and holds no lease"

    readded = True  # a version that was removed while its files came may be fetched again

    def say(self, event: ev.Event) -> None:
        self.said.append(event)
        self.post(event)

    def key(self, model: str) -> str:
        return spec(model, slots=2).version

    # -- requests

    @rule(
        model=models,
        priority=st.sampled_from([None, *Priority]),
        load=st.booleans(),
        wait=st.none() | st.just(2.0),
    )
    def arrive(self, model: str, priority: Priority | None, load: bool, wait: float | None) -> None:
        self.count += 1
        request = f"r{self.count}"
        self.waiting.add(request)
        self.post(ev.Arrived(request, self.key(model), priority, wait, load=load))

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
            exclude = frozenset({grant.instance})
            self.post(ev.Arrived(request, model, exclude=exclude, since=lease.granted_at))
            again = self.leases.get(request)
            assert again is None or again.instance != grant.instance, "granted what just failed it"

    # -- answers

    @precondition(lambda self: self.commands)
    @rule(
        at=spot,
        answer=st.sampled_from(["warming", "ready", "ready", "failed", "exited"]),
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
        if isinstance(command, ac.Start) and answer == "ready":
            self.say(ev.Ready(name, generation, own))
        elif isinstance(command, ac.Start):
            self.say(ev.Failed(name, generation, cause, "as told"))
        elif isinstance(command, ac.Probe):
            self.say(ev.Probed(name, generation, alive=answer != "failed", reachable=cause is Cause.HUNG))
        else:
            self.say(ev.Released(name, generation, own if answer == "failed" else {}))

    @precondition(lambda self: self.scheduler.state.instances)
    @rule(at=spot, cause=st.sampled_from(Cause))
    def crash(self, at: int, cause: Cause) -> None:
        everyone = sorted(self.scheduler.state.instances)
        instance = self.scheduler.state.instances[everyone[at % len(everyone)]]
        self.say(ev.Exited(instance.id, instance.generation, cause))

    @precondition(lambda self: self.scheduler.state.instances)
    @rule(at=spot)
    def doubt(self, at: int) -> None:
        everyone = sorted(self.scheduler.state.instances)
        instance = self.scheduler.state.instances[everyone[at % len(everyone)]]
        self.say(ev.Doubted(instance.id, instance.generation))

    @precondition(lambda self: self.said)
    @rule(at=spot)
    def say_again(self, at: int) -> None:
        self.post(self.said[at % len(self.said)])

    @rule(
        name=st.sampled_from(["a-1", "b-2", "c-3", "x-9"]),
        kind=st.integers(0, 7),
        generation=st.integers(-1, 9),
    )
    def babble(self, name: str, kind: int, generation: int) -> None:
        """An answer to a command that nobody gave, or gave long ago."""
        instance = self.scheduler.state.instances.get(name)
        if instance is not None and instance.generation == generation:
            return
        makers: list[Any] = [ev.Warming, ev.Ready, ev.Released, ev.Doubted]
        events: list[ev.Event] = [make(name, generation) for make in makers]
        events += [ev.Failed(name, generation, Cause.CRASHED), ev.Exited(name, generation, Cause.CRASHED)]
        events += [
            ev.Probed(name, generation, alive=False),
            ev.Finished("r1", name, generation, OutcomeKind.DONE),
        ]
        before = (len(self.scheduler.state.instances), len(self.scheduler.state.leases))
        assert self.scheduler.handle(events[kind], self.now) == [], "a stale event has consequences"
        assert before == (len(self.scheduler.state.instances), len(self.scheduler.state.leases))

    @precondition(lambda self: self.fetches)
    @rule(need=needs, fails=st.booleans())
    def fetched(self, need: Need, fails: bool) -> None:
        version = self.fetches.pop(0)
        self.say(ev.FetchFailed(version, "download_failed", "as told") if fails else ev.Cached(version, need))

    # -- the operator, devices, time

    @rule(model=models, policy=policies, cached=st.none() | needs)
    def add(self, model: str, policy: Policy, cached: Need | None) -> None:
        self.post(ev.Added(spec(model, slots=2), policy, cached))

    @rule(model=models, policy=policies)
    def change_policy(self, model: str, policy: Policy) -> None:
        self.post(ev.PolicyChanged(self.key(model), policy))

    @rule(model=models, seconds=st.sampled_from([0.0, 5.0, float("inf")]))
    def ask_to_keep(self, model: str, seconds: float) -> None:
        self.post(ev.KeepAliveAsked(self.key(model), seconds))

    @rule(model=models)
    def remove(self, model: str) -> None:
        self.post(ev.Removed(self.key(model)))

    @rule(model=models, other=models, policy=policies, bound=st.integers(1, 20))
    def change(self, model: str, other: str, policy: Policy, bound: int) -> None:
        parts = (
            ev.Added(spec(other, slots=2), policy),
            ev.Removed(self.key(model), replaced_by=self.key(other)),
            ev.PolicyChanged(self.key(other), policy),
            ev.QueueBounded(bound),
        )
        self.post(ev.Changed(parts))

    @rule(model=models, evict=st.booleans())
    def ask_to_load(self, model: str, evict: bool) -> None:
        self.post(ev.LoadAsked(self.key(model), evict))

    @rule(model=models, now=st.booleans())
    def ask_to_unload(self, model: str, now: bool) -> None:
        self.post(ev.UnloadAsked(self.key(model), now=now))

    @rule(model=models, need=needs, seconds=st.none() | st.just(3.0))
    def learn(self, model: str, need: Need, seconds: float | None) -> None:
        self.post(ev.Learned(self.key(model), need, seconds))

    @rule(
        device=st.sampled_from([*DEVICES, "gpu9"]), free=st.integers(0, 100), ours=st.integers(0, 40), at=spot
    )
    def see(self, device: str, free: int, ours: int, at: int) -> None:
        everyone = sorted(self.scheduler.state.instances) or ["x-9"]
        self.post(ev.DeviceSeen(device, 100, free, {everyone[at % len(everyone)]: ours}))
        self.post(ev.Observed(everyone[at % len(everyone)], {device: ours}))

    @rule(name=st.sampled_from([*DEVICES, "gpu2"]), size=st.sampled_from([50, 100, 150]))
    def add_device(self, name: str, size: int) -> None:
        self.post(ev.DeviceAdded(gpu(name, size)))

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
        self.shut = True
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
            if instance.state.value in ("starting", "warming", "stopping", "releasing"):
                assert (instance.id, instance.generation) in under_way, f"{instance.id} waits for nothing"

    def teardown(self) -> None:
        """Answer everything: whoever waits is served or refused, and what should go goes."""
        for _ in range(400):
            while self.commands:
                command = self.commands.pop()
                if isinstance(command, ac.Start):
                    self.post(ev.Ready(command.instance, command.generation))
                elif isinstance(command, ac.Probe):
                    self.post(ev.Probed(command.instance, command.generation, alive=True))
                else:
                    self.post(ev.Released(command.instance, command.generation))
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


TestOutside = Outside.TestCase
TestOutside.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a long history takes minutes
    report_multiple_bugs=False,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
