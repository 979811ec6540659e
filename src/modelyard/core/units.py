"""Bytes as people write and read them, in the units that devices are sold in."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?B|B)?")
_SIZES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "kiB": 2**10, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
LARGEST = 2**60
_UNITS = ("B", "kB", "MB", "GB", "TB")
_MANY = 1_000_000


def parse_size(value: object) -> int:
    """Bytes from `24GB` (24·10⁹), `24GiB` (24·2³⁰), `512MB`, or an integer. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = round(float(match[1]) * _SIZES[match[2] or "B"])
    else:
        raise ValueError("is not a size; write 24GB, 24GiB or a whole number of bytes, not below 0")
    if not 0 <= size <= LARGEST:
        raise ValueError("is not a size that can be: it is below 0 or above 1 EiB")
    return size


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
