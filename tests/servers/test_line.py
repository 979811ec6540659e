"""Which of what waits goes through the model together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.servers.line import FEW, LATER, LATEST, LIKE, PATIENCE, ROUNDS, SLACK, SPREAD, Item, Line

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=60)


def line_of(lengths: Sequence[int], lanes: Sequence[int] = ()) -> Line[int]:
    line: Line[int] = Line()
    for number, length in enumerate(lengths):
        line.add([Item(number, length, arrived=float(number), lane=lanes[number] if lanes else 0)])
    return line


def lengths(batch: Sequence[Item[int]]) -> list[int]:
    return [item.length for item in batch]


def test_the_shortest_go_first_and_those_of_one_length_in_their_order() -> None:
    line = line_of([9, 3, 50, 4, 3])
    assert [item.what for item in line.take(0.0, 12)] == [1, 4, 3]
    assert lengths(line.take(0.0, 1000)) == [9, 50]
    assert line.take(0.0, 1000) == []
    assert (len(line), line.tokens, line.oldest()) == (0, 0, None)


def test_batches_are_filled_from_the_longest_on() -> None:
    line = line_of([10, 30, 30, 30, 40, 50])
    assert [lengths(line.take(0.0, 100)) for _ in range(3)] == [[10], [30, 30, 30], [40, 50]]


def test_one_that_is_not_full_takes_those_of_about_its_length() -> None:
    line = line_of([10] * 5)
    assert [len(line.take(0.0, 1000, most=2)) for _ in range(3)] == [2, 2, 1]
    like = int(10 * LIKE)
    assert lengths(line_of([10, like, 100, 100]).take(0.0, 200)) == [10, like]
    assert lengths(line_of([10, like + 1, like + 1]).take(0.0, 2 * like + 2)) == [10]


def test_padding_is_counted() -> None:
    assert lengths(line_of([6, 6, 6, 10]).take(0.0, 39)) == [6, 6, 6]
    assert lengths(line_of([6, 6, 6, 10]).take(0.0, 40)) == [6, 6, 6, 10]


def test_what_is_longer_than_the_bound_goes_alone() -> None:
    line = line_of([70, 80])
    assert lengths(line.take(0.0, 60)) == [70]
    assert lengths(line.take(0.0, 60)) == [80]


def test_a_short_one_does_not_wait_for_long_ones() -> None:
    most = 2 * SPREAD + SLACK
    assert lengths(line_of([2, most, 200]).take(0.0, 10_000)) == [2, most]
    assert lengths(line_of([2, most + 1, 200]).take(0.0, 10_000)) == [2]


def test_who_has_waited_long_enough_goes_next_with_those_of_like_length() -> None:
    line = line_of([100, 90, 80, 3, 2, 5])
    assert lengths(line.take(PATIENCE - 0.01, 200)) == [2, 3, 5]
    line = line_of([100, 90, 80, 3, 2, 5])
    assert lengths(line.take(PATIENCE, 200)) == [90, 100]
    line = line_of([100, 90, 80, 3, 2, 5])
    assert lengths(line.take(PATIENCE, 99)) == [100]
    line = line_of([100, 90, 80, 3, 2, 5])
    assert lengths(line.take(PATIENCE, 10_000)) == [80, 90, 100]
    line = line_of([7, 7, 7, 6, 8])
    assert [item.what for item in line.take(PATIENCE, 22)] == [3, 0, 1]


def test_threads_that_are_idle_share_what_waits() -> None:
    line = line_of([2, 3, 4, 5])
    assert [lengths(line.take(0.0, 100, idle=idle)) for idle in (2, 1)] == [[4, 5], [2, 3]]
    line = line_of([4])
    assert lengths(line.take(0.0, 100, idle=2)) == [4]


def test_the_longest_go_first_where_little_waits_for_several_threads() -> None:
    few = [10] * 2 * ROUNDS * 2
    assert lengths(line_of([*few[:-1], 12]).take(0.0, 24, idle=2)) == [10, 12]
    assert lengths(line_of([*few, 9, 12]).take(0.0, 24, idle=2)) == [9, 10]
    assert lengths(line_of([*few[:-2], 9, 12]).take(0.0, 24, idle=1)) == [9, 10]
    # Who has waited long enough comes before.
    line = line_of([3, 30, 31])
    assert [lengths(line.take(PATIENCE, 31, idle=2)) for _ in range(2)] == [[3], [31]]


def test_a_sentence_does_not_wait_for_a_book_nor_a_book_for_all_sentences() -> None:
    line: Line[str] = Line()
    line.add([Item("book", 3, arrived=0.0) for _ in range(100)])
    line.add([Item("sentence", 30, arrived=0.1)])
    late = 0.1 + PATIENCE
    assert [{item.what for item in line.take(late, 40)} for _ in range(3)] == [
        {"book"},
        {"sentence"},
        {"book"},
    ]
    for _ in range(2):
        line.add([Item("sentence", 30, arrived=late)])
    assert [line.take(late, 40)[0].what for _ in range(4)] == ["sentence", "book", "sentence", "book"]


def test_words_do_not_keep_a_paragraph_behind_a_book_nor_paragraphs_a_book_for_ever() -> None:
    line: Line[str] = Line()
    line.add([Item("book", 20, arrived=0.0) for _ in range(10 * LATER)])
    line.add([Item("paragraph", 90, arrived=0.1)])
    for _ in range(4):
        line.add([Item("word", 3, arrived=0.2)])
    late = 0.2 + PATIENCE
    assert [line.take(late, 9, most=1)[0].what for _ in range(4)] == ["paragraph", "word", "word", "word"]
    line.add([Item("paragraph", 90, arrived=LATEST - 0.1)])
    for _ in range(2):
        line.add([Item("paragraph", 90, arrived=LATEST + 0.1)])
    found = [line.take(LATEST + 1.0, 90, most=1)[0].what for _ in range(4)]
    assert found == ["word", "paragraph", "book", "paragraph"]


def test_lanes_do_not_mix() -> None:
    line = line_of([5, 4, 6, 7], lanes=[0, 1, 0, 1])
    assert lengths(line.take(0.0, 1000)) == [4, 7]
    assert lengths(line.take(0.0, 1000)) == [5, 6]


@pytest.mark.parametrize("count", [FEW, FEW + 1])
def test_a_large_request_finds_its_places_among_the_others(count: int) -> None:
    line = line_of([30, 5, 60], lanes=[0, 0, 1])
    line.add([Item(number, 1 + number * 37 % 101, arrived=3.0) for number in range(count)])
    there = sorted([30, 5, *(1 + number * 37 % 101 for number in range(count))])
    taken: list[int] = []
    while batch := line.take(3.0, 100):
        assert lengths(batch) == sorted(lengths(batch))
        taken += lengths(batch)
    assert sorted(taken) == sorted([*there, 60])


@given(LENGTHS, st.data())
def test_what_left_is_never_taken(found: list[int], data: st.DataObject) -> None:
    line: Line[int] = Line()
    items = [Item(number, length, 0.0) for number, length in enumerate(found)]
    half = len(items) // 2
    line.add(items[:half])
    line.add(items[half:])
    gone = data.draw(st.sets(st.sampled_from(items)))
    assert all(line.remove(item) for item in gone)
    assert not any(line.remove(item) for item in gone)
    assert line.tokens == sum(item.length for item in items if item not in gone)
    taken = [item for _ in items for item in line.take(0.0, 100)]
    assert {*taken} == {*items} - gone
    assert not any(line.remove(item) for item in taken)


@given(LENGTHS, st.integers(1, 400), st.floats(0, 100), st.integers(1, 4))
def test_every_one_goes_once_in_batches_within_the_bound(
    found: list[int], bound: int, now: float, idle: int
) -> None:
    line, taken = line_of(found), []
    while batch := line.take(now, bound, idle=idle):
        sizes = lengths(batch)
        assert len(batch) == 1 or max(sizes) * len(sizes) <= bound
        assert max(sizes) <= min(sizes) * SPREAD + SLACK
        taken += [item.what for item in batch]
    assert sorted(taken) == [*range(len(found))]
