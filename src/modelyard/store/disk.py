"""The folder of a store: fresh work folders, locks, and files that appear whole or not at all.

Used by `cache`. A file gets its final name by a rename on the same disk after it was synced; everything
before lies in a work folder whose lock dies with the process that holds it, so that leftovers are known.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelyard.store.source import Watch

_LOCK_POLL = 0.05


class Disk:
    """The folders below one root. Safe for many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.sources = root / "sources"
        self.headers = root / "headers"
        self.quarantine = root / "quarantine"
        self._work = root / "work"
        self._locks = root / "locks"
        for folder in (self.blobs, self.sources, self.headers, self.quarantine, self._work, self._locks):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A fresh folder that is removed at the end, and swept by others once this process is dead."""
        folder = self._work / uuid.uuid4().hex
        with self._work_lock():
            folder.mkdir(mode=0o700)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def sweep(self) -> int:
        """Remove work folders whose process is dead. Returns how many."""
        swept = 0
        with self._work_lock():
            for folder in self._work.iterdir():
                if folder.is_dir() and _is_abandoned(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    swept += 1
        return swept

    @contextmanager
    def only_one(self, name: str, watch: Watch) -> Iterator[None]:
        """Hold the lock of `name` among all processes; waits for it as long as `watch` lets it."""
        lock = os.open(self._locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    watch.pause(_LOCK_POLL)
            yield
        finally:
            os.close(lock)

    def publish(self, file: Path, target: Path) -> None:
        """Give a finished file its final name, durably."""
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        file.replace(target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def write(self, target: Path, content: bytes) -> None:
        """A small file, whole or not at all."""
        with self.work_folder() as folder:
            file = folder / "content"
            file.write_bytes(content)
            self.publish(file, target)

    @contextmanager
    def _work_lock(self) -> Iterator[None]:
        # Held for a moment: a folder must not be swept between its making and its lock.
        lock = os.open(self.root / "work.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _is_abandoned(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
    return True
