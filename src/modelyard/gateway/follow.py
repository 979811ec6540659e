"""Streams of the control surface that go on until their client leaves: events, and an instance's output.

Called by `gateway/admin.py`. Each stream is bounded: a slow reader misses events rather than filling memory,
reads of a file are of a limited size, and only so many clients follow at a time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from modelyard.config import Key
from modelyard.errors import TooManyConnections
from modelyard.gateway.exchange import Caller
from modelyard.gateway.snapshot import Snapshot
from modelyard.gateway.views import EventView
from modelyard.runtime.driver import Driver

FOLLOWERS = 64
HEARTBEAT = 15.0
_LOOK = 1.0  # seconds between looks at whether the server is about to stop
_POLL = 0.2  # seconds between looks at a file that did not grow
_PIECE = 256 * 1024


Place = Callable[[], AbstractContextManager[Callable[[], bool]]]
"""One more follower, while the context lasts; it gives what tells whether it may go on."""


class Followers:
    """Counts the clients that follow something. `keys` are those that are in force: nobody goes on whose own
    key is not among them as it was, or who came without one when there are some."""

    def __init__(self, keys: Callable[[], Collection[Key]] = tuple, bound: int = FOLLOWERS) -> None:
        self._keys = keys
        self._bound = bound
        self.count = 0

    def place(self, caller: Caller) -> Place:
        """One for this caller. Raises TooManyConnections when nobody more may follow."""
        if self.count >= self._bound:
            raise TooManyConnections(
                f"{self._bound} clients follow events or logs already; close one of them and try again.",
                retry_after=5.0,
            )
        return partial(self._one, caller)

    @contextmanager
    def _one(self, caller: Caller) -> Iterator[Callable[[], bool]]:
        own = next((key for key in self._keys() if key.digest == caller.digest), None)
        self.count += 1
        try:
            yield lambda: own in self._keys() if own is not None else not self._keys()
        finally:
            self.count -= 1


async def events(
    driver: Driver, snapshot: Snapshot, place: Place, last: int, *, heartbeat: float = HEARTBEAT
) -> AsyncIterator[bytes]:
    """The last events and then each new one, as server-sent events; a comment when nothing happens.

    Ends when the server is shutting down and its last instance is gone, and when the key that it came with
    is in force no more.
    """
    with place() as may_go_on:
        notes = driver.notes.follow()  # before the first yield: nothing falls between what was and what comes
        try:
            yield b": events\n\n" + b"".join(_sse(event) for event in snapshot.events(last))
            silent = 0.0
            while may_go_on() and not _over(driver):
                try:
                    async with asyncio.timeout(_LOOK):
                        note = await notes.get()
                except TimeoutError:
                    silent += _LOOK
                    if silent >= heartbeat:
                        silent = 0.0
                        yield b": still here\n\n"
                    continue
                silent = 0.0
                yield _sse(snapshot.event(note))
        finally:
            driver.notes.leave(notes)


def _over(driver: Driver) -> bool:
    state = driver.scheduler.state
    return state.shutting_down and not state.instances


def _sse(event: EventView) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.kind.encode(), event.model_dump_json().encode())


async def output(driver: Driver, place: Place, instance: str, path: Path, lines: int) -> AsyncIterator[bytes]:
    """The last lines of an instance's output and then what it writes, until the instance is gone, or the key
    that it came with is in force no more."""
    with place() as may_go_on:
        file = _Growing(path)
        await asyncio.to_thread(file.skip)  # first: what is written between comes twice rather than never
        tail = await asyncio.to_thread(driver.launcher.tail, instance, lines)
        yield f"{tail}\n".encode() if tail else b""
        while may_go_on():
            last_look = instance not in driver.scheduler.state.instances
            piece = await asyncio.to_thread(file.read)
            if piece:
                yield piece
            elif last_look:
                return
            else:
                await asyncio.sleep(_POLL)


class _Growing:
    """A file that is appended to, and replaced by a shorter one when it reaches its cap."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0

    def skip(self) -> None:
        """Go to its end."""
        try:
            stat = os.stat(self._path)
        except OSError:
            return
        self._inode, self._offset = stat.st_ino, stat.st_size

    def read(self) -> bytes:
        """What is new; after a replacement it goes on at the new end, and says so."""
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode:
                    self._inode, self._offset = stat.st_ino, stat.st_size
                    return b"[the log reached its cap and was shortened]\n"
                file.seek(self._offset)
                piece = file.read(_PIECE)
        except OSError:
            return b""
        self._offset += len(piece)
        return piece


async def gone(driver: Driver, instances: list[str], timeout: float) -> bool:
    """Wait until these instances are gone; False when `timeout` seconds were not enough. (New ones may have
    been started meanwhile: whoever asks for the model has it loaded again.)"""
    notes = driver.notes.follow()
    try:
        async with asyncio.timeout(timeout):
            while any(name in driver.scheduler.state.instances for name in instances):
                await notes.get()
    except TimeoutError:
        return False
    finally:
        driver.notes.leave(notes)
    return True
