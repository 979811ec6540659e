"""Plans of small yards, step by step: what is told, when, and what it rests on."""

from __future__ import annotations

import pytest

from core.yard import Yard, gpu, need, ram, spec
from modelyard.core import dryrun
from modelyard.core import events as ev
from modelyard.core.outlook import USUAL_STOP
from modelyard.core.plan import Plan, changed, plan
from modelyard.core.types import OutcomeKind, Policy, Priority

Told = tuple[float, str, str]


def planned(yard: Yard, *events: ev.Event, stop: float = USUAL_STOP) -> Plan:
    return plan(yard.scheduler, events, yard.now, stop=stop)


def told(made: Plan) -> list[Told]:
    """When, what, and who: an instance that there is, else a model."""
    return [(round(step.at, 2), step.does.value, step.instance or step.model) for step in made.steps]


def facts(made: Plan) -> dict[str, str]:
    return {each.name: each.value for each in made.preconditions}


@pytest.fixture
def yard() -> Yard:
    """One device; `a` is idle for 3 s, and `b` fits only instead of it."""
    yard = Yard()
    yard.load("a", 60, slots=2)
    yard.add("b", 60)
    yard.pass_time(3.0)
    return yard


A, B = spec("a").version, spec("b").version


class TestLoads:
    def test_into_free_memory(self) -> None:
        yard = Yard()
        key = yard.add("a", 60)
        made = planned(yard, ev.LoadAsked(key))
        assert told(made) == [(0.0, "start", "a"), (1.0, "ready", "a"), (1.0, "loaded", "a")]
        start = made.steps[0]
        assert (start.bytes, start.reason, start.exact) == ((("gpu0", 60),), "asked to load", True)
        assert start.seconds == pytest.approx(1.0)
        assert made.seconds == pytest.approx(1.0)
        assert (made.at_once, made.open) == (1, ())
        (device,) = made.memory
        assert (device.device, device.budget) == ("gpu0", 100)
        assert (device.reserved_before, device.reserved_after) == (0, 60)
        assert (device.free_before, device.free_after) == (100, 40)

    def test_what_is_mapped_counts(self) -> None:
        yard = Yard(ram())
        key = yard.add("a", need(10, on="ram"))
        wanted = yard.version(key).need
        assert wanted is not None
        wanted.shares[0].mapped["file"] = 30  # type: ignore[index]
        assert planned(yard, ev.LoadAsked(key)).steps[0].bytes == (("ram", 40),)

    def test_a_victim_leaves_with_its_score(self, yard: Yard) -> None:
        made = planned(yard, ev.LoadAsked(B), stop=2.0)
        assert told(made) == [
            (0.0, "leave", "a-1"),
            (2.0, "gone", "a-1"),
            (2.0, "start", "b"),
            (3.0, "ready", "b"),
            (3.0, "loaded", "b"),
        ]
        leave = made.steps[0]
        assert (leave.winner, leave.bytes, leave.count) == (B, (("gpu0", 60),), 0)
        assert leave.reason.startswith("makes room for b")
        assert dict(leave.score) == {"cost": 0.0, "standing": "idle"}
        assert facts(made)["a-1"] == "idle"
        assert facts(made)["who leaves first for b"] == "a-1"
        assert made.at_once == 1

    def test_a_busy_victim_finishes_first(self, yard: Yard) -> None:
        yard.do(ev.PolicyChanged(B, Policy(patience=5.0)))
        yard.ask("r1", A)
        yard.version(A).service_seconds = 8.0
        made = planned(yard, ev.LoadAsked(B))
        assert told(made)[:3] == [(5.0, "leave", "a-1"), (8.0, "stop", "a-1"), (8.5, "gone", "a-1")]
        assert (made.steps[0].count, made.steps[1].reason) == (1, "drained")
        assert made.at_once == 0
        victim = next(each for each in made.preconditions if each.name == "a-1")
        assert (victim.value, victim.note) == ("busy", "runs r1")

    def test_a_victim_that_does_not_finish_is_cut(self) -> None:
        yard = Yard()
        a = yard.load("a", 60, slots=2, drain_cap=1.0, min_residency=0.0, patience=0.0)
        b = yard.add("b", 60, patience=0.0)
        yard.ask("r1", a)
        yard.ask("r2", a)
        yard.version(a).service_seconds = 50.0
        made = planned(yard, ev.Arrived("planned", b))
        assert told(made)[:4] == [
            (0.0, "leave", "a-1"),
            (1.0, "cut", "a-1"),
            (1.0, "stop", "a-1"),
            (1.5, "gone", "a-1"),
        ]
        assert (made.steps[1].count, made.steps[1].code) == (2, "cut_at_drain")
        assert made.steps[1].reason == "a-1 had to leave: the drain cap passed"

    def test_one_that_is_ready(self, yard: Yard) -> None:
        made = planned(yard, ev.LoadAsked(A))
        assert told(made) == [(0.0, "loaded", "a-1")]
        assert "policy of a" not in facts(made)

    def test_one_that_can_never_fit(self) -> None:
        yard = Yard()
        key = yard.add("a", 130)
        made = planned(yard, ev.LoadAsked(key))
        (step,) = made.steps
        assert (step.does, step.code, step.instance) == (dryrun.Does.LOADED, "never_fits", "")
        assert "can never fit" in step.reason
        assert facts(made)["footprint of a"] == "130 bytes on accelerator, fits nowhere"

    def test_one_that_is_to_evict_nobody(self, yard: Yard) -> None:
        (step,) = planned(yard, ev.LoadAsked(B, evict=False)).steps
        assert (step.does, step.code) == (dryrun.Does.LOADED, "no_memory")

    def test_an_unknown_footprint_takes_what_is_free(self) -> None:
        yard = Yard()
        key = yard.add("a", need(60, known=False))
        made = planned(yard, ev.LoadAsked(key))
        assert [(step.bytes, step.exact) for step in made.steps[:2]] == [((("gpu0", 100),), False)] * 2
        yard.seen("gpu0", free=97)
        assert changed(made, yard.scheduler, yard.now) == [], "the bytes are not what it rests on"

    def test_a_start_that_will_be_too_slow(self) -> None:
        yard = Yard()
        key = yard.add("a", 60, load_cap=5.0)
        yard.version(key).load_seconds = 9.0
        made = planned(yard, ev.LoadAsked(key))
        assert told(made)[:3] == [(0.0, "start", "a"), (5.0, "fail", "a"), (5.5, "gone", "a")]
        assert "load_cap" in made.steps[1].reason

    def test_an_unknown_version(self) -> None:
        made = planned(Yard(), ev.LoadAsked("x@0"))
        assert [(step.does.value, step.code) for step in made.steps] == [("loaded", "model_removed")]
        assert facts(made)["version of x"] == "unknown"

    def test_one_that_is_on_its_way(self) -> None:
        yard = Yard()
        key = yard.add("a", 60)
        yard.do(ev.LoadAsked(key))
        yard.pass_time(0.4)
        made = planned(yard, ev.LoadAsked(key))
        assert told(made) == [(0.6, "ready", "a-1"), (0.6, "loaded", "a-1")]
        assert made.steps[0].bytes == (("gpu0", 60),)
        assert facts(made)["instances of a"] == "a-1 starting"
        assert facts(made)["a-1"] == "starting"

    def test_in_memory_that_is_on_its_way_back(self, yard: Yard) -> None:
        yard.do(ev.UnloadAsked(A))
        made = planned(yard, ev.LoadAsked(B), stop=2.0)
        assert told(made)[0] == (2.0, "start", "b")
        assert facts(made)["a-1"] == "leaving"

    def test_one_that_is_not_ready_yet_makes_room(self) -> None:
        yard = Yard()
        a, b = yard.add("a", 60), yard.add("b", 60)
        yard.ask("r1", a)
        yard.do(ev.Cancelled("r1"))
        made = planned(yard, ev.LoadAsked(b))
        assert told(made)[:2] == [(0.0, "leave", "a-1"), (0.5, "gone", "a-1")]
        leave, gone = made.steps[:2]
        assert "not ready yet" in leave.reason
        assert (leave.winner, leave.count, leave.score) == (b, 0, ())
        assert gone.bytes == (("gpu0", 60),)

    def test_who_stays_is_told(self) -> None:
        yard = Yard(gpu(size=130))
        yard.load("a", 60)
        c = yard.load("c", 60)
        yard.ask("r1", c)
        yard.finish("r1")
        b = yard.add("b", 60)
        yard.pass_time(3.0)
        made = planned(yard, ev.LoadAsked(b))
        assert [step.instance for step in made.steps if step.does is dryrun.Does.LEAVE] == ["a-1"]
        assert str(dict(made.steps[0].score)["spared"]).startswith("c-2 (idle")

    def test_others_are_not_told_of(self) -> None:
        yard = Yard(gpu("gpu0"), gpu("gpu1"))
        other = yard.load("other", 60, devices=("gpu1",))
        yard.ask("r1", other)
        yard.version(other).service_seconds = 100.0
        yard.do(ev.UnloadAsked(other))
        key = yard.add("a", 60, devices=("gpu0",))
        made = planned(yard, ev.LoadAsked(key))
        assert told(made) == [(0.0, "start", "a"), (1.0, "ready", "a"), (1.0, "loaded", "a")]
        assert not [name for name in facts(made) if "other" in name]


