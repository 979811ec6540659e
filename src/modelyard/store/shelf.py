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
from modelyard.errors import DiskFull
from modelyard.store.disk import Disk
from modelyard.store.index import Entry, Index
from modelyard.store.source import HEADROOM, Watch, shown

_LOCK = "quota"
_MOST_USERS = 32
_FEWEST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Item:
    """A file that the store knows. `blob`: it lies in the cache; else it is used where it lies. `used` is
    when an engine was started with it last, or it was fetched (seconds since the epoch); `users` are the
    models that were started with it, `sources` what stands for it. `in_use`: nothing may remove it now."""

    digest: str
    path: Path
    size: int
    blob: bool
    kind: str
    sources: tuple[str, ...]
    used: float
    users: tuple[str, ...]
    in_use: bool


class Shelf:
    """`quota` bounds the bytes of all blobs (0: unbounded, and nothing goes by itself). `kept` names the
    files that a policy keeps, whether an engine runs or not; `on_removed` is told each blob that went, in the
    thread that removed it."""

    def __init__(self, disk: Disk, index: Index, quota: int = 0) -> None:
        self.quota = quota
        self.kept: Callable[[], Collection[Path]] = tuple
        self.on_removed: Callable[[Path], None] = lambda _: None
        self._disk = disk
        self._index = index

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
        """The files that each name means: a source, a path, a digest's first six digits or more, or a model
        that was started with them."""
        items = self.items()
        return {name: [item for item in items if _is_meant(item, name)] for name in names}

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
    def room(self, source: str, size: int, watch: Watch, *, spare: str = "") -> Iterator[None]:
        """While inside, a blob of `size` bytes has room under the quota; no other process adds one meanwhile.
        `spare` is the digest of the one that it replaces. Raises DiskFull."""
        if not self.quota:
            yield
            return
        with self._disk.only_one(_LOCK, watch):
            self._fit(source, size, spare)
            yield

    @contextmanager
    def serving(self, watch: Watch) -> Iterator[None]:
        """While inside, what a fetch asks its watch for room finds what may be pruned."""
        watch.expects = lambda size: self._expect(watch.source, size)
        watch.frees = self._free
        try:
            yield
        finally:
            watch.expects = watch.frees = None

    def _expect(self, source: str, size: int) -> None:
        """Before a download: nothing is removed yet, for the size is what the source says."""
        if self.quota and size > self.quota - sum(
            item.size for item in self.items() if item.blob and item.in_use
        ):
            self._refuse(source, size)

    def _fit(self, source: str, size: int, spare: str) -> None:
        blobs = [item for item in self.items() if item.blob and item.digest != spare]
        over = sum(item.size for item in blobs) + size - self.quota
        if over > sum(item.size for item in blobs if not item.in_use):
            self._refuse(source, size)
        self._remove_until(blobs, over)
        if sum(item.size for item in self.items() if item.blob and item.digest != spare) + size > self.quota:
            self._refuse(source, size)

    def _refuse(self, source: str, size: int) -> None:
        blobs = [item for item in self.items() if item.blob]
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


def _is_meant(item: Item, name: str) -> bool:
    sources = {*item.sources, *map(shown, item.sources)}
    if name in sources or name in item.users or name == str(item.path):
        return True
    digest = name.removeprefix("sha256:")
    return len(digest) >= _FEWEST_DIGITS and item.digest.startswith(digest)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []
