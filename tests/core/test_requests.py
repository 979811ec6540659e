"""Requests: bounds at arrival, deadlines, cancels, removal, loads, shutdown."""

from __future__ import annotations

import pytest

from core.yard import Yard, gpu, granted, need, of, refused, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.types import OutcomeKind, Policy, Priority, WhenFull

# -- admission


def test_the_queue_of_a_version_is_bounded() -> None:
    yard = Yard()
    a = yard.load("a", queue_bound=2)
    yard.ask("running", a)
    assert refused(yard.ask("r1", a)) == refused(yard.ask("r2", a)) == {}
    out = yard.ask("r3", a)
    assert refused(out) == {"r3": "queue_full"}
    (refuse,) = of(ac.Refuse, out)
    assert refuse.message == "2 requests wait for a already (its queue_bound is 2)"
    assert refuse.retry_after == 1.0
    yard.do(ev.Cancelled("r1"))
    assert refused(yard.ask("r4", a)) == {}


def test_a_lower_bound_of_the_queue_puts_nobody_out_who_waits_already() -> None:
    yard = Yard()
    a = yard.load("a")
    for request in ("running", "r1", "r2", "r3"):
        yard.ask(request, a)
    assert refused(yard.do(ev.PolicyChanged(a, Policy(queue_bound=1)))) == {}
    assert refused(yard.ask("r4", a)) == {"r4": "queue_full"}


def test_a_slot_more_than_the_engine_has_is_granted_for_each_overcommitted_one() -> None:
    yard = Yard()
    a = yard.load("a", slots=2, overcommit=1)
    granted_at_once = [bool(granted(yard.ask(f"r{number}", a))) for number in range(4)]
    assert granted_at_once == [True, True, True, False]


def test_all_queues_together_are_bounded() -> None:
    yard = Yard(queue_bound=2)
    a, b = yard.load("a"), yard.add("b")
    yard.ask("running", a)
    yard.ask("r1", a)
    yard.ask("r2", b)
    out = yard.ask("r3", b)
    assert refused(out) == {"r3": "queue_full"}
    assert "server.queue_bound" in of(ac.Refuse, out)[0].message


def test_a_free_slot_is_granted_however_many_wait_for_others() -> None:
    yard = Yard(gpu(size=120), queue_bound=1)
    a, b = yard.load("a", pin=True), yard.load("b", pin=True)
    yard.ask("runs", b)
    yard.ask("waits", b)
    assert granted(yard.ask("r", a)) == ["r"]


def test_a_wait_that_is_expected_to_pass_max_wait_is_refused_with_retry_after() -> None:
    yard = Yard()
    a = yard.load("a", max_wait=10.0)
    yard.do(ev.Learned(a, need(60), 1.0))
    for number in range(4):
        yard.ask(f"r{number}", a)
    yard.pass_time(1.7)
    yard.finish("r0")
    estimates = [refused(yard.ask(f"s{number}", a)) for number in range(5)]
    assert estimates[:3] == [{}, {}, {}]
    assert estimates[3] == {"s3": "wait_too_long"}, "6 ahead x 1.7 s = 10.2 s"
    refuse = of(ac.Refuse, yard.log)[0]
    assert refuse.message == "a would be ready in about 10.2 s, after the max_wait of 10 s"
    assert refuse.retry_after == 1.0


def test_an_absent_model_is_expected_after_its_usual_load() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.do(ev.Learned(a, need(60), 40.0))
    assert refused(yard.ask("r1", a, max_wait=39.9)) == {"r1": "wait_too_long"}
    assert refused(yard.ask("r2", a, max_wait=40.0)) == {}


def test_nobody_is_refused_for_a_load_that_was_never_tried() -> None:
    yard = Yard(gpu(size=10**12))
    huge = yard.add("huge", 10**12)
    assert refused(yard.ask("r", huge, max_wait=1.0)) == {}


