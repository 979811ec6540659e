"""What the answers of llama.cpp's HTTP server mean: its slots and its metrics page, in our names.

Called by the adapters of engines that speak it. Pure; it never asks anything itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from modelyard.engines.base import Call

BUSY = Call("GET", "/slots")

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


def count_busy(body: bytes) -> int:
    """The number of slots that process a request, from the answer to GET /slots. Raises ValueError."""
    slots = json.loads(body)
    if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
        raise ValueError("/slots: not a list of slots")
    return sum(slot.get("is_processing") is True for slot in slots)


def scrape(text: str) -> Mapping[str, float]:
    """The metrics page in our names; unknown metrics are dropped. Raises ValueError when it is none."""
    return {
        METRICS[family.name]: family.samples[0].value
        for family in text_string_to_metric_families(text)
        if family.name in METRICS and family.samples
    }
