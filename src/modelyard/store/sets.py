"""What one source stands for: a file, several that lie beside each other (`split`), or a folder (`folders`).

Used by the runtime's file provider, on top of the store: to it, each part is a source of its own, so that
parts are fetched, resumed, judged, verified and removed one by one. Those that lie in the cache are named by
their digests: links with the names that engines look for lead to them, in `sets/DIGEST/`. (Hard links would
change the time by which an edited file is known, and keep the bytes of one that was removed.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.core.units import short
from modelyard.engines.gguf import check_part
from modelyard.errors import ChecksumMismatch, DiskFull, DownloadFailed, StoreError
from modelyard.store import folders
from modelyard.store.disk import Disk
from modelyard.store.folders import Member
from modelyard.store.formats import Terms
from modelyard.store.head import Head
from modelyard.store.local import is_local, local_path, lying
from modelyard.store.source import Progress, StoredFile, disk_full, is_no_room, shown
from modelyard.store.split import parts_of, suffix

if TYPE_CHECKING:
    from modelyard.store.cache import Store

ASKING = 60.0  # seconds, for all parts together
_MOST_HEADS = 64  # files of weights in a folder whose headers are asked for; of more, the sizes tell


@dataclass(frozen=True, slots=True)
class Part:
    """One source of several, and what is demanded of it. `member`: where that is a folder, the file there."""

    source: str
    terms: Terms | None
    member: Member | None = None


Found = tuple[Part, StoredFile]


class FileSets:
    """`store`'s methods, for sources in one file or several. What `terms` promise is said of the first, and
    of a folder as a whole."""

    def __init__(self, store: Store, disk: Disk) -> None:
        self._store = store
        self._disk = disk

    def cached(self, source: str, terms: Terms) -> StoredFile | None:
        """See Store.cached. Costs a stat for each part; for a folder, reading its list."""
        return self._found(source, terms, self._store.cached)

    def known(self, source: str, terms: Terms) -> StoredFile | None:
        """What it was, where it lies in the cache or was removed to make room."""
        return self._found(source, terms, lambda *one: self._store.cached(*one) or self._store.removed(*one))

    def lying(self, source: str, terms: Terms) -> StoredFile | None:
        """See `local.lying`, also for what is cached."""
        return self._found(source, terms, lambda *one: self._store.cached(*one) or lying(one[0]))

    def problem(self, source: str, terms: Terms) -> str | None:
        """Why a folder of this machine holds no model; None for any other source."""
        try:
            if is_local(source) and self._store.is_folder(source):
                self._parts(source, terms)
        except StoreError as error:
            return error.message
        return None

    async def ask(self, source: str, terms: Terms, deadline: float) -> Head:
        """See Store.ask. Of several files it tells the size of all, and the header of the first; another one
        that cannot be asked for now is taken for good."""
        if self._store.is_folder(source):
            return await self._ask_folder(source, terms, deadline)
        parts = self._parts(source, terms)
        heads = await self._heads(parts, deadline)
        for number, (part, head) in enumerate(zip(parts, heads, strict=True), 1):
            if head.header:
                check_part(head.header, number, len(parts), shown(part.source))
        if len(heads) == 1:
            return heads[0]
        sizes = [head.size for head in heads]
        return Head(sum(sizes) if all(sizes) else 0, "", heads[0].header, heads[0].licence)

    async def recheck(self, source: str, terms: Terms) -> StoredFile | None:
        """See Store.recheck."""
        if self._has_list(source) and await self._store.recheck(source) is None:
            return None
        found = []
        for part in self._parts(source, terms):
            file = await self._store.recheck(part.source, part.terms)
            if file is None:
                return None
            found.append((part, file))
        whole = await self._linked(source, found)
        return whole if _is_promised(whole, terms) else None

    async def fetch(
        self, source: str, terms: Terms, user: str, progress: Callable[[Progress], None]
    ) -> StoredFile:
        """See Store.fetch. Each part is held for `user`, so that none has to make room for the next. A source
        that lacks a part is refused before the first is fetched."""
        if self._has_list(source):
            self._store.hold(user, [await self._store.fetch(source)])
        parts = self._parts(source, terms)
        total = await self._total(source, parts, terms)
        if 0 < self._store.shelf.quota < total:
            raise DiskFull(
                f"{shown(source)}: its {len(parts)} files need {short(total)}, and store.quota is "
                f"{short(self._store.shelf.quota)}; raise the quota"
            )
        found: list[Found] = []

        def tell(step: Progress) -> None:
            before = sum(file.size for _, file in found)
            whole = (total or None) if len(parts) > 1 else step.total
            progress(Progress(shown(source), before + step.done, whole))

        while len(found) < len(parts):
            part = parts[len(found)]
            if part.member is None:
                # Asked for anew: once the first is here, the others are those of the same commit.
                part = self._parts(source, terms)[len(found)]
            file = await self._store.fetch(part.source, part.terms, progress=tell)
            self._store.hold(user, [file])
            found.append((part, file))
        whole = await self._linked(source, found)
        if not _is_promised(whole, terms):
            raise ChecksumMismatch(
                f"{shown(source)}: its files have sha256 {whole.digest} together, {terms.sha256} was "
                f"promised; name the folder that has it, or write `sha256: {whole.digest}` at the model"
            )
        return whole

    # -- parts --------------------------------------------------------------------------------------------

    def _has_list(self, source: str) -> bool:
        """Whether it is a folder whose list is a file of the store."""
        return not is_local(source) and self._store.is_folder(source)

    def _parts(self, source: str, terms: Terms) -> list[Part]:
        """Of a folder, those that are chosen of its list; without a list, none. Of split files, the others as
        the first was resolved. Raises StoreError for a folder that holds no model."""
        if self._store.is_folder(source):
            return _as_parts(self._members(source), terms, source)
        entry = self._store.entry(source, terms)
        others = parts_of(entry.exact if entry is not None and entry.exact else source)[1:]
        return [Part(source, terms), *(Part(other, replace(terms, sha256="")) for other in others)]

    def _members(self, source: str) -> list[Member]:
        """The files of a folder that is here, or whose list is."""
        try:
            if is_local(source):
                return folders.in_folder(local_path(source))
            file = self._store.cached(source)
            return folders.of_list(file.path.read_bytes()) if file is not None else []
        except OSError as error:
            raise DownloadFailed(f"{error.filename} cannot be read: {error.strerror or error}") from error

    def _found(
        self, source: str, terms: Terms, find: Callable[[str, Terms | None], StoredFile | None]
    ) -> StoredFile | None:
        try:
            parts = self._parts(source, terms)
        except StoreError:  # a fetch will say so
            return None
        found = []
        for part in parts:
            file = find(part.source, part.terms)
            if file is None:
                return None
            found.append((part, file))
        whole = self._whole(source, found) if found else None
        return whole if whole is not None and _is_promised(whole, terms) else None

    async def _total(self, source: str, parts: Sequence[Part], terms: Terms) -> int:
        """The bytes of all parts, 0 where they are not known, or take no room here."""
        if is_local(source) or len(parts) == 1:
            return 0
        if all(part.member for part in parts):
            return sum(part.member.size for part in parts if part.member)
        return (await self.ask(source, terms, ASKING)).size

    # -- asking -------------------------------------------------------------------------------------------

    async def _ask_folder(self, source: str, terms: Terms, deadline: float) -> Head:
        ends = asyncio.get_running_loop().time() + deadline

        def left() -> float:
            return max(0.1, ends - asyncio.get_running_loop().time())

        members = self._members(source) or folders.of_list(await self._store.peek(source, left()))
        parts = _as_parts(members, terms, source)
        chosen = {part.member.name: part for part in parts if part.member}
        weights = [part for part in chosen.values() if part.member and part.member.is_weights]
        asked = weights if len(weights) <= _MOST_HEADS else weights[:1]
        heads = await self._heads(asked, left())
        headers = {
            part.member.name: head.header for part, head in zip(asked, heads, strict=True) if part.member
        }
        config = b""
        if folders.CONFIG in chosen:
            with suppress(DownloadFailed):
                config = await self._store.peek(chosen[folders.CONFIG].source, left())
        taken = [part.member for part in parts if part.member]
        size, licence = sum(member.size for member in taken), next((one.licence for one in heads), "")
        return Head(size, "", folders.facts(taken, headers, config), licence)

    async def _heads(self, parts: Sequence[Part], deadline: float) -> list[Head]:
        async def ask(number: int, part: Part) -> Head:
            entry = self._store.entry(part.source, part.terms)
            if entry is not None and entry.is_there():
                header = await self._store.header(entry.file) if part.member else {}
                return Head(entry.size, entry.digest, header, entry.licence)
            try:
                return await self._store.ask(part.source, part.terms or Terms(), deadline)
            except DownloadFailed:
                if number == 0:
                    raise
                return Head()

        try:
            async with asyncio.TaskGroup() as asking:
                tasks = [asking.create_task(ask(number, part)) for number, part in enumerate(parts)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    # -- together -----------------------------------------------------------------------------------------

    def _whole(self, source: str, found: Sequence[Found]) -> StoredFile:
        """One file of all parts; `_linked` has it lie there."""
        if found[0][0].member is not None:
            return self._folder(source, found)
        parts = tuple(file for _, file in found)
        first = parts[0]
        if len(parts) == 1:
            return first
        digest = _digest([part.digest for part in parts])
        if parts_of(str(first.path)) != tuple(str(part.path) for part in parts):
            first = replace(first, path=self._disk.sets / digest / f"model{suffix(1, len(parts))}")
        return replace(first, size=sum(part.size for part in parts), digest=digest, parts=parts)

    def _folder(self, source: str, found: Sequence[Found]) -> StoredFile:
        files = {part.member.name: file for part, file in found if part.member}
        size = sum(file.size for file in files.values())
        named = [files[name].digest and f"{files[name].digest} {name}" for name in sorted(files)]
        digest = _digest(named)
        licence = next((file.licence for file in files.values() if file.licence), "")
        path = self._disk.sets / digest if digest else local_path(source)
        listed = None if is_local(source) else self._store.cached(source)
        if listed is not None:
            files = {"": listed, **files}
        return StoredFile(path, size, digest, licence, tuple(files.values()), tuple(files))

    async def _linked(self, source: str, found: Sequence[Found]) -> StoredFile:
        whole = self._whole(source, found)
        if whole.path.is_relative_to(self._disk.sets):
            await asyncio.to_thread(self._link, whole)
        return whole

    def _link(self, whole: StoredFile) -> None:
        folder, names = whole.path, whole.names
        if not names:
            folder, names = folder.parent, tuple(Path(one).name for one in parts_of(str(whole.path)))
        targets = {name: part.path for name, part in zip(names, whole.parts, strict=True) if name}
        try:
            self._disk.link(folder, targets)
        except OSError as error:
            if is_no_room(error):
                raise disk_full(str(whole.path), self._disk.root, None) from error
            raise DownloadFailed(f"{whole.path} cannot be made: {error.strerror or error}") from error


def _as_parts(members: Sequence[Member], terms: Terms, source: str) -> list[Part]:
    """Of weights it is demanded that they are some; all else may be anything."""
    chosen = folders.chosen(members, terms, shown(source)) if members else []
    weights = replace(terms, sha256="")
    return [Part(one.source, weights if one.is_weights else None, one) for one in chosen]


def _is_promised(whole: StoredFile, terms: Terms) -> bool:
    """Whether a folder is the one that is demanded; of all else, each part was asked."""
    return not whole.names or terms.sha256 in {"", whole.digest}


def _digest(of_parts: Sequence[str]) -> str:
    """Of all together; empty where that of one is not known."""
    return sha256("\n".join(of_parts).encode()).hexdigest() if all(of_parts) else ""
