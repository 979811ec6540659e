"""The engines of the contract suite. Each stands in a file of its own, `stands/NAME.py`, as its `STAND`:

    class Vllm(Stand):
        name = "vllm"
        start = 120.0

        def absent(self) -> str:
            return "" if PROGRAM.exists() else f"there is no {PROGRAM}: run scripts/engines-env"

        @contextmanager
        def sections(self, folder: Path) -> Iterator[dict[str, Any]]:
            chat = {"engine": "cpu", "source": str(MODEL), "slots": self.slots}
            engines = {"cpu": {"type": "vllm", "program": str(PROGRAM), "defaults": {"context": 2048}}}
            yield {"engines": engines, "models": {CHAT: chat}}

    STAND = Vllm()

A server that it needs beside it is run within `sections`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

CHAT, VECTORS = "chat", "vectors"


class Stand:
    """How one engine is configured for the suite, and what it can do.

    `slots` are those of its model `chat`, `start` the seconds that a start may take. `long` goes into the
    body of a chat that shall last 10 s at least with 1,500 tokens. `local`: its instances are processes of
    ours, which can be killed, and whose memory is counted.
    """

    name: ClassVar[str]
    slots: ClassVar[int] = 2
    start: ClassVar[float] = 60.0
    long: ClassVar[Mapping[str, Any]] = {"ignore_eos": True}
    local: ClassVar[bool] = True

    def absent(self) -> str:
        """Why it cannot be run here, and what to do about it; empty when it can."""
        raise NotImplementedError

    def sections(self, folder: Path) -> AbstractContextManager[dict[str, Any]]:
        """The configuration of a yard, while what it needs is there: `models`, with `chat` (a context of
        2,048 tokens for each slot), and `vectors` if it embeds; and what these need."""
        raise NotImplementedError


def stands() -> Iterator[Stand]:
    """Those of the folder `stands`."""
    for file in sorted((Path(__file__).parent / "stands").glob("*.py")):
        stand = import_module(f"e2e.engines.stands.{file.stem}").STAND
        assert isinstance(stand, Stand)
        yield stand
