"""Loading before anybody asks. Owned by the yard. Loads that nobody waits for put nobody out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import structlog

from modelyard.config import Config
from modelyard.errors import ModelyardError
from modelyard.gateway.names import Names
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry

log = structlog.get_logger(__name__)

TASKS_END = 5.0  # seconds in which preloading has to end

Demand = Callable[[], Awaitable[Mapping[str, float]]]
"""How much each model was asked for lately."""


class Ahead:
    """The tasks of one yard; `close` ends them."""

    def __init__(self, driver: Driver, names: Names, demand: Demand) -> None:
        self._driver = driver
        self._names = names
        self._demand = demand
        self._loading: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, config: Config) -> None:
        """Load what the configuration names, in order, and by past demand if it says so."""
        self._begin(self._preload(config))

    def load(self, wanted: Sequence[Entry]) -> None:
        """Load these one after the other, as long as they fit in free memory."""
        self._begin(self._load(wanted))

    def stop_loading(self) -> None:
        """What is loaded goes on; nothing more is asked for."""
        for task in self._loading:
            task.cancel()

    async def close(self) -> None:
        """End everything. What failed has been said."""
        self._closed = True
        self.stop_loading()
        if self._loading:
            _, late = await asyncio.wait(self._loading, timeout=TASKS_END)
            for task in late:
                log.error("task.late", task=task.get_name())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
            return
        task = spawn("preload", work)
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _preloaded(self, config: Config) -> list[Entry]:
        wanted = [self._names.resolve(name) for name in config.preload]
        if config.preload_auto:
            demand = await self._demand()
            known = [
                entry for entry in self._names.all() if demand.get(entry.spec.model) and entry not in wanted
            ]
            wanted += sorted(known, key=lambda entry: -demand[entry.spec.model])
        return wanted

    async def _preload(self, config: Config) -> None:
        await self._load(await self._preloaded(config))

    async def _load(self, wanted: Iterable[Entry]) -> None:
        for entry in wanted:
            try:
                await self._driver.load(entry.newest.spec.version, evict=False)
            except ModelyardError as error:
                log.warning("preload.skipped", model=entry.spec.model, reason=error.message)


def spawn(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose failure is said when it happens."""

    def on_end(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task.failed", task=name, exc_info=error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(on_end)
    return task
