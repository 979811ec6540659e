"""Which victims go: what their loss would cost, what they must have had first, and whose files count."""

from __future__ import annotations

from typing import Any

import pytest

from core.yard import Yard, gpu, need, of, ram, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.capacity import LOOKAHEAD
from modelyard.core.types import Charge, Need, OutcomeKind, Policy, Priority, Share, WhenFull


def test_an_idle_victim_goes_before_a_busy_one_however_dear_it_is() -> None:
    yard = Yard(gpu(size=120))
    idle, busy = yard.load("idle", min_residency=0.0), yard.load("busy", min_residency=0.0)
    yard.do(ev.Learned(idle, need(60), 100.0))
    for number in range(5):
        yard.ask(f"r{number}", idle)
        yard.finish(f"r{number}")
    yard.ask("running", busy)
    c = yard.add("c", patience=5.0)
    yard.do(ev.Learned(c, need(60), 1.0))
    assert stopped(yard.ask("x", c)) == [], "it waits for the cheaper one"
    assert stopped(yard.pass_time(3.9)) == []
    assert stopped(yard.pass_time(0.2)) == ["idle"], "with its load, the patience is over"


def held(yard: Yard, *, asked: int = 5) -> tuple[str, str]:
    """One that is idle and was asked for lately, and one that is busy for the first time."""
    idle = yard.load("idle", 60, devices=("gpu0",))
    busy = yard.load("busy", 60, devices=("gpu0",))
    yard.do(ev.Learned(idle, need(60), 10.0))
    for number in range(asked):
        yard.ask(f"r{number}", idle)
        yard.finish(f"r{number}")
    yard.ask("running", busy)
    return idle, busy


def test_a_swap_waits_for_a_cheaper_victim_that_is_busy() -> None:
    yard = Yard(gpu(size=120))
    held(yard)
    c = yard.add("c", patience=5.0)
    assert stopped(yard.ask("x", c)) == []
    assert yard.version(c).blocked_by == "the memory of busy-2"
    yard.pass_time(2.0)
    assert stopped(yard.finish("running")) == ["busy"]


@pytest.mark.parametrize(("asked", "gone"), [(2, ["idle"]), (3, [])])
def test_nobody_is_spared_who_is_not_expected_back_soon(asked: int, gone: list[str]) -> None:
    """A request is worth ln 2 / 300 s of them in a second: 3 are 0.07 in the 10 s of the load."""
    yard = Yard(gpu(size=120))
    held(yard, asked=asked)
    assert stopped(yard.ask("x", yard.add("c", patience=5.0))) == gone


def test_a_swap_is_not_held_whose_load_takes_all_its_patience() -> None:
    yard = Yard(gpu(size=120))
    held(yard)
    c = yard.add("c", patience=5.0)
    yard.do(ev.Learned(c, need(60), 5.0))
    assert stopped(yard.ask("x", c)) == ["idle"]


@pytest.mark.parametrize(("waiting", "gone"), [(1, []), (2, ["idle"])])
def test_no_swap_is_held_while_more_are_in_line_than_may_leave(waiting: int, gone: list[str]) -> None:
    yard = Yard(gpu(size=120), gpu("gpu1", 60))
    yard.load("fixed", 60, devices=("gpu1",), pin=True)
    held(yard)
    for number in range(waiting):
        yard.ask(f"w{number}", yard.add(f"waits{number}", 60, devices=("gpu1",)))
    assert stopped(yard.ask("x", yard.add("c", 60, devices=("gpu0",), patience=5.0))) == gone


def test_who_is_not_ready_to_leave_is_waited_for_only_if_it_costs_less() -> None:
    yard = Yard(gpu(size=120))
    _, busy = held(yard)
    yard.do(ev.Learned(busy, need(60), 1000.0))
    assert stopped(yard.ask("x", yard.add("c", patience=5.0))) == ["idle"]


