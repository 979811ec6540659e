"""Loading before anybody asks. Owned by the yard. Loads that nobody waits for put nobody out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from modelyard.config import Config
from modelyard.errors import ModelyardError
from modelyard.gateway.names import Names
from modelyard.gateway.translation.pairs import Translators
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry
from modelyard.telemetry.usage import Asked

log = structlog.get_logger(__name__)

TASKS_END = 5.0  # seconds in which preloading has to end
ASK_EVERY = 30.0  # seconds between two looks at who has not told yet what it translates

T = TypeVar("T")
Demand = Callable[[], Awaitable[Mapping[T, float]]]
"""How much each model, or each translation, was asked for lately."""


class Ahead:
    """The tasks of one yard; `close` ends them."""

    def __init__(
        self,
        driver: Driver,
        names: Names,
        demand: Demand[str],
        asked: Demand[Asked],
        translators: Translators,
    ) -> None:
        self._driver = driver
        self._names = names
        self._demand = demand
        self._asked = asked
        self._translators = translators
        self._loading: set[asyncio.Task[None]] = set()
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    def start(self, config: Config) -> None:
        """Load what the configuration names, in order, and by past demand if it says so."""
        self._begin(self._preload(config))
        self.ask()

    def load(self, wanted: Sequence[Entry]) -> None:
        """Load these one after the other, as long as they fit in free memory."""
        self._begin(self._load(wanted))

    def ask(self) -> None:
        """Have models elsewhere tell what they translate, as far as nobody knows."""
        if self._asking is None or self._asking.done():
            self._asking = self._begin(self._ask())

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

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        if self._closed:
            work.close()
            return None
        task = spawn("preload", work)
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)
        return task

    async def _preloaded(self, config: Config) -> list[Entry]:
        """Those named, those of the pairs that are used most, those asked for most."""
        wanted = [self._names.resolve(name) for name in config.preload]
        pairs = [(*pair, "") for pair in config.translation.preload]
        if config.translation.preload_auto:
            pairs = _most(await self._asked())
        wanted += self._translators.preloaded(pairs)
        if config.preload_auto:
            served = {entry.spec.model: entry for entry in self._names.all()}
            wanted += [served[model] for model in _most(await self._demand()) if model in served]
        return list({entry.spec.version: entry for entry in wanted}.values())

    async def _preload(self, config: Config) -> None:
        await self._load(await self._preloaded(config))

    async def _ask(self) -> None:
        """They tell when they are loaded; those that are not there are asked again."""
        while untold := self._translators.untold():
            await self._load(untold)
            await asyncio.sleep(ASK_EVERY if self._translators.untold() else 0.0)

    async def _load(self, wanted: Iterable[Entry]) -> None:
        for entry in wanted:
            try:
                await self._driver.load(entry.newest.spec.version, evict=False)
            except ModelyardError as error:
                log.warning("preload.skipped", model=entry.spec.model, reason=error.message)


def _most(demand: Mapping[T, float]) -> list[T]:
    """What was asked for most, first."""
    return sorted(demand, key=lambda one: -demand[one])


def spawn(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose failure is said when it happens."""

    def on_end(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task.failed", task=name, exc_info=error)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(on_end)
    return task
