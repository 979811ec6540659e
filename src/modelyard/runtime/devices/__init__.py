"""The devices of this machine: which there are, what they hold now, and how an engine is pinned to some.

Made by compose from configuration and environment; the driver looks (in a thread: drivers and /proc are
slow) and pins. It measures and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from modelyard.config import DeviceSetting
from modelyard.core.types import Device, DeviceKind, Placement
from modelyard.errors import ConfigError
from modelyard.runtime.devices.declared import POOLS, Declared
from modelyard.runtime.devices.nvml import Cuda, PyNvml
from modelyard.runtime.devices.ram import RAM, Ram, private_bytes
from modelyard.runtime.devices.rocm import Rocm
from modelyard.runtime.devices.source import DeviceGone, DeviceMemory, Found, Source

__all__ = ["RAM", "DeviceSetting", "Devices", "Seen"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """A device's own truth now, in bytes, and what each instance was found to hold there. An instance that
    is not in `ours` could not be measured on this device. `lost`: why it is gone, and nothing is known."""

    device: str
    total: int
    free: int
    ours: Mapping[str, int] = field(default_factory=dict)
    lost: str = ""


class Devices:
    """All devices that instances may be placed on; `all` starts with host RAM."""

    @classmethod
    def discover(cls, settings: Mapping[str, DeviceSetting], environ: Mapping[str, str]) -> Devices:
        """Find the devices, within the masks of `environ`. Raises ConfigError (`devices.<id>`) for a setting
        that names a device which is absent or masked, or asks for more than it has, and for a mask
        (`CUDA_VISIBLE_DEVICES`) that means no certain device."""
        nvml = PyNvml.open()
        sources: list[Source] = [Ram()]
        if nvml is not None:
            mask, order = environ.get("CUDA_VISIBLE_DEVICES"), environ.get("CUDA_DEVICE_ORDER")
            sources.append(Cuda(nvml, mask, order))
        hip_mask = environ.get("HIP_VISIBLE_DEVICES")
        sources.append(Rocm(mask=environ.get("ROCR_VISIBLE_DEVICES"), hip_mask=hip_mask))
        return cls(settings, sources)

    def __init__(
        self, settings: Mapping[str, DeviceSetting], sources: Sequence[Source], pools: Path | None = None
    ) -> None:
        """From sources that are known already; `pools` is where declared devices get their folder. The
        sources are closed when this raises."""
        self._sources = list(sources)
        self._declared: Declared | None = None
        declared = {name: one.memory or 0 for name, one in settings.items() if one.kind == "declared"}
        scales = {name: settings[name].scale for name in declared}
        try:
            found = [(source, one) for source in self._sources for one in source.found()]
            _check(settings, [one for _, one in found])
            if declared:
                self._declared = Declared(declared, pools, scales)
                self._sources.append(self._declared)
                found += [(self._declared, one) for one in self._declared.found()]
            self._found = [(source.kind, one) for source, one in found]
            self.all = tuple(_device(kind, one, settings.get(one.id)) for kind, one in self._found)
        except BaseException:
            self.close()
            raise
        self._source_of = {one.id: source for source, one in found}

    def changed(self, settings: Mapping[str, DeviceSetting]) -> tuple[Device, ...]:
        """Those devices that other settings make different from now, as they would be. The declared ones are
        the same. Raises ConfigError (`devices.<id>`), as `discover` does."""
        _check(settings, [one for kind, one in self._found if kind is not DeviceKind.DECLARED])
        others = []
        for (kind, one), device in zip(self._found, self.all, strict=True):
            setting = settings.get(one.id)
            pooled = kind is DeviceKind.DECLARED and setting is not None and setting.memory
            other = _device(kind, replace(one, total=pooled) if pooled else one, setting)
            if other != device:
                others.append(other)
        return tuple(others)

    def take(self, changed: Sequence[Device]) -> None:
        """Have these be as `changed` said."""
        others = {device.id: device for device in changed}
        self.all = tuple(others.get(device.id, device) for device in self.all)
        for device in changed:
            if self._declared is not None and device.kind is DeviceKind.DECLARED:
                self._declared.resize(device.id, device.total)

    def look(self, pids: Mapping[str, Sequence[int]]) -> list[Seen]:
        """Every device's memory now; `pids` are the live processes of each instance. Blocks for some
        milliseconds. A device that is gone is told as lost; one that only does not answer is left out, and
        said."""
        every = {pid for processes in pids.values() for pid in processes}
        readings: dict[str, DeviceMemory] = {}
        lost: list[Seen] = []
        for device, source in self._source_of.items():
            try:
                readings[device] = source.read(device, every)
            except DeviceGone as error:
                lost.append(Seen(device, 0, 0, lost=str(error)))
            except OSError as error:
                _log.warning("devices.no_answer", device=device, error=str(error))
        return lost + [
            Seen(device, reading.total, reading.free, self._ours(device, readings, pids))
            for device, reading in readings.items()
        ]

    def faults(self) -> dict[str, str]:
        """What drivers reported of devices since this was asked last, where these must not be used before
        an operator has seen to them. Blocks as `look` does."""
        asked = (source.faults() for source in self._sources if isinstance(source, Cuda))
        return {device: why for found in asked for device, why in found.items()}

    def private_bytes(self, pids: Sequence[int]) -> int:
        """Anonymous and shared host memory of these processes together, in bytes."""
        return sum(private_bytes(pid) for pid in pids)

    def environment(self, placement: Placement) -> dict[str, str]:
        """What pins an engine to its placement: masks by UUID (empty ones when it gets no GPU), and the
        folder of declared pools."""
        kinds = {device.id: device.kind for device in self.all}
        used = list(dict.fromkeys(charge.device for charge in placement))
        masks = {
            "CUDA_VISIBLE_DEVICES": DeviceKind.CUDA,
            "ROCR_VISIBLE_DEVICES": DeviceKind.ROCM,
        }
        environment = {
            name: ",".join(device for device in used if kinds[device] is kind) for name, kind in masks.items()
        }
        if self._declared is not None:
            environment[POOLS] = str(self._declared.pools)
        return environment

    def close(self) -> None:
        """Let go of the drivers and remove the declared pools. Idempotent."""
        for source in self._sources:
            source.close()

    def _ours(
        self, device: str, readings: Mapping[str, DeviceMemory], pids: Mapping[str, Sequence[int]]
    ) -> dict[str, int]:
        held = readings[device].held
        ours = {
            instance: sum(held.get(pid, 0) for pid in processes)
            for instance, processes in pids.items()
            if any(pid in held for pid in processes)
        }
        if device == RAM and self._declared is not None:
            # Pool files lie in shared memory: what counts as a declared device's is not RAM as well.
            declared = [one.id for one in self.all if one.kind is DeviceKind.DECLARED and one.id in readings]
            for instance, size in ours.items():
                pretended = sum(
                    readings[pool].held.get(pid, 0) // self._declared.scale(pool)
                    for pool in declared
                    for pid in pids[instance]
                )
                ours[instance] = max(0, size - pretended)
        return ours


def _check(settings: Mapping[str, DeviceSetting], found: Sequence[Found]) -> None:
    totals = {one.id: one.total for one in found}
    for name, setting in settings.items():
        path = f"devices.{name}"
        if setting.kind == "declared":
            if name in totals:
                raise ConfigError(path, "is a real device of this machine; declare another name")
            if "/" in name or name.startswith("."):
                raise ConfigError(
                    path, "the name of a declared device is a folder's name: no `/`, no first `.`"
                )
        elif name not in totals:
            raise ConfigError(
                path, f"there is no such device, or a mask hides it; visible are {', '.join(sorted(totals))}"
            )
        elif setting.memory is not None and setting.memory > totals[name]:
            raise ConfigError(
                path, f"memory of {setting.memory} bytes is more than the device has ({totals[name]} bytes)"
            )


def _device(kind: DeviceKind, found: Found, setting: DeviceSetting | None) -> Device:
    setting = setting or DeviceSetting()
    reserve = found.reserve if setting.reserve is None else setting.reserve
    if reserve >= found.total:
        raise ConfigError(
            f"devices.{found.id}", f"a reserve of {reserve} bytes leaves nothing of {found.total} bytes"
        )
    budget = found.total - reserve if setting.memory is None else setting.memory
    if kind is DeviceKind.DECLARED:
        budget = found.total - reserve
    group = setting.group or found.group
    return Device(found.id, kind, found.total, budget, found.name, reserve, group, setting.exclusive)