def test_a_swap_is_not_held_for_a_victim_that_is_busy_now() -> None:
    """Nobody is spared: `idle` will not be asked for soon enough, and `busy` is not idle."""
    yard = Yard(gpu(size=100))
    for model, size, load in (("idle", 20, 7.0), ("busy", 40, 8.0), ("other", 40, 8.0)):
        key = yard.load(model, size, min_residency=0.0)
        yard.do(ev.Learned(key, need(size), load))
        for number in range(3):
            yard.ask(f"{model}{number}", key)
            if number < 2 or model == "idle":
                yard.finish(f"{model}{number}")
    c = yard.add("c", 60, patience=5.0)
    yard.ask("x", c)
    assert yard.version(c).blocked_by == "the memory of idle-1, busy-2"


def test_a_running_lower_class_is_not_drained_to_spare_an_idle_one() -> None:
    yard = Yard(gpu(size=120))
    _, busy = held(yard)
    yard.do(ev.PolicyChanged(busy, Policy(priority=Priority.LOW)))
    assert stopped(yard.ask("x", yard.add("c", patience=5.0))) == ["idle"]


def test_the_loss_is_counted_for_each_byte_that_it_frees() -> None:
    yard = Yard(gpu(size=120))
    resident(yard, "small", 20, cost=4.0)
    resident(yard, "large", 100, cost=8.0)
    assert stopped(yard.ask("x", yard.add("c", 20))) == ["large"]


def test_a_loss_is_told_in_seconds_of_load_for_each_gb() -> None:
    yard = Yard(gpu(size=7 * 10**9))
    resident(yard, "cheap", 4 * 10**9, cost=6.0)
    resident(yard, "dear", 2 * 10**9, cost=6.0)
    (told,) = [note for note in of(ac.Note, yard.ask("x", yard.add("c", 3 * 10**9))) if note.kind == "leave"]
    assert (told.subject, dict(told.fields)["cost"]) == ("cheap-1", 1.5)
    assert dict(told.fields)["spared"] == "dear-2 (idle, 3.00)"


def test_of_two_busy_victims_the_lower_class_goes() -> None:
    yard = Yard(gpu(size=120))
    high = yard.load("high", min_residency=0.0, priority=Priority.NORMAL)
    low = yard.load("low", min_residency=0.0, priority=Priority.LOW)
    for number in range(5):
        yard.ask(f"r{number}", low)
        yard.finish(f"r{number}")
    yard.ask("h", high)
    yard.ask("l", low)
    yard.ask("x", yard.add("c", patience=0.0))
    assert (yard.states(high), yard.states(low)) == (["ready"], ["draining"])


def test_demand_fades_and_a_long_load_weighs() -> None:
    yard = Yard(gpu(size=120))
    old, new = yard.load("old", min_residency=0.0), yard.load("new", min_residency=0.0)
    for number in range(4):
        yard.ask(f"o{number}", old)
        yard.finish(f"o{number}")
    yard.do(ev.Learned(old, need(60), 10.0))
    yard.do(ev.Learned(new, need(60), 10.0))
    yard.pass_time(550.0)
    for number in range(2):
        yard.ask(f"n{number}", new)
        yard.finish(f"n{number}")
    yard.pass_time(20.0)
    assert yard.version(old).heat_now(yard.now) < 1.1
    assert stopped(yard.ask("x", yard.add("c", 60))) == ["old"]


def test_the_device_whose_victims_cost_least_is_cleared() -> None:
    yard = Yard(gpu("gpu0", 100), gpu("gpu1", 110))
    wanted = yard.load("wanted", 100, min_residency=0.0)
    yard.do(ev.Learned(wanted, need(100), 50.0))
    yard.ask("r", wanted)
    yard.finish("r")
    first, second = yard.load("first", 50, min_residency=0.0), yard.load("second", 50, min_residency=0.0)
    c = yard.add("c", 90)
    assert sorted(stopped(yard.ask("x", c))) == ["first", "second"]
    yard.released(first)
    assert started(yard.released(second)) == ["c"]
    assert yard.instance(c).placement == (Charge("gpu1", 90),)


