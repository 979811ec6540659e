"""Replicas of unlike speed: requests go where they end soonest, and who was slow once is not forgotten.

On a virtual clock, with engines of two kinds: one works on all its requests at once, each as fast as alone;
the other shares what it can do among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.yard import Yard, gpu
from modelyard.core import events as ev
from modelyard.core.dispatch import AGAIN, pick
from modelyard.core.types import OutcomeKind

SLOTS = 8


class Engines:
    """Replicas that take so many seconds for a unit of work each, when it is alone there."""

    def __init__(self, *seconds: float, shared: bool = False, slots: int = SLOTS) -> None:
        self.yard = Yard(gpu(size=100 * len(seconds)))
        count = len(seconds)
        self.key = self.yard.add("a", 100, slots=slots, min_replicas=count, max_replicas=count)
        for _ in seconds:
            self.yard.ready(self.key)
        self.ids = [each.id for each in self.yard.instances(self.key)]
        self.seconds = dict(zip(self.ids, seconds, strict=True))
        self.shared = shared
        self.shares = Counter[int]()
        self._left: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in self.ids}
        self._count = 0

    def slow_down(self, replica: int, seconds: float) -> None:
        self.seconds[self.ids[replica]] = seconds

    def arrive(self, work: float = 1.0) -> int:
        """Which replica it was given to; one has a slot free."""
        self._count += 1
        request = f"r{self._count}"
        self.yard.do(ev.Arrived(request, self.key))
        holder = self.yard.holder(request)
        assert holder is not None
        self._left[holder][request] = (work, work)
        self.shares[self.ids.index(holder)] += 1
        return self.ids.index(holder)

    def running(self) -> int:
        return sum(map(len, self._left.values()))

    def pass_time(self, seconds: float) -> None:
        """Work on, and end what is done, each at its time."""
        end = self.yard.now + seconds
        while (first := self._next()) is not None and first[0] <= end:
            self._work(first[0])
            _, holder, request = first
            _, work = self._left[holder].pop(request)
            done = ev.Finished(request, holder, 1, OutcomeKind.DONE, work=work)
            self.yard.do(done)
        self._work(end)

    def one_by_one(self, count: int, works: Sequence[float] = (1.0,)) -> Counter[int]:
        """The shares of requests of which each waits for the end of the one before."""
        before = self.shares.copy()
        for number in range(count):
            self.arrive(works[number % len(works)])
            while (first := self._next()) is not None:
                self.pass_time(max(0.0, first[0] - self.yard.now))
        return self.shares - before

    def over_time(self, rate: float, seconds: float, seed: int = 1) -> Counter[int]:
        """The shares of requests that arrive by chance, so many a second."""
        dice, before, until = Random(seed), self.shares.copy(), self.yard.now + seconds
        while self.yard.now < until:
            self.pass_time(dice.expovariate(rate))
            if self.running() < SLOTS * len(self.ids):
                self.arrive()
        return self.shares - before

    def _pace(self, holder: str) -> float:
        return self.seconds[holder] * (len(self._left[holder]) if self.shared else 1)

    def _next(self) -> tuple[float, str, str] | None:
        ends = [
            (self.yard.now + left * self._pace(holder), holder, request)
            for holder, those in self._left.items()
            for request, (left, _) in those.items()
        ]
        return min(ends, default=None)

    def _work(self, until: float) -> None:
        passed = until - self.yard.now
        for holder, those in self._left.items():
            done = passed / self._pace(holder) if those else 0.0
            self._left[holder] = {request: (left - done, work) for request, (left, work) in those.items()}
        self.yard.pass_time(passed)


def share(shares: Mapping[int, int], replica: int) -> float:
    return shares[replica] / sum(shares.values())


@pytest.mark.parametrize("shared", [False, True], ids=["batching", "sharing"])
def test_at_low_load_the_faster_replica_gets_most(shared: bool) -> None:
    engines = Engines(0.3, 0.1, shared=shared)
    engines.one_by_one(20)
    assert share(engines.one_by_one(400), 1) >= 0.95
    assert share(engines.over_time(2.0, 200.0), 1) >= 0.85


def test_shares_turn_when_the_faster_one_becomes_slow_and_again_when_it_is_fast() -> None:
    engines = Engines(0.3, 0.1)
    assert share(engines.one_by_one(100), 1) >= 0.85
    engines.slow_down(1, 1.0)
    assert share(engines.one_by_one(20), 0) >= 0.6
    assert share(engines.one_by_one(200), 0) >= 0.95
    engines.slow_down(1, 0.1)
    engines.one_by_one(400)
    assert share(engines.one_by_one(100), 1) >= 0.9


@given(st.floats(1.6, 100.0), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_trying_slow_ones_again_costs_little_however_many_they_are(
    slower: float, slow: int, fast: int
) -> None:
    engines = Engines(*[slower] * slow, *[1.0] * fast)
    engines.one_by_one(20 * (slow + fast))  # it learns
    others = slow + fast - 1
    count = 3 * AGAIN * others
    shares = engines.one_by_one(count)
    for replica in range(slow):
        assert (slower - 1.0) * shares[replica] <= count / (AGAIN * others) + slower, shares
        assert shares[replica] >= int(count / (AGAIN * others * (slower - 1.0) + 1.0)) - 1, shares


def test_of_many_replicas_each_is_known_by_more_than_one_answer() -> None:
    engines = Engines(*[0.2] * 40)
    engines.one_by_one(80)
    for seconds in (0.1, 0.3) * 6:
        engines.seconds = dict.fromkeys(engines.ids, seconds)
        engines.one_by_one(40)
    for each in engines.yard.instances(engines.key):
        assert each.pace == pytest.approx(0.2, rel=0.3)


@given(
    st.lists(st.floats(0.01, 10.0), min_size=2, max_size=5), st.booleans(), st.randoms(use_true_random=False)
)
@settings(max_examples=12, deadline=None)
def test_no_replica_is_forgotten_and_none_waits_while_one_has_a_slot(
    seconds: list[float], shared: bool, dice: Random
) -> None:
    engines = Engines(*seconds, shared=shared)
    for _ in range(120):
        if engines.running() < SLOTS * len(seconds) and dice.random() < 0.7:
            engines.arrive(dice.choice((1.0, 5.0)))
        else:
            engines.pass_time(dice.choice((0.01, 0.3, 2.0)))
    engines.pass_time(1e6)
    slowest = max(range(len(seconds)), key=lambda each: seconds[each])
    for replica in range(len(seconds)):
        engines.slow_down(replica, 0.001 if replica == slowest else 1.0)
    for _ in range(300):
        found = engines.one_by_one(100)
        if share(found, slowest) > 0.6:
            return
    raise AssertionError(f"{seconds[slowest]} is not tried again: {engines.shares}")


def test_what_is_alike_is_shared_alike_whatever_its_work() -> None:
    engines = Engines(0.1, 0.1, 0.1)
    shares = engines.one_by_one(300, works=(1.0, 50.0, 3.0, 8.0))
    assert max(shares.values()) - min(shares.values()) <= 6, shares
    shares = engines.over_time(100.0, 30.0)
    mean = shares.total() / 3
    assert all(abs(each - mean) <= 0.03 * mean for each in shares.values()), shares


def test_many_texts_do_not_make_a_replica_look_slow() -> None:
    engines = Engines(0.1, 0.2)
    for _ in range(10):
        engines.one_by_one(1, works=(50.0,))
    paces = [each.pace for each in engines.yard.instances(engines.key)]
    assert paces == pytest.approx([0.1, 0.2])


def test_an_answer_that_says_nothing_of_the_speed_is_not_learned_from() -> None:
    engines = Engines(0.1, 0.1)
    yard = engines.yard
    yard.do(ev.Arrived("r", engines.key))
    holder = yard.holder("r")
    yard.pass_time(5.0)
    yard.do(ev.Finished("r", str(holder), 1, OutcomeKind.DONE, work=0.0))
    assert [each.pace for each in yard.instances(engines.key)] == [0.0, 0.0]


def test_a_batch_that_ends_at_once_counts_as_a_whole() -> None:
    engines = Engines(1.0, 1.0, slots=64)
    engines.one_by_one(2)
    for _ in range(128):
        engines.arrive()
    engines.pass_time(2.0)
    for each in engines.yard.instances(engines.key):
        assert each.pace == pytest.approx(1.0 / 64.0), "64 of them in a second"


def test_the_first_answer_is_not_learned_from() -> None:
    engines = Engines(5.0, 5.0)
    engines.one_by_one(2)
    assert [each.pace for each in engines.yard.instances(engines.key)] == [0.0, 0.0]
    engines.slow_down(0, 0.1)
    engines.one_by_one(2)
    assert engines.yard.instances(engines.key)[0].pace == pytest.approx(0.1)


def test_a_newcomer_is_taken_to_be_as_fast_as_the_fastest() -> None:
    engines = Engines(0.3, 0.1)
    engines.one_by_one(50)
    version = engines.yard.version(engines.key)
    first, second = version.ready
    assert pick(version) is second
    first.pace = 0.0
    second.granted = first.granted + 1
    assert pick(version) is first
