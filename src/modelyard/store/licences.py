"""What repositories say of their licences, for all files of one: each is asked for it once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from modelyard.store.source import LICENCE_WAIT

MOST = 1_000
AGAIN = 60.0  # seconds after which one that did not tell is asked anew

Place = tuple[str, str, str]
"""An endpoint, a repository, and a revision that does not move."""


@dataclass(slots=True)
class _Told:
    licence: str = ""
    until: float = 0.0
    asking: threading.Lock = field(default_factory=threading.Lock)


class Licences:
    """Those that were asked for last. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[Place, _Told] = {}

    def of(self, place: Place, ask: Callable[[], str | None]) -> str:
        """What `ask` says (None: it cannot be told now), or said to somebody else; "" where neither is known
        soon. Raises what `ask` raises."""
        with self._lock:
            told = self._told[place] = self._told.pop(place, _Told())
            if len(self._told) > MOST:
                del self._told[next(iter(self._told))]
        if not told.asking.acquire(timeout=LICENCE_WAIT):
            return ""
        try:
            if time.monotonic() >= told.until:
                licence = ask()
                told.licence = licence or ""
                told.until = time.monotonic() + AGAIN if licence is None else inf
            return told.licence
        finally:
            told.asking.release()
