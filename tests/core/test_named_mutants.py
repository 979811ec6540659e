"""Mistakes that would be easy to make and dear to have: each, put into the source, fails its own scenario.

A mutant is a textual replacement in one function, which must occur exactly once; the function is compiled
anew and its code put in the place of the real one.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from types import FunctionType

import pytest

from core.yard import Yard, gpu, granted, of, refused, started
from modelyard.core import actions as ac
from modelyard.core import admission, dispatch, failures, requests, victims
from modelyard.core import events as ev
from modelyard.core.scheduler import Scheduler
from modelyard.core.types import Cause, OutcomeKind


def mutate(monkeypatch: pytest.MonkeyPatch, function: Callable[..., object], old: str, new: str) -> None:
    """Change the code of `function`; whoever imported it already sees the change."""
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__name__} does not hold this text once: {old}"
    space: dict[str, object] = {}
    exec(
        compile("from __future__ import annotations\n" + source.replace(old, new), "<mutant>", "exec"),
        function.__globals__,
        space,
    )
    changed = space[function.__name__]
    assert isinstance(changed, FunctionType)
    monkeypatch.setattr(function, "__code__", changed.__code__)


def a_stale_ready_is_ignored() -> None:
    yard = Yard()
    a = yard.add("a")
    yard.ask("r", a)
    instance = yard.instance(a)
    assert granted(yard.do(ev.Ready(instance.id, instance.generation - 1))) == []
    assert instance.state.value == "starting"


def one_version_is_started_once() -> None:
    yard = Yard(gpu(size=500))
    a = yard.add("a")
    assert started(yard.ask("r1", a)) == ["a"]
    assert started(yard.ask("r2", a)) == []
    assert started(yard.seen("gpu0", free=500, total=500)) == []


def a_cancel_frees_the_lease() -> None:
    yard = Yard()
    a = yard.load("a")
    yard.ask("r1", a)
    yard.ask("r2", a)
    assert granted(yard.do(ev.Cancelled("r1"))) == ["r2"]


def a_queue_has_a_bound() -> None:
    yard = Yard()
    a = yard.load("a", queue_bound=1)
    yard.ask("running", a)
    yard.ask("r1", a)
    assert refused(yard.ask("r2", a)) == {"r2": "queue_full"}


def a_cold_model_does_not_starve() -> None:
    yard = Yard()
    a = yard.load("a", slots=2, min_residency=0.0)
    b = yard.add("b", patience=5.0)
    yard.ask("hot0", a)
    yard.ask("cold", b)
    for number in range(1, 20):
        yard.pass_time(1.0)
        yard.ask(f"hot{number}", a)
        if f"hot{number - 1}" in yard.state.leases:
            yard.finish(f"hot{number - 1}")
    assert yard.states(a) == ["stopping"]


def exited_frees_no_memory() -> None:
    yard = Yard()
    a, b = yard.load("a", min_residency=0.0), yard.add("b")
    yard.ask("r", b)
    instance = yard.instance(a)
    assert started(yard.do(ev.Exited(instance.id, instance.generation, Cause.EXITED))) == []
    assert yard.state.ledger.devices["gpu0"].free == 40
    assert started(yard.released(a)) == ["b"]


def a_retry_goes_elsewhere() -> None:
    yard = Yard(gpu(size=200))
    a = yard.load("a", slots=2, max_replicas=2, patience=0.0)
    for name in ("x1", "x2", "x3"):
        yard.ask(name, a)
    yard.ready(a)
    first, second = yard.instances(a)
    yard.finish("x3")
    for name in ("x1", "x2"):
        yard.finish(name, OutcomeKind.DONE)
    (grant,) = of(ac.Grant, yard.ask("again", a, exclude={first.id}, since=yard.now))
    assert grant.instance == second.id


MUTANTS: dict[str, tuple[Callable[[], None], Callable[..., object], str, str]] = {
    "stale generation accepted": (
        a_stale_ready_is_ignored,
        Scheduler._current,
        "instance is not None and instance.generation == event.generation",
        "instance is not None",
    ),
    "double start": (
        one_version_is_started_once,
        Scheduler._wants,
        "head is not None and (not live or self._grows(step, version, live))",
        "head is not None",
    ),
    "lease not released on cancel": (a_cancel_frees_the_lease, requests.cancel, "lease is not None", "False"),
    "admission never refuses": (
        a_queue_has_a_bound,
        admission.admit,
        "count >= policy.queue_bound",
        "False",
    ),
    "patience without end": (
        a_cold_model_does_not_starve,
        victims.may_leave_at,
        "patience = wish.version.policy.patience",
        "patience = inf",
    ),
    "memory freed at Exited": (
        exited_frees_no_memory,
        failures.exited,
        "instance.state = next_instance(instance.state, Signal.EXITED)",
        "step.state.ledger.free_up(instance.id)",
    ),
    "retry granted the failed instance": (
        a_retry_goes_elsewhere,
        dispatch.pick,
        "> 0 and each.id not in exclude",
        "> 0",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_real_source_passes(name: str) -> None:
    MUTANTS[name][0]()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, function, old, new = MUTANTS[name]
    mutate(monkeypatch, function, old, new)
    with pytest.raises((AssertionError, StopIteration)):
        scenario()
