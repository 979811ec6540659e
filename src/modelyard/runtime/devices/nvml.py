"""CUDA devices through NVML, by UUID; a GPU in MIG mode is replaced by its MIG instances.

The device's own free and total are the truth. Bytes per process are attribution only: they are missing on
MIG, in containers and on unified memory. `Nvml` is the seam: tests put an in-memory driver behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import structlog

from modelyard.core.types import DeviceKind
from modelyard.errors import ConfigError
from modelyard.runtime.devices.source import DeviceGone, DeviceMemory, Found, masked

_log = structlog.get_logger(__name__)

# Errors after which NVIDIA says to reset the GPU, or the machine; most others are a program's own.
FATAL_XIDS = frozenset({46, 48, 62, 64, 79, 95, 110, 119, 120, 136, 140, 143, 155, 156, 158})
MOST_XIDS = 1000  # in one look
GPU_RESERVE = 256 << 20  # contexts that come and go, and what the driver itself takes meanwhile


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device; `parent` is the UUID of the physical GPU (its own, unless it is a MIG instance) and
    `card` the name of that, where it differs."""

    uuid: str
    name: str
    parent: str
    total: int
    card: str = ""


class Link(IntEnum):
    """How two GPUs reach each other, the fastest last."""

    FAR = 0
    BRIDGE = 1  # below one host bridge
    NVLINK = 2


class Nvml(Protocol):
    """The few calls that are needed of NVML. Each raises OSError when the driver does not answer, DeviceGone
    when it says that the GPU is lost."""

    def gpus(self) -> list[Gpu]: ...
    def link(self, one: str, other: str) -> Link: ...  # between two physical GPUs, by UUID
    def memory(self, uuid: str) -> tuple[int, int]: ...  # total, free
    def processes(self, uuid: str) -> Mapping[int, int]: ...  # bytes by pid, where known
    def xids(self) -> list[tuple[str, int]]: ...  # errors since it was asked last, by physical GPU
    def close(self) -> None: ...


