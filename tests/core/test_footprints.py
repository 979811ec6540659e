"""Memory that is shared or not known yet: mapped files, and footprints that nobody measured."""

from __future__ import annotations

import pytest

from core.yard import DIGEST, Yard, gpu, need, ram, refused, started, stopped
from modelyard.core import events as ev
from modelyard.core.types import Need, Share, WhenFull

# -- files mapped by several


def mapped(own: int, **files: int) -> Need:
    return Need((Share("ram", own, files),))


def test_a_mapped_file_is_charged_once_while_anybody_maps_it() -> None:
    yard = Yard(ram(150))
    a, b = yard.load("a", mapped(10, weights=100)), yard.load("b", mapped(10, weights=100))
    account = yard.state.ledger.devices["ram"]
    assert account.reserved == 120
    yard.do(ev.UnloadAsked(a))
    yard.released(a)
    assert account.reserved == 110
    yard.do(ev.UnloadAsked(b))
    yard.released(b)
    assert account.reserved == 0


def test_a_victims_mapped_file_counts_as_room() -> None:
    yard = Yard(ram(120))
    a = yard.load("a", mapped(10, first=100), min_residency=0.0)
    b = yard.add("b", mapped(10, second=100))
    assert stopped(yard.ask("r", b)) == ["a"]
    assert started(yard.released(a)) == ["b"]


def test_a_file_that_leaves_with_its_victim_is_charged_again() -> None:
    yard = Yard(ram(120))
    yard.load("a", mapped(15, weights=100), min_residency=0.0)
    b = yard.add("b", mapped(30, weights=100))
    yard.ask("r", b)
    assert stopped(yard.log) == []
    assert refused(yard.log) == {"r": "never_fits"}


def test_two_starts_in_one_pass_do_not_share_the_bytes_of_their_files() -> None:
    yard = Yard(ram(150))
    a, b = yard.add("a", mapped(10, one=100), cached=False), yard.add("b", mapped(10, two=100))
    yard.seen("ram", free=0, total=150)
    yard.ask("r1", b)
    yard.ask("r2", a)
    yard.do(ev.Cached(a, mapped(10, one=100)))
    assert started(yard.seen("ram", free=150, total=150)) == ["b"]


# -- what is not measured


@pytest.mark.parametrize(("ready", "foreign"), [(True, 30), (False, 40)])
def test_memory_of_others_is_seen_to_leave_beside_one_that_is_loaded(ready: bool, foreign: int) -> None:
    yard = Yard()
    a = yard.add("a", 60)
    yard.seen("gpu0", free=60)
    yard.do(ev.LoadAsked(a))
    if ready:
        yard.ready(a)
    yard.seen("gpu0", free=10)
    assert yard.state.ledger.devices["gpu0"].foreign == foreign, "what starts may not have all of its own yet"


# -- unknown footprints


UNKNOWN = need(20, known=False)


def test_an_unknown_footprint_takes_what_is_free_and_shrinks_to_what_it_used() -> None:
    yard = Yard(gpu(size=100), gpu("gpu1", 300))
    new = yard.add("new", UNKNOWN)
    assert started(yard.ask("n", new)) == ["new"]
    assert yard.instance(new).placement[0].device == "gpu1", "the emptiest device"
    assert yard.state.ledger.devices["gpu1"].free == 0
    yard.ready(new, gpu1=45)
    assert yard.state.ledger.devices["gpu1"].reserved == 45


def test_nothing_starts_where_a_footprint_is_learned() -> None:
    yard = Yard()
    new, known = yard.add("new", UNKNOWN), yard.add("known", 30)
    yard.ask("n", new)
    assert started(yard.ask("k", known)) == []
    assert started(yard.ready(new, gpu0=45)) == ["known"]


def test_not_even_a_start_that_costs_nothing() -> None:
    yard = Yard(gpu("gpu0", 100), gpu("gpu1", 100))
    nothing = yard.add("nothing", 0)
    for number in range(2):
        yard.ask(f"n{number}", yard.add(f"new{number}", UNKNOWN))
    assert started(yard.ask("s", nothing)) == []


