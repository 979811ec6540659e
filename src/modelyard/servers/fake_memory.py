"""The fake engine's memory: really taken, page by page, in host RAM or in a pool that stands for a device.

A pool is the folder `$MODELYARD_POOLS/<device>`. Memory in it is a file `<pid>-<n>.mem` whose exclusive
lock is held while its process lives: whoever measures a pool counts the files that are locked, and takes
one that is not for the leftover of a dead process. An optional file `size` holds the pool's bytes; a
process that would exceed it gets OutOfMemory, as on a real device. An optional file `scale` says how many
bytes each byte that is taken stands for.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

POOLS = "MODELYARD_POOLS"
_CHUNK = 1 << 20
_FILL = b"\xa5" * _CHUNK
_numbers = itertools.count()


class OutOfMemory(Exception):
    """A pool has less room than was asked for."""


class Held:
    """Memory taken by `take`; it stays until the process ends, or `drop`."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._files: list[tuple[int, Path]] = []

    def ram(self, size: int) -> None:
        """Take `size` bytes of anonymous private memory (it counts as RssAnon)."""
        if size:
            self._fill(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), size)

    def pool(self, pool: Path, size: int) -> None:
        """Take `size` bytes of a pool. Raises OutOfMemory, and leaves nothing behind then."""
        if not size:
            return
        name = f"{os.getpid()}-{next(_numbers)}"
        scale = size_of(pool, "scale") or 1
        with _alone_in(pool):
            taken, room = used(pool) * scale, size_of(pool)
            if room is not None and taken + size > room:
                raise OutOfMemory(
                    f"{pool.name}: {size} bytes asked for, {max(room - taken, 0)} of {room} free"
                )
            # Locked before it gets its name, so that nobody ever sees it as a dead process's file.
            hidden = pool / f".{name}.new"
            descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = -(-size // scale)
            os.ftruncate(descriptor, size)
            path = hidden.rename(pool / f"{name}.mem")
        self._files.append((descriptor, path))
        self._fill(mmap.mmap(descriptor, size), size)

    def drop(self) -> None:
        """Give everything back (a killed process does the same, except that its files stay, unlocked)."""
        for mapping in self._maps:
            mapping.close()
        for descriptor, path in self._files:
            path.unlink(missing_ok=True)
            os.close(descriptor)
        self._maps, self._files = [], []

    def _fill(self, mapping: mmap.mmap, size: int) -> None:
        self._maps.append(mapping)
        for start in range(0, size, _CHUNK):
            count = min(_CHUNK, size - start)
            mapping[start : start + count] = _FILL[:count]


def take(memory: Mapping[str, int], pools: Path | None, held: Held) -> None:
    """Take memory per device. Raises OutOfMemory, or ValueError when a device has no pool folder."""
    for device, size in memory.items():
        if device == "ram":
            held.ram(size)
        elif pools is None or not (pools / device).is_dir():
            raise ValueError(f"device {device}: there is no pool folder {device} below ${POOLS}")
        else:
            held.pool(pools / device, size)


def take_instead(memory: Mapping[str, int], pools: Path | None, held: Held) -> None:
    """Give back what is held, and take this. Raises as `take`; then nothing is held."""
    held.drop()
    try:
        take(memory, pools, held)
    except (OutOfMemory, ValueError):
        held.drop()
        raise


def pools() -> Path | None:
    """The folder of all pools, by the environment."""
    folder = os.environ.get(POOLS)
    return Path(folder) if folder else None


def size_of(pool: Path, file: str = "size") -> int | None:
    """The pool's size in bytes from its file `size` (or the number in another one); None when it has none."""
    try:
        return int((pool / file).read_text())
    except FileNotFoundError:
        return None


def used(pool: Path) -> int:
    """The bytes of a pool that live processes hold."""
    return sum(_held_size(path) for path in pool.glob("*.mem"))


def _held_size(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return 0
    except BlockingIOError:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


@contextmanager
def _alone_in(pool: Path) -> Iterator[None]:
    """One process at a time compares and takes: the lock is on the folder itself, no file is needed."""
    descriptor = os.open(pool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