class Cuda:
    """The `Source` of CUDA devices; `mask` is an inherited CUDA_VISIBLE_DEVICES, `order` an inherited
    CUDA_DEVICE_ORDER. `found` raises ConfigError for a mask whose numbers mean no certain device."""

    kind = DeviceKind.CUDA

    def __init__(self, nvml: Nvml, mask: str | None = None, order: str | None = None) -> None:
        self._nvml = nvml
        self._mask = mask
        self._order = order
        self._parents: dict[str, str] = {}  # the physical GPU of each device

    def found(self) -> list[Found]:
        gpus = self._nvml.gpus()
        self._parents = {gpu.uuid: gpu.parent for gpu in gpus}
        physical = list(dict.fromkeys(gpu.parent for gpu in gpus))
        self._check_numbers(gpus, physical)
        if self._mask is not None and "MIG-" in self._mask:
            visible = set(masked([gpu.uuid for gpu in gpus], self._mask))
            left = [gpu for gpu in gpus if gpu.uuid in visible]
        else:
            visible = set(masked(physical, self._mask))
            left = [gpu for gpu in gpus if gpu.parent in visible]
        groups = self._groups([gpu.uuid for gpu in left if gpu.uuid == gpu.parent])
        return [
            Found(gpu.uuid, gpu.name, gpu.total, min(GPU_RESERVE, gpu.total // 10), groups.get(gpu.uuid, ""))
            for gpu in left
        ]

    def _groups(self, gpus: list[str]) -> dict[str, str]:
        """The name of the group of each GPU that is linked to others: by NVLink, or else by being near."""
        groups: dict[str, str] = {}
        for level in (Link.NVLINK, Link.BRIDGE):
            for first in gpus:
                group = [first] if first not in groups else []
                for member in group:  # it grows by those that its members reach
                    others = (one for one in gpus if one not in groups and one not in group)
                    group += [one for one in others if self._nvml.link(member, one) >= level]
                if len(group) > 1:
                    name = f"{level.name.lower()}{len(set(groups.values()))}"
                    groups.update(dict.fromkeys(group, name))
        return groups

    def _check_numbers(self, gpus: list[Gpu], physical: list[str]) -> None:
        """NVML counts in the order of the bus; CUDA, unless told to do so too, counts the fastest card first,
        and which that is cannot be known here."""
        named = masked(physical, self._mask)
        by_number = self._mask is not None and any(part.strip().isdigit() for part in self._mask.split(","))
        alike = len({gpu.card or gpu.name for gpu in gpus}) <= 1
        if by_number and not alike and self._order != "PCI_BUS_ID" and 0 < len(named) < len(physical):
            cards = ", ".join(f"{gpu.parent} ({gpu.card or gpu.name})" for gpu in gpus)
            raise ConfigError(
                "CUDA_VISIBLE_DEVICES",
                f"{self._mask!r} names GPUs by number, but they differ and CUDA counts the fastest first: "
                f"name them by UUID, or set CUDA_DEVICE_ORDER=PCI_BUS_ID. There are {cards}",
            )

    def faults(self) -> dict[str, str]:
        """Devices whose GPU reported, since this was asked last, an error that nothing but a reset ends."""
        fatal = {gpu: f"XID {xid}" for gpu, xid in self._nvml.xids() if xid in FATAL_XIDS}
        return {device: fatal[gpu] for device, gpu in self._parents.items() if gpu in fatal}

    def read(self, device: str, pids: Collection[int]) -> DeviceMemory:
        total, free = self._nvml.memory(device)
        processes = self._nvml.processes(device)
        return DeviceMemory(total, free, {pid: processes[pid] for pid in pids if pid in processes})

    def close(self) -> None:
        self._nvml.close()


class PyNvml:
    """`Nvml` on the package nvidia-ml-py."""

    @classmethod
    def open(cls) -> PyNvml | None:
        """NVML, or None where there is no NVIDIA driver."""
        import pynvml  # noqa: PLC0415 - 20 ms that a machine with no configuration for it should not pay

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        return cls(pynvml)

    def __init__(self, pynvml: Any) -> None:
        self._nvml = pynvml
        self._handles: dict[str, Any] = {}
        self._events: Any = None
        self._open = True

    def gpus(self) -> list[Gpu]:
        found: list[Gpu] = []
        for index in range(self._ask(self._nvml.nvmlDeviceGetCount)):
            try:
                found += self._at(index)
            except OSError as error:  # it fell off the bus; the others serve
                _log.warning("devices.skipped", kind="cuda", index=index, error=str(error))
        return found

    def _at(self, index: int) -> list[Gpu]:
        """The physical GPU of this index, or its MIG instances."""
        handle = self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)
        self._listen(handle)
        parent = _text(self._ask(self._nvml.nvmlDeviceGetUUID, handle))
        card = _text(self._ask(self._nvml.nvmlDeviceGetName, handle))
        found = []
        for each in self._instances(handle) or [handle]:
            uuid = _text(self._ask(self._nvml.nvmlDeviceGetUUID, each))
            name = _text(self._ask(self._nvml.nvmlDeviceGetName, each))
            self._handles[uuid] = each
            # Without memory of its own (unified memory) it is no pool that could be planned with.
            with contextlib.suppress(OSError):
                found.append(Gpu(uuid, name, parent, self.memory(uuid)[0], card))
        return found

    def link(self, one: str, other: str) -> Link:
        pair = self._handles[one], self._handles[other]
        nvml = self._nvml
        try:
            if (
                self._ask(nvml.nvmlDeviceGetP2PStatus, *pair, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
                == nvml.NVML_P2P_STATUS_OK
            ):
                return Link.NVLINK
        except OSError:  # a driver or a card that knows no such thing
            pass
        try:
            near = self._ask(nvml.nvmlDeviceGetTopologyCommonAncestor, *pair) <= nvml.NVML_TOPOLOGY_HOSTBRIDGE
        except OSError:
            return Link.FAR
        return Link.BRIDGE if near else Link.FAR

    def memory(self, uuid: str) -> tuple[int, int]:
        info = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, self._handles[uuid])
        return int(info.total), int(info.free)

    def processes(self, uuid: str) -> Mapping[int, int]:
        try:
            running = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._handles[uuid])
        except OSError:
            return {}
        return {int(one.pid): int(one.usedGpuMemory) for one in running if one.usedGpuMemory}

    def _listen(self, handle: Any) -> None:
        nvml = self._nvml
        with contextlib.suppress(OSError):  # an old card; of some, only the administrator is told
            if self._events is None:
                self._events = self._ask(nvml.nvmlEventSetCreate)
            self._ask(nvml.nvmlDeviceRegisterEvents, handle, nvml.nvmlEventTypeXidCriticalError, self._events)

    def xids(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        with contextlib.suppress(OSError):  # that there is none more is an error, too
            while self._events is not None and len(found) < MOST_XIDS:
                event = self._ask(self._nvml.nvmlEventSetWait, self._events, 0)
                uuid = _text(self._ask(self._nvml.nvmlDeviceGetUUID, event.device))
                found.append((uuid, int(event.eventData)))
        return found

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(OSError):
                if self._events is not None:
                    self._ask(self._nvml.nvmlEventSetFree, self._events)
            with contextlib.suppress(OSError):
                self._ask(self._nvml.nvmlShutdown)

    def _instances(self, handle: Any) -> list[Any]:
        """The MIG instances of a GPU; empty when it is not in MIG mode."""
        try:
            current, _ = self._ask(self._nvml.nvmlDeviceGetMigMode, handle)
            count = self._ask(self._nvml.nvmlDeviceGetMaxMigDeviceCount, handle) if current else 0
        except OSError:
            return []
        instances = []
        for index in range(count):
            with contextlib.suppress(OSError):
                instances.append(self._ask(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index))
        return instances

    def _ask(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._nvml.NVMLError_GpuIsLost as error:
            raise DeviceGone(f"NVML: {error}") from error
        except self._nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
