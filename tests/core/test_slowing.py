"""Loads that slow each other down: how that is learned, and who waits for whom then."""

from __future__ import annotations

import pytest

from core.yard import Yard, gpu, need, stopped
from modelyard.core import events as ev
from modelyard.core.slowing import MATTERS


def load_together(yard: Yard, seconds: float, *names: str) -> None:
    """Start these at one moment and have them ready at one moment, so many seconds later."""
    for name in names:
        yard.do(ev.LoadAsked(name))
    yard.pass_time(seconds)
    for name in names:
        yard.ready(name)


def unload(yard: Yard, *names: str) -> None:
    for name in names:
        yard.do(ev.UnloadAsked(name))
        yard.released(name)


def learned(yard: Yard, beside: float, *, device: str = "gpu0") -> float:
    """What is learned from two who load in 2 s alone, and in `beside` seconds at the same time."""
    names = [
        yard.add("one", 10, devices=("gpu0",), max_replicas=1),
        yard.add("two", 10, devices=(device,), max_replicas=1),
    ]
    for name in names:
        load_together(yard, 2.0, name)
        unload(yard, name)
    load_together(yard, beside, *names)
    unload(yard, *names)
    return yard.state.slowing


@pytest.mark.parametrize(
    ("beside", "matters"), [(4.0, True), (3.0, True), (2.0, False), (1.0, False)], ids=str
)
def test_it_is_learned_from_loads_at_the_same_time(beside: float, matters: bool) -> None:
    assert (learned(Yard(gpu()), beside) >= MATTERS) is matters


def test_loads_on_two_devices_tell_nothing_of_each_other() -> None:
    assert learned(Yard(gpu(), gpu("gpu1")), 20.0, device="gpu1") == 0.0


def test_one_slow_load_alone_tells_nothing() -> None:
    yard = Yard(gpu())
    name = yard.add("one", 10)
    for seconds in (2.0, 20.0):
        load_together(yard, seconds, name)
        unload(yard, name)
    assert yard.state.slowing == 0.0


def test_it_is_forgotten_when_loads_no_longer_slow_each_other_down() -> None:
    yard = Yard(gpu())
    assert learned(yard, 4.0) >= MATTERS
    names = [version.key for version in yard.state.versions.values()]
    for _ in range(20):
        load_together(yard, 2.0, *names)
        unload(yard, *names)
    assert yard.state.slowing < MATTERS


def three_swaps(yard: Yard) -> tuple[list[str], list[str]]:
    """Memory is full of three who are idle; three others are asked for. The names of both."""
    residents = [yard.load(f"old{number}", 30) for number in range(3)]
    wanted = [yard.add(f"new{number}", 30) for number in range(3)]
    for number, name in enumerate(wanted):
        yard.ask(f"r{number}", name)
    return residents, wanted


def test_a_third_swap_waits_for_two_loads_that_slow_it() -> None:
    yard = Yard(gpu())
    learned(yard, 4.0)
    residents, wanted = three_swaps(yard)
    assert [yard.states(name) for name in residents] == [["stopping"], ["stopping"], ["ready"]]
    assert yard.version(wanted[2]).blocked_by == "the loads of new0, new1, then the memory of old2-7"
    yard.ask("meanwhile", residents[2])
    assert yard.holder("meanwhile") == "old2-7"
    yard.finish("meanwhile")
    for name in residents[:2]:
        assert stopped(yard.released(name)) == []
    assert stopped(yard.ready(wanted[0])) == ["old2"]


def test_all_leave_at_once_for_loads_that_do_not_slow_each_other() -> None:
    yard = Yard(gpu())
    learned(yard, 2.0)
    residents, _ = three_swaps(yard)
    assert [yard.states(name) for name in residents] == [["stopping"]] * 3


def test_nobody_waits_for_a_load_whose_requests_have_gone() -> None:
    yard = Yard(gpu())
    learned(yard, 4.0)
    three_swaps(yard)
    for name in ("old0", "old1"):
        yard.released(f"{name}@{'0' * 12}")
    assert stopped(yard.do(ev.Cancelled("r0"))) == ["old2"]


@pytest.mark.parametrize("patience", [0.0, 60.0], ids=["they drain", "they are open"])
def test_nobody_waits_for_those_who_wait_for_long_answers(patience: float) -> None:
    yard = Yard(gpu())
    learned(yard, 4.0)
    for number in range(2):
        yard.ask(f"long{number}", yard.load(f"busy{number}", 40))
    idle = yard.load("idle", 20)
    for number in range(2):
        yard.ask(f"r{number}", yard.add(f"large{number}", 40, patience=patience))
    yard.ask("small", yard.add("small", 20))
    assert yard.states(idle) == ["stopping"]


def test_nobody_waits_for_a_load_that_came_later_or_is_of_nobody() -> None:
    yard = Yard(gpu(size=120))
    learned(yard, 4.0)
    yard.load("old", 30)
    for number in range(3):
        yard.do(ev.LoadAsked(yard.add(f"asked{number}", 30)))
    yard.do(ev.Learned("old@" + "0" * 12, need(30), 1.0))
    assert stopped(yard.ask("x", yard.add("new", 30))) == ["old"]


def test_two_loads_of_one_model_count_as_two_and_are_said_as_one() -> None:
    yard = Yard(gpu())
    learned(yard, 4.0)
    yard.load("old", 30)
    yard.ask("r0", yard.add("twice", 30, min_replicas=2, max_replicas=2))
    wanted = yard.add("new", 30)
    assert stopped(yard.ask("r1", wanted)) == []
    blocked_by = yard.version(wanted).blocked_by
    assert blocked_by is not None
    assert blocked_by.startswith("the loads of twice, then the memory of old-")
