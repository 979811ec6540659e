"""ROCm devices through the amdgpu driver's files in sysfs; no library is needed.

The driver tells what a device has and what is used; it does not tell here who uses it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from modelyard.core.types import DeviceKind
from modelyard.runtime.devices.nvml import GPU_RESERVE
from modelyard.runtime.devices.source import DeviceMemory, Found, masked


class Rocm:
    """The `Source` of ROCm devices below `root`; `mask` is an inherited ROCR_VISIBLE_DEVICES, `hip_mask` a
    HIP_VISIBLE_DEVICES (indices into what the first one leaves).

    A device is named as ROCR_VISIBLE_DEVICES names it: `GPU-` and its unique id. One that has none
    (integrated graphics) is no device to plan with.
    """

    kind = DeviceKind.ROCM

    def __init__(
        self, root: Path = Path("/sys/class/drm"), mask: str | None = None, hip_mask: str | None = None
    ) -> None:
        self._root = root
        self._mask = mask
        self._hip_mask = hip_mask
        self._folders: dict[str, Path] = {}

    def found(self) -> list[Found]:
        self._folders = self._scan()
        left = masked(masked(list(self._folders), self._mask), self._hip_mask)
        return [self._found(device) for device in left]

    def read(self, device: str, pids: Collection[int]) -> DeviceMemory:
        folder = self._folders[device]
        try:
            total = int((folder / "mem_info_vram_total").read_text())
            used = int((folder / "mem_info_vram_used").read_text())
        except ValueError as error:
            raise OSError(f"{folder}: {error}") from error
        return DeviceMemory(total, max(0, total - used))

    def close(self) -> None:
        return

    def _scan(self) -> dict[str, Path]:
        folders = {}
        cards = [card for card in self._root.glob("card*") if re.fullmatch(r"card\d+", card.name)]
        for card in sorted(cards, key=lambda card: int(card.name[4:])):
            try:
                unique = (card / "device" / "unique_id").read_text().strip().removeprefix("0x")
                (card / "device" / "mem_info_vram_total").read_text()
            except OSError:
                continue
            if unique.strip("0"):
                folders[f"GPU-{unique}"] = card / "device"
        return folders

    def _found(self, device: str) -> Found:
        total = self.read(device, ()).total
        try:
            name = (self._folders[device] / "product_name").read_text().strip()
        except OSError:
            name = ""
        return Found(device, name or "AMD GPU", total, min(GPU_RESERVE, total // 10))
