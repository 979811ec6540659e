"""Devices: discovery, settings, pinning, and what is seen; with real processes and real folder trees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from modelyard.config import ConfigErrors, DeviceSetting, load
from modelyard.core.memory import DeviceLedger
from modelyard.core.placement import devices_of, place
from modelyard.core.types import Charge, DeviceKind, Need, NoFit, Share, Spec
from modelyard.errors import ConfigError
from modelyard.runtime.devices import Devices
from modelyard.runtime.devices.declared import LOST
from modelyard.runtime.devices.nvml import GPU_RESERVE, Cuda, Gpu, Link, PyNvml
from modelyard.runtime.devices.ram import Ram, default_reserve, private_bytes
from modelyard.runtime.devices.rocm import Rocm
from modelyard.runtime.devices.source import DeviceGone, masked
from modelyard.servers import fake_memory

MIB, GIB = 1 << 20, 1 << 30


class Driver:
    """An NVML in memory: two GPUs of 24 GiB, or what it is given."""

    def __init__(self, gpus: list[Gpu] | None = None) -> None:
        self.list = gpus or [
            Gpu(f"GPU-{letter}", "Card", f"GPU-{letter}", 24 * GIB) for letter in ("aaaa", "bbbb")
        ]
        self.free = {gpu.uuid: gpu.total for gpu in self.list}
        self.by_pid: dict[str, dict[int, int]] = {}
        self.lost: set[str] = set()
        self.gone: set[str] = set()
        self.links: dict[frozenset[str], Link] = {}
        self.reported: list[tuple[str, int]] = []
        self.closed = 0

    def xids(self) -> list[tuple[str, int]]:
        reported, self.reported = self.reported, []
        return reported

    def gpus(self) -> list[Gpu]:
        return self.list

    def link(self, one: str, other: str) -> Link:
        return self.links.get(frozenset((one, other)), Link.FAR)

    def memory(self, uuid: str) -> tuple[int, int]:
        if uuid in self.gone:
            raise DeviceGone("NVML: GPU is lost")
        if uuid in self.lost:
            raise OSError("NVML: GPU is lost")
        return next(gpu.total for gpu in self.list if gpu.uuid == uuid), self.free[uuid]

    def processes(self, uuid: str) -> Mapping[int, int]:
        return self.by_pid.get(uuid, {})

    def close(self) -> None:
        self.closed += 1


@contextmanager
def devices(
    driver: Driver | None = None,
    mask: str | None = None,
    pools: Path | None = None,
    **settings: DeviceSetting,
) -> Iterator[Devices]:
    found = Devices(
        {name.replace("_", "-"): setting for name, setting in settings.items()},
        [Ram(), Cuda(driver or Driver(), mask)],
        pools,
    )
    try:
        yield found
    finally:
        found.close()


# -- discovery and settings -----------------------------------------------------------------------------


def test_this_machine_has_host_memory() -> None:
    found = Devices.discover({}, {})
    ram = found.all[0]
    assert (ram.id, ram.kind) == ("ram", DeviceKind.RAM)
    assert 0 < ram.budget == ram.total - ram.reserve
    found.close()


def test_gpus_have_a_reserve_and_a_budget() -> None:
    with devices() as found:
        assert [device.id for device in found.all] == ["ram", "GPU-aaaa", "GPU-bbbb"]
        assert found.all[1].budget == 24 * GIB - GPU_RESERVE


def test_a_setting_sets_budget_and_reserve() -> None:
    with devices(GPU_aaaa=DeviceSetting(memory=8 * GIB, reserve=GIB)) as found:
        assert (found.all[1].budget, found.all[1].reserve) == (8 * GIB, GIB)


def test_settings_change_later_and_only_what_differs_is_told(tmp_path: Path) -> None:
    pool = DeviceSetting(memory=100, kind="declared")
    with devices(pools=tmp_path, pool=pool, GPU_aaaa=DeviceSetting(memory=8 * GIB)) as found:
        before = found.all
        settings = {"GPU-bbbb": DeviceSetting(memory=5 * GIB), "pool": replace(pool, memory=200)}
        changed = found.changed(settings)
        assert found.all == before
        assert {device.id: (device.total, device.budget) for device in changed} == {
            "GPU-aaaa": (24 * GIB, 24 * GIB - GPU_RESERVE),
            "GPU-bbbb": (24 * GIB, 5 * GIB),
            "pool": (200, 200),
        }
        found.take(changed)
        assert [device.id for device in found.all] == [device.id for device in before]
        assert found.changed(settings) == ()
        folder = Path(found.environment(())["MODELYARD_POOLS"])
        assert (folder / "pool" / "size").read_text() == "200"
        (seen,) = (one for one in found.look({}) if one.device == "pool")
        assert (seen.total, seen.free) == (200, 200)
        with pytest.raises(ConfigError, match=r"devices\.GPU-bbbb: memory of .* is more than the device has"):
            found.changed({"GPU-bbbb": DeviceSetting(memory=99 * GIB), "pool": pool})


@pytest.mark.parametrize(
    ("mask", "left"),
    [
        (None, ["GPU-aaaa", "GPU-bbbb"]),
        ("1", ["GPU-bbbb"]),
        ("1,0", ["GPU-bbbb", "GPU-aaaa"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("0,7,1", ["GPU-aaaa"]),
        ("0,0", ["GPU-aaaa"]),
    ],
)
def test_an_inherited_mask_limits_discovery(mask: str | None, left: list[str]) -> None:
    assert masked(["GPU-aaaa", "GPU-bbbb"], mask) == left
    with devices(mask=mask) as found:
        assert {device.id for device in found.all} == {"ram", *left}


@pytest.mark.parametrize(
    ("mask", "left"),
    [(None, ["MIG-1", "MIG-2", "GPU-b"]), ("0", ["MIG-1", "MIG-2"]), ("MIG-2", ["MIG-2"]), ("1", ["GPU-b"])],
)
def test_mig_instances_stand_for_their_gpu(mask: str | None, left: list[str]) -> None:
    gpus = [Gpu(f"MIG-{n}", "m", "GPU-a", GIB, "g") for n in (1, 2)] + [Gpu("GPU-b", "g", "GPU-b", GIB)]
    with devices(Driver(gpus), mask) as found:
        assert [device.id for device in found.all[1:]] == left


MIXED = [Gpu("GPU-a", "Slow", "GPU-a", GIB), Gpu("GPU-b", "Fast", "GPU-b", GIB)]


@pytest.mark.parametrize("mask", ["0", "1", " 1 ", "0,7", "GPU-b,0,0"])
def test_a_mask_of_numbers_is_refused_where_they_mean_no_certain_card(mask: str) -> None:
    """CUDA counts the fastest card first, NVML counts along the bus."""
    driver = Driver(MIXED)
    if mask == "GPU-b,0,0":
        driver.list = [*MIXED, Gpu("GPU-c", "Fast", "GPU-c", GIB)]
    with pytest.raises(ConfigError, match=r"CUDA_VISIBLE_DEVICES: .* by number.*GPU-a \(Slow\)"):
        Devices({}, [Ram(), Cuda(driver, mask)])
    assert driver.closed == 1
    found = Devices({}, [Ram(), Cuda(driver, mask, "PCI_BUS_ID")])
    assert len(found.all) == (3 if mask == "GPU-b,0,0" else 2)


@pytest.mark.parametrize("mask", [None, "", "-1", "0,1", "GPU-b"])
def test_other_masks_are_certain_on_any_cards(mask: str | None) -> None:
    with devices(Driver(MIXED), mask) as found:
        assert len(found.all) - 1 == {None: 2, "0,1": 2, "GPU-b": 1}.get(mask, 0)


def test_mig_instances_of_one_kind_of_card_are_alike() -> None:
    gpus = [Gpu(f"MIG-{n}", f"A100 MIG {n}g", f"GPU-{n}", GIB, "A100") for n in (1, 2)]
    with devices(Driver(gpus), "1") as found:
        assert [device.id for device in found.all[1:]] == ["MIG-2"]


class Library:
    """The part of pynvml that is called, for three cards of which the second is off the bus."""

    class NVMLError(Exception):
        pass

    class NVMLError_GpuIsLost(NVMLError):
        pass

    nvmlEventTypeXidCriticalError = 8

    def __init__(self) -> None:
        self.sets = 0
        self.events: list[tuple[int, int]] = []
        self.listens: list[int] = []

    def nvmlEventSetCreate(self) -> str:
        self.sets += 1
        return "events"

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: str) -> None:
        assert (kinds, events) == (8, "events")
        if handle == 2:
            raise self.NVMLError("Not Supported")
        self.listens.append(handle)

    def nvmlEventSetWait(self, events: str, milliseconds: int) -> SimpleNamespace:
        assert (events, milliseconds) == ("events", 0)
        if not self.events:
            raise self.NVMLError("Timeout")
        device, data = self.events.pop(0)
        return SimpleNamespace(device=device, eventData=data)

    def nvmlEventSetFree(self, events: str) -> None:
        self.sets -= 1

    def nvmlShutdown(self) -> None:
        assert self.sets == 0

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 1:
            raise self.NVMLError_GpuIsLost("GPU is lost")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"Card"

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=GIB, free=GIB)


def test_a_gpu_off_the_bus_is_skipped_and_said() -> None:
    with capture_logs() as said:
        assert [gpu.uuid for gpu in PyNvml(Library()).gpus()] == ["GPU-0", "GPU-2"]
    assert [(line["index"], line["error"]) for line in said] == [(1, "NVML: GPU is lost")]


def test_the_errors_that_nvml_reports_are_read_once() -> None:
    library = Library()
    nvml = PyNvml(library)
    assert nvml.xids() == [], "nobody asked for the GPUs yet"
    nvml.gpus()
    assert library.listens == [0], "others do not report errors"
    library.events = [(0, 13), (0, 79), (2, 48)]
    assert nvml.xids() == [("GPU-0", 13), ("GPU-0", 79), ("GPU-2", 48)]
    assert nvml.xids() == []
    library.events = [(0, 31)] * 2000
    assert len(nvml.xids()) == 1000
    nvml.close()
    assert library.sets == 0


def test_the_package_has_these_calls() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in (name for name in vars(Library) if name.startswith(("nvmlEvent", "nvmlDeviceRegister"))):
        assert hasattr(pynvml, name), name
    assert pynvml.nvmlEventTypeXidCriticalError == Library.nvmlEventTypeXidCriticalError


def test_a_gpu_that_reports_a_fatal_error_is_at_fault_with_its_mig_instances() -> None:
    gpus = [Gpu(f"MIG-{n}", "m", "GPU-a", GIB, "g") for n in (1, 2)] + [Gpu("GPU-b", "g", "GPU-b", GIB)]
    driver = Driver(gpus)
    with devices(driver) as found:
        driver.reported = [("GPU-a", 13), ("GPU-b", 31)]
        assert found.faults() == {}, "a program's own errors"
        driver.reported = [("GPU-a", 48), ("GPU-a", 45), ("GPU-x", 79)]
        assert found.faults() == {"MIG-1": "XID 48", "MIG-2": "XID 48"}
        assert found.faults() == {}


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("GPU-cccc", DeviceSetting(), r"devices\.GPU-cccc: there is no such device.*GPU-aaaa, ram"),
        ("GPU-bbbb", DeviceSetting(), r"devices\.GPU-bbbb: there is no such device, or a mask hides it"),
        ("GPU-aaaa", DeviceSetting(memory=25 * GIB), r"devices\.GPU-aaaa: memory of .* is more than"),
        ("GPU-aaaa", DeviceSetting(reserve=24 * GIB), r"devices\.GPU-aaaa: a reserve of .* leaves nothing"),
        ("ram", DeviceSetting(1, None, "declared"), r"devices\.ram: is a real device"),
        ("a/b", DeviceSetting(1, None, "declared"), r"devices\.a/b: .* a folder's name"),
    ],
)
def test_a_setting_that_cannot_be_met_stops_the_start(
    name: str, setting: DeviceSetting, message: str, tmp_path: Path
) -> None:
    driver = Driver()
    with pytest.raises(ConfigError, match=message):
        Devices({name: setting}, [Ram(), Cuda(driver, "0")], tmp_path)
    assert driver.closed == 1
    assert list(tmp_path.iterdir()) == []


# -- pinning --------------------------------------------------------------------------------------------


def test_engines_are_pinned_by_uuid(tmp_path: Path) -> None:
    rocm = Rocm(amd(tmp_path))
    found = Devices({}, [Ram(), Cuda(Driver()), rocm])
    assert found.environment((Charge("GPU-bbbb", 1), Charge("ram", 1), Charge("GPU-aaaa", 1))) == {
        "CUDA_VISIBLE_DEVICES": "GPU-bbbb,GPU-aaaa",
        "ROCR_VISIBLE_DEVICES": "",
    }
    assert found.environment((Charge("GPU-9a", 1),)) == {
        "CUDA_VISIBLE_DEVICES": "",
        "ROCR_VISIBLE_DEVICES": "GPU-9a",
    }
    assert set(found.environment((Charge("ram", 1),)).values()) == {""}


@pytest.mark.parametrize("sizes", [(4, 12), (12, 4)])
def test_the_mask_is_in_the_order_of_the_shares(sizes: tuple[int, int]) -> None:
    """An engine gives its first part to the first device of the mask: the books must say the same."""
    with devices(Driver()) as found:
        accounts = {device.id: DeviceLedger(device) for device in found.all}
        shares = tuple(Share("accelerator", size * GIB) for size in sizes)
        spec = Spec("a", "d" * 12, "llamacpp")
        placement = place(Need(shares), spec, accounts, lambda device: accounts[device].free)
        assert not isinstance(placement, NoFit)
        booked = {charge.device: charge.bytes for charge in placement}
        first, second = found.environment(placement)["CUDA_VISIBLE_DEVICES"].split(",")
        assert (booked[first], booked[second]) == (sizes[0] * GIB, sizes[1] * GIB)
        assert devices_of(shares, placement) == [first, second], "what is learned belongs to its share"


def test_declared_devices_are_told_by_their_folder(tmp_path: Path) -> None:
    with devices(pools=tmp_path, gpu0=DeviceSetting(24 * GIB, None, "declared")) as found:
        pools = Path(found.environment((Charge("gpu0", 1),))["MODELYARD_POOLS"])
        assert pools.is_relative_to(tmp_path)
        assert (pools / "gpu0" / "size").read_text() == str(24 * GIB)
    assert list(tmp_path.iterdir()) == []


# -- looking --------------------------------------------------------------------------------------------


def test_gpu_memory_is_attributed_to_instances_where_it_is_known() -> None:
    driver = Driver()
    driver.free["GPU-aaaa"] = 10 * GIB
    driver.by_pid["GPU-aaaa"] = {11: 3 * GIB, 12: 1 * GIB, 99: 10 * GIB}
    with devices(driver) as found:
        seen = {one.device: one for one in found.look({"one": [11, 12], "two": [13]})}
    assert seen["GPU-aaaa"].free == 10 * GIB
    assert seen["GPU-aaaa"].ours == {"one": 4 * GIB}
    assert seen["GPU-bbbb"].ours == {}


def test_a_lost_gpu_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    driver = Driver()
    with devices(driver) as found:
        driver.lost.add("GPU-aaaa")
        assert [one.device for one in found.look({})] == ["ram", "GPU-bbbb"]
    assert "GPU is lost" in capsys.readouterr().out


HOLDER = """
import fcntl, mmap, os, sys
folder, size = sys.argv[1], int(sys.argv[2])
keep = []
for n in range(2):
    fd = os.open(f'{folder}/{os.getpid()}-{n}.mem', os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    memory[:] = b'x' * size
    keep.append(memory)
own = bytearray(b'y') * size
print('up', flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, size: int) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", HOLDER, str(folder), str(size)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_declared_device_counts_what_live_processes_hold() -> None:
    with devices(gpu0=DeviceSetting(100 * MIB, None, "declared")) as found:
        pool = Path(found.environment(())["MODELYARD_POOLS"]) / "gpu0"
        with holder(pool, 16 * MIB) as process:
            seen = {one.device: one for one in found.look({"one": [process.pid], "two": [1]})}
            assert (seen["gpu0"].total, seen["gpu0"].free) == (100 * MIB, 68 * MIB)
            assert seen["gpu0"].ours == {"one": 32 * MIB}
            # Its own 16 MiB and an interpreter, but not the pool's 32.
            assert 16 * MIB < seen["ram"].ours["one"] < 40 * MIB
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert len(list(pool.glob("*.mem"))) == 2
            assert found.look({})[-1].free == 100 * MIB
            assert list(pool.glob("*.mem")) == []


def test_pools_of_a_dead_process_are_removed(tmp_path: Path) -> None:
    text = (
        "import os, sys; from pathlib import Path; from modelyard.runtime.devices.declared import Declared\n"
        "pools = Declared({'gpu0': 5}, Path(sys.argv[1])); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", text, str(tmp_path)], check=True)
    dead = list(tmp_path.iterdir())
    assert len(dead) == 1
    setting = DeviceSetting(5, None, "declared")
    with devices(pools=tmp_path, gpu0=setting), devices(pools=tmp_path, gpu0=setting):
        left = list(tmp_path.iterdir())
        assert len(left) == 2
        assert dead[0] not in left


