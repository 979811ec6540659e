"""Which models a list shows. Used by `lookup`."""

from __future__ import annotations

from modelyard.gateway.capabilities import known_of
from modelyard.gateway.catalog import Filter, Known


def matches(known: Known, where: Filter) -> bool:
    """Whether a list that is asked for these shows it."""
    if where.name and where.name.casefold() not in known.name.casefold():
        return False
    if where.capability and where.capability not in known_of(known).features:
        return False
    return where.pair is None or (
        known.record is not None and where.pair in known.record.current.capabilities.pairs
    )
