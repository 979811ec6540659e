"""Placement of several shares, and what several decisions of one capacity pass may take together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import pytest

from core.yard import Yard, gpu, need, ram, spec, started, stopped
from modelyard.core import events as ev
from modelyard.core import placement
from modelyard.core.memory import DeviceLedger
from modelyard.core.placement import Prefer, candidates, fit_together, never_fits, place
from modelyard.core.types import Charge, Need, NoFit, Packing, Share


def put(wanted: Need, *sizes: int) -> object:
    """`wanted` placed in `ram` with the first size and GPUs with the others, all empty."""
    accounts = [DeviceLedger(ram(sizes[0]))]
    accounts += [DeviceLedger(gpu(f"gpu{n}", size)) for n, size in enumerate(sizes[1:])]
    devices = {account.device.id: account for account in accounts}
    return place(wanted, spec("a"), devices, lambda device: devices[device].free)


def test_two_shares_on_one_device_are_added_up() -> None:
    both = Need((Share("ram", 60), Share("ram", 50)))
    assert isinstance(put(both, 109), NoFit)
    assert put(both, 110) == (Charge("ram", 110),)


def test_three_shares_on_one_device_are_added_up() -> None:
    three = Need((Share("ram", 60), Share("ram", 50), Share("ram", 40)))
    assert isinstance(put(three, 149), NoFit)
    assert put(three, 150) == (Charge("ram", 150),)


def test_a_charge_says_what_its_device_has_in_all() -> None:
    placed = put(need(40, 30), 100, 100, 200)
    assert isinstance(placed, tuple)
    assert {charge.device: charge.total for charge in placed} == {"gpu0": 100, "gpu1": 200}


def test_accelerator_shares_go_to_different_devices_though_one_could_hold_them() -> None:
    two = need(40, 30)
    assert isinstance(put(two, 100, 100), NoFit)
    assert put(two, 100, 100, 100) == (Charge("gpu0", 40), Charge("gpu1", 30))


def test_a_share_that_has_one_device_is_placed_before_one_that_may_lie_on_several() -> None:
    both = Need((Share("accelerator", 60), Share("gpu0", 50)))
    assert put(both, 100, 100, 100) == (Charge("gpu1", 60), Charge("gpu0", 50))


def test_a_refused_need_is_told_with_its_bytes() -> None:
    missing = put(need(70, 40), 10, 50, 50)
    assert missing == NoFit("no device has 70 bytes free for accelerator", need=110)


def test_what_fits_on_several_devices_only_is_told_how_to_be_split() -> None:
    devices = {name: DeviceLedger(gpu(name, size)) for name, size in (("gpu0", 24), ("gpu1", 30))}
    for size in (40, 54):
        never = never_fits(need(size), spec("a"), devices)
        assert never is not None
        assert never.reason == (
            f"the budget of gpu0, gpu1 is 54 bytes in all, but {size} bytes have to lie on one device, and "
            "none has more than 30 bytes: name several in `devices` to split the model, where its engine can"
        )
    assert never_fits(need(20, 20), spec("a"), devices) is None
    devices["ram"] = DeviceLedger(ram(10))
    for hopeless in (need(55), need(40, 1), Need((Share("accelerator", 30), Share("ram", 11)))):
        never = never_fits(hopeless, spec("a"), devices)
        assert never is not None
        assert "several" not in never.reason


def test_what_is_too_large_for_its_device_is_told_with_that() -> None:
    devices = {name: DeviceLedger(gpu(name, 30)) for name in ("gpu0", "gpu1")} | {
        "ram": DeviceLedger(ram(300))
    }
    never = never_fits(Need((Share("accelerator", 70), Share("ram", 20))), spec("a"), devices)
    assert never == NoFit("70 bytes of that have to lie on gpu0 or gpu1, with a budget of 60 bytes", 90)


def test_what_has_to_stay_is_tried_on_every_device() -> None:
    devices = {name: DeviceLedger(gpu(name, size)) for name, size in (("gpu0", 10), ("gpu1", 12))}

    def together(*needs: Need) -> bool:
        return fit_together([(one, spec("a")) for one in needs], devices)

    assert together(need(6), need(4), need(7), need(5))
    assert not together(need(7), need(7), need(7)), "although it is less than both budgets in all"
    assert not together(need(6, 6), need(6), need(6))
    weights = Need((Share("accelerator", 1, {"w": 8}),))
    assert together(weights, weights, weights, need(10)), "a mapped file counts once"


def by_trying(wanted: Sequence[Need], devices: Mapping[str, DeviceLedger]) -> bool:
    """What `fit_together` says, found by trying every place."""
    shares = [(number, share) for number, one in enumerate(wanted) for share in one.shares]
    for places in product(*(candidates(share, spec("a"), devices) for _, share in shares)):
        put = [(number, share, device) for (number, share), device in zip(shares, places, strict=True)]
        spread = [(number, device) for number, share, device in put if share.on == "accelerator"]
        files = {(device, name): size for _, share, device in put for name, size in share.mapped.items()}
        taken: Counter[str] = Counter()
        for _, share, device in put:
            taken[device] += share.bytes
        for (device, _), size in files.items():
            taken[device] += size
        over = any(taken[name] > account.device.budget for name, account in devices.items())
        if len(set(spread)) == len(spread) and not over:
            return True
    return False


def test_what_has_to_stay_fits_together_when_there_are_places_for_all_of_it() -> None:
    chance, seen = random.Random(7), Counter[bool]()
    for _ in range(600):
        accounts = [DeviceLedger(ram(chance.randint(4, 16)))]
        accounts += [DeviceLedger(gpu(f"gpu{n}", chance.randint(4, 16))) for n in range(2)]
        devices = {account.device.id: account for account in accounts}
        wanted = [
            Need(
                tuple(
                    Share(
                        chance.choice(["accelerator", "accelerator", "ram"]),
                        chance.randint(1, 8),
                        {"w": 4} if chance.random() < 0.3 else {},
                    )
                    for _ in range(chance.randint(1, 2))
                )
            )
            for _ in range(chance.randint(1, 4))
        ]
        fits = fit_together([(one, spec("a")) for one in wanted], devices)
        assert fits == by_trying(wanted, devices), wanted
        seen[fits] += 1
    assert min(seen[True], seen[False]) > 200, seen


@pytest.mark.parametrize(("steps", "said"), [(3, True), (4, False)])
def test_a_search_for_places_is_given_up_after_so_many_steps(
    monkeypatch: pytest.MonkeyPatch, steps: int, said: bool
) -> None:
    devices = {name: DeviceLedger(gpu(name, size)) for name, size in (("gpu0", 10), ("gpu1", 12))}
    monkeypatch.setattr(placement, "SEARCH", steps)
    assert fit_together([(need(7), spec("a"))] * 3, devices) is said


def test_the_largest_is_placed_first_so_that_what_fits_nowhere_is_found_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices = {name: DeviceLedger(gpu(name, 100)) for name in ("gpu0", "gpu1")}
    monkeypatch.setattr(placement, "SEARCH", 100)
    assert not fit_together([(need(size), spec("a")) for size in (*([1] * 20), 101)], devices)


def test_many_alike_that_do_not_fit_together_are_found_out() -> None:
    devices = {name: DeviceLedger(gpu(name, 24)) for name in ("gpu0", "gpu1", "gpu2", "gpu3")}
    assert fit_together([(need(7), spec("a"))] * 12, devices)
    assert not fit_together([(need(7), spec("a"))] * 13, devices), "although 91 are less than 96"


def test_thousands_of_instances_have_places_looked_for_as_few_have() -> None:
    devices = {"gpu0": DeviceLedger(gpu("gpu0", 5000))}
    assert fit_together([(need(1), spec("a"))] * 5000, devices)
    assert not fit_together([(need(1), spec("a"))] * 5001, devices)


def test_two_starts_in_one_pass_share_the_free_bytes() -> None:
    yard = Yard(gpu(size=100))
    a, b = yard.add("a", 60), yard.add("b", 60)
    yard.seen("gpu0", free=0)
    yard.ask("r1", a)
    yard.ask("r2", b)
    assert started(yard.seen("gpu0", free=100)) == ["a"]


def test_two_starts_in_one_pass_happen_when_both_fit() -> None:
    yard = Yard(gpu(size=120))
    a, b = yard.add("a", 60), yard.add("b", 60)
    yard.seen("gpu0", free=0, total=120)
    yard.ask("r1", a)
    yard.ask("r2", b)
    assert started(yard.seen("gpu0", free=120, total=120)) == ["a", "b"]


def test_an_unknown_footprint_starts_beside_another_in_one_pass_on_a_device_of_its_own() -> None:
    yard = Yard(gpu(size=100), gpu("gpu1", 100))
    known, new = yard.add("known", 30), yard.add("new", need(20, known=False))
    yard.seen("gpu0", free=0)
    yard.seen("gpu1", free=0)
    yard.ask("k", known)
    yard.ask("n", new)
    yard.state.ledger.devices["gpu1"].seen(100, 100, {})
    assert started(yard.seen("gpu0", free=100)) == ["known", "new"]
    assert [yard.instance(key).placement[0].device for key in (known, new)] == ["gpu0", "gpu1"]


def test_a_replica_above_the_minimum_may_be_a_victim_and_the_minimum_may_not() -> None:
    yard = Yard(gpu(size=100))
    a = yard.add("a", 50, min_replicas=1, max_replicas=2, patience=0.0, min_residency=0.0)
    yard.ready(a)
    yard.ask("r1", a)
    yard.ask("r2", a)
    yard.ready(a)
    yard.finish("r1")
    yard.finish("r2")
    assert yard.states(a) == ["ready", "ready"]
    b, c = yard.add("b", 50, min_residency=0.0), yard.add("c", 100)
    assert stopped(yard.ask("b", b)) == ["a"]
    yard.released(a)
    yard.ready(b)
    yard.finish("b")
    yard.do(ev.UnloadAsked(b))
    yard.released(b)
    assert stopped(yard.ask("c", c)) == [], "the last replica is the minimum"


def test_two_starts_in_one_pass_do_not_both_take_what_a_leaving_one_still_holds() -> None:
    yard = Yard(gpu(size=200))
    yard.do(ev.UnloadAsked(yard.load("leaving", 100)))
    a, b = yard.add("a", 60), yard.add("b", 60)
    yard.seen("gpu0", free=0, total=200)
    yard.ask("r1", a)
    yard.ask("r2", b)
    assert started(yard.seen("gpu0", free=200, total=200)) == ["a"]


def test_two_starts_in_one_pass_leave_what_the_one_before_them_owns() -> None:
    yard = Yard(gpu(size=160))
    leaving = yard.load("leaving", 60)
    yard.do(ev.UnloadAsked(leaving))
    first, a, b = yard.add("first", 120), yard.add("a", 30), yard.add("b", 30)
    yard.seen("gpu0", free=0, total=160)
    for request, key in (("r0", first), ("r1", a), ("r2", b)):
        yard.ask(request, key)
    assert started(yard.seen("gpu0", free=160, total=160)) == ["a"]
    assert started(yard.released(leaving)) == ["first"]


ANYWHERE = Prefer()


def grouped(groups: str, size: int = 100) -> dict[str, DeviceLedger]:
    """Empty GPUs; each letter is the group of one."""
    devices = [replace(gpu(f"gpu{n}", size), group=group.strip()) for n, group in enumerate(groups)]
    return {device.id: DeviceLedger(device) for device in devices}


def chosen(wanted: Need, devices: Mapping[str, DeviceLedger], prefer: Prefer = ANYWHERE, **free: int) -> str:
    placed = place(wanted, spec("a"), devices, lambda name: free.get(name, 100), prefer=prefer)
    return placed.reason if isinstance(placed, NoFit) else " ".join(charge.device[3:] for charge in placed)


@pytest.mark.parametrize(
    ("groups", "free", "expected"),
    [
        ("abab", {}, "0 2"),
        ("abab", {"gpu2": 40}, "1 3"),
        ("aabb", {"gpu2": 90, "gpu3": 90}, "2 3"),  # the fullest group that holds it
        ("abcb", {"gpu1": 40}, "0 2"),  # no group does: any two
        ("abab", {"gpu0": 40, "gpu1": 40}, "2 3"),
        ("    ", {}, "0 1"),
        ("aa  ", {"gpu2": 90, "gpu3": 90}, "0 1"),  # devices of no group are not linked
        ("a a ", {"gpu0": 40}, "1 2"),  # no group does: any two
    ],
)
def test_shares_stay_within_one_group_where_one_holds_them(
    groups: str, free: dict[str, int], expected: str
) -> None:
    assert chosen(need(50, 50), grouped(groups), ANYWHERE, **free) == expected


def test_shares_that_no_group_holds_take_as_few_as_possible_and_lie_beside_their_like() -> None:
    assert chosen(need(50, 50, 50, 50), grouped("abcabc"), gpu0=40) == "1 4 2 5"


def test_spread_takes_the_emptiest_device_and_pack_the_fullest() -> None:
    devices, free = grouped("   "), {"gpu0": 90, "gpu1": 60}
    assert chosen(need(50), devices, ANYWHERE, **free) == "1"
    assert chosen(need(50), devices, Prefer(Packing.SPREAD), **free) == "2"


def test_replicas_keep_apart_where_they_can() -> None:
    apart = Prefer(apart=frozenset({"gpu0", "gpu1"}))
    assert chosen(need(50), grouped("   "), apart, gpu0=60) == "2"
    assert chosen(need(50), grouped("   "), apart, gpu0=60, gpu2=40) == "0", "rather there than nowhere"
    assert chosen(need(50, 50), grouped("aabb"), apart, gpu0=60, gpu1=60) == "2 3"


def test_an_exclusive_device_takes_models_of_its_profile_alone() -> None:
    devices = grouped("  ")
    devices["gpu0"].device = replace(devices["gpu0"].device, exclusive="big")
    assert candidates(Share("accelerator", 1), spec("a"), devices) == ["gpu1"]
    assert candidates(Share("accelerator", 1), replace(spec("a"), engine="big"), devices) == ["gpu0", "gpu1"]


def test_more_parts_than_devices_are_told_so() -> None:
    never = never_fits(need(5, 5, 5), spec("a"), grouped("  "))
    assert never == NoFit("it takes 3 accelerators at once, and may use gpu0, gpu1", 15)


def test_replicas_are_placed_apart_and_two_by_two() -> None:
    yard = Yard(*(replace(gpu(f"gpu{n}"), group="ab"[n // 2]) for n in range(4)))
    a = yard.add("a", need(60, 60), min_replicas=2, max_replicas=2)
    where = [[charge.device for charge in each.placement] for each in yard.instances(a)]
    assert where == [["gpu0", "gpu1"], ["gpu2", "gpu3"]], "both at once"


def test_a_policy_spreads_models_over_devices() -> None:
    for packing, expected in ((Packing.PACK, ["gpu0", "gpu0"]), (Packing.SPREAD, ["gpu0", "gpu1"])):
        yard = Yard(gpu("gpu0"), gpu("gpu1"))
        both = [yard.load(model, 40, placement=packing) for model in ("a", "b")]
        assert [yard.instance(key).placement[0].device for key in both] == expected
