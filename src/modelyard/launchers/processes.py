"""Processes by identity (pid and start time), found by descent or by the mark in their environment.

Used by the local launcher when a shim can no longer do it: it was killed itself, or an earlier life of
Modelyard left processes behind. Nothing is signalled by pid alone: a pidfd is opened, the start time is
compared, and only then the signal goes to the pidfd.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from modelyard.launchers.shim import descendants, read_stat

MARK = "MODELYARD_INSTANCE"
REAP_DEADLINE = 10.0
_REAP_POLL = 0.01


@dataclass(frozen=True, slots=True)
class Process:
    """One process for ever: `start` is its start time in clock ticks since boot."""

    pid: int
    start: int

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """The live process that has this pid now."""
        stat = read_stat(pid)
        return None if stat is None or stat[0] in "ZX" else cls(pid, stat[3])

    def mark(self) -> str:
        """The instance mark in its environment; empty when it has none, is gone, or is not ours to read."""
        try:
            environment = Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return ""
        prefix = f"{MARK}=".encode()
        for entry in environment.split(b"\0"):
            if entry.startswith(prefix):
                return entry[len(prefix) :].decode(errors="replace")
        return ""

    def kill(self) -> None:
        """SIGKILL, if this pid is still this process."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if Process.find(self.pid) == self:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except OSError:
            return
        finally:
            os.close(fd)


def boot_id() -> str:
    """The identity of this boot of the machine: start times mean nothing across boots."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def marked(belongs: Callable[[str], bool]) -> dict[Process, str]:
    """Every live process whose mark satisfies `belongs`, with its mark."""
    found: dict[Process, str] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := Process.find(int(name))) is not None:
            mark = process.mark()
            if mark and belongs(mark):
                found[process] = mark
    return found


def reap(belongs: Callable[[str], bool], known: Iterable[Process] = ()) -> bool:
    """KILL every process whose mark satisfies `belongs`, those `known`, and all their descendants.

    Blocks until they are gone, at most REAP_DEADLINE seconds; False when some are still there. The caller
    and its ancestors are never among them, even where they carry the mark.
    """
    spared = _ancestry()
    remembered = set(known)
    deadline = time.monotonic() + REAP_DEADLINE
    while True:
        roots = {process for process in remembered if Process.find(process.pid) == process}
        roots |= marked(belongs).keys()
        found = {process for process in roots if process.pid not in spared}
        for root in tuple(found):
            below = (Process.find(pid) for pid in descendants(root.pid) if pid not in spared)
            found.update(process for process in below if process is not None)
        if not found:
            return True
        if time.monotonic() >= deadline:
            return False
        remembered |= found
        for process in found:
            process.kill()
        time.sleep(_REAP_POLL)


def _ancestry() -> set[int]:
    pids: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        stat = read_stat(pid)
        pid = 0 if stat is None else stat[1]
    return pids