class TestFiles:
    def test_nothing_is_known_of_what_follows_a_fetch(self) -> None:
        yard = Yard()
        key = yard.add("a", 60, cached=False)
        made = planned(yard, ev.LoadAsked(key))
        assert told(made) == [(0.0, "fetch", "a")]
        assert made.open == (
            "the files of a are not here: what it needs, and what follows, is known when they are",
        )
        assert facts(made)["files of a"] == "absent"
        assert facts(made)["room for a"] == "not known"
        yard.do(ev.LoadAsked(key))
        assert planned(yard, ev.Arrived("planned", key)).open == made.open, "it is being fetched"


class TestRequests:
    def test_a_free_slot(self, yard: Yard) -> None:
        made = planned(yard, ev.Arrived("planned", A))
        assert told(made) == [(0.0, "grant", "a-1")]
        assert facts(made) == {"the server": "open", "version of a": A, "free slot of a": "a-1"}
        yard.ask("r1", A)
        assert changed(made, yard.scheduler, yard.now) == [], "one slot of two is left"
        yard.ask("r2", A)
        (change,) = changed(made, yard.scheduler, yard.now)
        assert str(change) == "free slot of a: was a-1, is none"

    def test_a_slot_that_becomes_free(self, yard: Yard) -> None:
        yard.ask("r1", A)
        yard.pass_time(0.4)
        yard.ask("r2", A)
        made = planned(yard, ev.Arrived("planned", A))
        assert told(made) == [(0.6, "grant", "a-1")]
        assert made.at_once == 0
        assert facts(made)["waiting for a"] == "nobody"
        yard.ask("r3", A)
        (change,) = changed(made, yard.scheduler, yard.now)
        assert str(change) == "waiting for a: was nobody, is somebody"

    def test_behind_others(self, yard: Yard) -> None:
        for request in ("r1", "r2", "r3", "r4"):
            yard.ask(request, A)
        yard.version(A).service_seconds = 3.0
        assert told(planned(yard, ev.Arrived("planned", A))) == [(6.0, "grant", "a-1")]

    def test_a_victim_is_followed_until_it_is_gone(self, yard: Yard) -> None:
        made = planned(yard, ev.Arrived("planned", B, max_wait=0.2), stop=2.0)
        assert told(made) == [(0.0, "leave", "a-1"), (0.2, "refuse", "b"), (2.0, "gone", "a-1")]
        assert made.steps[1].reason.startswith("b was not ready within 0.2 s")

    def test_a_suspect_instance_is_expected_to_be_well(self, yard: Yard) -> None:
        yard.ask("r1", A)
        yard.finish("r1", OutcomeKind.DIED)
        made = planned(yard, ev.Arrived("planned", A))
        assert told(made) == [(0.0, "grant", "a-1")]
        assert facts(made)["a-1"] == "idle, suspect"
        assert made.at_once == 0

    def test_a_wait_that_is_too_long(self, yard: Yard) -> None:
        yard.ask("r1", A)
        yard.ask("r2", A)
        (step,) = planned(yard, ev.Arrived("planned", A, max_wait=0.2)).steps
        assert (step.does.value, step.code, step.count) == ("refuse", "wait_too_long", 1)
        late = planned(yard, ev.Arrived("planned", A, max_wait=0.2))
        (verdict,) = [each for each in late.preconditions if each.name == "a request for a"]
        assert verdict.value == "refused: wait_too_long"
        assert verdict.note == "expected wait 1.0 s, at most 0.2 s"
        assert str(verdict) == f"a request for a: {verdict.value} ({verdict.note})"

    def test_a_queue_that_is_full(self, yard: Yard) -> None:
        yard.do(ev.PolicyChanged(A, Policy(queue_bound=1)))
        yard.ask("r1", A)
        yard.ask("r2", A)
        made = planned(yard, ev.Arrived("planned", A))
        assert facts(made)["a request for a"] == "may wait"
        yard.ask("r3", A)
        said = [str(change) for change in changed(made, yard.scheduler, yard.now)]
        assert "a request for a: was may wait, is refused: queue_full" in said

    def test_its_class_counts(self, yard: Yard) -> None:
        c = yard.add("c", 70, priority=Priority.LOW)
        yard.ask("r1", c)
        assert facts(planned(yard, ev.Arrived("planned", B)))["in line before b"] == "none"
        low = facts(planned(yard, ev.Arrived("planned", B, Priority.LOW)))
        assert low["in line before b"] == c


