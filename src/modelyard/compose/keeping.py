"""What serving teaches is kept in the registry: what was used, and what instances take.

Owned by `yard`. All of it lies in memory first; while the database is away it stays there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import asdict
from secrets import token_hex
from typing import TypeVar

import structlog

from modelyard.compose.registered import Held
from modelyard.compose.upkeep import LOOK_EVERY
from modelyard.errors import ConfigError, RegistryUnavailable
from modelyard.registry import Registry
from modelyard.registry.footprints import FootprintRecord, Stamp
from modelyard.registry.usage import batch_name
from modelyard.runtime.driver import Driver
from modelyard.runtime.footprints import Footprint, Key, footprint_of
from modelyard.telemetry.usage import HOUR, Asked, Place, Sums, Usage

log = structlog.get_logger(__name__)
T = TypeVar("T")

BATCH = 1_000  # rows of usage that are kept in one transaction
LAST = 5.0  # seconds that the end waits for the database


class Keeping:
    """`open` before any version is added, `follow` until the end, `close` after everything else stopped."""

    def __init__(self, registry: Registry, held: Held, usage: Usage, driver: Driver) -> None:
        self._registry = registry
        self._held = held
        self._usage = usage
        self._driver = driver
        self._footprints = driver.footprints
        self._server = token_hex(8)
        self._batch: tuple[str, Mapping[Place, Sums]] | None = None  # it may have been kept, or not
        self._pairs: tuple[str, Mapping[tuple[int, Asked], int]] | None = None  # likewise
        self._stamp: Stamp | None = None  # of the footprints that are known
        self._forgot = 0  # the hour in which old rows were removed

    async def open(self) -> None:
        """Know the footprints that are kept."""
        await self._try()

    async def look(self) -> None:
        """Know the footprints that are kept, as far as that changes nothing: for who only looks."""
        with suppress(RegistryUnavailable, ConfigError):
            if await self._registry.is_made():
                await self._read()

    async def follow(self) -> None:
        """Keep what comes, and take what other servers keep, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self._try()

    async def close(self) -> None:
        """Keep what is left, if the database answers soon."""
        try:
            async with asyncio.timeout(LAST):
                await self._write()
        except (RegistryUnavailable, TimeoutError) as error:
            log.error("usage.lost", rows=self._rows, reason=str(error) or "the database does not answer")

    async def demand(self) -> Mapping[str, float]:
        """How often each model was asked for lately; nothing while the database is away."""
        return await _lately(self._registry.usage.demand())

    async def pairs(self) -> Mapping[Asked, float]:
        """Likewise, how often each translation."""
        return await _lately(self._registry.usage.pairs())

    @property
    def _rows(self) -> int:
        return len(self._usage) + (len(self._batch[1]) if self._batch else 0)

    async def _try(self) -> None:
        """Keep all, and know what others keep. Why not, is said once."""
        problem = ""
        try:
            await self._write()
            await self._read()
            if self._forgot != (hour := int(time.time() / HOUR)):
                await self._registry.usage.forget()
                self._forgot = hour
        except RegistryUnavailable as error:
            problem = str(error)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            log.exception("keeping.failed")
        if bool(problem) != bool(self._held.unkept):
            log.warning("usage.waits" if problem else "usage.kept_again", rows=self._rows, reason=problem)
        self._held.unkept = problem

    async def _write(self) -> None:
        while self._batch or len(self._usage):
            name, rows = self._batch = self._batch or (batch_name(time.time()), self._usage.take(BATCH))
            await self._registry.usage.add(rows, server=self._server, batch=name)
            self._batch = None
        while self._pairs or self._usage.asked:
            name, pairs = self._pairs = self._pairs or (
                batch_name(time.time()),
                self._usage.take_pairs(BATCH),
            )
            await self._registry.usage.add_pairs(pairs, server=self._server, batch=name)
            self._pairs = None
        if changed := self._footprints.changed():
            before, after = await self._registry.footprints.keep(_record(*one) for one in changed.items())
            self._footprints.kept(changed)
            if before == self._stamp:  # else others have kept some as well
                self._stamp = after

    async def _read(self) -> None:
        book = self._registry.footprints
        if await book.stamp() != self._stamp:
            self._stamp, records = await book.all()
            later = self._footprints.merge(dict(filter(None, map(_known, records))))
            for entry in tuple(self._driver.entries.values()) if later else ():
                self._driver.observer.recall(entry, among=later)


async def _lately(asked: Awaitable[Mapping[T, float]]) -> Mapping[T, float]:
    """What the database tells of demand; nothing while it is away."""
    try:
        return await asked
    except RegistryUnavailable as error:
        log.warning("demand.unknown", reason=str(error))
        return {}


def _record(key: Key, footprint: Footprint) -> FootprintRecord:
    fields = asdict(footprint)
    return FootprintRecord(key.files, key.engine, key.parameters, key.device, fields, footprint.seen)


def _known(record: FootprintRecord) -> tuple[Key, Footprint] | None:
    """None for one that this program does not understand."""
    try:
        found = footprint_of(record.footprint)
    except (KeyError, TypeError, ValueError):
        return None
    return Key(record.files, record.engine, record.parameters, record.device), found
