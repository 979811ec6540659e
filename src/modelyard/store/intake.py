"""How a file gets into the store: looked at, hashed, held against what was promised, and published.

Used by `cache` in its threads. What fails here is set aside where it was fetched, and left alone where it is
the user's own.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import replace
from math import inf
from pathlib import Path

from modelyard.errors import BadFile, BadGguf, ChecksumMismatch, DownloadFailed, StoreError
from modelyard.store.disk import Disk
from modelyard.store.formats import Found, Terms, check, look
from modelyard.store.index import Entry, Index, Stamp
from modelyard.store.local import is_local
from modelyard.store.shelf import Item, Shelf
from modelyard.store.source import CHUNK, Exact, StoredFile, Watch, shown

_OLLAMA_BLOB = re.compile(r"sha256-([0-9a-f]{64})")
_HUB_BLOB = re.compile(r"[0-9a-f]{64}")
_MEND = "Put a whole file in its place and ask again"


class Intake:
    """`hashed` counts the bytes that were read to make digests. `current`: see Store."""

    def __init__(self, disk: Disk, index: Index, shelf: Shelf, *, current: bool = False) -> None:
        self._disk = disk
        self._index = index
        self._shelf = shelf
        self._current = current
        self.hashed = 0

    def known(self, entry: Entry, terms: Terms | None, watch: Watch) -> StoredFile | None:
        """The file of an entry, read again if it has changed since; None when it is gone, or may have to be
        fetched anew. Raises ChecksumMismatch, BadGguf, BadFile."""
        path = Path(entry.path)
        if not entry.is_there():
            return None
        if path.parent == self._disk.blobs:
            if not entry.is_unchanged():
                entry = self._restamped(entry, watch)
        elif entry.is_unchanged():
            if terms is not None and terms.sha256 not in {"", entry.digest}:
                raise self._mismatch(entry.source, path, entry.digest, terms.sha256, ours=False)
        else:
            pinned = not self._current and not (terms and terms.sha256)
            digest = entry.digest if pinned else None
            was = Exact(entry.exact or entry.source, digest, entry.licence)
            return self.take(entry.source, was, path, None, terms, watch)
        return self._accepted(entry, terms)

    def held(self, source: str, exact: Exact, terms: Terms | None, watch: Watch) -> StoredFile | None:
        """A blob that is here already, by the digest that is promised, whatever source it came from."""
        promised = (terms.sha256 if terms is not None else "") or (exact.sha256 or "").lower()
        blob = self._disk.blobs / promised
        if not _HUB_BLOB.fullmatch(promised) or is_local(source) or not blob.is_file():
            return None
        kind = ""
        for other in self._index.of(blob):
            kind = other.kind or kind
            if other.is_unchanged():
                entry = other
                break
        else:
            entry = Entry(source, str(blob), 0, promised)
        mine = Entry(
            source, str(blob), entry.size, promised, entry.modified, entry.changed, entry.inode,
            exact.source if exact.source != source else "", kind, terms.sha256 if terms is not None else "",
            exact.licence,
        )  # fmt: skip
        if not mine.is_unchanged():
            mine = self._restamped(mine, watch)
        self._index.add(mine)
        return self._accepted(mine, terms)

    def take(
        self, source: str, exact: Exact, path: Path, folder: Path | None, terms: Terms | None, watch: Watch
    ) -> StoredFile:
        """A file that was fetched into `folder`, or that lies elsewhere and stays there. Raises
        ChecksumMismatch, BadGguf, BadFile, DiskFull, and DownloadFailed for one that is being written."""
        ours = folder is not None and path.is_relative_to(folder)
        before = Stamp.of(path.stat())
        found = self._look(source, path, terms)
        if isinstance(found, StoreError) and not ours:
            raise type(found)(f"{shown(source)}: {found.message}. {_MEND}")
        digest = self.digest(path, watch)
        if Stamp.of(path.stat()) != before:
            raise DownloadFailed(f"{path} changed while it was read; try again when it is complete")
        if isinstance(found, StoreError):
            aside = self._disk.set_aside(path, digest)
            raise type(found)(f"{shown(source)}: {found.message}; {aside}. Ask again to fetch it anew")
        for promised in _promises(exact, path, terms, ours=ours):
            if digest != promised:
                raise self._mismatch(source, path, digest, promised, ours=ours)
        if ours:
            path = self._published(source, path, digest, watch)
        entry = Entry(
            source, str(path), before.size, digest,
            exact=exact.source if exact.source != source else "",
            kind=found.kind if found is not None else "",
            promised=terms.sha256 if terms is not None and not is_local(source) else "",
            licence=exact.licence,
        )  # fmt: skip
        self._index.add(entry.stamped(Stamp.of(path.stat()) if ours else before))
        self._shelf.used(digest)
        return entry.file

    def verify(self, item: Item, rate: float, watch: Watch) -> str:
        """What is wrong with a file that is read at so many bytes a second at most; empty when it is what it
        was, or was replaced meanwhile. A blob that is another one is set aside. Raises OSError."""
        before = Stamp.of(item.path.stat())
        digest = self.digest(item.path, watch, rate)
        if Stamp.of(item.path.stat()) != before:
            return ""
        if digest == item.digest:
            for entry in self._index.of(item.path):
                if entry.stamp != before:
                    self._index.add(entry.stamped(before))
                    break
            return ""
        source = item.sources[0] if item.sources else str(item.path)
        problem = self._mismatch(source, item.path, digest, item.digest, ours=item.blob)
        if item.blob:
            self._shelf.on_removed(item.path)
        return problem.message

    def digest(self, path: Path, watch: Watch, rate: float = inf) -> str:
        """The sha256 of a file, in hex; at most `rate` bytes a second are read."""
        digest, done, began = hashlib.sha256(), 0, time.monotonic()
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, 2)
            file.seek(0)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                self.hashed += len(chunk)
                watch.progress(done, size)
                if (ahead := done / rate - (time.monotonic() - began)) > 0:
                    watch.pause(ahead)
        return digest.hexdigest()

    def _published(self, source: str, path: Path, digest: str, watch: Watch) -> Path:
        blob = self._disk.blobs / digest
        if any(entry.is_unchanged() for entry in self._index.of(blob)):
            return blob  # of another source; who holds it holds this inode
        path.chmod(0o444)
        with self._shelf.room(path, digest, watch):
            self._disk.publish(path, blob)
        return blob

    def _look(self, source: str, path: Path, terms: Terms | None) -> Found | StoreError | None:
        """What a file is; why it cannot be used; or None, for a damaged one that was taken without terms."""
        try:
            found = look(path)
            if terms is not None:
                check(found, terms)
        except (BadFile, BadGguf) as error:
            return error if terms is not None else None
        return found

    def _accepted(self, entry: Entry, terms: Terms | None) -> StoredFile:
        """The file of an entry whose bytes are known. Raises BadGguf or BadFile for what it must not be."""
        if terms is not None and not terms.allow(entry.kind):
            try:
                found = look(Path(entry.path))
                check(found, terms)
            except (BadFile, BadGguf) as error:
                raise type(error)(f"{shown(entry.source)}: {error.message}") from None
            self._index.add(replace(entry, kind=found.kind))
        return entry.file

    def _restamped(self, entry: Entry, watch: Watch) -> Entry:
        """A blob whose times have changed, read again. Raises ChecksumMismatch after setting it aside."""
        path = Path(entry.path)
        stamp = Stamp.of(path.stat())
        digest = self.digest(path, watch)
        if digest != entry.digest:
            raise self._mismatch(entry.source, path, digest, entry.digest, ours=True)
        entry = entry.stamped(stamp)
        self._index.add(entry)
        return entry

    def _mismatch(
        self, source: str, path: Path, digest: str, promised: str, *, ours: bool
    ) -> ChecksumMismatch:
        said = f"{shown(source)}: the bytes have sha256 {digest}, {promised} was promised; they are not used"
        if ours:
            aside = self._disk.set_aside(path, digest)
            return ChecksumMismatch(f"{said}, {aside}. Ask again to fetch them anew")
        return ChecksumMismatch(
            f"{said}. Mend or delete {path} and ask again; if it is meant to be another file now, write "
            f"`sha256: {digest}` at the model"
        )


def _promises(exact: Exact, path: Path, terms: Terms | None, *, ours: bool) -> list[str]:
    """The digests that a file has to have, by whoever told one."""
    told = [exact.sha256, terms.sha256 if terms is not None else None]
    if not ours:
        told.append(_by_name(path))
    return [one.lower() for one in told if one]


def _by_name(path: Path) -> str | None:
    """The digest that names a file of Ollama's or the hub's own cache."""
    real = path.resolve()
    if match := _OLLAMA_BLOB.fullmatch(real.name):
        return match[1]
    is_hubs = real.parent.name == "blobs" and _HUB_BLOB.fullmatch(real.name)
    return real.name if is_hubs else None
