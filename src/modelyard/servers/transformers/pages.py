"""Memory by its pages: a block of addresses that holds memory of our own, a file's, or nothing; and which of
a process's addresses lie in files. Linux, standard library only. `host_weights` has a model in one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass

HUGE = 2 << 20
_PIECE = 64 << 20  # copied at once; a multiple of HUGE
_COPIES_AT = 10  # how nice the thread is that copies while requests are computed
_READ_AND_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FIXED, _NO_RESERVE = 0x10, 0x4000
_MOVED = 1 | 2 | 4  # MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
)
_libc.mremap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int),
    ctypes.c_void_p,
)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memmove.restype = ctypes.c_void_p


@dataclass(frozen=True)
class Mapped:
    """Addresses that show a file from `offset` on, and were not written to."""

    start: int
    end: int
    offset: int
    path: str
    inode: int

    def opened(self) -> Source | None:
        """The file; None where another one has its name by now."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(file).st_ino == self.inode:
            return Source(self.path, file)
        os.close(file)
        return None


class Source:
    """A file, held open (the descriptor is its own), as it is when this is made."""

    def __init__(self, name: str, file: int) -> None:
        self.file = file
        self._name = name
        self._known = self._state()

    def check(self) -> None:
        """Raises OSError when it has changed since."""
        if self._state() != self._known:
            raise OSError(f"{self._name} has changed since the model was loaded")

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self.file)
        return found.st_size, found.st_mtime_ns


class Block:
    """So many bytes of addresses from `address` (a multiple of HUGE) on, for as long as the process lives."""

    def __init__(self, size: int) -> None:
        self.size = max(rounded(size), HUGE)
        self.address = _reserved(self.size)

    def clear(self) -> None:
        """Give all of it back to the system: it reads as zeros."""
        _mapped(self.address, self.size, -1, 0)

    def show(self, start: int, size: int, source: Source, offset: int) -> None:
        """Have it show a file's bytes; `start` and `offset` are whole pages. Nothing is read now. Raises
        OSError."""
        source.check()
        _mapped(self.address + start, size, source.file, offset)

    def own(self, parts: Iterable[tuple[int, int]], stop: threading.Event) -> bool:
        """Have these parts (start, size) as memory of our own in place of a file's, bytes and addresses the
        same, until `stop`: then False. Whoever reads meanwhile notices nothing; nobody may write. Raises
        OSError."""
        _yield_to_others()
        spare = _reserved(_PIECE)
        try:
            for start, size in parts:
                for at in range(start, start + size, _PIECE):
                    if stop.is_set():
                        return False
                    count = min(_PIECE, start + size - at)
                    _libc.memmove(spare, self.address + at, count)
                    whole = rounded(count)
                    _checked(_libc.mremap(spare, whole, whole, _MOVED, self.address + at))
            return True
        finally:
            _libc.munmap(spare, _PIECE)


def rounded(size: int, to: int = HUGE) -> int:
    """Up to a multiple."""
    return -(-size // to) * to


def files_in_memory() -> list[Mapped]:
    """The files that this process has mapped for itself and not written to, by their addresses."""
    found: list[Mapped] = []
    mapping, clean = None, False
    with open("/proc/self/smaps") as file:
        for line in file:
            name, *rest = line.split(None, 5)
            if not name.endswith(":"):
                if mapping is not None and clean:
                    found.append(mapping)
                mapping, clean = _private(name, rest), True
            elif name in ("Anonymous:", "Swap:") and rest[0] != "0":
                clean = False  # what was written to is the process's own
    return found if mapping is None or not clean else [*found, mapping]


def _private(addresses: str, rest: list[str]) -> Mapped | None:
    """The mapping that a line of /proc/PID/smaps begins with, if it is a file's and private."""
    rights, offset, _, inode, *named = rest
    path = named[0].rstrip("\n") if named else ""
    if rights[3] != "p" or not path.startswith("/"):
        return None
    start, end = (int(one, 16) for one in addresses.split("-"))
    return Mapped(start, end, int(offset, 16), path, int(inode))


def _reserved(size: int) -> int:
    """An address, a multiple of HUGE, from which on so many bytes are zeros that take no memory."""
    start = _checked(_libc.mmap(None, size + HUGE, _READ_AND_WRITE, _anonymous(0), -1, 0))
    address = rounded(start)
    for at, count in ((start, address - start), (address + size, HUGE - (address - start))):
        if count:
            _libc.munmap(at, count)
    _libc.madvise(address, size, mmap.MADV_HUGEPAGE)
    return address


def _mapped(address: int, size: int, file: int, offset: int) -> None:
    """Put a file (-1: zeros) where something else was."""
    flags = _anonymous(_FIXED) if file < 0 else mmap.MAP_PRIVATE | _FIXED
    _checked(_libc.mmap(address, size, _READ_AND_WRITE, flags, file, offset))
    if file < 0:
        _libc.madvise(address, size, mmap.MADV_HUGEPAGE)


def _anonymous(more: int) -> int:
    return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE | more


def _checked(address: int | None) -> int:
    if address is None or address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address


def _yield_to_others() -> None:
    """Have this thread compute when nobody else wants to."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _COPIES_AT)
