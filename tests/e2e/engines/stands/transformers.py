"""Our own server over the Transformers library, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.engines.stand import CHAT, VECTORS, Stand
from e2e.heavy import MODEL, PYTHON, absent


class Transformers(Stand):
    name = "transformers"
    start = 180.0

    def absent(self) -> str:
        return absent(PYTHON)

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        model = {"engine": "cpu", "source": str(MODEL)}
        parameters = {"context": 2048, "threads": 2}
        yield {
            "devices": {"ram": {"memory": "4GB"}},
            "engines": {"cpu": {"type": "transformers", "program": str(PYTHON)}},
            "models": {
                CHAT: {**model, "slots": self.slots, "parameters": parameters},
                VECTORS: {**model, "parameters": {"context": 512, "threads": 2, "embedding": True}},
            },
        }


STAND = Transformers()
