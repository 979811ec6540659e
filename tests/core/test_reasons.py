"""What people are told of a decision: why an instance starts or leaves, and what a version waits for."""

from __future__ import annotations

import pytest

from core.yard import Yard, gpu, of
from modelyard.core import actions as ac
from modelyard.core import events as ev


def test_a_start_says_how_many_wait_for_it() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0)
    b = yard.add("b")
    yard.ask("r1", b)
    yard.ask("r2", b)
    (start,) = of(ac.Start, yard.released(a))
    assert start.reason == "2 requests waiting"
    assert yard.instance(b).reason == "2 requests waiting"


def test_a_single_request_is_told_in_the_singular() -> None:
    yard = Yard()
    (start,) = of(ac.Start, yard.ask("r", yard.add("a")))
    assert start.reason == "1 request waiting"


def test_who_waits_for_memory_on_its_way_back_says_so() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0)
    yard.do(ev.UnloadAsked(a))
    b = yard.add("b")
    yard.ask("r", b, max_wait=30.0)
    assert yard.version(b).blocked_by == "memory that is on its way back"
    (refuse,) = of(ac.Refuse, yard.pass_time(30.0))
    assert refuse.message == "b was not ready within 30 s; it waits for memory that is on its way back"


def test_who_waits_for_victims_names_them_all() -> None:
    yard = Yard(gpu(size=100))
    yard.load("a", 50, min_residency=9.0)
    yard.load("b", 50, min_residency=9.0)
    c = yard.add("c", 100)
    yard.ask("r", c)
    assert yard.version(c).blocked_by in ("the memory of a-1, b-2", "the memory of b-2, a-1")


def test_a_version_that_starts_waits_for_nothing_any_more() -> None:
    yard = Yard()
    a = yard.load("a", min_residency=0.0)
    b = yard.add("b")
    yard.ask("r", b)
    yard.released(a)
    assert yard.version(b).blocked_by == ""


def test_a_victim_that_is_not_ready_and_not_wanted_is_told_so() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("gone", a)
    yard.do(ev.Cancelled("gone"))
    (stop,) = of(ac.Stop, yard.ask("r", yard.add("b")))
    assert stop.reason == (
        "makes room for b (which waited 0.0 s for it); not ready yet, and nobody waits for it"
    )


@pytest.mark.parametrize("starting", [False, True], ids=["ready", "starting"])
def test_a_victim_knows_for_whom_it_leaves(starting: bool) -> None:
    yard = Yard()
    if starting:
        a = yard.add("a")
        yard.ask("gone", a)
        yard.do(ev.Cancelled("gone"))
    else:
        a = yard.load("a", min_residency=0.0)
    b = yard.add("b")
    yard.ask("r", b)
    assert yard.states(a) == ["stopping"]
    assert yard.instance(a).leaving_for == b


def test_who_leaves_for_nobody_says_so() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.do(ev.UnloadAsked(a))
    assert yard.instance(a).leaving_for == ""
