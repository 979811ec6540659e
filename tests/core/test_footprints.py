"""Memory that is shared or not known yet: mapped files, and footprints that nobody measured."""

from __future__ import annotations

from core.yard import Yard, gpu, need, ram, refused, started, stopped
from modelyard.core import events as ev
from modelyard.core.types import Need, Share

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


# -- unknown footprints


def test_an_unknown_footprint_starts_alone_takes_what_is_free_and_shrinks_to_what_it_used() -> None:
    yard = Yard(gpu(size=100), gpu("gpu1", 300))
    new = yard.add("new", need(20, known=False))
    other = yard.add("other", 30)
    assert started(yard.ask("n", new)) == ["new"]
    assert yard.instance(new).placement[0].device == "gpu1", "the emptiest device"
    assert yard.state.ledger.devices["gpu1"].free == 0
    assert started(yard.ask("o", other)) == []
    assert started(yard.ready(new, gpu1=45)) == ["other"]
    assert yard.state.ledger.devices["gpu1"].reserved == 45


def test_an_unknown_footprint_waits_until_nothing_else_starts() -> None:
    yard = Yard(gpu(size=100), gpu("gpu1", 100))
    known, new = yard.add("known", 30), yard.add("new", need(20, known=False))
    yard.ask("k", known)
    assert started(yard.ask("n", new)) == []
    assert started(yard.ready(known)) == ["new"]
