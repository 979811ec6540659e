"""The files of a version, from the store: what an adapter asks for, by role, as paths, sizes and headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from modelyard.engines.base import Files, ModelFile
from modelyard.errors import DownloadFailed, StoreError
from modelyard.runtime.entries import Entry, Progress
from modelyard.store import Derived, Store, StoredFile, Terms
from modelyard.store import Progress as Step
from modelyard.store.source import licence_of


class StoreFiles:
    """A FileProvider on the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sets = store.sets
        self._derived = Derived(store)

    async def cached(self, entry: Entry) -> Files | None:
        """See FileProvider.cached."""
        files: dict[str, ModelFile] = {}
        for role, source, terms, type in _wanted(entry):
            stored = self._made(source, terms, type) if type else self._sets.cached(source, terms)
            if stored is None:
                return None
            files[role] = await self._describe(stored)
        return files

    async def lying(self, entry: Entry) -> Files | None:
        """See FileProvider.lying."""
        if entry.spec.quantize or entry.spec.speculative.quantize:
            return await self.cached(entry)  # what is not made yet cannot be told from its parent
        files: dict[str, ModelFile] = {}
        for role, source, terms, _ in _wanted(entry):
            found = self._sets.lying(source, terms)
            if found is None:
                return None
            files[role] = await self._describe(found)
        return files

    async def ask(self, entry: Entry, deadline: float) -> Files:
        """See FileProvider.ask."""
        files: dict[str, ModelFile] = {}
        for role, source, terms, type in _wanted(entry):
            stored = self._sets.cached(source, terms)
            if stored is not None:
                files[role] = await self._describe(stored)
            else:
                head = await self._sets.ask(source, terms, deadline)
                files[role] = ModelFile(Path(), head.size, head.digest, head.header, head.licence)
            if type:  # another file will be made of this one
                files[role] = replace(files[role], size=0, digest="")
        return files

    async def recheck(self, entry: Entry, user: str) -> bool:
        """See FileProvider.recheck."""
        known = entry.files or {}
        digests = set()
        paths = [path for file in known.values() for path in file.paths]
        if not self._store.hold(user, [StoredFile(path, 0, "") for path in paths]):
            return False
        for role, source, terms, type in _wanted(entry):
            found = await self._sets.recheck(source, terms)
            if type and (parent := found or self._sets.known(source, terms)):
                found = await self._derived.recheck(parent, type)
            if found is None or (found.path, found.digest) != (known[role].path, known[role].digest):
                return False
            digests |= {part.digest for part in found.parts or (found,)}
        await asyncio.to_thread(self._record, digests, entry.spec.model)
        return True

    def let_go(self, user: str) -> None:
        """See FileProvider.let_go."""
        self._store.let_go(user)

    async def fetch(self, entry: Entry, progress: Callable[[Progress], None]) -> Files:
        """See FileProvider.fetch."""
        version = entry.spec.version
        files: dict[str, ModelFile] = {}
        user = f"fetch of {version}, {id(files)}"
        try:

            def tell(step: Step) -> None:
                progress(Progress(version, step.done, step.total))

            for role, source, terms, type in _wanted(entry):
                made = self._made(source, terms, type) if type else None
                stored = made or await self._sets.fetch(source, terms, user, tell)
                self._store.hold(user, [stored])  # the next one must not take its place
                if type and made is None:
                    program = entry.profile.program
                    stored = await self._derived.make(stored, type, tell, program)
                    self._store.hold(user, [stored])
                files[role] = await self._describe(stored)
        finally:
            self._store.let_go(user)
        return files

    def _made(self, source: str, terms: Terms, type: str) -> StoredFile | None:
        """What was made of a source: what it was made of may have gone to make room."""
        parent = self._sets.known(source, terms)
        return None if parent is None else self._derived.cached(parent, type)

    def _record(self, digests: set[str], model: str) -> None:
        for digest in digests:
            self._store.shelf.used(digest, model)

    async def _describe(self, stored: StoredFile) -> ModelFile:
        try:
            header = await self._store.header(stored)
        except StoreError as error:
            raise type(error)(f"{error.message}. Put a whole file in its place and ask again") from error
        except OSError as error:
            raise DownloadFailed(f"{stored.path} cannot be read: {error.strerror}") from error
        licence = stored.licence or licence_of(header.get("general.license"))
        parts = tuple(part.path for part in stored.parts)
        return ModelFile(stored.path, stored.size, stored.digest, header, licence, parts)


def _wanted(entry: Entry) -> Iterator[tuple[str, str, Terms, str]]:
    """The files of a version: their roles and sources, what is demanded of each, and the type that it is
    quantized or converted to, if any."""
    spec = entry.spec
    for role, source in entry.engine.sources(spec).items():
        main = role == "model"
        made = {"model": spec.quantize or entry.engine.conversion(spec), "draft": spec.speculative.quantize}
        yield (
            role,
            source,
            Terms(spec.sha256 if main else "", spec.allow_pickle),
            made.get(role, ""),
        )
