"""The seam between `Devices` and what knows one kind of memory: NVML, sysfs, /proc, a folder of pools."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from modelyard.core.types import DeviceKind


@dataclass(frozen=True, slots=True)
class Found:
    """A device that was discovered. `reserve` is its kind's default, in bytes; `group` names those that it
    has a faster way to than to others, empty where nobody knows."""

    id: str
    name: str
    total: int
    reserve: int
    group: str = ""


class DeviceGone(OSError):
    """It is not there any more, nor is what was on it."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device's memory now; `held` has the bytes of those of the asked pids that are known to hold some."""

    total: int
    free: int
    held: Mapping[int, int] = field(default_factory=dict)


class Source(Protocol):
    """One kind of devices. `read` is called from threads, also from several at a time."""

    kind: DeviceKind

    def found(self) -> list[Found]:
        """The devices that this process may use, in a stable order."""
        ...

    def read(self, device: str, pids: Collection[int]) -> DeviceMemory:
        """The device's memory now. Raises OSError when it does not answer, DeviceGone when it is gone."""
        ...

    def close(self) -> None:
        """Let go of what `found` and `read` need. Idempotent."""
        ...


def masked(ids: list[str], mask: str | None) -> list[str]:
    """The ids that a `*_VISIBLE_DEVICES` mask leaves, in its order: indices, ids, or their unique beginnings.

    None leaves all. As the drivers do, it ends at the first entry that names nothing.
    """
    if mask is None:
        return list(ids)
    left: list[str] = []
    for entry in (part.strip() for part in mask.split(",")):
        if entry.isdigit():
            matches = ids[int(entry) : int(entry) + 1]
        else:
            matches = [device for device in ids if entry and device.startswith(entry)]
        if len(matches) != 1 or matches[0] in left:
            break
        left += matches
    return left
