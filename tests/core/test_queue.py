"""Who is next in the queue of one version: age decides, also for retries and after most have left."""

from __future__ import annotations

import pytest

from core.yard import Yard, granted
from modelyard.core import events as ev
from modelyard.core.state import Queue, Waiting
from modelyard.core.types import Priority


def busy() -> tuple[Yard, str]:
    """A yard with one model, whose only slot is held by the request `running`."""
    yard = Yard()
    a = yard.load("a")
    yard.ask("running", a)
    return yard, a


def serve(yard: Yard, count: int, running: str = "running") -> list[str]:
    """Finish what runs, `count` times: the requests that got the slot, in order."""
    order = []
    for _ in range(count):
        (running,) = granted(yard.finish(running))
        order.append(running)
    return order


@pytest.mark.parametrize("since", [1.0, 2.0])
def test_a_retry_goes_before_what_is_younger_and_behind_what_is_not(since: float) -> None:
    yard, a = busy()
    for request in ("first", "second", "third"):
        yard.pass_time(1.0 if request == "first" else 2.0)
        yard.ask(request, a)
    yard.ask("retry", a, since=since)
    assert serve(yard, 4) == ["first", "retry", "second", "third"]


def test_the_order_of_the_rest_stays_when_most_of_a_long_queue_leaves() -> None:
    yard, a = busy()
    requests = [f"r{number}" for number in range(40)]
    for request in requests:
        yard.ask(request, a)
    stay = requests[::8]
    for request in requests:
        if request not in stay:
            yard.do(ev.Cancelled(request))
    assert yard.version(a).queue.count == len(stay)
    assert serve(yard, len(stay)) == stay


@pytest.mark.parametrize("size", [33, 40, 200])
def test_those_who_left_behind_a_waiting_head_take_no_more_than_a_bounded_place(size: int) -> None:
    queue = Queue()
    waiting = [
        Waiting(f"r{number}", "a", Priority.NORMAL, float(number), float(number), 1e3, frozenset())
        for number in range(size)
    ]
    for one in waiting:
        queue.put(one)
    for gone in waiting[:0:-1]:
        queue.forget(gone)
        held = len(queue._lanes[Priority.NORMAL])
        assert held <= 32 + 4 * queue.count, f"{held} places for {queue.count} requests"
    assert list(queue) == waiting[:1]


def test_turns_before_a_lower_class_waits_do_not_count_for_it() -> None:
    yard, a = busy()
    for number in range(8):
        yard.ask(f"before{number}", a, priority=Priority.HIGH)
    last = serve(yard, 8)[-1]
    yard.ask("low", a, priority=Priority.LOW)
    highs = [f"high{number}" for number in range(9)]
    for request in highs:
        yard.ask(request, a, priority=Priority.HIGH)
    assert serve(yard, 9, last) == [*highs[:7], "low", highs[7]]
