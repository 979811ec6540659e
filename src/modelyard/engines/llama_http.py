"""llama.cpp's HTTP server, seen by adapters: how it is asked, and what its slots mean.

The adapters of engines that speak it are subclasses of `LlamaHttp`. Pure; it never asks anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import ClassVar

from modelyard.core.types import Spec
from modelyard.engines.base import Call, Files


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

    def context(self, spec: Spec, files: Files) -> int | None:
        context = spec.parameters.get("context")
        return context if isinstance(context, int) and context > 0 else None

    def suited(self, spec: Spec, files: Files) -> Mapping[str, object]:
        return {}

    def busy(self) -> Call | None:
        return Call("GET", "/slots")

    def count_busy(self, body: bytes) -> int:
        slots = json.loads(body)
        if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
            raise ValueError("/slots: not a list of slots")
        return sum(slot.get("is_processing") is True for slot in slots)


def post(path: str, body: Mapping[str, object], name: str = "") -> Call:
    """A request with a JSON body."""
    return Call("POST", path, json.dumps(body).encode(), name)


CHAT = "/v1/chat/completions"


def warm_up(spec: Spec, paths: Collection[str], first: Call) -> tuple[Call, ...]:
    """The calls of `Engine.warm_up` on a server that answers `paths`; `first` is for a spec without prompts.

    A slot keeps the last prompt that it computed, so the prefixes come last, one in each slot, in turn. They
    are sent as system messages before an empty question: what a chat's template puts there is computed, too.
    """
    calls = [
        post(*_generation(spec, paths, prompt), name=f"warm_up.prompts[{number}]")
        for number, prompt in enumerate(spec.warm_up.prompts)
    ] or [first]
    prefixes = spec.warm_up.prefixes
    for slot in range(spec.slots if prefixes else 0):
        number = slot % len(prefixes)
        messages = [{"role": "system", "content": prefixes[number]}, {"role": "user", "content": ""}]
        body = {"model": spec.model, "messages": messages, "max_tokens": 1, "id_slot": slot}
        calls.append(post(CHAT, body, name=f"warm_up.prefixes[{number}]"))
    return tuple(calls)


def warm_up_problems(spec: Spec, paths: Collection[str]) -> list[tuple[str, str]]:
    """What of a spec's warm-up such a server cannot do, as `Engine.problems` says it."""
    count = len(spec.warm_up.prefixes)
    if count and CHAT not in paths:
        return [("warm_up.prefixes", "are system messages, and this model does not chat; leave them out")]
    if count > spec.slots:
        message = f"are {count}, and each of its {spec.slots} slots keeps one: take fewer, or raise `slots`"
        return [("warm_up.prefixes", message)]
    return []


def _generation(spec: Spec, paths: Collection[str], prompt: str) -> tuple[str, dict[str, object]]:
    """A request that takes this prompt, to the first of the APIs that has one."""
    bodies: dict[str, dict[str, object]] = {
        CHAT: {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1},
        "/v1/completions": {"prompt": prompt, "max_tokens": 1},
        "/v1/embeddings": {"input": prompt},
        "/v1/rerank": {"query": prompt, "documents": [prompt]},
        "/tokenize": {"content": prompt},
    }
    path = next(path for path in bodies if path in paths)
    return path, {"model": spec.model, **bodies[path]}
