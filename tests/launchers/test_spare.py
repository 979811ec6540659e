"""The shim that is started ahead: used by the next start, replaced when it died, gone with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from launchers.engine_scripts import PATIENT, launch, script
from launchers.process_table import alive, open_fds, zombies
from modelyard.launchers.local import LocalLauncher
from modelyard.launchers.shim import read_stat
from waiting import until


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path / "data")
    await launcher.open()
    yield launcher
    await launcher.close()


def shims() -> set[int]:
    """The live shims that this process has started."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            command = Path(f"/proc/{name}/cmdline")
            if stat[0] not in "ZX" and stat[1] == os.getpid() and b"shim.py" in command.read_bytes():
                found.add(int(name))
    return found


async def spare_of(launcher: LocalLauncher, tmp_path: Path) -> int:
    """The spare that a stop leaves behind."""
    await launcher.start(launch("one", script(tmp_path, PATIENT)))
    await launcher.stop("one", grace=5)
    (spare,) = shims()
    return spare


async def test_the_next_start_uses_it(launcher: LocalLauncher, tmp_path: Path) -> None:
    spare = await spare_of(launcher, tmp_path)
    await launcher.start(launch("two", script(tmp_path, PATIENT)))
    assert launcher.pids("two")[1:] == [spare]
    assert shims() == {spare}


async def test_two_stops_leave_one(launcher: LocalLauncher, tmp_path: Path) -> None:
    argv = script(tmp_path, PATIENT)
    await asyncio.gather(launcher.start(launch("one", argv)), launcher.start(launch("two", argv)))
    await asyncio.gather(launcher.stop("one", grace=5), launcher.stop("two", grace=5))
    assert len(shims()) == 1


async def test_one_that_died_is_replaced(launcher: LocalLauncher, tmp_path: Path) -> None:
    spare = await spare_of(launcher, tmp_path)
    os.kill(spare, signal.SIGKILL)
    await until(lambda: not alive(spare))
    before = open_fds()
    await launcher.start(launch("two", script(tmp_path, PATIENT)))
    assert alive(launcher.pids("two")[0])
    await launcher.stop("two", grace=5)
    assert open_fds() == before
    assert zombies() == []


async def test_close_ends_it(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "data")
    before = open_fds()
    await launcher.open()
    await spare_of(launcher, tmp_path)
    await launcher.close()
    assert shims() == set()
    assert zombies() == []
    assert open_fds() == before


async def test_no_argument_is_too_long_for_the_order(launcher: LocalLauncher, tmp_path: Path) -> None:
    text = "import sys\nprint(sum(len(one) for one in sys.argv[1:]), flush=True)"
    await launcher.start(launch("one", script(tmp_path, text, *["x" * 100_000] * 5)))
    await until(lambda: launcher.tail("one") == "500000")
    await launcher.stop("one", grace=0)


PARENT = """
import asyncio, os, sys
from pathlib import Path
from modelyard.engines.base import Command
from modelyard.launchers.base import Launch
from modelyard.launchers.local import LocalLauncher

async def main():
    launcher = LocalLauncher(Path(sys.argv[1]))
    await launcher.open()
    command = Command(argv=("/bin/sleep", "600"))
    await launcher.start(Launch(instance="one", command=lambda address: command, unix=True))
    await launcher.stop("one", 5)
    print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(tmp_path / "data")), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(20):
        (spare,) = [int(pid) for pid in (await parent.stdout.readline()).split()]
    assert alive(spare)
    parent.kill()
    await parent.wait()
    await until(lambda: not alive(spare))
