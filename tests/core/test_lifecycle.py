"""The two tables, and the events of the scheduler in every state that an instance or its files reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

from core.yard import Yard, every_event, need, ram, rung, spec
from modelyard.core import events as ev
from modelyard.core.lifecycle import (
    FILES,
    INSTANCE,
    FilesSignal,
    FilesState,
    IllegalTransition,
    InstanceSignal,
    InstanceState,
    next_files,
    next_instance,
)
from modelyard.core.types import Cause, OutcomeKind

PAIRS = [
    *(("files", FILES, next_files, state, signal) for state in FilesState for signal in FilesSignal),
    *(
        ("instance", INSTANCE, next_instance, state, signal)
        for state in InstanceState
        for signal in InstanceSignal
    ),
]


@pytest.mark.parametrize(
    ("what", "table", "step", "state", "signal"),
    PAIRS,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_legal_signal_is_taken_and_an_illegal_one_raises(
    what: str, table: dict[Any, Any], step: Callable[[Any, Any], Any], state: Any, signal: Any
) -> None:
    before = dict(table)
    if (state, signal) in table:
        assert step(state, signal) is table[state, signal]
    else:
        with pytest.raises(IllegalTransition, match=f"{what}: {signal} in {state}"):
            step(state, signal)
    assert table == before


def test_gone_is_the_end_and_only_released_leads_there() -> None:
    assert not [pair for pair in INSTANCE if pair[0] is InstanceState.GONE]
    assert {signal for (_, signal), to in INSTANCE.items() if to is InstanceState.GONE} == {
        InstanceSignal.RELEASED
    }


# -- every event in every state that the scheduler brings an instance into

A = spec("a").version


def _starting(yard: Yard) -> None:
    yard.add("a")
    yard.ask("r", A)


def _warming(yard: Yard) -> None:
    _starting(yard)
    yard.do(ev.Warming(yard.instance(A).id, 1))


def _ready(yard: Yard) -> None:
    _starting(yard)
    yard.ready(A)


def _suspect(yard: Yard) -> None:
    _ready(yard)
    yard.finish("r", OutcomeKind.DIED)


def _draining(yard: Yard) -> None:
    _ready(yard)
    yard.do(ev.UnloadAsked(A))


def _stopping(yard: Yard) -> None:
    _ready(yard)
    yard.do(ev.UnloadAsked(A, now=True))


def _releasing(yard: Yard) -> None:
    _ready(yard)
    yard.do(ev.Exited(yard.instance(A).id, 1, Cause.CRASHED))


def _sleeping(yard: Yard) -> None:
    yard.do(ev.DeviceAdded(ram()))
    yard.load("a", need(60, rungs=[rung()]), keep_alive=5.0)
    yard.pass_time(5.0)


def _asleep(yard: Yard) -> None:
    _sleeping(yard)
    yard.slept(A)


def _waking(yard: Yard) -> None:
    _asleep(yard)
    yard.ask("r", A)


def _absent(yard: Yard) -> None:
    yard.add("a", cached=False)


def _fetching(yard: Yard) -> None:
    _absent(yard)
    yard.ask("r", A)


SCENES: dict[str, Callable[[Yard], None]] = {
    "starting": _starting,
    "warming": _warming,
    "ready": _ready,
    "suspect": _suspect,
    "draining": _draining,
    "stopping": _stopping,
    "releasing": _releasing,
    "sleeping": _sleeping,
    "asleep": _asleep,
    "waking": _waking,
    "absent": _absent,
    "fetching": _fetching,
}

ABOUT_INSTANCE = (
    ev.Finished,
    ev.Warming,
    ev.Ready,
    ev.Failed,
    ev.Slept,
    ev.Exited,
    ev.Released,
    ev.Doubted,
    ev.Probed,
)
OTHERS = [kind for kind in get_args(ev.Event) if kind not in ABOUT_INSTANCE]

# What an event about an instance does to its state; a pair that is not here changes nothing. `gone`: it left.
CHANGES = {
    (ev.Warming, "starting"): "warming",
    (ev.Ready, "starting"): "ready",
    (ev.Ready, "warming"): "ready",
    (ev.Failed, "starting"): "releasing",
    (ev.Failed, "warming"): "releasing",
    (ev.Ready, "waking"): "ready",
    (ev.Failed, "waking"): "releasing",
    (ev.Failed, "sleeping"): "stopping",
    (ev.Slept, "sleeping"): "asleep",
    (ev.Exited, "sleeping"): "releasing",
    (ev.Exited, "asleep"): "releasing",
    (ev.Exited, "waking"): "releasing",
    (ev.Exited, "starting"): "releasing",
    (ev.Exited, "warming"): "releasing",
    (ev.Exited, "ready"): "releasing",
    (ev.Exited, "suspect"): "releasing",
    (ev.Exited, "draining"): "releasing",
    (ev.Exited, "stopping"): "releasing",
    (ev.Probed, "suspect"): "releasing",
    (ev.Released, "stopping"): "gone",
    (ev.Released, "releasing"): "gone",
    (ev.Finished, "draining"): "stopping",
}
WITH_INSTANCE = [name for name in SCENES if name not in ("absent", "fetching")]


def picture(yard: Yard) -> tuple[object, ...]:
    """Everything that a stale event must leave alone."""
    state = yard.state
    return (
        [
            (i.id, i.state, i.generation, i.suspect, i.strikes, sorted(i.leases))
            for i in state.instances.values()
        ],
        [(v.key, v.files, v.failures, v.backoff_until, v.queue.counts[:]) for v in state.versions.values()],
        {name: (d.reserved, d.excess, d.foreign) for name, d in state.ledger.devices.items()},
        sorted(state.leases),
        list(state.line),
        state.timers.next(),
    )


def test_every_kind_of_event_is_exercised() -> None:
    assert set(every_event(spec("a"), "a-1", 1)) == set(get_args(ev.Event))


def test_every_state_that_is_used_is_reached() -> None:
    reached = set()
    for name in WITH_INSTANCE:
        yard = Yard()
        SCENES[name](yard)
        reached.add(yard.instance(A).state)
    assert reached == set(InstanceState) - {InstanceState.GONE}


@pytest.mark.parametrize("scene", WITH_INSTANCE)
@pytest.mark.parametrize("kind", ABOUT_INSTANCE, ids=lambda kind: kind.__name__)
def test_an_answer_of_the_current_generation_does_what_the_table_says(scene: str, kind: type) -> None:
    yard = Yard()
    SCENES[scene](yard)
    instance = yard.instance(A)
    before = instance.state.value
    lease = yard.state.leases.get("r")
    generation = lease.generation if lease and kind is ev.Finished else instance.generation
    yard.do(every_event(spec("a"), instance.id, generation)[kind])
    assert instance.state.value == CHANGES.get((kind, scene), before)
    assert (instance.id in yard.state.instances) == (instance.state is not InstanceState.GONE)


@pytest.mark.parametrize("scene", WITH_INSTANCE)
@pytest.mark.parametrize("kind", ABOUT_INSTANCE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("off", [-1, 1])
def test_an_answer_of_another_generation_changes_nothing(scene: str, kind: type, off: int) -> None:
    yard = Yard()
    SCENES[scene](yard)
    instance = yard.instance(A)
    lease = yard.state.leases.get("r")
    generation = lease.generation if lease and kind is ev.Finished else instance.generation
    before = picture(yard)
    assert yard.do(every_event(spec("a"), instance.id, generation + off)[kind]) == []
    assert yard.do(every_event(spec("a"), "ghost-7", generation)[kind]) == []
    assert picture(yard) == before


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_every_other_event_is_taken_in_every_state(scene: str, kind: type) -> None:
    yard = Yard()
    SCENES[scene](yard)
    yard.do(every_event(spec("a"), "a-1", 1)[kind])  # the yard checks the invariants
    yard.pass_time(1000.0)
    assert "r" not in yard.state.waiting


FILES_CHANGES = {
    (ev.Cached, "absent"): "cached",
    (ev.Cached, "fetching"): "cached",
    (ev.Added, "absent"): "cached",
    (ev.Added, "fetching"): "cached",
    (ev.FetchFailed, "fetching"): "absent",
    (ev.FilesLost, "ready"): "absent",
    (ev.Arrived, "absent"): "fetching",
    (ev.LoadAsked, "absent"): "fetching",
}


@pytest.mark.parametrize("scene", ["absent", "fetching", "ready"])
@pytest.mark.parametrize(
    "kind", [kind for kind in OTHERS if kind is not ev.Removed], ids=lambda kind: kind.__name__
)
def test_files_change_by_their_own_events_only(scene: str, kind: type) -> None:
    yard = Yard()
    SCENES[scene](yard)
    before = yard.version(A).files.value
    yard.do(every_event(spec("a"), "a-1", 1)[kind])
    assert yard.version(A).files.value == FILES_CHANGES.get((kind, scene), before)
