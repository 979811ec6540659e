"""Our own server over the Transformers library, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.engines.stand import CHAT, VECTORS, Stand

ENVIRONMENT = Path(__file__).parents[4] / ".cache" / "engines"
PYTHON = ENVIRONMENT / "bin" / "python"
MODEL = ENVIRONMENT / "smollm2"


class Transformers(Stand):
    name = "transformers"
    start = 180.0

    def absent(self) -> str:
        return "" if (MODEL / "config.json").exists() else f"there is no {MODEL}: run scripts/engines-env"

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
