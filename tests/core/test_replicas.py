"""Requests over several replicas: even shares, and the same replica for the same beginning."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from core.yard import Yard, gpu, granted
from modelyard.core import events as ev
from modelyard.core.types import Cause


def replicas(count: int = 4, slots: int = 8) -> tuple[Yard, str]:
    yard = Yard(gpu(size=100 * count))
    key = yard.add("a", 100, slots=slots, min_replicas=count, max_replicas=count)
    for _ in range(count):
        yard.ready(key)
    assert yard.states(key) == ["ready"] * count
    return yard, key


def ask(yard: Yard, request: str, key: str, prefix: int | None = None) -> str:
    yard.do(ev.Arrived(request, key, prefix=prefix))
    holder = yard.holder(request)
    assert holder is not None
    return holder


def even(shares: Counter[str], count: int) -> None:
    assert len(shares) == count
    mean = shares.total() / count
    assert all(abs(share - mean) <= 0.02 * mean for share in shares.values()), shares


@pytest.mark.parametrize("at_a_time", [1, 3, 24])
def test_ten_thousand_requests_are_shared_evenly(at_a_time: int) -> None:
    yard, key = replicas()
    chance, running, shares = random.Random(at_a_time), list[str](), Counter[str]()
    for number in range(10_000):
        if len(running) >= at_a_time:
            yard.finish(running.pop(chance.randrange(len(running))))
        shares[ask(yard, f"r{number}", key)] += 1
        running.append(f"r{number}")
    even(shares, 4)


def test_shares_are_even_again_after_one_was_replaced() -> None:
    yard, key = replicas(slots=2)

    def shares(count: int) -> Counter[str]:
        found = Counter[str]()
        for _ in range(count):
            found[ask(yard, "r", key)] += 1
            yard.finish("r")
        return found

    even(shares(1000), 4)
    first = yard.instances(key)[0]
    yard.do(ev.Exited(first.id, first.generation, Cause.KILLED))
    even(shares(999), 3)
    yard.released(key)
    yard.ready(key)
    even(shares(1000), 4)  # whoever is new has nothing to catch up with


def test_the_same_beginning_comes_to_the_same_replica_while_it_has_a_slot() -> None:
    yard, key = replicas(slots=2)
    home = ask(yard, "r1", key, 7)
    assert ask(yard, "r2", key, 7) == home
    other = ask(yard, "r3", key, 7)
    assert other != home, "both its slots are taken"
    yard.finish("r1")
    assert ask(yard, "r4", key, 7) == home


def test_one_that_is_freer_by_more_than_a_quarter_of_its_slots_goes_before_one_that_had_fewer() -> None:
    yard, key = replicas(2)
    first, second = yard.instances(key)
    second.granted = 1000
    homes = [ask(yard, f"r{number}", key) for number in range(5)]
    assert homes == [first.id] * 3 + [second.id, first.id]


def test_a_beginning_waits_its_turn_where_all_replicas_are_full() -> None:
    yard, key = replicas(slots=1)
    homes = [ask(yard, f"r{number}", key, 7) for number in range(4)]
    assert sorted(homes) == sorted(each.id for each in yard.instances(key))
    assert not granted(yard.do(ev.Arrived("late", key, prefix=7)))
    assert granted(yard.finish("r2")) == ["late"]
    assert yard.holder("late") == homes[2]


def test_beginnings_are_spread_and_few_move_when_a_replica_goes() -> None:
    yard, key = replicas()

    def homes() -> dict[int, str]:
        found = {}
        for prefix in range(2000):
            found[prefix] = ask(yard, "r", key, prefix * 2654435761 % 2**32)
            yard.finish("r")
        return found

    before = homes()
    shares = Counter(before.values())
    assert all(400 <= share <= 600 for share in shares.values()), shares
    gone = yard.instances(key)[0]
    yard.do(ev.Exited(gone.id, gone.generation, Cause.KILLED))
    after = homes()
    assert all(after[prefix] == home for prefix, home in before.items() if home != gone.id)
