"""The store: source in, verified file out, each fetched once.

Made by compose, called by the driver's file provider. `cached` costs a stat or two; all else that reads or
writes files runs in threads. A file under its final name is whole; a wrong one never gets there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from modelyard.errors import ChecksumMismatch, DownloadFailed, SourceNotFound
from modelyard.store.disk import Disk
from modelyard.store.hub import HubFiles
from modelyard.store.index import Entry, Index, key_of
from modelyard.store.local import LocalFiles
from modelyard.store.pypi import PythonPackages
from modelyard.store.source import (
    CHUNK,
    Exact,
    Progress,
    Source,
    StoredFile,
    Watch,
    disk_full,
    is_no_room,
)

FETCHES = 4
DEADLINE = 6 * 3600.0
# Raised when the facts read from a header change, so that old ones are read again.
HEADER_FORMAT = 2


class Store:
    """Model files below `root`: `blobs/sha256/DIGEST`, `sources/`, `headers/`, `quarantine/`.

    `sources` are the ways to fetch (default: local files, wheels and the hub). At most `FETCHES` run at a
    time, each at most `deadline` seconds. Opening sweeps what a killed process left half done.
    """

    def __init__(
        self, root: Path, sources: Iterable[Source] | None = None, *, deadline: float = DEADLINE
    ) -> None:
        self._disk = Disk(root)
        self._disk.sweep()
        self._index = Index(self._disk)
        chosen = (LocalFiles(), PythonPackages(), HubFiles()) if sources is None else sources
        self._sources = {scheme: source for source in chosen for scheme in source.schemes}
        self._deadline = deadline
        self._threads = ThreadPoolExecutor(FETCHES, thread_name_prefix="store")
        # A lock lives as long as somebody waits for it or holds it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """Take no more fetches. Those running end with the tasks that await them."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def problem(self, source: str) -> str | None:
        """What is wrong with the text of a source, for configuration; None when it can be tried. No IO."""
        scheme = source.partition("://")[0] if "://" in source else ""
        if scheme not in self._sources:
            known = ", ".join(f"{name}://" for name in sorted(self._sources) if name)
            return f"has the unknown scheme {scheme}://; known are {known} and plain paths"
        return self._sources[scheme].problem(source)

    def cached(self, source: str) -> StoredFile | None:
        """The file of a source if it is here and unchanged, without fetching. Costs a stat."""
        return self._index.find(source)

    async def fetch(self, source: str, *, progress: Callable[[Progress], None] | None = None) -> StoredFile:
        """The file of a source, fetched if need be; several callers and processes share one fetch.

        `progress` is called on the event loop. Raises SourceNotFound, SourceForbidden, SourceOffline,
        DownloadFailed, ChecksumMismatch, DiskFull; then nothing is under a final name.
        """
        if problem := self.problem(source):
            raise SourceNotFound(f"{source} {problem}")
        lock = self._locks.setdefault(source, asyncio.Lock())
        async with lock:
            return self.cached(source) or await self._in_thread(source, progress)

    async def header(self, file: StoredFile) -> Mapping[str, object]:
        """The facts in a file's header (`engines.gguf.facts`); empty for what is no GGUF file. Kept by
        digest, where there is one. Raises BadGguf for a damaged one."""
        return await asyncio.to_thread(self._header, file)

    async def _in_thread(self, source: str, progress: Callable[[Progress], None] | None) -> StoredFile:
        loop = asyncio.get_running_loop()

        def report(step: Progress) -> None:
            if progress is not None:
                loop.call_soon_threadsafe(progress, step)

        watch = Watch(source, self._deadline, report)
        work = loop.run_in_executor(self._threads, self._fetch, source, watch)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread ends at its next chunk; leaving before would let it write behind our back.
            watch.stop()
            with suppress(Exception):
                await work
            raise

    # -- in a thread ------------------------------------------------------------------------------------

    def _fetch(self, source: str, watch: Watch) -> StoredFile:
        scheme = source.partition("://")[0] if "://" in source else ""
        try:
            with self._disk.only_one(key_of(source), watch):
                if file := self._index.find(source):
                    return file
                with self._disk.work_folder() as folder:
                    exact = self._index.exact(source) or self._sources[scheme].resolve(source, watch)
                    path = self._sources[scheme].fetch(exact.source, folder, watch)
                    return self._take(source, exact, path, folder, watch)
        except OSError as error:
            if is_no_room(error):
                raise disk_full(source, self._disk.root, None) from error
            raise DownloadFailed(f"{source}: {error.strerror or error}: {error.filename or ''}") from error

    def _take(self, source: str, exact: Exact, path: Path, folder: Path, watch: Watch) -> StoredFile:
        ours = path.is_relative_to(folder)
        before = path.stat()
        digest = _digest(path, before.st_size, watch)
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DownloadFailed(f"{path} changed while it was read; try again when it is complete")
        try:
            _verify(source, digest, exact.sha256)
        except ChecksumMismatch as error:
            if not ours:
                raise ChecksumMismatch(f"{error.message}. Mend or delete {path} and ask again") from None
            self._disk.publish(path, self._disk.quarantine / digest)
            aside = f"they were set aside in {self._disk.quarantine}"
            raise ChecksumMismatch(f"{error.message}, {aside}. Ask again to fetch them anew") from None
        text = exact.source if exact.source != source else ""
        if not ours:
            entry = Entry(source, str(path), after.st_size, digest, after.st_mtime_ns, after.st_ino, text)
        else:
            blob = self._disk.blobs / digest
            path.chmod(0o444)
            self._disk.publish(path, blob)
            entry = Entry(source, str(blob), after.st_size, digest, exact=text)
        self._index.add(entry)
        return StoredFile(Path(entry.path), entry.size, digest)

    def _header(self, file: StoredFile) -> Mapping[str, object]:
        # Late: the reader is only needed where a header is not known yet.
        from modelyard.engines.gguf import MAGIC, facts, read_header  # noqa: PLC0415

        kept = self._disk.headers / f"{file.digest}.{HEADER_FORMAT}.json"
        try:
            known: Mapping[str, object] = json.loads(kept.read_bytes())
            return known
        except (OSError, ValueError):
            pass
        with file.path.open("rb") as handle:
            if handle.read(len(MAGIC)) != MAGIC:
                return {}
        read = facts(read_header(file.path))
        if file.digest:
            # A header that cannot be kept is read again next time.
            with suppress(OSError):
                self._disk.write(kept, json.dumps(read).encode())
        return read


def _digest(path: Path, size: int, watch: Watch) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            watch.progress(done, size)
    return digest.hexdigest()


def _verify(source: str, digest: str, wanted: str | None) -> None:
    if wanted is not None and digest != wanted.lower():
        raise ChecksumMismatch(
            f"{source}: the bytes have sha256 {digest}, {wanted.lower()} was promised; they are not used"
        )
