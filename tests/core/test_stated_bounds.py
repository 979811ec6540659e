"""The bound and the estimate of a wait, by number, and the load time that is learned.

The policy of all versions here: residency 1, patience 2, drain 3, release 4, load 10 seconds; a swap is
2 + 3 + 4 + 10 = 19. A request runs for 5 s at most.
"""

from __future__ import annotations

from typing import Any

import pytest

from core.yard import Yard, gpu, of, refused
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.admission import waits
from modelyard.core.state import CLASSES, NOTHING
from modelyard.core.types import Priority

CAPS: dict[str, Any] = {
    "min_residency": 1.0,
    "patience": 2.0,
    "drain_cap": 3.0,
    "release_cap": 4.0,
    "load_cap": 10.0,
    "request_timeout": 5.0,
}
SWAP = 19.0
RUN = 5.0


def wait(yard: Yard, key: str) -> tuple[float, float]:
    """(estimate, bound) of a request of the normal class that arrives now."""
    return waits(yard.state, yard.scheduler.sums, yard.version(key), Priority.NORMAL, yard.now)


def test_a_cold_version_alone_is_one_swap_away() -> None:
    yard = Yard()
    yard.load("a", 100, **CAPS)
    b = yard.add("b", 100, **CAPS)
    assert wait(yard, b)[1] == SWAP


def test_a_ready_version_ahead_of_another_costs_its_turns() -> None:
    yard = Yard(gpu(size=200))
    a, b = yard.load("a", 100, **CAPS), yard.load("b", 100, **CAPS)
    for request in ("runs", "w1", "w2"):
        yard.ask(request, a)
    estimate, bound = wait(yard, b)
    assert bound == 2 * RUN
    assert estimate == 2 * yard.version(a).service_seconds


def test_a_request_that_waits_is_told_both() -> None:
    yard = Yard()
    a = yard.load("a", 100, **CAPS)
    for request in ("runs", "w1", "w2"):
        yard.ask(request, a)
    told = [(each.estimate, each.bound) for each in yard.state.waiting.values()]
    assert told == [(1.0, RUN), (2.0, 2 * RUN)]


def test_nothing_is_left_of_those_ahead_when_they_have_gone() -> None:
    yard = Yard(gpu(size=300))
    for model, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        key = yard.load(model, 100)
        yard.version(key).service_seconds = seconds
        yard.ask(f"runs {model}", key)
        yard.ask(f"waits {model}", key)
    assert yard.scheduler.sums.ahead[Priority.NORMAL].versions == 3
    for model in "abc":
        yard.do(ev.Cancelled(f"waits {model}"))
    assert yard.scheduler.sums.ahead == [NOTHING] * CLASSES, "though 0.1 + 0.2 + 0.3 is more than 0.6"


def test_the_usual_wait_for_room_is_learned_and_part_of_the_estimate() -> None:
    yard = Yard()
    a, b = yard.load("a", 100, min_residency=0.0), yard.add("b", 100, min_residency=0.0)
    c = yard.add("c", 100)
    for coming, going, usual in ((b, a, 2.0), (a, b, 3.6)):
        yard.ask(coming, coming)
        yard.pass_time(10.0)
        yard.released(going)
        yard.ready(coming)
        yard.finish(coming)
        assert wait(yard, c)[0] == pytest.approx(usual)
    yard.do(ev.UnloadAsked(a))
    yard.released(a)
    yard.do(ev.LoadAsked(b))
    yard.ready(b)
    assert wait(yard, c)[0] == pytest.approx(2.88), "it started at once"


def test_a_higher_class_counts_as_ahead_in_another_version_too_and_a_lower_one_does_not() -> None:
    yard = Yard(gpu(size=200))
    a, b = yard.load("a", 100, **CAPS), yard.load("b", 100, **CAPS)
    yard.ask("runs", a)
    for priority, count in ((Priority.HIGH, 2), (Priority.NORMAL, 1), (Priority.LOW, 4)):
        for number in range(count):
            yard.ask(f"{priority.name}{number}", a, priority=priority)
    assert wait(yard, b)[1] == 3 * RUN


