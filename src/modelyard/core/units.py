"""Bytes as people read them, in the units that devices are sold in."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")
_MANY = 1_000_000


def short(size: int) -> str:
    """`1.5 GB`: three digits at most."""
    amount, unit = float(abs(size)), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    digits = 0 if amount >= 99.95 or unit == 0 else 1
    return f"{'-' if size < 0 else ''}{amount:.{digits}f} {_UNITS[unit]}"


def in_units(size: int) -> str:
    """`1500000000 bytes (1.5 GB)`: exact, and short beside where they are many."""
    return f"{size} bytes" + (f" ({short(size)})" if size >= _MANY else "")
