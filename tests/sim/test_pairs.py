"""Translation models that do not all fit, and mixed pairs: a slice of `python -m modelyard.sim.pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest

from modelyard.core.languages import name_of, pair_of
from modelyard.sim.pairs import APART, CONTESTANTS, SHARED, Ask, Outcome, asks, in_order, run

SCENES = {"apart": APART, "shared": SHARED}
(FIRST_LISTED, FIRST_COME, OURS) = CONTESTANTS


@cache
def wanted(scene: str, seed: int) -> tuple[Ask, ...]:
    pairs = sorted({name_of(pair_of(pair)) for each in SCENES[scene] for pair in each})
    return tuple(asks(seed=seed, rate=24.0, seconds=60.0, pairs=pairs))


def of(contestant: Sequence[object], scene: str, seed: int, fit: int) -> Outcome:
    _, strategy, routed = contestant
    return run(wanted(scene, seed), SCENES[scene], fit, strategy, routed=routed)  # type: ignore[arg-type]


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("fit", [1, 2])
def test_far_fewer_loads_than_first_come_first_served(scene: str, seed: int, fit: int) -> None:
    ours, base = of(OURS, scene, seed, fit), of(FIRST_COME, scene, seed, fit)
    assert (ours.refused, ours.wrong, base.wrong) == (0, 0, 0)
    assert ours.bound_kept
    assert ours.loads <= 0.7 * base.loads
    assert ours.loads <= 0.3 * in_order(wanted(scene, seed), SCENES[scene], fit)
    assert ours.waits[-1] <= base.waits[-1]


@pytest.mark.parametrize("scene", SCENES)
def test_with_memory_for_all_each_is_loaded_once(scene: str) -> None:
    made = of(OURS, scene, 1, 3)
    assert (made.loads, made.refused, made.wrong) == (3, 0, 0)
    assert in_order(wanted(scene, 1), SCENES[scene], 3) == 3


def test_models_that_are_in_memory_are_preferred() -> None:
    """The same scheduler, without the router's view of what is loaded."""
    strategy = OURS[1]
    blind = run(wanted("shared", 1), SHARED, 2, strategy, routed=False)
    assert of(OURS, "shared", 1, 2).loads <= 0.9 * blind.loads


def test_strict_order() -> None:
    pairs = ["en-fr", "en-de", "en-fr", "es-it", "es-it"]
    row = [Ask(float(number), *pair_of(pair), 2) for number, pair in enumerate(pairs)]
    assert [in_order(row, APART, fit) for fit in (1, 2, 3)] == [4, 3, 3]
