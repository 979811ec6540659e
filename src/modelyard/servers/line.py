"""What waits to be translated, and what of it goes through the model together. Pure.

Used by `gathering`, on the event loop alone. An item has a length in tokens; a batch costs the length of its
longest times their count, padding included. Short items go first, but one that has waited for `PATIENCE`
goes next, however long it is.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE = 0.5  # seconds
SPREAD = 4
"""A batch's longest item is at most so many times its shortest, beyond `SLACK` tokens: a short one would wait
for it."""
SLACK = 16


@dataclass(eq=False, slots=True)
class Item(Generic[T]):
    """`length` is one at least. `lane`: only items of the same go together. `arrived` is in seconds of any
    one clock."""

    what: T
    length: int
    arrived: float
    lane: int = 0
    order: int = field(default=0, init=False)


class Line(Generic[T]):
    """`tokens` is the sum of the lengths of all that wait."""

    def __init__(self) -> None:
        self.tokens = 0
        self._count = 0
        self._arrived: dict[Item[T], None] = {}  # the first is the oldest
        self._lanes: dict[int, list[Item[T]]] = {}  # shortest first

    def __len__(self) -> int:
        return len(self._arrived)

    def add(self, item: Item[T]) -> None:
        """It waits from now on; items come in the order of `arrived`."""
        self._count += 1
        item.order = self._count
        self.tokens += item.length
        self._arrived[item] = None
        insort(self._lanes.setdefault(item.lane, []), item, key=_place)

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

    def take(self, now: float, bound: int, most: int = sys.maxsize) -> list[Item[T]]:
        """The next batch, of at most `bound` tokens with its padding and `most` items; a longer item goes
        alone. Empty when nothing waits."""
        first = next(iter(self._arrived), None)
        if first is None:
            return []
        if now - first.arrived >= PATIENCE:
            lane, begin, end = self._around(first, bound, most)
        else:
            lane = min(self._lanes, key=lambda one: _place(self._lanes[one][0]))
            begin, end = 0, 1
        return self._leave(lane, begin, self._up(self._lanes[lane], begin, end, bound, most))

    def _up(self, lane: list[Item[T]], begin: int, end: int, bound: int, most: int) -> int:
        """Where those from `begin` on end, with as many longer ones as there is room for."""
        longest = lane[begin].length * SPREAD + SLACK
        last = min(len(lane), begin + min(most, len(lane)))
        while end < last and lane[end].length <= longest and lane[end].length * (end + 1 - begin) <= bound:
            end += 1
        return end

    def _around(self, item: Item[T], bound: int, most: int) -> tuple[int, int, int]:
        """With it those of its length, and shorter ones: none pads it."""
        lane = self._lanes[item.lane]
        at = bisect_left(lane, _place(item), key=_place)
        fit = min(max(bound // item.length, 1), most)
        end = bisect_right(lane, item.length, at, min(at + fit, len(lane)), key=lambda one: one.length)
        begin = max(end - fit, 0)
        while lane[begin].length * SPREAD + SLACK < item.length:
            begin += 1
        return item.lane, begin, end

    def _leave(self, name: int, begin: int, end: int) -> list[Item[T]]:
        lane = self._lanes[name]
        gone = lane[begin:end]
        del lane[begin:end]
        if not lane:
            del self._lanes[name]
        for item in gone:
            del self._arrived[item]
            self.tokens -= item.length
        return gone


def _place(item: Item[T]) -> tuple[int, int]:
    return item.length, item.order
