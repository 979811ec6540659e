"""Bytes as people read them."""

from __future__ import annotations

import pytest

from modelyard.core.units import in_units, short


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (24_000_000_000, "24.0 GB"),
        (123_456_000_000, "123 GB"),
        (2_000_000_000_000_000, "2000 TB"),
        (-1_500_000_000, "-1.5 GB"),
    ],
)
def test_three_digits_and_a_unit(size: int, text: str) -> None:
    assert short(size) == text


def test_many_bytes_are_also_told_short() -> None:
    assert in_units(999_999) == "999999 bytes"
    assert in_units(1_000_000) == "1000000 bytes (1.0 MB)"
    assert in_units(11_000_000) == "11000000 bytes (11.0 MB)"