def test_nobody_is_refused_for_a_wait_that_depends_on_others() -> None:
    yard = Yard()
    a, b = yard.add("a", when_full=WhenFull.WAIT), yard.add("b", cached=False)
    yard.do(ev.Learned(a, need(60), 900.0))
    assert refused(yard.ask("r1", a)) == {}
    assert refused(yard.ask("r2", b, max_wait=0.5)) == {}


@pytest.mark.parametrize(
    ("slots", "ahead", "bound"),
    [
        (1, 0, 64.0),  # one swap: 10 patience + 30 drain + 4 release + 20 load
        (1, 1, 128.0),  # one turn ahead, which may need a swap of its own
        (2, 2, 128.0),
        (2, 3, 192.0),
        (2, 4, 222.0),  # 30 more: four requests may come to three turns of two slots
    ],
)
def test_the_stated_bound_of_an_absent_version(slots: int, ahead: int, bound: float) -> None:
    yard = Yard()
    b = yard.add("b", slots=slots, patience=10.0, request_timeout=30.0, release_cap=4.0, load_cap=20.0)
    for number in range(ahead):
        yard.ask(f"before{number}", b)
    yard.ask("r", b)
    assert yard.state.waiting["r"].bound == bound


def test_the_stated_bound_of_a_full_ready_version_is_its_turns() -> None:
    yard = Yard()
    a = yard.load("a", slots=2, request_timeout=30.0)
    yard.ask("r1", a)
    yard.ask("r2", a)
    yard.ask("r3", a)
    yard.ask("r4", a)
    assert yard.state.waiting["r3"].bound == 30.0, "two hold slots: one turn"
    assert yard.state.waiting["r4"].bound == 60.0, "three ahead: two turns"


def test_a_higher_class_does_not_wait_for_a_lower_one() -> None:
    yard = Yard()
    a = yard.load("a", request_timeout=30.0)
    yard.ask("running", a)
    for number in range(5):
        yard.ask(f"low{number}", a, priority=Priority.LOW)
    yard.ask("high", a, priority=Priority.HIGH)
    assert yard.state.waiting["high"].bound == 30.0


def test_a_broken_promise_is_named_at_the_deadline() -> None:
    yard = Yard()
    a = yard.load("a")
    b = yard.add("b", patience=100.0, min_residency=0.0)
    yard.ask("busy", a)
    yard.ask("r", b, max_wait=7.0)
    assert refused(yard.pass_time(6.9)) == {}
    out = yard.pass_time(0.2)
    assert refused(out) == {"r": "broken_promise"}
    assert of(ac.Refuse, out)[0].message == "b was not ready within 7 s; it waits for the memory of a-1"
    assert b not in yard.state.line


def test_who_gave_up_on_files_that_did_not_come_may_ask_again_after_a_second() -> None:
    yard = Yard()
    yard.ask("r", yard.add("a", cached=False), max_wait=5.0)
    (refuse,) = of(ac.Refuse, yard.pass_time(5.0))
    assert (refuse.code, refuse.retry_after) == ("broken_promise", 1.0)


def test_load_false_takes_what_runs_and_refuses_what_does_not() -> None:
    yard = Yard()
    a = yard.add("a")
    assert refused(yard.ask("r1", a, load=False)) == {"r1": "model_not_running"}
    assert yard.states(a) == []
    yard.ask("r2", a)
    assert refused(yard.ask("r3", a, load=False)) == {}, "it is on its way"
    assert granted(yard.ready(a)) == ["r2"]


def test_what_can_never_fit_is_refused_before_its_files_are_fetched() -> None:
    yard = Yard()
    a = yard.add("a", cached=False)
    yard.do(ev.Learned(a, need(130)))
    out = yard.ask("r", a)
    assert (refused(out), of(ac.Fetch, out)) == ({"r": "never_fits"}, [])


