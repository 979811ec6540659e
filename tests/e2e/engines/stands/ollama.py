"""Ollama, a server of our own for each instance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.engines.stand import CHAT, VECTORS, Stand
from e2e.served import ollama_program
from engines.demo_model import demo_gguf


class Ollama(Stand):
    name = "ollama"

    def absent(self) -> str:
        return "" if ollama_program() else "there is no ollama: run scripts/build-ollama"

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        model = {"engine": "own", "source": str(demo_gguf())}
        parameters = {"context": 2048, "threads": 1, "settings": {"stop": ["<|im_end|>"]}}
        yield {
            "devices": {"ram": {"memory": "2GB"}},
            "engines": {"own": {"type": "ollama", "program": ollama_program()}},
            "models": {
                CHAT: {**model, "slots": self.slots, "parameters": parameters},
                VECTORS: {**model, "parameters": {"context": 512, "threads": 1, "embedding": True}},
            },
        }


STAND = Ollama()
