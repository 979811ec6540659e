"""vLLM, its build for the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.engines.stand import CHAT, Stand
from e2e.heavy import MODEL, VLLM, absent


class Vllm(Stand):
    name = "vllm"
    start = 240.0

    def absent(self) -> str:
        return absent(VLLM)

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        parameters = {"context": 2048, "enforce_eager": True}
        chat = {"engine": "cpu", "source": str(MODEL), "slots": self.slots, "parameters": parameters}
        engines = {"cpu": {"type": "vllm", "program": str(VLLM)}}
        yield {"devices": {"ram": {"memory": "6GB"}}, "engines": engines, "models": {CHAT: chat}}


STAND = Vllm()
