"""How many tokens a batch may have, by memory that is as large as a test says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from modelyard.servers.translation import room
from modelyard.servers.translation.room import GpuMemory, HostMemory, Measured


@dataclass
class Bytes:
    size: int
    used: int = 100

    def free(self) -> int:
        return self.size - self.used

    def begin(self) -> int:
        return 100

    def peak(self) -> int:
        return self.used


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LOOKS_EVERY", 0.0)


def run(of: Measured, tokens: int, fitted: bool | None = True) -> None:
    of.begins()
    of.ended(tokens, fitted)


def test_the_bound_is_what_is_free_by_what_a_token_took() -> None:
    memory = Bytes(200_100, used=20_100)
    made = Measured(memory, 4096)
    assert made.bound() == 4096  # nothing was measured yet
    run(made, 100)
    assert made.per_token == 200
    assert made.bound() == 450  # half of 180,000
    memory.used = 150_100  # by others
    assert made.bound() == 125
    run(made, 1000)
    assert made.per_token == 150
    memory.used = memory.size
    assert made.bound() == 64


def test_a_driver_that_fails_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed(Exception):
        pass

    answers: list[SimpleNamespace | Failed] = [SimpleNamespace(free=700, used=300), Failed()]

    def info(_: object) -> SimpleNamespace:
        if isinstance(found := answers[0] if len(answers) == 1 else answers.pop(0), Failed):
            raise found
        return found

    driver = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=int, nvmlDeviceGetMemoryInfo=info, NVMLError=Failed
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    memory = GpuMemory()
    assert (memory.free(), memory.begin(), memory.peak()) == (700, 300, 300)
    answers[:] = [SimpleNamespace(free=400, used=600)]
    assert (memory.free(), memory.peak()) == (400, 600)


def test_a_guess_holds_until_something_was_measured() -> None:
    assert Measured(Bytes(200_100), 4096, guess=100).bound() == 1000


def test_a_small_batch_tells_nothing_of_what_each_takes() -> None:
    memory = Bytes(1_000_100, used=100_100)
    made = Measured(memory, 4096)
    run(made, 1000)
    memory.used = 50_100
    run(made, 1)
    assert made.per_token == 100


def test_two_at_a_time_are_not_measured() -> None:
    made = Measured(Bytes(10_000, used=5_000), 4096)
    made.begins()
    made.begins()
    made.ended(10, True)
    made.ended(10, True)
    assert made.per_token == 0
    run(made, 10)
    assert made.per_token > 0


def test_out_of_memory_halves_the_bound_and_what_fits_raises_it_again() -> None:
    made = Measured(None, 400)
    run(made, 400, fitted=False)
    assert made.bound() == 200
    run(made, 100, fitted=None)  # it failed for another reason
    assert made.bound() == 200
    run(made, 160)
    assert made.bound() == 220
    run(made, 1, fitted=False)
    assert made.bound() == 1
    for _ in range(1000):
        run(made, 80)
    assert made.bound() == 400


def test_the_memory_of_this_process_is_seen() -> None:
    memory = HostMemory()
    assert memory.free() > 2**20
    before = memory.begin()
    held = bytearray(b"x" * (64 << 20))
    del held
    assert memory.peak() - before > 32 << 20
    again = memory.begin()
    assert memory.peak() - again < 32 << 20


def test_a_limit_of_addresses_is_seen() -> None:
    code = (
        "import resource; from modelyard.servers.translation.room import HostMemory, _field;"
        "most = _field('/proc/self/status', 'VmSize:') + 50_000_000;"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most)); print(HostMemory().free())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert 40_000_000 < int(ran.stdout) <= 50_000_000
