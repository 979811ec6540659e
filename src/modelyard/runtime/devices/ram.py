"""Host RAM: what this process may use of it, and what processes hold privately.

The tightest limit counts: the machine's, or that of any control group above this process (v1 and v2). Page
cache is free memory. Reads /proc and /sys only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from modelyard.core.types import DeviceKind
from modelyard.runtime.devices.source import DeviceMemory, Found

RAM = "ram"
_MIB = 1 << 20
_GIB = 1 << 30
_UNLIMITED = 1 << 60  # v1 writes a number near 2^63 for "no limit"


def private_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Anonymous and shared memory of one process, in bytes, without mapped files; 0 when it is gone."""
    size = 0
    try:
        with (proc / str(pid) / "status").open("rb") as file:
            for line in file:
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    size += int(line.split()[1]) * 1024
    except OSError:
        return 0
    return size


def default_reserve(total: int) -> int:
    """A tenth, between 512 MiB and 4 GiB, and never more than half."""
    return min(max(512 * _MIB, min(total // 10, 4 * _GIB)), total // 2)


class Ram:
    """The `Source` of host RAM."""

    kind = DeviceKind.RAM

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._cgroups = cgroups

    def found(self) -> list[Found]:
        total = self.read(RAM, ()).total
        return [Found(RAM, "host memory", total, default_reserve(total))]

    def read(self, device: str, pids: Collection[int]) -> DeviceMemory:
        fields = _fields(self._proc / "meminfo")
        total, free = fields["MemTotal:"] * 1024, fields["MemAvailable:"] * 1024
        for limit, used in self._limits():
            total = min(total, limit)
            free = min(free, max(0, limit - used))
        held = {pid: size for pid in pids if (size := private_bytes(pid, self._proc))}
        return DeviceMemory(total, min(free, total), held)

    def close(self) -> None:
        return

    def _limits(self) -> Iterator[tuple[int, int]]:
        """(limit, bytes used without page cache) of every limited control group above this process."""
        for line in (self._proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                for mount in (self._cgroups, self._cgroups / "unified"):
                    yield from self._ancestors(mount, path, "memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
                yield from self._ancestors(self._cgroups / "memory", path, *names)

    def _ancestors(
        self, mount: Path, path: str, limit_name: str, usage_name: str, prefix: str
    ) -> Iterator[tuple[int, int]]:
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                return
            try:
                limit_text = (folder / limit_name).read_text().strip()
                usage = int((folder / usage_name).read_text())
                stat = _fields(folder / "memory.stat")
            except OSError:
                continue  # the root group has no limit; in a container the path may not be visible
            if limit_text != "max" and int(limit_text) < _UNLIMITED:
                # Both lists are page cache; shared memory (tmpfs) lies on the anonymous ones.
                cache = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
                yield int(limit_text), max(0, usage - cache)


def _fields(path: Path) -> dict[str, int]:
    """The second word of each line by its first."""
    words = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1}
