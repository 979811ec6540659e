"""llama.cpp's HTTP server, seen by adapters: how it is asked, and what its slots and its metrics page mean.

The adapters of engines that speak it are subclasses of `LlamaHttp`. Pure; it never asks anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from prometheus_client.parser import text_string_to_metric_families

from modelyard.core.types import Spec
from modelyard.engines.base import Call

METRICS = {
    "llamacpp:prompt_tokens": "prompt_tokens_total",
    "llamacpp:prompt_seconds": "prompt_seconds_total",
    "llamacpp:tokens_predicted": "generated_tokens_total",
    "llamacpp:tokens_predicted_seconds": "generation_seconds_total",
    "llamacpp:n_decode": "decode_calls_total",
    "llamacpp:n_busy_slots_per_decode": "busy_slots_per_decode",
    "llamacpp:requests_processing": "requests_running",
    "llamacpp:requests_deferred": "requests_waiting",
}
"""Their family name (without `_total`) to the name of our metric."""


class LlamaHttp:
    """The part of `engines.base.Engine` that is the same for every server of this API."""

    unix: ClassVar[bool] = True
    health: ClassVar[str] = "/health"

    def model_name(self, spec: Spec) -> str | None:
        return None  # it is started with the public name

    def busy(self) -> Call | None:
        return Call("GET", "/slots")

    def count_busy(self, body: bytes) -> int:
        slots = json.loads(body)
        if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
            raise ValueError("/slots: not a list of slots")
        return sum(slot.get("is_processing") is True for slot in slots)

    def scrape(self, text: str) -> Mapping[str, float]:
        return {
            METRICS[family.name]: family.samples[0].value
            for family in text_string_to_metric_families(text)
            if family.name in METRICS and family.samples
        }


def post(path: str, body: Mapping[str, object]) -> Call:
    """A request with a JSON body."""
    return Call("POST", path, json.dumps(body).encode())
