"""The accounts of devices, placement, and timers, each by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.yard import gpu, need, ram, spec
from modelyard.core.memory import DeviceLedger, Ledger
from modelyard.core.placement import never_fits, place
from modelyard.core.timers import Timers
from modelyard.core.types import Charge, Device, DeviceKind, Need, NoFit, Share


def test_a_reservation_over_budget_or_twice_is_an_error_and_books_nothing() -> None:
    account = DeviceLedger(gpu(size=100))
    account.reserve("a", Charge("gpu0", 60))
    with pytest.raises(ValueError, match="a holds memory on gpu0 already"):
        account.reserve("a", Charge("gpu0", 1))
    with pytest.raises(ValueError, match="b would pass the budget of gpu0"):
        account.reserve("b", Charge("gpu0", 30, {"file": 11}))
    assert (account.reserved, account.holders()) == (60, ["a"])


def test_a_placement_is_booked_on_all_its_devices_or_on_none() -> None:
    ledger = Ledger()
    ledger.add(gpu("gpu0", 100))
    ledger.add(gpu("gpu1", 10))
    with pytest.raises(ValueError, match="gpu1"):
        ledger.reserve("a", (Charge("gpu0", 50), Charge("gpu1", 50)))
    assert ledger.devices["gpu0"].reserved == 0


def test_what_is_booked_stays_where_what_comes_in_its_place_would_pass_the_budget() -> None:
    ledger = Ledger()
    ledger.add(gpu("gpu0", 100))
    ledger.add(gpu("gpu1", 10))
    ledger.reserve("a", (Charge("gpu0", 50), Charge("gpu1", 5, {"file": 3})))
    with pytest.raises(ValueError, match="a would pass the budget of gpu1"):
        ledger.rebook("a", (Charge("gpu0", 60), Charge("gpu1", 11)))
    assert [account.reserved for account in ledger.devices.values()] == [50, 8]
    ledger.rebook("a", (Charge("gpu0", 100), Charge("gpu1", 10)))
    assert [account.reserved for account in ledger.devices.values()] == [100, 10]


def test_free_is_the_least_of_budget_and_what_the_device_really_has() -> None:
    account = DeviceLedger(Device("gpu0", DeviceKind.CUDA, total=100, budget=80, reserve=10))
    assert account.free == 80
    account.seen(100, free=60, ours={})
    assert (account.foreign, account.free) == (40, 50)
    account.reserve("a", Charge("gpu0", 30))
    account.seen(100, free=20, ours={"a": 40})
    assert (account.foreign, account.excess, account.observed, account.free) == (40, 10, 40, 10)
    assert account.own("a") == 40
    account.free_up("a")
    account.free_up("a")
    assert (account.reserved, account.excess, account.observed) == (0, 0, 0)


class TestWhereNobodyCanBeMeasured:
    """A device that does not tell who uses it: ROCm, MIG, containers, unified memory."""

    def test_what_is_reserved_is_not_foreign_as_well(self) -> None:
        account = DeviceLedger(gpu(size=24))
        account.reserve("a", Charge("gpu0", 10))
        account.seen(24, free=14, ours={}, settled={"a"})
        assert (account.foreign, account.free) == (0, 14)

    def test_foreign_memory_counts_when_it_comes_and_when_it_goes(self) -> None:
        account = DeviceLedger(gpu(size=24))
        account.reserve("a", Charge("gpu0", 10))
        account.seen(24, free=9, ours={}, settled={"a"})
        assert (account.foreign, account.free) == (5, 9)
        account.seen(24, free=14, ours={}, settled={"a"})
        assert (account.foreign, account.free) == (0, 14)

    def test_one_that_is_measured_beside_one_that_is_not(self) -> None:
        account = DeviceLedger(gpu(size=24))
        account.reserve("a", Charge("gpu0", 10))
        account.reserve("b", Charge("gpu0", 4))
        account.seen(24, free=8, ours={"b": 5}, settled={"a", "b"})
        assert (account.foreign, account.free) == (1, 8)

    def test_a_load_does_not_hide_what_was_foreign_before(self) -> None:
        account = DeviceLedger(gpu(size=24))
        account.seen(24, free=19, ours={})
        account.reserve("a", Charge("gpu0", 10))
        for loaded in (0, 6, 10):
            account.seen(24, free=19 - loaded, ours={})
            assert (account.foreign, account.free) == (5, 9)
        account.seen(24, free=19, ours={})
        assert account.foreign == 5, "it leaves"

    def test_what_came_since_may_be_of_any_that_load(self) -> None:
        account = DeviceLedger(gpu(size=24))
        account.reserve("a", Charge("gpu0", 6))
        account.reserve("b", Charge("gpu0", 4))
        account.seen(24, free=12, ours={})
        assert (account.foreign, account.free) == (2, 12)

    def test_a_load_does_not_become_foreign(self) -> None:
        account = DeviceLedger(gpu(size=24))
        account.reserve("a", Charge("gpu0", 10))
        account.seen(24, free=14, ours={})
        assert (account.foreign, account.free) == (0, 14)
        account.seen(24, free=12, ours={})
        assert (account.foreign, account.free) == (2, 12), "more than it reserved is somebody else's"


def test_shrinking_never_grows_and_turns_what_is_used_beyond_it_into_excess() -> None:
    account = DeviceLedger(gpu(size=100))
    account.reserve("a", Charge("gpu0", 60))
    account.observe("a", 50)
    account.shrink("a", 70)
    assert account.reserved == 60
    account.shrink("a", 40)
    assert (account.reserved, account.excess) == (40, 10)
    account.shrink("ghost", 1)
    account.observe("ghost", 99)
    assert (account.reserved, account.excess) == (40, 10)


def test_what_is_observed_beyond_a_shrunk_reservation_counts() -> None:
    account = DeviceLedger(gpu(size=100))
    account.reserve("a", Charge("gpu0", 60))
    account.shrink("a", 20)
    assert (account.reserved, account.excess, account.free) == (20, 0, 80)
    account.observe("a", 25)
    account.shrink("a", 20)
    assert (account.reserved, account.excess) == (20, 5)
    account.shrink("a", 10)
    assert (account.reserved, account.excess, account.free) == (10, 15, 75)


def test_a_reservation_can_shrink_to_nothing() -> None:
    account = DeviceLedger(gpu(size=100))
    account.reserve("a", Charge("gpu0", 60))
    account.shrink("a", 0)
    assert (account.reserved, account.excess, account.free) == (0, 0, 100)


def test_what_leaves_takes_the_files_along_that_nobody_else_maps() -> None:
    account = DeviceLedger(ram(500))
    account.reserve("a", Charge("ram", 10, {"one": 100, "two": 50}))
    account.reserve("b", Charge("ram", 10, {"two": 50}))
    share = Share("ram", 5, {"one": 100, "two": 50})
    assert (account.reserved, account.cost(share)) == (170, 5)
    assert account.cost(share, {"a"}) == 105
    assert account.cost(share, {"a", "b"}) == 155
    assert [account.files_back(gone) for gone in ({"b"}, {"a"}, {"a", "b"})] == [0, 100, 150]


def accounts(*sizes: int) -> dict[str, DeviceLedger]:
    return {f"gpu{n}": DeviceLedger(gpu(f"gpu{n}", size)) for n, size in enumerate(sizes)}


def test_a_share_takes_the_fullest_device_that_holds_it() -> None:
    devices = accounts(100, 70, 40)
    placed = place(need(50), spec("a"), devices, lambda device: devices[device].free)
    assert placed == (Charge("gpu1", 50),)


def test_two_accelerator_shares_go_to_different_devices_and_ram_stays_in_ram() -> None:
    devices = {**accounts(100, 70), "ram": DeviceLedger(ram(30))}
    wanted = Need((Share("accelerator", 60), Share("accelerator", 65), Share("ram", 30)))
    placed = place(wanted, spec("a"), devices, lambda device: devices[device].free)
    assert placed == (Charge("gpu0", 60), Charge("gpu1", 65), Charge("ram", 30)), "in the order of the shares"


def test_a_mask_of_devices_limits_the_choice() -> None:
    devices = accounts(100, 100)
    placed = place(need(10), spec("a", devices=("gpu1",)), devices, lambda device: devices[device].free)
    assert placed == (Charge("gpu1", 10),)
    assert isinstance(
        place(need(10), spec("a", devices=("gpu7",)), devices, lambda device: devices[device].free), NoFit
    )


def test_an_unknown_need_takes_all_that_is_free_and_leaves_room_for_its_files() -> None:
    devices = {"ram": DeviceLedger(ram(100))}
    wanted = Need((Share("ram", 10, {"file": 30}),), known=False)
    placed = place(wanted, spec("a"), devices, lambda device: devices[device].free)
    assert placed == (Charge("ram", 70, {"file": 30}),)
    assert isinstance(place(wanted, spec("a"), devices, lambda _: 39), NoFit)


def test_an_unknown_need_takes_what_is_free_once_though_two_shares_lie_there() -> None:
    devices = {"ram": DeviceLedger(ram(100)), **accounts(80)}
    two = Need((Share("ram", 10), Share("ram", 20), Share("accelerator", 5)), known=False)
    placed = place(two, spec("a"), devices, lambda device: devices[device].free)
    assert placed == (Charge("ram", 100), Charge("gpu0", 80))


def test_an_unknown_need_of_nothing_is_placed_where_something_is_free() -> None:
    devices = accounts(100)
    nothing = need(0, known=False)
    assert isinstance(place(nothing, spec("a"), devices, lambda _: 0), NoFit)
    assert place(nothing, spec("a"), devices, lambda _: 1) == (Charge("gpu0", 1),)


def test_never_fits_says_why() -> None:
    devices = accounts(100, 60)
    assert never_fits(need(100), spec("a"), devices) is None
    assert never_fits(need(161), spec("a"), devices) == NoFit(
        "the budget of gpu0, gpu1 is 160 bytes in all", need=161
    )
    assert never_fits(need(1, on="ram"), spec("a"), devices) == NoFit(
        "there is no device ram that it may use", need=1
    )
    assert never_fits(need(1), spec("a", devices=("gpu7",)), devices) == NoFit(
        "there is no accelerator (a GPU) that it may use", need=1
    )


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 20), st.booleans()), max_size=200))
def test_timers_are_a_sorted_dictionary(steps: list[tuple[str, int, bool]]) -> None:
    timers, expected = Timers(), dict[tuple[str, str], float]()
    for name, when, cancel in steps:
        key = ("kind", name)
        if cancel:
            timers.cancel(key)
            expected.pop(key, None)
        else:
            timers.set(key, when)
            expected[key] = when
        assert timers.next() == min(expected.values(), default=None)
        assert timers.when(key) == expected.get(key)
        assert len(timers) == len(expected)
    due = timers.pop_due(10)
    assert sorted(due) == sorted(key for key, when in expected.items() if when <= 10)
    assert [expected[key] for key in due] == sorted(expected[key] for key in due)


def test_cancelled_timers_do_not_pile_up() -> None:
    timers = Timers()
    for number in range(10_000):
        timers.set(("request", str(number)), 300.0)
        timers.cancel(("request", str(number)))
    assert len(timers._heap) <= 100


def test_a_deadline_that_is_moved_later_takes_one_place() -> None:
    timers = Timers()
    for when in (1.0, 1.0, 2.0, 5.0):
        timers.set(("idle", "a"), when)
    assert len(timers._heap) == 1
    assert timers.pop_due(4.9) == []
    assert timers.pop_due(5.0) == [("idle", "a")]


def test_moving_many_deadlines_earlier_keeps_them_all() -> None:
    timers = Timers()
    for when in (30.0, 20.0, 10.0):
        for number in range(100):
            timers.set(("request", str(number)), when + number / 1000)
            assert len(timers._heap) <= 64 + 4 * len(timers)
    assert timers.pop_due(10.05) == [("request", str(number)) for number in range(51)]
