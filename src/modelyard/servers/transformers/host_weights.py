"""Weights on the CPU: memory of our own while they are used, asleep files alone, awake again files first.

What the library mapped from the model's files and nobody wrote to lies there bit for bit, and is never
written anew; all else goes once to a file without a name. A wake shows the files where the tensors are, and
what is read first comes first. A thread then copies them into memory of our own: that is faster to compute
with (huge pages), is measured as what it is, and needs the files no more.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modelyard.servers.transformers import pages
from modelyard.servers.transformers.pages import Block, Mapped, Source
from modelyard.servers.transformers.weights import move, tensors_of, tidy

_ALIGN = 256
_PAGE = mmap.PAGESIZE
_GAP = 1 << 20  # bytes of a file that no tensor uses, at most, within one part
_PIECE = 64 << 20
_MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")


@dataclass
class _Part:
    """A part of the block that one file has, or will have, from `offset` on; both begin with a page."""

    start: int
    size: int
    source: Source | None
    offset: int = 0


class HostWeights:
    """The weights of `model`, moved to a block. `level` is empty where they cannot leave: without a folder.
    See `generation.Sleeper`."""

    def __init__(self, model: Any, folder: str) -> None:
        self.level = "file" if folder else ""
        self._folder = folder
        tensors = list(tensors_of(model))
        self._parts, starts = _laid_out(tensors)
        last = self._parts[-1]
        self._size = sum(part.size for part in self._parts)
        self._pages = Block(last.start + last.size)
        whole = (ctypes.c_char * self._pages.size).from_address(self._pages.address)
        block = torch.frombuffer(whole, dtype=torch.uint8)
        for tensor, start in zip(tensors, starts, strict=True):
            move(tensor, block, start)
        self._copying: threading.Thread | None = None
        self._stop = threading.Event()
        self._own = True  # nothing is shown of files
        tidy()

    def sleep(self) -> tuple[int, float]:
        """Raises OSError, and then they are where they were."""
        start = time.monotonic()
        self._end_copying()
        kept = [part for part in self._parts if part.source is None or self._changed(part.source)]
        if kept:
            self._write(kept)
        self._pages.clear()
        tidy()
        return self._size, time.monotonic() - start

    def wake(self) -> tuple[int, float]:
        """Raises OSError."""
        start = time.monotonic()
        for part in self._parts:
            assert part.source is not None
            self._pages.show(part.start, part.size, part.source, part.offset)
        self._own = False
        self._stop.clear()
        self._copying = threading.Thread(target=self._copy, name="weights", daemon=True)
        self._copying.start()
        return self._size, time.monotonic() - start

    def _copy(self) -> None:
        try:
            self._own = self._pages.own([(part.start, part.size) for part in self._parts], self._stop)
        except OSError as error:  # what is not copied yet is shown as well
            print(f"warning: the weights stay in their files: {error}", flush=True)

    def _changed(self, source: Source) -> bool:
        """Whether a file is not what it was. Raises OSError where its bytes are lost by that."""
        try:
            source.check()
        except OSError:
            if not self._own:
                raise
            return True
        return False

    def _end_copying(self) -> None:
        if self._copying is not None:
            self._stop.set()
            self._copying.join()
            self._copying = None

    def _write(self, parts: Sequence[_Part]) -> None:
        """Have a file with these parts, on its way to the disk: the system can take its cached pages back
        then."""
        if _filesystem(self._folder) in _MEMORY_FILESYSTEMS:
            raise OSError(f"{self._folder} lies in memory: nothing would be freed; name a folder on a disk")
        with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
            offsets = []
            for part in parts:
                offsets.append(file.seek(pages.rounded(file.tell(), _PAGE)))
                address = self._pages.address + part.start
                view = memoryview((ctypes.c_char * part.size).from_address(address)).cast("B")
                for at in range(0, part.size, _PIECE):
                    piece = view[at : at + _PIECE]
                    while piece:
                        piece = piece[file.write(piece) :]
                    # Pages that are still to be written stay, and begin to be: nobody waits for the disk.
                    os.posix_fadvise(file.fileno(), offsets[-1] + at, _PIECE, os.POSIX_FADV_DONTNEED)
            source = Source("the file of the weights", os.dup(file.fileno()))
        for part, offset in zip(parts, offsets, strict=True):
            part.source, part.offset = source, offset


def _laid_out(tensors: Sequence[torch.Tensor]) -> tuple[list[_Part], list[int]]:
    """The parts of a block, each on pages of its own, and where in the block each tensor lies: like in its
    file, if it lies in one."""
    files = sorted(pages.files_in_memory(), key=lambda one: one.start)
    sources: dict[str, Source | None] = {}
    found: list[tuple[str, int, int]] = []  # path, offset, number
    rest: list[int] = []
    for number, tensor in enumerate(tensors):
        mapped = _mapping(files, tensor)
        if mapped is not None and mapped.path not in sources:
            sources[mapped.path] = mapped.opened()
        if mapped is None or sources[mapped.path] is None:
            rest.append(number)
        else:
            found.append((mapped.path, mapped.offset + tensor.data_ptr() - mapped.start, number))
    parts: list[_Part] = []
    starts = [0] * len(tensors)
    for path, offset, number in sorted(found):
        last = parts[-1] if parts else None
        if last is None or last.source is not sources[path] or offset > last.offset + last.size + _GAP:
            low = offset - offset % _PAGE
            last = _Part(_next(parts), 0, sources[path], low)
            parts.append(last)
        starts[number] = last.start + offset - last.offset
        last.size = max(last.size, offset + tensors[number].nbytes - last.offset)
    own = _Part(_next(parts), 0, None)
    for number in rest:
        starts[number] = own.start + own.size
        own.size += pages.rounded(tensors[number].nbytes, _ALIGN)
    return [part for part in (*parts, own) if part.size], starts


def _next(parts: Sequence[_Part]) -> int:
    return pages.rounded(parts[-1].start + parts[-1].size) if parts else 0


def _mapping(files: Sequence[Mapped], tensor: torch.Tensor) -> Mapped | None:
    """The mapping that a tensor lies in as a whole, if it is one piece."""
    address = tensor.data_ptr()
    at = bisect_right(files, address, key=lambda one: one.start) - 1
    if at < 0 or address + tensor.nbytes > files[at].end or not tensor.is_contiguous():
        return None
    return None if address % tensor.itemsize else files[at]


def _filesystem(folder: str) -> str:
    """The type of the filesystem that a folder lies on; empty where the system does not say."""
    try:
        with open("/proc/mounts") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return ""
    real = os.path.realpath(folder)
    over = [(len(at), kind) for at, kind in mounts if os.path.commonpath([at, real]) == at]
    return max(over, default=(0, ""))[1]
