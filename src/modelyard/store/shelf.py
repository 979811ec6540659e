"""What lies in the cache: how much, used when and by whom, and what may go to make room.

Used by the store while it fetches, and by whoever lists or prunes. A blob goes only when no process holds it
and no policy keeps it; of all others the one that was not used for longest goes first.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path

from modelyard.core.units import short
from modelyard.errors import DiskFull, InvalidRequest
from modelyard.store.disk import Disk
from modelyard.store.index import Entry, Index
from modelyard.store.partial import Partial, Partials
from modelyard.store.source import HEADROOM, Watch, shown

_LOCK = "quota"
_MOST_USERS = 32
_FEWEST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Item:
    """A file that the store knows. `blob`: it lies in the cache; else it is used where it lies. `used` is
    when an engine was started with it last, or it was fetched (seconds since the epoch); `users` are the
    models that were started with it, `sources` what stands for it. `in_use`: nothing may remove it now.
    `unfinished`: it is what is left of a download, and counts like a blob, but has no digest."""

    digest: str
    path: Path
    size: int
    blob: bool
    kind: str
    sources: tuple[str, ...]
    used: float
    users: tuple[str, ...]
    in_use: bool
    unfinished: Partial | None = None


class Shelf:
    """`quota` bounds the bytes of all blobs and unfinished downloads (0: unbounded, and nothing goes by
    itself). `kept` names the files that a policy keeps, whether an engine runs or not; `on_removed` is told
    each blob that went, in the thread that removed it."""

    def __init__(self, disk: Disk, index: Index, partials: Partials, quota: int = 0) -> None:
        self.quota = quota
        self.kept: Callable[[], Collection[Path]] = tuple
        self.on_removed: Callable[[Path], None] = lambda _: None
        self._disk = disk
        self._index = index
        self._partials = partials

    # -- what is there ------------------------------------------------------------------------------------

    def items(self) -> list[Item]:
        """Every file, the one that was not used for longest first. Costs a few stats each."""
        self._index.read()
        entries: dict[str, list[Entry]] = {}
        for entry in self._index.all():
            entries.setdefault(entry.path, []).append(entry)
        kept = {str(path) for path in self.kept()}
        paths = {str(path) for path in self._disk.blobs.iterdir()} | entries.keys()
        found = [item for path in paths if (item := self._item(Path(path), entries.get(path, []), kept))]
        found += [_of_partial(one) for one in self._partials.all()]
        return sorted(found, key=lambda item: (item.used, item.digest))

    def used(self, digest: str, user: str = "") -> None:
        """A file was fetched, or an engine starts with it for a model."""
        mark = self._disk.uses / digest
        with suppress(OSError):
            users = _lines(mark)
            if user and user not in users:
                self._disk.write(mark, "\n".join([*users[1 - _MOST_USERS :], user]).encode())
            elif not mark.exists():
                mark.touch()
            else:
                os.utime(mark)

    # -- what goes ----------------------------------------------------------------------------------------

    def prune(
        self, items: Iterable[Item], *, dry_run: bool = False, forget: bool = True
    ) -> list[tuple[Item, bool]]:
        """Remove these where nothing uses them; each with whether it went (would go). `forget`: their sources
        may stand for other bytes from then on."""
        return [(item, self._went(item, dry_run=dry_run, forget=forget)) for item in items]

    def matching(self, names: Iterable[str]) -> dict[str, list[Item]]:
        """The files that each name means: a source, a path, a model that was started with them; else a
        digest, by its first six digits or more. Raises InvalidRequest where these begin several."""
        items = self.items()
        meant = {name: self._index.with_parts([name]) for name in names}
        return {
            name: [item for item in items if _is_meant(item, name, sources)] or _by_digest(items, name)
            for name, sources in meant.items()
        }

    def empty_quarantine(self, *, dry_run: bool = False) -> int:
        """Remove what was set aside. Returns its bytes."""
        found = [path for path in self._disk.quarantine.iterdir() if path.is_file()]
        size = sum(path.stat().st_size for path in found)
        for path in found if not dry_run else ():
            path.unlink(missing_ok=True)
        return size

    def unused(self, *, older: float = 0.0) -> list[Item]:
        """The blobs that may go, and were not used for `older` seconds."""
        before = time.time() - older
        return [item for item in self.items() if item.blob and not item.in_use and item.used <= before]

    @contextmanager
    def room(self, path: Path, digest: str, watch: Watch) -> Iterator[None]:
        """While inside, the file at `path` has room under the quota as the blob with this digest; no other
        process adds one meanwhile. Raises DiskFull."""
        if not self.quota:
            yield
            return
        with self._disk.only_one(_LOCK, watch):
            self._fit(watch.source, path, digest)
            yield

    @contextmanager
    def serving(self, watch: Watch, folder: Path) -> Iterator[None]:
        """While inside, what a fetch into `folder` asks its watch for room finds what may be pruned."""
        watch.expects = lambda size: self._expect(watch.source, size, folder)
        watch.frees = self._free
        try:
            yield
        finally:
            watch.expects = watch.frees = None

    def _expect(self, source: str, size: int, folder: Path) -> None:
        """Before a download: nothing is removed yet, for the size is what the source says."""
        blobs = self._blobs(folder) if self.quota else []
        if self.quota and size > self.quota - sum(item.size for item in blobs if item.in_use):
            self._refuse(source, size, blobs)

    def _fit(self, source: str, path: Path, digest: str) -> None:
        size, blobs = path.stat().st_size, self._blobs(path, digest)
        over = sum(item.size for item in blobs) + size - self.quota
        if over > sum(item.size for item in blobs if not item.in_use):
            self._refuse(source, size, blobs)
        self._remove_until(blobs, over)
        left = self._blobs(path, digest)
        if sum(item.size for item in left) + size > self.quota:
            self._refuse(source, size, left)

    def _blobs(self, fetched: Path, digest: str = "") -> list[Item]:
        """What counts beside a file that is being fetched there, and is to be the blob with this digest."""
        return [
            item
            for item in self.items()
            if item.blob and not fetched.is_relative_to(item.path) and not (digest and item.digest == digest)
        ]

    def _refuse(self, source: str, size: int, blobs: Collection[Item]) -> None:
        total, used = sum(item.size for item in blobs), sum(item.size for item in blobs if item.in_use)
        raise DiskFull(
            f"{source}: needs {short(size)}, and store.quota is {short(self.quota)}: the cache holds "
            f"{short(total)}, of which {short(used)} are in use and {short(total - used)} could be pruned; "
            "raise the quota, or unload what is in use"
        )

    def _free(self, folder: Path, needed: int) -> str:
        """Have `needed` bytes free on the disk, where a quota says that files may go by themselves. Returns
        what else could be done, for a message."""
        missing = needed - shutil.disk_usage(folder).free
        if missing <= 0:
            return ""
        unused = self.unused()
        could = sum(item.size for item in unused)
        if self.quota and could >= missing:
            self._remove_until(unused, missing + HEADROOM)
            return ""
        return f"; `modelyard cache prune --all` would free {short(could)}" if could else ""

    def _remove_until(self, items: Iterable[Item], enough: float = inf) -> None:
        """The oldest first. What they stood for is remembered: the same bytes are fetched again."""
        for item in items:
            if enough <= 0:
                return
            if not item.in_use and self._went(item, dry_run=False, forget=False):
                enough -= item.size

    def _went(self, item: Item, *, dry_run: bool, forget: bool) -> bool:
        if item.in_use:
            return False
        if dry_run:
            return True
        if item.unfinished is not None:
            return self._partials.remove(item.path)
        if item.blob and not self._disk.remove(item.path):
            return False
        if forget:
            for entry in list(self._index.of(item.path)):
                self._index.forget(entry)
            (self._disk.uses / item.digest).unlink(missing_ok=True)
        if item.blob:
            self.on_removed(item.path)
        return True

    def _item(self, path: Path, entries: list[Entry], kept: Collection[str]) -> Item | None:
        blob = path.parent == self._disk.blobs
        try:
            stat = path.stat()
        except OSError:
            return None
        digest = path.name if blob else entries[0].digest
        mark = self._disk.uses / digest
        try:
            used = mark.stat().st_mtime
        except OSError:
            used = stat.st_mtime
        return Item(
            digest=digest,
            path=path,
            size=stat.st_size,
            blob=blob,
            kind=next((entry.kind for entry in entries if entry.kind), ""),
            sources=tuple(sorted({entry.source for entry in entries})),
            used=used,
            users=tuple(_lines(mark)),
            in_use=str(path) in kept or (blob and self._disk.is_held(path)),
        )


def _is_meant(item: Item, name: str, sources: Collection[str]) -> bool:
    if not {*item.sources, *map(shown, item.sources)}.isdisjoint(sources):
        return True
    return name in item.users or name == str(item.path)


def _by_digest(items: Iterable[Item], name: str) -> list[Item]:
    digest = name.removeprefix("sha256:")
    found = [item for item in items if len(digest) >= _FEWEST_DIGITS and item.digest.startswith(digest)]
    digests = sorted({item.digest for item in found})
    if len(digests) > 1:
        raise InvalidRequest(f"{name} may be {' or '.join(digests)}; write more of it")
    return found


def _of_partial(left: Partial) -> Item:
    return Item(
        digest="",
        path=left.folder,
        size=left.size,
        blob=True,
        kind="",
        sources=(left.source,) if left.source else (),
        used=left.written,
        users=(),
        in_use=left.busy,
        unfinished=left,
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []
