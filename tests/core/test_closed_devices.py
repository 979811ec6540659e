"""Devices that are lost, or fenced: who was there goes whole, and nothing comes until they are back."""

from __future__ import annotations

from core.yard import Yard, gpu, granted, need, of, ram, refused, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core import fencing
from modelyard.core.types import Cause, Need, Share


def pair(**policy: object) -> tuple[Yard, str]:
    """A model that is on one of two devices, each with room for it."""
    yard = Yard(gpu("gpu0"), gpu("gpu1"))
    return yard, yard.load("a", 60, **policy)


def where(yard: Yard, key: str) -> list[list[str]]:
    return [[charge.device for charge in each.placement] for each in yard.instances(key)]


def test_what_is_on_a_lost_device_goes_at_once_and_is_started_elsewhere() -> None:
    yard, a = pair()
    yard.ask("r1", a)
    out = yard.do(ev.DeviceLost("gpu0", "it fell off the bus"))
    (cut,), (release,) = of(ac.Cut, out), of(ac.Release, out)
    assert (cut.request, cut.code) == ("r1", "device_lost")
    assert "gpu0 is lost: it fell off the bus" in cut.message
    assert release.reason.startswith(Cause.DEVICE_LOST)
    assert started(yard.ask("r2", a)) == ["a"]
    assert where(yard, a) == [["gpu0"], ["gpu1"]]
    yard.ready(a)
    assert yard.holder("r2") is not None
    assert yard.version(a).failures == 0, "it says nothing of the model"


def test_a_model_over_several_devices_goes_whole() -> None:
    yard = Yard(gpu("gpu0"), gpu("gpu1"), gpu("gpu2"))
    wide, other = yard.load("wide", need(50, 50)), yard.load("other", 90)
    assert where(yard, wide) == [["gpu0", "gpu1"]]
    yard.do(ev.DeviceLost("gpu1", "gone"))
    assert yard.states(wide) == ["releasing"]
    assert yard.states(other) == ["ready"], "it is on another device"
    yard.released(wide)
    assert yard.state.ledger.devices["gpu0"].reserved == 0


def test_one_that_starts_sleeps_or_leaves_on_a_lost_device_goes_too() -> None:
    yard = Yard(gpu(size=300))
    starting, leaving = yard.add("starting", 60), yard.load("leaving", 60)
    yard.ask("r", leaving)
    yard.do(ev.UnloadAsked(leaving))
    yard.do(ev.LoadAsked(starting))
    assert yard.states(starting) + yard.states(leaving) == ["starting", "draining"]
    yard.do(ev.DeviceLost("gpu0", "gone"))
    assert yard.states(starting) + yard.states(leaving) == ["releasing", "releasing"]


def test_who_has_nowhere_else_to_go_waits_for_its_return() -> None:
    yard = Yard()
    a = yard.load("a", 60)
    yard.do(ev.DeviceLost("gpu0", "gone"))
    yard.released(a)
    assert started(yard.ask("r", a)) == []
    yard.do(ev.DeviceLost("gpu0", "gone still"))
    out = yard.seen("gpu0", free=100)
    assert started(out) == ["a"]
    assert [note.kind for note in of(ac.Note, out)][:1] == ["device_opened"]
    yard.ready(a)
    assert yard.holder("r") is not None


def test_what_is_waited_for_is_its_return_and_no_longer_the_memory_of_who_was_there() -> None:
    yard = Yard()
    a = yard.load("a", 60)
    yard.do(ev.DeviceLost("gpu0", "gone"))
    yard.ask("r", a)
    yard.released(a)
    assert yard.version(a).blocked_by == "room: gpu0 is lost: gone"
    yard.seen("gpu0", free=100)
    yard.ready(a)
    assert yard.version(a).blocked_by == ""


def test_who_waited_in_vain_for_it_is_told_which_device_is_lost() -> None:
    yard = Yard()
    a = yard.add("a", 60, max_wait=5.0)
    yard.do(ev.DeviceLost("gpu0", "gone"))
    yard.ask("r", a)
    out = yard.pass_time(6.0)
    assert refused(out) == {"r": "no_memory"}, "no promise was broken"
    assert of(ac.Refuse, out)[0].message.count("gpu0 is lost: gone") == 1


def test_a_fenced_device_is_left_when_what_runs_is_done() -> None:
    yard, a = pair(slots=2)
    yard.ask("r1", a)
    assert of(ac.Cut, yard.do(ev.FenceAsked("gpu0", "a new fan"))) == []
    assert yard.states(a) == ["draining"]
    assert started(yard.ask("r2", a)) == ["a"]
    assert where(yard, a)[1] == ["gpu1"]
    assert stopped(yard.finish("r1")) == ["a"]
    yard.seen("gpu0", free=100)
    assert yard.state.ledger.devices["gpu0"].closed == "fenced: a new fan", "it is no less so for being there"