# -- host memory ----------------------------------------------------------------------------------------


def tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def ram(root: Path, cgroup: str) -> Ram:
    tree(root, {"proc/meminfo": f"MemTotal: {64 * MIB} kB\nMemAvailable: {60 * MIB} kB\n"})
    tree(root, {"proc/self/cgroup": cgroup})
    (root / "cg").mkdir(exist_ok=True)
    return Ram(root / "proc", root / "cg")


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    reading = ram(tmp_path, "0::/\n").read("ram", ())
    assert (reading.total, reading.free) == (64 * GIB, 60 * GIB)


def test_the_tightest_ancestor_counts_and_page_cache_does_not(tmp_path: Path) -> None:
    stat = f"anon 5\ninactive_file {2 * GIB}\nactive_file {GIB}\nshmem {7 * GIB}\n"
    tree(
        tmp_path / "cg" / "a",
        {
            "memory.max": str(16 * GIB),
            "memory.current": str(9 * GIB),
            "memory.stat": stat,
            "b/memory.max": "max",
            "b/memory.current": str(4 * GIB),
            "b/memory.stat": stat,
            "b/c/memory.max": str(32 * GIB),
            "b/c/memory.current": str(4 * GIB),
            "b/c/memory.stat": stat,
        },
    )
    reading = ram(tmp_path, "0::/a/b/c\n").read("ram", ())
    assert (reading.total, reading.free) == (16 * GIB, 10 * GIB)


