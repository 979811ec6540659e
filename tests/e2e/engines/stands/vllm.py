"""vLLM, its build for the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.engines.stand import CHAT, VECTORS, Stand
from e2e.heavy import MODEL, VLLM, absent


class Vllm(Stand):
    name = "vllm"
    start = 240.0

    def absent(self) -> str:
        return absent(VLLM)

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        model = {"engine": "cpu", "source": str(MODEL), "slots": self.slots}
        vectors = {"context": 512, "embedding": True, "pooling": "mean", "dtype": "float32"}
        yield {
            "devices": {"ram": {"memory": "6GB"}},
            "engines": {"cpu": {"type": "vllm", "program": str(VLLM), "defaults": {"enforce_eager": True}}},
            "models": {
                CHAT: {**model, "parameters": {"context": 2048}},
                VECTORS: {**model, "parameters": vectors},
            },
        }


STAND = Vllm()
