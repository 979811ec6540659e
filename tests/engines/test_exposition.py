"""What engines' pages of numbers say of their work; the texts are of llama.cpp b9310 and vLLM 0.32."""

from __future__ import annotations

from modelyard.engines.base import Work
from modelyard.engines.exposition import ratio, sums
from modelyard.engines.llamacpp import LlamaCppEngine
from modelyard.engines.vllm import VllmEngine

LLAMACPP = b"""# HELP llamacpp:spec_decode_num_draft_tokens_total Speculative: Total draft tokens generated
# TYPE llamacpp:spec_decode_num_draft_tokens_total counter
llamacpp:spec_decode_num_draft_tokens_total 40
llamacpp:spec_decode_num_accepted_tokens_total 30
# HELP llamacpp:n_busy_slots_per_decode Average number of busy slots per llama_decode() call
llamacpp:n_busy_slots_per_decode 1.25
"""
VLLM = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b} 7"} 3.0
vllm:num_requests_running{engine="1",model_name="a b} 7"} 1.0
vllm:num_requests_running_created{engine="0"} 1.7953e+09
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 2.5e-02
"""


def test_series_are_added_up() -> None:
    assert sums(VLLM, ["vllm:num_requests_running", "none"]) == {"vllm:num_requests_running": 4.0}
    assert sums(b"a 1\nb 2 1700000000000\nab 3\na_x 4\na NaN\n", ["a", "b"]) == {"a": 1.0, "b": 2.0}
    assert sums(b"", ["a"]) == {}


def test_a_ratio_of_nothing_is_none() -> None:
    assert (ratio(1.0, 4.0), ratio(0.0, 0.0), ratio(None, 4.0), ratio(1.0, None)) == (0.25, None, None, None)


def test_of_llamacpp() -> None:
    assert LlamaCppEngine().read_work(LLAMACPP) == Work(batch=1.25, accepted=0.75)
    assert LlamaCppEngine().read_work(b"<html>") == Work()


def test_of_vllm() -> None:
    assert VllmEngine().read_work(VLLM) == Work(batch=4.0, kv_use=0.025)
