"""The store: source in, verified file out, each fetched once.

Made by compose, called by the runtime's file provider. `cached` costs a stat or two; all else that reads or
writes files runs in threads. A file under its final name is whole; a wrong one never gets there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from modelyard.config.values import StoreSetting
from modelyard.errors import BadFile, BadGguf, ChecksumMismatch, DownloadFailed, SourceNotFound
from modelyard.store import headers
from modelyard.store.disk import Disk
from modelyard.store.formats import Terms
from modelyard.store.head import Head, head_of
from modelyard.store.index import Entry, Index, key_of, key_text, resolved
from modelyard.store.intake import Intake
from modelyard.store.local import is_local
from modelyard.store.partial import Partials
from modelyard.store.sets import FileSets
from modelyard.store.shelf import Item, Shelf
from modelyard.store.source import Exact, Progress, Source, StoredFile, Watch, disk_full, is_no_room, shown
from modelyard.store.sources import sources_of

T = TypeVar("T")

FETCHES = 4
DEADLINE = 6 * 3600.0
PEEK = 8 * 2**20  # bytes; more than any list of a folder has


class Store:
    """Model files below `root`: `blobs/sha256/DIGEST`, what is known of them beside, and `quarantine/`.

    `sources` are the ways to fetch (default: all, as they are where nothing is configured). At most `FETCHES`
    run at a time, each at most `deadline` seconds. `quota` bounds the bytes of all blobs (0: unbounded).
    A file that lies elsewhere on this machine stands for the bytes that it had at its first use; where
    `current` says so, for those that it has now, and what is known of it is kept apart from that.
    Opening sweeps what a killed process left half done.
    """

    def __init__(
        self,
        root: Path,
        sources: Iterable[Source] | None = None,
        *,
        deadline: float = DEADLINE,
        quota: int = 0,
        current: bool = False,
    ) -> None:
        self._disk = Disk(root)
        self._disk.sweep()
        self._partials = Partials(root)
        self._index = Index(self._disk, current=current)
        self.shelf = Shelf(self._disk, self._index, self._partials, quota)
        self._intake = Intake(self._disk, self._index, self.shelf, current=current)
        chosen = sources_of(StoreSetting()) if sources is None else sources
        self._sources = {scheme: source for source in chosen for scheme in source.schemes}
        self._private = {""}
        self._deadline = deadline
        self._threads = ThreadPoolExecutor(FETCHES, thread_name_prefix="store")
        self._asking = ThreadPoolExecutor(FETCHES, thread_name_prefix="store asks")
        self._reading = ThreadPoolExecutor(FETCHES, thread_name_prefix="store reads")
        # A lock lives as long as somebody waits for it or holds it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._held: dict[str, list[int]] = {}
        self._verifying = asyncio.Lock()
        self.sets = FileSets(self, self._disk)
        self.verified = root / "verified"  # touched when all files were verified

    def close(self) -> None:
        """Take no more fetches, and hold nothing. Fetches that run end with the tasks that await them."""
        for threads in (self._threads, self._asking, self._reading):
            threads.shutdown(wait=False, cancel_futures=True)
        for user in tuple(self._held):
            self.let_go(user)

    @property
    def hashed(self) -> int:
        """Bytes that were read to make digests, since the store was opened."""
        return self._intake.hashed

    def serve(self, source: Source) -> None:
        """One more way to fetch, whose sources nobody writes."""
        self._sources |= dict.fromkeys(source.schemes, source)
        self._private |= set(source.schemes)

    def problem(self, source: str) -> str | None:
        """What is wrong with the text of a source, for configuration; None when it can be tried. No IO."""
        scheme = source.partition("://")[0] if "://" in source else ""
        if scheme not in self._sources:
            known = ", ".join(f"{name}://" for name in sorted(self._sources) if name not in self._private)
            return f"has the unknown scheme {scheme}://; known are {known} and plain paths"
        return self._sources[scheme].problem(source)

    def is_folder(self, source: str) -> bool:
        """Whether a source names a folder: its file is a list then (see `folders`), `sets` has what it stands
        for. Costs a stat for a path of this machine."""
        return self.problem(source) is None and self._origin(source).is_folder(source)

    def cached(self, source: str, terms: Terms | None = None) -> StoredFile | None:
        """The file of a source if it is here, unchanged, and what `terms` demand, without fetching. Costs a
        stat."""
        entry = self._index.find(_key(source, terms))
        if entry is None or not entry.is_unchanged():
            return None
        suits = terms is None or (terms.allow(entry.kind) and terms.sha256 in {"", entry.digest})
        return entry.file if suits else None

    def entry(self, source: str, terms: Terms | None = None) -> Entry | None:
        """What a source stood for last, whether it still lies there or not. Costs a stat."""
        return self._index.find(_key(source, terms))

    def removed(self, source: str, terms: Terms | None = None) -> StoredFile | None:
        """The blob that a source stood for, where it was removed to make room: what it was, not where it is.
        Costs a stat."""
        entry = self._index.find(_key(source, terms))
        if entry is None or entry.is_there() or Path(entry.path).parent != self._disk.blobs:
            return None
        return entry.file

    async def fetch(
        self,
        source: str,
        terms: Terms | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> StoredFile:
        """The file of a source, fetched if need be; several callers and processes share one fetch. It is
        weights that `terms` allow; without terms, anything.

        `progress` is called on the event loop. Raises SourceNotFound, SourceForbidden, SourceOffline,
        DownloadFailed, ChecksumMismatch, BadGguf, BadFile, DiskFull; then nothing is under a final name.
        """
        if problem := self.problem(source):
            raise SourceNotFound(f"{shown(source)} {problem}")
        lock = self._locks.setdefault(source, asyncio.Lock())
        async with lock:
            known = self.cached(source, terms)
            if known is not None:
                return known
            watch = self._watch(source, progress)
            return await _stoppable(self._threads, watch, lambda: self._fetch(source, terms, watch))

    async def ask(self, source: str, terms: Terms, deadline: float) -> Head:
        """Ask whether a source has its file, and what that is, without fetching it; what cannot be told
        before is taken for good. Raises as `fetch` does, after at most `deadline` seconds."""
        if problem := self.problem(source):
            raise SourceNotFound(f"{shown(source)} {problem}")
        watch = Watch(source, deadline)
        ends = asyncio.get_running_loop().time() + deadline
        try:
            async with asyncio.timeout_at(ends):
                exact = await _stoppable(self._asking, watch, lambda: self._ask(source, watch))
        except TimeoutError:
            raise DownloadFailed(f"{watch.source}: does not answer; try again") from None
        try:
            async with asyncio.timeout_at(ends):
                return await _stoppable(self._asking, watch, lambda: self._head(exact, terms, watch))
        except (TimeoutError, DownloadFailed):  # it is there, and will be judged when it is here
            return Head(digest=exact.sha256 or "", licence=exact.licence)

    async def peek(self, source: str, deadline: float) -> bytes:
        """The beginning of a source's file, which is not kept; all of a short one. Raises as `ask` does."""
        watch = Watch(source, deadline)
        try:
            async with asyncio.timeout(deadline):
                return await _stoppable(self._asking, watch, lambda: self._peek(source, watch))
        except TimeoutError:
            raise DownloadFailed(f"{watch.source}: does not answer; try again") from None

    async def recheck(self, source: str, terms: Terms | None = None) -> StoredFile | None:
        """The file of a source right before it is used: a stat where it is unchanged; else it is read again,
        and never fetched. None when it is gone. Raises ChecksumMismatch when its bytes are others than
        they were (a blob is set aside then), BadGguf, BadFile, and DownloadFailed when it cannot be read."""
        known = self.cached(source, terms)
        if known is not None:
            return known
        watch = self._watch(source, None)
        return await _stoppable(self._reading, watch, lambda: self._again(source, terms, watch))

    async def verify(self, item: Item, rate: float) -> str:
        """See `Intake.verify`; files are read one after the other."""
        async with self._verifying:
            watch = self._watch(str(item.path), None)
            return await _stoppable(self._reading, watch, lambda: self._intake.verify(item, rate, watch))

    async def header(self, file: StoredFile) -> Mapping[str, object]:
        """The facts in a file's header (`engines.gguf.facts`); empty for what is no GGUF file. Kept by
        digest, where there is one. Raises BadGguf for a damaged one."""
        return await asyncio.to_thread(headers.facts_of, self._disk, file)

    # -- files that are in use ----------------------------------------------------------------------------

    def hold(self, user: str, files: Iterable[StoredFile]) -> bool:
        """Keep these from being removed, by any process, until `user` lets go; False when one is gone. Only
        blobs are ever removed. Costs an open file each."""
        held = self._held.setdefault(user, [])
        for path in (path for file in files for path in file.paths):
            if path.parent == self._disk.blobs:
                found = self._disk.hold(path)
                if found is None:
                    return False
                held.append(found)
        return True

    def let_go(self, user: str) -> None:
        """Undo every `hold` of this user."""
        for held in self._held.pop(user, ()):
            os.close(held)

    # -- in a thread --------------------------------------------------------------------------------------

    def _watch(self, source: str, progress: Callable[[Progress], None] | None) -> Watch:
        loop = asyncio.get_running_loop()

        def report(step: Progress) -> None:
            if progress is not None:
                loop.call_soon_threadsafe(progress, step)

        return Watch(source, self._deadline, report)

    def _ask(self, source: str, watch: Watch) -> Exact:
        try:
            return self._origin(source).ask(source, watch)
        except OSError as error:
            raise _cannot(watch, error) from error

    def _head(self, exact: Exact, terms: Terms, watch: Watch) -> Head:
        try:
            with self._origin(exact.source).head(exact.source, watch) as file:
                return head_of(file, exact, terms)
        except (BadFile, BadGguf, ChecksumMismatch) as error:
            raise type(error)(f"{watch.source}: {error.message}") from None
        except OSError as error:
            raise _cannot(watch, error) from error

    def _peek(self, source: str, watch: Watch) -> bytes:
        exact = self._ask(source, watch).source
        try:
            with self._origin(exact).head(exact, watch) as file:
                return file.read(PEEK) if file is not None else b""
        except OSError as error:
            raise _cannot(watch, error) from error

    def _origin(self, source: str) -> Source:
        return self._sources[source.partition("://")[0] if "://" in source else ""]

    def _fetch(self, source: str, terms: Terms | None, watch: Watch) -> StoredFile:
        origin = self._origin(source)
        key = key_of(_key(source, terms))
        try:
            with self._disk.only_one(key, watch):
                entry = self._index.find(_key(source, terms))
                if entry is not None and (file := self._intake.known(entry, terms, watch)):
                    return file
                exact = resolved(entry) or origin.resolve(source, watch)
                if entry is not None and exact.sha256 is None and not entry.promised:
                    exact = replace(exact, sha256=entry.digest)  # it stands for the same bytes ever after
                if file := self._intake.held(source, exact, terms, watch):
                    return file
                work = self._partials.folder(key, source) if origin.resumes else self._disk.work_folder()
                with work as folder, self.shelf.serving(watch, folder):
                    path = origin.fetch(exact.source, folder, watch)
                    watch.expects = None
                    return self._intake.take(source, exact, path, folder, terms, watch)
        except OSError as error:
            if is_no_room(error):
                raise disk_full(watch.source, self._disk.root, None) from error
            raise _cannot(watch, error) from error

    def _again(self, source: str, terms: Terms | None, watch: Watch) -> StoredFile | None:
        try:
            with self._disk.only_one(key_of(_key(source, terms)), watch):
                entry = self._index.find(_key(source, terms))
                return None if entry is None else self._intake.known(entry, terms, watch)
        except OSError as error:
            raise _cannot(watch, error) from error


def _cannot(watch: Watch, error: OSError) -> DownloadFailed:
    return DownloadFailed(f"{watch.source}: {error.strerror or error}: {error.filename or ''}")


def _key(source: str, terms: Terms | None) -> str:
    """A file of this machine is one file, whatever was promised of it."""
    return key_text(source, terms.sha256 if terms is not None and not is_local(source) else "")


async def _stoppable(threads: Executor, watch: Watch, work: Callable[[], T]) -> T:
    """What `work` returns, done in a thread; it is stopped through `watch` when the caller is cancelled."""
    job = threads.submit(work)
    done = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        # The thread ends at its next chunk; leaving before would let it write behind our back.
        watch.stop()
        if not job.cancel():  # it has begun
            with suppress(Exception):
                await done
        raise