def test_version_1_groups_count_too(tmp_path: Path) -> None:
    stat = f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file 0\n"
    tree(
        tmp_path / "cg" / "memory",
        {
            "memory.limit_in_bytes": "9223372036854771712",
            "memory.usage_in_bytes": str(50 * GIB),
            "memory.stat": stat,
            "x/memory.limit_in_bytes": str(8 * GIB),
            "x/memory.usage_in_bytes": str(3 * GIB),
            "x/memory.stat": stat,
        },
    )
    reading = ram(tmp_path, "4:memory,hugetlb:/x\n0::/\n").read("ram", ())
    assert (reading.total, reading.free) == (8 * GIB, 6 * GIB)


def test_a_group_above_its_limit_has_nothing_free(tmp_path: Path) -> None:
    files = {"memory.max": str(GIB), "memory.current": str(2 * GIB), "memory.stat": "anon 5\n"}
    tree(tmp_path / "cg" / "a", files)
    assert ram(tmp_path, "0::/a\n").read("ram", ()).free == 0


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(2 * GIB, 512 * MIB), (20 * GIB, 2 * GIB), (400 * GIB, 4 * GIB), (600 * MIB, 300 * MIB)],
)
def test_the_default_reserve(total: int, reserve: int) -> None:
    assert default_reserve(total) == reserve


