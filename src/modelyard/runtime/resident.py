"""A started instance as the runtime sees it, and what it means when it does not come up.

Used by commands.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from modelyard.core.types import Cause
from modelyard.engines.base import Exit, Rung
from modelyard.launchers.base import LaunchFailed
from modelyard.runtime import probes
from modelyard.runtime.endpoint import Endpoint
from modelyard.runtime.entries import Entry
from modelyard.wire.pool import Pool


@dataclass(slots=True)
class Resident:
    """`exit` is resolved when its main process has ended. `task` starts it, puts it to sleep or wakes it, and
    tells of an exit meanwhile."""

    entry: Entry
    generation: int
    exit: asyncio.Future[Exit]
    endpoint: Endpoint | None = None
    task: asyncio.Task[None] | None = None

    @property
    def pool(self) -> Pool:
        """Its connections, once it was launched."""
        assert self.endpoint is not None
        return self.endpoint.pool


class StartFailed(Exception):
    """It did not start, sleep or wake."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause
        self.detail = detail


def rung_of(entry: Entry, name: str) -> Rung:
    """The engine's rung of this name, which was offered."""
    return next(rung for rung in entry.engine.rungs(entry.spec, entry.files or {}) if rung.name == name)


def warm_up_cause(error: Exception, entry: Entry) -> tuple[Cause, str]:
    """Why an engine that lives on did not generate its first token, and what to do about it."""
    if isinstance(error, TimeoutError):
        return Cause.START_DEADLINE, ""
    if isinstance(error, probes.WarmUpFailed):
        usual = Cause.BAD_ARGUMENTS if error.configured else Cause.BAD_MODEL
        return refused(error, entry) or (usual, "")
    return Cause.CRASHED, ""


def refused(error: LaunchFailed | probes.WarmUpFailed, entry: Entry) -> tuple[Cause, str] | None:
    """What it means that an engine that lives on does not load its model."""
    if entry.engine.cause(Exit(1), str(error)) is Cause.OUT_OF_MEMORY:
        return Cause.OUT_OF_MEMORY, ""
    return entry.engine.refused(entry.spec, error.status) if error.status else None


def describe(exit: Exit) -> str:
    if exit.code is exit.signal is None:
        return "what it was attached to is gone"
    return f"killed by signal {exit.signal}" if exit.signal is not None else f"exit code {exit.code}"
