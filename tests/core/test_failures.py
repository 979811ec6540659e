"""Attempts and starts that fail: retries, suspects, strikes, back-off, what the waiting are told."""

from __future__ import annotations

import pytest

from core.yard import Yard, gpu, granted, need, of, ram, refused, started
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.types import Cause, Charge, Device, DeviceKind, Need, OutcomeKind, Share

# -- failed attempts


def two(yard: Yard) -> tuple[str, str, str]:
    a = yard.load("a", slots=2, max_replicas=2, patience=0.0)
    for name in ("x1", "x2", "x3"):
        yard.ask(name, a)
    yard.ready(a)
    for name in ("x1", "x2", "x3"):
        yard.finish(name)
    first, second = yard.instances(a)
    return a, first.id, second.id


def test_a_retry_is_never_granted_the_instance_that_failed_it() -> None:
    yard = Yard(gpu(size=200))
    a, first, second = two(yard)
    for number in range(4):
        yard.ask(f"r{number}", a, exclude={first})
        if number < 2:
            assert yard.holder(f"r{number}") == second
    assert yard.holder("r2") is None
    assert granted(yard.finish("r0")) == ["r2"]
    assert yard.holder("r2") == second


def test_a_request_that_may_take_any_instance_passes_one_that_may_not() -> None:
    yard = Yard(gpu(size=200))
    a, first, _ = two(yard)
    for number in range(3):
        yard.ask(f"r{number}", a, exclude={first})
    yard.ask("any", a)
    assert yard.holder("any") == first


def test_no_alternative_is_said_when_the_only_instance_failed_the_request() -> None:
    yard = Yard()
    a = yard.load("a")
    only = yard.instance(a).id
    message = "a has no other instance to try"
    assert yard.ask("r", a, exclude={only}) == [ac.Refuse("r", "no_alternative", message)]


def test_a_failed_attempt_makes_its_instance_suspect_until_a_probe_answers() -> None:
    yard = Yard()
    a = yard.load("a", slots=2)
    only = yard.instance(a)
    yard.ask("r1", a)
    out = yard.finish("r1", OutcomeKind.DIED)
    assert of(ac.Probe, out) == [ac.Probe(only.id, 1)]
    assert granted(yard.ask("r2", a)) == [], "no new leases meanwhile"
    assert refused(yard.ask("again", a, exclude={only.id}, since=0.0)) == {}
    out = yard.do(ev.Probed(only.id, 1, alive=True))
    assert granted(out) == ["r2"]
    assert refused(out) == {"again": "no_alternative"}


def test_a_suspect_that_does_not_answer_is_replaced() -> None:
    yard = Yard()
    a = yard.load("a")
    only = yard.instance(a)
    yard.ask("r1", a)
    yard.finish("r1", OutcomeKind.UNREACHABLE)
    yard.ask("again", a, exclude={only.id}, since=0.0)
    out = yard.do(ev.Probed(only.id, 1, alive=False))
    assert [(r.instance, r.generation) for r in of(ac.Release, out)] == [(only.id, 2)]
    assert started(yard.released(a)) == ["a"]
    assert granted(yard.ready(a)) == ["again"]


@pytest.mark.parametrize(
    ("reachable", "said"),
    [(True, "hung: its health check does not answer"), (False, "crashed: it takes no connections any more")],
)
def test_a_condemned_suspect_is_said_to_be_hung_only_if_it_takes_connections(
    reachable: bool, said: str
) -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("r", a)
    yard.finish("r", OutcomeKind.UNREACHABLE)
    out = yard.do(ev.Probed(yard.instance(a).id, 1, alive=False, reachable=reachable))
    assert [release.reason for release in of(ac.Release, out)] == [said]


def test_a_silent_instance_gets_no_new_leases_until_a_probe_answers_and_no_strike() -> None:
    yard = Yard()
    a = yard.load("a", slots=2)
    only = yard.instance(a)
    yard.ask("silent", a)
    assert yard.do(ev.Doubted(only.id, 1)) == [ac.Probe(only.id, 1)]
    assert yard.do(ev.Doubted(only.id, 1)) == [], "one probe is under way"
    assert (only.suspect, only.strikes) == (True, 0)
    assert granted(yard.ask("next", a)) == []
    out = yard.do(ev.Probed(only.id, 1, alive=True))
    assert (granted(out), of(ac.Cut, out)) == (["next"], [])
    assert yard.holder("silent") == only.id
    assert yard.do(ev.Doubted(only.id, 1)) == [ac.Probe(only.id, 1)], "it may be doubted again"