def test_what_is_ready_serves_on_though_it_would_never_fit_again() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("running", a)
    yard.do(ev.Learned(a, need(130)))
    assert refused(yard.ask("waits", a)) == {}
    assert granted(yard.finish("running")) == ["waits"]


def test_an_unknown_version_is_refused() -> None:
    yard = Yard()
    assert yard.ask("r", "ghost@1") == [ac.Refuse("r", "model_removed", "ghost@1 was removed")]


# -- retries


def test_a_retry_waits_for_what_its_budget_has_left_from_its_own_arrival() -> None:
    yard = Yard()
    a = yard.load("a", max_wait=10.0)
    yard.ask("long", a)
    yard.pass_time(50.0)
    yard.finish("long", OutcomeKind.DIED)
    only = yard.instance(a).id
    assert refused(yard.ask("long", a, exclude={only}, since=0.0, max_wait=4.0)) == {}
    assert refused(yard.pass_time(3.9)) == {}
    out = yard.pass_time(0.2)
    assert refused(out) == {"long": "broken_promise"}
    assert of(ac.Refuse, out)[0].message == "a was not ready within 4 s"


def test_a_retry_without_any_budget_takes_a_free_slot_or_is_refused_at_the_next_tick() -> None:
    yard = Yard()
    a = yard.load("a", slots=2)
    yard.ask("r1", a)
    assert granted(yard.ask("free", a, since=0.0, max_wait=0.0)) == ["free"]
    assert granted(yard.ask("full", a, since=0.0, max_wait=0.0)) == []
    assert refused(yard.pass_time(0.0)) == {"full": "broken_promise"}


def test_the_wait_of_a_retry_is_counted_without_its_attempts() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("other", a)
    yard.pass_time(30.0)
    yard.ask("again", a, since=0.0)
    yard.pass_time(2.0)
    (grant,) = of(ac.Grant, yard.finish("other"))
    assert (grant.request, grant.waited) == ("again", 2.0)
    yard.finish("again")
    (grant,) = of(ac.Grant, yard.ask("third", a, since=0.0))
    assert grant.waited == 0.0


# -- leaving


def test_a_cancelled_request_leaves_the_queue_and_the_line() -> None:
    yard = Yard()
    yard.load("a", pin=True)
    b = yard.add("b", when_full=WhenFull.WAIT)
    yard.ask("r", b)
    assert b in yard.state.line
    yard.do(ev.Cancelled("r"))
    assert b not in yard.state.line
    assert yard.scheduler.next_deadline() is None or not yard.state.waiting


def test_a_cancel_in_the_moment_of_the_grant_frees_the_slot() -> None:
    yard = Yard()
    a = yard.load("a")
    assert granted(yard.ask("r1", a)) == ["r1"]
    yard.ask("r2", a)
    assert granted(yard.do(ev.Cancelled("r1"))) == ["r2"]
    assert yard.do(ev.Finished("r1", yard.instance(a).id, 1, OutcomeKind.CANCELLED)) == []
    assert yard.holder("r2") == yard.instance(a).id


def test_removed_refuses_who_waits_lets_the_running_finish_and_the_version_may_come_again() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("running", a)
    yard.ask("waiting", a)
    assert refused(yard.do(ev.Removed(a))) == {"waiting": "model_removed"}
    assert refused(yard.ask("late", a)) == {"late": "model_removed"}
    assert of(ac.Loaded, yard.do(ev.LoadAsked(a)))[0].code == "model_removed"
    assert yard.states(a) == ["draining"]
    yard.add("a")
    yard.ask("again", a)
    yard.finish("running")
    assert started(yard.released(a)) == ["a"]
    assert granted(yard.ready(a)) == ["again"]
    yard.finish("again")
    yard.do(ev.Removed(a))
    yard.released(a)
    assert a not in yard.state.versions


