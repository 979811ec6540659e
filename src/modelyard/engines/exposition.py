"""Numbers on the pages that engines have for Prometheus.

Used by adapters, of every instance every few seconds: only the lines that are asked for are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection


def sums(page: bytes, names: Collection[str]) -> dict[str, float]:
    """The values of these series that are there, each added up over its labels."""
    wanted = "|".join(map(re.escape, names)).encode()
    found: dict[str, float] = {}
    for match in re.finditer(rb"^(%b)(?:\{.*\})? ([-+.0-9eE]+)(?: -?\d+)?$" % wanted, page, re.MULTILINE):
        name = match[1].decode()
        found[name] = found.get(name, 0.0) + float(match[2])
    return found


def ratio(of: float | None, all_of: float | None) -> float | None:
    """None where there is nothing yet, or it is not said."""
    return of / all_of if of is not None and all_of else None
