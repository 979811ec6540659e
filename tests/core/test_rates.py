"""Rates: how many requests are granted in any span, pauses that a server asked for, and what is promised."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from core.yard import Yard, granted, of, refused, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core import rates
from modelyard.core.copying import copy_of
from modelyard.core.types import OutcomeKind, Policy, RateLimit

TWO = RateLimit(2, 10.0)


def rest(yard: Yard, request: str, seconds: float) -> list[ac.Action]:
    lease = yard.state.leases[request]
    done = OutcomeKind.DONE
    return yard.do(ev.Finished(request, lease.instance.id, lease.generation, done, seconds))


def test_who_exceeds_the_rate_waits_in_order_until_the_span_has_passed() -> None:
    yard = Yard()
    a = yard.load("a", slots=9, rate_limit=TWO)
    assert granted(yard.ask("r1", a)) == ["r1"]
    yard.pass_time(4.0)
    assert [granted(yard.ask(name, a)) for name in ("r2", "r3", "r4", "r5")] == [["r2"], [], [], []]
    assert granted(yard.pass_time(5.9)) == []
    assert granted(yard.pass_time(0.1)) == ["r3"]
    assert granted(yard.pass_time(4.0)) == ["r4"]
    assert granted(yard.pass_time(6.0)) == ["r5"]


def test_no_span_has_more_than_its_limit() -> None:
    yard, random = Yard(), Random(4)
    times: dict[str, float] = {}
    a = yard.load("a", slots=3, rate_limit=RateLimit(5, 10.0), max_wait=1e6, queue_bound=1000)
    for number in range(300):
        yard.ask(f"r{number}", a)
        for _ in range(random.randrange(4)):
            times |= {request: lease.granted_at for request, lease in yard.state.leases.items()}
            yard.pass_time(random.random())
            for request in list(yard.state.leases)[: random.randrange(3)]:
                times[request] = yard.state.leases[request].granted_at
                yard.finish(request)
    granted_at = sorted(times.values())
    assert len(granted_at) > 100
    assert all(later - first >= 9.999 for first, later in zip(granted_at, granted_at[5:], strict=False))


def test_a_span_that_passed_in_silence_needs_no_tick() -> None:
    yard = Yard()
    a = yard.load("a", slots=9, rate_limit=TWO)
    yard.ask("r1", a)
    yard.ask("r2", a)
    yard.now += 10.0
    assert granted(yard.ask("r3", a)) == ["r3"]


def test_what_would_wait_too_long_is_refused_with_the_time_to_come_back() -> None:
    yard = Yard()
    a = yard.load("a", slots=9, rate_limit=TWO)
    for number in range(4):
        yard.ask(f"r{number}", a)
    out = yard.ask("late", a, max_wait=15.0)
    assert refused(out) == {"late": "wait_too_long"}
    (refuse,) = of(ac.Refuse, out)
    assert refuse.retry_after == 5.0
    assert refused(yard.ask("patient", a, max_wait=21.0)) == {}
    assert yard.state.waiting["patient"].estimate == 20.0


@pytest.mark.parametrize("slots", [1, 3])
def test_the_stated_bound_holds(slots: int) -> None:
    yard, run = Yard(), 7.0
    a = yard.load("a", slots=slots, rate_limit=TWO, request_timeout=run)
    bounds = {}
    for number in range(9):
        yard.ask(f"r{number}", a)
        if f"r{number}" in yard.state.waiting:
            bounds[f"r{number}"] = yard.state.waiting[f"r{number}"].bound
    ends = dict.fromkeys(yard.state.leases, run)
    while ends:
        request = min(ends, key=lambda name: ends[name])
        for grant in of(ac.Grant, yard.pass_time(max(0.0, ends.pop(request) - yard.now))):
            ends[grant.request] = yard.now + run
        for grant in of(ac.Grant, yard.finish(request)):
            ends[grant.request] = yard.now + run
        if not ends and yard.state.waiting:
            for grant in of(ac.Grant, yard.pass_time(10.0)):
                ends[grant.request] = yard.now + run
    waited = {grant.request: grant.waited for grant in of(ac.Grant, yard.log)}
    assert len(waited) == 9
    assert all(waited[request] <= bound for request, bound in bounds.items()), (waited, bounds)


def test_a_pause_that_its_server_asks_for_keeps_everybody_waiting() -> None:
    yard = Yard()
    a = yard.load("a", slots=2)
    yard.ask("r1", a)
    yard.ask("r2", a)
    rest(yard, "r1", 7.0)
    rest(yard, "r2", 3.0)  # the longer one counts
    assert granted(yard.ask("r3", a)) == []
    assert yard.state.waiting["r3"].estimate == 7.0
    assert granted(yard.pass_time(6.9)) == []
    assert granted(yard.pass_time(0.1)) == ["r3"]
    assert refused(yard.ask("r4", a)) == {}
    assert yard.version(a).service_seconds == 1.0  # a refusal says nothing of how long answers take


def test_a_pause_outlasts_a_change_of_policy() -> None:
    yard = Yard()
    a = yard.load("a", slots=2, rate_limit=TWO)
    yard.ask("r1", a)
    rest(yard, "r1", 7.0)
    yard.do(ev.PolicyChanged(a, Policy()))
    assert granted(yard.ask("r2", a)) == []
    assert granted(yard.pass_time(6.9)) == []
    assert granted(yard.pass_time(0.1)) == ["r2"]


def test_who_waits_for_the_rate_keeps_the_instance_and_needs_no_other() -> None:
    yard = Yard()
    a = yard.load("a", 10, slots=2, rate_limit=TWO, keep_alive=0.0, max_replicas=3, patience=0.0)
    for name in ("r1", "r2", "r3"):
        yard.ask(name, a)
    yard.finish("r1")
    yard.finish("r2")
    yard.pass_time(9.0)
    assert yard.states(a) == ["ready"]
    assert granted(yard.pass_time(1.0)) == ["r3"]


def test_who_waits_for_the_rate_finds_the_instance_that_was_loaded_meanwhile() -> None:
    yard = Yard()
    a = yard.add("a", rate_limit=RateLimit(1, 10.0), keep_alive=0.0, min_residency=0.0)
    yard.ask("r1", a)
    yard.ready(a)
    yard.finish("r1")
    yard.pass_time(0.0)
    yard.released(a)
    yard.ask("r2", a)
    yard.ready(a)
    yard.pass_time(9.0)
    assert yard.states(a) == ["ready"]
    assert granted(yard.pass_time(1.0)) == ["r2"]
    yard.finish("r2")
    yard.pass_time(0.0)
    assert yard.states(a) == ["stopping"]


def test_an_instance_expires_after_those_who_waited_for_the_rate_have_left() -> None:
    yard = Yard()
    a = yard.load("a", slots=9, rate_limit=TWO, keep_alive=3.0)
    for name in ("r1", "r2", "r3"):
        yard.ask(name, a)
    yard.finish("r1")
    yard.finish("r2")
    yard.pass_time(5.0)
    assert yard.states(a) == ["ready"]
    yard.do(ev.Cancelled("r3"))
    yard.pass_time(5.0)
    assert yard.states(a) == ["stopping"]


def test_another_limit_counts_from_the_grants_that_were() -> None:
    yard = Yard()
    a = yard.load("a", slots=9, rate_limit=TWO)
    for name in ("r1", "r2", "r3", "r4"):
        yard.ask(name, a)
    assert granted(yard.do(ev.PolicyChanged(a, Policy(rate_limit=RateLimit(3, 10.0))))) == ["r3"]
    assert granted(yard.do(ev.PolicyChanged(a, Policy()))) == ["r4"]
    assert not yard.version(a).grants
    yard.do(ev.PolicyChanged(a, Policy(rate_limit=TWO)))
    assert [granted(yard.ask(name, a)) for name in ("r5", "r6", "r7")] == [["r5"], ["r6"], []]


def test_a_copy_counts_by_itself() -> None:
    yard = Yard()
    a = yard.load("a", slots=9, rate_limit=TWO)
    yard.ask("r1", a)
    copied = copy_of(yard.scheduler)
    copied.handle(ev.Arrived("r2", a), yard.now)
    assert granted(yard.ask("r2", a)) == ["r2"]


def test_a_version_that_is_removed_takes_its_timer_along() -> None:
    yard = Yard()
    a = yard.load("a", slots=9, rate_limit=TWO, pin=True)
    yard.ask("r1", a)
    yard.ask("r2", a)
    yard.do(ev.Removed(a))
    yard.finish("r1")
    yard.finish("r2")
    yard.released(a)
    assert yard.scheduler.next_deadline() is None


CAPS: dict[str, Any] = {"load_cap": 5.0, "release_cap": 1.0, "request_timeout": 4.0, "max_wait": 1000.0}


def paused() -> tuple[Yard, str, str]:
    """`a` is idle, but closed for 200 s, and somebody waits for it; `b` needs its memory."""
    yard = Yard()
    a, b = yard.load("a", **CAPS), yard.add("b", **CAPS)
    yard.ask("r1", a)
    rest(yard, "r1", 200.0)
    yard.ask("waits", a)
    return yard, a, b


def test_who_waits_for_a_pause_to_end_keeps_no_memory_from_others() -> None:
    yard, a, b = paused()
    yard.ask("r", b)
    bound = yard.state.waiting["r"].bound
    assert stopped(yard.pass_time(8.0)) == ["a"]
    yard.pass_time(1.0)
    yard.released(a)
    yard.pass_time(4.9)
    assert granted(yard.ready(b)) == ["r"]
    assert yard.now <= bound < 100.0


def test_nobody_busy_leaves_for_one_that_is_closed() -> None:
    yard, a, b = paused()
    bound = yard.state.waiting["waits"].bound
    yard.ask("r", b)
    yard.pass_time(8.0)
    yard.released(a)
    yard.ready(b)
    yard.ask("r2", b)
    assert stopped(yard.pass_time(100.0)) == []
    yard.finish("r")
    assert yard.holder("r2") is not None
    yard.pass_time(80.0)
    assert stopped(yard.finish("r2")) == ["b"], "nobody waits for it"
    yard.released(b)
    yard.ready(a)
    assert granted(yard.pass_time(200.0 - yard.now)) == ["waits"]
    assert bound >= 200.0 + 18.0, "the pause, and a swap"


def test_it_takes_its_turn_again_when_it_opens() -> None:
    yard, a, b = paused()
    bound = yard.state.waiting["waits"].bound
    yard.ask("r", b)
    yard.pass_time(8.0)
    yard.released(a)
    yard.ready(b)
    yard.pass_time(191.0)
    yard.ask("r2", b)
    assert yard.states(b) == ["ready"]
    yard.pass_time(9.0)
    yard.pass_time(1.0)
    assert yard.states(b) == ["draining"]
    yard.finish("r")
    yard.released(b)
    assert granted(yard.ready(a)) == ["waits"]
    assert yard.now <= bound


def test_it_is_loaded_where_that_was_asked_for() -> None:
    yard, a, b = paused()
    yard.ask("r", b)
    yard.pass_time(8.0)
    yard.released(a)
    yard.ready(b)
    yard.do(ev.LoadAsked(a))
    yard.pass_time(8.0)
    assert yard.states(b) == ["draining"]


def test_a_pause_that_is_over_sooner_does_not_shorten_the_span() -> None:
    yard = Yard()
    a = yard.load("a", slots=9, rate_limit=TWO)
    assert [granted(yard.ask(name, a)) for name in ("r1", "r2", "r3")] == [["r1"], ["r2"], []]
    rest(yard, "r1", 1.0)
    assert granted(yard.pass_time(9.9)) == []
    assert granted(yard.pass_time(0.1)) == ["r3"]


def test_a_later_word_does_not_shorten_a_pause() -> None:
    yard = Yard()
    a = yard.load("a", slots=2)
    assert [granted(yard.ask(name, a)) for name in ("r1", "r2", "r3")] == [["r1"], ["r2"], []]
    rest(yard, "r1", 30.0)
    rest(yard, "r2", 1.0)
    yard.do(ev.PolicyChanged(a, Policy(rate_limit=RateLimit(9, 1.0))))
    assert granted(yard.pass_time(29.9)) == []
    assert granted(yard.pass_time(0.1)) == ["r3"]


def test_what_the_limit_alone_takes_at_most() -> None:
    yard = Yard()
    free, limited = (
        yard.version(yard.add(name, rate_limit=rate)) for name, rate in (("a", None), ("b", TWO))
    )
    assert [rates.spans(limited, ahead) for ahead in range(5)] == [0.0, 10.0, 10.0, 20.0, 20.0]
    assert rates.spans(free, 5) == 0.0


def test_the_wait_for_one_more() -> None:
    yard = Yard()
    key = yard.load("a", slots=9, rate_limit=TWO)
    version = yard.version(key)
    yard.ask("r1", key)
    yard.pass_time(4.0)
    assert [rates.wait(version, ahead, 4.0) for ahead in range(4)] == [0.0, 6.0, 10.0, 16.0]
    yard.ask("r2", key)
    assert [rates.wait(version, ahead, 4.0) for ahead in range(4)] == [6.0, 10.0, 16.0, 20.0]
    assert [rates.wait(version, ahead, 20.0) for ahead in range(3)] == [0.0, 0.0, 10.0], "the span is over"
    rest(yard, "r1", 7.0)
    assert [rates.wait(version, ahead, 4.0) for ahead in range(3)] == [7.0, 10.0, 17.0]
    yard.do(ev.PolicyChanged(key, Policy()))
    assert [rates.wait(version, 5, now) for now in (4.0, 12.0)] == [7.0, 0.0]
