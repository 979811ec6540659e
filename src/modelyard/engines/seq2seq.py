"""Models that translate and whose files lie here, seen by adapters: what they translate, and what they take.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.core.languages import Pairs
from modelyard.core.types import Spec
from modelyard.engines.base import Files, ModelFile
from modelyard.engines.folder import MOST_LAYERS, Folder

SLOTS = 64  # of a model that does not say how many: so many requests come together in batches
KINDS = frozenset({"m2m_100", "marian"})
_SEQUENCE = 8
"""The tokens of a short text: of each one in a batch the scores of all tokens are held at once."""


def pairs(spec: Spec, files: Files) -> Pairs:
    """See `Engine.pairs`: what the spec says, else what the model's header does."""
    told = files["model"].header.get("translation") if "model" in files else None
    if spec.pairs or not isinstance(told, Mapping):
        return spec.pairs
    sources, targets = (frozenset(map(str, told.get(name) or ())) for name in ("sources", "targets"))
    if sources == targets:
        return Pairs(among=sources)
    return Pairs(frozenset((one, other) for one in sources for other in targets if one != other))


def translates(file: ModelFile) -> bool:
    """Whether a folder holds such a model."""
    return Folder(file).config.get("model_type") in KINDS


def token_bytes(folder: Folder, element: int, beam_size: int) -> int:
    """What a token of a batch takes while it is translated, `element` bytes a number: its keys and values in
    the decoder, those of as much that is written for each beam, the widest layer, and its part of the
    scores."""
    width, layers = folder.whole("d_model"), min(folder.whole("decoder_layers"), MOST_LAYERS)
    cache = 2 * layers * width * (1 + beam_size)
    layer = 6 * width + 2 * folder.whole("encoder_ffn_dim")
    scores = folder.whole("vocab_size") * beam_size // _SEQUENCE
    return (cache + layer + scores) * element
