"""What many requests ask for, computed together: gathered for some milliseconds, like lengths in one batch.

Used by our servers, on the event loop. Batches are computed in threads; the one that is free takes the next.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelyard.errors import ShuttingDown
from modelyard.servers.line import Item, Line

T = TypeVar("T", bound=Sized)
R = TypeVar("R")

PART, MOST, TIMES = 0.02, 25, 5
"""Many who ask at once take their time to arrive, and to go on with a few of them costs far more: as long as
they come, they are waited for. A gap that says that they have come is this part of what the last batch took,
at most so many times `max_wait`; all in all it is so many times as long at most."""


@dataclass(slots=True)
class _Asked(Generic[T, R]):
    what: T
    done: asyncio.Future[R | Exception]


class Gathering(Generic[T, R]):
    """`compute` is called in one of `threads` threads, with items of one lane and that lane, for what becomes
    of each. A batch for which it raises is halved and tried again where `halves` says so of the error, so
    that an item which cannot be computed fails alone; `after` is called on the event loop after each.

    A batch has at most `bound()` tokens, padding included, and `most` items. Its first waits for others at
    most `max_wait` seconds, longer while they come and batches are long, and for none where the batch is full
    or `crowd` requests are here. A thread that ends a batch waits as long for those who ask again on their
    answers."""

    def __init__(
        self,
        compute: Callable[[Sequence[T], int], Sequence[R]],
        bound: Callable[[], int],
        *,
        max_wait: float,
        threads: int = 1,
        most: int = sys.maxsize,
        crowd: int = sys.maxsize,
        halves: Callable[[Exception], bool] = lambda _: True,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.running = 0  # items that are computed now
        self._compute = compute
        self._bound = bound
        self._max_wait = self._gap = max_wait
        self._newest = 0.0  # when somebody asked last
        self._most = most
        self._crowd = crowd
        self._halves = halves
        self._after = after
        self._asking = 0  # requests
        self._idle = self._count = threads
        self._closing = False
        self._line: Line[_Asked[T, R]] = Line()
        self._changed = asyncio.Event()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return len(self._line)

    async def ask(self, whats: Sequence[T], lane: int = 0) -> list[R | Exception]:
        """What becomes of each; in place of one that failed, why. When this is cancelled, those that do not
        run yet never will, and it ends when none runs any more. Raises ShuttingDown after `close`."""
        if self._closing:
            raise ShuttingDown("the server ends")
        loop = asyncio.get_running_loop()
        if not self._tasks:
            self._tasks = [loop.create_task(self._work(loop)) for _ in range(self._count)]
            for task in self._tasks:
                task.add_done_callback(_surface)
        now = loop.time()
        items = [Item(_Asked(what, loop.create_future()), max(len(what), 1), now, lane) for what in whats]
        self._line.add(items)
        self._newest = now
        self._asking += 1
        self._changed.set()
        try:
            await _all(items)
        except asyncio.CancelledError:
            await _all([item for item in items if not self._line.remove(item)])
            raise
        finally:
            self._asking -= 1
        return [item.what.done.result() for item in items]

    async def close(self) -> None:
        """Compute no more: what runs is waited for, what waits is cancelled."""
        self._closing = True
        self._changed.set()
        await asyncio.gather(*self._tasks)
        while batch := self._line.take(0.0, sys.maxsize):
            for item in batch:
                item.what.done.cancel()
        self._threads.shutdown()

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """What one thread is given to do."""
        freed = 0.0
        while batch := await self._next(loop, freed):
            began = loop.time()
            self.running += len(batch)
            self._idle -= 1
            try:
                found = await loop.run_in_executor(self._threads, self._computed, batch)
            finally:
                self.running -= len(batch)
                self._idle += 1
            freed = loop.time()
            took = freed - began if len(batch) > 1 else 0.0  # one alone is not waited for as many are
            self._gap = max(self._max_wait, min(PART * took, MOST * self._max_wait))
            for item, one in zip(batch, found, strict=True):
                item.what.done.set_result(one)
            self._after()

    async def _next(self, loop: asyncio.AbstractEventLoop, freed: float) -> Sequence[Item[_Asked[T, R]]]:
        """The next batch for a thread that is free since `freed`, once it was gathered for long enough; none
        when there will be none. Threads that have nothing to do share what waits."""
        while not self._closing:
            self._changed.clear()
            oldest, bound = self._line.oldest(), self._bound()
            if oldest is None:
                await self._changed.wait()
                continue
            came = min(self._newest + self._max_wait, oldest + self._gap)
            again = min(max(self._newest, freed), freed + (TIMES - 1) * self._gap) + self._gap
            left = max(came, again) - loop.time()
            full = self._line.tokens >= bound or len(self._line) >= self._most
            if full or left <= 0 or self._asking >= self._crowd:
                return self._line.take(loop.time(), bound, self._most, self._idle)
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
        return ()

    def _computed(self, batch: Sequence[Item[_Asked[T, R]]]) -> list[R | Exception]:
        """In a thread: what becomes of each item, or why nothing does."""
        try:
            return [*self._compute([item.what.what for item in batch], batch[0].lane)]
        except Exception as error:  # whatever the libraries raise
            if len(batch) == 1 or not self._halves(error):
                return [error] * len(batch)
        middle = len(batch) // 2
        return self._computed(batch[:middle]) + self._computed(batch[middle:])


def _surface(task: asyncio.Task[None]) -> None:
    """Have the loop know why one has ended that nobody awaits yet: whoever waits would wait for ever."""
    if not task.cancelled():
        task.result()


async def _all(items: Sequence[Item[_Asked[T, R]]]) -> None:
    """Return when all of them are done; cancels none."""
    if items:
        await asyncio.wait([item.what.done for item in items])