def test_private_bytes_are_of_whole_processes_and_without_files(tmp_path: Path) -> None:
    with holder(tmp_path, 8 * MIB) as process, devices() as found:
        assert 8 * MIB < found.private_bytes([process.pid]) < 64 * MIB
        assert found.private_bytes([process.pid, os.getpid()]) > found.private_bytes([process.pid])
    assert private_bytes(process.pid) == 0


# -- ROCm and NVML --------------------------------------------------------------------------------------


def amd(root: Path) -> Path:
    """Three cards as amdgpu shows them: one real, one without an id, one of another driver."""
    tree(
        root / "drm",
        {
            "card0/device/vendor": "0x8086",
            "card1/device/unique_id": "9a\n",
            "card1/device/product_name": "Instinct\n",
            "card1/device/mem_info_vram_total": str(64 * GIB),
            "card1/device/mem_info_vram_used": str(4 * GIB),
            "card1-DP-1/status": "connected",
            "card2/device/unique_id": "0\n",
            "card2/device/mem_info_vram_total": str(GIB),
            "card2/device/mem_info_vram_used": "0",
            "card10/device/unique_id": "7b",
            "card10/device/mem_info_vram_total": str(32 * GIB),
            "card10/device/mem_info_vram_used": "0",
        },
    )
    return root / "drm"


