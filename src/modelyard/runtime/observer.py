"""The observer: looks at the devices, says what it saw, and keeps what was learned of each version's memory.

Owned by the driver. Looking happens in a thread (NVML and /proc are slow); the event loop only posts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

import structlog

from modelyard.core.events import DeviceLost, DeviceSeen, Event, FenceAsked, Learned, Observed
from modelyard.core.placement import devices_of
from modelyard.core.state import Instance
from modelyard.core.types import Device, DeviceKind, Need, Rung, Share
from modelyard.core.units import short
from modelyard.engines.base import Files
from modelyard.launchers.base import Launcher
from modelyard.runtime.devices import Devices, Seen
from modelyard.runtime.entries import Entry
from modelyard.runtime.footprints import Footprint, Footprints, Key, key_of
from modelyard.runtime.timing import Timing

log = structlog.get_logger(__name__)

GAP_TOLERANCE = 64 << 20  # bytes that a driver may keep for itself after an exit
GAP_POLL = 0.02
NOTHING: Mapping[str, int] = MappingProxyType({})


class Observer:
    def __init__(
        self,
        devices: Devices,
        launcher: Launcher,
        footprints: Footprints,
        post: Callable[[Event], None],
        instances: Callable[[], Iterable[Instance]],
    ) -> None:
        self._devices = devices
        self._launcher = launcher
        self._footprints = footprints
        self._post = post
        self._instances = instances
        self._compared: set[Key] = set()  # footprints whose estimate was compared with what was measured

    async def look(self, *, ended: str | None = None) -> None:
        """Look at every device and say what was seen. An instance that has `ended` uses nothing any more,
        though it is not released yet."""
        none = {ended: 0} if ended is not None else {}
        for device, why in (await asyncio.to_thread(self._devices.faults)).items():
            self._post(DeviceLost(device, why))
            self._post(FenceAsked(device, f"{why}: reset it, then unfence it"))
        for seen in await self._look_at_all():
            if seen.lost:
                self._post(DeviceLost(seen.device, seen.lost))
                continue
            self._post(DeviceSeen(seen.device, seen.total, seen.free, {**seen.ours, **none}))

    async def measure(self, instance: str) -> Mapping[str, int]:
        """The instance's own bytes per device now, where they can be measured: what is in use on a GPU that
        does not tell of processes says too little of one of them."""
        seen = await asyncio.to_thread(self._look_now, [instance])
        return {one.device: one.ours[instance] for one in seen if instance in one.ours}

    def keep(
        self, entry: Entry, instance: Instance, own: Mapping[str, int], load_seconds: float | None = None
    ) -> None:
        """Keep what was measured of an instance, if anything was, and how long it loaded, and tell the
        scheduler."""
        need, measured = instance.version.need, any(own.values())
        if need is None or entry.files is None or not (measured or load_seconds is not None):
            return
        key = self._key(entry, entry.files)
        estimate = entry.engine.need(entry.spec, entry.files)
        if measured:
            self._post(Observed(instance.id, own))
            self._compare(entry, key, sum(share.bytes for share in estimate.shares), sum(own.values()))
        placed = zip(estimate.shares, devices_of(estimate.shares, instance.placement), strict=True)
        sizes = [_at_work(share, own.get(at or "", 0)) for share, at in placed]
        footprint = self._footprints.observe(key, sizes, need=estimate, load_seconds=load_seconds)
        learned = self._learned(entry, footprint, estimate) if measured else need
        learned = replace(learned, rungs=self._rungs(entry, entry.files))
        usual = footprint.load
        self._post(Learned(entry.spec.version, learned, usual.median if usual is not None else None))

    def keep_asleep(
        self,
        entry: Entry,
        instance: Instance,
        rung: str,
        own: Mapping[str, int] = NOTHING,
        seconds: float | None = None,
    ) -> None:
        """Keep what an instance held when it slept on this rung, or how long it took to wake, and tell the
        scheduler."""
        need, files = instance.version.need, entry.files
        found = next((each for each in need.rungs if each.name == rung), None) if need is not None else None
        if need is None or files is None or found is None:
            return
        asleep = Need(found.shares)
        where = devices_of(asleep.shares, instance.awake or instance.placement)
        sizes = [own.get(device or "", 0) for device in where]
        self._footprints.observe(self._key(entry, files, rung), sizes, need=asleep, load_seconds=seconds)
        learned = replace(need, rungs=self._rungs(entry, files))
        self._post(Learned(entry.spec.version, learned, instance.version.load_seconds))

    def _rungs(self, entry: Entry, files: Files) -> tuple[Rung, ...]:
        """How it can sleep, as was measured or as its engine says."""
        rungs = []
        for rung in entry.engine.rungs(entry.spec, files):
            footprint = self._footprints.get(self._key(entry, files, rung.name)) or Footprint()
            learned = footprint.learned(Need(rung.shares, known=False))
            seconds = None if footprint.load is None else footprint.load.median
            rungs.append(Rung(rung.name, learned.shares, learned.known, seconds, rung.first))
        return tuple(rungs)

    def _compare(self, entry: Entry, key: Key, estimated: int, measured: int) -> None:
        """Say once how far the first estimate was from what an instance really takes of its own."""
        if key not in self._compared:
            self._compared.add(key)
            error = f"{100 * (estimated / measured - 1):+.1f} %"
            log.info(
                "memory.measured",
                model=entry.spec.model,
                estimated=short(estimated),
                measured=short(measured),
                error=error,
            )

    def keep_first_token(self, entry: Entry, seconds: float) -> None:
        """Keep how soon the first streamed answer of a new instance began."""
        if entry.files is not None:
            self._footprints.observe(self._key(entry, entry.files), (), first_token=seconds)

    def recall(self, entry: Entry, *, among: Collection[Key] | None = None) -> None:
        """Tell the scheduler what is known of a version from an earlier life or other servers, if it is one
        of these keys (default: any)."""
        if entry.files is None:
            return
        key = self._key(entry, entry.files)
        if self._footprints.get(key) is not None and (among is None or key in among):
            need = self.estimate(entry, entry.files)
            self._post(Learned(entry.spec.version, need, self.usual_load(entry)))

    def _key(self, entry: Entry, files: Files, rung: str = "") -> Key:
        """What its footprints are kept by. One that was learned on one kind of devices says nothing of
        another."""
        kinds = {device.kind.value for device in self._devices.all if _may_use(entry, device)}
        return key_of(entry.spec, files, "+".join(sorted(kinds)), rung)

    async def baseline(self, instance: Instance) -> Mapping[str, int]:
        """Bytes in use on each GPU of the instance's placement that are not its own: what must be left in
        use once it is gone. Empty when it is on no GPU."""
        gpus = self._gpus(instance)
        if not gpus:
            return {}
        return {
            seen.device: self._others(seen, instance) - seen.ours.get(instance.id, gpus[seen.device])
            for seen in await self._look()
            if seen.device in gpus
        }

    async def given_back(
        self, instance: Instance, most: Mapping[str, int], deadline: float
    ) -> Mapping[str, int]:
        """Wait until it holds no more than `most` bytes of its own on these devices, at the longest until the
        loop's time is `deadline`. Returns what it holds."""
        loop = asyncio.get_running_loop()
        while True:
            held = await self.measure(instance.id)
            enough = all(held.get(device, 0) <= size for device, size in most.items())
            if enough or loop.time() + GAP_POLL >= deadline:
                return held
            await asyncio.sleep(GAP_POLL)

    async def gap(self, instance: Instance, baseline: Mapping[str, int], cap: float) -> Mapping[str, int]:
        """Wait until the GPUs have given back what the instance held, at most `cap` seconds.

        Returns the bytes per device that are still missing. Host RAM and declared pools are free with the
        process itself.
        """
        if not baseline:
            return {}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + cap
        while True:
            used = {seen.device: self._others(seen, instance) for seen in await self._look()}
            missing = {
                device: used[device] - before
                for device, before in baseline.items()
                if used.get(device, 0) - before > GAP_TOLERANCE
            }
            if not missing or loop.time() >= deadline:
                return missing
            await asyncio.sleep(GAP_POLL)

    def estimate(self, entry: Entry, files: Files) -> Need:
        """What an instance takes with these files: what was learned from earlier runs of the same files and
        parameters, else what the engine says."""
        need = entry.engine.need(entry.spec, files)
        footprint = self._footprints.get(self._key(entry, files))
        learned = need if footprint is None else self._learned(entry, footprint, need)
        return replace(learned, rungs=self._rungs(entry, files))

    def timings(self, entry: Entry) -> tuple[Timing | None, Timing | None]:
        """How long loads of the same files and parameters usually took here, and how soon the first answers
        after them began; None while unknown."""
        if entry.files is None:
            return None, None
        footprint = self._footprints.get(self._key(entry, entry.files))
        return (None, None) if footprint is None else (footprint.load, footprint.first_token)

    def usual_load(self, entry: Entry) -> float | None:
        """Seconds that loads of the same files and parameters usually took here; None while unknown."""
        load, _ = self.timings(entry)
        return None if load is None else load.median

    def _learned(self, entry: Entry, footprint: Footprint, estimate: Need) -> Need:
        """What was learned. Its margin never asks for more than a device has: a model that ran there, and
        nearly filled it, would be refused from then on. Nor does what came with its work, which goes by what
        is free."""
        learned = footprint.learned(estimate)
        if learned is estimate:
            return estimate
        bounded = [
            max(0 if share.later else observed, min(share.bytes, self._most(entry, share)))
            if observed
            else share.bytes
            for share, observed in zip(learned.shares, footprint.bytes, strict=True)
        ]
        shares = zip(learned.shares, bounded, strict=True)
        return replace(learned, shares=tuple(replace(share, bytes=size) for share, size in shares))

    def _most(self, entry: Entry, share: Share) -> int:
        """The bytes of its own that a share can have at most, on the largest device that may hold it."""
        budgets = [
            device.budget
            for device in self._devices.all
            if device.id == share.on
            or (share.on == "accelerator" and device.kind is not DeviceKind.RAM and _may_use(entry, device))
        ]
        return max(budgets, default=0) - sum(share.mapped.values())

    def _gpus(self, instance: Instance) -> dict[str, int]:
        """The GPUs of its placement, with the bytes reserved there."""
        kinds = {device.id: device.kind for device in self._devices.all}
        gpu = (DeviceKind.CUDA, DeviceKind.ROCM)
        return {charge.device: charge.bytes for charge in instance.placement if kinds[charge.device] in gpu}

    def _others(self, seen: Seen, instance: Instance) -> int:
        """Bytes in use on the device, without what other instances of ours hold."""
        return seen.total - seen.free - sum(seen.ours.values()) + seen.ours.get(instance.id, 0)

    async def _look(self) -> list[Seen]:
        """The devices that are there."""
        return [seen for seen in await self._look_at_all() if not seen.lost]

    async def _look_at_all(self) -> list[Seen]:
        names = [instance.id for instance in self._instances()]
        return await asyncio.to_thread(self._look_now, names)

    def _look_now(self, names: list[str]) -> list[Seen]:
        seen = self._devices.look({name: self._launcher.pids(name) for name in names})
        told = {name: held for name in names if (held := self._launcher.held(name)) is not None}
        if not told:
            return seen
        return [
            replace(one, ours={**one.ours, **{name: held.get(one.device, 0) for name, held in told.items()}})
            for one in seen
        ]


def _may_use(entry: Entry, device: Device) -> bool:
    """Whether its spec names the device; one that names none may use every accelerator."""
    devices = entry.spec.devices
    return device.id in devices if devices else device.kind is not DeviceKind.RAM


def _at_work(share: Share, own: int) -> int:
    """What it takes at work, by what was measured of it, which may have been before; 0 where nothing was."""
    return max(own, min(own + share.later, share.bytes)) if own else 0
