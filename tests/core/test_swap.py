"""Who gets memory and when: the line, patience, residency, drains, backfill."""

from __future__ import annotations

from core.yard import Yard, gpu, granted, need, of, refused, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.types import Cause, OutcomeKind


def swap_in(yard: Yard, key: str, out: str) -> list[ac.Action]:
    yard.released(out)
    return yard.ready(key)


def test_a_request_for_an_absent_version_starts_it_and_is_granted_when_it_is_ready() -> None:
    yard = Yard()
    a = yard.add("a")
    assert started(yard.ask("r1", a)) == ["a"]
    assert yard.holder("r1") is None
    yard.pass_time(3.0)
    (grant,) = of(ac.Grant, yard.ready(a))
    assert (grant.request, grant.waited, grant.loading) == ("r1", 3.0, 3.0)


def test_a_version_is_started_once_however_many_ask() -> None:
    yard = Yard(gpu(size=500))
    a = yard.add("a")
    assert started(yard.ask("r1", a)) == ["a"]
    assert started(yard.ask("r2", a)) == []
    yard.do(ev.Tick())
    assert len(yard.instances(a)) == 1


def test_an_idle_victim_goes_after_its_minimum_residency() -> None:
    yard = Yard()
    yard.load("a", min_residency=2.0)
    b = yard.add("b")
    assert stopped(yard.ask("r1", b)) == []
    assert stopped(yard.pass_time(1.9)) == []
    assert stopped(yard.pass_time(0.2)) == ["a"]
    assert started(yard.log)[-1] == "a", "memory is not free yet"
    assert started(yard.released("a@000000000000")) == ["b"]


def test_exited_is_not_released_only_the_second_frees_memory() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0)
    b = yard.add("b")
    assert stopped(yard.ask("r1", b)) == ["a"]
    gone = yard.instance(a)
    assert started(yard.do(ev.Exited(gone.id, gone.generation, Cause.EXITED))) == []
    assert yard.states(a) == ["releasing"]
    assert yard.state.ledger.devices["gpu0"].reserved == 60
    assert started(yard.released(a)) == ["b"]


def test_a_busy_victim_stays_open_until_the_head_waited_its_patience_and_then_drains() -> None:
    yard = Yard()
    a = yard.load("a", slots=2, min_residency=0.0)
    b = yard.add("b", patience=5.0)
    yard.pass_time(60.0)
    yard.ask("hot1", a)
    yard.ask("cold", b)
    yard.pass_time(4.9)
    assert granted(yard.ask("hot2", a)) == ["hot2"], "ready instances stay open to everyone"
    yard.pass_time(0.2)
    assert yard.states(a) == ["draining"]
    assert granted(yard.ask("hot3", a)) == []
    yard.finish("hot1")
    assert yard.states(a) == ["draining"]
    assert stopped(yard.finish("hot2")) == ["a"]
    assert started(yard.released(a)) == ["b"]
    assert granted(yard.ready(b)) == ["cold"]


def test_requests_that_came_before_the_head_are_served_before_their_instance_drains() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0)
    b = yard.add("b", patience=1.0)
    yard.pass_time(60.0)
    yard.ask("running", a)
    yard.ask("older", a)
    yard.ask("cold", b)
    yard.ask("younger", a)
    yard.pass_time(30.0)
    assert yard.states(a) == ["ready"], "older waits since before the head"
    assert granted(yard.finish("running")) == ["older"]
    assert yard.states(a) == ["draining"], "younger came after the head"


def test_the_same_moment_is_ordered_by_arrival() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0)
    b = yard.add("b", patience=0.0)
    yard.ask("running", a)
    yard.ask("cold", b)
    assert yard.states(a) == ["draining"]
    yard = Yard()
    a = yard.load("a", min_residency=0.0)
    b = yard.add("b", patience=0.0)
    yard.ask("running", a)
    yard.ask("first", a)
    yard.ask("cold", b)
    assert yard.states(a) == ["ready"]


def test_an_answer_longer_than_a_lowered_drain_cap_is_cut_and_named() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0, drain_cap=3.0)
    b = yard.add("b", patience=0.0)
    yard.ask("long", a)
    yard.ask("cold", b)
    assert of(ac.Cut, yard.pass_time(2.9)) == []
    out = yard.pass_time(0.2)
    (cut,) = of(ac.Cut, out)
    assert (cut.request, cut.code) == ("long", "cut_at_drain")
    assert stopped(out) == ["a"]
    yard.finish("long", OutcomeKind.CUT)
    assert yard.states(a) == ["stopping"]


def test_the_drain_cap_is_the_request_timeout_unless_lowered() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0, request_timeout=100.0)
    b = yard.add("b", patience=0.0, max_wait=1000.0)
    yard.ask("long", a)
    yard.ask("cold", b)
    assert of(ac.Cut, yard.pass_time(99.0)) == []
    assert len(of(ac.Cut, yard.pass_time(1.1))) == 1
    assert stopped(yard.log) == ["a"]


def test_the_line_is_in_order_of_age() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0)
    b, c = yard.add("b", min_residency=0.0, patience=0.0), yard.add("c", patience=0.0)
    yard.ask("first", b)
    yard.ask("second", c)
    assert started(yard.released(a)) == ["b"]
    assert granted(yard.ready(b)) == ["first"]
    yard.finish("first")
    assert started(yard.released(b)) == ["c"]


