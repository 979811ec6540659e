"""llama.cpp: the wheel, or a llama-server on PATH."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.engines.stand import CHAT, VECTORS, Stand
from engines.demo_model import demo_gguf
from modelyard.compose.entries import found
from modelyard.engines.base import Profile
from modelyard.engines.llamacpp import LlamaCppEngine


class LlamaCpp(Stand):
    name = "llamacpp"

    def absent(self) -> str:
        engine = LlamaCppEngine()
        return engine.missing(Profile(self.name, self.name, found=found(engine)))

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        model = {"engine": "llamacpp", "source": str(demo_gguf()), "slots": self.slots}
        chat = {"context": 2048, "mmap": False, "threads": 1}
        vectors = {"context": 512, "embedding": True, "pooling": "mean"}
        yield {
            "devices": {"ram": {"memory": "2GB"}},
            "models": {CHAT: {**model, "parameters": chat}, VECTORS: {**model, "parameters": vectors}},
        }


STAND = LlamaCpp()
