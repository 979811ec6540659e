"""That our strategy loads less than LRU, at no cost for anybody: a small slice of `make sim`, one seed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from modelyard.sim.__main__ import ALL, CALM, SATURATED, Result, Setting, Task, result, run, stretch_for

TRACE = Path(__file__).parents[2] / "examples/traces/azure_llm_2023_conv.csv.gz"
SETTING = Setting(TRACE, rows=1200)


@cache
def slice_of(band: tuple[float, float]) -> tuple[Task, float]:
    task = Task(SETTING, 50, 8, 1, band, ())
    return task, stretch_for(task)


@cache
def of(name: str, band: tuple[float, float] = CALM) -> Result:
    return result(run(*slice_of(band), ALL[name]))


def test_fewer_loads_than_lru_and_no_less_in_time() -> None:
    base, ours = of("LRU"), of("ours")
    assert CALM[0] <= base.within <= CALM[1], "the slice is not what it shall be"
    assert ours.loads <= 0.85 * base.loads
    assert ours.within >= base.within
    assert ours.refused <= base.refused
    assert ours.bound_kept


def test_when_it_is_too_dense_for_lru_ours_is_no_worse() -> None:
    base, ours = of("LRU", SATURATED), of("ours", SATURATED)
    assert SATURATED[0] <= base.within <= SATURATED[1], "the slice is not what it shall be"
    assert ours.within >= base.within + 0.03
    assert ours.waits[2] <= 1.1 * base.waits[2], "p99"
    assert ours.bound_kept


@pytest.mark.parametrize("name", ["ours without the hold", "ours without demand"])
def test_each_term_is_worth_something(name: str) -> None:
    assert of(name).loads > 1.02 * of("ours").loads
