"""Translated documents, kept until they are fetched: LibreTranslate's clients get an address, not a file.

Used by the translation lane. An address is as good as a key for this document alone: it cannot be guessed.
Bounded by bytes and by time; the oldest goes first. In memory: a restart forgets them.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from modelyard.errors import BodyTooLarge, NotFound

KEPT_FOR = 1800.0  # seconds
KEPT = 64 * 1024 * 1024
"""Bytes of all of them."""
_LONGEST = 100  # characters of a name
_ODD = re.compile(r"[^A-Za-z0-9._-]+")

HEADERS = [  # whatever it is, a browser saves it and runs nothing of it
    (b"content-type", b"application/octet-stream"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
]


class Files:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._size = 0

    def put(self, name: str, data: bytes) -> str:
        """Keep a document; the last part of its address, which ends with its name."""
        if len(data) > KEPT:
            raise BodyTooLarge(f"The translated document is larger than the {KEPT:,} bytes that are kept.")
        self._drop_old(len(data))
        plain = _ODD.sub("_", name)[-_LONGEST:].lstrip(".") or "file"
        key = f"{secrets.token_urlsafe(24)}.{plain}"
        self._kept[key] = (self._clock() + KEPT_FOR, data)
        self._size += len(data)
        return key

    def get(self, key: str) -> tuple[str, bytes]:
        """The name and the bytes of a document. Raises NotFound."""
        self._drop_old(0)
        found = self._kept.get(key)
        if found is None:
            raise NotFound("There is no such document (any more): have it translated again.")
        return key.partition(".")[2], found[1]

    def _drop_old(self, room: int) -> None:
        now = self._clock()
        while self._kept:
            key, (until, data) = next(iter(self._kept.items()))
            if until > now and self._size + room <= KEPT:
                return
            del self._kept[key]
            self._size -= len(data)