def test_rocm_devices_come_from_sysfs(tmp_path: Path) -> None:
    rocm = Rocm(amd(tmp_path))
    assert [(one.id, one.name) for one in rocm.found()] == [("GPU-9a", "Instinct"), ("GPU-7b", "AMD GPU")]
    reading = rocm.read("GPU-9a", [1])
    assert (reading.total, reading.free, reading.held) == (64 * GIB, 60 * GIB, {})


@pytest.mark.parametrize(
    ("mask", "hip_mask", "left"),
    [("1", None, ["GPU-7b"]), (None, "0", ["GPU-9a"]), ("GPU-7b,GPU-9a", "0", ["GPU-7b"]), ("", None, [])],
)
def test_rocm_masks_apply_one_after_the_other(
    tmp_path: Path, mask: str | None, hip_mask: str | None, left: list[str]
) -> None:
    assert [one.id for one in Rocm(amd(tmp_path), mask, hip_mask).found()] == left


def test_a_machine_without_amdgpu_has_no_rocm_device(tmp_path: Path) -> None:
    assert Rocm(tmp_path / "none").found() == []


def test_nvml_on_a_real_gpu() -> None:
    nvml = PyNvml.open()
    if nvml is None:
        pytest.skip("no NVIDIA driver on this machine")
    cuda = Cuda(nvml)
    found = cuda.found()
    assert found
    assert all(one.id.startswith(("GPU-", "MIG-")) for one in found)
    reading = cuda.read(found[0].id, [os.getpid()])
    assert 0 < reading.free <= reading.total == found[0].total
    cuda.close()
    cuda.close()


