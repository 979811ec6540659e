"""What an instance holds on a rung, gives back there, and takes to wake: the sums, without a scheduler."""

from __future__ import annotations

import pytest

from core.yard import Yard, gpu, need, ram, spec
from core.yard import rung as down
from modelyard.core import sleep
from modelyard.core.lifecycle import InstanceState
from modelyard.core.memory import Ledger
from modelyard.core.state import Instance, Version
from modelyard.core.types import Charge, Need, Placement, Policy, Rung, Share

HELD: Placement = (Charge("gpu0", 50, {"x": 7}), Charge("gpu1", 100))


def one(placement: Placement = HELD, awake: Placement = (), wants: Need | None = None) -> Instance:
    """An instance at `placement`; one that sleeps was at `awake` before."""
    model = spec("a")
    version = Version(model, Policy(), model.version, need=wants)
    state = InstanceState.ASLEEP if awake else InstanceState.READY
    return Instance("a-1", version, placement, 0.0, "", state, awake=awake)


def books(*placement: Charge) -> Ledger:
    """The ledger of two GPUs and host memory, in which it holds `placement`."""
    ledger = Ledger()
    for device in (ram(1000), gpu("gpu0", 200), gpu("gpu1", 200)):
        ledger.add(device)
    ledger.reserve("a-1", placement)
    return ledger


def way(*shares: Share) -> Rung:
    return Rung("down", shares)


def test_shares_of_one_device_add_up_with_their_files() -> None:
    shares = (Share("ram", 10, {"x": 5}), Share("accelerator", 3), Share("ram", 20, {"y": 7}))
    assert sleep.on_devices(shares, (Charge("gpu1", 50), Charge("ram", 1))) == (
        Charge("ram", 30, {"x": 5, "y": 7}),
        Charge("gpu1", 3),
    )


def test_a_share_without_a_device_is_nowhere() -> None:
    assert sleep.on_devices((Share("accelerator", 3), Share("ram", 1)), ()) == (Charge("ram", 1),)


def test_what_sleeps_lies_where_it_was_awake() -> None:
    rung = way(Share("accelerator", 2), Share("accelerator", 3), Share("ram", 90))
    lies = (Charge("gpu0", 2), Charge("gpu1", 3), Charge("ram", 90))
    assert sleep.asleep(one(), rung) == lies
    assert sleep.asleep(one((Charge("ram", 90),), HELD), rung) == lies


def test_it_wakes_as_it_was_until_more_is_known() -> None:
    asleep = (Charge("ram", 90),)
    assert sleep.awake(one(asleep, HELD)) == HELD
    assert sleep.awake(one(asleep, HELD, need(1, 2, known=False))) == HELD
    assert sleep.awake(one(asleep, HELD, need(60, 70))) == (Charge("gpu0", 60), Charge("gpu1", 70))


def test_on_the_way_it_holds_the_more_of_both_on_each_device() -> None:
    before = (Charge("gpu0", 50, {"x": 7}), Charge("ram", 5))
    after = (Charge("gpu0", 10, {"y": 2}), Charge("ram", 90), Charge("gpu1", 1))
    assert sleep.both(before, after) == (
        Charge("gpu0", 50, {"x": 7, "y": 2}),
        Charge("ram", 90),
        Charge("gpu1", 1),
    )


def test_to_wake_takes_what_it_does_not_hold_already() -> None:
    asleep = (Charge("gpu0", 20), Charge("gpu1", 150), Charge("ram", 90))
    wakes = sleep.to_wake(books(*asleep), one(asleep, HELD))
    assert wakes.shares == (Share("gpu0", 30, {"x": 7}), Share("gpu1", 0))
    grown = sleep.to_wake(books(*asleep), one(asleep, HELD, need(60, 160)))
    assert grown.shares == (Share("gpu0", 40), Share("gpu1", 10))


def test_it_gave_back_what_it_held_awake_and_holds_no_more() -> None:
    asleep = (Charge("gpu0", 20), Charge("gpu1", 150), Charge("ram", 90))
    assert sleep.gave_back(books(*asleep), one(asleep, HELD)) == {"gpu0": 30}
    woken = one(asleep, HELD)
    woken.state = InstanceState.WAKING
    assert sleep.gave_back(books(*asleep), woken) == {}


@pytest.mark.parametrize(("left", "offered"), [(0, True), (20, True), (21, False), (100, False)])
def test_a_rung_is_offered_where_it_leaves_a_fifth_at_most(left: int, offered: bool) -> None:
    rung = way(Share("accelerator", 50), Share("accelerator", left), Share("ram", 90))
    expected = {"gpu1"} if offered else set()
    assert sleep.frees(books(*HELD), one(), rung) == expected
    assert sleep.claimed(one((Charge("gpu0", 1), Charge("gpu1", 1)), HELD), rung) == expected


def test_it_frees_nothing_where_it_holds_nothing() -> None:
    held = (Charge("gpu0", 0), Charge("gpu1", 100))
    assert sleep.frees(books(*held), one(held), way(Share("ram", 90))) == {"gpu1"}


