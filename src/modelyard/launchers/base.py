"""The contract of a launcher: where an instance runs, and how its end is observed.

Called by the driver only. A launcher starts and stops what it is told, reports each exit exactly once, and
decides nothing. Leftovers of an earlier life of the same data folder are reaped by `open` before anything
is started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from modelyard.core.types import Address, Cause
from modelyard.engines.base import Attach, Command, Exit


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: `command` is called with the address that the launcher allocated, and may be called with
    an empty one before.

    `environment` holds the device masks and what the profile adds; `unix` asks for a Unix socket. `health` is
    a path that tells whether what runs already is there.
    """

    instance: str
    command: Callable[[Address], Command | Attach]
    unix: bool
    environment: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"


class LaunchFailed(Exception):
    """The program could not be executed, or what runs already not be attached to; the message says which and
    why. `status` is what a server answered that did not load its model."""

    def __init__(self, message: str, *, cause: Cause = Cause.LAUNCH, status: int = 0) -> None:
        super().__init__(message)
        self.cause = cause
        self.status = status


class Launcher(Protocol):
    """Starts and stops instances, and reports exits.

    `on_exit(instance, exit)` is called on the event loop, once per started instance, when its main process
    has ended, whoever ended it; descendants may still live until `stop` returns.
    """

    on_exit: Callable[[str, Exit], None]

    @property
    def problem(self) -> str:
        """Why it cannot write down now what runs, for its next life; empty when it can."""
        ...

    async def open(self) -> list[str]:
        """Make the launcher usable; reap what an earlier life left running. Returns what was reaped."""
        ...

    async def start(self, launch: Launch) -> Address:
        """Start an instance; returns where it will listen, once it is executed. Raises LaunchFailed and
        leaves nothing behind."""
        ...

    async def stop(self, instance: str, grace: float) -> None:
        """TERM the tree, KILL what is left after `grace` seconds; returns when the whole tree is gone.
        Idempotent: an instance that is not there is gone already. `grace` 0 kills at once."""
        ...

    async def close(self) -> None:
        """Stop everything at once and release what the launcher holds."""
        ...

    def pids(self, instance: str) -> list[int]:
        """Every live process of the instance now, descendants included; the engine comes first."""
        ...

    def held(self, instance: str) -> Mapping[str, int] | None:
        """Bytes that it holds by device, as its server said last; None where its processes tell."""
        ...

    def log(self, instance: str) -> Path | None:
        """The file that holds the instance's output, capped in size; kept for a while after its end."""
        ...

    def tail(self, instance: str, lines: int = 20) -> str:
        """The last lines of its output; empty when there is none."""
        ...