def test_a_fence_may_cut_and_is_taken_away_by_order() -> None:
    yard = Yard()
    a = yard.load("a", 60)
    yard.ask("r1", a)
    (cut,) = of(ac.Cut, yard.do(ev.FenceAsked("gpu0", "now", now=True)))
    assert cut.code == "fenced"
    yard.finish("r1")
    yard.released(a)
    assert started(yard.ask("r2", a)) == []
    assert started(yard.do(ev.FenceAsked("gpu0"))) == ["a"]
    assert yard.do(ev.FenceAsked("gpu0")) == [], "there is none"
    assert granted(yard.ready(a)) == ["r2"]


def test_a_device_that_is_lost_and_fenced_is_closed_until_neither() -> None:
    yard = Yard()
    a = yard.add("a", 60)
    yard.do(ev.FenceAsked("gpu0", "repair"))
    yard.do(ev.DeviceLost("gpu0", "gone"))
    yard.ask("r", a)
    assert started(yard.seen("gpu0", free=100)) == []
    assert started(yard.do(ev.FenceAsked("gpu0"))) == ["a"]


def test_minimum_replicas_come_back_with_their_device() -> None:
    yard = Yard(gpu("gpu0"), gpu("gpu1"))
    a = yard.add("a", 60, min_replicas=2, max_replicas=2)
    yard.ready(a)
    yard.ready(a)
    assert sorted(where(yard, a)) == [["gpu0"], ["gpu1"]]
    yard.do(ev.DeviceLost("gpu1", "gone"))
    yard.released(a)
    yard.pass_time(30.0)
    assert where(yard, a) == [["gpu0"]]
    assert started(yard.seen("gpu1", free=100)) == ["a"]


def test_a_device_that_is_back_stays_closed_while_it_is_fenced() -> None:
    yard, _ = pair()

    def said(event: ev.Event) -> list[str]:
        notes = of(ac.Note, yard.do(event))
        return [f"{note.kind} {note.message}" for note in notes if note.kind.startswith("device_")]

    assert said(ev.DeviceLost("gpu0", "XID 79")) == ["device_closed lost: XID 79"]
    assert said(ev.FenceAsked("gpu0", "XID 79")) == ["device_closed lost: XID 79"]
    assert said(ev.DeviceSeen("gpu0", 100, 100)) == ["device_closed fenced: XID 79"]
    assert said(ev.FenceAsked("gpu0")) == ["device_opened the fence was taken away"]
    assert said(ev.DeviceLost("gpu0", "")) == ["device_closed lost: it does not answer"]
    assert said(ev.DeviceSeen("gpu0", 100, 100)) == ["device_opened it is back"]


def test_who_is_leaving_a_lost_device_already_goes_on_leaving() -> None:
    yard, a = pair()
    yard.do(ev.UnloadAsked(a, now=True))
    assert yard.states(a) == ["stopping"]
    assert not of(ac.Release, yard.do(ev.DeviceLost("gpu0", "gone")))
    assert yard.states(a) == ["stopping"]


def test_a_device_is_lost_once() -> None:
    yard, a = pair()
    yard.do(ev.DeviceLost("gpu0", "it fell off the bus"))
    assert yard.states(a) == ["releasing"]
    assert yard.do(ev.DeviceLost("gpu0", "still")) == []
    assert yard.state.ledger.devices["gpu0"].closed == "lost: it fell off the bus"
    assert yard.do(ev.DeviceLost("gpu9", "nobody knows it")) == []


def test_whichever_of_its_devices_is_closed_is_told() -> None:
    yard = Yard(ram(), gpu("gpu0"), gpu("gpu1"))
    a = yard.add("a", Need((Share("ram", 1), Share("accelerator", 60), Share("accelerator", 60))))
    version = yard.version(a)
    assert not fencing.closed_to(yard.state.ledger.devices, version)
    yard.do(ev.FenceAsked("gpu1", "a new fan"))
    assert "gpu1" in str(fencing.closed_to(yard.state.ledger.devices, version))
    yard.do(ev.FenceAsked("ram", "a new bar"))
    assert [
        name in str(fencing.closed_to(yard.state.ledger.devices, version)) for name in ("gpu0", "gpu1", "ram")
    ] == [
        False,
        True,
        True,
    ]
