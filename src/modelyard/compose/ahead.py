"""What is done beside the requests: loading before anybody asks, and keeping what was asked for.

Owned by the yard. Loads that nobody waits for put nobody out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from modelyard.config import Config
from modelyard.errors import ModelyardError
from modelyard.gateway.names import Names
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

DEMAND_EVERY = 60.0  # seconds between two records of what was asked for
TASKS_END = 5.0  # seconds in which preloading and recording have to end


class Ahead:
    """The tasks of one yard; `close` ends them."""

    def __init__(self, driver: Driver, names: Names, metrics: Metrics) -> None:
        self._driver = driver
        self._names = names
        self._metrics = metrics
        self._loading: set[asyncio.Task[None]] = set()
        self._recording: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._counted: dict[str, int] = {}  # by model: the requests that were recorded as demand

    def start(self, config: Config) -> None:
        """Load what the configuration names, in order, and by past demand if it says so."""
        self._begin(self._preload(config))
        self._recording = spawn("record_demand", self._record_demand())

    def load(self, wanted: Sequence[Entry]) -> None:
        """Load these one after the other, as long as they fit in free memory."""
        self._begin(self._load(wanted))

    def stop_loading(self) -> None:
        """What is loaded goes on; nothing more is asked for."""
        for task in self._loading:
            task.cancel()

    async def close(self) -> None:
        """End everything; the demand is recorded once more. What failed has been said."""
        if self._recording is None:
            return
        self._ending.set()
        self.stop_loading()
        _, late = await asyncio.wait({*self._loading, self._recording}, timeout=TASKS_END)
        for task in late:
            log.error("task.late", task=task.get_name())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        if self._ending.is_set():
            work.close()
            return
        task = spawn("preload", work)
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    def _preloaded(self, config: Config) -> list[Entry]:
        wanted = [self._names.resolve(name) for name in config.preload]
        if config.preload_auto:
            demand = self._driver.footprints.demand()
            known = [
                entry for entry in self._names.all() if demand.get(entry.spec.model) and entry not in wanted
            ]
            wanted += sorted(known, key=lambda entry: -demand[entry.spec.model])
        return wanted

    async def _preload(self, config: Config) -> None:
        await self._load(self._preloaded(config))

    async def _load(self, wanted: Iterable[Entry]) -> None:
        for entry in wanted:
            try:
                await self._driver.load(entry.newest.spec.version, evict=False)
            except ModelyardError as error:
                log.warning("preload.skipped", model=entry.spec.model, reason=error.message)

    async def _record_demand(self) -> None:
        """Keep what is asked for, so that the next start can preload it; for the last time at the end."""
        while not self._ending.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(DEMAND_EVERY):
                    await self._ending.wait()
            if asked := self._asked_since():
                await asyncio.to_thread(self._driver.footprints.record_demand, asked)

    def _asked_since(self) -> dict[str, int]:
        """Requests that ended since the last call, by model."""
        models = [entry.spec.model for entry in self._names.all()]
        totals = {model: sum(self._metrics.traffic(model).ended.values()) for model in models}
        more = {model: total - self._counted.get(model, 0) for model, total in totals.items()}
        self._counted.update(totals)
        return {model: count for model, count in more.items() if count}


def spawn(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose failure is said when it happens."""

    def on_end(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task.failed", task=name, exc_info=error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(on_end)
    return task