def test_shutdown_refuses_drains_and_starts_nothing_more() -> None:
    yard = Yard(gpu(size=200))
    a, b = yard.load("a"), yard.add("b", min_replicas=1)
    yard.ask("running", a)
    yard.ask("waiting", a)
    assert refused(yard.do(ev.ShutdownAsked())) == {"waiting": "shutting_down"}
    assert yard.states(a) == ["draining"]
    assert yard.states(b) == ["stopping"]
    assert refused(yard.ask("late", a)) == {"late": "shutting_down"}
    assert of(ac.Loaded, yard.do(ev.LoadAsked(b)))[0].code == "shutting_down"
    out = yard.do(ev.ShutdownAsked(now=True))
    assert [(cut.request, cut.code) for cut in of(ac.Cut, out)] == [("running", "shutting_down")]
    assert stopped(out) == ["a"]
    yard.finish("running", OutcomeKind.CUT)
    yard.released(a)
    yard.released(b)
    assert started(yard.pass_time(1000.0)) == []
    assert not yard.state.instances


# -- loads and unloads that were asked for


def test_a_load_is_answered_when_it_is_ready_and_at_once_when_it_was() -> None:
    yard = Yard()
    a = yard.add("a")
    assert started(yard.do(ev.LoadAsked(a))) == ["a"]
    assert of(ac.Loaded, yard.ready(a)) == [ac.Loaded(a, yard.instance(a).id)]
    assert of(ac.Loaded, yard.do(ev.LoadAsked(a))) == [ac.Loaded(a, yard.instance(a).id)]
    assert of(ac.Loaded, yard.pass_time(400.0)) == []


def test_a_load_puts_others_out_only_when_it_may() -> None:
    yard = Yard()
    a, b = yard.load("a", min_residency=0.0), yard.add("b")
    assert [loaded.code for loaded in of(ac.Loaded, yard.do(ev.LoadAsked(b, evict=False)))] == ["no_memory"]
    assert yard.states(a) == ["ready"]
    assert stopped(yard.do(ev.LoadAsked(b))) == ["a"]


def test_a_load_that_may_put_others_out_wins_over_an_earlier_one_that_may_not() -> None:
    yard = Yard()
    a, b = yard.load("a", min_residency=0.0), yard.add("b", cached=False)
    yard.do(ev.LoadAsked(b, evict=False))
    yard.do(ev.LoadAsked(b))
    assert of(ac.Loaded, yard.do(ev.Cached(b, need(60)))) == []
    assert yard.states(a) == ["stopping"]


def test_a_load_that_takes_too_long_is_answered() -> None:
    yard = Yard()
    b = yard.add("b", cached=False, max_wait=30.0)
    yard.do(ev.LoadAsked(b))
    (loaded,) = of(ac.Loaded, yard.pass_time(30.0))
    assert (loaded.instance, loaded.code) == (None, "broken_promise")


def test_an_unload_drains_or_cuts_one_or_all() -> None:
    yard = Yard(gpu(size=200))
    a = yard.load("a", max_replicas=2, patience=0.0)
    yard.ask("r1", a)
    yard.ask("r2", a)
    yard.ready(a)
    first, second = yard.instances(a)
    yard.do(ev.UnloadAsked(a, first.id))
    assert (first.state.value, second.state.value) == ("draining", "ready")
    out = yard.do(ev.UnloadAsked(a, now=True))
    assert {cut.request for cut in of(ac.Cut, out)} == {"r1", "r2"}
    assert yard.states(a) == ["stopping", "stopping"]
    assert {cut.code for cut in of(ac.Cut, out)} == {"unloaded"}, "not cut_at_drain: that is tried again"


def test_an_unload_at_once_of_what_drains_already_says_so_to_what_it_cuts() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("r", a)
    yard.do(ev.UnloadAsked(a))
    (cut,) = of(ac.Cut, yard.do(ev.UnloadAsked(a, now=True)))
    assert (cut.request, cut.code) == ("r", "unloaded")
    assert cut.message == "a-1 had to leave: unload was asked for"
