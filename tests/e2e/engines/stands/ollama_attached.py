"""Models in the memory of an Ollama that runs already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e import served
from e2e.engines.stand import CHAT, VECTORS, Stand
from engines.demo_model import demo_gguf


class OllamaAttached(Stand):
    name = "ollama-attached"
    local = False

    def absent(self) -> str:
        return "" if served.ollama_program() else "there is no ollama: run scripts/build-ollama"

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        program = served.ollama_program()
        assert program is not None
        more = {"OLLAMA_NUM_PARALLEL": str(self.slots), "OLLAMA_CONTEXT_LENGTH": "2048"}
        with served.ollama(program, folder / "models", folder / "home", more) as url:
            for name in (CHAT, VECTORS):
                served.create(url, folder / "models", name, demo_gguf())
            engines = {"there": {"type": "ollama", "defaults": {"url": url}}}
            chat = {"engine": "there", "slots": self.slots}
            vectors = {"engine": "there", "parameters": {"embedding": True}}
            yield {"engines": engines, "models": {CHAT: chat, VECTORS: vectors}}


STAND = OllamaAttached()
