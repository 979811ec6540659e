"""Whole journeys, action by action: what the driver is told, with every reason and message that people read.

The texts lie in `journeys/`; after a wanted change, write them anew with

    PYTHONPATH=tests python tests/core/test_journeys.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.yard import Yard, gpu, need, ram
from modelyard.core import events as ev
from modelyard.core.types import Cause, Need, OutcomeKind, Priority, Share, WhenFull

PLACE = Path(__file__).parent / "journeys"


def swap() -> Yard:
    """A busy model drains for a cold one and is cut at its drain cap."""
    yard = Yard()
    a, b = yard.load("a", drain_cap=3.0, release_cap=7.0), yard.add("b", load_cap=33.0)
    yard.ask("r1", a)
    yard.pass_time(1.0)
    yard.ask("r2", b)
    yard.pass_time(9.0)
    yard.finish("r1", OutcomeKind.CUT)
    gone = yard.instance(a)
    yard.do(ev.Exited(gone.id, gone.generation, Cause.EXITED))
    yard.released(a, gpu0=5)
    yard.ready(b, gpu0=55)
    yard.finish("r2")
    yard.pass_time(700.0)
    yard.released(b)
    return yard


def failures() -> Yard:
    """Out of memory twice, a crash, a hang, a permanent failure, and what waiting clients are told."""
    yard = Yard(gpu(), ram(200))
    a = yard.add("a", Need((Share("accelerator", 40, {"file": 10}), Share("ram", 20))))
    yard.ask("r1", a)
    first = yard.instance(a)
    yard.do(ev.Observed(first.id, {"gpu0": 80, "ram": 25}))
    yard.failed(a, Cause.OUT_OF_MEMORY, "cudaMalloc failed")
    yard.released(a)
    yard.failed(a, Cause.OUT_OF_MEMORY)
    yard.released(a)
    yard.ask("r2", a)
    yard.pass_time(2.0)
    yard.ask("r3", a)
    yard.ready(a)
    yard.finish("r3", OutcomeKind.HUNG)
    yard.released(a)
    yard.do(ev.Learned(a, need(30), 4.0))
    yard.pass_time(9.0)
    yard.ask("r4", a)
    yard.failed(a, Cause.BAD_MODEL, "unknown architecture")
    yard.released(a)
    b = yard.add("b", 50, slots=3)
    for number in range(3):
        yard.ask(f"s{number}", b)
    yard.ready(b)
    for number in range(3):
        yard.finish(f"s{number}", OutcomeKind.DIED)
    yard.released(b)
    return yard


def refusals() -> Yard:
    """Every way to say no."""
    yard = Yard()
    a = yard.load("a", pin=True, queue_bound=1)
    yard.ask("r1", a)
    yard.ask("r2", a, max_wait=4.0)
    yard.ask("r3", a)
    yard.ask("r4", yard.add("fails", when_full=WhenFull.FAIL))
    yard.ask("r5", yard.add("huge", 1000))
    waits = yard.add("waits", when_full=WhenFull.WAIT)
    yard.ask("r6", waits, max_wait=6.0)
    yard.ask("r7", waits, load=False)
    yard.ask("r8", yard.add("absent"), load=False)
    yard.do(ev.LoadAsked(yard.version("absent@000000000000").key, evict=False))
    yard.pass_time(20.0)
    yard.do(ev.UnloadAsked(a, now=True))
    yard.do(ev.Removed(waits))
    fetched = yard.add("fetched", cached=False, max_wait=5.0)
    yard.do(ev.LoadAsked(fetched))
    yard.pass_time(6.0)
    yard.ask("r9", fetched)
    yard.do(ev.FetchFailed(fetched, "source_not_found", "no such repository"))
    yard.ask("r10", fetched)
    yard.do(ev.ShutdownAsked())
    return yard


def ending() -> Yard:
    """A suspect that is condemned by its probe, a removal, a shutdown."""
    yard = Yard(gpu(size=200))
    a, b = yard.load("a", slots=2), yard.load("b")
    only = yard.instance(a).id
    yard.ask("r1", a)
    yard.finish("r1", OutcomeKind.DIED)
    yard.ask("r2", a, exclude={only}, since=0.0)
    yard.do(ev.Probed(only, 1, alive=True))
    yard.ask("r3", a)
    yard.finish("r3", OutcomeKind.PROTOCOL)
    yard.do(ev.Probed(only, 1, alive=False))
    yard.ask("r4", b)
    yard.ask("r5", b)
    yard.do(ev.Removed(b))
    yard.finish("r4")
    yard.released(b)
    yard.released(a)
    yard.load("a")
    yard.ask("r6", a)
    yard.ask("r7", a)
    yard.ask("r8", a)
    yard.do(ev.ShutdownAsked())
    yard.ask("r9", a)
    yard.pass_time(600.0)
    return yard


def answer(yard: Yard) -> None:
    """Everything that leaves is gone, then everything that starts is ready."""
    for instance in list(yard.state.instances.values()):
        if instance.state.value in ("stopping", "releasing"):
            yard.do(ev.Released(instance.id, instance.generation))
    for instance in list(yard.state.instances.values()):
        if instance.state.value == "starting":
            yard.do(ev.Ready(instance.id, instance.generation))


def crowd() -> Yard:
    """Victims of several kinds on two devices, replicas, classes, homes."""
    yard = Yard(gpu("gpu0", 100), gpu("gpu1", 60), ram(100))
    for name, size in (("one", 30), ("two", 50), ("three", 20), ("four", 45)):
        yard.load(name, size, min_residency=1.0, home=name == "three")
    yard.ask("busy", "one@000000000000")
    wide = yard.add("wide", Need((Share("accelerator", 90), Share("ram", 10))), priority=Priority.HIGH)
    yard.ask("w1", wide)
    yard.pass_time(2.0)
    answer(yard)
    yard.finish("busy")
    answer(yard)
    grow = yard.add("grow", 25, max_replicas=3, min_replicas=1, patience=2.0)
    answer(yard)
    yard.finish("w1")
    yard.ask("g1", grow)
    yard.ask("g2", grow)
    yard.pass_time(10.0)
    answer(yard)
    yard.pass_time(30.0)
    answer(yard)
    return yard


JOURNEYS: list[Callable[[], Yard]] = [swap, failures, refusals, crowd, ending]


def text(yard: Yard) -> str:
    return "".join(f"{action}\n" for action in yard.log)


@pytest.mark.parametrize("journey", JOURNEYS, ids=lambda journey: journey.__name__)
def test_a_journey_is_told_word_for_word(journey: Callable[[], Yard]) -> None:
    assert text(journey()) == (PLACE / f"{journey.__name__}.txt").read_text()


if __name__ == "__main__":
    for journey in JOURNEYS:
        (PLACE / f"{journey.__name__}.txt").write_text(text(journey()))
