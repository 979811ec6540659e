"""What one source stands for: a file, or several that lie beside each other (`split`).

Used by the runtime's file provider, on top of the store: to it, each part is a source of its own, so that
parts are fetched, resumed, judged, verified and removed one by one. Those that lie in the cache are named by
their digests: links with the names that engines look for lead to them, in `sets/DIGEST/`. (Hard links would
change the time by which an edited file is known, and keep the bytes of one that was removed.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.core.units import short
from modelyard.engines.gguf import check_part
from modelyard.errors import DiskFull, DownloadFailed
from modelyard.store.disk import Disk
from modelyard.store.formats import Terms
from modelyard.store.head import Head
from modelyard.store.local import lying
from modelyard.store.source import Progress, StoredFile, disk_full, is_no_room, shown
from modelyard.store.split import parts_of, suffix

if TYPE_CHECKING:
    from modelyard.store.cache import Store

ASKING = 60.0  # seconds, for all parts together


class FileSets:
    """`store`'s methods, for sources in one file or several; what `terms` promise is said of the first."""

    def __init__(self, store: Store, disk: Disk) -> None:
        self._store = store
        self._disk = disk

    def cached(self, source: str, terms: Terms) -> StoredFile | None:
        """See Store.cached. Costs a stat for each part."""
        return self._found(source, terms, self._store.cached)

    def known(self, source: str, terms: Terms) -> StoredFile | None:
        """What it was, where it lies in the cache or was removed to make room."""
        return self._found(source, terms, lambda *one: self._store.cached(*one) or self._store.removed(*one))

    def lying(self, source: str, terms: Terms) -> StoredFile | None:
        """See `local.lying`, also for what is cached."""
        return self._found(source, terms, lambda *one: self._store.cached(*one) or lying(one[0]))

    async def ask(self, source: str, terms: Terms, deadline: float) -> Head:
        """See Store.ask. Of several files it tells the size of all, and the header of the first; another one
        that cannot be asked for now is taken for good."""
        parts = self._parts(source, terms)
        heads = await self._heads(parts, deadline)
        for number, ((name, _), head) in enumerate(zip(parts, heads, strict=True), 1):
            if head.header:
                check_part(head.header, number, len(parts), shown(name))
        if len(heads) == 1:
            return heads[0]
        sizes = [head.size for head in heads]
        return Head(sum(sizes) if all(sizes) else 0, "", heads[0].header, heads[0].licence)

    async def recheck(self, source: str, terms: Terms) -> StoredFile | None:
        """See Store.recheck."""
        parts = []
        for one in self._parts(source, terms):
            part = await self._store.recheck(*one)
            if part is None:
                return None
            parts.append(part)
        return await self._linked(parts)

    async def fetch(
        self, source: str, terms: Terms, user: str, progress: Callable[[Progress], None]
    ) -> StoredFile:
        """See Store.fetch. Each part is held for `user`, so that none has to make room for the next. A source
        that lacks a part is refused before the first is fetched."""
        count = len(parts_of(source))
        total = (await self.ask(source, terms, ASKING)).size if count > 1 else 0
        if 0 < self._store.shelf.quota < total:
            raise DiskFull(
                f"{shown(source)}: its {count} files need {short(total)}, and store.quota is "
                f"{short(self._store.shelf.quota)}; raise the quota"
            )
        parts: list[StoredFile] = []

        def tell(step: Progress) -> None:
            before = sum(part.size for part in parts)
            whole = (total or None) if count > 1 else step.total
            progress(Progress(shown(source), before + step.done, whole))

        while len(parts) < count:
            # Asked for anew: once the first is here, the others are those of the same commit.
            one = self._parts(source, terms)[len(parts)]
            part = await self._store.fetch(*one, progress=tell)
            self._store.hold(user, [part])
            parts.append(part)
        return await self._linked(parts)

    def _parts(self, source: str, terms: Terms) -> list[tuple[str, Terms]]:
        """The sources of the parts: of the others as the first was resolved."""
        entry = self._store.entry(source, terms)
        others = parts_of(entry.exact if entry is not None and entry.exact else source)[1:]
        return [(source, terms), *((other, replace(terms, sha256="")) for other in others)]

    def _found(
        self, source: str, terms: Terms, find: Callable[[str, Terms], StoredFile | None]
    ) -> StoredFile | None:
        parts = []
        for one in self._parts(source, terms):
            part = find(*one)
            if part is None:
                return None
            parts.append(part)
        return self._whole(parts)

    async def _heads(self, parts: Sequence[tuple[str, Terms]], deadline: float) -> list[Head]:
        async def ask(number: int, source: str, terms: Terms) -> Head:
            entry = self._store.entry(source, terms)
            if entry is not None and entry.is_there():
                return Head(entry.size, entry.digest, licence=entry.licence)
            try:
                return await self._store.ask(source, terms, deadline)
            except DownloadFailed:
                if number == 0:
                    raise
                return Head()

        try:
            async with asyncio.TaskGroup() as asking:
                tasks = [asking.create_task(ask(number, *one)) for number, one in enumerate(parts)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    def _whole(self, parts: Sequence[StoredFile]) -> StoredFile:
        """One file of all parts; `_linked` has it lie there."""
        first, size = parts[0], sum(part.size for part in parts)
        if len(parts) == 1:
            return first
        digests = "\n".join(part.digest for part in parts)
        digest = sha256(digests.encode()).hexdigest() if all(part.digest for part in parts) else ""
        if parts_of(str(first.path)) != tuple(str(part.path) for part in parts):
            first = replace(first, path=self._disk.sets / digest / f"model{suffix(1, len(parts))}")
        return replace(first, size=size, digest=digest, parts=tuple(parts))

    async def _linked(self, parts: Sequence[StoredFile]) -> StoredFile:
        whole = self._whole(parts)
        if whole.path.is_relative_to(self._disk.sets):
            await asyncio.to_thread(self._link, whole)
        return whole

    def _link(self, whole: StoredFile) -> None:
        try:
            for name, part in zip(parts_of(str(whole.path)), whole.parts, strict=True):
                self._disk.link(Path(name), part.path)
        except OSError as error:
            if is_no_room(error):
                raise disk_full(str(whole.path), self._disk.root, None) from error
            raise DownloadFailed(f"{whole.path} cannot be made: {error.strerror or error}") from error
