"""llama.cpp's HTTP server, seen by adapters: how it is asked, and what its slots mean.

The adapters of engines that speak it are subclasses of `LlamaHttp`. Pure; it never asks anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from modelyard.core.types import Spec
from modelyard.engines.base import Call


class LlamaHttp:
    """The part of `engines.base.Engine` that is the same for every server of this API."""

    unix: ClassVar[bool] = True
    health: ClassVar[str] = "/health"
    chat_fields: ClassVar[frozenset[str]] = frozenset(
        {
            *("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "n_keep"),
            *("mirostat", "mirostat_tau", "mirostat_eta"),
            *("dynatemp_range", "dynatemp_exponent", "xtc_probability", "xtc_threshold", "top_n_sigma"),
            *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
            *("dry_sequence_breakers", "samplers", "min_keep", "grammar", "json_schema", "ignore_eos"),
            *("cache_prompt", "n_discard", "t_max_predict_ms"),
            *("chat_template_kwargs", "thinking_budget_tokens"),
        }
    )

    def model_name(self, spec: Spec) -> str | None:
        return None  # it is started with the public name

    def busy(self) -> Call | None:
        return Call("GET", "/slots")

    def count_busy(self, body: bytes) -> int:
        slots = json.loads(body)
        if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
            raise ValueError("/slots: not a list of slots")
        return sum(slot.get("is_processing") is True for slot in slots)


def post(path: str, body: Mapping[str, object]) -> Call:
    """A request with a JSON body."""
    return Call("POST", path, json.dumps(body).encode())
