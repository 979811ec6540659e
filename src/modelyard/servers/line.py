"""What waits to be translated, and what of it goes through the model together. Pure.

Used by `gathering`, on the event loop alone. An item has a length in tokens; a batch takes room for its
longest times their count, padding included. What waits is cut into batches from the longest on, as large as
they may be: a step of the model costs much the same however many items are in it, so that those with most
steps must be few, and the one that is not full has the shortest. Of these batches that with the smallest
request goes first, filled up with items of about its length, and every other one is that of the request that
came first, once one waits for `PATIENCE`; a large one counts as later. Neither is a book in the way of a
sentence, nor are sentences for ever in the way of a book, nor words in that of both. Where little waits for
several threads, the longest go first: the others compute the rest meanwhile, and all end together.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 0.5  # seconds
LATER, LATEST = 1000, 10.0
"""A request counts as a second later for so many of its tokens each; at most so many seconds."""
SPREAD = 4
"""A batch's longest item is at most so many times its shortest, beyond `SLACK` tokens: a short one would wait
for it."""
SLACK = 16
LIKE = 1.5
"""A batch that is not full takes items that are at most so many times as long as its longest."""
ROUNDS = 2
"""Idle threads begin with the longest where there are at most so many batches for each."""
FEW = 100
"""So many items find their places one by one; more of them are sorted together with what waits."""


@dataclass(eq=False, slots=True)
class Item(Generic[T]):
    """`length` is one at least. `lane`: only items of the same go together. `arrived` is in seconds of any
    one clock."""

    what: T
    length: int
    arrived: float
    lane: int = 0
    order: int = field(default=0, init=False)
    request: Request[T] = field(init=False)


@dataclass(eq=False, slots=True)
class Request(Generic[T]):
    """Items that were asked for together, of `size` tokens; those that are `left` wait, shortest first. It
    counts as one that came at `turn`."""

    size: int
    turn: float
    left: dict[Item[T], None]


class Line(Generic[T]):
    """`tokens` is the sum of the lengths of all that wait."""

    def __init__(self) -> None:
        self.tokens = 0
        self._count = 0
        self._arrived: dict[Item[T], None] = {}  # the first is the oldest
        self._lanes: dict[int, list[Item[T]]] = {}  # shortest first
        self._requests: dict[Request[T], None] = {}  # the first is the oldest
        self._patient = True  # the last batch was not for the request that came first

    def __len__(self) -> int:
        return len(self._arrived)

    def add(self, items: Sequence[Item[T]]) -> None:
        """What is asked for together waits from now on; items come in the order of `arrived`."""
        ordered = sorted(items, key=lambda item: item.length)
        size = sum(item.length for item in items)
        turn = max((item.arrived for item in items), default=0.0) + min(size // LATER, LATEST)
        request = Request(size, turn, dict.fromkeys(ordered))
        for item in items:
            self._count += 1
            item.order, item.request = self._count, request
            self._arrived[item] = self._requests[request] = None
            lane = self._lanes.setdefault(item.lane, [])
            if len(items) <= FEW:
                insort(lane, item, key=_place)
            else:
                lane.append(item)
        if len(items) > FEW:
            for lane in self._lanes.values():
                lane.sort(key=_place)
        self.tokens += request.size

    def remove(self, item: Item[T]) -> bool:
        """Nobody wants it any more; False when it does not wait here."""
        if item not in self._arrived:
            return False
        lane = self._lanes[item.lane]
        at = bisect_left(lane, _place(item), key=_place)
        self._leave(item.lane, at, at + 1)
        return True

    def oldest(self) -> float | None:
        """When the one that waits longest came; None when nothing waits."""
        item = next(iter(self._arrived), None)
        return None if item is None else item.arrived

    def take(self, now: float, bound: int, most: int = sys.maxsize, idle: int = 1) -> list[Item[T]]:
        """The next batch, of at most `bound` tokens with its padding and `most` items; a longer item goes
        alone. So many `idle` threads share what waits. Empty when nothing does."""
        oldest = self.oldest()
        if oldest is None:
            return []
        self._patient = not self._patient or now - oldest < PATIENCE
        request = min(self._requests, key=lambda one: one.size if self._patient else one.turn)
        first = next(iter(request.left))
        lane, most = self._lanes[first.lane], min(most, -(-len(self._arrived) // idle))
        batches = self._batches(lane, bound, most)
        if self._patient and idle > 1 and len(batches) <= ROUNDS * idle:
            return self._leave(first.lane, *batches[0])
        at = bisect_left(lane, _place(first), key=_place)
        begin, end = next(batch for batch in batches if batch[0] <= at)
        longest = min(lane[end - 1].length * LIKE, lane[begin].length * SPREAD + SLACK)
        last = min(len(lane), begin + most)
        while end < last and lane[end].length <= longest and lane[end].length * (end + 1 - begin) <= bound:
            end += 1
        return self._leave(first.lane, begin, end)

    def _batches(self, lane: list[Item[T]], bound: int, most: int) -> list[tuple[int, int]]:
        """Where in a lane each batch begins and ends, the longest first."""
        found: list[tuple[int, int]] = []
        end = len(lane)
        while end:
            longest = lane[end - 1].length
            full = max(end - min(max(bound // longest, 1), most), 0)
            shortest = -(-(longest - SLACK) // SPREAD)
            begin = bisect_left(lane, shortest, full, end, key=lambda one: one.length)
            found.append((begin, end))
            end = begin
        return found

    def _leave(self, name: int, begin: int, end: int) -> list[Item[T]]:
        lane = self._lanes[name]
        gone = lane[begin:end]
        del lane[begin:end]
        if not lane:
            del self._lanes[name]
        for item in gone:
            del self._arrived[item], item.request.left[item]
            self.tokens -= item.length
            if not item.request.left:
                del self._requests[item.request]
        return gone


def _place(item: Item[T]) -> tuple[int, int]:
    return item.length, item.order
