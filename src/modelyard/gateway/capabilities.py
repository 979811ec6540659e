"""What a version can do and what its files are, in the registry's words: by its engine, and by its files'
headers as far as these are known. Used by the views of models, and by compose for what the registry keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelyard.core.languages import Pairs
from modelyard.engines.base import TRANSLATE, Files, ModelFile
from modelyard.engines.gguf import trained_context
from modelyard.gateway.catalog import Known
from modelyard.registry.records import Capabilities, FileFacts
from modelyard.runtime.entries import Entry
from modelyard.store.quantize import type_of

_FEATURES = {  # by the path of an engine
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "rerank",
    TRANSLATE: "translation",
}
_LONGEST = 200  # characters of what a header says
_MOST_TOKENS = 2**53


def known_of(known: Known) -> Capabilities:
    """Of a model or version: by its files where they are here, else as the registry kept it."""
    if known.version is None or known.entry.files is not None:
        return capabilities_of(known.entry)
    kept = known.version.capabilities
    return replace(kept, features=kept.features | _features(known.entry))


def capabilities_of(entry: Entry, files: Files | None = None) -> Capabilities:
    """Of a version, by its files; while they are not here by what is known of these, `files`."""
    found = entry.files or files or {}
    context = entry.engine.context(entry.spec, found)
    pairs = entry.pairs
    if not pairs and TRANSLATE in entry.paths:
        pairs = entry.engine.pairs(entry.spec, found)
    return Capabilities(
        _features(entry),
        _tokens(context),
        languages=tuple(sorted(pairs.among)),
        pairs=tuple(sorted(pairs.listed)),
        files=_facts(entry, found),
    )


def pairs_of(capabilities: Capabilities) -> Pairs:
    """What they say is translated."""
    return Pairs(frozenset(capabilities.pairs), frozenset(capabilities.languages))


def _features(entry: Entry) -> frozenset[str]:
    derived = {feature for path, feature in _FEATURES.items() if path in entry.paths}
    return entry.spec.capabilities | derived


def _facts(entry: Entry, files: Files) -> FileFacts | None:
    if not files:
        return None
    sizes = [file.size for file in files.values()]
    model = files.get("model") or ModelFile(Path(), 0)
    header, config = model.header, _mapping(model.header.get("config"))
    inner = {**config, **_mapping(config.get("text_config"))}  # of a model that also sees or hears
    return FileFacts(
        size=sum(sizes) if all(sizes) else None,
        architecture=_text(header.get("general.architecture") or config.get("model_type")),
        quantization=entry.spec.quantize or type_of(header) or _type_of_folder(header, config),
        trained_context=_tokens(trained_context(header) or inner.get("max_position_embeddings")),
        licence=model.licence,
    )


def _type_of_folder(header: Mapping[str, object], config: Mapping[str, object]) -> str:
    """How a folder's weights were quantized, else the type of most of them; empty where that is not told."""
    if method := _text(_mapping(config.get("quantization_config")).get("quant_method")):
        return method
    dtypes = _mapping(header.get("dtypes"))
    return _text(max(dtypes, key=lambda name: dtypes[name], default="")).lower()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _tokens(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value < _MOST_TOKENS else None


def _text(value: object) -> str:
    """A word of a header: strangers wrote it."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST else ""