def test_a_need_in_ram_and_on_a_gpu_clears_both() -> None:
    yard = Yard(gpu(size=100), ram(100))
    a = yard.load("a", Need((Share("ram", 60),)), min_residency=0.0)
    b = yard.load("b", 60, min_residency=0.0)
    c = yard.add("c", Need((Share("accelerator", 70), Share("ram", 70))))
    assert sorted(stopped(yard.ask("x", c))) == ["a", "b"]
    yard.released(a)
    assert started(yard.released(b)) == ["c"]


def test_a_growing_version_respects_the_minimum_residency_of_the_idle() -> None:
    yard = Yard(gpu(size=120))
    a = yard.load("a", max_replicas=2, patience=1.0)
    yard.ask("r1", a)
    yard.ask("r2", a)
    yard.load("b", min_residency=9.0)
    yard.pass_time(5.0)
    yard.seen("gpu0", free=0, total=120, **{"a-1": 60, "b-2": 60})
    assert stopped(yard.log) == []
    yard.pass_time(4.0)
    yard.seen("gpu0", free=0, total=120, **{"a-1": 60, "b-2": 60})
    assert stopped(yard.log) == ["b"]


def test_a_newly_ready_model_serves_for_patience_before_the_next_head_takes_it() -> None:
    yard = Yard()
    a, b = yard.add("a", min_residency=0.0), yard.add("b", patience=5.0)
    yard.ask("r1", a)
    yard.ask("r2", b)
    yard.pass_time(30.0)
    yard.ready(a)
    assert yard.states(a) == ["ready"], "it was only just loaded"
    yard.pass_time(4.9)
    assert yard.states(a) == ["ready"]
    yard.pass_time(0.2)
    assert yard.states(a) == ["draining"]


def test_the_minimum_residency_holds_for_a_busy_victim_too() -> None:
    yard = Yard()
    a, b = yard.load("a", min_residency=20.0), yard.add("b", patience=1.0)
    yard.ask("r1", a)
    yard.ask("r2", b)
    yard.pass_time(19.9)
    assert yard.states(a) == ["ready"]
    yard.pass_time(0.2)
    assert yard.states(a) == ["draining"]


def test_commands_carry_the_generation_after_the_one_before() -> None:
    yard = Yard()
    a = yard.load("a", release_cap=7.0)
    (stop,) = of(ac.Stop, yard.do(ev.UnloadAsked(a, now=True)))
    assert stop == ac.Stop("a-1", 2, 7.0, "unload was asked for", True)
    yard.do(ev.Released("a-1", 1))
    assert yard.states(a) == ["stopping"]
    yard.do(ev.Released("a-1", 2))
    assert yard.states(a) == []


def test_a_retry_waits_while_somebody_may_still_serve_it() -> None:
    yard = Yard(gpu(size=200))
    a = yard.load("a", max_replicas=2, patience=0.0)
    first = yard.instance(a).id
    yard.ask("busy", a)
    assert started(yard.ask("r", a, exclude={first}, since=0.0)) == ["a"]
    yard.ready(a)
    second = yard.holder("r")
    assert second is not None
    out = yard.ask("again", a, exclude={first, second}, since=0.0)
    assert [refuse.code for refuse in of(ac.Refuse, out)] == ["no_alternative"]
    yard.finish("r", OutcomeKind.DONE)
    yard.do(ev.UnloadAsked(a, second))
    assert of(ac.Refuse, yard.ask("later", a, exclude={first, second}, since=0.0)) == []


# -- which of several


def resident(yard: Yard, model: str, size: int, *, cost: float, **policy: Any) -> str:
    """A ready model, idle and free to go, that was asked for once and takes `cost` seconds to load."""
    key = yard.load(model, size, min_residency=0.0, **policy)
    yard.do(ev.Learned(key, need(size), cost))
    yard.ask(f"used {model}", key)
    yard.finish(f"used {model}")
    return key


def test_whoever_is_not_needed_in_the_end_stays_and_not_only_the_cheapest() -> None:
    yard = Yard(gpu(size=100))
    resident(yard, "cheap", 30, cost=1.0)
    resident(yard, "small", 10, cost=2.0)
    resident(yard, "large", 60, cost=3.0)
    assert sorted(stopped(yard.ask("x", yard.add("c", 90)))) == ["cheap", "large"]