def test_an_asked_for_version_ahead_costs_a_swap() -> None:
    yard = Yard()
    yard.load("a", 100, pin=True, **CAPS)
    b, c = yard.add("b", 100, **CAPS), yard.add("c", 100, **CAPS)
    yard.do(ev.LoadAsked(b))
    assert wait(yard, c)[1] == SWAP + SWAP


def test_two_cold_versions_ahead_cost_a_swap_for_each_request() -> None:
    yard = Yard()
    yard.load("a", 100, pin=True, **CAPS)
    b, c, d = (yard.add(name, 100, **CAPS) for name in "bcd")
    for request, key in (("b1", b), ("b2", b), ("c1", c)):
        yard.ask(request, key)
    assert wait(yard, d)[1] == 3 * SWAP + SWAP


def test_a_ready_version_among_cold_ones_costs_a_swap_a_request_and_what_its_slots_hold() -> None:
    yard = Yard()
    a = yard.load("a", 100, pin=True, **CAPS)
    b, c = yard.add("b", 100, **CAPS), yard.add("c", 100, **CAPS)
    for request in ("runs", "w1", "w2"):
        yard.ask(request, a)
    yard.ask("b1", b)
    ready, cold = 2 * SWAP + RUN, SWAP
    assert wait(yard, c)[1] == ready + cold + SWAP


def test_the_estimate_adds_a_learned_swap_for_each_version_that_is_not_ready() -> None:
    yard = Yard()
    yard.load("a", 100, pin=True, **CAPS)
    b, c = yard.add("b", 100, **CAPS), yard.add("c", 100, **CAPS)
    for key, seconds in ((b, 6.0), (c, 8.0)):
        yard.version(key).load_seconds = seconds
        yard.version(key).service_seconds = 0.5
    yard.ask("b1", b)
    yard.ask("b2", b)
    yard.ask("c1", c)
    room = yard.state.room_seconds
    assert wait(yard, c)[0] == pytest.approx((2 * 0.5 + 6.0 + room) + (0.5 + 8.0 + room))


def test_a_second_start_moves_the_learned_load_time_by_three_tenths() -> None:
    yard = Yard()
    a = yard.add("a")
    for seconds in (10.0, 20.0):
        yard.do(ev.LoadAsked(a))
        yard.pass_time(seconds)
        yard.ready(a)
        yard.do(ev.UnloadAsked(a))
        yard.released(a)
    assert yard.version(a).load_seconds == pytest.approx(0.7 * 10.0 + 0.3 * 20.0)


def test_a_full_queue_tells_when_to_come_again() -> None:
    yard = Yard(queue_bound=1)
    a = yard.load("a")
    yard.version(a).service_seconds = 4.0
    yard.ask("runs", a)
    yard.ask("waits", a)
    out = yard.ask("late", a)
    assert refused(out) == {"late": "queue_full"}
    assert of(ac.Refuse, out)[0].retry_after == 4.0


def test_the_service_time_is_that_of_the_first_answers_then_follows_by_a_tenth() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.pass_time(100.0)

    def answered_in(seconds: float) -> float:
        yard.ask("r", a)
        yard.pass_time(seconds)
        yard.finish("r")
        return yard.version(a).service_seconds

    assert answered_in(4.0) == pytest.approx(4.0), "nothing is left of what was assumed"
    assert answered_in(2.0) == pytest.approx(3.0)
    for _ in range(20):
        usual = answered_in(2.0)
    assert answered_in(12.0) == pytest.approx(0.9 * usual + 0.1 * 12.0)


def test_what_can_never_fit_is_told_so_however_short_the_wait() -> None:
    yard = Yard()
    assert refused(yard.ask("r", yard.add("big", 101), max_wait=0.1)) == {"r": "never_fits"}
