"""Plans against the real scheduler: a plan changes nothing, and is what happens while what it rests on holds.

Random states: several devices, versions in all states, queues, pins, classes, memory of others.
"""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

from core.yard import Yard, gpu, need, ram, rung, spec
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.dryrun import Does, about
from modelyard.core.invariants import check
from modelyard.core.outlook import Outlook
from modelyard.core.plan import COURSE, Plan, changed, plan
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Cause, OutcomeKind, Policy, Priority, WhenFull

STEPS = 3000
ORDERS = ev.LoadAsked | ev.Arrived | ev.UnloadAsked
Done = tuple[str, ...]


class Execution:
    """The real scheduler, told the events of a plan, with an outside that behaves as usual. It tells what the
    scheduler ordered for the versions that the plan is about, in its own words."""

    def __init__(self, scheduler: Scheduler, plan_: Plan, now: float) -> None:
        self.scheduler, self.now = scheduler, now
        self.about = set(about(scheduler.state, plan_.events))
        self.old = set(scheduler.state.instances)
        self.waiting = {name: each.version for name, each in scheduler.state.waiting.items()}
        arrivals = (event for event in plan_.events if isinstance(event, ev.Arrived))
        self.waiting |= {event.request: event.version for event in arrivals}
        self.done: list[Done] = []
        outlook = Outlook(scheduler, now, plan_.stop)
        for event in plan_.events:
            self.note(outlook.post(event))
        for event in islice(outlook.coming(), STEPS):
            if len(self.done) >= len(expected(plan_)):
                break
            self.note(outlook.post(event))
            check(scheduler)

    def note(self, actions: Sequence[ac.Action]) -> None:
        refused: dict[Done, None] = {}
        for action in actions:
            match action:
                case ac.Start(_, _, version, placement) if version in self.about:
                    self.done.append(("start", version, *(charge.device for charge in placement)))
                case ac.Stop(name) | ac.Release(name) | ac.Sleep(name):
                    instance = self.scheduler.state.instances[name]
                    if instance.version.key in self.about or instance.leaving_for in self.about:
                        old = name if name in self.old else ""
                        what = action.rung.name if isinstance(action, ac.Sleep) else "stop"
                        self.done.append((what, instance.version.key, old, instance.leaving_for))
                case ac.Wake(name) if self.scheduler.state.instances[name].version.key in self.about:
                    self.done.append(("wake", name))
                case ac.Refuse(request, code) if self.waiting[request] in self.about:
                    refused["refuse", self.waiting[request], code] = None
                case ac.Grant(request, name) if request == "planned":
                    self.done.append(("grant", name if name in self.old else ""))
                case ac.Fetch(version) if version in self.about:
                    self.done.append(("fetch", version))
                case _:
                    pass
        self.done.extend(refused)


def expected(plan_: Plan) -> list[Done]:
    """The orders that the steps of a plan stand for."""
    orders: list[Done] = []
    for step in plan_.steps:
        match step.does.value:
            case "start":
                orders.append(("start", step.version, *(device for device, _ in step.bytes)))
            case "leave" if not step.count:
                out = str(dict(step.score).get("rung", "stop"))
                orders.append((out, step.version, step.instance, step.winner))
            case "sleep":
                orders.append((str(dict(step.score)["rung"]), step.version, step.instance, step.winner))
            case "wake":
                orders.append(("wake", step.instance))
            case "stop" | "fail":
                orders.append(("stop", step.version, step.instance, step.winner))
            case "refuse":
                orders.append(("refuse", step.version, step.code))
            case "grant":
                orders.append(("grant", step.instance))
            case "fetch":
                orders.append(("fetch", step.version))
            case _:
                pass
    return orders


