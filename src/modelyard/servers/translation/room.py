"""How many tokens a batch may have: what is free on its device, by what a token was measured to take.

Used by `batching`, from its threads; `bound` on the event loop as well. Bytes are measured while one batch
runs alone. One that does not fit halves the bound, which then grows again with each that does.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

_SHARE = 0.5  # of what is free: others may want some as well
_LOOKS_EVERY = 0.1  # seconds
_LEAST = 64  # tokens


class Memory(Protocol):
    """The memory that a model computes in, in bytes."""

    def free(self) -> int: ...

    def begin(self) -> int:
        """What is in use, before a batch."""
        ...

    def peak(self) -> int:
        """The most that was in use since."""
        ...


class Measured:
    """See `batching.Room`. At most `most` tokens; `guess` is what one takes (bytes) until it was measured."""

    def __init__(self, memory: Memory | None, most: int, guess: float = 0.0) -> None:
        self.per_token = guess
        self._memory = memory
        self._most = self._cap = most
        self._lock = threading.Lock()
        self._running = self._before = self._taken = self._tokens = 0
        self._alone = False
        self._bound, self._looked = most, -_LOOKS_EVERY

    def bound(self) -> int:
        now = time.monotonic()
        with self._lock:
            if now - self._looked >= _LOOKS_EVERY:
                self._looked, self._bound = now, self._fits()
            return self._bound

    def begins(self) -> None:
        with self._lock:
            self._running += 1
            self._alone = self._running == 1
            if self._alone and self._memory is not None:
                self._before = self._memory.begin()

    def ended(self, tokens: int, fitted: bool | None) -> None:
        with self._lock:
            self._running -= 1
            alone, self._alone = self._alone, False
            if fitted is False:
                self._cap = max(min(self._cap, tokens // 2), 1)
                self._looked = -_LOOKS_EVERY
            elif fitted:
                self._cap = min(self._cap + tokens // 8, self._most)
                if alone and self._memory is not None:
                    self._measure(self._memory, tokens)

    def _measure(self, memory: Memory, tokens: int) -> None:
        # The greatest by the greatest: small batches tell of what each takes whatever its size.
        self._tokens = max(self._tokens, tokens)
        self._taken = max(self._taken, memory.peak() - self._before)
        self.per_token = self._taken / self._tokens

    def _fits(self) -> int:
        if self._memory is None or not self.per_token:
            return self._cap
        return min(self._cap, max(int(_SHARE * self._memory.free() / self.per_token), _LEAST))


class HostMemory:
    """Of this process; free is what the machine has, or where one of these has less, its control group or
    its limit of addresses (`ulimit -v`)."""

    def free(self) -> int:
        found = [_field("/proc/meminfo", "MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        with suppress(OSError, ValueError):  # none, or one without a limit
            limit = int((group / "memory.max").read_text())
            found.append(limit - int((group / "memory.current").read_text()))
        addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
        if addresses != resource.RLIM_INFINITY:
            found.append(addresses - _field("/proc/self/status", "VmSize:"))
        return max(min(found), 0)

    def begin(self) -> int:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        return _field("/proc/self/status", "VmRSS:")

    def peak(self) -> int:
        return _field("/proc/self/status", "VmHWM:")


class GpuMemory:
    """Of the GPU with this index among those that CUDA sees. Raises ImportError without `nvidia-ml-py`, and
    what that raises where there is no driver."""

    def __init__(self, index: int = 0) -> None:
        import pynvml  # noqa: PLC0415 - absent where there is no GPU

        pynvml.nvmlInit()
        seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        name = seen[index] if seen else str(index)
        by_number = name.isdecimal()
        self._device = (
            pynvml.nvmlDeviceGetHandleByIndex(int(name))
            if by_number
            else pynvml.nvmlDeviceGetHandleByUUID(name)
        )
        self._info, self._errors = pynvml.nvmlDeviceGetMemoryInfo, pynvml.NVMLError
        self._seen = self._info(self._device)
        self._before = self.peak()

    def free(self) -> int:
        return int(self._look().free)

    def begin(self) -> int:
        return self._before  # what batches take is kept for the next ones

    def peak(self) -> int:
        return int(self._look().used)

    def _look(self) -> Any:
        """What the driver says; where it fails for a moment, what it said before."""
        with suppress(self._errors):
            self._seen = self._info(self._device)
        return self._seen


def _field(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0
