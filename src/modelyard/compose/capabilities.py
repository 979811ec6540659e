"""What a version can do, in the registry's words. Used by `catalog` and `upkeep`."""

from __future__ import annotations

from modelyard.config import Model
from modelyard.gateway.catalog import Filter, Known
from modelyard.gateway.snapshot import CAPABILITIES
from modelyard.registry import Capabilities
from modelyard.runtime.entries import Entry


def said_of(model: Model) -> Capabilities:
    """What a version's own text says that it can do."""
    context = model.spec.parameters.get("context")
    return Capabilities(model.spec.capabilities, context if isinstance(context, int) else None)


def capabilities_of(entry: Entry) -> Capabilities:
    """What a version can do, by its engine and its files as far as they are here."""
    derived = {feature for path, feature in CAPABILITIES.items() if path in entry.paths}
    context = entry.spec.parameters.get("context")
    model = (entry.files or {}).get("model")
    if context is None and model is not None:
        context = model.header.get("context_length")
    return Capabilities(entry.spec.capabilities | derived, context if isinstance(context, int) else None)


def matches(known: Known, where: Filter) -> bool:
    """Whether a list that is asked for these shows it."""
    can = capabilities_of(known.entry)
    record = known.record.current if known.record is not None else None
    if where.name and where.name.casefold() not in known.name.casefold():
        return False
    if where.capability and where.capability not in can.features:
        return False
    return where.pair is None or (record is not None and where.pair in record.capabilities.pairs)
