"""The folder of a store: fresh work folders, locks, and files that appear whole or not at all.

Used by `cache`. A file gets its final name by a rename on the same disk after it was synced; everything
before lies in a work folder whose lock dies with the process that holds it, so that leftovers are known.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from modelyard.store.source import Watch

_LOCK_POLL = 0.05
# What is kept of files that were set aside, for whoever wants to look at them.
QUARANTINE_FILES = 8
QUARANTINE_BYTES = 16 * 2**30


class Disk:
    """The folders below one root. Safe for many threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.sources = root / "sources"
        self.current = root / "current"
        self.headers = root / "headers"
        self.quarantine = root / "quarantine"
        self.uses = root / "uses"
        self.sets = root / "sets"
        self._work = root / "work"
        self._locks = root / "locks"
        kept = (
            *(self.blobs, self.sources, self.current, self.headers),
            *(self.quarantine, self.uses, self.sets),
        )
        for folder in (*kept, self._work, self._locks):
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

    # -- files that are in use, and those that go -------------------------------------------------------

    def hold(self, blob: Path) -> int | None:
        """A descriptor that keeps a blob from being removed, by any process, until it is closed. None when it
        is not there."""
        with suppress(OSError):
            held = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_SH)
                if os.stat(blob).st_ino == os.fstat(held).st_ino:
                    return held
            except OSError:
                pass
            os.close(held)
        return None

    def is_held(self, blob: Path) -> bool:
        """Whether some process holds it."""
        return self._if_free(blob, lambda: None) is False

    def remove(self, blob: Path) -> bool:
        """Remove a blob that nobody holds, and the sets that it is a part of; False for one that is held, or
        gone."""

        def act() -> None:
            for folder in self.sets.iterdir():
                if any(_leads_to(link, blob) for link in folder.rglob("*")):
                    shutil.rmtree(folder, ignore_errors=True)
            blob.unlink()

        return self._if_free(blob, act) is True

    def link(self, folder: Path, targets: Mapping[str, Path]) -> None:
        """Have a set with these names, that lead to files which are held, or lie elsewhere. It appears whole;
        links that are wrong in one are mended. One to a blob is relative, so that the store may be moved."""
        wanted = {}
        for name, target in targets.items():
            link = folder / name
            own = target.is_relative_to(self.root)
            to = Path(os.path.relpath(target, link.parent)) if own else target
            if not link.is_symlink() or link.readlink() != to:
                wanted[name] = to
        if not wanted:
            return
        with self.work_folder() as work:
            fresh = work / "set"
            for name, to in wanted.items():
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).symlink_to(to)
            if len(wanted) == len(targets):
                with suppress(OSError):  # there is one, or its beginning
                    fresh.rename(folder)
                    return
            for name in wanted:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (fresh / name).replace(folder / name)

    def set_aside(self, file: Path, digest: str) -> str:
        """Keep a file that must not be used apart from all others. Returns where it is, for a message."""
        kept = self.quarantine / digest
        self.publish(file, kept)
        self._bound_quarantine()
        return f"they were set aside in {self.quarantine}" if kept.exists() else "they were removed"

    def _bound_quarantine(self) -> None:
        """The newest of what was set aside, within bounds."""
        found = [(path.stat(), path) for path in self.quarantine.iterdir() if path.is_file()]
        taken = 0
        for number, (stat, path) in enumerate(sorted(found, key=lambda one: -one[0].st_ctime_ns)):
            taken += stat.st_size
            if number >= QUARANTINE_FILES or taken > QUARANTINE_BYTES:
                path.unlink(missing_ok=True)
                taken -= stat.st_size

    @staticmethod
    def _if_free(blob: Path, act: Callable[[], None]) -> bool | None:
        """Act on a blob that nobody holds: True; False for one that is held, None for one that is gone."""
        try:
            found = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            act()
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return None
        finally:
            os.close(found)
        return True

    @contextmanager
    def _work_lock(self) -> Iterator[None]:
        # Held for a moment: a folder must not be swept between its making and its lock.
        lock = os.open(self.root / "work.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _leads_to(link: Path, blob: Path) -> bool:
    with suppress(OSError):
        return link.readlink().name == blob.name
    return False


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
