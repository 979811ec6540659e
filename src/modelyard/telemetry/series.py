"""Where measured values live: plain numbers in one event loop, turned into Prometheus families at a scrape.

Used by `metrics` alone. prometheus-client's own Counter and Histogram take a lock for every update (0.4 µs
and 1.2 µs, several times per request) and print a `_created` series beside each; its families and its text
format are used as they are. Nothing here may be touched from two threads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric

LabelValues = tuple[str, ...]


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric: its full name, what it is, what it tells an operator, its labels, a histogram's bounds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Counts:
    """A counter by label values. It only grows."""

    __slots__ = ("declared", "values")

    def __init__(self, declared: Declared) -> None:
        self.declared = declared
        self.values: dict[LabelValues, int] = {}

    def add(self, *labels: str) -> None:
        self.values[labels] = self.values.get(labels, 0) + 1

    def family(self) -> Metric:
        family = CounterMetricFamily(self.declared.name, self.declared.help, labels=self.declared.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class Distribution:
    """The counts of one histogram series. `bounds` are upper bounds, inclusive, ascending."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(bound, observations up to it) as Prometheus wants them."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Histogram:
    """A histogram by label values."""

    __slots__ = ("declared", "series")

    def __init__(self, declared: Declared) -> None:
        self.declared = declared
        self.series: dict[LabelValues, Distribution] = {}

    def of(self, *labels: str) -> Distribution:
        """The series with these labels; made when it is not there. Keep it where it is used often."""
        found = self.series.get(labels)
        if found is None:
            found = self.series[labels] = Distribution(self.declared.buckets)
        return found

    def family(self) -> Metric:
        family = HistogramMetricFamily(self.declared.name, self.declared.help, labels=self.declared.labels)
        for labels, series in self.series.items():
            family.add_metric(labels, series.cumulative(), series.total)
        return family


class Duration:
    """How often something happened and how many seconds it took in all."""

    __slots__ = ("count", "declared", "seconds")

    def __init__(self, declared: Declared) -> None:
        self.declared = declared
        self.count = 0
        self.seconds = 0.0

    def family(self) -> Metric:
        return SummaryMetricFamily(
            self.declared.name, self.declared.help, count_value=self.count, sum_value=self.seconds
        )


def gauge(declared: Declared, values: Iterable[tuple[LabelValues, float]]) -> Metric:
    """A gauge from values that were read just now."""
    family = GaugeMetricFamily(declared.name, declared.help, labels=declared.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family
