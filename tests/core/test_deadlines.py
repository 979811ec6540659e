"""What is settled leaves no deadline behind, and what happens at one moment happens in the order asked."""

from __future__ import annotations

from core.yard import FOREVER, Yard, gpu, granted, refused, started, stopped
from modelyard.core import events as ev
from modelyard.core.types import Policy


def test_a_cancelled_request_leaves_no_deadline() -> None:
    yard = Yard()
    a = yard.load("a", pin=True)
    yard.ask("running", a)
    yard.ask("waits", a)
    assert yard.scheduler.next_deadline() is not None
    yard.do(ev.Cancelled("waits"))
    assert yard.scheduler.next_deadline() is None


def test_a_granted_request_leaves_no_deadline() -> None:
    yard = Yard()
    a = yard.load("a", pin=True)
    yard.ask("running", a)
    yard.ask("waits", a)
    assert granted(yard.finish("running")) == ["waits"]
    assert yard.scheduler.next_deadline() is None


def test_the_earliest_of_several_moments_to_look_again_is_kept() -> None:
    yard = Yard(gpu("gpu0", 60), gpu("gpu1", 60))
    yard.load("soon", min_residency=4.0)
    yard.load("late", min_residency=9.0)
    for device, model in (("gpu0", "x"), ("gpu1", "y")):
        yard.ask(model, yard.add(model, devices=(device,)))
    assert stopped(yard.pass_time(4.0)) == ["soon"]
    assert stopped(yard.pass_time(5.0)) == ["late"]


def test_an_answered_ask_leaves_no_deadline() -> None:
    yard = Yard()
    a = yard.add("a", pin=True)
    yard.do(ev.LoadAsked(a))
    yard.ready(a)
    assert yard.scheduler.next_deadline() is None


def test_an_instance_that_never_idles_out_sets_no_deadline() -> None:
    yard = Yard()
    yard.load("a", keep_alive=FOREVER)
    assert yard.scheduler.next_deadline() is None


def test_an_instance_that_leaves_takes_its_deadlines_along() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=50.0)
    yard.do(ev.UnloadAsked(a))
    yard.released(a)
    assert yard.scheduler.next_deadline() is None


def test_an_instance_that_drained_in_time_takes_its_drain_cap_along() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=FOREVER, drain_cap=50.0)
    yard.ask("r", a)
    yard.do(ev.UnloadAsked(a))
    assert yard.scheduler.next_deadline() == 50.0
    yard.finish("r")
    assert yard.scheduler.next_deadline() is None


def test_loads_asked_at_one_moment_start_in_the_order_of_asking() -> None:
    yard = Yard(gpu(size=100))
    z, b = yard.add("z", 100), yard.add("b", 100)
    yard.seen("gpu0", free=0)
    yard.do(ev.LoadAsked(z))
    yard.do(ev.LoadAsked(b))
    assert started(yard.seen("gpu0", free=100)) == ["z"]


def test_a_request_that_expires_as_a_victim_may_go_does_not_keep_it() -> None:
    yard = Yard(gpu(size=100))
    a = yard.load("a", 100, min_residency=4.0)
    b = yard.add("b", 100)
    yard.version(b).load_seconds = 0.0
    yard.ask("stays", b, max_wait=100.0)
    yard.ask("late", b, max_wait=4.0, since=0.0)
    out = yard.pass_time(4.0)
    assert refused(out) == {"late": "broken_promise"}
    assert stopped(out) == ["a"]
    assert started(yard.released(a)) == ["b"]


def test_a_new_policy_that_keeps_an_instance_for_ever_leaves_no_deadline() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=50.0)
    yard.do(ev.PolicyChanged(a, Policy(keep_alive=FOREVER)))
    yard.pass_time(50.0)
    assert yard.scheduler.next_deadline() is None


def test_an_asked_keep_alive_counts_for_the_instances_that_are_there() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=50.0)
    yard.do(ev.KeepAliveAsked(a, 10.0))
    assert stopped(yard.pass_time(9.9)) == []
    assert stopped(yard.pass_time(0.2)) == ["a"]
    yard.released(a)
    a = yard.load("a", keep_alive=50.0)
    assert stopped(yard.pass_time(49.9)) == []
    assert stopped(yard.pass_time(0.2)) == ["a"]


def test_an_asked_keep_alive_can_be_for_ever_or_nothing() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=50.0)
    yard.do(ev.KeepAliveAsked(a, FOREVER))
    yard.pass_time(50.0)
    assert yard.scheduler.next_deadline() is None
    yard.ask("r", a)
    yard.do(ev.KeepAliveAsked(a, 0.0))
    assert stopped(yard.pass_time(1.0)) == [], "it runs a request"
    yard.finish("r")
    assert stopped(yard.pass_time(0.0)) == ["a"]
