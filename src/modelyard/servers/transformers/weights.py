"""The weights of a model in one block of memory, which can be put away as a whole and brought back.

Tensors are views into the block and keep their addresses on the CPU, their storage elsewhere, so that nothing
in the model notices. On the CPU the block's bytes go to a file that has no name, and their pages back to the
system; on a GPU they go to pinned host memory. The bytes that come back are those that went.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_ALIGN = 256
_PIECE = 64 << 20
_MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")


class Weights:
    """The parameters and buffers of `model`, moved to `device`. `level` is empty where they cannot leave."""

    def __init__(self, model: Any, device: str, folder: str) -> None:
        self.level = "ram" if device != "cpu" else "file" if folder else ""
        tensors = list(_tensors(model))
        size = sum(-(-tensor.nbytes // _ALIGN) * _ALIGN for tensor in tensors)
        self._pages: mmap.mmap | None = None
        if device == "cpu":
            self._pages = _pages(size)
            self._block = torch.frombuffer(self._pages, dtype=torch.uint8)
        else:
            self._block = torch.empty(size, dtype=torch.uint8, device=device)
        self._folder = folder
        self._file: int | None = None
        self._host: _Pinned | None = None
        start = 0
        for tensor in tensors:
            view = self._block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            view.copy_(tensor.data)
            tensor.data = view
            start += -(-tensor.nbytes // _ALIGN) * _ALIGN
        _tidy()

    def sleep(self) -> tuple[int, float]:
        """Put them away. Raises OSError, and then they are where they were."""
        start = time.monotonic()
        if self._pages is not None:
            if self._file is None:
                self._file = _written(self._pages, self._folder)
            self._pages.madvise(mmap.MADV_DONTNEED)
        else:
            self._host = _Pinned(len(self._block))
            self._host.bytes.copy_(self._block, non_blocking=True)
            torch.cuda.synchronize()
            self._block.untyped_storage().resize_(0)
        _tidy()
        return len(self._block), time.monotonic() - start

    def wake(self) -> tuple[int, float]:
        """Bring them back. Raises OSError."""
        start = time.monotonic()
        if self._pages is not None:
            assert self._file is not None
            _read(self._file, self._pages)
        else:
            assert self._host is not None
            self._block.untyped_storage().resize_(len(self._block))
            self._block.copy_(self._host.bytes, non_blocking=True)
            torch.cuda.synchronize()
        seconds = time.monotonic() - start
        if self._host is not None:
            self._host.free()
            self._host = None
        return len(self._block), seconds


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    """Each tensor of the model once; tied ones are one."""
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in seen and tensor.nbytes:
            seen.add(id(tensor))
            yield tensor


class _Pinned:
    """Host memory that a GPU copies from and to by itself: as large as was asked for, gone when freed (the
    library's own grows to a power of two and is kept)."""

    def __init__(self, size: int) -> None:
        self._pages = _pages(size)
        self.bytes = torch.frombuffer(self._pages, dtype=torch.uint8)
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.bytes.data_ptr(), size, 0))

    def free(self) -> None:
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr()))
        del self.bytes
        gc.collect()
        self._pages.close()


def _pages(size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _written(pages: mmap.mmap, folder: str) -> int:
    """A file with these bytes, on its way to the disk: the system can take its cached pages back then."""
    if _filesystem(folder) in _MEMORY_FILESYSTEMS:
        raise OSError(f"{folder} lies in memory: nothing would be freed; name a folder on a disk")
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        view = memoryview(pages)
        try:
            for start in range(0, len(view), _PIECE):
                piece = view[start : start + _PIECE]
                while piece:
                    piece = piece[file.write(piece) :]
                # Pages that are still to be written stay, and begin to be: nobody waits for the disk.
                os.posix_fadvise(file.fileno(), start, _PIECE, os.POSIX_FADV_DONTNEED)
        finally:
            view.release()
        return os.dup(file.fileno())


def _read(file: int, pages: mmap.mmap) -> None:
    view = memoryview(pages)

    def read(start: int) -> None:
        end = min(start + _PIECE, len(view))
        while start < end:
            count = os.preadv(file, [view[start:end]], start)
            if not count:
                raise OSError("the file of the weights was cut")
            start += count

    try:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(read, range(0, len(view), _PIECE)))
    finally:
        view.release()


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


def _tidy() -> None:
    """Have freed memory go back to where it came from."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
