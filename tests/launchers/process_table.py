"""What is alive on this machine, and waiting for it to change."""

from __future__ import annotations

import os
from pathlib import Path

from modelyard.launchers.processes import Process


def alive(pid: int) -> bool:
    """Is there a live process (no zombie) with this pid?"""
    return Process.find(pid) is not None


def with_mark_of(folder: Path) -> list[int]:
    """Live processes whose command line or environment names this folder."""
    needle = os.fsencode(folder)
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid() or not alive(int(name)):
            continue
        try:
            text = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if needle in text:
            found.append(int(name))
    return found


def zombies() -> list[int]:
    """Dead children of this process that nobody has waited for."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and int(fields[1]) == os.getpid():
                found.append(int(name))
    return found


def open_fds(besides: tuple[str, ...] = ()) -> int:
    """How many descriptors this process has, but for files whose names begin with one of `besides`."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # the one that listed them, or one that was closed meanwhile
        count += not name.startswith(besides)
    return count
