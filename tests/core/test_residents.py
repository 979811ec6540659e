"""Who stays and who comes back: when_full, keep-alive, homes, replicas, classes."""

from __future__ import annotations

import pytest

from core.yard import FOREVER, Yard, gpu, granted, need, of, ram, refused, rung, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.types import Cause, Policy, Priority, WhenFull

# -- when full


def test_when_full_fail_says_no_at_once() -> None:
    yard = Yard()
    yard.load("a")
    b = yard.add("b", when_full=WhenFull.FAIL)
    assert refused(yard.ask("r", b)) == {"r": "no_memory"}


def test_when_full_wait_puts_nobody_out_and_starts_when_somebody_left() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=20.0)
    b = yard.add("b", when_full=WhenFull.WAIT)
    yard.ask("r", b)
    assert stopped(yard.pass_time(19.0)) == []
    assert stopped(yard.pass_time(2.0)) == ["a"]
    assert started(yard.released(a)) == ["b"]


def test_who_waits_in_vain_for_others_to_leave_was_promised_nothing() -> None:
    yard = Yard()
    yard.load("a", pin=True)
    b = yard.add("b", when_full=WhenFull.WAIT, max_wait=3.0)
    yard.ask("r", b)
    assert refused(yard.pass_time(3.0)) == {"r": "no_memory"}


def test_what_can_never_fit_is_refused_at_arrival_and_when_that_is_learned() -> None:
    yard = Yard()
    big = yard.add("big", 101)
    out = yard.ask("r", big)
    assert refused(out) == {"r": "never_fits"}
    assert "101 bytes" in of(ac.Refuse, out)[0].message
    later = yard.add("later", cached=False)
    yard.ask("s", later)
    message = "later needs 101 bytes and can never fit: the budget of gpu0 is 100 bytes in all"
    assert of(ac.Refuse, yard.do(ev.Cached(later, need(101)))) == [ac.Refuse("s", "never_fits", message)]
    yard.do(ev.DeviceAdded(gpu("gpu1", 200)))
    assert started(yard.ask("t", big)) == ["big"]


def test_a_new_device_that_is_too_small_changes_nothing_for_what_can_never_fit() -> None:
    yard = Yard(gpu(size=50))
    big = yard.add("big", 60)
    yard.do(ev.DeviceAdded(gpu("gpu1", 55)))
    assert refused(yard.ask("r", big)) == {"r": "never_fits"}


def test_who_waits_for_room_starts_at_once_on_a_new_device() -> None:
    yard = Yard()
    yard.load("pinned", pin=True)
    yard.ask("r", yard.add("b"))
    assert started(yard.do(ev.DeviceAdded(gpu("gpu1", 100)))) == ["b"]


# -- keep-alive, homes


def test_an_idle_instance_leaves_after_its_keep_alive() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=10.0)
    yard.ask("r", a)
    yard.pass_time(30.0)
    assert yard.states(a) == ["ready"], "it is busy"
    yard.finish("r")
    assert stopped(yard.pass_time(9.9)) == []
    assert stopped(yard.pass_time(0.2)) == ["a"]


def test_keep_alive_zero_leaves_with_the_last_request_and_forever_stays() -> None:
    yard = Yard(gpu(size=200))
    a = yard.add("a", keep_alive=0.0)
    b = yard.load("b", keep_alive=FOREVER)
    yard.ask("r", a)
    yard.ready(a)
    yard.pass_time(1.0)
    yard.finish("r")
    assert stopped(yard.pass_time(0.0)) == ["a"]
    assert stopped(yard.pass_time(1e6)) == []
    assert yard.states(b) == ["ready"]


def test_a_model_with_a_slot_still_in_use_does_not_idle_out() -> None:
    yard = Yard()
    a = yard.load("a", slots=2, keep_alive=10.0)
    yard.ask("short", a)
    yard.ask("long", a)
    yard.finish("short")
    assert stopped(yard.pass_time(30.0)) == []
    yard.finish("long")
    assert stopped(yard.pass_time(10.0)) == ["a"]


def test_an_idle_instance_leaves_after_its_keep_alive_though_somebody_waits_for_another_one() -> None:
    yard = Yard()
    a = yard.load("a", max_replicas=2, keep_alive=5.0)
    yard.ask("runs", a)
    yard.ask("again", a, exclude={yard.instance(a).id}, since=0.0)
    yard.finish("runs")
    assert stopped(yard.pass_time(4.9)) == []
    assert stopped(yard.pass_time(0.2)) == ["a"]
    assert started(yard.released(a)) == ["a"]
    assert granted(yard.ready(a)) == ["again"]


def test_an_unused_preload_stays_for_its_minimum_residency_whatever_its_keep_alive() -> None:
    yard = Yard()
    yard.load("a", keep_alive=0.0, min_residency=4.0)
    assert stopped(yard.pass_time(3.9)) == []
    assert stopped(yard.pass_time(0.2)) == ["a"]


