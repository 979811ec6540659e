"""The fake engine, on a declared device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.engines.stand import CHAT, VECTORS, Stand
from gateway.live_yard import fake


class Fake(Stand):
    name = "fake"

    def absent(self) -> str:
        return ""

    @contextmanager
    def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
        yield {
            "models": {
                CHAT: {**fake(parameters={"tokens_per_second": 100}), "slots": self.slots},
                VECTORS: fake(),
            }
        }


STAND = Fake()
