"""The weights of a model in one block of memory, which can be put away as a whole and brought back.

Tensors are views into the block and keep their addresses on the CPU, their storage elsewhere, so that nothing
in the model notices. The bytes that come back are those that went.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

_ALIGN = 256


def tensors_of(model: Any) -> Iterator[torch.Tensor]:
    """Each parameter and buffer once; tied ones are one."""
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in seen and tensor.nbytes:
            seen.add(id(tensor))
            yield tensor


def move(tensor: torch.Tensor, block: torch.Tensor, start: int) -> None:
    """Have a tensor's numbers lie in the block from there on."""
    view = block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    view.copy_(tensor.data)
    tensor.data = view


def tidy() -> None:
    """Have freed memory go back to where it came from."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class GpuWeights:
    """The weights of `model`, moved to a GPU; asleep they are in pinned host memory. See
    `generation.Sleeper`."""

    level = "ram"

    def __init__(self, model: Any, device: str) -> None:
        tensors = list(tensors_of(model))
        sizes = [-(-tensor.nbytes // _ALIGN) * _ALIGN for tensor in tensors]
        self._block = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        self._host: _Pinned | None = None
        start = 0
        for tensor, size in zip(tensors, sizes, strict=True):
            move(tensor, self._block, start)
            start += size
        tidy()

    def sleep(self) -> tuple[int, float]:
        start = time.monotonic()
        self._host = _Pinned(len(self._block))
        self._host.bytes.copy_(self._block, non_blocking=True)
        torch.cuda.synchronize()
        self._block.untyped_storage().resize_(0)
        tidy()
        return len(self._block), time.monotonic() - start

    def wake(self) -> tuple[int, float]:
        start = time.monotonic()
        assert self._host is not None
        self._block.untyped_storage().resize_(len(self._block))
        self._block.copy_(self._host.bytes, non_blocking=True)
        torch.cuda.synchronize()
        seconds = time.monotonic() - start
        self._host.free()
        self._host = None
        return len(self._block), seconds


class _Pinned:
    """Host memory that a GPU copies from and to by itself: as large as was asked for, gone when freed (the
    library's own grows to a power of two and is kept)."""

    def __init__(self, size: int) -> None:
        self._pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pages.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(self._pages, dtype=torch.uint8)
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.bytes.data_ptr(), size, 0))

    def free(self) -> None:
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr()))
        del self.bytes
        gc.collect()
        self._pages.close()
