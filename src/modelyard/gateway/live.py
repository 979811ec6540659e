"""The configuration of a running yard, as the control surface sees it. Carried out by compose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from modelyard.config import Config, Key
from modelyard.config.difference import Difference
from modelyard.core.events import Changed


@dataclass(frozen=True, slots=True)
class Applied:
    """What a change came to. `running` are the requests that run on what it replaces or removes, by model;
    `done` False: it was only asked what would change."""

    source: Path
    done: bool
    difference: Difference
    running: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Standing:
    """What is served. `source` is its file, None where it was not read from one; `watched`: a change of the
    file is noticed. Moments are seconds since the epoch, `since` of the last change, `refused_at` of the
    `problem` that the file had when it was read last, if it had one."""

    source: Path | None = None
    watched: bool = False
    since: float = 0.0
    problem: str = ""
    refused_at: float = 0.0


Before = Callable[[Path, Config, Changed], Awaitable[None]]


class LiveConfig(Protocol):
    @property
    def standing(self) -> Standing: ...

    @property
    def keys(self) -> tuple[Key, ...]:
        """Those that are in force; none: it asks for none."""
        ...

    async def apply(self, path: Path | None, *, dry_run: bool, before: Before | None = None) -> Applied:
        """Serve the configuration of a file (None: of the one that is served, read again), or only say what
        would change. `before` is awaited in the moment before it is done, with the file, what it says, and
        all that the scheduler will be told. Raises ConfigRefused, RestartNeeded and what `before` raises;
        then nothing has changed."""
        ...
