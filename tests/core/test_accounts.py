"""Single entries of the accounts and of what is told: observed bytes, gaps, back-off, messages."""

from __future__ import annotations

from core.yard import Yard, gpu, of, refused, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.memory import DeviceLedger
from modelyard.core.types import Cause, Charge, Policy


def test_bytes_observed_beyond_the_reservation_lower_what_is_free() -> None:
    yard = Yard()
    a = yard.load("a", 60)
    yard.do(ev.Observed(yard.instance(a).id, {"gpu0": 75, "unknown": 5}))
    assert yard.state.ledger.devices["gpu0"].free == 25


def test_bytes_observed_while_it_starts_count_until_they_are_released() -> None:
    yard = Yard()
    a = yard.add("a", 60)
    yard.ask("r", a)
    starting, account = yard.instance(a), yard.state.ledger.devices["gpu0"]
    yard.do(ev.Observed(starting.id, {"gpu0": 80}))
    yard.failed(a)
    assert account.free == 20
    yard.released(a)
    assert account.free == 100


def test_bytes_observed_when_ready_count() -> None:
    yard = Yard()
    a = yard.add("a", 60)
    yard.ask("r", a)
    yard.ready(a, gpu0=70)
    assert yard.state.ledger.devices["gpu0"].free == 30


def test_missing_bytes_add_to_what_is_foreign_already() -> None:
    yard = Yard()
    a = yard.load("a", 60)
    yard.seen("gpu0", free=30)
    yard.do(ev.UnloadAsked(a))
    yard.released(a, gpu0=1)
    assert yard.state.ledger.devices["gpu0"].foreign == 11


def test_nothing_missing_is_no_gap() -> None:
    yard = Yard()
    a = yard.load("a", 60)
    yard.do(ev.UnloadAsked(a))
    assert [note.kind for note in of(ac.Note, yard.released(a, gpu0=0))] == ["gone"]


def test_the_excess_of_two_instances_adds_up_and_goes_with_each() -> None:
    account = DeviceLedger(gpu(size=100))
    account.reserve("a", Charge("gpu0", 20))
    account.reserve("b", Charge("gpu0", 20))
    account.observe("a", 25)
    account.observe("b", 27)
    assert (account.excess, account.free) == (12, 48)
    account.free_up("a")
    assert (account.excess, account.free) == (7, 73)


def test_who_holds_nothing_has_nothing_and_cannot_be_shrunk() -> None:
    account = DeviceLedger(gpu(size=100))
    account.shrink("ghost", 0)
    assert (account.reserved, account.excess, account.holders()) == (0, 0, [])
    assert (account.own("ghost"), account.holds("ghost")) == (0, (0, 0))


def test_a_longer_keep_alive_by_a_new_policy_still_ends() -> None:
    yard = Yard()
    a = yard.load("a", keep_alive=10.0, min_residency=0.0)
    yard.do(ev.PolicyChanged(a, Policy(keep_alive=30.0, min_residency=0.0)))
    assert stopped(yard.pass_time(29.9)) == []
    assert stopped(yard.pass_time(0.2)) == ["a"]


def test_a_crash_after_a_success_backs_off_for_no_time() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r1", a)
    yard.failed(a)
    yard.released(a)
    yard.pass_time(1.0)
    yard.ready(a)
    yard.finish("r1")
    only = yard.instance(a)
    yard.do(ev.Exited(only.id, only.generation, Cause.CRASHED))
    assert yard.version(a).backoff_until == yard.now
    yard.released(a)
    assert started(yard.ask("r2", a)) == ["a"]


def test_a_ready_instance_that_fails_for_good_failed_and_did_start() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("runs", a)
    yard.ask("waits", a)
    only = yard.instance(a)
    out = yard.do(ev.Exited(only.id, only.generation, Cause.BAD_MODEL, "torn file"))
    assert of(ac.Refuse, out)[0].message == "a failed: bad_model: torn file"
    assert of(ac.Cut, out) == [ac.Cut("runs", only.id, "engine_died", f"{only.id} failed: bad_model")]


def test_a_release_tells_the_load_cap_that_passed() -> None:
    yard = Yard()
    yard.ask("r", yard.add("a", load_cap=20.0))
    (release,) = of(ac.Release, yard.pass_time(20.0))
    assert release.reason == "start_deadline: not ready within load_cap 20 s"


def test_a_broken_promise_tells_the_wait_and_not_the_moment() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("runs", a)
    yard.pass_time(50.0)
    yard.ask("waits", a, max_wait=7.0)
    (refuse,) = of(ac.Refuse, yard.pass_time(7.0))
    assert (refuse.code, refuse.message) == ("broken_promise", "a was not ready within 7 s")


def test_the_longest_wait_counts_from_the_arrival() -> None:
    yard = Yard()
    yard.load("a", min_residency=0.0)
    b = yard.add("b")
    yard.version(b).load_seconds = 20.0
    yard.pass_time(100.0)
    assert refused(yard.ask("r", b, max_wait=10.0)) == {"r": "wait_too_long"}
