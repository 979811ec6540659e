"""Facts that plans rest on where several models, devices or files meet; and where a run of a plan ends."""

from __future__ import annotations

import pytest

from core.test_planned_stories import A, B, facts, planned, told, yard
from core.yard import Yard, gpu, need, ram, spec
from modelyard.core import dryrun
from modelyard.core import events as ev
from modelyard.core.capacity import LOOKAHEAD
from modelyard.core.plan import changed
from modelyard.core.types import Need, Policy, Share, WhenFull

__all__ = ["yard"]


def stay(yard: Yard, key: str) -> None:
    yard.do(ev.PolicyChanged(key, Policy(pin=True)))


@pytest.fixture
def two() -> Yard:
    """Two devices with a pinned model each, and a model in line for each of them: `c` and `d`."""
    yard = Yard(gpu("gpu0"), gpu("gpu1"))
    for model, waiting, device in (("a", "c", "gpu0"), ("b", "d", "gpu1")):
        yard.load(model, 60, devices=(device,), pin=True)
        yard.ask(f"r {waiting}", yard.add(waiting, 60, devices=(device,)))
    return yard


class TestFacts:
    def test_only_those_who_came_earlier_are_in_line_before(self, yard: Yard) -> None:
        yard.ask("r1", A)
        for model in ("c", "d", "b", "e"):
            yard.ask(f"r {model}", B if model == "b" else yard.add(model, 60))
        made = planned(yard, ev.LoadAsked(B))
        assert facts(made)["in line before b"] == "c@000000000000, d@000000000000"

    def test_who_may_use_the_memory_of_each_is_in_line_for_it(self, two: Yard) -> None:
        keys = [two.add(model, 60, devices=(device,)) for model, device in (("x", "gpu0"), ("y", "gpu1"))]
        made = facts(planned(two, *(ev.Removed(key) for key in keys)))
        assert made["in line for memory that x may use"] == "c@000000000000"
        assert made["in line for memory that y may use"] == "d@000000000000"
        assert made["waiting for c"] == made["waiting for d"] == "somebody"

    def test_as_many_of_a_line_are_looked_at_as_may_own_memory(self, yard: Yard) -> None:
        stay(yard, A)
        for number in range(LOOKAHEAD + 2):
            yard.ask(f"r{number}", yard.add(f"m{number}", 60))
        last, behind = f"version of m{LOOKAHEAD - 1}", f"version of m{LOOKAHEAD}"
        for event in (ev.UnloadAsked(A), ev.DeviceAdded(gpu("gpu1", 50))):
            made = facts(planned(yard, event))
            assert (last in made, behind in made) == (True, False)
        assert (
            f"m{LOOKAHEAD}@"
            not in facts(planned(yard, ev.UnloadAsked(A)))["in line for memory that a may use"]
        )

    def test_a_device_for_which_nobody_is_in_line(self, yard: Yard) -> None:
        assert facts(planned(yard, ev.DeviceAdded(gpu("gpu1")))) == {
            "the server": "open",
            "device gpu1": "unknown",
            "in line for memory": "none",
        }

    def test_one_that_waits_rests_on_those_there_alone(self) -> None:
        yard = Yard(gpu("gpu0"), gpu("gpu1"))
        for model, device in (("a", "gpu0"), ("d", "gpu1")):
            yard.load(model, 60, devices=(device,))
        yard.add("b", 60, devices=("gpu0",), when_full=WhenFull.WAIT, max_wait=1e9)
        made = facts(planned(yard, ev.LoadAsked(B)))
        assert (made["a-1"], made["who leaves first for b"]) == ("idle", "a-1")
        assert "d-2" not in made

    def test_one_that_is_new_and_has_to_wait(self, yard: Yard) -> None:
        yard.ask("r1", A)
        yard.version(A).service_seconds = 1e5
        new = Policy(min_replicas=1, when_full=WhenFull.WAIT, max_wait=1e9)
        made = planned(yard, ev.Added(spec("new"), new, need(50)))
        assert made.steps == ()
        assert (facts(made)["a-1"], facts(made)["who leaves first for new"]) == ("busy", "a-1")

    def test_room_is_read_of_one_that_is_new_as_it_will_be(self, yard: Yard) -> None:
        made = planned(yard, ev.Added(spec("new"), Policy(min_replicas=1), need(50)))
        rooms = [(each.name, each.value) for each in made.preconditions if each.name.startswith("room ")]
        assert rooms == [
            ("room for new", "none while everybody stays"),
            ("room for new then", "none"),
            ("room for new then", "on gpu0"),
        ]

    def test_a_file_that_leaves_with_its_victim_needs_room_again(self) -> None:
        yard = Yard(ram(150))
        yard.load("a", Need((Share("ram", 15, {"weights": 100}),)))
        yard.load("c", need(20, on="ram"))
        yard.pass_time(3.0)
        made = planned(yard, ev.LoadAsked(yard.add("b", Need((Share("ram", 40, {"weights": 100}),)))))
        yard.seen("ram", free=95, total=150)  # without the mapped file: the cache gives it back
        (change,) = changed(made, yard.scheduler, yard.now)
        assert str(change) == "room for b then: was on ram, is none"

    def test_room_on_two_devices(self) -> None:
        yard = Yard(gpu("gpu0"), gpu("gpu1"))
        made = planned(yard, ev.LoadAsked(yard.add("split", need(60, 50))))
        assert facts(made)["room for split"] == "on gpu0, gpu1"

    def test_room_where_nothing_is_free(self) -> None:
        yard = Yard()
        yard.load("a", 100)
        yard.add("b", 60)
        (room,) = [each for each in planned(yard, ev.LoadAsked(B)).preconditions if each.name == "room for b"]
        assert (room.value, room.note) == ("none while everybody stays", "gpu0 has 0 bytes free")

    def test_room_for_what_nobody_knows_yet(self) -> None:
        yard = Yard()
        made = facts(planned(yard, ev.LoadAsked(yard.add("a", cached=False))))
        assert made["room for a"] == made["room for a then"] == "not known"

    def test_several_instances(self) -> None:
        yard = Yard(gpu(size=200))
        yard.load("a", 60, max_replicas=2, patience=0.0)
        yard.ask("r1", A)
        yard.ask("r2", A)
        assert facts(planned(yard, ev.UnloadAsked(A)))["instances of a"] == "a-1 ready, a-2 starting"

    def test_a_request_that_waits_for_what_never_comes(self, yard: Yard) -> None:
        stay(yard, A)
        made = planned(yard, ev.Arrived("planned", B, max_wait=1e6))
        assert made.steps == ()
        assert facts(made)["a request for b"] == "may wait"
        assert facts(made)["policy of b"] == "as by default"

    def test_an_instance_that_is_gone(self, yard: Yard) -> None:
        made = planned(yard, ev.LoadAsked(B))
        yard.do(ev.UnloadAsked(A))
        yard.released(A)
        assert "a-1: was idle, is gone" in [str(each) for each in changed(made, yard.scheduler, yard.now)]


