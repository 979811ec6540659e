"""The contract of a source: how a `scheme://…` text becomes a file on disk.

Implemented by `local`, `pypi`, `hub` and later schemes; called by `cache` in a thread of its own. A source
knows nothing of the cache. It looks at its `Watch` at every chunk, so that it can be stopped at any time.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

from modelyard.config import secrets
from modelyard.errors import DiskFull, DownloadFailed

shown = secrets.shown

CHUNK = 2**20
# Kept free below what a download needs: other writers share the disk.
HEADROOM = 16 * 2**20
_REPORT_EVERY = 0.1
LONGEST_LICENCE = 100
# Seconds that are spent on asking for a licence: it is nice to know, and nothing waits for it.
LICENCE_WAIT = 3.0

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch has come, in bytes; `total` is None while it is unknown."""

    source: str
    done: int
    total: int | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is ready to be used: its path, its size in bytes, its sha256 in hex, and the licence that
    its source names, "" where it names none. Where it comes in several `parts`, that is the path of the
    first, the size of all, and a digest of their digests. Where there are `names`, `path` is a folder, in
    which each part lies under its name ("": a part that does not), and the digest is over the names, too."""

    path: Path
    size: int
    digest: str
    licence: str = ""
    parts: tuple[StoredFile, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where its bytes lie."""
        return tuple(part.path for part in self.parts) or (self.path,)


@dataclass(frozen=True, slots=True)
class Exact:
    """The bytes that a source stands for: a source text that never moves, and their sha256 (hex) where it is
    told before they are here. `licence` is what their publisher says, "" where that is not known."""

    source: str
    sha256: str | None = None
    licence: str = ""


class Stopped(Exception):
    """The caller does not want the file any more."""


class Watch:
    """What a fetch in a thread looks at: is it still wanted, is there time, is there room."""

    def __init__(
        self, source: str, deadline: float, report: Callable[[Progress], None] | None = None
    ) -> None:
        self.source = shown(source)
        self._ends = time.monotonic() + deadline
        self._report = report
        self._next_report = 0.0
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._on_stop: Callable[[], None] | None = None
        # What a cache with bounds makes of a size that becomes known, and of a disk without room.
        self.expects: Callable[[int], None] | None = None
        self.frees: Callable[[Path, int], str] | None = None
        self._expected = 0

    def stop(self) -> None:
        """Make the next `check` raise. Called from any thread."""
        self._stopped.set()
        with self._lock:
            if self._on_stop is not None:
                self._on_stop()

    @contextmanager
    def on_stop(self, act: Callable[[], None]) -> Iterator[None]:
        """While inside, a stop also calls `act`, from the thread that stops: it ends a wait that cannot look
        here. `act` returns at once and raises nothing."""
        with self._lock:
            self._on_stop = act
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._on_stop = None

    def check(self) -> None:
        """Raises Stopped when nobody wants the file, DownloadFailed when the deadline has passed."""
        if self._stopped.is_set():
            raise Stopped
        if time.monotonic() > self._ends:
            raise DownloadFailed(f"{self.source}: the fetch passed its deadline; try again")

    def left(self) -> float:
        """Seconds until the deadline."""
        return self._ends - time.monotonic()

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond a stop."""
        self._stopped.wait(seconds)
        self.check()

    def progress(self, done: int, total: int | None) -> None:
        """Tell how many bytes have come; passed on ten times a second and at the end."""
        self.check()
        if self.expects is not None and total and total != self._expected:
            self._expected = total
            self.expects(total)
        now = time.monotonic()
        if self._report and (now >= self._next_report or done == total):
            self._next_report = now + _REPORT_EVERY
            self._report(Progress(self.source, done, total))

    def room(self, folder: Path, needed: int) -> None:
        """Raises DiskFull when `folder`'s disk has not `needed` bytes free, what may be pruned included."""
        hint = self.frees(folder, needed) if self.frees is not None else ""
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise disk_full(self.source, folder, needed, free, hint)


class Source(Protocol):
    """One or more schemes. Stateless; `resolve` and `fetch` run in a thread.

    `resumes`: the folder of a `fetch` that fails is kept, over restarts too, and given to the next one."""

    schemes: ClassVar[tuple[str, ...]]
    resumes: ClassVar[bool] = False

    def problem(self, source: str) -> str | None:
        """What is wrong with the text of a source; None when it can be tried. No IO."""
        ...

    def is_folder(self, source: str) -> bool:
        """Whether a source without a problem names a folder: then its file is a list (see `folders`). No IO,
        but for what lies on this machine."""
        return False

    def resolve(self, source: str, watch: Watch) -> Exact:
        """What the source stands for now; the store keeps it, so that it stands for the same ever after.
        Raises what `fetch` raises. A source that never moves is itself."""
        return Exact(source)

    def ask(self, source: str, watch: Watch) -> Exact:
        """Ask whether there is such a file, without fetching it: what `resolve` says of it. What cannot be
        told before is taken for good."""
        return self.resolve(source, watch)

    def head(self, source: str, watch: Watch) -> AbstractContextManager[BinaryIO | None]:
        """The file of a source that was resolved, to be read from its beginning (see `head`), wherever it
        lies; None where that takes a fetch. Raises what `fetch` raises, also while it is read."""
        return nullcontext()

    def fetch(self, source: str, folder: Path, watch: Watch) -> Path:
        """The file of a source that was resolved. One below `folder` (on the cache's disk; fresh, or as the
        last try left it where the source `resumes`) is taken into the cache; any other is used where it lies
        and never changed. Raises StoreError, OSError and what `watch` raises."""
        ...


def licence_of(told: object) -> str:
    """A licence in a few words: the first line of what is told that says something, "" for no text."""
    lines = told.splitlines() if isinstance(told, str) else []
    first = next((line.strip() for line in lines if line.strip()), "")
    return "".join(letter for letter in first[:LONGEST_LICENCE] if letter.isprintable())


def is_no_room(error: OSError) -> bool:
    """Whether a write failed because the disk, the quota or the file size limit is exhausted."""
    return error.errno in _NO_ROOM


def disk_full(
    source: str, folder: Path, needed: int | None, free: int | None = None, hint: str = ""
) -> DiskFull:
    """The error that names what is needed and what is free on the disk of `folder`; `hint` ends it."""
    if free is None:
        free = shutil.disk_usage(folder).free
    wants = f"needs {needed / 1e6:.1f} MB" if needed is not None else "needs more than that"
    said = f"{source}: {wants}, {free / 1e6:.1f} MB are free in {folder}"
    return DiskFull(f"{said}; make room and try again{hint}")
