"""How fast and how patiently bytes are fetched: a bandwidth over all transfers, pauses after failures.

Used by `transfer` and by the clients of single sources.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from modelyard.errors import DownloadFailed
from modelyard.store.source import Watch

# Seconds before each further try of what may pass by itself; begun anew whenever bytes came.
PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0)
# Bytes of a file; what claims more is none.
LARGEST = 2**50
# What a server may have us wait in all (Retry-After), in seconds.
LONGEST_WAIT = 120.0
# What an idle line may send at once, in seconds of its bandwidth.
_BURST = 0.1

T = TypeVar("T")


class Throttled(DownloadFailed):
    """The server wants to be asked less; fewer connections may be all that it takes."""


class BadAnswer(DownloadFailed):
    """What the server says cannot be so; to ask it again would not help."""


class Bandwidth:
    """A bound over all who take from it, in bytes a second; 0 is none."""

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._spent_until = 0.0

    def take(self, count: int, watch: Watch) -> None:
        """Wait until so many bytes may pass. Raises what `watch` raises."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._spent_until = max(self._spent_until, now - _BURST) + count / self._rate
            wait = self._spent_until - now
        if wait > 0:
            watch.pause(wait)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a store fetches: `connections` for one large file, the bandwidth of all, and the seconds before
    each further try of what may pass by itself."""

    connections: int = 4
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    pauses: Sequence[float] = PAUSES


class Patience:
    """How long failures are borne that may pass by themselves: the `pauses` in turn, begun anew after
    progress, and what a server asks for up to LONGEST_WAIT seconds in all."""

    def __init__(self, watch: Watch, pauses: Sequence[float]) -> None:
        self._watch = watch
        self._pauses = pauses
        self._tries = 0
        self._furthest = 0
        self._left = LONGEST_WAIT

    def reached(self, position: int) -> None:
        """So many bytes are here. (A server that begins at the start each time makes no progress.)"""
        if position > self._furthest:
            self._furthest, self._tries = position, 0

    def bear(self, failure: DownloadFailed) -> None:
        """Wait before another try. Raises `failure` when there should be none."""
        if isinstance(failure, BadAnswer) or self._tries >= len(self._pauses):
            raise failure
        pause = self._pauses[self._tries]
        if failure.retry_after is not None:
            pause = failure.retry_after
            if pause > self._left:
                raise failure
            self._left -= pause
        if pause >= self._watch.left():
            raise failure
        self._tries += 1
        self._watch.pause(pause)

    def insist(self, ask: Callable[[], T]) -> T:
        """What `ask` returns, tried again after failures that may pass by themselves."""
        while True:
            try:
                return ask()
            except DownloadFailed as failure:
                self.bear(failure)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that an answer asks us to wait; None when it says nothing. Names of headers are small."""
    told = headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    with suppress(ValueError, TypeError, OverflowError):
        date = parsedate_to_datetime(told)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None
