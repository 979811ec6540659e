"""What a request is expected to wait for, without asking: a load, and others."""

from __future__ import annotations

from itertools import count
from math import inf

from core.yard import Yard, need
from modelyard.core import events as ev
from modelyard.core.admission import expected
from modelyard.core.types import RateLimit

NUMBERS = count()


def ask(yard: Yard, key: str, requests: int = 1) -> None:
    for _ in range(requests):
        yard.ask(f"r{next(NUMBERS)}", key)


def of(yard: Yard, key: str) -> tuple[float, float]:
    return expected(yard.state, yard.scheduler.sums, yard.version(key), yard.now)


def test_one_that_is_ready_and_free_waits_for_nothing() -> None:
    yard = Yard()
    key = yard.load("a", slots=2)
    assert of(yard, key) == (0.0, 0.0)
    ask(yard, key)
    assert of(yard, key) == (0.0, 0.0)


def test_full_slots_are_turns_of_the_usual_service() -> None:
    yard = Yard()
    key = yard.load("a", slots=2)
    yard.do(ev.Learned(key, need(60), 7.0))
    ask(yard, key, 3)
    yard.version(key).service_seconds = 3.0
    assert of(yard, key) == (0.0, 6.0)  # two that run, and one that waits, on two slots


def test_replicas_share_what_waits() -> None:
    yard = Yard()
    key = yard.add("a", 30, min_replicas=2, max_replicas=2)
    for _ in range(2):
        yard.ready(key)
    assert len(yard.version(key).ready) == 2
    ask(yard, key, 6)
    assert of(yard, key) == (0.0, 3.0)


def test_an_absent_one_is_loaded_first() -> None:
    yard = Yard()
    key = yard.add("a", 60)
    assert of(yard, key) == (yard.version(key).usual_load(), 0.0)
    yard.do(ev.Learned(key, need(60), 7.0))
    assert of(yard, key) == (7.0, 0.0)


def test_one_that_starts_has_a_part_of_its_load_behind_it() -> None:
    yard = Yard()
    key = yard.add("a", 60)
    yard.do(ev.Learned(key, need(60), 7.0))
    ask(yard, key)
    yard.pass_time(3.0)
    assert of(yard, key) == (4.0, 1.0)
    yard.pass_time(30.0)
    assert of(yard, key) == (0.0, 1.0)


def test_of_several_that_start_the_first_counts() -> None:
    yard = Yard()
    key = yard.add("a", 30, min_replicas=2, max_replicas=2)
    yard.do(ev.Learned(key, need(30), 7.0))
    yard.instances(key)[1].started_at = 3.0
    yard.pass_time(5.0)
    assert of(yard, key)[0] == 2.0


def test_an_absent_one_waits_for_those_of_other_models_too() -> None:
    yard = Yard()
    busy, other = yard.load("a", 60), yard.add("b", 60)
    yard.state.room_seconds = 2.0
    assert of(yard, other)[1] == 2.0
    ask(yard, busy, 4)
    assert of(yard, other)[1] == 2.0 + 3.0  # the three that wait, a second each
    assert of(yard, busy) == (0.0, 4.0)


def test_those_who_wait_for_it_already_count_once() -> None:
    yard = Yard()
    yard.load("a", 60, when_full="evict", pin=True)
    key = yard.add("b", 60)
    ask(yard, key, 2)
    assert of(yard, key)[1] == 2.0


def test_what_would_be_refused_is_without_end() -> None:
    yard = Yard()
    assert of(yard, yard.add("large", 200))[1] == inf
    key = yard.load("a", 60, queue_bound=2)
    ask(yard, key, 2)
    assert of(yard, key)[1] == 2.0
    ask(yard, key)
    assert of(yard, key)[1] == inf


def test_one_that_backs_off_is_without_end_until_it_may_be_tried_again() -> None:
    yard = Yard()
    key = yard.add("a", 60)
    version = yard.version(key)
    version.backoff_until, version.last_error = 10.0, ("load_failed", "as told")
    assert of(yard, key)[1] == inf
    yard.pass_time(10.0)
    assert of(yard, key)[1] == 0.0


def test_a_limit_counts() -> None:
    yard = Yard()
    key = yard.load("a", slots=4, rate_limit=RateLimit(1, 30.0))
    ask(yard, key)
    assert of(yard, key) == (0.0, 30.0)
    yard.pass_time(10.0)
    assert of(yard, key) == (0.0, 20.0)
