"""Batches out of what many requests ask for: gathered for some milliseconds, run by the replicas of a model.

Used by the servers, on the event loop; the model runs in a thread per replica, and the one that is free
takes the next batch. What a batch may take is `room`'s to say. A batch that runs out of memory is halved and
tried again; so is one with a segment that the model refuses, so that this one fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from modelyard.servers.translation.backends import Backend, OutOfMemory, Output, Segment
from modelyard.servers.translation.line import Item, Line

MOST_WAITING = 100_000  # segments
_FAILURES = 3  # batches in a row: then the model will not come back by itself


class Full(Exception):
    """More segments wait than is sensible."""


class Room(Protocol):
    """How many tokens a batch may have, with its padding."""

    def bound(self) -> int: ...

    def begins(self, tokens: int) -> None:
        """A batch of so many tokens is run now. This and what follows is called in the replicas' threads."""
        ...

    def ended(self, tokens: int, fitted: bool | None) -> None:
        """Whether it fitted into memory; None when it failed for another reason."""
        ...


@dataclass(slots=True)
class Counts:
    """What was run since the start: `tokens` are those of segments, `padded` those of batches. `splits` are
    batches that were halved to fit into memory; `running` are segments that run now."""

    batches: int = 0
    segments: int = 0
    tokens: int = 0
    padded: int = 0
    splits: int = 0
    running: int = 0

    def begin(self, batch: Sequence[Segment]) -> int:
        padded = max(map(len, batch)) * len(batch)
        self.batches += 1
        self.segments += len(batch)
        self.tokens += sum(map(len, batch))
        self.padded += padded
        return padded


@dataclass(slots=True)
class _Asked:
    segment: Segment
    done: asyncio.Future[Output]


_Batch = Sequence[Item[_Asked]]


class Batching:
    """The segments of many requests, run by one back end. The first waits for others at most `max_wait`
    seconds. `limit` says how many tokens may be made in a batch whose longest segment has so many.
    `failed` is called when the back end has failed time and again: it will do so ever after."""

    def __init__(
        self,
        backend: Backend,
        room: Room,
        limit: Callable[[int], int],
        *,
        beam_size: int = 1,
        max_wait: float = 0.003,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.counts = Counts()
        self._backend = backend
        self._room = room
        self._limit = limit
        self._beam_size = beam_size
        self._max_wait = max_wait
        self._failed = failed
        self._failures = 0
        self._closing = False
        self._line: Line[_Asked] = Line()
        self._idle = backend.replicas
        self._changed = asyncio.Event()
        self._threads = ThreadPoolExecutor(backend.replicas, thread_name_prefix="translation")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """Segments that wait."""
        return len(self._line)

    @property
    def bound(self) -> int:
        """Tokens that a batch may have now."""
        return self._room.bound()

    async def translate(self, segments: Sequence[Segment], alternatives: int = 0) -> list[Output | Exception]:
        """The outputs of these segments; in place of one that failed, why. When this is cancelled, those that
        do not run yet never will. Raises Full."""
        if len(self._line) + len(segments) > MOST_WAITING:
            raise Full
        loop = asyncio.get_running_loop()
        self._start(loop)
        now = loop.time()
        items = [
            Item(_Asked(segment, loop.create_future()), max(len(segment), 1), now, alternatives)
            for segment in segments
        ]
        for item in items:
            self._line.add(item)
        self._changed.set()
        try:
            return [*await asyncio.gather(*(item.what.done for item in items), return_exceptions=True)]  # type: ignore[list-item]
        finally:
            for item in items:
                self._line.remove(item)

    async def close(self) -> None:
        """Run no more: what runs is waited for, what waits is cancelled."""
        self._closing = True
        self._changed.set()
        await asyncio.gather(*self._tasks)
        while batch := self._line.take(0.0, 1):
            for item in batch:
                item.what.done.cancel()
        self._threads.shutdown()

    # -- replicas -----------------------------------------------------------------------------------------

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._tasks:
            self._tasks = [loop.create_task(self._replica(loop)) for _ in range(self._backend.replicas)]

    async def _replica(self, loop: asyncio.AbstractEventLoop) -> None:
        while batch := await self._next(loop):
            self.counts.running += len(batch)
            self._idle -= 1
            try:
                said = await loop.run_in_executor(self._threads, self._outputs, batch)
            finally:
                self.counts.running -= len(batch)
                self._idle += 1
            for item, output in zip(batch, said, strict=True):
                _tell(item.what.done, output)
            if self._failures >= _FAILURES:
                self._failed(str(said[-1]))

    async def _next(self, loop: asyncio.AbstractEventLoop) -> _Batch:
        """The next batch, once it was gathered for long enough; none when there will be none. Replicas that
        have nothing to do share what waits."""
        while not self._closing:
            self._changed.clear()
            oldest, bound = self._line.oldest(), self._room.bound()
            if oldest is None:
                await self._changed.wait()
                continue
            left = oldest + self._max_wait - loop.time()
            if left <= 0 or self._line.tokens >= bound:
                return self._line.take(loop.time(), bound, -(-len(self._line) // self._idle))
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
        return ()

    # -- in a thread --------------------------------------------------------------------------------------

    def _outputs(self, batch: _Batch) -> list[Output | Exception]:
        """Of each item its output, or why it has none."""
        segments = [item.what.segment for item in batch]
        tokens = self.counts.begin(segments)
        self._room.begins(tokens)
        fitted: bool | None = None
        why: Exception
        try:
            outputs = self._backend.run(
                segments,
                beam_size=self._beam_size,
                max_output=self._limit(max(map(len, segments))),
                alternatives=batch[0].lane,
            )
            fitted, self._failures = True, 0
            return [*outputs]
        except OutOfMemory as error:
            fitted, why = False, error
            self.counts.splits += len(batch) > 1
        except ValueError as error:
            why = error
        except Exception as error:  # whatever the libraries raise
            self._failures += 1
            return [error] * len(batch)
        finally:
            self._room.ended(tokens, fitted)
        if len(batch) == 1:
            return [why]
        middle = len(batch) // 2
        return self._outputs(batch[:middle]) + self._outputs(batch[middle:])


def _tell(done: asyncio.Future[Output], said: Output | Exception) -> None:
    if done.done():  # its request has gone
        return
    if isinstance(said, Exception):
        done.set_exception(said)
    else:
        done.set_result(said)