class TestCourse:
    def test_a_step_that_does_not_come_any_more(self) -> None:
        yard = Yard()
        key = yard.add("a", 60, load_cap=1e9, max_wait=1e9)
        made = planned(yard, ev.LoadAsked(key))
        yard.version(key).load_seconds = dryrun.HORIZON + 400.0
        (change,) = changed(made, yard.scheduler, yard.now)
        assert str(change) == f"what follows, step 2: was ready {key} on gpu0 (60 bytes), is nothing"

    def test_whom_a_step_is_for(self, yard: Yard) -> None:
        yard.do(ev.PolicyChanged(B, Policy(patience=5.0)))
        yard.ask("r1", A)
        yard.version(A).service_seconds = 8.0
        made = planned(yard, ev.LoadAsked(B))
        yard.version(A).service_seconds = 2.0
        (change,) = changed(made, yard.scheduler, yard.now)
        assert (change.was, change.now) == (f"stop a-1 for {B}", f"gone a-1 on gpu0 (60 bytes) for {B}")

    def test_it_does_not_end_while_one_it_tells_of_is_in_line(self, yard: Yard) -> None:
        yard.ask("r1", A)
        yard.version(A).service_seconds = 8.0
        made = planned(yard, ev.Added(spec("new"), Policy(min_replicas=1, patience=5.0), need(50)))
        assert told(made)[0] == (5.0, "leave", "a-1")
        assert told(made)[-1] == (9.5, "ready", "new")

    def test_it_does_not_wait_for_others_to_go(self) -> None:
        yard = Yard(gpu("gpu0"), gpu("gpu1"))
        yard.load("other", 60, devices=("gpu1",), keep_alive=0.5)
        key = yard.add("a", 60, devices=("gpu0",), keep_alive=5.0)
        made = planned(yard, ev.LoadAsked(key), stop=100.0)
        assert told(made) == [(0.0, "start", "a"), (1.0, "ready", "a"), (1.0, "loaded", "a")]

    def test_it_does_not_wait_for_home_models_that_have_no_room(self, yard: Yard) -> None:
        stay(yard, A)
        yard.add("h", 90, home=True)
        yard.pass_time(10.0)
        made = planned(yard, ev.PolicyChanged(A, Policy(pin=True, queue_bound=3)))
        assert (made.steps, made.open) == ((), ())

    def test_it_does_not_wait_for_a_request_whose_files_come(self) -> None:
        yard = Yard()
        key = yard.add("a", 60, cached=False)
        yard.do(ev.LoadAsked(key))
        assert told(planned(yard, ev.Arrived("planned", key))) == []

    def test_all_of_several_events_are_told_of(self, yard: Yard) -> None:
        yard.ask("r1", A)
        yard.ask("r2", B)
        made = planned(yard, ev.UnloadAsked(A), ev.DeviceAdded(gpu("gpu1", 50)))
        assert [what for _, what, _ in told(made)] == ["leave", "stop", "gone", "start", "ready"]

    def test_how_far_it_looked(self, yard: Yard) -> None:
        stay(yard, A)
        (said,) = planned(yard, ev.Arrived("planned", B, max_wait=1e6)).open
        assert said.startswith("what comes later than 1000000 s from now, or after 1000 events")