def test_what_it_was_seen_to_hold_counts_too() -> None:
    ledger = books(*HELD)
    ledger.observe("a-1", {"gpu1": 150})
    rung = way(Share("accelerator", 50), Share("accelerator", 25), Share("ram", 90))
    assert sleep.frees(ledger, one(), rung) == {"gpu1"}


DOWN = way(Share("ram", 90))


@pytest.mark.parametrize("state", [state for state in InstanceState if state is not InstanceState.READY])
def test_only_who_is_ready_may_sleep(state: InstanceState) -> None:
    instance = one(wants=need(50, 100, rungs=[DOWN]))
    assert sleep.rungs(books(*HELD), instance, 0.0) == [DOWN]
    instance.state = state
    assert sleep.rungs(books(*HELD), instance, 0.0) == []


def test_nobody_sleeps_who_is_suspect_or_removed_or_must_not() -> None:
    ledger, wants = books(*HELD), need(50, 100, rungs=[DOWN])
    suspect, removed, never, failed, unread = (one(wants=wants) for _ in range(5))
    suspect.suspect = True
    removed.version.removed = True
    never.version.policy = Policy(sleep=False)
    failed.version.sleep_after = 5.0
    unread.version.need = None
    assert [sleep.rungs(ledger, each, 4.9) for each in (suspect, removed, never, failed, unread)] == [[]] * 5
    assert sleep.rungs(ledger, failed, 5.0) == [DOWN]


def test_the_soonest_back_comes_first_and_one_that_takes_a_load_is_none() -> None:
    three = Rung("1", DOWN.shares), Rung("2", DOWN.shares, seconds=3.0), Rung("3", DOWN.shares, seconds=2.0)
    instance, ledger = one(wants=need(50, 100, rungs=three)), books(*HELD)
    first, second, third = three
    assert sleep.rungs(ledger, instance, 0.0) == [third, second, first], "nobody timed a load"
    for load, offered in ((3.1, [third, second, first]), (3.0, [third, first]), (2.0, [first])):
        instance.version.load_seconds = load
        assert sleep.rungs(ledger, instance, 0.0) == offered


def test_one_that_frees_no_device_is_none() -> None:
    rung = way(Share("accelerator", 50), Share("accelerator", 21), Share("ram", 90))
    assert sleep.rungs(books(*HELD), one(wants=need(50, 100, rungs=[rung])), 0.0) == []


@pytest.mark.parametrize("device", ["ram", "gpu0"])
def test_no_rung_is_on_a_closed_device(device: str) -> None:
    rung = way(Share("accelerator", 0), Share("accelerator", 0), Share("ram", 90))
    instance, ledger = one(wants=need(50, 100, rungs=[rung])), books(*HELD)
    assert sleep.rungs(ledger, instance, 0.0) == [rung]
    assert sleep.fits(ledger, instance, rung)
    ledger.devices[device].fenced = "by order"
    assert sleep.rungs(ledger, instance, 0.0) == []
    assert not sleep.fits(ledger, instance, rung)


def test_nor_on_one_that_is_not_there() -> None:
    rung = way(Share("ram", 90))
    instance, ledger = one(wants=need(50, 100, rungs=[rung])), books(*HELD)
    del ledger.devices["ram"]
    assert sleep.rungs(ledger, instance, 0.0) == []
    assert not sleep.fits(ledger, instance, rung)


@pytest.mark.parametrize(("free", "fits"), [(90, True), (89, False)])
def test_it_fits_where_host_memory_holds_it_beside_all_that_it_holds_now(free: int, fits: bool) -> None:
    ledger = books(*HELD)
    ledger.reserve("other", (Charge("ram", 1000 - free),))
    assert sleep.fits(ledger, one(), DOWN) is fits


def test_after_a_failure_none_of_its_version_sleeps_for_ten_minutes() -> None:
    yard = Yard(ram(200), gpu())
    a, b = (yard.add(name, need(60, rungs=[down(ram=60)])) for name in "ab")
    yard.ask("r1", a)
    yard.ready(a)
    yard.finish("r1")
    yard.ask("r2", b)
    yard.failed(a, detail="it did not want to")
    yard.released(a)
    yard.ready(b)
    yard.finish("r2")
    failed, tried = yard.now, []
    for at in (failed + 598.0, failed + 602.0):
        yard.pass_time(at - yard.now)
        yard.ask(f"a{at}", a)
        tried.append(yard.states(b))
        yard.slept(b)
        yard.ready(a)
        yard.finish(f"a{at}")
        yard.pass_time(1.0)
        yard.ask(f"b{at}", b)
        tried.append(yard.states(a))
        if yard.states(a) == ["stopping"]:
            yard.released(a)
        else:
            yard.slept(a)
        yard.ready(b)
        yard.finish(f"b{at}")
    assert tried == [["sleeping"], ["stopping"], ["sleeping"], ["sleeping"]]
