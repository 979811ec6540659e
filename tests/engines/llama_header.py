"""The header of a llama of 4 layers of 1,000 bytes, an embedding of 600 and an output of 300."""

from __future__ import annotations

from collections.abc import Mapping

HEADER: Mapping[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 4,
    "llama.context_length": 32768,
    "llama.embedding_length": 512,
    "llama.feed_forward_length": 1024,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "tensors.blocks": [1000, 1000, 1000, 1000],
    "tensors.embedding": 600,
    "tensors.output": 300,
    "tensors.total": 4900,
    "vocabulary": 100,
}
KV_PER_TOKEN_AND_LAYER = 2 * (64 + 64) * 2  # 2 heads, f16
