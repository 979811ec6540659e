"""The segments of many requests, translated together by the replicas of a model.

Used by the servers, on the event loop; the model runs in a thread per replica. What a batch may take is
`room`'s to say. A batch that runs out of memory is halved and tried again; so is one with a segment that the
model refuses. Where the host's own memory is exhausted the model is given up at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelyard.servers.gathering import Gathering
from modelyard.servers.translation.backends import Backend, Broken, OutOfMemory, Output, Segment

MOST_WAITING = 100_000  # segments
_FAILURES = 3  # batches in a row: then the model will not come back by itself


class Full(Exception):
    """More segments wait than is sensible."""


class Room(Protocol):
    """How many tokens a batch may have, with its padding."""

    def bound(self) -> int: ...

    def begins(self) -> None:
        """A batch is run now. This and what follows is called in the replicas' threads."""
        ...

    def ended(self, tokens: int, fitted: bool | None) -> None:
        """Whether one of so many tokens fitted into memory; None when it failed for another reason."""
        ...


@dataclass(slots=True)
class Counts:
    """What was run since the start: `tokens` are those of segments, `padded` those of batches. `splits` are
    batches that were halved to fit into memory."""

    batches: int = 0
    segments: int = 0
    tokens: int = 0
    padded: int = 0
    splits: int = 0

    def begin(self, batch: Sequence[Segment]) -> int:
        padded = max(map(len, batch)) * len(batch)
        self.batches += 1
        self.segments += len(batch)
        self.tokens += sum(map(len, batch))
        self.padded += padded
        return padded


class Batching:
    """The segments of many requests, run by one back end. The first waits for others at most `max_wait`
    seconds. `limit` says how many tokens may be made in a batch whose longest segment has so many.
    `failed` is called when the back end is broken, or has failed time and again: it will do so ever after."""

    def __init__(
        self,
        backend: Backend,
        room: Room,
        limit: Callable[[int], int],
        *,
        beam_size: int = 1,
        max_wait: float,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.counts = Counts()
        self._backend = backend
        self._room = room
        self._limit = limit
        self._beam_size = beam_size
        self._failed = failed
        self._failures = 0
        self._why = ""
        self._lock = threading.Lock()  # for what the replicas' threads count
        self._gathering: Gathering[Segment, Output] = Gathering(
            self._outputs,
            room.bound,
            max_wait=max_wait,
            threads=backend.replicas,
            halves=lambda error: isinstance(error, OutOfMemory | ValueError),
            after=self._report,
        )

    @property
    def waiting(self) -> int:
        """Segments that wait."""
        return self._gathering.waiting

    @property
    def running(self) -> int:
        """Segments that run now."""
        return self._gathering.running

    @property
    def bound(self) -> int:
        """Tokens that a batch may have now."""
        return self._room.bound()

    async def translate(self, segments: Sequence[Segment], alternatives: int = 0) -> list[Output | Exception]:
        """See `Gathering.ask`. Raises Full."""
        if self.waiting + len(segments) > MOST_WAITING:
            raise Full
        return await self._gathering.ask(segments, alternatives)

    async def close(self) -> None:
        """See `Gathering.close`."""
        await self._gathering.close()

    def _report(self) -> None:
        if self._failures >= _FAILURES:
            self._failed(self._why)

    def _outputs(self, segments: Sequence[Segment], alternatives: int) -> list[Output]:
        """In a thread: run a batch."""
        with self._lock:
            tokens = self.counts.begin(segments)
        fitted: bool | None = None
        try:
            self._room.begins()
            outputs = self._backend.run(
                segments,
                beam_size=self._beam_size,
                max_output=self._limit(max(map(len, segments))),
                alternatives=alternatives,
            )
            fitted, self._failures = True, 0
            return outputs
        except OutOfMemory:
            fitted = False
            with self._lock:
                self.counts.splits += len(segments) > 1
            raise
        except ValueError:  # it refuses one of them
            raise
        except Exception as error:  # whatever the libraries raise
            more = _FAILURES if isinstance(error, Broken | MemoryError) else 1
            with self._lock:
                self._failures, self._why = self._failures + more, str(error) or "out of memory"
            raise
        finally:
            self._room.ended(tokens, fitted)
