"""Declared devices: pools of pretended device memory, for plans and tests on machines without GPUs.

A pool is a folder with the files `size` and `scale`: so many bytes are pretended for each that is really
taken. A process that takes memory there holds a file `<pid>-<n>.mem` whose lock ends with the process, so a
kill gives the memory back as a GPU's driver would. Files of the dead are removed when they are seen. While
there is a file `lost` (with the reason), the device is gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from modelyard.core.types import DeviceKind
from modelyard.runtime.devices.source import DeviceGone, DeviceMemory, Found

POOLS = "MODELYARD_POOLS"
LOST = "lost"
_PREFIX = "modelyard-pools-"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a private folder is made in it


class Declared:
    """The `Source` of declared devices: bytes by device id. `parent` (default: /dev/shm where it is) gets one
    folder of this process, which goes with `close`; folders that died with their process are removed."""

    kind = DeviceKind.DECLARED

    def __init__(
        self, sizes: Mapping[str, int], parent: Path | None = None, scales: Mapping[str, int] | None = None
    ) -> None:
        self._sizes, self._scales = dict(sizes), dict(scales or {})
        if parent is None:
            parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        _remove_dead(parent)
        # Locked before it gets the name by which others look for dead ones.
        made = Path(tempfile.mkdtemp(prefix=".modelyard-", dir=parent))
        self._lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.pools = made.rename(parent / f"{_PREFIX}{made.name.removeprefix('.modelyard-')}")
        for device, size in sizes.items():
            (self.pools / device).mkdir()
            (self.pools / device / "scale").write_text(str(self.scale(device)))
            self.resize(device, size)

    def scale(self, device: str) -> int:
        """Pretended bytes for each that is really taken."""
        return self._scales.get(device, 1)

    def resize(self, device: str, size: int) -> None:
        """Have a device be of so many bytes; nobody who holds some loses any."""
        self._sizes[device] = size
        (self.pools / device / "size").write_text(str(size))

    def found(self) -> list[Found]:
        return [Found(device, "declared", size, 0) for device, size in self._sizes.items()]

    def read(self, device: str, pids: Collection[int]) -> DeviceMemory:
        if (mark := self.pools / device / LOST).exists():
            raise DeviceGone(mark.read_text().strip() or "it was declared gone")
        held: dict[int, int] = {}
        for path in (self.pools / device).glob("*.mem"):
            size = _held(path)
            if size:
                pid = int(path.name.partition("-")[0])
                held[pid] = held.get(pid, 0) + size * self.scale(device)
        total = self._sizes[device]
        mine = {pid: held[pid] for pid in pids if pid in held}
        return DeviceMemory(total, max(0, total - sum(held.values())), mine)

    def close(self) -> None:
        if self._lock >= 0:
            shutil.rmtree(self.pools, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _held(path: Path) -> int:
    """The bytes of a pool file whose process lives; the file of a dead one is removed."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.fstat(fd).st_size
    else:
        path.unlink(missing_ok=True)
        return 0
    finally:
        os.close(fd)


def _remove_dead(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