# -- links, loss, and who may go where --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "groups"),
    [
        ({}, ["", "", "", ""]),
        ({"ab": Link.NVLINK, "cd": Link.NVLINK}, ["nvlink0", "nvlink0", "nvlink1", "nvlink1"]),
        (
            {"ad": Link.NVLINK, "bc": Link.BRIDGE, "ab": Link.BRIDGE},
            ["nvlink0", "bridge1", "bridge1", "nvlink0"],
        ),
        ({"ab": Link.NVLINK, "bc": Link.NVLINK}, ["nvlink0", "nvlink0", "nvlink0", ""]),
    ],
)
def test_gpus_that_are_linked_are_a_group(links: Mapping[str, Link], groups: list[str]) -> None:
    driver = Driver([Gpu(f"GPU-{name}", "A", f"GPU-{name}", GIB) for name in "abcd"])
    driver.links = {frozenset(f"GPU-{name}" for name in pair): link for pair, link in links.items()}
    with devices(driver) as found:
        assert [device.group for device in found.all[1:]] == groups
    with devices(driver, GPU_a=DeviceSetting(group="mine")) as found:
        assert found.all[1].group == "mine", "the operator knows better"


def test_a_gpu_that_is_lost_is_told_so_and_others_are_read() -> None:
    driver = Driver()
    with devices(driver) as found:
        driver.gone.add("GPU-bbbb")
        seen = {one.device: one.lost for one in found.look({})}
        assert seen == {"ram": "", "GPU-aaaa": "", "GPU-bbbb": "NVML: GPU is lost"}
        driver.gone.clear()
        assert not any(one.lost for one in found.look({}))


