"""Translations of a short while ago, so that the same text need not be translated again. Bounded by bytes:
what was not asked for the longest goes first. Used by the translation lane.
"""

from __future__ import annotations

from collections import OrderedDict

_EACH = 300  # bytes that an entry takes beside its texts

Key = tuple[tuple[str, ...], str, str, str]
"""The versions that made it, with what a language model was told, source, target and text."""


class Recent:
    def __init__(self) -> None:
        self._kept: OrderedDict[Key, str] = OrderedDict()
        self.size = 0

    def get(self, key: Key) -> str | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Key, translation: str, most: int) -> None:
        """Keep it, so that all of them take `most` bytes at the most; not one that takes more alone."""
        size = _size(key, translation)
        if key not in self._kept and size <= most:
            self._kept[key] = translation
            self.size += size
        while self.size > most:
            self.size -= _size(*self._kept.popitem(last=False))


def _size(key: Key, translation: str) -> int:
    """About what it takes: up to four bytes a character, two of them on average."""
    return _EACH + 2 * (len(key[-1]) + len(translation))
