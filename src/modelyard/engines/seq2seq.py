"""Models that translate and whose files lie here, seen by adapters: what they translate, what they are sent
first, and what they take. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelyard.core.languages import Pairs
from modelyard.core.types import Spec
from modelyard.engines.base import TRANSLATE, Call, Files, ModelFile
from modelyard.engines.folder import MOST_LAYERS, Folder
from modelyard.engines.openai_http import post

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


def warm_up(spec: Spec) -> Sequence[Call]:
    """The calls of `Engine.warm_up`; where the spec says no pair, it is the model's first."""
    pair = next(iter(spec.pairs), None)
    codes = {} if pair is None else {"source": pair[0], "target": pair[1]}
    named = [(prompt, f"warm_up.prompts[{number}]") for number, prompt in enumerate(spec.warm_up.prompts)]
    return tuple(post(TRANSLATE, {"q": [text], **codes}, name) for text, name in named or [("Hello", "")])


def warm_up_problems(spec: Spec) -> list[tuple[str, str]]:
    """What of a spec's warm-up such a model cannot do."""
    if spec.warm_up.prefixes:
        return [("warm_up.prefixes", "are system messages, and this model translates; leave them out")]
    return []


def token_bytes(folder: Folder, element: int, beam_size: int) -> int:
    """What a token of a batch takes while it is translated, `element` bytes a number: its keys and values in
    the decoder, those of as much that is written for each beam, the widest layer, and its part of the
    scores."""
    width, layers = folder.whole("d_model"), min(folder.whole("decoder_layers"), MOST_LAYERS)
    cache = 2 * layers * width * (1 + beam_size)
    layer = 6 * width + 2 * folder.whole("encoder_ffn_dim")
    scores = folder.whole("vocab_size") * beam_size // _SEQUENCE
    return (cache + layer + scores) * element
