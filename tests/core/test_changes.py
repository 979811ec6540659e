"""Several changes at once: nothing is decided between them, and a new version takes the place of the old."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.yard import Yard, gpu, granted, need, of, refused, spec, started, stopped
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.admission import Sums, recap
from modelyard.core.state import State
from modelyard.core.types import Policy

NEW = replace(spec("a"), digest="1" * 12)


def test_nothing_is_decided_between_the_parts() -> None:
    """The pin that keeps c waiting goes, and c goes, too: nobody has to leave for it."""
    yard = Yard(gpu(size=60))
    a, c = yard.load("a", pin=True), yard.add("c", patience=0.0)
    yard.ask("r", c)
    yard.pass_time(10.0)
    out = yard.do(ev.Changed((ev.PolicyChanged(a, Policy()), ev.Removed(c))))
    assert refused(out) == {"r": "model_removed"}
    assert (stopped(out), yard.states(a)) == ([], ["ready"])


def test_a_new_version_is_served_while_the_old_one_finishes_and_inherits_its_demand() -> None:
    yard = Yard(gpu(size=120))
    old = yard.load("a")
    for request in ("r1", "r2"):
        yard.ask(request, old)
    yard.pass_time(3.0)
    demand = yard.version(old).heat_now(yard.now)
    parts = (ev.Added(NEW, Policy(), need(60)), ev.Removed(old, replaced_by=NEW.version))
    out = yard.do(ev.Changed(parts))
    assert refused(out) == {"r2": "model_removed"}
    assert of(ac.Refuse, out)[0].message == f"a was replaced by {NEW.version}"
    assert yard.version(NEW.version).heat_now(yard.now) == demand
    assert yard.version(NEW.version).last_used == 0.0
    assert yard.states(old) == ["draining"]
    assert started(out) == ["a"]
    yard.do(ev.Arrived("r2", NEW.version, since=0.0))
    assert granted(yard.ready(NEW.version)) == ["r2"]
    assert stopped(yard.finish("r1")) == ["a"]
    yard.released(old)
    assert old not in yard.state.versions


def test_the_bound_of_all_queues_counts_for_who_comes_from_then_on() -> None:
    yard = Yard()
    a = yard.add("a")
    for request in ("r1", "r2"):
        yard.ask(request, a)
    yard.do(ev.QueueBounded(2))
    assert refused(yard.ask("r3", a)) == {"r3": "queue_full"}
    yard.do(ev.QueueBounded(3))
    assert refused(yard.ask("r4", a)) == {}
    assert refused(yard.do(ev.QueueBounded(1))) == {}
    assert len(yard.state.waiting) == 3


def test_the_caps_of_all_are_looked_at_once_however_many_parts_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recaps: list[Sums] = []

    def counted(state: State, sums: Sums) -> None:
        recaps.append(sums)
        recap(state, sums)

    yard = Yard(gpu(size=60))
    models = [yard.add(f"m{number}") for number in range(20)]
    monkeypatch.setattr("modelyard.core.scheduler.recap", counted)
    policies = [ev.PolicyChanged(model, Policy(min_residency=7.0, drain_cap=40.0)) for model in models[:10]]
    yard.do(ev.Changed((*policies, *(ev.Removed(model) for model in models[10:]))))
    assert len(yard.state.versions) == 10
    assert len(recaps) <= 2
    sums = yard.scheduler.sums
    assert (sums.residency, sums.drain, sums.stale) == (7.0, 40.0, False)


def replaced(old: str, size: int) -> ev.Changed:
    return ev.Changed((ev.Added(NEW, Policy(), need(size)), ev.Removed(old, replaced_by=NEW.version)))


def test_what_was_in_memory_comes_again_beside_the_old_one_where_there_is_room() -> None:
    yard = Yard(gpu(size=120))
    old = yard.load("a")
    yard.ask("r", old)
    assert started(yard.do(replaced(old, 60))) == ["a"]
    assert yard.states(old) == ["draining"]


def test_else_it_comes_when_the_old_one_has_left_and_puts_nobody_out() -> None:
    yard = Yard(gpu(size=120))
    old, other = yard.load("a"), yard.load("b")
    yard.ask("r", old)
    assert started(yard.do(replaced(old, 60))) == []
    yard.pass_time(30.0)
    assert yard.states(other) == ["ready"]
    yard.finish("r")
    assert started(yard.released(old)) == ["a"]


def test_what_does_not_fit_without_putting_somebody_out_waits_for_a_request() -> None:
    yard = Yard(gpu(size=120))
    old, other = yard.load("a"), yard.load("b")
    out = yard.do(replaced(old, 100))
    assert [loaded.code for loaded in of(ac.Loaded, out)] == ["no_memory"]
    assert started(yard.released(old)) == []
    yard.pass_time(30.0)
    assert yard.states(other) == ["ready"]
    assert stopped(yard.ask("r", NEW.version)) == ["b"]


def test_what_was_not_in_memory_is_not_loaded() -> None:
    yard = Yard()
    old = yard.add("a")
    assert started(yard.do(replaced(old, 60))) == []
    assert old not in yard.state.versions
    assert not yard.state.line
