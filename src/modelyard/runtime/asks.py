"""Those who asked to have a version loaded, until they are told.

Owned by the driver. Many may ask for one version; the scheduler answers all of them with one Loaded.
"""

from __future__ import annotations

from asyncio import Future, get_running_loop
from collections.abc import Iterator
from contextlib import contextmanager

from modelyard.core.actions import Loaded
from modelyard.errors import by_code


class Asks:
    def __init__(self) -> None:
        self._asked: dict[str, set[Future[str]]] = {}

    @contextmanager
    def one(self, version: str) -> Iterator[Future[str]]:
        """What will hold the name of the instance, or the error, as long as somebody waits for it here."""
        asked: Future[str] = get_running_loop().create_future()
        self._asked.setdefault(version, set()).add(asked)
        try:
            yield asked
        finally:
            left = self._asked.get(version, set())
            left.discard(asked)
            if not left:
                self._asked.pop(version, None)

    def answer(self, action: Loaded) -> None:
        for asked in self._asked.pop(action.version, ()):
            if asked.done():
                continue
            if action.instance is not None:
                asked.set_result(action.instance)
            else:
                asked.set_exception(by_code(action.code, action.message))
