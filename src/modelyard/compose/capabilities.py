"""What a version can do, in the registry's words. Used by `catalog` and `upkeep`."""

from __future__ import annotations

from modelyard.config import Model
from modelyard.registry import Capabilities
from modelyard.runtime.entries import Entry

FEATURES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "rerank",
}


def said_of(model: Model) -> Capabilities:
    """What a version's own text says that it can do."""
    context = model.spec.parameters.get("context")
    return Capabilities(model.spec.capabilities, context if isinstance(context, int) else None)


def capabilities_of(entry: Entry) -> Capabilities:
    """What a version can do, by its engine and its files as far as they are here."""
    derived = {feature for path, feature in FEATURES.items() if path in entry.paths}
    context = entry.spec.parameters.get("context")
    model = (entry.files or {}).get("model")
    if context is None and model is not None:
        context = model.header.get("context_length")
    return Capabilities(entry.spec.capabilities | derived, context if isinstance(context, int) else None)