def test_backfill_starts_what_fits_beside_an_attainable_head_and_never_delays_it() -> None:
    yard = Yard(gpu(size=100))
    a = yard.load("a", 60, min_residency=0.0)
    yard.ask("busy", a)
    head = yard.add("head", 80, patience=5.0)
    small, large = yard.add("small", 20), yard.add("large", 30)
    yard.ask("h", head)
    assert started(yard.ask("s", small)) == ["small"], "20 of 100 are left when the head has its 80"
    assert started(yard.ask("l", large)) == [], "30 fit now, and would be in the head's way"
    yard.ready(small)
    yard.pass_time(5.1)
    yard.finish("busy")
    assert started(yard.released(a)) == ["head"]


def test_a_head_that_is_fetching_delays_nobody() -> None:
    yard = Yard()
    stuck = yard.add("stuck", cached=False)
    b = yard.add("b")
    assert of(ac.Fetch, yard.ask("s", stuck)) == [ac.Fetch(stuck)]
    assert started(yard.ask("r", b)) == ["b"]
    yard.ready(b)
    assert yard.holder("r") is not None
    yard.pass_time(2.0)
    yard.finish("r")
    assert stopped(yard.do(ev.Cached(stuck, need(60)))) == ["b"]


def test_a_head_that_is_backing_off_delays_nobody_and_comes_back() -> None:
    yard = Yard()
    stuck, b = yard.add("stuck"), yard.add("b")
    yard.ask("s", stuck)
    yard.failed(stuck)
    assert started(yard.released(stuck)) == [], "backing off"
    assert started(yard.ask("r", b)) == ["b"]
    yard.ready(b)
    yard.finish("r")
    yard.pass_time(2.0)
    assert stopped(yard.log) == ["b"]
    assert started(yard.released(b)) == ["stuck"]


def test_a_head_blocked_by_foreign_memory_delays_nobody_and_starts_when_it_is_gone() -> None:
    yard = Yard()
    big, small = yard.add("big", 90), yard.add("small", 40)
    yard.seen("gpu0", free=50)
    assert started(yard.ask("b", big)) == []
    assert started(yard.ask("s", small)) == ["small"]
    yard.ready(small)
    yard.finish("s")
    yard.pass_time(10.0)
    assert stopped(yard.log) == [], "putting small out would not make enough room"
    yard.seen("gpu0", free=60, **{yard.instance(small).id: 40})
    assert stopped(yard.log) == ["small"]


def test_a_pinned_model_is_never_put_out() -> None:
    yard = Yard()
    a = yard.load("a", pin=True, keep_alive=1.0)
    b = yard.add("b", max_wait=50.0)
    yard.ask("r", b)
    assert yard.scheduler.state.versions[b].blocked_since is None
    assert refused(yard.pass_time(60.0)) == {"r": "broken_promise"}
    assert yard.states(a) == ["ready"]


def test_the_cheapest_victim_goes() -> None:
    yard = Yard(gpu(size=120))
    asked, unused = yard.load("asked", min_residency=0.0), yard.load("unused", min_residency=0.0)
    for key in (asked, unused):
        yard.do(ev.Learned(key, need(60), 10.0))
    for number in range(3):
        yard.ask(f"r{number}", asked)
        yard.finish(f"r{number}")
    c = yard.add("c")
    assert stopped(yard.ask("x", c)) == ["unused"]
    assert yard.states(asked) == ["ready"]
    assert yard.states(unused) == ["stopping"]


def test_no_more_victims_than_needed() -> None:
    yard = Yard(gpu(size=100))
    small, big = yard.load("small", 20, min_residency=0.0), yard.load("big", 80, min_residency=0.0)
    yard.do(ev.Learned(small, need(20), 10.0))
    yard.do(ev.Learned(big, need(80), 10.0))
    yard.ask("r", big)
    yard.finish("r")
    c = yard.add("c", 70)
    assert stopped(yard.ask("x", c)) == ["big"], "small is cheaper, and does not help"
    assert yard.states(small) == ["ready"]


def test_victims_on_two_devices_are_not_added_up_for_one_that_lives_on_one() -> None:
    yard = Yard(gpu("gpu0", 100), gpu("gpu1", 60))
    one = yard.load("one", 100, min_residency=0.0)
    two = yard.load("two", 60, min_residency=0.0)
    c = yard.add("c", 90)
    assert stopped(yard.ask("x", c)) == ["one"]
    assert yard.states(one) == ["stopping"]
    assert yard.states(two) == ["ready"]


def test_memory_on_its_way_back_is_owned_by_the_head_and_no_second_victim_goes() -> None:
    yard = Yard(gpu(size=120))
    a, b = yard.load("a", min_residency=0.0), yard.load("b", min_residency=0.0)
    yard.do(ev.UnloadAsked(a))
    c = yard.add("c")
    assert stopped(yard.ask("x", c)) == []
    assert yard.states(b) == ["ready"]
    assert started(yard.released(a)) == ["c"]


def test_a_starting_instance_that_nobody_waits_for_any_more_makes_room_at_once() -> None:
    yard = Yard()
    a, b = yard.add("a"), yard.add("b")
    yard.ask("gone", a)
    yard.ask("x", b)
    assert stopped(yard.log) == []
    assert stopped(yard.do(ev.Cancelled("gone"))) == ["a"]
    assert started(yard.released(a)) == ["b"]


def test_removing_the_head_gives_what_it_owned_to_those_behind_it() -> None:
    yard = Yard(gpu(size=100))
    a = yard.load("a", 60, min_residency=0.0)
    yard.ask("busy", a)
    head, small = yard.add("head", 80), yard.add("small", 40)
    yard.ask("h", head)
    assert started(yard.ask("s", small)) == []
    out = yard.do(ev.Removed(head))
    assert refused(out) == {"h": "model_removed"}
    assert started(out) == ["small"]