def test_all_but_the_dearest_stay_when_it_makes_room_alone() -> None:
    yard = Yard(gpu(size=100))
    for number, size in enumerate((10, 10, 80)):
        resident(yard, f"m{number}", size, cost=size * (number + 1.0))
    assert stopped(yard.ask("x", yard.add("c", 80))) == ["m2"]


def test_the_device_whose_dearest_victim_costs_less_is_cleared() -> None:
    yard = Yard(gpu("gpu0", 100), gpu("gpu1", 100))
    resident(yard, "dear", 50, cost=5.0)
    resident(yard, "cheap", 50, cost=1.0)
    resident(yard, "middle1", 50, cost=4.0)
    resident(yard, "middle2", 50, cost=4.0)
    assert sorted(stopped(yard.ask("x", yard.add("c", 100)))) == ["middle1", "middle2"]


def test_victims_of_the_same_cost_go_in_the_order_of_their_names() -> None:
    yard = Yard(gpu(size=100))
    for model in ("first", "second"):
        resident(yard, model, 50, cost=1.0)
    assert stopped(yard.ask("x", yard.add("c", 50))) == ["first"]


def test_the_class_of_an_idle_victim_does_not_matter() -> None:
    yard = Yard(gpu(size=120))
    resident(yard, "high", 60, cost=1.0, priority=Priority.HIGH)
    resident(yard, "low", 60, cost=2.0, priority=Priority.LOW)
    assert stopped(yard.ask("x", yard.add("c"))) == ["high"]


@pytest.mark.parametrize("wanted_by", ["a request", "an operator"])
def test_a_start_that_somebody_waits_for_goes_after_an_idle_model_however_dear(wanted_by: str) -> None:
    yard = Yard(gpu(size=120))
    resident(yard, "idle", 60, cost=100.0)
    wanted = yard.add("wanted")
    if wanted_by == "a request":
        yard.ask("r", wanted)
    else:
        yard.do(ev.LoadAsked(wanted))
    c = yard.add("c", patience=5.0)
    yard.do(ev.Learned(c, need(60), 5.0))
    assert stopped(yard.ask("x", c)) == ["idle"]


def test_of_two_busy_victims_those_who_wait_add_to_the_demand() -> None:
    yard = Yard(gpu(size=120))
    queued, alone = resident(yard, "queued", 60, cost=10.0), resident(yard, "alone", 60, cost=10.0)
    for number in range(4):
        yard.ask(f"q{number}", queued)
    for number in range(4):
        yard.ask(f"a{number}", alone)
        if number < 3:
            yard.finish(f"a{number}")
    assert yard.version(queued).heat_now(yard.now) == yard.version(alone).heat_now(yard.now)
    yard.ask("x", yard.add("c", patience=0.0))
    assert (yard.states(queued), yard.states(alone)) == (["ready"], ["draining"])


# -- what is owned, and what is not


def test_who_waits_with_a_higher_class_keeps_the_memory_from_a_lower_one() -> None:
    yard = Yard(gpu(size=100))
    low = yard.load("low", 60, min_residency=0.0, priority=Priority.LOW)
    yard.ask("runs", low)
    yard.ask("waits", low, priority=Priority.HIGH)
    blocked, small = yard.add("blocked", 80), yard.add("small", 30)
    yard.ask("b", blocked)
    assert started(yard.ask("s", small)) == ["small"], "nothing is kept for who cannot have it"


def test_growth_that_has_to_wait_keeps_nothing_from_others() -> None:
    yard = Yard(gpu(size=150))
    a = yard.load("a", 70, max_replicas=2, patience=1.0)
    yard.load("idle", 60, min_residency=9.0)
    yard.ask("r1", a)
    yard.ask("r2", a)
    yard.pass_time(2.0)
    assert started(yard.ask("x", yard.add("small", 20))) == ["small"]


def in_ram(own: int, **files: int) -> Need:
    return Need((Share("ram", own, files),))