def test_an_unknown_footprint_waits_until_nothing_else_starts_on_its_device() -> None:
    yard = Yard()
    known, new = yard.add("known", 30), yard.add("new", UNKNOWN)
    yard.ask("k", known)
    assert started(yard.ask("n", new)) == []
    assert started(yard.ready(known)) == ["new"]


def test_an_unknown_footprint_waits_for_the_starts_on_every_device() -> None:
    yard = Yard(gpu("gpu0", 60), gpu("gpu1", 60))
    for number in range(2):
        yard.ask(f"k{number}", yard.add(f"known{number}", 40))
    new = yard.add("new", UNKNOWN)
    assert started(yard.ask("n", new)) == [], "each has its 20 left"
    assert started(yard.ready("known0@000000000000")) == ["new"]


def test_footprints_are_learned_on_two_devices_at_once() -> None:
    yard = Yard(gpu("gpu0", 100), gpu("gpu1", 90), gpu("gpu2", 80))
    first, second, third = (yard.add(name, UNKNOWN) for name in ("first", "second", "third"))
    assert started(yard.ask("1", first)) == ["first"]
    assert started(yard.ask("2", second)) == ["second"]
    placed = [yard.instance(key).placement[0].device for key in (first, second)]
    assert placed == ["gpu0", "gpu1"]
    assert started(yard.ask("k", yard.add("known", 60))) == ["known"], "gpu2 learns nothing"
    assert started(yard.ask("3", third)) == [], "something starts on each of them"
    assert started(yard.ready(first, gpu0=70)) == ["third"]


def test_who_waits_for_a_footprint_to_be_learned_is_not_refused_and_puts_nobody_out() -> None:
    yard = Yard(gpu("gpu0", 100), gpu("gpu1", 90))
    yard.load("idle", 80, min_residency=0.0)
    new = yard.add("new", UNKNOWN)
    assert started(yard.ask("n", new)) == ["new"]
    assert yard.instance(new).placement[0].device == "gpu0"
    out = yard.ask("w", yard.add("waits", 50))
    out += yard.ask("f", yard.add("fails", 40, when_full=WhenFull.FAIL))
    assert (started(out), stopped(out), refused(out)) == ([], [], {})
    assert started(yard.ready(new, gpu0=10)) == ["waits", "fails"]


def test_a_version_kept_off_the_device_that_learns_puts_others_out_as_ever() -> None:
    yard = Yard(gpu("gpu0", 100), gpu("gpu1", 90))
    yard.load("idle", 80, min_residency=0.0)
    yard.ask("n", yard.add("new", UNKNOWN))
    assert stopped(yard.ask("w", yard.add("waits", 50, devices=("gpu1",)))) == ["idle"]


def test_a_home_model_does_not_come_back_where_a_footprint_is_learned() -> None:
    yard = Yard(gpu(size=100))
    yard.ask("n", yard.add("new", UNKNOWN))
    yard.add("home", 0, home=True)
    assert started(yard.pass_time(30.0)) == []


def test_a_known_footprint_keeps_its_reservation_though_less_was_used() -> None:
    yard = Yard()
    a = yard.add("a", 60)
    yard.ask("r", a)
    yard.ready(a, gpu0=45)
    assert yard.state.ledger.devices["gpu0"].reserved == 60


def test_who_is_to_be_measured_waits_for_its_patience_and_no_longer() -> None:
    """Else somebody would always be starting where others come and go."""
    yard = Yard()
    loading = yard.add("loading", 20)
    yard.ask("r", loading)
    unknown = yard.add("unknown", need(20, known=False), patience=5.0)
    yard.ask("x", unknown)
    assert started(yard.ask("y", yard.add("second", 20))) == ["second"]
    yard.pass_time(6.0)
    assert started(yard.ask("z", yard.add("third", 20))) == []
    yard.ready(loading)
    assert started(yard.ready(f"second@{DIGEST}")) == ["unknown"]
    assert yard.states(f"third@{DIGEST}") == []
    assert started(yard.ready(unknown, gpu0=20)) == ["third"]