def test_one_that_served_stays_for_its_keep_alive_whatever_its_minimum_residency() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=1.0, min_residency=9.0)
    yard.pass_time(2.0)
    yard.ask("r", a)
    yard.finish("r")
    assert stopped(yard.pass_time(1.0)) == ["a"]


def test_a_new_policy_counts_at_once() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=600.0, min_residency=0.0)
    yard.pass_time(20.0)
    changed = type(yard.version(a).policy)(keep_alive=10.0, min_residency=0.0)
    yard.do(ev.PolicyChanged(a, changed))
    assert stopped(yard.pass_time(0.0)) == ["a"]


def test_a_model_that_is_no_longer_pinned_goes_at_once_for_who_waits() -> None:
    yard = Yard()
    a = yard.load("a", pin=True)
    yard.pass_time(10.0)
    yard.ask("r", yard.add("b"))
    assert stopped(yard.do(ev.PolicyChanged(a, Policy()))) == ["a"]


def test_a_home_model_comes_back_when_the_burst_is_over() -> None:
    yard = Yard()
    home = yard.add("home", home=True, min_residency=0.0)
    yard.pass_time(6.0)
    yard.ready(home)
    b = yard.add("b", keep_alive=3.0)
    yard.ask("r", b)
    yard.released(home)
    yard.ready(b)
    yard.finish("r")
    yard.pass_time(4.0)
    assert stopped(yard.log) == ["home", "b"]
    yard.released(b)
    assert started(yard.pass_time(6.0)) == ["home"]
    yard.ready(home)
    assert stopped(yard.pass_time(1e5)) == [], "home models do not idle out"


HOME = 5.0  # seconds without a line, and home models come back


def test_the_home_model_that_was_asked_for_most_comes_back_first() -> None:
    yard = Yard()
    homes = [yard.load(model, 40, home=True, min_residency=0.0) for model in ("cold", "hot")]
    for number, home in enumerate((*homes, homes[1])):
        yard.ask(f"r{number}", home)
        yard.finish(f"r{number}")
    big = yard.add("big", 100, keep_alive=1.0)
    yard.ask("burst", big)
    for home in homes:
        yard.released(home)
    yard.ready(big)
    yard.finish("burst")
    yard.pass_time(3.0)
    yard.released(big)
    out = yard.pass_time(HOME)
    assert started(out) == ["hot", "cold"]
    assert of(ac.Start, out)[0].reason == "a home model comes back"


def test_a_home_model_that_was_unloaded_stays_away_until_it_is_asked_for() -> None:
    yard = Yard()
    home = yard.load("home", home=True)
    yard.do(ev.UnloadAsked(home))
    yard.released(home)
    assert started(yard.pass_time(10 * HOME)) == []
    yard.ask("r", home)
    yard.failed(home)
    yard.released(home)
    assert started(yard.pass_time(10 * HOME)) == ["home"], "it is at home again"


def test_a_home_model_that_failed_comes_back_after_its_back_off_and_keeps_no_other_away() -> None:
    yard = Yard(gpu(size=120))
    first = yard.add("first", home=True)
    assert started(yard.pass_time(HOME)) == ["first"]
    yard.failed(first)
    yard.released(first)
    yard.add("second", home=True)
    assert started(yard.log)[-1] == "second"
    assert started(yard.pass_time(0.4)) == []
    assert started(yard.pass_time(0.2)) == ["first"]


def test_a_home_model_without_files_has_them_fetched_and_keeps_no_other_away() -> None:
    yard = Yard()
    bare = yard.add("bare", home=True, cached=False)
    yard.add("other", 40, home=True)
    out = yard.pass_time(HOME)
    assert of(ac.Fetch, out) == [ac.Fetch(bare)]
    assert started(out) == ["other"]
    assert started(yard.do(ev.Cached(bare, need(60)))) == ["bare"]


# -- replicas


def test_a_second_replica_starts_after_patience_in_free_memory() -> None:
    yard = Yard(gpu(size=120))
    a = yard.load("a", max_replicas=2, patience=5.0)
    yard.ask("r1", a)
    assert started(yard.ask("r2", a)) == []
    assert started(yard.pass_time(4.9)) == []
    assert started(yard.pass_time(0.2)) == ["a"]
    assert granted(yard.ready(a)) == ["r2"]


@pytest.mark.parametrize("minimum", [0, 1])
def test_growth_takes_idle_memory_but_puts_nobody_busy_out(minimum: int) -> None:
    yard = Yard(gpu(size=120))
    b = yard.load("b")
    a = yard.load("a")
    yard.do(ev.PolicyChanged(a, Policy(min_replicas=minimum, max_replicas=2, patience=1.0)))
    yard.pass_time(10.0)
    yard.ask("busy", b)
    yard.ask("r1", a)
    yard.ask("r2", a)
    yard.pass_time(20.0)
    assert yard.states(b) == ["ready"]
    assert stopped(yard.finish("busy")) == ["b"]
    assert started(yard.released(b)) == ["a"]


