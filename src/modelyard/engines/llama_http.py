"""llama.cpp's HTTP server, seen by adapters: what it is asked beyond OpenAI's API, and what its slots mean.

The adapters of engines that speak it are subclasses of `LlamaHttp`. Pure; it never asks anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import ClassVar

from modelyard.core.types import Spec
from modelyard.engines import openai_http
from modelyard.engines.adapter import Adapter
from modelyard.engines.base import Call, Work
from modelyard.engines.exposition import ratio, sums
from modelyard.engines.openai_http import CHAT, post, prompts

_BATCH = "llamacpp:n_busy_slots_per_decode"
_DRAFTED = "llamacpp:spec_decode_num_draft_tokens_total"
_ACCEPTED = "llamacpp:spec_decode_num_accepted_tokens_total"


class LlamaHttp(Adapter):
    """The part of `engines.base.Engine` that is the same for every server of this API."""

    unix: ClassVar[bool] = True
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

    def busy(self) -> Call | None:
        return Call("GET", "/slots")

    def work(self) -> Call | None:
        return Call("GET", "/metrics")

    def read_work(self, body: bytes) -> Work:
        found = sums(body, (_BATCH, _DRAFTED, _ACCEPTED))
        return Work(batch=found.get(_BATCH), accepted=ratio(found.get(_ACCEPTED), found.get(_DRAFTED)))

    def count_busy(self, body: bytes) -> int:
        slots = json.loads(body)
        if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
            raise ValueError("/slots: not a list of slots")
        return sum(slot.get("is_processing") is True for slot in slots)


def warm_up(spec: Spec, paths: Collection[str], first: Call) -> tuple[Call, ...]:
    """The calls of `Engine.warm_up` on a server that answers `paths`; `first` is for a spec without prompts.

    A slot keeps the last prompt that it computed, so the prefixes come last, one in each slot, in turn. They
    are sent as system messages before an empty question: what a chat's template puts there is computed, too.
    """
    calls = [*prompts(spec, paths)] or [first]
    prefixes = spec.warm_up.prefixes
    for slot in range(spec.slots if prefixes else 0):
        number = slot % len(prefixes)
        messages = [{"role": "system", "content": prefixes[number]}, {"role": "user", "content": ""}]
        body = {"model": spec.model, "messages": messages, "max_tokens": 1, "id_slot": slot}
        calls.append(post(CHAT, body, name=f"warm_up.prefixes[{number}]"))
    return tuple(calls)


def warm_up_problems(spec: Spec, paths: Collection[str]) -> list[tuple[str, str]]:
    """What of a spec's warm-up such a server cannot do, as `Engine.problems` says it."""
    if found := openai_http.warm_up_problems(spec, paths):
        return found
    count = len(spec.warm_up.prefixes)
    if count > spec.slots:
        message = f"are {count}, and each of its {spec.slots} slots keeps one: take fewer, or raise `slots`"
        return [("warm_up.prefixes", message)]
    return []
