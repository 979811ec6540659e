"""The files of a version, from the store: what an adapter asks for, by role, as paths, sizes and headers."""

from __future__ import annotations

from collections.abc import Callable

from modelyard.engines.base import Files, ModelFile
from modelyard.errors import DownloadFailed, StoreError
from modelyard.runtime.entries import Entry, Progress
from modelyard.store import Store, StoredFile
from modelyard.store.local import lying


class StoreFiles:
    """A FileProvider on the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def cached(self, entry: Entry) -> Files | None:
        """See FileProvider.cached."""
        files: dict[str, ModelFile] = {}
        for role, source in entry.engine.sources(entry.spec).items():
            stored = self._store.cached(source)
            if stored is None:
                return None
            files[role] = await self._describe(source, stored)
        return files

    async def lying(self, entry: Entry) -> Files | None:
        """See FileProvider.lying."""
        files: dict[str, ModelFile] = {}
        for role, source in entry.engine.sources(entry.spec).items():
            found = self._store.cached(source) or lying(source)
            if found is None:
                return None
            files[role] = await self._describe(source, found)
        return files

    async def fetch(self, entry: Entry, progress: Callable[[Progress], None]) -> Files:
        """See FileProvider.fetch."""
        version = entry.spec.version
        files: dict[str, ModelFile] = {}
        for role, source in entry.engine.sources(entry.spec).items():
            stored = await self._store.fetch(
                source, progress=lambda step: progress(Progress(version, step.done, step.total))
            )
            files[role] = await self._describe(source, stored)
        return files

    async def _describe(self, source: str, stored: StoredFile) -> ModelFile:
        try:
            header = await self._store.header(stored)
        except StoreError as error:
            raise type(error)(f"{error.message}. {_remedy(source)}") from error
        except OSError as error:
            raise DownloadFailed(f"{stored.path} cannot be read: {error.strerror}") from error
        return ModelFile(stored.path, stored.size, stored.digest, header)


def _remedy(source: str) -> str:
    if "://" in source and not source.startswith("file://"):
        return "Delete that file and ask again: it is then fetched anew"
    return "Put a whole file in its place and ask again"