def test_minimum_replicas_start_by_themselves_stay_and_come_back() -> None:
    yard = Yard(gpu(size=120))
    a = yard.add("a", min_replicas=2, max_replicas=2, keep_alive=1.0)
    assert yard.states(a) == ["starting", "starting"], "both at once"
    yard.ready(a)
    yard.ready(a)
    assert yard.states(a) == ["ready", "ready"]
    assert stopped(yard.pass_time(100.0)) == []
    gone = yard.instances(a)[0]
    yard.do(ev.Exited(gone.id, gone.generation, Cause.KILLED))
    yard.pass_time(1.0)
    assert started(yard.released(a)) == ["a"]


def test_minimum_replicas_that_never_fit_are_left_alone() -> None:
    yard = Yard()
    a = yard.add("a", 500, min_replicas=1)
    assert yard.states(a) == []
    b = yard.add("b", 90)
    yard.ask("r", b)
    yard.ready(b)
    c = yard.add("c", 90, min_replicas=1, when_full=WhenFull.FAIL)
    assert yard.states(c) == []
    yard.finish("r")
    yard.do(ev.UnloadAsked(b))
    yard.released(b)
    assert "c" in started(yard.log) or started(yard.pass_time(5.1)) == ["c"]


# -- classes


def test_a_higher_class_goes_first_and_takes_memory_from_a_lower_one_without_patience() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=2.0, priority=Priority.LOW)
    high = yard.add("high", priority=Priority.HIGH, patience=100.0)
    yard.pass_time(3.0)
    yard.ask("low", a)
    yard.ask("x", high)
    assert yard.states(a) == ["draining"]


def test_a_lower_class_does_not_put_a_busy_higher_one_out() -> None:
    yard = Yard()
    a = yard.load("a", priority=Priority.HIGH)
    low = yard.add("low", priority=Priority.LOW, patience=1.0)
    yard.ask("busy", a)
    yard.ask("x", low)
    yard.pass_time(100.0)
    assert yard.states(a) == ["ready"]
    assert stopped(yard.finish("busy")) == ["a"]


def test_the_low_class_gets_every_eighth_turn_of_a_slot() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("first", a)
    yard.ask("low", a, priority=Priority.LOW)
    for number in range(20):
        yard.ask(f"high{number}", a, priority=Priority.HIGH)
    order, running = [], "first"
    for _ in range(9):
        (running,) = granted(yard.finish(running))
        order.append(running)
    assert order == [f"high{n}" for n in range(7)] + ["low", "high7"]


@pytest.mark.parametrize("said_by", ["policy", "request"])
@pytest.mark.parametrize("lower", [Priority.LOW, Priority.NORMAL])
def test_a_version_that_was_passed_over_too_often_goes_first(said_by: str, lower: Priority) -> None:
    yard = Yard()
    of_policy = Priority.HIGH if said_by == "policy" else lower
    low = yard.add("low", 100, priority=lower, min_residency=0.0)
    highs = [yard.add(f"high{n}", 100, priority=of_policy, min_residency=0.0) for n in range(12)]
    yard.ask("l", low)
    yard.do(ev.Cancelled("l"))
    yard.do(ev.UnloadAsked(low))
    for n, key in enumerate(highs):
        yard.ask(f"h{n}", key, priority=Priority.HIGH)
    yard.released(low)
    yard.ask("l", low)
    order = []
    for _ in range(10):
        (running,) = [i for i in yard.state.instances.values() if i.state.value == "starting"]
        key = running.version.key
        order.append(running.version.spec.model)
        (request,) = granted(yard.ready(key))
        yard.finish(request)
        yard.released(key)
    assert order.index("low") == 8, order


def test_a_second_model_starts_beside_one_that_the_device_does_not_attribute() -> None:
    yard = Yard(gpu(size=24))
    first, second = yard.load("first", 10), yard.add("second", 14)
    yard.seen("gpu0", free=14, total=24)
    assert started(yard.ask("r", second)) == ["second"]
    assert yard.states(first) == ["ready"]


def test_one_that_sleeps_stops_when_its_policy_does_not_let_it_sleep_any_more() -> None:
    yard = Yard(ram(), gpu())
    a = yard.load("a", need(60, rungs=[rung()]), keep_alive=5.0)
    yard.pass_time(5.0)
    yard.slept(a)
    yard.do(ev.PolicyChanged(a, Policy(sleep=False)))
    (stop,) = of(ac.Stop, yard.pass_time(0.0))
    assert stop.reason == "asleep, and its policy does not let it sleep any more"