def test_nvml_s_word_for_lost_is_understood() -> None:
    pynvml = pytest.importorskip("pynvml")
    nvml = PyNvml(pynvml)

    def fails(code: int) -> None:
        raise pynvml.NVMLError(code)

    with pytest.raises(DeviceGone):
        nvml._ask(fails, pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(OSError, match="NVML") as other:
        nvml._ask(fails, pynvml.NVML_ERROR_UNKNOWN)
    assert not isinstance(other.value, DeviceGone)


def test_a_declared_device_may_be_of_a_scale_and_lost(tmp_path: Path) -> None:
    pool = DeviceSetting(memory=24_000, kind="declared", scale=100)
    with devices(pools=tmp_path, pool=pool) as found:
        folder = Path(found.environment(())["MODELYARD_POOLS"]) / "pool"
        held = fake_memory.Held()
        held.pool(folder, 20_000)
        (file,) = folder.glob("*.mem")
        assert file.stat().st_size == 200
        seen = next(one for one in found.look({"a-1": [os.getpid()]}) if one.device == "pool")
        assert (seen.total, seen.free, seen.ours) == (24_000, 4_000, {"a-1": 20_000})
        with pytest.raises(fake_memory.OutOfMemory, match="5000 bytes asked for, 4000 of 24000 free"):
            held.pool(folder, 5_000)
        held.drop()
        (folder / LOST).write_text("pulled out")
        assert [one.lost for one in found.look({}) if one.device == "pool"] == ["pulled out"]


def test_a_device_is_exclusive_to_the_profile_that_says_so(tmp_path: Path) -> None:
    text = (
        "devices: {{g0: {{kind: declared, memory: 5MB}}, g1: {{kind: declared, memory: 5MB}}}}\n"
        "engines: {{own: {{type: fake, devices: [g0], exclusive: true}}{more}}}\n"
        "models: {{a: {{engine: own}}, b: {{engine: fake{fields}}}}}"
    )
    config = load(None, text.format(more="", fields=""), engine_types={"fake"})
    found = Devices(config.all_devices, [Ram()], tmp_path)
    try:
        assert [device.exclusive for device in found.all] == ["", "own", ""]
    finally:
        found.close()
    for more, fields, said in (
        (", two: {type: fake, devices: [g0], exclusive: true}", "", "exclusive to the engine profile 'own'"),
        (", two: {type: fake, exclusive: true}", "", r"engines\.two\.exclusive: is of `devices`"),
    ):
        with pytest.raises(ConfigErrors, match=said):
            load(None, text.format(more=more, fields=fields), engine_types={"fake"})
