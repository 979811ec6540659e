"""What the scheduler tells people: logged, the last of it kept, and passed on to whoever follows.

Owned by the driver; read by the control surface.
"""

from __future__ import annotations

from asyncio import Queue
from collections import deque
from collections.abc import Callable

import structlog

from modelyard.core.actions import Note

log = structlog.get_logger(__name__)

KEPT = 512
QUEUED = 256  # notes that a follower may be behind
QUIET = frozenset({"blocked"})  # they change with every event of a long line


class Notes:
    """`kept` are the last, each with the loop time at which it came. `count` is called with every one."""

    def __init__(self) -> None:
        self.kept: deque[tuple[float, Note]] = deque(maxlen=KEPT)
        self.count: Callable[[Note], None] | None = None
        self.followers: set[Queue[Note]] = set()

    def take(self, moment: float, note: Note) -> None:
        self.kept.append((moment, note))
        tell = log.debug if note.kind in QUIET else log.info
        tell(note.kind, subject=note.subject, message=note.message, **dict(note.fields))
        if self.count is not None:
            self.count(note)
        for queue in self.followers:
            if not queue.full():
                queue.put_nowait(note)

    def follow(self) -> Queue[Note]:
        """A queue that gets every note from now on; one that is full misses some. `leave` it."""
        queue: Queue[Note] = Queue(QUEUED)
        self.followers.add(queue)
        return queue

    def leave(self, queue: Queue[Note]) -> None:
        self.followers.discard(queue)
