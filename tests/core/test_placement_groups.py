"""Parts of a model on linked devices: which devices, and which part gets which."""

from __future__ import annotations

from dataclasses import replace

from core.test_placement import grouped
from core.yard import gpu, need, ram, spec
from modelyard.core.memory import DeviceLedger
from modelyard.core.placement import candidates, devices_of, fit_together, never_fits, place
from modelyard.core.types import Charge, Need, NoFit, Placement, Share


def put(wanted: Need, devices: dict[str, DeviceLedger], **free: int) -> Placement:
    """Where it goes when GPUs have so much `free`, or all."""
    placed = place(wanted, spec("a"), devices, lambda name: free.get(name, devices[name].free))
    assert isinstance(placed, tuple), placed
    return placed


def test_one_group_that_holds_all_parts_is_preferred_to_fuller_devices_of_several() -> None:
    placed = put(need(50, 50, 50), grouped("aaabbc"), gpu3=60, gpu4=60, gpu5=60)
    assert [charge.device for charge in placed] == ["gpu0", "gpu1", "gpu2"]


def test_unequal_parts_keep_the_devices_that_hold_them() -> None:
    placed = put(need(90, 50, 20), grouped("aba"), gpu1=60, gpu2=30)
    assert placed == (Charge("gpu0", 90), Charge("gpu1", 50), Charge("gpu2", 20))


def test_a_part_in_host_memory_does_not_keep_the_others_apart() -> None:
    devices = {**grouped("aabb"), "ram": DeviceLedger(ram(100))}
    wanted = Need((Share("ram", 30), Share("accelerator", 50), Share("accelerator", 50)))
    placed = put(wanted, devices, gpu1=60, gpu2=70)
    assert [charge.device for charge in placed] == ["ram", "gpu1", "gpu0"], "one group, the fuller first"


def test_devices_of_which_one_alone_has_a_group_are_placed_as_any() -> None:
    devices = {name: DeviceLedger(replace(gpu(name), group=group)) for name, group in (("x", "a"), ("y", ""))}
    assert put(need(50, 50), devices) == (Charge("x", 50), Charge("y", 50))


def test_a_need_that_nobody_measured_takes_all_of_the_emptiest_device() -> None:
    assert put(need(50, known=False), grouped("  "), gpu0=60, gpu1=90) == (Charge("gpu1", 90),)
    fenced = grouped("  ")
    fenced["gpu1"].fenced = "by order"
    assert put(need(50, known=False), fenced, gpu0=60, gpu1=90) == (Charge("gpu0", 60),)


def test_a_need_that_nobody_measured_goes_nowhere_where_nothing_is_free() -> None:
    devices = grouped(" ")
    assert isinstance(place(need(0, known=False), spec("a"), devices, lambda name: 0), NoFit)
    assert put(need(0), devices, gpu0=0) == (Charge("gpu0", 0),)


def test_a_file_that_nobody_maps_when_others_have_left_is_paid_for() -> None:
    devices, wanted = grouped(" "), Need((Share("accelerator", 10, {"digest": 50}),))
    devices["gpu0"].reserve("b-1", Charge("gpu0", 10, {"digest": 50}))
    room = {"gpu0": 40}.__getitem__
    assert place(wanted, spec("a"), devices, room) == (Charge("gpu0", 10, {"digest": 50}),)
    assert isinstance(place(wanted, spec("a"), devices, room, {"b-1"}), NoFit)


def test_what_nobody_measured_counts_as_nothing_among_those_that_have_to_stay() -> None:
    known, unknown = (need(60), spec("a")), (need(60, known=False), spec("b"))
    assert fit_together([known, unknown], grouped(" "))
    assert not fit_together([known, known], grouped(" "))


def test_a_closed_device_counts_for_what_can_ever_fit() -> None:
    devices = grouped(" ")
    devices["gpu0"].lost = "gone"
    assert never_fits(need(100), spec("a"), devices) is None
    assert never_fits(need(101), spec("a"), devices) is not None


def test_files_of_shares_on_one_device_are_all_charged() -> None:
    wanted = Need((Share("gpu0", 1, {"one": 5}), Share("gpu0", 2, {"other": 7})))
    assert put(wanted, grouped(" ")) == (Charge("gpu0", 3, {"one": 5, "other": 7}),)


def test_only_devices_that_the_model_names_are_candidates() -> None:
    devices, share = {**grouped("   "), "ram": DeviceLedger(ram())}, Share("accelerator", 1)
    assert candidates(share, spec("a", devices=("gpu2", "gpu1")), devices) == ["gpu1", "gpu2"]
    assert candidates(share, spec("a"), devices) == ["gpu0", "gpu1", "gpu2"]


def test_parts_that_name_a_device_lie_there_and_the_others_on_the_rest() -> None:
    part, named = Share("accelerator", 1), Share("gpu0", 1)
    assert devices_of((part, named, part), (Charge("gpu1", 1), Charge("gpu0", 1))) == ["gpu1", "gpu0", None]
    assert devices_of((named, part), (Charge("gpu0", 1), Charge("gpu1", 1))) == ["gpu0", "gpu1"]
    assert devices_of((part,), (Charge("ram", 1), Charge("gpu0", 1))) == ["gpu0"], "nobody asked for ram"
