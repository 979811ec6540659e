"""Deadlines by key: set, cancel, and pop what is due, each O(log n) at most.

Owned by the scheduler; it is the only clock-like thing in the core, and it only ever compares numbers.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

Key = tuple[str, str]


class Timers:
    """One pending deadline per key. Moving a deadline later costs a dict write: the heap entry is moved when
    it surfaces."""

    __slots__ = ("_heap", "_when")

    def __init__(self) -> None:
        self._when: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._when)

    def copy(self) -> Timers:
        copied = Timers()
        copied._when, copied._heap = self._when.copy(), self._heap.copy()
        return copied

    def set(self, key: Key, when: float) -> None:
        """Have `key` due at `when` (absolute seconds), whatever it was before."""
        before = self._when.get(key)
        self._when[key] = when
        if before is None or when < before:
            heappush(self._heap, (when, key))
            if len(self._heap) > 64 + 4 * len(self._when):
                self._heap = [(due, name) for name, due in self._when.items()]
                heapify(self._heap)  # cancelled entries would stay until they surface

    def when(self, key: Key) -> float | None:
        """The deadline of `key`, None when it has none."""
        return self._when.get(key)

    def cancel(self, key: Key) -> None:
        self._when.pop(key, None)

    def next(self) -> float | None:
        """The earliest deadline, None when there is none."""
        heap, pending = self._heap, self._when
        while heap:
            when, key = heap[0]
            current = pending.get(key)
            if current == when:
                return when
            heappop(heap)
            if current is not None and current > when:
                heappush(heap, (current, key))
        return None

    def pop_due(self, now: float) -> list[Key]:
        """Remove and return the keys whose deadline has come, earliest first."""
        due: list[Key] = []
        while (when := self.next()) is not None and when <= now:
            key = heappop(self._heap)[1]
            del self._when[key]
            due.append(key)
        return due
