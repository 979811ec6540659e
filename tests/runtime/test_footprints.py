"""Footprints: what is observed, and what others saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest

from modelyard.core.types import Need, Parallel, Share, Spec, WarmUp
from modelyard.engines.base import ModelFile
from modelyard.runtime.footprints import Footprint, Footprints, Key, footprint_of, key_of
from modelyard.runtime.timing import SAMPLE, Timing

KEY = Key("f", "llamacpp", "p", "cuda")
Make = Callable[[int], Footprints]
NEED = Need((Share("accelerator", 1000), Share("ram", 500, {"digest": 7})), known=False)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Make:
    return lambda limit: Footprints(limit=limit, clock=clock)


# -- what is observed -----------------------------------------------------------------------------------


def test_nothing_is_known_at_first(make: Make) -> None:
    footprints = make(10)
    assert footprints.get(KEY) is None
    assert footprints._entries == {}


def test_an_observation_corrects_the_estimate(make: Make) -> None:
    footprints = make(10)
    footprint = footprints.observe(KEY, [2000, 100], need=NEED, load_seconds=4.0)
    assert footprints.get(KEY) == footprint
    assert footprints._entries == {KEY: footprint}
    learned = footprint.learned(NEED)
    assert learned.known
    assert [share.bytes for share in learned.shares] == [2300, 115]
    assert learned.shares[1].mapped == {"digest": 7}
    assert footprint.load == Timing(4.0, 0.0, 1)


def test_the_margin_shrinks_to_three_percent(make: Make) -> None:
    footprints = make(10)
    margins = [footprints.observe(KEY, [10_000, 0], need=NEED).margin for _ in range(8)]
    assert margins == sorted(margins, reverse=True)
    assert (margins[0], margins[-1]) == (0.15, 0.03)


def test_a_higher_observation_counts_at_once_and_a_lower_one_slowly(
    make: Make,
) -> None:
    footprints = make(10)
    footprints.observe(KEY, [1000, 100], need=NEED)
    assert footprints.observe(KEY, [2000, 100], need=NEED).bytes == (2000, 100)
    assert footprints.observe(KEY, [1000, 100], need=NEED).bytes == (1750, 100)


def test_what_could_not_be_measured_keeps_the_estimate(make: Make) -> None:
    learned = make(10).observe(KEY, [0, 100], need=NEED).learned(NEED)
    assert [share.bytes for share in learned.shares] == [1000, 115]


def test_an_observation_of_another_shape_changes_no_bytes(make: Make) -> None:
    footprints = make(10)
    assert footprints.observe(KEY, [5], need=NEED).learned(NEED) == NEED
    footprints.observe(KEY, [2000, 100], need=NEED)
    assert footprints.observe(KEY, [5], need=NEED).bytes == (2000, 100)


def test_times_are_kept_with_their_spread(make: Make) -> None:
    footprints = make(10)
    for seconds in (10.0, 90.0, 11.0, 14.0):
        footprint = footprints.observe(KEY, [1, 1], load_seconds=seconds)
    assert footprint.load == Timing(12.5, 2.0, 4)
    assert footprint.first_token is None
    assert footprints.observe(KEY, (), first_token=0.5).first_token == Timing(0.5, 0.0, 1)
    for _ in range(SAMPLE):
        footprint = footprints.observe(KEY, [1, 1], load_seconds=3.0)
    assert footprint.load == Timing(3.0, 0.0, SAMPLE), "the oldest are forgotten"


def test_a_time_alone_says_nothing_of_bytes(make: Make) -> None:
    footprints = make(10)
    before = footprints.observe(KEY, [2000, 100], need=NEED)
    after = footprints.observe(KEY, (), first_token=0.5, load_seconds=1.0)
    assert (after.bytes, after.observations) == (before.bytes, before.observations)
    assert footprints.observe(Key("g", "e", "p", "ram"), (), load_seconds=1.0).learned(NEED) == NEED


def test_a_warm_up_has_times_of_its_own() -> None:
    one = Spec("m", "d", "e")
    warmed = replace(one, warm_up=WarmUp(("Hello",)))
    assert key_of(one, {}, "ram") == key_of(replace(one, warm_up=WarmUp()), {}, "ram")
    assert key_of(one, {}, "ram") != key_of(warmed, {}, "ram")


def test_a_layout_on_several_devices_is_measured_by_itself() -> None:
    one = Spec("m", "d", "e")
    layouts = [Parallel(), Parallel(tensor=2), Parallel(pipeline=2)]
    keys = [key_of(replace(one, parallel=each), {}, "cuda") for each in layouts]
    assert len(set(keys)) == 3
    assert keys[0].parameters[:8] == "4356ad0d", "what others kept before is found"


def test_the_number_of_entries_is_bounded(make: Make, clock: Clock) -> None:
    footprints = make(3)
    keys = [Key(str(n), "e", "p", "ram") for n in range(5)]
    for key in keys:
        clock.now += 1
        footprints.observe(key, [1])
    assert set(footprints._entries) == set(keys[2:])
    assert set(footprints.changed()) == set(keys[2:])


# -- what others have seen ------------------------------------------------------------------------------


def test_what_was_seen_later_wins(make: Make, clock: Clock) -> None:
    footprints = make(10)
    own = footprints.observe(KEY, [100])
    earlier, later = Footprint((1,), 1, seen=clock.now - 1), Footprint((2,), 1, seen=clock.now + 1)
    assert not footprints.merge({KEY: earlier})
    assert not footprints.merge({KEY: replace(earlier, seen=clock.now)})
    assert footprints.get(KEY) is own
    assert set(footprints.merge({KEY: later})) == {KEY}
    assert footprints.get(KEY) is later


def test_what_is_kept_is_not_kept_again(make: Make, clock: Clock) -> None:
    footprints = make(10)
    first = footprints.observe(KEY, [100])
    assert footprints.changed() == {KEY: first}
    second = footprints.observe(KEY, [200])
    footprints.kept({KEY: first})
    assert footprints.changed() == {KEY: second}, "it was observed again meanwhile"
    footprints.kept({KEY: second})
    assert footprints.changed() == {}
    footprints.observe(KEY, [300])
    footprints.merge({KEY: Footprint((2,), 1, seen=clock.now + 1)})
    assert footprints.changed() == {}, "what is kept is newer"


def test_no_more_are_taken_from_others_than_there_may_be(make: Make) -> None:
    footprints = make(3)
    keys = [Key(str(n), "e", "p", "ram") for n in range(5)]
    many = {key: Footprint((1,), 1, seen=float(n)) for n, key in enumerate(keys)}
    assert set(footprints.merge(many)) == set(keys[2:])
    assert set(footprints._entries) == set(keys[2:])


ODD = [
    {"bytes": ["x"]},
    {"bytes": [-1]},
    {"observations": "1"},
    {"seen": nan},
    {"loads": [inf]},
    {"first_tokens": 1.0},
]


@pytest.mark.parametrize("odd", ODD)
def test_what_others_kept_is_read_as_it_should_be(odd: dict[str, object]) -> None:
    fields = {"bytes": [5], "observations": 2, "loads": [4.5], "first_tokens": [0.5], "seen": 1.0}
    assert footprint_of(fields) == Footprint((5,), 2, (4.5,), (0.5,), 1.0)
    with pytest.raises(ValueError):
        footprint_of({**fields, **odd})


# -- keys -----------------------------------------------------------------------------------------------


def test_a_key_names_files_parameters_and_device() -> None:
    spec = Spec("m", "d", "llamacpp", parameters={"context": 1024}, slots=2)
    files = {"model": ModelFile(Path("/a"), 5, "abc")}
    key = key_of(spec, files, "cuda")
    assert key == key_of(Spec("other", "x", "llamacpp", parameters={"context": 1024}, slots=2), files, "cuda")
    others = [
        key_of(spec, files, "ram"),
        key_of(spec, {"model": ModelFile(Path("/a"), 5, "abd")}, "cuda"),
        key_of(Spec("m", "d", "llamacpp", parameters={"context": 2048}, slots=2), files, "cuda"),
        key_of(Spec("m", "d", "llamacpp", parameters={"context": 1024}, slots=4), files, "cuda"),
    ]
    assert key not in others
    assert len(set(others)) == 4


def test_a_footprint_without_observations_says_nothing() -> None:
    assert Footprint().learned(NEED) == NEED