def test_what_the_head_owns_holds_the_files_that_leave_with_its_victim() -> None:
    yard = Yard(ram(130))
    busy = yard.load("busy", in_ram(10, weights=100), min_residency=0.0)
    yard.ask("runs", busy)
    yard.ask("h", yard.add("head", in_ram(30, weights=100)))
    assert started(yard.ask("s", yard.add("small", in_ram(10)))) == [], "the head needs all 130"


def test_victims_go_until_the_files_that_leave_with_them_fit_again() -> None:
    yard = Yard(ram(150))
    yard.load("a", in_ram(15, weights=100), min_residency=0.0)
    yard.load("b", in_ram(20), min_residency=0.0)
    out = yard.ask("x", yard.add("c", in_ram(40, weights=100)))
    assert sorted(stopped(out)) == ["a", "b"], "without a alone 130 are free, and c needs 140"


def test_files_kept_by_a_start_beside_who_leaves_are_not_taken_from_the_head() -> None:
    yard = Yard(ram(150))
    leaving = yard.load("leaving", in_ram(10, weights=100))
    yard.do(ev.UnloadAsked(leaving))
    head = yard.add("head", in_ram(60))
    yard.ask("h", head)
    assert started(yard.ask("s", yard.add("same", in_ram(10, weights=100)))) == []
    assert started(yard.released(leaving)) == ["head"]


def test_memory_on_its_way_back_is_counted_without_the_files_that_are_mapped_again() -> None:
    yard = Yard(ram(150))
    leaving = yard.load("leaving", in_ram(10, weights=100))
    yard.load("idle", in_ram(30), min_residency=0.0)
    yard.do(ev.UnloadAsked(leaving))
    out = yard.ask("x", yard.add("c", in_ram(30, weights=100)))
    assert stopped(out) == ["idle"], "120 come back, and c needs 130"


def test_files_that_are_on_their_way_back_are_counted_once() -> None:
    yard = Yard(ram(150))
    leaving = yard.load("leaving", in_ram(10, weights=50))
    for model in ("a", "b"):
        yard.load(model, in_ram(30), min_residency=0.0)
    yard.do(ev.UnloadAsked(leaving))
    out = yard.ask("x", yard.add("c", in_ram(130)))
    assert sorted(stopped(out)) == ["a", "b"], "90 come back, and with one of them 120"


# -- how many may own memory at a time


def crowd(yard: Yard, **policy: Any) -> None:
    """As many versions in line as may own memory at a time, in the order of their numbers."""
    for number in range(LOOKAHEAD):
        yard.ask(f"r{number}", yard.add(f"m{number}", **policy), max_wait=1e3)


def test_no_more_versions_own_memory_at_a_time_than_the_line_is_looked_ahead() -> None:
    yard = Yard(*(gpu(f"gpu{number}", 60) for number in range(LOOKAHEAD + 1)))
    for number in range(LOOKAHEAD + 1):
        yard.load(f"idle{number}", min_residency=100.0)
    crowd(yard)
    late = yard.add("late")
    yard.ask("late", late)
    assert all(yard.version(f"m{number}@000000000000").blocked_by for number in range(LOOKAHEAD))
    assert yard.version(late).blocked_by == ""
    yard.do(ev.Cancelled("r3"))
    assert yard.version(late).blocked_by, "now it is one of them"


@pytest.mark.parametrize("why", ["they wait for who leaves by itself", "a footprint is learned"])
def test_those_who_can_own_nothing_do_not_count(why: str) -> None:
    yard = Yard(gpu("gpu0", 60), gpu("gpu1", 60))
    if why == "a footprint is learned":
        yard.ask("n", yard.add("new", need(20, known=False), devices=("gpu0",)))
        yard.load("idle", min_residency=0.0)
        crowd(yard, devices=("gpu0",))
    else:
        yard.load("pinned", pin=True)
        yard.load("idle", min_residency=0.0)
        crowd(yard, when_full=WhenFull.WAIT)
    assert stopped(yard.ask("x", yard.add("x", devices=("gpu1",)))) == ["idle"]
