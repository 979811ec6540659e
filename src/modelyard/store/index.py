"""What the store knows of each source: which bytes it stood for. Used by the store's own modules.

One small JSON file per source. A file that cannot be read counts as unknown: the source is fetched again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Self

from modelyard.store.disk import Disk
from modelyard.store.folders import of_list
from modelyard.store.formats import Kind
from modelyard.store.local import is_local, local_path
from modelyard.store.source import Exact, StoredFile, shown
from modelyard.store.split import parts_of


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when the content of a file does: its size (bytes), its times of modification and change
    (ns), its inode."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Self:
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@dataclass(frozen=True, slots=True)
class Entry:
    """A source's file: the bytes at `path` had this `digest` when their stamp was `size`, `modified`,
    `changed`, `inode`. `exact` is the source text that it was resolved to, where that is another one: the
    same bytes are fetched again when the file is lost. `kind` is what the file is (`formats.Kind`), empty
    while nobody looked. `promised` is the sha256 that was demanded, where one source may stand for several
    files. `licence` is what its publisher says."""

    source: str
    path: str
    size: int
    digest: str
    modified: int = 0
    changed: int = 0
    inode: int = 0
    exact: str = ""
    kind: str = ""
    promised: str = ""
    licence: str = ""

    @property
    def key(self) -> str:
        return key_text(self.source, self.promised)

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.size, self.modified, self.changed, self.inode)

    def stamped(self, stamp: Stamp) -> Entry:
        return replace(
            self, size=stamp.size, modified=stamp.modified, changed=stamp.changed, inode=stamp.inode
        )

    @property
    def file(self) -> StoredFile:
        return StoredFile(Path(self.path), self.size, self.digest, licence=self.licence)

    def is_there(self) -> bool:
        """Whether there is a file, changed or not. One stat."""
        return os.path.isfile(self.path)

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was read. One stat."""
        try:
            return Stamp.of(os.stat(self.path)) == self.stamp
        except OSError:
            return False


class Index:
    """Entries by key: in memory, and on disk for the next start and for other processes. There the path of a
    blob counts from the store's folder, which may be moved or copied. `current`: see Store."""

    def __init__(self, disk: Disk, *, current: bool = False) -> None:
        self._disk = disk
        self._current = current
        self._entries: dict[str, Entry] = {}
        self.read()

    def read(self) -> None:
        """Take what other processes have written and removed meanwhile."""
        folders = [self._disk.sources, *([self._disk.current] if self._current else [])]
        found = (self._read(path) for folder in folders for path in folder.glob("*.json"))
        self._entries = {entry.key: entry for entry in found if entry is not None}

    def all(self) -> list[Entry]:
        """Every entry that is known here."""
        return list(self._entries.values())

    def find(self, key: str) -> Entry | None:
        """What a source stood for. Prefers an entry whose file is unchanged: a stat; one small read more when
        another process has fetched it meanwhile."""
        entry = self._entries.get(key)
        if entry is not None and entry.is_unchanged():
            return entry
        fresh = self._read(self._path(key))
        if fresh is None or fresh.key != key:
            self._entries.pop(key, None)
            return None
        self._entries[key] = fresh
        return fresh

    def with_parts(self, sources: Collection[str]) -> set[str]:
        """These sources, and those of all parts where they stand for several files."""
        found = [one for one in self.all() if one.source in sources or shown(one.source) in sources]
        local = [local_path(one) for one in sources if is_local(one)]
        inside = (
            one.source
            for one in (self.all() if local else ())
            if is_local(one.source) and any(local_path(one.source).is_relative_to(path) for path in local)
        )
        return {*sources, *inside, *(part for one in found for part in _parts_of(one))}

    def of(self, path: Path) -> Iterator[Entry]:
        """The entries of a file."""
        return (entry for entry in self.all() if entry.path == str(path))

    def add(self, entry: Entry) -> None:
        """Keep an entry whose file was just read; others of the same file learn its new stamp."""
        self._write(entry)
        for other in [one for one in self.of(Path(entry.path)) if one.key != entry.key]:
            if other.digest == entry.digest and other.stamp != entry.stamp:
                self._write(other.stamped(entry.stamp))

    def forget(self, entry: Entry) -> None:
        """The source may stand for other bytes when it is fetched the next time."""
        self._entries.pop(entry.key, None)
        self._path(entry.key).unlink(missing_ok=True)

    def _write(self, entry: Entry) -> None:
        path = Path(entry.path)
        kept = entry
        if path.is_relative_to(self._disk.blobs):
            kept = replace(entry, path=str(path.relative_to(self._disk.root)))
        self._disk.write(self._path(entry.key), json.dumps(asdict(kept), indent=1).encode())
        self._entries[entry.key] = entry

    def _read(self, path: Path) -> Entry | None:
        try:
            kept = Entry(**json.loads(path.read_bytes()))
            return replace(kept, path=str(self._disk.root / kept.path))
        except (OSError, ValueError, TypeError):
            return None

    def _path(self, key: str) -> Path:
        apart = self._current and is_local(key.partition("\n")[0])
        return (self._disk.current if apart else self._disk.sources) / f"{key_of(key)}.json"


def _parts_of(entry: Entry) -> Iterable[str]:
    if entry.kind != Kind.FOLDER:
        return parts_of(entry.exact or entry.source)
    try:
        return [member.source for member in of_list(Path(entry.path).read_bytes())]
    except (OSError, ValueError):
        return ()


def key_text(source: str, promised: str = "") -> str:
    """What an entry is filed under: a source, and the digest that was demanded of it."""
    return f"{source}\n{promised}" if promised else source


def key_of(source: str) -> str:
    """The name under which a source is filed: a source may hold any character."""
    return sha256(source.encode()).hexdigest()


def resolved(entry: Entry | None) -> Exact | None:
    """What a source that may move was resolved to when it was first fetched."""
    return Exact(entry.exact, entry.digest, entry.licence) if entry is not None and entry.exact else None
