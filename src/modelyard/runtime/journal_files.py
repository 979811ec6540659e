"""The journal on disk: a ring of files of JSON lines, the oldest deleted when a new one would be too much.

Written by the one writer of `runtime/journal.py`, in its thread. A line is either whole or skipped: a write
that fails is taken back, and one that a dying process left torn stands in a line of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

PARTS = 8  # files that the ring is made of: deleting one loses that part of the history
SMALLEST, LARGEST = 4096, 8 * 2**20  # bytes of one file
FIRST = 4  # a file's part, at most, that is for what it begins with
PIECE = 64 * 1024  # bytes between two chances for the event loop to have the interpreter

View = list[tuple[Path, int]]
"""Files with the bytes of each that may be read, the oldest first."""


class Segments:
    """At most `size` bytes of lines in `folder`, which is made when it is first written to. `append` is for
    one thread at a time, `view` for any."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._part = min(LARGEST, max(SMALLEST, size // PARTS))
        self._lock = threading.Lock()
        self._sizes: dict[Path, int] = {}  # the oldest first
        self._file: int | None = None  # the newest of them, open
        self._begun = False  # what a run begins with is written

    def append(
        self, lines: Sequence[bytes], first: Callable[[int], list[bytes]] = lambda _: []
    ) -> tuple[int, OSError | None]:
        """Write lines. Returns how many are on disk, and what kept the next one from it. `first` makes the
        lines that all files but a run's first one begin with, of so many bytes at most."""
        done = 0
        try:
            while done < len(lines):
                self._open(first)
                end = self._fitting(lines, done)
                self._write(b"".join(lines[done:end]))
                done = end
        except OSError as error:
            self.close()
            return done, error
        return done, None

    def view(self) -> View:
        """What is on disk now; each size ends with a line."""
        with self._lock:
            return list(self._sizes.items())

    def close(self) -> None:
        """The next `append` looks at the folder anew. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def look(self) -> None:
        """Find what lies in the folder, made if it is not there. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = {path: path.stat().st_size for path in sorted(self._folder.glob("journal-*.jsonl"))}
        with self._lock:
            self._sizes = found

    def _open(self, first: Callable[[int], list[bytes]]) -> None:
        """Have a file open with room in it. Raises OSError."""
        if self._file is not None:
            if os.fstat(self._file).st_nlink and self._sizes[self._newest] < self._part:
                return
            self.close()
        self.look()
        if not self._sizes or self._sizes[self._newest] >= self._part:
            number = int(self._newest.stem.rpartition("-")[2]) + 1 if self._sizes else 1
            path = self._folder / f"journal-{number:08}.jsonl"
            with self._lock:
                self._sizes[path] = 0
        path = self._newest
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = self._sizes[path]
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._write(b"\n")
        elif not size and self._begun and (lines := first(self._part // FIRST)):
            self._write(b"".join(lines))

    @property
    def _newest(self) -> Path:
        return next(reversed(self._sizes))

    def _fitting(self, lines: Sequence[bytes], start: int) -> int:
        """Where the lines end that still go into the open file: one at least."""
        room = self._part - self._sizes[self._newest]
        end = start + 1
        room -= len(lines[start])
        while end < len(lines) and len(lines[end]) <= room:
            room -= len(lines[end])
            end += 1
        return end

    def _write(self, data: bytes) -> None:
        """All of it, or nothing. Raises OSError."""
        self._trim(len(data))
        path, file = self._newest, self._file
        assert file is not None
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, self._sizes[path])
            raise
        self._begun = True
        with self._lock:
            self._sizes[path] += len(data)

    def _trim(self, more: int) -> None:
        """Delete the oldest files until `more` bytes fit. Raises OSError."""
        while len(self._sizes) > 1 and sum(self._sizes.values()) + more > self._size:
            oldest = next(iter(self._sizes))
            oldest.unlink(missing_ok=True)
            with self._lock:
                del self._sizes[oldest]


def blocks(view: View) -> Iterator[bytes]:
    """The lines of a view, whole ones, some at a time. A file that is deleted meanwhile is passed over."""
    for path, size in view:
        try:
            file = path.open("rb")
        except OSError:
            continue
        with file:
            rest, left = b"", size
            while left > 0 and (piece := file.read(min(PIECE, left))):
                left -= len(piece)
                whole, end, rest = (rest + piece).rpartition(b"\n")
                yield whole + end