class TestChanges:
    def test_unload(self, yard: Yard) -> None:
        made = planned(yard, ev.UnloadAsked(A))
        assert told(made) == [(0.0, "leave", "a-1"), (0.5, "gone", "a-1")]
        assert made.memory[0].free_after == 100
        assert list(facts(made)) == [
            "the server",
            "version of a",
            "instances of a",
            "a load of a",
            "waiting for a",
            "a-1",
            "in line for memory that a may use",
        ]

    def test_unload_now_cuts(self, yard: Yard) -> None:
        yard.ask("r1", A)
        yard.ask("r2", A)
        made = planned(yard, ev.UnloadAsked(A, now=True))
        assert [what for _, what, _ in told(made)] == ["leave", "cut", "stop", "gone"]
        assert (made.steps[1].count, made.steps[1].code, made.at_once) == (2, "unloaded", 3)

    def test_who_waits_for_the_memory_gets_it(self, yard: Yard) -> None:
        yard.ask("r1", A)
        yard.ask("r2", B)
        made = planned(yard, ev.UnloadAsked(A, now=True))
        assert (0.5, "start", "b") in told(made)
        assert facts(made)["in line for memory that a may use"] == B

    def test_a_home_model_comes_back(self, yard: Yard) -> None:
        yard.add("h", 50, home=True)
        made = planned(yard, ev.UnloadAsked(A))
        assert told(made)[2:] == [(2.0, "start", "h"), (3.0, "ready", "h")]
        assert "policy of h" in facts(made)

    def test_not_one_that_was_unloaded_by_order(self, yard: Yard) -> None:
        home = yard.add("h", 50, home=True)
        yard.do(ev.UnloadAsked(home))
        assert len(planned(yard, ev.UnloadAsked(A)).steps) == 2

    def test_a_removed_model_refuses_who_waits(self, yard: Yard) -> None:
        for request in ("r1", "r2", "r3", "r4"):
            yard.ask(request, A)
        made = planned(yard, ev.Removed(A))
        assert told(made)[:2] == [(0.0, "leave", "a-1"), (0.0, "refuse", "a")]
        refuse = made.steps[1]
        assert (refuse.count, refuse.code) == (2, "model_removed")
        assert (made.steps[0].count, facts(made)["waiting for a"]) == (2, "somebody")

    def test_a_new_model_that_has_to_stay(self, yard: Yard) -> None:
        new = spec("new")
        made = planned(yard, ev.Added(new, Policy(min_replicas=1), need(50)))
        assert told(made)[:3] == [(0.0, "leave", "a-1"), (0.5, "gone", "a-1"), (0.5, "start", "new")]
        assert facts(made)["version of new"] == "unknown"
        assert facts(made)["room for new"] == "none while everybody stays"
        assert facts(made)["who leaves first for new"] == "a-1"

    def test_a_device_that_is_added(self, yard: Yard) -> None:
        yard.do(ev.PolicyChanged(A, Policy(pin=True)))
        yard.ask("r1", B)
        made = planned(yard, ev.DeviceAdded(gpu("gpu1")))
        assert told(made)[0] == (0.0, "start", "b")
        assert made.steps[0].bytes == (("gpu1", 60),)
        added = made.memory[1]
        assert (added.device, added.reserved_before, added.free_before) == ("gpu1", 0, 0)
        assert (added.reserved_after, added.free_after) == (60, 40)
        assert facts(made)["device gpu1"] == "unknown"

    def test_several_at_once(self, yard: Yard) -> None:
        new = spec("new")
        both = ev.Changed((ev.Removed(A), ev.Added(new, Policy(min_replicas=1), need(50))))
        made = planned(yard, both)
        assert [what for _, what, _ in told(made)] == ["leave", "gone", "start", "ready"]

    def test_a_policy_that_lets_nobody_stay(self, yard: Yard) -> None:
        made = planned(yard, ev.PolicyChanged(A, Policy(keep_alive=0.0)))
        assert told(made) == [], "the next tick lets it go"
        assert planned(yard, ev.ShutdownAsked()).open == ()
