"""Every file read again and held against its digest: when somebody asks, and on a schedule.

Used by whoever keeps a store. One file at a time, at a bounded rate: engines read from the same disks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from modelyard.store.cache import Store
from modelyard.store.shelf import Item

log = structlog.get_logger(__name__)

RATE = 256 * 2**20  # bytes a second, for whoever waits for it
QUIET_RATE = 32 * 2**20  # on a schedule
_AGAIN = 60.0  # seconds before the next try, where the store cannot be read


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one file; `problem` is empty where it is what it was."""

    item: Item
    problem: str = ""


async def verify(store: Store, *, rate: float = RATE) -> AsyncIterator[Verdict]:
    """Each file with what came of it, as it was read; what is not what it was is set aside where the store
    fetched it. Raises OSError when the store itself cannot be read."""
    for item in await asyncio.to_thread(store.shelf.items):
        if item.unfinished is not None:
            continue
        try:
            yield Verdict(item, await store.verify(item, rate))
        except OSError as error:
            yield Verdict(item, f"{item.path} cannot be read: {error.strerror or error}")


async def keep_verifying(store: Store, every: float) -> None:
    """Verify all files each `every` seconds, restarts of the server included, until cancelled."""
    while True:
        await asyncio.sleep(max(0.0, _last(store.verified) + every - time.time()))
        try:
            async for verdict in verify(store, rate=QUIET_RATE):
                if verdict.problem:
                    log.error("file.not_what_it_was", path=str(verdict.item.path), problem=verdict.problem)
            store.verified.touch()
            os.utime(store.verified)
        except OSError as error:
            log.error("verify.failed", problem=str(error))
            await asyncio.sleep(min(every, _AGAIN))


def _last(mark: Path) -> float:
    try:
        return mark.stat().st_mtime
    except OSError:
        return 0.0
