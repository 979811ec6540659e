"""The journal: what the scheduler was told and decided, kept in a ring on disk.

Filled by the driver (steps of the scheduler) and the gateway (how requests ended), read by the control
surface. Records are made into text at once: a thread that did so would cost more in turns for the interpreter
than the text costs. A thread writes them. What is not on disk yet is in a ring of its own, so a disk
that is slow, full or broken costs old records and nothing else: the loss is counted, said once, and the
writer goes on by itself when there is room again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

import structlog

from modelyard import __version__
from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.state import State, Waiting
from modelyard.runtime.journal_files import Segments, View, blocks
from modelyard.runtime.journal_present import Present
from modelyard.runtime.journal_records import Encoder, Ended, Kind, Queued
from modelyard.runtime.lease import Ticket

log = structlog.get_logger(__name__)

UNWRITTEN = 16_384  # records that may wait for the disk
PLAIN = 4096  # requests that were served at once and went well: so many are remembered, and written last
EVERY = 0.25  # seconds in which records gather before they are written
LINE_SHOWN = 64  # places in line that are told of an arrival; one further back reads as none
RETRY = 2.0  # seconds between tries while the disk takes nothing
PATIENCE = 2.0  # seconds that a reader, or the end of everything, waits for the writer

LOST_MARK = b'"kind":"lost"'


class Journal:
    """A ring of at most `size` bytes in `folder`. Its methods are for the event loop that called `open`;
    what comes before is kept."""

    def __init__(self, folder: Path, size: int) -> None:
        self.lost = 0  # records that never reached the disk
        self.problem = ""  # what the disk says, while it takes nothing
        self._segments = Segments(folder, size)
        self._loop = asyncio.get_running_loop()
        self._pending: deque[bytes] = deque()
        self._wall = time.time() - self._loop.time()  # what makes a moment of the loop one of the clock
        # Arrivals that were granted at once, by request: told with its end, or when somebody reads.
        self._at_once: dict[str, tuple[float, str, str, str]] = {}
        self._wake = asyncio.Event()  # there is something to write
        self._hurry = asyncio.Event()  # somebody waits for it
        self._waiters: list[asyncio.Future[None]] = []
        self._writer: asyncio.Task[None] | None = None
        self._writing = False  # what is neither pending nor on disk is in the writer's thread
        self._closing = False
        self._told_lost = 0
        self._plain: deque[tuple[float, Ended]] = deque(maxlen=PLAIN)  # with the time of their end
        self._present = Present()
        self._encoder = Encoder(self._present.see)

    # -- what happens -------------------------------------------------------------------------------------

    def step(
        self,
        moment: float,
        event: ev.Event,
        actions: Sequence[ac.Action],
        state: State,
        tickets: Mapping[str, Ticket],
    ) -> None:
        """The scheduler took an event at this loop time, and decided; nothing was carried out yet."""
        if not actions and not self._encoder.tells(event):
            return
        api, queued = "", None
        if type(event) is ev.Arrived:
            ticket = tickets.get(event.request)
            api = ticket.api if ticket is not None else ""
            grant = actions[0] if len(actions) == 1 else None
            if type(grant) is ac.Grant and event.since is None and event.priority is None:
                self._at_once[event.request] = (moment, event.version, grant.instance, api)
                return
            waiting = state.waiting.get(event.request)
            queued = _standing(state, waiting) if waiting is not None else None
        if isinstance(event, ev.Finished | ev.Cancelled):
            self._tell_arrival(event.request)
        for action in actions:
            if type(action) is ac.Cut:
                self._tell_arrival(action.request)
        self._tell(self._encoder.step, moment, event, actions, api, queued)

    def ended(self, end: Ended) -> None:
        """A request ended now. `end` is changed no more."""
        moment = self._loop.time()
        if end.outcome == "ok" and self._at_once.pop(end.request, None) is not None:
            self._plain.append((moment, end))
            return
        self._tell_arrival(end.request)
        self._tell(self._encoder.ended, moment, end, moment - end.started)

    def say(self, kind: Kind, **fields: object) -> None:
        """Something else happened now."""
        self._tell(self._encoder.said, self._loop.time(), kind, fields)

    def _tell_arrival(self, request: str) -> None:
        arrival = self._at_once.pop(request, None)
        if arrival is not None:
            moment, version, instance, api = arrival
            self._tell(self._encoder.granted, moment, request, version, instance, api)

    def _tell(self, encode: Callable[..., list[bytes]], moment: float, *arguments: object) -> None:
        try:
            lines = encode(self._wall + moment, *arguments)
        except Exception:
            log.exception("journal.no_record", record=repr(arguments)[:300])
            return
        pending = self._pending
        if not pending:
            self._wake.set()
        pending.extend(lines)
        while len(pending) > UNWRITTEN:
            pending.popleft()
            self.lost += 1

    # -- life ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Write from now on."""
        self.say(Kind.OPENED, modelyard=__version__, pid=os.getpid())
        self._writer = asyncio.create_task(self._write_on(), name="journal")

    async def close(self) -> None:
        """Write what is left, for PATIENCE seconds at most. Idempotent."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        self._tell_plain()
        self.say(Kind.CLOSED)
        self._closing = True
        self._wake.set()
        self._hurry.set()
        await asyncio.wait({writer}, timeout=PATIENCE)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        self._segments.close()

    def _tell_plain(self) -> None:
        """Put what is only remembered into the ring, too: somebody asks, or this is the end."""
        for moment, end in self._plain:
            at_once = (end.request, end.version, end.instance, end.api)
            self._tell(self._encoder.granted, end.started, *at_once)
            self._tell(self._encoder.ended, moment, end, moment - end.started)
        self._plain.clear()
        for request in list(self._at_once):
            self._tell_arrival(request)

    # -- writing ------------------------------------------------------------------------------------------

    async def _write_on(self) -> None:
        while self._pending or not self._closing:
            await self._wake.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY if self.problem else EVERY):
                    await self._hurry.wait()
            self._hurry.clear()
            self._wake.clear()
            waiters, self._waiters = self._waiters, []
            batch = list(self._pending)
            self._pending.clear()
            self._writing = True
            try:
                if batch:
                    await self._write_batch(batch)
            except Exception:
                self.lost += len(batch)
                log.exception("journal.failed")  # the next may do better
            finally:
                self._writing = False
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
            if self.problem and self._closing:
                return

    async def _write_batch(self, batch: list[bytes]) -> None:
        self._wall = time.time() - self._loop.time()
        if self._told_lost < self.lost:
            fields: dict[str, object] = {"count": self.lost - self._told_lost}
            batch[:0] = self._encoder.said(self._wall + self._loop.time(), Kind.LOST, fields)
        told, self._told_lost = self._told_lost, self.lost
        present = self._present.told(self._wall + self._loop.time())
        done, error = await asyncio.to_thread(self._segments.append, batch, present)
        if error is not None:
            left = batch[done:]
            if any(LOST_MARK in line for line in left):
                self._told_lost = told
            self._keep(left)
            if not self.problem:
                log.error("journal.not_written", reason=str(error))
            self.problem = error.strerror or type(error).__name__
        elif self.problem:
            self.problem = ""
            log.warning("journal.written_again", lost=self.lost)

    def _keep(self, lines: list[bytes]) -> None:
        """Put what was not written back, before what came meanwhile."""
        lines = [line for line in lines if LOST_MARK not in line]  # it is counted anew
        room = max(0, UNWRITTEN - len(self._pending))
        self.lost += max(0, len(lines) - room)
        self._pending.extendleft(reversed(lines[-room:] if room else []))
        self._wake.set()

    # -- reading ------------------------------------------------------------------------------------------

    async def read(self) -> Iterator[bytes]:
        """Blocks of lines, the oldest first, up to now. Iterating reads from the disk: do it in a thread."""
        self._tell_plain()
        await self._written()
        if self._writer is None:
            with suppress(OSError):
                await asyncio.to_thread(self._segments.look)
        view: View = self._segments.view()
        return chain(blocks(view), [b"".join(self._pending)] if self._pending else [])

    async def _written(self) -> None:
        """Wait until what has happened by now was written, or could not be."""
        if self._writer is None or not (self._pending or self._writing):
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        self._wake.set()
        self._hurry.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await waiter


async def in_thread(iterator: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The items of an iterator that blocks."""
    while (item := await asyncio.to_thread(next, iterator, None)) is not None:
        yield item


def _standing(state: State, waiting: Waiting) -> Queued:
    """What a request that has just queued was told."""
    version = state.versions[waiting.version]
    line = enumerate(islice(state.line, LINE_SHOWN), 1)
    return Queued(
        waiting.priority,
        waiting.estimate,
        waiting.bound,
        waiting.deadline - waiting.queued_at,
        sum(version.queue.counts[waiting.priority :]) - 1,
        next((place for place, (_, key) in line if key == version.key), 0),
        version.blocked_by,
    )
