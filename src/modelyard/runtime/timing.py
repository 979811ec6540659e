"""How long something usually takes, and how much that varies: the last few durations of it.

Kept in footprints. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SAMPLE = 20  # durations that are kept of each


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: the median of `count` durations, and the median of their distances from it."""

    median: float
    spread: float
    count: int


def timing(durations: Sequence[float]) -> Timing | None:
    """What these tell; None where there are none."""
    if not durations:
        return None
    usual = median(durations)
    return Timing(usual, median(abs(one - usual) for one in durations), len(durations))


def with_one_more(durations: tuple[float, ...], seconds: float | None) -> tuple[float, ...]:
    """The last SAMPLE of them."""
    return durations if seconds is None else (*durations, seconds)[-SAMPLE:]