class Random:
    """A yard in some state, by chance; and what may happen to it next."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        chance = self.chance
        self.yard = Yard(ram(100), *(gpu(f"gpu{number}") for number in range(chance.randint(1, 3))))
        self.keys = [self.added(model) for model in "abcdef"[: chance.randint(2, 6)]]
        self.count = 0
        for _ in range(chance.randint(5, 40)):
            self.happen(self.yard.scheduler, chance.choice(HAPPENINGS))

    def added(self, model: str) -> str:
        chance = self.chance
        size = chance.choice([20, 30, 40, 60, 90])
        rungs = [rung(ram=size, seconds=chance.choice([None, 0.5]))] if chance.random() < 0.5 else []
        wanted = need(size, known=chance.random() > 0.1, rungs=rungs)
        return self.yard.add(
            model, wanted, slots=chance.randint(1, 2), cached=chance.random() > 0.1, **self.policy()
        )

    def policy(self) -> dict[str, Any]:
        chance = self.chance
        return {
            "priority": chance.choice([Priority.NORMAL, Priority.NORMAL, *Priority]),
            "when_full": chance.choice([WhenFull.EVICT] * 6 + [WhenFull.WAIT, WhenFull.FAIL]),
            "keep_alive": chance.choice([600.0, 600.0, 5.0, 0.0]),
            "pin": chance.random() < 0.1,
            "home": chance.random() < 0.1,
            "min_replicas": int(chance.random() < 0.1),
            "max_replicas": chance.choice([1, 1, 2]),
            "patience": chance.choice([0.0, 5.0]),
            "min_residency": chance.choice([0.0, 2.0]),
            "drain_cap": chance.choice([None, 1.0]),
        }

    def happen(self, scheduler: Scheduler, what: str) -> None:
        """Something happens to this scheduler at `yard.now`; time may pass."""
        chance, state, now = self.chance, scheduler.state, self.yard.now
        coming = ("starting", "warming", "waking")
        starting = [each for each in state.instances.values() if each.state.value in coming]
        sleeping = [each for each in state.instances.values() if each.state.value == "sleeping"]
        stopping = [
            each for each in state.instances.values() if each.state.value in ("stopping", "releasing")
        ]
        match what:
            case "arrive":
                self.count += 1
                scheduler.handle(ev.Arrived(f"r{self.count}", chance.choice(self.keys)), now)
            case "load":
                scheduler.handle(ev.LoadAsked(chance.choice(self.keys)), now)
            case "ready":
                for each in starting:
                    scheduler.handle(ev.Ready(each.id, each.generation), now)
            case "fail" if starting:
                scheduler.handle(ev.Failed(starting[0].id, starting[0].generation, Cause.CRASHED), now)
            case "gone":
                for each in stopping:
                    scheduler.handle(ev.Released(each.id, each.generation), now)
                for each in sleeping:
                    scheduler.handle(ev.Slept(each.id, each.generation), now)
            case "finish" if state.leases:
                request = chance.choice(list(state.leases))
                lease = state.leases[request]
                done = ev.Finished(request, lease.instance.id, lease.generation, OutcomeKind.DONE)
                scheduler.handle(done, now)
            case "foreign":
                device = chance.choice(list(state.ledger.devices))
                account = state.ledger.devices[device]
                free = 100 - account.reserved - chance.choice([0, 0, 5, 30])
                scheduler.handle(ev.DeviceSeen(device, 100, max(0, free)), now)
            case "cached":
                for name, version in list(state.versions.items()):
                    if version.files.value == "fetching":
                        scheduler.handle(ev.Cached(name, need(40)), now)
            case "time":
                end = now + chance.choice([0.1, 1.0, 3.0, 10.0])
                while (due := scheduler.next_deadline()) is not None and due <= end:
                    self.yard.now = max(self.yard.now, due)
                    scheduler.handle(ev.Tick(), self.yard.now)
                self.yard.now = end
            case _:
                pass

    def events(self) -> tuple[ev.Event, ...]:
        """What a plan may be asked for."""
        chance, key = self.chance, self.chance.choice(self.keys)
        match chance.choice(["load", "load", "load", "request", "request", "unload", "change"]):
            case "load":
                return (ev.LoadAsked(key, evict=chance.random() < 0.9),)
            case "request":
                return (
                    ev.Arrived("planned", key, chance.choice([None, *Priority]), chance.choice([None, 2.0])),
                )
            case "unload":
                return (ev.UnloadAsked(key, now=chance.random() < 0.5),)
            case _:
                changes: list[ev.Event] = [
                    ev.Removed(key),
                    ev.PolicyChanged(chance.choice(self.keys), Policy(**self.policy())),
                    ev.Added(spec("new"), Policy(**self.policy()), need(40)),
                    ev.DeviceAdded(gpu("gpu9")),
                ]
                return tuple(chance.sample(changes, chance.randint(1, 3)))


OFTEN = ("arrive", "arrive", "arrive", "load", "ready", "ready", "gone", "gone", "finish", "time")
HAPPENINGS = (*OFTEN, *OFTEN, "fail", "foreign", "cached")


def happened(name: str, scheduler: Scheduler) -> tuple[object, ...]:
    """What a fact about an instance is made of."""
    instance = scheduler.state.instances.get(name)
    return (instance.state.value, sorted(instance.leases), instance.suspect) if instance else ()


def test_a_plan_changes_nothing_and_is_what_happens() -> None:
    """1,000 random states, and as many plans; between plan and use up to four other things happen."""
    seen: Counter[str] = Counter()
    for seed in range(1000):
        some = Random(seed)
        scheduler = some.yard.scheduler
        events = some.events()
        before = pickle.dumps(scheduler)
        made = plan(scheduler, events, some.yard.now)
        assert pickle.dumps(scheduler) == before, f"{seed}: a plan changed something"
        real = deepcopy(scheduler)
        assert changed(made, real, some.yard.now) == [], f"{seed}: stale at once"
        for what in some.chance.choices(HAPPENINGS, k=seed % 5):
            some.happen(real, what)
        stale = changed(made, real, some.yard.now)
        assert pickle.dumps(scheduler) == before, f"{seed}: the copy shares something"
        victims = any(step.does is Does.LEAVE and step.winner for step in made.steps)
        seen.update(step.does.value for step in made.steps)
        if not stale:
            seen.update(kept=1, kept_with_victims=victims, kept_in_traffic=bool(seed % 5 and made.steps))
            done = Execution(real, made, some.yard.now).done
            wanted = expected(made)
            assert done[: len(wanted)] == wanted, f"{seed}: what was done is not what was planned"
            continue
        for change in stale:
            seen.update(stale=1)
            assert change.was != change.now
            if change.name in scheduler.state.instances:
                assert happened(change.name, scheduler) != happened(change.name, real), f"{seed}: {change}"
            if change.name.startswith(COURSE):
                seen.update(course=1)
                at_once = made.at_once and isinstance(events[0], ORDERS)
                assert not at_once or changed(made, real, some.yard.now, later=False) == [], (
                    f"{seed}: another decision, and no precondition tells: {change}"
                )
    assert seen["kept_in_traffic"] > 300, seen
    assert seen["kept_with_victims"] > 40, seen
    assert seen["course"] < 20 < seen["stale"], seen
    assert all(seen[does.value] for does in Does if does is not Does.FAIL), seen
