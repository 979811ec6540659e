"""What the store knows of each source: which bytes it stood for. Used by `cache` alone.

One small JSON file per source. A file that cannot be read counts as unknown: the source is fetched again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from modelyard.store.disk import Disk
from modelyard.store.source import Exact, StoredFile


@dataclass(frozen=True, slots=True)
class Entry:
    """A source's file. `modified` (ns) and `inode` tell whether a file of the user is still the one that was
    read; both are 0 for a blob, which never changes. `exact` is the source text that it was resolved to,
    where that is another one: the same bytes are fetched again when the file is lost."""

    source: str
    path: str
    size: int
    digest: str
    modified: int = 0
    inode: int = 0
    exact: str = ""

    def file(self) -> StoredFile | None:
        """The file, when it is still there and unchanged. One stat."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return None
        changed = self.modified and (stat.st_mtime_ns, stat.st_ino) != (self.modified, self.inode)
        if stat.st_size != self.size or changed:
            return None
        return StoredFile(Path(self.path), self.size, self.digest)


class Index:
    """Entries by source: in memory, and on disk for the next start and for other processes."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._entries: dict[str, Entry] = {}
        for path in disk.sources.glob("*.json"):
            if entry := _read(path):
                self._entries[entry.source] = entry

    def find(self, source: str) -> StoredFile | None:
        """The file of a source. A stat; one small read when another process has fetched it meanwhile."""
        entry = self._entries.get(source)
        if entry is not None and (file := entry.file()):
            return file
        fresh = _read(self._path(source))
        if fresh is None or fresh.source != source:
            return None
        self._entries[source] = fresh
        return fresh.file()

    def exact(self, source: str) -> Exact | None:
        """What a source that may move was resolved to when it was first fetched. No IO: after `find`."""
        entry = self._entries.get(source)
        return Exact(entry.exact, entry.digest) if entry is not None and entry.exact else None

    def add(self, entry: Entry) -> None:
        self._disk.write(self._path(entry.source), json.dumps(asdict(entry), indent=1).encode())
        self._entries[entry.source] = entry

    def _path(self, source: str) -> Path:
        return self._disk.sources / f"{key_of(source)}.json"


def key_of(source: str) -> str:
    """The name under which a source is filed: a source may hold any character."""
    return sha256(source.encode()).hexdigest()


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