def test_a_silent_instance_that_does_not_answer_its_probe_is_replaced_and_its_requests_are_cut() -> None:
    yard = Yard()
    a = yard.load("a")
    only = yard.instance(a)
    yard.ask("silent", a)
    yard.do(ev.Doubted(only.id, 1))
    out = yard.do(ev.Probed(only.id, 1, alive=False))
    assert [(cut.request, cut.code) for cut in of(ac.Cut, out)] == [("silent", "engine_died")]
    assert [release.instance for release in of(ac.Release, out)] == [only.id]
    yard.finish("silent", OutcomeKind.DIED)
    yard.ask("silent", a, exclude={only.id}, since=0.0)
    assert started(yard.released(a)) == ["a"]
    assert granted(yard.ready(a)) == ["silent"]


def test_the_slot_of_who_left_a_silent_instance_is_not_granted_before_its_probe_answered() -> None:
    yard = Yard()
    a = yard.load("a")
    only = yard.instance(a)
    yard.ask("left", a)
    yard.ask("next", a)
    yard.do(ev.Doubted(only.id, 1))
    assert granted(yard.finish("left", OutcomeKind.CANCELLED)) == []
    assert granted(yard.do(ev.Probed(only.id, 1, alive=True))) == ["next"]


def test_three_strikes_in_a_row_condemn_and_a_success_clears_them() -> None:
    yard = Yard()
    a = yard.load("a", slots=4)
    only = yard.instance(a)

    def strike(name: str, outcome: OutcomeKind) -> None:
        yard.ask(name, a)
        yard.finish(name, outcome)
        if only.suspect:
            yard.do(ev.Probed(only.id, 1, alive=True))

    for name, outcome in [("1", OutcomeKind.DIED), ("2", OutcomeKind.DIED), ("3", OutcomeKind.DONE)]:
        strike(name, outcome)
    strike("4", OutcomeKind.PROTOCOL)
    strike("5", OutcomeKind.CANCELLED)
    strike("6", OutcomeKind.DIED)
    assert only.state.value == "ready"
    strike("7", OutcomeKind.DIED)
    assert only.state.value == "releasing"


def test_a_hang_without_any_success_since_condemns_at_once() -> None:
    yard = Yard()
    a = yard.load("a", slots=2)
    yard.ask("hangs", a)
    yard.ask("works", a)
    yard.pass_time(1.0)
    yard.finish("works")
    yard.finish("hangs", OutcomeKind.HUNG)
    assert yard.instance(a).state.value == "ready", "somebody got an answer meanwhile"
    yard.do(ev.Probed(yard.instance(a).id, 1, alive=True))
    yard.pass_time(1.0)
    yard.ask("hangs", a)
    yard.pass_time(1.0)
    yard.finish("hangs", OutcomeKind.HUNG)
    assert yard.instance(a).state.value == "releasing"


def test_a_hang_on_a_slot_that_a_success_handed_over_condemns_at_once() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("works", a)
    yard.ask("hangs", a)
    yard.pass_time(1.0)
    assert granted(yard.finish("works")) == ["hangs"]
    yard.pass_time(1.0)
    yard.finish("hangs", OutcomeKind.HUNG)
    assert yard.states(a) == ["releasing"]


def test_an_instance_that_leaves_is_no_alternative_to_the_one_that_failed() -> None:
    yard = Yard(gpu(size=200))
    a = yard.load("a")
    leaving = yard.instance(a).id
    yard.ask("runs", a)
    yard.do(ev.UnloadAsked(a))
    yard.ask("next", a)
    yard.ready(a)
    failed = yard.holder("next")
    assert failed not in (None, leaving)
    assert refused(yard.ask("again", a, exclude={str(failed)}, since=0.0)) == {"again": "no_alternative"}


# -- failed starts


