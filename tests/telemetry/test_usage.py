"""Usage as it is added up in memory."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from modelyard.core.types import FREE, Price
from modelyard.telemetry.usage import HOUR, MOST_TOKENS, Sums, Usage


class Clock:
    now = 100.0 * HOUR

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def end(usage: Usage, key: str = "k", model: str = "m", price: Price = FREE, **rest: object) -> None:
    known = {"failed": False, "input_tokens": 0, "output_tokens": 0, "seconds": 0.0}
    usage.ended(key, model, f"{model}@1", price, **(known | rest))  # type: ignore[arg-type]


def test_requests_are_added_up_by_hour_key_model_and_version(clock: Clock) -> None:
    usage = Usage(clock=clock)
    end(usage, input_tokens=3, output_tokens=4, seconds=0.5)
    end(usage, failed=True, seconds=0.25)
    end(usage, key="")
    clock.now += HOUR - 1
    end(usage, model="n")
    clock.now += 1
    end(usage)
    assert len(usage) == 4
    assert usage.take(100) == {
        (100, "k", "m", "m@1"): Sums(2, 1, 3, 4, 0.75),
        (100, "", "m", "m@1"): Sums(1),
        (100, "k", "n", "n@1"): Sums(1),
        (101, "k", "m", "m@1"): Sums(1),
    }
    assert usage.take(100) == {}


def test_the_price_of_the_moment_counts(clock: Clock) -> None:
    usage = Usage(clock=clock)
    end(usage, price=Price(0.15, 0.60, 9.0), input_tokens=2_000_000, output_tokens=500_000)
    end(usage, price=Price(1.0), input_tokens=1_000_000, output_tokens=7)
    usage.loaded("m", "m@1", Price(1.0, 1.0, 0.002))
    found = usage.take(100)
    assert found[100, "k", "m", "m@1"].cost == pytest.approx(0.30 + 0.30 + 1.0)
    assert found[100, "", "m", "m@1"] == Sums(loads=1, cost=0.002)


def test_what_no_sum_could_hold_is_no_count(clock: Clock) -> None:
    usage = Usage(clock=clock)
    end(usage, price=Price(1.0), input_tokens=2**64 - 1, output_tokens=2**64 - 1)
    (sums,) = usage.take(1).values()
    assert (sums.input_tokens, sums.output_tokens) == (MOST_TOKENS, MOST_TOKENS)


def test_the_number_of_rows_is_bounded_and_that_is_said_once(clock: Clock) -> None:
    usage = Usage(limit=3, clock=clock)
    with capture_logs() as said:
        for number in range(10):
            end(usage, model=str(number), seconds=1.0)
        end(usage, model="0")
        usage.loaded("other", "other@1", Price(load=2.0))
    assert len(usage) == 4
    assert [line["event"] for line in said] == ["usage.full"]
    found = usage.take(100)
    assert found[100, "", "", ""] == Sums(7, seconds=7.0, loads=1, cost=2.0)
    assert found[100, "k", "0", "0@1"].requests == 2, "those that are there go on"
    end(usage, model="9")
    assert list(usage.take(100)) == [(100, "k", "9", "9@1")]


def test_the_oldest_rows_are_taken_first(clock: Clock) -> None:
    usage = Usage(clock=clock)
    for name in "abc":
        end(usage, model=name)
    assert [place[2] for place in usage.take(2)] == ["a", "b"]
    end(usage, model="a")
    assert [place[2] for place in usage.take(2)] == ["c", "a"]


def test_pairs_are_counted_by_hour_and_bounded(clock: Clock) -> None:
    usage = Usage(limit=2, clock=clock)
    for asked in (("en", "fr", ""), ("en", "de", "m"), ("en", "fr", ""), ("en", "it", "")):
        usage.translated(asked)
    assert usage.asked == 2
    assert usage.take_pairs(1) == {(100, ("en", "fr", "")): 2}
    assert usage.take_pairs(9) == {(100, ("en", "de", "m")): 1}
    assert (usage.asked, usage.take_pairs(9)) == (0, {})
