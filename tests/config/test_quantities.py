"""Sizes and durations as people write them."""

from __future__ import annotations

from math import inf

import pytest

from modelyard.config import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("1.5 MB", 1_500_000),
        ("64kB", 64_000),
        ("64KiB", 65_536),
        ("7", 7),
        ("7B", 7),
        (0, 0),
        (1024, 1024),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", -1, "-1GB", "24 gigabytes", "1e9", True, 1.5, None, "GB", "9" * 30])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("5s", 5), ("10m", 600), ("1h", 3600), ("2d", 172_800), (1.5, 1.5), ("3", 3), (0, 0)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_forever() -> None:
    assert parse_duration("forever") == inf


@pytest.mark.parametrize("text", ["", "5 minutes", -1, "-1s", True, None, inf, float("nan"), "9" * 20, []])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
