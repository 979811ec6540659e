"""Embeddings of many requests in the same forwards: gathered for some milliseconds, like lengths together.

Between the API, on the event loop, and a model's `forward`, in one thread. A batch is bounded by its inputs
and by its tokens, padding counted. One that fails is halved and tried again: what cannot be computed fails
alone. Standard library only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from modelyard.servers.transformers.generation import Failed, Gone
from modelyard.servers.transformers.parameters import Parameters
from modelyard.servers.translation.line import Item, Line

Vector: TypeAlias = Sequence[float]
Forward: TypeAlias = Callable[[Sequence[Sequence[int]]], Sequence[Vector]]
_Told: TypeAlias = Vector | Failed | Gone


@dataclass(frozen=True, eq=False)
class _Asked:
    tokens: Sequence[int]
    gone: Callable[[], bool]
    told: asyncio.Future[_Told]


class Gathering:
    """See `generation.Embedder`. The first of a batch waits at most `max_wait_ms` for others, and for none
    where it is full or each slot has a request in it."""

    def __init__(self, forward: Forward, parameters: Parameters) -> None:
        self._forward = forward
        self._tokens = parameters.batch
        self._size = parameters.batch_size or parameters.batch
        self._wait = parameters.max_wait_ms / 1000
        self._slots = parameters.slots
        self._line: Line[_Asked] = Line()
        self._asking = 0  # requests
        self._batch = 0  # inputs that are computed now
        self._batches = 0
        self._came = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedding")

    def counts(self) -> Mapping[str, float]:
        return {"batch": self._batch, "batches": self._batches}

    async def embed(
        self, inputs: Sequence[Sequence[int]], gone: Callable[[], bool]
    ) -> Sequence[Sequence[float]]:
        loop = asyncio.get_running_loop()
        items = [
            Item(_Asked(tokens, gone, loop.create_future()), max(len(tokens), 1), loop.time())
            for tokens in inputs
        ]
        for item in items:
            self._line.add(item)
        self._asking += 1
        self._came.set()
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run(loop))
        try:
            told = await asyncio.gather(*(item.what.told for item in items))
        finally:
            self._asking -= 1
            for item in items:
                self._line.remove(item)
        vectors = [one for one in told if not isinstance(one, Exception)]
        for one in told:
            if isinstance(one, Exception):
                raise one
        return vectors

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute until nothing waits."""
        while len(self._line):
            await self._gathered(loop)
            for item in self._line.all():
                if item.what.gone():
                    self._line.remove(item)
                    _tell(item, Gone())
            batch = self._line.take(loop.time(), self._tokens, self._size)
            self._batch = len(batch)
            try:
                told = await loop.run_in_executor(self._thread, self._computed, batch)
            finally:
                self._batch = 0
            for item, one in zip(batch, told, strict=True):
                _tell(item, one)

    async def _gathered(self, loop: asyncio.AbstractEventLoop) -> None:
        """Return once the oldest has waited for others, or there is nothing to wait for."""
        while (oldest := self._line.oldest()) is not None:
            full = self._line.tokens >= self._tokens or len(self._line) >= self._size
            left = oldest + self._wait - loop.time()
            if full or self._asking >= self._slots or left <= 0:
                return
            self._came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._came.wait()

    def _computed(self, batch: Sequence[Item[_Asked]]) -> Sequence[_Told]:
        """In the thread: of each item its vector, or why it has none."""
        if not batch:
            return ()
        self._batches += 1
        try:
            return self._forward([item.what.tokens for item in batch])
        except Exception as error:  # whatever the libraries raise belongs to one of these inputs
            if len(batch) == 1:
                return [Failed(f"{type(error).__name__}: {error}")]
        middle = len(batch) // 2
        return [*self._computed(batch[:middle]), *self._computed(batch[middle:])]


def _tell(item: Item[_Asked], told: _Told) -> None:
    if not item.what.told.done():  # its request was cancelled
        item.what.told.set_result(told)
