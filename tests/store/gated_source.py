"""A source for tests: writes half of its content, waits for a gate file, writes the rest; logs each fetch.

Run as a program it fetches `gated://file` once: `gated_source.py ROOT FOLDER`; prints the digest.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from modelyard.store import Source, Store, Watch

HALF = b"half" * 1000
SOURCE = "gated://file"


class GatedSource(Source):
    schemes: ClassVar[tuple[str, ...]] = ("gated",)

    def __init__(self, folder: Path) -> None:
        self.log, self.gate = folder / "log", folder / "gate"

    def problem(self, source: str) -> str | None:
        return None

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        target = folder / "download"
        with target.open("wb") as file:
            file.write(HALF)
            file.flush()
            with self.log.open("a") as log:
                log.write("fetch\n")
            watch.progress(len(HALF), 2 * len(HALF))
            while not self.gate.exists():
                watch.pause(0.01)
            file.write(HALF)
        return target

    def fetches(self) -> int:
        return self.log.read_text().count("fetch") if self.log.exists() else 0


async def _main(root: Path, folder: Path) -> None:
    with closing(Store(root, [GatedSource(folder)])) as store:
        print((await store.fetch(SOURCE)).digest, flush=True)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), Path(sys.argv[2])))
