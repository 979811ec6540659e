"""Files that are not here yet: what fetches them is the test's own."""

from __future__ import annotations

from modelyard.engines.base import Files
from modelyard.runtime.entries import Entry


class FilesElsewhere:
    """A FileProvider but for its `fetch`."""

    async def cached(self, entry: Entry) -> Files | None:
        return None

    lying = cached

    async def ask(self, entry: Entry, deadline: float) -> Files:
        raise NotImplementedError

    async def recheck(self, entry: Entry, user: str) -> bool:
        return True

    def let_go(self, user: str) -> None:
        pass
