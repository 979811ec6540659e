"""Reading ahead: files that an engine is about to load, into the page cache while its process starts.

Owned by the commands. It only saves time: what goes wrong is left to the engine.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import structlog

from modelyard.core.actions import Start
from modelyard.engines.base import Files
from modelyard.runtime.devices import Devices
from modelyard.runtime.devices.ram import RAM, Ram

log = structlog.get_logger(__name__)

CHUNK = 4 << 20  # bytes between two looks at whether it is still wanted
MOSTLY = 0.9  # of a file in the page cache: there is nothing to gain
_WINDOW = 1 << 30
_FAILED = ctypes.c_void_p(-1).value
_LOWEST_BIT = bytes(number & 1 for number in range(256))


class ReadingAhead:
    """Reads in a thread of its own, the files of one instance after those of another."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    async def read(self, action: Start, files: Files, stop: Event) -> None:
        """Have the files of what starts in the page cache, until `stop` is set, as far as that leaves the
        memory that it was promised."""

        def work() -> int:
            if stop.is_set():
                return 0
            promised = sum(charge.bytes for charge in action.placement if charge.device == RAM)
            reserve = sum(device.reserve for device in self._devices.all if device.id == RAM)
            room = Ram().read(RAM, ()).free - promised - reserve
            return read_ahead([path for file in files.values() for path in file.paths], room, stop)

        try:
            done = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as error:  # the engine meets it, too, and says so
            log.warning("read_ahead.failed", instance=action.instance, error=str(error))
        else:
            log.debug("read_ahead.done", instance=action.instance, bytes=done)
        finally:
            stop.set()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def read_ahead(files: Iterable[Path], room: int, stop: Event) -> int:
    """Read these files, one after the other, until `stop` is set, and return how many bytes that were.

    One of which most is in the page cache is left out, and so is one that is larger than what is left of
    `room` (bytes): it would push out what others need. Raises OSError.

    The bytes are read, not advised: the kernel answers POSIX_FADV_WILLNEED with at most one window of its
    read-ahead, and to many of those it queues without end.
    """
    done = 0
    buffer = bytearray(CHUNK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > room or resident(path) >= MOSTLY:
                continue
            while not stop.is_set() and (count := file.readinto(buffer)):
                done += count
        room -= size
    return done


def resident(path: Path) -> float:
    """The part of a file that is in the page cache, from 0 to 1. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    pages = found = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for offset in range(0, size, _WINDOW):
            length = min(_WINDOW, size - offset)
            start = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), offset)
            if start == _FAILED:
                raise OSError(ctypes.get_errno(), "mmap", str(path))
            vector = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
            try:
                if libc.mincore(start, length, vector):
                    raise OSError(ctypes.get_errno(), "mincore", str(path))
            finally:
                libc.munmap(start, length)
            pages += len(vector)
            found += vector.raw.translate(_LOWEST_BIT).count(1)
    return found / pages if pages else 1.0
