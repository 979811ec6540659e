"""A lower bound of loads: no schedule that serves every job within its longest wait can do with fewer.

Used by `modelyard replay` and `python -m modelyard.sim`. The proof stands in docs/design/simulation.md; in
short:

A job of version v that arrives at a and may wait until d is served at a moment of its window [a, d]. Take
windows of v that do not overlap, in order. Between two of them either v is resident all the time from d1
until a2 (the pair is *kept*), or a load of v begins between the two moments of service. So v is loaded at
least once, and once more for each pair that is not kept. At every moment, what is kept has to fit in memory;
beside a job that is served, what is kept all through its window has to fit in what that job leaves.
Then for any prices of memory at some moments, by weak duality,

    loads >= sum of each version's [1 + sum of its pairs' min(1, size x prices from d1 until a2)]
             - memory x sum of all prices

whatever the prices and the windows are. The search below only makes that large: prices rise where memory is
short, and each version takes the windows that pay most.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil

from modelyard.sim.world import Job

FIRST_STEPS = 8  # prices are bettered so many times on each grid of moments,
STEPS = 40  # and so many times more
BETTERED = 6  # on the grids that look best
GRIDS = 6  # steps between moments that are tried
MOMENTS = 500  # of one grid, at most
MEASURES = 3  # of memory that are tried beside bytes
EPSILON = 1e-6

Shares = Mapping[str, Sequence[int]]
Sizes = Mapping[str, int]


def lower_bound(jobs: Iterable[Job], shares: Shares, budgets: Sequence[int], max_wait: float) -> int:
    """Loads that any schedule needs which begins with empty memory and serves each of `jobs` within its own
    `max_wait` (else this one), in seconds. `shares`: bytes of each version by device that it lies on at once;
    `budgets`: bytes of each device that they may lie on."""
    visits: dict[str, list[Visit]] = {}
    for job in jobs:
        wait = max_wait if job.max_wait is None else job.max_wait
        visits.setdefault(job.version, []).append(Visit(job.at, job.at + wait, job.at + job.service))
    for of_version in visits.values():
        of_version.sort()
    if not visits or not max(budgets, default=0):
        return len(visits)
    held = {version: sum(shares[version]) for version in visits}
    grids = [_Grid.of(visits, moments) for moments in _grids(visits, held)]
    searches = [
        _Search(grid, sizes, memory) for sizes, memory in _measures(visits, shares, budgets) for grid in grids
    ]
    for search in searches:
        search.go_on(FIRST_STEPS)
    searches.sort(key=lambda search: -search.best)
    for search in searches[:BETTERED]:
        search.go_on(STEPS)
    best = max([float(len(visits)), *(search.best for search in searches)])
    return min(ceil(best - EPSILON), sum(map(len, visits.values())))


@dataclass(frozen=True, slots=True, order=True)
class Visit:
    """A job as the bound sees it: the version is resident at a moment of [arrival, deadline], and, if that
    is not empty, all the time of [deadline, until]."""

    arrival: float
    deadline: float
    until: float


# -- measures of memory ---------------------------------------------------------------------------------


def _measures(versions: Iterable[str], shares: Shares, budgets: Sequence[int]) -> Iterable[tuple[Sizes, int]]:
    """Sizes and the memory that they share, in several measures: whatever fits on the devices in bytes, fits
    in each of them. Bytes themselves would allow two halves of a model on two devices; the others count how
    many of a size a device can hold. All are whole numbers, for what just fits has to fit."""
    most = max(budgets)
    yield {version: sum(shares[version]) for version in versions}, sum(budgets)
    counts = {most // size for version in versions for size in shares[version] if 0 < size <= most}
    for k in sorted(counts)[:MEASURES]:
        sizes = {version: sum(_counted(size, k, most) for size in shares[version]) for version in versions}
        yield sizes, sum(min(k * most, (k + 1) * budget // most * most) for budget in budgets)


def _counted(size: int, k: int, most: int) -> int:
    """A dual feasible function of Fekete and Schepers, times k * most: sizes whose sum is at most `most` have
    a sum of at most k * most in it."""
    parts = (k + 1) * size
    return k * size if parts % most == 0 else parts // most * most


# -- moments ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """Memory at some moment of [start, end], whichever. With an `owner`: at the moment of that window at
    which a job of this version is served, so that what is kept all through has to fit beside it."""

    start: float
    end: float
    owner: str = ""


def _grids(visits: Mapping[str, Sequence[Visit]], sizes: Sizes) -> Iterable[list[Moment]]:
    """Moments at which memory is priced: in even steps, from about the longest wait up, as they are and as
    windows of the jobs there; and all of both, where they are few."""
    windows = [
        Moment(visit.arrival, visit.deadline, version)
        for version, of in visits.items()
        for visit in of
        if visit.until > visit.arrival  # else it is there for no time at all
    ]
    windows.sort(key=lambda moment: (moment.start, -sizes[moment.owner]))
    arrivals = sorted({visit.arrival for of in visits.values() for visit in of})
    if len(arrivals) <= MOMENTS:
        yield [Moment(at, at) for at in arrivals]
        yield _in_order(windows)
    waits = [visit.deadline - visit.arrival for of in visits.values() for visit in of]
    first, span = arrivals[0], arrivals[-1] - arrivals[0]
    step = max(1.001 * sum(waits) / len(waits), span / MOMENTS)
    for _ in range(GRIDS):
        if step <= 0 or step > span:
            return
        yield [Moment(at, at) for at in (first + n * step for n in range(1, int(span / step) + 1))]
        largest: dict[int, Moment] = {}
        for window in windows:
            slot = int((window.start - first) / step)
            if slot not in largest or sizes[window.owner] > sizes[largest[slot].owner]:
                largest[slot] = window
        yield _in_order(largest.values())
        step *= 1.5


def _in_order(moments: Iterable[Moment]) -> list[Moment]:
    """Those that start and end later than those before them."""
    chosen: list[Moment] = []
    for moment in moments:
        if not chosen or (moment.start > chosen[-1].start and moment.end >= chosen[-1].end):
            chosen.append(moment)
    return chosen


@dataclass(slots=True)
class Item:
    """A visit between moments: a pair pays for those from the `deadline` of its first visit to before the
    `arrival` of its second."""

    arrival: int
    deadline: int


@dataclass(slots=True)
class _Grid:
    """The visits as seen from some moments, by version. `forced`: at which moments it is resident in any
    case."""

    moments: int
    items: dict[str, list[Item]] = field(default_factory=dict)
    forced: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, visits: Mapping[str, Sequence[Visit]], moments: Sequence[Moment]) -> _Grid:
        grid = cls(len(moments))
        starts, ends = [moment.start for moment in moments], [moment.end for moment in moments]
        forced: dict[str, set[int]] = {version: set() for version in visits}
        for number, moment in enumerate(moments):
            if moment.owner:
                forced[moment.owner].add(number)
        for version, of_version in visits.items():
            items = grid.items[version] = []
            for visit in of_version:
                arrival, deadline = bisect_left(ends, visit.arrival), bisect_left(starts, visit.deadline)
                forced[version].update(range(deadline, bisect_left(ends, visit.until)))
                while items and items[-1].deadline >= deadline:
                    items.pop()  # whatever it pays, this later and shorter window pays
                if not items or items[-1].arrival != arrival:
                    items.append(Item(arrival, deadline))
            grid.forced[version] = sorted(forced[version])
        return grid


def _chain(items: Sequence[Item], size: int, upto: Sequence[float]) -> tuple[float, list[tuple[int, int]]]:
    """The windows of one version that pay most: what their pairs pay, and the pairs that pay less than 1,
    each from a moment to before a moment."""
    best: list[float] = []  # of a chain that ends with this item
    before: list[int] = []
    top: list[int] = []  # the best item up to this one
    # Of the items before this one, the first `full` are so far away that a pair with them pays 1; `open_` of
    # them do not overlap it. In between, `window` has those that may pay most, by what they are worth less
    # the price up to their deadline.
    full = open_ = 0
    window: deque[tuple[float, int]] = deque()
    for number, item in enumerate(items):
        price = size * upto[item.arrival]
        while open_ < number and items[open_].deadline < item.arrival:
            worth = best[open_] - size * upto[items[open_].deadline]
            while window and window[-1][0] <= worth:
                window.pop()
            window.append((worth, open_))
            open_ += 1
        while full < open_ and price - size * upto[items[full].deadline] >= 1.0:
            full += 1
        while window and window[0][1] < full:
            window.popleft()
        worth, link = (best[top[full - 1]] + 1.0, top[full - 1]) if full else (0.0, -1)
        if window and (link < 0 or window[0][0] + price > worth):
            worth, link = window[0][0] + price, window[0][1]
        best.append(worth)
        before.append(link)
        top.append(number if not number or worth >= best[top[-1]] else top[-1])
    pairs = []
    at = top[-1]
    while before[at] >= 0:
        start, end = items[before[at]].deadline, items[at].arrival
        if size * (upto[end] - upto[start]) < 1.0:
            pairs.append((start, end))
        at = before[at]
    return best[top[-1]], pairs


# -- prices -----------------------------------------------------------------------------------------------


class _Search:
    """Looks for the largest bound on one grid by raising prices where memory is short."""

    def __init__(self, grid: _Grid, sizes: Sizes, memory: int) -> None:
        self.best = 0.0
        self._grid = grid
        self._sizes = sizes
        self._memory = [memory] * grid.moments  # beside what is there in any case
        for version, forced in grid.forced.items():
            for number in forced:
                self._memory[number] -= sizes[version]
        self._prices = self._local()
        self._ambition = 0.3  # how much more than the best is hoped for: the length of steps

    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            value, excess = self._value(self._prices)
            if value > self.best:
                self.best = value
            else:
                self._ambition *= 0.8
            both = list(zip(self._prices, excess, strict=True))
            square = sum(more * more for price, more in both if price or more > 0)
            if not square:
                return
            step = (self.best * (1 + self._ambition) + 1 - value) / square
            self._prices = [max(0.0, price + step * more) for price, more in both]

    def _value(self, prices: Sequence[float]) -> tuple[float, list[float]]:
        """The bound at these prices, and for each moment how much more memory is asked for than there is."""
        excess = [-float(memory) for memory in self._memory]
        change = [0.0] * (len(excess) + 1)
        total = sum(price * more for price, more in zip(prices, excess, strict=True))
        upto = [0.0, *accumulate(prices)]
        for version, items in self._grid.items.items():
            size, forced = self._sizes[version], self._grid.forced[version]
            own = upto
            if forced:
                charged = list(prices)
                for moment in forced:
                    charged[moment] = 0.0
                own = [0.0, *accumulate(charged)]
            worth, asked = _chain(items, size, own)
            total += 1.0 + worth
            for start, end in asked:
                change[start] += size
                change[end] -= size
                for moment in forced[bisect_left(forced, start) : bisect_left(forced, end)]:
                    excess[moment] -= size
        asked_for = accumulate(change[:-1])
        return total, [more + asked for more, asked in zip(excess, asked_for, strict=True)]

    def _local(self) -> list[float]:
        """Prices to begin with, each moment by itself: of the versions that are asked for again between this
        moment and the next, those that fit are the smallest."""
        again: list[list[int]] = [[] for _ in self._memory]
        for version, items in self._grid.items.items():
            for item in items[1:]:  # after at least one moment
                again[item.arrival - 1].append(self._sizes[version])
        prices = []
        for memory, sizes in zip(self._memory, again, strict=True):
            sizes.sort()
            summed = zip(sizes, accumulate(sizes), strict=True)
            over = next((size for size, held in summed if held > memory), 0)
            prices.append(1.0 / over if over else 0.0)
        return prices