def fail_starts(yard: Yard, key: str, causes: list[Cause]) -> tuple[float, bool]:
    """Starts fail, one after the other: the last one's back-off, and whether who waits was told."""
    delay, told = 0.0, False
    for cause in causes:
        told = bool(refused(yard.failed(key, cause)))
        delay = yard.version(key).backoff_until - yard.now
        yard.released(key)
        if not told:
            yard.pass_time(max(0.0, delay))
    return delay, told


CRASHED, KILLED, OOM = Cause.CRASHED, Cause.KILLED, Cause.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("causes", "delay", "told"),
    [
        ([CRASHED], 0.5, False),
        ([CRASHED, CRASHED], 1.0, True),
        ([KILLED, KILLED], 1.0, False),
        ([KILLED, KILLED, KILLED], 2.0, True),
        ([Cause.LAUNCH, Cause.LAUNCH], 1.0, False),
        ([OOM, KILLED], 1.0, False),
        ([OOM, CRASHED], 1.0, True),
        ([CRASHED, OOM, KILLED], 2.0, True),
        ([Cause.BAD_MODEL], 5.0, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_who_waits_is_told_after_two_failed_starts_or_three_from_outside(
    causes: list[Cause], delay: float, told: bool
) -> None:
    yard = Yard()
    a = yard.add("a", 40, max_wait=1000.0)
    yard.ask("r", a)
    assert fail_starts(yard, a, causes) == (delay, told)


def serve_once(yard: Yard, key: str) -> None:
    """Becomes ready, answers whoever waits for it, and is unloaded."""
    for request in granted(yard.ready(key)):
        yard.finish(request)
    yard.do(ev.UnloadAsked(key))
    yard.released(key)


@pytest.mark.parametrize("causes", [[CRASHED], [KILLED, KILLED]], ids=["its-own", "foreign"])
def test_an_instance_that_became_ready_ends_the_count_of_failed_starts(causes: list[Cause]) -> None:
    yard = Yard()
    a = yard.add("a", max_wait=1000.0)
    for request in ("r1", "r2"):
        yard.ask(request, a)
        _, told = fail_starts(yard, a, causes)
        assert not told
        serve_once(yard, a)


@pytest.mark.parametrize("causes", [[CRASHED], [KILLED, KILLED]], ids=["its-own", "foreign"])
def test_a_crash_of_what_served_is_no_failed_start(causes: list[Cause]) -> None:
    yard = Yard()
    a = yard.load("a", max_wait=1000.0)
    yard.ask("r", a)
    yard.do(ev.Exited(yard.instance(a).id, 1, causes[0]))
    yard.finish("r", OutcomeKind.DIED)
    yard.released(a)
    yard.ask("again", a)
    assert not fail_starts(yard, a, causes)[1]


def test_files_that_could_not_be_fetched_are_no_failed_start() -> None:
    yard = Yard()
    a = yard.add("a", cached=False)
    yard.ask("r", a)
    yard.do(ev.FetchFailed(a, "disk_full", "no space"))
    yard.pass_time(5.0)
    yard.ask("again", a)
    yard.do(ev.Cached(a, need(60)))
    assert not fail_starts(yard, a, [CRASHED])[1]


def test_files_that_were_lost_are_fetched_when_they_are_wanted() -> None:
    yard = Yard()
    a = yard.add("a")
    assert yard.do(ev.FilesLost(a)) == []
    assert of(ac.Fetch, yard.ask("r", a)) == [ac.Fetch(a)]
    assert of(ac.Start, yard.do(ev.Cached(a, need(60))))


def test_a_start_without_its_files_ends_and_they_are_fetched_for_who_waits() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    yard.do(ev.FilesLost(a))
    yard.failed(a, Cause.LAUNCH)
    yard.released(a)
    assert "r" in yard.state.waiting
    assert of(ac.Fetch, yard.pass_time(1.0)) == [ac.Fetch(a)]


def test_who_waits_is_told_of_files_that_are_not_what_they_were() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    out = yard.do(ev.FilesLost(a, "checksum_mismatch", "both digests"))
    assert refused(out) == {"r": "checksum_mismatch"}
    yard.failed(a, Cause.LAUNCH)
    yard.released(a)
    assert yard.pass_time(60.0) == []
    assert of(ac.Fetch, yard.ask("again", a)) == [ac.Fetch(a)]


def test_files_lost_by_one_in_line_are_fetched_at_once_and_what_it_owned_goes_to_those_behind() -> None:
    yard = Yard()
    yard.do(ev.UnloadAsked(yard.load("leaving", 60)))
    a, b = yard.add("a", 80), yard.add("b", 30)
    yard.ask("r1", a)
    assert started(yard.ask("r2", b)) == []
    out = yard.do(ev.FilesLost(a))
    assert (of(ac.Fetch, out), started(out)) == ([ac.Fetch(a)], ["b"])


def test_after_a_start_that_worked_the_next_that_runs_out_of_memory_is_retried_too() -> None:
    yard = Yard()
    a = yard.add("a", 40, max_wait=1000.0)
    for request, bytes_needed in (("r1", 50), ("r2", 62)):
        yard.ask(request, a)
        yard.failed(a, OOM)
        yard.released(a)
        assert yard.instance(a).placement == (Charge("gpu0", bytes_needed),)
        serve_once(yard, a)


def test_the_error_of_failed_starts_is_forgotten_when_one_works() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    assert fail_starts(yard, a, [CRASHED, CRASHED]) == (1.0, True)
    yard.pass_time(1.0)
    yard.ask("again", a)
    yard.ready(a)
    assert yard.version(a).last_error == ("", "")
    yard.do(ev.Exited(yard.instance(a).id, 1, CRASHED))
    yard.finish("again", OutcomeKind.DIED)
    yard.released(a)
    assert yard.version(a).backoff_until > yard.now
    assert refused(yard.ask("later", a)) == {}, "it waits for the next start"


def test_a_start_that_ran_out_of_memory_is_retried_once_with_more() -> None:
    yard = Yard()
    a = yard.add("a", 40)
    yard.ask("r", a)
    yard.failed(a, Cause.OUT_OF_MEMORY)
    assert yard.version(a).need == need(50)
    assert yard.instances(a)[-1].placement[0].bytes == 50
    assert yard.states(a) == ["releasing", "starting"]
    yard.released(a)
    assert refused(yard.failed(a, Cause.OUT_OF_MEMORY)) == {"r": "load_failed"}
    yard.released(a)
    assert started(yard.pass_time(1000.0)) == []


def test_the_start_after_out_of_memory_gets_more_than_the_first_was_seen_to_hold() -> None:
    yard = Yard()
    a = yard.add("a", 40)
    yard.ask("r", a)
    yard.seen("gpu0", free=40, **{yard.instance(a).id: 60})
    yard.failed(a, Cause.OUT_OF_MEMORY)
    assert yard.version(a).need == need(66), "a tenth more than the 60 it had, where a quarter is less"
    yard.released(a)
    assert yard.instance(a).placement == (Charge("gpu0", 66),)


def test_a_start_that_lost_its_memory_to_a_foreigner_waits_until_that_is_back() -> None:
    yard = Yard()
    a = yard.add("a", 40)
    yard.ask("r", a)
    yard.seen("gpu0", free=10, **{yard.instance(a).id: 0})
    assert refused(yard.failed(a, Cause.OUT_OF_MEMORY)) == {}
    assert yard.version(a).need == need(40), "it needs no more than it did"
    assert started(yard.released(a)) == []
    assert started(yard.pass_time(30.0)) == [], "there is no room yet"
    assert started(yard.seen("gpu0", free=100)) == ["a"]
    assert granted(yard.ready(a)) == ["r"]


def test_who_loses_its_memory_to_foreigners_each_time_may_need_more() -> None:
    yard = Yard()
    a = yard.add("a", 40)
    yard.ask("r", a)
    for _ in range(3):
        yard.seen("gpu0", free=10, **{yard.instance(a).id: 0})
        yard.failed(a, Cause.OUT_OF_MEMORY)
        assert yard.version(a).need == need(40)
        yard.released(a)
        yard.seen("gpu0", free=100)
    yard.seen("gpu0", free=10, **{yard.instance(a).id: 0})
    yard.failed(a, Cause.OUT_OF_MEMORY)
    assert yard.version(a).need == need(50)


def test_a_start_that_grew_beyond_its_budget_lost_nothing_to_others() -> None:
    yard = Yard(Device("gpu0", DeviceKind.DECLARED, total=100, budget=50))
    a = yard.add("a", 40)
    yard.ask("r", a)
    yard.seen("gpu0", free=40, **{yard.instance(a).id: 60})
    yard.failed(a, Cause.OUT_OF_MEMORY)
    assert yard.version(a).never is not None


def test_what_all_shares_held_counts_when_a_start_ran_out_of_memory() -> None:
    yard = Yard(gpu(size=100), ram(100))
    a = yard.add("a", Need((Share("accelerator", 30), Share("ram", 10, {"file": 20}))))
    yard.ask("r", a)
    yard.do(ev.Observed(yard.instance(a).id, {"gpu0": 45, "ram": 15}))
    yard.failed(a, Cause.OUT_OF_MEMORY)
    assert yard.version(a).need == Need((Share("accelerator", 49), Share("ram", 16, {"file": 20})))


def test_a_passing_failure_is_retried_and_then_told() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    assert refused(yard.failed(a, Cause.CRASHED)) == {}
    yard.released(a)
    assert started(yard.pass_time(0.4)) == []
    assert started(yard.pass_time(0.2)) == ["a"]
    assert refused(yard.failed(a, Cause.CRASHED, "the last line")) == {"r": "load_failed"}
    assert "the last line" in of(ac.Refuse, yard.log)[-1].message
    out = yard.ask("s", a)
    assert refused(out) == {"s": "load_failed"}
    assert of(ac.Refuse, out)[0].retry_after == 1.0
    yard.released(a)
    yard.pass_time(1.1)
    assert started(yard.ask("t", a)) == ["a"]


def test_a_permanent_failure_is_told_at_once() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    assert refused(yard.failed(a, Cause.BAD_MODEL)) == {"r": "cannot_load"}


def test_files_that_cannot_be_fetched_are_told_with_their_code() -> None:
    yard = Yard()
    a = yard.add("a", cached=False)
    yard.ask("r", a)
    out = yard.do(ev.FetchFailed(a, "disk_full", "no space"))
    assert refused(out) == {"r": "disk_full"}
    assert of(ac.Fetch, yard.pass_time(6.0)) == []
    assert of(ac.Fetch, yard.ask("s", a)) == [ac.Fetch(a)]


def test_files_of_a_model_that_is_kept_loaded_are_fetched_again_when_its_back_off_is_over() -> None:
    yard = Yard()
    a = yard.add("a", cached=False, min_replicas=1)
    assert of(ac.Fetch, yard.log) == [ac.Fetch(a)]
    yard.do(ev.FetchFailed(a, "disk_full", "no space"))
    assert of(ac.Fetch, yard.pass_time(4.9)) == []
    yard.now = yard.version(a).backoff_until
    assert of(ac.Fetch, yard.do(ev.Tick())) == [ac.Fetch(a)]


def test_a_start_that_takes_too_long_fails() -> None:
    yard = Yard()
    a = yard.add("a", load_cap=20.0)
    yard.ask("r", a)
    assert of(ac.Release, yard.pass_time(19.9)) == []
    assert len(of(ac.Release, yard.pass_time(0.2))) == 1


def test_back_off_is_bounded_however_often_a_start_fails() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.version(a).failures = 5000
    yard.ask("r", a)
    yard.failed(a)
    assert yard.version(a).backoff_until == 60.0


def test_a_crash_while_serving_is_replaced_at_once() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("r1", a)
    yard.ask("r2", a)
    only = yard.instance(a)
    out = yard.do(ev.Exited(only.id, 1, Cause.KILLED))
    assert [cut.code for cut in of(ac.Cut, out)] == ["engine_died"]
    yard.finish("r1", OutcomeKind.DIED)
    assert started(yard.released(a)) == ["a"]
    assert granted(yard.ready(a)) == ["r2"]


def test_bytes_that_do_not_come_back_are_foreign() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.do(ev.UnloadAsked(a))
    yard.released(a, gpu0=15, gone=3)
    account = yard.state.ledger.devices["gpu0"]
    assert (account.foreign, account.free) == (15, 85)
    yard.seen("gpu0", free=100)
    assert account.free == 100


def test_a_device_that_is_added_again_keeps_what_is_booked() -> None:
    yard = Yard()
    yard.load("a", 60)
    yard.do(ev.DeviceAdded(gpu("gpu0", 50)))
    assert yard.state.ledger.devices["gpu0"].reserved == 60
    assert yard.state.ledger.devices["gpu0"].free <= 0
