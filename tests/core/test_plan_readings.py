"""What a plan rests on, in words; what of it changed; and the copy that it is made on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from core.test_planned_stories import A, B, facts, planned, told, yard
from core.yard import Yard, gpu, need, spec
from modelyard.core import dryrun
from modelyard.core import events as ev
from modelyard.core.copying import copy_of
from modelyard.core.invariants import check
from modelyard.core.plan import changed
from modelyard.core.types import Cause, Need, OutcomeKind, Policy, Priority, Share, WhenFull

__all__ = ["yard"]

Change = Callable[[Yard], object]
CHANGES: dict[str, Change] = {
    "the server: was open, is shutting down": lambda yard: yard.do(ev.ShutdownAsked()),
    "version of b: was b@000000000000, is unknown": lambda yard: yard.do(ev.Removed(B)),
    "policy of b: was as by default, is patience 1.0": lambda yard: yard.do(
        ev.PolicyChanged(B, Policy(patience=1.0))
    ),
    "footprint of b: was 60 bytes on accelerator, is 50 bytes on accelerator": lambda yard: yard.do(
        ev.Learned(B, need(50))
    ),
    "a load of b: was not asked for, is asked for": lambda yard: yard.do(ev.LoadAsked(B)),
    "waiting for b: was nobody, is somebody": lambda yard: yard.ask("r1", B),
    "a-1: was idle, is busy": lambda yard: yard.ask("r1", A),
    "a-1: was idle, is leaving": lambda yard: yard.do(ev.UnloadAsked(A)),
    "room for b: was none while everybody stays, is on gpu1": lambda yard: yard.do(
        ev.DeviceAdded(gpu("gpu1"))
    ),
    "who leaves first for b: was a-1, is none": lambda yard: yard.do(ev.PolicyChanged(A, Policy(pin=True))),
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_has_changed_is_named(yard: Yard, said: str) -> None:
    made = planned(yard, ev.LoadAsked(B))
    CHANGES[said](yard)
    assert said in [str(change) for change in changed(made, yard.scheduler, yard.now)]


def test_a_start_that_failed_is_named(yard: Yard) -> None:
    yard.do(ev.UnloadAsked(A))
    yard.released(A)
    made = planned(yard, ev.LoadAsked(B))
    yard.do(ev.LoadAsked(B))
    yard.failed(B, Cause.BAD_MODEL, "as told")
    yard.released(B)
    said = [str(change) for change in changed(made, yard.scheduler, yard.now)]
    assert said[0] == "starts of b: was possible, is backing off: b did not start: bad_model: as told"


def test_who_is_in_line_before_is_named(yard: Yard) -> None:
    c = yard.add("c", 70)
    made = planned(yard, ev.LoadAsked(B))
    yard.ask("r0", A)
    yard.ask("r1", c)
    said = [str(change) for change in changed(made, yard.scheduler, yard.now)]
    assert f"in line before b: was none, is {c}" in said


def test_those_elsewhere_are_not_in_line_before() -> None:
    yard = Yard(gpu("gpu0"), gpu("gpu1"))
    yard.load("a", 60, devices=("gpu0",))
    yard.load("d", 60, devices=("gpu1",), pin=True)
    c, b = yard.add("c", 60, devices=("gpu1",)), yard.add("b", 60, devices=("gpu0",))
    yard.pass_time(3.0)
    made = planned(yard, ev.LoadAsked(b))
    yard.ask("r1", c)
    yard.ask("r2", "d@000000000000")
    assert changed(made, yard.scheduler, yard.now) == []


def test_the_order_is_read_up_to_the_last_victim() -> None:
    yard = Yard(gpu(size=130))
    keys = [yard.load(model, 40) for model in ("a", "b", "c")]
    yard.pass_time(3.0)
    for number, key in enumerate(keys):
        for turn in range(number):
            yard.ask(f"{key}{turn}", key)
            yard.finish(f"{key}{turn}")
    d = yard.add("d", 70)
    made = planned(yard, ev.LoadAsked(d))
    assert [step.instance for step in made.steps if step.does is dryrun.Does.LEAVE] == ["a-1", "b-2"]
    assert facts(made)["who leaves first for d"] == "a-1, then b-2"
    assert "c-3" not in facts(made)
    yard.ask("r1", keys[2])
    assert changed(made, yard.scheduler, yard.now) == []


def test_time_and_a_little_memory_of_others_change_nothing_by_themselves() -> None:
    yard = Yard(gpu(size=130))
    for model, uses in (("a", 1), ("c", 3)):
        key = yard.load(model, 60)
        for turn in range(uses):
            yard.ask(f"{model}{turn}", key)
            yard.finish(f"{model}{turn}")
    b = yard.add("b", 60)
    yard.pass_time(3.0)
    made = planned(yard, ev.LoadAsked(b))
    yard.pass_time(400.0)
    yard.seen("gpu0", free=7, total=130)
    assert yard.state.ledger.devices["gpu0"].foreign == 3
    assert changed(made, yard.scheduler, yard.now) == []
    yard.seen("gpu0", free=-100, total=130)
    (change, *_) = changed(made, yard.scheduler, yard.now)
    assert str(change) == "room for b then: was on gpu0, is none"


def test_memory_that_is_on_its_way_back_is_read(yard: Yard) -> None:
    made = planned(yard, ev.LoadAsked(B, evict=False))
    yard.do(ev.UnloadAsked(A))
    said = [str(change) for change in changed(made, yard.scheduler, yard.now)]
    assert said == ["room for b then: was none, is on gpu0"]


def test_nothing_expected_any_more_is_named() -> None:
    yard = Yard()
    key = yard.add("a", 60)
    made = planned(yard, ev.LoadAsked(key))
    yard.version(key).load_seconds = 200.0
    (change,) = changed(made, yard.scheduler, yard.now)
    assert str(change) == f"what follows, step 2: was ready {key} on gpu0 (60 bytes), is fail {key}"


def test_when_full_wait_reads_everybody_there(yard: Yard) -> None:
    yard.do(ev.PolicyChanged(B, Policy(when_full=WhenFull.WAIT)))
    made = planned(yard, ev.LoadAsked(B))
    assert facts(made)["a-1"] == "idle"
    assert facts(made)["waiting for a"] == "nobody"


class TestReadings:
    """Everything that is read, in words, of a yard with a model that is split over two busy devices."""

    @pytest.fixture
    def wide(self) -> Yard:
        yard = Yard(gpu("gpu0"), gpu("gpu1"))
        shares = Share("accelerator", 60), Share("accelerator", 50, {"file": 20})
        yard.add("split", Need(shares), patience=1.0, max_replicas=2)
        a = yard.load("a", 60, slots=2, devices=("gpu0",))
        c = yard.load("c", 70, devices=("gpu1",))
        for request, key in (("r1", a), ("r2", a), ("r3", c), ("r4", c)):
            yard.ask(request, key)
        yard.pass_time(3.0)
        return yard

    def test_of_a_load(self, wide: Yard) -> None:
        made = planned(wide, ev.LoadAsked("split@000000000000"))
        assert [str(each) for each in made.preconditions] == [
            "the server: open",
            "version of split: split@000000000000",
            "policy of split: max_replicas 2, patience 1.0",
            "files of split: cached",
            "footprint of split: 60 bytes on accelerator, 70 bytes on accelerator",
            "starts of split: possible",
            "room for split: none while everybody stays (gpu0 has 40 bytes free, gpu1 has 30 bytes free)",
            "room for split then: none (without those that leave already)",
            "in line before split: none",
            "instances of split: none",
            "a load of split: not asked for",
            "waiting for split: nobody",
            "a-1: busy (runs r1, r2)",
            "waiting for a: nobody",
            "a load of a: not asked for",
            "c-2: busy (runs r3)",
            "waiting for c: somebody (1 in its queue)",
            "a load of c: not asked for",
            "who leaves first for split: a-1, then c-2",
            "room for split then: on gpu0, gpu1 (without a-1, c-2)",
        ]

    def test_of_a_request_while_a_footprint_is_learned(self, wide: Yard) -> None:
        d = wide.add("d", need(30, known=False), priority=Priority.LOW, pin=True)
        wide.ask("r5", d)
        wide.ask("r6", d)
        made = planned(wide, ev.Arrived("planned", "split@000000000000", Priority.LOW, 7.0))
        told = [str(each) for each in made.preconditions]
        assert told[2:4] == [
            "free slot of split: none",
            "a request for split: may wait (expected wait 3.0 s, at most 7 s)",
        ]
        assert told[-3:] == [
            "room for split then: none (without a-1, c-2)",
            "d-3: starting",
            "waiting for d: somebody (2 in its queue)",
        ]

    def test_of_an_unload_and_a_device(self, wide: Yard) -> None:
        wide.add("h", 90, home=True)
        wide.ask("r7", "split@000000000000")
        made = planned(wide, ev.UnloadAsked("a@000000000000"), ev.DeviceAdded(gpu("gpu1", 120)))
        told = [str(each) for each in made.preconditions]
        assert told[:3] == [
            "the server: open",
            "device gpu1: budget 100 bytes",
            "in line for memory: split@000000000000, h@000000000000 (home)",
        ]
        claims = "split@000000000000, h@000000000000 (home)"
        assert f"in line for memory that a may use: {claims}" in told

    def test_of_what_is_not_as_usual(self, wide: Yard) -> None:
        absent = wide.add("absent", 60, cached=False)
        assert facts(planned(wide, ev.LoadAsked(absent)))["footprint of absent"] == (
            "not known before its files are here"
        )
        d = wide.add("d", need(30, known=False))
        assert facts(planned(wide, ev.LoadAsked(d)))["footprint of d"] == (
            "30 bytes on accelerator, never measured"
        )
        a = "a@000000000000"
        wide.do(ev.Removed(a))
        removed = facts(planned(wide, ev.UnloadAsked(a)))
        assert removed["version of a"] == "being removed"
        assert (removed["instances of a"], removed["a-1"]) == ("a-1 leaving", "leaving, busy")

    def test_of_one_that_backs_off(self) -> None:
        yard = Yard()
        key = yard.add("a", 60)
        yard.ask("r1", key)
        yard.failed(key)
        yard.released(key)
        assert facts(planned(yard, ev.LoadAsked(key)))["starts of a"] == "backing off: a start failed"
        yard.do(ev.Cancelled("r1"))
        yard.pass_time(0.5)
        assert facts(planned(yard, ev.LoadAsked(key)))["starts of a"] == "possible"

    def test_patience_under_another_policy(self, yard: Yard) -> None:
        for request in ("r1", "r2", "r3"):
            yard.ask(request, A)
        yard.pass_time(0.5)
        for patience, value in ((0.0, "over"), (0.5, "over"), (0.6, "not over")):
            policy = Policy(max_replicas=2, patience=patience)
            (read,) = [
                each
                for each in planned(yard, ev.PolicyChanged(A, policy)).preconditions
                if each.name == "patience of who waits for a"
            ]
            assert (read.value, read.note) == (value, f"of {patience:g} s")

    def test_a_policy_that_nothing_follows_from_reads_its_version_alone(self, yard: Yard) -> None:
        keys = [yard.add(f"m{number}", 10) for number in range(30)]
        made = planned(yard, ev.Changed(tuple(ev.PolicyChanged(key, Policy(pin=True)) for key in keys)))
        assert made.steps == ()
        assert len(made.preconditions) <= 1 + len(keys)
        assert facts(made)["version of m7"] == keys[7]
        yard.ask("r1", keys[7])
        (course,) = changed(made, yard.scheduler, yard.now)
        assert str(course) == "what follows, step 1: was nothing, is ready m7-2 on gpu0 (10 bytes)"
        yard.do(ev.Removed(keys[8]))
        (gone,) = changed(made, yard.scheduler, yard.now)
        assert gone.name == "version of m8"

    def test_a_wish_that_waits_reads_everybody_there(self, yard: Yard) -> None:
        yard.ask("r1", A)
        new = spec("new")
        made = planned(yard, ev.Added(new, Policy(min_replicas=1), need(50)))
        assert facts(made)["who leaves first for new"] == "a-1"
        assert facts(made)["waiting for a"] == "nobody"
        assert facts(made)["in line before new"] == "none"


class TestBounds:
    def test_the_horizon(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dryrun, "HORIZON", 10.0)
        yard.do(ev.PolicyChanged(A, Policy(pin=True)))
        made = planned(yard, ev.LoadAsked(B))
        assert made.steps == ()
        assert made.open[0].startswith("what comes later than ")
        assert made.open[0].endswith(" events, was not looked at")

    def test_the_horizon_is_counted_from_now(self, yard: Yard) -> None:
        yard.do(ev.PolicyChanged(A, Policy(home=True)))
        yard.pass_time(2 * dryrun.HORIZON)
        made = planned(yard, ev.LoadAsked(B))
        assert (told(made)[-1], made.open) == ((1.5, "loaded", "b"), ())

    @pytest.mark.parametrize(("name", "bound", "last"), [("EVENTS", 1, "start"), ("STEPS", 1, "leave")])
    def test_events_and_steps(
        self, yard: Yard, monkeypatch: pytest.MonkeyPatch, name: str, bound: int, last: str
    ) -> None:
        monkeypatch.setattr(dryrun, name, bound)
        made = planned(yard, ev.LoadAsked(B))
        assert made.steps[-1].does.value == last
        assert len(made.open) == 1
        monkeypatch.setattr(dryrun, name, {"EVENTS": 2, "STEPS": 5}[name])
        assert planned(yard, ev.LoadAsked(B)).open == ()

    def test_without_later_only_what_is_decided_at_once_is_compared(self, yard: Yard) -> None:
        yard.ask("r1", A)
        made = planned(yard, ev.Arrived("planned", B, max_wait=3.0))
        assert told(made)[-1] == (2.5, "grant", "b")
        yard.version(A).service_seconds = 2.0
        (change,) = changed(made, yard.scheduler, yard.now)
        assert change.name == "what follows, step 4"
        assert (change.was, change.now) == (f"ready {B} on gpu0 (60 bytes)", f"refuse {B} broken_promise")
        assert changed(made, yard.scheduler, yard.now, later=False) == []


# -- the copy -------------------------------------------------------------------------------------------


def _parts(thing: object) -> Iterator[object]:
    """What can be reached from a thing, without going into values that never change."""
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset) or type(thing).__name__ == "deque":
        yield from thing  # type: ignore[misc]
    else:
        for kind in type(thing).__mro__:
            yield from (
                getattr(thing, name) for name in getattr(kind, "__slots__", ()) if hasattr(thing, name)
            )
        yield from vars(thing).values() if hasattr(thing, "__dict__") else ()


def _changing(root: object) -> dict[int, object]:
    """Everything that may change, by identity: events' values and what is frozen is left out."""
    found: dict[int, object] = {}
    todo = [root]
    while todo:
        thing = todo.pop()
        frozen = getattr(getattr(thing, "__dataclass_params__", None), "frozen", False)
        if id(thing) in found or frozen or isinstance(thing, str | int | float | bool | type(None) | type):
            continue
        if callable(thing):
            continue
        if not isinstance(thing, tuple | frozenset):
            found[id(thing)] = thing
        todo.extend(_parts(thing))
    return found


def test_a_copy_shares_nothing_that_changes(yard: Yard) -> None:
    for request in ("r1", "r2", "r3"):
        yard.ask(request, A)
    yard.ask("r4", B)
    original, copied = yard.scheduler, copy_of(yard.scheduler)
    check(copied)
    mine = _changing([original.state, original.sums])
    both = mine.keys() & _changing([copied.state, copied.sums]).keys()
    assert [mine[each] for each in both] == []
    assert len(mine) > 40, "it was looked through"


@pytest.mark.parametrize("gone", [ev.UnloadAsked(A, now=True), ev.Removed(A)])
def test_a_copy_keeps_leases_of_what_is_gone(yard: Yard, gone: ev.Event) -> None:
    yard.ask("r1", A)
    yard.do(gone)
    yard.do(ev.UnloadAsked(A, now=True))
    yard.released(A)
    copied = copy_of(yard.scheduler)
    assert copied.state.leases["r1"].instance.id == "a-1"
    lease = yard.state.leases["r1"]
    copied.handle(ev.Finished("r1", "a-1", lease.generation, OutcomeKind.CUT), yard.now)
    assert "r1" in yard.state.leases
