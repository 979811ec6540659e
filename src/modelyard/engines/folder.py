"""A model that is a folder, as what was read of its files describes it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.engines.base import ModelFile

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of the number types that are computed with; what has another one is quantized."""
MOST_LAYERS = 1000


class Folder:
    """What its config.json says of it; what that does not say is 0. `size`: bytes of the weights, `dtypes`:
    how many of them are of each type."""

    def __init__(self, file: ModelFile) -> None:
        config = file.header.get("config")
        whole = config if isinstance(config, Mapping) else {}
        inner = whole.get("text_config")
        self.has_inner = isinstance(inner, Mapping)  # a model that also sees or hears
        self.config: Mapping[str, object] = {**whole, **inner} if isinstance(inner, Mapping) else whole
        size, dtypes = file.header.get("bytes"), file.header.get("dtypes")
        self.size = size if isinstance(size, int) else file.size
        self.dtypes: Mapping[str, int] = dtypes if isinstance(dtypes, Mapping) else {}
        named = whole.get("architectures")
        self.architectures = tuple(map(str, named)) if isinstance(named, list | tuple) else ()
        self.quantized = any(self.config.get(f"{kind}_config") for kind in ("quantization", "compression"))
        self.trained_context = self.whole("max_position_embeddings")

    def whole(self, name: str) -> int:
        """A positive whole number of its config, or 0."""
        value = self.config.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    @property
    def layers(self) -> int:
        return min(self.whole("num_hidden_layers"), MOST_LAYERS)

    @property
    def heads(self) -> int:
        """Those that have keys and values of their own."""
        return self.whole("num_key_value_heads") or self.whole("num_attention_heads")

    @property
    def head(self) -> int:
        """The width of one of its heads."""
        heads = max(self.whole("num_attention_heads"), 1)
        return self.whole("head_dim") or self.whole("hidden_size") // heads
