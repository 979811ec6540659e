"""What is left of downloads that did not end: one folder for each source, kept over a restart.

Used by `cache`, which holds the source's lock while a folder is in use, by `shelf`, which counts and removes
them, and by `transfer`, which keeps its state there. The state never says more than what was synced to the
disk before it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from modelyard.errors import BadFile, BadGguf, ChecksumMismatch

# Seconds after the last write; then nobody is expected to come back for it.
ABANDONED = 7 * 86400.0

_BLOCK = 512  # bytes, of `st_blocks`

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Partial:
    """What is left of a download, and the `source` it is of ("" where that was lost). It takes `size` bytes
    on the disk, was `written` last then (epoch), and has `done` bytes of the file, of `total` where that is
    known. `busy`: it is being fetched."""

    folder: Path
    source: str
    size: int
    done: int
    total: int | None
    written: float
    busy: bool


class Partials:
    """`ROOT/partial/KEY/`, under the locks `ROOT/locks/KEY`. Opening removes what was abandoned."""

    def __init__(self, root: Path, *, abandoned: float = ABANDONED) -> None:
        self._folder = root / "partial"
        self._locks = root / "locks"
        self._folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - abandoned
        for folder in self._folder.iterdir():
            if _last_written(folder) < oldest:
                self.remove(folder)

    @contextmanager
    def folder(self, key: str, source: str) -> Iterator[Path]:
        """The folder of a source, whose lock is held. Removed at the end, but kept after a failure that a
        further try may go on from."""
        folder = self._folder / key
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            (folder / "source").write_text(source)
            yield folder
        except BaseException as failure:
            wrong = isinstance(failure, ChecksumMismatch | BadFile | BadGguf)
            if wrong or not (folder / "state").exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)

    def all(self) -> list[Partial]:
        """Those that there are. Costs some stats and two small reads each."""
        return [found for folder in self._folder.iterdir() if (found := self._look(folder))]

    def _look(self, folder: Path) -> Partial | None:
        try:
            stats = [path.stat() for path in folder.iterdir()]
        except OSError:  # it has just ended
            return None
        source, state = "", State.load(folder) or State("")
        with suppress(OSError, ValueError):
            source = (folder / "source").read_text()
        done = sum(end - begin for begin, end in state.done)
        size = sum(stat.st_blocks * _BLOCK for stat in stats)
        return Partial(folder, source, size, done, state.size, _last_written(folder), self._is_busy(folder))

    def _is_busy(self, folder: Path) -> bool:
        try:
            lock = os.open(self._locks / folder.name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two may look at once
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def remove(self, folder: Path) -> bool:
        """Remove one that nobody fetches; False for one that somebody does."""
        lock = os.open(self._locks / folder.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True


@dataclass(frozen=True, slots=True)
class State:
    """What of a file is on the disk: the ranges `done`, of `size` bytes. `identity` and `validator` tell
    which file that was: the source's exact text, and what its server has for these bytes alone (an ETag)."""

    identity: str
    size: int | None = None
    validator: str = ""
    done: tuple[Range, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The state that was written there; None where there is none that can be read."""
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
            known = json.loads((folder / "state").read_bytes())
            done = tuple((int(begin), int(end)) for begin, end in known.pop("done"))
            return cls(**known, done=done)
        return None

    @classmethod
    def read(cls, folder: Path, data: Path, identity: str) -> Self:
        """The state of the bytes in `data`; an empty one where it is not known, or of another file."""
        state = cls.load(folder)
        with suppress(OSError):
            if state is not None and state.identity == identity:
                reached = max((end for _, end in state.done), default=0)
                return state if data.stat().st_size >= reached else cls(identity)
        return cls(identity)

    def write(self, folder: Path) -> None:
        """Replace the state on the disk, which survives a loss of power. The data was synced before."""
        fresh = folder / "state.new"
        with fresh.open("wb") as file:
            file.write(json.dumps(asdict(self)).encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / "state")
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order, those that touch as one, empty ones left out."""
    found: list[Range] = []
    for begin, end in sorted(ranges):
        if begin >= end:
            continue
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def gaps(done: Iterable[Range], size: int) -> Iterator[Range]:
    """What is missing of `size` bytes, in order."""
    at = 0
    for begin, end in merged(done):
        if begin > at:
            yield (at, min(begin, size))
        at = max(at, end)
    if at < size:
        yield (at, size)


def _last_written(folder: Path) -> float:
    try:
        return max(entry.stat().st_mtime for entry in (folder, *folder.iterdir()))
    except OSError:
        return time.time()
